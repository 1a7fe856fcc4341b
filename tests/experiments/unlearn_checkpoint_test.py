"""A public checkpoint in, an unlearned one out, on generated files in the layouts of web pairs."""

import os
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import pytest

from experiments import unlearn_checkpoint
from experiments.configs import i2i_mae_imagenet
from experiments.configs import ncu_cc3m
from experiments.configs import ncu_cc12m
from experiments.configs import ncu_yfcc15m_r
from unlearn_jax import config as config_lib
from unlearn_jax import experiment
from unlearn_jax import models
from unlearn_jax.models import clip_keys
from unlearn_jax.models import convert
from unlearn_jax.models import mae_keys
from unlearn_jax.models import patches
from unlearn_jax.models import surgery

CONFIGS = {'cc3m': ncu_cc3m, 'cc12m': ncu_cc12m, 'yfcc15m_r': ncu_yfcc15m_r}
NAMES = {'laclip': clip_keys.Names('laclip', 'laclip', '', '', ()),
         'declip': clip_keys.Names('openai', 'declip', '', '', ())}


def checkpoint(config, **changes):
  """A random checkpoint of the config's network, under its published names."""
  safetensors = pytest.importorskip('safetensors.numpy')
  args = {**config.model_args.to_dict(), **changes}
  model = models.get('clip', **args)
  variables = jax.device_get(model.init(jax.random.key(0), {
      'image': np.zeros((1, 32, 32, 3), np.float32),
      'text': np.zeros((1, args['context']), np.int32)}))
  tensors = {}
  for path, leaf in zip(surgery.paths(variables), jax.tree.leaves(variables)):
    tensors |= NAMES[args['layout']].to_file(path, np.asarray(leaf))
  path = os.path.join(tempfile.mkdtemp(), 'public.safetensors')
  safetensors.save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, path)
  return path, tensors


class UnlearnCheckpointTest(parameterized.TestCase):

  def test_unlearns_under_the_published_names(self):
    self.unlearn('cc3m')

  @pytest.mark.slow
  def test_unlearns_a_declip(self):
    self.unlearn('yfcc15m_r')

  def unlearn(self, name):
    config = CONFIGS[name].get_config('smoke')
    config.devices = 1
    one_head = {'image_width': 64, 'image_heads': 1} if name == 'yfcc15m_r' else {}
    source, before = checkpoint(config, **one_head)
    config.model_args.update(one_head)  # OpenAI's names do not tell the heads: 64 wide
    workdir = tempfile.mkdtemp()
    found = unlearn_checkpoint.unlearn(config, source, workdir, row='ncu-release')
    after = convert.read(found['checkpoint'])
    self.assertEqual(set(after), set(before))
    for key, value in before.items():
      self.assertEqual(key in found['changed'], not np.array_equal(after[key], value), key)
    # The released reading freezes the position embedding and the first block in its second stage,
    # which starts from what the first one has made of them.
    self.assertIn('visual.proj' if name == 'yfcc15m_r' else 'image_projection', found['changed'])
    self.assertTrue(np.isfinite(found['after']['mean_recall/validation']))
    with self.assertRaisesRegex(FileExistsError, 'exists; choose another'):
      unlearn_checkpoint.unlearn(config, source, workdir, row='ncu-release')

  def test_unlearns_an_mae(self):
    safetensors = pytest.importorskip('safetensors.numpy')
    config = i2i_mae_imagenet.get_config('smoke')
    config.devices = 1
    config.model_args.update({'width': 64, 'heads': 1, 'decoder_width': 32, 'decoder_heads': 1})
    args = config.model_args.to_dict()
    model = models.get('mae', image_size=64, **args)
    variables = jax.device_get(jax.jit(model.init)(jax.random.key(0), {
        'image': np.zeros((1, 64, 64, 3), np.float32), 'visible': np.zeros((1, 4), np.int32)}))
    names, before = mae_keys.Names('mae', '', args['patch']), {}
    for path, leaf in zip(surgery.paths(variables), jax.tree.leaves(variables)):
      before |= names.to_file(path, np.asarray(leaf))
    for name, width in zip(names.tables(), (64, 32)):
      before[name] = np.concatenate(
          [np.zeros((1, width)), patches.positions(8, width)])[None].astype(np.float32)
    source = os.path.join(tempfile.mkdtemp(), 'public.safetensors')
    safetensors.save_file({name: np.ascontiguousarray(x) for name, x in before.items()}, source)
    found = unlearn_checkpoint.unlearn(config, source, tempfile.mkdtemp(), row='i2i')
    after = convert.read(found['checkpoint'])
    self.assertSameElements(after, before)
    for key, value in before.items():
      changed = not np.array_equal(after[key], value)
      self.assertEqual(key in found['changed'], changed, key)
      self.assertFalse(changed and key.startswith(('decoder', 'mask_token')), key)
    self.assertIn('norm.weight', found['changed'])
    self.assertSameElements(found['before'], found['after'])

  def test_bad_input(self):
    config = CONFIGS['cc3m'].get_config('smoke')
    source, _ = checkpoint(config)
    with self.assertRaisesRegex(ValueError, "config.rows has no 'nc'; did you mean 'ncu'"):
      unlearn_checkpoint.unlearn(config, source, tempfile.mkdtemp(), row='nc')
    other, _ = checkpoint(config, image_depth=2)
    with self.assertRaisesRegex(ValueError, 'is no clip with'):
      unlearn_checkpoint.unlearn(config, other, tempfile.mkdtemp())
    with self.assertRaisesRegex(ValueError, 'no retrained model to compare with'):
      experiment.run(config, tempfile.mkdtemp())

  @parameterized.parameters('cc3m', 'cc12m', 'yfcc15m_r')
  def test_published_settings(self, name):
    module = CONFIGS[name]
    modes = ('', 'b32') if name != 'yfcc15m_r' else ('',)
    for mode in modes:
      config = module.get_config(mode)
      config_lib.check(config)
      self.assertEqual(config.batch_size, 2048)
      settings = config_lib.resolved(config, 'ncu-release')
      self.assertEqual({key: settings[key] for key in (
          'negative_epochs', 'epochs', 'forget_fraction', 'gamma', 'epsilon', 'weight_decay',
          'text_learning_rate', 'prompt_learning_rate', 'learning_rate', 'warmup_steps')}, {
              'negative_epochs': 2.0, 'epochs': 8.0, 'forget_fraction': 0.1, 'gamma': 0.7,
              'epsilon': 0.03, 'weight_decay': 0.2, 'text_learning_rate': 1e-4,
              'prompt_learning_rate': 3e-4, 'learning_rate': 5e-5, 'warmup_steps': 100})
      model = models.get(config.model, **config.model_args.to_dict())
      jax.eval_shape(model.init, jax.random.key(0), {
          'image': np.zeros((1, 224, 224, 3), np.float32), 'text': np.zeros((1, 77), np.int32)})


if __name__ == '__main__':
  absltest.main()
