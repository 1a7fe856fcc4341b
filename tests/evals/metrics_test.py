"""Means as (sum, count) states."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax.evals import metrics


class MetricsTest(absltest.TestCase):

  def test_padded_batches_average_like_the_whole(self):
    values = np.arange(10.0)
    padded = np.concatenate([values, [np.nan, 1e9]])
    where = np.arange(12) < 10
    rows = [{'loss': jax.jit(metrics.mean)(padded[i:i + 4], where=where[i:i + 4])}
            for i in (0, 4, 8)]
    self.assertAlmostEqual(metrics.compute(metrics.merge(rows))['loss'], 4.5, places=6)

  def test_mean_over_attributes_counts_every_value(self):
    state = metrics.mean(np.array([[1.0, 0.0], [1.0, 1.0]]), where=np.array([1, 0]))
    self.assertEqual((float(state.sum), float(state.count)), (1.0, 2.0))
    self.assertEqual(float(metrics.mean(np.ones((3, 2))).count), 6.0)

  def test_scalars_count_once_and_names_may_be_missing(self):
    rows = [{'a': 1.0, 'b': (6.0, 3)}, {'a': 3.0}, {'b': (0.0, 1), 'c': jnp.float32(7)}]
    merged = metrics.merge(rows)
    self.assertEqual(tuple(merged['a']), (4.0, 2.0))
    self.assertEqual(metrics.compute(merged), {'a': 2.0, 'b': 1.5, 'c': 7.0})

  def test_merge_is_associative(self):
    rows = [{'a': (float(i), i)} for i in range(1, 5)]
    nested = metrics.merge([metrics.merge(rows[:1]), metrics.merge(rows[1:])])
    self.assertEqual(nested, metrics.merge(rows))

  def test_what_counted_nothing_has_no_value(self):
    self.assertEqual(metrics.compute({'a': (0.0, 0.0), 'b': (1.0, 2.0)}), {'b': 0.5})
    self.assertEqual(metrics.merge([]), {})


if __name__ == '__main__':
  absltest.main()
