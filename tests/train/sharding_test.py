"""Tests for how batches lie on the mesh, and what a host reads of them."""

import threading
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from unlearn_jax.data import fields
from unlearn_jax.data import pairs
from unlearn_jax.data import sources
from unlearn_jax.train import sharding

COUNT = 40


class Counted(sources.Pictures):
  """Remembers which records were read, and by how many at a time."""

  def __init__(self, values):
    super().__init__(values)
    self.read, self.lock = [], threading.Lock()

  def __getitem__(self, index):
    with self.lock:
      self.read.append(np.arange(len(self))[index].tolist())
    return super().__getitem__(index)


class ShardBatchTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    values = np.random.default_rng(0).integers(0, 256, (COUNT, 6, 6, 3), np.uint8)
    self.image = Counted(values)
    picture = np.arange(COUNT, dtype=np.int32)
    source = sources.Source('pairs', {
        'image': self.image, 'picture': picture, 'caption': np.char.add('c', picture.astype(str))},
        picture.astype(str), 0, '')
    self.stream = pairs.stream(
        source, np.arange(COUNT), batch_size=16, seed=0, augment=('crop:2',),
        texts={'text': lambda ids, seed, epoch: ids[:, None].astype(np.int32)})

  @parameterized.parameters(1, 2, 8)
  def test_every_device_reads_its_own_rows_once(self, devices):
    batch = self.stream(1)
    placed = sharding.shard_batch(batch, sharding.make_mesh(devices))['pairs']
    ids = batch['pairs']['id'].reshape(devices, -1).tolist()
    self.assertCountEqual(self.image.read, ids)
    self.assertLen(placed['image'].sharding.device_set, devices)
    for name, value in batch['pairs'].items():
      np.testing.assert_array_equal(placed[name], np.asarray(value))

  def test_a_host_decodes_nothing_for_the_devices_of_others(self):
    """A host of a cluster is asked for the shards of its own devices only: here the last four."""
    batch, mesh = self.stream(1), sharding.make_mesh(8)
    expected = np.asarray(batch['pairs']['image'])
    self.image.read.clear()
    mine, made = mesh.devices[4:], jax.make_array_from_callback

    def own_devices_only(shape, placed, callback):
      index = placed.addressable_devices_indices_map(shape)
      own = {device: callback(index[device]) for device in mine}
      zeros = np.zeros((shape[0] // 8, *shape[1:]), np.float32)
      return jax.make_array_from_single_device_arrays(shape, placed, [
          jax.device_put(own.get(device, zeros.astype(own[mine[0]].dtype)), device)
          for device in index])

    with mock.patch.object(jax, 'process_count', lambda: 2), \
         mock.patch.object(jax, 'make_array_from_callback', own_devices_only):
      placed = sharding.shard_batch(batch, mesh)['pairs']
    self.assertIs(jax.make_array_from_callback, made)
    self.assertCountEqual(np.concatenate(self.image.read), batch['pairs']['id'][8:])
    np.testing.assert_array_equal(placed['image'][8:], expected[8:])
    np.testing.assert_array_equal(placed['text'][8:], batch['pairs']['text'][8:])
    self.assertEqual(placed['image'][:8].max(), 0)

  def test_an_uneven_batch_is_refused_before_anything_is_decoded(self):
    lazy = fields.Lazy((6, 2), np.float32, lambda rows: self.fail('read'))
    with self.assertRaisesRegex(ValueError, 'pairs/image has 6 rows, which 8 devices'):
      sharding.shard_batch({'pairs': {'image': lazy}}, sharding.make_mesh(8))

  def test_one_compiled_step_reads_a_placed_batch(self):
    placed = sharding.shard_batch(self.stream(0), sharding.make_mesh(8))
    mean = jax.jit(lambda batch: batch['pairs']['image'].mean())(placed)
    np.testing.assert_allclose(mean, np.asarray(self.stream(0)['pairs']['image']).mean(), rtol=1e-6)


if __name__ == '__main__':
  absltest.main()
