"""Files of PyTorch before 1.6, put together here opcode by opcode, and by PyTorch itself (slow)."""

import math
import pathlib
import pickle
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

from unlearn_jax.models import archive
from unlearn_jax.models import archive_legacy
from unlearn_jax.models import inception

STORAGES = {'float32': 'FloatStorage', 'float16': 'HalfStorage', 'int64': 'LongStorage'}
VALUES = {'conv.weight': np.arange(6, dtype=np.float32).reshape(2, 3), 'scale': np.float16([1.5]),
          'count': np.array(7)}


def plain(value):
  """Opcodes of a value of Python's own types, without header and stop."""
  return pickle.dumps(value, 2)[2:-1]


def tensor(value, key, rebuild='_rebuild_tensor_v2', view=None):
  """Opcodes of a tensor that fills the storage `key`."""
  strides = tuple(math.prod(value.shape[axis + 1:]) for axis in range(value.ndim))
  pid = (b'(' + plain('storage') + f'ctorch\n{STORAGES[value.dtype.name]}\n'.encode() + plain(key)
         + plain('cpu') + plain(value.size) + plain(view) + b'tQ')
  end = plain(False) + b'ccollections\nOrderedDict\n)R' if rebuild.endswith('v2') else b''
  return (f'ctorch._utils\n{rebuild}\n('.encode() + pid + plain(0) + plain(value.shape)
          + plain(strides) + end + b'tR')


def mapping(items):
  return b'}(' + b''.join(plain(key) + value for key, value in items.items()) + b'u'


def file_of(content, values, version=1001, little=True):
  """The bytes of a file: five pickles, then the storages."""
  keys = [str(number) for number in range(len(values))]
  head = [archive_legacy._MAGIC, version, {'protocol_version': version, 'little_endian': little}]
  parts = [pickle.dumps(each, 2) for each in head] + [b'\x80\x02' + content + b'.',
                                                      pickle.dumps(keys, 2)]
  for value in values:
    parts.append(np.int64(value.size).tobytes() + value.tobytes())
  return b''.join(parts)


def state(values=None, **options):
  values = VALUES if values is None else values
  return mapping({name: tensor(value, str(number), **options)
                  for number, (name, value) in enumerate(values.items())})


class LegacyTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / 'a.pth'

  def read(self, content, values=tuple(VALUES.values()), **header):
    self.path.write_bytes(file_of(content, values, **header))
    return archive_legacy.read(self.path)

  def check(self, found, wanted=VALUES):
    self.assertEqual(list(found), list(wanted))
    for name, value in wanted.items():
      self.assertEqual(found[name].dtype, value.dtype)
      np.testing.assert_array_equal(found[name], value)

  @parameterized.parameters('_rebuild_tensor_v2', '_rebuild_tensor')
  def test_state_dict(self, rebuild):
    self.check(self.read(state(rebuild=rebuild)))
    self.assertTrue(archive_legacy.is_legacy(self.path))
    self.check(archive.read(self.path))  # what everybody calls

  def test_training_checkpoint(self):
    """The model alone; the storages of the optimizer lie between."""
    moment = np.float32([5, 6, 7])
    content = mapping({'optimizer': mapping({'moment': tensor(moment, '3')}), 'state_dict': state()})
    self.check(self.read(content, (*VALUES.values(), moment)))

  def test_code_is_not_run(self):
    content = mapping({'evil': b'cos\nsystem\n(' + plain('false') + b'tR',
                       'x': tensor(VALUES['scale'], '0')})
    self.check(self.read(content, (VALUES['scale'],)), {'x': VALUES['scale']})

  @parameterized.parameters(
      ({'version': 1000}, 'version 1000'), ({'little': False}, "'little_endian': False"))
  def test_other_headers(self, header, message):
    with self.assertRaisesRegex(ValueError, f'is damaged, or no state dict.*{message}'):
      self.read(state(), **header)

  def test_damage(self):
    whole = file_of(state(), tuple(VALUES.values()))
    for size in (len(whole) - 3, len(whole) - 40, 60):
      self.path.write_bytes(whole[:size])
      with self.assertRaisesRegex(ValueError, 'is damaged'):
        archive_legacy.read(self.path)
    with self.assertRaisesRegex(ValueError, 'is damaged.*view of another'):
      self.read(state(view=('1', 0, 2)))

  def test_other_files(self):
    self.path.write_bytes(b'PK\x03\x04 and so on, a zip archive')
    self.assertFalse(archive_legacy.is_legacy(self.path))
    with self.assertRaisesRegex(ValueError, 'no file of PyTorch before 1.6'):
      archive_legacy.read(self.path)
    with self.assertRaises(FileNotFoundError):
      archive_legacy.read(self.path.with_name('missing.pth'))

  def test_inception_reads_them(self):
    self.path.write_bytes(file_of(state(), tuple(VALUES.values())))
    with self.assertRaisesRegex(ValueError, r'a.pth: no Inception v3, .fc.weight.'):
      inception.load(self.path)

  @pytest.mark.slow
  def test_pytorch_itself(self):
    torch = pytest.importorskip('torch', reason='extra `parity`; make test-slow installs it')
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    torch.save({'epoch': 3, 'state_dict': module.state_dict()}, self.path,
               _use_new_zipfile_serialization=False)
    self.check(archive_legacy.read(self.path),
               {name: value.numpy() for name, value in module.state_dict().items()})


if __name__ == '__main__':
  absltest.main()
