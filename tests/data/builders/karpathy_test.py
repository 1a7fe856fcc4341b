"""Tests for COCO captions and Flickr30k in Karpathy's splits."""

import json
import os
import shutil
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from unlearn_jax.data import sources
from unlearn_jax.data import splits as splits_lib
from unlearn_jax.data.builders import karpathy
from unlearn_jax.data.builders import pair_fixtures

SETS = {'coco_captions': karpathy.COCO, 'flickr30k': karpathy.FLICKR30K}
READERS = {'coco_captions': karpathy.coco_captions, 'flickr30k': karpathy.flickr30k}


class KarpathyTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.directory = tempfile.mkdtemp()
    self.addCleanup(shutil.rmtree, self.directory)

  def read(self, name, **changes):
    settings = {'data_dir': self.directory, 'cache_dir': '', 'image_size': 32,
                'sizes': pair_fixtures.KARPATHY_SIZES[name]} | changes
    return READERS[name](settings.pop('data_dir'), settings.pop('cache_dir'),
                         settings.pop('image_size'), **settings)

  @parameterized.parameters('coco_captions', 'flickr30k')
  def test_published_layout(self, name):
    pair_fixtures.write_karpathy(SETS[name], self.directory)
    with self.assertLogs(level='WARNING') as logs:
      source = self.read(name)
    source.validate()
    self.assertIn('1 empty captions left out', logs.output[0])
    self.assertEqual(source.note, '1 empty captions left out')
    sizes = pair_fixtures.KARPATHY_SIZES[name]
    picture, partition = source.fields['picture'], source.fields['partition']
    count = sum(sizes.values())
    np.testing.assert_array_equal(np.unique(picture), np.arange(count))
    captions = np.where(np.arange(count) % 4 == 0, 6, 5) - (np.arange(count) == 3)
    np.testing.assert_array_equal(np.bincount(picture), captions)
    for split, number in sizes.items():
      self.assertLen(np.unique(picture[partition == split]), number)
    caption = source.fields['caption'].tolist()
    self.assertEqual(caption[:3], ['a red square number 0.', 'There is a red square number 0',
                                   'a picture with a red square'])
    self.assertEqual(caption[3], 'one red square on white')  # without the space at its end
    self.assertEqual(source.num_classes, 0)
    # All captions of a picture are one identity, and show one picture.
    self.assertLen(np.unique(source.identity), count)
    image = source.fields['image']
    self.assertEqual(image.shape, (len(source), 32, 32, 3))
    np.testing.assert_array_equal(image[0], image[5])
    red, green, blue = image[0][16, 16]
    self.assertGreater(red, green + blue)

  def test_default_size_is_clips(self):
    pair_fixtures.write_karpathy(karpathy.COCO, self.directory)
    self.assertEqual(self.read('coco_captions', image_size=None).fields['image'].shape[1:],
                     (224, 224, 3))

  def test_published_splits(self):
    source = sources.get('coco_captions_fixture')
    splits = splits_lib.published(source, seed=0, roles={
        'train': {'forget': 0.1, 'retain': 0.9}, 'restval': 'retain', 'val': 'validation',
        'test': 'test'})
    self.assertLen(np.unique(source.fields['picture'][splits.indices['test']]), 16)
    again = sources.get('coco_captions_fixture')
    self.assertEqual(again.content_hash(), source.content_hash())
    self.assertNotEqual(sources.get('coco_captions_fixture', image_size=16).content_hash(),
                        source.content_hash())

  def test_numbers_of_the_real_sets(self):
    self.assertEqual(sum(karpathy.COCO.sizes.values()), 123287)
    self.assertEqual(karpathy.COCO.sizes['test'], 5000)
    self.assertEqual(sum(karpathy.FLICKR30K.sizes.values()), 31014)
    self.assertEqual(karpathy.FLICKR30K.sizes['test'], 1000)
    for name, published in SETS.items():
      pair_fixtures.write_karpathy(published, self.directory)
      with self.assertRaisesRegex(ValueError, "'test': 16}? .*instead of .*'test': [15]000"):
        sources.get(name, data_dir=self.directory)

  def test_missing_files_are_named(self):
    for data_dir, where in (('', 'data_dir is not set'), (self.directory, self.directory)):
      with self.assertRaisesRegex(FileNotFoundError, f'dataset_coco.json: looked in .*{where}.*'
                                                     'caption_datasets.zip'):
        self.read('coco_captions', data_dir=data_dir)
    pair_fixtures.write_karpathy(karpathy.COCO, self.directory)
    os.remove(os.path.join(self.directory, 'val2014', 'picture_000050.jpg'))
    with self.assertRaisesRegex(FileNotFoundError, r"1 of 72 pictures \('val2014/picture_000050"
                                                   r".*val2014.zip"):
      self.read('coco_captions')
    shutil.rmtree(os.path.join(self.directory, 'train2014'))
    with self.assertRaisesRegex(FileNotFoundError, '41 of 72 pictures .* and 36 more'):
      self.read('coco_captions')

  def test_a_picture_that_does_not_decode_is_named_when_read(self):
    pair_fixtures.write_karpathy(karpathy.FLICKR30K, self.directory)
    path = os.path.join(self.directory, 'flickr30k-images', 'picture_000002.jpg')
    with open(path, 'r+b') as file:
      file.truncate(300)
    image = self.read('flickr30k').fields['image']
    self.assertEqual(image[0].shape, (32, 32, 3))
    with self.assertRaisesRegex(ValueError, 'picture_000002.jpg is no complete picture'):
      _ = image[:20]

  @parameterized.parameters('[]', '{', '{"images": [{"filename": "a.jpg"}]}',
                            '{"images": [{"filename": "a", "split": "test", "sentences": [1]}]}')
  def test_damaged_list(self, text):
    with open(os.path.join(self.directory, 'dataset_coco.json'), 'w') as file:
      file.write(text)
    with self.assertRaisesRegex(ValueError, 'dataset_coco.json is no list of pictures'):
      self.read('coco_captions')

  def test_only_what_is_read_is_opened(self):
    pair_fixtures.write_karpathy(karpathy.COCO, self.directory)
    source = self.read('coco_captions')
    with mock.patch('builtins.open', side_effect=AssertionError('opened')):
      source.content_hash()
      self.assertLen(source, len(source.fields['image']))

  def test_list_is_json_as_published(self):
    pair_fixtures.write_karpathy(karpathy.COCO, self.directory)
    with open(os.path.join(self.directory, 'dataset_coco.json')) as file:
      row = json.load(file)['images'][0]
    self.assertContainsSubset({'filename', 'filepath', 'split', 'sentences', 'sentids', 'imgid',
                               'cocoid'}, row)


if __name__ == '__main__':
  absltest.main()
