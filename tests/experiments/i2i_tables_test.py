"""One table over several generators."""

import json
import subprocess
import sys
import tempfile

from absl.testing import absltest

from experiments import i2i_tables


def results(model='mae', **cosines):
  """Rows of two seeds with cosines (R, F) of the large hole; half of what is lost in the small one."""
  statistics = lambda values: {'mean': sum(values) / 2, 'std': 0.0, 'values': list(values)}
  methods = {}
  for row, pairs in cosines.items():
    metrics = {}
    for side, index in (('retain', 0), ('forget', 1)):
      values = [pair[index] for pair in pairs]
      metrics |= {f'fid[x]/{side}': statistics((10.0, 20.0)),
                  f'fid[x]/{side}@centre:2': statistics((1.0, 2.0)),
                  f'emb_cos[x]/{side}': statistics(values),
                  f'emb_cos[x]/{side}@centre:2': statistics([(1 + each) / 2 for each in values])}
    methods[row] = {'metrics': metrics, 'seconds': statistics((1.0, 1.0))}
  return {'config': {'name': f'i2i_{model}', 'model': model, 'data': {'image_size': 32},
                     'generation': {'holes': ['centre:4', 'centre:2']}},
          'split_sizes': {'forget': 5, 'retain': 6}, 'methods': methods}


FOUND = results(original=[(.8, .8), (.8, .8)], retrain=[(.8, .7), (.8, .7)],
                i2i=[(.8, .5), (.8, .7)], max_loss=[(.55, .4), (.55, .4)])


def cells(lines, row):
  return [cell.strip() for line in lines if line.startswith(f'| {row} ') for cell in line.split('|')]


class TablesTest(absltest.TestCase):

  def test_goal_rank_and_gap(self):
    lines = i2i_tables.table(FOUND, 0)
    self.assertEqual(cells(lines, 'i2i')[6:9], ['+0.200', '1', '0.050'])  # (0 + 0 + .2 + 0) / 4
    self.assertEqual(cells(lines, 'max_loss')[6:9], ['+0.150', '2', '0.275'])
    self.assertEqual(cells(lines, 'Retrained')[6:9], ['+0.100', '', '0.000'])
    small = i2i_tables.table(FOUND, 1)
    self.assertEqual(cells(small, 'i2i')[6:9], ['+0.100', '1', '0.025'])
    self.assertEqual(cells(small, 'i2i')[2], '1.5 ± 0.0')

  def test_published_figures_stand_beside(self):
    self.assertEqual(cells(i2i_tables.table(FOUND, 0), 'i2i')[9:11], ['59.9, 153.0', '0.72, 0.67'])
    self.assertEqual(cells(i2i_tables.table(FOUND, 1), 'i2i')[9:11], ['12.2, 45.1', '0.86, 0.83'])
    self.assertEqual(cells(i2i_tables.table(FOUND, 0), 'Retrained')[9:11], ['', ''])

  def test_as_a_program(self):
    with tempfile.NamedTemporaryFile('w', suffix='.json') as file:
      json.dump(FOUND | {'config': FOUND['config'] | {'model': 'clip'}}, file)
      file.flush()
      done = subprocess.run([sys.executable, '-m', 'experiments.i2i_tables', file.name],
                            capture_output=True, text=True, check=False)
    self.assertEqual(done.returncode, 1)
    self.assertIn("model 'clip' is none of mae, mage, palette", done.stderr)


if __name__ == '__main__':
  absltest.main()
