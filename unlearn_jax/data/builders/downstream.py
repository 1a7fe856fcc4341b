"""The picture sets on which CLIP's zero-shot accuracy and linear probes are measured.

Sixteen sets of Radford et al. (2021), those of NCU's Table 1, each with the splits, metric, class
names and prompts of an evaluation. Thirteen are read as TFDS prepared them (array_record, so that
TensorFlow is not needed here); FGVC-Aircraft, GTSRB and Rendered SST2 from their published files.
"""

from collections.abc import Callable, Mapping
import csv
import functools
import hashlib
import json
import os
import pathlib
from typing import NamedTuple

import numpy as np

from unlearn_jax.data import _checks
from unlearn_jax.data import fields
from unlearn_jax.data import sources

SPLITS = ('train', 'validation', 'test')
IMAGE_SIZE = 224


class Set(NamedTuple):
  """How a set is evaluated.

  Attributes:
    title: as papers write it.
    splits: split -> what to read: a split of TFDS, or what the set's own reader calls it.
    attribution: who made the data, and the terms they name.
    tfds: name in TFDS; '' for a set with a reader here.
    per_class: whether CLIP's paper reports the mean of the classes' accuracies, not top-1.
    manual: whether TFDS cannot download the files itself.
  """

  title: str
  splits: Mapping[str, str]
  attribution: str
  tfds: str = ''
  per_class: bool = False
  manual: bool = False

  @property
  def metric(self) -> str:
    return 'mean_per_class' if self.per_class else 'top1'


def _splits(train: str, validation: str, test: str) -> Mapping[str, str]:
  return dict(zip(SPLITS, (train, validation, test)))


# A set without validation data gives a tenth of its training data (ours; TFDS shuffles once, when
# it prepares a set), ImageNet a hundredth. RESISC45 and EuroSAT are published without splits: the
# first has CLIP's sizes (3,150 train, 25,200 test), the second 60, 20 and 20 % (ours; CLIP's 10,000
# and 5,000 are not published). SUN397 is its authors' first partition (19,850 and 19,850).
_TENTH = 'train[:90%]', 'train[90%:]'
SETS = {
    'imagenet': Set('ImageNet1K', _splits('train[:99%]', 'train[99%:]', 'validation'),
                    'ImageNet ILSVRC 2012, O. Russakovsky et al. (non-commercial research)',
                    'imagenet2012', manual=True),
    'caltech101': Set('Caltech101', _splits(*_TENTH, 'test'),
                      'Caltech 101, L. Fei-Fei, R. Fergus and P. Perona', 'caltech101',
                      per_class=True),
    'cifar10': Set('CIFAR-10', _splits(*_TENTH, 'test'), 'CIFAR-10, A. Krizhevsky', 'cifar10'),
    'cifar100': Set('CIFAR-100', _splits(*_TENTH, 'test'), 'CIFAR-100, A. Krizhevsky', 'cifar100'),
    'dtd': Set('DTD', _splits('train', 'validation', 'test'),
               'Describable Textures, M. Cimpoi et al., first partition (research only)', 'dtd'),
    'aircraft': Set('Aircraft', _splits('train', 'val', 'test'),
                    'FGVC-Aircraft, S. Maji et al. (non-commercial research)', per_class=True),
    'sst2': Set('SST2', _splits('train', 'valid', 'test'),
                'Rendered SST2, A. Radford et al., after R. Socher et al.'),
    'flowers102': Set('Flowers102', _splits('train', 'validation', 'test'),
                      '102 Category Flowers, M.-E. Nilsback and A. Zisserman', 'oxford_flowers102',
                      per_class=True),
    'food101': Set('Food101', _splits(*_TENTH, 'validation'),
                   'Food-101, L. Bossard, M. Guillaumin and L. Van Gool', 'food101'),
    'gtsrb': Set('GTSRB', _splits('train', 'validation', 'test'),
                 'German Traffic Sign Recognition Benchmark, J. Stallkamp et al.'),
    'oxford_pets': Set('OxfordPets', _splits(*_TENTH, 'test'),
                       'Oxford-IIIT Pet, O. Parkhi et al. (CC BY-SA 4.0)', 'oxford_iiit_pet',
                       per_class=True),
    'resisc45': Set('RESISC45', _splits('train[:10%]', 'train[10%:20%]', 'train[20%:]'),
                    'NWPU-RESISC45, G. Cheng, J. Han and X. Lu', 'resisc45', manual=True),
    'sun397': Set('SUN397', _splits(*_TENTH, 'test'), 'SUN397, J. Xiao et al.',
                  'sun397/standard-part1-120k'),
    'eurosat': Set('EuroSAT', _splits('train[:60%]', 'train[60%:80%]', 'train[80%:]'),
                   'EuroSAT, P. Helber et al.', 'eurosat/rgb'),
    'stanford_cars': Set('StanfordCars', _splits(*_TENTH, 'test'),
                         'Stanford Cars, J. Krause et al. (non-commercial research)', 'cars196'),
    'stl10': Set('STL10', _splits(*_TENTH, 'test'), 'STL-10, A. Coates, H. Lee and A. Ng', 'stl10'),
}


