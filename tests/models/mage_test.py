"""Tests of MAGE: masks, rounds of painting and losses by NumPy, what leaks and what is shared."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from tests.models.drawn import drawn
from unlearn_jax import models
from unlearn_jax.models import mage as mage_lib
from unlearn_jax.models import mage_masking
from unlearn_jax.models import mage_transformer
from unlearn_jax.models import surgery

CODES, N, K = 12, 16, 9
TINY = {'image_size': 8, 'vqgan': {'width': 4, 'multipliers': (1, 2), 'latent': 3, 'codes': CODES,
                                   'groups': 2}, 'width': 16, 'depth': 1, 'heads': 2,
        'decoder_width': 8, 'decoder_depth': 1, 'decoder_heads': 2, 'classes': 3, 'class_token': 1,
        'steps': 5, 'fill': (0.5,)}
SIZES = (CODES, 3, 1, N, 16, 1, 2, 0.1, jnp.float32), (CODES + 4, N, 8, 1, 2, True, jnp.float32)
RNG = np.random.default_rng(0)
# A hole of 2x2 tokens in a corner and others: each row of its own, ascending in the first alone.
HOLES = np.array([[0, 1, 4, 5, 2, 3, 6], [15, 14, 11, 10, 9, 13, 12], [0, 3, 12, 15, 8, 11, 4]])
VISIBLE = np.stack([RNG.permutation(np.setdiff1d(np.arange(N), row)) for row in HOLES])
FIELDS = {'image': RNG.random((3, 8, 8, 3)).astype(np.float32), 'visible': VISIBLE.astype(np.int32),
          'target': RNG.random((3, 8, 8, 3)).astype(np.float32),
          'noise': RNG.random((3, 8, 8, 3)).astype(np.float32)}
SHOWN = {name: FIELDS[name] for name in ('image', 'visible')}
KEY = jax.random.key(3)


@functools.cache
def build():
  """The tiny model; its codes are latents of another picture, so that many of them are in use."""
  model = models.get('mage', **TINY)
  params = drawn(jax.eval_shape(model.init, jax.random.key(0), FIELDS)['params'], 1, spread=0.5)
  params['encoder']['token_emb']['word'] *= 4
  tokenizer = models.get('vqgan', **TINY['vqgan'])
  other = {'image': np.random.default_rng(2).random((1, 8, 8, 3)).astype(np.float32)}
  encode = jax.jit(lambda p: tokenizer.apply({'params': p}, other, method='encode')[0]['latent'])
  latent = np.asarray(encode(params['tokenizer']))
  params['tokenizer']['encoder']['codebook'] = latent.reshape(-1, 3)[:CODES]
  return model, {'params': params}


@jax.jit  # once for all tests: networks take seconds to compile
def everything(variables, fields, key):
  """What the model gives in all ways to call, and pieces to check it by."""
  model, params = build()[0], variables['params']
  shown = {name: fields[name] for name in ('image', 'visible')}
  call = lambda inputs, **kwargs: model.apply(variables, inputs, **kwargs)[0]
  keyed = {'rngs': {'noise': key, 'dropout': jax.random.key(9)}}
  found = {'image': call(shown)['image'], 'keyed_image': call(shown, **keyed)['image'],
           'latent': call(shown, method='encode')['latent'],
           'keyed': call(shown, method='encode', **keyed)['latent'],
           'student': call(shown, method='encode', train=True, **keyed)['latent'],
           'loss': call(shown, method='loss')['loss'],
           'noise_latent': call({**shown, 'noise': fields['noise']}, method='encode')['latent'],
           'noise_loss': call({**shown, 'noise': fields['noise']}, method='loss', **keyed)['loss']}
  found['decoded'] = call({'latent': found['latent'], 'visible': fields['visible']},
                          method='decode')['image']

  def loss(params):
    losses = model.apply({'params': params}, {**shown, 'target': fields['target']}, method='loss',
                         **keyed)[0]['loss']
    return jnp.sum(losses), losses

  (_, found['keyed_loss']), found['slopes'] = jax.value_and_grad(loss, has_aux=True)(params)

  tokenizer = models.get('vqgan', **TINY['vqgan'])
  tokens = lambda image: tokenizer.apply(
      {'params': params['tokenizer']}, {'image': image}, method='encode')[0]['tokens']
  found['tokens'] = tokens(fields['image']).reshape(-1, N)
  found['target_tokens'] = tokens(fields['target']).reshape(-1, N)
  found['masked'] = mage_masking.further(jax.random.fold_in(key, 0), 3, K, N)
  transformer = mage_transformer.Transformer(
      mage_transformer.Encoder(*SIZES[0]), mage_transformer.Decoder(*SIZES[1]))
  halves = {'params': {'encoder': params['encoder'], 'decoder': params['decoder']}}
  for name, masked in (('', jnp.zeros((3, K), bool)), ('keyed_', found['masked'])):
    found[name + 'logits'] = transformer.apply(
        halves, found['tokens'], fields['visible'], masked, train=False)['logits']
  found['likeliest'] = tokenizer.apply(
      {'params': params['tokenizer']}, {'tokens': jnp.argmax(found['logits'], 2).reshape(3, 4, 4)},
      method='decode')[0]['image']
  return found


def call(variables=None, key=KEY, **changes):
  return jax.tree.map(np.asarray, everything(variables or build()[1], {**FIELDS, **changes}, key))


@functools.cache
def found():
  return call()


def hidden_pixels():
  """True where a picture is hidden, written without the code under test."""
  mask = np.zeros((3, 8, 8, 1), bool)
  for row, places in enumerate(HOLES):
    for place in places:
      mask[row, 2 * (place // 4):2 * (place // 4) + 2, 2 * (place % 4):2 * (place % 4) + 2] = True
  return mask


class CountTest(absltest.TestCase):

  def test_published_sizes(self):
    model = models.get('mage_vit_b')
    fields = {'image': jax.ShapeDtypeStruct((2, 256, 256, 3), jnp.float32),
              'visible': jax.ShapeDtypeStruct((2, 128), jnp.int32)}
    params = jax.eval_shape(model.init, jax.random.key(0), fields)['params']
    count = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in params.items()}
    self.assertEqual(count['tokenizer'], 54_515_587)
    self.assertEqual(count['encoder'] + 257, 86_810_369)  # position_ids, a buffer of integers
    unused = 2 * (768 * 768 + 768) + 2 * 768  # patch_embed and decoder_pred, cls_ and mask_token
    self.assertEqual(count['encoder'] + count['decoder'] + unused, 146_079_465)
    self.assertLen(jax.tree.leaves(params), 433 - 6 - 2 - 1)  # two fixed tables, position_ids
    encode = functools.partial(model.apply, method='encode')
    self.assertEqual(jax.eval_shape(encode, {'params': params}, fields)[0]['latent'].shape,
                     (2, 129, 768))


class MaskTest(parameterized.TestCase):

  @parameterized.parameters((8, [14, 15, 16, 17, 18, 19]), (4, [18, 19]))
  def test_rounds_of_a_hole_in_the_middle(self, side, expected):
    """Of 16x16 tokens and 20 rounds, the release's; a hole is painted one token larger."""
    hole = np.zeros((1, 16, 16), bool)
    start = 8 - side // 2
    hole[:, start:start + side, start:start + side] = True
    grown = np.asarray(mage_masking.grown(jnp.asarray(hole.reshape(1, 256)), 1)).reshape(16, 16)
    self.assertEqual(grown.sum(), (side + 2)**2)
    self.assertTrue(grown[start - 1:start + side + 1, start - 1:start + side + 1].all())
    table = mage_masking.schedule(256, 20)
    self.assertEqual(list(np.flatnonzero(table.fraction < grown.sum() / 256)), expected)

  def test_schedule(self):
    table = mage_masking.schedule(256, 20)
    np.testing.assert_allclose(table.fraction[[4, 9, 13]], np.cos(np.pi * np.array([.125, .25, .35])))
    self.assertEqual(list(table.count[[0, 9, 14, 18, 19]]), [255, 181, 97, 20, 0])

  def test_grown_stops_at_the_border(self):
    mask = np.zeros((1, 9), bool)
    mask[0, 0] = True
    for by, places in ((0, [0]), (1, [0, 1, 3, 4])):
      np.testing.assert_array_equal(
          np.flatnonzero(mage_masking.grown(jnp.asarray(mask), by)), places)

  def test_hidden(self):
    for row, places in zip(np.asarray(mage_masking.hidden(jnp.asarray(VISIBLE), N)), HOLES):
      np.testing.assert_array_equal(np.flatnonzero(row), np.sort(places))

  @parameterized.parameters((128, 256, 0.6936), (64, 256, 0.8495), (192, 256, 0.5839))
  def test_further(self, kept, number, mean):
    """MAGE drops 128 of 256; masking ratios of the normal cut to [hidden share, 1]."""
    draw = jax.jit(jax.vmap(lambda key: mage_masking.further(key, 2, kept, number)))
    masked = np.asarray(draw(jax.random.split(jax.random.key(0), 2000)))  # [2000, 2, kept]
    count = masked.sum(axis=2)
    np.testing.assert_array_equal(count[:, 0], count[:, 1])  # one ratio for a batch
    self.assertTrue(np.any(masked[:, 0] != masked[:, 1]))
    ratio = (number - kept + count[:, 0]) / number
    self.assertBetween(ratio.max(), 0.99, 1)
    grid = np.linspace(1 - kept / number, 1, 100_001)
    density = np.exp(-0.5 * ((grid - 0.55) / 0.25)**2)
    self.assertAlmostEqual(np.sum(grid * density) / np.sum(density), mean, delta=5e-4)
    # Rounded up to tokens: half of one on average.
    self.assertAlmostEqual(ratio.mean(), mean + 0.5 / number, delta=0.01)
    places = masked[:, 0].mean(axis=0)  # all places alike
    self.assertLess(np.abs(places - places.mean()).max(), 0.06)


