"""Every committed config: builds, says how to run it, and its smoke mode runs end to end."""

import importlib
import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import pytest

from experiments import make_results
from experiments.configs import ccu_av_digits
from experiments.configs import dlfd_omniglot
from experiments.configs import ease_openmoji
from experiments.configs import ncu_openmoji
from unlearn_jax import config as config_lib
from unlearn_jax import experiment

EXPERIMENTS = pathlib.Path(__file__).resolve().parents[1] / 'experiments'
NAMES = sorted(path.stem for path in (EXPERIMENTS / 'configs').glob('[a-z]*.py'))
# Their data cannot be fetched everywhere, or they take an accelerator: nothing of them is committed.
NOT_RUN = ('ccu_av_mnist', 'ccu_ave', 'ccu_food101', 'cifar10', 'cifar100', 'dlfd_age',
           'dlfd_emotion', 'dlfd_gender', 'dlfd_multiattr', 'ease_coco', 'ease_flickr30k',
           'fashion_mnist', 'i2i_mae_imagenet', 'i2i_mage_imagenet', 'i2i_palette_places365',
           'ncu_cc12m', 'ncu_cc3m', 'ncu_yfcc15m_r', 'svhn')
# They start from a checkpoint and have no oracle: tests/experiments/unlearn_checkpoint_test.py.
FROM_CHECKPOINT = ('ncu_cc12m', 'ncu_cc3m', 'ncu_yfcc15m_r')
CACHE = tempfile.mkdtemp()


def load(name):
  return importlib.import_module(f'experiments.configs.{name}')


class ConfigsTest(parameterized.TestCase):

  @parameterized.parameters(*NAMES)
  def test_builds_and_documents_itself(self, name):
    module = load(name)
    for heading in ('Command:', 'Hardware:', f'--config=experiments/configs/{name}.py', ':smoke'):
      self.assertIn(heading, module.__doc__)
    for mode in getattr(module, 'MODES', ('', 'smoke')):
      config = module.get_config(mode)
      config_lib.check(config)
      self.assertStartsWith(config.name, name)
      if mode in ('', 'smoke'):
        self.assertEqual(config.name, name)
    self.assertNotEqual(name in make_results.CONFIGS, name in NOT_RUN)

  @parameterized.parameters(*(name for name in NAMES if name not in FROM_CHECKPOINT))
  @pytest.mark.slow
  def test_smoke(self, name):
    config = load(name).get_config('smoke')
    config.cache_dir = CACHE
    workdir = pathlib.Path(tempfile.mkdtemp())
    experiment.run(config, str(workdir))
    self.assertGreater((workdir / 'report.html').stat().st_size, 10_000)

  def test_what_others_start_from_is_what_tuning_chose(self):
    with open(EXPERIMENTS / 'results' / 'dlfd_omniglot.json') as file:
      chosen = json.load(file)['tune']['chosen']
    self.assertEqual(dlfd_omniglot.CHOSEN, chosen)
    with open(EXPERIMENTS / 'results' / 'ncu_openmoji.json') as file:
      chosen = json.load(file)['tune']['chosen']
    self.assertEqual(ncu_openmoji.CHOSEN, {row: chosen[row] for row in ncu_openmoji.CHOSEN})
    with open(EXPERIMENTS / 'results' / 'ease_openmoji.json') as file:
      self.assertEqual(ease_openmoji.CHOSEN, json.load(file)['tune']['chosen'])
    with open(EXPERIMENTS / 'results' / 'ccu_av_digits.json') as file:
      self.assertEqual(ccu_av_digits.CHOSEN, json.load(file)['tune']['chosen']['ccu'])


if __name__ == '__main__':
  absltest.main()
