"""Tests of public CLIP checkpoints: tables of names and shapes, round trips, bad files."""

import functools
import json
import math
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearn_jax import models
from unlearn_jax.models import clip_keys
from unlearn_jax.models import convert
from unlearn_jax.models import surgery

# image width, depth, patch, side; embedding; text width, depth, context, vocabulary
PUBLISHED = {'b_32': (768, 12, 32, 224, 512, 512, 12, 77, 49408),
             'b_16': (768, 12, 16, 224, 512, 512, 12, 77, 49408),
             'l_14': (1024, 24, 14, 224, 768, 768, 12, 77, 49408)}
TINY = (128, 2, 4, 12, 32, 64, 3, 10, 50)
HEADS = {'image_heads': 2, 'text_heads': 1}  # of the tiny one, 64 wide


def affine(name, *shape):
  """Weight and bias of a layer."""
  return {f'{name}.weight': shape, f'{name}.bias': shape[:1]}


def block(name, width):
  """A residual block of OpenAI's transformers."""
  return {f'{name}.attn.in_proj_weight': (3 * width, width), f'{name}.attn.in_proj_bias': (3 * width,),
          **affine(f'{name}.attn.out_proj', width, width), **affine(f'{name}.ln_1', width),
          **affine(f'{name}.mlp.c_fc', 4 * width, width),
          **affine(f'{name}.mlp.c_proj', width, 4 * width), **affine(f'{name}.ln_2', width)}


def blocks(make, name, depth, width):
  return {key: shape for number in range(depth)
          for key, shape in make(f'{name}.{number}', width).items()}


def openai_text(size, text=''):
  *_, embedding, width, depth, context, vocabulary = size
  return {f'{text}positional_embedding': (context, width),
          f'{text}text_projection': (width, embedding),
          f'{text}token_embedding.weight': (vocabulary, width),
          **blocks(block, f'{text}transformer.resblocks', depth, width),
          **affine(f'{text}ln_final', width)}


