"""I2I's losses against float64 NumPy written from Eqs. 8 to 10, and at their awkward points."""

import functools
import itertools
import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from scipy import integrate

from tests.losses import float64
from unlearn_jax.losses import i2i


def latent(seed, rows=5, shapes=((2, 3), (4,))):
  """A pytree of two stages of different sizes, float64."""
  rng = np.random.default_rng(seed)
  return {f'stage{number}': rng.normal(size=(rows, *shape)) for number, shape in enumerate(shapes)}


def rows_of(tree):
  """All stages of every record as one vector, [B, P]."""
  return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(tree)], axis=1)


def unit_rows(seed, rows, width):
  x = np.random.default_rng(seed).normal(size=(rows, width))
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def distance(student, target, norm):
  """The norms of [B, P], one record at a time."""
  found = []
  for z, t in zip(student, target):
    if norm == 'l2':
      found.append(math.sqrt(sum((a - b)**2 for a, b in zip(z, t))))
    elif norm == 'mse':
      found.append(float(np.mean((z - t)**2)))
    else:
      found.append(float(np.linalg.norm(z / np.linalg.norm(z) - t / np.linalg.norm(t))))
  return np.array(found)


def infonce(student, reference):
  """Eq. B.12 with the critic of B.15, as printed."""
  count, total = len(student), 0.0
  for i in range(count):
    below = sum(math.exp(reference[i] @ student[j]) for j in range(count))
    total += math.log(math.exp(reference[i] @ student[i]) / below) / count
  return math.log(count) + total


def bound(student, reference):
  """Eq. 8, as printed."""
  count, total = len(student), 0.0
  eps = [np.linalg.norm(s - r) for s, r in zip(student, reference)]
  for i in range(count):
    inner = sum(math.exp(eps[j] + reference[i] @ reference[j]) for j in range(count))
    total += math.log(math.exp(eps[i]**2 / 2 - 1) * inner) / count
  return math.log(count) - total


class DistanceTest(float64.Float64Test):

  @parameterized.product(norm=i2i.NORMS)
  def test_is_the_definition(self, norm):
    student, target = latent(0), latent(1)
    whole = i2i.encoder_distance(student, target, norm=norm)
    self.assert_close(whole, distance(rows_of(student), rows_of(target), norm), 1e-12)
    stages = i2i.encoder_distance(student, target, norm=norm, stage_reduce='sum_of_means')
    wanted = sum(distance(rows_of(student[name]), rows_of(target[name]), norm) for name in student)
    self.assert_close(stages, wanted, 1e-12)
    self.assertGreater(np.abs(whole - stages).max(), 1e-2)  # two stages tell the readings apart

  @parameterized.product(norm=i2i.NORMS)
  def test_a_bare_array_is_one_stage(self, norm):
    student, target = latent(0)['stage0'], latent(1)['stage0']
    found = [i2i.encoder_distance(student, target, norm=norm, stage_reduce=reduce)
             for reduce in i2i.STAGE_REDUCTIONS]
    self.assert_close(found[0], distance(rows_of(student), rows_of(target), norm), 1e-12)
    self.assert_close(found[0], found[1], 1e-15)

  def test_a_golden_case(self):
    student, target = jnp.array([[3.0, 0.0], [1.0, 1.0]]), jnp.array([[0.0, 4.0], [1.0, 1.0]])
    self.assert_close(i2i.encoder_distance(student, target), [5, 0], 1e-15)
    self.assert_close(i2i.encoder_distance(student, target, norm='mse'), [12.5, 0], 1e-15)
    self.assert_close(i2i.encoder_distance(student, target, norm='l2_normalized'),
                      [math.sqrt(2), 0], 1e-15)

  def test_gradients_at_awkward_points(self):
    """Equal latents (the root of 0), and latents of length 0 (no direction)."""
    target = latent(1)
    student = jax.tree.map(lambda leaf: leaf.at[0].set(0.0), jax.tree.map(jnp.asarray, latent(0)))
    student['stage1'] = student['stage1'].at[1].set(0.0)
    student = jax.tree.map(lambda mine, other: mine.at[2].set(other[2]), student, target)

    def gradient(norm, reduce):
      return jax.grad(lambda *both: i2i.encoder_distance(
          *both, norm=norm, stage_reduce=reduce).sum(), argnums=(0, 1))

    modes = list(itertools.product(i2i.NORMS, i2i.STAGE_REDUCTIONS))
    found = jax.jit(lambda *both: [gradient(*mode)(*both) for mode in modes])(student, target)
    for mode, slopes in zip(modes, found, strict=True):
      for leaf in jax.tree.leaves(slopes):
        self.assertTrue(np.isfinite(leaf).all(), mode)
        self.assert_close(leaf[2], 0, 1e-12)
      self.assertTrue(np.any(slopes[0]['stage0'][3] != 0), mode)

  def test_the_gradient_is_the_direction(self):
    student, target = latent(0)['stage1'], latent(1)['stage1']
    slope = jax.grad(lambda z: i2i.encoder_distance(z, target).sum())(jnp.asarray(student))
    wanted = (student - target) / np.linalg.norm(student - target, axis=1, keepdims=True)
    self.assert_close(slope, wanted, 1e-12)

  @parameterized.parameters(
      ({'norm': 'l1'}, ValueError, "norm is one of l2, mse, l2_normalized, got 'l1'"),
      ({'stage_reduce': 'mean'}, ValueError, 'stage_reduce is one of concat, sum_of_means'))
  def test_unknown_modes(self, modes, error, message):
    with self.assertRaisesRegex(error, message):
      i2i.encoder_distance(latent(0), latent(1), **modes)

  def test_latents_that_do_not_fit(self):
    with self.assertRaisesRegex(ValueError, 'without stages'):
      i2i.encoder_distance({}, {})
    for other in (latent(1, rows=4), {'stage0': latent(1)['stage0']},
                  latent(1, shapes=((2, 3), (5,)))):
      with self.assertRaisesRegex(AssertionError, 'Chex'):
        i2i.encoder_distance(latent(0), other)
    uneven = {'a': np.ones((2, 3)), 'b': np.ones((3, 3))}
    with self.assertRaisesRegex(AssertionError, 'Chex'):
      i2i.encoder_distance(uneven, uneven)


