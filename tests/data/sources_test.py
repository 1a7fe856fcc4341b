"""Tests for the data sources."""

import dataclasses
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from unlearn_jax.data import sources


class SourcesTest(parameterized.TestCase):

  @parameterized.parameters(('synthetic', 160, 8, 4, 10), ('digits', 1797, 8, 10, 1797),
                            ('mnist5k', 5000, 28, 10, 5000))
  def test_what_the_names_promise(self, name, count, size, classes, identities):
    source = sources.get(name)
    source.validate()
    image, label = source.fields['image'], source.fields['label']
    self.assertEqual(image.shape, (count, size, size, 1))
    self.assertEqual(image.dtype, np.float32)
    self.assertEqual((image.min(), image.max()), (0, 1))
    self.assertEqual(label.dtype, np.int32)
    np.testing.assert_array_equal(np.unique(label), np.arange(classes))
    self.assertEqual(source.num_classes, classes)
    self.assertLen(np.unique(source.identity), identities)
    self.assertFalse(source.fields['noisy'].any())
    self.assertNotEmpty(source.attribution)
    self.assertIn(name, sources.NAMES)

  def test_pinned_hash(self):
    # On every machine and with every numpy the same data.
    self.assertEqual(sources.get('synthetic').content_hash(),
                     'eb049c9d3bf3dc0c415d27719a4f43389a6e0828c155d54d0d1c2cd34725ea09')
    self.assertEqual(sources.get('synthetic', label_noise=0.2, seed=1).content_hash(),
                     'dd1bda46d1b438331c845a41fe249e441846294a84b775b9ce79738cfdb00e98')

  def test_hash_sees_every_part(self):
    source = sources.get('synthetic')
    image = source.fields['image'].copy()
    image[3, 2, 1, 0] += 0.25
    label = source.fields['label'].copy()
    label[7] = (label[7] + 1) % 4
    identity = source.identity.copy()
    identity[0] = 'person1'
    changed = [dataclasses.replace(source, fields={**source.fields, 'image': image}),
               dataclasses.replace(source, fields={**source.fields, 'label': label}),
               dataclasses.replace(source, fields={**source.fields, 'more': label}),
               dataclasses.replace(source, identity=identity)]
    hashes = {one.content_hash() for one in changed} | {source.content_hash()}
    self.assertLen(hashes, 5)
    self.assertEqual(dataclasses.replace(source).content_hash(), source.content_hash())

  @parameterized.parameters('synthetic', 'digits')
  def test_label_noise(self, name):
    clean = sources.get(name).fields['label']
    source = sources.get(name, label_noise=0.2, seed=3)
    label, noisy = source.fields['label'], source.fields['noisy']
    self.assertEqual(noisy.sum(), round(0.2 * len(source)))
    np.testing.assert_array_equal(label[~noisy], clean[~noisy])
    # A uniformly random class is the old one with probability 1/K: within five standard deviations.
    share = 1 / source.num_classes
    same, count = (label == clean)[noisy].sum(), noisy.sum()
    self.assertLess(abs(same - share * count), 5 * np.sqrt(count * share * (1 - share)))
    again = sources.get(name, label_noise=0.2, seed=3).fields
    np.testing.assert_array_equal(again['label'], label)
    other = sources.get(name, label_noise=0.2, seed=4).fields
    self.assertFalse(np.array_equal(other['noisy'], noisy))

  def test_bad_arguments(self):
    with self.assertRaisesRegex(ValueError, "did you mean 'digits'"):
      sources.get('digit')
    for noise in (-0.1, 1.0, float('nan')):
      with self.assertRaisesRegex(ValueError, r'\[0, 1\)'):
        sources.get('synthetic', label_noise=noise)
    for size in (0, 2.5):
      with self.assertRaisesRegex(ValueError, 'positive integer'):
        sources.get('synthetic', image_size=size)

  def test_cache_dir(self):
    with mock.patch.dict('os.environ', UNLEARN_JAX_CACHE='/x'):
      self.assertEqual(sources.cache_dir(), '/x')


class ValidateTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.source = sources.get('synthetic')

  def with_fields(self, **fields):
    return dataclasses.replace(self.source, fields={**self.source.fields, **fields})

  def test_labels_outside_the_classes(self):
    label = self.source.fields['label'].copy()
    label[5] = 4
    with self.assertRaisesRegex(ValueError, 'classes 0 to 3; the first is 4 at record 5'):
      self.with_fields(label=label).validate()
    label[5] = -1
    with self.assertRaisesRegex(ValueError, 'the first is -1'):
      self.with_fields(label=label).validate()
    with self.assertRaisesRegex(ValueError, 'must be integers'):
      self.with_fields(label=label.astype(np.float32)).validate()

  def test_attributes(self):
    label = np.zeros((160, 4), np.float32)
    label[::2, 1] = 1
    self.with_fields(label=label).validate()
    with self.assertRaisesRegex(ValueError, r'\[N, 4\]'):
      self.with_fields(label=label[:, :3]).validate()
    label[9, 2] = 0.5
    with self.assertRaisesRegex(ValueError, 'at record 9'):
      self.with_fields(label=label).validate()

  def test_fields(self):
    with self.assertRaisesRegex(ValueError, "no field 'image'"):
      dataclasses.replace(self.source, fields={'label': self.source.fields['label']}).validate()
    with self.assertRaisesRegex(ValueError, "'extra' has 3 records"):
      self.with_fields(extra=np.zeros(3)).validate()
    with self.assertRaisesRegex(ValueError, 'float32'):
      self.with_fields(image=np.zeros((160, 8, 8, 1), np.uint8)).validate()


class ValidateCaptionsTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.source = sources.get('synthetic')
    count = len(self.source)
    self.fields = {'image': self.source.fields['image'], 'picture': np.arange(count) // 2,
                   'caption': np.char.add('picture ', np.arange(count).astype(str))}

  def made(self, **changes):
    found = {**self.fields, **changes}
    return dataclasses.replace(
        self.source, num_classes=4 if 'label' in found else 0,
        fields={name: field for name, field in found.items() if field is not None})

  def test_labels_are_optional_and_may_be_missing_for_some(self):
    self.made().validate()
    label = np.where(np.arange(160) % 3, self.source.fields['label'], -1)
    self.made(label=label).validate()
    label[4] = -2
    with self.assertRaisesRegex(ValueError, 'the first is -2 at record 4'):
      self.made(label=label).validate()

  def test_captions(self):
    for blank in ('', ' \n'):
      caption = self.fields['caption'].copy()
      caption[[7, 9]] = blank
      for kind in ('U11', np.dtypes.StringDType()):
        with self.assertRaisesRegex(ValueError, '2 captions are empty, the first is that of .* 7'):
          self.made(caption=caption.astype(kind)).validate()
    for caption in (np.arange(160), self.fields['caption'].astype('S11'),
                    self.fields['caption'][:, None]):
      with self.assertRaisesRegex(ValueError, 'captions must be text'):
        self.made(caption=caption).validate()

  def test_pictures(self):
    with self.assertRaisesRegex(ValueError, "no field 'picture'"):
      self.made(picture=None).validate()
    with self.assertRaisesRegex(ValueError, 'picture must be integers'):
      self.made(picture=np.zeros(160)).validate()

  def test_class_names(self):
    names = ('a', 'b', 'c', 'd')
    dataclasses.replace(self.source, class_names=names).validate()
    with self.assertRaisesRegex(ValueError, '3 class names for 4 classes'):
      dataclasses.replace(self.source, class_names=names[:3]).validate()


class PicturesTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.values = np.random.default_rng(0).integers(0, 256, (20, 4, 5, 3), dtype=np.uint8)
    self.expected = self.values.astype(np.float32) / np.float32(255)

  def test_reads_like_a_float_array(self):
    pictures = sources.Pictures(self.values)
    self.assertEqual((pictures.shape, pictures.dtype), ((20, 4, 5, 3), np.float32))
    self.assertLen(pictures, 20)
    for index in (3, slice(2, 9, 3), np.array([5, 1, 5]), np.arange(20) % 2 == 0, (slice(3), 1)):
      found = pictures[index]
      self.assertEqual(found.dtype, np.float32)
      np.testing.assert_array_equal(found, self.expected[index])
    np.testing.assert_array_equal(np.asarray(pictures), self.expected)
    self.assertEqual(np.asarray(pictures, np.float64).dtype, np.float64)
    with self.assertRaisesRegex(ValueError, 'always a copy'):
      np.array(pictures, copy=False)

  def test_take_keeps_the_bytes(self):
    pictures = sources.Pictures(self.values)
    part = sources.take(pictures, np.array([4, 2]))
    self.assertIsInstance(part, sources.Pictures)
    np.testing.assert_array_equal(part.bytes, self.values[[4, 2]])
    np.testing.assert_array_equal(sources.take(self.expected, np.array([4, 2])),
                                  self.expected[[4, 2]])

  def test_source_and_hash_do_not_depend_on_how_they_are_held(self):
    label = (np.arange(20) % 3).astype(np.int32)

    def made(image):
      return sources.Source('a', {'image': image, 'label': label}, np.arange(20).astype(str), 3, '')

    held, plain = made(sources.Pictures(self.values)), made(self.expected)
    held.validate()
    self.assertEqual(held.content_hash(), plain.content_hash())
    with mock.patch.object(sources, '_HASHED_AT_ONCE', 1000):  # a few pictures at a time
      self.assertEqual(made(sources.Pictures(self.values)).content_hash(), plain.content_hash())
    self.values[7, 0, 0, 0] ^= 1
    self.assertNotEqual(made(sources.Pictures(self.values)).content_hash(), plain.content_hash())

  def test_three_equal_channels_in_the_memory_of_one(self):
    grey = sources.Pictures(np.broadcast_to(self.values[..., :1], self.values.shape))
    np.testing.assert_array_equal(grey[2:5, ..., 2], self.expected[2:5, ..., 0])

  def test_bytes_only(self):
    for values in (self.expected, self.values[..., 0]):
      with self.assertRaisesRegex(ValueError, 'pictures are uint8'):
        sources.Pictures(values)


class AreaResizeTest(absltest.TestCase):

  def test_hand_computed(self):
    # Three pixels to two: each takes one whole and half of the middle one.
    image = np.asarray([[[4, 8, 0]] * 3])  # (4 + 8/2) / 1.5 and (8/2 + 0) / 1.5, of 8
    out = sources.area_resize(image, 2, white=8)
    np.testing.assert_array_equal(out[0, :, :, 0], np.float32([[2 / 3, 1 / 3]] * 2))

  def test_whole_ratio_is_block_mean(self):
    image = np.random.default_rng(0).integers(0, 17, (5, 8, 8))
    blocks = image.reshape(5, 4, 2, 4, 2).mean(axis=(2, 4)) / 16
    np.testing.assert_array_equal(sources.area_resize(image, 4, white=16)[..., 0],
                                  blocks.astype(np.float32))

  def test_mean_is_kept_and_enlarging_repeats(self):
    image = np.random.default_rng(1).integers(0, 2, (3, 15, 15))
    for size in (4, 15, 32):
      out = sources.area_resize(image, size, white=1)
      np.testing.assert_allclose(out.mean(axis=(1, 2, 3)), image.mean(axis=(1, 2)), rtol=1e-6)
    twice = sources.area_resize(image, 30, white=1)[..., 0]
    np.testing.assert_array_equal(twice, image.repeat(2, axis=1).repeat(2, axis=2))


if __name__ == '__main__':
  absltest.main()
