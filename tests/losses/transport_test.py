"""Tests of the transport solvers.

The golden plan is the output of DLFD's released `cost_matrix_cos` and `sinkhorn`, run on CPU on the
inputs that `waves` generates. `released` below restates that recursion in NumPy and float64.
"""

import functools
import os
import re

os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=8')

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from unlearn_jax.losses import checks
from unlearn_jax.losses import transport

RNG = np.random.default_rng(0)
COST = RNG.uniform(0.0, 1.0, size=(4, 5)).astype(np.float32)
SOLVERS = (('paper', transport.sinkhorn_plan), ('release', transport.released_dlfd_plan))


def waves(n, d, phase, scale):
  """The generator of the golden inputs: c sin(phase + 0.7 i + 1.3 k + 0.11 i k)."""
  i, k = np.arange(n)[:, None], np.arange(d)[None, :]
  return scale * np.sin(phase + 0.7 * i + 1.3 * k + 0.11 * i * k)


def released(cost, epsilon, max_iterations, threshold):
  """(plan, iterations, last change) of the released recursion, rows first."""
  cost = np.asarray(cost, np.float64)
  u, v = np.zeros(cost.shape[0]), np.zeros(cost.shape[1])
  kernel = lambda: np.exp((u[:, None] + v[None, :] - cost) / epsilon)
  for iteration in range(1, max_iterations + 1):
    before = u
    u = u + epsilon * (np.log(1 / u.size) - np.log(kernel().sum(1) + 1e-6))
    v = v + epsilon * (np.log(1 / v.size) - np.log(kernel().sum(0) + 1e-6))
    change = np.abs(u - before).sum()
    if change < threshold:
      break
  return kernel(), iteration, change


def directional(function, x, direction, step=1e-6):
  """Central difference of a scalar function along a direction."""
  return (function(x + step * direction) - function(x - step * direction)) / (2 * step)


class CosineCostTest(parameterized.TestCase):

  def test_golden_row(self):
    cost = transport.cosine_cost(waves(4, 3, 1, 1), waves(5, 3, 2, 1))
    np.testing.assert_allclose(cost[0], [.336488, .963486, 1.819932, 1.927402, 1.633841], atol=1e-6)

  def test_closed_forms(self):
    x, y = jnp.array([[2.0, 0.0]]), jnp.array([[5.0, 0.0], [0.0, 1.0], [-3.0, 0.0], [1.0, 1.0]])
    np.testing.assert_allclose(
        transport.cosine_cost(x, y), [[0.0, 1.0, 2.0, 1.0 - 0.5**0.5]], atol=1e-6)
    self.assertGreaterEqual(transport.cosine_cost(COST, COST).min(), 0.0)

  def test_zero_vectors(self):
    x = jnp.array([[0.0, 0.0], [1.0, 2.0], [1e-9, 0.0]])
    np.testing.assert_allclose(transport.cosine_cost(x, x)[0], 1.0)
    gradient = jax.grad(lambda x: jnp.sum(transport.cosine_cost(x, jnp.eye(2))))(x)
    self.assertTrue(np.isfinite(gradient).all())
    np.testing.assert_array_equal(gradient[0], 0.0)
    self.assertGreater(np.abs(gradient[1]).max(), 0.1)

  def test_refuses(self):
    for x, y in ((np.ones((2, 3)), np.ones((2, 4))), (np.ones(3), np.ones((2, 3)))):
      with self.assertRaisesRegex(AssertionError, 'Chex'):
        transport.cosine_cost(x, y)


