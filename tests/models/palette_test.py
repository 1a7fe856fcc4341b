"""Tests of Palette: what the network is shown, draws that agree, the loss and the sampler by hand."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import models
from unlearn_jax.models import contract
from unlearn_jax.models import diffusion
from unlearn_jax.models import surgery
from unlearn_jax.models import unet

SIZES = {'width': 8, 'multipliers': (1, 2), 'blocks': 1, 'groups': 4, 'head_width': 8}
TINY = {**SIZES, 'patch': 2, 'steps': 12, 'beta': (1e-3, 0.5)}
KEY = jax.random.key(7)
RNG = np.random.default_rng(0)
FIELDS = {name: np.clip(0.4 * RNG.normal(size=(3, 8, 8, 3)), -1, 1).astype(np.float32)
          for name in ('image', 'target')}
FIELDS['visible'] = np.stack([RNG.permutation(16)[:6] for _ in range(3)]).astype(np.int32)
GIVEN = {name: FIELDS[name] for name in ('image', 'visible')}


def hidden_pixels(visible, side=8, patch=2):
  """1 where a picture is hidden, written without the code under test."""
  mask = np.ones((len(visible), side, side, 1), np.float32)
  for row, places in enumerate(visible):
    for place in places:
      top, left = patch * (place // (side // patch)), patch * (place % (side // patch))
      mask[row, top:top + patch, left:left + patch] = 0
  return mask


HOLE = hidden_pixels(FIELDS['visible'])
NOISE = RNG.normal(size=(3, 8, 8, 3)).astype(np.float32)  # n


@functools.cache
def build():
  model = models.get('palette', **TINY)
  params = jax.jit(model.init)(jax.random.key(0), GIVEN)['params']
  rng = np.random.default_rng(1)  # the last layers and the biases are 0 at first: draw them
  return model, {'params': jax.tree.map(
      lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype('f'), params)}


@functools.cache
def draws(key=7):
  """gamma, eps, u and the sampler's key, in the documented order."""
  level, noise, fill, chain = jax.random.split(jax.random.key(key), 4)
  tables = diffusion.schedule(diffusion.linear(TINY['steps'], *TINY['beta']))
  return (np.asarray(diffusion.draw_levels(level, tables, 3)),
          *(np.asarray(jax.random.normal(each, (3, 8, 8, 3))) for each in (noise, fill)), chain)


def noisy(image):
  gamma, noise, _, _ = draws()
  gamma = gamma[:, None, None, None]
  return np.sqrt(gamma) * image + np.sqrt(1 - gamma) * noise


def everything(model, wanted, variables, fields, noise, key):
  """The outputs of the ways to call that are wanted, each under a name of its own; None is all."""
  def call(method, **inputs):
    inputs = {'image': fields['image'], 'visible': fields['visible'], **inputs}
    outputs, _ = model.apply(variables, inputs, rngs={'noise': key}, method=method)
    return outputs[{'encode': 'latent', 'loss': 'loss'}.get(method, 'image')]

  ways = {'encoded': lambda: call('encode'), 'loss': lambda: call('loss'),
          'decoded': lambda: call('decode', latent=call('encode')),
          'noise_encoded': lambda: call('encode', noise=noise),
          'noise_loss': lambda: call('loss', noise=noise),
          'target_loss': lambda: call('loss', target=fields['target']), 'image': lambda: call(None)}
  return {name: ways[name]() for name in wanted or ways}


@functools.cache
def compiled(wanted=None, **changes):  # once for all tests: a network takes seconds to compile
  return jax.jit(functools.partial(everything, models.get('palette', **{**TINY, **changes}), wanted))


def call(fields=None, noise=NOISE, key=KEY, variables=None, wanted=None, **changes):
  fields = {**FIELDS, **(fields or {})}
  return jax.tree.map(np.asarray, compiled(wanted, **changes)(
      variables or build()[1], fields, noise, key))


