"""The evaluation of saved CLIPs: on small models and files, the tables, and the quoted figures."""

import os
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import pytest

from experiments import downstream as command
from experiments import ncu_paper
from unlearn_jax import models
from unlearn_jax.data.builders import downstream
from unlearn_jax.data.builders import downstream_fixtures
from unlearn_jax.models import surgery

SIZE, CONTEXT = 16, 24
ARGUMENTS = dict(layout='openai', embedding=16, patch=8, image_width=64, image_depth=1,
                 image_heads=1, text_width=64, text_depth=1, text_heads=1, context=CONTEXT)


def small_clip():
  model = models.get('clip', **ARGUMENTS)
  inputs = {'image': np.zeros((1, SIZE, SIZE, 3)), 'text': np.zeros((1, CONTEXT), np.int32)}
  return model, jax.jit(model.init)(jax.random.key(0), inputs)


def save(variables, path):
  """Under OpenAI's names, by the rule in models/clip.py."""
  safetensors = pytest.importorskip('safetensors.numpy', reason='extra `convert`')
  leaves = {'kernel': 'weight', 'scale': 'weight', 'embedding': 'weight'}
  tensors = {}
  for place, leaf in zip(surgery.paths(variables), jax.tree.leaves(variables)):
    *folders, last = place.split('/')[1:]
    name = '.'.join((*folders, leaves.get(last, last))).removeprefix('text.')
    leaf = np.asarray(leaf)
    if last == 'kernel':
      leaf = leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf.T
    tensors[name.replace('in_proj.', 'in_proj_')] = np.ascontiguousarray(leaf)
  safetensors.save_file(tensors, path)


def oracle(accuracy_of):
  """A stand-in for a CLIP that knows what its pictures show: every embedding is a class's."""
  embeddings = np.eye(64, dtype=np.float32)

  def encode_image(pictures):
    del pictures
    return {'image_embedding': embeddings[accuracy_of], 'features': embeddings[accuracy_of]}

  return command.Clip('oracle', SIZE, encode_image, lambda tokens: embeddings[tokens[:, 0]],
                      lambda texts: np.array([['negative' not in text] for text in texts], int))


class EvaluateTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.data_dir = self.enter_context(tempfile.TemporaryDirectory())

  def test_zero_shot_and_probe_by_hand(self):
    downstream_fixtures.write('sst2', self.data_dir)
    # 4 negative and then 4 positive pictures; the model takes one negative for a positive.
    found = command.evaluate(oracle([0, 0, 0, 1, 1, 1, 1, 1]), ['sst2'], ['sst2'], self.data_dir)
    self.assertEqual(found.zero_shot, {'sst2': 87.5})
    self.assertEqual(found.probe, {'sst2': 87.5})
    self.assertEqual(found.missing, {})

  def test_the_metric_is_that_of_the_set(self):
    downstream_fixtures.write('aircraft', self.data_dir)
    root = pathlib.Path(self.data_dir, 'fgvc-aircraft-2013b', 'data', 'images_variant_test.txt')
    lines = root.read_text().splitlines(keepends=True)  # classes 0, 1, 2, 0, 1, 2, ...
    root.write_text(''.join(lines[0::3] + lines[1:2]))  # four of class 0, one of class 1
    model = oracle([0, 0, 0, 0, 0])._replace(tokenize=lambda texts: np.array(
        [[next(i for i, name in enumerate(downstream_fixtures.AIRCRAFT) if name in text)]
         for text in texts]))
    found = command.evaluate(model, ['aircraft'], [], self.data_dir)
    self.assertEqual(found.zero_shot, {'aircraft': 50.0})  # of classes; 80 % of pictures

  def test_a_small_clip_end_to_end(self):
    downstream_fixtures.write('sst2', self.data_dir, per_class=10)
    model, variables = small_clip()
    path = os.path.join(self.data_dir, 'small.safetensors')
    save(variables, path)
    loaded = command.load(path, layout='openai', pixels=None, batch_size=7)
    self.assertEqual((loaded.name, loaded.image_size), ('small.safetensors', SIZE))
    pictures = downstream.get('sst2', self.data_dir, image_size=SIZE).fields['image']
    outputs = loaded.encode_image(pictures)
    mean, deviation = command.PIXELS['clip']
    apply = jax.jit(model.apply, static_argnames='method')
    want, _ = apply(variables, {'image': (pictures[:] - mean) / deviation}, method='encode_image')
    for name in ('image_embedding', 'features'):
      np.testing.assert_allclose(outputs[name], want[name], atol=1e-4)
    tokens = loaded.tokenize(['a negative review of a movie.'])
    self.assertEqual(tokens.shape, (1, CONTEXT))
    want, _ = apply(variables, {'text': tokens}, method='encode_text')
    np.testing.assert_allclose(loaded.encode_text(tokens), want['text_embedding'], atol=1e-5)
    found = command.evaluate(loaded, ['sst2', 'dtd'], ['sst2'], self.data_dir)
    self.assertBetween(found.zero_shot['sst2'], 0, 100)
    self.assertGreater(found.probe['sst2'], 80)  # patterns of two classes: random features do
    self.assertEqual(list(found.missing), ['dtd'])
    with self.assertRaisesRegex(ValueError, 'do not tell QuickGELU'):
      command.load(path, layout=None, pixels=None, batch_size=7)

  def test_damaged_data_are_no_missing_data(self):
    downstream_fixtures.write('aircraft', self.data_dir)
    path = pathlib.Path(self.data_dir, 'fgvc-aircraft-2013b', 'data', 'variants.txt')
    path.write_text('Spitfire\n')
    with self.assertRaisesRegex(ValueError, 'is no picture and variant'):
      command.evaluate(oracle([0]), ['aircraft'], [], self.data_dir)


