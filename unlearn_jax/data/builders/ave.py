"""AVE, ten-second clips of audio-visual events, as the features that its authors publish.

Audio-Visual Event Localization in Unconstrained Videos (Tian et al., ECCV 2018): VGG-19 features of
pictures, VGGish features of sound, and a label for every second, in HDF5 files. CCU (section 5.1.1)
counts 4,413 clips; the files hold 4,143.
"""

from collections.abc import Iterator, Mapping
import contextlib
import os

from absl import logging
import numpy as np

from unlearn_jax.data import _checks
from unlearn_jax.data import fields
from unlearn_jax.data import sources
from unlearn_jax.data.builders import stored

HOMEPAGE = 'https://github.com/YapengTian/AVE-ECCV18'
ATTRIBUTION = ('AVE, Y. Tian, J. Shi, B. Li, Z. Duan and C. Xu 2018, features as published by the '
               'authors, clips from AudioSet (annotations CC BY 4.0; videos belong to their makers on '
               'YouTube).')
CLASSES = (  # in the order of the published labels; the last is no event
    'Church bell', 'Male speech, man speaking', 'Bark', 'Fixed-wing aircraft, airplane',
    'Race car, auto racing', 'Female speech, woman speaking', 'Helicopter', 'Violin, fiddle',
    'Flute', 'Ukulele', 'Frying (food)', 'Truck', 'Shofar', 'Motorcycle', 'Acoustic guitar',
    'Train horn', 'Clock', 'Banjo', 'Goat', 'Baby cry, infant cry', 'Bus', 'Chainsaw', 'Cat',
    'Horse', 'Toilet flush', 'Rodents, rats, mice', 'Accordion', 'Mandolin', 'background')
SEGMENTS = 10  # of a second each
VISUAL = (SEGMENTS, 7, 7, 512)  # VGG-19's last pooling layer
AUDIO = (SEGMENTS, 128)  # VGGish
SIZES = {'train': 3339, 'val': 402, 'test': 402}  # clips
_VISUAL_FILE, _AUDIO_FILE, _LABEL_FILE = 'visual_feature.h5', 'audio_feature.h5', 'labels.h5'


def source(data_dir: str, cache_dir: str, image_size: int | None, *,
           sizes: Mapping[str, int] = SIZES) -> sources.Source:
  """One record per segment, ten per clip in the order of the files; the identity is the clip.

  The label is that of the record's own segment, so that every loss is one per record. Its features
  are those of its whole clip, which a recurrent model needs: `image` [N, 10, 7, 7, 512] and `audio`
  [N, 10, 128], read from the files when they are asked for (as float32; the published ones take up
  7.7 GB) and shared by the ten records of a clip; `segment` int32 [N] in [0, 10) says which second
  is meant. Features are not in [0, 1]. That a record is a segment is ours: CCU does not say which
  unit its unlearn sets are drawn from.

  `partition` is the authors' `train`, `val` or `test`. The 29 classes are the 28 events and
  `background`, the last.

  Args:
    data_dir: holds `visual_feature.h5`, `audio_feature.h5`, `labels.h5` and
      `{train,val,test}_order.h5`, each with one dataset of any name.
    cache_dir: not needed.
    image_size: None; features have no size to choose.
    sizes: clips per partition; the attribution says where files hold others.

  Raises:
    ImportError: h5py is missing.
    FileNotFoundError: a file is missing: which, and where to get it.
    ValueError: damaged files; features and labels that differ in clips or sizes; labels that are
      not one-hot; clips in two partitions, or in none; an image size.
  """
  del cache_dir
  if image_size is not None:
    raise ValueError(f'data set ave holds features, so image_size must be None, got {image_size}')
  clips, label = _labels(_path(data_dir, _LABEL_FILE))
  visual = _features(_path(data_dir, _VISUAL_FILE), VISUAL, clips)
  audio = _features(_path(data_dir, _AUDIO_FILE), AUDIO, clips)
  partition = _partition({split: _path(data_dir, f'{split}_order.h5') for split in SIZES}, clips)
  attribution = ATTRIBUTION
  found = {split: int((partition == split).sum()) for split in SIZES}
  if found != dict(sizes):
    attribution += f' Not the published set: {found} clips instead of {dict(sizes)}.'
    logging.warning('%s', attribution)
  clip = np.repeat(np.arange(clips), SEGMENTS)
  return sources.Source(
      'ave', {'image': fields.Rows(visual, clip), 'audio': fields.Rows(audio, clip),
              'segment': np.tile(np.arange(SEGMENTS, dtype=np.int32), clips),
              'label': label.reshape(-1), 'partition': partition[clip]},
      clip.astype(str), len(CLASSES), attribution, CLASSES)


