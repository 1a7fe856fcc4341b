"""Tests for the augmentations."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import Image
from scipy import ndimage

from unlearn_jax.data import transforms

IMAGES = np.random.default_rng(0).random((64, 6, 5, 3), np.float32) * 0.75 + 0.25
INDEX = np.arange(100, 164)


class TransformsTest(parameterized.TestCase):

  @parameterized.parameters('shift:2', 'crop:2', 'flip', 'affine:20,20,0.7,1.3', 'color:0.5',
                            'random_resized_crop:0.3,0.8')
  def test_keyed_by_record(self, name):
    transform = transforms.parse((name,))
    whole = transform(IMAGES, 0, INDEX, 3)
    self.assertEqual((whole.shape, whole.dtype), (IMAGES.shape, np.float32))
    self.assertFalse(np.array_equal(whole, IMAGES))
    order = np.random.default_rng(1).permutation(64)[:7]  # other batch, other place
    np.testing.assert_array_equal(transform(IMAGES[order], 0, INDEX[order], 3), whole[order])
    for other in (transform(IMAGES, 1, INDEX, 3), transform(IMAGES, 0, INDEX, 4),
                  transform(IMAGES, 0, INDEX + 1, 3)):
      self.assertFalse(np.array_equal(other, whole))

  @parameterized.parameters(('shift', 'constant'), ('crop', 'reflect'))
  def test_every_place_is_drawn(self, name, mode):
    """Every result is one of the 25 windows of the padded picture, and all of them occur."""
    seen = set()
    for epoch in range(8):
      out = transforms.parse((f'{name}:2',))(IMAGES, 0, INDEX, epoch)
      for image, one in zip(IMAGES, out):
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode)
        places = [(y, x) for y in range(5) for x in range(5)
                  if np.array_equal(padded[y:y + 6, x:x + 5], one)]
        self.assertLen(places, 1)
        seen.add(places[0])
    self.assertLen(seen, 25)

  def test_flip_half(self):
    out = transforms.flip()(IMAGES, 0, INDEX, 0)
    same = [np.array_equal(a, b) for a, b in zip(IMAGES, out)]
    mirrored = [np.array_equal(a[:, ::-1], b) for a, b in zip(IMAGES, out)]
    self.assertEqual(sum(same) + sum(mirrored), 64)
    self.assertBetween(sum(mirrored), 12, 52)  # five standard deviations

  def test_composition_is_in_order(self):
    both = transforms.parse(('shift:1', 'flip'))(IMAGES, 0, INDEX, 2)
    by_hand = transforms.flip()(transforms.shift(1)(IMAGES, 0, INDEX, 2), 0, INDEX, 2)
    np.testing.assert_array_equal(both, by_hand)
    np.testing.assert_array_equal(transforms.parse(())(IMAGES, 0, INDEX, 2), IMAGES)

  def test_input_is_left_alone(self):
    before = IMAGES.copy()
    transforms.parse(('shift:2', 'crop:1', 'flip', 'affine:9,9,0.5,2', 'color:1',
                      'random_resized_crop:0.5,1'))(
        IMAGES, 0, INDEX, 0)
    np.testing.assert_array_equal(IMAGES, before)

  @parameterized.parameters(
      (('flp',), "did you mean 'flip'"), (('shift',), "as in 'shift:2'"),
      (('crop:-1',), 'positive number'), (('shift:0',), 'positive number'),
      (('flip:3',), 'takes no argument'), ('flip', "write \\('flip',\\)"),
      (('affine:10,10',), '4 numbers, as in'), (('affine',), '4 numbers'),
      (('affine:10,x,1,1',), '4 numbers'), (('affine:10,90,1,1',), 'a shear in'),
      (('affine:-1,0,1,1',), 'a rotation of at least 0'), (('affine:0,0,1.2,1',), 'low <= high'),
      (('affine:0,0,0,1',), '0 < low'), (('affine:nan,0,1,1',), 'a rotation'),
      (('color:-0.1',), 'at least 0'), (('color:inf',), 'at least 0'),
      (('color:1,2',), 'a number'))
  def test_bad_names(self, names, message):
    with self.assertRaisesRegex(ValueError, message):
      transforms.parse(names)

  def test_crop_larger_than_the_picture(self):
    with self.assertRaisesRegex(ValueError, 'crop:5 needs pictures larger'):
      transforms.crop(5)(IMAGES, 0, INDEX, 0)


class AffineTest(parameterized.TestCase):

  def fixed(self, images, *, rotation=0.0, shear=0.0, scale=1.0):
    """The transform with its draws replaced by the named values."""
    values = {'rotation': rotation, 'shear': shear, 'scale': scale}

    def uniform(low, high, seed, kind, name, epoch, index):
      del low, high, seed, kind, epoch
      return np.full(len(index), values[name])

    with mock.patch.object(transforms, '_uniform', uniform):
      return transforms.affine(90, 45, 0.5, 2)(images, 0, np.arange(len(images)), 0)

  def test_no_strength_is_the_identity(self):
    np.testing.assert_array_equal(transforms.affine(0, 0, 1, 1)(IMAGES, 0, INDEX, 0), IMAGES)

  @parameterized.parameters(5, 6)
  def test_a_quarter_turn(self, side):
    """R(90 degrees) takes (x, y) to (-y, x), and y points down: clockwise."""
    images = np.random.default_rng(0).random((3, side, side, 2), np.float32)
    np.testing.assert_allclose(self.fixed(images, rotation=90.0), np.rot90(images, -1, (1, 2)),
                               atol=1e-6)

  def test_enlarging_twice(self):
    """Places of a row of four at -.75, -.25, .25, .75 from the centre, where pixels stand at .5."""
    row = np.asarray([0.0, 1.0, 4.0, 9.0], np.float32)
    out = self.fixed(np.broadcast_to(row[None, None, :, None], (1, 4, 4, 1)), scale=2.0)
    expected = np.interp([-0.75, -0.25, 0.25, 0.75], [-1.5, -0.5, 0.5, 1.5], row)
    np.testing.assert_allclose(out[0, :, :, 0], np.tile(expected, (4, 1)), rtol=1e-6)

  def test_shrinking_fills_with_zero(self):
    out = self.fixed(np.ones((1, 8, 8, 1), np.float32), scale=0.5)[0, :, :, 0]
    inside = np.abs(2 * (np.arange(8) - 3.5))  # distance from the centre in the source
    weight = np.clip(4.5 - inside, 0, 1)  # the border fades over one pixel
    np.testing.assert_allclose(out, weight[:, None] * weight[None], atol=1e-6)

  def test_shear_moves_rows_along_x(self):
    images = np.random.default_rng(0).random((1, 5, 5, 1), np.float32)
    out = self.fixed(images, shear=45.0)
    for row in range(5):  # H takes x to x - y: lower rows move to the left
      moved = np.zeros(5, np.float32)
      offset = row - 2
      for column in range(5):
        if 0 <= column + offset < 5:
          moved[column] = images[0, row, column + offset, 0]
      np.testing.assert_allclose(out[0, row, :, 0], moved, atol=1e-6)

  def test_against_scipy(self):
    """The same map through another implementation, away from the border."""
    images = ndimage.gaussian_filter(np.random.default_rng(0).random((1, 21, 21, 1)), (0, 2, 2, 0))
    rotation, shear, scale = 17.0, 9.0, 1.15
    out = self.fixed(images.astype(np.float32), rotation=rotation, shear=shear, scale=scale)
    a, slant = np.deg2rad(rotation), np.tan(np.deg2rad(shear))
    forward = scale * np.asarray([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) @ np.asarray(
        [[1, -slant], [0, 1]])  # on (x, y)
    inverse = np.linalg.inv(forward)[::-1, ::-1]  # on (row, column)
    centre = np.asarray([10.0, 10.0])
    expected = ndimage.affine_transform(images[0, :, :, 0], inverse, centre - inverse @ centre,
                                        order=1)
    np.testing.assert_allclose(out[0, 4:-4, 4:-4, 0], expected[4:-4, 4:-4], atol=1e-6)

  def test_draws_fill_their_ranges(self):
    seen = []
    real = transforms._uniform

    def uniform(low, high, *words):
      value = real(low, high, *words)
      seen.append((low, high, value))
      return value

    with mock.patch.object(transforms, '_uniform', uniform):
      transforms.affine(10, 5, 0.8, 1.2)(np.zeros((4000, 1, 1, 1)), 0, np.arange(4000), 0)
    self.assertEqual([draw[:2] for draw in seen], [(-10, 10), (-5, 5), (0.8, 1.2)])
    for low, high, value in seen:
      place = (value - low) / (high - low)
      self.assertBetween(place.min(), 0, 0.01)
      self.assertBetween(place.max(), 0.99, 1)
      self.assertAlmostEqual(place.mean(), 0.5, delta=0.03)  # six standard errors


class ColorTest(parameterized.TestCase):

  def test_no_strength_is_the_identity(self):
    np.testing.assert_allclose(transforms.color(0)(IMAGES, 0, INDEX, 0), IMAGES, atol=1e-6)

  def test_one_factor_at_a_time(self):
    weights = np.asarray([0.2989, 0.587, 0.114])
    gray = (IMAGES * weights).sum(-1, keepdims=True)
    expected = {
        'brightness': 1.5 * IMAGES,
        'contrast': 1.5 * IMAGES - 0.5 * gray.mean((1, 2, 3), keepdims=True),
        'saturation': 1.5 * IMAGES - 0.5 * gray}
    for changed, value in expected.items():
      def uniform(low, high, seed, kind, name, epoch, index, changed=changed):
        self.assertEqual((low, high), (0.5, 1.5))
        del seed, kind, epoch
        return np.full(len(index), 1.5 if name == changed else 1.0)

      with mock.patch.object(transforms, '_uniform', uniform):
        out = transforms.color(0.5)(IMAGES, 0, INDEX, 0)
      np.testing.assert_allclose(out, np.clip(value, 0, 1), atol=1e-6)

  def test_range_and_gray_pictures(self):
    for images in (IMAGES, IMAGES[..., :1]):
      out = transforms.color(2)(images, 0, INDEX, 0)
      self.assertBetween(out.min(), 0, 1)
      self.assertBetween(out.max(), 0, 1)
    # A picture without colours keeps none, whatever is drawn.
    gray = transforms.color(1)(np.repeat(IMAGES[..., :1], 3, axis=3), 0, INDEX, 0)
    np.testing.assert_allclose(gray, np.repeat(gray[..., :1], 3, axis=3), atol=1e-3)

  def test_channels(self):
    with self.assertRaisesRegex(ValueError, '1 or 3 channels, got 2'):
      transforms.color(0.1)(IMAGES[..., :2], 0, INDEX, 0)


class RandomResizedCropTest(absltest.TestCase):

  def boxes(self, images, low, high, epoch=0):
    """Which part of each picture was cut out: found by cutting out all of them with PIL."""
    height, width = images.shape[1:3]
    found = []
    every = [(top, left, h, w) for h in range(1, height + 1) for w in range(1, width + 1)
             for top in range(height - h + 1) for left in range(width - w + 1)]
    out = transforms.parse((f'random_resized_crop:{low},{high}',))(
        images, 0, np.arange(len(images)), epoch)
    for image, one in zip(images, out):
      matches = [box for box in every if np.allclose(self.cut(image, *box), one, atol=1e-5)]
      self.assertLen(matches, 1)
      found.append(matches[0])
    return np.asarray(found)

  @staticmethod
  def cut(image, top, left, height, width):
    part = Image.fromarray(image[top:top + height, left:left + width, 0])
    return np.asarray(part.resize(image.shape[1::-1], Image.Resampling.BILINEAR))[..., None]

  def test_parts_against_pil(self):
    images = np.random.default_rng(0).random((40, 7, 6, 1), np.float32)
    top, left, height, width = self.boxes(images, 0.4, 0.9).T
    # Sides are rounded, by half a pixel at most.
    area = (height - 0.5) * (width - 0.5), (height + 0.5) * (width + 0.5)
    self.assertTrue(((area[0] <= 0.9 * 42) & (area[1] >= 0.4 * 42)).all())
    self.assertTrue((((width + 0.5) / (height - 0.5) >= 3 / 4)
                     & ((width - 0.5) / (height + 0.5) <= 4 / 3)).all())
    for values in (top, left, height, width):
      self.assertGreater(len(set(values.tolist())), 2)

  def test_areas_and_places_fill_their_ranges(self):
    # A picture of its own coordinates shows what was cut out: slope and offset.
    y, x = np.mgrid[:64, :64].astype(np.float32)
    images = np.broadcast_to(np.stack([y, x, y], axis=-1), (500, 64, 64, 3))
    out = transforms.random_resized_crop(0.5, 1.0)(images, 0, np.arange(500), 0)
    first, last = out[:, 0, 0, :2], out[:, -1, -1, :2]
    sides = last - first + 1  # [500, 2]
    area = sides.prod(axis=1) / 64**2
    self.assertBetween(area.min(), 0.48, 0.52)
    self.assertBetween(area.max(), 0.93, 1.0)
    self.assertLess(abs(area.mean() - 0.72), 0.03)  # large parts of a far ratio do not fit
    ratio = np.log(sides[:, 1] / sides[:, 0])
    self.assertLess(abs(ratio.mean()), 0.05)
    self.assertBetween(np.abs(ratio).max(), 0.24, 0.30)
    self.assertEqual(first.min(), 0)
    self.assertEqual(last.max(), 63)
    self.assertLess(abs((first.mean() + last.mean()) / 2 - 31.5), 1)

  def test_no_part_fits(self):
    # 4 x 40: parts with most of the area are wider than they may be; the central 4 x 5 remains.
    images = np.random.default_rng(0).random((3, 4, 40, 1), np.float32)
    np.testing.assert_array_equal(self.boxes(images, 0.9, 1.0), [[0, 17, 4, 5]] * 3)

  def test_bad_shares(self):
    for text in ('random_resized_crop:0,1', 'random_resized_crop:0.8,0.5',
                 'random_resized_crop:0.5,1.1'):
      with self.assertRaisesRegex(ValueError, 'shares of the area'):
        transforms.parse((text,))


if __name__ == '__main__':
  absltest.main()
