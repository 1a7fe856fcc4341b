"""Tests of the decorator and of the masks."""

import functools
import inspect

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax.losses import _compiled


@_compiled.compiled(static=('power',))
def scaled(x, *, scale, power=2):
  """Doc."""
  return scale * x**power


class CompiledTest(absltest.TestCase):

  def test_keeps_docstring_signature_and_plain_function(self):
    self.assertEqual(scaled.__doc__, 'Doc.')
    self.assertEqual(scaled.__name__, 'scaled')
    self.assertEqual(list(inspect.signature(scaled).parameters), ['x', 'scale', 'power'])
    self.assertIs(type(scaled.__wrapped__), type(lambda: None))
    self.assertEqual(scaled.__wrapped__(3.0, scale=2.0), 18.0)

  def test_traces_floats_and_compiles_static_names_in(self):
    x = jnp.arange(3.0)
    before = scaled._cache_size()
    for scale in (0.5, 1.5, 2.5):
      np.testing.assert_allclose(scaled(x, scale=scale), scale * x**2)
    self.assertEqual(scaled._cache_size(), before + 1)
    np.testing.assert_allclose(scaled(x, scale=1.0, power=3), x**3)
    self.assertEqual(scaled._cache_size(), before + 2)

  def test_dissolves_inside_an_outer_jit(self):
    inner = jax.jit(scaled.__wrapped__, static_argnames=('power',))
    call = lambda f: str(jax.make_jaxpr(functools.partial(f, scale=2.0))(1.0))
    self.assertIn('name=scaled', call(inner))
    self.assertNotIn('name=scaled', call(scaled))


class MaskTest(parameterized.TestCase):

  @parameterized.parameters(
      (jnp.bfloat16, 'float32'), (jnp.float16, 'float32'), (jnp.int8, 'float32'),
      (jnp.bool_, 'float32'), (jnp.float32, 'float32'))
  def test_floating(self, dtype, want):
    self.assertEqual(_compiled.floating(jnp.ones(2, dtype)).dtype, want)

  def test_floating_keeps_float64(self):
    with jax.enable_x64(True):
      self.assertEqual(_compiled.floating(jnp.ones(2, jnp.float64)).dtype, 'float64')

  def test_masked_mean(self):
    values = jnp.array([1.0, jnp.nan, 4.0])
    mean = _compiled.masked_mean
    np.testing.assert_allclose(mean(values, jnp.array([1.0, 0.0, 1.0])), 2.5)
    np.testing.assert_allclose(mean(values, jnp.array([True, False, True])), 2.5)
    np.testing.assert_allclose(mean(values, jnp.array([3.0, 0.0, 1.0])), 7 / 4)
    self.assertEqual(mean(values, jnp.zeros(3)), 0.0)
    self.assertTrue(np.isnan(mean(values, None)))

  def test_kept_stops_the_gradient_of_padding(self):
    x = jnp.array([[1.0, 2.0], [jnp.nan, jnp.inf]])
    where = jnp.array([1.0, 0.0])
    gradient = jax.grad(lambda x: jnp.sum(jnp.log(_compiled.kept(x, where) + 1.0)))(x)
    np.testing.assert_allclose(gradient, [[1 / 2, 1 / 3], [0.0, 0.0]], rtol=1e-6)
    self.assertIs(_compiled.kept(x, None), x)


if __name__ == '__main__':
  absltest.main()
