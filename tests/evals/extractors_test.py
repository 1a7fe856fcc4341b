"""Tests of the extractors: batches, clipping, resizing against a filter written out, names."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from unlearn_jax.evals import extractors


def pictures(n=5, side=4, channels=3, seed=0):
  return np.random.default_rng(seed).uniform(size=(n, side, side, channels)).astype(np.float32)


def linear(traces):
  """A classifier of fixed weights that counts how often it is traced."""
  def apply(variables, inputs, *, train=False):
    assert not train
    traces.append(inputs['image'].shape)
    features = jnp.mean(inputs['image'], axis=(1, 2)) + variables['shift']
    return {'features': features, 'logits': features @ variables['weight']}, variables

  rng = np.random.default_rng(1)
  return apply, {'weight': jnp.asarray(rng.normal(size=(3, 4)), jnp.float32),
                 'shift': jnp.float32(0.5)}


def bicubic(before, after):
  """PIL's filter as a matrix [after, before]: Keys' cubic with a = -1/2, widened when it shrinks."""
  scale = max(before / after, 1.0)
  weights = np.zeros((after, before))
  for i in range(after):
    centre = (i + 0.5) * before / after
    low = max(int(centre - 2 * scale + 0.5), 0)
    high = min(int(centre + 2 * scale + 0.5), before)
    for j in range(low, high):
      t = abs((j - centre + 0.5) / scale)
      if t < 1:
        weights[i, j] = 1.5 * t**3 - 2.5 * t**2 + 1
      elif t < 2:
        weights[i, j] = -0.5 * (t**3 - 5 * t**2 + 8 * t - 4)
  return weights / weights.sum(axis=1, keepdims=True)


class NetworkTest(parameterized.TestCase):

  def test_features_and_probabilities(self):
    traces = []
    extractor = extractors.classifier(*linear(traces), 'classifier:x', batch_size=2)
    apply, variables = linear([])
    images = pictures()
    wanted, _ = apply(variables, {'image': images})
    features = extractor.features(images)
    np.testing.assert_allclose(features, wanted['features'], rtol=1e-6)
    self.assertEqual(features.dtype, np.float32)
    odds = np.exp(np.asarray(wanted['logits']))
    np.testing.assert_allclose(extractor.probabilities(images),
                               odds / odds.sum(axis=1, keepdims=True), rtol=1e-5)
    self.assertEqual(traces, [(2, 4, 4, 3)] * 2)  # once per output, the last batch being padded
    self.assertEqual((extractor.id, extractor.official), ('classifier:x', ()))

  def test_pictures_are_clipped(self):
    extractor = extractors.classifier(*linear([]), 'c')
    images = pictures()
    np.testing.assert_array_equal(extractor.features(2 * images - 0.5),
                                  extractor.features(np.clip(2 * images - 0.5, 0, 1)))

  def test_preparation_by_batches(self):
    seen = []

    def prepare(images):
      seen.append(len(images))
      return images[:, :2, :2] * 10

    extractor = extractors.network(*linear([]), 'n', prepare=prepare, batch_size=2)
    images = pictures()
    np.testing.assert_allclose(extractor.features(images),
                               10 * images[:, :2, :2].mean(axis=(1, 2)) + 0.5, rtol=1e-5)
    self.assertEqual(seen, [2, 2, 2])
    self.assertIsNone(extractor.probabilities)

  def test_an_output_that_is_not_there(self):
    extractor = extractors.network(*linear([]), 'n', features='embedding')
    with self.assertRaisesRegex(ValueError, r"no output \['embedding'\]"):
      extractor.features(pictures())

  @parameterized.parameters(
      (np.ones((4, 4, 3)), r'must be \[N, H, W, C\]'), (np.ones((0, 4, 4, 3)), 'one at least'),
      (np.full((1, 4, 4, 3), np.nan), 'pictures: not finite'))
  def test_bad_pictures(self, images, message):
    extractor = extractors.classifier(*linear([]), 'c')
    for function in (extractor.features, extractor.probabilities):
      with self.assertRaisesRegex(ValueError, message):
        function(images)


class RandomConvTest(parameterized.TestCase):

  @parameterized.parameters(1, 3)
  def test_fixed_by_its_seed(self, channels):
    images = pictures(side=9, channels=channels)
    extractor = extractors.random_conv(3)
    features = extractor.features(images)
    self.assertEqual((extractor.id, features.shape), ('random_conv:3', (5, 64)))
    np.testing.assert_array_equal(extractors.random_conv(3).features(images), features)
    self.assertGreater(np.abs(extractors.random_conv(4).features(images) - features).max(), 1e-2)
    self.assertGreater(np.ptp(features, axis=0).max(), 1e-2)  # pictures differ
    self.assertIsNone(extractor.probabilities)


class ResizedTest(parameterized.TestCase):

  @parameterized.parameters((4, 9), (9, 4), (7, 7), (2, 3))
  def test_is_pils_filter(self, before, after):
    images = pictures(n=2, side=before)
    weights = bicubic(before, after)
    wanted = np.einsum('ai,bj,nijc->nabc', weights, weights, images)
    found = extractors.resized(images, after)
    self.assertEqual(found.dtype, np.float32)
    np.testing.assert_allclose(found, wanted, atol=1e-6)

  def test_pictures_that_are_not_square(self):
    images = pictures(n=1, side=6)[:, :4]
    wanted = np.einsum('ai,bj,nijc->nabc', bicubic(4, 5), bicubic(6, 5), images)
    np.testing.assert_allclose(extractors.resized(images, 5), wanted, atol=1e-6)

  def test_channels(self):
    grey = pictures(channels=1)
    found = extractors.resized(grey, 6)
    self.assertEqual(found.shape, (5, 6, 6, 3))
    np.testing.assert_array_equal(found, extractors.resized(np.repeat(grey, 3, axis=-1), 6))
    with self.assertRaisesRegex(ValueError, '1 or 3 channels, got 2'):
      extractors.resized(pictures(channels=2), 6)

  def test_no_rounding_to_bytes(self):
    flat = np.full((1, 3, 3, 3), 0.123456, np.float32)
    np.testing.assert_allclose(extractors.resized(flat, 8), 0.123456, rtol=1e-6)


class TitleTest(parameterized.TestCase):

  def test_plain_names_are_for_published_weights(self):
    extractor = extractors.Extractor('inception:fid:6726825d', np.asarray, official=('fid',))
    self.assertEqual(extractors.title('fid', extractor), 'FID')
    self.assertEqual(extractors.title('is', extractor), 'is[inception:fid:6726825d]')
    own = extractors.random_conv(0)
    self.assertEqual([extractors.title(metric, own) for metric in extractors.TITLES],
                     ['fid[random_conv:0]', 'is[random_conv:0]', 'emb_cos[random_conv:0]'])
    with self.assertRaisesRegex(ValueError, "fid, is, emb_cos, got 'kid'"):
      extractors.title('kid', own)


if __name__ == '__main__':
  absltest.main()
