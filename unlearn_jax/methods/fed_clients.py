"""Whose data federated unlearning is about: who has pairs to forget, who leaves, what is stored."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import types
from unlearn_jax.methods import base
from unlearn_jax.methods import federated


def owners(method: str, roster) -> np.ndarray:
  """Clients that have pairs to forget, int [O].

  Raises:
    ValueError: nobody has.
  """
  found = np.flatnonzero(np.asarray(roster.forget) > 0)
  if not found.size:
    raise ValueError(f'{method}: no client of the roster has anything to forget')
  return found


def leaving(method: str, roster) -> np.ndarray:
  """Clients that leave, int [F], for methods that take out what these have sent.

  Raises:
    ValueError: nobody leaves; what a client sent cannot be split into its pairs.
  """
  found = np.flatnonzero(np.asarray(roster.leaving))
  if roster.scenario != 'client' or not found.size:
    raise ValueError(
        f'{method} takes out the updates of a client that leaves, and nobody leaves in the scenario '
        f'{roster.scenario!r}; use it in the scenario "client", or choose another method')
  return found


def owned(batch: types.Batch, clients: np.ndarray, wanted_by: str) -> types.Inputs:
  """Role `forget` of these clients alone: the others have no work in it."""
  data = base.fields(batch, federated.FORGET, wanted_by)
  return {name: leaf[clients] for name, leaf in data.items()}


def history(variables: types.Variables, wanted_by: str) -> Mapping[str, types.PyTree]:
  """What the server has kept of training, the collection `federation`.

  Raises:
    ValueError: the variables have none.
  """
  if 'federation' not in variables:
    raise ValueError(f'{wanted_by} reads the collection "federation" that federated training leaves, '
                     f'the variables have {sorted(variables)}')
  return variables['federation']


def known(*values: types.Array) -> bool:
  """Whether the values can be looked at: while only shapes are traced they cannot."""
  return not any(isinstance(value, jax.core.Tracer) for value in values)


def shares(federation: Mapping[str, types.PyTree]) -> types.Array:
  """`n_k / sum of n` over the clients that took part, float32 [K, H]; 0 elsewhere."""
  weight = federation['taken'] * federation['weight'][:, None]
  return weight / jnp.maximum(jnp.sum(weight, axis=0), jnp.finfo(weight.dtype).tiny)


def ages(federation: Mapping[str, types.PyTree]) -> types.Array:
  """How many rounds ago each slot of the ring was written, 0 for the last one, int32 [H]."""
  slots = federation['taken'].shape[1]
  return (federation['rounds'] - 1 - jnp.arange(slots)) % slots


def sent_out(federation: Mapping[str, types.PyTree], adapter: federated.Adapter
             ) -> federated.Adapter:
  """theta^t that clients set out from in every stored round, by slot of the ring: {branch: [H, P]}.

  The end of training alone is stored, theta^T: what was sent out in round t is it minus the mean
  updates of the rounds from t on.
  """
  share, age = shares(federation), ages(federation)
  since = (age[None, :] <= age[:, None]).astype(share.dtype)  # [H, H], from the round of a slot on
  return {branch: vector - jnp.einsum('hg,kg,kgp->hp', since, share, federation['updates'][branch],
                                      precision=jax.lax.Precision.HIGHEST)
          for branch, vector in adapter.items()}


def fresh_adapter(model: types.Model, example: types.Inputs
                  ) -> Callable[[types.Array], federated.Adapter]:
  """`key -> adapter` as the model would start with; compiled, so that no backbone is computed."""
  return jax.jit(lambda key: dict(model.init(key, example)['adapter']))
