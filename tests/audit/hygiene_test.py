"""Overlaps, near-duplicates and memorisation."""

import types

from absl.testing import absltest
import numpy as np

from tests.audit import toy
from unlearn_jax.audit import hygiene
from unlearn_jax.audit import outputs


def fake(data, features=None):
  """The parts of `Outputs` that the checks of the data read."""
  hashes = {split: outputs.content_hashes(fields) for split, fields in data.items()}
  return types.SimpleNamespace(
      data=data, hashes=hashes, features=features, retrained=[0],
      size=lambda split: len(data[split]['label']))


def pictures(rng, size, pixels=20):
  coarse = rng.random((size, 5, 5, 1))
  smooth = coarse.repeat(pixels // 5, axis=1).repeat(pixels // 5, axis=2)
  return {'image': smooth.astype(np.float32), 'label': np.zeros(size, np.int32)}


class DifferenceHashTest(absltest.TestCase):

  def test_by_hand(self):
    ramp = np.tile(np.arange(13.0), (13, 1))[None, :, :, None]  # brighter to the right
    sides = {'right': ramp, 'left': -ramp, 'down': ramp.swapaxes(1, 2)}
    ones = {name: np.unpackbits(hygiene.difference_hash(image)).reshape(2, 144).mean(axis=1)
            for name, image in sides.items()}
    np.testing.assert_array_equal(ones['right'], [1, 0])
    np.testing.assert_array_equal(ones['left'], [0, 0])
    np.testing.assert_array_equal(ones['down'], [0, 1])
    self.assertFalse(hygiene.difference_hash(np.ones((1, 30, 14, 3))).any())

  def test_brightness_contrast_and_size_do_not_matter_and_content_does(self):
    rng = np.random.default_rng(0)
    images = pictures(rng, 30, pixels=40)['image']
    before = hygiene.difference_hash(images)
    changed = hygiene.difference_hash(images.repeat(3, axis=1).repeat(3, axis=2) * 0.5 + 0.2)
    own = np.diag(hygiene.hamming(before, changed))
    self.assertLessEqual(own.max(), hygiene.NEAR_BITS)
    others = hygiene.hamming(before, before)[~np.eye(30, dtype=bool)]
    self.assertGreater(np.mean(others > hygiene.NEAR_BITS), 0.99)

  def test_hamming_counts_bits(self):
    a = np.array([[0, 0, 0, 0, 0, 0, 0, 255]], np.uint8)
    b = np.array([[0] * 8, [1] + [0] * 6 + [254]], np.uint8)
    np.testing.assert_array_equal(hygiene.hamming(a, b), [[8, 2]])

  def test_refuses_what_is_no_picture(self):
    for shape in ((3, 20), (3, 12, 12, 1)):
      with self.assertRaisesRegex(ValueError, 'needs pictures'):
        hygiene.difference_hash(np.zeros(shape))


class DuplicatesTest(absltest.TestCase):

  def test_planted_overlaps_are_found(self):
    rng = np.random.default_rng(0)
    data = {split: pictures(rng, 12) | {'id': np.arange(12) + 100 * i}
            for i, split in enumerate(('forget', 'retain', 'unseen'))}
    out = fake(data)
    self.assertEqual(hygiene.overlaps(out), {'content': {}, 'ids': {}})
    data['retain']['image'][:2] = data['forget']['image'][3:5]
    data['unseen']['id'][0] = data['forget']['id'][0]
    self.assertEqual(hygiene.overlaps(fake(data)),
                     {'content': {'forget & retain': 2}, 'ids': {'forget & unseen': 1}})
    del data['unseen']['id']
    self.assertStartsWith(hygiene.overlaps(fake(data))['ids'], 'n/a: ')

  def test_planted_near_duplicates_are_found_by_hash(self):
    rng = np.random.default_rng(1)
    data = {split: pictures(rng, 25) | {'id': np.arange(25)} for split in
            ('forget', 'retain', 'unseen')}
    noisy = data['forget']['image'][7] * 0.9 + 0.05 + rng.normal(0, 0.002, (20, 20, 1))
    data['retain']['image'][3] = noisy
    found = hygiene.near_duplicates(fake(data))
    self.assertEqual(found['hash']['splits'], {'retain': {'records': 1, 'pairs': 1},
                                               'unseen': {'records': 0, 'pairs': 0}})
    example = found['hash']['examples'][0]
    self.assertEqual((example['forget'], example['split'], example['other']), ('7', 'retain', '3'))
    self.assertEqual(hygiene.overlaps(fake(data))['content'], {})  # no exact copy
    self.assertStartsWith(found['embedding'], 'n/a: ')

  def test_planted_near_duplicates_are_found_by_embedding(self):
    rng = np.random.default_rng(2)
    data = {split: {'point': rng.normal(size=(30, 4)), 'label': np.zeros(30, int),
                    'id': np.arange(30)} for split in ('forget', 'retain', 'test')}
    features = {split: rng.normal(size=(1, 30, 16)) for split in data}
    features['test'][0, 4] = features['forget'][0, 9] * 1.001
    found = hygiene.near_duplicates(fake(data, features))
    self.assertEqual(found['embedding']['splits'], {'retain': {'records': 0, 'pairs': 0},
                                                    'test': {'records': 1, 'pairs': 1}})
    self.assertEqual(found['embedding']['examples'][0]['other'], '4')
    self.assertStartsWith(found['hash'], 'n/a: ')


class MemorisationTest(absltest.TestCase):

  def test_planted_random_labels_are_memorised(self):
    task = toy.make(0)
    variables = {'original': task.original, 'unlearned/0': task.other[0],
                 **{f'retrained/{i}': model for i, model in enumerate(task.retrained[:5])}}
    out = outputs.Outputs(toy.apply, variables, task.data, resamples=2, seed=0)
    found = hygiene.memorisation(out)
    self.assertGreater(found['mean'], 0.2)
    self.assertGreater(found['high'], 0.1)
    self.assertLen(found['records'], 60)
    margins = [record['margin'] for record in found['records']]
    self.assertEqual(margins, sorted(margins, reverse=True))
    same = outputs.Outputs(toy.apply, variables | {'original': task.retrained[5]}, task.data,
                           resamples=2, seed=0)
    self.assertLess(abs(hygiene.memorisation(same)['mean']), 0.1)


if __name__ == '__main__':
  absltest.main()
