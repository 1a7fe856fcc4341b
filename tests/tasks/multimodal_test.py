"""The multimodal task on generated records: what it feeds, measures, stops and refuses."""

import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from unlearn_jax import config as config_lib
from unlearn_jax import experiment
from unlearn_jax import tasks
from unlearn_jax.data import sources
from unlearn_jax.data import streams
from unlearn_jax.evals import run
from unlearn_jax.evals import views
from unlearn_jax.methods import ccu

FRACTIONS = {'retain': 0.4, 'forget': 0.1, 'validation': 0.15, 'test': 0.2, 'unseen': 0.15}
SHORT = {'epochs': 1.0, 'learning_rate': 0.01}


def made(**changes) -> sources.Source:
  """120 records of three classes: a row of a picture and a column of a sound say which."""
  rng = np.random.default_rng(0)
  label = (np.arange(120) % 3).astype(np.int32)
  image, audio = (rng.random((120, 8, 8, 1)).astype(np.float32) for _ in range(2))
  for row, k in enumerate(label):
    image[row, 2 * k] = 1.0
    audio[row, :, 2 * k] = 1.0
  fields = {'image': image, 'audio': audio, 'label': label, **changes}
  fields = {name: value for name, value in fields.items() if value is not None}
  return sources.Source('made', fields, np.arange(120).astype(str), 3,
                        'Generated; no rights attached.')


def config(**changes):
  arguments = {
      'name': 'tiny', 'task': 'multimodal', 'data': {'name': 'made'},
      'split': {'kind': 'random', 'seed': 0, 'shared_identities': True, 'fractions': FRACTIONS},
      'model': 'audio_visual', 'model_args': {'width': 1, 'stem': 'cifar'}, 'batch_size': 16,
      'train': SHORT, 'methods': {'retrain-visual': {'role': 'masked', **SHORT},
                                  'finetune': SHORT, 'ccu': {'epochs': 1.0, 'omega': 2}},
      'seeds': (0,), 'budget': 'original', 'modalities': {'stop_every': 2}}
  return config_lib.experiment(**(arguments | changes))


def load(source=None, **changes) -> tasks.Task:
  made_config = config(**changes)
  config_lib.check(made_config)
  with mock.patch.object(sources, 'get', return_value=source or made()):
    return tasks.load(made_config, '')


class TaskTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.task = load(modalities={'shadows': 0, 'stop_every': 2})
    cls.variables = jax.tree.map(np.asarray, cls.task.model.init(
        jax.random.key(0), cls.task.example))
    cls.metrics, cls.arrays = cls.task.measure(cls.variables)

  def test_masked_stream_hides_the_forgotten_pictures_alone(self):
    forgotten = self.task.splits.indices['forget']
    streams = self.task.streams(0)
    for step in range(4):
      plain, masked = streams['train'](step)['train'], streams['masked'](step)['masked']
      gone = np.isin(plain['id'], forgotten)
      np.testing.assert_array_equal(masked['image'][gone], 0.0)
      np.testing.assert_array_equal(masked['image'][~gone], plain['image'][~gone])
      for name in ('audio', 'label', 'id', 'mask'):
        np.testing.assert_array_equal(masked[name], plain[name])
    self.assertTrue(any(np.isin(streams['train'](step)['train']['id'], forgotten).any()
                        for step in range(4)))

  def test_second_oracle_sees_all_training_data(self):
    count = lambda row: sum(phase.steps for phase in self.task.method(
        row, tasks.row_settings(self.task.config, row)).phases)
    self.assertEqual(count('retrain'), 3)  # 48 retained records in batches of 16
    self.assertEqual(count('retrain-visual'), 4)  # and 12 forgotten ones
    self.assertEqual(count('original'), 4)

  def test_all_methods_stop_early_but_the_oracles(self):
    for row in ('original', 'retrain', 'retrain-visual'):
      for phase in self.task.method(row, tasks.row_settings(self.task.config, row)).phases:
        self.assertIsNone(phase.until)
    for row in ('finetune', 'ccu'):
      first = self.task.method(row, tasks.row_settings(self.task.config, row)).phases[0]
      self.assertEqual(set(first.signals), {'visual_accuracy/forget', 'visual_accuracy/held_out'})
      self.assertEqual(set(first.signals.values()), {2})
    free = load(modalities={'stop_on': ''})
    self.assertFalse(free.method('ccu', tasks.row_settings(free.config, 'ccu')).phases[0].signals)

  def test_monitor_is_the_measured_accuracy(self):
    found = self.task.monitor().run(self.task.model.apply, self.variables)
    for name, split in (('forget', 'forget'), ('held_out', 'validation')):
      np.testing.assert_allclose(found[f'visual_accuracy/{name}'],
                                 self.metrics[f'accuracy_visual/{split}'], atol=1e-6)
    paper = load(modalities={'stop_on': 'test'})
    found = paper.monitor().run(None, self.variables)
    np.testing.assert_allclose(found['visual_accuracy/held_out'],
                               self.metrics['accuracy_visual/test'], atol=1e-6)

  def test_trials_stop_on_validation_data_whatever_the_report_does(self):
    small = load(modalities={'stop_on': 'test'}).for_tuning()
    found = small.monitor().run(None, self.variables)
    np.testing.assert_allclose(found['visual_accuracy/held_out'],
                               self.metrics['accuracy_visual/validation'], atol=1e-6)
    self.assertNotIn('test', small.fields)

  def test_uni_modal_accuracy_by_hand(self):
    fields = self.task.fields['test']
    def logits(**hidden):
      given = {**fields, **{name: np.zeros_like(fields[name]) for name in hidden}}
      return run.predict(self.task.model.apply, self.variables, given, names=('logits',))['logits']
    visual = 0.5 * (logits() - logits(image=1) + logits(audio=1))
    np.testing.assert_allclose(self.metrics['accuracy_visual/test'],
                               np.mean(visual.argmax(axis=1) == fields['label']), atol=1e-6)

  def test_every_shown_metric_is_measured(self):
    rows = {row: [{'metrics': dict(self.metrics), 'steps': 2, 'planned_steps': 4}]
            for row in ('original', 'retrain', 'retrain-visual', 'ccu')}
    rows['retrain'][0]['metrics']['accuracy/test'] = 0.5
    rows['retrain'][0]['metrics']['accuracy_other/test'] = 0.25
    rows['ccu'][0]['metrics'] |= {'accuracy/test': 0.6, 'accuracy_other/test': 0.5}
    self.task.compare(rows, {})
    found = rows['ccu'][0]['metrics']
    self.assertContainsSubset(views.VIEWS['multimodal'].main, found)
    np.testing.assert_allclose([found['upg'], found['cmsg'], found['steps_taken']],
                               [20.0, 100.0, 0.5], rtol=1e-6)
    np.testing.assert_allclose(found['gap_masked/accuracy/test'],
                               0.6 - self.metrics['accuracy/test'])
    for name in (name for name in found if name.split('/')[0] in ('accuracy_visual', 'member')):
      self.assertIn(name, views.METRICS)

  def test_arrays_for_the_figures(self):
    count = len(self.task.splits.indices['retain'])
    self.assertLen(self.arrays['visual_embedding'], count)
    self.assertLen(self.arrays['label'], count)
    self.assertEqual(self.arrays['nearest'].sum(), len(self.task.splits.indices['forget']))