class UnlearningTest(float64.Float64Test):

  @parameterized.product(norm=i2i.NORMS)
  def test_is_eq_10(self, norm):
    given = latent(0), latent(1), latent(2, rows=3), latent(3, rows=3)
    found = i2i.unlearning(*given, alpha=0.4, norm=norm)
    flat = [rows_of(each) for each in given]
    retain, forget = distance(*flat[:2], norm).mean(), distance(*flat[2:], norm).mean()
    self.assert_close(found, (retain + 0.4 * forget, retain, forget), 1e-12)

  def test_alpha_of_the_paper(self):
    found = i2i.unlearning(latent(0), latent(1), latent(2), latent(3))
    self.assert_close(found.loss, found.retain + 0.25 * found.forget, 1e-12)

  @parameterized.product(norm=('l2', 'l2_normalized'))
  def test_masked_is_sliced(self, norm):
    retain_where, forget_where = np.array([1, 0, 1, 1, 0.0]), np.array([0, 0, 1, 0, 1.0])
    full = latent(0), latent(1), latent(2), latent(3)

    def polluted(tree, where):
      return jax.tree.map(
          lambda leaf: np.where(where.reshape(-1, *[1] * (leaf.ndim - 1)) > 0, leaf, np.nan), tree)

    given = (*(polluted(tree, retain_where) for tree in full[:2]),
             *(polluted(tree, forget_where) for tree in full[2:]))

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 2), has_aux=True)
    def masked(*latents):
      found = i2i.unlearning(*latents, norm=norm, retain_where=retain_where, forget_where=forget_where)
      return found.loss, found

    (_, found), slopes = masked(*given)
    sliced = [rows_of(tree)[where > 0] for tree, where in
              zip(full, (retain_where,) * 2 + (forget_where,) * 2)]
    retain, forget = distance(*sliced[:2], norm).mean(), distance(*sliced[2:], norm).mean()
    self.assert_close(found, (retain + 0.25 * forget, retain, forget), 1e-12)
    for leaf in jax.tree.leaves(slopes):
      self.assertTrue(np.isfinite(leaf).all())
    self.assert_close(slopes[0]['stage0'][1], 0, 0)

  def test_nothing_counts(self):
    nothing = np.zeros(5)
    found = i2i.unlearning(latent(0), latent(1), latent(2), latent(3), retain_where=nothing,
                           forget_where=nothing)
    self.assert_close(found, (0, 0, 0), 0)


