"""CIFAR-10 and CIFAR-100 from the authors' Python archives, as TFDS data sets.

A batch is a Python 2 pickle of a dict with `data`, uint8 [n, 3072] (1,024 red values row by row,
then green, then blue), and `labels`, or `fine_labels` in CIFAR-100. Unpickling runs code of the
file's choice, so only what such a batch needs is let through.
"""

from collections.abc import Mapping
import os
import pickle
import tarfile
from typing import Any, BinaryIO, ClassVar
import zlib

from etils import epath
import numpy as np

from unlearn_jax.data import sources
from unlearn_jax.data.builders import published

_ATTRIBUTION = ('A. Krizhevsky (2009), Learning multiple layers of features from tiny images, '
                'technical report, University of Toronto; published for research without a '
                'licence, to be cited.')


class PublishedCifar10(published.PublishedBuilder):
  """CIFAR-10: 10 classes, 50,000 training and 10,000 test pictures of 32x32."""

  # TFDS 4.9.10 finds this by way of `importlib_resources`, which it forgets to depend on.
  code_path = epath.Path(__file__)
  title = 'CIFAR-10'
  tfds_name = 'cifar10'
  files = (published.File(
      'cifar-10-python.tar.gz', 'https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz',
      '6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce', 'cifar-10-batches-py'),)
  shape = (32, 32, 3)
  classes = 10
  sizes = {'train': 50_000, 'test': 10_000}
  homepage = 'https://www.cs.toronto.edu/~kriz/cifar.html'
  attribution = f'CIFAR-10, {_ATTRIBUTION}'

  batches: ClassVar[Mapping[str, tuple[str, ...]]] = {
      'train': tuple(f'data_batch_{k}' for k in range(1, 6)), 'test': ('test_batch',)}
  label_key: ClassVar[bytes] = b'labels'

  @classmethod
  def read(cls, paths):
    path = paths[cls.files[0].name]
    found = {}
    for split, names in cls.batches.items():
      parts = [_batch(path, f'{cls.files[0].unpacked}/{name}', cls.label_key) for name in names]
      found[split] = tuple(np.concatenate(arrays) for arrays in zip(*parts))
    return found


class PublishedCifar100(PublishedCifar10):
  """CIFAR-100: 100 fine classes, 50,000 training and 10,000 test pictures of 32x32."""

  title = 'CIFAR-100'
  tfds_name = 'cifar100'
  files = (published.File(
      'cifar-100-python.tar.gz', 'https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz',
      '85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7', 'cifar-100-python'),)
  classes = 100
  attribution = f'CIFAR-100, {_ATTRIBUTION}'

  batches = {'train': ('train',), 'test': ('test',)}
  label_key = b'fine_labels'


def cifar10(data_dir: str, cache_dir: str, image_size: int | None) -> sources.Source:
  """CIFAR-10; arguments and errors: `published.source`."""
  return published.source(PublishedCifar10, data_dir, cache_dir, image_size)


def cifar100(data_dir: str, cache_dir: str, image_size: int | None) -> sources.Source:
  """CIFAR-100, fine classes; arguments and errors: `published.source`."""
  return published.source(PublishedCifar100, data_dir, cache_dir, image_size)


def _batch(path: str, member: str, label_key: bytes) -> tuple[np.ndarray, np.ndarray]:
  """Pictures uint8 [n, 32, 32, 3] and labels [n] of a batch, in an archive or unpacked."""
  try:
    if os.path.isdir(path):
      path = os.path.join(path, os.path.basename(member))
      with open(path, 'rb') as file:
        content = _SafeUnpickler(file).load()
    else:
      with tarfile.open(path) as archive:
        content = _SafeUnpickler(archive.extractfile(member)).load()
    data, labels = np.asarray(content[b'data']), np.asarray(content[label_key])
    if data.dtype != np.uint8 or data.shape != (len(labels), 3072):
      raise ValueError(f'data is {data.dtype} {data.shape} for {len(labels)} labels')
  except (EOFError, IndexError, KeyError, TypeError, ValueError, OSError, pickle.UnpicklingError,
          tarfile.TarError, zlib.error) as error:
    raise ValueError(f'{path}: {member} is no CIFAR batch ({error!r}); unpack or fetch the archive '
                     'again') from error
  return np.ascontiguousarray(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels


class _SafeUnpickler(pickle.Unpickler):
  """Unpickles dicts, lists, strings, numbers and numpy arrays of numbers; nothing else."""

  def __init__(self, file: BinaryIO | None):
    if file is None:
      raise ValueError('it is no regular file')
    super().__init__(file, encoding='bytes')

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) in _ALLOWED:
      return _ALLOWED[module, name]
    raise pickle.UnpicklingError(f'{module}.{name} is not allowed in a CIFAR batch')


def _dtype(kind: bytes, align: int = 0, copy: int = 1) -> np.dtype:
  """A dtype as Python 2 pickled it: bytes, and integers where NumPy wants booleans by now."""
  kind = kind.decode('ascii')
  if np.dtype(kind).hasobject:
    raise pickle.UnpicklingError('arrays of objects are not allowed in a CIFAR batch')
  return np.dtype(kind, bool(align), bool(copy))


_RECONSTRUCT = np.empty(0).__reduce__()[0]  # its module has moved between versions of NumPy
_ALLOWED = {('numpy', 'dtype'): _dtype, ('numpy', 'ndarray'): np.ndarray,
            ('numpy.core.multiarray', '_reconstruct'): _RECONSTRUCT}
