"""EU-k: the last k layers start anew and learn from retained data, the others stay."""

import zlib

import jax
import jax.numpy as jnp

from unlearn_jax import types
from unlearn_jax.methods import base
from unlearn_jax.methods import cf_k
from unlearn_jax.models import surgery


def eu_k(model: types.Model, *, example: types.Inputs, retain_steps: int = 100, k: int = 3,
         epochs: float = 62.0, learning_rate: float = 0.1, ratio: float = 0.05,
         momentum: float = 0.9, weight_decay: float = 5e-5, clip: float = 10.0,
         schedule: str = 'restarts') -> types.Method:
  """Exact unlearning of the last k layers: re-initialises them and trains them on D_r.

  The layers of CF-k. Their kernels are drawn anew from N(0, 2 / fan in), their biases are set to
  0; batch norms keep scale and shift, and are trained.

  Source: Goel et al. 2022 and its release. DLFD's own EU-k re-initialises nothing and trains other
  layers.

  Args:
    model: the network.
    example: inputs of any batch size, for the order of the layers.
    retain_steps: batches in one pass over the retained data.
    k: how many weight layers start anew.
    epochs: passes over the retained data.
    learning_rate: largest.
    ratio: smallest learning rate over the largest, of `schedule='restarts'`.
    momentum: of SGD.
    weight_decay: L2 coefficient, on what is trained.
    clip: largest norm of the gradient.
    schedule: `'restarts'`, `'cosine'` or `'constant'`, see `cf_k`.

  Raises:
    ValueError: a setting out of range, or more layers than the network has.
  """
  tx, phase, weights = cf_k.last_layers(
      'eu_k', model, example=example, retain_steps=retain_steps, k=k, epochs=epochs,
      learning_rate=learning_rate, ratio=ratio, momentum=momentum, weight_decay=weight_decay,
      clip=clip, schedule=schedule)
  fresh = {f'{module}/{leaf}' for module in weights for leaf in ('kernel', 'bias')}

  def init(key, variables):
    params = variables['params']
    names, leaves = surgery.paths(params), jax.tree.leaves(params)
    drawn = [_draw(jax.random.fold_in(key, zlib.crc32(name.encode())), name, leaf)
             if name in fresh else leaf for name, leaf in zip(names, leaves)]
    params = jax.tree.structure(params).unflatten(drawn)
    return base.initial_state(key, {**variables, 'params': params}, tx), {}

  return types.Method(init, (phase,), base.export)


def _draw(key, name, leaf):
  if name.endswith('/bias'):
    return jnp.zeros_like(leaf)
  fan_in = leaf.size // leaf.shape[-1]
  return jax.random.normal(key, leaf.shape, leaf.dtype) * (2 / fan_in) ** 0.5
