"""Tests of CLIP: published sizes, causal mask, pooling at EOT, prompt slots, layouts."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
from flax import errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from unlearn_jax import models
from unlearn_jax.models import clip
from unlearn_jax.models import clip_towers
from unlearn_jax.models import surgery

TINY = {'embedding': 8, 'patch': 4, 'image_width': 8, 'image_depth': 1, 'image_heads': 2,
        'text_width': 12, 'text_depth': 1, 'text_heads': 2, 'context': 10, 'vocabulary': 32}
SOT, EOT, SLOT, SLOTS = 30, 31, 9, 3  # of a small vocabulary; the tower knows no id by name
TEXT = np.array([[SOT, SLOT, SLOT, SLOT, 5, 6, EOT, 0, 0, 0],
                 [SOT, SLOT, SLOT, SLOT, 7, EOT, 0, 0, 0, 0],
                 [SOT, SLOT, SLOT, SLOT, 8, 5, 4, 3, 2, EOT]], np.int32)
FIELDS = {'image': jax.random.normal(jax.random.key(0), (3, 8, 8, 3)), 'text': TEXT}
PROMPT = 0.5 * jax.random.normal(jax.random.key(5), (SLOTS, 12))


@functools.cache
def build(layout='openai', **changes):
  """A tiny model and its variables with every leaf random."""
  model = models.get('clip', **{**TINY, 'layout': layout, **changes})

  shapes = jax.eval_shape(model.init, jax.random.key(0), FIELDS)
  rng = np.random.default_rng(1)
  # By numpy: compiling a draw for each of the leaves takes longer than all these tests.
  return model, jax.tree.map(lambda leaf: rng.normal(0.1, 0.3, leaf.shape).astype(np.float32),
                             shapes)


@functools.cache
def compiled(layout, method=None):
  model = build(layout)[0]
  return jax.jit(lambda v, x: model.apply(v, x, method=method)[0])


def encode(text, layout='openai', **prompt):
  return compiled(layout, 'encode_text')(
      build(layout)[1], {'text': np.asarray(text), **prompt})['text_embedding']


class SizesTest(parameterized.TestCase):

  @parameterized.parameters(
      ('clip_vit_b_32', 'openai', 151_277_313), ('clip_vit_b_16', 'openai', 149_620_737),
      ('clip_vit_l_14', 'openai', 427_616_513),
      # timm's B/16 without head 85,798,656, norms of q and k 3,072, projection 393,216, text
      # tower 63,428,096, logit scale.
      ('clip_vit_b_16', 'laclip', 85_798_656 + 3_072 + 393_216 + 63_428_096 + 1),
      ('clip_vit_b_32', 'declip', 151_277_313 + 512))
  def test_parameters(self, name, layout, count):
    model = models.get(name, layout=layout)
    fields = {'image': jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32),
              'text': jax.ShapeDtypeStruct((2, 77), jnp.int32)}
    variables = jax.eval_shape(lambda key, image, text: model.init(
        key, {'image': image, 'text': text}), jax.random.key(0), *fields.values())
    self.assertEqual(sum(leaf.size for leaf in jax.tree.leaves(variables)), count)
    outputs = jax.eval_shape(lambda v, x: model.apply(v, x)[0], variables, fields)
    width, embedding = (1024, 768) if 'l_14' in name else (768, 512)
    self.assertEqual({key: value.shape for key, value in outputs.items()},
                     {'image_embedding': (2, embedding), 'text_embedding': (2, embedding),
                      'features': (2, width), 'logit_scale': ()})

  def test_names_of_openai(self):  # landmarks of its state dict, under the rule of clip.py
    model = models.get('clip_vit_b_32')
    variables = jax.eval_shape(lambda key: model.init(key, {
        'image': jnp.zeros((1, 224, 224, 3)), 'text': jnp.zeros((1, 77), jnp.int32)}),
        jax.random.key(0))
    shapes = {name.removeprefix('params/'): leaf.shape for name, leaf in
              zip(surgery.paths(variables), jax.tree.leaves(variables))}
    self.assertLen(shapes, 302)
    for name, shape in {
        'logit_scale': (), 'visual/class_embedding': (768,), 'visual/positional_embedding': (50, 768),
        'visual/conv1/kernel': (32, 32, 3, 768), 'visual/ln_pre/scale': (768,),
        'visual/ln_post/bias': (768,), 'visual/proj': (768, 512),
        'visual/transformer/resblocks/11/attn/in_proj/kernel': (768, 2304),
        'visual/transformer/resblocks/0/mlp/c_fc/bias': (3072,),
        'text/token_embedding/embedding': (49408, 512), 'text/positional_embedding': (77, 512),
        'text/transformer/resblocks/0/attn/out_proj/kernel': (512, 512),
        'text/transformer/resblocks/4/ln_2/scale': (512,),
        'text/transformer/resblocks/11/mlp/c_proj/kernel': (2048, 512),
        'text/ln_final/scale': (512,), 'text/text_projection': (512, 512)}.items():
      self.assertEqual(shapes[name], shape, name)


class LayoutsTest(parameterized.TestCase):

  @parameterized.parameters(
      ('openai', {'visual/proj', 'visual/ln_pre/scale', 'visual/ln_pre/bias', 'text/text_projection'}),
      ('laclip', {'image_projection', 'visual/conv1/bias', 'text/text_projection', *(
          f'visual/transformer/resblocks/0/attn/{x}_norm/{leaf}' for x in 'qk'
          for leaf in ('scale', 'bias'))}),
      ('declip', {'visual/proj', 'visual/ln_pre/scale', 'visual/ln_pre/bias',
                  'text/text_projection/kernel', 'text/text_projection/bias'}))
  def test_what_tells_layouts_apart(self, layout, own):
    _, variables = build(layout)
    common = {'logit_scale', 'visual/class_embedding', 'visual/ln_post/scale',
              'visual/positional_embedding', 'text/token_embedding/embedding'}
    names = set(surgery.paths(variables['params']))
    self.assertContainsSubset(common | own, names)
    self.assertLen(names, 2 * 12 + 10 + len(own))

  @parameterized.parameters(*clip.LAYOUTS)
  def test_outputs(self, layout):
    variables = build(layout)[1]
    outputs = compiled(layout)(variables, FIELDS)
    for name in ('image_embedding', 'text_embedding'):
      self.assertEqual((outputs[name].shape, outputs[name].dtype), ((3, 8), jnp.float32))
      np.testing.assert_allclose(np.linalg.norm(outputs[name], axis=1), 1, atol=1e-6)
    self.assertEqual(outputs['logit_scale'], variables['params']['logit_scale'])
    self.assertEqual('logit_bias' in outputs, layout == 'siglip')
    image = compiled(layout, 'encode_image')(variables, {'image': FIELDS['image']})
    self.assertCountEqual(image, ['image_embedding', 'features'])
    text = compiled(layout, 'encode_text')(variables, {'text': TEXT})
    self.assertCountEqual(text, ['text_embedding'])
    for name, value in {**image, **text}.items():
      np.testing.assert_allclose(value, outputs[name], atol=1e-5)

  @parameterized.parameters(*clip.LAYOUTS)
  def test_every_parameter_but_unseen_tokens_learns(self, layout):
    model, variables = build(layout)

    def loss(params):
      outputs, _ = model.apply({'params': params}, FIELDS, train=True)
      logits = outputs['image_embedding'] @ outputs['text_embedding'].T
      return jnp.sum(jnp.sin(jnp.exp(outputs['logit_scale']) * logits
                             + outputs.get('logit_bias', 0)) * (1 + jnp.arange(9).reshape(3, 3)))

    grads = jax.jit(jax.grad(loss))(variables['params'])
    for name, leaf in zip(surgery.paths(grads), jax.tree.leaves(grads)):
      self.assertTrue(np.isfinite(leaf).all(), name)
      if not name.endswith(('k_norm/bias', 'key/bias')):  # a softmax does not see a common shift
        self.assertGreater(float(np.abs(leaf).max()), 1e-7, name)
    moved = np.flatnonzero(np.any(grads['text']['token_embedding']['embedding'] != 0, axis=1))
    # With a causal mask nothing sees the padding.
    self.assertEqual(set(moved), set(TEXT.flat) - (set() if layout == 'siglip' else {0}))

  def test_apply_returns_the_variables(self):
    model, variables = build()
    for train in (False, True):
      same = jax.eval_shape(lambda v, t=train: model.apply(v, FIELDS, train=t)[1], variables)
      self.assertEqual(jax.tree.structure(same), jax.tree.structure(variables))

  def test_projection_of_laclip_is_outside_of_the_tower(self):
    variables = build('laclip')[1]
    outputs = compiled('laclip')(variables, FIELDS)
    projected = np.asarray(outputs['features'] @ variables['params']['image_projection'])
    np.testing.assert_allclose(outputs['image_embedding'],
                               projected / np.linalg.norm(projected, axis=1, keepdims=True),
                               atol=1e-5)

  def test_activations(self):
    x = np.linspace(-3, 3, 7, dtype=np.float32)
    np.testing.assert_allclose(clip_towers.quick_gelu(x), x / (1 + np.exp(-1.702 * x)), rtol=1e-5)
    np.testing.assert_allclose(clip_towers.gelu(x), x * stats.norm.cdf(x), atol=1e-5)

  def test_initial_values(self):
    model = models.get('clip', **{**TINY, 'embedding': 64, 'image_width': 128, 'text_width': 64,
                                  'text_depth': 2, 'vocabulary': 100})
    params = model.init(jax.random.key(0), FIELDS)['params']
    self.assertAlmostEqual(float(params['logit_scale']), np.log(1 / 0.07), places=5)
    block = params['text']['transformer']['resblocks']['1']
    for leaf, deviation in (  # OpenAI's rule
        (params['text']['token_embedding']['embedding'], 0.02),
        (params['text']['positional_embedding'], 0.01), (params['text']['text_projection'], 1 / 8),
        (block['attn']['in_proj']['kernel'], 1 / 8), (block['attn']['out_proj']['kernel'], 1 / 16),
        (block['mlp']['c_fc']['kernel'], 128**-0.5), (block['mlp']['c_proj']['kernel'], 1 / 16),
        (params['visual']['proj'], 128**-0.5),
        (params['visual']['positional_embedding'], 128**-0.5)):
      self.assertAlmostEqual(float(np.std(leaf)) / deviation, 1, delta=0.08)
    siglip = clip.LAYOUTS['siglip']
    self.assertAlmostEqual(siglip.logit_scale, np.log(10))
    self.assertEqual(siglip.logit_bias, -10)

  def test_compute_dtype(self):
    variables = build('laclip')[1]
    half, _ = build('laclip', compute_dtype='bfloat16')
    expected = compiled('laclip')(variables, FIELDS)
    found = jax.jit(lambda v: half.apply(v, FIELDS)[0])(variables)
    for name, leaf in found.items():
      self.assertEqual(leaf.dtype, jnp.float32)
      scale = np.abs(expected[name]).max()
      np.testing.assert_allclose(leaf / scale, expected[name] / scale, atol=0.1)
    self.assertGreater(float(np.abs(found['features'] - expected['features']).max()), 0)


class TextTest(parameterized.TestCase):

  @parameterized.parameters(True, False)
  def test_a_causal_transformer_does_not_look_ahead(self, causal):
    x, other = jax.random.normal(jax.random.key(0), (2, 1, 6, 8))
    module = clip_towers.Transformer(
        clip_towers.Style(clip_towers.quick_gelu, 1e-5, causal=causal), 2, 2, jnp.float32)
    apply = jax.jit(module.apply)
    variables = jax.jit(module.init)(jax.random.key(1), x)
    changed = x.at[0, 4].set(other[0, 4])
    difference = np.abs(apply(variables, x) - apply(variables, changed))[0].max(axis=1)
    self.assertTrue((difference[4:] > 1e-5).all())
    self.assertEqual((difference[:4] == 0).all(), causal)

  def test_pools_at_eot(self):
    padded, before = TEXT.copy(), TEXT.copy()
    padded[:2][padded[:2] == 0] = 7  # other padding
    before[:, 4] = 1  # another word
    np.testing.assert_allclose(encode(padded), encode(TEXT), atol=1e-6)
    self.assertTrue((np.abs(encode(before) - encode(TEXT)).max(axis=1) > 1e-4).all())

  def test_eot_is_where_the_ids_have_their_maximum(self):
    text = TEXT.copy()
    text[text == EOT] = 1  # as NCU's release cuts long captions: SOT is the highest that is left
    found = encode(text)
    np.testing.assert_allclose(found, np.broadcast_to(found[:1], found.shape), atol=1e-6)

  def test_siglip_pools_the_last_position_and_sees_everything(self):
    for place in (5, 8):
      text = TEXT[1:2].copy()
      text[0, place] = 1
      self.assertGreater(float(np.abs(encode(text, 'siglip') - encode(TEXT[1:2], 'siglip')).max()),
                         1e-5)

  @parameterized.parameters(
      ({'text': np.zeros((3, 11), np.int32)}, r'\[B, 10\], got \(3, 11\) int32'),
      ({'text': np.zeros((3, 10), np.float32)}, 'got .* float32'),
      ({'prompt': np.zeros((2, 16), np.float32)}, r'\[m, 12\] with m at most 7, got \(2, 16\)'),
      ({'prompt': np.zeros((8, 12), np.float32)}, r'got \(8, 12\)'),
      ({'prompt': np.zeros((3, 2, 12), np.float32)}, r'got \(3, 2, 12\)'))
  def test_bad_text(self, changes, message):
    model, variables = build()
    with self.assertRaisesRegex(ValueError, message):
      jax.eval_shape(model.apply, variables, {**FIELDS, **changes})


class PromptTest(parameterized.TestCase):

  @parameterized.parameters('openai', 'siglip')
  def test_a_prompt_of_token_embeddings_is_the_tokens(self, layout):
    words = np.array([11, 12, 13])
    text = TEXT.copy()
    text[:, 1:1 + SLOTS] = words
    prompt = build(layout)[1]['params']['text']['token_embedding']['embedding'][words]
    np.testing.assert_allclose(encode(TEXT, layout, prompt=prompt), encode(text, layout), atol=1e-5)

  def test_enters_the_whole_model_too(self):
    variables = build()[1]
    outputs = compiled('openai')(variables, {**FIELDS, 'prompt': PROMPT})
    np.testing.assert_allclose(outputs['text_embedding'], encode(TEXT, prompt=PROMPT), atol=1e-5)
    plain = compiled('openai')(variables, FIELDS)
    np.testing.assert_allclose(outputs['image_embedding'], plain['image_embedding'], atol=1e-6)
    self.assertGreater(float(np.abs(outputs['text_embedding'] - plain['text_embedding']).max()),
                       1e-3)

  def test_initial_prompt(self):
    model, variables = build()
    prompt = clip.init_prompt(jax.random.key(0), variables, 7)
    self.assertEqual((prompt.shape, prompt.dtype), ((7, 12), jnp.float32))
    jax.eval_shape(model.apply, variables, {**FIELDS, 'prompt': prompt})
    wide = {'params': {'text': {'positional_embedding': np.zeros((77, 512))}}}
    prompt = clip.init_prompt(jax.random.key(1), wide)
    self.assertEqual(prompt.shape, (8, 512))
    self.assertAlmostEqual(float(prompt.std()), 0.02, places=3)

  def test_only_the_slots_are_replaced(self):
    expected = encode(TEXT, prompt=PROMPT)
    slots, words = TEXT.copy(), TEXT.copy()
    slots[:, 1:1 + SLOTS] = 11
    words[:, 1 + SLOTS] = 11
    np.testing.assert_allclose(encode(slots, prompt=PROMPT), expected, atol=1e-6)
    changed = np.abs(encode(words, prompt=PROMPT) - expected).max(axis=1)
    self.assertTrue((changed > 1e-4).all())

  @parameterized.parameters('laclip', 'siglip')
  def test_gradient(self, layout):
    model, variables = build(layout)
    target = jax.random.normal(jax.random.key(7), (3, 8))

    @jax.jit
    def gradients(prompt, variables):
      def loss(prompt, variables):
        outputs, _ = model.apply(variables, {'text': TEXT, 'prompt': prompt}, method='encode_text')
        return jnp.sum(outputs['text_embedding'] * target)
      return jax.grad(loss, (0, 1))(prompt, variables)

    prompt, inner = gradients(0.02 * PROMPT, variables)
    self.assertTrue(np.isfinite(prompt).all())
    self.assertTrue((np.abs(prompt).max(axis=1) > 1e-6).all())  # every vector of it
    table = inner['params']['text']['token_embedding']['embedding']
    np.testing.assert_array_equal(table[SLOT], 0)  # the token under the slots is out of play
    self.assertGreater(float(np.abs(table[SOT]).max()), 0)


class ArgumentsTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'layout': 'eva'}, ValueError, "openai, open_clip, laclip, declip, siglip, got 'eva'"),
      ({'text_depth': 0}, ValueError, 'text_depth must be at least 1'),
      ({'image_width': 16.0}, TypeError, 'image_width must be an int'),
      ({'image_heads': 3}, ValueError, 'image_width must be a multiple of image_heads'),
      ({'text_heads': 5}, ValueError, 'text_width must be a multiple of text_heads, got 12 and 5'),
      ({'layout': 'siglip', 'embedding': 16}, ValueError, 'embedding must equal image_width'),
      ({'compute_dtype': 'int8'}, ValueError, 'bfloat16'))
  def test_bad_arguments(self, changes, error, message):
    with self.assertRaisesRegex(error, message):
      models.get('clip', **{**TINY, **changes})

  def test_missing_fields_and_unknown_methods(self):
    model, variables = build()
    with self.assertRaisesRegex(ValueError, "wants input 'text'"):
      model.apply(variables, {'image': FIELDS['image']})
    with self.assertRaisesRegex(ValueError, "wants input 'image'.*'text'"):
      model.apply(variables, {'text': TEXT}, method='encode_image')
    with self.assertRaisesRegex(ValueError, "encode_image or encode_text, got 'encode'"):
      model.apply(variables, FIELDS, method='encode')

  def test_pictures_of_another_size(self):
    model, variables = build()
    with self.assertRaisesRegex(errors.ScopeParamShapeError, 'positional_embedding'):
      jax.eval_shape(model.apply, variables, {**FIELDS, 'image': jnp.zeros((3, 12, 12, 3))})

  def test_tokenize_is_a_public_name(self):
    pytest.importorskip('instant_clip_tokenizer', reason='it has no wheels for this Python')
    self.assertEqual(models.clip.tokenize(['dog'], context_length=5).tolist(),
                     [[49406, 1929, 49407, 0, 0]])


if __name__ == '__main__':
  absltest.main()
