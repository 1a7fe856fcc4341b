"""Tests of masked autoencoders: patches, positions, losses in closed form, what leaks and what not."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import models
from unlearn_jax.models import contract
from unlearn_jax.models import patches
from unlearn_jax.models import surgery

TINY = {'image_size': 8, 'patch': 2, 'width': 16, 'depth': 1, 'heads': 2, 'decoder_width': 8,
        'decoder_depth': 1, 'decoder_heads': 2}
RNG = np.random.default_rng(0)
FIELDS = {'image': RNG.normal(size=(3, 8, 8, 3)).astype(np.float32),
          'visible': np.stack([RNG.permutation(16)[:5] for _ in range(3)]).astype(np.int32),
          'target': RNG.normal(size=(3, 8, 8, 3)).astype(np.float32)}
WEIGHTS = RNG.normal(size=(3, 6, 16)).astype(np.float32)
UNTARGETED = {'image': FIELDS['image'], 'visible': FIELDS['visible'], 'target': FIELDS['image']}


def hidden_pixels(visible, side=8, patch=2):
  """True where a picture is hidden, written without the code under test."""
  mask = np.ones((len(visible), side, side, 1), bool)
  for row, places in enumerate(visible):
    for place in places:
      top, left = patch * (place // (side // patch)), patch * (place % (side // patch))
      mask[row, top:top + patch, left:left + patch] = False
  return mask


@functools.cache
def build(**changes):
  model = models.get('mae', **{**TINY, **changes})
  params = model.init(jax.random.key(0), FIELDS)['params']
  rng = np.random.default_rng(1)  # tokens and biases are small or 0 at first: draw them
  return model, {'params': jax.tree.map(
      lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype('f'), params)}


def everything(model, variables, fields):
  """The outputs of all ways to call: `image` and `latent`, `loss`, and `decoded` of the latent."""
  latent = model.apply(variables, fields, method='encode')[0]['latent']
  decoded, _ = model.apply(variables, {'latent': latent, 'visible': fields['visible']},
                           method='decode')
  loss, _ = model.apply(variables, fields, method='loss')
  return {**model.apply(variables, fields)[0], 'encoded': latent, 'decoded': decoded['image'],
          'loss': loss['loss']}


@functools.cache
def compiled(**changes):  # once for all tests: a network takes seconds to compile
  return jax.jit(functools.partial(everything, build(**changes)[0]))


def call(fields, variables=None, **changes):
  return jax.tree.map(np.asarray, compiled(**changes)(variables or build(**changes)[1], fields))


@functools.cache
def slopes():
  """Gradients of the latent and of the loss, each by parameters and by pixels."""
  model, _ = build()

  def encoded(params, image):
    outputs, _ = model.apply({'params': params}, {**FIELDS, 'image': image}, method='encode')
    return jnp.sum(WEIGHTS * outputs['latent'])

  def loss(params, image):
    fields = {'image': image, 'visible': FIELDS['visible']}
    return jnp.sum(model.apply({'params': params}, fields, method='loss')[0]['loss'])

  return jax.jit(lambda *arguments: [jax.grad(f, (0, 1))(*arguments)
                                     for f in (encoded, loss)])


class PatchesTest(parameterized.TestCase):

  def test_order(self):
    """Patches row by row; within one by row, column, channel."""
    image = np.arange(1 * 4 * 6 * 3).reshape(1, 4, 6, 3)  # the value tells row, column and channel
    found = np.asarray(patches.patchify(jnp.asarray(image), 2))
    self.assertEqual(found.shape, (1, 6, 12))
    for place in range(6):
      for value in range(12):
        row, column = 2 * (place // 3) + value // 6, 2 * (place % 3) + value // 3 % 2
        self.assertEqual(found[0, place, value], image[0, row, column, value % 3])

  @parameterized.parameters((8, 2, 3), (6, 3, 1))
  def test_there_and_back(self, side, patch, channels):
    image = jnp.asarray(RNG.normal(size=(2, side, side, channels)), jnp.float32)
    np.testing.assert_array_equal(patches.unpatchify(patches.patchify(image, patch), patch), image)

  def test_positions(self):
    table = patches.positions(3, 8)
    self.assertEqual((table.shape, table.dtype), ((9, 8), np.float32))
    for place in range(9):
      row, column = divmod(place, 3)
      expected = []
      for where in (column, row):  # the column first
        angles = where * 10000.0**-np.array([0, 1 / 2])
        expected += [*np.sin(angles), *np.cos(angles)]
      np.testing.assert_allclose(table[place], expected, rtol=1e-6)
    # Landmarks of ViT-B: the last frequency is 10000^(-191/192).
    table = patches.positions(14, 768)
    np.testing.assert_array_equal(table[0], np.tile(np.repeat([0, 1], 192), 2))
    np.testing.assert_allclose(table[13, [0, 191, 192]],
                               [np.sin(13), np.sin(13 * 10000**(-191 / 192)), np.cos(13)], rtol=1e-6)
    np.testing.assert_allclose(table[14 * 5 + 2, [384, 576]], [np.sin(5), np.cos(5)], rtol=1e-6)

  def test_check_visible(self):
    patches.check_visible(FIELDS['visible'], 16)
    for visible, message in (
        ([[0, 16]], 'numbered from 0 to 15, visible has 0 to 16'), ([[-1, 2]], 'has -1 to 2'),
        ([[0, 1], [3, 3]], 'row 1 of visible names patch 3 twice'),
        ([[]], r'integers \[B, K\]'), (np.zeros((2, 0), int), 'at least one hidden, got 0 visible'),
        ([list(range(16))], 'got 16 visible'), ([0, 1], r'integers \[B, K\], got \(2,\)'),
        ([[0.0, 1.0]], 'float64')):
      with self.assertRaisesRegex(ValueError, message):
        patches.check_visible(np.asarray(visible), 16)


class CountTest(parameterized.TestCase):

  # published: all values of the release's state dict, and those of the encoder
  @parameterized.parameters(('mae_vit_b', 111_907_840, 85_798_656, 254, 768),
                            ('mae_vit_l', 329_541_888, 303_301_632, 398, 1024))
  def test_published_sizes(self, name, total, encoder, tensors, width):
    fields = {'image': jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32),
              'visible': jax.ShapeDtypeStruct((2, 49), jnp.int32)}
    model = models.get(name)
    variables = jax.eval_shape(model.init, jax.random.key(0), fields)

    def count(tree):
      return sum(leaf.size for leaf in jax.tree.leaves(tree))

    params = variables['params']
    self.assertEqual(count(params['encoder']) + 197 * width, encoder)
    self.assertEqual(count(params) + 197 * (width + 512), total)
    self.assertEqual(count(params), {'mae_vit_b': 111_655_680, 'mae_vit_l': 329_239_296}[name])
    self.assertLen(jax.tree.leaves(params), tensors - 2)  # two position tables
    self.assertEqual(set(params), {'encoder', 'decoder'})
    encode = functools.partial(model.apply, method='encode')
    self.assertEqual(jax.eval_shape(encode, variables, fields)[0]['latent'].shape, (2, 50, width))


class CallTest(parameterized.TestCase):

  def test_completed_is_the_prediction_where_the_picture_is_hidden(self):
    found = call(FIELDS)
    self.assertEqual(found['latent'].shape, (3, 6, 16))
    np.testing.assert_array_equal(found['latent'], found['encoded'])
    hidden = hidden_pixels(FIELDS['visible'])
    np.testing.assert_array_equal(found['image'], np.where(hidden, found['decoded'],
                                                           FIELDS['image']))
    self.assertGreater(np.abs(found['decoded'] - FIELDS['image']).min(), 0)

  def test_jit_agrees_with_the_plain_call(self):
    model, variables = build()
    plain, returned = model.apply(variables, FIELDS, train=True, rngs={'noise': jax.random.key(0)})
    self.assertIs(returned['params'], variables['params'])
    np.testing.assert_allclose(plain['image'], call(FIELDS)['image'], atol=1e-5)

  def test_the_order_of_visible_orders_the_latent_alone(self):
    order = np.array([3, 0, 4, 1, 2])
    first, second = call(FIELDS), call({**FIELDS, 'visible': FIELDS['visible'][:, order]})
    for name in ('image', 'decoded', 'loss'):
      np.testing.assert_allclose(second[name], first[name], atol=1e-5)
    np.testing.assert_allclose(second['latent'][:, 0], first['latent'][:, 0], atol=1e-5)
    np.testing.assert_allclose(second['latent'][:, 1:], first['latent'][:, 1:][:, order], atol=1e-5)
    self.assertGreater(np.abs(second['latent'] - first['latent']).max(), 0.1)

  def test_nothing_hidden_reaches_the_outputs(self):
    hidden = hidden_pixels(FIELDS['visible'])
    other = call({**FIELDS, 'image': np.where(hidden, 9, FIELDS['image']).astype('f')})
    for name, value in call(FIELDS).items():
      np.testing.assert_array_equal(other[name], value)
    seen = call({**FIELDS, 'image': np.where(hidden, FIELDS['image'], 9).astype('f')})
    self.assertGreater(np.abs(seen['latent'] - call(FIELDS)['latent']).max(), 0.1)

  def test_another_number_of_visible_patches(self):
    fields = {'image': FIELDS['image'], 'visible': FIELDS['visible'][:, :1]}
    outputs = jax.eval_shape(compiled(), build()[1], fields)
    self.assertEqual(outputs['latent'].shape, (3, 2, 16))
    self.assertEqual(outputs['image'].shape, (3, 8, 8, 3))
    fresh = jax.eval_shape(build()[0].init, jax.random.key(0), fields)
    self.assertIsNone(surgery.first_mismatch(build()[1], fresh))  # parameters do not know K

  def test_loss_against_numpy(self):
    hidden = np.broadcast_to(hidden_pixels(FIELDS['visible']), FIELDS['image'].shape)
    for fields in (FIELDS, UNTARGETED):
      found = call(fields)
      expected = [np.mean((p - t)[h]**2) for p, t, h in zip(found['decoded'], fields['target'],
                                                            hidden)]
      np.testing.assert_allclose(found['loss'], expected, rtol=1e-5)

  def test_the_target_is_the_picture_unless_given(self):
    model, variables = build()
    default = jax.jit(lambda v: model.apply(
        v, {'image': FIELDS['image'], 'visible': FIELDS['visible']}, method='loss')[0])(variables)
    np.testing.assert_allclose(default['loss'], call(UNTARGETED)['loss'], rtol=1e-6)

  def test_a_perfect_prediction_has_no_loss(self):
    """The last layer's bias alone predicts one value everywhere: 0.25 against a picture of 0.25."""
    params = jax.tree.map(np.array, build()[1]['params'])
    params['decoder']['pred'] = {'kernel': 0 * params['decoder']['pred']['kernel'],
                                 'bias': np.full(12, 0.25, np.float32)}
    for offset, expected in ((0, 0), (2, 4)):
      fields = {**FIELDS, 'target': np.full((3, 8, 8, 3), 0.25 + offset, np.float32)}
      np.testing.assert_allclose(call(fields, {'params': params})['loss'], expected, rtol=1e-6)

  def test_gradients_reach_what_they_should(self):
    found = slopes()(build()[1]['params'], FIELDS['image'])
    for parts, (params, _) in zip(('encoder/', ('encoder/', 'decoder/')), found):
      for name, slope in zip(surgery.paths(params), jax.tree.leaves(params)):
        self.assertEqual(bool(jnp.any(slope)), name.startswith(parts), name)
    for slope in jax.tree.leaves(found):
      self.assertTrue(bool(jnp.isfinite(slope).all()))
    (_, pixels), (_, loss_pixels) = found
    hidden = np.broadcast_to(hidden_pixels(FIELDS['visible']), pixels.shape)
    self.assertFalse(np.any(np.asarray(pixels)[hidden]))
    self.assertTrue(np.all(np.asarray(pixels)[~hidden]))
    self.assertTrue(np.all(loss_pixels))  # the hidden ones as the target

  def test_gradients_are_finite_where_layer_norms_have_no_spread(self):
    """With all parameters at 0 every state is constant."""
    zero = jax.tree.map(jnp.zeros_like, build()[1]['params'])
    for leaf in jax.tree.leaves(slopes()(zero, FIELDS['image'])):
      self.assertTrue(bool(jnp.isfinite(leaf).all()))

  def test_an_index_beyond_the_last_patch_is_seen(self):
    found = call({**FIELDS, 'visible': np.full_like(FIELDS['visible'], 16)})
    self.assertTrue(np.isnan(found['latent']).all())

  def test_compute_dtype(self):
    model = models.get('mae', **TINY, compute_dtype='bfloat16')
    outputs = jax.jit(functools.partial(everything, model))(build()[1], FIELDS)
    for name, value in outputs.items():
      self.assertEqual(value.dtype, jnp.float32)
      error = np.abs(value - call(FIELDS)[name]).max()
      self.assertBetween(error, 1e-6, 0.2, name)  # another precision, but the same function

  def test_initial_values(self):
    params = build()[0].init(jax.random.key(0), FIELDS)['params']
    encoder, decoder = params['encoder'], params['decoder']
    block = encoder['blocks_0']
    for kernel in (encoder['patch_embed']['kernel'], block['attn']['in_proj']['kernel'],
                   block['attn']['out_proj']['kernel'], block['fc1']['kernel'],
                   block['fc2']['kernel'], decoder['embed']['kernel'], decoder['pred']['kernel']):
      bound = (6 / sum(kernel.shape))**0.5  # Xavier uniform
      self.assertBetween(float(jnp.abs(kernel).max()), 0.93 * bound, bound)
    for token in (encoder['cls_token'], decoder['mask_token']):
      self.assertBetween(float(token.std()), 0.008, 0.035)
    for bias in (encoder['patch_embed']['bias'], block['attn']['in_proj']['bias']):
      np.testing.assert_array_equal(bias, 0)


