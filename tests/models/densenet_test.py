"""Tests of DenseNet: torchvision's names and counts, initial values, sizes."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import models
from unlearn_jax.models import contract
from unlearn_jax.models import densenet
from unlearn_jax.models import order
from unlearn_jax.models import surgery


def tiny(**changes):
  """Two dense blocks instead of four: the same layers, quick to compile."""
  return contract.from_linen(densenet.DenseNet(
      **{'num_outputs': 5, 'blocks': (1, 2), 'growth': 4, 'stem': 'cifar', 'dtype': jnp.float32,
         **changes}))


def abstract(side=32, **arguments):
  model = models.get('densenet121', **{'num_outputs': 1000, **arguments})
  picture = {'image': jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)}
  variables = jax.eval_shape(model.init, jax.random.key(0), picture)
  return model, variables, jax.eval_shape(model.apply, variables, picture)[0]


class DenseNetTest(parameterized.TestCase):

  def test_parameters_and_names(self):
    _, variables, outputs = abstract()
    self.assertEqual(sum(leaf.size for leaf in jax.tree.leaves(variables['params'])), 7_978_856)
    shapes = {name: leaf.shape for name, leaf in
              zip(surgery.paths(variables), jax.tree.leaves(variables))}
    self.assertLen(shapes, 121 + 1 + 121 * 4)  # kernels, a bias, four of each of 121 batch norms
    for name, shape in {  # landmarks of torchvision's state dict, under the rule of resnet.py
        'params/features/conv0/kernel': (7, 7, 3, 64),
        'params/features/norm0/scale': (64,),
        'params/features/denseblock1/denselayer1/norm1/bias': (64,),
        'params/features/denseblock1/denselayer1/conv1/kernel': (1, 1, 64, 128),
        'params/features/denseblock1/denselayer6/conv2/kernel': (3, 3, 128, 32),
        'params/features/transition1/conv/kernel': (1, 1, 256, 128),
        'params/features/denseblock3/denselayer24/norm1/scale': (992,),
        'batch_stats/features/transition3/norm/var': (1024,),
        'params/features/denseblock4/denselayer16/conv1/kernel': (1, 1, 992, 128),
        'batch_stats/features/norm5/mean': (1024,),
        'params/classifier/kernel': (1024, 1000),
        'params/classifier/bias': (1000,)}.items():
      self.assertEqual(shapes[name], shape, name)
    self.assertEqual(outputs['features'].shape, (2, 1024))
    self.assertEqual(outputs['logits'].shape, (2, 1000))

  def test_growth_and_stem(self):
    _, variables, outputs = abstract(8, growth=4, stem='cifar')
    self.assertEqual(variables['params']['features']['conv0']['kernel'].shape, (3, 3, 3, 8))
    self.assertEqual(outputs['features'].shape, (2, 32 * 4))

  def test_order_of_use_is_torchvisions_order_of_definition(self):
    found = order.layers(tiny(), {'image': jnp.zeros((1, 8, 8, 3))})
    self.assertEqual(found, (
        'features/conv0', 'features/norm0',
        *(f'features/denseblock1/denselayer1/{name}' for name in ('norm1', 'conv1', 'norm2', 'conv2')),
        'features/transition1/norm', 'features/transition1/conv',
        *(f'features/denseblock2/denselayer{number}/{name}' for number in (1, 2)
          for name in ('norm1', 'conv1', 'norm2', 'conv2')),
        'features/norm5', 'classifier'))

  def test_initial_values(self):
    params = tiny(growth=16).init(jax.random.key(0), {'image': jnp.zeros((1, 8, 8, 3))})['params']
    kernel = params['features']['denseblock1']['denselayer1']['conv2']['kernel']
    self.assertAlmostEqual(float(kernel.std()) / np.sqrt(2 / (64 * 9)), 1, delta=0.03)  # fan in
    head = params['classifier']
    bound = head['kernel'].shape[0]**-0.5
    self.assertLessEqual(float(jnp.abs(head['kernel']).max()), bound)
    self.assertGreater(float(jnp.abs(head['kernel']).max()), 0.9 * bound)
    np.testing.assert_array_equal(head['bias'], 0)

  @parameterized.parameters(('imagenet', 28), ('cifar', 7))
  def test_too_small_a_picture(self, stem, side):
    with self.assertRaisesRegex(ValueError, 'too small, a map of 1x1 cannot be halved'):
      abstract(side, growth=4, stem=stem)
    abstract(side + 1, growth=4, stem=stem)

  @parameterized.parameters(
      ({'growth': 0}, ValueError, 'growth must be at least 1'),
      ({'growth': 4.0}, TypeError, 'growth must be an int'),
      ({'stem': 'mnist'}, ValueError, 'imagenet, cifar'),
      ({'compute_dtype': 'float8'}, ValueError, 'bfloat16'))
  def test_bad_arguments(self, arguments, error, message):
    with self.assertRaisesRegex(error, message):
      models.get('densenet121', num_outputs=2, **arguments)


if __name__ == '__main__':
  absltest.main()
