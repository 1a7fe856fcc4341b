"""A generator that is a few matrices, and batches, for references in NumPy.

Pictures [B, 4, 4, 1] have four patches of four numbers. With x_k the visible patches,
`t_k = tanh(x_k W + b + p_k)` and `s = mean_k(t_k) V` are the two stages of the latent, and
`[mean_k t_k, s] U + c` is the predicted picture; the loss is its mean squared error in the hole.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import types

SIDE, PATCH, PATCHES, VISIBLE = 4, 2, 4, 2
SHAPES = {'encoder/tokens/kernel': (4, 3), 'encoder/tokens/bias': (3,),
          'encoder/tokens/position': (PATCHES, 3), 'encoder/summary/kernel': (3, 2),
          'decoder/kernel': (5, 16), 'decoder/token': (1, 1, 16)}
MATRICES = ('encoder/tokens/kernel', 'encoder/tokens/position', 'encoder/summary/kernel',
            'decoder/kernel')  # what weight decay is for
MEAN = 0.25  # weight of a batch in the running mean, which the network keeps and does not use


class Pixels(NamedTuple):
  """What factories are told of pixels; the forget pictures are those of batch 0."""

  mean: np.ndarray = np.array([0.4], np.float32)
  std: np.ndarray = np.array([0.2], np.float32)

  def images(self) -> np.ndarray:
    return batch(0)['forget']['image']


class Call(NamedTuple):
  """One call of `apply`."""

  variables: types.Variables
  inputs: types.Inputs
  train: bool
  keys: dict[str, np.ndarray]
  method: str | None


def nest(flat):
  """Nested dicts of `/`-joined paths."""
  tree = {}
  for path, leaf in flat.items():
    *outer, last = path.split('/')
    node = tree
    for name in outer:
      node = node.setdefault(name, {})
    node[last] = leaf
  return tree


def network(noise: float = 0.0, tokenizer: bool = False) -> types.Model:
  """The generator; `noise` scales draws that a call with keys adds to the tokens."""

  def init(key, inputs):
    del inputs
    params = {path: 0.5 * jax.random.normal(jax.random.fold_in(key, index), shape)
              for index, (path, shape) in enumerate(SHAPES.items())}
    if tokenizer:
      params['tokenizer/kernel'] = jnp.full((2, 2), 0.7)
    return {'params': nest(params), 'batch_stats': {'encoder': {'mean': jnp.zeros(3)}}}

  def patches(image):
    grid = image.reshape(-1, SIDE // PATCH, PATCH, SIDE // PATCH, PATCH)
    return grid.swapaxes(2, 3).reshape(-1, PATCHES, PATCH * PATCH)

  def picture(patches):
    grid = patches.reshape(-1, SIDE // PATCH, SIDE // PATCH, PATCH, PATCH)
    return grid.swapaxes(2, 3).reshape(-1, SIDE, SIDE, 1)

  def encode(params, inputs, rngs):
    tokens, visible = params['tokens'], inputs['visible']
    x = jnp.take_along_axis(patches(inputs['image']), visible[:, :, None], axis=1)
    t = jnp.tanh(x @ tokens['kernel'] + tokens['bias'] + tokens['position'][visible])
    if noise and rngs is not None:
      t += noise * jax.random.normal(rngs['noise'], t.shape)
    return {'first': t, 'second': jnp.mean(t, axis=1) @ params['summary']['kernel']}

  def decode(params, latent):
    h = jnp.concatenate([jnp.mean(latent['first'], axis=1), latent['second']], axis=1)
    return (h @ params['kernel'] + params['token'][0]).reshape(-1, PATCHES, PATCH * PATCH)

  def apply(variables, inputs, *, train=False, rngs=None, method=None):
    params, visible = variables['params'], inputs['visible']
    if method == 'decode':
      return {'image': picture(decode(params['decoder'], inputs['latent']))}, variables
    if method == 'encode' and 'noise' in inputs:
      inputs = {**inputs, 'image': inputs['noise']}
    latent = encode(params['encoder'], inputs, rngs)
    if train:
      old = variables['batch_stats']['encoder']['mean']
      new = (1 - MEAN) * old + MEAN * jnp.mean(latent['first'], axis=(0, 1))
      variables = {**variables, 'batch_stats': {'encoder': {'mean': new}}}
    if method == 'encode':
      return {'latent': latent}, variables
    prediction = decode(params['decoder'], latent)
    hidden = jnp.ones((len(visible), PATCHES)).at[jnp.arange(len(visible))[:, None], visible].set(0.0)
    if method == 'loss':
      wanted = inputs.get('noise', inputs.get('target', inputs['image']))
      error = jnp.mean((prediction - patches(wanted))**2, axis=2)
      return {'loss': jnp.sum(error * hidden, axis=1) / jnp.sum(hidden, axis=1)}, variables
    completed = jnp.where(hidden[:, :, None] > 0, prediction, patches(inputs['image']))
    return {'image': picture(completed), 'latent': latent}, variables

  return types.Model(init, apply)


def recorded(model: types.Model) -> tuple[types.Model, list[Call]]:
  """The model, and the calls that are made of it; values are there outside of jit."""
  calls = []

  def apply(variables, inputs, *, train=False, rngs=None, method=None):
    keys = {name: np.asarray(jax.random.key_data(key)) for name, key in rngs.items()}
    calls.append(Call(variables, inputs, train, keys, method))
    return model.apply(variables, inputs, train=train, rngs=rngs, method=method)

  return types.Model(model.init, apply), calls


def variables() -> types.Variables:
  """Parameters of general values, the same at every call."""
  rng = np.random.default_rng(0)
  params = {path: jnp.asarray(rng.normal(scale=0.5, size=shape), jnp.float32)
            for path, shape in SHAPES.items()}
  return {'params': nest(params),
          'batch_stats': {'encoder': {'mean': jnp.asarray(rng.normal(size=3), jnp.float32)}}}


def role(name: str, step: int, size: int) -> types.Inputs:
  """Pictures in [0, 1] with a row of padding, and which patches are visible."""
  rng = np.random.default_rng([ord(name[0]), size, step])
  mask = np.ones(size, np.float32)
  mask[rng.integers(size)] = 0.0
  return {'image': rng.uniform(size=(size, SIDE, SIDE, 1)).astype(np.float32),
          'visible': rng.permuted(np.tile(np.arange(PATCHES), (size, 1)), axis=1)[
              :, :VISIBLE].astype(np.int32),
          'label': rng.integers(0, 3, size).astype(np.int32),
          'id': np.arange(size, dtype=np.int32), 'mask': mask}


def batch(step: int, size: int = 5) -> types.Batch:
  return {name: role(name, step, size) for name in ('retain', 'forget')}


def feed(size: int = 5) -> dict[str, types.Stream]:
  """The streams of a generation task that methods name by default, and one more."""
  one = lambda name: lambda step: {name: role(name, step, size)}
  pair = lambda step: batch(step, size)
  return {'train': one('train'), 'retain': one('retain'), 'forget': one('forget'), 'pair': pair,
          'proxy': lambda step: batch(1000 + step, size)}


# The reference, in float64 and without JAX.


def weights(tree) -> dict[str, np.ndarray]:
  """Path -> parameter, in float64."""
  found = {}

  def visit(node, prefix):
    for name, child in node.items():
      if isinstance(child, dict):
        visit(child, f'{prefix}{name}/')
      else:
        found[prefix + name] = np.asarray(child, np.float64)

  visit(tree, '')
  return found


def cut(picture):
  """The patches of [4, 4], row by row, as rows of four numbers."""
  return [np.ravel(picture[i:i + PATCH, j:j + PATCH]) for i in (0, PATCH) for j in (0, PATCH)]


def latents(w, images, visible):
  """Per picture: (tokens, their summary)."""
  found = []
  for image, seen in zip(np.asarray(images, np.float64)[..., 0], visible):
    patches = cut(image)
    t = np.stack([np.tanh(patches[k] @ w['encoder/tokens/kernel'] + w['encoder/tokens/bias']
                          + w['encoder/tokens/position'][k]) for k in seen])
    found.append((t, t.mean(axis=0) @ w['encoder/summary/kernel']))
  return found


def errors(w, images, visible, targets=None):
  """Per picture: mean squared error in the hole."""
  found = []
  targets = images if targets is None else targets
  for (t, s), seen, target in zip(latents(w, images, visible), visible, targets):
    h = np.concatenate([t.mean(axis=0), s])
    prediction = (h @ w['decoder/kernel'] + w['decoder/token'].ravel()).reshape(PATCHES, -1)
    wanted = cut(np.asarray(target, np.float64)[..., 0])
    hole = [k for k in range(PATCHES) if k not in seen]
    found.append(np.mean([(prediction[k] - wanted[k])**2 for k in hole]))
  return np.array(found)


def distances(first, second, norm='l2', stage_reduce='concat'):
  """Per picture: the distance of two latents, stages given apart."""
  found = []
  for one, other in zip(first, second, strict=True):
    stages = [(np.ravel(a), np.ravel(b)) for a, b in zip(one, other, strict=True)]
    if stage_reduce == 'concat':
      stages = [tuple(np.concatenate(side) for side in zip(*stages))]
    total = 0.0
    for a, b in stages:
      if norm == 'l2_normalized':
        a, b = a / np.sqrt(a @ a), b / np.sqrt(b @ b)
      square = (a - b) @ (a - b)
      total += square / len(a) if norm == 'mse' else np.sqrt(square)
    found.append(total)
  return np.array(found)


def average(values, mask):
  """Mean over the rows that count."""
  return np.mean(np.asarray(values)[np.asarray(mask) > 0])


class AdamW:
  """Loshchilov and Hutter 2019, Algorithm 2, with betas (0.9, 0.95); matrices decay."""

  def __init__(self, decay=0.0):
    self.decay, self.m, self.v, self.t = decay, {}, {}, 0

  def __call__(self, w, gradients, rate):
    self.t += 1
    found = dict(w)
    for name, g in gradients.items():
      self.m[name] = 0.9 * self.m.get(name, 0.0) + 0.1 * g
      self.v[name] = 0.95 * self.v.get(name, 0.0) + 0.05 * g**2
      m, v = self.m[name] / (1 - 0.9**self.t), self.v[name] / (1 - 0.95**self.t)
      decay = self.decay if name in MATRICES else 0.0
      found[name] = w[name] - rate * (m / (np.sqrt(v) + 1e-8) + decay * w[name])
    return found


def sgd(w, gradients, rate):
  return {**w, **{name: w[name] - rate * g for name, g in gradients.items()}}
