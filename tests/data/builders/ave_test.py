"""AVE: generated files in the published layout, and everything that may be wrong with them."""

import os
import shutil
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

from unlearn_jax.data import sources
from unlearn_jax.data import splits as splits_lib
from unlearn_jax.data.builders import av_clip_fixtures
from unlearn_jax.data.builders import ave

h5py = pytest.importorskip('h5py', reason='extra `hdf5`')
CLIPS = 8
SIZES = {'train': 4, 'val': 2, 'test': 2}
SHAPES = {'visual_feature': (10, 2, 2, 3), 'audio_feature': (10, 4)}


class AveTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.directory = tempfile.mkdtemp()
    self.addCleanup(shutil.rmtree, self.directory)
    # The sizes of a feature do not matter here, only that they are the expected ones.
    self.enterContext(mock.patch.object(ave, 'VISUAL', SHAPES['visual_feature']))
    self.enterContext(mock.patch.object(ave, 'AUDIO', SHAPES['audio_feature']))
    rng = np.random.default_rng(0)
    self.values = {name: rng.random((CLIPS, *shape)) for name, shape in SHAPES.items()}
    self.label = rng.integers(0, 29, (CLIPS, 10))
    self.write(labels=np.eye(29)[self.label], train_order=[7, 1, 2, 0], val_order=[3, 6],
               test_order=[4, 5], **self.values)

  def write(self, **files):
    for name, values in files.items():
      with h5py.File(os.path.join(self.directory, f'{name}.h5'), 'w') as file:
        file['order' if 'order' in name else 'avadataset'] = np.asarray(values)

  def read(self):
    return ave.source(self.directory, '', None, sizes=SIZES)

  def test_published_layout(self):
    source = self.read()
    source.validate()
    self.assertEqual(source.attribution, ave.ATTRIBUTION)
    self.assertLen(source, 10 * CLIPS)
    np.testing.assert_array_equal(source.fields['label'], self.label.ravel())
    np.testing.assert_array_equal(source.fields['segment'], np.tile(np.arange(10), CLIPS))
    self.assertEqual(source.class_names[-1], 'background')
    self.assertLen(set(source.class_names), source.num_classes)
    # Ten records per clip, which share its features, identity and partition.
    clip = np.repeat(np.arange(CLIPS), 10)
    np.testing.assert_array_equal(source.identity, clip.astype(str))
    partition = np.array(['train'] * 3 + ['val', 'test', 'test', 'val', 'train'])
    np.testing.assert_array_equal(source.fields['partition'], partition[clip])
    for field, name in (('image', 'visual_feature'), ('audio', 'audio_feature')):
      self.assertEqual(source.fields[field].dtype, np.float32)
      want = self.values[name][clip].astype(np.float32)
      np.testing.assert_array_equal(source.fields[field], want)
      rows = [79, 3, 12, 3]
      np.testing.assert_array_equal(source.fields[field][rows], want[rows])

  def test_only_the_clips_that_are_asked_for_are_read(self):
    image = self.read().fields['image']
    part = sources.take(image, np.arange(40, 80))
    with mock.patch.object(ave.np, 'empty', wraps=np.empty) as made:
      part[[0, 5, 30]]
    self.assertEqual(made.call_args.args[0], (2, *SHAPES['visual_feature']))  # clips 4 and 7

  def test_splits_never_cut_a_clip(self):
    source = self.read()
    splits = splits_lib.published(source, seed=0, roles={
        'train': {'forget': 0.25, 'retain': 0.75}, 'val': 'validation', 'test': 'test'})
    splits.validate(source)
    self.assertLen(splits.indices['forget'], 10)
    self.assertLen(np.unique(source.identity[splits.indices['forget']]), 1)

  def test_content_hash_sees_every_file(self):
    first = self.read().content_hash()
    self.assertEqual(self.read().content_hash(), first)
    for name in SHAPES:
      changed = self.values[name].copy()
      changed[-1, -1] += 1
      self.write(**{name: changed})
      self.assertNotEqual(self.read().content_hash(), first)
      self.write(**{name: self.values[name]})
    self.write(**{name: values.astype('>f4') for name, values in self.values.items()})
    self.assertEqual(self.read().content_hash(), first)  # what is read is float32 anyway

  def test_other_sizes_are_said(self):
    with self.assertLogs(level='WARNING'):
      source = ave.source(self.directory, '', None)
    self.assertIn("Not the published set: {'train': 4, 'val': 2, 'test': 2} clips instead of "
                  "{'train': 3339", source.attribution)

  @parameterized.parameters(
      ('visual_feature', np.ones((7, 10, 2, 2, 3)), r'of the 8 clips.*got float64 \(7, 10, 2'),
      ('audio_feature', np.ones((8, 9, 4)), r"audio_feature.h5, dataset 'avadataset'.*\(8, 9, 4\)"),
      ('audio_feature', np.ones((8, 10, 4), int), 'must be float'),
      ('labels', np.eye(28)[np.zeros((8, 10), int)], r'\[clips, 10, 29\], got \(8, 10, 28\)'),
      ('labels', np.ones((0, 10, 29)), 'labels must be'),
      ('labels', np.zeros((8, 10, 29)), '80 labels are not one-hot, .* clip 0, segment 0'),
      ('labels', np.full((8, 10, 29), 1 / 29), 'not one-hot'),
      ('val_order', [3, 7], "clip 7 stands in the splits 'train' and 'val'"),
      ('val_order', [3, 3], "clip 3 stands twice in split 'val'"),
      ('val_order', [3, 8], "val_order.h5, dataset 'order': clip 8 is none of the 8"),
      ('val_order', [3], r'1 clips stand in no order \(6\)'),
      ('val_order', [3.0, 6.0], 'integers'))
  def test_damaged_files(self, name, values, message):
    self.write(**{name: values})
    with self.assertRaisesRegex(ValueError, message):
      self.read()

  def test_two_labels_of_one_segment(self):
    labels = np.eye(29)[self.label]
    labels[5, 4, :2] = 1
    self.write(labels=labels)
    with self.assertRaisesRegex(ValueError, '1 labels are not one-hot, .* clip 5, segment 4'):
      self.read()

  def test_files_that_are_none(self):
    path = os.path.join(self.directory, 'audio_feature.h5')
    with h5py.File(path, 'a') as file:
      file['other'] = np.ones(3)
    with self.assertRaisesRegex(ValueError, 'should hold one dataset, but holds avadataset, other'):
      self.read()
    with open(path, 'r+b') as file:
      file.truncate(100)
    with self.assertRaisesRegex(ValueError, 'audio_feature.h5 is no complete HDF5 file'):
      self.read()
    os.remove(path)
    with self.assertRaisesRegex(FileNotFoundError, f'missing audio_feature.h5: .*{self.directory}.*'
                                'YapengTian'):
      self.read()
    with self.assertRaisesRegex(FileNotFoundError, 'data_dir is not set'):
      ave.source('', '', None)

  def test_an_image_size_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'holds features'):
      ave.source(self.directory, '', 32)

  def test_without_h5py(self):
    with mock.patch.dict(sys.modules, {'h5py': None}):
      with self.assertRaisesRegex(ImportError, r'unlearn_jax\[hdf5\]'):
        self.read()


