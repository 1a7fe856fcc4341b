"""A small federation through the whole experiment: rows, gaps, swaps, regrowth, report."""

import os
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from experiments.configs import ease_openmoji
from experiments.configs import ease_toy
from unlearn_jax import experiment
from unlearn_jax import models
from unlearn_jax import tasks
from unlearn_jax.evals import views
from unlearn_jax.models import convert


def config(**changes):
  found = ease_toy.get_config('smoke')
  found.rows = ('ease', 'fed_finetune')
  found.train.update({'rounds': 2, 'further_rounds': 1, 'history': 2})
  found.federation.update({'post_rounds': 1, 'relearn_rounds': 1, 'local_epochs': 2})
  for row in found.rows:
    found.methods[row].rounds = 1
  found.methods.ease.recover_rounds = 1
  for path, value in changes.items():
    section, _, name = path.partition('/')
    if name:
      found[section][name] = value
    else:
      found[section] = value
  return found


class ExperimentTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.directory = tempfile.TemporaryDirectory()
    chosen = config()
    chosen.cache_dir = os.path.join(cls.directory.name, 'cache')
    cls.workdir = os.path.join(cls.directory.name, 'run')
    cls.results = experiment.run(chosen, cls.workdir)
    cls.metrics = {row: {name: found['values'][0] for name, found in part['metrics'].items()}
                   for row, part in cls.results['methods'].items()}

  @classmethod
  def tearDownClass(cls):
    cls.directory.cleanup()
    super().tearDownClass()

  def test_every_row_has_the_metrics_of_the_table(self):
    self.assertEqual(list(self.metrics), ['original', 'retrain', 'ease', 'fed_finetune'])
    for row, found in self.metrics.items():
      self.assertContainsSubset(views.VIEWS['federated'].main, found, row)
      self.assertTrue(all(np.isfinite(found[name]) for name in views.FEDERATED), row)

  def test_gaps_and_swaps_are_those_of_their_definitions(self):
    retrained, original = self.metrics['retrain'], self.metrics['original']
    for name in ('gap/forget', 'gap/kept', 'gap/mean', 'gap/mia'):
      self.assertEqual(retrained[name], 0.0)
    self.assertEqual(original['swap/image'], original['R@1/forget'])
    self.assertEqual(original['swap/text'], original['R@1/forget'])
    for found in self.metrics.values():
      self.assertAlmostEqual(found['gap/forget'],
                             abs(found['R@1/forget'] - retrained['R@1/forget']))
      self.assertAlmostEqual(found['gap/mean'], (found['gap/forget'] + found['gap/kept']) / 2)
      self.assertAlmostEqual(found['regrowth'], found['R@1/forget_later'] - found['R@1/forget'])

  def test_what_a_federation_remembers(self):
    """Two rounds on the forgotten client's pairs are worth more than three on the others'."""
    self.assertGreater(self.metrics['original']['R@1/forget'],
                       self.metrics['retrain']['R@1/forget'] + 0.1)

  def test_drift_is_of_models_whose_history_has_the_client(self):
    self.assertNotIn('drift/image', self.metrics['retrain'])
    for branch in ('image', 'text'):  # the lock holds what plain rounds let go
      self.assertLess(self.metrics['ease'][f'drift/{branch}'],
                      self.metrics['fed_finetune'][f'drift/{branch}'])

  def test_rounds_and_traffic(self):
    self.assertEqual(self.metrics['retrain']['rounds'], 3)
    self.assertEqual(self.metrics['original']['rounds'], 2)
    # 16 (48 + 68) values per branch, up and down, of five clients that stay
    self.assertAlmostEqual(self.metrics['original']['megabytes'],
                           2 * 5 * 2 * 2 * 16 * (48 + 68) * 4 / 1e6)

  def test_report(self):
    with open(os.path.join(self.workdir, 'report.md')) as file:
      report = file.read()
    for text in ('F-R@1', 'Swap (image, text*)', 'After further rounds', 'Federated cost',
                 're-implemented from its abstract', 'all training pairs of one client'):
      self.assertIn(text, report)
    with open(os.path.join(self.workdir, 'report.html')) as file:
      page = file.read()
    self.assertIn('Entanglement of the clients', page)
    self.assertIn('F-R@1 over ordinary rounds', page)


class TaskTest(parameterized.TestCase):

  def load(self, **changes):
    return tasks.load(config(**changes), '')

  def test_roster(self):
    task = self.load(**{'split/target': 2})
    np.testing.assert_array_equal(task.roster.sizes, [64] * 6)
    np.testing.assert_array_equal(task.roster.forget, [0, 0, 64, 0, 0, 0])
    np.testing.assert_array_equal(np.flatnonzero(task.roster.leaving), [2])

  def test_trials_run_in_a_federation_without_the_client_that_leaves(self):
    small = self.load(**{'split/target': 2}).for_tuning()
    self.assertEqual(small.roster.sizes[2], 0)
    self.assertEqual(small.roster.leaving.sum(), 1)
    self.assertFalse(small.roster.leaving[2])

  def test_audited_records_are_matched_with_their_own_text(self):
    task = self.load()
    apply, fields = task.audited()
    variables = task.model.init(jax.random.key(0), task.example)
    found = {name: values[:4] for name, values in fields['forget'].items()}
    logits = apply(variables, found)[0]['logits']
    self.assertEqual(logits.shape, (4, 65))
    self.assertTrue((fields['forget']['label'] == 0).all())

  @parameterized.parameters(
      ({'split/target': 6}, 'client 6 has no training pairs'),
      ({'split/scenario': 'everything'}, 'scenario'),
      ({'federation/post_rounds': -1}, 'post_rounds'),
      ({'federation/participation': 0.0}, 'participation'),
      ({'federation/rank': 0}, 'rank'),
      ({'devices': 4}, '6 clients'))
  def test_bad_settings(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      self.load(**changes)

  def test_data_without_a_backbone_ask_for_its_recipe(self):
    found = ease_openmoji.get_config('smoke')
    found.federation.backbone = {}
    with self.assertRaisesRegex(ValueError, 'bring no backbone'):
      tasks.load(found, '')

  def test_a_published_backbone(self):
    found = ease_openmoji.get_config('smoke')
    found.federation.backbone = {'weights': '/nowhere.pt'}
    network = models.get('clip', **found.model_args.to_dict())
    example = {'image': np.zeros((1, 32, 32, 3), np.float32),
               'text': np.zeros((1, found.model_args.context), np.int32)}
    params = jax.device_get(jax.jit(network.init)(jax.random.key(3), example))
    spec = convert.Spec({}, 32, 'openai')
    with mock.patch.object(convert, 'load', return_value=(params, spec)):
      task = tasks.load(found, '')
      variables = task.model.init(jax.random.key(0), task.example)
      for old, new in zip(jax.tree.leaves(params['params']), jax.tree.leaves(variables['params'])):
        np.testing.assert_array_equal(old, new)
      found.model_args.text_width = 64
      with self.assertRaisesRegex(ValueError, '/nowhere.pt holds clip.*should have shape'):
        tasks.load(found, '')


if __name__ == '__main__':
  absltest.main()
