"""Entropic optimal transport between small batches. The only file that touches ott."""

import functools
import types
from typing import NamedTuple
import warnings

import chex
import jax
import jax.numpy as jnp

from unlearn_jax.losses._compiled import compiled
from unlearn_jax.losses._compiled import floating

NORM_FLOOR = 1e-6  # below this length a vector has no direction (torch clamps norms there)


class SinkhornPlan(NamedTuple):
  """A transport plan and how it was found.

  Attributes:
    plan: T [m, n], at least 0.
    cost: scalar <T, C> = sum_ij T_ij C_ij, without the entropy term.
    converged: bool scalar, whether the stop rule fired within the iterations allowed and nothing
      was NaN.
    iterations: int32 scalar, iterations that were run.
    error: scalar, what the stop rule last compared with its threshold.
  """

  plan: jax.Array
  cost: jax.Array
  converged: jax.Array
  iterations: jax.Array
  error: jax.Array


class MaskedPlan(NamedTuple):
  """A transport plan that stays off what is forbidden, and how it was found.

  Attributes:
    plan: T [m, n], at least 0, and exactly 0 where the mask forbids.
    cost: scalar <T, C> over what is allowed, without the entropy term.
    converged: bool scalar, whether the columns' error fell to the threshold and every line that
      asks for mass may have some.
    iterations: int32 scalar, iterations that were run.
    row_error: scalar, sum_i |sum_j T_ij - a_i|.
    column_error: scalar, sum_j |sum_i T_ij - b_j|.
  """

  plan: jax.Array
  cost: jax.Array
  converged: jax.Array
  iterations: jax.Array
  row_error: jax.Array
  column_error: jax.Array


@functools.cache
def _ott() -> types.SimpleNamespace:
  """ott's pieces, imported on first use: they pull in Flax and matplotlib."""
  # The first use may be inside a trace: an array made at import must not become its tracer.
  with jax.ensure_compile_time_eval(), warnings.catch_warnings():
    warnings.simplefilter('ignore', DeprecationWarning)  # ott imports the unmaintained jaxopt
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

  @jax.tree_util.register_pytree_node_class
  class MarginalStop(sinkhorn.Sinkhorn):
    """ott's Sinkhorn, with the error of the columns read off their potentials.

    An update makes column j exact, so that its mass before was b_j exp((g_old - g_new) / epsilon).
    ott sums the plan instead, a third pass over the matrix in every iteration. The error is that
    from before the update: the rule fires one iteration later.
    """

    def one_iteration(self, ot_prob, state, iteration, compute_error):
      moved, b = self.lse_step(ot_prob, state, iteration), ot_prob.b
      gap = jnp.where(b > 0, (state.gv - moved.gv) / ot_prob.epsilon, 0.0)
      error = jax.lax.stop_gradient(jnp.sum(b * jnp.abs(jnp.expm1(gap))))
      # The starting potentials carry no plan yet; infinity would count as divergence.
      error = jnp.where(iteration == 0, jnp.finfo(error.dtype).max, error)
      return moved.set(errors=state.errors.at[iteration, 0].set(error))

  @jax.tree_util.register_pytree_node_class
  class PotentialStop(sinkhorn.Sinkhorn):
    """Stops by the change of the column potentials, as released codes do, not by the marginals."""

    def one_iteration(self, ot_prob, state, iteration, compute_error):
      moved = self.lse_step(ot_prob, state, iteration)
      change = jnp.sum(jnp.abs(moved.gv - state.gv))
      return moved.set(errors=state.errors.at[iteration, 0].set(change))

  @jax.tree_util.register_pytree_node_class
  class ReleasedDLFD(PotentialStop):
    """DLFD's released iteration, on the transposed problem: ott updates columns before rows."""

    log_floor = 1e-6

    def lse_step(self, ot_prob, state, iteration):
      geom, eps = ot_prob.geom, ot_prob.geom.epsilon

      def update(potentials, old, weights, axis):
        # Neither stabilised nor exact: the floor caps how far an empty line can be lifted.
        mass = jnp.sum(geom.transport_from_potentials(*potentials), axis=axis)
        # Weight 0 leaves the potential alone: its cost is infinite, so it gets no mass anyway.
        target = jnp.log(jnp.where(weights > 0, weights, 1.0))
        step = eps * (target - jnp.log(mass + self.log_floor))
        return old + jnp.where(weights > 0, step, 0.0)

      f, g = state.potentials
      g = update((f, g), g, ot_prob.b, axis=0)
      f = update((f, g), f, ot_prob.a, axis=1)
      return state.set(potentials=(f, g))

  return types.SimpleNamespace(
      Geometry=geometry.Geometry, Problem=linear_problem.LinearProblem,
      MarginalStop=MarginalStop, PotentialStop=PotentialStop, ReleasedDLFD=ReleasedDLFD)