class FixtureTest(absltest.TestCase):

  def test_as_a_data_set(self):
    cache = self.enterContext(tempfile.TemporaryDirectory())
    source = av_clip_fixtures.ave_source('', cache, None)
    source.validate()
    self.assertEqual(source.name, 'ave_fixture')
    self.assertIn('Generated', source.attribution)
    clips = sum(av_clip_fixtures.AVE_CLIPS.values())
    self.assertEqual(source.fields['image'].shape, (10 * clips, 10, 7, 7, 512))
    self.assertEqual(source.fields['audio'].shape, (10 * clips, 10, 128))
    label, partition = source.fields['label'], source.fields['partition']
    for split in av_clip_fixtures.AVE_CLIPS:  # of every class there is something in every split
      self.assertEqual(set(label[partition == split]), {0, 1, 2, 28})
    again = av_clip_fixtures.ave_source('', cache, None)  # as it lies there
    np.testing.assert_array_equal(again.fields['image'][17], source.fields['image'][17])
    # Of a clip's features, those of the record's own segment tell the class, in both modalities.
    clip, classes = np.arange(0, 10 * clips, 10), np.array([0, 1, 2, 28])
    train, test = partition == 'train', partition == 'test'
    for field in ('image', 'audio'):
      own = source.fields[field][clip].reshape(10 * clips, -1)
      means = np.stack([own[train & (label == k)].mean(axis=0) for k in classes])
      distance = np.stack([((own[test] - mean) ** 2).sum(axis=1) for mean in means], axis=1)
      np.testing.assert_array_equal(classes[distance.argmin(axis=1)], label[test])


if __name__ == '__main__':
  absltest.main()
