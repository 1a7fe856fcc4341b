"""Augmentations of picture batches, keyed by (seed, record, epoch).

What happens to a record in an epoch depends on nothing else: not on its batch, the order, or the
number of devices. Random numbers are hashes of the key (see `_random`), computed for a whole batch
at once, and each transform is one gather.
"""

from collections.abc import Callable, Sequence

import numpy as np

from unlearn_jax.data import _checks
from unlearn_jax.data import _random

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


_FACTORIES = {'crop': crop, 'flip': flip, 'shift': shift}
_SIZED = ('crop', 'shift')


def parse(names: Sequence[str]) -> Transform:
  """One transform out of names such as `('shift:2', 'flip')`, applied in order.

  Args:
    names: `shift:PIXELS`, `crop:PIXELS`, `flip`; empty leaves pictures alone.

  Raises:
    ValueError: unknown name ("did you mean"), missing or superfluous pixels.
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
  name, _, argument = text.partition(':')
  if name not in _FACTORIES:
    raise _checks.unknown('transform', name, _FACTORIES)
  if name not in _SIZED:
    if argument:
      raise ValueError(f'transform {name!r} takes no argument, got {text!r}')
    return _FACTORIES[name]()
  if not argument.isdecimal() or int(argument) < 1:
    raise ValueError(f"transform {name!r} needs a positive number of pixels, as in '{name}:2'; "
                     f'got {text!r}')
  return _FACTORIES[name](int(argument))


def _moved(images, pixels, name, seed, index, epoch):
  """Row [B, H] and column [B, W] of the source for every place of the result."""
  axes = [_random.below(2 * pixels + 1, seed, name, axis, epoch, index) - pixels
          for axis in range(2)]
  return [np.arange(size)[None] - offset[:, None] for size, offset in zip(images.shape[1:3], axes)]


def _inside(places, size):
  return (places >= 0) & (places < size)


def _gather(images, rows, columns):
  return images[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None]]
