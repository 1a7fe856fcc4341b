"""AV-MNIST in the layout of its public files: blurred MNIST pictures, and spectrograms of digits.

The files are a third-party remake of the set of Vielzeuf et al. (2018), as MultiBench (Liang et
al., 2021) and AGM (Li et al., 2023) use them:

  image/{train,test}_data.npy   [N, 784]       pictures as a few principal components rebuild them
  audio/{train,test}_data.npy   [N, 112, 112]  spectrograms, uint8
  {train,test}_labels.npy       [N]
"""

import functools
import os

import numpy as np

from unlearn_jax.data import fields
from unlearn_jax.data import sources

URL = 'https://github.com/pliang279/MultiBench'
_FILES = {'image': 'image/{}_data.npy', 'audio': 'audio/{}_data.npy', 'label': '{}_labels.npy'}
_WANTED = {'image': (784,), 'audio': (112, 112), 'label': ()}
_FOLDERS = ('', 'avmnist')  # of data_dir: the files themselves, or the archive unpacked in it


def source(data_dir: str, cache_dir: str, image_size: int | None) -> sources.Source:
  """Records of the training and then of the test files, read from disk when they are used.

  Both modalities are divided by 255 and nothing else. In the public files the values of pictures
  lie outside [0, 1] (the mean that the rebuilding leaves out is missing); they are left so.

  `partition` is AGM's: the first 90 % of the training files are `train` (54,000 of 60,000), the
  first 90 % of the test files are `test` (9,000 of 10,000), the rest of both is `dep`. Every record
  is an identity of its own.

  Args:
    data_dir: holds the files, or a directory `avmnist` with them.
    cache_dir: not needed, nothing is built.
    image_size: height and width of the pictures, by area averaging; None keeps 28.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: a file that is no array of its shape; files that hold different numbers of records;
      labels that are not 0 to 9.
  """
  del cache_dir
  parts, partition = {name: [] for name in _FILES}, []
  folder = _folder(data_dir)
  for split in ('train', 'test'):
    arrays = {name: _array(folder, name, split) for name in _FILES}
    counts = {file_of(folder, name, split): len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
      raise ValueError('pictures, spectrograms and labels must be of the same records: '
                       + ', '.join(f'{path} holds {count}' for path, count in counts.items()))
    for name, array in arrays.items():
      parts[name].append(array)
    count = len(arrays['label'])
    partition.append(np.where(np.arange(count) < count * 9 // 10, split, 'dep'))
  label = np.concatenate(parts['label']).astype(np.int32)
  image = functools.partial(_pictures, size=image_size)
  side = image_size or 28
  return sources.Source(
      'av_mnist',
      {'image': _field(parts['image'], (side, side, 1), image),
       'audio': _field(parts['audio'], (112, 112, 1), _spectrograms),
       'label': label, 'partition': np.concatenate(partition)},
      np.arange(len(label)).astype(str), 10,
      'MNIST, Y. LeCun, C. Cortes and C. Burges (CC BY-SA 3.0), and spoken digits of the Free '
      'Spoken Digit Dataset, Z. Jackson and contributors (CC BY-SA 4.0), as AV-MNIST, V. Vielzeuf, '
      f'A. Lechervy, S. Pateux and F. Jurie (2018), in the files that {URL} points to.')


def _folder(data_dir: str) -> str:
  """The directory that holds the first file."""
  tried = [os.path.join(data_dir, folder) if folder else data_dir for folder in _FOLDERS]
  there = [folder for folder in tried
           if data_dir and os.path.isfile(file_of(folder, 'image', 'train'))]
  if there:
    return there[0]
  where = ' and '.join(map(os.path.abspath, tried)) if data_dir else (
      'no directory (data_dir is not set)')
  raise FileNotFoundError(f'AV-MNIST: {file_of("", "image", "train")} is missing: looked in {where}; '
                          f'see {URL} for the files, unpack them and pass the directory as data_dir.')


def file_of(folder: str, name: str, split: str) -> str:
  """Of the file of a field (image, audio, label) and a split (train, test)."""
  return os.path.join(folder, _FILES[name].format(split))


def _array(folder: str, name: str, split: str) -> np.ndarray:
  """A file, memory-mapped, of the shape that it must have."""
  path = file_of(folder, name, split)
  try:
    array = np.load(path, mmap_mode='r')
  except FileNotFoundError as error:
    raise FileNotFoundError(f'AV-MNIST: {path} is missing; see {URL} for the files') from error
  except (ValueError, EOFError) as error:
    raise ValueError(f'{path} is no whole .npy file ({error}); see {URL} for the files') from error
  kinds = 'iu' if name == 'label' else 'iuf'
  if array.dtype.kind not in kinds or array.shape[1:] != _WANTED[name] or not len(array):
    shape = ', '.join(('N', *map(str, _WANTED[name])))
    raise ValueError(f'{path} holds {array.dtype} {array.shape}, expected '
                     f'{"integers" if name == "label" else "numbers"} [{shape}]')
  if name == 'label' and (array.min() < 0 or array.max() > 9):
    raise ValueError(f'{path} holds labels from {array.min()} to {array.max()}, expected 0 to 9')
  return array


def _field(parts: list[np.ndarray], shape: tuple[int, ...], convert) -> fields.Rows:
  """Rows of the training and then of the test file, converted when they are read."""
  train, test = parts

  def read(rows: np.ndarray) -> np.ndarray:
    out = np.empty((len(rows), *shape), np.float32)
    first = rows < len(train)
    out[first] = convert(train[rows[first]])
    out[~first] = convert(test[rows[~first] - len(train)])
    return out

  count = len(train) + len(test)
  return fields.Rows(fields.Lazy((count, *shape), np.float32, read), np.arange(count))


def _pictures(values: np.ndarray, size: int | None) -> np.ndarray:
  return sources.area_resize(values.reshape(-1, 28, 28), size, white=255)


def _spectrograms(values: np.ndarray) -> np.ndarray:
  return values[..., None].astype(np.float32) / np.float32(255)