def _path(data_dir: str, name: str) -> str:
  path = os.path.join(data_dir, name)
  if not data_dir or not os.path.isfile(path):
    looked = os.path.abspath(data_dir) if data_dir else 'no directory (data_dir is not set)'
    raise FileNotFoundError(
        f'AVE: missing {name}: looked in {looked}; get the features, labels and orders from '
        f'{HOMEPAGE}, and pass the directory that holds them as data_dir.')
  return path


@contextlib.contextmanager
def _open(path: str) -> Iterator:
  """The only dataset of an HDF5 file: `avadataset` or `order` where the authors named it."""
  try:
    import h5py
  except ModuleNotFoundError as error:
    if error.name != 'h5py':
      raise
    raise ImportError("data set ave: the package h5py is missing; install 'unlearn_jax[hdf5]'"
                      ) from error
  try:
    file = h5py.File(path, 'r')
  except OSError as error:
    raise ValueError(f'{path} is no complete HDF5 file ({error})') from error
  with file:
    found = [key for key in file if isinstance(file[key], h5py.Dataset)]
    if len(found) != 1:
      raise ValueError(f'{path} should hold one dataset, but holds {", ".join(found) or "none"}')
    yield file[found[0]]


def _labels(path: str) -> tuple[int, np.ndarray]:
  """Number of clips, and labels int32 [clips, 10]."""
  with _open(path) as data:
    what = f'{path}, dataset {data.name[1:]!r}'
    if data.shape[1:] != (SEGMENTS, len(CLASSES)) or not data.shape[0]:
      raise ValueError(f'{what}: labels must be [clips, {SEGMENTS}, {len(CLASSES)}], got '
                       f'{data.shape}')
    values = data[:]
  bad = ~(np.isin(values, (0, 1)).all(axis=2) & (values.sum(axis=2) == 1))
  if bad.any():
    clip, segment = np.argwhere(bad)[0]
    raise ValueError(f'{what}: {bad.sum()} labels are not one-hot, the first is that of clip {clip}, '
                     f'segment {segment}')
  return len(values), values.argmax(axis=2).astype(np.int32)


def _features(path: str, shape: tuple[int, ...], clips: int) -> stored.Stored:
  with _open(path) as data:
    if data.shape != (clips, *shape) or data.dtype.kind != 'f':
      raise ValueError(f'{path}, dataset {data.name[1:]!r}: features must be float [clips, '
                       f'{", ".join(map(str, shape))}] of the {clips} clips that have labels, got '
                       f'{data.dtype} {data.shape}')

  def read(rows: np.ndarray) -> np.ndarray:
    # Opened anew: a batch takes milliseconds, and no handle is shared by threads or left behind.
    values = np.empty((len(rows), *shape), np.float32)
    with _open(path) as data:
      for place, row in enumerate(rows):  # h5py's own selection by a list takes longer
        values[place] = data[row]
    return values

  return stored.Stored((clips, *shape), read)


def _partition(paths: Mapping[str, str], clips: int) -> np.ndarray:
  """Partition of every clip: str [clips]."""
  orders = {}
  for split, path in paths.items():
    with _open(path) as data:
      what = f'{path}, dataset {data.name[1:]!r}'
      orders[split] = data[:]
    if orders[split].ndim != 1 or orders[split].dtype.kind not in 'iu':
      raise ValueError(f'{what}: an order must be integers [clips], got {orders[split].dtype} '
                       f'{orders[split].shape}')
    if len(outside := orders[split][(orders[split] < 0) | (orders[split] >= clips)]):
      raise ValueError(f'{what}: clip {outside[0]} is none of the {clips} that have labels')
  _checks.disjoint(orders, 'clip')
  partition = np.full(clips, '', dtype='U5')
  for split, order in orders.items():
    partition[order] = split
  if len(without := np.flatnonzero(partition == '')):
    raise ValueError(f'{len(without)} clips stand in no order ({_checks.some(without)})')
  return partition
