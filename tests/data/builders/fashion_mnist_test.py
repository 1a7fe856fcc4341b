"""Tests for the Fashion-MNIST builder; what it shares with others is in published_test.py."""

import gzip
import hashlib
import os
import pathlib
import tempfile

from absl.testing import absltest
import numpy as np
import pytest

from unlearn_jax.data.builders import fashion_mnist
from unlearn_jax.data.builders import published
from unlearn_jax.data.builders import published_fixtures

DEBIAN = '/usr/share/datasets/fashion-mnist'  # of the package dataset-fashion-mnist
# Modification times that the published files carry in their gzip headers; Debian leaves them and
# the names out, and with them put back the files hash to the published sums.
PACKED = {'train-images-idx3-ubyte': 1504176606, 'train-labels-idx1-ubyte': 1504176606,
          't10k-images-idx3-ubyte': 1504176627, 't10k-labels-idx1-ubyte': 1504176627}


class FashionMnistTest(absltest.TestCase):

  def test_idx(self):
    directory = self.enter_context(tempfile.TemporaryDirectory())
    path = os.path.join(directory, 'file.gz')
    header = bytes((0, 0, 8, 3)) + bytes((0, 0, 0, 2)) + bytes((0, 0, 0, 1)) + bytes((0, 0, 0, 3))
    whole = gzip.compress(header + bytes(range(6)))
    pathlib.Path(path).write_bytes(whole)
    np.testing.assert_array_equal(fashion_mnist._idx(path, 3), [[[0, 1, 2]], [[3, 4, 5]]])
    for content, message in (
        (whole[:-9], 'EOFError'), (b'', 'starts with ,'), (b'hello', 'Not a gzipped file'),
        (gzip.compress(header), 'cannot reshape'), (gzip.compress(header + bytes(7)), 'reshape'),
        (gzip.compress(bytes((0, 0, 13, 3))), 'starts with 00000d03, expected 00000803')):
      pathlib.Path(path).write_bytes(content)
      with self.assertRaisesRegex(ValueError, f'file.gz is no IDX file of 3 axes.*{message}'):
        fashion_mnist._idx(path, 3)

  def test_labels_that_do_not_fit(self):
    directory = self.enter_context(tempfile.TemporaryDirectory())
    published_fixtures.write('fashion_mnist', directory)
    path = pathlib.Path(directory, 'train-labels-idx1-ubyte.gz')
    path.write_bytes(gzip.compress(bytes((0, 0, 8, 1, 0, 0, 0, 2, 4, 4))))
    with self.assertRaisesRegex(ValueError, r'uint8 \(80, 28, 28, 1\) pictures and 2 labels'):
      fashion_mnist.source(directory, os.path.join(directory, 'cache'), None)

  @pytest.mark.slow
  def test_real_files(self):
    if not os.path.isdir(DEBIAN):
      self.skipTest('needs the Debian package dataset-fashion-mnist')
    for name, time in PACKED.items():
      data = pathlib.Path(DEBIAN, f'{name}.gz').read_bytes()
      self.assertEqual(data[:4], b'\x1f\x8b\x08\x00')
      header = b'\x1f\x8b\x08\x08' + time.to_bytes(4, 'little') + data[8:10]
      self.assertEqual(
          hashlib.sha256(header + name.encode() + b'\0' + data[10:]).hexdigest(),
          {file.name: file.sha256 for file in fashion_mnist.PublishedFashionMnist.files}[
              f'{name}.gz'])
    cache = self.enter_context(tempfile.TemporaryDirectory())
    source = fashion_mnist.source(DEBIAN, cache, None)
    self.assertEqual(source.attribution, fashion_mnist.PublishedFashionMnist.attribution)
    image, label = source.fields['image'], source.fields['label']
    self.assertEqual(image.shape, (70_000, 28, 28, 1))
    for part, count in ((slice(60_000), 6_000), (slice(60_000, None), 1_000)):
      np.testing.assert_array_equal(np.bincount(label[part]), np.full(10, count))
    self.assertTrue((source.fields['partition'][:60_000] == 'train').all())
    self.assertTrue((source.fields['partition'][60_000:] == 'test').all())
    self.assertEqual(label[:5].tolist(), [9, 0, 0, 3, 0])
    files = fashion_mnist.PublishedFashionMnist.read({
        file.name: published.find(DEBIAN, file)
        for file in fashion_mnist.PublishedFashionMnist.files})
    np.testing.assert_array_equal(image.bytes, np.concatenate([files['train'][0],
                                                               files['test'][0]]))


if __name__ == '__main__':
  absltest.main()
