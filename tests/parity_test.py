"""PyTorch's own operations beside ours; run by `make test-slow`, which installs PyTorch."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unlearn_jax.losses import baselines
from unlearn_jax.losses import classification
from unlearn_jax.methods import base
from unlearn_jax.models import layers

pytestmark = pytest.mark.slow
RNG = np.random.default_rng(0)
LOGITS, TEACHER = (RNG.normal(size=(6, 5)).astype(np.float32) for _ in range(2))
LABELS = RNG.integers(0, 5, 6)


class ParityTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.torch = pytest.importorskip('torch', reason='extra `parity`; make test-slow installs it')

  @parameterized.parameters(('sgd', 0.9), ('sgd', 0.0), ('adam', 0.0))
  def test_optimizers(self, name, momentum):
    torch = self.torch
    start = RNG.normal(size=(7,)).astype(np.float32)
    theirs = torch.nn.Parameter(torch.tensor(start))
    optimizer = (torch.optim.SGD([theirs], lr=0.05, momentum=momentum, weight_decay=0.01)
                 if name == 'sgd' else torch.optim.Adam([theirs], lr=0.05, weight_decay=0.01))
    tx = base.optimizer(name, 0.05, momentum=momentum, weight_decay=0.01)
    ours = jnp.asarray(start)
    opt_state = tx.init(ours)
    for _ in range(20):
      optimizer.zero_grad()
      (torch.sin(theirs) ** 2).sum().backward()
      optimizer.step()
      grads = jax.grad(lambda x: jnp.sum(jnp.sin(x) ** 2))(ours)
      updates, opt_state = tx.update(grads, opt_state, ours)
      ours = optax.apply_updates(ours, updates)
    # Twenty float32 steps that divide by small second moments: 1e-5 is a few units in the last place
    # of each step, added up.
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=2e-5, atol=1e-5)

  @parameterized.parameters(1.0, 2.0, 4.0)
  def test_distillation(self, temperature):
    functional, tensor = self.torch.nn.functional, self.torch.tensor
    expected = temperature ** 2 * functional.kl_div(
        functional.log_softmax(tensor(LOGITS) / temperature, dim=1),
        functional.softmax(tensor(TEACHER) / temperature, dim=1), reduction='batchmean')
    np.testing.assert_allclose(
        baselines.distillation_kl(LOGITS, TEACHER, temperature=temperature), expected, rtol=1e-5)

  def test_cross_entropies(self):
    functional, tensor = self.torch.nn.functional, self.torch.tensor
    np.testing.assert_allclose(
        classification.example_loss(LOGITS, LABELS),
        functional.cross_entropy(tensor(LOGITS), tensor(LABELS), reduction='none'), rtol=1e-5)
    attributes = (TEACHER > 0).astype(np.float32)
    np.testing.assert_allclose(
        classification.example_loss(LOGITS, attributes),
        functional.binary_cross_entropy_with_logits(
            tensor(LOGITS), tensor(attributes), reduction='none').mean(1), rtol=1e-5)

  @parameterized.product(kernel=(1, 3, 7), stride=(1, 2), size=(8, 9))
  def test_convolution_and_its_gradients(self, kernel, stride, size):
    torch = self.torch
    x = RNG.normal(size=(2, size, size, 3)).astype(np.float32)
    module = layers.conv(4, kernel, stride=stride, dtype=jnp.float32, name='conv')
    variables = module.init(jax.random.key(0), x)
    weight = variables['params']['kernel']
    theirs = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    out = torch.nn.functional.conv2d(
        theirs, torch.tensor(np.array(weight).transpose(3, 2, 0, 1)), stride=stride,
        padding=kernel // 2)
    torch.sin(out).sum().backward()
    mine = lambda x: module.apply(variables, x)
    np.testing.assert_allclose(mine(x), out.detach().numpy().transpose(0, 2, 3, 1), atol=1e-5)
    np.testing.assert_allclose(jax.grad(lambda x: jnp.sum(jnp.sin(mine(x))))(x),
                               theirs.grad.numpy().transpose(0, 2, 3, 1), atol=1e-5)

  def test_batch_norm_in_train_mode(self):
    torch = self.torch
    x = RNG.normal(size=(5, 4, 4, 3)).astype(np.float32)
    module = layers.batch_norm(train=True, dtype=jnp.float32, name='bn')
    out, _ = module.apply(module.init(jax.random.key(0), x), x, mutable=['batch_stats'])
    expected = torch.nn.BatchNorm2d(3)(torch.tensor(x.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(out, expected.detach().numpy().transpose(0, 2, 3, 1), atol=1e-5)


if __name__ == '__main__':
  absltest.main()
