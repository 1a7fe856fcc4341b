"""Per-seed rows -> results.json, and the tables made from it."""

import json
import os
import tempfile

from absl.testing import absltest
from absl.testing import parameterized

from unlearn_jax.evals import results as results_lib


def rows(seeds=3, **changes):
  """Rows with numbers that are easy to check: seed i adds i / 100."""
  table = {'dlfd': 0.8, 'original': 0.4, 'scrub': 0.7, 'retrain': 0.9} | changes
  return {name: [{'metrics': {'nomus': base + i / 100, 'accuracy/test': base,
                              'loss_gap': base - 1, 'forgetting_floor[benchmark]': 0.0},
                  'seconds': {'retrain': 10.0}.get(name, 2.0) + i, 'compile_seconds': 1.0}
                 for i in range(seeds)] for name, base in table.items()}


class SummariseTest(parameterized.TestCase):

  def test_statistics(self):
    found = results_lib.summarise(rows())
    self.assertEqual(list(found['methods']), ['original', 'retrain', 'dlfd', 'scrub'])
    nomus = found['methods']['dlfd']['metrics']['nomus']
    self.assertEqual(nomus['values'], [0.8, 0.81, 0.8200000000000001])
    self.assertAlmostEqual(nomus['mean'], 0.81)
    self.assertAlmostEqual(nomus['std'], 0.01)  # ddof = 1
    self.assertEqual(found['methods']['dlfd']['seconds']['values'], [2.0, 3.0, 4.0])
    self.assertEqual(found['methods']['dlfd']['compile_seconds']['std'], 0.0)

  def test_floor(self):
    floor = results_lib.summarise(rows())['floor']['nomus']
    self.assertLen(floor['pairs'], 3)
    for found, want in zip(floor['pairs'], (0.01, 0.02, 0.01)):
      self.assertAlmostEqual(found, want)
    self.assertAlmostEqual(floor['max'], 0.02)

  def test_floor_of_what_is_relative_to_the_retrained_model(self):
    table = rows()
    for row, accuracy in zip(table['retrain'], (0.5, 0.4, 0.8)):
      row['metrics'] |= {'accuracy/test': accuracy, 'upg': 0.0}
    floor = results_lib.summarise(table)['floor']
    self.assertLen(floor['upg']['pairs'], 6)
    self.assertAlmostEqual(floor['upg']['max'], 100.0)  # .8 over .4
    self.assertAlmostEqual(floor['accuracy/test']['max'], 0.4)

  def test_one_seed_has_no_spread_and_no_floor(self):
    found = results_lib.summarise(rows(1))
    self.assertIsNone(found['methods']['dlfd']['metrics']['nomus']['std'])
    self.assertEqual(found['floor']['nomus'], {'pairs': [], 'max': None})

  @parameterized.parameters(None, float('nan'), float('inf'))
  def test_what_has_no_value_is_none(self, value):
    table = rows()
    table['dlfd'][1]['metrics']['nomus'] = value
    del table['scrub'][2]['metrics']['nomus']
    table['retrain'][0]['metrics']['nomus'] = value
    found = results_lib.summarise(table)
    for name, row in (('dlfd', 1), ('scrub', 2)):
      nomus = found['methods'][name]['metrics']['nomus']
      self.assertIsNone(nomus['mean'])
      self.assertIsNone(nomus['std'])
      self.assertIsNone(nomus['values'][row])
    self.assertIsNone(found['floor']['nomus']['max'])
    json.dumps(found, allow_nan=False)
    self.assertIn('n/a', results_lib.markdown_table(found))

  def test_bad_rows(self):
    with self.assertRaisesRegex(ValueError, 'without retrain'):
      results_lib.summarise({name: row for name, row in rows().items() if name != 'retrain'})
    with self.assertRaisesRegex(ValueError, 'one row per seed.*scrub.: 2'):
      results_lib.summarise(rows() | {'scrub': rows(2)['scrub']})


class TablesTest(parameterized.TestCase):

  def test_round_trip_of_the_markdown_table(self):
    lines = results_lib.markdown_table(
        results_lib.summarise(rows()), ('nomus', 'accuracy/test')).splitlines()
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
    self.assertEqual({len(row) for row in cells}, {4})
    names = [row[0] for row in cells[2:]]
    self.assertEqual(names[:4], ['Original', 'Retrained', '**dlfd**', 'scrub'])
    self.assertStartsWith(names[4], 'Floor: retrained against retrained')
    values = {row[0].strip('*'): [float(x) for x in row[1].strip('*').split(' ± ')]
              for row in cells[2:6]}
    self.assertEqual(values, {'Original': [0.41, 0.01], 'Retrained': [0.91, 0.01],
                              'dlfd': [0.81, 0.01], 'scrub': [0.71, 0.01]})
    self.assertEqual(cells[4][1], '**0.810 ± 0.010**')  # the best approximate method
    self.assertEqual(cells[6][1:], ['0.020', '0.000', ''])
    self.assertEqual(cells[3][3], '100.0 %')
    share = (2 / 10 + 3 / 11 + 4 / 12) / 3
    self.assertEqual(cells[4][3], f'{100 * share:.1f} %')

  def test_best_is_no_anchor(self):
    results = results_lib.summarise(rows(original=0.99, scrub=0.85))
    self.assertEqual(results_lib.best(results), 'scrub')
    self.assertIsNone(results_lib.best(results_lib.summarise(
        {name: row for name, row in rows().items() if name in results_lib.ANCHORS})))

  def test_gaps_are_signed_and_read_against_the_floor(self):
    table = results_lib.gap_table(results_lib.summarise(rows(dlfd=0.91)), ('nomus',))
    found = dict((row[0], row[1]) for row in table.rows)
    self.assertEqual(found['dlfd'], '† +0.010 ± 0.000')
    self.assertEqual(found['scrub'], '-0.200 ± 0.000')
    self.assertNotIn('Retrained', found)

  def test_one_seed(self):
    results = results_lib.summarise(rows(1))
    self.assertIn('| 0.400 ± – |', results_lib.markdown_table(results, ('nomus',)))
    self.assertTrue(all('†' not in cell for row in results_lib.gap_table(results).rows
                        for cell in row))

  @parameterized.parameters('original', 'retrain')
  def test_refuses_without_anchors(self, missing):
    results = results_lib.summarise(rows())
    del results['methods'][missing]
    for table in (results_lib.markdown_table, results_lib.gap_table):
      with self.assertRaisesRegex(ValueError, f'without {missing}'):
        table(results)

  def test_unknown_metric_is_not_available(self):
    table = results_lib.main_table(results_lib.summarise(rows()), ('nonsense',))
    self.assertEqual({row[1] for row in table.rows}, {'n/a'})


class FromJsonTest(absltest.TestCase):

  def test_reads_and_checks(self):
    results = results_lib.summarise(rows())
    path = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'results.json')

    def reread(content):
      with open(path, 'w') as file:
        json.dump(content, file)
      return results_lib.from_json(path)

    self.assertEqual(reread(results), results)
    self.assertEqual(reread({'cases': {'a': results}})['cases']['a'], results)
    with self.assertRaisesRegex(ValueError, 'no results of an experiment'):
      reread({'config': {}})
    del results['methods']['retrain']
    with self.assertRaisesRegex(ValueError, 'without retrain'):
      reread({'cases': {'a': results}})


if __name__ == '__main__':
  absltest.main()