class NormalizedTargetsTest(absltest.TestCase):

  def standards(self, image):
    """Means and deviations of patches, and the patches, by NumPy in float64."""
    cut = image.reshape(3, 4, 2, 4, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(3, 16, 12)
    cut = cut.astype(np.float64)
    return cut.mean(-1, keepdims=True), np.sqrt(cut.var(-1, ddof=1, keepdims=True) + 1e-6), cut

  def call(self, fields):
    return call(fields, build()[1], normalize_targets=True, reveal_statistics=True)

  def test_loss_against_numpy(self):
    for fields in (FIELDS, UNTARGETED):
      found = self.call(fields)
      *_, predicted = self.standards(found['decoded'])
      mean, deviation, wanted = self.standards(fields['target'])
      error = ((predicted - (wanted - mean) / deviation)**2).mean(-1)
      expected = [np.delete(row, places).mean() for row, places in zip(error, FIELDS['visible'])]
      np.testing.assert_allclose(found['loss'], expected, rtol=1e-5)

  def test_a_flat_patch_has_a_finite_loss_and_gradient(self):
    model, variables = build(normalize_targets=True)

    @jax.jit
    def slope(target):
      return jax.value_and_grad(lambda x: model.apply(
          variables, {**FIELDS, 'target': x}, method='loss')[0]['loss'].sum())(target)

    for value in slope(np.full_like(FIELDS['image'], 0.3)):
      self.assertTrue(bool(jnp.isfinite(value).all()))

  def test_a_picture_needs_what_was_hidden_and_says_so(self):
    model, variables = build(normalize_targets=True)
    with self.assertRaisesRegex(ValueError, 'reveal_statistics=True takes .* leaks'):
      model.apply(variables, FIELDS)
    with self.assertRaisesRegex(ValueError, 'reveal_statistics is for normalize_targets'):
      models.get('mae', **TINY, reveal_statistics=True)
    found = self.call(FIELDS)
    np.testing.assert_array_equal(found['decoded'], call(FIELDS)['decoded'])  # as predicted
    mean, deviation, _ = self.standards(FIELDS['image'])
    *_, predicted = self.standards(found['decoded'])
    *_, completed = self.standards(found['image'])
    for row, places in enumerate(FIELDS['visible']):
      hidden = np.setdiff1d(np.arange(16), places)
      np.testing.assert_allclose(completed[row, hidden],
                                 (mean + deviation * predicted)[row, hidden], atol=1e-5)
    # The leak: a picture that is brighter where it is hidden comes out brighter there.
    light = 5 * hidden_pixels(FIELDS['visible'])
    brighter = self.call({**FIELDS, 'image': (FIELDS['image'] + light).astype('f')})
    np.testing.assert_allclose(brighter['image'], found['image'] + light, atol=1e-5)


class NormalizedPicturesTest(absltest.TestCase):

  def test_pictures_come_back_in_the_unit_of_the_data(self):
    model, variables = build()
    mean, std = (np.asarray(values, np.float32) for values in contract.STATISTICS['imagenet'])
    outer = contract.normalized(model, tuple(mean), tuple(std))
    fields = {**FIELDS, 'image': mean + std * FIELDS['image'],
              'target': mean + std * FIELDS['target']}
    found = jax.jit(functools.partial(everything, outer))(variables, fields)
    expected = call(FIELDS)
    for name, value in expected.items():
      value = mean + std * value if name in ('image', 'decoded') else value
      np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)


class ErrorTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'image_size': 9}, ValueError, 'patches of 2 do not tile a picture of 9x9'),
      ({'width': 18, 'heads': 2}, ValueError, ' width must be a multiple of heads and of 4, got 18'),
      ({'decoder_heads': 3}, ValueError, 'decoder_width must be a multiple of decoder_heads'),
      ({'depth': 0}, ValueError, 'depth must be at least 1'),
      ({'patch': 2.0}, TypeError, 'patch must be an int'),
      ({'compute_dtype': 'float8'}, ValueError, 'bfloat16'))
  def test_bad_arguments(self, changes, error, message):
    with self.assertRaisesRegex(error, message):
      models.get('mae', **{**TINY, **changes})

  @parameterized.parameters(
      ({'image': jnp.zeros((3, 10, 10, 3))}, 'pictures are 8x8x3, got 10x10x3'),
      ({'image': jnp.zeros((3, 8, 8, 1))}, 'pictures are 8x8x3, got 8x8x1'),
      ({'visible': jnp.zeros((3, 0), int)}, 'at least one is visible'),
      ({'visible': jnp.zeros((3, 16), int)}, 'at least one hidden, got 16 visible'),
      ({'visible': jnp.zeros((3, 4))}, r'visible holds integers \[B, K\], got \(3, 4\) float32'),
      ({'visible': jnp.zeros((3,), int)}, r'got \(3,\) int32'),
      ({'visible': jnp.zeros((2, 4), int)}, 'batch length: image 3, visible 2'),
      ({'visible': None}, "wants input 'visible'"))
  def test_bad_inputs(self, changes, message):
    model, variables = build()
    fields = {name: value for name, value in {**FIELDS, **changes}.items() if value is not None}
    for method in (None, 'encode', 'loss'):
      with self.assertRaisesRegex(ValueError, message):
        model.apply(variables, fields, method=method)
    with self.assertRaisesRegex(ValueError, message):
      model.init(jax.random.key(0), fields)

  def test_bad_latents_targets_and_methods(self):
    model, variables = build()
    with self.assertRaisesRegex(ValueError, r'has shape \(3, 6, 16\), got \(3, 5, 16\)'):
      model.apply(variables, {'latent': jnp.zeros((3, 5, 16)), 'visible': FIELDS['visible']},
                  method='decode')
    with self.assertRaisesRegex(ValueError, "wants input 'latent'"):
      model.apply(variables, FIELDS, method='decode')
    with self.assertRaisesRegex(ValueError, 'pictures are 8x8x3, got 4x4x3'):
      model.apply(variables, {**FIELDS, 'target': jnp.zeros((3, 4, 4, 3))}, method='loss')
    with self.assertRaisesRegex(ValueError, 'batch length: image 3, target 1'):
      model.apply(variables, {**FIELDS, 'target': jnp.zeros((1, 8, 8, 3))}, method='loss')
    with self.assertRaisesRegex(ValueError, "encode, decode or loss, got 'sample'"):
      model.apply(variables, FIELDS, method='sample')
    with self.assertRaisesRegex(ValueError, 'do not tile a picture of 8x10'):
      patches.patchify(jnp.zeros((1, 8, 10, 3)), 4)


class NoiseTest(absltest.TestCase):

  def test_takes_the_place_of_what_is_to_be_forgotten(self):
    model = models.get('mae', image_size=8, patch=4, width=8, depth=1, heads=2, decoder_width=8,
                       decoder_depth=1, decoder_heads=2)
    rng = np.random.default_rng(0)
    image, n = (rng.random((2, 8, 8, 3)).astype(np.float32) for _ in range(2))
    inputs = {'image': image, 'visible': np.asarray([[0, 3], [2, 1]], np.int32)}
    variables = model.init(jax.random.key(0), inputs)
    call = lambda fields, method: model.apply(variables, fields, method=method)[0]
    np.testing.assert_array_equal(call({**inputs, 'noise': n}, 'encode')['latent'],
                                  call({**inputs, 'image': n}, 'encode')['latent'])
    np.testing.assert_array_equal(call({**inputs, 'noise': n}, 'loss')['loss'],
                                  call({**inputs, 'target': n}, 'loss')['loss'])
    with self.assertRaisesRegex(ValueError, "method 'encode' or 'loss'"):
      call({**inputs, 'noise': n}, None)


if __name__ == '__main__':
  absltest.main()
