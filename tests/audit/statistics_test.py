"""Every statistic: ideal for retrained models, apart for the original, blind to order and names."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from tests.audit import toy
from unlearn_jax.audit import attacks
from unlearn_jax.audit import core
from unlearn_jax.audit import outputs
from unlearn_jax.audit import statistics as statistics_lib

SCORES = ('loss', 'confidence', 'entropy', 'margin')
# Those that look at forgotten records.
ON_FORGET = (
    'accuracy/forget', 'loss_gap', 'auc[entropy]', 'tow', 'klom/forget', 'logit_distance/forget',
    'activation_distance[softmax]/forget', 'activation_distance[features]/forget',
    *(f'membership[{name}]' for name in attacks.CONVENTIONS),
    'membership[auc]/worst_class', *(f'membership[auc]/class={which}' for which in range(5)),
    *(f'{kind}[{name}]/{other}' for kind in ('js', 'ks') for name in SCORES
      for other in ('unseen', 'retrained')))
# Slow, and they look at losses alone: `attacks_test` has their invariances.
CROSS_VALIDATED = ('membership[benchmark]', 'membership[dlfd]')
ELSEWHERE = ('accuracy/retain', 'accuracy/test', 'accuracy/unseen', 'klom/test',
             'logit_distance/test', 'activation_distance[softmax]/test',
             'activation_distance[features]/test')


def outputs_of(task, data=None, resamples=100, apply=toy.apply):
  """Two originals in the place of the unlearned models, then seven retrained ones."""
  variables = {'original': task.original,
               **{f'unlearned/{i}': model for i, model in enumerate(task.originals)},
               **{f'retrained/{i}': model for i, model in enumerate(task.retrained)}}
  return outputs.Outputs(apply, variables, data or task.data, resamples=resamples, seed=0)


def judged(out, subject, reference, leave=()):
  catalogue = statistics_lib.catalogue(out)
  chosen = {name: catalogue[name] for name in catalogue if name not in leave}
  return core.judge(out, chosen, {}, subject, reference, 0)


@functools.cache
def measured():
  """Name -> (gaps of originals, gaps of other retrained models, floors), each over some draws."""
  found = {}
  for seed in range(6):
    out = outputs_of(toy.make(seed, retrained=7, originals=2))
    leave = CROSS_VALIDATED if seed > 1 else ()
    parts = [judged(out, subject, out.retrained[:5], leave) for subject in
             (out.unlearned, out.retrained[5:])]
    for name, original in parts[0].items():
      found.setdefault(name, []).append((original.gap, parts[1][name].gap, original.floor))
  return {name: np.array(rows, float).T for name, rows in found.items()}


class StatisticsTest(parameterized.TestCase):

  def test_the_lists_are_complete(self):
    self.assertCountEqual(measured(), ON_FORGET + ELSEWHERE)

  @parameterized.parameters(*ON_FORGET, *ELSEWHERE)
  def test_retrained_models_are_ideal(self, name):
    _, gaps, floors = measured()[name]
    self.assertLessEqual(abs(gaps.mean()), 0.35 * floors.mean() + 1e-12)

  @parameterized.parameters(*ON_FORGET)
  def test_the_original_is_apart(self, name):
    gaps, _, floors = measured()[name]
    self.assertGreater(abs(gaps.mean()), 0.75 * floors.mean())

  @parameterized.parameters(*ELSEWHERE)
  def test_the_original_is_no_worse_elsewhere(self, name):
    gaps, _, floors = measured()[name]
    self.assertLessEqual(abs(gaps.mean()), 1.2 * floors.mean() + 1e-12)

  def test_order_of_records_changes_nothing(self):
    task = toy.make(0, retrained=7, originals=2)
    rng = np.random.default_rng(0)
    moved = {}
    for split, fields in task.data.items():
      order = rng.permutation(len(fields['label']))
      moved[split] = {name: values[order] for name, values in fields.items()}
    parts = [judged(out, out.unlearned, out.retrained)
             for out in (outputs_of(task), outputs_of(task, moved))]
    for name, statistic in parts[0].items():
      other = parts[1][name]
      self.assertEqual(statistic.verdict, other.verdict, name)
      np.testing.assert_allclose([other.gap, *other.interval, other.floor],
                                 [statistic.gap, *statistic.interval, statistic.floor],
                                 atol=2e-5, err_msg=name)

  def test_names_of_classes_change_nothing(self):
    task = toy.make(0, retrained=7, originals=2)
    order = np.array([2, 0, 4, 1, 3])  # new logit c is old logit order[c]

    def apply(variables, inputs, **kwargs):
      found, variables = toy.apply(variables, inputs, **kwargs)
      return found | {'logits': found['logits'][:, order]}, variables
    new = np.argsort(order)
    renamed = {split: fields | {'label': new[fields['label']].astype(np.int32)}
               for split, fields in task.data.items()}
    before, after = (judged(out, out.unlearned, out.retrained, CROSS_VALIDATED)
                     for out in (outputs_of(task), outputs_of(task, renamed, apply=apply)))
    for name, statistic in before.items():
      head, equals, which = name.partition('class=')
      other = after[f'{head}{equals}{new[int(which)]}' if equals else name]
      self.assertEqual(statistic.verdict, other.verdict, name)
      np.testing.assert_allclose([other.gap, other.floor], [statistic.gap, statistic.floor],
                                 atol=2e-5, err_msg=name)

  def test_a_floor_on_retained_records_alone_would_rate_doing_nothing_as_perfect(self):
    gaps, _, _ = measured()['accuracy/retain']
    np.testing.assert_array_equal(gaps, 0)
    self.assertTrue((np.abs(measured()['accuracy/forget'][0]) > 0.2).all())


class NotAvailableTest(parameterized.TestCase):

  def reasons(self, out, retrained=None):
    found = judged(out, out.unlearned[:1], out.retrained[:retrained], CROSS_VALIDATED)
    return {name: part.verdict for name, part in found.items() if part.verdict.startswith('n/a')}

  def test_one_unlearned_model_has_no_klom(self):
    found = self.reasons(outputs_of(toy.make(0, retrained=7, originals=2)))
    self.assertCountEqual(found, ['klom/forget', 'klom/test'])
    self.assertIn('several unlearned models', found['klom/test'])

  def test_two_retrained_models_have_no_floor_of_distances(self):
    found = self.reasons(outputs_of(toy.make(0, retrained=7, originals=2)), retrained=2)
    self.assertIn('needs three', found['logit_distance/forget'])
    self.assertNotIn('accuracy/forget', found)

  def test_missing_splits_and_features(self):
    task = toy.make(0, retrained=7, originals=2)

    def apply(variables, inputs, **kwargs):
      found, variables = toy.apply(variables, inputs, **kwargs)
      return {'logits': found['logits']}, variables
    data = {split: task.data[split] for split in ('forget', 'retain', 'unseen')}
    out = outputs_of(task, data, apply=apply)
    found = self.reasons(out)
    self.assertIn('no test records', found['membership[ssd]'])
    self.assertIn('no test records', found['tow'])
    self.assertIn('no output `features`', found['activation_distance[features]/forget'])
    self.assertIn('accuracy/retain', statistics_lib.primary(out))

  def test_classes_with_few_records(self):
    task = toy.make(0, retrained=7, originals=2)
    labels = task.data['forget']['label']
    keep = (labels != 3) | (np.cumsum(labels == 3) <= 2)
    data = task.data | {'forget': {name: values[keep]
                                   for name, values in task.data['forget'].items()}}
    found = self.reasons(outputs_of(task, data))
    self.assertIn('2 forgotten and', found['membership[auc]/class=3'])

  def test_attributes(self):
    task = toy.make(0, retrained=7, originals=2)
    data = {split: fields | {'label': np.eye(5, dtype=np.float32)[fields['label']]}
            for split, fields in task.data.items()}
    out = outputs_of(task, data)
    found = self.reasons(out)
    self.assertCountEqual(found, ['klom/forget', 'klom/test', 'membership[ccu_admin]',
                                  'membership[auc]/worst_class'])
    self.assertIn('one class per record', found['membership[ccu_admin]'])


if __name__ == '__main__':
  absltest.main()
