"""What n is: the pictures without information that a generator's forget side is drawn to."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import types

KINDS = ('normal', 'covariance', 'batch', 'uniform')


class Noise(NamedTuple):
  """A distribution of pictures.

  Attributes:
    constants: `() -> tree`, what the draws read; it is computed once, for `frozen`.
    draw: `(key, constants, retain, forget) -> n`, float32 like the forget role's `image`
      [B, H, W, C]; one fresh picture per row.
  """

  constants: Callable[[], types.PyTree]
  draw: Callable[..., jax.Array]


def get(kind: str, pixels, *, rank: int = 0, wanted_by: str = 'noise') -> Noise:
  """The n of I2I's Algorithm 1, in the units of the data, [0, 1].

  With mu and sigma the mean and deviation that normalise pictures (`x = mu + sigma z`):

  - `'normal'`: `n = mu + sigma z, z ~ N(0, I)` per pixel and channel. Sigma = I in normalised space,
    the paper's default (Appendix C.4). Values outside of [0, 1] are left as they are.
  - `'covariance'`: the data-driven Sigma that the paper leaves to future work (Appendix C.4), by the
    unbiased sample covariance S of the N forget pictures, around their mean m. Exact (`rank=0`):
    `n = m + X^T z / sqrt(N - 1), z ~ N(0, I_N)`, with X the centred pictures [N, D]; this has
    covariance S, and D x D numbers are never formed. Low rank (`rank=r`): `n = m + V s z +
    sqrt(d) e`, with V s the r leading singular vectors of X / sqrt(N - 1) times their singular values
    and d the variance that they leave out, a number per pixel and channel (a diagonal remainder), so
    that every pixel keeps its variance. Ours: m for the paper's mean of 0, which is that of all data.
  - `'batch'`: `n = m + s z` with the mean m and the unbiased deviation s of all numbers of the batch,
    retained and forgotten, clamped to [0, 1]: the released code's for VQ-GAN.
  - `'uniform'`: `n = mu + sigma u, u ~ U[-1, 1]`, the alternative of Figure E.20.

  Args:
    kind: one of `KINDS`.
    pixels: has `mean` [C], `std` [C] and `images`, a function that gives the forget pictures float32
      [N, H, W, C] in [0, 1]; None where `kind` is `'batch'`.
    rank: of `'covariance'`: 0 is exact, else 1 to N - 1.
    wanted_by: the method, for messages.

  Raises:
    ValueError: an unknown kind; no `pixels`; a rank of another kind, or (from `constants`) one that
      the pictures cannot have; fewer than two pictures; (from `draw`) pictures of another shape.
  """
  if kind not in KINDS:
    raise ValueError(f'{wanted_by}: noise is one of {", ".join(KINDS)}, got {kind!r}')
  if rank < 0 or (rank and kind != 'covariance'):
    raise ValueError(f"{wanted_by}: rank is at least 0, and of noise='covariance' only; got rank "
                     f'{rank} with {kind!r}')
  if kind == 'batch':
    return Noise(dict, _batch)
  if pixels is None:
    raise ValueError(f'{wanted_by}: noise {kind!r} reads the statistics of pixels; give `pixels`, or '
                     "choose noise='batch'")
  if kind == 'covariance':
    return Noise(lambda: _factors(np.asarray(pixels.images()), rank, wanted_by), _covariance)
  sample = {'normal': jax.random.normal,
            'uniform': lambda key, shape: jax.random.uniform(key, shape, minval=-1.0)}[kind]

  def draw(key, constants, retain, forget):
    del retain
    return constants['mean'] + constants['std'] * sample(key, forget['image'].shape)

  return Noise(lambda: {'mean': jnp.asarray(pixels.mean, jnp.float32),
                        'std': jnp.asarray(pixels.std, jnp.float32)}, draw)


def moments(arrays, masks) -> tuple[jax.Array, jax.Array]:
  """Mean and unbiased deviation of all numbers in the rows of `arrays` [B_i, ...] that count."""
  rows = [mask.astype(bool).reshape((-1,) + (1,) * (x.ndim - 1)) for x, mask in zip(arrays, masks)]
  count = sum(jnp.sum(row, dtype=jnp.float32) * (x.size / len(x)) for x, row in zip(arrays, rows))
  mean = sum(jnp.sum(jnp.where(row, x, 0.0)) for x, row in zip(arrays, rows)) / jnp.maximum(count, 1)
  square = sum(jnp.sum(jnp.where(row, x - mean, 0.0)**2) for x, row in zip(arrays, rows))
  return mean, jnp.sqrt(square / jnp.maximum(count - 1, 1))


def _batch(key, constants, retain, forget):
  del constants
  roles = (retain, forget)
  mean, std = moments([role['image'] for role in roles], [role['mask'] for role in roles])
  return jnp.clip(mean + std * jax.random.normal(key, forget['image'].shape), 0.0, 1.0)


def _factors(images: np.ndarray, rank: int, wanted_by: str) -> dict[str, jax.Array]:
  """The mean, the rows [R, D] whose Gram matrix is the covariance, and what they leave out."""
  if images.ndim != 4 or len(images) < 2:
    raise ValueError(f'{wanted_by}: a covariance needs two pictures at least, as [N, H, W, C]; got '
                     f'{images.shape}')
  count = len(images)
  if rank >= count:
    raise ValueError(f'{wanted_by}: {count} pictures have a covariance of rank {count - 1} at most, '
                     f'rank is {rank}; 0 gives the exact one')
  flat = images.reshape(count, -1).astype(np.float64)
  rows = (flat - flat.mean(axis=0)) / np.sqrt(count - 1)
  left = {}
  if rank:
    variance = np.sum(rows**2, axis=0)
    _, vectors = np.linalg.eigh(rows @ rows.T)  # N x N; ascending
    rows = vectors[:, -rank:].T @ rows
    # A difference of equal numbers may round below 0.
    left['rest'] = jnp.asarray(
        np.sqrt(np.maximum(variance - np.sum(rows**2, axis=0), 0.0)), jnp.float32)
  return {'mean': jnp.asarray(images.mean(axis=0, dtype=np.float64), jnp.float32),
          'rows': jnp.asarray(rows, jnp.float32), **left}


def _covariance(key, constants, retain, forget):
  del retain
  shape = forget['image'].shape
  if shape[1:] != constants['mean'].shape:
    raise ValueError(f'noise of pictures {constants["mean"].shape} for a batch of {shape[1:]}')
  spread_key, rest_key = jax.random.split(key)
  spread = jax.random.normal(spread_key, (shape[0], len(constants['rows']))) @ constants['rows']
  if 'rest' in constants:
    spread += constants['rest'] * jax.random.normal(rest_key, spread.shape)
  return constants['mean'] + spread.reshape(shape)
