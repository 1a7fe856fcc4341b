"""Tests of Inception v3: torchvision's names and counts, pools, published weights in."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import models
from unlearn_jax.models import inception
from unlearn_jax.models import surgery

AUXILIARY = 3_326_696  # torchvision's InceptionAux(768, 1000)


def abstract(side=299, **arguments):
  model = models.get('inception_v3', **{'num_outputs': 1000, **arguments})
  picture = {'image': jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)}
  variables = jax.eval_shape(model.init, jax.random.key(0), picture)
  return variables, jax.eval_shape(model.apply, variables, picture)[0]


def tensors(num_outputs):
  """A state dict of zeros, which take no memory, with what comes beside the network."""
  found = {'AuxLogits.fc.weight': np.zeros((num_outputs, 768)),
           'Mixed_5b.branch1x1.bn.num_batches_tracked': np.zeros((), np.int64)}
  for path, shape in inception.shapes().items():
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(len(shape), (0,))
    found[inception.key(path)] = np.broadcast_to(np.float32(0), [shape[axis] for axis in axes])
  found['fc.bias'] = np.zeros(num_outputs)
  found['fc.weight'] = np.random.default_rng(0).normal(size=(num_outputs, 2048))
  return found


class NetworkTest(parameterized.TestCase):

  def test_parameters_and_names(self):
    variables, outputs = abstract()
    count = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
    # The whole of torchvision's inception_v3 is 27,161,264 by its own list of models.
    self.assertEqual(count + AUXILIARY, 27_161_264)
    self.assertEqual(count, 23_834_568)
    self.assertEqual(AUXILIARY, 768 * 128 + 2 * 128 + 25 * 128 * 768 + 2 * 768 + 768 * 1000 + 1000)
    names = surgery.paths(variables)
    shapes = dict(zip(names, (leaf.shape for leaf in jax.tree.leaves(variables))))
    self.assertLen(names, 94 * 5 + 2)  # a convolution and its batch norm, and the head
    for name, shape in {
        'Conv2d_1a_3x3.conv.weight': (3, 3, 3, 32), 'Conv2d_4a_3x3.conv.weight': (3, 3, 80, 192),
        'Mixed_5b.branch5x5_2.conv.weight': (5, 5, 48, 64),
        'Mixed_5b.branch_pool.bn.weight': (32,), 'Mixed_5d.branch_pool.bn.running_var': (64,),
        'Mixed_6a.branch3x3.conv.weight': (3, 3, 288, 384),
        'Mixed_6b.branch7x7_2.conv.weight': (1, 7, 128, 128),
        'Mixed_6e.branch7x7dbl_5.conv.weight': (1, 7, 192, 192),
        'Mixed_7a.branch7x7x3_4.conv.weight': (3, 3, 192, 192),
        'Mixed_7b.branch3x3_2a.conv.weight': (1, 3, 384, 384),
        'Mixed_7c.branch3x3dbl_3b.conv.weight': (3, 1, 384, 384),
        'Mixed_7c.branch1x1.conv.weight': (1, 1, 2048, 320), 'fc.weight': (2048, 1000),
        'fc.bias': (1000,)}.items():
      path, = (each for each in names if inception.key(each) == name)
      self.assertEqual(shapes[path], shape, name)
    self.assertEqual((outputs['features'].shape, outputs['logits'].shape), ((2, 2048), (2, 1000)))

  def test_layouts_have_the_same_parameters(self):
    units = [{name: (branches, pool.features) for name, (branches, pool)
              in inception._blocks(layout).items()} for layout in inception.LAYOUTS]
    self.assertEqual(*units)

  @parameterized.parameters('average', 'inside', 'max')
  def test_pools(self, kind):
    x = np.random.default_rng(0).normal(size=(1, 4, 5, 2)).astype(np.float32)
    block = inception.Mixed((), inception.Pool(kind, 2))
    variables = block.init(jax.random.key(0), x, train=False)
    kernel = jnp.eye(2)[None, None]
    variables['params']['branch_pool']['conv']['kernel'] = kernel
    found = block.apply(variables, x, train=False)
    wanted = np.empty_like(x)
    for row in range(4):
      for column in range(5):
        window = x[0, max(row - 1, 0):row + 2, max(column - 1, 0):column + 2]
        wanted[0, row, column] = {
            'average': lambda w: w.sum((0, 1)) / 9, 'inside': lambda w: w.mean((0, 1)),
            'max': lambda w: w.max((0, 1))}[kind](window)
    np.testing.assert_allclose(found, np.maximum(wanted, 0) / np.sqrt(1 + 1e-3), atol=1e-6)

  def test_where_the_layouts_pool(self):
    def pools(layout):
      return {name: pool.kind for name, (_, pool) in inception._blocks(layout).items()}

    halving = {'Mixed_6a': 'max', 'Mixed_7a': 'max'}
    self.assertEqual(set(pools('torchvision').items()) - set(halving.items()),
                     {(name, 'average') for name in pools('fid') if name not in halving})
    self.assertEqual({name for name, kind in pools('fid').items() if kind == 'max'},
                     {*halving, 'Mixed_7c'})
    self.assertNotIn('average', pools('fid').values())

  def test_pixels_are_torchvisions_transform_of_imagenets(self):
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = np.linspace(0, 1, 5)[:, None]
    theirs = (pixels - mean) / std * (std / 0.5) + (mean - 0.5) / 0.5
    np.testing.assert_allclose(theirs, 2 * np.tile(pixels, 3) - 1, atol=1e-12)

  def test_too_small_a_picture(self):
    with self.assertRaisesRegex(ValueError, 'from 75x75, got 74x74'):
      abstract(74)
    self.assertLen(inception.shapes(), 94 * 5 + 2)  # made at 75x75

  @parameterized.parameters(
      ({'layout': 'tf'}, ValueError, 'torchvision, fid'),
      ({'num_outputs': 0}, ValueError, 'num_outputs'), ({'num_outputs': 9.0}, TypeError, 'an int'))
  def test_bad_arguments(self, arguments, error, message):
    with self.assertRaisesRegex(error, message):
      models.get('inception_v3', **{'num_outputs': 2, **arguments})


class LoadTest(parameterized.TestCase):

  @parameterized.parameters((1008, 'fid'), (365, 'torchvision'))
  def test_layout_by_classes(self, classes, layout):
    kernel = np.random.default_rng(1).normal(size=(128, 128, 1, 7)).astype(np.float16)
    given = tensors(classes) | {'Mixed_6b.branch7x7_2.conv.weight': kernel}
    variables, arguments = inception.load(given)
    self.assertEqual(arguments, {'num_outputs': classes, 'layout': layout})
    params = variables['params']
    found = params['Mixed_6b']['branch7x7_2']['conv']['kernel']
    self.assertEqual(found.dtype, np.float32)
    np.testing.assert_array_equal(found, np.float32(kernel.transpose(2, 3, 1, 0)))
    np.testing.assert_array_equal(params['fc']['kernel'], np.float32(given['fc.weight'].T))
    self.assertEqual(dict(zip(surgery.paths(variables), map(np.shape, jax.tree.leaves(variables)))),
                     inception.shapes() | {'params/fc/kernel': (2048, classes),
                                           'params/fc/bias': (classes,)})

  @parameterized.parameters(
      ({'fc.weight': None}, "'fc.weight' .classes, 2048. is missing"),
      ({'fc.weight': np.zeros(5)}, "'fc.weight' .classes, 2048. is missing"),
      ({'fc.weight': np.zeros((7, 9))}, '2 misshapen: fc.bias, fc.weight'),
      ({'Mixed_7a.branch3x3_1.bn.bias': None}, '1 missing: Mixed_7a.branch3x3_1.bn.bias'),
      ({'layer1.0.conv1.weight': np.zeros(3)}, '1 unexpected: layer1.0.conv1.weight'))
  def test_other_tensors(self, changes, message):
    given = {name: value for name, value in {**tensors(1000), **changes}.items()
             if value is not None}
    with self.assertRaisesRegex(ValueError, f'the tensors: no Inception v3.*{message}'):
      inception.load(given)


if __name__ == '__main__':
  absltest.main()
