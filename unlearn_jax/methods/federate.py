"""Federated training of adapters: the original (all clients' pairs) and the oracle (without some)."""

import jax
import jax.numpy as jnp

from unlearn_jax import types
from unlearn_jax.methods import base
from unlearn_jax.methods import federated


def federate(model: types.Model, *, roster, rounds: int = 20, further_rounds: int = 0,
             history: int = 20, role: str = 'retain', optimizer: str = 'adamw',
             learning_rate: float = 1e-4, weight_decay: float = 0.01) -> types.Method:
  """FedAvg on adapters: `theta^{t+1} = theta^t + sum_k p_k delta_k / sum_k p_k`, k taking part.

  McMahan et al. 2017 with the symmetric InfoNCE of each client's own pairs as local loss. Training
  starts from theta^0: the adapter of the variables given to `init`, or, if these have been trained
  already, the `start` of their federation, so that nothing of the original reaches the oracle and
  both begin alike.

  The exported variables carry the collection `federation`, what the server of FedAvg has seen
  anyway: `start` theta^0, `updates` [K, H, P] per branch (a ring: round t in slot t % H; zeros where
  a client took no part or failed), `taken` float32 [K, H], `weight` float32 [K] (n_k, 0 for a client
  without data) and `rounds`, int32. It takes 4 K H (P_image + P_text) bytes on every device: 393 MB
  for CLIP-B/32 with rank 8, 10 clients and 20 rounds.

  Defaults are ours.

  Args:
    model: two towers with adapters, see `models.lora.adapted`.
    roster: of the clients; its length is K.
    rounds: T.
    further_rounds: that the oracle trains besides, as many as methods of unlearning let retained
      data be seen again; `role='train'` ignores them.
    history: H at most, rounds whose updates are kept; all of them if there are fewer.
    role: the stream: `'retain'` for the oracle, `'train'` for the original.
    optimizer: of the clients, `'adamw'` or `'sgd'`, begun anew in every round.
    learning_rate: of the clients.
    weight_decay: decoupled.

  Raises:
    ValueError: a setting out of range; on init, variables without an adapter.
  """
  if role not in ('retain', 'train'):
    raise ValueError(f"federate: role is 'retain' or 'train', got {role!r}")
  federated.check_rounds('federate', rounds=rounds, further_rounds=further_rounds)
  base.check_range('federate', rounds=(rounds, 1, float('inf')),
                   history=(history, 1, float('inf')))
  tx = federated.optimizer('federate', optimizer, learning_rate, weight_decay)
  rounds = rounds + further_rounds if role == 'retain' else rounds
  clients, kept = len(roster.sizes), min(rounds, history)

  def init(key, variables):
    state = federated.initial_state(key, variables)
    start = variables['federation']['start'] if 'federation' in variables else variables['adapter']
    collections = {name: tree for name, tree in state.collections.items() if name != 'lock'}
    return state.replace(
        params={'adapter': dict(start)},
        collections={**collections, 'federation': _empty(start, clients, kept)}), {}

  def step(state, frozen, batch):
    del frozen
    data = base.fields(batch, federated.CLIENTS, 'federate')
    found = federated.gather(federated.contrastive(model, state), tx, state.params['adapter'], data)
    federation = _recorded(state.collections['federation'], found, data['weight'])
    state = federated.added(state, found.mean)
    return (state.replace(collections={**state.collections, 'federation': federation}),
            found.metrics)

  return types.Method(init, (types.Phase('federate', step, rounds, role),), federated.export)


def _empty(start: federated.Adapter, clients: int, kept: int) -> types.PyTree:
  """A federation before its first round."""
  return {
      'start': {branch: jnp.copy(vector) for branch, vector in start.items()},
      'updates': {branch: jnp.zeros((clients, kept, *vector.shape), vector.dtype)
                  for branch, vector in start.items()},
      'taken': jnp.zeros((clients, kept), jnp.float32),
      'weight': jnp.zeros(clients, jnp.float32),
      'rounds': jnp.zeros((), jnp.int32)}


def _recorded(federation: types.PyTree, found: federated.Gathered, weight: types.Array
              ) -> types.PyTree:
  """The federation with one more round in its rings."""
  place = federation['rounds']
  taken = jax.lax.dynamic_update_index_in_dim(
      federation['taken'], found.used.astype(jnp.float32), place % federation['taken'].shape[1],
      axis=1)
  return {**federation, 'updates': federated.recorded(federation['updates'], found, place),
          'taken': taken, 'weight': weight, 'rounds': place + 1}
