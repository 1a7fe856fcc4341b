"""Gaussian diffusion: the schedule's tables, the noisy picture, the posterior and ancestral sampling.

Ho et al., NeurIPS 2020, with the share of signal gamma_t in the place of the time step, as in Saharia
et al. 2022 (Palette). Steps are counted from 0 here: gammas[t] is the papers' gamma_{t+1}.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Schedule(NamedTuple):
  """What a diffusion of T steps needs, computed in float64: float32 [T] each.

  With alpha_t = 1 - beta_t, gamma_t = prod_{s <= t} alpha_s and gamma_{-1} = 1:

  Attributes:
    gammas: gamma_t, the share of the variance that is signal.
    image_of_state: 1 / sqrt(gamma_t).
    image_of_noise: sqrt(1 / gamma_t - 1).
    mean_of_image: beta_t sqrt(gamma_{t-1}) / (1 - gamma_t).
    mean_of_state: (1 - gamma_{t-1}) sqrt(alpha_t) / (1 - gamma_t).
    log_variance: log(beta_t (1 - gamma_{t-1}) / (1 - gamma_t)), no less than log(1e-20): the first
      is log(0).
  """

  gammas: np.ndarray
  image_of_state: np.ndarray
  image_of_noise: np.ndarray
  mean_of_image: np.ndarray
  mean_of_state: np.ndarray
  log_variance: np.ndarray


def linear(steps: int, first: float, last: float) -> np.ndarray:
  """beta_t, evenly spaced from the first to the last: float64 [T].

  Raises:
    ValueError: fewer than 2 steps; betas that do not ascend within (0, 1).
  """
  if steps < 2 or not 0 < first <= last < 1:
    raise ValueError('a schedule has 2 steps or more, and 0 < first beta <= last beta < 1; got '
                     f'{steps} steps from {first} to {last}')
  return np.linspace(first, last, steps, dtype=np.float64)


def respaced(betas: np.ndarray, steps: int) -> np.ndarray:
  """The betas of a diffusion that visits `steps` of the T noise levels only: float64 [steps].

  Kept are the levels at round(i (T - 1) / (steps - 1)), i = 0 ... steps - 1: evenly spaced, with both
  ends (the strides of Nichol and Dhariwal 2021, section 4); of one step, the last alone. Between kept
  levels beta = 1 - gamma_t / gamma_s with s the one before. All T give `betas` up to rounding.

  Raises:
    ValueError: steps outside of 1 ... T.
  """
  if not 1 <= steps <= len(betas):
    raise ValueError(f'of {len(betas)} steps, a sampler takes 1 to {len(betas)}, got {steps}')
  kept = np.round(np.linspace(len(betas) - 1, 0, steps)).astype(int)[::-1]
  gammas = np.cumprod(1 - betas)[kept]
  return 1 - gammas / np.append(1.0, gammas[:-1])


def schedule(betas: np.ndarray) -> Schedule:
  """The tables of `betas` [T]."""
  betas = np.asarray(betas, np.float64)
  alphas = 1 - betas
  gammas = np.cumprod(alphas)
  before = np.append(1.0, gammas[:-1])
  variances = betas * (1 - before) / (1 - gammas)
  tables = (gammas, np.sqrt(1 / gammas), np.sqrt(1 / gammas - 1),
            betas * np.sqrt(before) / (1 - gammas), (1 - before) * np.sqrt(alphas) / (1 - gammas),
            np.log(np.maximum(variances, 1e-20)))
  return Schedule(*(table.astype(np.float32) for table in tables))


def draw_levels(key: jax.Array, tables: Schedule, batch: int) -> jax.Array:
  """gamma ~ U(gamma_t, gamma_{t-1}) with t ~ U{1 ... T - 1}, one per picture: float32 [B]."""
  step_key, place_key = jax.random.split(key)
  gammas = jnp.asarray(tables.gammas)
  step = jax.random.randint(step_key, (batch,), 1, len(gammas))
  return gammas[step - 1] + (gammas[step] - gammas[step - 1]) * jax.random.uniform(place_key, (batch,))


def noisy(image: jax.Array, noise: jax.Array, gamma: jax.Array) -> jax.Array:
  """y_gamma = sqrt(gamma) y_0 + sqrt(1 - gamma) eps of pictures [B, H, W, C] and gamma [B]."""
  gamma = gamma[:, None, None, None]
  return jnp.sqrt(gamma) * image + jnp.sqrt(1 - gamma) * noise


def posterior(tables: Schedule, step: jax.Array | int, image: jax.Array, state: jax.Array
              ) -> tuple[jax.Array, jax.Array]:
  """Mean and log variance of q(y_{t-1} | y_t, y_0), t counted from 0.

  Args:
    tables: the schedule, its arrays of NumPy or of JAX.
    step: t.
    image: y_0, or an estimate of it.
    state: y_t.

  Returns:
    The mean, in the shape of `image`, and a scalar.
  """
  mean = tables.mean_of_image[step] * image + tables.mean_of_state[step] * state
  return mean, tables.log_variance[step]


def inside(hole: jax.Array, within: jax.Array, around: jax.Array) -> jax.Array:
  """m a + (1 - m) b: pictures [B, H, W, C] put together, m [B, H, W, 1] either 0 or 1."""
  return hole * within + (1 - hole) * around


def inpaint(predict: Callable[[jax.Array, jax.Array], jax.Array], tables: Schedule, key: jax.Array,
            start: jax.Array, known: jax.Array, hole: jax.Array) -> jax.Array:
  """Ancestral sampling from the last step to the first, with what is known put back in every step.

  y_hat_0 = clip((y_t - sqrt(1 - gamma_t) eps_hat) / sqrt(gamma_t), -1, 1); y_{t-1} is drawn from
  q(. | y_t, y_hat_0), and is its mean in the last step. One `lax.scan`: the network is compiled once.

  Args:
    predict: (y_t, gamma_t [B]) -> eps_hat, both [B, H, W, C].
    tables: of the steps that are taken.
    key: step t draws from `fold_in(key, t)`.
    start: y_T.
    known: pictures [B, H, W, C] in [-1, 1]; in the hole they are not read.
    hole: [B, H, W, 1], 1 where a picture is to be painted.

  Returns:
    [B, H, W, C]: `known` bit by bit outside of the hole.
  """
  tables = Schedule(*map(jnp.asarray, tables))

  def back(state, step):
    noise = predict(state, jnp.full(len(state), tables.gammas[step]))
    image = tables.image_of_state[step] * state - tables.image_of_noise[step] * noise
    mean, log_variance = posterior(tables, step, jnp.clip(image, -1.0, 1.0), state)
    draw = jax.random.normal(jax.random.fold_in(key, step), state.shape)
    state = mean + jnp.where(step > 0, jnp.exp(0.5 * log_variance), 0.0) * draw
    return inside(hole, state, known), None

  return jax.lax.scan(back, start, jnp.arange(len(tables.gammas))[::-1])[0]
