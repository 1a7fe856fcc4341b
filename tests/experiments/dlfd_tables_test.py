"""The tables of the DLFD paper from work directories, and the figures quoted beside ours."""

import json
import os
import subprocess
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized

from experiments import dlfd_paper
from experiments import dlfd_tables


def statistics(*values):
  return {'mean': sum(values) / len(values), 'std': 0.01, 'values': list(values)}


def results(task='dlfd_age', model='resnet18', data='mufac', rows=('finetune', 'ssd')):
  metrics = {'accuracy/test': statistics(0.5, 0.7), 'nomus': statistics(0.75, 0.77),
             'forgetting_score[benchmark]': statistics(0.1, 0.2)}
  if task == 'dlfd_age':
    metrics['top2/test'] = statistics(0.8, 0.9)
  part = {'metrics': metrics, 'seconds': statistics(1.0, 1.0),
          'compile_seconds': statistics(1.0, 1.0)}
  return {'config': {'name': task, 'model': model, 'data': {'name': data}},
          'floor': {'nomus': {'pairs': [0.02], 'max': 0.02}},
          'methods': {row: part for row in ('original', 'retrain', *rows)}}


class TablesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.root = self.enter_context(tempfile.TemporaryDirectory())

  def workdir(self, name, content):
    path = os.path.join(self.root, name)
    os.makedirs(path)
    with open(os.path.join(path, 'results.json'), 'w') as file:
      json.dump(content, file)
    return path

  def rows(self, text, title):
    """Method -> cells of the table under a heading."""
    table = text.split(f'## {title}\n')[1].split('## ')[0].strip().splitlines()
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in table]
    return cells[0], {row[0]: row[1:] for row in cells[2:]}

  def test_table_1(self):
    text = dlfd_tables.markdown('1', [self.workdir('age', results())])
    headings, rows = self.rows(text, 'Age, ResNet18')
    self.assertEqual(headings, [
        'Method', 'Accuracy', 'Accuracy [paper]', 'Top-2', 'Top-2 [paper]', 'Forgetting Score',
        'Forgetting Score [paper]', 'NoMUS', 'NoMUS [paper]'])
    self.assertEqual(rows['Fine-tuning'], [
        '0.600 ± 0.010', '0.6349', '0.850 ± 0.010', '0.8876', '0.150 ± 0.010', '0.1980',
        '0.760 ± 0.010', '0.61945'])
    self.assertEqual(rows['DLFD'], ['n/a: not run', '0.6166', 'n/a: not run', '0.8806',
                                    'n/a: not run', '0.0385', 'n/a: not run', '0.7698'])
    self.assertEqual(rows['ssd'][:2], ['0.600 ± 0.010', ''])  # the paper has no such row
    self.assertEqual(rows[dlfd_tables.FLOOR], ['n/a', '', 'n/a', '', 'n/a', '', '0.020', ''])
    self.assertNotIn('Not in this table', text)
    headings, rows = self.rows(text, 'Gender, ResNet18')
    self.assertNotIn('Top-2', headings)
    self.assertEqual({cell for row in rows.values() for cell in row[::2]}, {'n/a: not run'})

  def test_top_2_of_ours_where_the_paper_has_none(self):
    content = results('dlfd_emotion', data='raf_db')
    content['methods']['finetune']['metrics']['top2/test'] = statistics(0.8, 0.9)
    headings, rows = self.rows(
        dlfd_tables.markdown('1', [self.workdir('emotion', content)]), 'Emotion, ResNet18')
    self.assertIn('Top-2', headings)
    self.assertEqual(rows['Fine-tuning'][headings.index('Top-2') - 1], '0.850 ± 0.010')

  def test_other_models_have_no_place_in_table_1(self):
    text = dlfd_tables.markdown('1', [self.workdir('age', results(model='densenet121'))])
    self.assertIn('Not in this table: dlfd_age with densenet121.', text)
    self.assertNotIn('0.760', text)

  def test_table_2(self):
    text = dlfd_tables.markdown('2', [
        self.workdir('a', results('dlfd_gender', 'densenet121', 'mucac_gender')),
        self.workdir('b', results('dlfd_age', 'densenet121'))])
    headings, rows = self.rows(text, 'DenseNet121')
    self.assertEqual(headings[1::2], ['Age', 'Emotion', 'Multi-attributes', 'Gender'])
    self.assertEqual(rows['Retrained'], [
        '0.760 ± 0.010', '0.7617', 'n/a: not run', '0.8504', 'n/a: not run', '0.9063',
        '0.760 ± 0.010', '0.8901'])
    _, rows = self.rows(text, 'EfficientNetB0')
    self.assertEqual(rows['DLFD'][1::2], ['0.7617', '0.7801', '0.9529', '0.9208'])
    self.assertEqual(set(rows['DLFD'][::2]), {'n/a: not run'})

  def test_wrong_workdirs(self):
    with self.assertRaisesRegex(FileNotFoundError, 'results.json is missing: .*not finished'):
      dlfd_tables.read([self.root])
    with self.assertRaisesRegex(ValueError, "'digits' with model 'resnet18'; the tables have"):
      dlfd_tables.read([self.workdir('digits', results('digits'))])
    with self.assertRaisesRegex(ValueError, "with model 'cnn'"):
      dlfd_tables.read([self.workdir('cnn', results(model='cnn'))])
    with self.assertRaisesRegex(ValueError, 'smoke run on generated files'):
      dlfd_tables.read([self.workdir('smoke', results(data='mufac_fixture'))])
    with self.assertRaisesRegex(ValueError, 'and so does another one'):
      dlfd_tables.read([self.workdir('one', results()), self.workdir('two', results())])

  def test_command(self):
    root = os.path.dirname(os.path.dirname(dlfd_tables.__file__))

    def run(*arguments):
      return subprocess.run([sys.executable, '-m', 'experiments.dlfd_tables', *arguments],
                            cwd=root, capture_output=True, text=True, check=False)

    done = run('--table=2', f'--workdirs={self.workdir("age", results())}')
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn('0.760 ± 0.010', done.stdout)
    self.assertIn(dlfd_paper.SOURCE, done.stdout)
    done = run(f'--workdirs={self.root}')
    self.assertEqual(done.returncode, 1)
    self.assertIn('error: ', done.stderr)
    self.assertNotIn('Traceback', done.stderr)


