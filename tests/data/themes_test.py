"""Pseudo-classes: captions that share words share a theme, pictures are never divided."""

from absl.testing import absltest
import numpy as np

from unlearn_jax.data import themes

WORDS = ('dog runs grass park', 'boat sails sea harbour', 'chef cooks kitchen stove')
SIZES = (12, 8, 4)  # pictures; two captions each


def captions():
  rng = np.random.default_rng(0)
  found, identity = [], []
  for kind, count in enumerate(SIZES):
    for picture in range(count):
      for _ in range(2):
        found.append(' '.join(rng.permutation(WORDS[kind].split())[:3]))
        identity.append(f'{kind}-{picture}')
  order = rng.permutation(len(found))
  return [found[i] for i in order], np.asarray(identity)[order]


class ThemesTest(absltest.TestCase):

  def test_finds_what_was_planted_numbered_by_size(self):
    text, identity = captions()
    found = themes.themes(text, identity, count=3, seed=0)
    planted = np.asarray([int(name.split('-')[0]) for name in identity])
    np.testing.assert_array_equal(found, planted)
    self.assertEqual(found.dtype, np.int32)

  def test_a_picture_has_one_theme_and_a_draw_repeats(self):
    text, identity = captions()
    found = themes.themes(text, identity, count=5, seed=1)
    for name in np.unique(identity):
      self.assertLen(np.unique(found[identity == name]), 1)
    np.testing.assert_array_equal(found, themes.themes(text, identity, count=5, seed=1))
    sizes = [len(np.unique(identity[found == k])) for k in range(5)]
    self.assertEqual(sizes, sorted(sizes, reverse=True))

  def test_too_many_themes(self):
    text, identity = captions()
    for count in (1, 25):
      with self.assertRaisesRegex(ValueError, f'themes of 24 pictures.* got {count}'):
        themes.themes(text, identity, count=count, seed=0)


if __name__ == '__main__':
  absltest.main()
