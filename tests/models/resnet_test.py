"""Tests of the ResNets: torchvision's names, counts, shapes, padding and constants."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import models
from unlearn_jax.models import layers
from unlearn_jax.models import surgery

BLOCKS = {'resnet18': (2, 2, 2, 2), 'resnet34': (3, 4, 6, 3), 'resnet50': (3, 4, 6, 3)}
COUNTS = {'resnet18': 11_689_512, 'resnet34': 21_797_672, 'resnet50': 25_557_032}
LEAVES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean',
          'var': 'running_var'}


def abstract(name, **changes):
  model = models.get(name, num_outputs=1000, **changes)
  picture = {'image': jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)}
  variables = jax.eval_shape(model.init, jax.random.key(0), picture)
  return variables, jax.eval_shape(model.apply, variables, picture)[0]


def torchvision_shapes(name):
  """Names and shapes in torchvision's state dict, num_batches_tracked left out."""
  shapes = {}

  def conv(key, size, features, kernel):
    shapes[f'{key}.weight'] = (features, size, kernel, kernel)

  def norm(key, features):
    for leaf in ('weight', 'bias', 'running_mean', 'running_var'):
      shapes[f'{key}.{leaf}'] = (features,)

  conv('conv1', 3, 64, 7)
  norm('bn1', 64)
  size, expansion = 64, 4 if name == 'resnet50' else 1
  for stage, blocks in enumerate(BLOCKS[name]):
    width = 64 * 2**stage
    for block in range(blocks):
      key = f'layer{stage + 1}.{block}'
      widths = (width, width, 4 * width) if expansion == 4 else (width, width)
      kernels = (1, 3, 1) if expansion == 4 else (3, 3)
      previous = size
      for number, (features, kernel) in enumerate(zip(widths, kernels), start=1):
        conv(f'{key}.conv{number}', previous, features, kernel)
        norm(f'{key}.bn{number}', features)
        previous = features
      if block == 0 and (stage > 0 or size != previous):
        conv(f'{key}.downsample.0', size, previous, 1)
        norm(f'{key}.downsample.1', previous)
      size = previous
  shapes['fc.weight'], shapes['fc.bias'] = (1000, size), (1000,)
  return shapes


class ResNetTest(parameterized.TestCase):

  @parameterized.parameters(*COUNTS)
  def test_parameter_count(self, name):
    variables, _ = abstract(name)
    self.assertEqual(sum(leaf.size for leaf in jax.tree.leaves(variables['params'])), COUNTS[name])

  @parameterized.parameters(*COUNTS)
  def test_names_and_shapes_are_torchvisions(self, name):
    found = {}
    variables, _ = abstract(name)
    for tree in variables.values():
      for path, leaf in zip(surgery.paths(tree), jax.tree.leaves(tree)):
        *parents, last = path.split('/')
        shape = leaf.shape
        if last == 'kernel':  # [H, W, in, out] -> [out, in, H, W], and [in, out] -> [out, in]
          shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
        found['.'.join([*parents, LEAVES[last]])] = shape
    self.assertEqual(found, torchvision_shapes(name))

  @parameterized.parameters(('resnet18', 512), ('resnet34', 512), ('resnet50', 2048))
  def test_feature_dimension(self, name, dimension):
    _, outputs = abstract(name)
    self.assertEqual(outputs['features'].shape, (2, dimension))
    self.assertEqual(outputs['logits'].shape, (2, 1000))

  def test_width_and_stem(self):
    variables, outputs = abstract('resnet18', width=8, stem='cifar')
    self.assertEqual(variables['params']['conv1']['kernel'].shape, (3, 3, 3, 8))
    self.assertEqual(variables['params']['layer4']['1']['conv2']['kernel'].shape, (3, 3, 64, 64))
    self.assertEqual(outputs['features'].shape, (2, 64))

  @parameterized.parameters((1, 3), (1, 4), (3, 8), (7, 9))
  def test_padding_is_kernel_half_on_both_sides(self, kernel, size):
    # An all-ones kernel over a picture with a single 1 reads where each window lies.
    weights = jnp.ones((kernel, kernel, 1, 1))
    picture = np.arange(1.0, 1 + size * size).reshape(1, size, size, 1)
    layer = layers.conv(1, kernel, stride=2, dtype=jnp.float32, name=None)
    found = layer.apply({'params': {'kernel': weights}}, jnp.asarray(picture, jnp.float32))
    padded = np.pad(picture[0, ..., 0], kernel // 2)
    steps = (size + 2 * (kernel // 2) - kernel) // 2 + 1
    expected = [[padded[2 * i:2 * i + kernel, 2 * j:2 * j + kernel].sum() for j in range(steps)]
                for i in range(steps)]
    np.testing.assert_allclose(found[0, ..., 0], expected)

  def test_batch_norm_constants(self):
    layer = layers.batch_norm(train=True, dtype=jnp.float32, name=None)
    x = jax.random.normal(jax.random.key(0), (64, 3)) * 1e-2  # small, so that eps shows
    variables = {'params': {'scale': jnp.ones(3), 'bias': jnp.zeros(3)},
                 'batch_stats': {'mean': jnp.ones(3), 'var': jnp.full(3, 2.0)}}
    y, updated = layer.apply(variables, x, mutable=['batch_stats'])
    mean, var = np.mean(x, 0), np.var(x, 0)
    np.testing.assert_allclose(updated['batch_stats']['mean'], 0.9 + 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(updated['batch_stats']['var'], 1.8 + 0.1 * var, rtol=1e-5)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), rtol=1e-4, atol=1e-5)

  def test_initialisation_scales(self):
    model = models.get('cnn', num_outputs=10, width=64)  # the same layers, quicker to compile
    params = model.init(jax.random.key(0), {'image': jnp.zeros((1, 4, 4, 3))})['params']
    kernel = params['conv3']['kernel']  # fan out: 256 * 9
    self.assertAlmostEqual(float(kernel.std()) / np.sqrt(2 / (256 * 9)), 1.0, delta=0.01)
    bound = 256**-0.5
    for leaf in (params['fc']['kernel'], params['fc']['bias']):
      self.assertLessEqual(float(jnp.abs(leaf).max()), bound)
    self.assertAlmostEqual(float(params['fc']['kernel'].std()), bound / np.sqrt(3), delta=0.002)
    self.assertGreater(float(jnp.abs(params['fc']['bias']).max()), 0.0)


if __name__ == '__main__':
  absltest.main()