class PaperTest(parameterized.TestCase):
  """The figures were typed in: what must hold among them."""

  def test_every_row_has_a_figure(self):
    tables = [values for part in dlfd_paper.TABLE_1.values() for values in part.values()]
    tables += [values for part in dlfd_paper.TABLE_2.values() for values in part.values()]
    self.assertLen(tables, 4 + 3 * 3 + 3 * 4)
    for values in tables:
      self.assertLen(values, len(dlfd_paper.ROWS))
      self.assertTrue(all(0 <= value <= 1 for value in values))

  @parameterized.parameters(*dlfd_paper.TABLE_1)
  def test_nomus_of_table_1_follows_from_its_parts(self, task):
    part = dlfd_paper.TABLE_1[task]
    for accuracy, score, nomus in zip(part['accuracy'], part['forgetting'], part['nomus']):
      self.assertAlmostEqual((accuracy + 1 - 2 * score) / 2, nomus, delta=2e-3)

  @parameterized.parameters(*dlfd_paper.TABLE_1)
  def test_tables_1_and_2_agree_but_for_the_slips_that_are_named(self, task):
    for row, one, two in zip(dlfd_paper.ROWS, dlfd_paper.TABLE_1[task]['nomus'],
                             dlfd_paper.TABLE_2['resnet18'][task]):
      if task == 'dlfd_age' and row in ('neg_grad', 'cf_k', 'eu_k', 'scrub'):
        self.assertGreater(abs(one - two), 1e-3)
      else:
        self.assertAlmostEqual(one, two, delta=2e-4)


if __name__ == '__main__':
  absltest.main()
