"""Tests of NCU's losses.

Golden values are outputs of the authors' released functions on the inputs below, run on CPU in
float64; those of the paper's reading come from its formulas, written out in NumPy.
"""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from tests.losses import ncu_reference
from unlearn_jax.losses import ncu

FRACTION = 0.34  # of 6: two pairs, 1 and 3


def inputs(dtype=np.float32):
  """(image, text, negative, logit scale) of the golden values."""
  i, k = np.arange(6)[:, None], np.arange(8)[None]
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  wave = np.sin(1 + 0.7 * i + 1.3 * k + 0.11 * i * k)
  text = wave + 0.8 * np.cos(0.5 + 1.9 * i - 0.4 * k)
  negative = -0.5 * text + 0.9 * np.cos(2.0 + 0.3 * i * k + 0.6 * k)
  arrays = (unit(wave), unit(text), unit(negative), np.log(1 / 0.07))
  return tuple(jnp.asarray(x, dtype) for x in arrays)


def random_inputs(count, seed=0, dim=16):
  rng = np.random.default_rng(seed)
  image, text, negative = rng.normal(size=(3, count, dim))
  text += 0.5 * image
  unit = lambda x: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
  return unit(image), unit(text), unit(negative), np.float32(np.log(10))


def norms(function):
  gradient = jax.grad(lambda *given: function(*given).loss, argnums=(0, 1, 2, 3))
  return lambda *given: [float(jnp.linalg.norm(part)) for part in gradient(*given)]


PRECISIONS = ((True, np.float64, 1e-7), (False, np.float32, 1e-5))


class GoldenTest(parameterized.TestCase):

  @parameterized.parameters(*PRECISIONS)
  def test_released_unlearning(self, x64, dtype, tolerance):
    with jax.enable_x64(x64):
      function = functools.partial(ncu.unlearning, forget_fraction=FRACTION, reading='release')
      out = function(*inputs(dtype))
      np.testing.assert_array_equal(np.flatnonzero(out.forget), [1, 3])
      # 1.8558525712 with the release's float32 label matrix.
      np.testing.assert_allclose(out.realign, 1.8558525426, rtol=1e-9 if x64 else 1e-6)
      np.testing.assert_allclose(out.separation, 0.1787793226, rtol=tolerance)
      np.testing.assert_allclose(out.loss, out.realign + out.separation, rtol=1e-7)
      self.assertEqual(int(out.plan.iterations), 86)
      np.testing.assert_allclose(6 * out.plan.plan.sum(axis=1), [
          1.00014, 1.000312, 1.000104, 1.000866, .999577, .999000], atol=1e-5)
      np.testing.assert_allclose(out.plan.plan.sum(axis=0), np.full(7, 1 / 7), rtol=1e-5)
      np.testing.assert_allclose(norms(function)(*inputs(dtype)), [
          2.7758717031, 2.3043495154, 0.7776740037, 2.2203841420], rtol=max(tolerance, 1e-7))

  @parameterized.parameters(*PRECISIONS)
  def test_released_hardest_negative(self, x64, dtype, tolerance):
    with jax.enable_x64(x64):
      function = functools.partial(ncu.hardest_negative, forget_fraction=FRACTION,
                                   reading='release')
      out = function(*inputs(dtype))
      np.testing.assert_allclose(out.relation, 4.3126222200, rtol=tolerance)
      np.testing.assert_allclose(out.separation, 0.9747381238, rtol=tolerance)
      np.testing.assert_allclose(out.matching, 4.2718781306 + 7.0773010964, rtol=tolerance)
      np.testing.assert_allclose(out.loss, 16.6365395709, rtol=tolerance)
      gradients = jax.grad(lambda *given: function(*given).loss, argnums=(0, 1, 2, 3))(
          *inputs(dtype))
      np.testing.assert_allclose([jnp.linalg.norm(g) for g in gradients], [
          13.2216246446, 19.7462122962, 18.7998465976, 9.8474275281], rtol=tolerance)
      np.testing.assert_array_equal(gradients[2][out.forget], 0.0)

  @parameterized.parameters(*PRECISIONS)
  def test_literal_paper(self, x64, dtype, tolerance):
    with jax.enable_x64(x64):
      given = inputs(dtype)
      out = ncu.unlearning(*given, forget_fraction=FRACTION)
      np.testing.assert_allclose(out.realign, 3.8844695233, rtol=1e-5)
      if x64:
        out = ncu.unlearning(*given, forget_fraction=FRACTION, threshold=1e-9)
        np.testing.assert_allclose(out.realign, 3.8844695233, rtol=1e-7)
        out = ncu.unlearning(*given[:3], 0.0, forget_fraction=FRACTION, threshold=1e-9)
        np.testing.assert_allclose(out.realign, 2.0957109629, rtol=1e-7)
      out = ncu.hardest_negative(*given, forget_fraction=FRACTION, weight=1.0)
      np.testing.assert_allclose(out.relation, 0.2839793639, rtol=tolerance)

  @parameterized.parameters(
      ('release', [.9965724, .94934696, .98954097, .9773106, .98609487, .99698652]),
      ('paper', [.990417, .967712, .991907, .971592, .991337, .990380]))
  def test_clean_confidence(self, reading, expected):
    image, text, _, scale = inputs()
    np.testing.assert_allclose(ncu.clean_confidence(image, text, scale, reading=reading), expected,
                               atol=1e-6)


