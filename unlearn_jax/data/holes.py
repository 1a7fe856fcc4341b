"""What is taken out of a picture: T(x) of image-to-image models, on a grid of patches.

A hole is written as a name and an amount: `centre:8`, `right:0.5`, `outpaint:1/2`, `random:0.75`.
"""

from collections.abc import Sequence
import fractions

import numpy as np

from unlearn_jax.data import _checks
from unlearn_jax.data import _random

STRIPS = ('left', 'right', 'up', 'down')
# name -> what its amount is
NAMES = {'centre': 'side of the square in patches, as in centre:8',
         **{name: f'ratio of the side, as in {name}:0.5' for name in STRIPS},
         'outpaint': 'ratio of the side, as in outpaint:0.5',
         'random': 'ratio of the patches, as in random:0.75'}
_EXACT = 1e-6  # of a patch: ratios are written with a few digits


def hole(spec: str, grid: tuple[int, int]) -> np.ndarray:
  """The patches that are taken out, the same for every picture.

  `centre:S` is a square of S x S patches in the middle (inpainting; Li et al. 2024, Tables 1 and 2:
  `centre:8` and `centre:4`); where the rest is odd, one patch more of it lies right and below.
  `left:R`, `right:R`, `up:R` and `down:R` are a strip of ratio R at that side (extension, Figures
  E.13 to E.16), `outpaint:R` four strips of R/2 along the border (Figure E.17). Ratios may be
  written as fractions: `right:3/14`.

  Args:
    spec: the hole.
    grid: rows and columns of patches.

  Returns:
    bool [rows, columns], True where a patch is taken out.

  Raises:
    ValueError: unknown name ("did you mean"); an amount that is no number, out of range, larger
      than the grid, or not a whole number of patches; a hole that leaves nothing, or everything;
      `random`, which is drawn for every picture.
  """
  name, amount = _parse(spec)
  rows, columns = _grid(grid)
  removed = np.zeros((rows, columns), bool)
  if name == 'random':
    raise ValueError(f'{spec!r} is another hole for every picture; see holes.draw')
  if name == 'centre':
    size = int(amount)
    if size > min(rows, columns) or size == rows == columns:
      raise ValueError(f'hole {spec!r} leaves nothing to see of a grid of {rows} x {columns} patches')
    top, left = (rows - size) // 2, (columns - size) // 2
    removed[top:top + size, left:left + size] = True
  elif name == 'outpaint':
    tall, wide = (_whole(amount / 2, side, spec) for side in (rows, columns))
    removed[:] = True
    removed[tall:rows - tall, wide:columns - wide] = False
  elif name in ('left', 'right'):
    wide = _whole(amount, columns, spec)
    removed[:, slice(wide) if name == 'left' else slice(columns - wide, None)] = True
  else:
    tall = _whole(amount, rows, spec)
    removed[slice(tall) if name == 'up' else slice(rows - tall, None)] = True
  return removed


def visible(removed: np.ndarray) -> np.ndarray:
  """Row-major indices of the patches that are left, ascending: int32 [K]."""
  return np.flatnonzero(~np.asarray(removed, bool)).astype(np.int32)


def draw(spec: str, grid: tuple[int, int], *, seed: int, ids: Sequence[int] | np.ndarray, step: int
         ) -> np.ndarray:
  """The patches that the encoder is shown of a batch of pictures.

  `random:R` keeps int(L (1 - R)) of the L patches of each picture, rounded as the code of MAE (He
  et al. 2022) rounds it: a uniform subset, a function of (seed, id, step) whoever shares the batch.
  Other holes are the same for all pictures.

  Args:
    spec: see `hole`, or `random:R`.
    grid: rows and columns of patches.
    seed: of the draw.
    ids: records, [B].
    step: of training; another one draws another subset.

  Returns:
    int32 [B, K], row-major indices, ascending (MAE shows its encoder the same set in a random
    order; attention does not care).

  Raises:
    ValueError: see `hole`.
  """
  ids = np.asarray(ids, np.int64)
  name, amount = _parse(spec)
  if name != 'random':
    return np.tile(visible(hole(spec, grid)), (len(ids), 1))
  rows, columns = _grid(grid)
  count = rows * columns
  kept = int(count * (1 - float(amount)))
  if not 0 < kept < count:
    raise ValueError(f'hole {spec!r} leaves {kept} of the {count} patches to see: it must take some '
                     'and leave some')
  noise = _random.bits(seed, 'hole', step, ids[:, None], np.arange(count))
  return np.sort(np.argsort(noise, axis=1, kind='stable')[:, :kept], axis=1).astype(np.int32)


def pixels(removed: np.ndarray, patch: int) -> np.ndarray:
  """A hole in pixels: bool [rows patch, columns patch]."""
  return np.asarray(removed, bool).repeat(patch, axis=0).repeat(patch, axis=1)


def check(spec: str, size: tuple[int, int], patch: int) -> tuple[int, int]:
  """The grid of a picture, where the hole fits on it.

  Args:
    spec: see `draw`.
    size: height and width in pixels.
    patch: side of a patch in pixels.

  Returns:
    Rows and columns of patches.

  Raises:
    ValueError: patches that do not divide the picture; see `hole`.
  """
  if patch < 1 or size[0] % patch or size[1] % patch:
    raise ValueError(f'patches of {patch} pixels do not divide pictures of {size[0]} x {size[1]}')
  grid = size[0] // patch, size[1] // patch
  draw(spec, grid, seed=0, ids=[0], step=0)
  return grid


def _parse(spec: str) -> tuple[str, fractions.Fraction]:
  name, _, given = str(spec).partition(':')
  if name not in NAMES:
    raise _checks.unknown('hole', name, NAMES)
  try:
    amount = fractions.Fraction(given)
  except (ValueError, ZeroDivisionError):
    raise ValueError(f'hole {name!r} needs a number, the {NAMES[name]}; got {spec!r}') from None
  if name == 'centre':
    if amount.denominator != 1 or amount < 1:
      raise ValueError(f'hole {name!r} needs a whole number of at least 1, the {NAMES[name]}; got '
                       f'{spec!r}')
  elif not 0 < amount < 1:
    raise ValueError(f'hole {name!r} needs a number in (0, 1), the {NAMES[name]}; got {spec!r}')
  return name, amount


def _grid(grid: tuple[int, int]) -> tuple[int, int]:
  rows, columns = grid
  if rows < 1 or columns < 1:
    raise ValueError(f'a grid has at least one row and one column of patches, got {rows} x {columns}')
  return int(rows), int(columns)


def _whole(ratio: fractions.Fraction, side: int, spec: str) -> int:
  """So many patches of a side; a strip of half a patch would be another ratio than was asked for."""
  exact = ratio * side
  count = round(exact)
  if abs(exact - count) > _EXACT or not 0 < count < side:
    raise ValueError(f'hole {spec!r} is a strip of {float(exact):g} of {side} patches; a strip is a '
                     f'whole number of patches, 1 to {side - 1} (ratios may be fractions, such as '
                     f'1/{side})')
  return count
