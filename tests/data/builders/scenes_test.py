"""ImageNet-1k and Places365 as TFDS prepares them, at a tiny size."""

import os
import pathlib
import shutil
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from unlearn_jax.data import fields
from unlearn_jax.data import generation
from unlearn_jax.data.builders import scene_fixtures
from unlearn_jax.data.builders import scenes

SETS = {'imagenet': scenes.IMAGENET, 'places365': scenes.PLACES365}
TRAIN, VALIDATION = (scene_fixtures.CLASSES * count for count in scene_fixtures.PICTURES.values())


class ScenesTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.data = cls.enterClassContext(tempfile.TemporaryDirectory())
    for known in SETS.values():
      scene_fixtures.write(known, cls.data)

  def setUp(self):
    super().setUp()
    self.cache = self.enter_context(tempfile.TemporaryDirectory())

  @parameterized.parameters(*SETS)
  def test_reads_what_tfds_prepared(self, name):
    source = getattr(scenes, name)(self.data, self.cache, 32)
    source.validate()
    self.assertEqual(source.fields['image'].shape, (TRAIN + VALIDATION, 32, 32, 3))
    partition, label = source.fields['partition'], source.fields['label']
    for split, count in scene_fixtures.PICTURES.items():
      np.testing.assert_array_equal(np.bincount(label[partition == split]),
                                    [count] * scene_fixtures.CLASSES)
    self.assertLen(np.unique(source.identity), len(source))
    self.assertLen(source.class_names, source.num_classes)
    self.assertIn(f'Not the published set: {TRAIN} train, {VALIDATION} validation pictures instead '
                  f'of {SETS[name].counts["train"]:,} train', source.attribution)

  def test_every_row_has_the_picture_of_its_label(self):
    source = scenes.imagenet(self.data, self.cache, 40)
    image, label = source.fields['image'][:], source.fields['label']
    # Square pictures show the class's blocks; the noise is a third as strong and differs.
    patterns = np.stack([np.asarray(scene_fixtures.picture(k, 0, 'train'))[:40, :40] / 255
                         for k in range(scene_fixtures.CLASSES)])
    flat = lambda x: (x - x.mean((1, 2, 3), keepdims=True)).reshape(len(x), -1)
    read = source.fields['image'].read
    square = np.asarray([row for row in range(len(source))
                         if fields.decode(read(row)).size == (40, 40)])
    self.assertGreater(len(square), 20)
    nearest = np.argmax(flat(image[square]) @ flat(patterns).T, axis=1)
    np.testing.assert_array_equal(nearest, label[square])

  def test_default_sizes(self):
    self.assertEqual(scenes.imagenet(self.data, self.cache, None).fields['image'].shape[1:],
                     (224, 224, 3))
    self.assertEqual(scenes.places365(self.data, self.cache, None).fields['image'].shape[1:],
                     (256, 256, 3))

  def test_class_names(self):
    self.assertEqual(scenes.imagenet(self.data, self.cache, 8).class_names[:2],
                     ('tench', 'goldfish'))
    self.assertEqual(scenes.PLACES365.class_names(['alley', 'army_base', 'arena/hockey_rink']),
                     ('alley', 'army base', 'arena, hockey rink'))

  def test_labels_are_listed_once(self):
    first = scenes.imagenet(self.data, self.cache, 8)
    with mock.patch.object(scenes.tqdm, 'tqdm', side_effect=AssertionError('listed again')):
      again = scenes.imagenet(self.data, self.cache, 8)
      self.assertEqual(again.content_hash(), first.content_hash())
      self.assertNotEqual(scenes.imagenet(self.data, self.cache, 9).content_hash(),
                          first.content_hash())
      with self.assertRaisesRegex(AssertionError, 'listed again'):
        scenes.places365(self.data, self.cache, 8)  # a list of its own
    other = self.enter_context(tempfile.TemporaryDirectory())
    with mock.patch.dict(scene_fixtures.PICTURES, train=2):
      scene_fixtures.write(scenes.IMAGENET, other)
    cache = self.enter_context(tempfile.TemporaryDirectory())
    shutil.copytree(self.cache, cache, dirs_exist_ok=True)
    self.assertLen(scenes.imagenet(other, cache, 8), 2 * scene_fixtures.CLASSES + VALIDATION)
    path, = pathlib.Path(self.cache, 'labels').glob('imagenet-*.npz')
    path.write_bytes(path.read_bytes()[:100])
    with self.assertRaisesRegex(ValueError, 'damaged list of labels.*delete it'):
      scenes.imagenet(self.data, self.cache, 8)

  @parameterized.parameters(('imagenet', 'imagenet2012', '--manual_dir=ARCHIVES'),
                            ('places365', 'places365_small', '--file_format=array_record'))
  def test_nothing_prepared(self, name, tfds_name, option):
    empty = self.enter_context(tempfile.TemporaryDirectory())
    for data_dir, where in ((empty, empty), ('', 'data_dir is not set')):
      with self.assertRaisesRegex(FileNotFoundError, f'{where}.*tfds build {tfds_name}.*{option}'):
        getattr(scenes, name)(data_dir, self.cache, 8)

  def test_format_without_random_access(self):
    directory = self.enter_context(tempfile.TemporaryDirectory())
    scene_fixtures.write(scenes.IMAGENET, directory)
    info, = pathlib.Path(directory).rglob('dataset_info.json')
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with self.assertRaisesRegex(FileNotFoundError, 'no random access.*--file_format=array_record'):
      scenes.imagenet(directory, self.cache, 8)

  def test_other_layouts(self):
    for changes, message in (({'classes': 999}, '1000 classes, ImageNet-1k has 999'),
                             ({'counts': {'train': 1, 'test': 1}}, "no split 'test', only")):
      known = scenes.IMAGENET._replace(**changes)
      with self.assertRaisesRegex(ValueError, message):
        scenes.source(known, self.data, self.cache, 8)

  def test_fixture_is_written_once_and_says_so(self):
    source = scene_fixtures.places365_source('', self.cache, 16)
    self.assertEqual(source.name, 'places365_fixture')
    self.assertIn('Generated', source.attribution)
    before = os.path.getmtime(os.path.join(self.cache, 'places365_fixture'))
    again = scene_fixtures.places365_source('', self.cache, 16)
    self.assertEqual(again.content_hash(), source.content_hash())
    self.assertEqual(os.path.getmtime(os.path.join(self.cache, 'places365_fixture')), before)

  def test_the_papers_split_in_small(self):
    source = scene_fixtures.imagenet_source('', self.cache, 8)
    source, splits = generation.split(source, forget_classes=3, retain_classes=3, held_out=None,
                                      per_class=6, per_class_test=4, seed=0)
    partition = source.fields['partition']
    self.assertEqual({name: (len(ids), *set(partition[ids])) for name, ids in splits.indices.items()},
                     {'forget': (18, 'train'), 'retain': (18, 'train'), 'test': (12, 'validation'),
                      'unseen': (12, 'validation'), 'validation': (24, 'train')})
    self.assertEqual(np.sum(source.fields['part'] == 'other'), 6 * 12)
    batch = generation.streams(source, splits, batch_size=4, seed=0, grid=(4, 4))['proxy'](0)
    np.testing.assert_array_equal(batch['retain']['image'],
                                  source.fields['image'][batch['retain']['id']])


if __name__ == '__main__':
  absltest.main()
