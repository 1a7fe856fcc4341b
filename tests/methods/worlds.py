"""The tiny worlds in which the contract suite runs every registered method, one per kind of task."""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from tests.methods import federation_toy
from tests.methods import generators
from unlearn_jax import methods
from unlearn_jax import models
from unlearn_jax import types
from unlearn_jax.data import sources
from unlearn_jax.data import splits as splits_lib
from unlearn_jax.data import streams
from unlearn_jax.evals import privacy
from unlearn_jax.methods import registry
from unlearn_jax.testing import multimodal_toy
from unlearn_jax.testing import pairs_toy
from unlearn_jax.train import loop
from unlearn_jax.train import sharding

BATCH = 8


class World(NamedTuple):
  """What a run needs beside its method.

  Attributes:
    model: the network.
    variables: of it, freshly initialised.
    context: what factories are told about the data.
    streams: all that the kind of task has.
    monitor: gives signals, where methods read some.
  """

  model: types.Model
  variables: types.Variables
  context: Mapping[str, Any]
  streams: Mapping[str, types.Stream]
  monitor: types.Evaluator | None = None


def kind_of(name: str) -> str:
  """The kind of task in whose world a method runs: the first that has it."""
  return next(kind for kind, known in registry.TASKS.items() if name in known)


@functools.cache
def task(forget: int = 12):
  source = sources.get('synthetic')
  ids = np.random.default_rng(0).permutation(len(source.identity))
  source = dataclasses.replace(source, identity=np.arange(len(ids)).astype(str))
  return source, splits_lib.from_ids(source, {
      'forget': ids[:forget], 'retain': ids[40:64], 'validation': ids[64:80]})


@functools.cache
def classification(forget: int = 12, net: str = 'mlp') -> World:
  """24 retained records, up to 40 to forget, an MLP or a small CNN."""
  source, splits = task(forget)
  sizes = {'mlp': {'hidden': (8,)}, 'cnn': {'width': 4, 'blocks': 1}}[net]
  model = models.get(net, num_outputs=source.num_classes, **sizes)
  example = {'image': source.fields['image'][:1]}
  gate = privacy.forgetting_gate({
      name: {key: source.fields[key][splits.indices[name]] for key in ('image', 'label')}
      for name in ('forget', 'validation')})
  return World(
      model, model.init(jax.random.key(1), example),
      {'example': example, 'retain_steps': 3, 'forget_steps': -(-forget // BATCH)},
      streams.make(source, splits, batch_size=BATCH, forget_batch_size=BATCH, seed=0, augment=()),
      gate)


@functools.cache
def image_text() -> World:
  """The towers of the pairs toy, in batches of 8."""
  variables = pairs_toy.random()
  steps = {'retain_steps': 2, 'train_steps': 3}
  return World(pairs_toy.network(), variables, pairs_toy.context(batch_size=BATCH) | steps,
               pairs_toy.feed(batch_size=BATCH))


@functools.cache
def multimodal(forget: int = 12) -> World:
  """The encoders of the toy of two modalities, in batches of 8."""
  sizes = {'forget': forget, 'batch_size': BATCH, 'forget_batch_size': BATCH}
  context = multimodal_toy.context(**sizes) | {'retain_steps': 3}
  return World(multimodal_toy.network(), multimodal_toy.random(), context,
               multimodal_toy.feed(**sizes))


@functools.cache
def federated() -> World:
  """Eight clients over linear towers, after two rounds; the first one leaves."""
  model, roster = federation_toy.network(), federation_toy.roster(clients=BATCH)
  context = {'example': federation_toy.example(), 'roster': roster}
  feed = federation_toy.feed(clients=BATCH)
  trained = methods.get('federate')(model, **context, rounds=2, role='train', optimizer='sgd',
                                    learning_rate=0.1)
  return World(model, federation_toy.run(trained, federation_toy.variables(), feed).variables,
               context, feed)


@functools.cache
def generation() -> World:
  """A generator of a few matrices that draws noise, in batches of 8."""
  example = {name: field[:1] for name, field in generators.role('retain', 0, BATCH).items()}
  context = {'example': example, 'retain_steps': 2, 'forget_steps': 2, 'train_steps': 3,
             'pixels': generators.Pixels()}
  return World(generators.network(noise=0.1), generators.variables(), context,
               generators.feed(BATCH))


WORLDS = {'classification': classification, 'image_text': image_text, 'multimodal': multimodal,
          'federated': federated, 'generation': generation}


def world(name: str, **changes) -> World:
  """The world of a registered method, with changes that its kind of task knows."""
  return WORLDS[kind_of(name)](**changes)


def run(name: str, settings: Mapping[str, Any], *, devices: int = 1, seed: int = 0,
        wrap=lambda method: method, checkpointer=None, checkpoint_every: int = 0, feed=None,
        **changes) -> loop.Result:
  """A registered method through the real loop, in its world."""
  where = world(name, **changes)
  method = wrap(methods.get(name)(where.model, **where.context, **settings))
  return loop.run(
      method, where.variables, feed or where.streams, key=jax.random.key(seed),
      apply=where.model.apply, mesh=sharding.make_mesh(devices), monitor=where.monitor,
      checkpointer=checkpointer, checkpoint_every=checkpoint_every, show_progress=False)


def flat(tree) -> dict[str, np.ndarray]:
  """Path -> leaf, as numpy arrays."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf)
          for path, leaf in leaves}
