"""A network of two modalities that is a few matrices, and batches, for references in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import types

SHAPES = {'image': (4, 3), 'audio': (5, 3), 'fusion': (6, 4), 'head': (4, 3)}
MEAN = 0.25  # weight of a batch in the running means, which the network keeps and does not use


def network(other='audio'):
  """m = v W_image, n = a W_other, h = tanh([m, n] W_fusion), logits h W_head."""

  def init(key, inputs):
    del key, inputs
    return variables(other)

  def apply(variables, inputs, *, train=False, rngs=None, method=None):
    del rngs, method
    weights = {name: module['kernel'] for name, module in variables['params'].items()}
    m, n = (inputs[name] @ weights[name] for name in ('image', other))
    h = jnp.tanh(jnp.concatenate([m, n], axis=1) @ weights['fusion'])
    outputs = {'image_embedding': m, f'{other}_embedding': n, 'features': h,
               'logits': h @ weights['head']}
    if train:
      means = {'image': m, other: n, 'fusion': h}
      variables = {**variables, 'batch_stats': {
          name: {'mean': (1 - MEAN) * kept['mean'] + MEAN * jnp.mean(means[name], axis=0)}
          for name, kept in variables['batch_stats'].items()}}
    return outputs, variables

  return types.Model(init, apply)


def variables(other='audio'):
  """Parameters and running means, the same at every call."""
  rng = np.random.default_rng(0)
  draw = lambda *shape, scale=1.0: jnp.asarray(scale * rng.normal(size=shape), jnp.float32)
  # A fused state that is not saturated: tanh must pass gradients.
  return {'params': {name if name != 'audio' else other: {
      'kernel': draw(*shape, scale=0.3 if name == 'fusion' else 1.0)}
                     for name, shape in SHAPES.items()},
          'batch_stats': {name: {'mean': draw(size)}
                          for name, size in (('image', 3), (other, 3), ('fusion', 4))}}


def batch(step, other='audio'):
  """Retained and forgotten records, a row of padding each; class 2 is forgotten only."""
  rng = np.random.default_rng([7, step])
  found = {}
  for role, labels in (('retain', [0, 1, 0, 1, 1, 0]), ('forget', [1, 0, 2, 0])):
    mask = np.ones(len(labels), np.float32)
    mask[rng.integers(2)] = 0.0
    found[role] = {'image': rng.normal(size=(len(labels), 4)).astype(np.float32),
                   other: rng.normal(size=(len(labels), 5)).astype(np.float32),
                   'label': np.array(labels, np.int32), 'mask': mask,
                   'id': np.arange(len(labels), dtype=np.int32)}
  return found


def kept(inputs, other='audio'):
  """(pictures, sounds, labels) of the records that count, in float64."""
  rows = inputs['mask'] > 0
  return (inputs['image'][rows].astype(np.float64), inputs[other][rows].astype(np.float64),
          inputs['label'][rows])


def weights(tree):
  """Module -> kernel, in float64."""
  return {name: np.asarray(module['kernel'], np.float64) for name, module in tree.items()}


def steps(method, batches):
  """Takes the method's phases over batches of its stream; yields (phase, state, metrics)."""
  start = variables('text' if 'text' in batches[0]['retain'] else 'audio')
  state, frozen = method.init(jax.random.key(3), start)
  number = 0
  for phase in method.phases:
    step = jax.jit(phase.step)
    for _ in range(phase.steps):
      state, metrics = step(state, frozen, batches[number])
      number += 1
      yield phase, state, metrics
