"""Tests for planted noise, splits and streams of pairs."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from unlearn_jax.data import fields
from unlearn_jax.data import pairs
from unlearn_jax.data import sources
from unlearn_jax.data import streams

SIZES = {'train': 0.6, 'validation': 0.1, 'test': 0.2, 'unseen': 0.1}


def made(people=60, captions=3, classes=5, *, label=None) -> sources.Source:
  """Pictures with several captions each; a picture shows its number, and so does its caption."""
  picture = np.repeat(np.arange(people, dtype=np.int32), captions)
  image = np.random.default_rng(0).integers(0, 256, (people, 8, 8, 3), np.uint8)
  image[:, 0, 0, 0] = np.arange(people)
  found = {'image': fields.Rows(sources.Pictures(image), picture), 'picture': picture,
           'caption': np.asarray([f'picture {p} in words {k}' for k, p in enumerate(picture)]),
           'label': (picture % classes).astype(np.int32) if label is None else label}
  return sources.Source('made', found, np.char.add('picture', picture.astype(str)), classes, '')


def belongs(caption: np.ndarray) -> np.ndarray:
  return np.asarray([int(text.split()[1]) for text in caption])


class NoiseTest(parameterized.TestCase):

  @parameterized.parameters(0.1, 0.3, 1.0)
  def test_noisy_pairs_match_in_no_way_and_the_others_stay(self, share):
    source = made()
    indices = np.arange(20, 150)
    planted = pairs.plant_noise(source, indices, share, seed=1)
    planted.validate()
    noisy, caption = planted.fields['noisy'], planted.fields['caption']
    self.assertEqual(noisy.sum(), round(share * 130))
    self.assertFalse(noisy[:20].any() or noisy[150:].any())
    np.testing.assert_array_equal(caption[~noisy], source.fields['caption'][~noisy])
    np.testing.assert_array_equal(planted.fields['true_caption'], source.fields['caption'])
    # A permutation of the captions of the chosen alone, none of the own picture or category.
    self.assertCountEqual(caption[noisy], source.fields['caption'][noisy])
    other = belongs(caption[noisy])
    self.assertTrue((other != source.fields['picture'][noisy]).all())
    self.assertTrue((other % 5 != source.fields['label'][noisy]).all())
    self.assertNotEqual(planted.content_hash(), source.content_hash())

  def test_the_seed_alone_decides_and_shares_are_nested(self):
    source, indices = made(), np.arange(180)
    noisy = lambda share, seed: pairs.plant_noise(source, indices, share, seed).fields['noisy']
    caption = lambda seed: pairs.plant_noise(source, indices, 0.4, seed).fields['caption']
    np.testing.assert_array_equal(caption(3), caption(3))
    self.assertFalse(np.array_equal(caption(3), caption(4)))
    self.assertFalse(np.array_equal(noisy(0.4, 3), noisy(0.4, 4)))
    self.assertTrue(noisy(0.4, 3)[noisy(0.2, 3)].all())
    self.assertFalse(noisy(0.0, 3).any())

  def test_captions_go_everywhere(self):
    """A rotation by classes would be noise that a model could learn."""
    source = made(300, 1)
    caption = pairs.plant_noise(source, np.arange(300), 1.0, 0).fields['caption']
    moves = np.zeros((5, 5), int)
    np.add.at(moves, (source.fields['label'], belongs(caption) % 5), 1)
    np.testing.assert_array_equal(np.diag(moves), 0)
    self.assertGreater(moves[~np.eye(5, dtype=bool)].min(), 5)  # 15 on average

  def test_a_category_of_the_majority(self):
    label = np.where(np.arange(60) < 40, 0, 1 + np.arange(60) % 2).astype(np.int32)
    source = made(60, 1, 3, label=label)
    with self.assertLogs(level='WARNING') as logs:
      planted = pairs.plant_noise(source, np.arange(60), 1.0, 0)
    own = label[belongs(planted.fields['caption'])] == label
    self.assertEqual(own.sum(), 20)  # 40 of a class, 20 others: no better way
    self.assertIn('20 of 60', logs.output[0])
    self.assertTrue((belongs(planted.fields['caption']) != np.arange(60)).all())

  def test_no_category(self):
    for label in (np.full(60, -1, np.int32), None):
      source = made(60, 1, label=np.full(60, -1, np.int32))
      if label is None:
        source = dataclasses.replace(source, fields={
            name: field for name, field in source.fields.items() if name != 'label'}, num_classes=0)
      planted = pairs.plant_noise(source, np.arange(60), 1.0, 0)
      planted.validate()
      self.assertTrue((belongs(planted.fields['caption']) != np.arange(60)).all())

  def test_equal_texts_are_no_noise(self):
    source = made(60, 1)
    source.fields['caption'][:25] = 'a picture'
    caption = pairs.plant_noise(source, np.arange(60), 1.0, 0).fields['caption']
    self.assertFalse((caption == source.fields['caption']).any())
    source.fields['caption'][:] = 'a picture'
    with self.assertRaisesRegex(ValueError, '60 of 60 noisy pairs would keep'):
      pairs.plant_noise(source, np.arange(60), 1.0, 0)

  def test_text_of_any_length(self):
    source = made()
    text = source.fields['caption'].astype(np.dtypes.StringDType())
    longer = dataclasses.replace(source, fields={**source.fields, 'caption': text})
    longer.validate()
    np.testing.assert_array_equal(
        pairs.plant_noise(longer, np.arange(180), 0.5, 0).fields['caption'],
        pairs.plant_noise(source, np.arange(180), 0.5, 0).fields['caption'])
    text = text.copy()
    text[3] += '.'
    other = dataclasses.replace(source, fields={**source.fields, 'caption': text})
    self.assertNotEqual(other.content_hash(), longer.content_hash())

  def test_bad_arguments(self):
    source = made()
    for indices, share, message in (
        (np.arange(9), 1.2, r'\[0, 1\]'), (np.arange(9), float('nan'), r'\[0, 1\]'),
        ([1, 1, 2], 0.5, 'distinct'), ([1, 180], 0.5, 'distinct'), ([-1, 2], 0.5, 'distinct'),
        ([4], 1.0, '1 of 1 noisy pairs')):
      with self.assertRaisesRegex(ValueError, message):
        pairs.plant_noise(source, indices, share, 0)
    with self.assertRaisesRegex(ValueError, 'has no captions'):
      pairs.plant_noise(sources.get('synthetic'), np.arange(9), 0.5, 0)


class SplitTest(absltest.TestCase):

  def test_identities_stay_together_and_only_training_pairs_are_noisy(self):
    clean = made()
    source, splits = pairs.split(clean, sizes=SIZES, seed=2, noise=0.25)
    splits.validate(source)
    sizes = {name: len(ids) for name, ids in splits.indices.items()}
    self.assertEqual(sizes, {'forget': 27, 'retain': 81, 'validation': 18, 'test': 36,
                             'unseen': 18})
    np.testing.assert_array_equal(np.flatnonzero(source.fields['noisy']), splits.indices['forget'])
    people = [set(source.identity[np.concatenate([splits.indices[name] for name in names])])
              for names in (('forget', 'retain'), ('validation',), ('test',), ('unseen',))]
    self.assertEqual(sum(map(len, people)), len(set.union(*people)))
    for name in ('validation', 'test', 'unseen'):
      ids = splits.indices[name]
      np.testing.assert_array_equal(source.fields['caption'][ids], clean.fields['caption'][ids])
    again = pairs.split(clean, sizes=SIZES, seed=2, noise=0.25)[1]
    self.assertEqual(again.hash, splits.hash)
    self.assertNotEqual(pairs.split(clean, sizes=SIZES, seed=3, noise=0.25)[1].hash, splits.hash)

  def test_the_noise_does_not_move_the_parts(self):
    first, second = (pairs.split(made(), sizes=SIZES, seed=2, noise=noise)[1].indices
                     for noise in (0.1, 0.5))
    np.testing.assert_array_equal(first['test'], second['test'])

  def test_identities_that_no_part_gets(self):
    source, splits = pairs.split(made(), sizes={'train': 30, 'test': 9}, seed=0, noise=0.2,
                                 drop_rest=True)
    self.assertLen(np.unique(source.identity[np.concatenate(list(splits.indices.values()))]), 39)
    self.assertEmpty(splits.indices['unseen'])

  def test_errors(self):
    for sizes, noise, message in (
        (SIZES, 0.0, 'forget set is empty'), (SIZES, 1.0, 'retain set is empty'),
        ({'train': 0.5, 'tset': 0.5}, 0.1, "did you mean 'test'"),
        ({'train': 0.5}, 0.1, 'leave some'), ({'train': 100}, 0.1, 'ask for')):
      with self.assertRaisesRegex(ValueError, message):
        pairs.split(made(), sizes=sizes, seed=0, noise=noise)


class PortionTest(absltest.TestCase):

  def test_portions_are_nested_and_leave_held_out_pairs_alone(self):
    _, splits = pairs.split(made(), sizes=SIZES, seed=0, noise=0.3)
    train = lambda splits: np.concatenate([splits.indices[name] for name in ('retain', 'forget')])
    small, large = (pairs.portion(splits, share, 5) for share in (0.25, 0.5))
    self.assertLen(train(large), round(0.5 * len(train(splits))))
    self.assertContainsSubset(train(small), train(large))
    for name in ('retain', 'forget'):
      self.assertContainsSubset(small.indices[name], splits.indices[name])
      self.assertNotEmpty(small.indices[name])
    for name in ('validation', 'test', 'unseen'):
      np.testing.assert_array_equal(small.indices[name], splits.indices[name])
    self.assertEqual(pairs.portion(splits, 1.0, 5).hash, splits.hash)
    for share in (0.0, 1.5):
      with self.assertRaisesRegex(ValueError, 'share of the training pairs'):
        pairs.portion(splits, share, 0)

  def test_unlabelled_pairs(self):
    source, splits = pairs.unlabelled(made(), sizes=SIZES, seed=0)
    planted, labelled = pairs.split(made(), sizes=SIZES, seed=0, noise=0.3)
    self.assertEmpty(splits.indices['forget'])
    self.assertCountEqual(splits.indices['retain'], np.concatenate(
        [labelled.indices[name] for name in ('retain', 'forget')]))
    for name in ('validation', 'test', 'unseen'):
      np.testing.assert_array_equal(splits.indices[name], labelled.indices[name])
    np.testing.assert_array_equal(source.fields['caption'], planted.fields['true_caption'])
    np.testing.assert_array_equal(source.fields['true_caption'], source.fields['caption'])
    self.assertFalse(source.fields['noisy'].any())


class StreamTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.source = made()
    self.asked = []
    def words(ids, seed, epoch):
      self.asked.append((seed, epoch))
      return np.stack([ids, ids + epoch], axis=1).astype(np.int32)
    self.texts = {'text': words}
    self.stream = pairs.stream(self.source, np.arange(5, 55), batch_size=16, seed=3,
                               augment=('crop:2',), texts=self.texts)

  def test_full_batches_of_different_records(self):
    self.assertEqual(pairs.steps_per_epoch(50, 16), 3)
    epochs = []
    for epoch in range(2):
      batches = [self.stream(step)['pairs'] for step in range(3 * epoch, 3 * epoch + 3)]
      ids = np.concatenate([batch['id'] for batch in batches])
      self.assertLen(np.unique(ids), 48)
      self.assertTrue(((ids >= 5) & (ids < 55)).all())
      for batch in batches:
        self.assertEqual(batch['mask'].sum(), 16)
        np.testing.assert_array_equal(batch['label'], self.source.fields['label'][batch['id']])
        np.testing.assert_array_equal(batch['text'][:, 1], batch['id'] + epoch)
      epochs.append(ids)
    self.assertFalse(np.array_equal(np.sort(epochs[0]), np.sort(epochs[1])))  # others are left out
    self.assertEqual(self.asked, [(3, 0)] * 3 + [(3, 1)] * 3)

  def test_rows_of_the_picture_are_those_of_the_whole(self):
    batch = self.stream(4)['pairs']
    image = batch['image']
    self.assertEqual((image.shape, image.dtype), ((16, 8, 8, 3), np.float32))
    whole = np.asarray(image)
    np.testing.assert_array_equal(image[3:7], whole[3:7])
    np.testing.assert_array_equal(image[(slice(8, 16), slice(None), slice(2, 4))],
                                  whole[8:16, :, 2:4])
    np.testing.assert_array_equal(image[2], whole[2])
    plain = pairs.stream(self.source, np.arange(5, 55), batch_size=16, seed=3, texts=self.texts)
    expected = self.source.fields['image'][batch['id']]
    np.testing.assert_array_equal(np.asarray(plain(4)['pairs']['image']), expected)
    self.assertFalse(np.array_equal(whole, expected))

  def test_a_pure_function_of_the_step(self):
    before = [self.stream(step)['pairs'] for step in range(7)]
    for step in reversed(range(7)):
      after = self.stream(step)['pairs']
      self.assertEqual(set(after), {'image', 'label', 'text', 'id', 'mask'})
      for name, value in after.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(before[step][name]))

  def test_in_a_prefetched_order(self):
    found = [batch['pairs']['id'] for batch in streams.prefetch(self.stream, 1, 4)]
    for step, ids in enumerate(found, 1):
      np.testing.assert_array_equal(ids, self.stream(step)['pairs']['id'])

  def test_no_label(self):
    found = {name: field for name, field in self.source.fields.items() if name != 'label'}
    source = dataclasses.replace(self.source, fields=found, num_classes=0)
    stream = pairs.stream(source, np.arange(16), batch_size=16, seed=0, texts=self.texts)
    self.assertNotIn('label', stream(0)['pairs'])

  def test_errors(self):
    make = lambda ids, size, texts: pairs.stream(
        self.source, np.asarray(ids), batch_size=size, seed=0, texts=texts)
    for ids, size, texts, message in (
        (range(5), 6, {}, '5 records, fewer than one batch of 6'), ([], 2, {}, 'no records'),
        ([180], 1, {}, 'ids lie outside'), ([1], 0, {}, 'at least 1'),
        ([1], 1, {'mask': None, 'image': None}, 'cannot be called image, mask')):
      with self.assertRaisesRegex(ValueError, message):
        make(ids, size, texts)
    with self.assertRaisesRegex(ValueError, 'steps start at 0'):
      self.stream(-1)


if __name__ == '__main__':
  absltest.main()