@functools.cache
def network():
  """Stages and prediction of the bare network, compiled."""
  sizes = (8, (1, 2), 1, 4, 8, 0.0, jnp.float32)
  module = unet.UNet(unet.Encoder(*sizes), unet.Decoder(*sizes, 3))

  @jax.jit
  def run(known, content, gamma):
    x = jnp.concatenate([known, content], axis=3)
    stages = module.apply(build()[1], x, gamma, train=False, method='encode')
    return stages, module.apply(build()[1], stages, gamma, train=False, method='decode')

  return run


def shown(content):
  """What the network makes of T(x) beside a picture with this content in its hole."""
  gamma, _, fill, _ = draws()
  parts = [np.where(HOLE > 0, inner, FIELDS['image']) for inner in (fill, content)]
  return jax.tree.map(np.asarray, network()(*parts, gamma))


def painted(betas):
  """The sampler as a loop in NumPy."""
  _, _, fill, chain = draws()
  tables = diffusion.schedule(betas)
  known = state = np.where(HOLE > 0, fill, FIELDS['image'])
  for step in reversed(range(len(betas))):
    _, noise = network()(known, state, np.full(3, tables.gammas[step]))
    image = np.clip(tables.image_of_state[step] * state - tables.image_of_noise[step] * noise, -1, 1)
    state = tables.mean_of_image[step] * image + tables.mean_of_state[step] * state
    if step:
      state += np.exp(0.5 * tables.log_variance[step]) * np.asarray(
          jax.random.normal(jax.random.fold_in(chain, step), state.shape))
    state = np.where(HOLE > 0, state, FIELDS['image'])
  return state


class CountTest(absltest.TestCase):

  def test_published_size(self):
    fields = {'image': jax.ShapeDtypeStruct((2, 256, 256, 3), jnp.float32),
              'visible': jax.ShapeDtypeStruct((2, 192), jnp.int32)}
    model = models.get('palette_256')
    variables = jax.eval_shape(model.init, jax.random.key(0), fields)
    self.assertEqual(set(variables['params']), {'encoder', 'decoder'})

    def count(*trees):
      return sum(leaf.size for leaf in jax.tree.leaves(trees))

    encoder = variables['params']['encoder']
    blocks = {name: part for name, part in encoder.items() if name.startswith('input')}
    self.assertEqual(count(variables), 62_641_347)
    self.assertLen(jax.tree.leaves(variables), 326)
    self.assertEqual(count(encoder['embedding']), 82_432)
    self.assertEqual(count(blocks), 13_940_672)
    self.assertEqual(count([encoder[f'middle_{number}'] for number in range(3)]), 11_021_312)
    self.assertEqual(count(encoder), 82_432 + 13_940_672 + 11_021_312)
    encode = functools.partial(model.apply, method='encode')
    stages = jax.eval_shape(encode, variables, fields)[0]['latent']
    sizes = ((256, 64),) * 3 + ((128, 64),) + ((128, 128),) * 2 + ((64, 128),) + (
        (64, 256),) * 2 + ((32, 256),) + ((32, 512),) * 3
    self.assertEqual([stage.shape for stage in stages],
                     [(2, side, side, width) for side, width in sizes])
    self.assertEqual(count(stages), 2 * 22_282_240)


