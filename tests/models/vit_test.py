"""Tests of the vision transformer: torchvision's names and counts, patches, initial values."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import errors
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import models
from unlearn_jax.models import order
from unlearn_jax.models import surgery
from unlearn_jax.models import vit

SMALL = {'num_outputs': 5, 'width': 16, 'depth': 2, 'heads': 2}
IMAGE = jax.random.normal(jax.random.key(3), (4, 8, 8, 3))


class ViTTest(parameterized.TestCase):

  def test_parameters_and_names_of_vit_b_16(self):
    model = models.get('vit', num_outputs=1000, patch=16, width=768, depth=12, heads=12)
    picture = {'image': jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)}
    variables = jax.eval_shape(model.init, jax.random.key(0), picture)
    self.assertEqual(sum(leaf.size for leaf in jax.tree.leaves(variables)), 86_567_656)
    shapes = {name: leaf.shape for name, leaf in
              zip(surgery.paths(variables), jax.tree.leaves(variables))}
    self.assertLen(shapes, 1 + 2 + 1 + 12 * 12 + 2 + 2)
    for name, shape in {  # landmarks of torchvision's state dict, under the rule of vit.py
        'params/class_token': (1, 1, 768),
        'params/conv_proj/kernel': (16, 16, 3, 768),
        'params/encoder/pos_embedding': (1, 197, 768),
        'params/encoder/layers/encoder_layer_0/ln_1/scale': (768,),
        'params/encoder/layers/encoder_layer_0/self_attention/in_proj/kernel': (768, 2304),
        'params/encoder/layers/encoder_layer_5/self_attention/out_proj/bias': (768,),
        'params/encoder/layers/encoder_layer_11/mlp/0/kernel': (768, 3072),
        'params/encoder/layers/encoder_layer_11/mlp/3/kernel': (3072, 768),
        'params/encoder/ln/bias': (768,),
        'params/heads/head/kernel': (768, 1000)}.items():
      self.assertEqual(shapes[name], shape, name)
    self.assertEqual(jax.eval_shape(model.apply, variables, picture)[0]['features'].shape, (2, 768))

  def test_order_of_use(self):
    found = order.layers(models.get('vit', **SMALL), {'image': IMAGE})
    self.assertEqual([name for name in found if name not in ('', 'encoder')], [
        'conv_proj',
        *(f'encoder/layers/encoder_layer_{number}/{name}' for number in (0, 1) for name in (
            'ln_1', 'self_attention/in_proj', 'self_attention/out_proj', 'ln_2', 'mlp/0', 'mlp/3')),
        'encoder/ln', 'heads/head'])

  @parameterized.parameters(True, False)
  def test_patches_are_a_strided_convolution(self, use_bias):
    module = vit.PatchEmbedding(6, 2, jnp.float32, use_bias=use_bias)
    image = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
    variables = module.init(jax.random.key(1), image)
    self.assertEqual('bias' in variables['params'], use_bias)
    expected = lax.conv_general_dilated(image, variables['params']['kernel'], (2, 2), 'VALID',
                                        dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    np.testing.assert_allclose(module.apply(variables, image), expected.reshape(2, 6, 6), atol=1e-5)

  @parameterized.product(causal=(False, True), qk_norm=(None, 1e-6))
  def test_attention_against_numpy(self, causal, qk_norm):
    module = vit.SelfAttention(2, jnp.float32, causal=causal, qk_norm=qk_norm)
    x = jax.random.normal(jax.random.key(0), (1, 5, 8))
    params = module.init(jax.random.key(1), x)['params']
    x64 = np.asarray(x[0], np.float64)
    q, k, v = np.split(x64 @ params['in_proj']['kernel'], 3, axis=1)

    def norm(x, name):
      if qk_norm is None:
        return x
      params[name] = {'scale': rng.uniform(0.5, 1.5, 4), 'bias': rng.normal(size=4)}
      x = x.reshape(5, 2, 4)
      x = (x - x.mean(2, keepdims=True)) / np.sqrt(x.var(2, keepdims=True) + qk_norm)
      return (x * params[name]['scale'] + params[name]['bias']).reshape(5, 8)

    rng = np.random.default_rng(2)
    q, k = norm(q, 'q_norm'), norm(k, 'k_norm')
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
      scores = np.exp(q[:, part] @ k[:, part].T / 2)  # sqrt of 4 dimensions
      scores = np.tril(scores) if causal else scores
      heads.append(scores / scores.sum(1, keepdims=True) @ v[:, part])
    expected = np.concatenate(heads, 1) @ params['out_proj']['kernel']
    np.testing.assert_allclose(module.apply({'params': params}, x)[0], expected, atol=1e-5)

  def test_initial_values(self):
    model = models.get('vit', num_outputs=5, width=64, depth=1)
    params = model.init(jax.random.key(0), {'image': jnp.zeros((1, 16, 16, 3))})['params']
    layer = params['encoder']['layers']['encoder_layer_0']
    for leaf in (params['class_token'], params['heads']['head']['kernel'],
                 layer['self_attention']['in_proj']['bias'], params['conv_proj']['bias']):
      np.testing.assert_array_equal(leaf, 0)
    for leaf, deviation in (
        (params['conv_proj']['kernel'], 48**-0.5), (params['encoder']['pos_embedding'], 0.02),
        (layer['self_attention']['in_proj']['kernel'], (2 / (64 + 192))**0.5),
        (layer['self_attention']['out_proj']['kernel'], (3 * 64)**-0.5),
        (layer['mlp']['0']['kernel'], (2 / (64 + 256))**0.5), (layer['mlp']['3']['bias'], 1e-6)):
      self.assertAlmostEqual(float(leaf.std()) / deviation, 1, delta=0.3 if leaf.ndim == 1 else 0.06)

  def test_every_parameter_learns_once_the_head_is_not_zero(self):
    model = models.get('vit', **SMALL)
    params = model.init(jax.random.key(0), {'image': IMAGE})['params']
    loss = lambda p: jnp.sum(jnp.sin(model.apply({'params': p}, {'image': IMAGE})[0]['logits'] + 1))
    grad = jax.jit(jax.grad(loss))
    zero = {name for name, leaf in zip(surgery.paths(params), jax.tree.leaves(grad(params)))
            if not jnp.any(leaf)}
    self.assertEqual(zero, {name for name in surgery.paths(params) if 'head/' not in name})
    params['heads']['head']['kernel'] = jax.random.normal(jax.random.key(1), (16, 5))
    for leaf in jax.tree.leaves(grad(params)):
      self.assertTrue(bool(jnp.any(leaf)) and bool(jnp.all(jnp.isfinite(leaf))))

  def test_dropout_needs_a_key_in_train_mode_only(self):
    model = models.get('vit', **SMALL, dropout=0.5)
    variables = model.init(jax.random.key(0), {'image': IMAGE})
    run = lambda **kwargs: model.apply(  # pylint: disable=g-long-lambda
        variables, {'image': IMAGE}, **kwargs)[0]['features']
    one, two = (run(train=True, rngs={'dropout': jax.random.key(seed)}) for seed in (0, 1))
    self.assertTrue((one != two).any())
    run(train=False)
    with self.assertRaisesRegex(errors.InvalidRngError, 'dropout'):
      run(train=True)

  def test_pictures_of_another_size(self):
    model = models.get('vit', **SMALL)
    variables = model.init(jax.random.key(0), {'image': IMAGE})
    with self.assertRaisesRegex(errors.ScopeParamShapeError, 'pos_embedding'):
      model.apply(variables, {'image': jnp.zeros((1, 12, 12, 3))})
    with self.assertRaisesRegex(ValueError, 'patches of 4 do not tile a picture of 8x10'):
      model.apply(variables, {'image': jnp.zeros((1, 8, 10, 3))})

  @parameterized.parameters(
      ({'heads': 3, 'width': 16}, ValueError, 'multiple of heads, got 16 and 3'),
      ({'depth': 0}, ValueError, 'depth must be at least 1'),
      ({'mlp_ratio': 0.5}, TypeError, 'mlp_ratio must be an int'),
      ({'dropout': 1.0}, ValueError, r'dropout must lie in \[0, 1\)'),
      ({'compute_dtype': 'float8'}, ValueError, 'bfloat16'))
  def test_bad_arguments(self, arguments, error, message):
    with self.assertRaisesRegex(error, message):
      models.get('vit', num_outputs=2, **arguments)


if __name__ == '__main__':
  absltest.main()
