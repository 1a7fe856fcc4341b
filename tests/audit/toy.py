"""The task with a known answer: 300 points, a quarter of them mislabelled, 60 to forget."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

CLASSES, DIMENSIONS, HIDDEN, STEPS = 5, 20, 64, 100


class Toy(NamedTuple):
  """Splits, and models trained on them; see `make`."""

  data: dict[str, dict[str, np.ndarray]]
  original: Any
  retrained: list
  other: list  # models of `make`'s `forgotten` records less than all
  originals: list


def apply(variables, inputs, *, train=False, rngs=None, method=None):
  """A perceptron with two hidden layers."""
  del train, rngs, method
  p = variables['params']
  hidden = jax.nn.relu(inputs['point'] @ p['w1'] + p['b1'])
  features = jax.nn.relu(hidden @ p['w2'] + p['b2'])
  return {'logits': features @ p['w3'] + p['b3'], 'features': features}, variables


def init(key):
  sizes = (DIMENSIONS, HIDDEN, HIDDEN, CLASSES)
  params = {}
  for number, (rows, columns) in enumerate(zip(sizes, sizes[1:]), 1):
    weight = jax.random.normal(jax.random.fold_in(key, number), (rows, columns))
    params |= {f'w{number}': weight * (2 / rows)**0.5, f'b{number}': jnp.zeros(columns)}
  return {'params': params}


@jax.jit
def train(keys, points, labels, weights):
  """Adam on all records at once, a model per key; weights [models, N] choose the records."""
  def one(key, weight):
    optimizer = optax.adam(0.01)
    variables = init(key)

    def loss(variables):
      logits = apply(variables, {'point': points})[0]['logits']
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return (weight * losses).sum() / weight.sum()

    def step(carry, _):
      variables, state = carry
      updates, state = optimizer.update(jax.grad(loss)(variables), state)
      return (optax.apply_updates(variables, updates), state), None

    return jax.lax.scan(step, (variables, optimizer.init(variables)), length=STEPS)[0][0]
  return jax.vmap(one)(keys, weights)


def records(rng, size, noise=0.25):
  """Points of five Gaussians, `noise` of them with a random label."""
  centres = np.random.default_rng(7).normal(size=(CLASSES, DIMENSIONS))
  label = rng.integers(CLASSES, size=size)
  point = centres[label] * 0.6 + rng.normal(size=(size, DIMENSIONS))
  wrong = rng.random(size) < noise
  label = np.where(wrong, rng.integers(CLASSES, size=size), label)
  return {'point': point.astype(np.float32), 'label': label.astype(np.int32)}


@functools.lru_cache(maxsize=4)
def make(seed: int = 0, *, retrained: int = 6, originals: int = 1, forgotten: float = 0.5,
         unseen: int = 60, test: int = 300) -> Toy:
  """Draws the records and trains the models.

  Args:
    seed: of records and models.
    retrained: how many models without the forget records.
    originals: how many models with them.
    forgotten: share of the forget records that `other`, as many models, were not trained on.
    unseen: how many records, drawn like the forgotten ones.
    test: likewise.
  """
  rng = np.random.default_rng(seed)
  data = {'retain': records(rng, 240), 'forget': records(rng, 60),
          'unseen': records(rng, unseen), 'test': records(rng, test)}
  start = 0
  for fields in data.values():
    size = len(fields['label'])
    fields['id'] = np.arange(start, start + size)
    start += size
  points, labels = (np.concatenate([data[split][name] for split in ('retain', 'forget')])
                    for name in ('point', 'label'))
  without = np.concatenate([np.ones(240), np.zeros(60)])
  partly = np.concatenate([np.ones(240), np.arange(60) * 7 % 60 >= 60 * forgotten])
  weights = np.stack([without] * retrained + [np.ones(300)] * originals + [partly] * originals)
  stacked = jax.device_get(train(jax.random.split(jax.random.key(seed), len(weights)), points,
                                 labels, weights.astype(np.float32)))
  models = [jax.tree.map(lambda leaf: leaf[i], stacked) for i in range(len(weights))]
  both = models[retrained:]
  return Toy(data, both[0], models[:retrained], both[originals:], both[:originals])
