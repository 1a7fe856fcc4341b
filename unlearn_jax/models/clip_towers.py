"""The two towers of CLIP-style models: transformers over patches and over tokens.

Modules and parameters carry OpenAI's names, whatever the layout (see clip.py).
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from unlearn_jax.models import layers
from unlearn_jax.models import vit

_normal = nn.initializers.normal


def quick_gelu(x: jax.Array) -> jax.Array:
  """x * sigmoid(1.702 x), OpenAI's approximation of the GELU."""
  return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: jax.Array) -> jax.Array:
  """The exact GELU, x * Phi(x)."""
  return jax.nn.gelu(x, approximate=False)


class Style(NamedTuple):
  """How a transformer computes.

  Attributes:
    activation: of the MLPs.
    epsilon: of every layer norm.
    qk_norm: a layer norm over each head's queries and keys.
    causal: a token sees itself and those before it.
  """

  activation: Callable[[jax.Array], jax.Array]
  epsilon: float
  qk_norm: bool = False
  causal: bool = False

  def norm(self, dtype, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(self.epsilon, dtype=dtype, name=name)


class Perceptron(nn.Module):
  """Two dense layers, to 4 times the width and back."""

  style: Style
  depth: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width = x.shape[-1]
    x = nn.Dense(4 * width, kernel_init=_normal((2 * width)**-0.5), dtype=self.dtype,
                 name='c_fc')(x)
    return nn.Dense(width, kernel_init=_normal((2 * width * self.depth)**-0.5), dtype=self.dtype,
                    name='c_proj')(self.style.activation(x))


class Block(nn.Module):
  """x + attention(LN(x)), then x + MLP(LN(x)); OpenAI's initial values for the text tower."""

  style: Style
  heads: int
  depth: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width, style = x.shape[-1], self.style
    y = vit.SelfAttention(
        self.heads, self.dtype, causal=style.causal,
        qk_norm=style.epsilon if style.qk_norm else None, in_init=_normal(width**-0.5),
        out_init=_normal((2 * width * self.depth)**-0.5), name='attn')(
            style.norm(self.dtype, 'ln_1')(x))
    x = x + y
    return x + Perceptron(style, self.depth, self.dtype, name='mlp')(
        style.norm(self.dtype, 'ln_2')(x))


class Blocks(nn.Module):
  """Blocks named 0, 1, ..."""

  style: Style
  heads: int
  depth: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for number in range(self.depth):
      x = Block(self.style, self.heads, self.depth, self.dtype, name=str(number))(x)
    return x


class Transformer(nn.Module):
  """`resblocks`, alone: OpenAI's nesting."""

  style: Style
  heads: int
  depth: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return Blocks(self.style, self.heads, self.depth, self.dtype, name='resblocks')(x)


class AttentionPool(nn.Module):
  """SigLIP's pooling: one learnt query attends to all patches, then a residual MLP."""

  style: Style
  heads: int
  depth: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width = x.shape[-1]
    probe = self.param('probe', _normal(width**-0.5), (1, 1, width), jnp.float32)
    probe = jnp.broadcast_to(probe.astype(self.dtype), (len(x), 1, width))
    y = nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype, name='attn')(probe, x)
    y = y + Perceptron(self.style, self.depth, self.dtype, name='mlp')(
        self.style.norm(self.dtype, 'ln')(y))
    return y[:, 0]


class ImageTower(nn.Module):
  """Pictures [B, H, W, C] -> pooled states [B, projection or width] float32, and before projection.

  Attributes:
    projection: columns of `proj`; None leaves the projection to the caller.
    class_token: pooling by a class token; else by attention.
    pre_norm: a layer norm before the first block.
    patch_bias: of the patch embedding.
  """

  style: Style
  patch: int
  width: int
  depth: int
  heads: int
  projection: int | None
  class_token: bool
  pre_norm: bool
  patch_bias: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, image: jax.Array) -> tuple[jax.Array, jax.Array]:
    layers.check_image(image)
    scale = self.width**-0.5
    x = vit.PatchEmbedding(self.width, self.patch, self.dtype, use_bias=self.patch_bias,
                           name='conv1')(image.astype(self.dtype))
    if self.class_token:
      token = self.param('class_embedding', _normal(scale), (self.width,), jnp.float32)
      token = jnp.broadcast_to(token.astype(self.dtype), (len(x), 1, self.width))
      x = jnp.concatenate([token, x], axis=1)  # [B, 1 + N, D]
    position = self.param('positional_embedding', _normal(scale), x.shape[1:], jnp.float32)
    x = x + position.astype(self.dtype)
    x = self.style.norm(self.dtype, 'ln_pre')(x) if self.pre_norm else x
    x = Transformer(self.style, self.heads, self.depth, self.dtype, name='transformer')(x)
    if self.class_token:
      x = self.style.norm(self.dtype, 'ln_post')(x[:, 0])
    else:
      x = self.style.norm(self.dtype, 'ln_post')(x)
      x = AttentionPool(self.style, self.heads, self.depth, self.dtype, name='pool')(x)
    features = x.astype(jnp.float32)
    if self.projection is None:
      return features, features
    return features @ self.param('proj', _normal(scale), (self.width, self.projection),
                                 jnp.float32), features


class TextTower(nn.Module):
  """Token ids [B, L] and a prompt [m, D] or None -> pooled and projected states [B, P] float32.

  Attributes:
    context: L; other lengths are refused.
    projection: P.
    projection_bias: the projection is a dense layer with bias, not a bare matrix.
    pool_last: pools at position L - 1, not at EOT.
  """

  style: Style
  vocabulary: int
  context: int
  width: int
  depth: int
  heads: int
  projection: int
  projection_bias: bool
  pool_last: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, text: jax.Array, prompt: jax.Array | None = None) -> jax.Array:
    chex.assert_rank(text, 2)
    if text.shape[1] != self.context or not jnp.issubdtype(text.dtype, jnp.integer):
      raise ValueError(f'clip: text is an integer array [B, {self.context}], got '
                       f'{text.shape} {text.dtype}')
    x = nn.Embed(self.vocabulary, self.width, embedding_init=_normal(0.02), dtype=self.dtype,
                 name='token_embedding')(text)  # [B, L, D]
    if prompt is not None:
      if prompt.ndim != 2 or prompt.shape[1] != self.width or len(prompt) > self.context - 3:
        raise ValueError(f'clip: a prompt is [m, {self.width}] with m at most {self.context - 3}, '
                         f'got {prompt.shape}')
      slots = jnp.broadcast_to(prompt.astype(self.dtype), (len(x), *prompt.shape))
      x = jnp.concatenate([x[:, :1], slots, x[:, 1 + len(prompt):]], axis=1)
    x = x + self.param('positional_embedding', _normal(0.01), (self.context, self.width),
                       jnp.float32).astype(self.dtype)
    x = Transformer(self.style, self.heads, self.depth, self.dtype, name='transformer')(x)
    # EOT is the highest id, so it is where the ids have their maximum, wherever the slots moved it.
    at = jnp.full(len(x), self.context - 1) if self.pool_last else jnp.argmax(text, axis=1)
    x = jnp.take_along_axis(x, at[:, None, None], axis=1)[:, 0]  # [B, D]
    x = self.style.norm(self.dtype, 'ln_final')(x).astype(jnp.float32)
    init = _normal(self.width**-0.5)
    if self.projection_bias:
      return nn.Dense(self.projection, kernel_init=init, name='text_projection')(x)
    return x @ self.param('text_projection', init, (self.width, self.projection), jnp.float32)
