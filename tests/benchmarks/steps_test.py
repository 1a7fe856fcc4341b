"""The steps of the benchmarks and their twins in PyTorch agree; a changed twin is refused."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import harness
from experiments.benchmarks import steps
from unlearn_jax.losses import dlfd
from unlearn_jax.losses import transport

torch = pytest.importorskip('torch')


class TwinLossesTest(absltest.TestCase):

  def test_transport_agrees_with_ours(self):
    from experiments.benchmarks import twin_steps
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(size, 7)).astype(np.float32) for size in (12, 9))
    settings = {'epsilon': 0.05, 'max_iterations': 20}
    leaf = torch.from_numpy(x).requires_grad_(True)
    distance = twin_steps.ot_distance(leaf, torch.from_numpy(y), **settings)
    gradient, = torch.autograd.grad(distance, leaf)
    ours, wanted = jax.value_and_grad(lambda x: dlfd.ot_distance(x, jnp.asarray(y), **settings))(x)
    np.testing.assert_allclose(distance.item(), ours, rtol=1e-4)
    np.testing.assert_allclose(gradient, wanted, atol=1e-4)
    cost = np.asarray(transport.cosine_cost(x, y))
    np.testing.assert_allclose(
        twin_steps.sinkhorn_plan(torch.from_numpy(cost.copy()), threshold=-1.0, **settings),
        transport.sinkhorn_plan(cost, threshold=-1.0, **settings).plan, atol=1e-6)

  def test_running_statistics_stand_still_inside_only(self):
    from experiments.benchmarks import twin_steps
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(2))
    image = torch.full((3, 2, 4, 4), 5.0)
    with twin_steps.still_statistics(net):
      net(image)
    np.testing.assert_array_equal(net[0].running_mean, [0.0, 0.0])
    net(image)
    np.testing.assert_allclose(net[0].running_mean, [0.5, 0.5])


@pytest.mark.slow
class StepsTest(parameterized.TestCase):

  @parameterized.parameters(*steps.CASES)
  def test_first_losses_agree(self, name):
    both = steps.compared('resnet18', name)
    self.assertLess(both.parity.difference, 3e-2 if name == 'dlfd' else 2e-5)
    self.assertTrue(np.isfinite(both.ours()))

  def test_a_twin_with_another_learning_rate_is_refused(self):
    from experiments.benchmarks import twin_steps
    honest = twin_steps.sgd

    def hasty(net, *, learning_rate, **settings):
      return honest(net, learning_rate=1.2 * learning_rate, **settings)

    steps.setup('resnet18')
    with mock.patch.object(twin_steps, 'sgd', hasty):
      with self.assertRaisesRegex(harness.Mismatch, 'losses of the first 3 steps differ by'):
        steps.compared.__wrapped__('resnet18', 'plain')


if __name__ == '__main__':
  absltest.main()
