"""Tests of the fusion transformer on tokens: counts, positions, pooling, modes, bad input."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
from flax import errors
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import models
from unlearn_jax.models import token_fusion

SMALL = {'num_outputs': 3, 'features': 8, 'layers': 1, 'heads': 2, 'fusion_layers': 1}
SHAPES = {'image': (4, 5, 6), 'text': (4, 3, 7)}


def fields_of(shapes, seed=0):
  rng = np.random.default_rng(seed)
  return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


@functools.cache
def build():
  model = models.get('token_fusion', **SMALL)
  fields = fields_of(SHAPES)
  return model, model.init(jax.random.key(1), fields), fields, jax.jit(
      lambda v, x: model.apply(v, x)[0])


class LayoutTest(absltest.TestCase):

  def test_published_sizes(self):
    model = models.get('token_fusion')
    fields = {'image': jax.ShapeDtypeStruct((2, 197, 768), jnp.float32),
              'text': jax.ShapeDtypeStruct((2, 50, 768), jnp.float32)}
    variables = jax.eval_shape(model.init, jax.random.key(0), fields)
    self.assertEqual(list(variables), ['params'])
    params = variables['params']
    # An attention of 4 * 40 * 41, an MLP of 160 hidden units, two norms.
    layer = 4 * 40 * 41 + 160 * 41 + 40 * 161 + 2 * 80
    for name, depth in (('image', 4), ('text', 4), ('fusion', 2)):
      size = sum(leaf.size for leaf in jax.tree.leaves(params[name]))
      self.assertEqual(size, depth * layer + 80, name)
    self.assertEqual(sum(leaf.size for leaf in jax.tree.leaves(params)), 263_265)
    outputs = jax.eval_shape(model.apply, variables, fields)[0]
    self.assertEqual({name: value.shape for name, value in outputs.items()}, {
        'logits': (2, 25), 'features': (2, 40), 'image_embedding': (2, 40),
        'text_embedding': (2, 40)})
    for leaf in jax.tree.leaves(outputs):
      self.assertEqual(leaf.dtype, jnp.float32)


class SinusoidsTest(absltest.TestCase):

  def test_closed_form(self):
    found = token_fusion.sinusoids(3, 6)
    self.assertEqual(found.shape, (3, 6))
    for t in (1, 2, 3):  # from 1; rates 1, 1/100, 1/10000
      angles = [t, t / 100, t / 10000]
      np.testing.assert_allclose(found[t - 1], [*np.sin(angles), *np.cos(angles)], atol=1e-6)


class BehaviourTest(parameterized.TestCase):

  def test_embeddings_are_means_of_the_fusion_states(self):
    _, variables, fields, run = build()
    module = token_fusion.TokenFusion(3, 8, 1, 2, 1, 0.15)
    outputs, state = jax.jit(functools.partial(
        module.apply, train=False, capture_intermediates=True, mutable='intermediates'))(
            variables, fields['image'], fields['text'])
    states = state['intermediates']['fusion']['__call__'][0]
    self.assertEqual(states.shape, (4, 8, 8))  # 5 tokens of the picture, 3 of the caption
    np.testing.assert_allclose(outputs['image_embedding'], states[:, :5].mean(1), atol=1e-6)
    np.testing.assert_allclose(outputs['text_embedding'], states[:, 5:].mean(1), atol=1e-6)
    np.testing.assert_allclose(outputs['logits'], run(variables, fields)['logits'], atol=1e-5)

  def test_logits_are_the_head_of_the_features(self):
    _, variables, fields, run = build()
    outputs, head = run(variables, fields), variables['params']['out_layer']
    np.testing.assert_allclose(
        outputs['logits'], outputs['features'] @ head['kernel'] + head['bias'], atol=1e-6)

  @parameterized.parameters('image', 'text')
  def test_the_order_of_tokens_matters(self, name):
    _, variables, fields, run = build()
    order = jnp.array([0, 2, 1, *range(3, fields[name].shape[1])])
    before = run(variables, fields)['logits']
    after = run(variables, {**fields, name: fields[name][:, order]})['logits']
    self.assertGreater(float(jnp.abs(after - before).max()), 1e-4)

  @parameterized.parameters('image', 'text')
  def test_both_modalities_reach_every_output(self, name):
    _, variables, fields, run = build()
    before = run(variables, fields)
    after = run(variables, {**fields, name: fields[name].at[0].multiply(-1.0)})
    for output, value in before.items():
      self.assertGreater(float(jnp.abs(after[output] - value)[0].max()), 1e-4, output)
      np.testing.assert_allclose(after[output][1:], value[1:], atol=1e-6)

  def test_dropout_draws_from_the_given_key(self):
    model, variables, fields, run = build()
    train = jax.jit(lambda key: model.apply(variables, fields, train=True, rngs={'dropout': key}))
    (one, updated), (again, _), (other, _) = (train(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one['logits'], again['logits'])
    self.assertTrue((one['logits'] != other['logits']).any())
    self.assertTrue((one['logits'] != run(variables, fields)['logits']).any())
    jax.tree.map(np.testing.assert_array_equal, updated, variables)
    with self.assertRaises(errors.InvalidRngError):
      jax.eval_shape(functools.partial(model.apply, train=True), variables, fields)

  def test_vmap_over_members_and_gradients(self):
    model, first, fields, run = build()
    second = model.init(jax.random.key(2), fields)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, second)
    logits = jax.jit(jax.vmap(run, (0, None)))(stacked, fields)['logits']
    for row, variables in zip(logits, (first, second)):
      np.testing.assert_allclose(row, run(variables, fields)['logits'], atol=1e-5)
    grads = jax.jit(jax.grad(lambda v: jnp.sum(jnp.sin(1 + run(v, fields)['logits']))))(first)
    for leaf in jax.tree.leaves(grads):
      self.assertTrue(bool(jnp.isfinite(leaf).all()) and bool(leaf.any()))


class BadInputTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'text': (4, 3, 7)}, ValueError, "wants input 'image'"),
      ({'image': (4, 5, 6)}, ValueError, "wants input 'text'"),
      ({'image': (4, 5, 6), 'text': (2, 3, 7)}, ValueError,
       'differ in batch length: image 4, text 2'),
      ({'image': (4, 6), 'text': (4, 3, 7)}, AssertionError, 'rank'),
  )
  def test_inputs(self, shapes, error, message):
    with self.assertRaisesRegex(error, message):
      models.get('token_fusion', **SMALL).init(jax.random.key(0), fields_of(shapes))

  @parameterized.parameters(
      ({'features': 42}, 'even multiple of heads.* got 42 and 5'),
      ({'features': 45}, 'even multiple of heads'),
      ({'features': 2, 'heads': 1}, 'at least 4'),
      ({'layers': 0}, 'layers must be at least 1'),
      ({'fusion_layers': 0}, 'fusion_layers must be at least 1'),
      ({'dropout': -0.1}, r'\[0, 1\)'),
  )
  def test_arguments(self, arguments, message):
    with self.assertRaisesRegex(ValueError, message):
      models.get('token_fusion', **arguments)


if __name__ == '__main__':
  absltest.main()
