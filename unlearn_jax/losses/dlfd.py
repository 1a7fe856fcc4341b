"""DLFD: Distribution-Level Feature Distancing (Choi and Na), in the order of the paper."""

import chex
import jax
import jax.numpy as jnp

from unlearn_jax.losses import transport
from unlearn_jax.losses._compiled import compiled
from unlearn_jax.losses._compiled import floating
from unlearn_jax.losses._compiled import kept
from unlearn_jax.losses.classification import cross_entropy

READINGS = ('paper', 'release')


@compiled(static=('max_iterations', 'reading'), inline=False)
def ot_distance(
    x: jax.Array, y: jax.Array, *, epsilon: jax.Array | float = 0.01, max_iterations: int = 50,
    reading: str = 'paper', x_where: jax.Array | None = None, y_where: jax.Array | None = None,
) -> jax.Array:
  """`l_OT = <T, C>`: the transport distance between two batches of features (Eq. 1 and 2).

  C is `transport.cosine_cost` and T the entropic plan between weights proportional to the masks,
  uniform without them. The entropy term is not part of the value.

  Readings: `'paper'` solves Eq. 2 with a stabilised Sinkhorn that stops at an L1 error of the
  marginals of 1e-4 (`transport.sinkhorn_plan`); `'release'` is the released code's solver with its
  stop rule, sum |du| < 0.1, and its log floor (`transport.released_dlfd_plan`). Both stop at
  `max_iterations` as well, silently here: ask the plan whether it converged.

  Gradient: to x and y, through cost and plan (unrolled, reverse mode only); none to the masks. It
  is finite everywhere, and 0 for vectors without a direction.

  Args:
    x: [m, d], features of the retained records.
    y: [n, d], features of the records to forget.
    epsilon: strength of the entropy, 1 / lambda, > 0, traced; 0.01 in the released code.
    max_iterations: static; 50 in the released code.
    reading: static, `'paper'` or `'release'`.
    x_where: [m] weights, at least 0; rows of weight 0 may hold anything and change nothing.
    y_where: [n] weights, likewise. If either mask is empty, the distance and its gradient are 0.

  Returns:
    Scalar in [0, 2], float32 at least.

  Raises:
    AssertionError: shapes that do not fit.
    ValueError: an unknown reading, or no iterations.
  """
  chex.assert_rank([x, y], 2)
  chex.assert_equal_shape_suffix([x, y], 1)
  for features, where in ((x, x_where), (y, y_where)):
    if where is not None:
      chex.assert_shape(where, features.shape[:1])
  if reading not in READINGS:
    raise ValueError(f"ot_distance: reading is 'paper' or 'release', got {reading!r}")
  cost = transport.cosine_cost(kept(x, x_where), kept(y, y_where))
  a, empty_x = _marginal(x_where, cost.shape[0], cost.dtype)
  b, empty_y = _marginal(y_where, cost.shape[1], cost.dtype)
  solve = transport.sinkhorn_plan if reading == 'paper' else transport.released_dlfd_plan
  distance = solve(cost, a, b, epsilon=epsilon, max_iterations=max_iterations).cost
  return jnp.where(empty_x | empty_y, 0.0, distance)


def _marginal(where: jax.Array | None, size: int, dtype) -> tuple[jax.Array, jax.Array]:
  """(weights [size] that sum to 1, whether the mask was empty and they stand in for nothing)."""
  if where is None:
    where = jnp.ones((size,), dtype)
  where = jax.lax.stop_gradient(jnp.asarray(where).astype(dtype))
  total = jnp.sum(where)
  empty = total <= 0
  return jnp.where(empty, 1.0, where) / jnp.where(empty, float(size), total), empty


