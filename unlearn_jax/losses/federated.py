"""The server algebra of federated unlearning baselines, on flat parameter vectors."""

import chex
import jax
import jax.numpy as jnp

from unlearn_jax.losses import subspace
from unlearn_jax.losses._compiled import compiled
from unlearn_jax.losses._compiled import floating
from unlearn_jax.losses._compiled import kept


def _rescaled(vector: jax.Array, like: jax.Array) -> jax.Array:
  """`vector` at the length of `like`; 0 if it is 0."""
  squares, wanted = jnp.sum(jnp.square(vector)), jnp.sum(jnp.square(like))
  some = (squares > 0) & (wanted > 0)
  ratio = jnp.where(some, wanted, 1.0) / jnp.where(some, squares, 1.0)
  return jnp.where(some, jnp.sqrt(ratio), 0.0) * vector


@compiled()
def orthogonal_direction(
    forget_gradient: jax.Array, retain_gradients: jax.Array, *,
    tolerance: jax.Array | float = 1e-3, where: jax.Array | None = None,
) -> jax.Array:
  """FedOSD's orthogonal steepest descent direction: it conflicts with no retained client.

  `d = g_u - G^T (G G^T)^+ G g_u`, rescaled to `||g_u||` (Pan et al., AAAI 2025). The pseudo-inverse
  is taken through an orthonormal basis of G's rows. The authors' code drops eigenvalues of `G G^T`
  below 1e-6; here (ours) the cut is relative to the largest, `tolerance^2`, so that the scale of
  gradients is of no account.

  Gradient: through g_u, not through G.

  Args:
    forget_gradient: g_u [P].
    retain_gradients: G [K, P].
    tolerance: cut of G's singular values, relative to the largest, traced.
    where: [K] mask: clients that count; None counts all.

  Returns:
    [P], float32 at least; 0 if g_u lies in the span of G.

  Raises:
    AssertionError: shapes that do not fit.
  """
  chex.assert_rank([forget_gradient, retain_gradients], [1, 2])
  chex.assert_equal(forget_gradient.shape[0], retain_gradients.shape[1])
  gradient = floating(forget_gradient)
  span = subspace.orthonormal(kept(retain_gradients, where).T, tolerance=tolerance).vectors
  direction = subspace.project_out(subspace.project_out(gradient, span), span)
  # What is left of a gradient in the span is rounding and must not be scaled up.
  noise = 100.0 * jnp.finfo(gradient.dtype).eps
  left = jnp.sum(jnp.square(direction)) > noise ** 2 * jnp.sum(jnp.square(gradient))
  return jnp.where(left, _rescaled(direction, gradient), 0.0)


@compiled()
def without_return(gradient: jax.Array, moved: jax.Array) -> jax.Array:
  """FedOSD's recovery: a retained gradient that does not lead back to the model before unlearning.

  `g - <g, a> a / ||a||^2` with `a = theta - theta^T`, rescaled to `||g||` (Pan et al., AAAI 2025).

  Gradient: to both.

  Args:
    gradient: g [P].
    moved: theta - theta^T [P]; where nothing has moved, g is left as it is.

  Returns:
    [P], float32 at least; 0 if g leads along a alone.

  Raises:
    AssertionError: shapes that do not fit.
  """
  chex.assert_rank([gradient, moved], 1)
  chex.assert_equal_shape([gradient, moved])
  gradient, moved = floating(gradient), floating(moved)
  squares = jnp.sum(jnp.square(moved))
  some = squares > 0
  share = jnp.where(some, jnp.sum(gradient * moved), 0.0) / jnp.where(some, squares, 1.0)
  return _rescaled(gradient - share * moved, gradient)


@compiled()
def project_on_ball(
    params: jax.Array, center: jax.Array, *, radius: jax.Array | float
) -> jax.Array:
  """The nearest point to theta with `||theta' - theta_ref|| <= radius`.

  The projection of PGA, projected gradient ascent (Halimi et al. 2022).

  Args:
    params: theta [P].
    center: theta_ref [P].
    radius: at least 0, traced.

  Returns:
    [P], float32 at least; theta itself inside the ball.

  Raises:
    AssertionError: shapes that do not fit.
  """
  chex.assert_rank([params, center], 1)
  chex.assert_equal_shape([params, center])
  params, center = floating(params), floating(center)
  radius = jnp.asarray(radius, params.dtype)
  moved = params - center
  squares = jnp.sum(jnp.square(moved))
  outside = squares > jnp.square(radius)
  scale = radius / jnp.sqrt(jnp.where(outside, squares, 1.0))
  return jnp.where(outside, center + scale * moved, params)
