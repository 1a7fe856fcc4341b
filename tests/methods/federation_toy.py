"""A federation of linear towers, small enough to follow by hand: rounds, rosters, variables."""

from collections.abc import Mapping
import functools

import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import models
from unlearn_jax import types
from unlearn_jax.data import clients as clients_lib
from unlearn_jax.models import lora
from unlearn_jax.train import loop
from unlearn_jax.train import sharding

FEATURES, EMBEDDING, RANK, ALPHA, TEMPERATURE = 24, 12, 2, 4.0, 0.2
STEPS, ROWS = 2, 4


@functools.cache
def network(mode: str = 'full') -> types.Model:
  return lora.adapted(models.get('linear_towers', embedding=EMBEDDING, temperature=TEMPERATURE),
                      rank=RANK, alpha=ALPHA, mode=mode)


def example() -> types.Inputs:
  return {'image': np.ones((1, FEATURES), np.float32), 'text': np.ones((1, FEATURES), np.float32)}


@functools.cache
def variables(mode: str = 'full') -> types.Variables:
  """Fresh ones, but B is not zero, so that every gradient is there from the first step on."""
  found = dict(network(mode).init(jax.random.key(3), example()))
  rng = np.random.default_rng(3)
  found['adapter'] = {branch: vector + 0.2 * rng.normal(size=vector.shape).astype(np.float32)
                      for branch, vector in found['adapter'].items()}
  return jax.tree.map(jnp.asarray, found)


def pairs(number: int, *, clients: int = 4, seed: int = 0, only: tuple[int, ...] | None = None
          ) -> dict[str, np.ndarray]:
  """A role of round `number`: every client's factors lie in directions of its own.

  Args:
    number: of the round.
    clients: K.
    seed: of all rounds.
    only: clients that have rows; all by default.
  """
  world = np.random.default_rng(0)
  rng = np.random.default_rng((seed, number))
  to_image, to_text = (np.linalg.qr(world.normal(size=(FEATURES, FEATURES)))[0].reshape(
      FEATURES // 3, 3, FEATURES)[:clients] for _ in range(2))
  z = rng.normal(size=(clients, STEPS, ROWS, 3))
  role = {'image': np.einsum('ksbz,kzf->ksbf', z, to_image),
          'text': np.einsum('ksbz,kzf->ksbf', z, to_text)}
  role = {name: (leaf + 0.1 * rng.normal(size=leaf.shape)).astype(np.float32)
          for name, leaf in role.items()}
  there = np.isin(np.arange(clients), range(clients) if only is None else only)
  there = there.astype(np.float32)
  return role | {'id': np.zeros((clients, STEPS, ROWS), np.int32),
                 'mask': np.broadcast_to(there[:, None, None], (clients, STEPS, ROWS)).copy(),
                 'weight': there * (10.0 + np.arange(clients, dtype=np.float32)),
                 'part': there.copy()}


def roster(scenario: str = 'client', *, clients: int = 4) -> clients_lib.Roster:
  """Client 0 leaves, or clients 0 and 1 forget some pairs."""
  sizes = 10 + np.arange(clients)
  leaving = np.zeros(clients, bool)
  forget = np.zeros(clients, int)
  if scenario == 'client':
    leaving[0], forget[0] = True, sizes[0]
  else:
    forget[:2] = 3
  return clients_lib.Roster(sizes, forget, leaving, scenario)


def feed(scenario: str = 'client', *, clients: int = 4) -> Mapping[str, types.Stream]:
  """The streams of a federation, as pure functions of the round."""
  stay = tuple(range(1 if scenario == 'client' else 0, clients))
  forget = (0,) if scenario == 'client' else (0, 1)
  retained = lambda t: pairs(t, clients=clients, only=stay)
  return {
      'train': lambda t: {'clients': pairs(t, clients=clients)},
      'retain': lambda t: {'clients': retained(t)},
      'pair': lambda t: {'clients': retained(t),
                         'forget': pairs(t, clients=clients, seed=1, only=forget)}}


def run(method: types.Method, given: types.Variables, streams: Mapping[str, types.Stream], *,
        devices: int = 1, **settings) -> loop.Result:
  return loop.run(method, given, streams, key=jax.random.key(0), mesh=sharding.make_mesh(devices),
                  show_progress=False, **settings)


def mapped(tree) -> dict[str, np.ndarray]:
  """Path -> leaf, as numpy arrays."""
  return {jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf)
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
