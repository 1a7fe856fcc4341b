"""Classes to forget and to retain, and the streams of unlearning."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from unlearn_jax.data import generation
from unlearn_jax.data import holes
from unlearn_jax.data import sources
from unlearn_jax.data.builders import published_fixtures

CLASSES, PEOPLE, EACH = 12, 12, 2  # pictures of an identity


def made(**fields) -> sources.Source:
  """Grey pictures of 8 x 8; every identity has two, of one class."""
  count = CLASSES * PEOPLE * EACH
  person = np.arange(count) // EACH
  image = np.arange(count, dtype=np.float32)[:, None, None, None] / count * np.ones((8, 8, 1))
  return sources.Source(
      'made', {'image': image.astype(np.float32), 'label': (person % CLASSES).astype(np.int32),
               **fields}, np.char.add('p', person.astype(str)), CLASSES, 'Generated.')


def partitioned() -> sources.Source:
  """Every picture an identity of its own; the last four of each class are not for training."""
  source = made()
  turn = np.arange(len(source)) // CLASSES  # 24 pictures of each class
  label = np.arange(len(source)) % CLASSES
  return dataclasses.replace(
      source, identity=np.arange(len(source)).astype(str),
      fields={**source.fields, 'label': label.astype(np.int32),
              'partition': np.where(turn < 20, 'train', 'validation')})


def split(source=None, **changes):
  return generation.split(made() if source is None else source, **{
      'forget_classes': 3, 'retain_classes': 4, 'held_out': 0.25, 'seed': 1, **changes})


def classes(source, ids) -> set[int]:
  return set(np.asarray(source.fields['label'])[ids].tolist())


class SplitTest(parameterized.TestCase):

  @parameterized.parameters(0, 1, 2)
  def test_classes_and_parts(self, seed):
    source, splits = split(seed=seed)
    part = np.asarray(source.fields['part'])
    forgotten, kept = (classes(source, splits.indices[name]) for name in ('forget', 'retain'))
    self.assertEqual((len(forgotten), len(kept), len(forgotten & kept)), (3, 4, 0))
    self.assertEqual(classes(source, splits.indices['unseen']), forgotten)
    self.assertEqual(classes(source, splits.indices['test']), kept)
    self.assertEqual(classes(source, splits.indices['validation']), forgotten | kept)
    self.assertEqual(classes(source, part == 'other'), set(range(CLASSES)) - forgotten - kept)
    for name in ('forget', 'retain'):
      np.testing.assert_array_equal(np.flatnonzero(part == name), splits.indices[name])
    held = np.sort(np.concatenate([splits.indices[name]
                                   for name in ('validation', 'test', 'unseen')]))
    np.testing.assert_array_equal(np.flatnonzero(part == 'held out'), held)
    # 12 identities of each class: 9 train, 1 validates, 2 test.
    sizes = {'forget': 3 * 9, 'retain': 4 * 9, 'validation': 7, 'test': 4 * 2, 'unseen': 3 * 2}
    self.assertEqual({name: len(ids) for name, ids in splits.indices.items()},
                     {name: EACH * count for name, count in sizes.items()})
    splits.validate(source)

  def test_identities_are_never_cut(self):
    source, _ = split()
    part = np.asarray(source.fields['part'])
    for who in np.unique(source.identity):
      self.assertLen(set(part[source.identity == who]), 1)

  def test_draws(self):
    _, one = split()
    source, more = split(retain_classes=6)
    _, other = split(seed=2)
    np.testing.assert_array_equal(one.indices['forget'], more.indices['forget'])
    self.assertNotEqual(one.hash, other.hash)
    self.assertEqual(split()[1].hash, one.hash)
    self.assertLess(classes(source, one.indices['retain']), classes(source, more.indices['retain']))

  def test_named_classes(self):
    source, splits = split(forget_classes=(7,), retain_classes=[0, 3])
    self.assertEqual(classes(source, splits.indices['forget']), {7})
    self.assertEqual(classes(source, splits.indices['retain']), {0, 3})
    source, splits = split(forget_classes=11, retain_classes=[5])  # the draw leaves out what is named
    self.assertEqual(classes(source, splits.indices['forget']), set(range(CLASSES)) - {5})

  def test_a_class_is_dealt_alike_whatever_else_is_chosen(self):
    source, one = split(forget_classes=[2], retain_classes=[5])
    _, two = split(forget_classes=[9, 5], retain_classes=[2])
    where = np.asarray(source.fields['label']) == 2
    np.testing.assert_array_equal(one.indices['forget'], two.indices['retain'])
    np.testing.assert_array_equal(one.indices['unseen'], two.indices['test'])
    self.assertTrue(where[one.indices['forget']].all())

  def test_counts_of_a_class(self):
    source, splits = split(per_class=7, per_class_test=3)
    sizes = {name: len(ids) for name, ids in splits.indices.items()}
    self.assertEqual(sizes, {'forget': 3 * 7, 'retain': 4 * 7, 'test': 4 * 3, 'unseen': 3 * 3,
                             'validation': 7 * 3})
    part = np.asarray(source.fields['part'])
    self.assertEqual(np.sum(part == 'held out'), 7 * 24 - 7 * 7)  # what is over takes no part

  def test_the_authors_partition(self):
    source, splits = split(partitioned(), held_out=None)
    partition = np.asarray(source.fields['partition'])
    for name, ids in splits.indices.items():
      self.assertEqual(set(partition[ids]),
                       {'train' if name in ('forget', 'retain') else 'validation'}, name)
    self.assertEqual({name: len(ids) for name, ids in splits.indices.items()},
                     {'forget': 60, 'retain': 80, 'validation': 14, 'test': 8, 'unseen': 6})
    part = np.asarray(source.fields['part'])
    self.assertEqual(set(partition[part == 'other']), {'train'})
    self.assertEqual(np.sum(part == 'other'), 5 * 20)

  def test_the_papers_counts_take_all_published_validation_pictures_for_the_report(self):
    source, splits = split(partitioned(), held_out=None, per_class=10, per_class_test=4)
    self.assertEqual({name: len(ids) for name, ids in splits.indices.items()},
                     {'forget': 30, 'retain': 40, 'test': 16, 'unseen': 12, 'validation': 28})
    partition = np.asarray(source.fields['partition'])
    for name, expected in (('test', 'validation'), ('unseen', 'validation'), ('validation', 'train')):
      self.assertEqual(set(partition[splits.indices[name]]), {expected}, name)
    for count, expected in ((2, ['validation'] * 14), (3, ['train'] * 14 + ['validation'] * 7)):
      source, splits = split(partitioned(), held_out=None, per_class=10, per_class_test=count)
      self.assertEqual(sorted(partition[splits.indices['validation']]), expected)  # held out first
    with self.assertRaisesRegex(ValueError, 'no picture is left for validation'):
      split(partitioned(), held_out=None, per_class_test=4)

  def test_an_identity_of_two_classes_goes_with_the_first(self):
    label = np.asarray(made().fields['label']).copy()
    forgotten, other, kept = (np.flatnonzero(label == number)[0] for number in (3, 8, 6))
    label[forgotten + 1] = 5  # the same identity, in a class of the others
    label[[other + 1, kept + 1]] = 3  # and the other way round: forgotten with their class
    source, splits = split(made(label=label), forget_classes=[3], retain_classes=[6])
    part, identity = np.asarray(source.fields['part']), source.identity
    for who in identity[[forgotten, other, kept]]:
      self.assertNotIn('other', part[identity == who])
    used = np.concatenate([splits.indices[name] for name in splits.indices])
    self.assertEmpty(np.intersect1d([forgotten + 1, other, kept], used))
    self.assertLen(np.intersect1d([forgotten, other + 1, kept + 1], used), 3)

  def test_no_class_is_neither_forgotten_nor_retained(self):
    label = np.asarray(made().fields['label']).copy()
    label[label == 4] = -1
    source = made(label=label, caption=np.full(len(label), 'a thing'),
                  picture=np.arange(len(label), dtype=np.int32))
    source, splits = split(source, forget_classes=5, retain_classes=6)
    self.assertTrue((np.asarray(source.fields['part'])[label == -1] == 'other').all())
    self.assertNotIn(-1, classes(source, np.concatenate(list(splits.indices.values()))))

  @parameterized.parameters(
      ({'forget_classes': [1, 2], 'retain_classes': [2, 3]}, 'forgotten and retained: 2$'),
      ({'forget_classes': [12]}, 'no pictures of classes 12; there are 12 classes, 0 to 11'),
      ({'retain_classes': [-1]}, 'no pictures of classes -1'),
      ({'forget_classes': [1, 1]}, 'each class once'), ({'forget_classes': []}, 'at least one'),
      ({'forget_classes': ['cat']}, 'integers expected'), ({'forget_classes': 0}, 'at least 1'),
      ({'forget_classes': 9}, '4 classes to retain.*12 classes of at least 8.*3 are left'),
      ({'smallest': 13}, '0 classes of at least 13 identities'),
      ({'held_out': 0.0}, r'in \(0, 1\)'), ({'held_out': 1.0}, r'in \(0, 1\)'),
      ({'held_out': 0.08}, 'no picture is left for validation'),
      ({'held_out': 0.97}, 'no picture is left for (forget|retain)'),
      ({'held_out': None}, 'no partition'), ({'per_class': 0}, 'per_class must be'),
      ({'per_class_test': -1}, 'per_class_test must be'))
  def test_bad_settings(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      split(**changes)

  def test_needs_classes(self):
    with self.assertRaisesRegex(ValueError, 'has attributes'):
      split(made(label=np.ones((CLASSES * PEOPLE * EACH, CLASSES), np.float32)))

  def test_classes_that_overlap_are_named(self):
    source = dataclasses.replace(made(), class_names=tuple('abcdefghijkl'))
    with self.assertRaisesRegex(ValueError, r'1 \(b\), 2 \(c\)'):
      split(source, forget_classes=[2, 1], retain_classes=[1, 2])

  def test_fashion_mnist(self):
    source = published_fixtures.fashion_mnist_source('', '', None)  # 8 + 8 of each class
    source, splits = split(source, held_out=None)
    self.assertEqual({name: len(ids) for name, ids in splits.indices.items()},
                     {'forget': 24, 'retain': 32, 'validation': 28, 'test': 16, 'unseen': 12})
    batch = generation.streams(source, splits, batch_size=4, seed=0, grid=(7, 7))['pair'](0)
    self.assertEqual(batch['forget']['image'].shape, (4, 28, 28, 1))
    self.assertEqual(batch['forget']['visible'].shape, (4, 12))

  def test_identities_that_draw_all_classes(self):
    with self.assertRaisesRegex(ValueError, 'of 0 identities no picture is left for retain'):
      split(sources.get('synthetic'), forget_classes=1, retain_classes=2)


class TuningTest(parameterized.TestCase):

  def test_nothing_of_the_report_is_used(self):
    source, splits = split()
    small = generation.tuning(splits, source, seed=1)
    self.assertEqual(set(small.indices), {'forget', 'retain', 'test', 'unseen'})
    used = np.concatenate(list(small.indices.values()))
    for name in ('forget', 'test', 'unseen'):
      self.assertEmpty(np.intersect1d(used, splits.indices[name]), name)
    self.assertEmpty(classes(source, used) & classes(source, splits.indices['forget']))
    played, kept = (classes(source, small.indices[name]) for name in ('forget', 'retain'))
    self.assertEqual((len(played), len(kept)), (2, 2))
    self.assertEqual(classes(source, small.indices['unseen']), played)
    self.assertEqual(classes(source, small.indices['test']), kept)
    self.assertLess(set(np.concatenate([small.indices['test'], small.indices['unseen']])),
                    set(splits.indices['validation']))
    np.testing.assert_array_equal(
        np.union1d(small.indices['forget'], small.indices['retain']), splits.indices['retain'])

  def test_what_the_report_forgets_trains_no_model_of_a_trial(self):
    source, splits = split()
    small = generation.tuning(splits, source, seed=1)
    whole = generation.trained(source, small)
    self.assertEmpty(np.intersect1d(whole['train'], splits.indices['forget']))
    self.assertLess(set(whole['retain']), set(whole['train']))
    self.assertEmpty(np.intersect1d(whole['retain'], small.indices['forget']))

  @parameterized.parameters(0.0, 1.0, 0.2)
  def test_bad_share(self, share):
    source, splits = split()
    with self.assertRaisesRegex(ValueError, 'share'):
      generation.tuning(splits, source, seed=0, share=share)


class StreamsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.source, self.splits = split()

  def streams(self, source=None, splits=None, **changes):
    return generation.streams(source or self.source, splits or self.splits, **{
        'batch_size': 16, 'seed': 5, 'grid': (4, 4), **changes})

  def ids(self, stream, role, steps):
    return np.concatenate([stream(step)[role]['id'] for step in range(steps)])

  def part(self, ids) -> set[str]:
    return set(np.asarray(self.source.fields['part'])[ids].tolist())

  def test_names(self):
    self.assertEqual(set(self.streams()), {
        'train', 'retain', 'forget', 'pair', 'proxy', 'forget_proxy',
        *(f'limited/{n}' for n in (1, 5, 10, 20, 25, 50, 100))})

  def test_fields(self):
    source = dataclasses.replace(self.source, fields={
        **self.source.fields, 'picture': np.arange(len(self.source)), 'caption': np.full(288, 'x')})
    batch = self.streams(source)['pair'](0)
    self.assertEqual(set(batch), {'retain', 'forget'})
    for fields in batch.values():
      self.assertEqual({name: (value.dtype, value.shape) for name, value in fields.items()}, {
          'image': (np.float32, (16, 8, 8, 1)), 'label': (np.int32, (16,)),
          'visible': (np.int32, (16, 4)), 'id': (np.int32, (16,)), 'mask': (np.float32, (16,))})
      np.testing.assert_array_equal(fields['image'], source.fields['image'][fields['id']])
      np.testing.assert_array_equal(fields['label'], source.fields['label'][fields['id']])

  def test_single_roles_count_every_picture_once_an_epoch(self):
    streams, whole = self.streams(), generation.trained(self.source, self.splits)
    self.assertEqual(self.part(whole['train']), {'retain', 'forget', 'other'})
    self.assertEqual(self.part(whole['retain']), {'retain', 'other'})
    for name, expected in (*whole.items(), ('forget', self.splits.indices['forget'])):
      batches = [streams[name](step)[name] for step in range(-(-len(expected) // 16))]
      counted = np.concatenate([batch['id'][batch['mask'] == 1] for batch in batches])
      np.testing.assert_array_equal(np.sort(counted), expected)

  def test_pairs_are_balanced(self):
    stream = self.streams()['pair']
    retain, forget = self.splits.indices['retain'], self.splits.indices['forget']  # 72 and 54
    for step in (0, 3, 4, 100):
      for fields in stream(step).values():
        np.testing.assert_array_equal(fields['mask'], np.ones(16))
    for role, expected in (('retain', retain), ('forget', forget)):
      found = self.ids(stream, role, -(-len(expected) // 16))
      np.testing.assert_array_equal(np.unique(found), expected)

  def test_pure_in_step(self):
    one, two = (self.streams(augment=('flip',), mask='random:0.5') for _ in range(2))
    for name in ('train', 'pair', 'limited/5', 'proxy', 'forget_proxy'):
      later = {step: two[name](step) for step in (9, 2)}
      for step in (2, 9):
        for role, fields in one[name](step).items():
          for field, value in fields.items():
            np.testing.assert_array_equal(value, later[step][role][field])

  def test_holes(self):
    streams = self.streams(mask='random:0.5')
    batch, later = (streams['pair'](step)['retain'] for step in (0, 1))
    np.testing.assert_array_equal(batch['visible'], holes.draw(
        'random:0.5', (4, 4), seed=5, ids=batch['id'], step=0))
    self.assertLen(np.unique(batch['visible'], axis=0), 16)
    same = [streams['limited/5'](step)['forget'] for step in (0, 4)]  # an epoch is 3.4 steps
    _, *rows = np.intersect1d(*(fields['id'] for fields in same), return_indices=True)
    self.assertNotEmpty(rows[0])
    self.assertFalse(np.array_equal(*(fields['visible'][row] for fields, row in zip(same, rows))))
    self.assertFalse(np.array_equal(batch['visible'], later['visible']))
    centre = self.streams(mask='centre:2', grid=(4, 4))['pair'](0)
    for fields in centre.values():
      np.testing.assert_array_equal(
          fields['visible'], np.tile(holes.visible(holes.hole('centre:2', (4, 4))), (16, 1)))

  def test_limited(self):
    streams, before = self.streams(), np.zeros(0, np.int32)
    label = np.asarray(self.source.fields['label'])
    for limit in (1, 5, 10):
      stream = streams[f'limited/{limit}']
      found = np.unique(self.ids(stream, 'retain', 5))
      np.testing.assert_array_equal(np.bincount(label[found])[np.unique(label[found])], [limit] * 4)
      self.assertEqual(self.part(found), {'retain'})
      self.assertTrue(np.isin(before, found).all())  # nested
      before = found
      self.assertEqual(self.part(stream(0)['forget']['id']), {'forget'})
    one = streams['limited/1'](0)['retain']  # four pictures, four times each: oversampled
    np.testing.assert_array_equal(np.unique(one['id'], return_counts=True)[1], [4] * 4)
    np.testing.assert_array_equal(one['mask'], np.ones(16))
    other = self.streams(seed=6)['limited/5']
    self.assertFalse(np.array_equal(np.unique(self.ids(other, 'retain', 5)),
                                    np.unique(self.ids(streams['limited/5'], 'retain', 5))))
    with self.assertRaisesRegex(ValueError, 'has 18 training pictures, and 20 of each'):
      streams['limited/20'](0)

  def test_proxies(self):
    streams, steps = self.streams(), 8
    forget = self.splits.indices['forget']
    retained, forgotten = (np.unique(self.ids(streams[name], role, steps)) for name, role in (
        ('proxy', 'retain'), ('forget_proxy', 'forget')))
    for found in (retained, forgotten):
      self.assertLen(found, len(forget))
      self.assertEqual(self.part(found), {'other'})
    self.assertEmpty(np.intersect1d(retained, forgotten))
    np.testing.assert_array_equal(np.unique(self.ids(streams['proxy'], 'forget', steps)), forget)
    np.testing.assert_array_equal(np.unique(self.ids(streams['forget_proxy'], 'retain', steps)),
                                  self.splits.indices['retain'])

  def test_too_few_others(self):
    source, splits = split(forget_classes=5, retain_classes=4)  # 90 forgotten, 72 others
    streams = self.streams(source, splits)
    streams['pair'](0)  # what can be given is given
    for name, need in (('proxy', 90), ('forget_proxy', 180)):
      with self.assertRaisesRegex(ValueError, f'72 training pictures of other classes, and {need}'):
        streams[name](0)

  def test_tuning(self):
    small = generation.tuning(self.splits, self.source, seed=0)
    streams = self.streams(splits=small)
    self.assertEqual(classes(self.source, self.ids(streams['pair'], 'forget', 4)),
                     classes(self.source, small.indices['forget']))
    seen = self.ids(streams['train'], 'train', 20)
    self.assertEmpty(np.intersect1d(seen, self.splits.indices['forget']))

  @parameterized.parameters(
      ({'grid': (3, 4)}, 'grid of 3 x 4 patches does not divide pictures of 8 x 8'),
      ({'mask': 'centre:4'}, 'leaves nothing'), ({'mask': 'centr:2'}, "did you mean 'centre'"),
      ({'augment': ('filp',)}, "did you mean 'flip'"), ({'batch_size': 0}, 'batch_size'))
  def test_bad_settings(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      self.streams(**changes)

  def test_needs_parts(self):
    with self.assertRaisesRegex(ValueError, 'no field part.*generation.split'):
      self.streams(made())


if __name__ == '__main__':
  absltest.main()
