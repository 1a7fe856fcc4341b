"""Tests of the files of tensors; PyTorch's are put together here, opcode by opcode, without it."""

import math
import os
import pathlib
import pickle
import tempfile
from unittest import mock
import zipfile

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np
import pytest

from unlearn_jax.models import archive

STORAGES = {'float32': 'FloatStorage', 'float16': 'HalfStorage', 'bfloat16': 'BFloat16Storage',
            'float64': 'DoubleStorage', 'int64': 'LongStorage', 'bool': 'BoolStorage'}


def plain(value):
  """Opcodes of a value of Python's own types, without header and stop."""
  return pickle.dumps(value, 2)[2:-1]


def named(module, name):
  return f'c{module}\n{name}\n'.encode()


def mapping(items):
  """Opcodes of a dict whose values are opcodes already."""
  return b'}(' + b''.join(plain(key) + value for key, value in items.items()) + b'u'


class File:
  """Builds a file as `torch.save` does: `tensor` gives opcodes, `save` writes the zip archive."""

  def __init__(self):
    self.storages = []

  def tensor(self, value, storage=None):
    """Opcodes of a tensor; `storage` is the number of an earlier one that it shares."""
    value = np.asarray(value)
    if storage is None:
      storage = len(self.storages)
      self.storages.append(value.tobytes())
    strides = tuple(math.prod(value.shape[axis + 1:]) for axis in range(value.ndim))
    pid = (b'(' + plain('storage') + named('torch', STORAGES[value.dtype.name]) + plain(str(storage))
           + plain('cpu') + plain(value.size) + b'tQ')
    return (named('torch._utils', '_rebuild_tensor_v2') + b'(' + pid + plain(0) + plain(value.shape)
            + plain(strides) + plain(False) + named('collections', 'OrderedDict') + b')RtR')

  def module(self, state):
    """Opcodes of a TorchScript module."""
    return named('__torch__.clip.model', 'CLIP') + b')\x81' + mapping(state) + b'b'

  def save(self, path, content, order=b'little', compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, 'w') as file:
      file.writestr('model/data.pkl', b'\x80\x02' + content + b'.')
      file.writestr('model/byteorder', order)
      file.writestr('model/code/clip.py', 'def forward(self): ...', compression)
      for number, data in enumerate(self.storages):
        file.writestr(f'model/data/{number}', data)


WEIGHT = np.arange(6, dtype=np.float16).reshape(2, 3)
VALUES = {'weight': WEIGHT, 'scale': np.array(4.6, np.float32), 'ids': np.arange(4),
          'half': np.array([1, -2.5], jnp.bfloat16), 'wide': np.ones((2, 1, 2)),
          'mask': np.array([True, False])}