class SinkhornPlanTest(parameterized.TestCase):

  @parameterized.parameters(0.1, 0.5, 3.0)
  def test_two_by_two(self, epsilon):
    # With cost 1 off the diagonal the plan is a softmax over the two permutations.
    out = transport.sinkhorn_plan(1.0 - jnp.eye(2), epsilon=epsilon, threshold=1e-6)
    moved = 1.0 / (1.0 + np.exp(1.0 / epsilon))
    np.testing.assert_allclose(
        out.plan, [[(1 - moved) / 2, moved / 2], [moved / 2, (1 - moved) / 2]], atol=1e-6)
    np.testing.assert_allclose(out.cost, moved, atol=1e-6)
    self.assertTrue(out.converged)

  def test_everything_from_one_point(self):
    b = jnp.array([0.1, 0.2, 0.3, 0.15, 0.25])
    out = transport.sinkhorn_plan(COST, jnp.array([0.0, 1.0, 0.0, 0.0]), b, epsilon=0.05)
    want = np.zeros((4, 5))
    want[1] = b
    np.testing.assert_allclose(out.plan, want, atol=1e-6)
    np.testing.assert_allclose(out.cost, np.sum(b * COST[1]), rtol=1e-5)

  def test_approaches_the_best_assignment(self):
    cost = np.random.default_rng(1).uniform(size=(6, 6)).astype(np.float32)
    rows, columns = optimize.linear_sum_assignment(cost)
    best = cost[rows, columns].mean()
    epsilon = 0.01
    out = transport.sinkhorn_plan(cost, epsilon=epsilon, max_iterations=5000)
    self.assertTrue(out.converged)
    self.assertBetween(float(out.cost), best - 1e-4, best + epsilon * np.log(6))

  def test_a_large_epsilon_ignores_the_cost(self):
    out = transport.sinkhorn_plan(COST, epsilon=1e4)
    np.testing.assert_allclose(out.plan, np.full((4, 5), 1 / 20), rtol=1e-3)

  def test_what_it_reports(self):
    out = transport.sinkhorn_plan(COST, epsilon=0.02, max_iterations=500)
    self.assertTrue(out.converged)
    self.assertLess(out.error, 1e-4)
    self.assertBetween(int(out.iterations), 2, 499)
    np.testing.assert_allclose(out.error, np.abs(out.plan.sum(0) - 1 / 5).sum(), atol=1e-6)
    np.testing.assert_allclose(out.plan.sum(1), 1 / 4, atol=1e-6)
    np.testing.assert_allclose(out.cost, np.sum(out.plan * COST), rtol=1e-6)
    # The rule sees an iteration late: the last but one met it, the one before did not.
    before = transport.sinkhorn_plan(COST, epsilon=0.02, max_iterations=int(out.iterations) - 2)
    self.assertFalse(before.converged)
    self.assertGreaterEqual(before.error, 1e-4)

  def test_no_convergence_is_reported(self):
    out = transport.sinkhorn_plan(COST, epsilon=0.005, max_iterations=3)
    self.assertFalse(out.converged)
    self.assertEqual(out.iterations, 3)
    self.assertTrue(np.isfinite(out.plan).all())
    broken = transport.sinkhorn_plan(np.full((2, 2), np.nan, np.float32), epsilon=0.1)
    self.assertFalse(broken.converged)

  def test_gradient_is_that_of_the_iterations_that_ran(self):
    rng = np.random.default_rng(1)
    cost, direction = rng.uniform(size=(3, 4)), rng.normal(size=(3, 4))
    with jax.enable_x64(True):
      for iterations in (3, 300):  # far from convergence, and there
        value = lambda c, n=iterations: transport.sinkhorn_plan(
            c, epsilon=0.1, max_iterations=n, threshold=0.0).cost
        got = np.sum(np.asarray(jax.jit(jax.grad(value))(cost)) * direction)
        np.testing.assert_allclose(got, directional(value, cost, direction), rtol=1e-6)

  def test_gradient_with_respect_to_weights_and_epsilon(self):
    cost = np.random.default_rng(1).uniform(size=(3, 4))
    a, b = np.array([0.2, 0.3, 0.5]), np.array([0.1, 0.2, 0.3, 0.4])
    with jax.enable_x64(True):
      value = lambda a, b, eps: transport.sinkhorn_plan(
          cost, a, b, epsilon=eps, max_iterations=20, threshold=0.0).cost
      da, db, de = jax.jit(jax.grad(value, argnums=(0, 1, 2)))(a, b, 0.1)
      step = np.array([1.0, -2.0, 1.0])
      np.testing.assert_allclose(
          np.sum(da * step), directional(lambda a: value(a, b, 0.1), a, step), rtol=1e-6)
      step = np.array([1.0, 1.0, -3.0, 1.0])
      np.testing.assert_allclose(
          np.sum(db * step), directional(lambda b: value(a, b, 0.1), b, step), rtol=1e-6)
      np.testing.assert_allclose(
          de, directional(lambda e: value(a, b, e), 0.1, 1.0), rtol=1e-6)


