"""The verdict: coverage of gap intervals, simultaneous floors, and how often it is right."""

import collections
import itertools

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

from tests.audit import toy
from unlearn_jax.audit import core
from unlearn_jax.audit import intervals
from unlearn_jax.audit import outputs
from unlearn_jax.audit import statistics as statistics_lib
from unlearn_jax.audit import verdict

PASS, FAIL, INCONCLUSIVE = verdict.PASS, verdict.FAIL, verdict.INCONCLUSIVE


def simulate(rng, *, retrained, model_noise, record_noise, gap=0.3, records=60):
  """Values of a mean whose true gap is known: a fixed subject, models drawn around 0."""
  counts = intervals.resample(rng, records, 400)
  effects = np.append(rng.normal(0, model_noise, retrained), gap)
  noise = rng.normal(0, record_noise, (retrained + 1, records))
  values = intervals.mean(noise + effects[:, None], counts)
  return outputs.Values(values[:, retrained:], values[:, :retrained])


def decided(task, judged, *, retrained=5, seed=0, data=None):
  """Overall verdicts of models, by the primary statistics alone."""
  variables = {'original': task.original,
               **{f'unlearned/{i}': model for i, model in enumerate(judged)},
               **{f'retrained/{i}': task.retrained[i] for i in range(retrained)}}
  out = outputs.Outputs(toy.apply, variables, data or task.data, resamples=300, seed=seed)
  catalogue = statistics_lib.catalogue(out)
  family = {name: catalogue[name] for name in statistics_lib.primary(out)}

  def verdict_of(models, sensitive):
    found = core.judge(out, family, family, models, out.retrained, seed)
    return core._overall(found, family, sensitive=sensitive)
  sensitive = verdict_of([0], True) == FAIL
  return [verdict_of([i], sensitive) for i in out.unlearned]


class GapTest(parameterized.TestCase):

  @parameterized.product(retrained=(2, 5), noise=((0.1, 1e-4), (0.1, 0.5), (0.03, 1.0)))
  def test_interval_covers(self, retrained, noise):
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(600):
      values = simulate(rng, retrained=retrained, model_noise=noise[0], record_noise=noise[1])
      low, high = verdict.measure_gap(values, records=60, seed=int(rng.integers(1 << 30))).interval
      hits += low <= 0.3 <= high
    self.assertBetween(hits / 600, 0.93 - 0.02, 0.97 + 0.02)  # 600 know it to within 0.02

  @pytest.mark.slow
  def test_interval_covers_in_2000_simulations(self):
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(2000):
      values = simulate(rng, retrained=5, model_noise=0.05, record_noise=0.7)
      low, high = verdict.measure_gap(values, records=60, seed=int(rng.integers(1 << 30))).interval
      hits += low <= 0.3 <= high
    self.assertBetween(hits / 2000, 0.93, 0.97)

  def test_several_unlearned_models_add_their_own_spread(self):
    rng = np.random.default_rng(0)
    values = simulate(rng, retrained=5, model_noise=0.01, record_noise=0.1)
    several = np.concatenate([values.subject + shift for shift in (-0.2, 0.0, 0.2)], axis=1)
    one, three = (verdict.measure_gap(values._replace(subject=subject), records=60)
                  for subject in (values.subject, several))
    self.assertAlmostEqual(one.value, three.value)
    self.assertGreater(np.ptp(three.interval), 2 * np.ptp(one.interval))

  def test_two_sided(self):
    values = simulate(np.random.default_rng(0), retrained=5, model_noise=0.01, record_noise=0.1)
    for sign in (1, -1):
      gap = verdict.measure_gap(outputs.Values(sign * values.subject, sign * values.reference),
                                records=60)
      self.assertEqual(verdict.decide(gap, 0.05, records=60, retrained=5)[0], FAIL)


class FloorTest(absltest.TestCase):

  def test_of_one_is_the_quantile_of_pairs(self):
    reference = np.random.default_rng(0).normal(size=(201, 6))
    pairs = np.abs([reference[1:, i] - reference[1:, j]
                    for i, j in itertools.combinations(range(6), 2)])
    found = verdict.floors({'a': (reference, False)})
    self.assertAlmostEqual(found['a'], np.quantile(pairs, 0.95), places=12)

  def test_of_several_holds_for_all_at_once(self):
    rng = np.random.default_rng(0)
    references = {name: (scale * rng.normal(size=(401, 6)), False)
                  for name, scale in (('a', 1.0), ('b', 5.0), ('c', 0.1))}
    references['still'] = (np.ones((401, 6)), False)
    found = verdict.floors(references)
    self.assertEqual(found['still'], 0)
    inside = np.ones((400, 15), bool)
    for name, (values, _) in references.items():
      pairs = np.stack([np.abs(values[1:, i] - values[1:, j])
                        for i, j in itertools.combinations(range(6), 2)], axis=1)
      inside &= pairs <= found[name]
    self.assertAlmostEqual(inside.mean(), 0.95, delta=0.001)
    self.assertGreater(found['a'], verdict.floors({'a': references['a']})['a'])

  def test_of_a_distance_has_the_spread_that_an_outsider_would_have(self):
    # d_ij = 1 + x_i + x_j: an outsider's distance to the others has its x in full.
    x = np.random.default_rng(0).normal(size=5)
    distance = 1 + x[:, None] + x[None]
    own = (distance.sum(axis=1) - np.diag(distance)) / 4
    found = verdict.deviations(own[None], pairwise=True)[0]
    np.testing.assert_allclose(found - found.mean(), x - x.mean(), atol=1e-12)