def _weights(weights: jax.Array | None, size: int, cost: jax.Array) -> jax.Array:
  """A marginal [size] in the dtype of the cost; uniform by default."""
  if weights is None:
    return jnp.full((size,), 1.0 / size, cost.dtype)
  chex.assert_shape(weights, (size,))
  return jnp.asarray(weights).astype(cost.dtype)


def _check_iterations(name: str, max_iterations: int) -> None:
  if max_iterations < 1:
    raise ValueError(f'{name}: max_iterations is at least 1, got {max_iterations}')


def _outcome(out, plan: jax.Array, cost: jax.Array) -> SinkhornPlan:
  """ott's record of errors, -1 where none was taken, as the fields of a `SinkhornPlan`."""
  taken = jnp.sum((out.errors != -1).astype(jnp.int32))
  return SinkhornPlan(
      plan=plan, cost=jnp.sum(plan * cost), converged=out.converged, iterations=taken,
      error=jax.lax.stop_gradient(out.errors[jnp.maximum(taken - 1, 0)]))


@compiled()
def cosine_cost(x: jax.Array, y: jax.Array) -> jax.Array:
  """`C_ij = max(0, 1 - <x_i, y_j> / (|x_i| |y_j|))`, in [0, 2]; the cost c of DLFD's Eq. 1.

  Source: the released code of DLFD. A vector shorter than 1e-6 has no direction: its cosine with
  everything is 0, its cost 1 and its gradient 0 (ours; the release divides by the floor there).

  Args:
    x: [m, d].
    y: [n, d].

  Returns:
    [m, n], float32 at least.

  Raises:
    AssertionError: shapes that do not fit.
  """
  chex.assert_rank([x, y], 2)
  chex.assert_equal_shape_suffix([x, y], 1)

  def unit(rows):
    square = jnp.sum(rows * rows, axis=1, keepdims=True)  # [m, 1]
    long = square > NORM_FLOOR**2
    # Both branches must be finite, else the gradient of the dead one is 0 * inf.
    return jnp.where(long, rows / jnp.sqrt(jnp.where(long, square, 1.0)), 0.0)

  # Highest precision: accelerators would multiply in bfloat16 or TF32, coarser than epsilon.
  cosine = jnp.matmul(unit(floating(x)), unit(floating(y)).T, precision=jax.lax.Precision.HIGHEST)
  return jnp.maximum(0.0, 1.0 - cosine)


@compiled(static=('max_iterations',), inline=False)
def sinkhorn_plan(
    cost: jax.Array, a: jax.Array | None = None, b: jax.Array | None = None, *,
    epsilon: jax.Array | float, max_iterations: int = 100, threshold: jax.Array | float = 1e-4,
) -> SinkhornPlan:
  """Entropic transport, `argmin <T, C> + epsilon sum_ij T_ij log T_ij` with T1 = a, T'1 = b.

  DLFD's Eq. 2 with epsilon = 1 / lambda and the sign of the entropy that makes the problem convex
  (the paper prints the opposite one, its code has this). Solved by ott's Sinkhorn in the log
  domain with an absolute epsilon, columns before rows. Rows hold exactly after each iteration, so
  the error of the marginals is that of the columns, `sum_j |sum_i T_ij - b_j|`.

  Gradient: through the plan, by reverse-mode differentiation of the iterations that were run
  (unrolled; ott's `implicit_diff=None`): the derivative of what was computed, converged or not.
  With respect to `cost` it is finite even with weights of 0, with respect to `a`, `b` and `epsilon`
  when all weights are positive. The implicit rule would assume convergence, which a small epsilon
  does not reach in 50 iterations. No forward mode. The stop rule looks at the plan of one iteration
  before, which costs nothing; `error` is that of the plan returned.

  Args:
    cost: C [m, n], finite.
    a: [m] weights of the rows, at least 0; None is uniform, 1/m. Weights of 0 give rows of 0.
    b: [n] weights of the columns, with the sum of `a`; None is uniform, 1/n.
    epsilon: strength of the entropy in units of the cost, > 0, traced.
    max_iterations: static, at least 1.
    threshold: largest L1 error of the marginals to stop at, traced.

  Returns:
    A `SinkhornPlan`; `error` is the L1 error of the marginals.

  Raises:
    AssertionError: shapes that do not fit.
    ValueError: no iterations.
  """
  chex.assert_rank(cost, 2)
  _check_iterations('sinkhorn_plan', max_iterations)
  cost = floating(cost)
  a, b = _weights(a, cost.shape[0], cost), _weights(b, cost.shape[1], cost)
  ott = _ott()
  problem = ott.Problem(ott.Geometry(cost, epsilon=jnp.asarray(epsilon, cost.dtype)), a, b)
  solver = ott.MarginalStop(lse_mode=True, threshold=jnp.asarray(threshold, cost.dtype),
                            inner_iterations=1, max_iterations=max_iterations, implicit_diff=None)
  out = solver(problem)
  plan = problem.geom.transport_from_potentials(out.f, out.g)
  error = jax.lax.stop_gradient(jnp.sum(jnp.abs(jnp.sum(plan, axis=0) - b)))
  return _outcome(out, plan, cost)._replace(
      error=error, converged=(out.converged & jnp.isfinite(error)) | (error <= threshold))