class PropertiesTest(parameterized.TestCase):

  @parameterized.parameters(*ncu.READINGS)
  def test_plan_obeys_the_mask(self, reading):
    given = random_inputs(20)
    out = ncu.unlearning(*given, forget_fraction=0.2, reading=reading, epsilon=0.1)
    forget, plan = np.asarray(out.forget), np.asarray(out.plan.plan)
    self.assertEqual(forget.sum(), 4)
    self.assertEqual(np.abs(np.diagonal(plan)[forget]).max(), 0.0)
    self.assertEqual(np.abs(plan[~forget, -1]).max(), 0.0)
    self.assertTrue((plan[forget, -1] > 0).all())
    self.assertTrue(out.plan.converged)
    lowest = np.argsort(ncu.clean_confidence(*given[:2], given[3], reading=reading))[:4]
    np.testing.assert_array_equal(np.flatnonzero(forget), np.sort(lowest))

  @parameterized.parameters(*ncu.READINGS)
  def test_no_pair_to_forget_or_to_retain(self, reading):
    for fraction in (0.1, 1.0):
      for loss in (ncu.unlearning, ncu.hardest_negative):
        with self.assertRaisesRegex(ValueError, 'of a batch of 6 pairs selects'):
          loss(*inputs(), forget_fraction=fraction, reading=reading)

  def test_refuses(self):
    image, text, negative, scale = inputs()
    with self.assertRaisesRegex(ValueError, 'reading is one of paper, release'):
      ncu.clean_confidence(image, text, scale, reading='code')
    with self.assertRaisesRegex(AssertionError, 'Chex'):
      ncu.unlearning(image, text[:5], negative, scale, forget_fraction=FRACTION)

  @parameterized.parameters(*ncu.READINGS)
  def test_gamma_0_is_a_cross_entropy_with_the_labels(self, reading):
    given = random_inputs(12)
    out = ncu.unlearning(*given, forget_fraction=0.25, gamma=0.0, reading=reading)
    image, text, negative, scale = given
    logits = np.exp(scale) * np.c_[image @ text.T, np.sum(image * negative, axis=1)]
    forget = np.asarray(out.forget)
    label = np.where(forget, 12, np.arange(12))
    rows = -np.mean(np.asarray(jax.nn.log_softmax(logits, axis=1))[np.arange(12), label])
    by_text = np.asarray(jax.nn.log_softmax(logits.T, axis=1))
    share = 1.0 if reading == 'release' else 1 / forget.sum()
    texts = -np.diagonal(by_text)[~forget].sum()  # forgotten captions have no label left
    own = -share * by_text[12][forget].sum()
    own += 0.0 if reading == 'release' else -np.log(forget.sum())
    expected = rows + (texts + own) / 13
    np.testing.assert_allclose(out.realign, expected * (0.5 if reading == 'release' else 1.0),
                               rtol=1e-5)

  @parameterized.parameters(*ncu.READINGS)
  def test_targets_are_constant(self, reading):
    """The gradient is that of a cross entropy with fixed targets: none flows through the plan."""
    given = random_inputs(8)
    function = lambda *x: ncu.unlearning(*x, forget_fraction=0.25, reading=reading, gamma=1.0)
    found = jax.grad(lambda scale: function(*given[:3], scale).realign)(given[3])
    logits = np.exp(given[3]) * np.c_[given[0] @ given[1].T, np.sum(given[0] * given[2], axis=1)]
    plan = np.asarray(function(*given).plan.plan)
    rows = plan / plan.sum(1, keepdims=True)
    if reading == 'paper':
      columns = (plan / plan.sum(0)).T
      slope = lambda target, z: np.sum((np.asarray(jax.nn.softmax(z, axis=1))
                                        * target.sum(1, keepdims=True) - target) * z) / len(z)
      np.testing.assert_allclose(found, slope(rows, logits) + slope(columns, logits.T), rtol=1e-4)
    else:
      self.assertTrue(np.isfinite(found))

  @parameterized.parameters(*ncu.READINGS)
  def test_gradient_reaches_every_embedding_and_is_finite(self, reading):
    for loss in (ncu.unlearning, ncu.hardest_negative):
      gradients = jax.grad(lambda *given, loss=loss: loss(
          *given, forget_fraction=0.25, reading=reading).loss, argnums=(0, 1, 2, 3))(
              *random_inputs(8))
      for gradient in gradients:
        self.assertTrue(np.isfinite(gradient).all())
        self.assertGreater(np.abs(gradient).max(), 0.0)

  def test_separation_is_0_between_its_margins(self):
    image, text, _, scale = random_inputs(8)
    other = np.roll(text, 1, axis=1)
    other -= np.sum(other * text, axis=1, keepdims=True) * text
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    for along, expected in ((-0.5, 0.0), (0.3, 0.5), (-0.9, 0.2)):
      negative = along * text + np.sqrt(1 - along**2) * other
      out = ncu.unlearning(image, text, negative, scale, forget_fraction=0.25)
      np.testing.assert_allclose(out.separation, expected, atol=1e-5)

  def test_relation_of_the_paper_is_0_for_symmetric_cross_terms(self):
    image, text, _, scale = random_inputs(8)
    self.assertLess(ncu.hardest_negative(image, text, -text, scale,
                                         forget_fraction=0.25).relation, 1e-10)


