"""Masked autoencoders (He et al., CVPR 2022): a generator that completes pictures patch by patch.

Parameters lie under `encoder/` and `decoder/`; mae_keys.py knows their names in public checkpoints.
Sizes, constants and initial values are those of the authors' PyTorch release.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from unlearn_jax import types
from unlearn_jax.models import contract
from unlearn_jax.models import layers
from unlearn_jax.models import patches as patches_lib
from unlearn_jax.models import vit

_xavier = nn.initializers.xavier_uniform()
_EPSILON = 1e-6  # of layer norms


class Block(nn.Module):
  """x + attention(LN(x)), then x + MLP(LN(x)), the MLP 4 times as wide, with the exact GELU."""

  heads: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width = x.shape[-1]
    y = nn.LayerNorm(_EPSILON, dtype=self.dtype, name='norm1')(x)
    x = x + vit.SelfAttention(self.heads, self.dtype, out_init=_xavier, name='attn')(y)
    y = nn.LayerNorm(_EPSILON, dtype=self.dtype, name='norm2')(x)
    y = nn.Dense(4 * width, kernel_init=_xavier, dtype=self.dtype, name='fc1')(y)
    return x + nn.Dense(width, kernel_init=_xavier, dtype=self.dtype, name='fc2')(
        jax.nn.gelu(y, approximate=False))


class Trunk(nn.Module):
  """What encoder and decoder share: their sizes, and a class token in front of patches."""

  side: int
  width: int
  depth: int
  heads: int
  dtype: jnp.dtype

  def blocks(self, x: jax.Array) -> jax.Array:
    for number in range(self.depth):
      x = Block(self.heads, self.dtype, name=f'blocks_{number}')(x)
    return nn.LayerNorm(_EPSILON, dtype=self.dtype, name='norm')(x)


class Encoder(Trunk):
  """Patches [B, N, P*P*C] and visible [B, K] -> latent [B, 1 + K, D], in the order of visible."""

  @nn.compact
  def __call__(self, patches: jax.Array, visible: jax.Array) -> jax.Array:
    # The rest is dropped before it is embedded: nothing of it can reach the latent.
    x = jnp.take_along_axis(patches, visible[:, :, None], axis=1).astype(self.dtype)
    x = nn.Dense(self.width, kernel_init=_xavier, dtype=self.dtype, name='patch_embed')(x)
    x = x + jnp.asarray(patches_lib.positions(self.side, self.width), self.dtype)[visible]
    token = self.param('cls_token', nn.initializers.normal(0.02), (1, 1, self.width), jnp.float32)
    token = jnp.broadcast_to(token.astype(self.dtype), (len(x), 1, self.width))
    return self.blocks(jnp.concatenate([token, x], axis=1)).astype(jnp.float32)


class Decoder(Trunk):
  """Latent [B, 1 + K, D] and visible [B, K] -> a prediction of all patches, [B, N, values]."""

  values: int

  @nn.compact
  def __call__(self, latent: jax.Array, visible: jax.Array) -> jax.Array:
    x = nn.Dense(self.width, kernel_init=_xavier, dtype=self.dtype, name='embed')(
        latent.astype(self.dtype))
    token = self.param('mask_token', nn.initializers.normal(0.02), (1, 1, self.width), jnp.float32)
    grid = jnp.broadcast_to(token.astype(self.dtype), (len(x), self.side**2, self.width))
    grid = grid.at[jnp.arange(len(x))[:, None], visible].set(x[:, 1:])
    grid = grid + jnp.asarray(patches_lib.positions(self.side, self.width), self.dtype)
    x = self.blocks(jnp.concatenate([x[:, :1], grid], axis=1))
    return nn.Dense(self.values, kernel_init=_xavier, dtype=self.dtype, name='pred')(
        x[:, 1:]).astype(jnp.float32)


class MAE(nn.Module):
  """Both halves, and the four ways to call them."""

  encoder: Encoder
  decoder: Decoder
  image_size: int
  patch: int
  channels: int
  normalize_targets: bool

  def _patches(self, image: jax.Array) -> jax.Array:
    layers.check_image(image)
    expected = (self.image_size, self.image_size, self.channels)
    if image.shape[1:] != expected:
      raise ValueError(f'mae: pictures are {"x".join(map(str, expected))}, got '
                       f'{"x".join(map(str, image.shape[1:]))}')
    return patches_lib.patchify(image, self.patch)

  def _hidden(self, visible: jax.Array) -> jax.Array:
    """1 where a patch is hidden, [B, N]."""
    everywhere = jnp.ones((len(visible), self.decoder.side**2))
    return everywhere.at[jnp.arange(len(visible))[:, None], visible].set(0)

  def _latent(self, patches: jax.Array, visible: jax.Array) -> jax.Array:
    patches_lib.check_shape(visible, self.encoder.side**2)
    layers.check_lengths('mae', image=patches, visible=visible)
    return self.encoder(patches, visible)

  def encode(self, image: jax.Array, visible: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    del train
    return {'latent': self._latent(self._patches(image), visible)}

  def decode(self, latent: jax.Array, visible: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    del train
    patches_lib.check_shape(visible, self.decoder.side**2)
    expected = (*visible.shape[:1], 1 + visible.shape[1], self.encoder.width)
    if latent.shape != expected:
      raise ValueError(f'mae: the latent of these visible patches has shape {expected}, got '
                       f'{latent.shape}')
    return {'image': patches_lib.unpatchify(self.decoder(latent, visible), self.patch)}

  def loss(self, image: jax.Array, visible: jax.Array, target: jax.Array | None = None, *,
           train: bool) -> dict[str, jax.Array]:
    del train
    patches = self._patches(image)
    prediction = self.decoder(self._latent(patches, visible), visible)
    wanted = patches if target is None else self._patches(target)
    layers.check_lengths('mae', image=patches, target=wanted)
    if self.normalize_targets:
      mean, deviation = patches_lib.standards(wanted)
      wanted = (wanted - mean) / deviation
    error = jnp.mean((prediction - wanted)**2, axis=-1)  # [B, N]
    hidden = wanted.shape[1] - visible.shape[1]
    return {'loss': jnp.sum(error * self._hidden(visible), axis=1) / hidden}

  def __call__(self, image: jax.Array, visible: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    del train
    patches = self._patches(image)
    latent = self._latent(patches, visible)
    prediction = self.decoder(latent, visible)
    if self.normalize_targets:
      mean, deviation = patches_lib.standards(patches)
      prediction = mean + deviation * prediction
    completed = jnp.where(self._hidden(visible)[:, :, None] > 0, prediction, patches)
    return {'image': patches_lib.unpatchify(completed, self.patch), 'latent': latent}


def _as_model(module: MAE, reveal_statistics: bool) -> types.Model:
  """The module over the fields that a method reads, the target among them where there is one."""
  fields = {None: ('image', 'visible'), 'encode': ('image', 'visible'),
            'decode': ('latent', 'visible'), 'loss': ('image', 'visible')}

  def apply(variables, inputs, *, train=False, rngs=None, method=None):
    if method not in fields:
      raise ValueError(f'mae: method is None, encode, decode or loss, got {method!r}')
    if method is None and module.normalize_targets and not reveal_statistics:
      raise ValueError(
          'mae: with normalize_targets the network predicts standardised patches; a picture needs '
          'the mean and deviation of every true patch, hidden ones too. reveal_statistics=True '
          'takes them from the input, which leaks what was to be forgotten')
    inputs = contract.noise_as_picture(inputs, method)
    wanted = fields[method]
    if method == 'loss' and 'target' in inputs:
      wanted = (*wanted, 'target')
    return contract.from_linen(module, wanted).apply(variables, inputs, train=train, rngs=rngs,
                                                     method=method)

  return types.Model(contract.from_linen(module, fields[None]).init, apply)


def mae(*, image_size: int = 32, channels: int = 3, patch: int = 4, width: int = 64, depth: int = 4,
        heads: int = 4, decoder_width: int = 48, decoder_depth: int = 2, decoder_heads: int = 4,
        normalize_targets: bool = False, reveal_statistics: bool = False,
        compute_dtype: str = 'float32') -> types.Model:
  """A masked autoencoder of any size; the defaults are ours, for pictures of 32x32 on two cores.

  He et al. 2022, "Masked autoencoders are scalable vision learners", section 3, in the reading of
  the authors' PyTorch release: pre-norm blocks, exact GELU, layer norms with epsilon 1e-6, fixed
  sine-cosine positions. The encoder sees the visible patches alone; the decoder sees their
  encodings and, in all other places, one learnt mask token. With f the network, S the hidden
  patches and d = P*P*C,

    loss(x, t) = 1/|S| sum_{i in S} 1/d ||f(x)_i - t_i||^2

  per picture; its mean over a batch is the release's loss, since all rows hide as many patches.

  Ways to call `apply(variables, inputs, method=...)`:
    None: `image` [B, H, H, C], `visible` [B, K] -> `image`, the completed picture: the prediction
      in the hidden patches, the input in the others, nothing clipped; and `latent`.
    `encode`: the same inputs -> `latent` [B, 1 + K, width], the class token first, then the visible
      patches in the order of `visible`, after the last layer norm.
    `decode`: `latent`, `visible` -> `image`, the prediction everywhere, nothing pasted.
    `loss`: `image`, `visible` and, if wanted, `target` (default `image`) -> `loss` [B].
  A field `noise` takes the place of `image` in `encode`, and of `target` in `loss`.

  `visible` holds row-major indices of patches in any order. Nothing is random: `rngs` is not used.

  Normalised targets (the release's `norm_pix_loss`): t_i is standardised by its own mean and
  unbiased variance (plus 1e-6) over its d values, so `decode` gives standardised patches. To view
  them one needs the mean and deviation of the true hidden patches. An evaluation of unlearning that
  takes them shows the colours of the forgotten picture whatever was unlearnt; so the call without a
  method refuses, until `reveal_statistics` asks for it.

  Counts: published numbers include the fixed position tables, (1 + N) x (width + decoder_width),
  which are no parameters here. See `mae_vit_b` and `mae_vit_l`.

  Initial values are the release's: Xavier uniform for all matrices, biases 0 (the patch embedding's
  too, ours: there it is PyTorch's default), class and mask token normal with deviation 0.02.

  Args:
    image_size: H, pixels along a side of a square picture; a multiple of `patch`.
    channels: C.
    patch: P, pixels along a side of a patch.
    width: D of the encoder, a multiple of `heads` and of 4.
    depth: its blocks.
    heads: its heads.
    decoder_width: of the decoder, a multiple of `decoder_heads` and of 4.
    decoder_depth: its blocks.
    decoder_heads: its heads.
    normalize_targets: trains on standardised patches.
    reveal_statistics: completes pictures with the hidden patches' true means and deviations; only
      with `normalize_targets`.
    compute_dtype: of the layers; parameters, latents, pictures and losses are float32.

  Returns:
    The model.

  Raises:
    TypeError, ValueError: an argument of the wrong type or out of range; on init and apply, a
      missing field, an unknown method, pictures of another size, `visible` that is no integer
      array [B, K] or leaves nothing visible or nothing hidden (`patches.check_visible`
      looks at the values, on the host), a latent that does not fit.
  """
  layers.check_positive('mae', image_size=image_size, channels=channels, patch=patch, width=width,
                        depth=depth, heads=heads, decoder_width=decoder_width,
                        decoder_depth=decoder_depth, decoder_heads=decoder_heads)
  if image_size % patch:
    raise ValueError(f'mae: patches of {patch} do not tile a picture of {image_size}x{image_size}')
  for half, size, number in (('', width, heads), ('decoder_', decoder_width, decoder_heads)):
    if size % number or size % 4:
      raise ValueError(f'mae: {half}width must be a multiple of {half}heads and of 4, got {size} '
                       f'and {number} heads')
  if reveal_statistics and not normalize_targets:
    raise ValueError('mae: reveal_statistics is for normalize_targets, raw pixels need none')
  dtype, side = layers.dtype_of('mae', compute_dtype), image_size // patch
  return _as_model(
      MAE(Encoder(side, width, depth, heads, dtype),
          Decoder(side, decoder_width, decoder_depth, decoder_heads, dtype, patch**2 * channels),
          image_size, patch, channels, normalize_targets), reveal_statistics)


def mae_vit_b(*, image_size: int = 224, normalize_targets: bool = False,
              reveal_statistics: bool = False, compute_dtype: str = 'float32') -> types.Model:
  """ViT-B/16 with the published decoder (512 wide, 8 blocks, 16 heads); arguments as `mae`.

  111,655,680 parameters; with the position tables of 224x224 pictures the published 111,907,840.
  The encoder has 85,647,360, with its table 85,798,656.
  """
  return mae(image_size=image_size, patch=16, width=768, depth=12, heads=12, decoder_width=512,
             decoder_depth=8, decoder_heads=16, normalize_targets=normalize_targets,
             reveal_statistics=reveal_statistics, compute_dtype=compute_dtype)


def mae_vit_l(*, image_size: int = 224, normalize_targets: bool = False,
              reveal_statistics: bool = False, compute_dtype: str = 'float32') -> types.Model:
  """ViT-L/16 with the published decoder (512 wide, 8 blocks, 16 heads); arguments as `mae`.

  329,239,296 parameters; with the position tables of 224x224 pictures the published 329,541,888.
  The encoder has 303,099,904, with its table 303,301,632.
  """
  return mae(image_size=image_size, patch=16, width=1024, depth=24, heads=16, decoder_width=512,
             decoder_depth=8, decoder_heads=16, normalize_targets=normalize_targets,
             reveal_statistics=reveal_statistics, compute_dtype=compute_dtype)
