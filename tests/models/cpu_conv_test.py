"""The convolution for loops on CPU is lax's, values and gradients."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from unlearn_jax.models import cpu_conv

LAYOUT = ('NHWC', 'HWIO', 'NHWC')


class CpuConvTest(parameterized.TestCase):

  @parameterized.product(size=(7, 8), kernel=(1, 3, 7), stride=(1, 2, 3), pad=((0, 0), (1, 1), (2, 0)))
  def test_values_and_gradients(self, size, kernel, stride, pad):
    if size + sum(pad) < kernel or pad[0] >= kernel + 2:
      pad = (kernel // 2, kernel // 2)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, size, size + 1, 3)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(kernel, kernel, 3, 4)), jnp.float32)

    def loss(conv, x, w):
      return jnp.sum(jnp.sin(conv(x, w, (stride, stride), (pad, pad), dimension_numbers=LAYOUT)))

    ours, theirs = cpu_conv.conv_general_dilated, lax.conv_general_dilated
    np.testing.assert_allclose(loss(ours, x, w), loss(theirs, x, w), rtol=1e-5, atol=1e-5)
    for mine, his in zip(jax.grad(loss, (1, 2))(ours, x, w), jax.grad(loss, (1, 2))(theirs, x, w)):
      np.testing.assert_allclose(mine, his, rtol=1e-4, atol=1e-4)

  @parameterized.product(size=(7, 8), kernel=(1, 3, 5), stride=(1, 2, 3), pad=((0, 0), (1, 1), (2, 0)))
  def test_depthwise_values_and_gradients(self, size, kernel, stride, pad):
    if size + sum(pad) < kernel or pad[0] >= kernel + 2:
      pad = (kernel // 2, kernel // 2)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, size, size + 1, 4)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(kernel, kernel, 1, 4)), jnp.float32)

    def loss(conv, x, w):
      return jnp.sum(jnp.sin(conv(x, w, (stride, stride), (pad, pad), dimension_numbers=LAYOUT,
                                  feature_group_count=4)))

    ours, theirs = cpu_conv.conv_general_dilated, lax.conv_general_dilated
    np.testing.assert_allclose(loss(ours, x, w), loss(theirs, x, w), rtol=1e-5, atol=1e-5)
    for mine, his in zip(jax.grad(loss, (1, 2))(ours, x, w), jax.grad(loss, (1, 2))(theirs, x, w)):
      np.testing.assert_allclose(mine, his, rtol=1e-4, atol=1e-4)

  def test_depthwise_in_half_precision_adds_in_single(self):
    # 49 taps of 1/3: adding in bfloat16 would round at every step.
    x = jnp.full((1, 7, 7, 2), 1 / 3, jnp.bfloat16)
    w = jnp.ones((7, 7, 1, 2), jnp.bfloat16)
    y = cpu_conv.conv_general_dilated(x, w, (1, 1), ((0, 0), (0, 0)), dimension_numbers=LAYOUT,
                                      feature_group_count=2)
    self.assertEqual(y.dtype, jnp.bfloat16)
    np.testing.assert_array_equal(y, (49 * x[:, :1, :1].astype(jnp.float32)).astype(jnp.bfloat16))

  def test_what_it_cannot_do_it_refuses(self):
    x, w = jnp.zeros((1, 8, 8, 2)), jnp.zeros((3, 3, 2, 2))
    for wrong in ({'rhs_dilation': (2, 2)}, {'padding': 'SAME'}, {'feature_group_count': 2},
                  {'dimension_numbers': ('NCHW', 'OIHW', 'NCHW')}):
      arguments = {'padding': ((1, 1), (1, 1)), 'dimension_numbers': LAYOUT, **wrong}
      with self.assertRaises((NotImplementedError, ValueError)):
        cpu_conv.conv_general_dilated(x, w, (1, 1), **arguments)


if __name__ == '__main__':
  absltest.main()
