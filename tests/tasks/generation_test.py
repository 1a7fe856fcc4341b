"""The generation task on generated pictures: what it feeds, measures, compares and refuses."""

import os
import tempfile
from unittest import mock

from absl.testing import absltest
import jax
import numpy as np

from experiments import figures
from unlearn_jax import config as config_lib
from unlearn_jax import experiment
from unlearn_jax import tasks
from unlearn_jax.audit import outputs
from unlearn_jax.data import sources
from unlearn_jax.evals import completion
from unlearn_jax.evals import views
from unlearn_jax.tasks import base
from unlearn_jax.tasks import generation

CLASSES, EACH = 6, 16
SHORT = {'epochs': 1.0, 'learning_rate': 1e-3}
SECTION = {'patch': 2, 'holes': ('centre:2',), 'extractors': ('random_conv:0',)}


def made() -> sources.Source:
  """96 pictures of six colours, with noise."""
  rng = np.random.default_rng(0)
  label = np.arange(CLASSES * EACH) % CLASSES
  colour = rng.random((CLASSES, 1, 1, 3))
  image = 0.7 * colour[label] + 0.3 * rng.random((len(label), 8, 8, 3))
  return sources.Source('made', {'image': image.astype(np.float32), 'label': label.astype(np.int32)},
                        np.arange(len(label)).astype(str), CLASSES, 'Generated; no rights attached.',
                        tuple(f'colour {k}' for k in range(CLASSES)))


def config(**changes):
  arguments = {
      'name': 'tiny', 'task': 'generation', 'data': {'name': 'made', 'normalize': 'half'},
      'split': {'kind': 'classes', 'forget_classes': 2, 'retain_classes': 2, 'held_out': 0.5},
      'model': 'mae', 'model_args': {'patch': 2, 'width': 8, 'depth': 1, 'heads': 2,
                                     'decoder_width': 8, 'decoder_depth': 1, 'decoder_heads': 2},
      'batch_size': 8, 'train': {'epochs': 1.0, 'warmup_epochs': 0.0},
      'methods': {'i2i': SHORT, 'max_loss': SHORT}, 'seeds': (0,), 'budget': 'original',
      'generation': SECTION | {'holes': ('centre:2', 'right:0.5'), 'sweep': ('random:0.5',),
                               'extractors': ('random_conv:1', 'random_conv:0')}}
  return config_lib.experiment(**(arguments | changes))


def load(workdir='', **changes) -> tasks.Task:
  made_config = config(**changes)
  made_config.cache_dir = tempfile.mkdtemp()
  config_lib.check(made_config)
  with mock.patch.object(sources, 'get', return_value=made()):
    return tasks.load(made_config, workdir)


class TaskTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.task = load()
    cls.variables = jax.jit(cls.task.model.init)(jax.random.key(0), cls.task.example)
    cls.metrics, cls.arrays = cls.task.measure(cls.variables)

  def test_original_learns_all_and_the_oracle_not_the_forgotten(self):
    forget = self.task.splits.indices['forget']
    label = np.asarray(self.task.source.fields['label'])
    self.assertContainsSubset(forget, self.task.trained['train'])
    self.assertEmpty(np.intersect1d(label[self.task.trained['retain']], label[forget]))
    held = np.concatenate([self.task.splits.indices[name]
                           for name in ('validation', 'test', 'unseen')])
    self.assertEmpty(np.intersect1d(self.task.trained['train'], held))
    streams = self.task.streams(0)
    for name in ('train', 'retain'):
      seen = np.unique(np.concatenate([streams[name](step)[name]['id'] for step in range(12)]))
      np.testing.assert_array_equal(seen, self.task.trained[name])

  def test_anchors_depend_on_mask_and_other_classes(self):
    with mock.patch.object(base, 'train_row', return_value=({}, {})):
      places = {base.anchor(load(**changes), 'retrain', 0)[2].rpartition('-')[2] for changes in (
          {}, {'generation': SECTION | {'mask': 'random:0.5'}},
          {'split': {'kind': 'classes', 'forget_classes': 2, 'retain_classes': 1, 'held_out': 0.5}})}
    self.assertLen(places, 3)

  def test_every_hole_is_measured_on_both_sides_by_every_extractor(self):
    for extractor in ('random_conv:1', 'random_conv:0'):
      for hole in ('', '@right:0.5', '@random:0.5'):
        for side in completion.SIDES:
          for measure in ('fid', 'emb_cos'):
            self.assertIn(f'{measure}[{extractor}]/{side}{hole}', self.metrics)
    self.assertEqual(self.metrics['removed'], 0.25)
    self.assertEqual(self.metrics['removed@right:0.5'], 0.5)
    for name in self.metrics:
      self.assertTrue(views.metric(name).label)

  def test_the_last_extractor_gives_the_cosine(self):
    self.assertEqual(generation.cosine(self.metrics, 'retain'),
                     self.metrics['emb_cos[random_conv:0]/retain'])
    self.assertNotEqual(generation.cosine(self.metrics, 'retain'),
                        self.metrics['emb_cos[random_conv:1]/retain'])

  def test_only_the_hole_is_painted(self):
    fields = self.task.fields(self.task.shown('test'), 'centre:2')
    done = self.task.complete(self.variables, fields)
    gone = self.task.gone(fields['visible'])
    np.testing.assert_allclose(done[~gone], fields['image'][~gone], atol=1e-5)
    self.assertGreater(np.abs(done[gone] - fields['image'][gone]).mean(), 0.05)
    np.testing.assert_allclose(self.metrics['distance/test'], completion.distance(
        done, fields['image'], gone).mean(), rtol=1e-5)

  def test_pictures_of_figures(self):
    self.assertEqual(self.arrays['truth_forget'].dtype, np.uint8)
    self.assertLen(self.arrays['completed_forget'], len(self.task.splits.indices['unseen']))
    self.assertLen(self.arrays['forget'], len(self.task.splits.indices['forget']))

  def test_fewer_pictures_are_the_same_for_everybody(self):
    small = load(generation=SECTION | {'pictures': 5})
    np.testing.assert_array_equal(small.shown('test'), small.shown('test'))
    self.assertLen(small.shown('unseen'), 5)

  def test_audits_read_which_picture_it_is(self):
    apply, data = self.task.audited()
    found = outputs.Outputs(apply, {'original': self.variables}, data, resamples=2, seed=0)
    count = min(generation.CANDIDATES, len(self.task.splits.indices['validation']))
    self.assertEqual(found.logits['forget'].shape[2], 1 + count)
    self.assertContainsSubset(('forget', 'unseen', 'test', 'retain'), data)

  def test_tuning_sees_nothing_of_the_report(self):
    small = self.task.for_tuning()
    taken = np.concatenate(list(small.splits.indices.values()))
    for name in ('forget', 'unseen', 'test'):
      self.assertEmpty(np.intersect1d(taken, self.task.splits.indices[name]))
    measured = small.measure_trial(self.variables)
    self.assertLess(abs(generation.goal(measured, None)), 2.0)
    self.assertEqual(generation.completion_gap(measured, measured), 0.0)


