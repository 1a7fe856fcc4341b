"""Tests of Palette's names in public checkpoints: there and back, what is spare, what is refused."""

import os
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import pytest

from unlearn_jax import models
from unlearn_jax.models import convert
from unlearn_jax.models import diffusion
from unlearn_jax.models import palette_keys
from unlearn_jax.models import surgery

SIZES = {'width': 16, 'multipliers': (1, 3), 'blocks': 2, 'groups': 8, 'head_width': 8}
BUFFERS = {'gammas': 'gammas', 'posterior_log_variance_clipped': 'log_variance',
           'posterior_mean_coef2': 'mean_of_state'}


def file_of(prefix='denoise_fn.', **changes):
  """Random variables' abstract tree and their tensors, with some of the schedule's tables."""
  fields = {'image': np.zeros((1, 16, 16, 3), np.float32), 'visible': np.zeros((1, 2), np.int32)}
  model = models.get('palette', **{**SIZES, **changes})
  template = jax.eval_shape(lambda: model.init(jax.random.key(0), fields))
  rng, names = np.random.default_rng(0), palette_keys.Names(
      prefix, {**SIZES, **changes}['head_width'])
  variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), template)
  tensors = {}
  for path, value in zip(surgery.paths(variables), jax.tree.leaves(variables)):
    tensors |= names.to_file(path, value)
  tables = diffusion.schedule(diffusion.linear(2000, 1e-6, 0.01))
  root = prefix.removesuffix('denoise_fn.')
  tensors |= {root + name: getattr(tables, field) for name, field in BUFFERS.items()}
  return variables, tensors


