"""Tests of Gaussian diffusion: tables in float64, Gaussians in closed form, what a sampler returns."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax.models import diffusion

MEAN, DEVIATION = 0.2, 0.15  # of the toy: pixels that are independent Gaussians


def loop(betas):
  """The schedule entry by entry, in Python's floats."""
  rows, before = [], 1.0
  for beta in betas:
    gamma = before * (1 - beta)
    variance = beta * (1 - before) / (1 - gamma)
    rows.append((gamma, gamma**-0.5, (1 / gamma - 1)**0.5, beta * before**0.5 / (1 - gamma),
                 (1 - before) * (1 - beta)**0.5 / (1 - gamma), np.log(max(variance, 1e-20))))
    before = gamma
  return diffusion.Schedule(*np.array(rows).T)


class ScheduleTest(parameterized.TestCase):

  @parameterized.parameters((2000, 1e-6, 0.01), (1000, 1e-4, 0.09), (2000, 1e-4, 0.09))
  def test_tables(self, steps, first, last):
    tables = diffusion.schedule(diffusion.linear(steps, first, last))
    expected = loop(first + (last - first) * step / (steps - 1) for step in range(steps))
    for name, found, wanted in zip(diffusion.Schedule._fields, tables, expected):
      self.assertEqual((found.dtype, found.shape), (np.float32, (steps,)), name)
      self.assertTrue(np.isfinite(found).all(), name)
      # 1e-45 is the smallest number above 0: below 1e-38 float32 has fewer digits.
      np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=1e-45, err_msg=name)

  def test_landmarks(self):
    gammas = diffusion.schedule(diffusion.linear(2000, 1e-6, 0.01)).gammas
    np.testing.assert_allclose(gammas[[0, -1]], [1 - 1e-6, 4.386e-5], rtol=1e-4)
    # The schedule of the public test configuration at 2000 steps: sub-normal in float32, and its
    # inverse root, a product of float32 no more, is still exact.
    tables = diffusion.schedule(diffusion.linear(2000, 1e-4, 0.09))
    self.assertBetween(tables.gammas[-1], 1e-45, np.finfo(np.float32).tiny)
    np.testing.assert_allclose(tables.gammas[-1], 4e-41, rtol=0.1)
    log_gamma = np.log1p(-np.linspace(1e-4, 0.09, 2000)).sum()
    np.testing.assert_allclose(np.log(tables.image_of_state[-1]), -log_gamma / 2, rtol=1e-6)

  def test_respaced(self):
    betas = diffusion.linear(50, 1e-3, 0.2)
    np.testing.assert_allclose(diffusion.respaced(betas, 50), betas, rtol=1e-12)
    gammas = np.cumprod(1 - betas)
    np.testing.assert_allclose(np.cumprod(1 - diffusion.respaced(betas, 8)), gammas[::7], rtol=1e-12)
    found = np.cumprod(1 - diffusion.respaced(betas, 4))  # 16 1/3 apart
    np.testing.assert_allclose(found, gammas[[0, 16, 33, 49]], rtol=1e-12)
    np.testing.assert_allclose(diffusion.respaced(betas, 1), [1 - gammas[-1]], rtol=1e-12)

  def test_errors(self):
    for arguments in ((1, 1e-4, 0.1), (9, 0.0, 0.1), (9, 0.2, 0.1), (9, 0.1, 1.0)):
      with self.assertRaisesRegex(ValueError, '0 < first beta <= last beta < 1; got'):
        diffusion.linear(*arguments)
    for steps in (0, 10):
      with self.assertRaisesRegex(ValueError, f'of 9 steps, a sampler takes 1 to 9, got {steps}'):
        diffusion.respaced(diffusion.linear(9, 0.1, 0.2), steps)


class DrawTest(absltest.TestCase):

  def test_levels(self):
    """Uniform between neighbours: the share in each step's interval, and the place within it."""
    tables = diffusion.schedule(diffusion.linear(5, 0.1, 0.5))
    draw = jax.jit(lambda key: diffusion.draw_levels(key, tables, 40_000))
    found = np.asarray(draw(jax.random.key(0)), np.float64)
    edges = tables.gammas[::-1].astype(np.float64)
    self.assertBetween(found.min(), edges[0], edges[0] + 1e-3)
    self.assertBetween(found.max(), edges[-1] - 1e-3, edges[-1])
    where = np.digitize(found, edges) - 1
    np.testing.assert_allclose(np.bincount(where) / len(found), np.full(4, 0.25), atol=0.01)
    for step in range(4):
      place = (found[where == step] - edges[step]) / (edges[step + 1] - edges[step])
      np.testing.assert_allclose([place.mean(), place.var()], [1 / 2, 1 / 12], atol=0.01)

  def test_noisy(self):
    rng = np.random.default_rng(0)
    image, noise = rng.normal(size=(2, 3, 4, 4, 2)).astype(np.float32)
    gamma = np.array([0.0, 0.36, 1.0], np.float32)
    found = diffusion.noisy(jnp.asarray(image), noise, gamma)
    np.testing.assert_allclose(found, np.stack([noise[0], 0.6 * image[1] + 0.8 * noise[1], image[2]]),
                               rtol=1e-5, atol=1e-6)