class EncodeTest(absltest.TestCase):

  def test_what_the_network_is_shown(self):
    """T(x) beside the noisy picture, which is noisy in the hole alone."""
    found = call()
    expected, _ = shown(noisy(FIELDS['image']))
    self.assertLen(found['encoded'], 5)
    for one, other in zip(found['encoded'], expected):
      np.testing.assert_allclose(one, other, atol=2e-5)
    self.assertEqual([stage.shape[1:] for stage in found['encoded']],
                     unet.stage_shapes((8, 8), 8, (1, 2), 1))

  def test_noise_takes_the_place_of_the_noisy_picture_alone(self):
    """Eq. C.25: the condition, the level and what is visible stay."""
    for one, other in zip(call()['noise_encoded'], shown(NOISE)[0]):
      np.testing.assert_allclose(one, other, atol=2e-5)
    changed = call(noise=np.where(HOLE > 0, NOISE, 9).astype('f'))
    jax.tree.map(np.testing.assert_array_equal, changed['noise_encoded'], call()['noise_encoded'])

  def test_shared_noise(self):
    """The release: eps of the same draw in the hole, whatever n is."""
    wanted = ('noise_encoded', 'noise_loss', 'loss')
    found, changed = (call(noise=n, wanted=wanted, shared_noise=True) for n in (NOISE, 2 * NOISE))
    expected = call(noise=draws()[1])
    for name in wanted[:2]:
      jax.tree.map(np.testing.assert_array_equal, found[name], changed[name])
      jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), found[name],
                   expected[name])
    np.testing.assert_allclose(found['loss'], call()['loss'], rtol=1e-5)

  def test_equal_keys_give_equal_draws(self):
    first, again, other = call(), call(), call(key=jax.random.key(8))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    for name in ('encoded', 'noise_encoded', 'loss', 'decoded', 'image'):
      for one, another in zip(jax.tree.leaves(first[name]), jax.tree.leaves(other[name])):
        self.assertGreater(np.abs(one - another).max(), 1e-3, name)


class LossTest(absltest.TestCase):

  def test_by_hand(self):
    noise, found = draws()[1], call()
    for name, content in (('loss', noisy(FIELDS['image'])), ('noise_loss', NOISE),
                          ('target_loss', noisy(FIELDS['target']))):
      error = HOLE * (noise - shown(content)[1])
      np.testing.assert_allclose(found[name], np.square(error).mean((1, 2, 3)), rtol=1e-4)

  def test_of_a_new_network(self):
    """The last convolution is 0: what is to be predicted is all that is left."""
    fresh = jax.jit(build()[0].init)(jax.random.key(0), GIVEN)
    found = call(variables=fresh)
    expected = np.square(HOLE * draws()[1]).mean((1, 2, 3))
    for name in ('loss', 'noise_loss', 'target_loss'):
      np.testing.assert_allclose(found[name], expected, rtol=1e-5)
    encoder, decoder = fresh['params']['encoder'], fresh['params']['decoder']
    for layer in (decoder['conv'], encoder['input_1']['conv2'], decoder['up_1']['conv2'],
                  encoder['middle_1']['attn']['out_proj']):
      self.assertFalse(np.any(layer['kernel']))
    kernel = np.asarray(encoder['input_2']['conv1']['kernel'])
    bound = (9 * kernel.shape[2])**-0.5
    self.assertBetween(np.abs(kernel).max(), 0.95 * bound, bound)

  def test_gradients_reach_what_they_should(self):
    model, variables = build()
    zero = jax.tree.map(jnp.zeros_like, variables['params'])  # norms without spread

    def slope(method, weigh):
      def scalar(params, image):
        outputs, _ = model.apply({'params': params}, {**GIVEN, 'image': image}, train=True,
                                 rngs={'noise': KEY}, method=method)
        return weigh(outputs)
      return jax.grad(scalar, (0, 1))

    @jax.jit
    def slopes(params):
      return [slope('encode', lambda o: sum(jnp.sum(jnp.sin(x)) for x in o['latent']))(
          params, FIELDS['image']), slope('loss', lambda o: o['loss'].sum())(params, FIELDS['image'])]

    found = slopes(variables['params'])
    for parts, (params, pixels) in zip(('encoder/', ('encoder/', 'decoder/')), found):
      for name, value in zip(surgery.paths(params), jax.tree.leaves(params)):
        self.assertEqual(bool(np.any(value)), name.startswith(parts), name)
      self.assertTrue(np.all(pixels))
    for leaf in jax.tree.leaves((found, slopes(zero))):
      self.assertTrue(np.isfinite(leaf).all())


