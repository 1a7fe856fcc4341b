"""Statistics, alternation and the refusals of the benchmark harness, on a clock of our own."""

import json
import os
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from experiments.benchmarks import harness
from experiments.benchmarks import table


class Clock:
  """Advances only when a side says so."""

  def __init__(self):
    self.now, self.calls = 0.0, []

  def __call__(self):
    return self.now

  def side(self, name, *seconds):
    """A side whose calls last `seconds` in turn, the last one from then on."""
    left = list(seconds)

    def call():
      self.calls.append(name)
      self.now += left.pop(0) if len(left) > 1 else left[0]

    return call


class AlternateTest(parameterized.TestCase):

  def test_sides_take_turns_and_the_first_call_counts_apart(self):
    clock = Clock()
    sides = {'a': clock.side('a', 9.0, 1.0), 'b': clock.side('b', 7.0, 2.0)}
    found = harness.alternate(sides, 3, clock=clock)
    self.assertEqual(''.join(clock.calls), 'ab' + 'ab' + 'ababab')
    self.assertEqual(found['a'], harness.Timing(9.0, (1.0, 1.0, 1.0)))
    self.assertEqual(found['b'], harness.Timing(7.0, (2.0, 2.0, 2.0)))

  def test_a_short_side_is_called_several_times_after_an_untimed_call(self):
    clock = Clock()
    sides = {'a': clock.side('a', 0.25), 'b': clock.side('b', 8.0)}
    found = harness.alternate(sides, 2, at_least=1.0, clock=clock)
    self.assertEqual(''.join(clock.calls), 'abab' + 2 * ('a' + 'aaaa' + 'b'))
    np.testing.assert_allclose(found['a'].seconds, [0.25, 0.25])

  def test_a_slow_untimed_call_does_not_count(self):
    clock = Clock()
    # first, probe, then the untimed call of 5 s and two timed ones
    found = harness.alternate({'a': clock.side('a', 1, 1, 5, 1)}, 1, at_least=2.0, clock=clock)
    self.assertEqual(found['a'].seconds, (1.0,))

  def test_first_calls_made_before_are_taken_over(self):
    clock = Clock()
    found = harness.alternate({'a': clock.side('a', 1.0)}, 1, first={'a': 30.0}, clock=clock)
    self.assertEqual(found['a'].first, 30.0)

  def test_no_rounds(self):
    with self.assertRaisesRegex(ValueError, 'at least 1, got 0'):
      harness.alternate({'a': int}, 0)

  def test_first_call(self):
    clock = Clock()
    call = harness.FirstCall(clock.side('a', 3.0, 1.0), clock)
    self.assertIsNone(call.seconds)
    call()
    call()
    self.assertEqual(call.seconds, 3.0)


class StatisticsTest(parameterized.TestCase):

  def test_ratios_are_paired_by_round(self):
    timings = {'a': harness.Timing(0, (2.0, 20.0, 6.0)), 'b': harness.Timing(0, (1.0, 10.0, 2.0)),
               'c': harness.Timing(0, (0.0, 0.0, 0.5))}
    np.testing.assert_allclose(harness.ratio(timings, 'a', {'b': 1}), [2.0, 2.0, 3.0])
    np.testing.assert_allclose(harness.ratio(timings, 'a', {'b': 1, 'c': 2}), [2.0, 2.0, 2.0])
    row = harness.make_row('n', 'f', 2.0, harness.ratio(timings, 'a', {'b': 1}), timings)
    self.assertEqual((row.value, row.quartiles), (2.0, (2.0, 2.5)))
    self.assertEqual(dict(row.seconds), {'a': 6.0, 'b': 2.0, 'c': 0.0})
    self.assertEqual(row.rounds, 3)

  @parameterized.parameters((2.0, 'A.'), (1.0, 'A. B.'))
  def test_a_limit_is_told_where_the_target_is_missed(self, target, note):
    timings = {'a': harness.Timing(0, (2.0,))}
    row = harness.make_row('n', 'f', target, [2.0], timings, note='A.', limit='B.')
    self.assertEqual(row.note, note)

  @parameterized.parameters(
      ({'value': 1.154, 'target': 1.15}, 'met'),  # as printed
      ({'value': 1.156, 'target': 1.15}, 'not met'),
      ({'value': 2.1}, 'reference'),
      ({'target': 0.2, 'reason': 'no GPU here'}, 'not measured: no GPU here'))
  def test_verdict(self, facts, verdict):
    self.assertEqual(harness.Row('n', 'f', **facts).verdict, verdict)


class ParityTest(parameterized.TestCase):

  def test_difference_is_relative_to_the_largest_value(self):
    parity = harness.check_parity('plans', [np.array([[4.0, 0.5]])], [np.array([[4.0, 0.9]])],
                                  tolerance=0.2)
    self.assertAlmostEqual(parity.difference, 0.1)

  def test_other_losses_are_refused(self):
    with self.assertRaisesRegex(harness.Mismatch, r'losses differ by 1\.0e-02, the tolerance'):
      harness.check_parity('losses', [1.0, 2.02], [1.0, 2.0], tolerance=2e-3)

  def test_small_losses_are_not_agreed_on_by_default(self):
    with self.assertRaises(harness.Mismatch):
      harness.check_parity('losses', [1e-5], [2e-5], tolerance=1e-2)

  @parameterized.parameters(([], []), ([1.0], [1.0, 2.0]), ([np.nan], [np.nan]), ([1.0], [np.inf]))
  def test_nothing_to_compare(self, ours, other):
    with self.assertRaises(harness.Mismatch):
      harness.check_parity('losses', ours, other, tolerance=1.0)


class TableTest(absltest.TestCase):

  def test_written_results(self):
    timings = {'ours': harness.Timing(2.0, (0.002,)), 'PyTorch': harness.Timing(None, (0.001,))}
    rows = [harness.make_row('step/x', 'overhead', 1.15, [2.0], timings, note='A note.',
                             parity=harness.Parity('losses', 1e-6, 1e-4)),
            harness.Row('gpu', 'ratio', 0.8, reason='no GPU here')]
    with tempfile.TemporaryDirectory() as directory:
      table.write(rows, harness.machine(), directory)
      found = json.loads(pathlib.Path(directory, 'results.json').read_text(encoding='utf-8'))
      text = pathlib.Path(directory, 'results.md').read_text(encoding='utf-8')
    self.assertEqual([row['verdict'] for row in found['rows']],
                     ['not met', 'not measured: no GPU here'])
    self.assertEqual(found['rows'][0]['first'], {'ours': 2.0})
    self.assertEqual(found['machine']['cores'], harness.threads())
    self.assertIn('| step/x | overhead | 2.00 | 2.00 to 2.00 | 1.15 | not met |', text)
    self.assertIn('ours 2 ms (first 2 s), PyTorch 1 ms; rounds: 1.', text)
    self.assertIn('Losses agree to 1.0e-06 (tolerance 1e-04). A note.', text)
    self.assertNotIn(os.uname().nodename, json.dumps(found['machine']))


if __name__ == '__main__':
  absltest.main()
