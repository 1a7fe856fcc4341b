"""Tests of VQ-GAN: the residual branch by hand, codes and losses by NumPy, what gradients pass."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from tests.models.drawn import drawn
from unlearn_jax import methods
from unlearn_jax import models
from unlearn_jax.models import surgery
from unlearn_jax.models import vqgan

TINY = {'width': 4, 'multipliers': (1, 2), 'blocks': 1, 'latent': 3, 'codes': 7, 'groups': 2}
RNG = np.random.default_rng(0)
IMAGE = RNG.random((3, 8, 8, 3)).astype(np.float32)
SIZES = (4, (1, 2), 1, 3, 2, jnp.float32)


def by_numpy(x, params, groups):
  """A residual block in float64, tap by tap: [H, W, C] -> h and the block."""

  def normed(x, norm):
    grouped = x.reshape(*x.shape[:2], groups, -1)
    mean = grouped.mean((0, 1, 3), keepdims=True)
    spread = np.sqrt(grouped.var((0, 1, 3), keepdims=True) + 1e-6)
    x = ((grouped - mean) / spread).reshape(x.shape) * norm['scale'] + norm['bias']
    return x / (1 + np.exp(-x))

  def conv(x, kernel):
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    height, width = x.shape[:2]
    return sum(padded[i:i + height, j:j + width] @ kernel[i, j] for i in range(3) for j in range(3))

  h = conv(normed(x, params['norm1']), params['conv1']['kernel'])
  h = conv(normed(h, params['norm2']), params['conv2']['kernel'])
  if 'nin_shortcut' not in params:
    return h, x + h
  return h, h @ params['nin_shortcut']['kernel'][0, 0] + h


@functools.cache
def build():
  """The tiny model; its codes are latents of another picture, so that many of them are in use."""
  model = models.get('vqgan', **TINY)
  params = drawn(jax.eval_shape(model.init, jax.random.key(0), {'image': IMAGE})['params'], 1,
                 spread=0.3)
  other = {'image': np.random.default_rng(2).random((1, 8, 8, 3)).astype(np.float32)}
  encode = jax.jit(lambda v: model.apply(v, other, method='encode')[0]['latent'])
  params['encoder']['codebook'] = np.asarray(encode({'params': params})).reshape(-1, 3)[:7]
  return model, {'params': params}


@jax.jit
def everything(variables, image):
  """The outputs of all ways to call, and gradients of the loss."""
  model = build()[0]
  outputs, _ = model.apply(variables, {'image': image})
  decoded, _ = model.apply(variables, {'tokens': outputs['tokens']}, method='decode')
  encoded, _ = model.apply(variables, {'image': image}, method='encode')

  def loss(variables):
    losses = model.apply(variables, {'image': image}, method='loss')[0]['loss']
    return jnp.sum(losses), losses

  (_, losses), slopes = jax.value_and_grad(loss, has_aux=True)(variables)
  return outputs | {'decoded': decoded['image'], 'encoded': encoded, 'loss': losses,
                    'slopes': slopes['params']}


@functools.cache
def found():
  return jax.tree.map(np.asarray, everything(build()[1], IMAGE))


class CountTest(absltest.TestCase):

  def test_published_size(self):
    model = models.get('vqgan', **vqgan.PUBLISHED)
    image = jax.ShapeDtypeStruct((2, 256, 256, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), {'image': image})
    self.assertEqual(sum(leaf.size for leaf in jax.tree.leaves(variables)), 54_515_587)
    outputs = jax.eval_shape(model.apply, variables, {'image': image})[0]
    self.assertEqual({name: leaf.shape for name, leaf in outputs.items()}, {
        'image': (2, 256, 256, 3), 'tokens': (2, 16, 16), 'latent': (2, 16, 16, 256)})
    shortcuts = [path.removesuffix('/nin_shortcut/kernel') for path in surgery.paths(
        variables['params']) if 'nin_shortcut' in path]
    self.assertSameElements(shortcuts, ['encoder/down_2_block_0', 'encoder/down_4_block_0',
                                        'decoder/up_1_block_0', 'decoder/up_3_block_0'])


class BlockTest(parameterized.TestCase):

  @parameterized.parameters(4, 6)
  def test_by_hand(self, features):
    """Where channels change x is dropped: the block is a function of its residual branch alone."""
    x = RNG.normal(size=(1, 3, 5, 4)).astype(np.float32)
    block = vqgan.ResBlock(features, 2, jnp.float32)
    params = drawn(jax.eval_shape(block.init, jax.random.key(0), x)['params'], features,
                     spread=0.3)
    self.assertEqual('nin_shortcut' in params, features != 4)
    result = np.asarray(jax.jit(block.apply)({'params': params}, x)[0])
    h, expected = by_numpy(x[0].astype(np.float64), params, 2)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    self.assertGreater(np.abs(expected - h).max(), 0.1)


class CallTest(parameterized.TestCase):

  def test_codes_are_the_nearest(self):
    latent, codes = found()['latent'].astype(np.float64), build()[1]['params']['encoder']['codebook']
    distance = np.sum((latent[..., None, :] - codes)**2, axis=-1)
    np.testing.assert_array_equal(found()['tokens'], np.argmin(distance, axis=-1))
    self.assertGreater(len(np.unique(found()['tokens'])), 3)
    self.assertEqual((found()['tokens'].dtype, found()['tokens'].shape), (np.int32, (3, 4, 4)))

  def test_reconstruction_is_decoded_tokens(self):
    np.testing.assert_allclose(found()['image'], found()['decoded'], atol=1e-5)
    np.testing.assert_array_equal(found()['tokens'], found()['encoded']['tokens'])
    np.testing.assert_array_equal(found()['latent'], found()['encoded']['latent'])

  def test_loss_against_numpy(self):
    e = build()[1]['params']['encoder']['codebook'][found()['tokens']]
    pixels = np.abs(found()['image'] - IMAGE).mean((1, 2, 3))
    apart = ((found()['latent'] - e)**2).mean((1, 2, 3))
    np.testing.assert_allclose(found()['loss'], pixels + 1.25 * apart, rtol=1e-5)

  def test_gradients(self):
    """Codes move to their latents alone; latents hear of the picture as if they were codes."""
    params, tokens, z = build()[1]['params'], found()['tokens'], found()['latent']
    codebook = params['encoder']['codebook']
    apart, size = codebook[tokens] - z, z[0].size
    expected = np.zeros_like(codebook)
    np.add.at(expected, tokens, 2 * apart / size)
    slopes = found()['slopes']
    np.testing.assert_allclose(slopes['encoder']['codebook'], expected, atol=1e-6)

    decoder = vqgan.Decoder(*SIZES, 3)
    pixels = lambda q: jnp.sum(jnp.mean(jnp.abs(
        decoder.apply({'params': params['decoder']}, q) - IMAGE), axis=(1, 2, 3)))
    passed = np.asarray(jax.jit(jax.grad(pixels))(jnp.asarray(codebook[tokens])))
    passed = passed - 0.25 * 2 * apart / size
    np.testing.assert_allclose(slopes['encoder']['conv_out']['bias'], passed.sum((0, 1, 2)),
                               atol=1e-5)
    self.assertTrue(all(np.any(leaf) for leaf in jax.tree.leaves(slopes)))

  def test_gradients_are_finite_where_norms_have_no_spread(self):
    zero = jax.tree.map(jnp.zeros_like, build()[1])
    for leaf in jax.tree.leaves(everything(zero, 0 * IMAGE)):
      self.assertTrue(bool(jnp.isfinite(leaf).all()))

  def test_jit_agrees_with_the_plain_call(self):
    model, variables = build()
    plain, returned = model.apply(variables, {'image': IMAGE}, train=True)
    self.assertIs(returned['params'], variables['params'])
    np.testing.assert_allclose(plain['image'], found()['image'], atol=1e-5)

  def test_reconstruct_trains_all_of_it(self):
    """Its rules train `encoder` and `decoder`; with one pass of one step, at the given rate."""
    model, variables = build()
    method = methods.get('reconstruct')(
        model, example={'image': IMAGE}, train_steps=1, epochs=1.0, warmup_epochs=0.0,
        learning_rate=0.01, weight_decay=0.0, role='train')
    state, frozen = jax.eval_shape(lambda: method.init(jax.random.key(0), variables))
    self.assertEqual(surgery.paths(state.params['model']), surgery.paths(variables['params']))
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    self.assertEqual(sum(leaf.size for leaf in moments),
                     2 * sum(leaf.size for leaf in jax.tree.leaves(variables)))
    batch = {'train': {'image': IMAGE, 'mask': np.ones(3, np.float32)}}
    _, metrics = jax.eval_shape(method.phases[0].step, state, frozen, batch)
    self.assertEqual(metrics['loss'].shape, ())

  @parameterized.parameters(
      ({'image': np.zeros((1, 8, 7, 3))}, None, 'multiples of 2, got 8x7x3'),
      ({'image': np.zeros((1, 8, 8, 1))}, 'loss', 'have 3 channels'),
      ({'tokens': np.zeros((1, 4, 4, 3), int)}, 'decode', r'integers \[B, h, w\]'),
      ({'tokens': np.zeros((1, 4, 4))}, 'decode', 'float'),
      ({'image': IMAGE}, 'decode', "wants input 'tokens'"),
      ({'image': IMAGE}, 'sample', "got 'sample'"))
  def test_bad_inputs(self, fields, method, message):
    model, variables = build()
    with self.assertRaisesRegex(ValueError, message):
      model.apply(variables, fields, method=method)

  @parameterized.parameters(
      ({'groups': 3}, ValueError, '3 groups do not divide .* 4, 8'),
      ({'multipliers': ()}, ValueError, 'names no level'),
      ({'multipliers': (1, 0)}, ValueError, r'multipliers\[1\] must be at least 1'),
      ({'codes': 2.0}, TypeError, 'codes must be an int'))
  def test_bad_arguments(self, changes, error, message):
    with self.assertRaisesRegex(error, message):
      models.get('vqgan', **{**TINY, **changes})


if __name__ == '__main__':
  absltest.main()
