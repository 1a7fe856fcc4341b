"""FID, inception score and cosine: closed forms, independent computations, symmetries, bad input."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
from scipy import linalg

from unlearn_jax.evals import generative


def normal(seed, n, d):
  return np.random.default_rng(seed).normal(size=(n, d))


def correlated(seed, n, d):
  """Features with unequal, dependent dimensions and a mean."""
  rng = np.random.default_rng(seed)
  return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


def with_moments(x, mean, deviation):
  """`x` moved so that its sample mean and covariance are `mean` and diag(deviation^2), exactly."""
  x = x - x.mean(axis=0)
  return x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T * deviation + mean


class FidTest(parameterized.TestCase):

  @parameterized.parameters((50, 6), (6, 6), (5, 20))
  def test_of_a_set_with_itself(self, n, d):
    x = 10 * correlated(0, n, d)
    self.assertAlmostEqual(generative.fid(x, x), 0, delta=1e-10 * np.trace(np.cov(x.T)))
    self.assertGreaterEqual(generative.fid(x, x[::-1]), 0)

  def test_closed_form_of_gaussians(self):
    """|mu|^2 + sum (s - t)^2 for covariances diag(s^2) and diag(t^2), which commute."""
    s, t = np.array([1.0, 2.0, 0.5]), np.array([3.0, 2.0, 0.1])
    a = with_moments(normal(0, 40, 3), np.array([1.0, 0, -2]), s)
    b = with_moments(normal(1, 30, 3), np.array([0.0, 3, -2]), t)
    self.assertAlmostEqual(generative.fid(a, b), 1 + 9 + np.sum((s - t)**2), places=10)

  def test_one_dimension_and_the_unbiased_variance(self):
    a, b = np.array([[0.0], [2.0]]), np.array([[1.0], [5.0]])  # variances 2 and 8 with N - 1
    self.assertAlmostEqual(generative.fid(a, b), 4 + 2 + 8 - 2 * math.sqrt(16), places=12)

  @parameterized.parameters(0, 1, 2)
  def test_against_scipys_square_root(self, seed):
    a, b = correlated(seed, 60, 8), correlated(seed + 10, 45, 8)
    s, t = np.cov(a.T), np.cov(b.T)
    wanted = np.sum((a.mean(0) - b.mean(0))**2) + np.trace(s + t - 2 * linalg.sqrtm(s @ t).real)
    np.testing.assert_allclose(generative.fid(a, b), wanted, rtol=1e-9)

  @parameterized.parameters((4, 9), (9, 30), (2, 2))
  def test_singular_covariances(self, n, m):
    """By eigenvalues of S_a^{1/2} S_b S_a^{1/2}, from other square roots than ours."""
    a, b = correlated(0, n, 12), correlated(1, m, 12)
    values, vectors = np.linalg.eigh(np.cov(a.T))
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    inner = np.linalg.eigvalsh(root @ np.cov(b.T) @ root)
    wanted = (np.sum((a.mean(0) - b.mean(0))**2) + np.trace(np.cov(a.T)) + np.trace(np.cov(b.T))
              - 2 * np.sqrt(np.maximum(inner, 0)).sum())
    np.testing.assert_allclose(generative.fid(a, b), wanted, rtol=1e-6)

  def test_orthogonal_subspaces(self):
    """Nothing in common: the traces add up."""
    a, b = np.zeros((5, 4)), np.zeros((5, 4))
    a[:, :2], b[:, 2:] = normal(0, 5, 2), normal(1, 5, 2)
    wanted = (np.sum((a.mean(0) - b.mean(0))**2) + a.var(axis=0, ddof=1).sum()
              + b.var(axis=0, ddof=1).sum())
    self.assertAlmostEqual(generative.fid(a, b), wanted, places=12)

  def test_invariances(self):
    a, b = correlated(0, 20, 5), correlated(1, 25, 5)
    turn = np.linalg.qr(normal(3, 5, 5))[0]
    want = generative.fid(a, b)
    self.assertGreater(want, 1)
    for found in (generative.fid(b, a), generative.fid(a @ turn - 4, b @ turn - 4),
                  generative.fid(a[::-1], b[np.random.default_rng(0).permutation(25)]),
                  generative.fid(3 * a, 3 * b) / 9):
      np.testing.assert_allclose(found, want, rtol=1e-10)

  @parameterized.parameters(True, False)
  def test_float64_whatever_jax_does(self, x64):
    a, b = 1e4 + normal(0, 30, 3), 1e4 + normal(1, 30, 3)
    want = generative.fid(a, b)
    with jax.enable_x64(x64):
      self.assertEqual(generative.fid(a, b), want)
      self.assertIsInstance(generative.fid(a.astype(np.float32), b), float)

  def test_input_is_not_changed(self):
    a, b = normal(0, 5, 3), normal(1, 5, 3)
    before = a.copy()
    generative.fid(a, b)
    np.testing.assert_array_equal(a, before)

  def test_rank(self):
    self.assertTrue(generative.rank_deficient(2048, 2048))
    self.assertFalse(generative.rank_deficient(2049, 2048))
    for n, d in ((6, 6), (7, 6)):
      full = np.linalg.matrix_rank(np.cov(normal(0, n, d).T)) == d
      self.assertEqual(generative.rank_deficient(n, d), not full)
    with self.assertRaisesRegex(ValueError, 'at least 1, got 0 and 3'):
      generative.rank_deficient(0, 3)

  @parameterized.parameters(
      (np.ones((1, 3)), np.ones((2, 3)), r'features_a must be .* at least 2, got shape \(1, 3\)'),
      (np.ones((2, 3)), np.ones(3), r'features_b must be \[N, D\]'),
      (np.ones((2, 0)), np.ones((2, 0)), r'features_a must be \[N, D\]'),
      (np.ones((2, 3)), np.ones((2, 4)), 'has 3 dimensions and features_b 4'),
      (np.ones((2, 3)), np.full((2, 3), np.nan), 'features_b: not finite'),
      (np.full((2, 3), np.inf), np.ones((2, 3)), 'features_a: not finite'))
  def test_bad_input(self, a, b, message):
    with self.assertRaisesRegex(ValueError, message):
      generative.fid(a, b)


class InceptionScoreTest(parameterized.TestCase):

  def test_constant_predictions(self):
    p = np.tile([0.7, 0.2, 0.1, 0.0], (30, 1))
    mean, deviation = generative.inception_score(p)
    self.assertAlmostEqual(mean, 1, places=12)
    self.assertAlmostEqual(deviation, 0, places=12)

  @parameterized.parameters(2, 5)
  def test_one_hot_and_uniform(self, classes):
    mean, deviation = generative.inception_score(np.tile(np.eye(classes), (20, 1)), splits=4)
    self.assertAlmostEqual(mean, classes, places=12)
    self.assertAlmostEqual(deviation, 0, places=12)

  def test_splits_are_contiguous_and_have_marginals_of_their_own(self):
    p = np.repeat(np.eye(2), 4, axis=0)  # sorted by class: each half is of one class
    self.assertEqual(generative.inception_score(p, splits=2), (1, 0))
    self.assertAlmostEqual(generative.inception_score(p, splits=1)[0], 2)
    mixed = np.concatenate([np.tile(np.eye(2), (2, 1)), np.tile([[1.0, 0]], (4, 1))])
    mean, deviation = generative.inception_score(mixed, splits=2)
    self.assertAlmostEqual(mean, (2 + 1) / 2)
    self.assertAlmostEqual(deviation, 0.5)  # divided by the number of splits

  def test_is_the_definition(self):
    p = np.random.default_rng(0).dirichlet(np.ones(4), size=11)
    scores = []
    for rows in (p[:3], p[3:7], p[7:]):  # floor(11 / 3), floor(22 / 3)
      marginal = rows.mean(axis=0)
      scores.append(math.exp(np.mean([sum(x * math.log(x / m) for x, m in zip(row, marginal))
                                      for row in rows])))
    found = generative.inception_score(p, splits=3)
    np.testing.assert_allclose(found, (np.mean(scores), np.std(scores)), rtol=1e-12)

  def test_invariances(self):
    p = np.random.default_rng(0).dirichlet(np.ones(5), size=20)
    want = generative.inception_score(p, splits=1)
    for other in (p[:, ::-1], p[::-1], np.hstack([p, np.zeros((20, 2))])):
      np.testing.assert_allclose(generative.inception_score(other, splits=1), want, rtol=1e-12)
    self.assertBetween(want[0], 1, 5)

  def test_half_precision(self):
    p = np.random.default_rng(0).dirichlet(np.ones(5), size=20)
    found = generative.inception_score(p.astype(np.float16), splits=2)
    np.testing.assert_allclose(found, generative.inception_score(p, splits=2), atol=1e-2)

  @parameterized.parameters(
      (np.eye(3) * 2, 1, '3 of 3 rows do not sum to 1, the first to 2'),
      (np.array([[1.5, -0.5]]), 1, 'negative, down to -0.5'),
      (np.full((2, 2), np.nan), 1, 'probabilities: not finite'),
      (np.ones(4) / 4, 1, r'must be \[N, D\]'),
      (np.eye(3), 10, r'splits must lie in \[1, 3\], .* got 10'),
      (np.eye(3), 0, 'got 0'))
  def test_bad_input(self, p, splits, message):
    with self.assertRaisesRegex(ValueError, message):
      generative.inception_score(p, splits)


class CosineTest(parameterized.TestCase):

  def test_by_hand(self):
    a = np.array([[1.0, 0], [0, 2], [3, 4], [0, 0]])
    b = np.array([[5.0, 0], [3, 0], [-3, -4], [1, 1]])
    self.assertAlmostEqual(generative.embedding_cosine(a, b), (1 + 0 - 1 + 0) / 4)

  def test_invariances(self):
    a, b = normal(0, 9, 4), normal(1, 9, 4)
    want = generative.embedding_cosine(a, b)
    scale = np.exp(normal(2, 9, 1))
    turn = np.linalg.qr(normal(3, 4, 4))[0]
    for found in (generative.embedding_cosine(b, a), generative.embedding_cosine(scale * a, b),
                  generative.embedding_cosine(a @ turn, b @ turn),
                  generative.embedding_cosine(a[::-1], b[::-1])):
      self.assertAlmostEqual(found, want, places=12)
    self.assertNotAlmostEqual(generative.embedding_cosine(a, b[::-1]), want)  # pairs, not sets
    self.assertAlmostEqual(generative.embedding_cosine(a, a), 1, places=12)

  @parameterized.parameters(
      (np.ones((2, 3)), np.ones((3, 3)), 'have one shape'), (np.ones(3), np.ones(3), r'\[N, D\]'),
      (np.ones((0, 3)), np.ones((0, 3)), r'\[N, D\]'),
      (np.ones((2, 3)), np.full((2, 3), np.inf), 'b: not finite'))
  def test_bad_input(self, a, b, message):
    with self.assertRaisesRegex(ValueError, message):
      generative.embedding_cosine(a, b)


if __name__ == '__main__':
  absltest.main()
