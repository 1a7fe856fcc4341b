"""Tuning: what it may look at, how it chooses, when it stops, what it leaves behind."""

import importlib.util
import json
import os
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from unlearn_jax import config as config_lib
from unlearn_jax import experiment
from unlearn_jax import tasks
from unlearn_jax import tuning
from unlearn_jax.data import splits as splits_lib
from unlearn_jax.tasks import classification
from unlearn_jax.train import loop

CACHE = tempfile.mkdtemp()
RATES = (0.01, 0.1, 0.5)


def make(tune, **changes):
  return config_lib.experiment(**({
      'name': 'tiny', 'data': {'name': 'synthetic'}, 'model': 'mlp',
      'split': {'kind': 'identity', 'seed': 0, 'sizes': {
          'retain': 4, 'forget': 2, 'validation': 1, 'test': 1, 'unseen': 2}},
      'model_args': {'hidden': (8,)}, 'train': {'epochs': 1.0},
      'methods': {'finetune': {'epochs': 1.0}, 'neg_grad_plus': {'epochs': 1.0}},
      'seeds': (0,), 'batch_size': 16, 'cache_dir': CACHE, 'tune': tune} | changes))


def load(directory, name):
  with open(os.path.join(directory, name)) as file:
    return json.load(file)


class TuningTest(parameterized.TestCase):

  def test_uses_no_data_of_the_report(self):
    seen = []
    small_splits = splits_lib.tuning
    def watch(*args, **kwargs):
      seen.append((args[0], small_splits(*args, **kwargs)))
      return seen[-1][1]
    with mock.patch.object(splits_lib, 'tuning', side_effect=watch):
      experiment.tune(make({'common': {'learning_rate': RATES}}), tempfile.mkdtemp())
    (report, small), = seen
    used = np.concatenate(list(small.indices.values()))
    for name in ('forget', 'test', 'unseen'):
      self.assertEmpty(np.intersect1d(used, report.indices[name]), msg=name)

  @parameterized.parameters(('nomus', max), ('retrain_gap', min))
  def test_chooses_the_best_trial_and_run_uses_it(self, objective, best):
    workdir = tempfile.mkdtemp()
    results = experiment.run(make({'common': {'learning_rate': RATES}, 'objective': objective,
                                   'methods': {'neg_grad_plus': {'alpha': (0.5, 0.9)}}}), workdir)
    tune = results['tune']
    self.assertEqual(tune, load(workdir, 'tune.json'))
    self.assertLen(tune['trials']['finetune'], 3)
    self.assertLen(tune['trials']['neg_grad_plus'], 6)
    for row, trials in tune['trials'].items():
      wanted = best(trials, key=lambda trial: trial['score'])
      self.assertEqual(tune['chosen'][row], wanted['settings'])
      for key, value in wanted['settings'].items():
        self.assertEqual(results['settings'][row][key], value)

  def test_retrain_gap_is_two_sided_and_zero_at_the_retrained_model(self):
    at = lambda forget: {'accuracy/forget': forget, 'accuracy/validation': 0.8,
                         'mia_auc/validation': 0.5, 'forgetting_score': 0.1}
    self.assertEqual(classification.retrain_gap(at(0.6), at(0.6)), 0.0)
    np.testing.assert_allclose(classification.retrain_gap(at(0.9), at(0.6)), 0.1)
    np.testing.assert_allclose(classification.retrain_gap(at(0.3), at(0.6)), 0.1)

  def test_gap_trials_start_from_a_model_of_the_tuning_task(self):
    starts = []
    anchor = tasks.anchor
    def watch(task, row, seed):
      starts.append((row, 'test' in task.splits.indices))
      return anchor(task, row, seed)
    for objective, expected in (('retrain_gap', {('retrain', True), ('retrain', False),
                                                 ('original', False)}),
                                ('nomus', {('retrain', True), ('original', True)})):
      starts.clear()
      with mock.patch.object(tasks, 'anchor', side_effect=watch):
        experiment.tune(make({'common': {'learning_rate': (0.1,)}, 'objective': objective}),
                        tempfile.mkdtemp())
      self.assertEqual(set(starts), expected)

  def test_limits(self):
    def trials(**limits):
      tune = experiment.tune(make({'common': {'learning_rate': RATES}, **limits}),
                             tempfile.mkdtemp())['']
      return tune, [len(tried) for tried in tune['trials'].values()]
    _, counts = trials(trials=2)
    self.assertEqual(counts, [2, 2])
    tune, counts = trials(budget=1e-9)
    self.assertEqual(counts, [1, 1])  # one trial is always made
    for tried in tune['trials'].values():
      self.assertGreater(tried[0]['cost'], 1e-9)
    _, counts = trials(budget=1e9)
    self.assertEqual(counts, [3, 3])

  def test_a_row_follows_another_and_one_without_a_grid_keeps_its_settings(self):
    methods = {'finetune': {'epochs': 1.0}, 'finetune-decay': {'epochs': 1.0, 'weight_decay': 0.1},
               'neg_grad_plus': {'epochs': 1.0, 'learning_rate': 0.007}}
    tune = {'methods': {'finetune': {'learning_rate': RATES}},
            'follow': {'finetune-decay': 'finetune'}}
    found = experiment.run(make(tune, methods=methods), tempfile.mkdtemp())
    self.assertEqual(set(found['tune']['trials']), {'finetune'})
    chosen = found['tune']['chosen']['finetune']
    self.assertEqual(found['tune']['chosen'],
                     {'finetune': chosen, 'finetune-decay': chosen, 'neg_grad_plus': {}})
    self.assertEqual(found['settings']['finetune-decay']['learning_rate'], chosen['learning_rate'])
    self.assertEqual(found['settings']['finetune-decay']['weight_decay'], 0.1)
    self.assertEqual(found['settings']['neg_grad_plus']['learning_rate'], 0.007)
    for follow in ({'finetune-decay': 'finetun'}, {'finetune-decay': 'finetune-decay'}):
      with self.assertRaisesRegex(ValueError, 'config.tune.follow'):
        experiment.tune(make(tune | {'follow': follow}, methods=methods), tempfile.mkdtemp())

  def test_stays_within_the_budget(self):
    clock = iter([0.5, 0.5, 0.5])
    def trial(*_):
      return {'score': 0.5, 'seconds': next(clock), 'measured': {}}
    config = make({'common': {'learning_rate': RATES}, 'budget': 1.0})
    task = mock.Mock(config=config)
    with mock.patch.object(tuning, '_trial', side_effect=trial):
      found = tuning._search(task, 'finetune', {0: None}, {0: None}, 1.0)
    self.assertLen(found, 2)  # a third would make it 1.5 retrainings

  def test_a_diverged_trial_is_shown_and_out_of_the_race(self):
    run = loop.run
    def diverge(method, *args, **kwargs):
      if 'trials/finetune/0/' in kwargs['directory'].replace(os.sep, '/'):
        raise loop.NonFiniteError('loss is not finite')
      return run(method, *args, **kwargs)
    with mock.patch.object(loop, 'run', side_effect=diverge):
      tune = experiment.tune(make({'common': {'learning_rate': RATES}}), tempfile.mkdtemp())['']
    first = tune['trials']['finetune'][0]
    self.assertIsNone(first['score'])
    self.assertNotEqual(tune['chosen']['finetune'], first['settings'])
    with mock.patch.object(loop, 'run', side_effect=loop.NonFiniteError('no')):
      with self.assertRaisesRegex(ValueError, 'every one of its 3 trials diverged'):
        experiment.tune(make({'common': {'learning_rate': RATES}}), tempfile.mkdtemp())

  def test_resume_repeats_no_trial_and_run_goes_on(self):
    config, workdir = make({'common': {'learning_rate': RATES}}), tempfile.mkdtemp()
    first = experiment.tune(config, workdir)['']
    with mock.patch.object(loop, 'run', side_effect=loop.run) as ran:
      results = experiment.run(config, workdir, resume=True)
    self.assertEqual(ran.call_count, 2)  # one seed of two rows
    self.assertEqual(results['tune'], json.loads(json.dumps(first)))

  def test_tuned_config_runs_the_choice(self):
    config, workdir = make({'common': {'learning_rate': RATES}}), tempfile.mkdtemp()
    chosen = experiment.tune(config, workdir)['']['chosen']
    spec = importlib.util.spec_from_file_location('tuned', os.path.join(workdir, 'tuned.py'))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tuned = module.get_config()
    for row, changes in chosen.items():
      self.assertEqual(config_lib.resolved(tuned, row),
                       config_lib.resolved(config, row) | changes)
    self.assertFalse(tuning.enabled(tuned))
    self.assertEqual(tuned.split, config.split)

  @parameterized.parameters(
      ({}, 'nothing to tune'),
      ({'common': {'learning_rate': ()}}, 'no values'),
      ({'common': {'learning_rate': (-1.0,)}}, 'learning_rate'),
      ({'common': {'learning_rat': (0.1,)}}, 'learning_rat'),
      ({'common': {'learning_rate': (0.1,)}, 'objective': 'best'}, 'objective'),
      ({'common': {'learning_rate': (0.1,)}, 'budget': -1.0}, 'budget'),
      ({'common': {'learning_rate': (0.1,)}, 'seeds': ()}, 'seeds'),
      ({'methods': {'scrub': {'alpha': (0.1,)}}}, 'scrub'))
  def test_bad_input_fails_before_any_training(self, tune, message):
    with mock.patch.object(loop, 'run', side_effect=AssertionError('trained')):
      with self.assertRaisesRegex(ValueError, message):
        experiment.tune(make(tune), tempfile.mkdtemp())


if __name__ == '__main__':
  absltest.main()