@compiled(static=('max_iterations',), inline=False)
def masked_plan(
    cost: jax.Array, mask: jax.Array, a: jax.Array | None = None, b: jax.Array | None = None, *,
    epsilon: jax.Array | float, max_iterations: int = 100, threshold: jax.Array | float = 1e-4,
) -> MaskedPlan:
  """`argmin <T, C> + epsilon sum_ij T_ij log T_ij` with T1 = a, T'1 = b, and T = 0 off the mask.

  NCU's Eq. 7 with the masks of its Eq. 8 (the form of KPG-RL: T = M * T'). Solved as
  `sinkhorn_plan`, by ott's Sinkhorn in the log domain, columns before rows; a forbidden entry has
  infinite cost, so that nothing can move onto it and its gradient is 0. What stands in `cost` there
  does not matter, NaN included.

  A mask may make the marginals impossible. A line that allows nothing gets no mass, and any other
  excess of demand is left over: the plan is finite, `converged` is False and the errors say by how
  much. `checks.check_mask` tells beforehand, on the host.

  With `cost` and `mask` sharded by rows, only potentials and sums of the columns travel between
  devices. Gradient: through the plan, unrolled, with the limits of `sinkhorn_plan`.

  Args:
    cost: C [m, n], finite where allowed.
    mask: [m, n], True or 1 where mass may go.
    a: [m] weights of the rows, at least 0; None is uniform, 1/m.
    b: [n] weights of the columns, with the sum of `a`; None is uniform, 1/n.
    epsilon: strength of the entropy in units of the cost, > 0, traced.
    max_iterations: static, at least 1.
    threshold: largest L1 error of the marginals to stop at, traced.

  Returns:
    A `MaskedPlan`.

  Raises:
    AssertionError: shapes that do not fit.
    ValueError: no iterations.
  """
  return _masked(cost, mask, a, b, epsilon, max_iterations, threshold, 'masked_plan', 'MarginalStop')


@compiled(static=('max_iterations',), inline=False)
def released_ncu_plan(
    cost: jax.Array, mask: jax.Array, a: jax.Array | None = None, b: jax.Array | None = None, *,
    epsilon: jax.Array | float, max_iterations: int = 100, threshold: jax.Array | float = 1e-4,
) -> MaskedPlan:
  """The masked solver of NCU's released code (KPG-RL's): rows before columns, another stop rule.

  `u_i += epsilon (log a_i - LSE_j A)`, then v alike with the new u, `A_ij = (u_i + v_j - C_ij) /
  epsilon` where allowed, until `sum_i |du_i| < threshold`: the columns hold exactly. ott's
  Sinkhorn on the transposed problem with this stop rule; the release's constant of -1e6 where
  forbidden and its 1e-10 within the logarithm are below rounding.

  Gradient and impossible masks: as `masked_plan`.

  Args:
    cost: C [m, n], finite where allowed; the release divides it by its maximum.
    mask: [m, n], True or 1 where mass may go.
    a: [m] weights of the rows; None is uniform.
    b: [n] weights of the columns; None is uniform.
    epsilon: > 0, traced.
    max_iterations: static, at least 1.
    threshold: the stop rule's, on the potentials of the rows, traced.

  Returns:
    A `MaskedPlan`; `converged` tells only that the stop rule fired.

  Raises:
    AssertionError: shapes that do not fit.
    ValueError: no iterations.
  """
  chex.assert_rank([cost, mask], 2)
  chex.assert_equal_shape([cost, mask])
  out = _masked(cost.T, mask.T, b, a, epsilon, max_iterations, threshold, 'released_ncu_plan',
                'PotentialStop')
  return out._replace(plan=out.plan.T, row_error=out.column_error, column_error=out.row_error)


