"""Tests for the generated files; that the builders read them is tested beside the builders."""

import pickle
import warnings

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from unlearn_jax.data.builders import published_fixtures


class FixturesTest(parameterized.TestCase):

  def test_python2_pickle_is_a_pickle(self):
    """Python's own unpickler, unrestricted, reads the same."""
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    value = {b'data': array, b'labels': [1, 2], b'text': b'x' * 300, b'nothing': None,
             b'pair': (1, b'a')}
    encoded = published_fixtures.python2_pickle(value)
    self.assertNotIn(b'_codecs', encoded)  # what Python 3 writes for bytes under protocol 2
    with warnings.catch_warnings():  # NumPy 2.4 has one about the integer that was `align`
      warnings.simplefilter('ignore')
      decoded = pickle.loads(encoded, encoding='bytes')
    np.testing.assert_array_equal(decoded.pop(b'data'), value.pop(b'data'))
    self.assertEqual(decoded, value)
    with self.assertRaisesRegex(TypeError, 'no str'):
      published_fixtures.python2_pickle({'text': 1})

  def test_pictures_show_their_class(self):
    train, labels = published_fixtures.pictures('cifar10', 'train', 4)
    test, _ = published_fixtures.pictures('cifar10', 'test', 1)
    distance = ((train[:, None].astype(float) - test[None]) ** 2).mean((2, 3, 4))
    np.testing.assert_array_equal(distance.argmin(1), labels)
    self.assertFalse((train[0] == train[10]).all())

  @parameterized.parameters('cifar10', 'cifar100', 'fashion_mnist', 'svhn_cropped')
  def test_sources(self, name):
    source = getattr(published_fixtures, f'{name}_source')('ignored', 'ignored', 16)
    source.validate()
    self.assertEqual(source.name, f'{name}_fixture')
    self.assertEqual(source.fields['image'].shape[1:3], (16, 16))
    self.assertIn('Generated', source.attribution)
    counts = np.bincount(source.fields['label'])
    np.testing.assert_array_equal(counts, np.full(source.num_classes, 16))


if __name__ == '__main__':
  absltest.main()
