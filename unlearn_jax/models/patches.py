"""Pictures as patches, and the places of patches: what masked autoencoders are made of."""

import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import types
from unlearn_jax.models import layers

_EPSILON = 1e-6  # added to a patch's variance, as in the release of MAE


def patchify(image: jax.Array, patch: int) -> jax.Array:
  """Cuts pictures into patches.

  Args:
    image: [B, H, W, C].
    patch: P, pixels along a side of a patch.

  Returns:
    [B, N, P*P*C]: patches in row-major order; the values of one by row, column, channel.

  Raises:
    AssertionError: pictures that are not [B, H, W, C].
    ValueError: patches that do not tile the picture.
  """
  layers.check_image(image)
  batch, height, width, channels = image.shape
  if height % patch or width % patch:
    raise ValueError(f'patches of {patch} do not tile a picture of {height}x{width}')
  rows, columns = height // patch, width // patch
  x = image.reshape(batch, rows, patch, columns, patch, channels).swapaxes(2, 3)
  return x.reshape(batch, rows * columns, patch * patch * channels)


def unpatchify(patches: jax.Array, patch: int) -> jax.Array:
  """The inverse of `patchify` for square pictures: [B, N, P*P*C] -> [B, H, H, C]."""
  batch, number, values = patches.shape
  side = round(number**0.5)
  x = patches.reshape(batch, side, side, patch, patch, values // patch**2).swapaxes(2, 3)
  return x.reshape(batch, side * patch, side * patch, values // patch**2)


def positions(side: int, width: int) -> np.ndarray:
  """Fixed sines and cosines of the places of a square grid, as in the release.

  The first half of a row encodes the column of the patch, the second half its row; either half is
  [sin(p w_i), cos(p w_i)] with w_i = 10000^(-i / (D/4)), i = 0 ... D/4 - 1.

  Args:
    side: patches along a side.
    width: D, a multiple of 4.

  Returns:
    [side * side, D] float32, computed in float64. The class token has a row of zeros, left out here.
  """
  angles = np.outer(np.arange(side), 10000.0**-(np.arange(width // 4) / (width / 4)))
  axis = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)  # [side, D/2]
  return np.concatenate([np.tile(axis, (side, 1)), np.repeat(axis, side, axis=0)],
                        axis=1).astype(np.float32)


def standards(patches: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean and deviation of every patch, by which MAE's `norm_pix_loss` standardises it.

  Args:
    patches: [..., d].

  Returns:
    The mean and sqrt(var + 1e-6), var unbiased (d - 1), [..., 1] each.
  """
  return (jnp.mean(patches, axis=-1, keepdims=True),
          jnp.sqrt(jnp.var(patches, axis=-1, keepdims=True, ddof=1) + _EPSILON))


def check_shape(visible: types.Array, number: int) -> None:
  """Raises ValueError unless `visible` is integers [B, K] with 0 < K < number; works under jit."""
  if np.ndim(visible) != 2 or not jnp.issubdtype(visible.dtype, jnp.integer):
    raise ValueError('visible holds integers [B, K], got '
                     f'{tuple(np.shape(visible))} {visible.dtype}')
  if not 0 < visible.shape[1] < number:
    raise ValueError(f'of {number} patches, at least one is visible and at least one hidden, got '
                     f'{visible.shape[1]} visible')


def check_visible(visible: np.ndarray, number: int) -> None:
  """Checks on the host what cannot be checked under jit: that these are places of patches.

  In a network an index beyond the last patch gives NaN, and a patch named twice is weighted wrongly.

  Args:
    visible: [B, K], the patches that the encoder is shown.
    number: N, patches of a picture.

  Raises:
    ValueError: no integers [B, K]; none or all of the patches; an index outside 0 ... N - 1; one
      that occurs twice in a row.
  """
  visible = np.asarray(visible)
  check_shape(visible, number)
  if visible.size and (visible.min() < 0 or visible.max() >= number):
    raise ValueError(f'patches are numbered from 0 to {number - 1}, visible has '
                     f'{visible.min()} to {visible.max()}')
  ordered = np.sort(visible, axis=1)
  if (twice := ordered[:, 1:] == ordered[:, :-1]).any():
    row, column = np.argwhere(twice)[0]
    raise ValueError(f'row {row} of visible names patch {ordered[row, column]} twice')
