"""Audits of whole experiments: what is compared with what, what is written, what is refused."""

import json
import os
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from unlearn_jax import auditing
from unlearn_jax import config as config_lib
from unlearn_jax import experiment
from unlearn_jax.train import loop

CACHE = tempfile.mkdtemp()


def make(**changes):
  return config_lib.experiment(**({
      'name': 'tiny', 'data': {'name': 'synthetic'}, 'model': 'mlp',
      'split': {'kind': 'identity', 'seed': 0, 'sizes': {
          'retain': 4, 'forget': 2, 'validation': 1, 'test': 1, 'unseen': 2}},
      'model_args': {'hidden': (8,)}, 'train': {'epochs': 1.0},
      'methods': {'finetune': {'epochs': 1.0}}, 'seeds': (0, 1), 'batch_size': 16,
      'cache_dir': CACHE, 'audit': {'retrained': (0, 1, 2)}} | changes))


class AuditingTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = tempfile.mkdtemp()
    cls.summary = auditing.audit(make(), cls.workdir)

  def test_every_row_and_both_anchors_are_audited(self):
    self.assertEqual(list(self.summary['rows']), ['original', 'retrain', 'finetune'])
    for row in self.summary['rows']:
      for suffix in ('html', 'json'):
        self.assertTrue(os.path.exists(os.path.join(self.workdir, 'audit', f'{row}.{suffix}')))
    with open(os.path.join(self.workdir, 'audit', 'finetune.json')) as file:
      report = json.load(file)
    self.assertEqual(report['verdict'], self.summary['rows']['finetune']['verdict'])
    with open(os.path.join(self.workdir, 'audit.json')) as file:
      self.assertEqual(json.load(file), json.loads(json.dumps(self.summary)))

  def test_values_are_those_of_the_experiment(self):
    with open(os.path.join(self.workdir, 'results.json')) as file:
      results = json.load(file)
    audited = self.summary['rows']['finetune']['statistics']['accuracy/forget']
    metrics = {row: results['methods'][row]['metrics']['accuracy/forget']['values']
               for row in results['methods']}
    self.assertAlmostEqual(audited['unlearned'], sum(metrics['finetune']) / 2, places=6)
    self.assertAlmostEqual(audited['original'], metrics['original'][0], places=6)
    self.assertAlmostEqual(audited['retrained'][1], metrics['retrain'][1], places=6)

  def test_table(self):
    with open(os.path.join(self.workdir, 'audit.md')) as file:
      text = file.read()
    for part in ('Original (must fail)', 'Retrained, held out', 'finetune', 'Retrain floor',
                 'Self-check', 'accuracy/forget', 'loss_gap'):
      self.assertIn(part, text)

  def test_resume_trains_nothing_again(self):
    with mock.patch.object(loop, 'run', side_effect=AssertionError('ran again')):
      again = auditing.audit(make(), self.workdir, resume=True)
    self.assertEqual(json.loads(json.dumps(again)), json.loads(json.dumps(self.summary)))

  @parameterized.parameters(
      ({'audit': {'retrained': (0, 0, 1)}}, 'at least 3'),
      ({'cases': {'a': {'batch_size': 8}}}, 'has cases'))
  def test_bad_input_fails_before_any_training(self, changes, message):
    with mock.patch.object(experiment, 'run', side_effect=AssertionError('ran')):
      with self.assertRaisesRegex(ValueError, message):
        auditing.audit(make(**changes), tempfile.mkdtemp())

  def test_missing_extra_is_said_before_any_training(self):
    with mock.patch.dict('sys.modules', {'jax_privacy.auditing': None}):
      with self.assertRaisesRegex(ImportError, r'unlearn_jax\[audit\]'):
        auditing.audit(make(), tempfile.mkdtemp())


if __name__ == '__main__':
  absltest.main()