class RunTest(absltest.TestCase):

  def test_whole_experiment_with_a_shadow_model(self):
    workdir, cache = tempfile.mkdtemp(), tempfile.mkdtemp()
    with mock.patch.object(sources, 'get', return_value=made()):
      results = experiment.run(config(
          modalities={'shadows': 1, 'stop_every': 2}, cache_dir=cache,
          methods={'retrain-visual': {'role': 'masked', **SHORT}, 'ccu': {'epochs': 1.0}}), workdir)
    found = results['methods']['ccu']['metrics']
    for name in ('member/shadow/forget', 'upg', 'cmsg', 'gap_masked/accuracy/test', 'steps_taken'):
      self.assertIsNotNone(found[name]['mean'], name)
    self.assertEqual(results['methods']['retrain']['metrics']['upg']['mean'], 0.0)
    with open(f'{workdir}/report.html', encoding='utf-8') as file:
      text = file.read()
    for words in ('Member prediction rate', 'Gaps to the second oracle', 't-SNE', 'UPG'):
      self.assertIn(words, text)


class BadInputTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'modalities': {'stop_on': 'tests'}}, "stop_on is one of .* got 'tests'"),
      ({'modalities': {'reading': 'zeros'}}, "reading is one of shapley, zero, mean, got 'zeros'"),
      ({'modalities': {'stop_every': 0}}, 'stop_every is at least 1'),
      ({'modalities': {'shadow': 1}}, "modalities.shadow'; did you mean 'shadows'"),
      ({'task': 'classification', 'modalities': {'shadows': 1}},
       'config.modalities belongs to multimodal tasks'),
      ({'methods': {'dlfd': {}}}, "'dlfd', which is no method for multimodal tasks"))
  def test_settings(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      load(**changes)

  def test_a_class_that_is_forgotten_wholly(self):
    split = {'kind': 'class', 'forget_classes': (1,), 'seed': 0, 'shared_identities': True,
             'fractions': {'retain': 0.4, 'validation': 0.2, 'test': 0.2, 'unseen': 0.2}}
    with self.assertRaisesRegex(ValueError, 'class'):
      load(split=split)

  def test_there_is_a_stream_for_every_omega(self):
    self.assertEqual(ccu.MOST_OMEGA, streams.MOST_REPEATS)

  def test_a_source_of_one_modality(self):
    with self.assertRaisesRegex(ValueError, 'must have one second modality of audio, text'):
      load(source=made(audio=None))

  def test_modalities_of_different_lengths(self):
    with self.assertRaisesRegex(ValueError, "field 'audio' has 119 records"):
      made(audio=np.zeros((119, 8, 8, 1), np.float32)).validate()

  def test_integer_sound(self):
    with self.assertRaisesRegex(ValueError, 'audio must be float32'):
      made(audio=np.zeros((120, 8), np.int16)).validate()


if __name__ == '__main__':
  absltest.main()
