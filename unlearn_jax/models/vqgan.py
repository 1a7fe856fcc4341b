"""VQ-GAN (Esser et al., CVPR 2021) as MAGE's tokenizer: pictures to a grid of codes, and back.

Parameters lie under `encoder/`, the codebook among them, and `decoder/`; mage_keys.py knows their
names in public checkpoints.
"""

from collections.abc import Sequence

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from unlearn_jax import types
from unlearn_jax.models import contract
from unlearn_jax.models import layers

_EPSILON = 1e-6  # of group norms
_COMMITMENT = 0.25  # beta of van den Oord et al. 2017
# MAGE's tokenizer: 16x16 tokens of pictures of 256x256
PUBLISHED = {'width': 128, 'multipliers': (1, 1, 2, 2, 4), 'blocks': 2, 'latent': 256,
             'codes': 1024, 'groups': 32}


def _conv(features: int, kernel: int, dtype, name: str, *, bias: bool) -> nn.Conv:
  return layers.conv(features, kernel, bias=bias, kernel_init=layers.uniform_fan_in, dtype=dtype,
                     name=name)


def _norm_swish(x: jax.Array, groups: int, dtype, name: str) -> jax.Array:
  return nn.swish(nn.GroupNorm(groups, epsilon=_EPSILON, dtype=dtype, name=name)(x))


class ResBlock(nn.Module):
  """Two convolutions h of x: x + h; where the number of channels changes, S h + h without x.

  The second is the release's: its 1x1 convolution S, meant to carry x past the block, is applied to
  h, and weights that were trained with it need it.
  """

  features: int
  groups: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    h = _norm_swish(x, self.groups, self.dtype, 'norm1')
    h = _conv(self.features, 3, self.dtype, 'conv1', bias=False)(h)
    h = _norm_swish(h, self.groups, self.dtype, 'norm2')
    h = _conv(self.features, 3, self.dtype, 'conv2', bias=False)(h)
    if x.shape[-1] == self.features:
      return x + h
    return h + _conv(self.features, 1, self.dtype, 'nin_shortcut', bias=False)(h)


class Half(nn.Module):
  """The sizes that encoder and decoder share."""

  width: int
  multipliers: Sequence[int]
  blocks: int
  latent: int
  groups: int
  dtype: jnp.dtype

  def level(self, x: jax.Array, name: str, number: int) -> jax.Array:
    for block in range(self.blocks):
      x = ResBlock(self.width * self.multipliers[number], self.groups, self.dtype,
                   name=f'{name}_{number}_block_{block}')(x)
    return x

  def middle(self, x: jax.Array) -> jax.Array:
    for block in (1, 2):
      x = ResBlock(x.shape[-1], self.groups, self.dtype, name=f'mid_block_{block}')(x)
    return x


class Encoder(Half):
  """Pictures [B, H, W, C] -> latents z [B, h, w, D]; and the codebook [codes, D]."""

  codes: int = 1

  def setup(self):
    bound = 1 / self.codes  # the release's

    def uniform(key, shape, dtype):
      return jax.random.uniform(key, shape, dtype, -bound, bound)

    self.codebook = self.param('codebook', uniform, (self.codes, self.latent), jnp.float32)

  @nn.compact
  def __call__(self, image: jax.Array) -> jax.Array:
    x = _conv(self.width, 3, self.dtype, 'conv_in', bias=False)(image.astype(self.dtype))
    for number in range(len(self.multipliers)):
      if number:
        x = nn.avg_pool(x, (2, 2), (2, 2))
      x = self.level(x, 'down', number)
    x = _norm_swish(self.middle(x), self.groups, self.dtype, 'norm_out')
    return _conv(self.latent, 1, self.dtype, 'conv_out', bias=True)(x).astype(jnp.float32)

  def lookup(self, tokens: jax.Array) -> jax.Array:
    return self.codebook[tokens]

  def nearest(self, z: jax.Array) -> jax.Array:
    # In full precision on every device: rounding changes which code is the nearest.
    product = jnp.einsum('bhwd,kd->bhwk', z, self.codebook, precision=lax.Precision.HIGHEST)
    distance = (jnp.sum(z**2, axis=-1, keepdims=True) + jnp.sum(self.codebook**2, axis=-1)
                - 2 * product)
    return jnp.argmin(distance, axis=-1).astype(jnp.int32)


class Decoder(Half):
  """Codes' vectors [B, h, w, D] -> pictures [B, H, W, C]."""

  channels: int = 3

  @nn.compact
  def __call__(self, z: jax.Array) -> jax.Array:
    x = _conv(self.width * self.multipliers[-1], 3, self.dtype, 'conv_in', bias=True)(
        z.astype(self.dtype))
    x = self.middle(x)
    for number in reversed(range(len(self.multipliers))):
      x = self.level(x, 'up', number)
      if number:
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        x = _conv(x.shape[-1], 3, self.dtype, f'up_{number}_upsample', bias=True)(x)
    x = _norm_swish(x, self.groups, self.dtype, 'norm_out')
    return _conv(self.channels, 3, self.dtype, 'conv_out', bias=True)(x).astype(jnp.float32)