class KeysTest(parameterized.TestCase):

  @parameterized.parameters('', 'denoise_fn.', 'module.denoise_fn.')
  def test_there_and_back(self, prefix):
    variables, tensors = file_of(prefix)
    names = palette_keys.detect(tensors)
    self.assertEqual(names, palette_keys.Names(prefix))
    names = names._replace(head_width=8)
    sizes = palette_keys.sizes(tensors, names)
    self.assertEqual(sizes.arguments, {**SIZES, 'channels': 3, 'patch': 16, 'groups': 32})
    used = set()
    for path, value in zip(surgery.paths(variables), jax.tree.leaves(variables)):
      np.testing.assert_array_equal(names.from_file(path, tensors), value)
      used.update(names.of(path))
    self.assertLen(used, len(jax.tree.leaves(variables)))
    rest = set(tensors) - used
    self.assertLen(rest, len(BUFFERS))
    root = prefix.removesuffix('denoise_fn.')
    for name in (*rest, f'{root}teacher_denoise_fn.out.2.bias'):
      self.assertTrue(names.spare(name), name)
    for name in (*used, 'gammas_', f'{root}ema.out.2.bias'):
      self.assertFalse(names.spare(name), name)

  def test_names_of_the_release(self):
    fields = {'image': jax.ShapeDtypeStruct((1, 256, 256, 3), np.float32),
              'visible': jax.ShapeDtypeStruct((1, 9), np.int32)}
    params = jax.eval_shape(models.get('palette_256').init, jax.random.key(0), fields)
    names = palette_keys.Names('denoise_fn.')
    found = {}
    for path, leaf in zip(surgery.paths(params), jax.tree.leaves(params)):
      found |= jax.eval_shape(lambda value, path=path: names.to_file(path, value), leaf)
    found = {name.removeprefix('denoise_fn.'): leaf.shape for name, leaf in found.items()}
    self.assertLen(found, 326)
    for name, shape in {  # landmarks by the release's code
        'cond_embed.0.weight': (256, 64), 'cond_embed.2.bias': (256,),
        'input_blocks.0.0.weight': (64, 6, 3, 3), 'input_blocks.3.0.in_layers.2.weight': (
            64, 64, 3, 3), 'input_blocks.4.0.skip_connection.weight': (128, 64, 1, 1),
        'input_blocks.11.0.emb_layers.1.weight': (1024, 256),
        'middle_block.1.qkv.weight': (1536, 512, 1), 'middle_block.1.norm.weight': (512,),
        'middle_block.1.proj_out.weight': (512, 512, 1),
        'middle_block.2.out_layers.3.bias': (512,),
        'output_blocks.0.0.in_layers.0.weight': (1024,),
        'output_blocks.2.0.in_layers.2.weight': (512, 768, 3, 3),
        'output_blocks.2.1.in_layers.2.weight': (512, 512, 3, 3),
        'output_blocks.8.1.out_layers.0.bias': (128,),
        'output_blocks.11.0.in_layers.0.bias': (128,),
        'out.0.weight': (64,), 'out.2.weight': (3, 64, 3, 3)}.items():
      self.assertEqual(found[name], shape, name)

  def test_heads(self):
    """The file has queries, keys and values of a head together; ours all queries first."""
    names, path = palette_keys.Names('', 2), 'params/encoder/middle_1/attn/in_proj/'
    value = np.arange(12, dtype=np.float32)  # q0 q0 q1 q1 k0 ...
    expected = np.array([0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11], np.float32)
    stored, = names.to_file(path + 'bias', value).values()
    np.testing.assert_array_equal(stored, expected)
    stored, = names.to_file(path + 'kernel', np.tile(value, (4, 1))).values()
    np.testing.assert_array_equal(stored, np.tile(expected[:, None, None], (1, 4, 1)))

  def test_a_frozen_copy_is_not_the_model(self):
    _, tensors = file_of()
    both = {**{f'teacher_{name}': value for name, value in tensors.items()}, **tensors}
    self.assertEqual(palette_keys.detect(both), palette_keys.Names('denoise_fn.'))
    self.assertIsNone(palette_keys.detect({'visual.conv1.weight': np.zeros(3)}))

  def test_refused(self):
    _, tensors = file_of()
    names = palette_keys.detect(tensors)
    for changes, message in (
        ({'gammas': np.linspace(1, 0.1, 2000)}, "'gammas' is of another schedule than 2000 steps"),
        ({'gammas': tensors['gammas'][:1000]}, 'another schedule'),
        ({'denoise_fn.out.2.weight': None}, "'denoise_fn.out.2.weight' is missing"),
        ({'denoise_fn.out.2.weight': np.zeros(3)}, r'should have 4 axes, has shape \(3,\)'),
        ({'denoise_fn.output_blocks.5.0.in_layers.0.weight': None}, '5 blocks on the way up at 2'),
        ({'denoise_fn.input_blocks.1.0.in_layers.2.weight': np.zeros((17, 1, 1, 1))},
         'channels are no multiples of 16')):
      wrong = {name: value for name, value in {**tensors, **changes}.items() if value is not None}
      with self.assertRaisesRegex(ValueError, message):
        palette_keys.sizes(wrong, names)


class ConvertTest(absltest.TestCase):

  def test_there_and_back(self):
    safetensors = pytest.importorskip('safetensors')
    del safetensors  # writes the file
    variables, tensors = file_of(width=32, multipliers=(1, 2), blocks=1, groups=32, head_width=32)
    found, spec = convert.load(tensors)
    self.assertEqual((spec.model, spec.scheme), ('palette', 'palette'))
    jax.tree.map(np.testing.assert_array_equal, found, variables)
    model = models.get('palette', **spec.model_args)
    fields = {'image': np.zeros((1, 32, 32, 3), np.float32), 'visible': np.zeros((1, 2), np.int32)}
    self.assertIsNone(surgery.first_mismatch(
        jax.eval_shape(lambda: model.init(jax.random.key(0), fields)), found))
    found['params']['encoder']['middle_1']['attn']['in_proj']['kernel'][0, 0] += 1
    target = os.path.join(tempfile.mkdtemp(), 'a.safetensors')
    changed, = convert.save(target, found, like=tensors)
    self.assertIn('qkv', changed)
    after = convert.read(target)
    for name, value in tensors.items():
      self.assertEqual(np.array_equal(after[name], value), name != changed, name)
    with self.assertRaisesRegex(ValueError, '1 unexpected: denoise_fn.more'):
      convert.load({**tensors, 'denoise_fn.more': np.zeros(3, np.float32)})


if __name__ == '__main__':
  absltest.main()
