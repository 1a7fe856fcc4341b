"""Tests for the counter-based random numbers."""

from absl.testing import absltest
import numpy as np

from unlearn_jax.data import _random


class RandomTest(absltest.TestCase):

  def test_pinned(self):
    # Any change here changes every split and every stream: results stop being reproducible.
    self.assertEqual(int(_random.bits(1, 'two', 3)), 0xb7abf95c7d065de6)
    np.testing.assert_array_equal(_random.permutation(6, 0, 'x'), [1, 2, 3, 0, 4, 5])

  def test_broadcasting_equals_one_by_one(self):
    rows, columns = np.arange(3)[:, None], np.arange(4)[None]
    together = _random.bits(7, rows, columns)
    for i in range(3):
      for j in range(4):
        self.assertEqual(int(together[i, j]), int(_random.bits(7, i, j)))

  def test_words_are_ordered_and_all_count(self):
    values = [(1, 2), (2, 1), (1, 2, 0), (1,), ('a',), ('b',), (-1,), (2 ** 63,)]
    self.assertLen({int(_random.bits(*words)) for words in values}, len(values))

  def test_below_is_uniform_in_range(self):
    drawn = _random.below(5, 3, np.arange(50_000))
    counts = np.bincount(drawn, minlength=5)
    self.assertLen(counts, 5)
    # Five standard deviations of a binomial(50000, 1/5) are 447.
    self.assertLess(np.abs(counts - 10_000).max(), 447)

  def test_permutation_is_one(self):
    np.testing.assert_array_equal(np.sort(_random.permutation(1000, 1)), np.arange(1000))
    self.assertEqual(_random.permutation(0, 1).shape, (0,))
    self.assertFalse(np.array_equal(_random.permutation(50, 1), _random.permutation(50, 2)))

  def test_first_places_are_uniform(self):
    first = np.asarray([_random.permutation(4, seed, 'p')[0] for seed in range(4000)])
    self.assertLess(np.abs(np.bincount(first, minlength=4) - 1000).max(), 5 * 27.4)

  def test_floats_are_refused(self):
    with self.assertRaisesRegex(TypeError, 'float64'):
      _random.bits(0.5)


if __name__ == '__main__':
  absltest.main()
