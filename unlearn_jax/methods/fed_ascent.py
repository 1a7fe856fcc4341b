"""Federated unlearning by ascent at the clients whose pairs are to be forgotten: GA, SFU, FedOSD."""

import math

import jax
import jax.numpy as jnp
import optax

from unlearn_jax import types
from unlearn_jax.losses import ease as losses
from unlearn_jax.losses import federated as algebra
from unlearn_jax.losses import subspace
from unlearn_jax.methods import base
from unlearn_jax.methods import fed_clients
from unlearn_jax.methods import federated
from unlearn_jax.methods import image_text


def clipped(method: str, name: str, learning_rate: float, clip: float
            ) -> optax.GradientTransformation:
  """The optimizer of clients that climb: no decay, gradients of both branches clipped together.

  Raises:
    ValueError: a rate or bound out of range, an unknown name.
  """
  base.check_range(method, forget_learning_rate=(learning_rate, 0, math.inf),
                   clip=(clip, 0, math.inf))
  return optax.chain(optax.clip_by_global_norm(clip),
                     image_text.optimizer(name, learning_rate, weight_decay=0.0))


def opposite(objective: federated.Objective) -> federated.Objective:
  """`-objective`: to descend it is to climb."""
  return lambda adapter, inputs: -objective(adapter, inputs)


def fed_ga(model: types.Model, *, roster, rounds: int = 5, forget_learning_rate: float = 1e-4,
           clip: float = 5.0, recover_rounds: int = 5, optimizer: str = 'adamw',
           learning_rate: float = 1e-4, weight_decay: float = 0.01) -> types.Method:
  """Gradient ascent: `theta <- theta + sum_f p_f delta_f`, where f climbs its own InfoNCE.

  In each of `rounds` rounds the clients f that have pairs to forget take local steps on
  `-L_NCE(D_f)` and the server adds their mean, by numbers of pairs; then come `recover_rounds`
  rounds of FedAvg on the retained pairs. The plainest baseline of federated unlearning, in no paper
  of its own; nothing bounds the loss but the clipping, so rounds and rate decide how much is lost.

  Args:
    model: two towers with adapters, see `models.lora.adapted`.
    roster: of the clients.
    rounds: of ascent.
    forget_learning_rate: of the clients that climb.
    clip: bound on the norm of their gradients, both branches together.
    recover_rounds: of FedAvg on retained pairs afterwards.
    optimizer: of all clients, `'adamw'` or `'sgd'`, begun anew in every round.
    learning_rate: of the recovering clients.
    weight_decay: of the recovering clients, decoupled; those that climb have none.

  Raises:
    ValueError: a setting out of range, nothing to forget; on init, variables without an adapter.
  """
  federated.check_rounds('fed_ga', rounds=rounds, recover_rounds=recover_rounds)
  clients = fed_clients.owners('fed_ga', roster)
  tx = federated.optimizer('fed_ga', optimizer, learning_rate, weight_decay)
  climbing = clipped('fed_ga', optimizer, forget_learning_rate, clip)

  def step(state, frozen, batch):
    del frozen
    found = federated.gather(opposite(federated.contrastive(model, state)), climbing,
                             state.params['adapter'], fed_clients.owned(batch, clients, 'fed_ga'))
    return federated.added(state, found.mean), found.metrics

  def init(key, variables):
    return federated.initial_state(key, variables), {}

  recover = federated.rounds_phase(model, tx, recover_rounds, learning_rate=learning_rate,
                                   wanted_by='fed_ga')
  return types.Method(init, (types.Phase('ascend', step, rounds), recover), federated.export)


