"""Distances between distributions and models against their naive forms."""

from absl.testing import absltest
import numpy as np
from scipy import spatial
from scipy import stats

from unlearn_jax.audit import distances
from unlearn_jax.audit import intervals
from unlearn_jax.audit import outputs


class DistanceTest(absltest.TestCase):

  def test_jensen_shannon_equals_scipy(self):
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(6), 4), rng.dirichlet(np.ones(6), 4)
    q[0, 0] = 0
    q[0] /= q[0].sum()
    expected = spatial.distance.jensenshannon(p, q, base=2, axis=1)
    np.testing.assert_allclose(distances.jensen_shannon(p, q), expected, atol=1e-12)
    self.assertEqual(distances.jensen_shannon(p[0], p[0]), 0)
    self.assertEqual(distances.jensen_shannon(np.array([1.0, 0]), np.array([0, 1.0])), 1)

  def test_kolmogorov_smirnov_equals_scipy_with_ties_and_counts(self):
    rng = np.random.default_rng(1)
    x, y = rng.integers(8, size=30).astype(float), rng.integers(10, size=20).astype(float)
    counts = [intervals.resample(rng, size, 3) for size in (30, 20)]
    found = distances.kolmogorov_smirnov(x, y, *counts)
    for row in range(4):
      drawn = [np.repeat(part, number[row].astype(int)) for part, number in zip((x, y), counts)]
      self.assertAlmostEqual(found[row], stats.ks_2samp(*drawn).statistic, places=12)

  def test_klom_equals_a_loop(self):
    rng = np.random.default_rng(2)
    mine, others = rng.normal(1, 2, (7, 5)), rng.normal(0, 1, (9, 5))
    mine[0, 0] = 1e9  # clipped
    found = distances.klom_per_record(mine, others)
    for i in range(5):
      p, q = np.clip(mine[:, i], -100, 100), np.clip(others[:, i], -100, 100)
      edges = np.linspace(min(p.min(), q.min()), max(p.max(), q.max()), 21)
      p, q = (np.histogram(part, edges)[0] / len(part) for part in (p, q))
      self.assertAlmostEqual(found[i], stats.entropy(p) * -1 - np.sum(
          p[p > 0] * np.log(np.maximum(q[p > 0], 1e-5))), places=9)

  def test_klom_is_zero_for_the_same_models_and_finite_for_constant_margins(self):
    margins = np.random.default_rng(3).normal(size=(6, 4))
    np.testing.assert_array_equal(distances.klom_per_record(margins, margins), 0)
    np.testing.assert_array_equal(distances.klom_per_record(np.ones((3, 2)), np.ones((4, 2))), 0)


class ScoresTest(absltest.TestCase):

  def test_by_hand(self):
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])) + 3
    found = outputs.scores(logits, np.array([1, 2]))
    np.testing.assert_allclose(found['loss'], -np.log([0.25, 0.8]))
    np.testing.assert_allclose(found['confidence'], [0.25, 0.8])
    np.testing.assert_allclose(found['entropy'], [1.5 * np.log(2), stats.entropy([.1, .1, .8])])
    np.testing.assert_allclose(found['margin'], np.log([1 / 3, 4]))
    np.testing.assert_array_equal(found['correct'], [0, 1])

  def test_attributes_by_hand(self):
    logits = np.log(np.array([[3.0, 1.0]]))  # probabilities 3/4 and 1/2
    found = outputs.scores(logits, np.array([[1.0, 0.0]]))
    np.testing.assert_allclose(found['loss'], -np.log([0.75 * 0.5]) / 2)
    np.testing.assert_allclose(found['confidence'], [0.625])
    np.testing.assert_allclose(found['margin'], np.log([3]) / 2)
    np.testing.assert_allclose(found['entropy'], [(stats.entropy([.75, .25]) + np.log(2)) / 2])

  def test_saturated_logits_stay_finite(self):
    logits = np.array([[1e4, 0.0], [0.0, 1e4]])
    for labels in (np.array([0, 0]), np.array([[1.0, 0.0], [1.0, 0.0]])):
      for name, values in outputs.scores(logits, labels).items():
        self.assertTrue(np.isfinite(values).all(), name)

  def test_refuses_labels_that_do_not_fit(self):
    with self.assertRaisesRegex(ValueError, 'do not fit'):
      outputs.scores(np.zeros((2, 3)), np.array([0, 3]))
    with self.assertRaisesRegex(ValueError, 'integers'):
      outputs.scores(np.zeros((2, 3)), np.array([0.0, 1.0]))
    with self.assertRaisesRegex(ValueError, 'attribute labels'):
      outputs.scores(np.zeros((2, 3)), np.zeros((2, 2)))


if __name__ == '__main__':
  absltest.main()
