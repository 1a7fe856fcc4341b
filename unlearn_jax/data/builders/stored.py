"""Features that others computed, left in their files and read row by row."""

from collections.abc import Callable, Sequence
import hashlib

import numpy as np

from unlearn_jax.data import fields

_HASHED_AT_ONCE = 1 << 26  # bytes


class Stored(fields.Lazy):
  """Float32 features of any rank, [N, ...], that may be larger than memory.

  Unlike `fields.Lazy`, whose rows are made whenever somebody takes a part of them, a part of this
  is still in the file (`take`), and the content hash reads the file once, however many records
  share a row.
  """

  def __init__(self, shape: Sequence[int], read: Callable[[np.ndarray], np.ndarray]):
    """`read` takes row numbers int64 [n] and gives the values [n, ...] in any float type."""
    super().__init__(shape, np.float32, lambda rows: np.asarray(read(rows), np.float32))
    self._hash = None

  def take(self, indices: np.ndarray) -> fields.Rows:
    """The rows at `indices`, still in the file."""
    return fields.Rows(self, np.arange(len(self))[indices])

  def digest(self) -> bytes:
    """SHA-256 over all values, as float32 whatever the file's type; reads the file once."""
    if self._hash is None:
      digest = hashlib.sha256(str(self.shape).encode())
      row = max(int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize, 1)
      count = max(_HASHED_AT_ONCE // row, 1)
      for start in range(0, len(self), count):
        digest.update(np.ascontiguousarray(self[start:start + count], '<f4').tobytes())
      self._hash = digest.digest()
    return self._hash


def joined(parts: Sequence[np.ndarray]) -> Stored:
  """Arrays of one row shape, such as memory-mapped files, one after the other.

  Args:
    parts: [N_1, ...], [N_2, ...], ...; only rows that are asked for are touched.
  """
  starts = np.cumsum([0, *map(len, parts)])

  def read(rows: np.ndarray) -> np.ndarray:
    values = np.empty((len(rows), *parts[0].shape[1:]), np.float32)
    for part, start, stop in zip(parts, starts, starts[1:]):
      here = (rows >= start) & (rows < stop)
      if here.any():
        values[here] = part[rows[here] - start]
    return values

  return Stored((int(starts[-1]), *parts[0].shape[1:]), read)
