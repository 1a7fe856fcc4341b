"""Tests of public MAE checkpoints: tables of names and shapes, round trips, bad files."""

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
from unlearn_jax.models import convert
from unlearn_jax.models import mae_keys
from unlearn_jax.models import patches
from unlearn_jax.models import surgery

# width, depth, decoder width, decoder depth, patch, side, channels
VIT_B = (768, 12, 512, 8, 16, 224, 3)
VIT_L = (1024, 24, 512, 8, 16, 224, 3)
TINY = (128, 2, 64, 1, 2, 6, 1)
ARGUMENTS = {'image_size': 6, 'channels': 1, 'patch': 2, 'width': 128, 'depth': 2, 'heads': 2,
             'decoder_width': 64, 'decoder_depth': 1, 'decoder_heads': 2}


def affine(name, *shape):
  """Weight and bias of a layer."""
  return {f'{name}.weight': shape, f'{name}.bias': shape[:1]}


def release(size, decoder=True):
  """facebookresearch/mae, models_mae.py, on the blocks of timm 0.3.2."""
  width, depth, decoder_width, decoder_depth, patch, side, channels = size
  number = (side // patch)**2

  def blocks(name, depth, width):
    table = {}
    for block in range(depth):
      for part, shape in (('norm1', (width,)), ('attn.qkv', (3 * width, width)),
                          ('attn.proj', (width, width)), ('norm2', (width,)),
                          ('mlp.fc1', (4 * width, width)), ('mlp.fc2', (width, 4 * width))):
        table |= affine(f'{name}.{block}.{part}', *shape)
    return table

  table = {'cls_token': (1, 1, width), 'pos_embed': (1, number + 1, width),
           **affine('patch_embed.proj', width, channels, patch, patch),
           **blocks('blocks', depth, width), **affine('norm', width)}
  if decoder:
    table |= {'mask_token': (1, 1, decoder_width),
              'decoder_pos_embed': (1, number + 1, decoder_width),
              **affine('decoder_embed', decoder_width, width),
              **blocks('decoder_blocks', decoder_depth, decoder_width),
              **affine('decoder_norm', decoder_width),
              **affine('decoder_pred', patch**2 * channels, decoder_width)}
  return table


def encoder(size):
  return release(size, decoder=False)


def transformers(size):
  """ViTMAEForPreTraining of transformers 4, and its published files."""
  width, depth, decoder_width, decoder_depth, patch, side, channels = size
  number = (side // patch)**2

  def layers(name, depth, width):
    table = {}
    for layer in range(depth):
      for part, shape in (
          *((f'attention.attention.{kind}', (width, width)) for kind in ('query', 'key', 'value')),
          ('attention.output.dense', (width, width)), ('intermediate.dense', (4 * width, width)),
          ('output.dense', (width, 4 * width)), ('layernorm_before', (width,)),
          ('layernorm_after', (width,))):
        table |= affine(f'{name}.{layer}.{part}', *shape)
    return table

  return {'vit.embeddings.cls_token': (1, 1, width),
          'vit.embeddings.position_embeddings': (1, number + 1, width),
          **affine('vit.embeddings.patch_embeddings.projection', width, channels, patch, patch),
          **layers('vit.encoder.layer', depth, width), **affine('vit.layernorm', width),
          'decoder.mask_token': (1, 1, decoder_width),
          'decoder.decoder_pos_embed': (1, number + 1, decoder_width),
          **affine('decoder.decoder_embed', decoder_width, width),
          **layers('decoder.decoder_layers', decoder_depth, decoder_width),
          **affine('decoder.decoder_norm', decoder_width),
          **affine('decoder.decoder_pred', patch**2 * channels, decoder_width)}


def transformers_5(size):
  """ViTMAEForPreTraining.state_dict() of transformers 5."""
  def renamed(name):
    for old, new in (('vit.encoder.layer', 'vit.layers'),
                     ('attention.attention.query', 'attention.q_proj'),
                     ('attention.attention.key', 'attention.k_proj'),
                     ('attention.attention.value', 'attention.v_proj'),
                     ('attention.output.dense', 'attention.o_proj'),
                     ('intermediate.dense', 'mlp.fc1'), ('output.dense', 'mlp.fc2')):
      name = name.replace(old, new)
    return name
  return {renamed(name): shape for name, shape in transformers(size).items()}


def transformers_5_file(size):
  """What its save_pretrained writes."""
  return {name.replace('decoder_layers', 'decoder_encoder.layer'): shape
          for name, shape in transformers(size).items()}


FAMILIES = {'mae': release, 'encoder': encoder, 'transformers': transformers,
            'transformers_5': transformers_5, 'transformers_5_file': transformers_5_file}


def weights(family, prefix='', dtype=np.float32):
  """Random tensors of the tiny size, with the fixed position tables."""
  rng = np.random.default_rng(0)
  tensors = {}
  for name, shape in FAMILIES[family](TINY).items():
    value = rng.normal(size=shape)
    if 'pos' in name:
      value = np.concatenate([np.zeros((1, shape[-1])), patches.positions(3, shape[-1])])[None]
    tensors[prefix + name] = value.astype(dtype)
  return tensors


class TableTest(parameterized.TestCase):

  @parameterized.product(size=(VIT_B, VIT_L), family=tuple(FAMILIES))
  def test_every_name_is_one_parameter(self, size, family):
    shapes = FAMILIES[family](size)
    tensors = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    names = mae_keys.detect(tensors)
    self.assertEqual(names, ('mae' if family == 'encoder' else family, '', 16))
    model = models.get('mae_vit_b' if size is VIT_B else 'mae_vit_l')
    variables = jax.eval_shape(
        lambda image, visible: model.init(jax.random.key(0), {'image': image, 'visible': visible}),
        jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32), jax.ShapeDtypeStruct((1, 49), jnp.int32))
    leaves = {path: leaf for path, leaf in zip(surgery.paths(variables), jax.tree.leaves(variables))
              if family != 'encoder' or path.startswith('params/encoder/')}

    def there_and_back(leaves):
      stored = {}
      for path, leaf in leaves.items():
        stored |= names.to_file(path, leaf)
      return stored, {path: names.from_file(path, stored, jnp) for path in leaves}

    stored, back = jax.eval_shape(there_and_back, leaves)
    found = {name: leaf.shape for name, leaf in stored.items()}
    self.assertLen(found, sum(len(names.of(path)) for path in leaves))  # no name twice
    self.assertEqual(found, {name: shape for name, shape in shapes.items()
                             if not names.spare(name)})
    self.assertEqual({path: leaf.shape for path, leaf in back.items()},
                     {path: leaf.shape for path, leaf in leaves.items()})

  @parameterized.parameters((VIT_B, 111_907_840, 85_798_656, 254),
                            (VIT_L, 329_541_888, 303_301_632, 398))
  def test_the_tables_have_the_published_number_of_values(self, size, total, half, tensors):
    def count(table):
      return sum(map(math.prod, table.values()))

    self.assertEqual((count(release(size)), count(encoder(size))), (total, half))
    self.assertLen(release(size), tensors)
    self.assertEqual(count(transformers(size)), total)


class LoadTest(parameterized.TestCase):

  @parameterized.product(family=tuple(FAMILIES), prefix=('', 'module.'))
  def test_the_model_takes_them(self, family, prefix):
    variables, spec = convert.load(weights(family, prefix))
    alone = family == 'encoder'
    self.assertEqual(spec.model_args, {
        name: value for name, value in ARGUMENTS.items()
        if not (alone and name.startswith('decoder'))})
    self.assertEqual((spec.image_size, spec.model, spec.absent, spec.scheme),
                     (6, 'mae', ('decoder',) if alone else (), 'mae' if alone else family))
    self.assertEqual(set(variables['params']), {'encoder'} if alone else {'encoder', 'decoder'})
    for leaf in jax.tree.leaves(variables):
      self.assertEqual(leaf.dtype, np.float32)
    model = models.get(spec.model, **spec.model_args)
    fresh = jax.eval_shape(lambda: model.init(jax.random.key(0), {
        'image': jnp.zeros((2, 6, 6, 1)), 'visible': jnp.zeros((2, 3), jnp.int32)}))
    expected = {'params': {half: fresh['params'][half] for half in variables['params']}}
    self.assertIsNone(surgery.first_mismatch(expected, variables))

  def test_orientation(self):
    """The patch embedding is the release's convolution, the rest is transposed; q, k, v in a row."""
    tensors = weights('mae')
    params = convert.load(tensors)[0]['params']
    image = np.random.default_rng(1).normal(size=(6, 6, 1))
    expected = np.zeros((3, 3, 128))
    for row in range(3):
      for column in range(3):
        window = image[2 * row:2 * row + 2, 2 * column:2 * column + 2]
        expected[row, column] = np.einsum('hwc,ochw->o', window, tensors['patch_embed.proj.weight'])
    cut = np.asarray(patches.patchify(jnp.asarray(image[None], jnp.float32), 2))[0]
    np.testing.assert_allclose(cut @ params['encoder']['patch_embed']['kernel'],
                               expected.reshape(9, 128), atol=1e-5)
    np.testing.assert_array_equal(params['encoder']['blocks_1']['attn']['in_proj']['kernel'].T,
                                  tensors['blocks.1.attn.qkv.weight'])
    np.testing.assert_array_equal(params['decoder']['pred']['kernel'].T,
                                  tensors['decoder_pred.weight'])
    for family, stem, letters in (
        ('transformers', 'decoder.decoder_layers.0.attention.attention.{}', ('query', 'key', 'value')),
        ('transformers_5', 'decoder.decoder_layers.0.attention.{}_proj', 'qkv')):
      tensors = weights(family)
      block = convert.load(tensors)[0]['params']['decoder']['blocks_0']['attn']['in_proj']
      for name, found in (('weight', block['kernel'].T), ('bias', block['bias'])):
        np.testing.assert_array_equal(found, np.concatenate(
            [tensors[f'{stem.format(letter)}.{name}'] for letter in letters]))

  def test_an_encoder_with_a_decoder_of_ones_own(self):
    tensors = weights('encoder')
    loaded, spec = convert.load(tensors)
    self.assertEqual(spec.absent, ('decoder',))
    model = models.get('mae', **spec.model_args, decoder_width=8, decoder_heads=1, decoder_depth=1)
    fresh = model.init(jax.random.key(0), {'image': jnp.zeros((1, 6, 6, 1)),
                                           'visible': jnp.zeros((1, 2), jnp.int32)})
    with self.assertRaisesRegex(ValueError, "'params/decoder/.*is missing"):
      surgery.load(fresh, loaded)
    variables = surgery.load(fresh, loaded, keep='params/decoder/.*')
    jax.tree.map(np.testing.assert_array_equal, variables['params'],
                 {'encoder': loaded['params']['encoder'], 'decoder': fresh['params']['decoder']})

  def test_heads(self):
    arguments = convert.load(weights('mae'), head_width=32, decoder_head_width=16)[1].model_args
    self.assertEqual((arguments['heads'], arguments['decoder_heads']), (4, 4))
    with self.assertRaisesRegex(ValueError, '^width 128 is no multiple of head_width 80'):
      convert.load(weights('mae'), head_width=80)
    with self.assertRaisesRegex(ValueError, 'decoder_width 64 is no multiple of decoder_head_width 5'):
      convert.load(weights('mae'), decoder_head_width=5)

  def test_half_precision(self):
    variables, _ = convert.load(weights('mae', dtype=np.float16))  # and its tables are no others
    np.testing.assert_allclose(variables['params']['encoder']['cls_token'],
                               weights('mae')['cls_token'], atol=2e-3)

  @parameterized.parameters(
      ({'pos_embed': None}, "^the tensors: 'pos_embed' is missing"),
      ({'decoder_pos_embed': None}, "'decoder_pos_embed' is missing"),
      ({'pos_embed': np.ones((1, 10, 128), 'f')}, r"'pos_embed' is not the fixed table of 3x3 patc"),
      ({'pos_embed': np.full((1, 10, 128), np.nan, 'f')}, 'not the fixed table'),
      ({'pos_embed': np.zeros((1, 9, 128), 'f')}, 'patches of 2x2, 9 positions'),
      ({'pos_embed': np.zeros((1, 17, 128), 'f')}, 'not the fixed table of 4x4'),  # another size
      ({'pos_embed': np.zeros((10, 128), 'f')}, 'should have 3 axes'),
      ({'decoder_pos_embed': np.zeros((1, 17, 64), 'f')},
       r"'decoder_pos_embed' should have shape \(1, 10, 64\), has \(1, 17, 64\)"),
      ({'norm.weight': None}, 'no MAE by the names of mae: 1 missing: norm.weight'),
      ({'norm.weight': np.ones(64, 'f')}, r'1 misshapen: norm.weight \(64,\) float32 instead of'),
      ({'norm.weight': np.ones(128, np.int64)}, 'int64 instead of'),
      ({'mask_token': None}, 'unexpected: decoder_embed.weight'),
      ({'head.weight': np.ones((5, 128), 'f')}, '1 unexpected: head.weight'),
      ({'cls_token': None}, 'no names of a CLIP .* nor of an MAE'))
  def test_bad_tensors(self, changes, message):
    tensors = {name: value for name, value in {**weights('mae'), **changes}.items()
               if value is not None}
    with self.assertRaisesRegex(ValueError, message):
      convert.load(tensors)

  def test_no_layout(self):
    with self.assertRaisesRegex(
        ValueError, "layout is of a CLIP, this is of model 'mae'; got 'openai'"):
      convert.load(weights('mae'), layout='openai')


class SaveTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    pytest.importorskip('safetensors', reason='extra `convert`')
    self.target = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / 'b.safetensors'

  @parameterized.product(family=tuple(FAMILIES), dtype=(np.float32, np.float16))
  def test_round_trip(self, family, dtype):
    tensors = weights(family, 'module.', dtype)
    variables, _ = convert.load(tensors)
    self.assertEqual(convert.save(self.target, variables, like=tensors), ())
    found = convert.read(self.target)
    self.assertSameElements(found, tensors)
    for name, value in tensors.items():
      self.assertEqual(found[name].dtype, value.dtype)
      self.assertEqual(found[name].tobytes(), value.tobytes(), name)

  @parameterized.parameters(
      ('mae', 'blocks.1.attn.qkv.weight', (128, 3)),
      ('transformers', 'vit.encoder.layer.1.attention.attention.key.weight', (0, 3)),
      ('transformers_5', 'vit.layers.1.attention.k_proj.weight', (0, 3)))
  def test_changes_are_written_where_they_belong(self, family, name, place):
    tensors = weights(family)
    variables, _ = convert.load(tensors)
    variables['params']['encoder']['blocks_1']['attn']['in_proj']['kernel'][3, 128] += 1
    variables['params']['encoder']['patch_embed']['kernel'][1, 5] += 1  # row 0, column 1
    convolution = next(key for key in tensors if key.endswith(('proj.weight', 'projection.weight'))
                       and tensors[key].ndim == 4)
    self.assertSameElements(convert.save(self.target, variables, like=tensors), (name, convolution))
    tensors[name][place] += 1
    tensors[convolution][5, 0, 0, 1] += 1
    for key, value in convert.read(self.target).items():
      np.testing.assert_array_equal(value, tensors[key], err_msg=key)

  def test_variables_of_another_model(self):
    variables, _ = convert.load(weights('mae'))
    with self.assertRaisesRegex(ValueError, "'params/decoder/.* has no place in this model"):
      convert.save(self.target, variables, like=weights('encoder'))
    self.assertFalse(self.target.exists())
    half = {'params': {'encoder': variables['params']['encoder']}}
    self.assertEqual(convert.save(self.target, half, like=weights('encoder')), ())


if __name__ == '__main__':
  absltest.main()