class DecideTest(parameterized.TestCase):

  @parameterized.parameters(
      (0.0, (-0.5, 0.5), 1.0, 100, PASS), (2.0, (1.5, 2.5), 1.0, 100, FAIL),
      (-2.0, (-2.5, -1.5), 1.0, 100, FAIL), (0.8, (0.3, 1.3), 1.0, 100, INCONCLUSIVE),
      (0.0, (-2.0, 2.0), 1.0, 100, INCONCLUSIVE), (0.0, (0.0, 0.0), 0.0, 100, PASS),
      (0.0, (-0.5, 0.5), 1.0, 29, INCONCLUSIVE), (2.0, (1.5, 2.5), 1.0, 29, INCONCLUSIVE))
  def test_rule(self, value, interval, floor, records, expected):
    gap = verdict.Gap(value, interval, (interval[1] - interval[0]) / 2, 0.0)
    found, needed, models = verdict.decide(gap, floor, records=records, retrained=5)
    self.assertEqual(found, expected)
    if found == INCONCLUSIVE:
      self.assertGreaterEqual(needed, max(records + 1, verdict.MIN_RECORDS))
      self.assertGreaterEqual(models, 5)
    else:
      self.assertIsNone(needed)

  def test_needed_records_settle_it(self):
    gap = verdict.Gap(0.5, (-0.5, 1.5), from_records=1.0, from_models=0.0)
    _, needed, models = verdict.decide(gap, 1.0, records=100, retrained=5)
    self.assertEqual((needed, models), (400, 5))  # half the width: four times the records
    self.assertEqual(verdict.decide(verdict.Gap(0.5, (0.0, 1.0), 0.5, 0.0), 1.0, records=needed,
                                    retrained=5)[0], PASS)

  def test_models_are_asked_for_when_records_cannot_settle_it(self):
    gap = verdict.Gap(0.5, (-0.5, 1.5), from_records=0.0, from_models=1.0)
    _, needed, models = verdict.decide(gap, 1.0, records=100, retrained=5)
    self.assertEqual((needed, models), (400, 20))

  def test_nothing_settles_a_gap_on_the_edge(self):
    gap = verdict.Gap(1.0, (0.5, 1.5), 0.5, 0.0)
    self.assertEqual(verdict.decide(gap, 1.0, records=100, retrained=5),
                     (INCONCLUSIVE, None, None))

  def test_overall(self):
    self.assertEqual(verdict.overall([PASS, PASS], sensitive=True), PASS)
    self.assertEqual(verdict.overall([PASS, FAIL, INCONCLUSIVE], sensitive=True), FAIL)
    self.assertEqual(verdict.overall([PASS, INCONCLUSIVE], sensitive=True), INCONCLUSIVE)
    self.assertEqual(verdict.overall([PASS, 'n/a: reason'], sensitive=True), INCONCLUSIVE)
    self.assertEqual(verdict.overall([PASS, PASS], sensitive=False), INCONCLUSIVE)
    self.assertStartsWith(verdict.overall([], sensitive=True), 'n/a: ')


class KnownAnswerTest(absltest.TestCase):

  def count(self, seeds):
    found = collections.defaultdict(collections.Counter)
    for seed in seeds:
      task = toy.make(seed)
      judged = {'retrained': task.retrained[5], 'original': task.original, 'half': task.other[0]}
      for name, result in zip(judged, decided(task, list(judged.values()), seed=seed)):
        found[name][result] += 1
    return found

  def test_rates(self):
    found = self.count(range(20))
    self.assertEqual(found['retrained'][FAIL], 0)
    self.assertGreaterEqual(found['retrained'][PASS], 11)
    self.assertEqual(found['original'][FAIL], 20)
    self.assertEqual(found['half'][PASS], 0)

  @pytest.mark.slow
  def test_rates_over_200_draws(self):
    found = self.count(range(1000, 1200))
    self.assertLessEqual(found['retrained'][FAIL], 10)  # 5 %
    self.assertGreaterEqual(found['retrained'][PASS], 120)
    self.assertGreaterEqual(found['original'][FAIL], 190)
    self.assertLessEqual(found['half'][PASS], 10)

  def test_small_audits_cannot_tell(self):
    task = toy.make(0)
    small = {split: {name: values[:20] for name, values in fields.items()}
             for split, fields in task.data.items()}
    found = decided(task, [task.retrained[5], task.original, task.other[0]], data=small)
    self.assertEqual(found, [INCONCLUSIVE] * 3)

  def test_nothing_to_forget_is_never_passed(self):
    # The "original" is a retrained model: an audit that cannot see it must not clear anybody.
    task = toy.make(0)
    found = decided(task._replace(original=task.retrained[4]), [task.retrained[5]], retrained=4)
    self.assertEqual(found, [INCONCLUSIVE])


if __name__ == '__main__':
  absltest.main()
