"""Records dealt to clients, and what a federation forgets."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from unlearn_jax.data import federation
from unlearn_jax.data import sources

CLIENTS = 4


def made(count: int = 400, categories: int = 5) -> sources.Source:
  """Pairs of features; two records per identity, each identity of one category."""
  rng = np.random.default_rng(0)
  person = np.repeat(np.arange(count // 2), 2)
  features = rng.normal(size=(count, 3)).astype(np.float32)
  return sources.Source(
      'made', {'image': features, 'text': features, 'label': (person % categories).astype(np.int32)},
      np.char.add('p', person.astype(str)), categories, 'Generated.')


def split(source=None, **changes):
  return federation.split(source or made(), **{
      'clients': CLIENTS, 'alpha': 1.0, 'public': 0.25, 'minimum': 20, 'seed': 1, **changes})


class DealTest(parameterized.TestCase):

  def test_identities_are_never_cut(self):
    source, splits = split()
    client, part = (np.asarray(source.fields[name]) for name in ('client', 'part'))
    for person in np.unique(source.identity):
      mine = source.identity == person
      self.assertLen(np.unique(client[mine]), 1)
      self.assertLen(np.unique(part[mine]), 1)
    self.assertEqual(set(client.tolist()), {-1, *range(CLIENTS)})
    np.testing.assert_array_equal(client == federation.NOBODY, part == 'public')
    self.assertAlmostEqual(np.mean(part == 'public'), 0.25, delta=0.01)
    self.assertGreaterEqual(np.bincount(client[client >= 0]).min(), 20)
    self.assertEqual(sum(len(ids) for ids in splits.indices.values()), np.sum(part != 'public'))

  def test_public_records_are_in_no_split(self):
    source, splits = split()
    public = np.flatnonzero(np.asarray(source.fields['part']) == 'public')
    for name, ids in splits.indices.items():
      self.assertEmpty(np.intersect1d(ids, public), name)

  def test_parts_have_their_shares_at_every_client(self):
    source, _ = split(held_out={'validation': 0.1, 'test': 0.3, 'unseen': 0.1})
    client, part = (np.asarray(source.fields[name]) for name in ('client', 'part'))
    for k in range(CLIENTS):
      shares = {name: np.mean(part[client == k] == name) for name in federation.PARTS}
      for name, share in {'train': 0.5, 'validation': 0.1, 'test': 0.3, 'unseen': 0.1}.items():
        self.assertAlmostEqual(shares[name], share, delta=0.1, msg=f'{name} of {k}')

  def test_same_seed_same_federation_whatever_is_forgotten(self):
    one, splits = split(target=0)
    two, others = split(target=1)
    for name in ('client', 'part'):
      np.testing.assert_array_equal(one.fields[name], two.fields[name])
    self.assertNotEqual(splits.hash, others.hash)
    three, _ = split(seed=2)
    self.assertTrue(np.any(np.asarray(one.fields['client']) != np.asarray(three.fields['client'])))

  @parameterized.parameters(
      ({'public': 1.0}, 'public'),
      ({'held_out': {'test': 0.6, 'unseen': 0.4}}, 'held_out'),
      ({'held_out': {'tset': 0.1}}, "did you mean 'test'"),
      ({'minimum': 200}, 'too few'),
      ({'scenario': 'clinet'}, "did you mean 'client'"),
      ({'target': 9}, 'client 9 has no training pairs'),
      ({'scenario': 'concept', 'target': 77}, 'concept 77'),
      ({'scenario': 'sample', 'share': 0.0001}, 'none of them'),
      ({'clients': 1}, 'last one'))
  def test_bad_settings(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      split(**changes)


class ThemesTest(absltest.TestCase):

  def test_captions_stand_in_for_labels(self):
    source = made()
    words = ('dog park grass', 'boat sea harbour', 'chef kitchen stove', 'train station rail')
    fields = {'image': source.fields['image'][:, None, None], 'picture': np.arange(400) // 2,
              'caption': np.asarray([words[k % 4] for k in range(200) for _ in range(2)])}
    found, splits = split(sources.Source('captions', fields, source.identity, 0, 'Generated.'),
                          scenario='concept', target=0, themes=4)
    label = np.asarray(found.fields['label'])
    for word in words:  # planted themes are found
      self.assertLen(np.unique(label[fields['caption'] == word]), 1)
    self.assertLen(np.unique(label), 4)
    self.assertTrue((label[splits.indices['forget']] == 0).all())


class ForgetTest(parameterized.TestCase):

  def test_client(self):
    source, splits = split(target=2)
    client = np.asarray(source.fields['client'])
    self.assertEqual(set(client[splits.indices['forget']].tolist()), {2})
    self.assertNotIn(2, client[splits.indices['retain']])
    self.assertIn(2, client[splits.indices['test']])  # held out, not forgotten

  def test_sample_takes_whole_identities_of_one_client(self):
    source, splits = split(scenario='sample', target=1, share=0.3)
    client = np.asarray(source.fields['client'])
    forget, retain = splits.indices['forget'], splits.indices['retain']
    self.assertEqual(set(client[forget].tolist()), {1})
    self.assertIn(1, client[retain])
    self.assertEmpty(set(source.identity[forget]) & set(source.identity[retain]))
    self.assertAlmostEqual(len(forget) / (len(forget) + np.sum(client[retain] == 1)), 0.3, delta=0.05)

  def test_concept_is_taken_from_everybody(self):
    source, splits = split(scenario='concept', target=3)
    label = np.asarray(source.fields['label'])
    self.assertEqual(set(label[splits.indices['forget']].tolist()), {3})
    self.assertNotIn(3, label[splits.indices['retain']])


class TuningTest(parameterized.TestCase):

  @parameterized.parameters('client', 'sample', 'concept')
  def test_nothing_of_the_report_is_used(self, scenario):
    how = {'scenario': scenario, 'target': 2, 'share': 0.3}
    source, splits = split(**how)
    small = federation.tuning(splits, source, seed=1, **how)
    self.assertEqual(set(small.indices), {'forget', 'retain', 'validation'})
    used = np.concatenate(list(small.indices.values()))
    for name in ('forget', 'test', 'unseen'):
      self.assertEmpty(np.intersect1d(used, splits.indices[name]), name)
    field = np.asarray(source.fields['label' if scenario == 'concept' else 'client'])
    other = np.unique(field[small.indices['forget']])
    self.assertLen(other, 1)
    self.assertNotEqual(other[0], 2)
    if scenario == 'client':
      self.assertNotIn(2, np.asarray(source.fields['client'])[used])

  def test_two_clients_are_too_few(self):
    source, splits = split(clients=2)
    with self.assertRaisesRegex(ValueError, 'two more clients'):
      federation.tuning(splits, source, scenario='client', target=0, share=0.2, seed=0)


if __name__ == '__main__':
  absltest.main()
