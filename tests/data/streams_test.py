"""Tests for the streams."""

import dataclasses
import threading

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from unlearn_jax.data import sources
from unlearn_jax.data import splits
from unlearn_jax.data import streams

SIZES = {'retain': 4, 'forget': 2, 'validation': 1, 'test': 1, 'unseen': 2}


def epoch_ids(stream, role, epoch, steps):
  """Ids that count in an epoch, in order."""
  batches = [stream(epoch * steps + k)[role] for k in range(steps)]
  return np.concatenate([batch['id'][batch['mask'] == 1] for batch in batches])


class StreamsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.source = sources.get('synthetic', label_noise=0.1)
    self.splits = splits.by_identity(self.source, sizes=SIZES, seed=0)

  @parameterized.parameters((1, 4), (3, 8), (16, 16), (17, 16), (31, 8), (64, 7), (5, 1))
  def test_every_record_once_per_epoch(self, count, batch_size):
    indices = np.arange(160)[::-1][:count]
    stream = streams.single(self.source, indices, 'forget', batch_size=batch_size, seed=0)
    steps = streams.steps_per_epoch(count, batch_size)
    self.assertEqual(steps, int(np.ceil(count / batch_size)))
    orders = [epoch_ids(stream, 'forget', epoch, steps) for epoch in range(3)]
    for order in orders:
      np.testing.assert_array_equal(np.sort(order), np.sort(indices))
    if count > 4:
      self.assertFalse(np.array_equal(orders[0], orders[1]))
      self.assertFalse(np.array_equal(orders[1], orders[2]))
    last = stream(steps - 1)['forget']
    self.assertLen(last['id'], batch_size)
    padded = last['id'][last['mask'] == 0]  # from the start of the same permutation, over and over
    np.testing.assert_array_equal(padded, np.resize(orders[0], len(padded)))

  def test_fields(self):
    stream = streams.single(self.source, self.splits.indices['retain'], 'retain', batch_size=8,
                            seed=0)
    batch = stream(0)['retain']
    self.assertEqual({name: (value.dtype, value.shape) for name, value in batch.items()}, {
        'image': (np.float32, (8, 8, 8, 1)), 'label': (np.int32, (8,)),
        'id': (np.int32, (8,)), 'mask': (np.float32, (8,))})
    np.testing.assert_array_equal(batch['image'], self.source.fields['image'][batch['id']])
    np.testing.assert_array_equal(batch['label'], self.source.fields['label'][batch['id']])

  def test_attributes_and_further_fields(self):
    fields = {**self.source.fields, 'label': np.eye(4)[self.source.fields['label']],
              'age': np.arange(160), 'name': np.full(160, 'x')}
    source = dataclasses.replace(self.source, fields=fields)
    batch = streams.single(source, [1, 2], 'forget', batch_size=2, seed=0)(0)['forget']
    self.assertEqual((batch['label'].dtype, batch['label'].shape), (np.float32, (2, 4)))
    np.testing.assert_array_equal(batch['age'], batch['id'])
    self.assertNotIn('name', batch)

  @parameterized.parameters('pair', 'retain', 'forget', 'train')
  def test_pure_in_step(self, name):
    make = lambda: streams.make(self.source, self.splits, batch_size=10, forget_batch_size=6,
                                seed=3, augment=('shift:2', 'flip'))[name]
    one, two = make(), make()
    steps = np.random.default_rng(0).permutation(60)
    forward = {step: one(step) for step in range(60)}
    for step in steps:
      for role, fields in two(np.int64(step)).items():
        for field, value in fields.items():
          np.testing.assert_array_equal(value, forward[step][role][field])

  def test_pair_is_the_singles_side_by_side(self):
    made = streams.make(self.source, self.splits, batch_size=10, forget_batch_size=6, seed=3)
    for step in (0, 5, 6, 7, 100):
      pair = made['pair'](step)
      self.assertEqual(set(pair), {'retain', 'forget'})
      np.testing.assert_array_equal(pair['retain']['id'], made['retain'](step)['retain']['id'])
      np.testing.assert_array_equal(pair['forget']['id'], made['forget'](step)['forget']['id'])
      self.assertLen(pair['retain']['id'], 10)
      self.assertLen(pair['forget']['id'], 6)
    # Forget is cycled through its own epochs of ceil(32 / 6) = 6 steps; retain's have 7.
    for epoch in range(3):
      ids = epoch_ids(made['pair'], 'forget', epoch, 6)
      np.testing.assert_array_equal(np.sort(ids), self.splits.indices['forget'])
    default = streams.pair(self.source, self.splits, batch_size=10, seed=3)(0)
    self.assertLen(default['forget']['id'], 10)

  def test_repeated_keeps_a_forget_batch_and_draws_retain_batches(self):
    feed = streams.make(self.source, self.splits, batch_size=8, forget_batch_size=4, seed=3)
    for step in range(9):
      got = feed['pair/3'](step)
      wanted = {'forget': feed['forget'](step // 3), 'retain': feed['retain'](step)}
      for role in ('forget', 'retain'):
        for name, value in wanted[role][role].items():
          np.testing.assert_array_equal(got[role][name], value)
          np.testing.assert_array_equal(feed['pair/1'](step)[role][name],
                                        feed['pair'](step)[role][name])

  def test_train_is_both(self):
    stream = streams.make(self.source, self.splits, batch_size=10, seed=0)['train']
    both = np.concatenate([self.splits.indices['retain'], self.splits.indices['forget']])
    np.testing.assert_array_equal(np.sort(epoch_ids(stream, 'train', 0, 10)), np.sort(both))

  def test_seed_and_role_change_the_order(self):
    orders = [epoch_ids(streams.single(self.source, np.arange(50), role, batch_size=10, seed=seed),
                        role, 0, 5).tobytes() for seed in (0, 1) for role in ('retain', 'forget')]
    self.assertLen(set(orders), 4)

  def test_augmentation_depends_on_record_and_epoch_only(self):
    def pictures(batch_size, epoch):
      stream = streams.single(self.source, np.arange(24), 'retain', batch_size=batch_size, seed=0,
                              augment=('shift:2',))
      steps = streams.steps_per_epoch(24, batch_size)
      found = {}
      for step in range(epoch * steps, (epoch + 1) * steps):
        batch = stream(step)['retain']
        for record, image in zip(batch['id'], batch['image']):
          if record in found:  # padding repeats a record with the same augmentation
            np.testing.assert_array_equal(found[record], image)
          found[record] = image
      return np.stack([found[record] for record in range(24)])

    np.testing.assert_array_equal(pictures(24, 1), pictures(7, 1))
    self.assertFalse(np.array_equal(pictures(24, 0), pictures(24, 1)))
    self.assertFalse(np.array_equal(pictures(24, 0), self.source.fields['image'][:24]))

  def test_pictures_held_as_bytes_become_floats_a_batch_at_a_time(self):
    """Whole sets as float32 would need four times their memory."""
    read = []

    class Counted(sources.Pictures):

      def __getitem__(self, index):
        value = super().__getitem__(index)
        read.append(value.size)
        return value

    values = np.random.default_rng(0).integers(0, 256, (160, 8, 8, 3), np.uint8)
    source = dataclasses.replace(self.source, fields={
        **self.source.fields, 'image': Counted(values),
        'partition': np.repeat(('train', 'test'), 80)})
    made = streams.make(source, self.splits, batch_size=10, seed=0, augment=('flip',))
    plain = streams.make(source, self.splits, batch_size=10, seed=0)
    for name, stream in made.items():
      for step in range(5):
        for role, batch in stream(step).items():
          self.assertEqual(batch['image'].dtype, np.float32)
          self.assertNotIn('partition', batch)
          np.testing.assert_array_equal(plain[name](step)[role]['image'],
                                        values[batch['id']] / np.float32(255))
    self.assertEqual(set(read), {10 * 8 * 8 * 3})

  def test_caller_cannot_change_it(self):
    indices = np.arange(10)
    stream = streams.single(self.source, indices, 'retain', batch_size=10, seed=0)
    before = stream(3)['retain']
    before['image'][:] = 7
    indices[:] = 0
    for step in (3, 4):  # an epoch that was read before the change, and one that was not
      again = stream(step)['retain']
      np.testing.assert_array_equal(np.sort(again['id']), np.arange(10))
      self.assertLessEqual(again['image'].max(), 1)

  def test_bad_arguments(self):
    for indices, batch_size, message in (
        ([], 2, 'no records'), ([1], 0, 'at least 1'), ([160], 2, 'outside the 160'),
        ([-1], 2, 'outside the 160')):
      with self.assertRaisesRegex(ValueError, message):
        streams.single(self.source, indices, 'forget', batch_size=batch_size, seed=0)
    with self.assertRaisesRegex(ValueError, 'start at 0'):
      streams.single(self.source, [1], 'forget', batch_size=1, seed=0)(-1)
    with self.assertRaisesRegex(ValueError, 'did you mean'):
      streams.single(self.source, [1], 'forget', batch_size=1, seed=0, augment=('flips',))


class PrefetchTest(absltest.TestCase):

  def threads(self):
    return [thread for thread in threading.enumerate() if thread.name == 'prefetch']

  def test_in_order(self):
    self.assertEqual(list(streams.prefetch(lambda step: {'step': step}, 3, 50)),
                     [{'step': step} for step in range(3, 50)])
    self.assertEmpty(self.threads())
    self.assertEmpty(list(streams.prefetch(lambda step: step, 3, 3)))

  def test_runs_ahead_within_bounds(self):
    made, third = [], threading.Event()

    def stream(step):
      made.append(step)
      if step == 3:
        third.set()
      return step

    batches = streams.prefetch(stream, 0, 100, size=2)
    self.assertEmpty(made)  # nothing runs before the first batch is asked for
    self.assertEqual(next(batches), 0)
    self.assertTrue(third.wait(10))  # 1 and 2 wait, 3 is in the producer's hands
    self.assertLessEqual(len(made), 4)
    batches.close()
    self.assertEmpty(self.threads())

  def test_exception_arrives_in_its_place(self):
    def stream(step):
      if step == 4:
        raise KeyError('bad record')
      return step

    seen = []
    with self.assertRaisesRegex(KeyError, 'bad record'):
      for batch in streams.prefetch(stream, 0, 10):
        seen.append(batch)
    self.assertEqual(seen, [0, 1, 2, 3])
    self.assertEmpty(self.threads())

  def test_early_stop_leaks_no_thread(self):
    for batch in streams.prefetch(lambda step: step, 0, 10**9):
      if batch == 5:
        break
    del batch
    self.assertEmpty(self.threads())

  def test_size(self):
    with self.assertRaisesRegex(ValueError, 'at least 1'):
      streams.prefetch(lambda step: step, 0, 3, size=0)


if __name__ == '__main__':
  absltest.main()
