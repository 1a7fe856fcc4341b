"""What n is: moments in closed form and by drawing, padding, clamping, bad input."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from tests.methods import generators
from unlearn_jax.methods import noise

DRAWS = 4000
MEAN, STD = np.array([0.3, 0.6], np.float32), np.array([0.1, 0.25], np.float32)


class Pixels:
  """Pictures [N, 2, 2, 2] whose pixels go together."""

  mean, std = MEAN, STD

  def __init__(self, count=6):
    self.count = count

  def images(self):
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(self.count, 8)) @ rng.normal(size=(8, 8))
    return (0.5 + 0.1 * mixed).astype(np.float32).reshape(-1, 2, 2, 2)


def role(images, padding=()):
  mask = np.ones(len(images), np.float32)
  mask[list(padding)] = 0.0
  return {'image': images, 'mask': mask}


@functools.cache
def drawn(kind, rank=0):
  """Many pictures of a kind, [DRAWS, 2, 2, 2]."""
  found = noise.get(kind, Pixels(), rank=rank)
  like = role(np.zeros((DRAWS, 2, 2, 2), np.float32))
  return np.asarray(found.draw(jax.random.key(1), found.constants(), like, like), np.float64)


class NoiseTest(parameterized.TestCase):

  def covariance_is(self, found, expected):
    """Of [N, D], within five deviations: Var(C_ij) = (C_ii C_jj + C_ij^2) / N for normal ones."""
    covariance, size = np.cov(found, rowvar=False), np.diag(expected)
    deviation = np.sqrt((np.outer(size, size) + expected**2) / len(found))
    self.assertLess((np.abs(covariance - expected) / deviation).max(), 5.0)

  def test_normal(self):
    """N(0, I) in normalised space; nothing is clipped."""
    found = drawn('normal')
    z = ((found - MEAN) / STD).reshape(DRAWS, 8)
    self.assertLess(np.abs(z.mean(axis=0)).max(), 5 / np.sqrt(DRAWS))
    self.covariance_is(z, np.eye(8))
    self.assertLess(found.min(), 0.0)
    self.assertGreater(found.max(), 1.0)

  def test_uniform(self):
    """U[-1, 1] in normalised space, of variance 1/3."""
    z = ((drawn('uniform') - MEAN) / STD).reshape(DRAWS, 8)
    self.assertLessEqual(np.abs(z).max(), 1.0 + 1e-5)
    self.assertGreater(np.abs(z).max(), 0.99)
    np.testing.assert_allclose(np.cov(z, rowvar=False), np.eye(8) / 3, atol=0.03)

  @parameterized.parameters(0, 2, 5)
  def test_covariance(self, rank):
    """Exact: the sample covariance. Low rank: its leading part, and the variances in full."""
    images = Pixels().images().reshape(6, 8)
    expected = np.cov(images.astype(np.float64), rowvar=False)
    found = noise.get('covariance', Pixels(), rank=rank).constants()
    np.testing.assert_allclose(np.ravel(found['mean']), images.mean(axis=0), rtol=1e-5)
    rows = np.asarray(found['rows'], np.float64)
    self.assertEqual(rows.shape, (rank or 6, 8))
    if rank:
      values, vectors = np.linalg.eigh(expected)
      leading = (vectors[:, -rank:] * values[-rank:]) @ vectors[:, -rank:].T
      np.testing.assert_allclose(rows.T @ rows, leading, atol=1e-6)
      rest = np.asarray(found['rest'], np.float64)**2
      np.testing.assert_allclose(rest, np.diag(expected - leading), atol=1e-6)
      expected = leading + np.diag(rest)
    else:
      np.testing.assert_allclose(rows.T @ rows, expected, atol=1e-6)
    pictures = drawn('covariance', rank).reshape(DRAWS, 8)
    self.covariance_is(pictures, expected)
    deviation = np.sqrt(np.diag(expected) / DRAWS)
    self.assertLess((np.abs(pictures.mean(axis=0) - images.mean(axis=0)) / deviation).max(), 5.0)

  def test_batch(self):
    """Moments of both roles' numbers without padding, clamped."""
    rng = np.random.default_rng(0)
    retain = role(rng.uniform(0.5, 0.9, (4, 2, 2, 2)).astype(np.float32), padding=[1])
    forget = role(rng.uniform(0.0, 0.3, (DRAWS, 2, 2, 2)).astype(np.float32), padding=range(5, DRAWS))
    retain['image'][1] = forget['image'][5:] = np.nan
    found = noise.get('batch', None)
    key = jax.random.key(2)
    drawn = jax.jit(found.draw)(key, found.constants(), retain, forget)
    kept = np.concatenate([retain['image'][[0, 2, 3]], forget['image'][:5]]).astype(np.float64)
    z = jax.random.normal(key, forget['image'].shape)
    np.testing.assert_allclose(drawn, np.clip(kept.mean() + kept.std(ddof=1) * z, 0, 1), atol=1e-5)
    self.assertEqual((drawn.min(), drawn.max()), (0.0, 1.0))

  def test_moments(self):
    """Several arrays at once, and too few numbers for a deviation."""
    arrays = (jnp.arange(6.0).reshape(2, 3), jnp.array([[10.0], [20.0]]))
    mean, std = noise.moments(arrays, (jnp.array([1.0, 1.0]), jnp.array([0.0, 1.0])))
    np.testing.assert_allclose([mean, std], [5.0, np.std([*range(6), 20], ddof=1)], rtol=1e-6)
    for count in (0.0, 1.0):
      self.assertEqual(noise.moments((jnp.ones((1, 1)),), (jnp.array([count]),)), (count, 0.0))

  @parameterized.parameters(*noise.KINDS)
  def test_keys_and_rows_differ(self, kind):
    found = noise.get(kind, generators.Pixels())
    batch = generators.batch(0)
    draw = lambda seed: np.asarray(found.draw(
        jax.random.key(seed), found.constants(), batch['retain'], batch['forget']))
    np.testing.assert_array_equal(draw(0), draw(0))
    self.assertEqual((draw(0).shape, draw(0).dtype), (batch['forget']['image'].shape, np.float32))
    self.assertGreater(np.abs(draw(0) - draw(1)).max(), 1e-3)
    self.assertGreater(np.abs(draw(0)[0] - draw(0)[1]).max(), 1e-3)

  def test_bad_input(self):
    for kind, pixels, rank, message in (
        ('gauss', Pixels(), 0, 'noise is one of normal, covariance'),
        ('normal', None, 0, 'give `pixels`'), ('covariance', None, 2, 'give `pixels`'),
        ('batch', None, 1, "noise='covariance' only"), ('covariance', Pixels(), -1, 'at least 0')):
      with self.assertRaisesRegex(ValueError, f'x: .*{message}'):
        noise.get(kind, pixels, rank=rank, wanted_by='x')
    with self.assertRaisesRegex(ValueError, '6 pictures have a covariance of rank 5 at most'):
      noise.get('covariance', Pixels(), rank=6).constants()
    with self.assertRaisesRegex(ValueError, r'two pictures at least.*\(1, 2, 2, 2\)'):
      noise.get('covariance', Pixels(1)).constants()
    found = noise.get('covariance', Pixels())
    with self.assertRaisesRegex(ValueError, r'\(2, 2, 2\) for a batch of \(4, 4, 1\)'):
      found.draw(jax.random.key(0), found.constants(), **generators.batch(0))


if __name__ == '__main__':
  absltest.main()
