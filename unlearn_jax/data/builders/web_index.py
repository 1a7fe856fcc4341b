"""Where the usable pairs of a web data set are: columns in memory and in one file."""

from collections.abc import Iterable, Mapping
import dataclasses
import hashlib
import json
import os
import zipfile

import numpy as np

from unlearn_jax.data import _files

_NUMBERS = {'shard': np.int32, 'start': np.int64, 'length': np.int64, 'checksum': np.uint32}
_TEXTS = ('key', 'caption')


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
  """Columns of N records.

  Attributes:
    shard: number of the file, int32.
    start: of the picture in it, int64; what it counts depends on the layout.
    length: of the picture, int64; likewise.
    checksum: CRC-32 of the picture's bytes, uint32.
    key: name of the record, text.
    caption: text.
    left_out: reason -> records that cannot be used.
  """

  shard: np.ndarray
  start: np.ndarray
  length: np.ndarray
  checksum: np.ndarray
  key: np.ndarray
  caption: np.ndarray
  left_out: Mapping[str, int]

  def __len__(self) -> int:
    return len(self.shard)

  def digest(self) -> bytes:
    """Of the pictures, by length and checksum of each, and of their keys."""
    digest = hashlib.sha256('\0'.join(self.key.tolist()).encode())
    for column in (self.length, self.checksum):
      digest.update(column.astype(column.dtype.newbyteorder('<')).tobytes())
    return digest.digest()

  def save(self, path: str) -> None:
    """Writes one file, atomically: readers see no file or the whole of it."""
    columns = {name: getattr(self, name) for name in _NUMBERS}
    for name in _TEXTS:  # numpy saves text of any length only by way of pickle
      encoded = [text.encode() for text in getattr(self, name).tolist()]
      columns[name] = np.frombuffer(b''.join(encoded), np.uint8)
      columns[f'{name}_end'] = np.cumsum([len(text) for text in encoded], dtype=np.int64)
    columns['left_out'] = np.asarray(json.dumps(dict(self.left_out)))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with _files.replacing(path, 'wb') as file:
      np.savez(file, **columns)


class Builder:
  """Collects records one by one."""

  def __init__(self):
    self._columns = {name: [] for name in (*_NUMBERS, *_TEXTS)}

  def add(self, *values) -> None:
    """A record: the values of `Index`, in its order."""
    for column, value in zip(self._columns.values(), values, strict=True):
      column.append(value)

  def index(self, left_out: Mapping[str, int]) -> Index:
    numbers = {name: np.asarray(self._columns[name], dtype) for name, dtype in _NUMBERS.items()}
    return Index(**numbers, **{name: _text(self._columns[name]) for name in _TEXTS},
                 left_out=dict(left_out))


def load(path: str) -> Index:
  """Reads what `Index.save` wrote.

  Raises:
    ValueError: a damaged file.
  """
  try:
    with np.load(path, allow_pickle=False) as data:
      columns = {name: data[name] for name in _NUMBERS}
      for name in _TEXTS:
        encoded, ends = data[name].tobytes(), data[f'{name}_end'].tolist()
        columns[name] = _text([encoded[start:end].decode()
                               for start, end in zip([0, *ends], ends)])
      columns['left_out'] = json.loads(str(data['left_out']))
  except (KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
    raise ValueError(f'{path} is a damaged index ({error}); delete it, it is made again') from error
  return Index(**columns)


def _text(values: Iterable[str]) -> np.ndarray:
  return np.asarray(list(values), np.dtypes.StringDType())