class PaintTest(parameterized.TestCase):

  @parameterized.parameters(0.0, 4.0)
  def test_against_numpy(self, temperature):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(N, CODES, 5)).astype(np.float32)
    tokens = rng.integers(CODES, size=(3, N))
    unknown = np.zeros((3, N), bool)
    for row, count in enumerate((16, 6, 1)):
      unknown[row, rng.permutation(N)[:count]] = True

    def predict(tokens, masked, xp):
      """Depends on what is known alone."""
      known = xp.where(masked[:, :, None], 0, xp.eye(CODES, dtype='float32')[tokens])
      return 2 * xp.einsum('nck,bk->bnc', weights, known.sum(1) @ weights[0])

    key, steps = jax.random.key(5), 6
    result = np.asarray(jax.jit(lambda tokens, unknown: mage_masking.paint(
        lambda t, m: predict(t, m, jnp), tokens, unknown, key, steps=steps,
        temperature=temperature))(tokens, unknown))

    for row in range(3):  # each alone
      ids, masked = tokens[row].copy(), unknown[row].copy()
      rounds = 0
      for step in range(steps):
        left = np.cos(np.pi / 2 * (step + 1) / steps)
        if left >= unknown[row].mean():
          continue
        rounds += 1
        logits = predict(ids[None], masked[None], np)[0].astype(np.float64)
        first, second = jax.random.split(jax.random.fold_in(key, step))
        draws = np.argmax(logits + jax.random.gumbel(first, (N, CODES)), axis=1)
        ids = np.where(masked, draws, ids)
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        sure = log_p[np.arange(N), ids] + temperature * (1 - (step + 1) / steps) * np.asarray(
            jax.random.gumbel(second, (N,)))
        count = max(1, min(int(16 * left), masked.sum() - 1))
        order = [i for i in np.argsort(sure) if masked[i]]
        masked = np.isin(np.arange(N), order[:count])
      np.testing.assert_array_equal(result[row], ids)
      self.assertEqual(rounds, (6, 2, 1)[row])
      np.testing.assert_array_equal(result[row][~unknown[row]], tokens[row][~unknown[row]])


