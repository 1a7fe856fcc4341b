"""Files of named tensors, PyTorch's and safetensors; needs no PyTorch and runs no code of the file.

A PyTorch file (version 1.6 and later, TorchScript too) is a zip archive: one pickle describes the
tensors, each storage is a member of its own. Our reader knows PyTorch's storages and how tensors
are rebuilt from them; every other class or function that the pickle names becomes an inert object.
So it reads what `torch.load(weights_only=True)` reads, as well as TorchScript archives and files
with training arguments, which that refuses, and like it executes nothing.
"""

import collections
from collections.abc import Iterator, Mapping
import contextlib
import io
import os
import pathlib
import pickle
from typing import Any, NamedTuple
import zipfile

import jax.numpy as jnp
import numpy as np

_STORAGES = {
    'BFloat16Storage': jnp.bfloat16, 'BoolStorage': np.bool_, 'ByteStorage': np.uint8,
    'CharStorage': np.int8, 'DoubleStorage': np.float64, 'FloatStorage': np.float32,
    'HalfStorage': np.float16, 'IntStorage': np.int32, 'LongStorage': np.int64,
    'ShortStorage': np.int16}
_WRAPPERS = ('state_dict', 'model_state_dict', 'model')  # keys of training checkpoints


class _Tensor(NamedTuple):
  """Where a tensor lies: offset and strides in elements of its storage."""

  key: str
  dtype: np.dtype
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  def view(self, storage: bytes | bytearray) -> np.ndarray:
    size = self.dtype.itemsize
    return np.ndarray(self.shape, self.dtype, storage, self.offset * size,
                      tuple(size * stride for stride in self.strides))


class _Inert:
  """Stands for whatever a pickle names: takes every argument and state, does nothing with them."""

  def __new__(cls, *arguments):
    self = super().__new__(cls)
    self.contents = list(arguments)
    return self

  def __init__(self, *arguments):
    del arguments

  def __setstate__(self, state):
    self.contents.append(state)

  def __setitem__(self, key, value):
    self.contents.append({key: value})

  def append(self, value):
    self.contents.append(value)


def _rebuild_tensor(storage, offset, shape, strides, *rest) -> _Tensor:
  del rest  # whether it has a gradient, and its hooks
  key, dtype = storage
  return _Tensor(key, dtype, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor, *rest) -> _Tensor:
  del rest
  return tensor


_KNOWN = {('torch._utils', '_rebuild_tensor_v2'): _rebuild_tensor,
          ('torch._utils', '_rebuild_parameter'): _rebuild_parameter,
          ('collections', 'OrderedDict'): collections.OrderedDict}


class _Unpickler(pickle.Unpickler):

  def find_class(self, module, name):
    if module == 'torch' and name in _STORAGES:
      return np.dtype(_STORAGES[name])
    return _KNOWN.get((module, name), _Inert)

  def persistent_load(self, pid):
    kind, dtype, key = pid[:3]
    if kind != 'storage' or not isinstance(dtype, np.dtype):
      raise pickle.UnpicklingError(f'a storage of a kind that is not known: {pid[:3]}')
    return key, dtype


def _walk(node: Any, name: str, seen: set[int]) -> Iterator[tuple[str, _Tensor]]:
  """All tensors in what was unpickled, by dotted names."""
  if isinstance(node, _Tensor):
    yield name, node
    return
  if id(node) in seen:
    return
  seen.add(id(node))
  if isinstance(node, _Inert):  # the state of an object carries no name of its own
    for content in node.contents:
      yield from _walk(content, name, seen)
    return
  if isinstance(node, Mapping):
    items = node.items()
  else:
    items = enumerate(node) if isinstance(node, (list, tuple)) else ()
  for key, child in items:
    yield from _walk(child, f'{name}.{key}' if name else str(key), seen)


class _TorchFile:
  """The index of an open PyTorch file.

  Attributes:
    tensors: those of the state dict, by name; of a TorchScript archive, those of the module.
    others: how many more there are (of an optimizer, or a moving average).
  """

  def __init__(self, file: zipfile.ZipFile):
    self._file = file
    index = next(name for name in file.namelist()
                 if name.count('/') == 1 and name.endswith('/data.pkl'))
    self._root = index.removesuffix('data.pkl')
    if f'{self._root}byteorder' in file.namelist():
      if (order := file.read(f'{self._root}byteorder')) != b'little':
        raise ValueError(f'byte order {order!r}')
    content = _Unpickler(io.BytesIO(file.read(index))).load()
    state = content
    if isinstance(content, Mapping):
      state = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)),
                   content)
    self.tensors = dict(_walk(state, '', set()))
    self.others = len(list(_walk(content, '', set()))) - len(self.tensors)

  def member(self, tensor: _Tensor) -> str:
    return f'{self._root}data/{tensor.key}'

  def array(self, tensor: _Tensor) -> np.ndarray:
    return tensor.view(self._file.read(self.member(tensor)))


# What a damaged zip archive or pickle raises.
_DAMAGE = (zipfile.BadZipFile, pickle.UnpicklingError, AttributeError, EOFError, IndexError, KeyError,
           OverflowError, StopIteration, TypeError, ValueError)


@contextlib.contextmanager
def _torch_file(path: pathlib.Path):
  with open(path, 'rb') as stream:
    if stream.read(4) != b'PK\x03\x04':
      raise ValueError(f'{path} is no zip archive: neither safetensors (by its name) nor of PyTorch '
                       '1.6 or later; in PyTorch, load it and save it again')
    try:
      file = zipfile.ZipFile(stream)
      opened = _TorchFile(file)
    except _DAMAGE as error:
      raise ValueError(f'{path} is damaged, or no file of PyTorch: {error!r}') from error
    with file:
      yield file, opened


