"""Two linear towers: the smallest model that aligns two kinds of features."""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from unlearn_jax import types
from unlearn_jax.models import contract
from unlearn_jax.models import layers


class Tower(nn.Module):
  """Features [B, D] -> [B, embedding], without bias."""

  embedding: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.floating):
      raise ValueError(f'linear_towers: inputs are float features [B, D], got {x.shape} {x.dtype}')
    kernel = self.param('kernel', nn.initializers.lecun_normal(), (x.shape[1], self.embedding),
                        jnp.float32)
    return x.astype(jnp.float32) @ kernel


class LinearTowers(nn.Module):
  """Both towers and the logit scale."""

  embedding: int
  temperature: float

  def setup(self):
    self.visual = Tower(self.embedding)
    self.text = Tower(self.embedding)
    self.logit_scale = self.param(
        'logit_scale', nn.initializers.constant(-math.log(self.temperature)), (), jnp.float32)

  def encode_image(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    del train
    features = self.visual(image)
    return {'image_embedding': _normalised(features), 'features': features}

  def encode_text(self, text: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    del train
    return {'text_embedding': _normalised(self.text(text))}

  def __call__(self, image: jax.Array, text: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    return {**self.encode_image(image, train=train), **self.encode_text(text, train=train),
            'logit_scale': self.logit_scale}


def _normalised(x: jax.Array) -> jax.Array:
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def linear_towers(*, embedding: int = 48, temperature: float = 0.1) -> types.Model:
  """Two linear maps into a common space.

  u = W_v x / ||W_v x||, w = W_t y / ||W_t y||; the logits of a batch are u w^T / temperature.

  Args:
    embedding: dimension of the common space.
    temperature: its logarithm, negated, is the parameter `logit_scale`.

  Returns:
    The model. Inputs `image` [B, D] and `text` [B, D'] floats; outputs `image_embedding` and
    `text_embedding` [B, embedding] of unit length (no epsilon: a zero row is NaN), `features`
    [B, embedding] = W_v x and `logit_scale`, the log scale. `method='encode_image'` or
    `'encode_text'` runs one tower on its own field. Parameters: `visual/kernel` [D, embedding],
    `text/kernel` [D', embedding], `logit_scale`.

  Raises:
    TypeError, ValueError: an argument of the wrong type or out of range; on init and apply, a
      missing field, inputs that are not float features [B, D].
  """
  layers.check_positive('linear_towers', embedding=embedding)
  if not (temperature > 0 and math.isfinite(temperature)):
    raise ValueError(f'linear_towers: temperature must be positive and finite, got {temperature}')
  module = LinearTowers(embedding, temperature)
  wanted = {None: ('image', 'text'), 'encode_image': ('image',), 'encode_text': ('text',)}

  def apply(variables, inputs, *, train=False, rngs=None, method=None):
    if method not in wanted:
      raise ValueError('linear_towers: method is None, encode_image or encode_text, got '
                       f'{method!r}')
    return contract.from_linen(module, wanted[method]).apply(
        variables, inputs, train=train, rngs=rngs, method=method)

  return types.Model(contract.from_linen(module, wanted[None]).init, apply)
