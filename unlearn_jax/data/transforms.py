"""Augmentations of picture batches, keyed by (seed, record, epoch).

What happens to a record in an epoch depends on nothing else: not on its batch, the order, or the
number of devices. Random numbers are hashes of the key (see `_random`), computed for a whole batch
at once, and whatever moves pixels is one gather.
"""

from collections.abc import Callable, Sequence

import numpy as np

from unlearn_jax.data import _checks
from unlearn_jax.data import _random

_LUMA = np.asarray((0.2989, 0.587, 0.114), np.float32)  # torchvision's rgb_to_grayscale

# (images [B, H, W, C], seed, index [B], epoch) -> images of the same shape and dtype
Transform = Callable[[np.ndarray, int, np.ndarray, int], np.ndarray]


def shift(pixels: int) -> Transform:
  """Moves a picture by up to `pixels` along both axes, uniformly; what enters is 0."""

  def transform(images, seed, index, epoch):
    rows, columns = _moved(images, pixels, 'shift', seed, index, epoch)
    height, width = images.shape[1:3]
    inside = _inside(rows, height)[:, :, None] & _inside(columns, width)[:, None]  # [B, H, W]
    moved = _gather(images, np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1))
    return np.where(inside[..., None], moved, np.zeros((), images.dtype))

  return transform


def crop(pixels: int) -> Transform:
  """Pads by `pixels`, mirroring at the border, and crops back to size at a random place."""

  def transform(images, seed, index, epoch):
    height, width = images.shape[1:3]
    if pixels >= min(height, width):
      raise ValueError(f'crop:{pixels} needs pictures larger than its padding, got '
                       f'{height}x{width}')
    rows, columns = _moved(images, pixels, 'crop', seed, index, epoch)
    mirror = lambda places, size: (size - 1) - np.abs((size - 1) - np.abs(places))
    return _gather(images, mirror(rows, height), mirror(columns, width))

  return transform


def flip() -> Transform:
  """Mirrors left and right with probability 1/2."""

  def transform(images, seed, index, epoch):
    mirrored = _random.below(2, seed, 'flip', epoch, index).astype(bool)
    return np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)

  return transform


def affine(rotation: float, shear: float, low: float, high: float) -> Transform:
  """Rotates, scales and shears about the picture's centre, with bilinear interpolation.

  A place q of the result shows the place A^-1 q of the source, both measured from the centre, with
  A = R(a) s H(b), R(a) = [[cos a, -sin a], [sin a, cos a]], H(b) = [[1, -tan b], [0, 1]] acting on
  (x, y), as in torchvision's `RandomAffine(rotation, scale=(low, high), shear=shear)`, whose
  defaults shear along x alone and fill with 0 what enters. Torchvision interpolates by the nearest
  pixel unless told otherwise; bilinear is ours.

  Args:
    rotation: a is uniform in [-rotation, rotation] degrees.
    shear: b is uniform in [-shear, shear] degrees, below 90.
    low: s is uniform in [low, high]; above 1 enlarges.
    high: at least `low`.
  """
  if not (0 <= rotation < np.inf and 0 <= shear < 90 and 0 < low <= high < np.inf):
    raise ValueError('affine needs a rotation of at least 0 degrees, a shear in [0, 90) degrees '
                     f'and scales 0 < low <= high; got {rotation:g},{shear:g},{low:g},{high:g}')

  def transform(images, seed, index, epoch):
    ranges = {'rotation': (-rotation, rotation), 'shear': (-shear, shear), 'scale': (low, high)}
    angle, slant, scale = (_uniform(*ends, seed, 'affine', name, epoch, index)[:, None, None]
                           for name, ends in ranges.items())
    angle, slant = np.deg2rad(angle), np.tan(np.deg2rad(slant))
    height, width = images.shape[1:3]
    y = (np.arange(height) - (height - 1) / 2)[None, :, None]
    x = (np.arange(width) - (width - 1) / 2)[None, None, :]
    source_y = (np.cos(angle) * y - np.sin(angle) * x) / scale
    source_x = (np.cos(angle) * x + np.sin(angle) * y) / scale + slant * source_y
    return _bilinear(images, source_y + (height - 1) / 2, source_x + (width - 1) / 2)

  return transform