class ArchiveTestCase(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.path = self.folder / 'a.pt'

  def same(self, found, expected):
    self.assertEqual(list(found), list(expected))
    for name, value in expected.items():
      self.assertEqual((found[name].dtype, found[name].shape), (value.dtype, value.shape))
      self.assertEqual(found[name].tobytes(), value.tobytes())

  def state(self, path, values=VALUES):
    """Writes a plain state dict."""
    file = File()
    file.save(path, mapping({name: file.tensor(value) for name, value in values.items()}))


class ReadTest(ArchiveTestCase):

  def test_state_dict(self):
    self.state(self.path)
    self.same(archive.read(self.path), VALUES)

  def test_torchscript(self):
    file = File()
    block = file.module({'weight': file.tensor(WEIGHT), 'training': plain(False)})
    file.save(self.path, file.module({
        'proj': file.tensor(WEIGHT + 1), 'visual': file.module({'0': block, 'bias': plain(None)}),
        'input_resolution': file.tensor(np.array(224))}))
    self.same(archive.read(self.path), {'proj': WEIGHT + 1, 'visual.0.weight': WEIGHT,
                                        'input_resolution': np.array(224)})

  @parameterized.parameters('state_dict', 'model')
  def test_training_checkpoint(self, wrapper):
    file = File()
    options = named('argparse', 'Namespace') + b')\x81' + mapping({'lr': plain(0.1)}) + b'b'
    file.save(self.path, mapping({
        'epoch': plain(3), 'args': options, wrapper: mapping({'module.w': file.tensor(WEIGHT)}),
        'optimizer': b'(' + mapping({'exp_avg': file.tensor(WEIGHT)}) + b'l'}))
    self.same(archive.read(self.path), {'module.w': WEIGHT})

  def test_runs_nothing(self):
    trap = self.folder / 'trap'
    file = File()
    call = named('builtins', 'open') + b'(' + plain(str(trap)) + plain('w') + b'tR'
    file.save(self.path, mapping({'w': file.tensor(WEIGHT), 'x': call}))
    self.same(archive.read(self.path), {'w': WEIGHT})
    self.assertFalse(trap.exists())

  def test_objects_of_any_kind(self):
    file = File()
    parameter = (named('torch._utils', '_rebuild_parameter') + b'(' + file.tensor(WEIGHT)
                 + plain(True) + mapping({}) + b'tR')
    defaults = named('collections', 'defaultdict') + b')R' + plain('a') + plain(1) + b's'
    queue = named('collections', 'deque') + b')R' + plain(2) + b'a'
    circle = b']q\x63h\x63a'  # a list that holds itself
    file.save(self.path, mapping({'w': parameter, 'x': defaults, 'y': queue, 'z': circle}))
    self.same(archive.read(self.path), {'w': WEIGHT})

  def test_storage_of_an_unknown_kind(self):
    file = File()
    content = mapping({'w': file.tensor(WEIGHT)})
    file.save(self.path, content.replace(b'HalfStorage', b'QInt8Storage'))
    with self.assertRaisesRegex(ValueError, 'kind that is not known'):
      archive.read(self.path)

  def test_safetensors(self):
    safetensors = pytest.importorskip('safetensors.numpy', reason='extra `convert`')
    path = self.folder / 'a.safetensors'
    safetensors.save_file(VALUES, path)
    found = archive.read(path)
    self.same({name: found[name] for name in VALUES}, VALUES)
    self.assertLen(found, len(VALUES))
    path.write_bytes(path.read_bytes()[:-1])
    with self.assertRaisesRegex(ValueError, 'a.safetensors is damaged'):
      archive.read(path)

  @parameterized.parameters(0.1, 0.5, 0.99)
  def test_truncated(self, share):
    self.state(self.path)
    content = self.path.read_bytes()
    self.path.write_bytes(content[:int(share * len(content))])
    with self.assertRaisesRegex(ValueError, 'a.pt is damaged'):
      archive.read(self.path)

  def test_flipped_bit_of_a_weight(self):
    self.state(self.path)
    content = bytearray(self.path.read_bytes())
    content[content.index(WEIGHT.tobytes()) + 3] ^= 1
    self.path.write_bytes(content)
    with self.assertRaisesRegex(ValueError, 'damaged.*CRC'):
      archive.read(self.path)

  def test_storage_that_is_too_short(self):
    file = File()
    content = mapping({'w': file.tensor(WEIGHT)})
    file.storages = [file.storages[0][:-2]]
    file.save(self.path, content)
    with self.assertRaisesRegex(ValueError, 'damaged'):
      archive.read(self.path)

  def test_other_byte_order(self):
    File().save(self.path, mapping({}), order=b'big')
    with self.assertRaisesRegex(ValueError, "byte order b'big'"):
      archive.read(self.path)

  @parameterized.parameters(b'', b'PK but no archive')
  def test_no_archive(self, content):
    self.path.write_bytes(content)
    with self.assertRaisesRegex(ValueError, 'no zip archive.*load it and save it again'):
      archive.read(self.path)

  def test_no_pickle(self):
    with zipfile.ZipFile(self.path, 'w') as file:
      file.writestr('a/b.txt', 'c')
    with self.assertRaisesRegex(ValueError, 'no file of PyTorch'):
      archive.read(self.path)

  def test_no_file(self):
    for name in ('b.pt', 'b.safetensors'):
      with self.assertRaises(FileNotFoundError):
        archive.read(self.folder / name)


class WriteTest(ArchiveTestCase):

  def test_changes_only_what_changed(self):
    self.state(self.path)
    target = self.folder / 'b.pt'
    archive.write(target, {'weight': WEIGHT + 1}, like=self.path)
    self.same(archive.read(target), {**VALUES, 'weight': WEIGHT + 1})
    with zipfile.ZipFile(self.path) as before, zipfile.ZipFile(target) as after:
      self.assertEqual(before.namelist(), after.namelist())
      differ = [name for name in before.namelist() if before.read(name) != after.read(name)]
      self.assertEqual(differ, ['model/data/0'])
      for info in after.infolist():
        self.assertEqual(info.compress_type, zipfile.ZIP_STORED)
        content = after.read(info)
        if len(content) > 8 and content != WEIGHT.tobytes():  # long enough to be found
          self.assertEqual(target.read_bytes().index(content) % 64, 0)
    self.assertEqual({file.name for file in self.folder.iterdir()}, {'a.pt', 'b.pt'})

  def test_compressed_members_stay_compressed(self):
    file = File()
    file.save(self.path, mapping({'w': file.tensor(WEIGHT)}), compression=zipfile.ZIP_DEFLATED)
    archive.write(self.folder / 'b.pt', {}, like=self.path)
    with zipfile.ZipFile(self.folder / 'b.pt') as after:
      info = after.getinfo('model/code/clip.py')
      self.assertEqual(info.compress_type, zipfile.ZIP_DEFLATED)
      self.assertEqual(after.read(info), b'def forward(self): ...')

  def test_leaves_no_optimizer_behind(self):
    safetensors = pytest.importorskip('safetensors.numpy', reason='extra `convert`')
    file = File()
    file.save(self.path, mapping({'state_dict': mapping({'w': file.tensor(WEIGHT)}),
                                  'ema': mapping({'w': file.tensor(WEIGHT)})}))
    with self.assertRaisesRegex(ValueError, '1 tensors beside the model.*remember the data'):
      archive.write(self.folder / 'b.pt', {'w': WEIGHT + 1}, like=self.path)
    self.assertFalse((self.folder / 'b.pt').exists())
    archive.write(self.folder / 'b.safetensors', {'w': WEIGHT + 1}, like=self.path)
    self.same(safetensors.load_file(self.folder / 'b.safetensors'), {'w': WEIGHT + 1})

  def test_shared_memory(self):
    file = File()
    file.save(self.path, mapping({'a': file.tensor(WEIGHT), 'b': file.tensor(WEIGHT, storage=0)}))
    with self.assertRaisesRegex(ValueError, 'a, b share their memory'):
      archive.write(self.folder / 'b.pt', {'a': WEIGHT + 1}, like=self.path)

  def test_metadata_of_safetensors(self):
    safetensors = pytest.importorskip('safetensors', reason='extra `convert`')
    from safetensors import numpy as safetensors_numpy
    source, target = self.folder / 'a.safetensors', self.folder / 'b.safetensors'
    safetensors_numpy.save_file(VALUES, source, {'note': 'mine'})
    archive.write(target, {'weight': WEIGHT.T.copy().T + 1}, like=source)  # in Fortran's order
    with safetensors.safe_open(target, framework='np') as file:
      self.assertEqual(file.metadata(), {'format': 'pt', 'note': 'mine'})
    found = archive.read(target)
    self.same({name: found[name] for name in VALUES}, {**VALUES, 'weight': WEIGHT + 1})

  def test_a_pytorch_file_needs_one(self):
    for like in (VALUES, self.folder / 'a.safetensors'):
      with self.assertRaisesRegex(ValueError, 'made from a PyTorch file'):
        archive.write(self.folder / 'b.pt', {}, like=like)

  def test_failure_leaves_the_old_file(self):
    self.state(self.path)
    before = self.path.read_bytes()
    with self.assertRaises(ValueError):
      archive.write(self.path, {'weight': np.zeros(5)}, like=self.path)  # of another shape
    with mock.patch.object(os, 'replace', side_effect=OSError('disk')):
      with self.assertRaisesRegex(OSError, 'disk'):  # after all has been written
        archive.write(self.path, {'weight': WEIGHT + 1}, like=self.path)
    self.assertEqual(self.path.read_bytes(), before)
    self.assertLen(list(self.folder.iterdir()), 1)


if __name__ == '__main__':
  absltest.main()
