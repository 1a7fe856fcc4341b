"""Unlearning of image-text pairs, federated: MultiDelete and CLIPErase."""

from collections.abc import Mapping
import math

import jax
import jax.numpy as jnp

from unlearn_jax import types
from unlearn_jax.losses import ease as losses
from unlearn_jax.methods import base
from unlearn_jax.methods import fed_clients
from unlearn_jax.methods import federated
from unlearn_jax.methods import image_text

_PAIR = ('image_embedding', 'text_embedding')


def fed_multi_delete(model: types.Model, *, roster, rounds: int = 5,
                     forget_learning_rate: float = 1e-4, recover_rounds: int = 5,
                     optimizer: str = 'adamw', learning_rate: float = 1e-4,
                     weight_decay: float = 0.01) -> types.Method:
  """MultiDelete, `L_MD + L_UKR` where pairs are forgotten and `L_MKR` where pairs are retained.

  With (u, w) the embeddings of a pair, S = U W^T, and a star for the frozen theta^T:

  - modality decoupling, `L_MD = 2 mean_ij (S_ij - S*_i,pi(j))^2` on pairs to forget: similarities
    become what the original has with the captions shuffled; 2, since both directions count;
  - unimodal knowledge retention, `L_UKR = mean ||u - u*||^2 / d + mean ||w - w*||^2 / d` on them;
  - multimodal knowledge retention, `L_MKR = mean ||h - h*||^2 / d` on retained pairs, with the joint
    state `h = (u + w) / ||u + w||`.

  In each of `rounds` rounds the server adds the mean update of the forgetting clients and that of the
  retained ones, each by numbers of pairs; then come `recover_rounds` rounds of FedAvg on InfoNCE.

  Source: Cheng and Amiri 2024 for retrieval, with h as public code has it that applies MultiDelete to
  CLIP. Ours: its division among clients; pi, drawn anew in every local step, leaves no caption in
  its place, where the release may.

  Args:
    model: two towers with adapters, see `models.lora.adapted`.
    roster: of the clients.
    rounds: of unlearning.
    forget_learning_rate: of the clients that forget.
    recover_rounds: of FedAvg on retained pairs afterwards.
    optimizer: of all clients, `'adamw'` or `'sgd'`, begun anew in every round.
    learning_rate: of the retained clients.
    weight_decay: of the retained clients, decoupled; those that forget have none.

  Raises:
    ValueError: a setting out of range, nothing to forget; on init, variables without an adapter.
  """

  def forget(student, teacher, inputs):
    where = inputs['mask'] > 0
    # The embedding of a shuffled caption is that caption's: w*_pi(j).
    apart = teacher['image_embedding'] @ teacher['text_embedding'][inputs['partner']].T
    square = jnp.square(student['image_embedding'] @ student['text_embedding'].T - apart)
    square = jnp.where(where[:, None] & where[None, :], square, 0.0)
    decoupling = 2.0 * jnp.sum(square) / jnp.maximum(jnp.sum(where)**2, 1)
    return decoupling + _unimodal(student, teacher, where)

  def retain(student, teacher, inputs):
    return _mean(jnp.mean(jnp.square(_joint(student) - _joint(teacher)), axis=1), inputs['mask'])

  return _pairs('fed_multi_delete', model, forget, retain, roster=roster, rounds=rounds,
                forget_learning_rate=forget_learning_rate, recover_rounds=recover_rounds,
                optimizer=optimizer, learning_rate=learning_rate, weight_decay=weight_decay)


def clip_erase(model: types.Model, *, roster, rounds: int = 5, forget_learning_rate: float = 1e-4,
               consistency: float = 1.0, recover_rounds: int = 5, optimizer: str = 'adamw',
               learning_rate: float = 1e-4, weight_decay: float = 0.01) -> types.Method:
  """CLIPErase: forgets by similarity, retains by InfoNCE, stays consistent with the original.

  - forgetting, at the clients that forget: `mean_i <u_i, w_i>`, to be minimised;
  - retention and consistency, at the retained ones: `L_NCE + consistency (mean ||u - u*||^2 / d +
    mean ||w - w*||^2 / d)` with a star for the frozen theta^T.

  In each of `rounds` rounds the server adds the mean update of the forgetting clients and that of the
  retained ones, each by numbers of pairs; then come `recover_rounds` rounds of FedAvg on InfoNCE.

  Source: Yang et al. 2025 (CLIPErase) names the three modules; we have read no more of its formulas,
  so these, their weights and their division among clients are ours.

  Args:
    model: two towers with adapters, see `models.lora.adapted`.
    roster: of the clients.
    rounds: of unlearning.
    forget_learning_rate: of the clients that forget.
    consistency: weight of the distance to the original's embeddings.
    recover_rounds: of FedAvg on retained pairs afterwards.
    optimizer: of all clients, `'adamw'` or `'sgd'`, begun anew in every round.
    learning_rate: of the retained clients.
    weight_decay: of the retained clients, decoupled; those that forget have none.

  Raises:
    ValueError: a setting out of range, nothing to forget; on init, variables without an adapter.
  """
  base.check_range('clip_erase', consistency=(consistency, 0, math.inf))

  def forget(student, teacher, inputs):
    del teacher
    image, text = (student[name] for name in _PAIR)
    return _mean(jnp.sum(image * text, axis=1), inputs['mask'])

  def retain(student, teacher, inputs):
    image, text = (student[name] for name in _PAIR)
    nce = losses.local_loss(image, text, student['logit_scale'], where=inputs['mask'])
    return nce + consistency * _unimodal(student, teacher, inputs['mask'])

  return _pairs('clip_erase', model, forget, retain, roster=roster, rounds=rounds,
                forget_learning_rate=forget_learning_rate, recover_rounds=recover_rounds,
                optimizer=optimizer, learning_rate=learning_rate, weight_decay=weight_decay)