def color(strength: float) -> Transform:
  """Jitters brightness, contrast and saturation of pictures in [0, 1].

  As torchvision's `ColorJitter(strength, strength, strength)`: f is drawn uniformly from
  [max(0, 1 - strength), 1 + strength] for each of the three, and the picture becomes f x (black),
  then f x + (1 - f) mean(gray(x)), then f x + (1 - f) gray(x), clipped to [0, 1] after each.
  Torchvision draws the order of the three as well; here it is fixed (ours). Pictures of one
  channel have no saturation.
  """
  if not 0 <= strength < np.inf:
    raise ValueError(f'color needs a strength of at least 0, got {strength:g}')

  def transform(images, seed, index, epoch):
    if images.shape[3] not in (1, 3):
      raise ValueError(f'color needs pictures of 1 or 3 channels, got {images.shape[3]}')
    for name in ('brightness', 'contrast', 'saturation'):
      factor = _uniform(max(0.0, 1 - strength), 1 + strength, seed, 'color', name, epoch, index)
      factor = factor.astype(images.dtype)[:, None, None, None]
      other = images @ _LUMA[:, None] if images.shape[3] == 3 else images  # gray: [B, H, W, 1]
      if name == 'brightness':
        other = np.zeros((), images.dtype)
      elif name == 'contrast':
        other = other.mean(axis=(1, 2, 3), keepdims=True)
      images = np.clip(factor * images + (1 - factor) * other, 0, 1)
    return images

  return transform


def random_resized_crop(low: float, high: float) -> Transform:
  """Cuts out a random part and brings it back to full size, with bilinear interpolation.

  As torchvision's `RandomResizedCrop(size, scale=(low, high))` of a picture that has the size
  already: the part's share a of the area is uniform in [low, high], the logarithm of its ratio r
  of width to height in [log 3/4, log 4/3]; it is round(sqrt(a H W r)) wide, round(sqrt(a H W / r))
  high, and lies anywhere. If ten draws do not fit into the picture, it is the largest central part
  with such a ratio. NCU cuts out of the picture as published and resizes to 224 pixels, scales 0.5
  to 1; here the picture has been brought to a square before (ours).

  Args:
    low: smallest share of the area, above 0.
    high: largest share, at most 1.
  """
  if not 0 < low <= high <= 1:
    raise ValueError('random_resized_crop needs shares of the area 0 < low <= high <= 1, got '
                     f'{low:g},{high:g}')

  def transform(images, seed, index, epoch):
    height, width = images.shape[1:3]
    keys = [(seed, 'random_resized_crop', name, epoch, np.asarray(index)[:, None], np.arange(10))
            for name in ('area', 'ratio', 'place')]
    area = _uniform(low, high, *keys[0]) * (height * width)  # [B, 10]
    ratio = np.exp(_uniform(-np.log(4 / 3), np.log(4 / 3), *keys[1]))
    sides = np.rint(np.sqrt([area / ratio, area * ratio])).astype(int)  # [2, B, 10]
    fits = ((0 < sides) & (sides <= np.asarray((height, width))[:, None, None])).all(axis=0)
    first = fits.argmax(axis=1)  # 0 if none fits
    sides = np.where(fits.any(axis=1), sides[:, np.arange(len(images)), first],
                     np.rint([[min(height, width * 4 / 3)], [min(width, height * 4 / 3)]]))
    space = np.asarray((height, width))[:, None] - sides  # [2, B]
    part = _uniform(0, 1, *keys[2])[:, :2].T
    start = np.where(fits.any(axis=1), np.floor(part * (space + 1)), space // 2)
    rows, columns = (
        np.clip((np.arange(size) + 0.5) * side[:, None] / size - 0.5, 0, side[:, None] - 1)
        + begin[:, None] for size, side, begin in zip((height, width), sides, start))
    return _interpolate(_interpolate(images, rows, axis=1), columns, axis=2)

  return transform


# name -> factory, type of its arguments, an example
_FACTORIES = {'affine': (affine, float, '10,10,0.8,1.2'), 'color': (color, float, '0.2'),
              'crop': (crop, int, '2'), 'flip': (flip, int, ''),
              'random_resized_crop': (random_resized_crop, float, '0.5,1'),
              'shift': (shift, int, '2')}


def parse(names: Sequence[str]) -> Transform:
  """One transform out of names such as `('shift:2', 'flip')`, applied in order.

  Args:
    names: `shift:PIXELS`, `crop:PIXELS`, `flip`, `affine:ROTATION,SHEAR,LOW,HIGH` (degrees and
      scales), `color:STRENGTH`, `random_resized_crop:LOW,HIGH` (shares of the area); empty leaves
      pictures alone.

  Raises:
    ValueError: unknown name ("did you mean"); missing, superfluous or impossible arguments.
  """
  if isinstance(names, str):
    raise ValueError(f'a sequence of transforms is expected, got the string {names!r}; write '
                     f'({names!r},)')
  transforms = [_parse_one(name) for name in names]

  def transform(images, seed, index, epoch):
    for step in transforms:
      images = step(images, seed, index, epoch)
    return images

  return transform


def _parse_one(text: str) -> Transform:
  name, _, given = text.partition(':')
  if name not in _FACTORIES:
    raise _checks.unknown('transform', name, _FACTORIES)
  factory, kind, example = _FACTORIES[name]
  if not example:
    if given:
      raise ValueError(f'transform {name!r} takes no argument, got {text!r}')
    return factory()
  try:
    arguments = [kind(word) for word in given.split(',')]
    whole = len(arguments) == len(example.split(','))
  except ValueError:
    whole = False
  if not whole or (kind is int and arguments[0] < 1):
    count = len(example.split(','))
    wanted = ('a positive number of pixels' if kind is int else
              'a number' if count == 1 else f'{count} numbers')
    raise ValueError(f"transform {name!r} needs {wanted}, as in '{name}:{example}'; got {text!r}")
  return factory(*arguments)


def _uniform(low: float, high: float, *words) -> np.ndarray:
  """Uniform in [low, high): 53 random bits each, float64."""
  return low + (high - low) * ((_random.bits(*words) >> np.uint64(11)) * 2.0**-53)


def _moved(images, pixels, name, seed, index, epoch):
  """Row [B, H] and column [B, W] of the source for every place of the result."""
  axes = [_random.below(2 * pixels + 1, seed, name, axis, epoch, index) - pixels
          for axis in range(2)]
  return [np.arange(size)[None] - offset[:, None] for size, offset in zip(images.shape[1:3], axes)]


def _inside(places, size):
  return (places >= 0) & (places < size)


def _gather(images, rows, columns):
  return images[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None]]