def openai(size, text=''):
  """openai/CLIP, model.py; open_clip's CLIP, and with `text.` its CustomTextCLIP."""
  width, depth, patch, side, embedding, *_ = size
  return {'logit_scale': (), 'visual.class_embedding': (width,),
          'visual.positional_embedding': ((side // patch)**2 + 1, width),
          'visual.proj': (width, embedding), 'visual.conv1.weight': (width, 3, patch, patch),
          **affine('visual.ln_pre', width),
          **blocks(block, 'visual.transformer.resblocks', depth, width),
          **affine('visual.ln_post', width), **openai_text(size, text)}


def declip(size, text='encode_text.'):
  """Sense-GVT/DeCLIP, clip.py and text_transformer.py; NCU's code has the text tower at the top."""
  table = openai(size, text)
  width, embedding = table.pop(f'{text}text_projection')
  return {**table, **affine(f'{text}text_projection', embedding, width),
          'logit_scale': (1,) if text else ()}


def laclip(size):
  """LijieFan/LaCLIP, models.py: timm 0.5's VisionTransformer with blocks of its own."""
  width, depth, patch, side, embedding, *_ = size

  def layer(name, width):
    return {**affine(f'{name}.norm1', width), **affine(f'{name}.attn.q_norm', 64),
            **affine(f'{name}.attn.k_norm', 64), **affine(f'{name}.attn.qkv', 3 * width, width),
            **affine(f'{name}.attn.proj', width, width), **affine(f'{name}.norm2', width),
            **affine(f'{name}.mlp.fc1', 4 * width, width),
            **affine(f'{name}.mlp.fc2', width, 4 * width)}

  return {'logit_scale': (), 'image_projection': (width, embedding),
          'visual.cls_token': (1, 1, width),
          'visual.pos_embed': (1, (side // patch)**2 + 1, width),
          **affine('visual.patch_embed.proj', width, 3, patch, patch),
          **blocks(layer, 'visual.blocks', depth, width), **affine('visual.norm', width),
          **openai_text(size)}


def transformers(size):
  """transformers, modeling_clip.py: CLIPModel."""
  width, depth, patch, side, embedding, text_width, text_depth, context, vocabulary = size

  def layer(name, width):
    table = {f'{name}.{kind}.{leaf}': shape
             for kind in ('self_attn.k_proj', 'self_attn.v_proj', 'self_attn.q_proj',
                          'self_attn.out_proj')
             for leaf, shape in (('weight', (width, width)), ('bias', (width,)))}
    return {**table, **affine(f'{name}.layer_norm1', width), **affine(f'{name}.layer_norm2', width),
            **affine(f'{name}.mlp.fc1', 4 * width, width),
            **affine(f'{name}.mlp.fc2', width, 4 * width)}

  return {'logit_scale': (), 'text_projection.weight': (embedding, text_width),
          'visual_projection.weight': (embedding, width),
          'text_model.embeddings.token_embedding.weight': (vocabulary, text_width),
          'text_model.embeddings.position_embedding.weight': (context, text_width),
          **blocks(layer, 'text_model.encoder.layers', text_depth, text_width),
          **affine('text_model.final_layer_norm', text_width),
          'vision_model.embeddings.class_embedding': (width,),
          'vision_model.embeddings.patch_embedding.weight': (width, 3, patch, patch),
          'vision_model.embeddings.position_embedding.weight': ((side // patch)**2 + 1, width),
          **affine('vision_model.pre_layrnorm', width),
          **blocks(layer, 'vision_model.encoder.layers', depth, width),
          **affine('vision_model.post_layernorm', width)}


# family -> (table, layout to give to load, layout of the model, buffers that come along)
FAMILIES = {
    'openai': (openai, None, 'openai', {'input_resolution': 224, 'context_length': 77,
                                        'vocab_size': 49408}),
    'open_clip_quickgelu': (openai, 'openai', 'openai', {}),
    'custom_text': (functools.partial(openai, text='text.'), 'openai', 'openai',
                    {'text.attn_mask': np.full((2, 2), -np.inf, np.float32)}),
    'declip': (declip, None, 'declip', {}),
    'declip_ncu': (functools.partial(declip, text=''), None, 'declip',
                   {'prompt_ctx': np.ones((8, 4), np.float32)}),
    'laclip': (laclip, None, 'laclip', {}),
    'transformers': (transformers, 'openai', 'openai',
                     {'text_model.embeddings.position_ids': np.arange(77)[None],
                      'vision_model.embeddings.position_ids': np.arange(50)[None]})}


def weights(family, prefix='', dtype=None):
  """A tiny checkpoint with random values, float16 where OpenAI has it, and its buffers."""
  table, *_, spare = FAMILIES[family]
  rng = np.random.default_rng(0)

  def kind(name, shape):
    return dtype or (np.float16 if len(shape) > 1 and 'embedding' not in name else np.float32)

  tensors = {name: rng.normal(size=shape).astype(kind(name, shape))
             for name, shape in table(TINY).items()}
  return {prefix + name: np.asarray(value) for name, value in {**tensors, **spare}.items()}


def identical(found, expected):
  return (found.dtype, found.shape, found.tobytes()) == (
      expected.dtype, expected.shape, expected.tobytes())


@functools.cache
def parameters(size, layout):
  """Path -> abstract leaf of a published size."""
  model = models.get(f'clip_vit_{size}', layout=layout)
  variables = jax.eval_shape(
      lambda image, text: model.init(jax.random.key(0), {'image': image, 'text': text}),
      jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32), jax.ShapeDtypeStruct((1, 77), jnp.int32))
  return dict(zip(surgery.paths(variables), jax.tree.leaves(variables)))


class TableTest(parameterized.TestCase):

  @parameterized.parameters(
      *((size, family) for size in PUBLISHED for family in ('openai', 'custom_text', 'transformers')),
      ('b_32', 'laclip'), ('b_16', 'laclip'), ('b_32', 'declip'), ('b_32', 'declip_ncu'))
  def test_every_name_is_one_parameter(self, size, family):
    table, _, layout, _ = FAMILIES[family]
    shapes = table(PUBLISHED[size])
    tensors = {name: jax.ShapeDtypeStruct(shape, jnp.float16) for name, shape in shapes.items()}
    leaves = parameters(size, layout)
    names = clip_keys.detect(tensors)

    stored = [jax.eval_shape(functools.partial(names.to_file, path), leaf)
              for path, leaf in leaves.items()]
    self.assertEqual(sum(map(len, stored)), len(shapes))  # no name twice
    self.assertEqual({name: leaf.shape for part in stored for name, leaf in part.items()}, shapes)
    back = {path: jax.eval_shape(lambda t, p=path: names.from_file(p, t, jnp),
                                 {name: tensors[name] for name in names.of(path)}).shape
            for path in leaves}
    self.assertEqual(back, {path: leaf.shape for path, leaf in leaves.items()})

    arguments, image_size = clip_keys.sizes(tensors, names)
    width, depth, patch, side, embedding, text_width, text_depth, context, _ = PUBLISHED[size]
    self.assertEqual(image_size, side)
    self.assertEqual(
        {key: value for key, value in arguments.items() if not key.endswith('heads')},
        {'embedding': embedding, 'patch': patch, 'image_width': width, 'image_depth': depth,
         'text_width': text_width, 'text_depth': text_depth, 'context': context,
         'vocabulary': 49408})

  @parameterized.parameters(('b_32', 151_277_313), ('b_16', 149_620_737), ('l_14', 427_616_513))
  def test_the_tables_have_the_published_number_of_parameters(self, size, count):
    for table in (openai, transformers):
      self.assertEqual(sum(map(math.prod, table(PUBLISHED[size]).values())), count)


class LoadTest(parameterized.TestCase):

  @parameterized.parameters(*FAMILIES)
  def test_the_model_takes_them(self, family):
    _, given, layout, _ = FAMILIES[family]
    variables, spec = convert.load(weights(family, 'module.'), layout=given)
    self.assertEqual(spec.image_size, 12)
    self.assertEqual(spec.model_args, {
        'layout': layout, 'patch': 4, 'embedding': 32, 'image_width': 128, 'image_depth': 2,
        'text_width': 64, 'text_depth': 3, 'context': 10, 'vocabulary': 50, **HEADS})
    model = models.get('clip', **spec.model_args)
    outputs = jax.eval_shape(lambda v: model.apply(v, {
        'image': jnp.zeros((2, 12, 12, 3)), 'text': jnp.zeros((2, 10), jnp.int32)})[0], variables)
    self.assertEqual(outputs['text_embedding'].shape, (2, 32))
    for leaf in jax.tree.leaves(variables):
      self.assertEqual(leaf.dtype, np.float32)

  @parameterized.parameters(*FAMILIES)
  def test_orientation(self, family):
    tensors = weights(family)
    params = convert.load(tensors, layout=FAMILIES[family][1])[0]['params']

    def one(ending, text=False):
      name, = (name for name in tensors if name.endswith(ending)
               and name.startswith('vis') != text)
      return tensors[name].astype(np.float32)

    conv = one({'laclip': 'patch_embed.proj.weight', 'transformers': 'patch_embedding.weight'}.get(
        family, 'conv1.weight'))
    np.testing.assert_array_equal(params['visual']['conv1']['kernel'],
                                  np.einsum('oihw->hwio', conv))
    if family == 'transformers':
      parts = [one(f'layers.1.self_attn.{letter}_proj.weight') for letter in 'qkv']
    else:
      parts = [one('blocks.1.attn.qkv.weight' if family == 'laclip'
                   else 'resblocks.1.attn.in_proj_weight')]
    np.testing.assert_array_equal(
        params['visual']['transformer']['resblocks']['1']['attn']['in_proj']['kernel'].T,
        np.concatenate(parts))
    projection = params['text']['text_projection']
    if family.startswith('declip'):
      np.testing.assert_array_equal(projection['kernel'].T, one('text_projection.weight', True))
    elif family == 'transformers':
      np.testing.assert_array_equal(projection.T, one('text_projection.weight', True))
    else:
      np.testing.assert_array_equal(projection, one('text_projection', True))
    if family == 'laclip':
      np.testing.assert_array_equal(params['image_projection'], tensors['image_projection'])
      np.testing.assert_array_equal(params['visual']['class_embedding'],
                                    tensors['visual.cls_token'][0, 0])
    else:
      turned = family == 'transformers'
      image = one('visual_projection.weight' if turned else 'visual.proj')
      np.testing.assert_array_equal(params['visual']['proj'], image.T if turned else image)

  def test_what_is_loaded_is_a_copy(self):
    tensors = weights('openai', dtype=np.float32)
    variables, _ = convert.load(tensors)
    variables['params']['visual']['proj'][...] = 0
    self.assertGreater(np.abs(tensors['visual.proj']).max(), 0)

  @parameterized.parameters('open_clip_quickgelu', 'custom_text', 'transformers')
  def test_the_activation_must_be_said(self, family):
    with self.assertRaisesRegex(ValueError, "QuickGELU from GELU: layout is 'openai' or 'open_clip'"):
      convert.load(weights(family))

  @parameterized.parameters('open_clip_quickgelu', 'transformers')
  def test_exact_gelu(self, family):
    spec = convert.load(weights(family), layout='open_clip')[1]
    self.assertEqual(spec.model_args['layout'], 'open_clip')

  @parameterized.parameters(('openai', 'open_clip'), ('laclip', 'openai'), ('declip', 'laclip'))
  def test_a_layout_that_does_not_fit(self, family, layout):
    with self.assertRaisesRegex(ValueError, f"not '{layout}'"):
      convert.load(weights(family), layout=layout)

  def test_heads(self):
    with self.assertRaisesRegex(ValueError, 'text_width 64 is no multiple of head_width 128'):
      convert.load(weights('openai'), head_width=128)
    arguments = convert.load(weights('laclip'), head_width=16)[1].model_args
    self.assertEqual((arguments['image_heads'], arguments['text_heads']), (2, 4))

  @parameterized.parameters(
      ({'visual.proj': None}, "'visual.proj' is missing"),
      ({'ln_final.bias': None, 'visual.ln_pre.weight': None},
       '^the tensors: no CLIP by the names of openai: 2 missing: ln_final.bias, visual.ln_pre.weig'),
      ({f'extra.{number}': np.ones(2) for number in range(5)},
       r'5 unexpected: extra.0, extra.1, extra.2, \.\.\.$'),
      ({'ln_final.bias': np.ones(65)}, r'1 misshapen: ln_final.bias \(65,\) float64 instead of \(64,'),
      ({'ln_final.bias': np.ones(64, np.int8)}, r'ln_final.bias \(64,\) int8 instead of .* floats'),
      ({'visual.proj': np.ones(4)}, r"'visual.proj' should have 2 axes, has shape \(4,\)"),
      ({'visual.positional_embedding': np.ones((11, 128))}, 'no vision transformer.*11 image tokens'),
      ({'transformer.resblocks.1.ln_1.weight': None, 'transformer.resblocks.9.ln_1.weight':
        np.ones(64)}, 'missing.*unexpected'),
      ({'logit_scale': None}, 'no names of a CLIP.*the first ones are: visual.class_embedding'),
      ({'visual.class_embedding': None}, 'no names of a CLIP'))
  def test_bad_tensors(self, changes, message):
    tensors = {**weights('openai'), **changes}
    with self.assertRaisesRegex(ValueError, message):
      convert.load({name: value for name, value in tensors.items() if value is not None})

  def test_a_prefix_on_some_is_an_error(self):
    tensors = weights('openai')
    tensors['module.visual.proj'] = tensors.pop('visual.proj')
    with self.assertRaisesRegex(ValueError, "'visual.proj' is missing"):
      convert.load(tensors)

  def test_bad_file(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    with self.assertRaises(FileNotFoundError):
      convert.load(folder / 'a.pt')
    (folder / 'a.pt').write_bytes(b'PK\x03\x04 and no more')
    with self.assertRaisesRegex(ValueError, 'a.pt is damaged'):
      convert.load(folder / 'a.pt')


class SaveTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    pytest.importorskip('safetensors', reason='extra `convert`')
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.source, self.target = folder / 'a.safetensors', folder / 'b.safetensors'

  def store(self, tensors):
    from safetensors import numpy as safetensors
    safetensors.save_file(tensors, self.source)

  def changes(self, tensors):
    """Names in the target that are not bit by bit as they were."""
    found = convert.read(self.target)
    self.assertSameElements(found, tensors)
    return {name for name in tensors if not identical(found[name], tensors[name])}

  @parameterized.parameters(*FAMILIES)
  def test_nothing_changed(self, family):
    tensors = weights(family, 'module.')
    self.store(tensors)
    variables, _ = convert.load(self.source, layout=FAMILIES[family][1])
    self.assertEqual(convert.save(self.target, variables, like=self.source), ())
    self.assertEmpty(self.changes(tensors))

  @parameterized.product(family=('openai', 'transformers', 'laclip'), dtype=(
      None, np.float32, np.float64, jnp.bfloat16))
  def test_one_parameter_changed(self, family, dtype):
    tensors = weights(family, dtype=dtype)
    self.store(tensors)
    variables, _ = convert.load(self.source, layout=FAMILIES[family][1])
    block = variables['params']['visual']['transformer']['resblocks']['1']['attn']
    block['in_proj']['kernel'][0, 128] += 1  # a key's weight: [in, out] with q, k, v of 128 each
    name, place = {
        'openai': ('visual.transformer.resblocks.1.attn.in_proj_weight', (128, 0)),
        'laclip': ('visual.blocks.1.attn.qkv.weight', (128, 0)),
        'transformers': ('vision_model.encoder.layers.1.self_attn.k_proj.weight', (0, 0)),
    }[family]
    self.assertEqual(convert.save(self.target, variables, like=self.source), (name,))
    self.assertEqual(self.changes(tensors), {name})
    tensors[name][place] = (tensors[name][place].astype(np.float32) + 1).astype(tensors[name].dtype)
    self.assertEmpty(self.changes(tensors))

  def test_a_change_below_the_precision_is_lost_and_not_named(self):
    tensors = weights('openai')
    variables, _ = convert.load(tensors)
    variables['params']['visual']['proj'] *= 1 + 1e-6
    variables['params']['logit_scale'] = jnp.asarray(variables['params']['logit_scale'] + 1)
    self.assertEqual(convert.save(self.target, variables, like=tensors), ('logit_scale',))
    self.assertEqual(self.changes(tensors), {'logit_scale'})

  def test_bad_targets(self):
    tensors = weights('openai')
    variables, _ = convert.load(tensors)
    with self.assertRaisesRegex(FileNotFoundError, 'nowhere is no directory'):
      convert.save(self.target.parent / 'nowhere' / 'b.safetensors', variables, like=tensors)
    with self.assertRaisesRegex(ValueError, 'made from a PyTorch file'):
      convert.save(self.target.with_suffix('.pt'), variables, like=tensors)
    self.target.write_text('mine')
    with self.assertRaisesRegex(FileExistsError, 'overwrite=True'):
      convert.save(self.target, variables, like=tensors)
    self.assertEqual(self.target.read_text(), 'mine')
    convert.save(self.target, variables, like=tensors, overwrite=True)
    self.assertEmpty(self.changes(tensors))
    convert.save(self.target, variables, like=self.target, overwrite=True)  # onto the original
    self.assertEmpty(self.changes(tensors))
    self.assertLen(list(self.target.parent.iterdir()), 1)

  @parameterized.parameters(
      ({}, "'params/logit_scale' .* is missing"),
      ({'params': {'logit_scale': np.ones(2)}}, r'.* should have shape \(\), found \(2,'))
  def test_variables_of_another_model(self, variables, message):
    with self.assertRaisesRegex(ValueError, f'another model than the checkpoint: {message}'):
      convert.save(self.target, variables, like=weights('openai'))
    self.assertFalse(self.target.exists())

  def test_superfluous_variables(self):
    variables, _ = convert.load(weights('openai'))
    variables['params']['adapter'] = np.ones(2)
    with self.assertRaisesRegex(ValueError, "'params/adapter' .* has no place"):
      convert.save(self.target, variables, like=weights('openai'))

  def test_overflow(self):
    tensors = weights('openai')
    variables, _ = convert.load(tensors)
    variables['params']['visual']['proj'][0, 0] = 1e5
    with self.assertRaisesRegex(ValueError, 'visual.proj: 100000 overflows float16'):
      convert.save(self.target, variables, like=tensors)
    self.assertFalse(self.target.exists())


class ManifestTest(absltest.TestCase):
  """The public checkpoints in checkpoints/manifest.json."""

  def setUp(self):
    super().setUp()
    path = pathlib.Path(__file__).resolve().parents[2] / 'checkpoints' / 'manifest.json'
    self.manifest = json.loads(path.read_text(encoding='utf-8'))

  def test_entries_follow_their_schemas(self):
    for schema, entries in (('schema', 'checkpoints'), ('schema_without_digest', 'without_digest')):
      for entry in self.manifest[entries]:
        self.assertSameElements(entry, self.manifest[schema])
        for field, value in entry.items():
          self.assertTrue(value or field == 'experiment', (field, entry))
    names = [entry['name'] for entries in ('checkpoints', 'without_digest')
             for entry in self.manifest[entries]]
    self.assertLen(set(names), len(names))

  def test_openai(self):
    entries = {entry['name']: entry for entry in self.manifest['checkpoints']
               if 'openaipublic' in entry['source']}
    self.assertContainsSubset({'ViT-B-32.pt', 'ViT-B-16.pt', 'ViT-L-14.pt'}, entries)
    for name, entry in entries.items():  # the digest is a part of the address
      self.assertRegex(entry['sha256'], '^[0-9a-f]{64}$')
      self.assertEqual(entry['source'].split('/')[-2:], [entry['sha256'], name])

  def test_mae(self):
    """Base and large, each as encoder alone, with a decoder of normalised pixels, and of raw ones."""
    entries = {entry['name']: entry for entry in self.manifest['without_digest']
               if '/mae/' in entry['source']}
    self.assertSameElements(entries, [
        f'mae_{kind}_vit_{size}{end}.pth' for size in ('base', 'large')
        for kind, end in (('pretrain', ''), ('pretrain', '_full'), ('visualize', ''))])
    for name, entry in entries.items():
      self.assertEqual(entry['source'].split('/')[-3:], ['mae', name.split('_')[1], name])
      self.assertStartsWith(entry['licence'], 'CC-BY-NC-4.0')


if __name__ == '__main__':
  absltest.main()