class ExperimentTest(absltest.TestCase):

  def test_end_to_end(self):
    made_config = config(generation=SECTION)
    made_config.cache_dir = tempfile.mkdtemp()
    workdir = tempfile.mkdtemp()
    with mock.patch.object(sources, 'get', return_value=made()):
      results = experiment.run(made_config, workdir)
    methods = results['methods']
    value = lambda row, name: methods[row]['metrics'][name]['mean']
    self.assertEqual(value('original', 'goal'), 0.0)
    self.assertEqual(value('retrain', 'gap/mean'), 0.0)
    encoder = value('i2i', 'trained')
    self.assertGreater(encoder, 0)
    self.assertGreater(value('max_loss', 'trained'), encoder)  # the decoder moves as well
    self.assertGreater(value('i2i', 'gigabytes'), 0)
    crossed = [name for name in methods['i2i']['metrics'] if name.startswith('cross_fid')]
    self.assertLen(crossed, 2)
    self.assertNotEqual(value('i2i', crossed[0]), value('max_loss', crossed[0]))
    out = os.path.join(tempfile.mkdtemp(), 'tiny')
    lines = figures.write(workdir, out)
    self.assertGreaterEqual(len(lines), 5)
    for number, line in enumerate(lines, 1):
      self.assertIn(f'](tiny_{number}.svg)', line)
      with open(f'{out}_{number}.svg') as file:
        self.assertStartsWith(file.read(), '<svg')
    with open(os.path.join(workdir, 'report.html')) as file:
      page = file.read()
    for words in ('One-sided goal, two-sided gap', 'Held-out pictures of forget classes',
                  'SECOND FID', 'Painted around again'):
      self.assertIn(words, page)


class RefusesTest(absltest.TestCase):

  def test_bad_configs(self):
    for changes, words in (
        ({'holes': ()}, 'holes is empty'), ({'extractors': ()}, 'extractors is empty'),
        ({'extractors': ('vgg',)}, "got 'vgg'"), ({'extractors': ('inception',)}, 'inception:FILE'),
        ({'patch': 4}, "patch is 4 and the model's 2"), ({'holes': ('middle:2',)}, 'middle'),
        ({'holes': ('right:0.5',)}, 'must be a centre'), ({'mask': 'random:1.0'}, 'random')):
      with self.subTest(str(changes)), self.assertRaisesRegex(ValueError, words):
        load(generation=SECTION | changes)

  def test_weights_that_are_not_there(self):
    for kind in ('inception', 'clip'):
      with self.assertRaisesRegex(FileNotFoundError, 'no weights at /nowhere'):
        load(generation=SECTION | {'extractors': (f'{kind}:/nowhere',)})

  def test_streams_that_the_data_cannot_give(self):
    with self.assertRaisesRegex(ValueError, '100 of each retain class'):
      load(methods={'i2i': SHORT | {'stream': 'limited/100'}})


if __name__ == '__main__':
  absltest.main()
