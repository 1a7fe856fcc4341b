"""The conformance suite over every metric of evals, and over planted defects."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from unlearn_jax import testing
from unlearn_jax.evals import classification
from unlearn_jax.evals import privacy
from unlearn_jax.losses import classification as losses_lib
from unlearn_jax.testing import toy

CHECKS = ('finite', 'ideal', 'separates', 'not constant', 'relabelling', 'permutation',
          'empty input', 'NaN input', 'forget data', 'non-members')
_MEMO = {}


def measured(name, outputs):
  """One of `measure`'s metrics; inputs of the suite are the same arrays for every metric."""
  wanted = ('features',) if name.startswith(('probe', 'separability')) else ()
  key = wanted, *(id(fields[field]) for fields in outputs.values()
                  for field in ('logits', 'label', *wanted))
  if key not in _MEMO:  # holds on to the arrays: an id is theirs for as long as they live
    # The linear probe is the slow part, and no other metric looks at features.
    given = {split: {field: fields[field] for field in ('logits', 'label', *wanted)}
             for split, fields in outputs.items()
             if not wanted or split in ('retain', 'test')}
    _MEMO[key] = outputs, classification.measure(given)
  return _MEMO[key][1][name]


def losses(outputs, split):
  return np.asarray(losses_lib.example_loss(outputs[split]['logits'], outputs[split]['label']))


def gap(name):
  return lambda outputs, reference: abs(measured(name, outputs) - measured(name, reference))


UTILITY = {'separates': 'tells how good the model is, not what it remembers',
           'forget data': 'looks at records that are not forgotten'}
ORDER = {'permutation': 'ten splits of the attack are drawn by position'}
COUNTS = {'separates': 'depends on the numbers of records only', 'not constant': 'likewise',
          'forget data': 'likewise'}
ON_DEVICE = {'empty input': 'a compiled function cannot raise; documented',
             'NaN input': 'a compiled function cannot raise: NaN, documented'}

# name -> (metric, ideal, what is not expected and why)
METRICS = {
    **{f'{kind}/{split}': (None, None, UTILITY) for kind in ('accuracy', 'top2', 'loss')
       for split in ('retain', 'unseen', 'validation', 'test')},
    **{f'{kind}/forget': (None, None, {}) for kind in ('accuracy', 'top2', 'loss')},
    'forgetting_score[benchmark]': (None, 0.0, ORDER),
    'forgetting_score[dlfd]': (None, 0.0, ORDER),
    'forgetting_floor[benchmark]': (None, 0.0, COUNTS),
    'forgetting_floor[dlfd]': (None, 0.0, COUNTS),
    'nomus': (None, None, ORDER),
    'mia_auc/unseen': (None, 0.5, {}),
    'loss_gap': (None, 0.0, {}),
    'probe_accuracy/test': (None, None, UTILITY),
    'separability/retain': (None, None, UTILITY),
    'separability/test': (None, None, UTILITY),
}
BEYOND_MEASURE = {
    'gap of accuracy/forget': (gap('accuracy/forget'), 0.0, {}),
    'gap of loss/forget': (gap('loss/forget'), 0.0, {}),
    'gap of mia_auc/unseen': (gap('mia_auc/unseen'), 0.0, {}),
    'privacy.auc': (lambda outputs, reference: privacy.auc(
        losses(outputs, 'forget'), losses(outputs, 'test')), 0.5, {}),
    'privacy.device_forgetting_score, balanced': (
        lambda outputs, reference: privacy.device_forgetting_score(
            losses(outputs, 'forget'), losses(outputs, 'unseen')), 0.0, ORDER | ON_DEVICE),
    'privacy.device_forgetting_score': (
        lambda outputs, reference: privacy.device_forgetting_score(
            losses(outputs, 'forget'), losses(outputs, 'unseen'), balanced=False), 0.0,
        ORDER | ON_DEVICE),
}