class CompleteTest(absltest.TestCase):

  def test_the_picture_stays_where_it_is_visible(self):
    hidden = np.broadcast_to(hidden_pixels(), FIELDS['image'].shape)
    for name in ('image', 'keyed_image'):
      np.testing.assert_array_equal(found()[name][~hidden], FIELDS['image'][~hidden])
      self.assertTrue(np.all(found()[name][hidden] != FIELDS['image'][hidden]))

  def test_nothing_hidden_reaches_it(self):
    other = call(image=np.where(hidden_pixels(), 0.9, FIELDS['image']).astype('f'))
    for name in ('image', 'keyed_image'):
      np.testing.assert_array_equal(other[name], found()[name])

  def test_a_picture_does_not_depend_on_its_neighbours(self):
    image, visible = (np.roll(FIELDS[name], 1, axis=0) for name in ('image', 'visible'))
    image[2] = 0.3
    other = call(image=image, visible=visible)
    for name in ('image', 'keyed_image'):
      np.testing.assert_allclose(other[name][:2], np.roll(found()[name], 1, axis=0)[:2], atol=1e-5)

  def test_keys(self):
    other = call(key=jax.random.key(4))
    np.testing.assert_array_equal(other['image'], found()['image'])  # without a key
    self.assertGreater(np.abs(other['keyed_image'] - found()['keyed_image']).max(), 0.01)