class VQGAN(nn.Module):
  """Both halves, and the four ways to call them."""

  encoder: Encoder
  decoder: Decoder

  def _latent(self, image: jax.Array) -> jax.Array:
    layers.check_image(image)
    factor = 2**(len(self.encoder.multipliers) - 1)
    channels = self.decoder.channels
    if image.shape[-1] != channels or image.shape[1] % factor or image.shape[2] % factor:
      raise ValueError(f'vqgan: pictures have {channels} channels and sides that are multiples of '
                       f'{factor}, got {"x".join(map(str, image.shape[1:]))}')
    return self.encoder(image)

  def encode(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    del train
    z = self._latent(image)
    return {'tokens': self.encoder.nearest(z), 'latent': z}

  def decode(self, tokens: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    del train
    if tokens.ndim != 3 or not jnp.issubdtype(tokens.dtype, jnp.integer):
      raise ValueError(f'vqgan: tokens are integers [B, h, w], got {tokens.shape} {tokens.dtype}')
    return {'image': self.decoder(self.encoder.lookup(tokens))}

  def loss(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    outputs = self(image, train=train)
    z, e = outputs['latent'], self.encoder.lookup(outputs['tokens'])
    error = (jnp.abs(outputs['image'] - image), (lax.stop_gradient(z) - e)**2,
             (z - lax.stop_gradient(e))**2)
    pixels, codebook, commitment = (jnp.mean(each, axis=(1, 2, 3)) for each in error)
    return {'loss': pixels + codebook + _COMMITMENT * commitment}

  def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    outputs = self.encode(image, train=train)
    z = outputs['latent']
    e = self.encoder.lookup(outputs['tokens'])
    return {'image': self.decoder(z + lax.stop_gradient(e - z)), **outputs}


def vqgan(*, channels: int = 3, width: int = 16, multipliers: Sequence[int] = (1, 2, 4),
          blocks: int = 1, latent: int = 6, codes: int = 128, groups: int = 8,
          compute_dtype: str = 'float32') -> types.Model:
  """A VQ-GAN's autoencoder; the default sizes are ours, for pictures of 32x32 on two cores.

  Esser et al. 2021, "Taming transformers for high-resolution image synthesis", section 3.1, in the
  reading of the tokenizer that comes with MAGE (Li et al. 2023): no attention, no convolutions around
  the codebook, 2x2 average pooling on the way down, nearest neighbours and a convolution on the way
  up, swish, group norms with epsilon 1e-6, and the shortcut of `ResBlock`. With z = E(x) and the codes
  e_j,

    q = argmin_j |z|^2 + |e_j|^2 - 2 z.e_j
    loss(x) = mean |D(e_q) - x| + mean (sg(z) - e_q)^2 + 0.25 mean (z - sg(e_q))^2

  (its Eq. 4 with L1 for the distance of pictures, and van den Oord's 0.25), where sg stops gradients;
  those of the first term go past the argmin, to z as if it were e_q. Left out: the perceptual loss and
  the discriminator of Eqs. 5 to 7, so pictures are smoother than a GAN's.

  Ways to call `apply(variables, inputs, method=...)`:
    None: `image` [B, H, W, C] -> `image`, the reconstruction, not clipped; and as `encode`.
    `encode`: `image` -> `tokens` int32 [B, h, w] and `latent`, z [B, h, w, D].
    `decode`: `tokens` -> `image`.
    `loss`: `image` -> `loss` [B].
  h = H / 2^(levels - 1). Pictures are in [0, 1], with no other normalisation. Nothing is random.

  It is no generator by itself: it completes nothing. `methods.reconstruct` trains it all the same, its
  parameters being `encoder/...` and `decoder/...`; decay there pulls codes to 0, so use
  `weight_decay=0`. Then `mage(tokenizer=params)`.

  54,515,587 parameters at the published size, `vqgan(**PUBLISHED)`. Initial values: codes uniform in
  +-1/codes (the release's), convolutions as in PyTorch but for biases of 0.

  Args:
    channels: C.
    width: channels of the first level.
    multipliers: channels of the levels over `width`; between two levels the sides are halved.
    blocks: residual blocks of a level.
    latent: D.
    codes: in the codebook.
    groups: of group norms, 32 in the published size; it divides the channels of every level.
    compute_dtype: of the layers; parameters, latents, pictures and losses are float32.

  Returns:
    The model.

  Raises:
    TypeError, ValueError: an argument of the wrong type or out of range; on init and apply, a missing
      field, pictures with other channels or sides that the levels do not halve, tokens that are no
      integers [B, h, w].
  """
  multipliers = tuple(multipliers)
  layers.check_positive('vqgan', channels=channels, width=width, blocks=blocks, latent=latent,
                        codes=codes, groups=groups, **{
                            f'multipliers[{index}]': each for index, each in enumerate(multipliers)})
  if not multipliers:
    raise ValueError('vqgan: multipliers names no level')
  if any(width * each % groups for each in multipliers):
    raise ValueError(f'vqgan: {groups} groups do not divide the channels of every level, '
                     f'{", ".join(str(width * each) for each in multipliers)}')
  half = (width, multipliers, blocks, latent, groups, layers.dtype_of('vqgan', compute_dtype))
  module = VQGAN(Encoder(*half, codes), Decoder(*half, channels))
  images = contract.from_linen(module)
  tokens = contract.from_linen(module, ('tokens',))

  def apply(variables, inputs, *, train=False, rngs=None, method=None):
    if method not in (None, 'encode', 'decode', 'loss'):
      raise ValueError(f'vqgan: method is None, encode, decode or loss, got {method!r}')
    call = tokens.apply if method == 'decode' else images.apply
    return call(variables, inputs, train=train, rngs=rngs, method=method)

  return types.Model(images.init, apply)
