"""Reads state dicts that PyTorch before 1.6 wrote; as `archive`, runs no code of the file.

Such a file is five pickles (a magic number, the version of the format, the writer's byte order, the
object, the keys of its storages) and then, in the order of the keys, the number of elements and the
bytes of every storage. Weights published before mid-2020 are such files, and PyTorch writes them
still when `_use_new_zipfile_serialization` is off.
"""

import io
import os
import pathlib
import pickle

import numpy as np

from unlearn_jax.models import archive

_MAGIC = 0x1950a86a20f9469cfc6c
_VERSION = 1001


class _Unpickler(archive._Unpickler):

  def find_class(self, module, name):
    if (module, name) == ('torch._utils', '_rebuild_tensor'):  # before PyTorch 0.4
      return archive._rebuild_tensor
    return super().find_class(module, name)

  def persistent_load(self, pid):
    if len(pid) > 5 and pid[5] is not None:
      raise pickle.UnpicklingError('a storage that is a view of another one')
    return super().persistent_load(pid)


def is_legacy(path: str | os.PathLike) -> bool:
  """Whether a file begins as one of PyTorch before 1.6.

  Raises:
    OSError: there is no such file.
  """
  start = pickle.dumps(_MAGIC, 2)
  with open(path, 'rb') as file:
    return file.read(len(start)) == start


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Reads the tensors of a checkpoint, as `archive.read` does for newer files.

  Args:
    path: a state dict, or a training checkpoint with a `state_dict`, `model_state_dict` or `model`
      in it, of which that is read alone.

  Returns:
    Name -> array, in the dtype of the file; read-only.

  Raises:
    OSError: there is no such file.
    ValueError: it is damaged, of another format, or written on a big-endian machine.
  """
  path = pathlib.Path(path)
  if not is_legacy(path):
    raise ValueError(f'{path} is no file of PyTorch before 1.6')
  stream = io.BytesIO(path.read_bytes())
  try:
    _, version, system = (_Unpickler(stream).load() for _ in range(3))
    if version != _VERSION or not system['little_endian']:
      raise ValueError(f'version {version} of the format, {system}')
    content = _Unpickler(stream).load()
    keys = _Unpickler(stream).load()
    state = content
    if isinstance(content, dict):
      state = next((content[key] for key in archive._WRAPPERS
                    if isinstance(content.get(key), dict)), content)
    everything = dict(archive._walk(content, '', set()))
    sizes = {tensor.key: tensor.dtype.itemsize for tensor in everything.values()}
    storages = {}
    for key in keys:
      count = int.from_bytes(_exactly(stream, 8), 'little')
      if key not in sizes:
        raise ValueError(f'storage {key} belongs to no tensor, so its size is not known')
      storages[key] = _exactly(stream, count * sizes[key])
    return {name: tensor.view(storages[tensor.key])
            for name, tensor in archive._walk(state, '', set())}
  except archive._DAMAGE as error:
    raise ValueError(f'{path} is damaged, or no state dict of PyTorch: {error!r}') from error


def _exactly(stream: io.BytesIO, size: int) -> bytes:
  data = stream.read(size)
  if len(data) != size:
    raise EOFError(f'{size} bytes expected, {len(data)} are left')
  return data
