"""Vision transformer (Dosovitskiy et al., 2021) in torchvision's layout.

Names follow the rule of resnet.py, but for the joint projection of queries, keys and values, which
PyTorch's attention hangs on by an underscore: `self_attention/in_proj/kernel` is
`self_attention.in_proj_weight` there.
"""

from collections.abc import Callable

from flax import linen as nn
import jax
import jax.numpy as jnp

from unlearn_jax import types
from unlearn_jax.models import contract
from unlearn_jax.models import layers

_xavier = nn.initializers.xavier_uniform()


class PatchEmbedding(nn.Module):
  """A convolution with stride = kernel = `patch`, spelled as the matrix product that it is."""

  width: int
  patch: int
  dtype: jnp.dtype
  use_bias: bool = True

  @nn.compact
  def __call__(self, image: jax.Array) -> jax.Array:
    batch, height, width, channels = image.shape
    if height % self.patch or width % self.patch:
      raise ValueError(f'vit: patches of {self.patch} do not tile a picture of {height}x{width}')
    # The normal is cut at +-2, hundreds of deviations away: torchvision's trunc_normal_ cuts nothing.
    kernel = self.param('kernel', nn.initializers.normal((channels * self.patch**2)**-0.5),
                        (self.patch, self.patch, channels, self.width), jnp.float32)
    rows, columns = height // self.patch, width // self.patch
    x = image.reshape(batch, rows, self.patch, columns, self.patch, channels)
    x = x.swapaxes(2, 3).reshape(batch, rows * columns, -1)  # [B, N, P*P*C]
    x = x @ kernel.reshape(-1, self.width).astype(self.dtype)
    if not self.use_bias:
      return x
    bias = self.param('bias', nn.initializers.zeros, (self.width,), jnp.float32)
    return x + bias.astype(self.dtype)


