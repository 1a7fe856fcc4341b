"""Tests of CLIP: published sizes, causal mask, pooling at EOT, prompt slots, layouts."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
from flax import errors
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import models
from unlearn_jax.models import clip
from unlearn_jax.models import clip_towers
from unlearn_jax.models import surgery

TINY = {'embedding': 16, 'patch': 4, 'image_width': 16, 'image_depth': 2, 'image_heads': 2,
        'text_width': 24, 'text_depth': 2, 'text_heads': 2, 'context': 12}
CAPTIONS = ['a photo of a dog', 'cat', 'two red cars and a very very long street with trees']
SLOTS = 3


@functools.cache
def build(layout='openai', **changes):
  """A tiny model, its variables with every leaf random, and inputs with prompt slots."""
  model = models.get('clip', **{**TINY, 'layout': layout, **changes})
  fields = {'image': jax.random.normal(jax.random.key(0), (3, 8, 8, 3)),
            'text': clip.tokenize(CAPTIONS, 12, SLOTS)}
  variables = model.init(jax.random.key(1), fields)
  leaves, treedef = jax.tree.flatten(variables)
  keys = jax.random.split(jax.random.key(2), len(leaves))
  return model, treedef.unflatten([leaf + 0.1 * jax.random.normal(key, leaf.shape)
                                   for leaf, key in zip(leaves, keys)]), fields


def encode(text, layout='openai', prompt=None):
  model, variables, _ = build(layout)
  inputs = {'text': jnp.asarray(text)} | ({} if prompt is None else {'prompt': prompt})
  return jax.jit(lambda v, x: model.apply(v, x, method='encode_text')[0]['text_embedding'])(
      variables, inputs)


def prompt_vectors(count=SLOTS, width=24, seed=5):
  return 0.5 * jax.random.normal(jax.random.key(seed), (count, width))


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
          f'visual/transformer/resblocks/{n}/attn/{x}_norm/{leaf}' for n in (0, 1) for x in 'qk'
          for leaf in ('scale', 'bias'))}),
      ('declip', {'visual/proj', 'visual/ln_pre/scale', 'visual/ln_pre/bias',
                  'text/text_projection/kernel', 'text/text_projection/bias'}))
  def test_what_tells_layouts_apart(self, layout, own):
    _, variables, _ = build(layout)
    common = {'logit_scale', 'visual/class_embedding', 'visual/ln_post/scale',
              'visual/positional_embedding', 'text/token_embedding/embedding'}
    names = {name for name in surgery.paths(variables['params'])}
    self.assertContainsSubset(common | own, names)
    self.assertLen(names, 2 * 2 * 12 + 2 + 2 + 1 + 1 + 1 + 1 + 1 + len(own))

  @parameterized.parameters(*clip.LAYOUTS)
  def test_outputs(self, layout):
    model, variables, fields = build(layout)
    outputs, same = jax.jit(model.apply)(variables, fields)
    jax.tree.map(np.testing.assert_array_equal, same, variables)
    for name in ('image_embedding', 'text_embedding'):
      self.assertEqual((outputs[name].shape, outputs[name].dtype), ((3, 16), jnp.float32))
      np.testing.assert_allclose(jnp.linalg.norm(outputs[name], axis=1), 1, atol=1e-6)
    self.assertEqual(outputs['logit_scale'], variables['params']['logit_scale'])
    self.assertEqual('logit_bias' in outputs, layout == 'siglip')
    image, _ = model.apply(variables, {'image': fields['image']}, method='encode_image')
    self.assertCountEqual(image, ['image_embedding', 'features'])
    np.testing.assert_allclose(image['image_embedding'], outputs['image_embedding'], atol=1e-5)
    text, _ = model.apply(variables, {'text': fields['text']}, method='encode_text')
    self.assertCountEqual(text, ['text_embedding'])
    np.testing.assert_allclose(text['text_embedding'], outputs['text_embedding'], atol=1e-5)

  @parameterized.parameters(*clip.LAYOUTS)
  def test_every_parameter_but_unseen_tokens_learns(self, layout):
    model, variables, fields = build(layout)

    def loss(params):
      outputs, _ = model.apply({'params': params}, fields, train=True)
      logits = outputs['image_embedding'] @ outputs['text_embedding'].T
      return jnp.sum(jnp.sin(jnp.exp(outputs['logit_scale']) * logits
                             + outputs.get('logit_bias', 0)) * (1 + jnp.arange(9).reshape(3, 3)))

    grads = jax.jit(jax.grad(loss))(variables['params'])
    for name, leaf in zip(surgery.paths(grads), jax.tree.leaves(grads)):
      self.assertTrue(bool(jnp.all(jnp.isfinite(leaf))), name)
      self.assertGreater(float(jnp.max(jnp.abs(leaf))), 1e-7, name)
    moved = np.flatnonzero(np.any(grads['text']['token_embedding']['embedding'] != 0, axis=1))
    seen = set(np.unique(fields['text'])) - (set() if layout == 'siglip' else {0})
    self.assertEqual(set(moved), seen)  # with a causal mask nothing sees the padding

  def test_projection_of_laclip_is_outside_of_the_tower(self):
    model, variables, fields = build('laclip')
    outputs, _ = model.apply(variables, fields)
    projected = outputs['features'] @ variables['params']['image_projection']
    np.testing.assert_allclose(
        outputs['image_embedding'],
        projected / jnp.linalg.norm(projected, axis=1, keepdims=True), atol=1e-5)

  def test_activations(self):
    x = jnp.linspace(-3, 3, 7)
    np.testing.assert_allclose(clip_towers.quick_gelu(x), x / (1 + jnp.exp(-1.702 * x)), rtol=1e-5)
    np.testing.assert_allclose(clip_towers.gelu(x), x * jax.scipy.stats.norm.cdf(x), atol=1e-5)

  def test_initial_values(self):
    model = models.get('clip', embedding=64, text_width=64, text_depth=2, context=12)
    params = model.init(jax.random.key(0), {
        'image': jnp.zeros((1, 32, 32, 3)), 'text': clip.tokenize(['x'], 12)})['params']
    self.assertAlmostEqual(float(params['logit_scale']), np.log(1 / 0.07), places=5)
    block = params['text']['transformer']['resblocks']['1']
    for leaf, deviation in (  # section "initialize_parameters" of OpenAI's model
        (params['text']['token_embedding']['embedding'], 0.02),
        (params['text']['positional_embedding'], 0.01), (params['text']['text_projection'], 1 / 8),
        (block['attn']['in_proj']['kernel'], 1 / 8), (block['attn']['out_proj']['kernel'], 1 / 16),
        (block['mlp']['c_fc']['kernel'], 128**-0.5), (block['mlp']['c_proj']['kernel'], 1 / 16),
        (params['visual']['proj'], 128**-0.5),
        (params['visual']['positional_embedding'], 128**-0.5)):
      self.assertAlmostEqual(float(leaf.std()) / deviation, 1, delta=0.08)
    siglip = build('siglip')[0].init(jax.random.key(0), build('siglip')[2])['params']
    self.assertAlmostEqual(float(siglip['logit_scale']), np.log(10), places=5)
    self.assertEqual(float(siglip['logit_bias']), -10)

  @parameterized.parameters('openai', 'laclip')
  def test_compute_dtype(self, layout):
    model, variables, fields = build(layout)
    half, _, _ = build(layout, compute_dtype='bfloat16')
    expected, _ = jax.jit(model.apply)(variables, fields)
    found, _ = jax.jit(half.apply)(variables, fields)
    for name, leaf in found.items():
      self.assertEqual(leaf.dtype, jnp.float32)
      np.testing.assert_allclose(leaf / jnp.max(jnp.abs(leaf)),
                                 expected[name] / jnp.max(jnp.abs(expected[name])), atol=0.1)
    self.assertGreater(float(jnp.abs(found['features'] - expected['features']).max()), 0)


class TextTest(parameterized.TestCase):

  def test_a_causal_block_does_not_look_ahead(self):
    x = jax.random.normal(jax.random.key(0), (1, 6, 8))
    changed = x.at[0, 4].add(1.0)
    for causal in (True, False):
      module = clip_towers.Transformer(
          clip_towers.Style(clip_towers.quick_gelu, 1e-5, causal=causal), 2, 2, jnp.float32)
      variables = module.init(jax.random.key(1), x)
      difference = jnp.abs(module.apply(variables, x) - module.apply(variables, changed))[0]
      self.assertTrue(bool(jnp.all(difference[4:].max(1) > 1e-4)))
      self.assertEqual(bool(jnp.all(difference[:4] == 0)), causal)

  def test_pools_at_eot(self):
    text = clip.tokenize(['a dog', 'a cat on a mat'], 12)
    text = np.concatenate([text, text])
    text[2:][text[2:] == 0] = 7  # other padding
    found = encode(text)
    np.testing.assert_allclose(found[2:], found[:2], atol=1e-6)
    before = text[:2].copy()
    before[:, 2] = 99  # a word
    self.assertTrue(bool(jnp.all(jnp.abs(encode(before) - found[:2]).max(1) > 1e-3)))

  def test_a_row_without_eot_is_pooled_at_sot(self):  # as NCU's release cuts long captions
    text = clip.tokenize(CAPTIONS[:2], 12)
    text[text == clip.clip_tokenizer.EOT] = 5
    found = encode(text)
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)

  def test_siglip_pools_the_last_position_and_sees_everything(self):
    text = clip.tokenize(['a dog'], 12)
    padded = text.copy()
    padded[0, -2] = 7
    self.assertGreater(float(jnp.abs(encode(text, 'siglip') - encode(padded, 'siglip')).max()), 1e-4)

  @parameterized.parameters(
      ({'text': np.zeros((3, 11), np.int32)}, r'\[B, 12\], got \(3, 11\) int32'),
      ({'text': np.zeros((3, 12), np.float32)}, 'got .* float32'),
      ({'prompt': np.zeros((2, 16), np.float32)}, r'\[m, 24\] with m at most 9, got \(2, 16\)'),
      ({'prompt': np.zeros((10, 24), np.float32)}, r'got \(10, 24\)'),
      ({'prompt': np.zeros((3, 2, 24), np.float32)}, r'got \(3, 2, 24\)'))
  def test_bad_text(self, changes, message):
    model, variables, fields = build()
    with self.assertRaisesRegex(ValueError, message):
      model.apply(variables, {**fields, **changes})


class PromptTest(parameterized.TestCase):

  @parameterized.parameters(*clip.LAYOUTS)
  def test_a_prompt_of_token_embeddings_is_the_tokens(self, layout):
    _, variables, fields = build(layout)
    words = np.array([1125, 539, 320])
    text = np.array(fields['text'])
    text[:, 1:1 + SLOTS] = words
    prompt = variables['params']['text']['token_embedding']['embedding'][words]
    np.testing.assert_allclose(encode(fields['text'], layout, prompt), encode(text, layout),
                               atol=1e-5)

  def test_enters_the_whole_model_too(self):
    model, variables, fields = build()
    prompt = prompt_vectors()
    outputs, _ = model.apply(variables, {**fields, 'prompt': prompt})
    np.testing.assert_allclose(outputs['text_embedding'], encode(fields['text'], prompt=prompt),
                               atol=1e-5)
    plain, _ = model.apply(variables, fields)
    np.testing.assert_allclose(outputs['image_embedding'], plain['image_embedding'], atol=1e-6)
    self.assertGreater(float(jnp.abs(outputs['text_embedding'] - plain['text_embedding']).max()),
                       1e-3)

  def test_only_the_slots_are_replaced(self):
    prompt, text = prompt_vectors(), np.array(build()[2]['text'])
    expected = encode(text, prompt=prompt)
    slots, words = text.copy(), text.copy()
    slots[:, 1:1 + SLOTS] = 999
    words[:, 1 + SLOTS] = 999
    np.testing.assert_allclose(encode(slots, prompt=prompt), expected, atol=1e-6)
    self.assertTrue(bool(jnp.all(jnp.abs(encode(words, prompt=prompt) - expected).max(1) > 1e-3)))

  @parameterized.parameters(*clip.LAYOUTS)
  def test_gradient(self, layout):
    model, variables, fields = build(layout)
    target = jax.random.normal(jax.random.key(7), (3, 16))

    @jax.jit
    def grads(prompt, variables):
      def loss(prompt, variables):
        outputs, _ = model.apply(variables, {'text': fields['text'], 'prompt': prompt},
                                 method='encode_text')
        return jnp.sum(outputs['text_embedding'] * target)
      return jax.grad(loss, (0, 1))(prompt, variables)

    prompt, inner = grads(0.02 * prompt_vectors(), variables)
    self.assertTrue(bool(jnp.all(jnp.isfinite(prompt))))
    self.assertTrue(bool(jnp.all(jnp.abs(prompt).max(1) > 1e-6)))  # every vector of it
    table = inner['params']['text']['token_embedding']['embedding']
    np.testing.assert_array_equal(table[clip.clip_tokenizer.SLOT], 0)  # the slots' own token: cut
    self.assertGreater(float(jnp.abs(table[clip.clip_tokenizer.SOT]).max()), 0)


class ArgumentsTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'layout': 'eva'}, ValueError, "openai, laclip, declip, siglip, got 'eva'"),
      ({'text_depth': 0}, ValueError, 'text_depth must be at least 1'),
      ({'image_width': 16.0}, TypeError, 'image_width must be an int'),
      ({'image_heads': 3}, ValueError, 'image_width must be a multiple of image_heads'),
      ({'text_heads': 5}, ValueError, 'text_width must be a multiple of text_heads, got 24 and 5'),
      ({'layout': 'siglip', 'embedding': 8}, ValueError, 'embedding must equal image_width'),
      ({'compute_dtype': 'int8'}, ValueError, 'bfloat16'))
  def test_bad_arguments(self, changes, error, message):
    with self.assertRaisesRegex(error, message):
      models.get('clip', **{**TINY, **changes})

  def test_missing_fields_and_unknown_methods(self):
    model, variables, fields = build()
    with self.assertRaisesRegex(ValueError, "wants input 'text'"):
      model.apply(variables, {'image': fields['image']})
    with self.assertRaisesRegex(ValueError, "wants input 'image'.*'text'"):
      model.apply(variables, {'text': fields['text']}, method='encode_image')
    with self.assertRaisesRegex(ValueError, "encode_image or encode_text, got 'encode'"):
      model.apply(variables, fields, method='encode')

  def test_pictures_of_another_size(self):
    model, variables, fields = build()
    with self.assertRaisesRegex(errors.ScopeParamShapeError, 'positional_embedding'):
      model.apply(variables, {**fields, 'image': jnp.zeros((3, 12, 12, 3))})

  def test_tokenize_is_a_public_name(self):
    self.assertEqual(models.clip.tokenize(['dog'], context_length=5).tolist(),
                     [[49406, 1929, 49407, 0, 0]])


if __name__ == '__main__':
  absltest.main()