class EvalsTest(parameterized.TestCase):

  @parameterized.parameters(*METRICS, *BEYOND_MEASURE)
  def test_conforms(self, name):
    metric, ideal, expects = {**METRICS, **BEYOND_MEASURE}[name]
    if metric is None:
      metric = lambda outputs, reference: measured(name, outputs)
    found = dict(testing.conformance_metric(metric, ideal=ideal))
    self.assertContainsSubset(found.keys(), expects.keys(), found)
    # No entry of the table is there for nothing; only utility may separate by chance.
    self.assertContainsSubset(expects.keys() - {'separates'}, found.keys())

  def test_every_metric_of_measure_is_here(self):
    self.assertEqual(set(METRICS), set(classification.measure(toy.outputs(toy.original()))))


# Defects, as metrics of (outputs, reference).


def capped_epsilon(outputs, reference):
  """Largest |log of a ratio of error rates| of a loss threshold, infinite ones cut at 10."""
  del reference
  forget, unseen = losses(outputs, 'forget'), losses(outputs, 'unseen')
  largest = 0.0
  for threshold in np.concatenate([forget, unseen]):
    for below in (True, False):
      members, others = (np.mean((side <= threshold) == below) for side in (forget, unseen))
      if members or others:
        with np.errstate(divide='ignore'):
          largest = max(largest, abs(np.log(members) - np.log(others)))
  return min(largest, 10.0)


def auc_against_retain(outputs, reference):
  """Retained records in the place of non-members."""
  del reference
  return privacy.auc(losses(outputs, 'forget'), losses(outputs, 'retain'))


def mean_kl(outputs, reference, *, split='forget', normalise):
  p, q = (side[split]['logits'].astype(np.float64) for side in (reference, outputs))
  if normalise:
    p, q = (np.exp(z - z.max(axis=1, keepdims=True)) for z in (p, q))
    p, q = (z / z.sum(axis=1, keepdims=True) for z in (p, q))
  if not len(p) or normalise and not np.isfinite(p + q).all():
    raise ValueError(f'{split}: no records, or NaN among them')
  with np.errstate(invalid='ignore', divide='ignore'):
    return np.mean(np.sum(p * (np.log(p) - np.log(q)), axis=1))


def accuracy(outputs, split):
  logits, label = outputs[split]['logits'], outputs[split]['label']
  if not len(label) or not np.isfinite(logits).all():
    raise ValueError(f'{split}: no records, or NaN among them')
  return float(np.mean(logits.argmax(axis=1) == label))


def retain_gap(outputs, reference):
  return abs(accuracy(outputs, 'retain') - accuracy(reference, 'retain'))


def forget_gap(outputs, reference):
  return abs(accuracy(outputs, 'forget') - accuracy(reference, 'forget'))


def swallowing_gap(outputs, reference):
  try:
    return forget_gap(outputs, reference)
  except ValueError:
    return 0.0


def forget_error(outputs, reference):
  """A benchmark's "forgetting quality": share of forgotten records that are classified wrongly."""
  del reference
  return 1 - accuracy(outputs, 'forget')


