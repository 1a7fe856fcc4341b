"""The toy of federations: clients with factors of their own, one of which leaves.

Ours. Six clients with 64 training pairs of features each, see `data.builders.factor_pairs`; towers and
their adapters are linear. The federation matches the pairs of the client that leaves; retrained
without it, it matches the seven in ten that other clients' factors explain.
"""

from collections.abc import Mapping
import functools

import jax
import numpy as np

from unlearn_jax import methods
from unlearn_jax import models
from unlearn_jax import types
from unlearn_jax.data import clients
from unlearn_jax.data import federation
from unlearn_jax.data import sources
from unlearn_jax.data import splits as splits_lib
from unlearn_jax.evals import federated
from unlearn_jax.evals import run as evals_run
from unlearn_jax.evals import similarity
from unlearn_jax.models import lora
from unlearn_jax.tasks import federated as federated_task
from unlearn_jax.testing import toy
from unlearn_jax.train import loop

SIZES = {'forget': 64, 'retain': 320}
LEAVING = 0  # the client
BATCH = 64
RETRAINED = 3
LEARNED = 'adapter'
# What the conformance suite asks for. A client needs two pairs to compare. Between its rounds, which
# belong to the server, there is no step that retained pairs alone could climb.
ONE_RECORD, SMALL_BATCHES, WITHOUT = {'forget': 2}, {'batch_size': 28}, ('retained records',)
LOCAL = {'optimizer': 'sgd', 'learning_rate': 0.5, 'weight_decay': 0.0}
# The recipe of original and retrained models: a second or two each.
RECIPE = {**LOCAL, 'rounds': 20, 'history': 20}


@functools.cache
def task(forget: int = SIZES['forget']) -> toy.Task:
  """The toy, deterministic; with fewer pairs of the client that leaves if asked.

  `image` and `text` are float32 [1536, 68].
  """
  source, splits = federation.split(sources.get('factor_pairs', seed=0), scenario='client',
                                    target=LEAVING)
  chosen = {**splits.indices, 'forget': splits.indices['forget'][:forget]}
  example = {name: np.asarray(source.fields[name][:1]) for name in ('image', 'text')}
  return toy.Task(source, splits_lib.from_ids(source, chosen), network(), example)


@functools.cache
def network() -> types.Model:
  """Linear towers on the backbone that the data bring, with adapters."""
  inner = models.get('linear_towers', embedding=48, temperature=0.1)
  adapted = lora.adapted(inner, rank=16, alpha=32.0)
  init = lambda key, inputs: {**adapted.init(key, inputs),
                              'params': sources.get('factor_pairs', seed=0).backbone}
  return types.Model(init, adapted.apply)


def context(*, forget: int = SIZES['forget'], batch_size: int = BATCH) -> dict:
  """What a factory is told about the data; a pass is a round here."""
  del batch_size
  roster, _ = clients.roster(_held(forget), 'client', client=LEAVING)
  return {'example': task().example, 'retain_steps': 1, 'forget_steps': 1, 'train_steps': 1,
          'roster': roster}


def _held(forget: int) -> list[np.ndarray]:
  """The training pairs of each client."""
  source, splits = task(forget)[:2]
  return federation.parts(source, np.sort(np.concatenate(
      [splits.indices[role] for role in SIZES])))


def feed(*, forget: int = SIZES['forget'], batch_size: int = BATCH) -> dict[str, types.Stream]:
  """Rounds of five local epochs."""
  source, splits = task(forget)[:2]
  return clients.streams(source, _held(forget), splits.indices['forget'], seed=0,
                         batch_size=batch_size, local_epochs=5)


def run(method: types.Method, variables: types.Variables, *, seed: int = 0,
        forget: int = SIZES['forget'], streams: Mapping[str, types.Stream] | None = None
        ) -> loop.Result:
  """A method on the toy through the one loop, on one device."""
  return toy.through_loop(task(), method, variables,
                          feed(forget=forget) if streams is None else streams, seed=seed)


def random(seed: int = 0) -> types.Variables:
  """Untrained adapters."""
  return network().init(jax.random.key(1000 + seed), task().example)


@functools.cache
def original() -> types.Variables:
  """The federation of all clients, with its history."""
  return _trained('train', 0)


@functools.cache
def retrained() -> tuple[types.Variables, ...]:
  """Federations without the client that leaves, which differ in their adapters' first values."""
  return tuple(_trained('retain', seed) for seed in range(RETRAINED))


def _trained(role: str, seed: int) -> types.Variables:
  method = methods.get('federate')(network(), role=role, roster=context()['roster'], **RECIPE)
  return run(method, random(seed), seed=seed).variables


def fields(split: str) -> dict[str, np.ndarray]:
  """`image`, `text` and `client` of a split."""
  ids = task().splits.indices[split]
  return {name: np.asarray(task().source.fields[name][ids]) for name in ('image', 'text', 'client')}


def accuracy(variables: types.Variables, split: str) -> float:
  """R@1 of a split's pairs among those of their client, both ways."""
  given = fields(split)
  found = evals_run.predict(network().apply, federated_task.read(variables),
                            {name: given[name] for name in ('image', 'text')},
                            names=similarity.EMBEDDINGS)
  return federated.macro(found['image_embedding'], found['text_embedding'],
                         np.arange(len(given['client'])), given['client'])


def other_records(inputs: types.Inputs, rows: np.ndarray) -> dict[str, np.ndarray]:
  """Fields of a round with other pairs where `rows` [K, S, B] is true."""
  others = np.resize(task().splits.indices['unseen'], rows.shape)
  pool = {name: np.asarray(task().source.fields[name])[others] for name in ('image', 'text')}
  return {**inputs, **{name: np.where(rows[..., None], fresh, inputs[name])
                       for name, fresh in pool.items()}}


def other_forgotten(role: str, inputs: types.Inputs) -> types.Inputs:
  """The fields of a role with other pairs in the place of those to forget."""
  return other_records(inputs, inputs['mask'] > 0) if role == 'forget' else inputs
