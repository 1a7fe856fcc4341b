"""Tests of the registry and of the contract that every registered model keeps."""

import functools
import pathlib
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import models
from unlearn_jax.models import contract
from unlearn_jax.models import densenet
from unlearn_jax.models import efficientnet

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = {'cnn': {'width': 8}, 'mlp': {'hidden': (8, 6)}, 'resnet18': {'width': 8, 'stem': 'cifar'},
         'vit': {'width': 16, 'depth': 1, 'heads': 2}, 'densenet': {}, 'efficientnet': {}}
DIMENSIONS = {'cnn': 32, 'mlp': 6, 'resnet18': 64, 'vit': 16, 'densenet': 14, 'efficientnet': 64}
HEADS = {'vit': ('heads', 'head'), 'densenet': ('classifier',), 'efficientnet': ('classifier', '1')}


def short(name, num_outputs, compute_dtype='float32'):
  """The deep networks with a few of their blocks, which compile quickly."""
  dtype = jnp.dtype(compute_dtype)
  if name == 'densenet':
    return contract.from_linen(densenet.DenseNet(num_outputs, (1, 2), 4, 'imagenet', dtype))
  stages = (efficientnet.Stage(1, 16, 1, 1, 3), efficientnet.Stage(6, 16, 2, 2, 5))
  return contract.from_linen(
      efficientnet.EfficientNet(num_outputs, stages, 1.0, 'imagenet', 0.0, 0.0, dtype))


@functools.cache
def build(name, **changes):
  get = models.get if name in models.names() else short
  model = get(name, **({'num_outputs': 5} | SMALL[name] | changes))
  fields = {'image': jax.random.uniform(jax.random.key(0), (4, 16, 16, 3)),
            'label': jnp.zeros(4, jnp.int32)}
  return model, init(model, 1, fields), fields


def init(model, seed, fields):
  """Initial variables; a head that starts at zero (`vit`) is drawn, or there is nothing to compare."""
  variables = model.init(jax.random.key(seed), fields)
  if 'heads' in variables['params']:
    head = variables['params']['heads']['head']
    head['kernel'] = jax.random.normal(jax.random.key(seed), head['kernel'].shape) / 4
  return variables


class RegistryTest(parameterized.TestCase):

  def test_names(self):
    self.assertEqual(models.names(), (
        'audio_visual', 'av_events', 'clip', 'clip_vit_b_16', 'clip_vit_b_32', 'clip_vit_l_14',
        'cnn', 'densenet121', 'efficientnet_b0', 'inception_v3', 'linear_towers', 'mae', 'mae_vit_b',
        'mae_vit_l', 'mage', 'mage_vit_b', 'mlp', 'palette', 'palette_256', 'resnet18', 'resnet34',
        'resnet50', 'token_fusion', 'vit', 'vqgan'))

  def test_unknown_model(self):
    with self.assertRaisesRegex(ValueError, "no model 'resnet19', did you mean 'resnet18'"):
      models.get('resnet19', num_outputs=2)

  def test_unknown_argument(self):
    with self.assertRaisesRegex(ValueError, "did you mean 'width'.*num_outputs, width, stem"):
      models.get('resnet18', num_outputs=2, widht=8)

  def test_missing_argument(self):
    with self.assertRaisesRegex(ValueError, 'needs num_outputs'):
      models.get('mlp')

  @parameterized.parameters(
      ('mlp', {'hidden': (8, 0)}, ValueError, r'hidden\[1\] must be at least 1, got 0'),
      ('mlp', {'hidden': 8}, TypeError, 'sequence of ints'),
      ('mlp', {'dropout': 1.0}, ValueError, r'\[0, 1\)'),
      ('cnn', {'width': 8.0}, TypeError, 'width must be an int'),
      ('cnn', {'num_outputs': 0}, ValueError, 'num_outputs'),
      ('cnn', {'num_outputs': True}, TypeError, 'num_outputs'),
      ('resnet18', {'stem': 'mnist'}, ValueError, 'imagenet, cifar'),
      ('resnet50', {'compute_dtype': 'float8'}, ValueError, 'bfloat16'),
  )
  def test_bad_values(self, name, kwargs, error, message):
    with self.assertRaisesRegex(error, message):
      models.get(name, **({'num_outputs': 2} | kwargs))

  def test_import_is_lazy(self):
    code = ('import sys, unlearn_jax.models as m; m.names(); '
            'sys.exit(any(f"unlearn_jax.models.{x}" in sys.modules for x in ("resnet", "mlp")))')
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=False)
    self.assertEqual(done.returncode, 0)


