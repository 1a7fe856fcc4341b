"""Tests of DLFD's equations.

Golden numbers: outputs of the released `cost_matrix_cos`, `sinkhorn` and
`linear_weight_scheduler`, run on CPU on the inputs that `waves` generates.
"""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax.losses import classification
from unlearn_jax.losses import dlfd
from unlearn_jax.losses import transport

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(5, 3)).astype(np.float32), RNG.normal(size=(4, 3)).astype(np.float32)
X_WHERE, Y_WHERE = np.array([1, 0, 1, 1, 0], np.float32), np.array([0, 1, 1, 1], np.float32)
READINGS = (('paper', 'paper'), ('release', 'release'))


def waves(n, d, phase, scale):
  """The generator of the golden inputs: c sin(phase + 0.7 i + 1.3 k + 0.11 i k)."""
  i, k = np.arange(n)[:, None], np.arange(d)[None, :]
  return scale * np.sin(phase + 0.7 * i + 1.3 * k + 0.11 * i * k)


class DistanceTest(parameterized.TestCase):

  def test_golden(self):
    x, y = waves(4, 3, 1, 1), waves(5, 3, 2, 1)
    np.testing.assert_allclose(dlfd.ot_distance(x, y, reading='release'), 0.0490338542, atol=1e-7)
    with jax.enable_x64(True):
      # The same recursion in float64; the official number is within float32 rounding of it.
      np.testing.assert_allclose(dlfd.ot_distance(x, y, reading='release'), 0.0490338237, atol=1e-9)

  def test_golden_weights(self):
    weights = [dlfd.linear_weight(k, 5, start=0.5, end=1.0) for k in range(5)]
    np.testing.assert_allclose(weights, [0.5, 0.625, 0.75, 0.875, 1.0], rtol=1e-7)

  @parameterized.named_parameters(*READINGS)
  def test_is_the_cost_of_the_plan(self, reading):
    solve = transport.sinkhorn_plan if reading == 'paper' else transport.released_dlfd_plan
    out = solve(transport.cosine_cost(X, Y), epsilon=0.05, max_iterations=50)
    got = dlfd.ot_distance(X, Y, epsilon=0.05, reading=reading)
    np.testing.assert_allclose(got, out.cost, rtol=1e-6)
    np.testing.assert_allclose(
        got, np.sum(np.asarray(out.plan) * np.asarray(transport.cosine_cost(X, Y))), rtol=1e-6)

  def test_closed_forms(self):
    eye = jnp.eye(2)
    np.testing.assert_allclose(dlfd.ot_distance(eye, eye, epsilon=0.01), 0.0, atol=1e-6)
    np.testing.assert_allclose(
        dlfd.ot_distance(eye, eye, epsilon=0.5), 1 / (1 + np.exp(2.0)), rtol=1e-5)
    np.testing.assert_allclose(dlfd.ot_distance(eye[:1], -3 * eye[:1]), 2.0, rtol=1e-6)
    # A single point on one side leaves one coupling: the mean of the costs.
    np.testing.assert_allclose(dlfd.ot_distance(X[:1], Y),
                               np.mean(transport.cosine_cost(X[:1], Y)), rtol=1e-5)

  def test_the_stop_rules_differ(self):
    paper = dlfd.ot_distance(waves(4, 3, 1, 1), waves(5, 3, 2, 1), max_iterations=1000)
    np.testing.assert_allclose(paper, 0.6011086, atol=1e-4)  # ours; the release loses 0.4 of mass

  @parameterized.named_parameters(*READINGS)
  def test_gradient_of_what_was_computed(self, reading):
    x, y, direction = np.random.default_rng(1).normal(size=(3, 4, 3))
    with jax.enable_x64(True):
      value = lambda x: dlfd.ot_distance(x, y, epsilon=0.1, max_iterations=6, reading=reading)
      difference = (value(x + 1e-6 * direction) - value(x - 1e-6 * direction)) / 2e-6
      slope = np.asarray(jax.jit(jax.grad(value))(x))
      np.testing.assert_allclose(np.sum(slope * direction), difference, rtol=1e-5)

  @parameterized.named_parameters(*READINGS)
  def test_ascent_moves_the_batches_apart(self, reading):
    loss = lambda x: dlfd.ot_distance(x, Y, epsilon=0.1, reading=reading)
    step = lambda _, x: dlfd.ascend(x, jax.grad(loss)(x), step_size=0.05)
    moved = jax.jit(lambda x: jax.lax.fori_loop(0, 15, step, x))(X)
    self.assertGreater(loss(moved), loss(X) + 0.2)

  @parameterized.named_parameters(*READINGS)
  def test_masked_is_sliced(self, reading):
    settings = {'epsilon': 0.1, 'max_iterations': 20, 'reading': reading}
    rows, columns = X_WHERE > 0, Y_WHERE > 0
    sliced = lambda x, y: dlfd.ot_distance(x, y, **settings)
    want, slopes = jax.jit(jax.value_and_grad(sliced, argnums=(0, 1)))(X[rows], Y[columns])
    # Padding may hold anything.
    x = np.where(rows[:, None], X, np.nan).astype(np.float32)
    y = np.where(columns[:, None], Y, np.inf).astype(np.float32)
    for where in ((X_WHERE, Y_WHERE), (rows, columns)):
      masked = lambda x, y, w=where: dlfd.ot_distance(x, y, x_where=w[0], y_where=w[1], **settings)
      got, gradients = jax.jit(jax.value_and_grad(masked, argnums=(0, 1)))(x, y)
      np.testing.assert_allclose(got, want, rtol=1e-5)
      for gradient, slope, kept in zip(gradients, slopes, (rows, columns)):
        np.testing.assert_allclose(gradient[kept], slope, rtol=1e-3, atol=1e-6)
        np.testing.assert_array_equal(gradient[~kept], 0.0)

  @parameterized.named_parameters(*READINGS)
  def test_weights_are_proportions(self, reading):
    settings = {'epsilon': 0.1, 'max_iterations': 300, 'reading': reading}
    twice = np.concatenate([X, X[:1]])
    got = dlfd.ot_distance(X, Y, x_where=np.array([6.0, 3, 3, 3, 3], np.float32), **settings)
    if reading == 'paper':  # the release stops on the potentials, which see the doubled row twice
      np.testing.assert_allclose(got, dlfd.ot_distance(twice, Y, **settings), atol=2e-4)
    np.testing.assert_allclose(got, dlfd.ot_distance(
        X, Y, x_where=np.array([2.0, 1, 1, 1, 1], np.float32), **settings), rtol=1e-5)

  @parameterized.named_parameters(*READINGS)
  def test_awkward_points(self, reading):
    both = jax.jit(jax.value_and_grad(
        lambda x, y, x_where, y_where: dlfd.ot_distance(
            x, y, reading=reading, x_where=x_where, y_where=y_where), argnums=(0, 1, 2, 3)))
    all_x, all_y, opposite = np.ones(5, np.float32), np.ones(4, np.float32), -1e4 * X[:4]
    cases = ((np.zeros_like(X), Y, all_x, all_y), (X * 0.0 + 1e-20, Y, all_x, all_y),
             (X, X[:4], all_x, all_y), (X, opposite, all_x, all_y),
             (X, Y, 0 * all_x, all_y), (X, Y, all_x, 0 * all_y), (X, Y, 0 * all_x, 0 * all_y))
    for x, y, x_where, y_where in cases:
      value, gradients = both(x, y, x_where, y_where)
      self.assertTrue(np.isfinite(value))
      for gradient in gradients[:2]:
        self.assertTrue(np.isfinite(gradient).all())
      for gradient in gradients[2:]:  # the masks
        np.testing.assert_array_equal(gradient, 0.0)
      if not (x_where.any() and y_where.any()):
        self.assertEqual(value, 0.0)
        for gradient in gradients:
          np.testing.assert_array_equal(gradient, 0.0)

  @parameterized.named_parameters(*READINGS)
  def test_vmap_is_a_loop(self, reading):
    stack = np.stack([X, 0.3 + X, X[::-1]])
    settings = {'epsilon': 0.1, 'max_iterations': 10, 'reading': reading}
    loss = lambda x: dlfd.ot_distance(x, Y, **settings)
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(loss)))(stack)
    single = jax.jit(jax.value_and_grad(loss))
    for x, value, gradient in zip(stack, values, gradients):
      want, slope = single(x)
      np.testing.assert_allclose(value, want, rtol=1e-5)
      np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)

  def test_refuses(self):
    with self.assertRaisesRegex(ValueError, "'paper' or 'release', got 'papers'"):
      dlfd.ot_distance(X, Y, reading='papers')
    with self.assertRaisesRegex(ValueError, 'max_iterations is at least 1'):
      dlfd.ot_distance(X, Y, max_iterations=0)
    for masks in ({'x_where': np.ones(4)}, {'y_where': np.ones((4, 1))}):
      with self.assertRaisesRegex(AssertionError, 'Chex'):
        dlfd.ot_distance(X, Y, **masks)
    with self.assertRaisesRegex(AssertionError, 'Chex'):
      dlfd.ot_distance(X, Y[:, :2])


