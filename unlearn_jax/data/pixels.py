"""Statistics of pixels: what noise is measured in, and the covariance of pictures."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from unlearn_jax.data import sources

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Pixels(NamedTuple):
  """How normalised space lies in [0, 1], and the pictures to forget.

  Attributes:
    mean: float32 [C]; x = mean + std * z for z in normalised space.
    std: float32 [C].
    images: () -> pictures to forget, float32 [N, H, W, C] in [0, 1]; read when a method wants a
      covariance of the data, and not before.
  """

  mean: np.ndarray
  std: np.ndarray
  images: Callable[[], np.ndarray]


class OffDiagonal(NamedTuple):
  """How far a covariance is from a diagonal one.

  Attributes:
    small: share of the entries off the diagonal that are at most `closeness` mean variances.
    energy: share of the squared entries (Frobenius) that lies off the diagonal, in [0, 1).
  """

  small: float
  energy: float


def of(source: sources.Source, indices: np.ndarray, *, mean: Sequence[float] = (0.0,),
       std: Sequence[float] = (1.0,)) -> Pixels:
  """Normalised space, and the pictures at `indices`.

  Args:
    source: where the pictures are.
    indices: of the pictures to forget, [N].
    mean: of every channel, or one for all; 0 where nothing is normalised.
    std: likewise, above 0; 1 where nothing is normalised.

  Raises:
    ValueError: not one number per channel; a deviation that is not positive.
  """
  image, indices = source.fields['image'], np.array(indices, np.int64)
  channels = image.shape[-1]
  for name, values in (('mean', mean), ('std', std)):
    if np.ndim(values) != 1 or len(values) not in (1, channels) or not np.isfinite(values).all():
      raise ValueError(f'{name} of pixels: {channels} finite numbers expected, or one for all '
                       f'channels, got {values!r}')
  if min(std) <= 0:
    raise ValueError(f'std of pixels must be positive, got {std!r}')
  mean, std = (np.broadcast_to(np.asarray(values, np.float32), channels) for values in (mean, std))
  return Pixels(mean, std, lambda: np.asarray(image[indices], np.float32))


def covariance(images: np.ndarray, *, grey: bool = False) -> np.ndarray:
  """Covariance of the pixels over pictures: sum_n (x_n - m)(x_n - m)^T / (N - 1), m = sum_n x_n / N.

  Figure C.5 of Li et al. (2024) shows its absolute values, for colour pictures those of their grey
  versions (grey = 0.299 R + 0.587 G + 0.114 B, ITU-R BT.601; ours, the paper does not say).

  Args:
    images: [N, H, W, C], N at least 2.
    grey: of pictures of three channels, their grey versions.

  Returns:
    float64 [D, D], D = H W C (H W if grey): 8 D^2 bytes.

  Raises:
    ValueError: pictures of another shape, fewer than two, values that are not finite; grey for
      pictures that have not three channels.
  """
  images = np.asarray(images, np.float64)
  if images.ndim != 4 or len(images) < 2:
    raise ValueError(f'a covariance needs at least two pictures [N, H, W, C], got {images.shape}')
  if not np.isfinite(images).all():
    raise ValueError('a covariance needs pictures of finite values')
  if grey:
    if images.shape[3] != 3:
      raise ValueError(f'grey versions are of pictures of 3 channels, got {images.shape[3]}')
    images = images @ np.asarray(_LUMA)
  flat = images.reshape(len(images), -1)
  centred = flat - flat.mean(axis=0)
  return centred.T @ centred / (len(flat) - 1)


def off_diagonal(covariance: np.ndarray, *, closeness: float = 0.1) -> OffDiagonal:
  """Two numbers for what Figure C.5 of Li et al. (2024) shows by eye.

  They set Sigma to the identity since most entries off the diagonal look close to 0 (section C.4).
  Most entries may be small and their sum large all the same: so both are given (ours).

  Args:
    covariance: [D, D].
    closeness: what counts as small, in mean variances (the mean of the diagonal); 0.1 is ours.

  Raises:
    ValueError: not a square matrix of at least 2 x 2; no variance at all.
  """
  covariance = np.asarray(covariance, np.float64)
  size = len(covariance)
  if covariance.shape != (size, size) or size < 2:
    raise ValueError(f'a covariance is a square matrix of at least 2 x 2, got {covariance.shape}')
  variance = np.diagonal(covariance)
  if not variance.mean() > 0:
    raise ValueError('all pictures are equal: there is no variance to compare covariances with')
  small = np.abs(covariance) <= closeness * variance.mean()
  squared, diagonal = np.sum(covariance**2), np.sum(variance**2)
  return OffDiagonal(small=float((small.sum() - np.diagonal(small).sum()) / (size * (size - 1))),
                     energy=float(1 - diagonal / squared))
