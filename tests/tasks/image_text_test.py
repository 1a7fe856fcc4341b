"""The image-text task on a few generated pictures: what it feeds, measures, audits and refuses."""

import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from tests.losses import ncu_reference
from unlearn_jax import config as config_lib
from unlearn_jax import tasks
from unlearn_jax import tuning
from unlearn_jax.data import fields
from unlearn_jax.data import sources
from unlearn_jax.data import text_transforms
from unlearn_jax.evals import retrieval
from unlearn_jax.evals import run
from unlearn_jax.evals import views
from unlearn_jax.models import clip
from unlearn_jax.models import clip_tokenizer

BATCH, NOISE, SLOTS, CONTEXT = 16, 0.25, 4, 20
NAMES = ('cat', 'dog', 'boat', 'tree')
TINY = {'embedding': 8, 'patch': 4, 'image_width': 16, 'image_depth': 1, 'image_heads': 2,
        'text_width': 16, 'text_depth': 1, 'text_heads': 2, 'context': CONTEXT}


@functools.cache
def made(captions: int = 2) -> sources.Source:
  """80 pictures of four things, two captions each; the last eight are of no class."""
  label = np.append(np.arange(72) % 4, np.full(8, -1)).astype(np.int32)
  image = np.random.default_rng(0).integers(0, 60, (80, 8, 8, 3), np.uint8)
  for row in range(72):
    image[row, 2 * label[row]:2 * label[row] + 2] += 150
  picture = np.repeat(np.arange(80, dtype=np.int32), captions)
  caption = [f'{("a", "one", "the")[k % captions]} {NAMES[label[p]]} number {p}'
             for k, p in enumerate(picture)]
  return sources.Source(
      'made', {'image': fields.Rows(sources.Pictures(image), picture), 'picture': picture,
               'caption': np.asarray(caption), 'label': label[picture]},
      np.char.add('picture', picture.astype(str)), 4, 'Generated; no rights attached.', NAMES)


def config(**changes):
  arguments = {
      'name': 'tiny', 'task': 'image_text', 'data': {'name': 'made'},
      'split': {'kind': 'planted', 'seed': 3, 'noise': NOISE, 'sizes': {
          'train': 40, 'validation': 12, 'test': 16, 'unseen': 12}},
      'model': 'clip', 'model_args': TINY, 'batch_size': BATCH, 'budget': 'original',
      'methods': {'continued': {'epochs': 1.0}},
      'text': {'prompt_slots': SLOTS, 'templates': 'pictograms', 'candidates': 10}}
  return config_lib.experiment(**(arguments | changes))


def load(source=made, **changes) -> tasks.Task:
  made_config = config(**changes)
  config_lib.check(made_config)
  with mock.patch.object(sources, 'get', return_value=source()):
    return tasks.load(made_config, '')


def tokens(captions, slots=0):
  return clip.tokenize(list(captions), CONTEXT, slots)


class StreamsTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.task = load()
    cls.fed = cls.task.streams(0)

  def field(self, name, ids):
    return self.task.source.fields[name][ids]

  def test_train(self):
    batch = self.fed['train'](0)['pairs']
    self.assertEqual(set(batch), {'image', 'text', 'negative', 'label', 'id', 'mask'})
    ids = batch['id']
    np.testing.assert_array_equal(batch['text'], tokens(self.field('caption', ids)))
    np.testing.assert_array_equal(batch['negative'], tokens(self.field('caption', ids), SLOTS))
    clip_tokenizer.check_slots(batch['negative'], SLOTS)
    with self.assertRaises(ValueError):  # no slot is free in a caption
      clip_tokenizer.check_slots(batch['text'], SLOTS)
    np.testing.assert_array_equal(np.asarray(batch['image']), self.field('image', ids))
    np.testing.assert_array_equal(batch['mask'], np.ones(BATCH))
    seen = np.concatenate([self.fed['train'](k)['pairs']['id'] for k in range(5)])
    self.assertCountEqual(seen, self.task.train_ids)  # 80 pairs, mismatched ones among them
    self.assertEqual(self.field('noisy', seen).sum(), 20)
    self.assertNotIn('forget', self.fed)  # no method is told which they are

  def test_clean_has_the_order_of_train_and_true_captions(self):
    batches = [[self.fed[name](k)['pairs'] for k in range(5)] for name in ('train', 'clean')]
    different = 0
    for train, clean in zip(*batches):
      np.testing.assert_array_equal(train['id'], clean['id'])
      np.testing.assert_array_equal(clean['text'], tokens(self.field('true_caption', clean['id'])))
      wrong = (train['text'] != clean['text']).any(axis=1)
      np.testing.assert_array_equal(wrong, self.field('noisy', clean['id']))
      different += wrong.sum()
    self.assertEqual(different, 20)

  def test_retain_has_no_mismatched_pair(self):
    batches = [self.fed['retain'](k)['pairs'] for k in range(3)]
    ids = np.concatenate([batch['id'] for batch in batches])
    self.assertFalse(self.field('noisy', ids).any())
    self.assertContainsSubset(ids, self.task.splits.indices['retain'])
    np.testing.assert_array_equal(batches[0]['text'], tokens(self.field('true_caption', ids[:16])))

  def test_written_negatives_say_no(self):
    batch = self.fed['written'](1)['pairs']
    np.testing.assert_array_equal(batch['id'], self.fed['train'](1)['pairs']['id'])
    prefixes = set()
    for row, caption in zip(batch['negative'], self.field('caption', batch['id'])):
      found = [prefix for prefix in text_transforms.NEGATIONS
               if (row == tokens([f'{prefix} {caption}'])[0]).all()]
      self.assertLen(found, 1)
      prefixes.update(found)
    self.assertGreater(len(prefixes), 3)
    np.testing.assert_array_equal(batch['text'], tokens(self.field('caption', batch['id'])))

  def test_changed_negatives_keep_their_slots(self):
    task = load(text={'prompt_slots': SLOTS, 'templates': 'pictograms', 'eda': ('swap', 'delete')})
    batch = task.streams(0)['train'](0)['pairs']
    clip_tokenizer.check_slots(batch['negative'], SLOTS)
    plain = tokens(self.field('caption', batch['id']), SLOTS)
    self.assertGreater((batch['negative'] != plain).any(axis=1).mean(), 0.5)
    np.testing.assert_array_equal(batch['text'], tokens(self.field('caption', batch['id'])))
    ids = batch['id']
    again, later = (task.texts['negative'](ids, 0, epoch) for epoch in (0, 1))
    np.testing.assert_array_equal(batch['negative'], again)
    self.assertTrue((again != later).any())

  def test_share_of_those_who_unlearn(self):
    """What is at hand later is a part of the training pairs, mismatched ones among them."""
    task = load(text={'prompt_slots': SLOTS, 'templates': 'pictograms', 'share': 0.5},
                methods={'continued': {'epochs': 1.0}, 'soft_clip': {'epochs': 1.0},
                         'contrastive-clean': {'role': 'clean', 'epochs': 1.0}})
    part = task.for_row('continued')
    self.assertLen(part.train_ids, 40)
    self.assertContainsSubset(part.train_ids, task.train_ids)
    noisy = self.field('noisy', part.train_ids).sum()
    self.assertLen(part.splits.indices['forget'], noisy)
    self.assertBetween(noisy, 1, 19)
    self.assertEqual(part.context['train_steps'], 2)
    for row in ('original', 'retrain', 'soft_clip', 'contrastive-clean'):
      self.assertLen(task.for_row(row).train_ids, 80, row)
    # What is measured is the whole.
    np.testing.assert_array_equal(task.matched['forget']['id'], self.task.splits.indices['forget'])

  def test_context(self):
    context = self.task.context
    self.assertEqual({name: context[name] for name in (
        'batch_size', 'prompt_slots', 'train_steps', 'retain_steps', 'forget_steps')}, {
            'batch_size': 16, 'prompt_slots': 4, 'train_steps': 5, 'retain_steps': 3,
            'forget_steps': 1})
    self.assertEqual(context['example']['text'].shape, (1, CONTEXT))


class MeasureTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.task = load()
    variables = cls.task.model.init(jax.random.key(0), cls.task.example)
    cls.variables = jax.tree.map(np.asarray, variables)
    cls.metrics, cls.arrays = cls.task.measure(cls.variables)

  def embeddings(self, ids, caption='caption', captions=None):
    source = self.task.source.fields
    text = tokens((source[caption] if captions is None else captions)[ids])
    return [np.asarray(self.task.encode(
        self.variables, tower, values, f'{tower}_embedding')[0], np.float64)
            for tower, values in (('image', source['image'][ids]), ('text', text))]

  def test_every_metric_has_a_heading(self):
    self.assertContainsSubset(self.metrics, views.METRICS)
    self.assertContainsSubset(views.VIEWS['image_text'].main, self.metrics)
    self.assertContainsSubset(views.VIEWS['image_text'].across, self.metrics)
    for name, value in self.metrics.items():
      self.assertTrue(np.isfinite(value), name)

  def test_selection_is_that_of_the_training_batches(self):
    scale = float(self.variables['params']['logit_scale'])
    stream = self.task.streams(self.task.config.split.seed)['train']
    chosen = []
    for step in range(5):
      ids = stream(step)['pairs']['id']
      image, text = self.embeddings(ids)
      chosen.extend(ids[ncu_reference.forget_pairs(image, text, scale, NOISE, 'paper')])
    hits = self.task.source.fields['noisy'][chosen].sum()
    self.assertLen(chosen, 5 * 4)
    np.testing.assert_allclose(self.metrics['selection/precision'], hits / 20)
    np.testing.assert_allclose(self.metrics['selection/recall'], hits / 20)  # 20 are mismatched
    np.testing.assert_allclose(self.metrics['selection/chance'], 20 / 80)

  def test_selection_of_a_model_that_knows(self):
    """Pictures equal their true caption's embedding: every mismatched pair is found."""
    fields_, task = self.task.source.fields, self.task
    unit = np.random.default_rng(0).normal(size=(80, 8))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)

    ids = task.train_ids
    shown = np.asarray([int(caption.split()[-1]) for caption in fields_['caption'][ids]])
    found = task.selection(unit[fields_['picture'][ids]].astype(np.float32),
                           unit[shown].astype(np.float32), np.log(100.0))
    # A batch has more or fewer than its share of 4.
    stream = task.streams(task.config.split.seed)['train']
    counts = [fields_['noisy'][stream(k)['pairs']['id']].sum() for k in range(5)]
    expected = sum(min(count, 4) for count in counts) / 20
    np.testing.assert_allclose([found['selection/precision'], found['selection/recall']], expected)

  def test_unseen_captions_are_all_mismatched(self):
    unseen, source = self.task.splits.indices['unseen'], self.task.source.fields
    captions = self.task.unseen_captions
    picture = np.asarray([int(caption.split()[-1]) for caption in captions[unseen]])
    self.assertTrue((picture != source['picture'][unseen]).all())
    self.assertCountEqual(captions[unseen], source['true_caption'][unseen])
    rest = np.setdiff1d(np.arange(len(captions)), unseen)
    np.testing.assert_array_equal(captions[rest], source['caption'][rest])
    np.testing.assert_array_equal(self.task.matched['unseen']['text'], tokens(captions[unseen]))

  def test_audited_class_0_is_the_own_caption(self):
    apply, splits = self.task.audited()
    source, indices = self.task.source.fields, self.task.splits.indices
    self.assertEqual(set(splits), {'retain', 'forget', 'test', 'unseen'})
    scale = np.exp(self.variables['params']['logit_scale'])
    for name, caption in (('forget', source['caption']), ('unseen', self.task.unseen_captions),
                          ('test', source['true_caption'])):
      given = splits[name]
      np.testing.assert_array_equal(given['label'], np.zeros(len(indices[name])))
      logits = run.predict(apply, self.variables, given, names=('logits',))['logits']
      self.assertEqual(logits.shape, (len(indices[name]), 1 + 10))
      image, text = self.embeddings(indices[name], captions=caption)
      np.testing.assert_allclose(logits[:, 0], scale * np.sum(image * text, axis=1), rtol=1e-4,
                                 atol=1e-4)
      losses = -ncu_reference.log_softmax(logits.astype(np.float64))[:, 0]
      if name in self.arrays:
        np.testing.assert_allclose(self.arrays[name], losses, rtol=1e-4)
      share = np.mean(logits[:, 0] > logits[:, 1:].max(axis=1))
      np.testing.assert_allclose(self.metrics[f'match/{name}'], share)
    gap = self.arrays['forget'].mean() - self.arrays['unseen'].mean()
    np.testing.assert_allclose(self.metrics['loss_gap'], gap, rtol=1e-5)

  def test_a_record_s_loss_does_not_depend_on_its_batch(self):
    apply, splits = self.task.audited()
    some = {name: value[:3] for name, value in splits['forget'].items()}
    few, all_ = (run.predict(apply, self.variables, given, names=('logits',))['logits']
                 for given in (some, splits['forget']))
    np.testing.assert_allclose(few, all_[:3], rtol=1e-5, atol=1e-5)

  def test_recall_counts_every_caption_of_a_picture(self):
    ids = self.task.splits.indices['test']
    pictures = np.unique(self.task.source.fields['picture'][ids])
    self.assertLen(pictures, 16)
    image, text = self.embeddings(ids, 'true_caption')
    first = np.asarray([np.flatnonzero(self.task.source.fields['picture'][ids] == p)[0]
                        for p in pictures])
    number = np.searchsorted(pictures, self.task.source.fields['picture'][ids])
    expected = retrieval.recall(image[first], text, number)
    for name, value in expected.items():
      np.testing.assert_allclose(self.metrics[f'{name}/test'], value, err_msg=name)
    trial = self.task.measure_trial(self.variables)
    self.assertIn('mean_recall/validation', trial)
    self.assertFalse([name for name in trial if not name.endswith('/validation')])

  def test_pictures_of_no_class_take_no_part_in_classification(self):
    seen = []
    evaluate = tasks.image_text.linear_probe.evaluate

    def watch(*parts, **options):
      seen.extend(label for _, label in parts)
      return evaluate(*parts, **options)

    with mock.patch.object(tasks.image_text.linear_probe, 'evaluate', watch):
      self.task.measure(self.variables)
    self.assertLen(seen, 3)
    for label in seen:
      self.assertGreaterEqual(label.min(), 0)


class BadInputTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'batch_size': 128}, '80 records, fewer than one batch of 128'),
      ({'batch_size': 32, 'text': {'templates': 'pictograms', 'share': 0.3}},
       '24 records, fewer than one batch of 32'),
      ({'batch_size': 3}, 'config.split.noise 0.25 of a batch of 3 pairs selects none'),
      ({'methods': {'ncu': {'forget_fraction': 0.05}}}, 'a batch of 16 pairs selects 0'),
      ({'methods': {'relabelling': {'forget_fraction': 1.0}}}, 'forget_fraction must lie'),
      ({'methods': {'continued': {'recover': 1.0}}}, "no field 'methods.continued.recover'"),
      ({'methods': {'scrub': {}}}, "'scrub', which is no method for image_text tasks"),
      ({'text': {'templates': 'imagnet'}}, "config.text.templates 'imagnet' is not one of"),
      ({'text': {'templates': 'pictograms', 'prompt_slots': 30}}, 'context'),
      ({'text': {'prompt_slot': 3}}, "text.prompt_slot'; did you mean 'prompt_slots'"),
      ({'split': {'kind': 'random'}}, "config.split.kind is one of .'planted'.* got 'random'"),
      ({'task': 'image_txt'}, "config.task 'image_txt'; did you mean 'image_text'"),
      ({'data': {'name': 'made', 'normalize': 'clap'}}, "did you mean 'clip'"))
  def test_refused_when_loading(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      load(**changes)

  @parameterized.parameters((0.0, 'the forget set is empty'), (1.0, 'retain'))
  def test_noise_that_leaves_nothing(self, noise, message):
    split = {**config().split.to_dict(), 'noise': noise, 'sizes': config().split.sizes.to_dict()}
    with self.assertRaisesRegex(ValueError, message):
      load(split=split)

  def test_held_out_parts_are_needed(self):
    split = {'kind': 'planted', 'seed': 0, 'noise': NOISE, 'drop_rest': True,
             'sizes': {'train': 40, 'validation': 12, 'test': 16}}
    with self.assertRaisesRegex(ValueError, 'leaves 0 pairs for unseen'):
      load(split=split)

  def test_sources_without_captions(self):
    classified = sources.get('synthetic')
    with self.assertRaisesRegex(ValueError, 'has no captions'):
      load(source=lambda: classified, split={
          'kind': 'planted', 'seed': 0, 'noise': NOISE,
          'sizes': {'train': 4, 'validation': 2, 'test': 2, 'unseen': 2}})

  def test_objectives_of_another_kind(self):
    task = load(tune={'common': {'learning_rate': (1e-4,)}, 'objective': 'nomus'})
    with self.assertRaisesRegex(ValueError, "objective 'nomus' is not one of .'mean_recall'"):
      tuning.check(task)

  def test_text_of_a_classification_config(self):
    with self.assertRaisesRegex(ValueError, 'config.text belongs to image_text tasks, this is one '
                                            'of classification'):
      config_lib.experiment(name='x', data={'name': 'digits'}, split={'kind': 'random'},
                            model='mlp', text={'prompt_slots': 4})

  def test_signals_are_refused(self):
    with self.assertRaisesRegex(ValueError, 'no signals'):
      load().monitor()


if __name__ == '__main__':
  absltest.main()
