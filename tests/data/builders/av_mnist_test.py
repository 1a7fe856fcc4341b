"""Tests for AV-MNIST, on generated files in its layout."""

import os
import shutil
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from unlearn_jax.data import sources
from unlearn_jax.data.builders import av_fixtures
from unlearn_jax.data.builders import av_mnist


class AvMnistTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.data_dir = self.enter_context(tempfile.TemporaryDirectory())
    av_fixtures.write_av_mnist(self.data_dir, train=25, test=11)

  def source(self, image_size=None):
    return av_mnist.source(self.data_dir, 'unused', image_size)

  def file(self, name, split='train'):
    return av_mnist.file_of(self.data_dir, name, split)

  def loaded(self, name):
    return np.concatenate([np.load(self.file(name, split)) for split in ('train', 'test')])

  def test_the_public_layout(self):
    found = {os.path.relpath(os.path.join(folder, name), self.data_dir)
             for folder, _, names in os.walk(self.data_dir) for name in names}
    self.assertEqual(found, {
        'image/train_data.npy', 'image/test_data.npy', 'audio/train_data.npy',
        'audio/test_data.npy', 'train_labels.npy', 'test_labels.npy'})

  def test_source(self):
    source = self.source()
    source.validate()
    image, sound = np.asarray(source.fields['image']), np.asarray(source.fields['audio'])
    self.assertEqual((image.dtype, sound.dtype), (np.float32, np.float32))
    np.testing.assert_allclose(image, self.loaded('image').reshape(-1, 28, 28, 1) / 255, rtol=1e-6)
    np.testing.assert_allclose(sound, self.loaded('audio')[..., None] / 255, rtol=1e-6)
    np.testing.assert_array_equal(source.fields['label'], self.loaded('label'))
    self.assertLess(image.min(), 0)  # outside [0, 1] as in the file
    self.assertGreater(image.max(), 1)
    self.assertEqual(source.content_hash(), self.source().content_hash())
    for part in ('MNIST', 'Free Spoken Digit', 'CC BY-SA 4.0'):
      self.assertIn(part, source.attribution)

  def test_partition(self):
    expected = ['train'] * 22 + ['dep'] * 3 + ['test'] * 9 + ['dep'] * 2
    self.assertEqual(self.source().fields['partition'].tolist(), expected)

  def test_rows_of_both_files_in_any_order(self):
    source = self.source()
    rows = np.asarray([30, 2, 2, 24, 25])
    for name in ('image', 'audio'):
      field = source.fields[name]
      whole = np.asarray(field)
      np.testing.assert_array_equal(field[rows], whole[rows])
      np.testing.assert_array_equal(sources.take(field, rows)[1:], whole[rows[1:]])
      np.testing.assert_array_equal(field[26:], whole[26:])
      self.assertEqual(field[np.zeros(0, np.int64)].shape, (0, *whole.shape[1:]))

  def test_image_size(self):
    small = np.asarray(self.source(14).fields['image'])
    mean = np.asarray(self.source().fields['image']).reshape(-1, 14, 2, 14, 2, 1).mean((2, 4))
    np.testing.assert_allclose(small, mean, atol=1e-6)
    self.assertEqual(self.source(14).fields['audio'].shape, (36, 112, 112, 1))

  def test_archive_unpacked_in_data_dir(self):
    expected = self.source().content_hash()
    with tempfile.TemporaryDirectory() as above:
      shutil.copytree(self.data_dir, os.path.join(above, 'avmnist'))
      self.assertEqual(av_mnist.source(above, 'unused', None).content_hash(), expected)

  @parameterized.product(name=('image', 'audio', 'label'), split=('train', 'test'))
  def test_missing(self, name, split):
    path = self.file(name, split)
    os.remove(path)
    shown = 'image/train_data.npy' if (name, split) == ('image', 'train') else path
    with self.assertRaisesRegex(FileNotFoundError, f'AV-MNIST: {shown} is missing.*{av_mnist.URL}'):
      self.source()

  def test_no_files_at_all(self):
    with tempfile.TemporaryDirectory() as empty:
      with self.assertRaisesRegex(FileNotFoundError, f'looked in {empty} and {empty}/avmnist'):
        av_mnist.source(empty, 'unused', None)
    with self.assertRaisesRegex(FileNotFoundError, 'data_dir is not set'):
      av_mnist.source('', 'unused', None)

  @parameterized.parameters('image', 'audio', 'label')
  def test_modalities_of_other_lengths(self, name):
    path = self.file(name, 'test')
    np.save(path, np.load(path)[:7])
    with self.assertRaisesRegex(ValueError, 'must be of the same records') as caught:
      self.source()
    for one in ('image', 'audio', 'label'):
      self.assertIn(f'{self.file(one, "test")} holds {7 if one == name else 11}',
                    str(caught.exception))

  @parameterized.parameters(
      ('image', np.zeros((25, 783)), r'float64 \(25, 783\), expected numbers \[N, 784\]'),
      ('audio', np.zeros((25, 112), np.uint8), r'expected numbers \[N, 112, 112\]'),
      ('audio', np.zeros((25, 112, 112), bool), 'holds bool'),
      ('label', np.zeros(25), r'float64 \(25,\), expected integers \[N\]'),
      ('label', np.zeros((25, 10), int), r'expected integers \[N\]'),
      ('label', np.zeros(0, int), r'expected integers \[N\]'),
      ('label', np.full(25, 10), 'labels from 10 to 10, expected 0 to 9'),
      ('label', np.full(25, -1), 'labels from -1 to -1'))
  def test_other_contents(self, name, array, message):
    np.save(self.file(name), array)
    with self.assertRaisesRegex(ValueError, f'{self.file(name)} holds .*|{message}') as caught:
      self.source()
    self.assertRegex(str(caught.exception), message)

  def test_damaged(self):
    for content in (b'', b'text', open(self.file('audio'), 'rb').read()[:5000]):
      with open(self.file('audio'), 'wb') as file:
        file.write(content)
      with self.assertRaisesRegex(ValueError, f'{self.file("audio")} is no whole .npy file'):
        self.source()

  def test_pickled_objects_are_not_loaded(self):
    np.save(self.file('label'), np.asarray([{}] * 25), allow_pickle=True)
    with self.assertRaisesRegex(ValueError, 'is no whole .npy file'):
      self.source()


class FixtureTest(absltest.TestCase):

  def test_source(self):
    with tempfile.TemporaryDirectory() as cache:
      source = av_fixtures.av_mnist_source('ignored', cache, None)
      source.validate()
      self.assertEqual(source.name, 'av_mnist_fixture')
      self.assertIn('Generated', source.attribution)
      label, partition = source.fields['label'], source.fields['partition']
      np.testing.assert_array_equal(np.bincount(label), np.full(10, 40))
      for name in ('image', 'audio'):
        values = np.asarray(source.fields[name]).reshape(len(source), -1)
        centres = np.stack([values[(label == digit) & (partition == 'train')].mean(0)
                            for digit in range(10)])
        test = partition == 'test'
        nearest = np.square(values[test][:, None] - centres[None]).sum(-1).argmin(1)
        self.assertGreater(np.mean(nearest == label[test]), 0.9)  # there is something to learn
      again = av_fixtures.av_mnist_source('ignored', cache, None)
      self.assertEqual(again.content_hash(), source.content_hash())
      self.assertLen(os.listdir(os.path.join(cache, 'fixtures')), 1)


if __name__ == '__main__':
  absltest.main()