class TablesTest(absltest.TestCase):

  def rows(self, text, title):
    table = text.split(f'## {title}\n')[1].split('## ')[0].strip().splitlines()
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in table]
    return cells[0], {row[0]: row[1:] for row in cells[2:]}

  def test_figures_stand_beside_the_papers(self):
    some = command.Results({'cifar10': 61.25, 'imagenet': 12.0}, {'sun397': 50.126},
                           {'dtd': 'DTD: not prepared'})
    whole = command.Results({name: 10.0 + i for i, name in enumerate(
        (*ncu_paper.TABLE_1_SETS, 'imagenet'))}, {'sun397': 1.0}, {})
    chosen = ['cifar10', 'imagenet', 'dtd']
    text = command.markdown({'a.pt': some, 'b.pt': whole}, chosen, ['sun397'])
    headings, rows = self.rows(text, 'Table 1: zero-shot accuracy')
    self.assertLen(headings, 18)
    self.assertLen(rows, 12)
    self.assertEqual(headings[-2:], ['Average', 'ImageNet1K'])
    self.assertEqual(rows['CC3M ViT-B/16 NCU [paper]'][-2:], ['28.2', '20.0'])
    ours = dict(zip(headings[1:], rows['a.pt']))
    self.assertEqual((ours['CIFAR-10'], ours['DTD'], ours['ImageNet1K'], ours['Average']),
                     ('61.2', 'n/a', '12.0', 'n/a: 1 of 15 sets'))
    self.assertEqual(dict(zip(headings[1:], rows['b.pt']))['Average'], '17.0')
    headings, rows = self.rows(text, 'Table 3: linear probes')
    self.assertEqual(headings, ['Model', 'SUN397', 'OxfordPets', 'Food101', 'ImageNet1K'])
    self.assertEqual(rows['a.pt'], ['50.13', 'n/a', 'n/a', 'n/a'])
    self.assertEqual(rows['CC12M ViT-B/16 CLIP [paper]'][-1], '66.70')
    missing = text.split('## What is missing: a.pt\n')[1].split('##')[0]
    self.assertIn('- DTD, zero-shot: n/a: DTD: not prepared', missing)
    self.assertIn('- STL10, zero-shot: n/a: not among the chosen data sets', missing)
    self.assertIn('- Food101, linear probe: n/a: not among the chosen data sets', missing)
    self.assertNotIn('CIFAR-10,', missing)

  def test_command(self):
    root = os.path.dirname(os.path.dirname(command.__file__))

    def call(*arguments):
      return subprocess.run([sys.executable, '-m', 'experiments.downstream', *arguments],
                            cwd=root, capture_output=True, text=True, check=False)

    with tempfile.TemporaryDirectory() as directory:
      downstream_fixtures.write('sst2', directory)
      path = os.path.join(directory, 'small.safetensors')
      save(small_clip()[1], path)
      done = call(f'--checkpoint={path}', '--layout=openai', f'--data_dir={directory}',
                  '--datasets=sst2,dtd', '--probes=')
      self.assertEqual(done.returncode, 0, done.stderr)
      headings, rows = self.rows(done.stdout, 'Table 1: zero-shot accuracy')
      ours = dict(zip(headings[1:], rows['small.safetensors']))
      self.assertRegex(ours['SST2'], r'^\d+\.\d$')
      self.assertEqual(ours['DTD'], 'n/a')
      self.assertIn('prepare it: tfds build dtd', done.stdout)
      done = call(f'--checkpoint={directory}/none.pt')
      self.assertEqual(done.returncode, 1)
      self.assertIn('error: ', done.stderr)
      self.assertNotIn('Traceback', done.stderr)


class PaperTest(parameterized.TestCase):
  """The figures were typed in: what must hold among them."""

  def test_shapes(self):
    self.assertEqual(set(ncu_paper.TABLE_1), set(ncu_paper.TABLE_3))
    self.assertEqual({*ncu_paper.TABLE_1_SETS, 'imagenet'}, set(downstream.SETS))
    for values in ncu_paper.TABLE_1.values():
      self.assertLen(values, 17)
    for values in ncu_paper.TABLE_3.values():
      self.assertLen(values, 4)

  @parameterized.parameters(*ncu_paper.TABLE_1)
  def test_averages_are_those_of_the_fifteen_sets(self, *row):
    *values, average, _ = ncu_paper.TABLE_1[row]
    self.assertAlmostEqual(np.mean(values), average, delta=0.06)


if __name__ == '__main__':
  absltest.main()