class EncodeTest(absltest.TestCase):

  def test_masks_are_drawn_from_the_key(self):
    self.assertEqual(found()['latent'].shape, (3, 1 + K, 16))
    self.assertTrue(found()['masked'].any())
    self.assertGreater(np.abs(found()['keyed'] - found()['latent']).max(), 0.01)
    np.testing.assert_array_equal(call()['keyed'], found()['keyed'])
    self.assertGreater(np.abs(call(key=jax.random.key(4))['keyed'] - found()['keyed']).max(), 0.01)

  def test_the_student_has_dropout_and_the_same_masks(self):
    self.assertGreater(np.abs(found()['student'] - found()['keyed']).max(), 0.01)
    model = models.get('mage', **TINY, dropout=0.0)

    @jax.jit
    def both(variables):
      rngs = {'noise': KEY, 'dropout': KEY}
      return [model.apply(variables, SHOWN, train=train, rngs=rngs, method='encode')[0]['latent']
              for train in (True, False)]

    student, reference = both(build()[1])
    np.testing.assert_array_equal(student, reference)
    np.testing.assert_allclose(student, found()['keyed'], atol=1e-5)

  def test_noise_takes_the_place_of_the_picture(self):
    np.testing.assert_allclose(found()['noise_latent'], call(image=FIELDS['noise'])['latent'],
                               atol=1e-5)
    self.assertGreater(np.abs(found()['noise_latent'] - found()['latent']).max(), 0.01)

  def test_the_order_of_visible_orders_the_latent_alone(self):
    other = call(visible=FIELDS['visible'][:, ::-1])
    np.testing.assert_allclose(other['latent'][:, 1:], found()['latent'][:, :0:-1], atol=1e-5)
    for name in ('image', 'decoded', 'loss'):
      np.testing.assert_allclose(other[name], found()[name], atol=1e-5)

  def test_nothing_hidden_reaches_it(self):
    """Hidden tokens never; hidden pixels, which speak through tokens nearby, if told to hide."""
    encoder = mage_transformer.Encoder(*SIZES[0])
    model = models.get('mage', **TINY, hide='pixels')

    @jax.jit
    def encode(params, tokens, image):
      by_tokens = encoder.apply({'params': params['encoder']}, tokens, FIELDS['visible'],
                                jnp.zeros((3, K), bool), train=False)
      return by_tokens, model.apply({'params': params}, {**SHOWN, 'image': image},
                                    method='encode')[0]['latent']

    tokens = np.array(found()['tokens'])
    params, other = build()[1]['params'], (tokens + 1) % CODES
    np.put_along_axis(other, VISIBLE, np.take_along_axis(tokens, VISIBLE, 1), 1)
    image = np.where(hidden_pixels(), 0.9, FIELDS['image']).astype('f')
    first, second = encode(params, tokens, FIELDS['image']), encode(params, other, image)
    np.testing.assert_allclose(first[0], found()['latent'], atol=1e-5)
    for one, two in zip(first, second):
      np.testing.assert_array_equal(one, two)

  def test_a_place_that_does_not_exist_is_seen(self):
    other = call(visible=np.full_like(FIELDS['visible'], N))
    self.assertTrue(np.isnan(other['latent']).all())

  def test_decode_is_the_likeliest_code_everywhere(self):
    np.testing.assert_allclose(found()['decoded'], found()['likeliest'], atol=1e-5)