def _read_safetensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  import safetensors  # an extra

  try:
    with safetensors.safe_open(path, framework='np') as file:
      return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
  except safetensors.SafetensorError as error:
    raise ValueError(f'{path} is damaged, or no file of safetensors: {error}') from error


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Reads the tensors of a checkpoint, under the names and in the dtypes that they have there.

  Args:
    path: a `.safetensors` file (extra `convert`), or by any other name a file of PyTorch: a state
      dict, a TorchScript archive, or a training checkpoint with a `state_dict`, `model_state_dict`
      or `model` in it, of which that is read alone. State dicts of PyTorch before 1.6 are read,
      see `archive_legacy`, but nothing is written in their format.

  Returns:
    name -> array; read-only where the file is PyTorch's.

  Raises:
    OSError: there is no such file.
    ValueError: it is damaged or of another format.
    ImportError: safetensors is not installed.
  """
  path = pathlib.Path(path)
  if path.suffix == '.safetensors':
    return _read_safetensors(path)[0]
  from unlearn_jax.models import archive_legacy  # it reads pickles as this module does
  if archive_legacy.is_legacy(path):
    return archive_legacy.read(path)
  with _torch_file(path) as (_, opened):
    try:
      return {name: opened.array(tensor) for name, tensor in opened.tensors.items()}
    except _DAMAGE as error:
      raise ValueError(f'{path} is damaged: {error!r}') from error


@contextlib.contextmanager
def _replacing(path: pathlib.Path):
  """A path to write; what was written gets its name only when it is complete."""
  temporary = f'{path}.{os.getpid()}.tmp'
  try:
    yield temporary
    with open(temporary, 'rb+') as file:
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    if os.path.exists(temporary):
      os.remove(temporary)


def _copy(source: zipfile.ZipFile, target: zipfile.ZipFile, replaced: Mapping[str, bytes]) -> None:
  """Copies an archive member by member, but for those replaced; storages aligned as PyTorch's."""
  for info in source.infolist():
    fresh = zipfile.ZipInfo(info.filename, info.date_time)
    fresh.compress_type, fresh.external_attr = info.compress_type, info.external_attr
    if info.compress_type == zipfile.ZIP_STORED:
      start = target.fp.tell() + 30 + len(info.filename.encode()) + 4  # 4: header of the padding
      padding = -start % 64
      fresh.extra = b'FB' + padding.to_bytes(2, 'little') + b'Z' * padding
    data = replaced.get(info.filename)
    target.writestr(fresh, source.read(info) if data is None else data)


def _patch(path: pathlib.Path, like: pathlib.Path, changed: Mapping[str, np.ndarray]) -> None:
  with _torch_file(like) as (source, opened):
    if opened.others:
      raise ValueError(f'{like} holds {opened.others} tensors beside the model (an optimizer, an '
                       'average), which would stay as they were and remember the data: write a '
                       '.safetensors file, which gets the model alone')
    users = {}
    for name, tensor in opened.tensors.items():
      users.setdefault(tensor.key, []).append(name)
    replaced = {}
    for name, value in changed.items():
      tensor = opened.tensors[name]
      if len(users[tensor.key]) > 1:
        raise ValueError(f'{like}: {", ".join(users[tensor.key][:3])} share their memory, so one '
                         'cannot be written alone; write a .safetensors file')
      storage = bytearray(source.read(opened.member(tensor)))
      tensor.view(storage)[...] = value
      replaced[opened.member(tensor)] = bytes(storage)
    with _replacing(path) as temporary, zipfile.ZipFile(temporary, 'w') as target:
      _copy(source, target, replaced)


def write(path: str | os.PathLike, changed: Mapping[str, np.ndarray], *,
          like: str | os.PathLike | Mapping[str, np.ndarray]) -> None:
  """Writes a checkpoint again with some tensors changed, all others bit by bit as they were.

  Args:
    path: the file to write, atomically; whether there is one is the caller's affair. A name in
      `.safetensors` gets the tensors of `read(like)`; any other is a copy of the PyTorch file
      `like`, code of a TorchScript archive included, in which the bytes of the changed tensors are
      exchanged.
    changed: name -> value in the shape and dtype of the original.
    like: the original file; or tensors, for a `.safetensors` file.

  Raises:
    OSError: `like` cannot be read or `path` not written.
    ValueError: a PyTorch file is to be made from something else; or it holds tensors beside the
      model; or a changed tensor shares its memory with another.
    ImportError: safetensors is not installed.
  """
  path = pathlib.Path(path)
  if path.suffix != '.safetensors':
    if isinstance(like, Mapping) or pathlib.Path(like).suffix == '.safetensors':
      raise ValueError(f'{path}: a PyTorch file is made from a PyTorch file; write .safetensors')
    _patch(path, pathlib.Path(like), changed)
    return
  import safetensors.numpy

  metadata = {'format': 'pt'}  # readers ask for it
  if isinstance(like, Mapping):
    tensors = like
  elif pathlib.Path(like).suffix == '.safetensors':
    tensors, own = _read_safetensors(pathlib.Path(like))
    metadata |= own
  else:
    tensors = read(like)
  everything = {name: np.asarray(value, order='C') for name, value in {**tensors, **changed}.items()}
  with _replacing(path) as temporary:
    safetensors.numpy.save_file(everything, temporary, metadata)
