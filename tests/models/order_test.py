"""The order in which networks use their layers."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from unlearn_jax import models
from unlearn_jax import types
from unlearn_jax.models import order

EXAMPLE = {'image': np.zeros((1, 8, 8, 1), np.float32)}


def network(forward, names='abcd'):
  """Square kernels, and `forward(kernels, x)`."""

  def init(key, inputs):
    del inputs
    return {'params': {name: {'kernel': jax.random.normal(key, (8, 8))} for name in names}}

  def apply(variables, inputs, *, train=False, rngs=None, method=None):
    del train, rngs, method
    kernels = {name: leaves['kernel'] for name, leaves in variables['params'].items()}
    return {'logits': forward(kernels, inputs['image'][:, 0, :, 0])}, variables

  return types.Model(init, apply)


class LayersTest(parameterized.TestCase):

  def test_mlp(self):
    model = models.get('mlp', num_outputs=3, hidden=(4, 5, 6), dropout=0.5)
    self.assertEqual(order.layers(model, EXAMPLE), ('dense1', 'dense2', 'dense3', 'fc'))

  def test_more_than_nine_layers_do_not_sort_as_text(self):
    model = models.get('mlp', num_outputs=3, hidden=(2,) * 11)
    self.assertEqual(order.layers(model, EXAMPLE)[8:], ('dense9', 'dense10', 'dense11', 'fc'))

  @parameterized.parameters('float32', 'bfloat16')
  def test_cnn(self, compute_dtype):
    model = models.get('cnn', num_outputs=3, width=2, compute_dtype=compute_dtype)
    self.assertEqual(order.layers(model, EXAMPLE),
                     ('conv1', 'bn1', 'conv2', 'bn2', 'conv3', 'bn3', 'fc'))

  @parameterized.parameters(('resnet18', (2, 2, 2, 2), 2, (2, 3, 4)),
                            ('resnet50', (3, 4, 6, 3), 3, (1, 2, 3, 4)))
  def test_resnet_is_in_torchvisions_order(self, name, blocks, convolutions, projected):
    model = models.get(name, num_outputs=3, width=2)
    expected = ['conv1', 'bn1']
    for stage, count in enumerate(blocks, start=1):
      for block in range(count):
        expected += [f'layer{stage}/{block}/{kind}{number}'
                     for number in range(1, convolutions + 1) for kind in ('conv', 'bn')]
        if block == 0 and stage in projected:
          expected += [f'layer{stage}/0/downsample/0', f'layer{stage}/0/downsample/1']
    self.assertEqual(order.layers(model, EXAMPLE), (*expected, 'fc'))

  @parameterized.parameters(jax.jit, jax.checkpoint)
  def test_inside_of_an_inner_transformation(self, transform):
    body = transform(lambda k, x: x @ k['d'] @ k['b'])
    model = network(lambda k, x: body(k, x @ k['c']) @ k['a'])
    self.assertEqual(order.layers(model, EXAMPLE), ('c', 'd', 'b', 'a'))

  def test_two_transformations_deep(self):
    inner = jax.jit(lambda k, x: jax.nn.relu(x @ k['d']) @ k['a'])
    outer = jax.jit(lambda k, x: inner(k, x @ k['c']) @ k['b'])
    self.assertEqual(order.layers(network(outer), EXAMPLE), ('c', 'd', 'a', 'b'))

  def test_used_twice_counts_where_it_is_used_first(self):
    model = network(lambda k, x: x @ k['c'] @ k['a'] @ k['c'] @ k['d'] @ k['b'] @ k['d'])
    self.assertEqual(order.layers(model, EXAMPLE), ('c', 'a', 'd', 'b'))

  def test_parameters_without_influence_are_left_out(self):
    def forward(k, x):
      unused = x @ k['d']
      del unused
      return jax.jit(lambda k, x: (x @ k['c'], x @ k['a'])[0])(k, x) @ k['b']
    self.assertEqual(order.layers(network(forward), EXAMPLE)[-1], 'b')
    self.assertNotIn('d', order.layers(network(forward), EXAMPLE))

  def test_control_flow_counts_as_a_whole(self):
    body = lambda k, x: jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ k['c'] + 1, x)
    model = network(lambda k, x: body(k, x @ k['d']) @ k['b'])
    self.assertEqual(order.layers(model, EXAMPLE), ('d', 'c', 'b'))


class LastTest(parameterized.TestCase):

  @parameterized.parameters(
      (1, ('fc',), ('fc',)),
      (2, ('fc', 'layer4/1/bn2', 'layer4/1/conv2'), ('fc', 'layer4/1/conv2')),
      (3, ('fc', 'layer4/1/bn2', 'layer4/1/conv2', 'layer4/1/bn1', 'layer4/1/conv1'),
       ('fc', 'layer4/1/conv2', 'layer4/1/conv1')),
      (4, ('fc', 'layer4/1/bn2', 'layer4/1/conv2', 'layer4/1/bn1', 'layer4/1/conv1',
           'layer4/0/downsample/1', 'layer4/0/downsample/0'),
       ('fc', 'layer4/1/conv2', 'layer4/1/conv1', 'layer4/0/downsample/0')))
  def test_resnet18(self, count, met, weights):
    """What Goel et al.'s release unfreezes: it walks torchvision's modules backwards."""
    model = models.get('resnet18', num_outputs=3, width=2)
    self.assertEqual(order.last(model, EXAMPLE, count), (met, weights))

  @parameterized.parameters(
      ('densenet121', ('classifier', 'features/norm5', 'features/denseblock4/denselayer16/conv2',
                       'features/denseblock4/denselayer16/norm2',
                       'features/denseblock4/denselayer16/conv1')),
      ('efficientnet_b0', ('classifier/1', 'features/8/1', 'features/8/0', 'features/7/0/block/3/1',
                           'features/7/0/block/3/0')))
  def test_torchvisions_names(self, name, met):
    """The same walk over torchvision's other networks."""
    model = models.get(name, num_outputs=3)
    found, weights = order.last(model, {'image': np.zeros((1, 32, 32, 3), np.float32)}, 3)
    self.assertEqual((found, weights), (met, (met[0], *met[2::2])))

  def test_cnn_and_mlp(self):
    cnn = models.get('cnn', num_outputs=3, width=2)
    self.assertEqual(order.last(cnn, EXAMPLE, 2), (('fc', 'bn3', 'conv3'), ('fc', 'conv3')))
    mlp = models.get('mlp', num_outputs=3, hidden=(4, 4))
    self.assertEqual(order.last(mlp, EXAMPLE, 3), (('fc', 'dense2', 'dense1'),) * 2)

  def test_too_many(self):
    with self.assertRaisesRegex(ValueError, 'last 4 weight layers .* has 3: dense1, dense2, fc'):
      order.last(models.get('mlp', num_outputs=3, hidden=(4, 4)), EXAMPLE, 4)


if __name__ == '__main__':
  absltest.main()