class CompletionTest(absltest.TestCase):

  def test_the_sampler_against_a_loop(self):
    betas = diffusion.linear(TINY['steps'], *TINY['beta'])
    np.testing.assert_allclose(call()['image'], painted(betas), atol=1e-4)

  def test_fewer_steps(self):
    betas = diffusion.respaced(diffusion.linear(TINY['steps'], *TINY['beta']), 4)
    found = call(wanted=('image', 'loss'), sampling_steps=4)
    np.testing.assert_allclose(found['image'], painted(betas), atol=1e-4)
    np.testing.assert_allclose(found['loss'], call()['loss'], rtol=1e-5)  # training knows all of them

  def test_nothing_hidden_reaches_the_picture(self):
    found = call()
    other = call({'image': np.where(HOLE > 0, 9, FIELDS['image']).astype('f')})
    np.testing.assert_array_equal(other['image'], found['image'])
    wide = np.broadcast_to(HOLE, found['image'].shape) > 0
    np.testing.assert_array_equal(found['image'][~wide], FIELDS['image'][~wide])
    self.assertLessEqual(np.abs(found['image'][wide]).max(), 1)  # the last estimate is clipped
    self.assertGreater(np.abs(found['image'] - FIELDS['image'])[wide].max(), 0.1)
    seen = call({'image': np.where(HOLE > 0, FIELDS['image'], 0.5).astype('f')})
    self.assertGreater(np.abs(seen['image'] - found['image'])[wide].max(), 0.01)

  def test_decode_is_the_estimate_of_the_picture(self):
    gamma = draws()[0][:, None, None, None]
    state = noisy(FIELDS['image'])
    expected = (state - np.sqrt(1 - gamma) * shown(state)[1]) / np.sqrt(gamma)
    np.testing.assert_allclose(call()['decoded'], np.clip(expected, -1, 1), atol=1e-4)

  def test_without_a_key(self):
    model, variables = build()
    found = jax.jit(lambda v: model.apply(v, GIVEN, method='loss')[0]['loss'])(variables)
    np.testing.assert_allclose(found, call(key=jax.random.key(0))['loss'], rtol=1e-4)
    for method in (None, 'encode', 'loss'):
      with self.assertRaisesRegex(ValueError, "stream 'noise' in train mode"):
        model.apply(variables, GIVEN, train=True, method=method)

  def test_plain_call_agrees_with_jit(self):
    model, variables = build()
    rngs = {'noise': KEY, 'dropout': KEY}
    plain, returned = model.apply(variables, GIVEN, rngs=rngs, train=True, method='encode')
    self.assertIs(returned['params'], variables['params'])
    for found, expected in zip(plain['latent'], call()['encoded']):
      np.testing.assert_allclose(found, expected, atol=2e-5)

  def test_pictures_in_the_unit_of_the_data(self):
    model, variables = build()
    outer = contract.normalized(model, *contract.STATISTICS['half'])
    unit = {name: 0.5 + 0.5 * value for name, value in FIELDS.items() if name != 'visible'}
    wanted = ('noise_encoded', 'target_loss', 'decoded')
    found = jax.jit(functools.partial(everything, outer, wanted))(
        variables, {**unit, 'visible': FIELDS['visible']}, 0.5 + 0.5 * NOISE, KEY)
    for name in wanted:
      value = call()[name]
      value = 0.5 + 0.5 * value if name == 'decoded' else value
      jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-4), found[name], value)

  def test_a_patch_that_is_not_there_is_seen(self):
    bad = FIELDS['visible'].copy()
    bad[1, 0], bad[2, 0] = 16, bad[2, 1]  # beyond the last; twice
    found = call({'visible': bad})
    for leaf in jax.tree.leaves(found):
      self.assertFalse(np.isnan(leaf[0]).any())
      self.assertTrue(np.isnan(leaf[1:]).all())