def _interpolate(images, places, axis):
  """Linear interpolation along axis 1 or 2 at places [B, n] inside the picture."""
  count, height = images.shape[:2]
  low = np.floor(places).astype(int)
  record = np.arange(count).reshape(-1, *[1] * axis)
  def take(line):
    line = np.minimum(line, images.shape[axis] - 1)
    return images[record, line] if axis == 1 else images[
        record, np.arange(height)[:, None], line[:, None]]
  near, part = take(low), np.expand_dims((places - low).astype(images.dtype), (3 - axis, 3))
  return near + part * (take(low + 1) - near)


def _bilinear(images, y, x):
  """Pictures at fractional places [B, H, W], 0 outside: four neighbours each, in one gather."""
  count, height, width = images.shape[:3]
  padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))  # whatever lies outside is border
  squares = np.lib.stride_tricks.sliding_window_view(padded, (2, 2), axis=(1, 2))  # a view
  y, x = np.clip(y + 1, 0, height + 1), np.clip(x + 1, 0, width + 1)
  top, left = np.minimum(y.astype(int), height), np.minimum(x.astype(int), width)
  near = squares[np.arange(count)[:, None, None], top, left]  # [B, H, W, C, 2, 2]
  y, x = ((place - first).astype(images.dtype)[..., None] for place, first in ((y, top), (x, left)))
  rows = near[..., 0] + x[..., None] * (near[..., 1] - near[..., 0])  # [B, H, W, C, 2]
  return rows[..., 0] + y * (rows[..., 1] - rows[..., 0])