class ObjectiveTest(parameterized.TestCase):

  @parameterized.product(reading=('paper', 'release'), masked=(False, True))
  def test_equation_3(self, reading, masked):
    logits, labels = X @ Y.T, np.array([0, 1, 2, 3, 0])
    masks = (X_WHERE, Y_WHERE) if masked else (None, None)
    got = dlfd.perturbation_objective(
        X, Y, logits, labels, class_weight=0.7, transport_weight=3.0, epsilon=0.1,
        max_iterations=20, reading=reading, retain_where=masks[0], forget_where=masks[1])
    distance = dlfd.ot_distance(X, Y, epsilon=0.1, max_iterations=20, reading=reading,
                                x_where=masks[0], y_where=masks[1])
    class_loss = classification.cross_entropy(logits, labels, where=masks[0])
    np.testing.assert_allclose(got, 3.0 * distance - 0.7 * class_loss, rtol=1e-5)

  def test_attributes(self):
    labels = (X > 0).astype(np.float32)
    got = dlfd.perturbation_objective(X, Y, -X, labels, class_weight=1.0, transport_weight=0.0)
    np.testing.assert_allclose(got, -classification.cross_entropy(-X, labels), rtol=1e-6)

  def test_a_weight_of_zero_removes_the_gradient(self):
    labels = np.array([0, 1, 2, 0, 1])
    slopes = jax.jit(jax.grad(
        lambda x, z, transport_weight, class_weight: dlfd.perturbation_objective(
            x, Y, z, labels, epsilon=0.1, max_iterations=10, class_weight=class_weight,
            transport_weight=transport_weight), argnums=(0, 1)))
    features, logits = slopes(X, X, 1.0, 0.0)
    self.assertGreater(np.abs(features).max(), 0.01)
    np.testing.assert_array_equal(logits, 0.0)
    features, logits = slopes(X, X, 0.0, 1.0)
    np.testing.assert_array_equal(features, 0.0)
    self.assertGreater(np.abs(logits).max(), 0.01)

  def test_refuses_other_batches(self):
    with self.assertRaisesRegex(AssertionError, 'Chex'):
      dlfd.perturbation_objective(X, Y, Y, np.zeros(4, int), class_weight=1.0)


