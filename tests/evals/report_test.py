"""The report of an experiment, end to end."""

import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from unlearn_jax.evals import figures
from unlearn_jax.evals import report

METHODS = {'original': 0.45, 'retrain': 0.82, 'scrub': 0.71, 'dlfd': 0.8}


def results(seeds=3, **changes):
  rng = np.random.default_rng(0)
  rows = {name: [{'metrics': {
      'nomus': base + i / 1000, 'accuracy/test': base, 'accuracy/retain': 1.0,
      'accuracy/forget': base, 'forgetting_score[benchmark]': float(rng.uniform(0, 0.3)),
      'forgetting_floor[benchmark]': 0.0, 'forgetting_score[dlfd]': 0.31,
      'forgetting_floor[dlfd]': 0.1234, 'mia_auc/unseen': 0.6, 'loss_gap': -0.25,
      'probe_accuracy/test': 0.654, 'separability/retain': 1.5, 'separability/test': 0.9},
      'seconds': 2.0, 'compile_seconds': 1.0} for i in range(seeds)]
      for name, base in METHODS.items()}
  found = {
      'config': {'name': 'unit', 'data': {'name': 'digits', 'label_noise': 0.2},
                 'split': {'kind': 'identity'}, 'seeds': list(range(seeds)), 'budget': 'dlfd'},
      'split_hash': '0123456789abcdef0123', 'versions': {'jax': '0.10.2', 'backend': 'cpu'},
      'attribution': 'Digits of somebody.', 'tune': None,
      'split_sizes': {'forget': 60, 'retain': 1200, 'test': 300, 'unseen': 80},
      'settings': {name: {'learning_rate': 0.01} for name in METHODS}, **report.summarise(rows)}
  return found | changes


def losses(seeds=2):
  rng = np.random.default_rng(0)
  return {(name, seed): {'forget': rng.exponential(1, 30), 'unseen': rng.exponential(2, 20)}
          for name in METHODS for seed in range(seeds)}


CURVES = {name: {'step': [10, 20, 30], 'loss': [2.0, 1.0, 0.5]} for name in METHODS}
TUNE = {'objective': 'nomus', 'best': 'max', 'budget': 0.5, 'trials_per_row': 0, 'seeds': [0],
        'forget_records': 77, 'retraining_seconds': 2.0,
        'trials': {'scrub': [
            {'settings': {'learning_rate': 0.01}, 'score': 0.777, 'values': [0.777], 'cost': 0.2},
            {'settings': {'learning_rate': 0.1}, 'score': None, 'values': [None], 'cost': 0.1}]},
        'chosen': {'scrub': {'learning_rate': 0.01}}}


def pairs(**changes):
  """Results of an image-text task: `contrastive-clean`, from other data, scores best."""
  metrics = {name: 0.5 for _, names, _ in report.TABLES['image_text']({}) for name in names}
  names = ('original', 'retrain', 'contrastive-clean', 'ncu', 'ncu-v1')
  rows = {name: [{'metrics': metrics | {'mean_recall/test': score + seed / 1000}, 'seconds': 2.0,
                  'compile_seconds': 1.0, 'flops': 3.21e12} for seed in range(2)]
          for name, score in zip(names, (0.11, 0.22, 0.44, 0.33, 0.31))}
  return {'config': {'name': 'unit', 'task': 'image_text', 'data': {'name': 'openmoji'},
                     'split': {'kind': 'planted'}, 'seeds': [0, 1], 'budget': 'original'},
          'split_hash': '0123', 'tune': {
              **TUNE, 'objective': 'mean_recall', 'follow': {'ncu-v1': 'ncu'},
              'trials': {'ncu': TUNE['trials']['scrub']},
              'chosen': {'ncu': {'learning_rate': 0.01}, 'ncu-v1': {'learning_rate': 0.01}}},
          'split_sizes': {'forget': 60, 'retain': 120}, 'attribution': 'Pictures of somebody.',
          **report.summarise(rows)} | changes


def read(path):
  with open(path, encoding='utf-8') as file:
    return file.read()