class OptionsTest(absltest.TestCase):

  def test_dropout(self):
    model = models.get('palette', **TINY, dropout=0.5)

    def deepest(key, train):
      return model.apply(build()[1], GIVEN, train=train, rngs={'noise': KEY, 'dropout': key},
                         method='encode')[0]['latent'][-1]

    @jax.jit
    def run(key):
      return deepest(key, True), deepest(key, False)

    (first, still), (again, _), (other, same) = (run(jax.random.key(n)) for n in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    self.assertGreater(np.abs(first - other).mean(), 1e-2)
    np.testing.assert_array_equal(still, same)
    np.testing.assert_allclose(still, call()['encoded'][-1], atol=2e-5)

  def test_compute_dtype(self):
    wanted = ('encoded', 'loss')
    found = call(wanted=wanted, compute_dtype='bfloat16')
    for name in wanted:
      for value, expected in zip(jax.tree.leaves(found[name]), jax.tree.leaves(call()[name])):
        self.assertEqual(value.dtype, np.float32)
        error = np.abs(value - expected).mean() / np.abs(expected).mean()
        self.assertBetween(error, 1e-5, 0.1, name)


class ErrorTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'width': 9}, ValueError, 'even and a multiple of 4 groups'),
      ({'head_width': 32}, ValueError, r'width \* 2 one of head_width 32; got 8'),
      ({'multipliers': ()}, ValueError, 'one number or more'),
      ({'multipliers': (1, 0)}, ValueError, r'multipliers\[1\] must be at least 1'),
      ({'beta': (0.1,)}, ValueError, 'beta two'), ({'beta': (0.1, 0.01)}, ValueError, 'last beta'),
      ({'steps': 2.0}, TypeError, 'steps must be an int'),
      ({'sampling_steps': 13}, ValueError, 'takes 1 to 12, got 13'),
      ({'dropout': 1.0}, ValueError, 'dropout'), ({'compute_dtype': 'int8'}, ValueError, 'bfloat16'))
  def test_bad_arguments(self, changes, error, message):
    with self.assertRaisesRegex(error, message):
      models.get('palette', **{**TINY, **changes})

  @parameterized.parameters(
      ({'image': jnp.zeros((3, 9, 8, 3))}, 'multiples of 2, and 3 channels; got 9x8x3'),
      ({'image': jnp.zeros((3, 8, 8, 1))}, 'got 8x8x1'),
      ({'visible': jnp.zeros((3, 16), int)}, 'at least one hidden, got 16 visible'),
      ({'visible': jnp.zeros((3, 4))}, r'visible holds integers \[B, K\]'),
      ({'visible': jnp.zeros((2, 4), int)}, 'batch length: image 3, visible 2'),
      ({'visible': None}, "wants input 'visible'"))
  def test_bad_inputs(self, changes, message):
    model, variables = build()
    fields = {name: value for name, value in {**GIVEN, **changes}.items() if value is not None}
    for method in (None, 'encode', 'loss'):
      with self.assertRaisesRegex(ValueError, message):
        model.apply(variables, fields, method=method)
    with self.assertRaisesRegex(ValueError, message):
      model.init(jax.random.key(0), fields)

  def test_bad_latents_targets_and_methods(self):
    model, variables = build()
    apply = functools.partial(model.apply, variables)
    with self.assertRaisesRegex(ValueError, "wants input 'image'"):
      apply({'latent': (), 'visible': FIELDS['visible']}, method='decode')
    with self.assertRaisesRegex(ValueError, 'has stages .*, got'):
      apply({**GIVEN, 'latent': (jnp.zeros((3, 8, 8, 8)),)}, method='decode')
    with self.assertRaisesRegex(ValueError, 'have the shape of the pictures'):
      apply({**GIVEN, 'target': jnp.zeros((3, 4, 4, 3))}, method='loss')
    with self.assertRaisesRegex(ValueError, 'have the shape of the pictures'):
      apply({**GIVEN, 'noise': jnp.zeros((1, 8, 8, 3))}, method='encode')
    for method, fields in ((None, GIVEN), ('decode', GIVEN), ('loss', FIELDS)):
      with self.assertRaisesRegex(ValueError, "noise stands in for the hole's content"):
        apply({**fields, 'noise': NOISE}, method=method)
    with self.assertRaisesRegex(ValueError, "encode, decode or loss, got 'sample'"):
      apply(GIVEN, method='sample')


if __name__ == '__main__':
  absltest.main()
