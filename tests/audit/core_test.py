"""The whole audit on the task with a known answer."""

import functools
import subprocess
import sys
from unittest import mock

from absl.testing import absltest
import jax
import numpy as np

from tests.audit import toy
from unlearn_jax import audit
from unlearn_jax.audit import outputs
from unlearn_jax.audit import statistics as statistics_lib

PRIMARY = ('accuracy/forget', 'loss_gap', 'membership[auc]', 'accuracy/test',
           'logit_distance/forget')


@functools.cache
def report(judged: str, seed: int = 0):
  task = toy.make(0)
  model = {'retrained': task.retrained[5], 'original': task.original}[judged]
  return audit.audit(toy.apply, original=task.original, unlearned=model,
                     retrained=task.retrained[:5], data=task.data, seed=seed)


def run(task=None, **changes):
  task = task or toy.make(0)
  return audit.audit(**({'apply': toy.apply, 'original': task.original,
                         'unlearned': task.retrained[5], 'retrained': task.retrained[:5],
                         'data': task.data, 'statistics': PRIMARY} | changes))


class AuditTest(absltest.TestCase):

  def test_retrained_passes_and_original_fails(self):
    self.assertEqual(report('retrained').verdict, 'PASS')
    self.assertEqual(report('original').verdict, 'FAIL')
    for name in ('retrained', 'original'):
      self.assertEqual(report(name).original_verdict, 'FAIL')

  def test_twenty_records_are_inconclusive(self):
    task = toy.make(0)
    small = {split: {name: values[:20] for name, values in fields.items()}
             for split, fields in task.data.items()}
    for model in (task.retrained[5], task.original):
      found = run(unlearned=model, data=small)
      self.assertEqual(found.verdict, 'INCONCLUSIVE')
      self.assertGreaterEqual(found.statistics['accuracy/forget'].needed, 30)
      self.assertTrue(any('Too few records' in note for note in found.notes))

  def test_statistic_holds_anchors_floor_and_gap(self):
    found = report('original').statistics['accuracy/forget']
    self.assertEqual(found.original, 1.0)
    self.assertEqual(found.unlearned, 1.0)
    self.assertLen(found.retrained, 5)
    self.assertAlmostEqual(found.gap, 1 - np.mean(found.retrained))
    self.assertBetween(found.gap, *found.interval)
    self.assertGreater(found.interval[0], found.floor)
    self.assertTrue(found.primary)

  def test_nothing_is_silent(self):
    found = report('retrained').statistics
    self.assertIn('klom/forget', found)
    for name, part in found.items():
      if part.verdict.startswith('n/a'):
        self.assertGreater(len(part.verdict), len('n/a: '), name)
        self.assertIsNone(part.gap)
      else:
        self.assertIn(part.verdict, ('PASS', 'FAIL', 'INCONCLUSIVE'))
        self.assertTrue(np.isfinite([part.gap, part.floor, *part.interval]).all(), name)
      self.assertIn(part.question, statistics_lib.QUESTIONS)

  def test_retrained_models_do_not_fail_their_own_test(self):
    found = report('original').self_check
    self.assertLen(found, 5)
    self.assertNotIn('FAIL', [row['verdict'] for row in found])
    self.assertEqual(set(found[0]['statistics']), set(PRIMARY))

  def test_hashes_tell_models_and_records_apart(self):
    found = report('retrained')
    self.assertLen(set(found.models.values()), 7)
    self.assertLen({part['content'] for part in found.splits.values()}, 4)
    self.assertEqual(found.models['original'], report('original').models['unlearned/0'])
    variables = jax.device_get(toy.make(0).original)
    before = outputs.model_hash(variables)
    changed = jax.tree.map(np.copy, variables)
    changed['params']['b3'][0] += 1e-6
    self.assertNotEqual(outputs.model_hash(changed), before)

  def test_attacks_have_intervals(self):
    found = report('retrained').attacks
    self.assertEqual(set(found), set(report('retrained').models))
    for part in found.values():
      self.assertBetween(part['auc'], *part['auc_interval'])
    self.assertGreater(found['original']['epsilon_lower_bound'], 0)
    self.assertEqual(found['retrained/0']['epsilon_lower_bound'], 0)

  def test_the_same_arguments_give_the_same_report_in_any_order_of_records(self):
    task = toy.make(0)
    moved = {split: {name: values[::-1] for name, values in fields.items()}
             for split, fields in task.data.items()}
    first, second = run(), run(data=moved)
    self.assertEqual(first.splits, second.splits)
    for name in PRIMARY:
      np.testing.assert_allclose(first.statistics[name].interval,
                                 second.statistics[name].interval, atol=1e-5)
    self.assertNotEqual(run(seed=1).statistics['loss_gap'].interval,
                        first.statistics['loss_gap'].interval)

  def test_several_unlearned_models(self):
    task = toy.make(0, retrained=8, originals=3)
    found = run(task, unlearned=task.originals, statistics=(*PRIMARY, 'klom/forget'))
    self.assertEqual(found.verdict, 'FAIL')
    self.assertGreater(found.statistics['klom/forget'].gap, 0)
    self.assertIsNone(found.statistics['klom/forget'].original)

  def test_few_retrained_models_say_so(self):
    task = toy.make(0)
    found = run(retrained=task.retrained[:3])
    self.assertTrue(any('Only 3 retrained' in note for note in found.notes))
    self.assertStartsWith(found.self_check, 'n/a: ')
    found = run(retrained=task.retrained[:2])
    self.assertEqual(found.verdict, 'INCONCLUSIVE')  # distances have no floor
    self.assertEqual(run(retrained=task.retrained[:2], unlearned=task.original).verdict, 'FAIL')

  def test_a_family_that_was_not_asked_for_gives_no_verdict(self):
    found = run(statistics=('accuracy/retain',))
    self.assertStartsWith(found.verdict, 'n/a: ')

  def test_attributes(self):
    task = toy.make(0)
    data = {split: fields | {'label': np.eye(5, dtype=np.float32)[fields['label']]}
            for split, fields in task.data.items()}
    found = run(data=data, unlearned=task.original)
    self.assertIn(found.verdict, ('FAIL', 'INCONCLUSIVE'))
    self.assertGreater(found.statistics['accuracy/forget'].gap, 0.05)

  def test_refuses(self):
    task = toy.make(0)
    without = {split: {k: v for k, v in task.data.items() if k != split} for split in task.data}
    for changes, message in (
        ({'retrained': task.retrained[:1]}, 'at least two retrained'),
        ({'unlearned': []}, 'no unlearned model'),
        ({'data': without['forget']}, "the splits .'forget'"),
        ({'data': without['unseen']}, "the splits .'unseen'"),
        ({'data': {k: task.data[k] for k in ('forget', 'unseen')}}, 'retain or test'),
        ({'data': task.data | {'train': task.data['test']}}, 'unknown splits'),
        ({'statistics': ('accuracy',)}, 'unknown statistics'),
        ({'unlearned': jax.tree.map(lambda x: x * np.nan, task.original)},
         'unlearned/0 .*diverged')):
      with self.assertRaisesRegex(ValueError, message):
        run(**changes)

  def test_jax_privacy_is_asked_for_before_any_computation(self):
    def apply(*args, **kwargs):
      raise AssertionError('computed before the check')
    with mock.patch.dict(sys.modules, {'jax_privacy': None, 'jax_privacy.auditing': None}):
      with self.assertRaisesRegex(ImportError, r'unlearn_jax\[audit\]'):
        run(apply=apply)

  def test_the_package_is_light(self):
    code = ('import sys; from unlearn_jax import audit; assert not {"jax", "sklearn", "scipy", '
            '"matplotlib", "jax_privacy"} & set(sys.modules), sorted(sys.modules); '
            'import unlearn_jax.audit.attacks; assert callable(audit.membership) and '
            'callable(audit.audit); assert not {"matplotlib", "jax_privacy"} & set(sys.modules)')
    subprocess.run([sys.executable, '-c', code], check=True)


if __name__ == '__main__':
  absltest.main()