class BoundTest(float64.Float64Test):

  @parameterized.parameters((1, 3), (2, 8), (7, 4), (16, 32))
  def test_is_eq_8_and_b_12(self, rows, width):
    student, reference = unit_rows(0, rows, width), unit_rows(1, rows, width)
    self.assert_close(i2i.information_bound(student, reference), bound(student, reference), 1e-12)
    self.assert_close(i2i.infonce(student, reference), infonce(student, reference), 1e-12)

  def test_never_above_infonce_on_unit_latents(self):
    both = jax.jit(lambda s, r: (i2i.information_bound(s, r), i2i.infonce(s, r)))
    gaps = []
    for seed in range(40):
      reference = unit_rows(seed, 8, 6)
      student = reference + 10**(-seed / 10) * unit_rows(100 + seed, 8, 6)
      student /= np.linalg.norm(student, axis=1, keepdims=True)
      low, high = both(student, reference)
      self.assertLessEqual(low, high + 1e-12)
      self.assertLess(high, 2)  # inner products of unit vectors differ by 2 at most
      gaps.append(high - low)
    self.assertGreater(gaps[0], 0.1)
    self.assertLess(gaps[-1], 1e-2)

  @parameterized.parameters(2, 9)
  def test_tight_where_both_agree(self, rows):
    reference = unit_rows(3, rows, 5)
    found = i2i.information_bound(reference, reference)
    self.assert_close(found, infonce(reference, reference), 1e-12)

  def test_closed_forms(self):
    eye = np.eye(6)
    wanted = math.log(6) - math.log(1 + 5 / math.e)  # own pair 1, all others 0
    self.assert_close(i2i.information_bound(eye, eye), wanted, 1e-12)
    opposite = np.array([[1.0, 0], [-1, 0]])
    self.assert_close(i2i.infonce(opposite, opposite), math.log(2) - math.log(1 + math.exp(-2)), 1e-12)
    one = unit_rows(0, 1, 4)  # K = 1 tells nothing
    self.assert_close(i2i.infonce(one, unit_rows(1, 1, 4)), 0, 1e-12)
    self.assert_close(i2i.information_bound(one, one), 0, 1e-12)

  def test_rows_that_are_no_unit_vectors(self):
    """Theorem 1 assumes them: elsewhere the formula is no bound, and `normalize` restores it."""
    student, reference = latent(0), latent(1)
    flat = [rows_of(student), rows_of(reference)]
    units = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in flat]
    for function, wanted in ((i2i.information_bound, bound), (i2i.infonce, infonce)):
      self.assert_close(function(student, reference), wanted(*flat), 1e-10)
      self.assert_close(function(student, reference, normalize=True), wanted(*units), 1e-12)
    long = 3 * unit_rows(0, 4, 3)
    self.assertGreater(abs(i2i.information_bound(long, long) - i2i.infonce(long, long)), 1.0)

  def test_large_latents_do_not_overflow(self):
    big = 1e4 * unit_rows(0, 4, 3)
    self.assertTrue(np.isfinite(i2i.information_bound(big, -big)))

  def test_masked_is_sliced(self):
    where = np.array([1, 0, 1, 1, 0])
    full = unit_rows(0, 5, 4), unit_rows(1, 5, 4)
    given = [np.where(where[:, None] > 0, 2 * each, np.nan) for each in full]
    functions = {i2i.information_bound: bound, i2i.infonce: infonce}

    @jax.jit
    def masked(where):
      return [jax.value_and_grad(functools.partial(function, normalize=True, where=where))(*given)
              for function in functions]

    for (value, slope), wanted in zip(masked(where), functions.values(), strict=True):
      self.assert_close(value, wanted(*(each[where > 0] for each in full)), 1e-12)
      self.assertTrue(np.isfinite(slope).all())
      self.assert_close(slope[1], 0, 0)
    for value, slope in masked(np.zeros(5, int)):
      self.assert_close(value, 0, 0)
      self.assert_close(slope, 0, 0)

  def test_gradient_where_both_agree(self):
    reference = unit_rows(0, 4, 3)
    slopes = jax.jit(lambda *both: [
        jax.grad(functools.partial(function, normalize=normalize))(*both)
        for function in (i2i.information_bound, i2i.infonce) for normalize in (True, False)])
    for slope in slopes(reference, reference):
      self.assertTrue(np.isfinite(slope).all())

  def test_nearer_is_more(self):
    reference = unit_rows(0, 8, 6)
    away = unit_rows(1, 8, 6)
    mixed = [(1 - part) * reference + part * away for part in (0.0, 0.2, 0.5, 1.0)]
    found = [float(i2i.information_bound(each, reference, normalize=True)) for each in mixed]
    self.assertEqual(found, sorted(found, reverse=True))


class LemmaTest(absltest.TestCase):

  def test_counterexample_to_lemma_1(self):
    """P = N(0, 1), Q = Laplace of variance 1: KL(P || Q) > 0 = KL(P || N(0, 1)), against Eq. 5."""
    scale = 1 / math.sqrt(2)  # variance 2 scale^2

    def p(x):
      return math.exp(-x**2 / 2) / math.sqrt(2 * math.pi)

    def log_q(x):
      return -abs(x) / scale - math.log(2 * scale)

    variance, _ = integrate.quad(lambda x: x**2 * math.exp(log_q(x)), -40, 40, points=[0])
    self.assertAlmostEqual(variance, 1, places=7)
    left, _ = integrate.quad(lambda x: p(x) * (math.log(p(x)) - log_q(x)), -12, 12, points=[0])
    entropy = 0.5 * math.log(2 * math.pi * math.e)
    closed = -entropy + math.log(2 * scale) + math.sqrt(2 / math.pi) / scale
    self.assertAlmostEqual(left, closed, places=7)
    right = 0.0  # KL of a distribution from itself, N(0, 1)
    self.assertGreater(left, right + 0.05)


if __name__ == '__main__':
  absltest.main()
