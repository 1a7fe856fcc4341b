"""Federated unlearning by parts of the adapter: NoT negates the first layer, FUSED adds new ones."""

import math

import jax
import jax.numpy as jnp

from unlearn_jax import types
from unlearn_jax.methods import base
from unlearn_jax.methods import fed_clients
from unlearn_jax.methods import federated
from unlearn_jax.models import lora


def fed_not(model: types.Model, *, recover_rounds: int = 10, optimizer: str = 'adamw',
            learning_rate: float = 1e-4, weight_decay: float = 0.01) -> types.Method:
  """Negates the first layer's update, `B_1 <- -B_1` per branch, and lets the retained clients repair.

  `delta W_1 = (alpha / r) B_1 A_1` changes its sign, which breaks the co-adaptation of what comes
  after it; the retained clients then train, the others' knowledge not being asked for. The first
  layer is that of the first adapted matrix by name, with all its matrices (queries and values of
  block 0 of a CLIP). It needs nobody's pairs to forget and no history.

  Source: Khalil et al. 2025 (NoT), which negates weights of the first layer; that of LoRA only the
  update is negated is ours, since the backbone does not belong to the federation.

  Args:
    model: two towers with adapters, see `models.lora.adapted`.
    recover_rounds: of FedAvg on retained pairs.
    optimizer: of the clients, `'adamw'` or `'sgd'`, begun anew in every round.
    learning_rate: of the clients.
    weight_decay: decoupled.

  Raises:
    ValueError: a setting out of range; on init, variables without an adapter.
  """
  federated.check_rounds('fed_not', recover_rounds=recover_rounds)
  tx = federated.optimizer('fed_not', optimizer, learning_rate, weight_decay)

  def init(key, variables):
    state = federated.initial_state(key, variables)
    factors = lora.unflatten(model, variables)
    return state.replace(params={'adapter': {
        branch: lora.flatten(negated(matrices)) for branch, matrices in factors.items()}}), {}

  recover = federated.rounds_phase(model, tx, recover_rounds, learning_rate=learning_rate,
                                   wanted_by='fed_not')
  return types.Method(init, (recover,), federated.export)


def negated(factors: dict[str, lora.Factors]) -> dict[str, lora.Factors]:
  """The factors of a branch with B negated in all matrices of its first layer."""
  layer = lambda name: name.rpartition('/')[0]
  first = layer(next(iter(factors)))
  return {name: one._replace(b=-one.b) if layer(name) == first else one
          for name, one in factors.items()}


def fused(model: types.Model, *, example: types.Inputs, share: float = 0.5,
          recover_rounds: int = 10, optimizer: str = 'adamw', learning_rate: float = 1e-4,
          weight_decay: float = 0.01) -> types.Method:
  """Leaves theta^T as it is and overwrites with new adapters: `W = W_T + (alpha / r) B' A'`.

  `W_T = W0 + (alpha / r) B A` is merged into the backbone once and frozen; (B', A') is a fresh
  adapter of the same layout, which starts at B' = 0, that is at the original model. The retained
  clients train it for `recover_rounds` rounds of FedAvg, in each branch only for the share of
  matrices that training has changed most, by mean |theta^T - theta^0| over both factors. The model is
  exported as it was trained: merged weights are the `params`, (B', A') the `adapter`. That is exact,
  and dropping the new adapter gives the original back, which is why the method is called reversible.

  Source: Zhong et al. 2025 (FUSED) and its code. Ours: layout, rank and scale of the adapters in use
  where it has rank 16, scale 2 and dropout 0.1; the measure of change, where it compares clients with
  the server in every round of training; matrices chosen by branch.

  Args:
    model: two towers with adapters, see `models.lora.adapted`.
    example: inputs of any batch size, for shapes.
    share: of each branch's matrices that get new adapters, in (0, 1], rounded up.
    recover_rounds: of FedAvg on retained pairs.
    optimizer: of the clients, `'adamw'` or `'sgd'`, begun anew in every round.
    learning_rate: of the clients.
    weight_decay: decoupled.

  Raises:
    ValueError: a setting out of range; on init, variables without an adapter or history.
  """
  federated.check_rounds('fused', recover_rounds=recover_rounds)
  base.check_range('fused', share=(share, 1e-6, 1))
  tx = federated.optimizer('fused', optimizer, learning_rate, weight_decay)

  def step(state, frozen, batch):
    sent = state.params['adapter']
    found = federated.gather(
        federated.contrastive(model, state), tx, sent,
        base.fields(batch, federated.CLIENTS, 'fused'),
        after=lambda adapter: {branch: jnp.where(frozen['chosen'][branch], vector, sent[branch])
                               for branch, vector in adapter.items()})
    return federated.added(state, found.mean), found.metrics

  def init(key, variables):
    start = fed_clients.history(variables, 'fused')['start']
    state = federated.initial_state(key, variables)
    change = {branch: jnp.abs(vector - start[branch])
              for branch, vector in state.params['adapter'].items()}
    factors = lora.unflatten(model, {**variables, 'adapter': change})
    chosen = {branch: lora.flatten(most_changed(matrices, share))
              for branch, matrices in factors.items()}
    fresh = fed_clients.fresh_adapter(model, example)(key)
    merged = lora.merged(model, variables)
    return state.replace(params={'adapter': fresh},
                         collections={**state.collections, 'params': merged}), {'chosen': chosen}

  phase = types.Phase('overwrite', step, recover_rounds, 'retain')
  return types.Method(init, (phase,), federated.export)


def most_changed(change: dict[str, lora.Factors], share: float) -> dict[str, lora.Factors]:
  """Factors of booleans: whether a matrix is among the share with the largest mean entries."""
  means = jnp.stack([sum(jnp.sum(part) for part in one if part is not None)
                     / sum(part.size for part in one if part is not None)
                     for one in change.values()])
  rank = jnp.argsort(jnp.argsort(-means))  # of equals the first by name
  chosen = rank < math.ceil(share * len(change))
  return {name: jax.tree.map(lambda part, index=index: jnp.full(part.shape, chosen[index]), one)
          for index, (name, one) in enumerate(change.items())}