class SelfAttention(nn.Module):
  """Multi-head attention of a sequence to itself.

  `qk_norm` is the epsilon of a layer norm over each head's queries and keys (Dehghani et al. 2023),
  None is without. The initialisers' defaults are PyTorch's, biases are 0.
  """

  heads: int
  dtype: jnp.dtype
  causal: bool = False
  qk_norm: float | None = None
  in_init: Callable = _xavier
  out_init: Callable = layers.uniform_fan_in

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    batch, tokens, width = x.shape
    x = nn.Dense(3 * width, kernel_init=self.in_init, dtype=self.dtype, name='in_proj')(x)
    q, k, v = jnp.moveaxis(
        x.reshape(batch, tokens, 3, self.heads, width // self.heads), 2, 0)  # each [B, N, H, D/H]
    if self.qk_norm is not None:
      q = nn.LayerNorm(self.qk_norm, dtype=self.dtype, name='q_norm')(q)
      k = nn.LayerNorm(self.qk_norm, dtype=self.dtype, name='k_norm')(k)
    x = jax.nn.dot_product_attention(q, k, v, is_causal=self.causal)
    return nn.Dense(width, kernel_init=self.out_init, dtype=self.dtype,
                    name='out_proj')(x.reshape(batch, tokens, width))


class Perceptron(nn.Module):
  """Two dense layers, members `0` and `3` of torchvision's sequence, with GELU between."""

  hidden: int
  dropout: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    width = x.shape[-1]
    for name, features in (('0', self.hidden), ('3', width)):
      x = nn.Dense(features, kernel_init=_xavier, bias_init=nn.initializers.normal(1e-6),
                   dtype=self.dtype, name=name)(x)
      x = nn.gelu(x, approximate=False) if name == '0' else x
      x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return x


class EncoderLayer(nn.Module):
  """x + attention(LN(x)), then x + MLP(LN(x)): equations 2 and 3 of the paper."""

  heads: int
  hidden: int
  dropout: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    y = nn.LayerNorm(1e-6, dtype=self.dtype, name='ln_1')(x)
    y = SelfAttention(self.heads, self.dtype, name='self_attention')(y)
    x = x + nn.Dropout(self.dropout, deterministic=not train)(y)
    y = nn.LayerNorm(1e-6, dtype=self.dtype, name='ln_2')(x)
    return x + Perceptron(self.hidden, self.dropout, self.dtype, name='mlp')(y, train=train)


class Layers(nn.Module):
  """Layers named encoder_layer_0, encoder_layer_1, ..."""

  depth: int
  heads: int
  hidden: int
  dropout: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    for number in range(self.depth):
      x = EncoderLayer(self.heads, self.hidden, self.dropout, self.dtype,
                       name=f'encoder_layer_{number}')(x, train=train)
    return x


class Encoder(nn.Module):
  """Position embedding, layers, layer norm."""

  depth: int
  heads: int
  hidden: int
  dropout: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    position = self.param('pos_embedding', nn.initializers.normal(0.02), (1, *x.shape[1:]),
                          jnp.float32)
    x = nn.Dropout(self.dropout, deterministic=not train)(x + position.astype(self.dtype))
    x = Layers(self.depth, self.heads, self.hidden, self.dropout, self.dtype,
               name='layers')(x, train=train)
    return nn.LayerNorm(1e-6, dtype=self.dtype, name='ln')(x)


class Heads(nn.Module):
  """The linear head, `heads/head`; zero at first."""

  num_outputs: int

  @nn.compact
  def __call__(self, features: jax.Array) -> jax.Array:
    return layers.linear(features, self.num_outputs, name='head',
                         kernel_init=nn.initializers.zeros, bias_init=nn.initializers.zeros)


class ViT(nn.Module):
  """The whole network: patches, class token, encoder, linear head on the class token."""

  num_outputs: int
  patch: int
  width: int
  depth: int
  heads: int
  mlp_ratio: int
  dropout: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    layers.check_image(image)
    x = PatchEmbedding(self.width, self.patch, self.dtype, name='conv_proj')(
        image.astype(self.dtype))
    token = self.param('class_token', nn.initializers.zeros, (1, 1, self.width), jnp.float32)
    token = jnp.broadcast_to(token.astype(self.dtype), (len(x), 1, self.width))
    x = jnp.concatenate([token, x], axis=1)  # [B, 1 + N, D]
    x = Encoder(self.depth, self.heads, self.mlp_ratio * self.width, self.dropout, self.dtype,
                name='encoder')(x, train=train)
    features = x[:, 0].astype(jnp.float32)
    return {'logits': Heads(self.num_outputs, name='heads')(features), 'features': features}


def vit(*, num_outputs: int, patch: int = 4, width: int = 128, depth: int = 4, heads: int = 4,
        mlp_ratio: int = 4, dropout: float = 0.0, compute_dtype: str = 'float32') -> types.Model:
  """A vision transformer; small by default, for pictures of about 32x32.

  Dosovitskiy et al. 2021, "An image is worth 16x16 words", equations 1 to 4. ViT-B/16 is `patch=16,
  width=768, depth=12, heads=12`: 86,567,656 parameters for 224x224 with 1000 outputs. The position
  embedding has the size of the pictures given to `init`; Flax refuses others (ScopeParamShapeError).

  Initial values are torchvision's: patch embedding normal with variance 1 / fan in, attention and
  MLP Xavier uniform (output projection of the attention uniform in +-1/sqrt(fan in)), position
  embedding normal with deviation 0.02, class token, head and most biases 0. So a new network
  answers 0, and only the head has a gradient at the first step.

  Args:
    num_outputs: classes, or attributes of a multi-attribute head (trained with sigmoids).
    patch: pixels along a side of a patch; it divides the sides of the pictures.
    width: D, the dimension of tokens and of `features`; a multiple of `heads`.
    depth: encoder layers.
    heads: of the attention.
    mlp_ratio: hidden units of the MLP over `width`.
    dropout: rate in [0, 1) after the position embedding, the attention and each layer of the MLP,
      drawn from the stream `dropout` in train mode.
    compute_dtype: of the layers; parameters, features and logits are float32.

  Returns:
    The model; outputs `logits` [B, num_outputs] and `features` [B, width].

  Raises:
    TypeError, ValueError: an argument of the wrong type or out of range; on init and apply, a
      picture that `patch` does not divide.
  """
  layers.check_positive('vit', num_outputs=num_outputs, patch=patch, width=width, depth=depth,
                        heads=heads, mlp_ratio=mlp_ratio)
  layers.check_rate('vit', dropout=dropout)
  if width % heads:
    raise ValueError(f'vit: width must be a multiple of heads, got {width} and {heads}')
  return contract.from_linen(ViT(num_outputs, patch, width, depth, heads, mlp_ratio, dropout,
                                 layers.dtype_of('vit', compute_dtype)))
