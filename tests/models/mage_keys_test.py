"""Tests of public MAGE and VQ-GAN checkpoints: the published tables of names and shapes, bad files."""

import functools
import os
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
from unlearn_jax.models import mage_keys
from unlearn_jax.models import surgery
from unlearn_jax.models import vqgan


def affine(name, *shape):
  """Weight and bias of a layer."""
  return {f'{name}.weight': shape, f'{name}.bias': shape[:1]}


def block(name, before, after):
  table = {**affine(f'{name}.norm1', before), **affine(f'{name}.norm2', after),
           f'{name}.conv1.weight': (after, before, 3, 3), f'{name}.conv2.weight': (after, after, 3, 3)}
  return table | ({f'{name}.nin_shortcut.weight': (after, after, 1, 1)} if before != after else {})


def tokenizer(prefix=''):
  """The 168 tensors of the published VQ-GAN, written out level by level."""
  table = {'quantize.embedding.weight': (1024, 256), 'encoder.conv_in.weight': (128, 3, 3, 3),
           **affine('encoder.norm_out', 512), **affine('encoder.conv_out', 256, 512, 1, 1),
           **affine('decoder.conv_in', 512, 256, 3, 3), **affine('decoder.norm_out', 128),
           **affine('decoder.conv_out', 3, 128, 3, 3)}
  for half in ('encoder', 'decoder'):
    for number in (1, 2):
      table |= block(f'{half}.mid.block_{number}', 512, 512)
  for level, (before, after) in enumerate(((128, 128), (128, 128), (128, 256), (256, 256),
                                           (256, 512))):
    table |= block(f'encoder.down.{level}.block.0', before, after)
    table |= block(f'encoder.down.{level}.block.1', after, after)
  for level, (before, after) in enumerate(((128, 128), (256, 128), (256, 256), (512, 256),
                                           (512, 512))):
    table |= block(f'decoder.up.{level}.block.0', before, after)
    table |= block(f'decoder.up.{level}.block.1', after, after)
    if level:
      table |= affine(f'decoder.up.{level}.upsample.conv', after, after, 3, 3)
  return {prefix + name: shape for name, shape in table.items()}


def release():
  """The 433 tensors of the published ViT-B."""
  table = {**tokenizer('vqgan.'), 'cls_token': (1, 1, 768), 'mask_token': (1, 1, 768),
           'pos_embed': (1, 257, 768), 'decoder_pos_embed': (1, 257, 768),
           'decoder_pos_embed_learned': (1, 257, 768), **affine('patch_embed.proj', 768, 3, 16, 16),
           'token_emb.position_ids': (1, 257), 'token_emb.word_embeddings.weight': (2025, 768),
           'token_emb.position_embeddings.weight': (257, 768), **affine('token_emb.LayerNorm', 768),
           **affine('norm', 768), **affine('decoder_embed', 768, 768), **affine('decoder_norm', 768),
           **affine('decoder_pred', 768, 768), **affine('mlm_layer.fc', 768, 768),
           **affine('mlm_layer.ln', 768), 'mlm_layer.bias': (1, 1, 2025)}
  for name, depth in (('blocks', 12), ('decoder_blocks', 8)):
    for number in range(depth):
      for part, shape in (('norm1', (768,)), ('attn.qkv', (2304, 768)), ('attn.proj', (768, 768)),
                          ('norm2', (768,)), ('mlp.fc1', (3072, 768)), ('mlp.fc2', (768, 3072))):
        table |= affine(f'{name}.{number}.{part}', *shape)
  return table


def tensors(table):
  return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in table.items()}


