"""Tests of partitions, rosters and the streams of rounds."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from unlearn_jax.data import clients
from unlearn_jax.data import sources
from unlearn_jax.train import sharding

LABELS = np.random.default_rng(0).integers(0, 6, 300)


def made(count=40, captions=1) -> sources.Source:
  """Pictures that show their number, with features for text that do as well."""
  picture = np.repeat(np.arange(count, dtype=np.int32), captions)
  image = np.tile(np.arange(len(picture), dtype=np.float32)[:, None, None, None], (1, 4, 4, 3)) / 256
  return sources.Source('made', {
      'image': image, 'text': np.stack([picture, np.arange(len(picture))], 1).astype(np.float32),
      'picture': picture, 'label': picture % 3}, np.arange(len(picture)).astype(str), 3, '')


def dealt(*sizes) -> list[np.ndarray]:
  """Consecutive records, so many for each client."""
  ends = np.cumsum([0, *sizes])
  return [np.arange(start, stop) for start, stop in zip(ends, ends[1:])]


def read(fields, client) -> list[np.ndarray]:
  """Records that count in each step of a client."""
  return [ids[mask == 1] for ids, mask in zip(fields['id'][client], fields['mask'][client])]


class PartitionTest(parameterized.TestCase):

  @parameterized.parameters(0.1, 0.5, 100.0, np.inf)
  def test_every_record_is_one_clients(self, alpha):
    parts = clients.partition(LABELS, clients=5, alpha=alpha, seed=1, minimum=8)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(300))
    for part in parts:
      self.assertGreaterEqual(len(part), 8)
      np.testing.assert_array_equal(part, np.sort(part))

  def test_alpha_is_how_alike_clients_are(self):
    def skew(alpha):  # mean total variation between a client's categories and all
      whole = np.bincount(LABELS, minlength=6) / 300
      distances = [np.abs(np.bincount(LABELS[part], minlength=6) / len(part) - whole).sum() / 2
                   for seed in range(8)
                   for part in clients.partition(LABELS, clients=5, alpha=alpha, seed=seed)]
      return np.mean(distances)

    skews = [skew(alpha) for alpha in (0.05, 0.5, 5.0, np.inf)]
    self.assertEqual(skews, sorted(skews, reverse=True))
    self.assertGreater(skews[0], 0.45)
    self.assertLess(skews[-1], 0.15)

  def test_shares_follow_the_dirichlet_distribution(self):
    # p_ck of Dirichlet(alpha 1_K) has mean 1 / K and variance (K - 1) / (K^2 (K alpha + 1)).
    shares = np.concatenate([[len(part) / 2000 for part in clients.partition(
        np.zeros(2000, int), clients=4, alpha=0.5, seed=seed, minimum=1)] for seed in range(400)])
    self.assertAlmostEqual(shares.mean(), 1 / 4)
    self.assertAlmostEqual(shares.var(), 3 / (16 * 3), delta=0.008)

  def test_iid_is_even(self):
    sizes = [len(part) for part in clients.partition(LABELS[:298], clients=4, alpha=np.inf, seed=0)]
    self.assertEqual(sorted(sizes), [74, 74, 75, 75])

  def test_the_seed_alone_decides(self):
    draw = lambda seed: clients.partition(LABELS, clients=5, alpha=0.5, seed=seed)
    for one, two in zip(draw(3), draw(3)):
      np.testing.assert_array_equal(one, two)
    self.assertFalse(all(np.array_equal(one, two) for one, two in zip(draw(3), draw(4))))

  @parameterized.parameters(0.3, np.inf)
  def test_captions_of_a_picture_stay_together(self, alpha):
    picture = np.random.default_rng(1).permutation(np.repeat(np.arange(60), 5))
    parts = clients.partition(picture % 4, clients=4, alpha=alpha, seed=0, groups=picture)
    owners = [set(picture[part]) for part in parts]
    self.assertEqual(sum(map(len, owners)), 60)
    self.assertEqual(sum(map(len, parts)), 300)

  def test_drawn_anew_until_everybody_has_the_minimum(self):
    fewest = lambda minimum: [min(len(part) for part in clients.partition(
        LABELS, clients=6, alpha=0.2, seed=seed, minimum=minimum)) for seed in range(8)]
    self.assertLess(min(fewest(1)), 10)
    self.assertGreaterEqual(min(fewest(25)), 25)

  @parameterized.parameters(
      ({'clients': 0}, 'clients must be at least 1'), ({'minimum': 0}, 'minimum must be'),
      ({'clients': 2.0}, 'integers expected'), ({'alpha': 0.0}, r'alpha must lie in \(0, inf\]'),
      ({'alpha': float('nan')}, 'alpha must lie'),
      ({'minimum': 61}, '300 records are too few for 5 clients with at least 61 each'),
      ({'minimum': 60, 'alpha': 0.1}, r'no partition .* in 1000 draws; raise alpha \(0.1\), or ask'),
      ({'groups': np.zeros(300, int)}, 'group 0 are of several categories'),
      ({'groups': np.zeros(3, int)}, 'labels are integers'))
  def test_bad_arguments(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      clients.partition(LABELS, **{'clients': 5, 'alpha': 0.5, 'seed': 0, **changes})


class RosterTest(parameterized.TestCase):

  def check(self, found, sizes, forget, leaving, scenario):
    self.assertEqual(found.sizes.tolist(), sizes)
    self.assertEqual(found.forget.tolist(), forget)
    self.assertEqual(found.leaving.tolist(), leaving)
    self.assertEqual(found.scenario, scenario)

  def test_client(self):
    roster, forget = clients.roster(dealt(3, 4, 5), 'client', client=1)
    self.check(roster, [3, 4, 5], [0, 4, 0], [False, True, False], 'client')
    self.assertEqual(forget.tolist(), [3, 4, 5, 6])

  def test_sample(self):
    roster, forget = clients.roster(dealt(10, 20), 'sample', client=1, share=0.25, seed=0)
    self.check(roster, [10, 20], [0, 5], [False, False], 'sample')
    self.assertTrue((forget >= 10).all())
    draw = lambda **changes: set(clients.roster(
        dealt(10, 20), 'sample', **{'client': 1, 'share': 0.25, 'seed': 0, **changes})[1].tolist())
    self.assertEqual(draw(), set(forget.tolist()))
    self.assertNotEqual(draw(seed=1), draw())
    self.assertContainsSubset(draw(), draw(share=0.5))

  def test_sample_takes_whole_pictures(self):
    picture = np.repeat(np.arange(8), 5)
    roster, forget = clients.roster(dealt(10, 30), 'sample', client=1, share=0.5, groups=picture)
    self.assertEqual(roster.forget.tolist(), [0, 15])
    for one in range(2, 8):
      self.assertIn((picture[forget] == one).sum(), (0, 5))

  def test_concept(self):
    labels = np.array([0, 1, 0, 1, 1, 1, 2, 2, 9])
    roster, forget = clients.roster(dealt(3, 3, 2), 'concept', concept=1, labels=labels)
    # The second client has nothing else, and still does not leave.
    self.check(roster, [3, 3, 2], [1, 3, 0], [False] * 3, 'concept')
    self.assertEqual(forget.tolist(), [1, 3, 4, 5])

  @parameterized.parameters(
      ('clint', {}, "no scenario named 'clint'; did you mean 'client'"),
      ('client', {}, "scenario 'client', client: integers expected, got None"),
      ('client', {'client': 1.0}, 'integers expected, got 1.0'),
      ('client', {'client': 2}, 'no client 2, there are 0 to 1'),
      ('client', {'client': -1}, 'no client -1'),
      ('sample', {'client': 7}, 'no client 7'),
      ('sample', {'client': 0, 'share': 1.0}, r'share must lie in \(0, 1\), got 1.0'),
      ('sample', {'client': 0, 'share': 0.1}, 'a share of 0.1 of the 4 groups .* none of them'),
      ('sample', {'client': 0, 'share': 0.9}, 'all of them'),
      ('concept', {}, 'needs a concept and the labels'),
      ('concept', {'concept': 5, 'labels': np.arange(8) % 3},
       'nobody has a pair of concept 5; there are 0, 1, 2'),
      ('concept', {'concept': 0, 'labels': np.zeros(8, int)}, 'nothing is left to retain'))
  def test_bad_arguments(self, scenario, arguments, message):
    with self.assertRaisesRegex(ValueError, message):
      clients.roster(dealt(4, 4), scenario, **arguments)

  def test_bad_parts(self):
    with self.assertRaisesRegex(ValueError, 'client 0 is the last one'):
      clients.roster(dealt(4), 'client', client=0)
    with self.assertRaisesRegex(ValueError, 'client 1 has no data'):
      clients.roster(dealt(4, 0, 2), 'client', client=0)
    with self.assertRaisesRegex(ValueError, "record 2 stands in the splits 'client 0' and"):
      clients.roster([np.arange(3), np.arange(2, 5)], 'client', client=0)


class StreamsTest(parameterized.TestCase):

  SIZES = (9, 4, 1, 12)

  def make(self, forget=(9, 10, 11, 12), **settings):
    return clients.streams(made(), dealt(*self.SIZES), np.asarray(forget),
                           **{'batch_size': 4, 'seed': 0, **settings})

  def test_shapes_and_types(self):
    streams = self.make()
    self.assertCountEqual(streams, ['train', 'retain', 'pair', 'probe'])
    for name, roles in (('train', {'clients': 3}), ('retain', {'clients': 3}),
                        ('pair', {'clients': 3, 'forget': 1}),
                        ('probe', {'clients': 3, 'forget': 1})):
      batch = streams[name](2)
      self.assertCountEqual(batch, roles)
      for role, steps in roles.items():  # as many as the client with 12 pairs, or 4, needs
        self.assertEqual(
            {field: (value.shape, np.dtype(value.dtype)) for field, value in batch[role].items()},
            {'image': ((4, steps, 4, 4, 4, 3), np.float32), 'text': ((4, steps, 4, 2), np.float32),
             'id': ((4, steps, 4), np.int32), 'mask': ((4, steps, 4), np.float32),
             'weight': ((4,), np.float32), 'part': ((4,), np.float32)})

  def test_fields_are_those_of_the_ids(self):
    source, batch = made(), self.make()['pair'](1)
    for fields in batch.values():
      for name in ('image', 'text'):
        np.testing.assert_array_equal(np.asarray(fields[name]), source.fields[name][fields['id']])
      np.testing.assert_array_equal(fields['image'][1:3], source.fields['image'][fields['id'][1:3]])

  def test_a_round_is_an_epoch_of_every_client(self):
    train = self.make()['train']
    parts = dealt(*self.SIZES)
    orders = []
    for number in range(2):
      fields = train(number)['clients']
      steps = [read(fields, client) for client in range(4)]
      self.assertEqual([[len(step) for step in one] for one in steps],
                       [[4, 4, 0], [4, 0, 0], [0, 0, 0], [4, 4, 4]])  # lone rows compare to nothing
      for client in (1, 3):
        np.testing.assert_array_equal(np.sort(np.concatenate(steps[client])), parts[client])
      self.assertLen(np.unique(np.concatenate(steps[0])), 8)
      orders.append(np.concatenate(steps[3]))
      # Padding is a client's own, too.
      for client in range(4):
        self.assertContainsSubset(np.unique(fields['id'][client]), parts[client])
    self.assertFalse(np.array_equal(*orders))

  def test_two_epochs_per_round(self):
    fields = self.make(local_epochs=2)['train'](0)['clients']
    self.assertEqual(fields['mask'].shape, (4, 6, 4))
    counts = np.unique(np.concatenate(read(fields, 3)), return_counts=True)[1]
    np.testing.assert_array_equal(counts, 2)
    self.assertEqual([len(step) for step in read(fields, 1)], [4, 4, 0, 0, 0, 0])

  def test_given_steps_walk_on_through_the_epochs(self):
    streams = self.make(local_steps=2, forget_steps=3)
    train = streams['train']
    rows = np.concatenate([np.concatenate(read(train(number)['clients'], 3))
                           for number in range(3)])  # 6 steps of 4 rows: two epochs of 12
    for epoch in (rows[:12], rows[12:]):
      np.testing.assert_array_equal(np.sort(epoch), dealt(*self.SIZES)[3])
    self.assertEqual([len(step) for step in read(train(0)['clients'], 1)], [4, 4])  # again and again
    self.assertEqual(streams['pair'](0)['forget']['mask'].shape, (4, 3, 4))

  def test_weights(self):
    batch = self.make()['pair'](0)
    np.testing.assert_array_equal(self.make()['train'](0)['clients']['weight'], [9, 4, 0, 12])
    np.testing.assert_array_equal(batch['clients']['weight'], [9, 0, 0, 12])
    np.testing.assert_array_equal(batch['forget']['weight'], [0, 4, 0, 0])
    np.testing.assert_array_equal(batch['clients']['part'], [1, 0, 0, 1])
    np.testing.assert_array_equal(batch['forget']['part'], [0, 1, 0, 0])

  @parameterized.parameters(((9, 10, 11, 12),), ((0, 3, 5, 15, 20),))
  def test_nothing_to_forget_is_read_but_by_its_role(self, forget):
    streams = self.make(forget)
    for number in range(3):
      for name in ('retain', 'pair'):
        fields = streams[name](number)['clients']
        self.assertEmpty(np.intersect1d(fields['id'], forget))  # under mask 0 neither
        if name == 'retain':
          same = streams['pair'](number)['clients']
          for field in ('id', 'mask', 'part', 'weight'):
            np.testing.assert_array_equal(fields[field], same[field])
      gone = streams['pair'](number)['forget']
      self.assertContainsSubset(np.unique(gone['id']), forget)
      for client, part in enumerate(dealt(*self.SIZES)):
        rows = np.concatenate(read(gone, client))
        own = np.intersect1d(part, forget)
        self.assertCountEqual(rows, own if len(own) > 1 else [])

  def test_other_clients_read_the_same_without_the_one_that_left(self):
    streams = self.make()
    train, retain = (streams[name](4)['clients'] for name in ('train', 'retain'))
    for client in (0, 3):
      np.testing.assert_array_equal(train['id'][client], retain['id'][client])
      np.testing.assert_array_equal(train['mask'][client], retain['mask'][client])
    self.assertFalse(retain['mask'][1].any())

  def test_nothing_to_forget(self):
    streams = self.make(())
    self.assertCountEqual(streams, ['train', 'retain'])
    train, retain = (streams[name](1)['clients'] for name in ('train', 'retain'))
    for field in ('id', 'mask', 'weight', 'part'):
      np.testing.assert_array_equal(train[field], retain[field])

  def test_participants(self):
    parts = dealt(*[4] * 10)
    make = lambda seed: clients.streams(made(), parts, parts[2], batch_size=4, seed=seed,
                                        participation=0.3)
    part = lambda stream, number: stream(number)['clients']['part']
    streams = make(0)
    drawn = np.stack([part(streams['train'], number) for number in range(60)])
    np.testing.assert_array_equal(drawn.sum(1), 3)
    self.assertTrue((drawn.sum(0) > 6).all())  # 18 expected of each
    kept = np.stack([part(streams['retain'], number) for number in range(60)])
    np.testing.assert_array_equal(kept.sum(1), 3)  # of nine
    self.assertFalse(kept[:, 2].any())
    np.testing.assert_array_equal(streams['pair'](7)['forget']['part'], np.eye(10)[2])
    again = np.stack([part(make(0)['train'], number) for number in range(60)])
    np.testing.assert_array_equal(drawn, again)
    other = np.stack([part(make(1)['train'], number) for number in range(60)])
    self.assertFalse(np.array_equal(drawn, other))
    one = clients.streams(made(), parts, parts[2], batch_size=4, seed=0, participation=0.01)
    self.assertEqual(part(one['train'], 0).sum(), 1)

  def test_pure_in_round_and_seed(self):
    one, two, other = self.make(), self.make(), self.make(seed=1)
    for number in (5, 0, 5):
      jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, one['pair'](number)),
                   jax.tree.map(np.asarray, two['pair'](number)))
    self.assertFalse(np.array_equal(one['train'](0)['clients']['id'],
                                    other['train'](0)['clients']['id']))

  def test_tokens_by_record_and_epoch(self):
    text = lambda ids, seed, epoch: np.stack([ids, np.full(4, seed), np.full(4, epoch)], 1)
    fields = self.make(seed=3, text=text)['train'](2)['clients']
    np.testing.assert_array_equal(fields['text'][..., 0], fields['id'])
    np.testing.assert_array_equal(fields['text'][..., 1], 3)
    self.assertTrue((fields['text'][3, ..., 2] == 2).all())  # an epoch in every round

  def test_augmentation_of_pictures(self):
    plain = self.make()['train'](0)['clients']
    shifted = self.make(augment=('shift:2',))['train'](0)['clients']
    np.testing.assert_array_equal(plain['id'], shifted['id'])
    moved, still = np.asarray(shifted['image']), np.asarray(plain['image'])
    self.assertEqual(moved.shape, still.shape)
    self.assertFalse(np.array_equal(moved, still))
    self.assertTrue(((moved == still) | (moved == 0)).all())  # what enters is 0

  def test_lies_on_a_mesh(self):
    batch = self.make()['pair'](0)
    put = sharding.shard_batch(batch, sharding.make_mesh(1))
    jax.tree.map(np.testing.assert_array_equal, put, jax.tree.map(np.asarray, batch))

  @parameterized.parameters(
      ({'batch_size': 1}, 'batch_size must be at least 2'),
      ({'local_steps': 0}, 'local_steps must be at least 1'),
      ({'forget_steps': 0}, 'forget_steps must be'), ({'local_epochs': 0}, 'local_epochs must be'),
      ({'participation': 0.0}, r'participation must lie in \(0, 1\]'),
      ({'participation': 1.5}, 'participation must lie'),
      ({'forget': (3, 39)}, 'no client has the records to forget 39$'),
      ({'forget': (3, 9)}, "role 'forget': no client has 2 pairs"),
      ({'forget': tuple(range(26))}, "role 'clients': no client has 2 pairs"),
      ({'augment': ('spin',)}, "no transform named 'spin'"))
  def test_bad_arguments(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      self.make(**changes)

  def test_features_cannot_be_augmented(self):
    with self.assertRaisesRegex(ValueError, 'features for pictures'):
      clients.streams(sources.get('factor_pairs'), dealt(4, 4), np.arange(4), batch_size=2, seed=0,
                      augment=('flip',))


if __name__ == '__main__':
  absltest.main()
