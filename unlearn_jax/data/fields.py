"""Fields of a source that are not plain arrays: shared rows, and pictures decoded when read."""

from collections.abc import Callable, Sequence
import concurrent.futures
import functools
import hashlib
import io
import os
import struct
from typing import Any
import zlib

import numpy as np
from PIL import Image

# What PIL raises for files that are no picture, or not a whole one.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error,
          Image.DecompressionBombError)


class Lazy:
  """Values that are made when they are indexed: `shape`, `dtype`, `[rows]`, `numpy.asarray`.

  Indexing as in numpy gives plain arrays; the first index chooses rows, and only those are made.

  Attributes:
    shape: rows first.
    dtype: of the values.
  """

  def __init__(self, shape: Sequence[int], dtype: Any, read: Callable[[np.ndarray], np.ndarray]):
    """`read` takes row numbers int64 [n] and gives the values [n, ...]."""
    self.shape, self.dtype, self._read = tuple(shape), np.dtype(dtype), read

  def __len__(self) -> int:
    return self.shape[0]

  def __getitem__(self, index) -> np.ndarray:
    first, *rest = index if isinstance(index, tuple) else (index,)
    rows = _rows(first, len(self))
    values = self._read(np.atleast_1d(rows))
    return values[(slice(None) if rows.ndim else 0, *rest)]

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    if copy is False:
      raise ValueError('values that are made when they are read are always a copy')
    return self[:].astype(dtype or self.dtype, copy=False)


class Rows(Lazy):
  """Rows of another field, which may come several times without taking up memory again.

  Five captions of one picture are five records: row i of the field is `base[row[i]]`.
  """

  def __init__(self, base: Any, row: np.ndarray):
    self.base, self.row = base, np.asarray(row)
    super().__init__((len(self.row), *base.shape[1:]), base.dtype, self._read_once)

  def _read_once(self, indices: np.ndarray) -> np.ndarray:
    rows, back = np.unique(self.row[indices], return_inverse=True)
    return self.base[rows][back]

  def take(self, indices: np.ndarray) -> 'Rows':
    """The rows at `indices`, still not made."""
    return Rows(self.base, self.row[indices])

  def digest(self) -> bytes | None:
    """Of the base and the row numbers; None where the base has none: it hashes by its values."""
    base = self.base.digest() if hasattr(self.base, 'digest') else None
    if base is None:
      return None
    return hashlib.sha256(base + self.row.astype('<i8').tobytes()).digest()


class Encoded(Lazy):
  """Pictures held as files or bytes somewhere, decoded to float32 in [0, 1] when they are read.

  Resizing and cropping are those of CLIP's evaluation (`square`). Threads decode rows in parallel.
  """

  def __init__(self, read: Callable[[int], bytes], count: int, size: int, *,
               name: Callable[[int], str], content: bytes):
    """Pictures that `read` finds.

    Args:
      read: row number -> encoded picture; called from several threads.
      count: of pictures.
      size: side in pixels.
      name: row number -> what errors call the picture.
      content: tells these pictures from others, such as a hash of their names and sizes.
    """
    self.read, self.size, self.name, self.content = read, size, name, content
    super().__init__((count, size, size, 3), np.float32, self._decode)

  def _decode(self, rows: np.ndarray) -> np.ndarray:
    out = np.empty((len(rows), *self.shape[1:]), np.float32)

    def one(place: int) -> None:
      row = int(rows[place])
      encoded = self.read(row)
      try:
        out[place] = square(encoded, self.size) / np.float32(255)
      except BROKEN as error:
        raise ValueError(f'{self.name(row)} is no complete picture ({error})') from error

    list(threads().map(one, range(len(rows))))  # the list raises what a thread raised
    return out

  def take(self, indices: np.ndarray) -> 'Encoded':
    """The pictures at `indices`, still encoded."""
    rows = _rows(indices, len(self))
    return Encoded(
        lambda row: self.read(int(rows[row])), len(rows), self.size,
        name=lambda row: self.name(int(rows[row])),
        content=hashlib.sha256(self.content + rows.astype('<i8').tobytes()).digest())

  def digest(self) -> bytes:
    """Of `content` and the size: decoding millions of pictures to hash them would take hours."""
    return hashlib.sha256(self.content + f'|clip evaluation transform|{self.size}'.encode()).digest()


def square(encoded: bytes, size: int) -> np.ndarray:
  """Decodes and brings a picture to a square, as CLIP's evaluation transform does.

  RGB, the shorter side to `size` by PIL's bicubic filter, the other by the same factor (rounded
  down, as in torchvision), and the central square of it.

  Args:
    encoded: a picture file.
    size: side in pixels.

  Returns:
    uint8 [size, size, 3].

  Raises:
    One of `BROKEN`: no picture, or not a whole one.
  """
  image = decode(encoded)
  short = min(image.size)
  width, height = (size if side == short else size * side // short for side in image.size)
  image = image.resize((width, height), Image.Resampling.BICUBIC)
  left, top = round((width - size) / 2), round((height - size) / 2)
  return np.asarray(image.crop((left, top, left + size, top + size)))


def decode(encoded: bytes) -> Image.Image:
  """A whole picture in RGB. Raises one of `BROKEN`."""
  with Image.open(io.BytesIO(encoded)) as image:
    return image.convert('RGB')


@functools.cache
def threads() -> concurrent.futures.ThreadPoolExecutor:
  """One pool for all fields: PIL decodes and resizes without the interpreter's lock."""
  return concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1, 'decode')


def _rows(index, count: int) -> np.ndarray:
  """Row numbers of numpy's index into the first axis: int64 [n], or a scalar."""
  if isinstance(index, slice):
    return np.arange(*index.indices(count))
  index = np.asarray(index)
  if index.dtype == bool and index.shape == (count,):
    return np.flatnonzero(index)
  if not index.size:
    return np.zeros(0, np.int64)
  if index.dtype.kind not in 'iu' or index.ndim > 1 or index.min() < -count or index.max() >= count:
    raise IndexError(f'rows are chosen by a slice, integers below {count}, or one bool each')
  return np.where(index < 0, index + count, index).astype(np.int64)
