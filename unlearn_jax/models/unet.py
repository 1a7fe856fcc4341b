"""The U-Net that Palette's public implementation takes from guided diffusion (ADM), in two halves.

Dhariwal and Nichol, NeurIPS 2021, section 3: residual blocks that also change the resolution, norms
that are scaled and shifted by what the network is conditioned on. Attention is in the middle alone.
palette_keys.py knows the names of the parameters in public checkpoints.
"""

from collections.abc import Sequence
import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from unlearn_jax.models import layers
from unlearn_jax.models import vit

_init, _zeros = layers.uniform_fan_in, nn.initializers.zeros_init()
_PERIOD = 10_000  # the longest, of the sines and cosines of gamma


def stage_shapes(side: tuple[int, int], width: int, multipliers: Sequence[int], blocks: int
                 ) -> list[tuple[int, int, int]]:
  """[H, W, C] of the stages of the encoder, for pictures with these sides."""
  shapes = [(*side, width * multipliers[0])]
  for level, multiplier in enumerate(multipliers):
    rows, columns = (length >> level for length in side)
    shapes += blocks * [(rows, columns, width * multiplier)]
    if level < len(multipliers) - 1:
      shapes.append((rows // 2, columns // 2, width * multiplier))
  return [*shapes, shapes[-1]]


class GammaEmbedding(nn.Module):
  """gamma [B] -> [B, 4 W]: [cos | sin] of gamma * 10000^(-i / (W/2)), i < W/2, then two layers."""

  width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, gamma: jax.Array) -> jax.Array:
    half = self.width // 2
    angles = gamma[:, None] * jnp.exp(-math.log(_PERIOD) / half * jnp.arange(half))
    x = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=1)
    x = nn.Dense(4 * self.width, kernel_init=_init, dtype=self.dtype, name='fc1')(x)
    return nn.Dense(4 * self.width, kernel_init=_init, dtype=self.dtype, name='fc2')(nn.silu(x))


def _resampled(x: jax.Array, scale: str) -> jax.Array:
  """Nearest neighbours ('up'), means of 2x2 pixels ('down'), or as it is ('')."""
  if scale == 'up':
    return x.repeat(2, axis=1).repeat(2, axis=2)
  return nn.avg_pool(x, (2, 2), (2, 2)) if scale == 'down' else x


class Part(nn.Module):
  """What all parts of the network share: their sizes."""

  width: int
  multipliers: tuple[int, ...]
  blocks: int
  groups: int
  head_width: int
  dropout: float
  dtype: jnp.dtype

  def residual(self, features: int, name: str, scale: str = '') -> nn.Module:
    return ResidualBlock(features, self.groups, self.dropout, self.dtype, scale, name=name)


class ResidualBlock(nn.Module):
  """shortcut(x) + conv(dropout(silu((1 + s) GN(conv(silu(GN(x)))) + b))), (s, b) from the condition.

  A change of resolution comes before the first convolution, and to x.
  """

  features: int
  groups: int
  dropout: float
  dtype: jnp.dtype
  scale: str

  @nn.compact
  def __call__(self, x: jax.Array, condition: jax.Array, *, train: bool) -> jax.Array:
    def norm(name):
      return nn.GroupNorm(self.groups, epsilon=1e-5, dtype=self.dtype, name=name)

    def conv(kernel, name, init=_init):
      return layers.conv(self.features, kernel, bias=True, kernel_init=init, dtype=self.dtype,
                         name=name)

    h = _resampled(nn.silu(norm('norm1')(x)), self.scale)
    x = _resampled(x, self.scale)
    h = norm('norm2')(conv(3, 'conv1')(h))
    affine = nn.Dense(2 * self.features, kernel_init=_init, dtype=self.dtype, name='affine')(
        nn.silu(condition))
    factor, offset = jnp.split(affine[:, None, None], 2, axis=3)
    h = nn.Dropout(self.dropout, deterministic=not train)(nn.silu(h * (1 + factor) + offset))
    h = conv(3, 'conv2', _zeros)(h)
    return h + (x if x.shape[3] == self.features else conv(1, 'shortcut')(x))


class AttentionBlock(nn.Module):
  """x + attention(GN(x)) over all pixels."""

  groups: int
  head_width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    batch, rows, columns, width = x.shape
    h = nn.GroupNorm(self.groups, epsilon=1e-5, dtype=self.dtype, name='norm')(x)
    h = vit.SelfAttention(width // self.head_width, self.dtype, in_init=_init, out_init=_zeros,
                          name='attn')(h.reshape(batch, rows * columns, width))
    return x + h.reshape(x.shape)


class Encoder(Part):
  """Input and condition -> the stages of `stage_shapes`, float32: input blocks, then the middle."""

  def setup(self):
    self.embedding = GammaEmbedding(self.width, self.dtype)

  @nn.compact
  def __call__(self, x: jax.Array, gamma: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
    condition = self.embedding(gamma)
    x = layers.conv(self.width * self.multipliers[0], 3, bias=True, kernel_init=_init,
                    dtype=self.dtype, name='input_0')(x)
    stages = [x]
    for level, multiplier in enumerate(self.multipliers):
      last = level == len(self.multipliers) - 1
      for scale in (*self.blocks * ('',), *(() if last else ('down',))):
        block = self.residual(self.width * multiplier, f'input_{len(stages)}', scale)
        stages.append(block(stages[-1], condition, train=train))
    x = self.residual(stages[-1].shape[3], 'middle_0')(
        stages[-1], condition, train=train)
    x = AttentionBlock(self.groups, self.head_width, self.dtype, name='middle_1')(x)
    x = self.residual(x.shape[3], 'middle_2')(x, condition, train=train)
    return tuple(stage.astype(jnp.float32) for stage in (*stages, x))


class Decoder(Part):
  """Stages and the embedding of gamma -> the noise that is predicted, [B, H, W, C] float32."""

  channels: int

  @nn.compact
  def __call__(self, stages: Sequence[jax.Array], condition: jax.Array, *, train: bool
               ) -> jax.Array:
    *skips, x = (stage.astype(self.dtype) for stage in stages)
    number = 0
    for level in reversed(range(len(self.multipliers))):
      features = self.width * self.multipliers[level]
      for _ in range(self.blocks + 1):
        x = jnp.concatenate([x, skips.pop()], axis=3)
        x = self.residual(features, f'output_{number}')(x, condition, train=train)
        number += 1
      if level:
        x = self.residual(features, f'up_{number - 1}', 'up')(x, condition, train=train)
    x = nn.silu(nn.GroupNorm(self.groups, epsilon=1e-5, dtype=self.dtype, name='norm')(x))
    return layers.conv(self.channels, 3, bias=True, kernel_init=_zeros, dtype=self.dtype,
                       name='conv')(x).astype(jnp.float32)


class UNet(nn.Module):
  """Both halves. The embedding of gamma is the encoder's, and the decoder reads it too."""

  encoder: Encoder
  decoder: Decoder

  def encode(self, x: jax.Array, gamma: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
    return self.encoder(x, gamma, train=train)

  def decode(self, stages: Sequence[jax.Array], gamma: jax.Array, *, train: bool) -> jax.Array:
    return self.decoder(stages, self.encoder.embedding(gamma), train=train)

  def __call__(self, x: jax.Array, gamma: jax.Array, *, train: bool) -> jax.Array:
    return self.decode(self.encode(x, gamma, train=train), gamma, train=train)