class ReportTest(parameterized.TestCase):

  def directory(self):
    return self.enterContext(tempfile.TemporaryDirectory())

  def test_image_text(self):
    rng = np.random.default_rng(0)
    arrays = {(name, 0): {key: rng.normal(size=30) for key in (
        'forget', 'unseen', 'positive', 'negative', 'top_negative')} for name in pairs()['methods']}
    text, page = map(read, report.write(pairs(), self.directory(), arrays=arrays))
    self.assertIn('Best Mean recall of the approximate methods: **ncu** with 0.331', text)
    for heading in ('Retrieval', 'Classification', 'What is left of the mismatched pairs',
                    'Which pairs are taken for mismatched', 'Similarities'):
      self.assertIn(f'## {heading}', text)
    self.assertIn('| 3.21 |', text)  # TFLOPs
    self.assertIn('no method is told which', text)
    self.assertIn('ncu-v1=ncu', text)
    self.assertNotIn('Forgetting Score', text)
    self.assertEqual(page.count('<svg'), 3)  # ranking, similarities, losses

  def test_both_files_hold_the_numbers(self):
    directory = self.directory()
    paths = report.write(results(tune=TUNE), directory, arrays=losses(), curves=CURVES)
    for text in map(read, paths):
      for part in ('Unlearning report: unit', 'Original', 'Retrained', 'scrub', '0.801 ± 0.001',
                   '20 % of the labels', '60 forget', '0123456789abcdef', 'seeds 0, 1, 2',
                   'Floor: retrained against retrained', '0.123', '0.654', 'diverged',
                   '0.777', '77 records', 'learning_rate=0.01', 'jax 0.10.2',
                   'Digits of somebody.', 'attack sees one number', '3 seeds give 3 pair(s)'):
        self.assertIn(part, text)

  def test_html_is_self_contained_with_all_figures(self):
    _, path = report.write(results(), self.directory(), arrays=losses(),
                           curves=CURVES)
    text = read(path)
    self.assertEqual(text.count('<svg'), 4)
    for outside in ('src="http', 'href="http', '<link', '<script', '@import'):
      self.assertNotIn(outside, text)

  def test_same_results_same_report(self):
    pages = [read(report.write(results(), self.directory(), arrays=losses(),
                               curves=CURVES)[1]) for _ in range(2)]
    self.assertEqual(*pages)

  def test_methods_are_told_apart_by_colour_and_marker(self):
    names = ['original', 'retrain', *(f'method{i}' for i in range(40))]
    colours, markers = figures._colours(names), figures._markers(names)
    self.assertLen({(colours[name], markers[name]) for name in names}, len(names))

  def test_figures_only_of_what_there_is(self):
    _, path = report.write(results(), self.directory(),
                           curves={'dlfd': {'step': [], 'loss': []}})
    self.assertEqual(read(path).count('<svg'), 2)

  @parameterized.parameters('original', 'retrain')
  def test_refuses_without_anchors(self, missing):
    bad = results()
    del bad['methods'][missing]
    directory = self.directory()
    with self.assertRaisesRegex(ValueError, f'without {missing}'):
      report.write(bad, directory)
    with self.assertRaisesRegex(ValueError, f'without {missing}'):
      report.write_cases({'cases': {'a': bad}}, directory)
    with self.assertRaisesRegex(ValueError, f'without {missing}'):
      report.markdown(bad)

  def test_one_seed_says_so(self):
    text = report.markdown(results(1))
    self.assertIn('± –', text)
    self.assertIn('One seed: there is no spread and no floor', text)

  def test_missing_values(self):
    found = results()
    for name in METHODS:
      metrics = found['methods'][name]['metrics']
      metrics['nomus'] = {'mean': None, 'std': None, 'values': [None] * 3}
      del metrics['accuracy/test']
    _, path = report.write(found, self.directory())
    self.assertIn('No approximate method has a NoMUS', read(path))
    self.assertIn('n/a', read(path))

  def test_without_tuning_nothing_claims_it(self):
    text = report.markdown(results())
    self.assertNotIn('Choice of settings', text)
    self.assertIn('this run searched for none', text)

  def test_unbalanced_attack_is_a_limit(self):
    self.assertNotIn('attack is unbalanced', report.markdown(results()))
    found = results()
    for name in METHODS:
      found['methods'][name]['metrics']['forgetting_floor[benchmark]'] = {
          'mean': 0.4, 'std': 0.0, 'values': [0.4] * 3}
    self.assertIn('attack is unbalanced', report.markdown(found))

  def test_cases(self):
    whole = {'config': {'name': 'small'}, 'versions': {'jax': '0.10.2'},
             'cases': {'ten': results(), 'hundred': results(2)}}
    paths = report.write_cases(whole, self.directory())
    for text in map(read, paths):
      for part in ('Unlearning report: small', 'Case ten', 'Case hundred', '2 cases', 'jax 0.10.2',
                   '2 seeds give 1 pair(s)', '3 seeds give 3 pair(s)'):
        self.assertIn(part, text)
    self.assertEqual(read(paths[1]).count('<svg'), 1)
    self.assertIn('Case ten', report.markdown(whole))
    self.assertEqual(report.markdown(whole).count('Digits of somebody.'), 1)

  def test_without_matplotlib_the_error_names_the_extra(self):
    with mock.patch.dict(sys.modules, {'matplotlib': None}):
      with self.assertRaisesRegex(ImportError, r'unlearn_jax\[report\]'):
        report.write(results(), self.directory())
      self.assertIn('Retrained', report.markdown(results()))  # words and tables need none


if __name__ == '__main__':
  absltest.main()