class DefectsTest(parameterized.TestCase):
  """Every planted defect is caught, by the check that names it; its sound counterpart passes."""

  def failed(self, metric, **options):
    return dict(testing.conformance_metric(metric, **options))

  def test_sound_counterparts_pass(self):
    self.assertEqual(self.failed(forget_gap, ideal=0.0), {})
    self.assertEqual(self.failed(lambda o, r: privacy.auc(
        losses(o, 'forget'), losses(o, 'unseen')), ideal=0.5), {})
    # The distance to another retrained model is never 0: what retrained models score is its ideal.
    self.assertEqual(self.failed(lambda o, r: mean_kl(o, r, normalise=True)), {})

  def test_constant_epsilon(self):
    found = self.failed(capped_epsilon)
    self.assertContainsSubset({'not constant', 'separates'}, found)
    self.assertEqual(found['not constant'],
                     'original, retrained and untrained models all score 10')

  def test_attack_with_retain_data_as_non_members(self):
    found = self.failed(auc_against_retain, ideal=0.5)
    self.assertContainsSubset({'non-members', 'ideal', 'separates'}, found)
    self.assertIn('retained', found['non-members'])

  def test_divergence_of_raw_logits(self):
    found = self.failed(lambda o, r: mean_kl(o, r, normalise=False))
    self.assertStartsWith(found['finite'], 'nan on ')
    self.assertIn('scores nan', found['NaN input'])

  def test_gap_on_retain_data_only(self):
    found = self.failed(retain_gap, ideal=0.0)
    self.assertContainsSubset({'forget data'}, found)
    self.assertIn('reads retain, never the forgotten records', found['forget data'])

  def test_swallowed_exception(self):
    found = testing.conformance_metric(swallowing_gap, ideal=0.0)
    self.assertEqual({check for check, _ in found}, {'empty input', 'NaN input'})
    self.assertLen(found, 4)  # either side of the gap, each
    for _, reason in found:
      self.assertStartsWith(reason, 'returns 0 when ')

  def test_benchmark_that_fails_the_retrained_model(self):
    self.assertEqual(self.failed(forget_error), {})  # two-sided, against what they score
    found = self.failed(forget_error, ideal=1.0)
    self.assertEqual(found.keys(), {'ideal'})
    self.assertIn('it fails the retrained model itself', found['ideal'])

  def test_dependence_on_names_and_order(self):
    first = lambda o, r: float(o['forget']['logits'][0].max()) + forget_gap(o, r)
    self.assertContainsSubset({'permutation'}, self.failed(first))
    zero = lambda o, r: forget_gap(o, r) + float(o['forget']['logits'][:, 0].mean())
    found = self.failed(zero)
    self.assertContainsSubset({'relabelling'}, found)
    self.assertNotIn('permutation', found)

  def test_an_exception_is_the_reason(self):
    def metric(outputs, reference):
      raise KeyError('no such split')

    found = self.failed(metric)
    self.assertEqual(set(found), set(CHECKS) - {'ideal'})  # nothing is declared
    self.assertEqual(found['finite'], "KeyError: 'no such split'")

  def test_arrays_are_no_numbers(self):
    found = self.failed(lambda o, r: o['forget']['logits'][:, 0])
    self.assertIn('a metric returns one number', found['finite'])

  def test_what_is_expected_is_not_run(self):
    expects = {'empty input': 'a reason', 'NaN input': 'a reason'}
    self.assertEqual(testing.conformance_metric(swallowing_gap, ideal=0.0, expects=expects), [])
    with self.assertRaisesRegex(ValueError, "did you mean 'permutation'"):
      testing.conformance_metric(forget_gap, expects={'permutations': 'a reason'})


class ToyTest(absltest.TestCase):

  def test_the_answer_is_known(self):
    """The original is perfect on the forgotten points, a retrained model is not."""
    original = toy.outputs(toy.original())
    self.assertEqual(accuracy(original, 'forget'), 1.0)
    for variables in toy.retrained():
      outputs = toy.outputs(variables)
      self.assertLess(accuracy(outputs, 'forget'), 0.75)
      self.assertGreater(accuracy(outputs, 'retain'), 0.97)
      self.assertLess(abs(accuracy(outputs, 'forget') - accuracy(outputs, 'unseen')), 0.15)

  def test_sizes(self):
    source, splits = toy.task().source, toy.task().splits
    self.assertEqual({name: len(ids) for name, ids in splits.indices.items()}, toy.SIZES)
    train = np.concatenate([splits.indices['retain'], splits.indices['forget']])
    self.assertLen(train, 300)
    self.assertEqual(source.fields['noisy'][train].mean(), 0.25)
    self.assertEqual(source.fields['image'][0].size, 20)


if __name__ == '__main__':
  absltest.main()
