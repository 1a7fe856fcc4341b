"""Tests for the SVHN builder; what it shares with others is in published_test.py."""

import os
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
import numpy as np
from scipy import io

from unlearn_jax.data import sources
from unlearn_jax.data.builders import published_fixtures
from unlearn_jax.data.builders import svhn


class SvhnTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.data_dir = self.enter_context(tempfile.TemporaryDirectory())
    self.paths = {file.name: os.path.join(self.data_dir, file.name)
                  for file in svhn.PublishedSvhnCropped.files}

  def write(self, name, **content):
    io.savemat(os.path.join(self.data_dir, name), content)

  def test_ten_is_zero_and_records_stand_last(self):
    published_fixtures.write('svhn_cropped', self.data_dir)
    pictures = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 3), np.uint8)
    self.write('test_32x32.mat', X=pictures, y=np.asarray([[10], [1], [9]], np.uint8))
    images, labels = svhn.PublishedSvhnCropped.read(self.paths)['test']
    np.testing.assert_array_equal(labels, [0, 1, 9])
    for k in range(3):
      np.testing.assert_array_equal(images[k], pictures[..., k])

  def test_damaged(self):
    published_fixtures.write('svhn_cropped', self.data_dir)
    path = pathlib.Path(self.paths['train_32x32.mat'])
    whole = path.read_bytes()
    for content in (whole[:len(whole) // 2], b'', b'no such file', whole[:300]):
      path.write_bytes(content)
      with self.assertRaisesRegex(ValueError, 'train_32x32.mat holds no SVHN digits'):
        svhn.PublishedSvhnCropped.read(self.paths)
    for content, message in (({'X': np.zeros((32, 32, 3, 1))}, "KeyError.*'y'"),
                             ({'X': np.zeros((32, 32, 3, 1)), 'y': [[0]]}, 'outside 1 to 10'),
                             ({'X': np.zeros((32, 32, 3, 1)), 'y': [[11]]}, 'outside 1 to 10')):
      self.write('train_32x32.mat', **content)
      with self.assertRaisesRegex(ValueError, message):
        svhn.PublishedSvhnCropped.read(self.paths)

  def test_another_shape_is_refused(self):
    published_fixtures.write('svhn_cropped', self.data_dir)
    self.write('train_32x32.mat', X=np.zeros((28, 28, 3, 2), np.uint8), y=[[1], [2]])
    with self.assertRaisesRegex(ValueError, r'SVHN: the train files hold uint8 \(2, 28, 28, 3\)'):
      svhn.source(self.data_dir, os.path.join(self.data_dir, 'cache'), None)

  def test_is_not_downloaded(self):
    """Its terms allow non-commercial use only: whoever uses it has to agree to them."""
    reach = self.enter_context(mock.patch('urllib.request.urlopen'))
    with mock.patch.dict(os.environ, UNLEARN_JAX_CACHE=self.data_dir):
      with self.assertRaisesRegex(
          FileNotFoundError, 'train_32x32.mat is missing.*non-commercial use only, so get it '
          f'yourself from {svhn.PublishedSvhnCropped.files[0].url}'):
        sources.get('svhn_cropped')
    reach.assert_not_called()


if __name__ == '__main__':
  absltest.main()