def sfu(model: types.Model, *, roster, rounds: int = 5, forget_learning_rate: float = 1e-4,
        clip: float = 5.0, probe_rounds: int = 5, energy: float = 0.95, max_rank: int = 32,
        recover_rounds: int = 5, optimizer: str = 'adamw', learning_rate: float = 1e-4,
        weight_decay: float = 0.01) -> types.Method:
  """Subspace ascent: `fed_ga` whose local steps keep to the complement of the retained subspace.

  `theta <- theta + (I - U_r U_r^T) step`, per branch, after every local step of ascent. U_r spans
  the retained clients' subspaces together, each a thin SVD (`losses.subspace.basis`) of the updates
  which that client makes at theta^T: `probe_rounds` rounds in which everybody trains and the model
  stays. Source of the idea: Li et al. 2023 (SFU), in whose paper the subspaces are those of the
  inputs of layers; those of updates, and so all that is particular to them here, are ours. It is EASE
  without bilateral channels, sines, threshold and lock.

  The updates kept for the SVDs take 4 K (probe_rounds) (P_image + P_text) bytes.

  Args:
    model: two towers with adapters, see `models.lora.adapted`.
    roster: of the clients.
    rounds: of ascent.
    forget_learning_rate: of the clients that climb.
    clip: bound on the norm of their gradients, both branches together.
    probe_rounds: updates per retained client, at least 1.
    energy: share of the squared singular values that a client's subspace keeps, in (0, 1].
    max_rank: of a client's subspace.
    recover_rounds: of FedAvg on retained pairs afterwards.
    optimizer: of all clients, `'adamw'` or `'sgd'`, begun anew in every round.
    learning_rate: of the clients that probe and recover.
    weight_decay: of these, decoupled.

  Raises:
    ValueError: a setting out of range, nothing to forget; on init, variables without an adapter.
  """
  federated.check_rounds('sfu', rounds=rounds, probe_rounds=probe_rounds,
                         recover_rounds=recover_rounds)
  base.check_range('sfu', probe_rounds=(probe_rounds, 1, math.inf), energy=(energy, 1e-6, 1),
                   max_rank=(max_rank, 1, math.inf))
  clients = fed_clients.owners('sfu', roster)
  tx = federated.optimizer('sfu', optimizer, learning_rate, weight_decay)
  climbing = clipped('sfu', optimizer, forget_learning_rate, clip)

  def probe(state, frozen, batch):
    del frozen
    found = federated.gather(federated.contrastive(model, state), tx, state.params['adapter'],
                             base.fields(batch, federated.CLIENTS, 'sfu'))
    seen = federated.recorded(state.extra['updates'], found, state.step)
    return state.replace(step=state.step + 1, extra={'updates': seen}), found.metrics

  def enter(state):
    return state.replace(extra={'support': {
        branch: support(updates) for branch, updates in state.extra['updates'].items()}})

  def support(updates):
    rank = min(max_rank, probe_rounds)
    found = jax.vmap(lambda one: subspace.basis(one.T, energy=energy, max_rank=rank))(updates)
    return subspace.union(found.vectors, found.mask).vectors

  def step(state, frozen, batch):
    del frozen
    sent = state.params['adapter']
    found = federated.gather(
        opposite(federated.contrastive(model, state)), climbing, sent,
        fed_clients.owned(batch, clients, 'sfu'),
        after=lambda adapter: {
            branch: sent[branch] + subspace.project_out(vector - sent[branch],
                                                        state.extra['support'][branch])
            for branch, vector in adapter.items()})
    return federated.added(state, found.mean), found.metrics

  def init(key, variables):
    state = federated.initial_state(key, variables)
    return state.replace(extra={'updates': {
        branch: jnp.zeros((len(roster.sizes), probe_rounds, *vector.shape), vector.dtype)
        for branch, vector in state.params['adapter'].items()}}), {}

  recover = federated.rounds_phase(model, tx, recover_rounds, learning_rate=learning_rate,
                                   wanted_by='sfu')
  return types.Method(init, (types.Phase('probe', probe, probe_rounds, 'retain'),
                             types.Phase('ascend', step, rounds, enter=enter), recover),
                      federated.export)