class LossTest(absltest.TestCase):

  def by_numpy(self, logits, goal, masked):
    logits = logits.astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(2, keepdims=True))
    losses = []
    for row in range(3):
      places = [*HOLES[row], *VISIBLE[row][masked[row]]]
      losses.append(np.mean([-0.9 * log_p[row, i, goal[row, i]] - 0.1 * log_p[row, i].mean()
                             for i in places]))
    return losses

  def test_against_numpy(self):
    none, all_of = np.zeros((3, K), bool), found()
    self.assertEqual(all_of['logits'].shape, (3, N, CODES))
    random = jax.random.randint(jax.random.fold_in(KEY, 1), (3, N), 0, CODES)
    for name, logits, goal, masked in (
        ('loss', 'logits', all_of['tokens'], none),
        ('keyed_loss', 'keyed_logits', all_of['target_tokens'], all_of['masked']),
        ('noise_loss', 'keyed_logits', np.asarray(random), all_of['masked'])):
      np.testing.assert_allclose(all_of[name], self.by_numpy(all_of[logits], goal, masked),
                                 rtol=1e-4, err_msg=name)

  def test_gradients_reach_what_they_should(self):
    slopes = found()['slopes']
    for name, slope in zip(surgery.paths(slopes), jax.tree.leaves(slopes)):
      self.assertTrue(np.isfinite(slope).all(), name)
      self.assertEqual(np.any(slope), not name.startswith('tokenizer/'), name)
    # Words learn where they are shown and not through the head.
    shown = np.take_along_axis(found()['tokens'], VISIBLE, 1)[~found()['masked']]
    learnt = np.flatnonzero(np.any(slopes['encoder']['token_emb']['word'], axis=1))
    self.assertSameElements(learnt, {*shown, CODES + 1, CODES + 3})  # class token and [MASK]
    self.assertLess(len(set(shown)), CODES)

  def test_gradients_are_finite_where_norms_have_no_spread(self):
    zero = jax.tree.map(np.zeros_like, build()[1])
    for leaf in jax.tree.leaves(call(zero)['slopes']):
      self.assertTrue(np.isfinite(leaf).all())


class TieTest(absltest.TestCase):

  def test_untied(self):
    """The same function until the encoder changes; then the head keeps its words."""
    model, variables = models.get('mage', **TINY, tied=False), mage_lib.untied(build()[1])
    self.assertIsNone(surgery.first_mismatch(
        jax.eval_shape(model.init, jax.random.key(0), FIELDS), variables))

    @jax.jit
    def slopes(params):
      def loss(params):
        losses = model.apply({'params': params}, SHOWN, method='loss')[0]['loss']
        return jnp.sum(losses), losses
      (_, losses), slopes = jax.value_and_grad(loss, has_aux=True)(params)
      return losses, slopes['decoder']['head']['word']

    losses, slope = slopes(variables['params'])
    np.testing.assert_allclose(losses, found()['loss'], rtol=1e-5)
    self.assertTrue(np.any(slope))
    # A word that is not shown matters to a tied head alone.
    spare = np.setdiff1d(np.arange(CODES), np.take_along_axis(found()['tokens'], VISIBLE, 1))
    changed = jax.tree.map(np.array, build()[1])
    changed['params']['encoder']['token_emb']['word'][spare] += 1
    self.assertGreater(np.abs(call(changed)['loss'] - found()['loss']).max(), 1e-3)
    encoder = {**variables['params'], 'encoder': changed['params']['encoder']}
    np.testing.assert_allclose(slopes(encoder)[0], losses, rtol=1e-5)