def _pairs(method: str, model: types.Model, forget, retain, *, roster, rounds, forget_learning_rate,
           recover_rounds, optimizer, learning_rate, weight_decay) -> types.Method:
  """Rounds on both losses `(student, teacher, inputs) -> scalar`, then recovery."""
  federated.check_rounds(method, rounds=rounds, recover_rounds=recover_rounds)
  base.check_range(method, forget_learning_rate=(forget_learning_rate, 0, math.inf))
  clients = fed_clients.owners(method, roster)
  tx = federated.optimizer(method, optimizer, learning_rate, weight_decay)
  forgetting = image_text.optimizer(optimizer, forget_learning_rate, weight_decay=0.0)

  def objective(loss, state, frozen):
    def of(adapter, inputs):
      teacher = jax.lax.stop_gradient(federated.forward(model, state, frozen['original'], inputs))
      return loss(federated.forward(model, state, adapter, inputs), teacher, inputs)
    return of

  def step(state, frozen, batch):
    theta = state.params['adapter']
    data = fed_clients.owned(batch, clients, method)
    key = jax.random.fold_in(state.key, state.step)
    gone = federated.gather(objective(forget, state, frozen), forgetting, theta,
                            {**data, 'partner': partners(key, data['mask'])})
    kept = federated.gather(objective(retain, state, frozen), tx, theta,
                            base.fields(batch, federated.CLIENTS, method))
    moved = {branch: gone.mean[branch] + kept.mean[branch] for branch in federated.BRANCHES}
    return federated.added(state, moved), {
        'loss_forget': gone.metrics['loss'], 'loss': kept.metrics['loss'],
        'failed': gone.metrics['failed'] + kept.metrics['failed']}

  def init(key, variables):
    state = federated.initial_state(key, variables)
    return state, {'original': base.copied(state.params['adapter'])}

  recover = federated.rounds_phase(model, tx, recover_rounds, learning_rate=learning_rate,
                                   wanted_by=method)
  return types.Method(init, (types.Phase('unlearn', step, rounds), recover), federated.export)


def partners(key: types.Array, mask: types.Array) -> types.Array:
  """For each counting row of [..., B] another one: a random cycle through all of them, int32.

  A single counting row is its own partner, rows that do not count are too.
  """
  size = mask.shape[-1]
  places = jnp.broadcast_to(jnp.arange(size), mask.shape)
  count = jnp.sum(mask > 0, axis=-1, keepdims=True)
  order = jnp.argsort(jnp.where(mask > 0, jax.random.uniform(key, mask.shape), jnp.inf), axis=-1)
  rank = jnp.argsort(order, axis=-1)  # of each row in the order, counting ones first
  following = jnp.take_along_axis(order, (rank + 1) % jnp.maximum(count, 1), axis=-1)
  return jnp.where(mask > 0, following, places).astype(jnp.int32)


def _unimodal(student: Mapping, teacher: Mapping, where: types.Array) -> types.Array:
  """Mean squared distances of both embeddings, [B, d], over counting rows and dimensions."""
  return sum(_mean(jnp.mean(jnp.square(student[name] - teacher[name]), axis=1), where)
             for name in _PAIR)


def _mean(values: types.Array, mask: types.Array) -> types.Array:
  """Mean of [B] over counting rows; 0 if none counts."""
  return jnp.sum(mask * values) / jnp.maximum(jnp.sum(mask), 1)


def _joint(outputs: Mapping) -> types.Array:
  """`(u + w) / ||u + w||` [B, d]; 0 where they cancel."""
  total = outputs['image_embedding'] + outputs['text_embedding']
  square = jnp.sum(jnp.square(total), axis=1, keepdims=True)
  return total * jax.lax.rsqrt(jnp.where(square > 0, square, 1.0))