class ReferenceTest(parameterized.TestCase):
  """Both losses and their ablations against NumPy, in float64."""

  def given(self):
    return tuple(np.asarray(x, np.float64) for x in random_inputs(9, seed=4))

  @parameterized.product(reading=ncu.READINGS, opposite=ncu.OPPOSITES)
  def test_hardest_negative(self, reading, opposite):
    given = self.given()
    forget = ncu_reference.forget_pairs(given[0], given[1], given[3], 0.25, reading)
    expected = ncu_reference.hardest_negative(*given, ~forget, reading=reading, opposite=opposite)
    with jax.enable_x64(True):
      out = ncu.hardest_negative(*given, forget_fraction=0.25, reading=reading, opposite=opposite)
    np.testing.assert_array_equal(out.forget, forget)
    np.testing.assert_allclose(out.loss, expected, rtol=1e-10)

  @parameterized.parameters(
      *((reading, 'relation', targets) for reading in ncu.READINGS for targets in ncu.TARGETS),
      ('paper', 'distance', 'both'), ('release', 'distance', 'both'))
  def test_unlearning(self, reading, opposite, targets):
    given = self.given()
    v, t, n, s = given
    forget = ncu_reference.forget_pairs(v, t, s, 0.25, reading)
    goal = ncu_reference.transport_targets(v, t, n, forget, reading=reading, targets=targets,
                                           epsilon=0.1)
    expected = ncu_reference.unlearning(*given, goal, forget, reading=reading, opposite=opposite,
                                        targets=targets)
    options = {} if reading == 'release' else {'threshold': 1e-12, 'max_iterations': 5000}
    with jax.enable_x64(True):
      out = ncu.unlearning(*given, forget_fraction=0.25, reading=reading, opposite=opposite,
                           targets=targets, epsilon=0.1, **options)
    np.testing.assert_array_equal(out.forget, forget)
    np.testing.assert_allclose(out.loss, expected, rtol=1e-8)

  def test_opposite_by_distance_has_a_gradient_of_0_where_nothing_is_apart(self):
    v, t, _, s = random_inputs(8)
    slope = jax.grad(lambda n: ncu.hardest_negative(
        v, t, n, s, forget_fraction=0.25, opposite='distance').separation)(t)
    np.testing.assert_array_equal(slope, np.zeros_like(t))
    out = ncu.hardest_negative(v, t, -t, s, forget_fraction=0.25, opposite='distance')
    np.testing.assert_allclose(out.separation, 0.0, atol=1e-5)  # 2 - 2

  def test_targets_without_a_column_of_negatives_leave_the_negatives_alone(self):
    v, t, n, s = random_inputs(8)
    slope = jax.grad(lambda n: ncu.unlearning(
        v, t, n, s, forget_fraction=0.25, targets='false_negatives').realign)(n)
    np.testing.assert_array_equal(slope, np.zeros_like(n))
    both = jax.grad(lambda n: ncu.unlearning(v, t, n, s, forget_fraction=0.25).realign)(n)
    self.assertGreater(np.abs(both).max(), 1e-3)

  def test_refuses_unknown_ablations(self):
    with self.assertRaisesRegex(ValueError, 'opposite is one of relation, distance'):
      ncu.hardest_negative(*random_inputs(8), forget_fraction=0.25, opposite='far')
    with self.assertRaisesRegex(ValueError, 'targets is one of both, false_negatives'):
      ncu.unlearning(*random_inputs(8), forget_fraction=0.25, targets='v3')


if __name__ == '__main__':
  absltest.main()