class ReleasedPlanTest(parameterized.TestCase):

  def test_golden_plan(self):
    cost = transport.cosine_cost(waves(4, 3, 1, 1), waves(5, 3, 2, 1))
    out = transport.released_dlfd_plan(cost, epsilon=0.01)
    want = np.zeros((4, 5))
    want[0, 0], want[1, 0], want[2, 1], want[3, 2] = .099484, .100506, .199999, .199999
    np.testing.assert_allclose(out.plan, want, atol=1.1e-5)
    np.testing.assert_allclose([out.plan[i, j] for i, j in ((0, 0), (1, 0), (2, 1), (3, 2))],
                               [.099484, .100506, .199999, .199999], atol=1e-6)
    np.testing.assert_allclose(out.cost, 0.0490338542, atol=1e-7)
    # Two of the five columns get no mass at all: this is not a coupling.
    np.testing.assert_allclose(out.plan.sum(), 0.6, atol=1e-4)
    np.testing.assert_allclose(out.plan.sum(0)[3:], 0.0, atol=1e-5)

  @parameterized.product(epsilon=(0.01, 0.1), shape=((4, 5), (6, 3)), scale=(0.2, 2.0),
                         threshold=(0.1, 0.003))
  def test_is_the_released_recursion(self, epsilon, shape, scale, threshold):
    cost = np.random.default_rng(7).uniform(0.0, scale, size=shape)
    want, iterations, change = released(cost, epsilon, 50, threshold)
    with jax.enable_x64(True):
      out = transport.released_dlfd_plan(cost, epsilon=epsilon, threshold=threshold)
      self.assertEqual(out.iterations, iterations)
      np.testing.assert_allclose(out.plan, want, rtol=1e-9, atol=1e-14)
      np.testing.assert_allclose(out.error, change, rtol=1e-6)
      np.testing.assert_allclose(out.cost, np.sum(want * cost), rtol=1e-9)
      self.assertEqual(bool(out.converged), change < threshold)

  def test_gradient_is_that_of_the_iterations_that_ran(self):
    rng = np.random.default_rng(1)
    cost, direction = rng.uniform(size=(3, 4)), rng.normal(size=(3, 4))
    with jax.enable_x64(True):
      value = lambda c: transport.released_dlfd_plan(c, epsilon=0.05).cost
      got = np.sum(np.asarray(jax.jit(jax.grad(value))(cost)) * direction)
      np.testing.assert_allclose(got, directional(value, cost, direction), rtol=1e-6)


class BothTest(parameterized.TestCase):

  @parameterized.named_parameters(*SOLVERS)
  def test_weights_of_zero_are_absent(self, solve):
    a = jnp.array([0.5, 0.0, 0.25, 0.25])
    b = jnp.array([0.0, 0.25, 0.25, 0.0, 0.5])
    rows, columns = np.flatnonzero(a), np.flatnonzero(b)
    settings = {'epsilon': 0.05, 'max_iterations': 8}
    whole = solve(COST, a, b, **settings)
    part = solve(COST[np.ix_(rows, columns)], a[rows], b[columns], **settings)
    want = np.zeros((4, 5), np.float32)
    want[np.ix_(rows, columns)] = part.plan
    np.testing.assert_allclose(whole.plan, want, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(whole.plan)[want == 0], 0.0)
    np.testing.assert_allclose(whole.cost, part.cost, rtol=1e-6)
    self.assertEqual(whole.iterations, part.iterations)

    gradient = jax.jit(jax.grad(lambda c: solve(c, a, b, **settings).cost))(COST)
    self.assertTrue(np.isfinite(gradient).all())
    sliced = jax.jit(jax.grad(lambda c: solve(c, a[rows], b[columns], **settings).cost))(
        COST[np.ix_(rows, columns)])
    np.testing.assert_allclose(gradient[np.ix_(rows, columns)], sliced, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(gradient)[want == 0], 0.0)

  @parameterized.named_parameters(*SOLVERS)
  def test_vmap_is_a_loop(self, solve):
    # The costs stop after different numbers of iterations.
    costs = jnp.stack([COST, 0.1 * COST, 3.0 * COST])
    plan = lambda c: solve(c, epsilon=0.05, max_iterations=30)
    both = lambda c: (plan(c), jax.grad(lambda c: plan(c).cost)(c))
    got, slopes = jax.jit(jax.vmap(both))(costs)
    self.assertGreater(len(set(got.iterations.tolist())), 1)
    single = jax.jit(both)
    for i, cost in enumerate(costs):
      want, slope = single(cost)
      for name in want._fields:
        np.testing.assert_allclose(getattr(got, name)[i], getattr(want, name), rtol=1e-5,
                                   atol=1e-6, err_msg=name)
      np.testing.assert_allclose(slopes[i], slope, rtol=1e-4, atol=1e-6)

  @parameterized.named_parameters(*SOLVERS)
  def test_refuses(self, solve):
    with self.assertRaisesRegex(ValueError, 'max_iterations is at least 1, got 0'):
      solve(COST, epsilon=0.1, max_iterations=0)
    for a, b in ((np.ones(5), None), (None, np.ones((5, 1)))):
      with self.assertRaisesRegex(AssertionError, 'Chex'):
        solve(COST, a, b, epsilon=0.1)


