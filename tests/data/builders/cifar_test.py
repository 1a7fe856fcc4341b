"""Tests for the CIFAR builders; what they share with others is in published_test.py."""

import os
import pathlib
import pickle
import tarfile
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from unlearn_jax.data.builders import cifar
from unlearn_jax.data.builders import published_fixtures


class CifarTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.data_dir = self.enter_context(tempfile.TemporaryDirectory())

  def read(self, builder, path):
    return builder.read({builder.files[0].name: path})

  def batch(self, content):
    """Reads one batch of the given content, unpacked."""
    path = os.path.join(self.data_dir, 'test_batch')
    pathlib.Path(path).write_bytes(content)
    return cifar._batch(self.data_dir, 'cifar-10-batches-py/test_batch', b'labels')

  @parameterized.parameters(cifar.PublishedCifar10, cifar.PublishedCifar100)
  def test_archive_or_directory(self, builder):
    published_fixtures.write(builder.tfds_name, self.data_dir)
    path = os.path.join(self.data_dir, builder.files[0].name)
    packed = self.read(builder, path)
    with tarfile.open(path) as archive:
      archive.extractall(self.data_dir, filter='data')
    unpacked = self.read(builder, os.path.join(self.data_dir, builder.files[0].unpacked))
    for split in ('train', 'test'):
      self.assertLen(packed[split][1], 8 * builder.classes)
      for one, other in zip(packed[split], unpacked[split]):
        np.testing.assert_array_equal(one, other)

  def test_planes_and_order(self):
    """The first 1,024 values of a picture are red, row by row."""
    data = np.zeros((2, 3072), np.uint8)
    data[0, 32:64] = 7  # red, second row
    data[1, 2048 + 5] = 9  # blue, first row, sixth column
    images, labels = self.batch(published_fixtures.python2_pickle(
        {b'data': data, b'labels': [3, 1], b'filenames': [b'a.png', b'b.png']}))
    expected = np.zeros((2, 32, 32, 3), np.uint8)
    expected[0, 1, :, 0] = 7
    expected[1, 0, 5, 2] = 9
    np.testing.assert_array_equal(images, expected)
    np.testing.assert_array_equal(labels, [3, 1])

  def test_runs_no_code(self):
    """A pickle that would create a file, and one that asks for another function of NumPy."""
    marker = os.path.join(self.data_dir, 'marker')

    class Evil:

      def __reduce__(self):
        return os.mkdir, (marker,)

    with self.assertRaisesRegex(ValueError, r'mkdir is not allowed in a CIFAR batch'):
      self.batch(pickle.dumps([Evil()], 2))
    self.assertFalse(os.path.exists(marker))
    load = pickle.PROTO + b'\x02' + pickle.GLOBAL + b'numpy\nload\n' + pickle.STOP
    with self.assertRaisesRegex(ValueError, r'numpy\.load is not allowed'):
      self.batch(load)
    objects = published_fixtures.python2_pickle({b'data': np.zeros(1, np.uint8)})
    self.assertEqual(objects.count(b'u1'), 1)
    with self.assertRaisesRegex(ValueError, 'arrays of objects are not allowed'):
      self.batch(objects.replace(b'u1', b'O8'))

  def test_damaged(self):
    builder = cifar.PublishedCifar10
    whole = published_fixtures.python2_pickle(
        {b'data': np.zeros((1, 3072), np.uint8), b'labels': [0]})
    for content, message in (
        (whole[:1000], 'truncated'), (b'', 'EOFError'), (b'hello', 'UnpicklingError'),
        (published_fixtures.python2_pickle({b'labels': [0]}), "KeyError.*'data'"),
        (published_fixtures.python2_pickle({b'data': np.zeros((1, 3), np.uint8),
                                            b'labels': [0]}), r'uint8 \(1, 3\) for 1 labels'),
        (published_fixtures.python2_pickle({b'data': np.zeros((1, 3072), np.uint8),
                                            b'labels': [0, 1]}), 'for 2 labels')):
      with self.assertRaisesRegex(ValueError, f'test_batch is no CIFAR batch.*{message}'):
        self.batch(content)
    published_fixtures.write('cifar10', self.data_dir)
    path = pathlib.Path(self.data_dir, builder.files[0].name)
    archive = path.read_bytes()
    for content in (archive[:len(archive) // 2], archive[:20], b'no archive'):
      path.write_bytes(content)
      with self.assertRaisesRegex(ValueError, 'is no CIFAR batch'):
        self.read(builder, str(path))
    with tarfile.open(path, 'w:gz'):
      pass
    with self.assertRaisesRegex(ValueError, 'data_batch_1 is no CIFAR batch'):
      self.read(builder, str(path))


if __name__ == '__main__':
  absltest.main()
