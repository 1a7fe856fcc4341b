"""Tests for splits and their manifests."""

import dataclasses
import json
import os
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from unlearn_jax.data import sources
from unlearn_jax.data import splits

SIZES = {'retain': 4, 'forget': 2, 'validation': 1, 'test': 1, 'unseen': 2}
SHARES = {'retain': 0.4, 'forget': 0.17, 'validation': 0.13, 'test': 0.13, 'unseen': 0.17}


def own_identities(source):
  return dataclasses.replace(source, identity=np.arange(len(source)).astype(str))


class SplitsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.source = sources.get('synthetic')
    self.records = own_identities(self.source)

  def assert_partition(self, made, count):
    self.assertEqual(set(made.indices), set(splits.NAMES))
    everything = np.concatenate(list(made.indices.values()))
    np.testing.assert_array_equal(np.sort(everything), np.arange(count))

  @parameterized.parameters(0, 1, 2)
  def test_identities_are_disjoint(self, seed):
    made = splits.by_identity(self.source, sizes=SIZES, seed=seed)
    self.assert_partition(made, 160)
    people = {name: set(self.source.identity[ids]) for name, ids in made.indices.items()}
    self.assertEqual({name: len(who) for name, who in people.items()}, SIZES)
    self.assertLen(set().union(*people.values()), 10)

  def test_shares(self):
    by_share = splits.by_identity(self.source, seed=0, sizes={
        'retain': 0.4, 'forget': 0.2, 'validation': 0.1, 'test': 0.1, 'unseen': 0.2})
    self.assertEqual(by_share.hash, splits.by_identity(self.source, sizes=SIZES, seed=0).hash)
    made = splits.by_random(self.records, fractions=SHARES, seed=0)
    self.assert_partition(made, 160)
    for name, ids in made.indices.items():
      self.assertLessEqual(abs(len(ids) - 160 * SHARES[name]), 1)

  def test_pinned_hash(self):
    made = splits.by_identity(self.source, sizes=SIZES, seed=0)
    self.assertEqual(made.hash, 'cf507a1fbc9b247de0b66522da6f2182268a5e49572423b0716504e222d06729')

  def test_hash_is_of_the_content(self):
    made = splits.by_identity(self.source, sizes=SIZES, seed=0)
    reordered = dataclasses.replace(
        made, indices={name: made.indices[name][::-1] for name in reversed(splits.NAMES)})
    self.assertEqual(reordered.hash, made.hash)
    other_seed = splits.by_identity(self.source, sizes=SIZES, seed=1)
    other_data = splits.by_identity(sources.get('synthetic', label_noise=0.1), sizes=SIZES, seed=0)
    swapped = dataclasses.replace(made, indices={
        **made.indices, 'test': made.indices['validation'], 'validation': made.indices['test']})
    self.assertLen({made.hash, other_seed.hash, other_data.hash, swapped.hash}, 4)

  def test_forget_set_does_not_depend_on_other_sizes(self):
    small = splits.by_identity(self.source, sizes={'forget': 2, 'retain': 3}, seed=5,
                               drop_rest=True)
    large = splits.by_identity(self.source, sizes=SIZES, seed=5)
    np.testing.assert_array_equal(small.indices['forget'], large.indices['forget'])
    self.assertEmpty(small.indices['unseen'])

  def test_forget_records_cut_and_nested(self):
    whole = splits.by_identity(self.source, sizes=SIZES, seed=0)
    previous = np.zeros(0, np.int64)
    for count in (1, 10, 31, 32):
      made = splits.by_identity(self.source, sizes=SIZES, seed=0, forget_records=count)
      forget = made.indices['forget']
      self.assertLen(forget, count)
      self.assertTrue(np.isin(previous, forget).all())
      self.assertTrue(np.isin(forget, whole.indices['forget']).all())
      # The rest of a cut identity is in no split.
      for name in ('retain', 'validation', 'test', 'unseen'):
        np.testing.assert_array_equal(made.indices[name], whole.indices[name])
      previous = forget
    for count in (0, 33):
      with self.assertRaisesRegex(ValueError, f'1 to 32.*got {count}'):
        splits.by_identity(self.source, sizes=SIZES, seed=0, forget_records=count)

  def test_by_class(self):
    made = splits.by_class(self.records, forget_classes=(1, 3), seed=0, fractions={
        'retain': 0.7, 'validation': 0.1, 'test': 0.1, 'unseen': 0.1})
    self.assert_partition(made, 160)
    label = self.source.fields['label']
    np.testing.assert_array_equal(made.indices['forget'], np.flatnonzero(np.isin(label, (1, 3))))
    self.assertLen(made.indices['retain'], 56)
    for bad, message in ((( 4,), 'classes 0 to 3'), ((-1,), 'classes 0 to 3'), ((), 'is empty'),
                         ((0.5,), 'integers'), ((0, 1, 2, 3), 'none')):
      with self.assertRaisesRegex(ValueError, message):
        splits.by_class(self.records, forget_classes=bad, fractions={'retain': 1.0}, seed=0)
    with self.assertRaisesRegex(ValueError, 'from forget_classes'):
      splits.by_class(self.records, forget_classes=(1,), fractions=SHARES, seed=0)
    attributes = dataclasses.replace(self.records, fields={
        **self.records.fields, 'label': np.zeros((160, 4), np.float32)})
    with self.assertRaisesRegex(ValueError, 'attributes'):
      splits.by_class(attributes, forget_classes=(1,), fractions={'retain': 1.0}, seed=0)

  def test_by_owner(self):
    held_out = {'validation': 0.1, 'test': 0.2}
    made = splits.by_owner(self.source, forget_owners=2, fractions=held_out, seed=1)
    self.assert_partition(made, 160)
    self.assertEqual(made.unit, 'record')
    identity = self.source.identity
    forgotten = set(identity[made.indices['forget']])
    self.assertLen(forgotten, 2)
    self.assertEmpty(forgotten & set(identity[made.indices['retain']]))
    self.assertNotEmpty(forgotten & set(identity[made.indices['test']]))
    self.assertLen(made.indices['test'], 32)
    named = splits.by_owner(self.source, forget_owners=sorted(forgotten), fractions=held_out, seed=1)
    self.assertEqual(named.hash, made.hash)
    # Others are forgotten, and the held-out records stay the same.
    other = splits.by_owner(self.source, forget_owners=3, fractions=held_out, seed=1)
    np.testing.assert_array_equal(other.indices['test'], made.indices['test'])

  def test_by_owner_refuses(self):
    for owners, fractions, message in (
        (10, {'test': 0.2}, 'forget_owners must lie in 1 to 9'),
        (['nobody'], {'test': 0.2}, 'nobody'),
        (1, {'test': 0.2, 'retain': 0.5}, "'retain' from forget_owners")):
      with self.assertRaisesRegex(ValueError, message):
        splits.by_owner(self.source, forget_owners=owners, fractions=fractions, seed=0)

  def test_shared_identities(self):
    fractions = {'retain': 1.0}
    for make in (lambda **kw: splits.by_random(self.source, fractions=SHARES, seed=0, **kw),
                 lambda **kw: splits.by_class(self.source, forget_classes=(1,), fractions=fractions,
                                              seed=0, **kw)):
      with self.assertRaisesRegex(ValueError, "identity 'person[0-9]' stands in the splits"):
        make()
      self.assertEqual(make(shared_identities=True).unit, 'record')

  @parameterized.parameters(
      ({'retain': 4, 'forgot': 2}, "did you mean 'forget'"),
      ({'retain': 9, 'forget': 2}, '2 \\+ 9 = 11 of the 10 identities'),
      ({'retain': 0.9, 'forget': 0.2}, 'more than 1'),
      ({'retain': 4, 'forget': 2}, 'drop_rest=True'),
      ({'retain': 0.4, 'forget': 0.2}, 'drop_rest=True'),
      ({'retain': 8, 'forget': 0.2}, 'all numbers'),
      ({'retain': 11, 'forget': -1}, 'got -1'),
      ({'retain': 9, 'forget': True}, 'got True'),
      ({'retain': '9', 'forget': 1}, "got '9'"),
      ({'retain': float('nan'), 'forget': 0.1}, 'got nan'),
      ({'retain': 0.99, 'forget': 0.01}, 'is none'),
      ({'retain': 10, 'forget': 0}, 'forget set is empty'),
      ({'retain': 10}, 'forget set is empty'),
      ({'forget': 10}, 'retain set is empty'))
  def test_bad_sizes(self, sizes, message):
    with self.assertRaisesRegex(ValueError, message):
      splits.by_identity(self.source, sizes=sizes, seed=0)

  def test_labels_outside_the_classes(self):
    broken = dataclasses.replace(self.records, num_classes=3)
    for make in (lambda: splits.by_identity(broken, sizes=SIZES, seed=0),
                 lambda: splits.by_random(broken, fractions=SHARES, seed=0),
                 lambda: splits.by_class(broken, forget_classes=(0,), fractions=SHARES, seed=0),
                 lambda: splits.from_ids(broken, {'forget': [1]}, rest='retain')):
      with self.assertRaisesRegex(ValueError, 'lie outside the 3 classes'):
        make()


class FromIdsTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.source = sources.get('synthetic')

  def test_deletion_list(self):
    made = splits.from_ids(self.source, {'forget': ['person3']}, rest='retain')
    np.testing.assert_array_equal(made.indices['forget'], np.arange(48, 64))
    self.assertLen(made.indices['retain'], 144)
    one = splits.from_ids(own_identities(self.source), {'forget': [7], 'test': [1, 2]},
                          rest='retain')
    np.testing.assert_array_equal(one.indices['forget'], [7])
    self.assertLen(one.indices['retain'], 157)
    no_rest = splits.from_ids(self.source, {'forget': ['person3'], 'retain': ['person1']})
    self.assertLen(no_rest.indices['retain'], 16)

  def test_bad_lists(self):
    for ids, message in (
        ({'forget': ['person3', 'nobody']}, "not in the data: 'nobody'"),
        ({'forget': [3, 160]}, 'not in the data: 160'),
        ({'forget': [-1]}, 'not in the data: -1'),
        ({'forget': []}, 'forget set is empty'),
        ({'forget': [1.5]}, 'got 1.5'),
        ({'forget': ['person3', 4]}, "got 'person3'"),
        ({'forgotten': ['person3']}, "did you mean 'forget'"),
        ({'forget': ['person3'], 'test': ['person4', 'person3']},
         "identity 'person3' stands in the splits 'forget' and 'test'"),
        ({'forget': [0, 1]}, "identity 'person0' stands in the splits 'forget' and 'retain'")):
      with self.assertRaisesRegex(ValueError, message):
        splits.from_ids(self.source, ids, rest='retain')
    with self.assertRaisesRegex(ValueError, 'record 1 stands twice'):
      splits.from_ids(own_identities(self.source), {'forget': [1, 1]}, rest='retain')
    with self.assertRaisesRegex(ValueError, 'retain set is empty'):
      splits.from_ids(self.source, {'forget': ['person3']})
    with self.assertRaisesRegex(ValueError, "did you mean 'retain'"):
      splits.from_ids(self.source, {'forget': ['person3']}, rest='retained')


class ManifestTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.source = sources.get('synthetic')
    self.made = splits.by_identity(self.source, sizes=SIZES, seed=0)
    self.path = os.path.join(self.enter_context(tempfile.TemporaryDirectory()), 'splits.json')
    self.made.save(self.path)

  def edit(self, change):
    with open(self.path) as file:
      data = json.load(file)
    change(data)
    with open(self.path, 'w') as file:
      json.dump(data, file)

  def test_round_trip(self):
    loaded = splits.load(self.path, self.source)
    self.assertEqual(loaded.hash, self.made.hash)
    self.assertEqual((loaded.kind, loaded.seed, loaded.unit), ('identity', 0, 'identity'))
    for name in splits.NAMES:
      np.testing.assert_array_equal(loaded.indices[name], self.made.indices[name])
    self.assertEqual(os.listdir(os.path.dirname(self.path)), ['splits.json'])

  def test_other_data(self):
    with self.assertRaisesRegex(ValueError, 'make the splits again'):
      splits.load(self.path, sources.get('synthetic', label_noise=0.1))

  def test_edited(self):
    self.edit(lambda data: data['indices']['retain'].pop())
    with self.assertRaisesRegex(ValueError, 'was changed after it was saved'):
      splits.load(self.path, self.source)

  def test_not_a_manifest(self):
    for change in (lambda data: data.pop('hash'), lambda data: data.update(indices=[1])):
      self.made.save(self.path)
      self.edit(change)
      with self.assertRaisesRegex(ValueError, 'not a split manifest'):
        splits.load(self.path, self.source)
    self.made.save(self.path)
    self.edit(lambda data: data.update(format=2))
    with self.assertRaisesRegex(ValueError, 'format 2'):
      splits.load(self.path, self.source)
    with open(self.path, 'w') as file:
      file.write('{"format"')
    with self.assertRaisesRegex(ValueError, 'not a split manifest'):
      splits.load(self.path, self.source)

  def test_failed_save_keeps_the_old_one(self):
    other = splits.by_identity(self.source, sizes=SIZES, seed=1)
    with mock.patch.object(os, 'fsync', side_effect=OSError('No space left on device')):
      with self.assertRaisesRegex(OSError, 'No space left'):
        other.save(self.path)
    self.assertEqual(splits.load(self.path, self.source).hash, self.made.hash)
    self.assertEqual(os.listdir(os.path.dirname(self.path)), ['splits.json'])

  def test_indices_are_read_only(self):
    with self.assertRaises(ValueError):
      self.made.indices['retain'][0] = 0


class PublishedTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    plain = sources.get('synthetic')  # 16 records of person0, then of person1, ...
    partition = np.repeat(['train', 'val', 'test'], [96, 32, 32])
    self.source = dataclasses.replace(plain, fields={**plain.fields, 'partition': np.where(
        np.arange(160) < 32, 'forget', partition)})
    self.roles = {'forget': 'forget', 'train': 'retain', 'val': 'validation',
                  'test': {'test': 0.5, 'unseen': 0.5}}

  def test_names_and_shares(self):
    made = splits.published(self.source, roles=self.roles)
    np.testing.assert_array_equal(made.indices['forget'], np.arange(32))
    np.testing.assert_array_equal(made.indices['retain'], np.arange(32, 96))
    np.testing.assert_array_equal(made.indices['validation'], np.arange(96, 128))
    dealt = {name: set(self.source.identity[made.indices[name]]) for name in ('test', 'unseen')}
    self.assertEqual(set.union(*dealt.values()), {'person8', 'person9'})
    self.assertEqual([len(people) for people in dealt.values()], [1, 1])
    self.assertEqual((made.kind, made.unit), ('published', 'identity'))

  def test_held_out_validation_people(self):
    roles = {'forget': 'forget', 'train': {'retain': 0.75, 'validation': 0.25}, 'val': 'test',
             'test': 'unseen'}
    made = [splits.published(self.source, roles=roles, seed=seed) for seed in (0, 0, 1, 2, 3)]
    for one in made:
      people = {name: set(self.source.identity[ids]) for name, ids in one.indices.items()}
      self.assertLen(people['validation'], 1)
      self.assertLen(people['retain'], 3)
      np.testing.assert_array_equal(one.indices['unseen'], np.arange(128, 160))
    self.assertEqual(made[0].hash, made[1].hash)
    self.assertGreater(len({one.hash for one in made}), 1)

  def test_numbers_and_the_same_split_from_two_partitions(self):
    roles = {'forget': 'forget', 'train': {'retain': 3, 'unseen': 1}, 'val': 'validation',
             'test': {'test': 1, 'unseen': 1}}
    made = splits.published(self.source, roles=roles)
    self.assertLen(made.indices['unseen'], 32)
    self.assertLen(made.indices['retain'], 48)

  def test_border_through_an_identity(self):
    partition = self.source.fields['partition'].copy()
    partition[32:38] = 'forget'  # six of the sixteen records of person2
    source = dataclasses.replace(self.source, fields={**self.source.fields,
                                                      'partition': partition})
    with self.assertLogs(level='WARNING') as logs:
      made = splits.published(source, roles=self.roles)
    self.assertIn("left out of every split: 10 of 58 in 'train'", logs.output[0])
    np.testing.assert_array_equal(made.indices['forget'], np.arange(38))
    np.testing.assert_array_equal(made.indices['retain'], np.arange(48, 96))
    dealt = splits.published(source, roles={  # what is left of person2 is dealt to nobody
        **self.roles, 'train': {'retain': 2, 'validation': 1}})
    self.assertLen(dealt.indices['retain'], 32)
    self.assertLen(dealt.indices['validation'], 48)
    with self.assertNoLogs(level='WARNING'):
      kept = splits.published(source, roles=self.roles, shared_identities=True)
    np.testing.assert_array_equal(kept.indices['retain'], np.arange(38, 96))
    self.assertEqual(kept.unit, 'record')

  def test_forgotten_classes(self):
    source = own_identities(self.source)  # nobody draws one class only
    roles = {'forget': 'retain', 'train': {'retain': 0.75, 'validation': 0.25}, 'val': 'validation',
             'test': 'test'}
    made = splits.published(source, roles=roles, forget_classes=(1, 2))
    whole = splits.published(source, roles={**roles, 'val': {'validation': 0.5, 'forget': 0.5}})
    inside = np.isin(source.fields['label'], (1, 2))
    for name, ids in made.indices.items():
      self.assertEqual(set(inside[ids]), {name in ('forget', 'unseen')})
    np.testing.assert_array_equal(
        np.union1d(made.indices['retain'], made.indices['forget']), whole.indices['retain'])
    np.testing.assert_array_equal(
        np.union1d(made.indices['test'], made.indices['unseen']), np.arange(128, 160))
    with self.assertRaisesRegex(ValueError, 'roles name forget, and forget_classes'):
      splits.published(source, roles=self.roles, forget_classes=(1,))
    with self.assertRaisesRegex(ValueError, '7 lie outside the 4 classes'):
      splits.published(source, roles=roles, forget_classes=(7,))

  def test_tuning_and_saving(self):
    made = splits.published(self.source, roles=self.roles)
    small = splits.tuning(made, self.source, seed=0, share=0.25)
    self.assertLen(np.unique(self.source.identity[small.indices['forget']]), 1)
    path = os.path.join(self.enter_context(tempfile.TemporaryDirectory()), 'splits.json')
    made.save(path)
    self.assertEqual(splits.load(path, self.source).hash, made.hash)

  def test_bad_arguments(self):
    with self.assertRaisesRegex(ValueError, 'carries no partition'):
      splits.published(sources.get('synthetic'), roles=self.roles)
    with self.assertRaisesRegex(ValueError, "no partition named 'tests'; did you mean 'test'"):
      splits.published(self.source, roles={**self.roles, 'tests': 'unseen'})
    with self.assertRaisesRegex(ValueError, "no split named 'tests'"):
      splits.published(self.source, roles={**self.roles, 'test': 'tests'})
    del self.roles['val']
    with self.assertRaisesRegex(ValueError, "partition 'val' of 'synthetic' has no role"):
      splits.published(self.source, roles=self.roles)
    made = splits.published(self.source, roles=self.roles, drop_rest=True)
    self.assertEmpty(made.indices['validation'])
    with self.assertRaisesRegex(ValueError, "identities of partition 'test' over"):
      splits.published(self.source, roles={**self.roles, 'val': 'validation', 'test': {
          'test': 0.5}})
    del self.roles['forget']
    with self.assertRaisesRegex(ValueError, 'the forget set is empty'):
      splits.published(self.source, roles=self.roles, drop_rest=True)


class TuningTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.source = sources.get('synthetic')

  def test_report_data_take_no_part(self):
    report = splits.by_identity(self.source, sizes=SIZES, seed=0)
    made = splits.tuning(report, self.source, seed=0, share=0.25)
    self.assertEqual(set(made.indices), {'retain', 'forget', 'validation'})
    both = np.sort(np.concatenate([made.indices['retain'], made.indices['forget']]))
    np.testing.assert_array_equal(both, report.indices['retain'])
    np.testing.assert_array_equal(made.indices['validation'], report.indices['validation'])
    self.assertLen(np.unique(self.source.identity[made.indices['forget']]), 1)
    self.assertLen(np.unique(self.source.identity[made.indices['retain']]), 3)

  def test_unit_record(self):
    report = splits.by_random(self.source, fractions=SHARES, seed=0, shared_identities=True)
    made = splits.tuning(report, self.source, seed=0)
    self.assertLen(made.indices['forget'], 32)
    self.assertLen(made.indices['retain'], 32)

  def test_bad_arguments(self):
    report = splits.by_identity(self.source, sizes=SIZES, seed=0)
    for share in (0, 1, -0.5):
      with self.assertRaisesRegex(ValueError, r'\(0, 1\)'):
        splits.tuning(report, self.source, seed=0, share=share)
    with self.assertRaisesRegex(ValueError, 'no unit to forget'):
      splits.tuning(report, self.source, seed=0, share=0.05)
    bare = splits.from_ids(self.source, {'forget': ['person1']}, rest='retain')
    with self.assertRaisesRegex(ValueError, 'validation split, and it is empty'):
      splits.tuning(bare, self.source, seed=0)


if __name__ == '__main__':
  absltest.main()