class InitTest(absltest.TestCase):

  def test_the_tokenizer_is_the_one_given(self):
    tokenizer = build()[1]['params']['tokenizer']
    model = models.get('mage', **TINY, tokenizer=tokenizer)
    params = jax.jit(model.init)(jax.random.key(0), SHOWN)['params']
    jax.tree.map(np.testing.assert_array_equal, params['tokenizer'], tokenizer)
    encoder, decoder = params['encoder'], params['decoder']
    for table in (encoder['token_emb']['word'], encoder['token_emb']['position'],
                  decoder['position']):
      self.assertBetween(float(table.std()), 0.015, 0.025)
    for kernel in (encoder['blocks_0']['fc1']['kernel'], decoder['embed']['kernel']):
      bound = (6 / sum(kernel.shape))**0.5  # Xavier uniform
      self.assertBetween(float(jnp.abs(kernel).max()), 0.93 * bound, bound)
    np.testing.assert_array_equal(decoder['head']['bias'], 0)

    wrong = {**tokenizer, 'encoder': {**tokenizer['encoder'], 'codebook': np.zeros((5, 3))}}
    with self.assertRaisesRegex(ValueError, r"no VQ-GAN .*'encoder/codebook' .*\(12, 3\), found"):
      models.get('mage', **TINY, tokenizer=wrong).init(jax.random.key(0), SHOWN)


class ErrorTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'image_size': 9}, ValueError, 'tokens of 2 pixels do not tile a picture of 9x9'),
      ({'heads': 3}, ValueError, ' width must be a multiple of heads, got 16 and 3'),
      ({'decoder_heads': 3}, ValueError, 'decoder_width must be a multiple of decoder_heads'),
      ({'class_token': 3}, ValueError, 'class_token is 0 to classes - 1, got 3 of 3'),
      ({'fill': (0.1, 0.2)}, ValueError, 'fill has 2 values, a picture 3 channels'),
      ({'hide': 'patches'}, ValueError, "tokens, pixels, got 'patches'"),
      ({'grow': -1}, ValueError, 'at least 0, got -1'),
      ({'dropout': 1.0}, ValueError, r'\[0, 1\)'),
      ({'steps': 2.0}, TypeError, 'steps must be an int'),
      ({'vqgan': {'groups': 3}}, ValueError, 'vqgan: 3 groups do not divide'),
      ({'vqgan': {'depth': 3}}, TypeError, "unexpected keyword argument 'depth'"),
      ({'compute_dtype': 'float8'}, ValueError, 'bfloat16'))
  def test_bad_arguments(self, changes, error, message):
    with self.assertRaisesRegex(error, message):
      models.get('mage', **{**TINY, **changes})

  @parameterized.parameters(
      ({'image': np.zeros((3, 10, 10, 3))}, 'image is 8x8x3, got 10x10x3'),
      ({'visible': np.zeros((3, 0), int)}, 'at least one is visible'),
      ({'visible': np.zeros((3, 16), int)}, 'at least one hidden, got 16 visible'),
      ({'visible': np.zeros((3, 4))}, r'visible holds integers \[B, K\], got \(3, 4\) float'),
      ({'visible': np.zeros((2, 4), int)}, 'batch length: visible 2, image 3'),
      ({'visible': None}, "wants input 'visible'"), ({'image': None}, "wants input 'image'"))
  def test_bad_inputs(self, changes, message):
    model, variables = build()
    fields = {name: value for name, value in {**SHOWN, **changes}.items() if value is not None}
    for method in (None, 'encode', 'loss'):
      with self.assertRaisesRegex(ValueError, message):
        model.apply(variables, fields, method=method)
    with self.assertRaisesRegex(ValueError, message):
      model.init(jax.random.key(0), fields)

  @parameterized.parameters(
      ({'latent': np.zeros((3, 5, 16)), 'visible': VISIBLE}, 'decode', 'latent is 10x16, got 5x16'),
      (SHOWN, 'decode', "wants input 'latent'"), (SHOWN, 'sample', "got 'sample'"),
      ({**SHOWN, 'target': np.zeros((3, 4, 4, 3))}, 'loss', 'target is 8x8x3, got 4x4x3'),
      ({**SHOWN, 'target': np.zeros((1, 8, 8, 3))}, 'loss', 'visible 3, target 1'),
      (FIELDS, 'loss', "random tokens: pass rngs={'noise': key}"),
      (FIELDS, None, "method 'encode' or 'loss'"))
  def test_bad_latents_targets_and_methods(self, fields, method, message):
    model, variables = build()
    with self.assertRaisesRegex(ValueError, message):
      model.apply(variables, fields, method=method)


if __name__ == '__main__':
  absltest.main()