class AscendTest(parameterized.TestCase):

  def test_sign_step_and_bounds(self):
    x, gradient = jnp.array([0.1, 0.9, 0.5]), jnp.array([-7.0, 1e-9, 0.0])
    np.testing.assert_allclose(dlfd.ascend(x, gradient, step_size=0.4), [-0.3, 1.3, 0.5], rtol=1e-6)
    np.testing.assert_allclose(
        dlfd.ascend(x, gradient, step_size=0.4, bounds=(0.0, 1.0)), [0.0, 1.0, 0.5], rtol=1e-6)

  def test_bounds_per_channel(self):
    x = jnp.zeros((2, 2, 2, 3))
    low, high = jnp.array([-1.0, -2.0, -3.0]), jnp.array([0.5, 0.25, 9.0])
    moved = dlfd.ascend(x, x + 1.0, step_size=1.0, bounds=(low, high))
    np.testing.assert_allclose(moved, jnp.broadcast_to(jnp.array([0.5, 0.25, 1.0]), x.shape))

  def test_refuses(self):
    with self.assertRaisesRegex(AssertionError, 'Chex'):
      dlfd.ascend(X, Y, step_size=1.0)


class LinearWeightTest(parameterized.TestCase):

  @parameterized.parameters((0, 1, 2.0), (0, 2, 2.0), (1, 2, 6.0), (5, 11, 4.0), (99, 11, 6.0))
  def test_ends_middle_and_guards(self, step, steps, want):
    got = dlfd.linear_weight(step, steps, start=2.0, end=6.0)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    traced = jax.jit(lambda k, n: dlfd.linear_weight(k, n, start=2.0, end=6.0))(
        jnp.int32(step), jnp.int32(steps))
    np.testing.assert_allclose(traced, want, rtol=1e-6)

  def test_may_fall(self):
    np.testing.assert_allclose(dlfd.linear_weight(3, 4, start=1.0, end=0.0), 0.0, atol=1e-7)


if __name__ == '__main__':
  absltest.main()