class PosteriorTest(parameterized.TestCase):

  @parameterized.parameters(1, 3, 7)
  def test_against_conditioning(self, step):
    """q(y_{t-1} | y_t, y_0) by conditioning the joint Gaussian of both y given y_0."""
    betas = diffusion.linear(8, 0.02, 0.4)
    before = np.prod(1 - betas[:step])
    alpha, image, state = 1 - betas[step], 0.7, -1.3
    # y_{t-1} = sqrt(g) y_0 + sqrt(1 - g) a;  y_t = sqrt(alpha) y_{t-1} + sqrt(beta) b
    mean = np.array([np.sqrt(before) * image, np.sqrt(alpha * before) * image])
    covariance = np.array([[1 - before, np.sqrt(alpha) * (1 - before)],
                           [np.sqrt(alpha) * (1 - before), 1 - alpha * before]])
    gain = covariance[0, 1] / covariance[1, 1]
    found = diffusion.posterior(diffusion.schedule(betas), step, image, state)
    np.testing.assert_allclose(found[0], mean[0] + gain * (state - mean[1]), rtol=1e-5)
    np.testing.assert_allclose(np.exp(found[1]), covariance[0, 0] - gain * covariance[0, 1], rtol=1e-5)

  def test_first_step_is_the_picture(self):
    mean, log_variance = diffusion.posterior(
        diffusion.schedule(diffusion.linear(8, 0.02, 0.4)), 0, 0.7, -1.3)
    np.testing.assert_allclose(mean, 0.7, rtol=1e-6)
    np.testing.assert_allclose(log_variance, np.log(1e-20), rtol=1e-6)


def best_noise(state, gamma):
  """E[eps | y_gamma] of pixels from N(MEAN, DEVIATION^2)."""
  return np.sqrt(1 - gamma) * (state - np.sqrt(gamma) * MEAN) / (gamma * DEVIATION**2 + 1 - gamma)


def chain(betas):
  """Mean and variance of the sampler on the toy, exactly: every step is affine in y. float64."""
  tables = loop(betas)
  mean, variance = 0.0, 1.0
  for step in reversed(range(len(betas))):
    def update(y, step=step):
      image = (tables.image_of_state[step] * y
               - tables.image_of_noise[step] * best_noise(y, tables.gammas[step]))
      return tables.mean_of_image[step] * image + tables.mean_of_state[step] * y
    slope = update(1.0) - update(0.0)
    mean = update(mean)
    variance = slope**2 * variance + (np.exp(tables.log_variance[step]) if step else 0)
  return mean, variance


class SamplerTest(parameterized.TestCase):

  def test_recovers_a_gaussian(self):
    """The published schedule with the best network: mean and deviation of the data within 1.2 %."""
    mean, variance = chain(diffusion.linear(2000, 1e-6, 0.01))
    np.testing.assert_allclose([mean, np.sqrt(variance)], [MEAN, DEVIATION], rtol=0.012)

  @parameterized.parameters(30, 6)
  def test_samples_have_the_moments_of_the_chain(self, steps):
    betas = diffusion.respaced(diffusion.linear(30, 1e-4, 0.4), steps)
    hole = np.ones((20, 16, 16, 1), np.float32)
    hole[:, :, :8] = 0
    known = np.random.default_rng(0).uniform(-1, 1, (20, 16, 16, 2)).astype(np.float32)

    @jax.jit
    def sample(known):
      def predict(state, gamma):
        gamma = gamma[:, None, None, None]
        return jnp.sqrt(1 - gamma) * (state - jnp.sqrt(gamma) * MEAN) / (
            gamma * DEVIATION**2 + 1 - gamma)
      start = jax.random.normal(jax.random.key(1), known.shape)
      return diffusion.inpaint(predict, diffusion.schedule(betas), jax.random.key(2), start, known,
                               hole)

    found = np.asarray(sample(known))
    np.testing.assert_array_equal(found[:, :, :8], known[:, :, :8])
    painted = found[:, :, 8:].astype(np.float64)
    mean, variance = chain(betas)
    error = np.sqrt(variance / painted.size)
    np.testing.assert_allclose(painted.mean(), mean, atol=4 * error)
    np.testing.assert_allclose(painted.std(), np.sqrt(variance), atol=4 * error)
    # Neighbours and pictures are independent.
    flat = (painted.reshape(20, -1) - mean) / np.sqrt(variance)
    self.assertLess(np.abs(flat @ flat.T / flat.shape[1] - np.eye(20)).max(), 0.4)
    # Nothing of what the hole held reaches the sample.
    np.testing.assert_array_equal(np.asarray(sample(np.where(hole > 0, 9, known)))[:, :, 8:],
                                  found[:, :, 8:])

  def test_estimates_are_clipped(self):
    """A network that calls everything noise, or the opposite, still paints within [-1, 1]."""
    hole, known = np.ones((1, 4, 4, 1), np.float32), np.zeros((1, 4, 4, 1), np.float32)
    tables = diffusion.schedule(diffusion.linear(10, 0.01, 0.5))
    sample = jax.jit(lambda value: diffusion.inpaint(
        lambda state, gamma: jnp.full_like(state, value), tables, jax.random.key(0),
        jnp.ones_like(known), known, hole))
    for sign in (-1, 1):
      np.testing.assert_allclose(sample(100.0 * sign), np.full_like(known, -sign), rtol=1e-6)


if __name__ == '__main__':
  absltest.main()
