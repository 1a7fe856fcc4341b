"""Tests for the augmentations."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from unlearn_jax.data import transforms

IMAGES = np.random.default_rng(0).random((64, 6, 5, 2), np.float32) + 0.5
INDEX = np.arange(100, 164)


class TransformsTest(parameterized.TestCase):

  @parameterized.parameters('shift:2', 'crop:2', 'flip')
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
    transforms.parse(('shift:2', 'crop:1', 'flip'))(IMAGES, 0, INDEX, 0)
    np.testing.assert_array_equal(IMAGES, before)

  @parameterized.parameters(
      (('flp',), "did you mean 'flip'"), (('shift',), "as in 'shift:2'"),
      (('crop:-1',), 'positive number'), (('shift:0',), 'positive number'),
      (('flip:3',), 'takes no argument'), ('flip', "write \\('flip',\\)"))
  def test_bad_names(self, names, message):
    with self.assertRaisesRegex(ValueError, message):
      transforms.parse(names)

  def test_crop_larger_than_the_picture(self):
    with self.assertRaisesRegex(ValueError, 'crop:5 needs pictures larger'):
      transforms.crop(5)(IMAGES, 0, INDEX, 0)


if __name__ == '__main__':
  absltest.main()