def masked(cost, mask, a, b, epsilon, iterations):
  """The masked iteration of KPG-RL and NCU in float64: columns, then rows; a constant off the mask."""
  u, v = np.zeros(len(a)), np.zeros(len(b))
  score = lambda: np.where(mask, (u[:, None] + v[None] - cost) / epsilon, -1e6)
  log_sum = lambda x, axis: x.max(axis) + np.log(
      np.exp(x - x.max(axis, keepdims=True)).sum(axis))
  for _ in range(iterations):
    v = v + epsilon * (np.log(b) - log_sum(score(), 0))
    u = u + epsilon * (np.log(a) - log_sum(score(), 1))
  return np.exp(score())


class MaskedPlanTest(parameterized.TestCase):

  def problem(self, seed, m=7, n=8):
    rng = np.random.default_rng(seed)
    mask = rng.uniform(size=(m, n)) < 0.7
    mask[np.arange(m), np.arange(m)] = True
    mask[:, -1] = np.arange(m) < 3
    a, b = rng.uniform(0.5, 1.0, m), rng.uniform(0.5, 1.0, n)
    return rng.uniform(size=(m, n)), mask, a / a.sum(), b / b.sum()

  @parameterized.product(seed=(0, 1, 2, 3), epsilon=(0.03, 0.2), weighted=(False, True))
  def test_against_a_masked_iteration_in_float64(self, seed, epsilon, weighted):
    cost, mask, a, b = self.problem(seed)
    if not weighted:
      a, b = np.full(7, 1 / 7), np.full(8, 1 / 8)
    given = (a, b) if weighted else ()
    out = transport.masked_plan(cost, mask, *given, epsilon=epsilon, max_iterations=40,
                                threshold=-1.0)
    np.testing.assert_allclose(out.plan, masked(cost, mask, a, b, epsilon, 40), atol=1e-5)
    self.assertEqual(np.abs(out.plan[~mask]).max(), 0.0)
    self.assertEqual(int(out.iterations), 40)
    np.testing.assert_allclose(out.cost, np.sum(out.plan * cost), rtol=1e-5)
    np.testing.assert_allclose(out.row_error, np.abs(out.plan.sum(1) - a).sum(), atol=1e-6)
    np.testing.assert_allclose(out.column_error, np.abs(out.plan.sum(0) - b).sum(), atol=1e-6)

  @parameterized.parameters(0.05, 0.5)
  def test_without_a_mask_it_is_sinkhorn(self, epsilon):
    out = transport.masked_plan(COST, np.ones_like(COST), epsilon=epsilon, max_iterations=500)
    plain = transport.sinkhorn_plan(COST, epsilon=epsilon, max_iterations=500)
    np.testing.assert_allclose(out.plan, plain.plan, atol=1e-7)
    self.assertTrue(out.converged)
    self.assertEqual(int(out.iterations), int(plain.iterations))

  def test_against_pot(self):
    pot = pytest.importorskip('ot', reason='POT is in the extra `test`')
    for epsilon in (0.02, 0.1):
      expected = pot.bregman.sinkhorn_log(
          np.full(4, 1 / 4), np.full(5, 1 / 5), COST.astype(np.float64), epsilon,
          numItermax=20_000, stopThr=1e-11)
      out = transport.masked_plan(COST, np.ones_like(COST), epsilon=epsilon, max_iterations=5000,
                                  threshold=1e-6)
      np.testing.assert_allclose(out.plan, expected, atol=1e-5)

  def test_a_permutation_is_all_that_is_left(self):
    mask = np.eye(3)[[1, 2, 0]]
    out = transport.masked_plan(RNG.uniform(size=(3, 3)), mask, epsilon=0.03)
    np.testing.assert_allclose(out.plan, mask / 3, atol=1e-6)
    self.assertTrue(out.converged)

  def test_what_is_forbidden_may_hold_anything(self):
    cost, mask, a, b = self.problem(5)
    expected = transport.masked_plan(cost, mask, a, b, epsilon=0.1)
    for rubbish in (np.nan, np.inf, -1e30):
      out = transport.masked_plan(np.where(mask, cost, rubbish), mask, a, b, epsilon=0.1)
      np.testing.assert_array_equal(out.plan, expected.plan)
      np.testing.assert_array_equal(out.cost, expected.cost)

  @parameterized.named_parameters(
      ('row', [[0, 0], [1, 1]], None), ('column', [[1, 0], [1, 0]], None), ('all', [[0, 0]] * 2, None),
      ('marginals', [[1, 0], [0, 1]], [0.7, 0.3]))
  def test_impossible_masks_give_a_finite_plan(self, mask, a):
    mask = np.array(mask, bool)
    given = None if a is None else np.array(a, np.float32)
    function = lambda cost: transport.masked_plan(cost, mask, given, epsilon=0.1)
    out = function(COST[:2, :2])
    self.assertTrue(np.isfinite(out.plan).all())
    self.assertFalse(out.converged)
    self.assertGreater(out.row_error + out.column_error, 0.1)
    self.assertTrue(np.isfinite(jax.grad(lambda c: function(c).cost)(COST[:2, :2])).all())
    with self.assertRaises(ValueError):
      checks.check_mask(mask, given)

  def test_a_line_of_weight_0_may_forbid_everything(self):
    mask = np.array([[1, 1], [0, 0]], bool)
    out = transport.masked_plan(COST[:2, :2], mask, np.array([1.0, 0.0]), epsilon=0.1)
    np.testing.assert_allclose(out.plan, [[0.5, 0.5], [0.0, 0.0]], atol=1e-6)
    self.assertTrue(out.converged)

  def test_gradient(self):
    cost, mask, a, b = self.problem(6)
    with jax.enable_x64(True):
      function = lambda c: transport.masked_plan(
          c, mask, a, b, epsilon=0.1, max_iterations=30, threshold=-1.0).cost
      gradient = jax.grad(function)(cost)
      direction = RNG.normal(size=cost.shape)
      np.testing.assert_allclose(np.sum(gradient * direction), directional(
          lambda c: float(function(c)), cost, direction), rtol=1e-5)
    np.testing.assert_array_equal(gradient[~mask], 0.0)

  def test_batched_scanned_and_in_the_dtype_of_its_inputs(self):
    problems = [self.problem(seed) for seed in range(3)]
    cost, mask, a, b = (np.stack(part) for part in zip(*problems))
    solve = functools.partial(transport.masked_plan, epsilon=0.05, max_iterations=300)
    alone = [solve(*problem).plan for problem in problems]
    np.testing.assert_allclose(jax.vmap(solve)(cost, mask, a, b).plan, alone, atol=1e-5)
    scanned = jax.lax.scan(lambda _, x: (_, solve(*x).plan), 0, jax.tree.map(
        jnp.asarray, (cost.astype(np.float32), mask, a.astype(np.float32), b.astype(np.float32))))
    np.testing.assert_allclose(scanned[1], alone, atol=1e-5)
    with jax.enable_x64(True):
      self.assertEqual(solve(*problems[0]).plan.dtype, np.float64)
    self.assertEqual(solve(jnp.asarray(cost[0], jnp.bfloat16), mask[0]).plan.dtype, np.float32)

  def test_sharded_by_rows(self):
    """The plan of one device; between devices only vectors travel, never the matrix."""
    m, n = 64, 65
    mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P('data'))
    rng = np.random.default_rng(0)
    cost = rng.uniform(size=(m, n)).astype(np.float32)
    mask = rng.uniform(size=(m, n)) < 0.8
    mask[np.arange(m), np.arange(m)] = mask[:3, -1] = True
    solve = functools.partial(transport.masked_plan, epsilon=0.05, max_iterations=200)
    expected = solve(cost, mask)
    given = jax.device_put((cost, mask), rows)
    jitted = jax.jit(solve)
    out = jitted(*given)
    np.testing.assert_allclose(out.plan, expected.plan, atol=1e-6)
    self.assertEqual(out.plan.sharding.spec[0], 'data')
    text = jitted.lower(*given).compile().as_text()
    moved = re.findall(r'= (.*?) (?:all-reduce|all-gather|all-to-all|collective-permute|'
                       r'reduce-scatter)(?:-start)?\(', text)
    self.assertNotEmpty(moved)
    for shapes in moved:
      for dims in re.findall(r'\[([0-9,]*)\]', shapes):
        size = int(np.prod([int(d) for d in dims.split(',') if d]))
        self.assertLessEqual(size, max(m, n), msg=shapes)


if __name__ == '__main__':
  absltest.main()