class _Records(NamedTuple):
  """Encoded pictures: row -> bytes, what a row is called, its class, and who it belongs to."""

  read: Callable[[int], bytes]
  names: list[str]
  labels: list[int]
  identity: list[str]
  class_names: tuple[str, ...]


def get(name: str, data_dir: str, *, split: str = 'test', image_size: int = IMAGE_SIZE
        ) -> sources.Source:
  """Loads one split of a set; the pictures are decoded when they are read.

  Pictures go through CLIP's evaluation transform (`fields.square`). Class names are those that
  CLIP's authors publish (`data/prompts.md`, and their notebook for ImageNet) in the order of the
  labels, but for the two pairs of ImageNet classes to which they give one name: class 744 is
  "projectile" and 836 "sunglass" here (ours). Aircraft's are its `variants.txt`.

  Args:
    name: one of `SETS`.
    data_dir: holds what TFDS prepared, and the published files of the three other sets as their
      archives unpack: `fgvc-aircraft-2013b/`, `GTSRB/`, `rendered-sst2/`.
    split: train, validation or test.
    image_size: side of the pictures.

  Returns:
    `image`, `label` and `class_names`. Everybody is an identity of their own, but for GTSRB, where
    the photographs of one physical sign are.

  Raises:
    ValueError: unknown set or split; files that are damaged or of another layout.
    FileNotFoundError: data that is not there: how to prepare it, or which file is missing.
  """
  if name not in SETS:
    raise _checks.unknown('evaluation set', name, SETS)
  if split not in SPLITS:
    raise _checks.unknown('split', split, SPLITS)
  if not isinstance(image_size, (int, np.integer)) or image_size < 1:
    raise ValueError(f'image_size must be a positive integer, got {image_size!r}')
  entry, data_dir = SETS[name], os.path.expanduser(data_dir)
  read = _READERS.get(name, _prepared)
  records = read(name, data_dir, entry.splits[split])
  content = hashlib.sha256('\0'.join((name, split, *records.names)).encode()).digest()
  images = fields.Encoded(records.read, len(records.names), image_size,
                          name=records.names.__getitem__, content=content)
  source = sources.Source(
      f'{name}/{split}', {'image': images, 'label': np.asarray(records.labels, np.int32)},
      np.asarray(records.identity, str), len(records.class_names), entry.attribution + '.',
      class_names=records.class_names)
  source.validate()
  return source


@functools.cache
def class_names(name: str) -> tuple[str, ...]:
  """The names of a set's classes in the order of its labels; not for `aircraft`."""
  path = pathlib.Path(__file__).parent / 'class_names.json'
  return tuple(json.loads(path.read_text('utf-8'))[name])


def command(name: str, data_dir: str) -> str:
  """The command that prepares a set of TFDS (where TensorFlow is installed too)."""
  manual = ' --manual_dir=ARCHIVES' if SETS[name].manual else ''
  return (f'tfds build {SETS[name].tfds} --data_dir={data_dir or "DIR"} '
          f'--file_format=array_record{manual}')


def _prepared(name: str, data_dir: str, split: str) -> _Records:
  """What TFDS prepared; the highest version that is there."""
  import tensorflow_datasets as tfds
  entry = SETS[name]
  try:
    builder = tfds.core.read_only_builder.builder_from_files(entry.tfds, data_dir=data_dir or None)
  except tfds.core.DatasetNotFoundError as error:
    raise FileNotFoundError(f'{entry.title}: {data_dir or "data_dir (not set)"} has no '
                            f'{entry.tfds}; prepare it: {command(name, data_dir)}') from error
  if builder.info.file_format != tfds.core.file_adapters.FileFormat.ARRAY_RECORD:
    raise FileNotFoundError(
        f'{entry.title}: {builder.data_dir} is in the format {builder.info.file_format.value}, '
        f'which has no random access; prepare it again: {command(name, data_dir)}')
  names = class_names(name)
  if (found := builder.info.features['label'].num_classes) != len(names):
    raise ValueError(f'{builder.data_dir} has {found} classes, {entry.title} has {len(names)}')
  if (stem := split.partition('[')[0]) not in builder.info.splits:
    raise ValueError(f'{builder.data_dir} has no split {stem!r}, only '
                     f'{", ".join(builder.info.splits)}')
  data = builder.as_data_source(split=split, decoders={'image': tfds.decode.SkipDecoding()})
  labels = [int(data[row]['label']) for row in range(len(data))]
  rows = [f'{builder.info.full_name}, {split}, row {row}' for row in range(len(data))]
  return _Records(lambda row: data[row]['image'], rows, labels, rows, names)


