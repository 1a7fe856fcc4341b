"""Tests for fields that are made when they are read."""

import threading

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import Image

from unlearn_jax.data import fields
from unlearn_jax.data import sources
from unlearn_jax.data.builders import pair_fixtures

VALUES = np.random.default_rng(0).random((7, 4, 3), np.float32)
INDICES = (3, -1, np.int64(2), slice(1, 6, 2), slice(None), [5, 0, 5], np.asarray([-7, 6]),
           np.arange(7) % 3 == 0, np.zeros(7, bool), [], (slice(2, 5), 1), (4, slice(1, 3), 0),
           (slice(None), slice(0, 2), slice(1, None)))


def encoded(count=6):
  """Pictures of different sizes, their files, and which were read."""
  files = [pair_fixtures.encoded(image, 'PNG') for image, _, _ in pair_fixtures.things(count)]
  read, lock = [], threading.Lock()

  def one(row):
    with lock:
      read.append(row)
    return files[row]

  made = fields.Encoded(one, count, 16, name=lambda row: f'file {row}', content=b'six')
  return made, files, read


class LazyTest(parameterized.TestCase):

  @parameterized.parameters(*[[index] for index in INDICES])
  def test_indexes_like_numpy(self, index):
    lazy = fields.Lazy(VALUES.shape, np.float32, lambda rows: VALUES[rows])
    np.testing.assert_array_equal(lazy[index], VALUES[index])
    self.assertEqual(lazy[index].shape, VALUES[index].shape)

  def test_makes_the_rows_that_are_asked_for(self):
    asked = []
    lazy = fields.Lazy(VALUES.shape, np.float32, lambda rows: asked.append(rows) or VALUES[rows])
    self.assertLen(lazy, 7)
    self.assertEmpty(asked)
    lazy[2:4], lazy[-1]
    self.assertEqual([rows.tolist() for rows in asked], [[2, 3], [6]])
    np.testing.assert_array_equal(np.asarray(lazy), VALUES)
    self.assertEqual(np.asarray(lazy, np.float64).dtype, np.float64)
    with self.assertRaisesRegex(ValueError, 'always a copy'):
      np.array(lazy, copy=False)

  def test_wrong_rows(self):
    lazy = fields.Lazy(VALUES.shape, np.float32, lambda rows: VALUES[rows])
    for index in (7, -8, [0, 7], 1.5, Ellipsis, np.ones(6, bool), np.zeros((2, 2), int)):
      with self.assertRaisesRegex(IndexError, 'integers below 7'):
        _ = lazy[index]


class RowsTest(absltest.TestCase):

  def test_shares_the_rows_of_its_base(self):
    values = np.random.default_rng(0).integers(0, 256, (4, 5, 5, 3), np.uint8)
    row = np.asarray([2, 2, 0, 3, 2])
    rows = fields.Rows(sources.Pictures(values), row)
    expected = (values / np.float32(255))[row]
    self.assertEqual((rows.shape, rows.dtype), ((5, 5, 5, 3), np.float32))
    np.testing.assert_array_equal(rows[:], expected)
    part = sources.take(rows, np.asarray([4, 2]))
    self.assertIs(part.base, rows.base)
    np.testing.assert_array_equal(part[:], expected[[4, 2]])
    self.assertIsNone(rows.digest())

  def test_decodes_a_picture_once(self):
    base, _, read = encoded()
    rows = fields.Rows(base, np.asarray([1, 1, 1, 5]))
    self.assertEqual(rows[:].shape, (4, 16, 16, 3))
    self.assertCountEqual(read, [1, 5])
    self.assertNotEqual(rows.digest(), fields.Rows(base, np.asarray([1, 1, 5, 5])).digest())

  def test_hash_of_a_source_does_not_depend_on_rows(self):
    source = sources.get('synthetic')
    image = source.fields['image']
    held = sources.Source('a', {**source.fields, 'image': fields.Rows(image, np.arange(160))},
                          source.identity, 4, '')
    self.assertEqual(held.content_hash(), source.content_hash())


class EncodedTest(parameterized.TestCase):

  def test_decodes_what_is_asked_for(self):
    made, files, read = encoded()
    out = made[[4, 1]]
    self.assertCountEqual(read, [4, 1])
    self.assertEqual((out.shape, out.dtype), ((2, 16, 16, 3), np.float32))
    for one, row in zip(out, (4, 1)):
      np.testing.assert_array_equal(one, fields.square(files[row], 16) / np.float32(255))
    part = made.take(np.asarray([5, 4]))
    np.testing.assert_array_equal(part[1], out[0])
    self.assertEqual(part.name(0), 'file 5')
    digests = {made.digest(), part.digest(), made.take(np.asarray([4, 5])).digest(),
               fields.Encoded(made.read, 6, 8, name=made.name, content=b'six').digest()}
    self.assertLen(digests, 4)

  def test_clip_evaluation_transform(self):
    # 30 wide, 20 high: the shorter side to 10, the central 10 of 15 columns, round(2.5) = 2.
    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    expected = np.asarray(image.resize((15, 10), Image.Resampling.BICUBIC))[:, 2:12]
    np.testing.assert_array_equal(fields.square(pair_fixtures.encoded(image, 'PNG'), 10), expected)
    # 21 high, 10 wide, to 5: 5 wide and int(10.5) = 10 high, rows 2 to 6.
    image = image.crop((0, 0, 10, 20)).resize((10, 21))
    expected = np.asarray(image.resize((5, 10), Image.Resampling.BICUBIC))[2:7]
    np.testing.assert_array_equal(fields.square(pair_fixtures.encoded(image, 'PNG'), 5), expected)

  @parameterized.parameters('L', 'RGBA', 'P', 'CMYK', '1')
  def test_any_mode_becomes_rgb(self, mode):
    kind = 'TIFF' if mode == 'CMYK' else 'PNG'
    file = pair_fixtures.encoded(Image.new(mode, (12, 9)), kind)
    self.assertEqual(fields.square(file, 8).shape, (8, 8, 3))

  @parameterized.parameters('JPEG', 'PNG', 'GIF', 'WEBP', 'BMP', 'TIFF')
  def test_broken_files_are_named(self, kind):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    file = pair_fixtures.encoded(Image.fromarray(noise), kind)
    for broken in (b'', b'no picture', file[:20], file[:len(file) // 2]):
      with self.assertRaises(fields.BROKEN):
        fields.decode(broken)
      made = fields.Encoded(lambda row: broken, 3, 8, name=lambda row: f'shard: {row}', content=b'')  # pylint: disable=cell-var-from-loop
      with self.assertRaisesRegex(ValueError, 'shard: 2 is no complete picture'):
        _ = made[2]
    fields.decode(file)


if __name__ == '__main__':
  absltest.main()
