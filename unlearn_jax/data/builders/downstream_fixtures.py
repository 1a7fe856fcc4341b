"""Small generated files in the published layouts of FGVC-Aircraft, GTSRB and Rendered SST2.

For tests. A picture shows the pattern of its class under noise, so that a probe finds something.
"""

import pathlib

import numpy as np
from PIL import Image

from unlearn_jax.data import _random
from unlearn_jax.data.builders import downstream

AIRCRAFT = ('707-320', 'BAE 146-200', 'F-16A/B')  # names with a space and a slash, as published
TRACKS, FRAMES = 3, 2  # of every traffic sign


def write(name: str, directory: str, *, per_class: int = 4) -> None:
  """Writes the published files of a set.

  Args:
    name: aircraft, gtsrb or sst2.
    directory: what `downstream.get` takes as data_dir.
    per_class: pictures of a class in each split; GTSRB's training data have `TRACKS` of `FRAMES`.

  Raises:
    ValueError: another set.
  """
  writers = {'aircraft': _aircraft, 'gtsrb': _gtsrb, 'sst2': _sst2}
  if name not in writers:
    raise ValueError(f'fixtures are written for {", ".join(writers)}, not for {name!r}')
  writers[name](pathlib.Path(directory), per_class)


def picture(label: int, *words: object) -> Image.Image:
  """12x10 pixels: a colour pattern of the class, with noise drawn from the words."""
  pixel = np.arange(10 * 12 * 3).reshape(10, 12, 3)
  pattern = _random.below(192, 'pattern', label, pixel // 36)
  return Image.fromarray((pattern + _random.below(64, 'noise', *words, pixel)).astype(np.uint8))


def _save(image: Image.Image, path: pathlib.Path) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  image.save(path)


def _aircraft(directory: pathlib.Path, per_class: int) -> None:
  root = directory / 'fgvc-aircraft-2013b' / 'data'
  root.mkdir(parents=True, exist_ok=True)
  (root / 'variants.txt').write_text('\n'.join(AIRCRAFT) + '\n')
  for part, split in enumerate(('train', 'val', 'test')):
    lines = []
    for number in range(per_class * len(AIRCRAFT)):
      label, name = number % len(AIRCRAFT), f'{part}{number:06d}'
      _save(picture(label, split, number), root / 'images' / f'{name}.jpg')
      lines.append(f'{name} {AIRCRAFT[label]}\n')
    (root / f'images_variant_{split}.txt').write_text(''.join(lines))


def _gtsrb(directory: pathlib.Path, per_class: int) -> None:
  root = directory / 'GTSRB'
  classes = range(len(downstream.class_names('gtsrb')))
  for label in classes:
    folder = root / 'Final_Training' / 'Images' / f'{label:05d}'
    names = [f'{track:05d}_{frame:05d}.ppm' for track in range(TRACKS) for frame in range(FRAMES)]
    for name in names:
      _save(picture(label, name), folder / name)
    _gtsrb_table(folder / f'GT-{label:05d}.csv', [(name, label) for name in names])
  test = [(f'{number:05d}.ppm', number % len(classes))
          for number in range(per_class * len(classes))]
  for name, label in test:
    _save(picture(label, 'test', name), root / 'Final_Test' / 'Images' / name)
  _gtsrb_table(root / 'GT-final_test.csv', test)


def _gtsrb_table(path: pathlib.Path, rows) -> None:
  head = 'Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId'
  lines = [f'{name};12;10;1;1;11;9;{label}' for name, label in rows]
  path.write_text('\r\n'.join((head, *lines)) + '\r\n')


def _sst2(directory: pathlib.Path, per_class: int) -> None:
  for split in ('train', 'valid', 'test'):
    for label, name in enumerate(downstream.class_names('sst2')):
      for number in range(per_class):
        _save(picture(label, split, number),
              directory / 'rendered-sst2' / split / name / f'{number}.png')
