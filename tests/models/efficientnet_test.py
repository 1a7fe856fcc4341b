"""Tests of EfficientNet: torchvision's names and counts, rounding, dropout, initial values."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import errors
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import models
from unlearn_jax.models import contract
from unlearn_jax.models import efficientnet
from unlearn_jax.models import order
from unlearn_jax.models import surgery

STAGES = (efficientnet.Stage(1, 16, 1, 1, 3), efficientnet.Stage(6, 24, 2, 2, 5))
IMAGE = jax.random.normal(jax.random.key(3), (6, 8, 8, 3))


def tiny(**changes):
  """Two stages instead of seven: the same layers, quick to compile."""
  return contract.from_linen(efficientnet.EfficientNet(
      **{'num_outputs': 5, 'stages': STAGES, 'width': 0.5, 'stem': 'cifar', 'dropout': 0.0,
         'stochastic_depth': 0.0, 'dtype': jnp.float32, **changes}))


def abstract(**arguments):
  model = models.get('efficientnet_b0', **{'num_outputs': 1000, **arguments})
  picture = {'image': jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)}
  variables = jax.eval_shape(model.init, jax.random.key(0), picture)
  return variables, jax.eval_shape(model.apply, variables, picture)[0]


class EfficientNetTest(parameterized.TestCase):

  def test_parameters_and_names(self):
    variables, outputs = abstract()
    self.assertEqual(sum(leaf.size for leaf in jax.tree.leaves(variables['params'])), 5_288_548)
    shapes = {name: leaf.shape for name, leaf in
              zip(surgery.paths(variables), jax.tree.leaves(variables))}
    for name, shape in {  # landmarks of torchvision's state dict, under the rule of resnet.py
        'params/features/0/0/kernel': (3, 3, 3, 32),
        'batch_stats/features/0/1/mean': (32,),
        'params/features/1/0/block/0/0/kernel': (3, 3, 1, 32),  # no expansion: depthwise first
        'params/features/1/0/block/1/fc1/kernel': (1, 1, 32, 8),
        'params/features/1/0/block/2/1/scale': (16,),
        'params/features/2/0/block/0/0/kernel': (1, 1, 16, 96),
        'params/features/2/0/block/1/0/kernel': (3, 3, 1, 96),
        'params/features/2/0/block/2/fc1/bias': (4,),
        'params/features/2/1/block/2/fc2/kernel': (1, 1, 6, 144),
        'params/features/6/3/block/1/0/kernel': (5, 5, 1, 1152),
        'params/features/7/0/block/3/0/kernel': (1, 1, 1152, 320),
        'params/features/8/0/kernel': (1, 1, 320, 1280),
        'batch_stats/features/8/1/var': (1280,),
        'params/classifier/1/kernel': (1280, 1000),
        'params/classifier/1/bias': (1000,)}.items():
      self.assertEqual(shapes[name], shape, name)
    # 81 convolutions, 49 batch norms, and biases for 16 squeezes and excitations and the classifier.
    self.assertLen(shapes, 81 + 1 + 49 * 4 + 33)
    self.assertEqual(outputs['features'].shape, (2, 1280))

  @parameterized.parameters((8, 8), (1, 8), (24.8, 24), (12, 16), (10, 16), (28, 32), (44, 48))
  def test_rounding(self, channels, expected):
    self.assertEqual(efficientnet.round_channels(channels), expected)

  def test_order_of_use_is_torchvisions_order_of_definition(self):
    found = order.layers(tiny(), {'image': IMAGE})
    self.assertEqual(found, (
        'features/0/0', 'features/0/1',
        *(f'features/1/0/block/{name}' for name in ('0/0', '0/1', '1/fc1', '1/fc2', '2/0', '2/1')),
        *(f'features/2/{number}/block/{name}' for number in (0, 1)
          for name in ('0/0', '0/1', '1/0', '1/1', '2/fc1', '2/fc2', '3/0', '3/1')),
        'features/3/0', 'features/3/1', 'classifier/1'))

  def test_initial_values(self):
    params = tiny(width=1.0).init(jax.random.key(0), {'image': IMAGE})['params']
    block = params['features']['2']['1']['block']
    self.assertAlmostEqual(float(block['1']['0']['kernel'].std()) / np.sqrt(2 / (144 * 25)), 1,
                           delta=0.05)
    np.testing.assert_array_equal(block['2']['fc1']['bias'], 0)
    head = params['classifier']['1']
    self.assertLessEqual(float(jnp.abs(head['kernel']).max()), 5**-0.5)  # by outputs, not inputs
    self.assertGreater(float(jnp.abs(head['kernel']).max()), 0.9 * 5**-0.5)
    np.testing.assert_array_equal(head['bias'], 0)

  def test_stochastic_depth_leaves_out_whole_examples(self):
    block = efficientnet.MBConv(16, efficientnet.Stage(6, 16, 1, 1, 3), 1, 0.6, jnp.float32)
    x = jax.random.normal(jax.random.key(0), (40, 4, 4, 16))
    variables = block.init({'params': jax.random.key(1)}, x, train=False)
    kept = block.clone(drop=0.0).apply(variables, x, train=True, mutable=['batch_stats'])[0] - x
    found = block.apply(variables, x, train=True, mutable=['batch_stats'],
                        rngs={'dropout': jax.random.key(2)})[0] - x
    dropped = np.all(np.abs(found) < 1e-6, axis=(1, 2, 3))
    self.assertBetween(dropped.sum(), 14, 34)  # 24 expected, three deviations of 3.1
    np.testing.assert_allclose(found[~dropped], kept[~dropped] / 0.4, rtol=1e-3, atol=1e-4)

  def test_schedule_of_stochastic_depth(self):
    rates = []

    def watch(next_call, args, kwargs, context):
      if isinstance(context.module, efficientnet.MBConv) and context.method_name == '__call__':
        rates.append(context.module.drop)
      return next_call(*args, **kwargs)

    with nn.intercept_methods(watch):
      jax.eval_shape(tiny(stochastic_depth=0.9).init, jax.random.key(0), {'image': IMAGE})
    np.testing.assert_allclose(rates, [0, 0.3, 0.6])

  def test_random_layers_need_a_key_in_train_mode_only(self):
    model = tiny(dropout=0.5, stochastic_depth=0.5)
    variables = jax.eval_shape(model.init, jax.random.key(0), {'image': IMAGE})
    run = lambda **kwargs: jax.eval_shape(  # pylint: disable=g-long-lambda
        lambda v: model.apply(v, {'image': IMAGE}, **kwargs), variables)
    run(train=False)
    run(train=True, rngs={'dropout': jax.random.key(0)})
    with self.assertRaisesRegex(errors.InvalidRngError, 'dropout'):
      run(train=True)

  @parameterized.parameters(
      ({'width': 0.0}, ValueError, 'width must be above 0'),
      ({'dropout': 1.0}, ValueError, r'dropout must lie in \[0, 1\)'),
      ({'stochastic_depth': -0.1}, ValueError, r'stochastic_depth must lie in \[0, 1\)'),
      ({'stem': 'mnist'}, ValueError, 'imagenet, cifar'),
      ({'num_outputs': 0}, ValueError, 'num_outputs'),
      ({'compute_dtype': 'float8'}, ValueError, 'bfloat16'))
  def test_bad_arguments(self, arguments, error, message):
    with self.assertRaisesRegex(error, message):
      models.get('efficientnet_b0', **{'num_outputs': 2, **arguments})


if __name__ == '__main__':
  absltest.main()