def _root(title: str, data_dir: str, folder: str, wanted: str) -> str:
  """The directory that has `wanted`: `data_dir` or `folder` in it."""
  places = [os.path.join(data_dir, folder), data_dir] if data_dir else []
  for place in places:
    if os.path.exists(os.path.join(place, wanted)):
      return place
  where = ' and '.join(places) or 'data_dir, which is not set'
  raise FileNotFoundError(f'{title}: {wanted} is missing: looked in {where}; unpack the published '
                          'archive there')


def _files(paths: list[str], labels: list[int], identity: list[str], root: str,
           names: tuple[str, ...]) -> _Records:
  """Pictures that are files below `root`."""
  for path in paths:
    if not os.path.isfile(os.path.join(root, path)):
      raise FileNotFoundError(f'{os.path.join(root, path)} is listed but missing')
  if not paths:
    raise ValueError(f'{root} lists no picture')
  return _Records(lambda row: pathlib.Path(root, paths[row]).read_bytes(), paths, labels, identity,
                  names)


def _aircraft(name: str, data_dir: str, split: str) -> _Records:
  """`variants.txt`, `images_variant_SPLIT.txt` with lines `id variant`, `images/ID.jpg`.

  The strip of 20 pixels that names the photographer stays, as in CLIP's evaluation.
  """
  del name
  root = os.path.join(_root('Aircraft', data_dir, 'fgvc-aircraft-2013b', 'data/variants.txt'),
                      'data')
  names = tuple(pathlib.Path(root, 'variants.txt').read_text('utf-8').splitlines())
  ids, labels = [], []
  for number, line in enumerate(_lines(os.path.join(root, f'images_variant_{split}.txt')), 1):
    picture, _, variant = line.partition(' ')
    if variant not in names:
      raise ValueError(f'{root}/images_variant_{split}.txt:{number}: {line!r} is no picture and '
                       'variant of variants.txt')
    ids.append(picture)
    labels.append(names.index(variant))
  return _files([f'images/{picture}.jpg' for picture in ids], labels, ids, root, names)


def _gtsrb(name: str, data_dir: str, split: str) -> _Records:
  """`Final_Training/Images/CLASS/GT-CLASS.csv`, `Final_Test/Images`, `GT-final_test.csv`.

  A training picture is called TRACK_FRAME.ppm, and a track is one physical sign: validation takes
  whole tracks, the last tenth of every class, one at least (ours).
  """
  root = _root('GTSRB', data_dir, 'GTSRB',
               f'Final_{"Test" if split == "test" else "Training"}/Images')
  if split == 'test':
    places = [root, os.path.join(root, 'Final_Test/Images'), data_dir]
    place = next((place for place in places
                  if os.path.isfile(os.path.join(place, 'GT-final_test.csv'))), None)
    if place is None:
      raise FileNotFoundError('GTSRB: GT-final_test.csv is missing: looked in '
                              f'{", ".join(places)}; it comes in an archive of its own, '
                              'GTSRB_Final_Test_GT.zip')
    rows = [('Final_Test/Images', *row) for row in _table(os.path.join(place, 'GT-final_test.csv'))]
    identity = [picture for _, picture, _ in rows]
  else:
    rows, identity = [], []
    for label in range(len(class_names(name))):
      folder = f'Final_Training/Images/{label:05d}'
      table = list(_table(os.path.join(root, folder, f'GT-{label:05d}.csv')))
      tracks = sorted({picture.partition('_')[0] for picture, _ in table})
      held = set(tracks[-max(len(tracks) // 10, 1):])
      for picture, found in table:
        track = picture.partition('_')[0]
        if (track in held) == (split == 'validation'):
          rows.append((folder, picture, found))
          identity.append(f'{label:05d}/{track}')
  return _files([f'{folder}/{picture}' for folder, picture, _ in rows],
                [label for *_, label in rows], identity, root, class_names(name))


def _table(path: str):
  """(file name, class) of a table of GTSRB."""
  for number, row in enumerate(csv.DictReader(_lines(path), delimiter=';'), 2):
    try:
      yield row['Filename'], int(row['ClassId'])
    except (KeyError, TypeError, ValueError) as error:
      raise ValueError(f'{path}:{number}: no Filename and ClassId ({error!r})') from error


def _sst2(name: str, data_dir: str, split: str) -> _Records:
  """`rendered-sst2/{train,valid,test}/{negative,positive}/NAME.png`."""
  names = class_names(name)
  root = _root('SST2', data_dir, 'rendered-sst2', split)
  paths, labels = [], []
  for label, folder in enumerate(names):
    directory = pathlib.Path(root, split, folder)
    if not directory.is_dir():
      raise FileNotFoundError(f'SST2: {directory} is missing')
    found = sorted(path.name for path in directory.glob('*.png'))
    paths += [f'{split}/{folder}/{picture}' for picture in found]
    labels += [label] * len(found)
  return _files(paths, labels, paths, root, names)


def _lines(path: str) -> list[str]:
  if not os.path.isfile(path):
    raise FileNotFoundError(f'{path} is missing')
  return pathlib.Path(path).read_text('utf-8').splitlines()


_READERS = {'aircraft': _aircraft, 'gtsrb': _gtsrb, 'sst2': _sst2}
