"""Statistics of pixels against closed forms and NumPy's own covariance."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from unlearn_jax.data import pixels
from unlearn_jax.data import sources


class PixelsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.images = np.random.default_rng(0).uniform(size=(6, 2, 3, 3)).astype(np.float32)

  def test_covariance_is_numpys(self):
    found = pixels.covariance(self.images)
    self.assertEqual(found.dtype, np.float64)
    np.testing.assert_allclose(
        found, np.cov(self.images.reshape(6, -1).astype(np.float64), rowvar=False), atol=1e-15)

  def test_grey(self):
    luma = self.images.astype(np.float64) @ (0.299, 0.587, 0.114)
    np.testing.assert_allclose(pixels.covariance(self.images, grey=True),
                               np.cov(luma.reshape(6, -1), rowvar=False), atol=1e-15)
    equal = np.repeat(self.images[..., :1], 3, axis=3)  # without colour, grey is each channel
    np.testing.assert_allclose(pixels.covariance(equal, grey=True),
                               pixels.covariance(self.images[..., :1]), atol=1e-12)

  def test_off_diagonal_of_known_matrices(self):
    self.assertEqual(pixels.off_diagonal(np.eye(5)), (1.0, 0.0))
    ones = pixels.off_diagonal(np.ones((4, 4)))
    self.assertEqual(ones.small, 0.0)
    self.assertAlmostEqual(ones.energy, 12 / 16)
    self.assertEqual(pixels.off_diagonal(np.diag([0.0, 2.0])), (1.0, 0.0))  # a pixel that is blank
    # Almost all entries may be small and carry most of the energy nevertheless.
    equicorrelated = 0.95 * np.eye(1000) + 0.05
    found = pixels.off_diagonal(equicorrelated)
    self.assertEqual(found.small, 1.0)
    self.assertAlmostEqual(found.energy, 1 - 1 / (1 + 999 * 0.05**2))
    self.assertEqual(pixels.off_diagonal(equicorrelated, closeness=0.01).small, 0.0)
    self.assertEqual(pixels.off_diagonal(-np.ones((2, 2)) + 3 * np.eye(2), closeness=0.4).small, 0)

  def test_pixels_of_a_source(self):
    source = sources.get('synthetic')
    forget = np.asarray([3, 1])
    found = pixels.of(source, forget, mean=(0.5,), std=(0.25,))
    forget[:] = 0  # the pictures must not change with the caller's array
    np.testing.assert_array_equal(found.images(), source.fields['image'][[3, 1]])
    self.assertEqual(found.images().dtype, np.float32)
    np.testing.assert_array_equal(found.mean, [0.5])
    plain = pixels.of(source, [0])
    self.assertEqual((plain.mean.tolist(), plain.std.tolist()), ([0.0], [1.0]))

  def test_one_statistic_serves_all_channels(self):
    source = sources.Source('colours', {'image': self.images}, np.arange(6).astype(str), 0, '')
    found = pixels.of(source, [0], mean=(0.5,), std=(0.1, 0.2, 0.3))
    np.testing.assert_array_equal(found.mean, [0.5] * 3)
    np.testing.assert_allclose(found.std, (0.1, 0.2, 0.3), rtol=1e-6)

  def test_bad_input(self):
    source = sources.get('synthetic')
    for arguments, message in (({'mean': (0.1, 0.2)}, '1 finite numbers'),
                               ({'std': (0.0,)}, 'positive'), ({'std': 1.0}, 'finite numbers'),
                               ({'mean': (np.nan,)}, 'finite numbers')):
      with self.assertRaisesRegex(ValueError, message):
        pixels.of(source, [0], **arguments)
    for images, grey, message in (
        (self.images[:1], False, 'at least two'), (self.images[0], False, 'N, H, W, C'),
        (self.images[..., :2], True, '3 channels'),
        (np.where(self.images > 0.5, np.inf, self.images), False, 'finite values')):
      with self.assertRaisesRegex(ValueError, message):
        pixels.covariance(images, grey=grey)
    for matrix, message in ((np.ones((2, 3)), 'square'), (np.ones((1, 1)), 'at least 2'),
                            (np.zeros((2, 2)), 'no variance')):
      with self.assertRaisesRegex(ValueError, message):
        pixels.off_diagonal(matrix)


if __name__ == '__main__':
  absltest.main()
