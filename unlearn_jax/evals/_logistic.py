"""Logistic regression on one number per record, by Newton's method on the device."""

import jax
import jax.numpy as jnp

# Step lengths tried at once in every Newton step; the full one first, so that it wins ties.
STEP_LENGTHS = (1.0, 0.5, 0.25, 0.06, 0.01, 0.0)


def newton(x, positive, weight, penalty, start, steps):
  """Minimises penalty @ parameters^2 / 2 + sum_i weight_i log(1 + exp(-y_i (w x_i + b))).

  Args:
    x: [n], of the order of 1.
    positive: bool [n], where y_i is 1 instead of -1.
    weight: [n].
    penalty: [2], of (slope, intercept).
    start: [2], parameters to start from.
    steps: how many Newton steps.

  Returns:
    parameters (slope, intercept), [2]; the objective never rises from step to step.
  """
  design = jnp.stack([x, jnp.ones_like(x)], axis=-1)  # [n, 2]
  sign = jnp.where(positive, 1.0, -1.0)
  ridge = 1e-7 * jnp.maximum(weight.sum(), 1) * jnp.eye(2)  # for when all probabilities are 0 or 1

  def objective(parameters):
    return (penalty @ parameters**2 / 2
            + weight @ jax.nn.softplus(-sign * (design @ parameters)))

  def step(_, parameters):
    p = jax.nn.sigmoid(design @ parameters)
    gradient = penalty * parameters + (weight * (p - positive)) @ design
    hessian = jnp.diag(penalty) + (design * (weight * p * (1 - p))[:, None]).T @ design + ridge
    (a, b), (_, d) = hessian
    direction = jnp.array([d * gradient[0] - b * gradient[1], a * gradient[1] - b * gradient[0]])
    direction /= jnp.maximum(a * d - b * b, 1e-30)
    # On separable losses a full step may overshoot: take the best of several lengths.
    candidates = parameters - jnp.array(STEP_LENGTHS)[:, None] * direction
    value = jax.vmap(objective)(candidates)
    return candidates[jnp.argmin(jnp.where(jnp.isfinite(value), value, jnp.inf))]

  return jax.lax.fori_loop(0, steps, step, start)
