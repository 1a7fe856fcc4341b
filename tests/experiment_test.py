"""Whole experiments on synthetic data: results, resuming, caching, refusing."""

import json
import os
import shutil
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from unlearn_jax import config as config_lib
from unlearn_jax import experiment
from unlearn_jax import workdir as workdir_lib
from unlearn_jax.train import loop

CACHE = tempfile.mkdtemp()


def make(**changes):
  arguments = {
      'name': 'tiny', 'data': {'name': 'synthetic'}, 'model': 'mlp',
      'split': {'kind': 'identity', 'seed': 0, 'sizes': {
          'retain': 4, 'forget': 2, 'validation': 1, 'test': 1, 'unseen': 2}},
      'model_args': {'hidden': (8,)}, 'train': {'epochs': 1.0},
      'methods': {'finetune': {'epochs': 1.0}, 'dlfd': {'perturb_steps': 1, 'max_iterations': 10}},
      'seeds': (0, 1), 'batch_size': 16, 'cache_dir': CACHE}
  return config_lib.experiment(**(arguments | changes))


def load(directory, name):
  with open(os.path.join(directory, name)) as file:
    return json.load(file)


class ExperimentTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = tempfile.mkdtemp()
    cls.results = experiment.run(make(), cls.workdir)

  def test_layout_of_the_results(self):
    results = load(self.workdir, 'results.json')
    self.assertEqual(results, json.loads(json.dumps(self.results)))
    self.assertEqual(list(results['methods']), ['original', 'retrain', 'finetune', 'dlfd'])
    for row in results['methods'].values():
      self.assertLen(row['seconds']['values'], 2)
      self.assertLen(row['compile_seconds']['values'], 2)
      for name in ('accuracy/test', 'forgetting_score[benchmark]', 'nomus', 'mia_auc/unseen'):
        metric = row['metrics'][name]
        np.testing.assert_allclose(metric['mean'], np.mean(metric['values']))
        np.testing.assert_allclose(metric['std'], np.std(metric['values'], ddof=1))
    self.assertEqual(results['split_hash'], load(self.workdir, 'splits.json')['hash'])
    for name in ('report.md', 'report.html'):
      self.assertGreater(os.path.getsize(os.path.join(self.workdir, name)), 500)

  def test_work_directory_with_results_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'pass --resume'):
      experiment.run(make(), self.workdir)
    with self.assertRaisesRegex(ValueError, 'results of another config'):
      experiment.run(make(seeds=(0,)), self.workdir, resume=True)
    with self.assertRaisesRegex(ValueError, 'exclude each other'):
      experiment.run(make(), self.workdir, resume=True, overwrite=True)

  def test_foreign_files_are_never_touched(self):
    directory = tempfile.mkdtemp()
    path = os.path.join(directory, 'thesis.tex')
    with open(path, 'w') as file:
      file.write('mine')
    for overwrite in (False, True):
      with self.assertRaisesRegex(ValueError, 'thesis.tex'):
        experiment.run(make(), directory, overwrite=overwrite)
    self.assertTrue(os.path.exists(path))

  def test_resume_runs_nothing_that_is_finished(self):
    with mock.patch.object(loop, 'run', side_effect=AssertionError('ran again')):
      again = experiment.run(make(), self.workdir, resume=True)
    self.assertEqual(again['methods'], self.results['methods'])

  def test_resume_runs_only_the_missing_row_and_gets_the_same_numbers(self):
    directory = tempfile.mkdtemp()
    shutil.copytree(self.workdir, directory, dirs_exist_ok=True)
    shutil.rmtree(os.path.join(directory, 'rows', 'seed_1', 'dlfd'))
    with mock.patch.object(loop, 'run', side_effect=loop.run) as ran:
      again = experiment.run(make(), directory, resume=True)
    self.assertEqual(ran.call_count, 1)
    self.assertEqual(again['methods']['dlfd']['metrics'], self.results['methods']['dlfd']['metrics'])

  def test_anchors_are_cached_across_work_directories(self):
    with mock.patch.object(loop, 'run', side_effect=loop.run) as ran:
      experiment.run(make(methods={'finetune': {'epochs': 1.0}}), tempfile.mkdtemp())
    self.assertEqual(ran.call_count, 2)  # finetune for two seeds, no original, no retrain

  def test_another_recipe_is_another_anchor(self):
    with mock.patch.object(loop, 'run', side_effect=loop.run) as ran:
      experiment.run(make(methods={}, seeds=(0,), train={'epochs': 2.0}), tempfile.mkdtemp())
    self.assertEqual(ran.call_count, 2)

  def test_wrong_settings_fail_before_any_training(self):
    with mock.patch.object(loop, 'run', side_effect=AssertionError('trained')):
      with self.assertRaisesRegex(ValueError, 'dlfd: epsilon must lie in'):
        experiment.run(make(methods={'dlfd': {'epsilon': -1.0}}), tempfile.mkdtemp())

  def test_seeds_share_an_original_and_a_retrained_model(self):
    workdir = tempfile.mkdtemp()
    results = experiment.run(make(methods={'finetune': {'epochs': 1.0}}, anchor_seeds=(1,)), workdir)
    mine = results['methods']
    for row in ('original', 'retrain'):
      for name, metric in mine[row]['metrics'].items():
        other = self.results['methods'][row]['metrics'][name]['values'][1]
        self.assertEqual(metric['values'], [other, other], name)
        self.assertIsNone(metric['std'])
    self.assertEqual({tuple(part['pairs']) for part in results['floor'].values()}, {()})
    self.assertIsNotNone(mine['finetune']['metrics']['accuracy/test']['std'])
    with open(os.path.join(workdir, 'report.md'), encoding='utf-8') as file:
      self.assertIn('One original and one retrained model', file.read())

  def test_cases(self):
    workdir = tempfile.mkdtemp()
    results = experiment.run(make(
        seeds=(0,), methods={'finetune': {'epochs': 1.0}},
        cases={f'{n}': {'split': {'forget_records': n}} for n in (4, 8)}), workdir)
    self.assertEqual([case['split_sizes']['forget'] for case in results['cases'].values()], [4, 8])
    for name in ('report.md', 'results.json'):
      self.assertTrue(os.path.exists(os.path.join(workdir, name)))

  def test_a_wrong_case_fails_before_any_training(self):
    with mock.patch.object(loop, 'run', side_effect=AssertionError('trained')):
      with self.assertRaisesRegex(ValueError, 'config.cases.a: .*batch_sise'):
        experiment.run(make(cases={'a': {'batch_sise': 4}}), tempfile.mkdtemp())

  def test_killed_while_writing_leaves_the_old_result(self):
    path = os.path.join(tempfile.mkdtemp(), 'results.json')
    workdir_lib.write_json(path, {'a': 1})
    with self.assertRaises(ValueError):
      workdir_lib.write_json(path, {'a': float('nan')})
    self.assertEqual(workdir_lib.read_json(path), {'a': 1})


if __name__ == '__main__':
  absltest.main()