class TableTest(parameterized.TestCase):

  @parameterized.parameters('', 'module.')
  def test_vit_b(self, prefix):
    table = {prefix + name: shape for name, shape in release().items()}
    self.assertLen(table, 433)
    names = mage_keys.detect(tensors(table))
    self.assertEqual(names, ('mage', prefix))
    sizes = mage_keys.sizes(tensors(table), names)
    self.assertEqual((sizes.image_size, sizes.absent), (256, ()))
    hash(tuple(sizes.arguments.items()))  # the converter caches by them
    self.assertEqual(dict(sizes.arguments['vqgan']), {'channels': 3, **vqgan.PUBLISHED})
    fields = {'image': jnp.zeros((1, 256, 256, 3)), 'visible': jnp.zeros((1, 128), jnp.int32)}
    abstract = [jax.eval_shape(models.get(name, **arguments).init, jax.random.key(0), fields)
                for name, arguments in (('mage', {**sizes.arguments, 'heads': 12}),
                                        ('mage_vit_b', {}))]
    self.assertIsNone(surgery.first_mismatch(*abstract))
    found = {}
    for path, leaf in zip(surgery.paths(abstract[0]), jax.tree.leaves(abstract[0])):
      stored = jax.eval_shape(functools.partial(names.to_file, path), leaf)
      found |= {name: each.shape for name, each in stored.items()}
    spare = {name for name in table if names.spare(name)}
    self.assertLen(spare, 9)
    self.assertEqual(found, {name: shape for name, shape in table.items() if name not in spare})

  def test_tokenizer(self):
    table = tokenizer()
    self.assertLen(table, 168)
    names = mage_keys.detect(tensors(table))
    self.assertEqual(names, ('vqgan', ''))
    sizes = mage_keys.sizes(tensors(table), names)
    self.assertEqual(sizes.arguments, {'channels': 3, **vqgan.PUBLISHED})
    abstract = jax.eval_shape(models.get('vqgan', **sizes.arguments).init, jax.random.key(0),
                              {'image': jnp.zeros((1, 16, 16, 3))})
    found = {}
    for path, leaf in zip(surgery.paths(abstract), jax.tree.leaves(abstract)):
      stored = jax.eval_shape(functools.partial(names.to_file, path), leaf)
      found |= {name: each.shape for name, each in stored.items()}
    self.assertEqual(found, table)

  def test_there_and_back(self):
    rng = np.random.default_rng(0)
    for path, shape, stored in (('params/encoder/blocks_0/fc1/kernel', (2, 3), (3, 2)),
                                ('params/tokenizer/decoder/conv_in/kernel', (3, 3, 2, 5),
                                 (5, 2, 3, 3)),
                                ('params/decoder/position', (4, 2), (1, 4, 2)),
                                ('params/decoder/head/bias', (4,), (1, 1, 4)),
                                ('params/encoder/token_emb/word', (4, 2), (4, 2))):
      names, value = mage_keys.Names('mage', ''), rng.normal(size=shape)
      file = names.to_file(path, value)
      self.assertEqual([each.shape for each in file.values()], [stored])
      np.testing.assert_array_equal(names.from_file(path, file), value)
    name, = mage_keys.Names('mage', '').to_file('params/tokenizer/decoder/conv_in/kernel', value=(
        np.zeros((3, 3, 2, 5))))
    self.assertEqual(name, 'vqgan.decoder.conv_in.weight')
    kernel = rng.normal(size=(3, 3, 2, 5))  # rows, columns, in, out
    stored = mage_keys.Names('vqgan', '').to_file('params/decoder/conv_in/kernel', kernel)
    self.assertEqual(stored['decoder.conv_in.weight'][4, 1, 2, 0], kernel[2, 0, 1, 4])


class DetectTest(parameterized.TestCase):

  def test_others(self):
    self.assertIsNone(mage_keys.detect(tensors({'cls_token': (1, 1, 8), 'norm.weight': (8,)})))
    # Why it is asked first: half of a MAGE looks like a masked autoencoder.
    self.assertIsNotNone(mae_keys.detect(tensors(release())))

  @parameterized.parameters(
      ('token_emb.word_embeddings.weight', (1500, 768), 'a vocabulary is 1024 codes, 1000 classes'),
      ('token_emb.position_embeddings.weight', (256, 768), '255 tokens fill no square'),
      ('decoder_embed.weight', (768,), 'should have 2 axes'),
      ('vqgan.encoder.down.2.block.0.conv1.weight', (200, 128, 3, 3), 'multiples of 128 channels'),
      ('token_emb.position_embeddings.weight', None, 'is missing'),
      ('vqgan.encoder.down.0.block.0.conv1.weight', None, 'is missing'))
  def test_bad_shapes(self, name, shape, message):
    table = {**release(), name: shape}
    table = tensors({key: value for key, value in table.items() if value is not None})
    with self.assertRaisesRegex(ValueError, message):
      mage_keys.sizes(table, mage_keys.detect(table))


class ConvertTest(parameterized.TestCase):

  @parameterized.parameters('mage', 'vqgan')
  def test_there_and_back(self, name):
    pytest.importorskip('safetensors', reason='extra `convert`')
    small = {'width': 8, 'multipliers': (1, 2), 'blocks': 1, 'latent': 4, 'codes': 8}
    arguments = small if name == 'vqgan' else {
        'image_size': 8, 'vqgan': small, 'width': 64, 'depth': 1, 'heads': 1, 'decoder_width': 32,
        'decoder_depth': 1, 'decoder_heads': 16, 'classes': 1000}
    fields = {'image': np.zeros((1, 8, 8, 3), np.float32), 'visible': np.zeros((1, 3), np.int32)}
    model = models.get(name, **arguments)
    template = jax.eval_shape(lambda: model.init(jax.random.key(0), fields))
    rng, names = np.random.default_rng(0), mage_keys.Names(name, '')
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), template)
    files = {}
    for path, value in zip(surgery.paths(variables), jax.tree.leaves(variables)):
      files |= names.to_file(path, value)
    found, spec = convert.load(files)
    self.assertEqual(spec.model, name)
    jax.tree.map(np.testing.assert_array_equal, found, variables)
    again = models.get(spec.model, **spec.model_args)
    self.assertIsNone(surgery.first_mismatch(
        jax.eval_shape(lambda: again.init(jax.random.key(0), fields)), found))
    found['params']['encoder']['conv_in' if name == 'vqgan' else 'norm'][
        'kernel' if name == 'vqgan' else 'scale'].flat[0] += 1
    target = os.path.join(tempfile.mkdtemp(), 'a.safetensors')
    changed, = convert.save(target, found, like=files)
    after = convert.read(target)
    for key, value in files.items():
      self.assertEqual(np.array_equal(after[key], value), key != changed, key)


if __name__ == '__main__':
  absltest.main()
