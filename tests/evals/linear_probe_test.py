"""The linear probe against scikit-learn, its choice of C, and what is refused."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy import special
from sklearn import linear_model
import threadpoolctl

from unlearn_jax.evals import linear_probe


def blobs(seed, n, dimensions=8, classes=4, distance=0.7):
  """Overlapping clouds whose coordinates have very different scales and offsets."""
  means = distance * np.random.default_rng(0).normal(size=(classes, dimensions))
  rng = np.random.default_rng(seed)
  labels = np.arange(n) % classes
  x = means[labels] + rng.normal(size=(n, dimensions))
  return (x * np.geomspace(0.01, 100, dimensions) + 5).astype(np.float32), labels


class FitTest(parameterized.TestCase):

  @parameterized.product(strength=(1e-3, 1.0, 1e3), classes=(2, 5))
  def test_is_scikit_learns_minimum(self, strength, classes):
    features, labels = blobs(1, 300, classes=classes)
    probe, = linear_probe.fit(features, labels, num_classes=classes, strengths=[strength])
    self.assertTrue(probe.converged)
    standard = (features - features.mean(axis=0)) / features.std(axis=0)
    if classes == 2:  # scikit-learn's two-class model has one vector: two of C are one of 2 C
      strength *= 2
    with threadpoolctl.threadpool_limits(1):
      other = linear_model.LogisticRegression(C=strength, tol=1e-10, max_iter=10_000).fit(
          standard.astype(np.float64), labels)
      want = other.predict_proba(standard.astype(np.float64))
    np.testing.assert_allclose(special.softmax(probe.scores(features), axis=1), want, atol=1e-3)

  def test_a_path_gives_what_single_fits_give(self):
    features, labels = blobs(2, 200)
    strengths = [1e-2, 1.0, 1e2]
    together = linear_probe.fit(features, labels, num_classes=4, strengths=strengths)
    for probe, strength in zip(together, strengths):
      alone, = linear_probe.fit(features, labels, num_classes=4, strengths=[strength])
      np.testing.assert_allclose(probe.scores(features), alone.scores(features), atol=5e-3)
    sizes = [np.linalg.norm(probe.weight) for probe in together]
    self.assertEqual(sizes, sorted(sizes))

  def test_scaling_the_features_changes_nothing(self):
    features, labels = blobs(3, 200)
    a, b = (linear_probe.fit(x, labels, num_classes=4, strengths=[1.0])[0]
            for x in (features, 1000 * features - 3))
    np.testing.assert_allclose(a.scores(features), b.scores(1000 * features - 3), atol=5e-3)

  def test_a_dead_feature_is_harmless(self):
    features, labels = blobs(4, 100)
    features[:, 3] = 7.3
    probe, = linear_probe.fit(features, labels, num_classes=4, strengths=[1.0])
    self.assertTrue(probe.converged)
    np.testing.assert_allclose(probe.weight[3], 0, atol=1e-6)

  def test_says_when_it_has_not_converged(self):
    features, labels = blobs(5, 200)
    probe, = linear_probe.fit(features, labels, num_classes=4, strengths=[10.0], max_iterations=2)
    self.assertFalse(probe.converged)
    self.assertEqual(probe.iterations, 2)
    self.assertGreater(probe.gradient, linear_probe.TOLERANCE)

  def test_ends_where_float32_does(self):
    features, labels = blobs(7, 100)
    probe, = linear_probe.fit(features, labels, num_classes=4, strengths=[1.0], tolerance=1e-12)
    self.assertFalse(probe.converged)
    self.assertLess(probe.iterations, 200)  # not the 1000 that are allowed
    self.assertLess(probe.gradient, 1e-5)

  def test_what_is_refused(self):
    features, labels = blobs(6, 20)
    broken = features.copy()
    broken[3, 1] = np.nan
    for x, y, classes, strengths, message in (
        (broken, labels, 4, [1.0], 'features: not finite'),
        (features[0], labels, 4, [1.0], r'must be \[N, D\]'),
        (features, labels[:5], 4, [1.0], '20 features, labels of shape'),
        (features, labels, 3, [1.0], r'outside \[0, 3\)'),
        (features, labels, 1, [1.0], 'two classes or more'),
        (features, labels, 4, [1.0, 0.1], 'ascending'), (features, labels, 4, [], 'ascending'),
        (features, labels, 4, [0.0], 'ascending')):
      with self.assertRaisesRegex(ValueError, message):
        linear_probe.fit(x, y, num_classes=classes, strengths=strengths)


class EvaluateTest(parameterized.TestCase):

  def test_chooses_on_validation_and_refits_on_both(self):
    # Few records in many dimensions: little regularisation overfits.
    train, validation, test = (blobs(seed, n, dimensions=40, distance=0.35)
                               for seed, n in ((1, 60), (2, 400), (3, 400)))
    strengths = (1e-4, 1e-2, 1e2)
    found = linear_probe.evaluate(train, validation, test, num_classes=4, strengths=strengths)
    right = [np.mean(probe.scores(validation[0]).argmax(axis=1) == validation[1])
             for probe in linear_probe.fit(*train, num_classes=4, strengths=strengths)]
    self.assertEqual(found['linear_probe/C'], strengths[int(np.argmax(right))])
    self.assertNotEqual(found['linear_probe/C'], 1e2)
    self.assertAlmostEqual(found['linear_probe/validation'], max(right))
    both = [np.concatenate(parts) for parts in zip(train, validation)]
    last, = linear_probe.fit(*both, num_classes=4, strengths=[found['linear_probe/C']])
    top1 = np.mean(last.scores(test[0]).argmax(axis=1) == test[1])
    self.assertAlmostEqual(found['linear_probe/top1'], top1)
    self.assertGreater(top1, max(right))  # more records, better probe
    self.assertEqual(found['linear_probe/converged'], 1.0)
    self.assertCountEqual(found, [f'linear_probe/{name}' for name in (
        'top1', 'mean_per_class', 'validation', 'C', 'converged')])

  def test_features_without_information_score_chance(self):
    rng = np.random.default_rng(0)
    noise = lambda n: (rng.normal(size=(n, 5)), np.arange(n) % 4)
    found = linear_probe.evaluate(noise(200), noise(200), noise(1000), num_classes=4)
    self.assertAlmostEqual(found['linear_probe/top1'], 0.25, delta=0.06)


if __name__ == '__main__':
  absltest.main()
