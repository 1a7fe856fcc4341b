"""Files that others see whole or not at all."""

from collections.abc import Callable, Iterator
import contextlib
import os
import shutil
import tempfile
from typing import IO


@contextlib.contextmanager
def replacing(path: str, mode: str = 'w') -> Iterator[IO]:
  """A file to write; it takes the place of `path` when the block ends without an error."""
  temporary = f'{path}.{os.getpid()}.tmp'
  try:
    with open(temporary, mode) as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    if os.path.exists(temporary):
      os.remove(temporary)


def made_once(directory: str, write: Callable[[str], None]) -> str:
  """Has `write` fill a new directory, unless it is there; returns it."""
  if not os.path.isdir(directory):
    os.makedirs(os.path.dirname(directory), exist_ok=True)
    temporary = tempfile.mkdtemp(dir=os.path.dirname(directory))
    try:
      write(temporary)
      os.rename(temporary, directory)
    except OSError:
      if not os.path.isdir(directory):  # another process may have been first
        raise
    finally:
      shutil.rmtree(temporary, ignore_errors=True)
  return directory
