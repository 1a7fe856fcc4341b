"""What is taken out of a picture, and what is left to see."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from unlearn_jax.data import holes


def drawn(spec, grid, ids=range(8), seed=3, step=0):
  return holes.draw(spec, grid, seed=seed, ids=np.asarray(ids), step=step)


class HoleTest(parameterized.TestCase):

  @parameterized.parameters(  # rows (and columns) that the paper's centre crops take of 14 x 14
      ('centre:8', (14, 14), 3, 10, 132), ('centre:4', (14, 14), 5, 8, 180),
      ('centre:8', (16, 16), 4, 11, 192),  # of pictures of 256 pixels: a quarter of the patches
      ('centre:4', (7, 7), 1, 4, 33))  # an odd rest: one patch more right and below
  def test_centre(self, spec, grid, first, last, left):
    removed = holes.hole(spec, grid)
    rows, columns = np.nonzero(removed)
    for places in (rows, columns):
      self.assertEqual((places.min(), places.max()), (first, last))
    seen = holes.visible(removed)
    self.assertEqual((seen.dtype, seen.shape), (np.int32, (left,)))
    self.assertEqual(removed.sum() + left, grid[0] * grid[1])

  @parameterized.parameters(
      ('left:0.25', [[1, 0, 0, 0]] * 2), ('right:0.5', [[0, 0, 1, 1]] * 2),
      ('up:1/2', [[1] * 4, [0] * 4]), ('down:0.5', [[0] * 4, [1] * 4]))
  def test_strips(self, spec, expected):
    np.testing.assert_array_equal(holes.hole(spec, (2, 4)), np.asarray(expected, bool))

  def test_outpaint_leaves_the_centre(self):
    np.testing.assert_array_equal(holes.hole('outpaint:0.5', (16, 16)),
                                  ~holes.hole('centre:8', (16, 16)))
    np.testing.assert_array_equal(holes.hole('outpaint:6/14', (14, 14)),
                                  ~holes.hole('centre:8', (14, 14)))
    np.testing.assert_array_equal(holes.visible(holes.hole('outpaint:0.5', (4, 8))),
                                  [10, 11, 12, 13, 18, 19, 20, 21])

  def test_pixels(self):
    removed = holes.hole('right:0.5', (2, 4))
    found = holes.pixels(removed, 3)
    self.assertEqual(found.shape, (6, 12))
    self.assertTrue(found[:, 6:].all() and not found[:, :6].any())
    np.testing.assert_array_equal(found[::3, ::3], removed)

  @parameterized.parameters(
      ('center:4', (8, 8), "did you mean 'centre'"), ('centre', (8, 8), 'needs a number'),
      ('centre:x', (8, 8), 'needs a number'), ('right:1/0', (8, 8), 'needs a number'),
      ('centre:2.5', (8, 8), 'whole number'), ('centre:0', (8, 8), 'at least 1'),
      ('centre:9', (8, 8), 'leaves nothing'), ('centre:8', (8, 8), 'leaves nothing'),
      ('centre:5', (4, 8), 'leaves nothing'),
      ('left:0', (8, 8), r'in \(0, 1\)'), ('up:1', (8, 8), r'in \(0, 1\)'),
      ('random:1.5', (8, 8), r'in \(0, 1\)'), ('outpaint:-0.5', (8, 8), r'in \(0, 1\)'),
      ('random:nan', (8, 8), 'needs a number'),
      ('right:0.3', (8, 8), 'strip of 2.4 of 8 patches.*1/8'),
      ('outpaint:0.5', (6, 6), 'strip of 1.5 of 6'), ('down:0.01', (8, 8), '0.08 of 8'),
      ('random:0.5', (8, 8), 'another hole for every picture'),
      ('left:0.5', (0, 8), 'at least one row'))
  def test_bad_holes(self, spec, grid, message):
    with self.assertRaisesRegex(ValueError, message):
      holes.hole(spec, grid)


class DrawTest(parameterized.TestCase):

  @parameterized.parameters((0.75, (14, 14), 49), (0.25, (14, 14), 147), (0.75, (8, 8), 16),
                            (64 / 196, (14, 14), 132), (16 / 196, (14, 14), 180),
                            (0.9, (10, 10), 9))  # 100 * (1 - 0.9) is below 10 in floating point
  def test_random_keeps_as_many_as_mae(self, ratio, grid, kept):
    seen = drawn(f'random:{ratio!r}', grid)
    self.assertEqual((seen.dtype, seen.shape), (np.int32, (8, kept)))
    self.assertTrue((np.diff(seen, axis=1) > 0).all())  # ascending, no patch twice
    self.assertTrue((seen >= 0).all() and (seen < grid[0] * grid[1]).all())

  def test_random_is_a_function_of_seed_record_and_step(self):
    one = drawn('random:0.5', (8, 8), [5, 9, 2])
    np.testing.assert_array_equal(one[[2, 1]], drawn('random:0.5', (8, 8), [2, 9]))
    for other in (drawn('random:0.5', (8, 8), [5, 9, 2], seed=4),
                  drawn('random:0.5', (8, 8), [5, 9, 2], step=1),
                  drawn('random:0.5', (8, 8), [6, 10, 3])):
      self.assertFalse((one == other).all(axis=1).any())

  def test_random_is_uniform(self):
    seen = drawn('random:0.75', (4, 4), range(4000))
    share = np.bincount(seen.ravel(), minlength=16) / 4000
    np.testing.assert_allclose(share, 0.25, atol=4 * np.sqrt(0.25 * 0.75 / 4000))
    pairs = np.mean((seen == 0).any(axis=1) & (seen == 1).any(axis=1))
    self.assertAlmostEqual(pairs, 4 * 3 / (16 * 15), delta=4 * np.sqrt(0.05 / 4000))

  def test_other_holes_are_the_same_for_all(self):
    seen = drawn('centre:2', (4, 4))
    np.testing.assert_array_equal(seen, np.tile(holes.visible(holes.hole('centre:2', (4, 4))),
                                                (8, 1)))

  def test_random_leaves_some(self):
    self.assertEqual(drawn('random:0.9', (4, 4)).shape, (8, 1))
    with self.assertRaisesRegex(ValueError, 'leaves 0 of the 16 patches'):
      drawn('random:0.95', (4, 4))

  def test_check(self):
    self.assertEqual(holes.check('random:0.75', (224, 224), 16), (14, 14))
    self.assertEqual(holes.check('right:0.5', (28, 56), 7), (4, 8))
    with self.assertRaisesRegex(ValueError, 'patches of 8 pixels do not divide pictures of 28 x 32'):
      holes.check('random:0.75', (28, 32), 8)
    with self.assertRaisesRegex(ValueError, 'leaves nothing'):
      holes.check('centre:8', (32, 32), 4)


if __name__ == '__main__':
  absltest.main()
