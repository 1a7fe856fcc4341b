"""Data sets as random-access records with an identity each."""

from collections.abc import Mapping
import dataclasses
import functools
import hashlib
import importlib
import os
from typing import Any

import numpy as np

from unlearn_jax.data import _catalogue
from unlearn_jax.data import _checks
from unlearn_jax.data import _random

# name -> what the data set holds and needs
NAMES = {name: entry.needs for name, entry in _catalogue.ENTRIES.items()}
MODALITIES = ('audio', 'text')  # what may stand beside a picture, one of them
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
      `noisy` bool [N] where labels or captions were planted; `partition` str [N], the authors' own
      split, where they publish one. Captioned pictures have `caption` str [N] (`U` or numpy's
      StringDType) and `picture` int32 [N] (the captions of one picture are records with one number
      and one image); their label is optional, and -1 stands for no class. Anything with `shape`,
      `dtype` and numpy's fancy indexing will do (`Pictures`, `fields`).
    identity: str [N]; whoever asks to be forgotten. The record's own index where nobody is named;
      what must not be cut by a split.
    num_classes: classes, or attributes; 0 without a label.
    attribution: who made the data and under which licence; shown in every report.
    class_names: [num_classes] in the order of the labels, where the classes have names.
    note: what was left out when the data were read and why; '' if nothing was.
    backbone: parameters of a model that was trained elsewhere, where the data bring one.
  """

  name: str
  fields: Mapping[str, Any]
  identity: np.ndarray
  num_classes: int
  attribution: str
  class_names: tuple[str, ...] = ()
  note: str = ''
  backbone: Any = None

  def __len__(self) -> int:
    return len(self.identity)

  def content_hash(self) -> str:
    """SHA-256 over the names, types, shapes and values of all fields, and the identities (hex).

    Pictures that are decoded when read enter with what names their content (`fields.Encoded`).
    """
    return self._content_hash

  @functools.cached_property
  def _content_hash(self) -> str:
    digest = hashlib.sha256()
    for name in sorted(self.fields):
      field = self.fields[name]
      if field.dtype.kind == 'T':  # text of any length, in memory elsewhere
        digest.update('\0'.join((f'{name}|text|{len(self)}|', *field.tolist())).encode())
        continue
      dtype = np.dtype(field.dtype).newbyteorder('<')
      digest.update(f'{name}|{dtype.str}|{tuple(field.shape)}|'.encode())
      if (known := getattr(field, 'digest', lambda: None)()) is not None:
        digest.update(known)
        continue
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
      ValueError: a field is missing, of another length or type; labels lie outside the classes;
        captions are empty or no text; not one name per class.
    """
    wanted = ('image', 'caption', 'picture') if 'caption' in self.fields else ('image', 'label')
    for name in wanted:
      if name not in self.fields:
        raise ValueError(f'source {self.name!r} has no field {name!r}; it has '
                         f'{", ".join(sorted(self.fields))}')
    for name, field in self.fields.items():
      if field.shape[0] != len(self):
        raise ValueError(f'source {self.name!r}: field {name!r} has {field.shape[0]} records, '
                         f'identity has {len(self)}')
    image = self.fields['image']
    others = [name for name in MODALITIES if name in self.fields]
    if np.dtype(image.dtype) != np.float32 or not (len(image.shape) == 4 or (
        others and len(image.shape) > 1)):
      raise ValueError(f'source {self.name!r}: image must be float32 [N, H, W, C]'
                       f'{", or features [N, ...]" if others else ""}, got {image.dtype} '
                       f'{tuple(image.shape)}')
    for name in others:
      field = self.fields[name]
      if np.dtype(field.dtype) != np.float32 or len(field.shape) < 2:
        raise ValueError(f'source {self.name!r}: {name} must be float32 [N, ...], got '
                         f'{field.dtype} {tuple(field.shape)}')
    if self.class_names and len(self.class_names) != self.num_classes:
      raise ValueError(f'source {self.name!r} has {len(self.class_names)} class names for '
                       f'{self.num_classes} classes')
    if 'caption' in self.fields:
      self._validate_captions()
    if 'label' in self.fields:
      self._validate_labels()

  def _validate_captions(self) -> None:
    caption, picture = np.asarray(self.fields['caption']), np.asarray(self.fields['picture'])
    if caption.dtype.kind not in 'UT' or caption.ndim != 1:
      raise ValueError(f'source {self.name!r}: captions must be text, str [N], got {caption.dtype} '
                       f'{caption.shape}')
    if len(empty := np.flatnonzero(np.strings.str_len(np.strings.strip(caption)) == 0)):
      raise ValueError(f'source {self.name!r}: {len(empty)} captions are empty, the first is that '
                       f'of record {empty[0]}')
    if picture.dtype.kind not in 'iu' or picture.ndim != 1:
      raise ValueError(f'source {self.name!r}: picture must be integers [N], got {picture.dtype} '
                       f'{picture.shape}')

  def _validate_labels(self) -> None:
    labels = np.asarray(self.fields['label'])
    if labels.ndim == 1:
      if labels.dtype.kind not in 'iu':
        raise ValueError(f'source {self.name!r}: class labels must be integers, not {labels.dtype}')
      lowest = -1 if 'caption' in self.fields else 0  # -1: a captioned picture of no class
      wrong = np.flatnonzero((labels < lowest) | (labels >= self.num_classes))
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
  if isinstance(field, np.ndarray) or not hasattr(field, 'take'):
    return field[indices]
  return field.take(indices)


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
    seed: of the label noise, and of data that are drawn.
    image_size: height and width of the pictures, by area averaging (faces: by the bilinear filter
      that their benchmarks use; pictures with captions, but pictograms: CLIP's evaluation
      transform); None keeps the native size (`omniglot`: 32, from 105; `openmoji`: 32; other
      pictures with captions: 224).

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
  entry = _catalogue.ENTRIES[name]
  module = importlib.import_module(f'unlearn_jax.data.builders.{entry.module}')
  load = getattr(module, entry.function)
  source = load(os.path.expanduser(data_dir), os.path.join(cache_dir(), 'tfds'), image_size,
                **({'seed': seed} if entry.drawn else {}))
  source = _with_label_noise(source, label_noise, seed)
  source.validate()
  return source


def _with_label_noise(source: Source, share: float, seed: int) -> Source:
  count, label = len(source), source.fields.get('label')
  noisy = np.zeros(count, bool)
  if 'caption' in source.fields or label.ndim != 1:
    if share:
      raise ValueError(f'label_noise draws random classes; {source.name!r} has '
                       + ('captions: plant noise in them with data.pairs.split'
                          if 'caption' in source.fields else 'attributes'))
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