def _masked(cost, mask, a, b, epsilon, max_iterations, threshold, name, solver) -> MaskedPlan:
  """Sinkhorn with an infinite cost where the mask forbids, columns before rows."""
  chex.assert_rank([cost, mask], 2)
  chex.assert_equal_shape([cost, mask])
  _check_iterations(name, max_iterations)
  cost, allowed = floating(cost), jnp.asarray(mask).astype(bool)
  a, b = _weights(a, cost.shape[0], cost), _weights(b, cost.shape[1], cost)
  ott = _ott()
  geom = ott.Geometry(jnp.where(allowed, cost, jnp.inf), epsilon=jnp.asarray(epsilon, cost.dtype))
  # A line without any partner must ask for nothing: its potential would be infinite.
  reachable = (jnp.any(allowed & (b > 0), axis=1), jnp.any(allowed & (a > 0)[:, None], axis=0))
  served = [jnp.where(able, weights, 0.0) for able, weights in zip(reachable, (a, b))]
  out = getattr(ott, solver)(
      lse_mode=True, threshold=jnp.asarray(threshold, cost.dtype), inner_iterations=1,
      max_iterations=max_iterations, implicit_diff=None)(ott.Problem(geom, *served))
  plan = jnp.where(allowed, geom.transport_from_potentials(out.f, out.g), 0.0)
  row_error = jnp.sum(jnp.abs(jnp.sum(plan, axis=1) - a))
  column_error = jnp.sum(jnp.abs(jnp.sum(plan, axis=0) - b))
  possible = jnp.all(served[0] == a) & jnp.all(served[1] == b)
  met = out.converged if solver == 'PotentialStop' else out.converged | (column_error <= threshold)
  return MaskedPlan(
      plan=plan, cost=jnp.sum(plan * jnp.where(allowed, cost, 0.0)),
      converged=met & possible & jnp.isfinite(column_error),
      iterations=jnp.sum((out.errors != -1).astype(jnp.int32)),
      row_error=jax.lax.stop_gradient(row_error),
      column_error=jax.lax.stop_gradient(column_error))


@compiled(static=('max_iterations',), inline=False)
def released_dlfd_plan(
    cost: jax.Array, a: jax.Array | None = None, b: jax.Array | None = None, *,
    epsilon: jax.Array | float, max_iterations: int = 50, threshold: jax.Array | float = 0.1,
) -> SinkhornPlan:
  """The solver of DLFD's released code, quirks included: what comes out is not always a coupling.

  `u_i += epsilon (log a_i - log(1e-6 + sum_j exp((u_i + v_j - C_ij) / epsilon)))`, then v alike
  with the new u, until `sum_i |du_i| < threshold`. The logarithm is not stabilised and floored
  within, so a line whose costs exceed about 14 epsilon starts with an empty kernel and may end
  without mass. The plan is `exp((u_i + v_j - C_ij) / epsilon)`. A small subclass of ott's Sinkhorn,
  on the transposed problem since ott updates columns first.

  Gradient: through the plan, unrolled, with the limits of `sinkhorn_plan`.

  Args:
    cost: C [m, n], finite.
    a: [m] weights of the rows; None is uniform. Weights of 0 leave the problem (ours).
    b: [n] weights of the columns; None is uniform.
    epsilon: > 0, traced.
    max_iterations: static, at least 1.
    threshold: the stop rule's, on the potentials of the rows, traced.

  Returns:
    A `SinkhornPlan`; `error` is sum_i |du_i|, and `converged` tells only that it fell below the
    threshold.

  Raises:
    AssertionError: shapes that do not fit.
    ValueError: no iterations.
  """
  chex.assert_rank(cost, 2)
  _check_iterations('released_dlfd_plan', max_iterations)
  cost = floating(cost)
  a, b = _weights(a, cost.shape[0], cost), _weights(b, cost.shape[1], cost)
  ott = _ott()
  # An infinite cost takes a line of weight 0 out of every sum, exactly and with gradient 0.
  reachable = (a[:, None] > 0) & (b[None, :] > 0)
  geom = ott.Geometry(jnp.where(reachable, cost, jnp.inf).T,
                      epsilon=jnp.asarray(epsilon, cost.dtype))
  solver = ott.ReleasedDLFD(lse_mode=True, threshold=jnp.asarray(threshold, cost.dtype),
                            inner_iterations=1, max_iterations=max_iterations, implicit_diff=None)
  # Zeros as in the release: ott's own start has -inf at weights of 0, whose change would be NaN.
  out = solver(ott.Problem(geom, b, a), (jnp.zeros_like(b), jnp.zeros_like(a)))
  return _outcome(out, geom.transport_from_potentials(out.f, out.g).T, cost)
