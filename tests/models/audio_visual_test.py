"""Tests of the audio-visual classifier: AGM's counts and layout, fusions, modes, bad input."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
from flax import errors
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import models
from unlearn_jax.models import audio_visual

SHAPES = {'image': (4, 8, 8, 1), 'audio': (4, 16, 12, 1)}


def fields_of(shapes, seed=0):
  rng = np.random.default_rng(seed)
  return {name: jnp.asarray(rng.uniform(size=shape), jnp.float32) for name, shape in shapes.items()}


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def abstract(image=(2, 28, 28, 1), audio=(2, 112, 112, 1), **changes):
  model = models.get('audio_visual', **({'num_outputs': 10} | changes))
  fields = {'image': jax.ShapeDtypeStruct(image, jnp.float32),
            'audio': jax.ShapeDtypeStruct(audio, jnp.float32)}
  variables = jax.eval_shape(model.init, jax.random.key(0), fields)
  return variables, jax.eval_shape(model.apply, variables, fields)[0]


@functools.cache
def build(fusion):
  """A small network with random statistics, compiled in evaluation and in training mode."""
  model = models.get('audio_visual', num_outputs=3, width=2, fusion=fusion, stem='cifar')
  fields = fields_of(SHAPES)
  variables = model.init(jax.random.key(1), fields)
  evaluate = jax.jit(lambda v, x: model.apply(v, x)[0])
  train = jax.jit(lambda v, x, key: model.apply(v, x, train=True, rngs={'dropout': key}))
  return model, variables, fields, evaluate, train


class LayoutTest(parameterized.TestCase):

  def test_parameter_counts_are_agms(self):
    early, outputs = abstract()
    self.assertEqual(count(early['params']), 30_753_674)
    for name in ('image', 'audio'):
      self.assertEqual(count(early['params'][name]), 11_170_240)
      self.assertEqual(outputs[f'{name}_embedding'].shape, (2, 512))
    self.assertEqual(outputs['features'].shape, (2, 1024))
    self.assertEqual(early['params']['fusion']['maxout1']['lin']['kernel'].shape, (1024, 4096))
    self.assertEqual(early['params']['fusion']['maxout2']['lin']['kernel'].shape, (2048, 2048))
    late, _ = abstract(fusion='late')
    self.assertEqual(count(late['params']), 2 * 11_170_240 + 2 * (512 * 10 + 10))

  @parameterized.product(fusion=audio_visual.FUSIONS, compute_dtype=('float32', 'bfloat16'))
  def test_outputs_are_float32_for_any_sizes_and_channels(self, fusion, compute_dtype):
    variables, outputs = abstract((5, 20, 24, 3), (5, 32, 17, 2), width=4, fusion=fusion,
                                  compute_dtype=compute_dtype)
    wanted = {'logits': (5, 10), 'features': (5, 64), 'image_embedding': (5, 32),
              'audio_embedding': (5, 32)}
    if fusion == 'late':
      wanted |= {'image_logits': (5, 10), 'audio_logits': (5, 10)}
    self.assertEqual({name: value.shape for name, value in outputs.items()}, wanted)
    for leaf in jax.tree.leaves((variables, outputs)):
      self.assertEqual(leaf.dtype, jnp.float32)

  def test_stems(self):
    for stem, kernel in (('imagenet', (7, 7, 1, 4)), ('cifar', (3, 3, 1, 4))):
      variables, _ = abstract(width=4, stem=stem)
      for name in ('image', 'audio'):
        self.assertEqual(variables['params'][name]['conv1']['kernel'].shape, kernel)

  def test_encoders_are_resnet18_without_its_head(self):
    _, variables, fields, evaluate, _ = build('late')
    outputs = evaluate(variables, fields)
    resnet = models.get('resnet18', num_outputs=1, width=2, stem='cifar')
    head = {'fc': {'kernel': jnp.zeros((16, 1)), 'bias': jnp.zeros(1)}}
    for name in ('image', 'audio'):
      single = {'params': {**variables['params'][name], **head},
                'batch_stats': variables['batch_stats'][name]}
      expected, _ = jax.jit(resnet.apply)(single, {'image': fields[name]})
      np.testing.assert_allclose(outputs[f'{name}_embedding'], expected['features'], atol=1e-6)


class MaxoutTest(absltest.TestCase):

  def test_a_unit_is_the_larger_of_two_neighbouring_rows(self):
    params = {'lin': {'kernel': jnp.array([[1., 2, -1, -2, 0, 0]]),
                      'bias': jnp.array([0., 1, 0, 0, 3, -3])}}
    found = audio_visual.Maxout(3).apply({'params': params}, jnp.array([[4.], [-4.]]))
    np.testing.assert_array_equal(found, [[9, -4, 3], [-4, 8, 3]])

  def test_only_the_first_norm_has_the_larger_epsilon(self):
    fusion = audio_visual.EarlyFusion(2, 0.0)
    x = jnp.array([[1., 2], [3, 5]])
    variables = jax.jit(functools.partial(fusion.init, train=False))(jax.random.key(0), x)
    variables = {**variables, 'batch_stats': jax.tree.map(jnp.zeros_like, variables['batch_stats'])}
    _, state = jax.jit(functools.partial(
        fusion.apply, train=False, capture_intermediates=True, mutable='intermediates'))(
            variables, x)
    seen = {name: value['__call__'][0] for name, value in state['intermediates'].items()
            if name != '__call__'}
    np.testing.assert_allclose(seen['bn1'], x / 1e-4**0.5, rtol=1e-5)
    np.testing.assert_allclose(seen['bn2'], seen['maxout1'] / 1e-5**0.5, rtol=1e-5)


class BehaviourTest(parameterized.TestCase):

  def test_late_logits_are_the_sum_of_both(self):
    _, variables, fields, evaluate, _ = build('late')
    outputs, params = evaluate(variables, fields), variables['params']
    np.testing.assert_allclose(
        outputs['logits'], outputs['image_logits'] + outputs['audio_logits'], atol=1e-6)
    kernel = jnp.concatenate([params['audio_fc']['kernel'], params['image_fc']['kernel']])
    np.testing.assert_allclose(
        outputs['logits'], outputs['features'] @ kernel + params['audio_fc']['bias']
        + params['image_fc']['bias'], atol=1e-5)

  def test_early_logits_are_the_head_of_the_features(self):
    _, variables, fields, evaluate, _ = build('early')
    outputs, head = evaluate(variables, fields), variables['params']['fusion']['fc']
    np.testing.assert_allclose(
        outputs['logits'], outputs['features'] @ head['kernel'] + head['bias'], atol=1e-5)

  @parameterized.parameters(*audio_visual.FUSIONS)
  def test_embeddings_depend_on_their_own_modality(self, fusion):
    _, variables, fields, evaluate, _ = build(fusion)
    before = evaluate(variables, fields)
    for name, other in (('image', 'audio'), ('audio', 'image')):
      after = evaluate(variables, {**fields, name: 1 - fields[name]})
      np.testing.assert_array_equal(after[f'{other}_embedding'], before[f'{other}_embedding'])
      for output in (f'{name}_embedding', 'logits'):
        self.assertGreater(float(jnp.abs(after[output] - before[output]).max()), 1e-4)

  @parameterized.parameters(*audio_visual.FUSIONS)
  def test_training_moves_every_statistic_and_no_parameter(self, fusion):
    _, variables, fields, _, train = build(fusion)
    _, updated = train(variables, fields, jax.random.key(0))
    self.assertEqual(jax.tree.structure(updated), jax.tree.structure(variables))
    jax.tree.map(np.testing.assert_array_equal, updated['params'], variables['params'])
    for old, new in zip(jax.tree.leaves(variables['batch_stats']),
                        jax.tree.leaves(updated['batch_stats']), strict=True):
      self.assertTrue((old != new).any())

  def test_dropout_draws_from_the_given_key(self):
    model, variables, fields, _, train = build('early')
    one, again, other = (train(variables, fields, jax.random.key(seed))[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one['features'], again['features'])
    self.assertTrue((one['features'] != other['features']).any())
    np.testing.assert_array_equal(one['image_embedding'], other['image_embedding'])
    with self.assertRaises(errors.InvalidRngError):
      jax.eval_shape(functools.partial(model.apply, train=True), variables, fields)

  def test_gradients_are_finite_and_reach_both_encoders_and_the_fusion(self):
    model, variables, fields, _, _ = build('early')

    @jax.jit
    @jax.grad
    def slopes(params):
      outputs, _ = model.apply({**variables, 'params': params}, fields)
      return jnp.sum(jnp.sin(outputs['logits'] + 1))

    for name, tree in slopes(variables['params']).items():
      leaves = jax.tree.leaves(tree)
      self.assertTrue(all(bool(jnp.isfinite(leaf).all()) for leaf in leaves))
      self.assertGreater(max(float(jnp.abs(leaf).max()) for leaf in leaves), 0, name)


class BadInputTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'image': (4, 8, 8, 1)}, ValueError, "wants input 'audio'"),
      ({'audio': (4, 8, 8, 1)}, ValueError, "wants input 'image'"),
      ({'image': (4, 8, 8, 1), 'audio': (3, 8, 8, 1)}, ValueError,
       'differ in batch length: image 4, audio 3'),
      ({'image': (4, 8, 8, 1), 'audio': (4, 8, 8)}, AssertionError, 'rank'),
  )
  def test_inputs(self, shapes, error, message):
    model = models.get('audio_visual', num_outputs=3, width=2)
    with self.assertRaisesRegex(error, message):
      model.init(jax.random.key(0), fields_of(shapes))

  @parameterized.parameters(
      ({'fusion': 'middle'}, ValueError, "fusion is one of early, late, got 'middle'"),
      ({'stem': 'mnist'}, ValueError, 'imagenet, cifar'),
      ({'dropout': 1.0}, ValueError, r'\[0, 1\)'),
      ({'width': 0}, ValueError, 'width must be at least 1'),
      ({'num_outputs': 2.0}, TypeError, 'num_outputs must be an int'),
      ({'compute_dtype': 'float8'}, ValueError, 'bfloat16'),
  )
  def test_arguments(self, arguments, error, message):
    with self.assertRaisesRegex(error, message):
      models.get('audio_visual', **({'num_outputs': 3} | arguments))


if __name__ == '__main__':
  absltest.main()
