"""The networks beside their PyTorch twins; run by `make test-slow`, which installs PyTorch."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearn_jax import models

pytestmark = pytest.mark.slow
VIT_B_16 = {'patch': 16, 'width': 768, 'depth': 12, 'heads': 12}
# Name, arguments of both networks, side of the pictures.
CASES = (
    ('resnet18', {'num_outputs': 7, 'width': 8, 'stem': 'cifar'}, 16),
    ('densenet121', {'num_outputs': 7, 'growth': 4, 'stem': 'cifar'}, 16),
    ('efficientnet_b0', {'num_outputs': 7, 'width': 0.25, 'stem': 'cifar'}, 16),
    ('vit', {'num_outputs': 7, 'patch': 4, 'width': 24, 'depth': 2, 'heads': 3}, 16),
    ('resnet18', {'num_outputs': 1000}, 96),
    ('densenet121', {'num_outputs': 1000}, 96),
    ('efficientnet_b0', {'num_outputs': 1000}, 96),
    ('vit', {'num_outputs': 1000, **VIT_B_16}, 96),
)


def randomised(variables, seed=0):
  """Weights, biases and statistics that are all random and keep activations near unit size."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name, shape = path[-1].key, leaf.shape
    if name == 'kernel':
      value = rng.normal(size=shape) * np.prod(shape[:-1])**-0.5
    elif name in ('scale', 'var'):
      value = rng.uniform(0.5, 1.5, shape)
    else:
      value = 0.1 * rng.normal(size=shape)
    return jnp.asarray(value, jnp.float32)

  return jax.tree_util.tree_map_with_path(draw, variables)


def close(ours, theirs, tolerance, name=''):
  """Agreement relative to the largest entry of an array: float32 sums cannot do it entry by entry."""
  np.testing.assert_array_less(
      np.abs(ours - theirs).max(), tolerance * max(np.abs(theirs).max(), 1e-6), err_msg=name)


class TwinTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.torch = pytest.importorskip('torch', reason='extra `parity`; make test-slow installs it')
    from experiments.benchmarks import twins  # pylint: disable=g-import-not-at-top
    cls.twins = twins

  def pair(self, name, arguments, side, batch=3):
    """A model with random variables, its twin with the same, and pictures for both."""
    rng = np.random.default_rng(1)
    image = rng.normal(size=(batch, side, side, 3)).astype(np.float32)
    model = models.get(name, **arguments)
    variables = randomised(jax.eval_shape(model.init, jax.random.key(0), {'image': image}))
    size = {'image_size': side} if name == 'vit' else {}
    twin = self.twins.load(getattr(self.twins, name)(**arguments, **size), variables)
    # Contiguous: PyTorch 2.13 crashes in the backward pass of pictures with transposed strides.
    picture = self.torch.tensor(np.ascontiguousarray(image.transpose(0, 3, 1, 2)))
    return model, variables, twin, image, picture

  @parameterized.parameters(*CASES)
  def test_outputs_and_gradients(self, name, arguments, side):
    model, variables, twin, image, picture = self.pair(name, arguments, side)
    weights = np.random.default_rng(2).normal(size=(len(image), arguments['num_outputs']))

    @jax.jit
    def ours(params, image):
      def loss(params, image):
        logits = model.apply({**variables, 'params': params}, {'image': image})[0]['logits']
        return jnp.sum(jnp.sin(logits) * jnp.asarray(weights, jnp.float32)), logits
      return jax.grad(loss, (0, 1), has_aux=True)(params, image)

    (grads, image_grad), logits = ours(variables['params'], image)
    picture.requires_grad_()
    expected = twin.eval()(picture)
    (self.torch.sin(expected) * self.torch.tensor(weights, dtype=expected.dtype)).sum().backward()
    self.assertGreater(float(np.std(logits)), 1e-2)  # the random network does answer
    close(np.array(logits), expected.detach().numpy(), 1e-4)
    close(np.array(image_grad), picture.grad.numpy().transpose(0, 2, 3, 1), 1e-4)
    found = self.twins.to_torch({'params': grads})
    theirs = dict(twin.named_parameters())
    self.assertSameElements(found, theirs)
    for key, value in found.items():
      close(value, theirs[key].grad.numpy(), 1e-4, key)

  def test_a_training_step(self):
    model, variables, twin, image, picture = self.pair(*CASES[0], batch=8)
    labels = np.arange(8) % 7

    @functools.partial(jax.value_and_grad, has_aux=True)
    def ours(params):
      outputs, updated = model.apply({**variables, 'params': params}, {'image': image}, train=True)
      chosen = jnp.take_along_axis(jax.nn.log_softmax(outputs['logits']), labels[:, None], 1)
      return -jnp.mean(chosen), updated['batch_stats']

    (loss, statistics), grads = ours(variables['params'])
    params = jax.tree.map(lambda p, g: p - 0.1 * g, variables['params'], grads)
    before = self.twins.to_torch(variables)
    optimizer = self.torch.optim.SGD(twin.parameters(), lr=0.1)
    counts = {}  # batch norm -> values that each of its averages has seen
    for key, module in twin.named_modules():
      if isinstance(module, self.torch.nn.BatchNorm2d):
        module.register_forward_hook(
            lambda _, inputs, __, key=key: counts.update({key: inputs[0][:, 0].numel()}))
    expected = self.torch.nn.functional.cross_entropy(
        twin.train()(picture), self.torch.tensor(labels))
    expected.backward()
    optimizer.step()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    found = self.twins.to_torch({'params': params, 'batch_stats': statistics})
    theirs = {key: value.numpy() for key, value in twin.state_dict().items()}
    for key, value in found.items():
      wanted = theirs[key]
      if key.endswith('running_var'):
        # PyTorch averages unbiased variances, we biased ones (see layers.batch_norm).
        n = counts[key.rpartition('.')[0]]
        wanted = 0.9 * before[key] + (wanted - 0.9 * before[key]) * (n - 1) / n
      close(value, wanted, 1e-4, key)
      self.assertGreater(np.abs(value - before[key]).max(), 0, key)

  def test_what_does_not_fit_is_refused(self):
    model, variables, _, _, _ = self.pair(*CASES[0])
    del model
    with self.assertRaisesRegex(RuntimeError, 'size mismatch for conv1.weight'):
      self.twins.load(self.twins.resnet18(num_outputs=7, width=16, stem='cifar'), variables)
    with self.assertRaisesRegex(RuntimeError, 'Missing key.*fc.weight'):
      params = {name: leaf for name, leaf in variables['params'].items() if name != 'fc'}
      self.twins.load(self.twins.resnet18(num_outputs=7, width=8, stem='cifar'),
                      {**variables, 'params': params})


if __name__ == '__main__':
  absltest.main()