class ContractTest(parameterized.TestCase):

  @parameterized.parameters(*SMALL)
  def test_outputs(self, name):
    model, variables, fields = build(name)
    outputs, returned = model.apply(variables, fields)
    self.assertEqual(outputs['logits'].shape, (4, 5))
    self.assertEqual(outputs['features'].shape, (4, DIMENSIONS[name]))
    self.assertEqual(outputs['logits'].dtype, jnp.float32)
    self.assertEqual(outputs['features'].dtype, jnp.float32)
    self.assertIs(returned, variables)
    self.assertIs(type(variables), dict)

  @parameterized.parameters(*SMALL)
  def test_logits_are_the_head_of_the_features(self, name):
    model, variables, fields = build(name)
    outputs, _ = model.apply(variables, fields)
    head = variables['params']
    for key in HEADS.get(name, ('fc',)):
      head = head[key]
    np.testing.assert_allclose(
        outputs['logits'], outputs['features'] @ head['kernel'] + head['bias'], atol=1e-5)

  @parameterized.parameters(*SMALL)
  def test_batch_statistics_move_in_train_mode_only(self, name):
    model, variables, fields = build(name)
    before = jax.tree.map(np.array, variables)
    _, updated = jax.jit(functools.partial(model.apply, train=True))(variables, fields)
    self.assertEqual(jax.tree.structure(updated), jax.tree.structure(variables))
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    jax.tree.map(np.testing.assert_array_equal, updated['params'], variables['params'])
    for old, new in zip(jax.tree.leaves(variables.get('batch_stats', {})),
                        jax.tree.leaves(updated.get('batch_stats', {}))):
      self.assertTrue((old != new).any())
    self.assertEqual('batch_stats' in variables, name not in ('mlp', 'vit'))

  @parameterized.parameters(*SMALL)
  def test_jit_and_vmap_agree_with_the_plain_call(self, name):
    model, first, fields = build(name)
    second = init(model, 2, fields)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, second)

    @jax.jit
    def both(variables):
      return jax.vmap(lambda v: model.apply(v, fields)[0]['logits'])(variables)

    logits = both(stacked)
    for row, variables in zip(logits, (first, second)):
      np.testing.assert_allclose(row, model.apply(variables, fields)[0]['logits'], atol=1e-5)
    self.assertGreater(float(jnp.abs(logits[0] - logits[1]).max()), 1e-4)

  @parameterized.parameters(*SMALL)
  def test_gradients_are_finite_and_reach_every_parameter(self, name):
    model, variables, fields = build(name)

    @jax.jit
    @jax.grad
    def slopes(params):
      outputs, _ = model.apply({**variables, 'params': params}, fields, train=True)
      return jnp.sum(jnp.sin(outputs['logits'] + 1))

    for leaf in jax.tree.leaves(slopes(variables['params'])):
      self.assertTrue(bool(jnp.isfinite(leaf).all()) and bool(leaf.any()))

  @parameterized.parameters(*SMALL)
  def test_compute_dtype(self, name):
    model, variables, fields = build(name, compute_dtype='bfloat16')
    reference, _, _ = build(name)
    outputs, updated = jax.jit(functools.partial(model.apply, train=True))(variables, fields)
    expected, _ = jax.jit(functools.partial(reference.apply, train=True))(variables, fields)
    for leaf in jax.tree.leaves((variables, outputs, updated)):
      self.assertEqual(leaf.dtype, jnp.float32)
    difference = jnp.abs(outputs['logits'] - expected['logits']).max()
    self.assertGreater(float(difference), 0.0)  # it did compute in another precision
    self.assertLess(float(difference), 0.1)

  def test_same_key_same_variables(self):
    model, variables, fields = build('cnn')
    again = model.init(jax.random.key(1), fields)
    other = model.init(jax.random.key(2), fields)
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    self.assertTrue((other['params']['fc']['kernel'] != again['params']['fc']['kernel']).any())

  def test_dropout_draws_from_the_given_key(self):
    model, variables, fields = build('mlp', hidden=(64,), dropout=0.5)
    run = lambda seed: model.apply(  # pylint: disable=g-long-lambda
        variables, fields, train=True, rngs={'dropout': jax.random.key(seed)})[0]['features']
    np.testing.assert_array_equal(run(0), run(0))
    self.assertTrue((run(0) != run(1)).any())
    evaluated = model.apply(variables, fields)[0]['features']
    kept = run(0) != 0
    np.testing.assert_allclose(run(0)[kept], 2 * evaluated[kept], rtol=1e-5)

  def test_linear_model(self):
    model, variables, fields = build('mlp', hidden=())
    self.assertEqual(list(variables['params']), ['fc'])
    self.assertEqual(model.apply(variables, fields)[0]['features'].shape, (4, 16 * 16 * 3))

  def test_small_pictures(self):
    model = models.get('cnn', num_outputs=2, width=2)
    fields = {'image': jnp.ones((1, 1, 1, 1))}
    outputs, _ = model.apply(model.init(jax.random.key(0), fields), fields)
    self.assertEqual(outputs['logits'].shape, (1, 2))


if __name__ == '__main__':
  absltest.main()