@compiled(static=('max_iterations', 'reading'), inline=False)
def perturbation_objective(
    retain_features: jax.Array, forget_features: jax.Array,
    retain_logits: jax.Array, retain_labels: jax.Array, *,
    class_weight: jax.Array | float, transport_weight: jax.Array | float = 1.0,
    epsilon: jax.Array | float = 0.01, max_iterations: int = 50, reading: str = 'paper',
    retain_where: jax.Array | None = None, forget_where: jax.Array | None = None,
) -> jax.Array:
  """What the perturbed pictures ascend (Eq. 3, Algorithm 1 line 12): `w l_OT - lambda l_CE`.

  l_OT is `ot_distance` between the features of perturbed retained and of forgotten records, l_CE
  (Eq. 4) the cross entropy of the perturbed retained records with their true labels. The paper has
  w = 1; the released settings are 3 and 7. A weight of 0 removes a component's gradient, not its
  cost in time. The released code passes the logits of *unperturbed* records as features, which
  leaves the perturbation no gradient of l_OT: that is the caller's choice, not the reading's, which
  only selects the solver.

  Gradient: to features and logits; see `ot_distance`.

  Args:
    retain_features: [m, d].
    forget_features: [n, d].
    retain_logits: [m, C], or [m, K] for attributes.
    retain_labels: int [m], or float [m, K] in {0, 1}.
    class_weight: lambda, traced; see `linear_weight`.
    transport_weight: w, traced.
    epsilon: see `ot_distance`.
    max_iterations: see `ot_distance`.
    reading: see `ot_distance`.
    retain_where: [m] weights of the retained records, in both terms.
    forget_where: [n] weights of the records to forget.

  Returns:
    Scalar, float32 at least.

  Raises:
    AssertionError: shapes that do not fit.
    ValueError: an unknown reading, or no iterations.
  """
  chex.assert_rank([retain_features, forget_features, retain_logits], 2)
  chex.assert_equal_shape_prefix([retain_features, retain_logits], 1)
  distance = ot_distance(
      retain_features, forget_features, epsilon=epsilon, max_iterations=max_iterations,
      reading=reading, x_where=retain_where, y_where=forget_where)
  class_loss = cross_entropy(retain_logits, retain_labels, where=retain_where)
  return transport_weight * distance - class_weight * class_loss


@compiled()
def ascend(
    x: jax.Array, gradient: jax.Array, *, step_size: jax.Array | float,
    bounds: tuple[jax.Array | float, jax.Array | float] | None = None,
) -> jax.Array:
  """One step of the perturbation (Eq. 3, line 13): `x + alpha sign(g)`, then into the bounds.

  Entries whose gradient is 0 stay. Gradient: passes to x where the bounds do not clip; the sign has
  none.

  Args:
    x: any shape, the perturbed pictures.
    gradient: the same shape, of the objective with respect to x.
    step_size: alpha, traced.
    bounds: (low, high) to clip to, numbers or arrays that broadcast against x; None, as in the
      paper, does not clip (the bounds are our option).

  Returns:
    The shape of x, float32 at least.

  Raises:
    AssertionError: shapes that do not fit.
  """
  chex.assert_equal_shape([x, gradient])
  moved = floating(x) + step_size * jnp.sign(floating(gradient)).astype(floating(x).dtype)
  return moved if bounds is None else jnp.clip(moved, bounds[0], bounds[1])


@compiled()
def linear_weight(
    step: jax.Array | int, steps: jax.Array | int, *,
    start: jax.Array | float, end: jax.Array | float,
) -> jax.Array:
  """The weight of the classification loss: `w0 + (w1 - w0) k / (K - 1)` for k = 0 .. K - 1.

  `linear_weight(k, K)` of Algorithm 1 line 12, with the released code's end points: w0 at the first
  step, w1 at the last. A run of one step has w0; later steps keep w1 (both ours).

  Args:
    step: k, scalar.
    steps: K, scalar, at least 1.
    start: w0, traced.
    end: w1, traced.

  Returns:
    Scalar, float32 at least.

  Raises:
    AssertionError: step or steps is not a scalar.
  """
  chex.assert_rank([step, steps], 0)
  last = jnp.maximum(floating(steps) - 1.0, 1.0)
  return start + (end - start) * jnp.clip(floating(step) / last, 0.0, 1.0)