def fed_osd(model: types.Model, *, roster, rounds: int = 5, forget_learning_rate: float = 1e-4,
            recover_rounds: int = 5, optimizer: str = 'adamw', learning_rate: float = 1e-4,
            weight_decay: float = 0.01) -> types.Method:
  """Orthogonal steepest descent: unlearns across all retained updates, recovers without going back.

  Unlearning: the clients that forget descend `losses.ease.uce`, `-log(1 - p_ii / 2)` in both
  directions, and send g, the retained ones send the rows of G, and per branch `theta <- theta + d
  ||g|| / ||d||` with `d = g - G^T (G G^T)^+ G g`: no retained client's loss changes to first order.
  If g lies in the span of G, the branch stays. Recovery: FedAvg in which each update, per branch, is
  made orthogonal to `theta - theta^T` and gets its length back, so that no client walks towards the
  original model. See `losses.federated`, `orthogonal_direction` and `without_return`.

  Source: Pan et al. 2025 (FedOSD) and its code. There G, g and the losses are those of a classifier
  over whole models, clients weigh alike and gradients are of full batches; here (ours) updates of
  local steps stand for gradients, branches are treated apart and clients weigh by numbers of pairs.

  Args:
    model: two towers with adapters, see `models.lora.adapted`.
    roster: of the clients.
    rounds: of unlearning.
    forget_learning_rate: of the clients that forget.
    recover_rounds: of FedAvg on retained pairs, each update made orthogonal.
    optimizer: of all clients, `'adamw'` or `'sgd'`, begun anew in every round.
    learning_rate: of the retained clients.
    weight_decay: of the retained clients, decoupled; those that forget have none.

  Raises:
    ValueError: a setting out of range, nothing to forget; on init, variables without an adapter.
  """
  federated.check_rounds('fed_osd', rounds=rounds, recover_rounds=recover_rounds)
  base.check_range('fed_osd', forget_learning_rate=(forget_learning_rate, 0, math.inf))
  clients = fed_clients.owners('fed_osd', roster)
  tx = federated.optimizer('fed_osd', optimizer, learning_rate, weight_decay)
  forgetting = image_text.optimizer(optimizer, forget_learning_rate, weight_decay=0.0)

  def unlearn(state, frozen, batch):
    del frozen
    sent = state.params['adapter']
    kept = federated.gather(federated.contrastive(model, state), tx, sent,
                            base.fields(batch, federated.CLIENTS, 'fed_osd'))
    gone = federated.gather(_uce(model, state), forgetting, sent,
                            fed_clients.owned(batch, clients, 'fed_osd'))
    moved = {branch: algebra.orthogonal_direction(vector, kept.deltas[branch], where=kept.used)
             for branch, vector in gone.mean.items()}
    metrics = {'loss': gone.metrics['loss'],
               'failed': gone.metrics['failed'] + kept.metrics['failed']}
    return federated.added(state, moved), metrics

  def recover(state, frozen, batch):
    data = base.fields(batch, federated.CLIENTS, 'fed_osd')
    theta = state.params['adapter']
    deltas, loss = federated.local_update(federated.contrastive(model, state), tx, theta, data,
                                          after=federated.lock(state, learning_rate))
    turned = {branch: jax.vmap(algebra.without_return, (0, None))(
        delta, theta[branch] - frozen['original'][branch]) for branch, delta in deltas.items()}
    found = federated.collected(turned, loss, data)
    return federated.added(state, found.mean), found.metrics

  def init(key, variables):
    state = federated.initial_state(key, variables)
    return state, {'original': base.copied(state.params['adapter'])}

  return types.Method(init, (types.Phase('unlearn', unlearn, rounds),
                             types.Phase('recover', recover, recover_rounds, 'retain')),
                      federated.export)


def _uce(model: types.Model, state: types.TrainState) -> federated.Objective:
  def objective(adapter, inputs):
    found = federated.forward(model, state, adapter, inputs)
    return losses.uce(found['image_embedding'], found['text_embedding'],
                      found['logit_scale'], where=inputs['mask'])

  return objective
