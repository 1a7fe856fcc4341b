"""UPMC-Food101: titles and features in the layout that the script writes, and what may be wrong."""

import os
import shutil
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from unlearn_jax.data import sources
from unlearn_jax.data.builders import av_clip_fixtures
from unlearn_jax.data.builders import food101
from unlearn_jax.data.builders import stored

SHAPES = {'image': (5, 3), 'text': (4, 3)}
TITLES = {'train': ('b_0.jpg,"Beignets, fresh",beignets', 'a_0.jpg,Apple pie,apple_pie',
                    'a_1.jpg,"a ""pie""",apple_pie', 'w_0.jpg,,waffles', 'a_2.jpg,x,apple_pie'),
          'test': ('w_9.jpg,Waffles,waffles', 'a_9.jpg,Apple pie,apple_pie',
                   'b_9.jpg,Beignets,beignets')}
FILES = {'train': ['b_0.jpg', 'a_0.jpg', 'a_1.jpg', 'a_2.jpg'], 'test': ['a_9.jpg', 'b_9.jpg']}


class Food101Test(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.directory = tempfile.mkdtemp()
    self.addCleanup(shutil.rmtree, self.directory)
    for name, shape in SHAPES.items():
      self.enterContext(mock.patch.object(food101, name.upper(), shape))
    rng = np.random.default_rng(0)
    os.makedirs(os.path.join(self.directory, 'texts'))
    os.makedirs(os.path.join(self.directory, 'features'))
    self.values = {}
    for split, rows in TITLES.items():
      self.write(f'texts/{split}_titles.csv', rows)
      self.write(f'features/{split}_files.txt', FILES[split])
      for kind, shape in SHAPES.items():
        self.values[split, kind] = rng.normal(size=(len(FILES[split]), *shape)).astype(np.float16)
        self.save(split, kind, self.values[split, kind])

  def write(self, name, lines):
    with open(os.path.join(self.directory, name), 'w', encoding='utf-8') as file:
      file.writelines(f'{line}\n' for line in lines)

  def save(self, split, kind, values):
    np.save(os.path.join(self.directory, 'features', f'{split}_{kind}.npy'), values)

  def read(self):
    return food101.source(self.directory, '', None)

  def test_published_layout(self):
    source = self.read()
    source.validate()
    self.assertEqual(source.class_names, ('apple_pie', 'beignets'))  # those that have features
    np.testing.assert_array_equal(source.identity, FILES['train'] + FILES['test'])
    np.testing.assert_array_equal(source.fields['label'], [1, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(source.fields['partition'], ['train'] * 4 + ['test'] * 2)
    self.assertEqual(source.note, '')
    for kind in SHAPES:
      want = np.concatenate([self.values[split, kind] for split in FILES]).astype(np.float32)
      field = source.fields[kind]
      self.assertEqual(field.dtype, np.float32)
      np.testing.assert_array_equal(field, want)
      np.testing.assert_array_equal(field[[5, 0, 4, 0]], want[[5, 0, 4, 0]])
      taken = sources.take(field, np.array([3, 5, 1]))
      self.assertNotIsInstance(taken, np.ndarray)
      np.testing.assert_array_equal(taken[1:], want[[5, 1]])

  def test_which_classes(self):
    rows = food101.titles(self.directory, 'train')
    self.assertEqual(rows[0], ('b_0.jpg', 'Beignets, fresh', 'beignets'))
    self.assertEqual(rows[2].text, 'a "pie"')
    self.assertEqual(food101.default_classes(rows), ('apple_pie', 'beignets', 'waffles'))
    self.assertIn('Not the first 25 classes by name: apple_pie, beignets.',
                  self.read().attribution)
    with mock.patch.object(food101, 'NUM_CLASSES', 2):
      self.assertEqual(self.read().attribution, food101.ATTRIBUTION)

  def test_pictures_without_features_are_counted(self):
    self.write('features/train_files.txt', ['b_0.jpg', 'a_1.jpg'])
    for kind in SHAPES:
      self.save('train', kind, self.values['train', kind][[0, 2]])
    with self.assertLogs(level='WARNING'):
      source = self.read()
    self.assertEqual(source.note, '2 titles without features left out')
    self.assertLen(source, 4)

  def test_content_hash(self):
    first = self.read().content_hash()
    self.save('test', 'text', self.values['test', 'text'].astype(np.float32))
    self.assertEqual(self.read().content_hash(), first)
    self.save('test', 'text', self.values['test', 'text'] + np.float16(1))
    self.assertNotEqual(self.read().content_hash(), first)

  @parameterized.parameters(
      (['a_0.jpg', 'b_0.jpg', 'a_1.jpg', 'a_2.jpg'], 'order is not that of'),
      (['b_0.jpg', 'b_0.jpg', 'a_1.jpg', 'a_2.jpg'], 'order is not that of'),
      ([], 'is empty'),
      (['b_0.jpg', 'a_0.jpg', 'a_1.jpg', 'c_0.jpg'], "1 pictures that have no title: 'c_0.jpg'"),
      (['b_0.jpg', 'a_0.jpg', 'a_1.jpg'], 'of the 3 pictures in its list, got float16'),
      (['b_0.jpg', 'a_0.jpg', 'a_1.jpg', 'w_0.jpg'], "'waffles' have features in one partition"))
  def test_lists_that_do_not_fit(self, files, message):
    self.write('features/train_files.txt', files)
    with self.assertRaisesRegex(ValueError, message):
      self.read()

  @parameterized.parameters(
      ('a_0.jpg,Apple pie', 'row 6 is no'), (',Apple pie,apple_pie', 'row 6 is no'),
      ('a_0.jpg,Apple pie,apple_pie', "'a_0.jpg' stand twice"))
  def test_damaged_titles(self, row, message):
    self.write('texts/train_titles.csv', (*TITLES['train'], row))
    with self.assertRaisesRegex(ValueError, f'train_titles.csv: {message}'):
      self.read()

  def test_damaged_features(self):
    path = os.path.join(self.directory, 'features', 'train_image.npy')
    for values, message in ((np.ones((4, 5, 2), np.float16), r'float16 \(4, 5, 2\)'),
                            (np.ones((4, 5, 3)), 'got float64')):
      self.save('train', 'image', values)
      with self.assertRaisesRegex(ValueError, message):
        self.read()
    for size in (130, 0):
      os.truncate(path, size)
      with self.assertRaisesRegex(ValueError, 'train_image.npy is no complete .npy file'):
        self.read()

  @parameterized.parameters(
      ('texts/test_titles.csv', 'kaggle'), ('features/test_text.npy', 'food101_features'),
      ('features/train_files.txt', 'food101_features'))
  def test_missing_files(self, name, where):
    os.remove(os.path.join(self.directory, name))
    with self.assertRaisesRegex(FileNotFoundError, f'missing {name}: .*{self.directory}.*{where}'):
      self.read()

  def test_what_else_is_refused(self):
    with self.assertRaisesRegex(FileNotFoundError, 'data_dir is not set'):
      food101.source('', '', None)
    with self.assertRaisesRegex(ValueError, 'holds features'):
      food101.source(self.directory, '', 224)


class StoredTest(absltest.TestCase):

  def test_joined_reads_like_one_array(self):
    parts = [np.arange(6.0).reshape(3, 2), np.arange(6.0, 10).reshape(2, 2)]
    field, want = stored.joined(parts), np.arange(10.0).reshape(5, 2)
    self.assertEqual(field.shape, (5, 2))
    for index in (slice(None), 4, -5, [4, 0, 2, 3, 4], [], slice(1, 4), np.arange(5) % 2 == 0):
      np.testing.assert_array_equal(field[index], want[index])
      if not isinstance(index, int):
        np.testing.assert_array_equal(field.take(index), want[index])

  def test_digest_does_not_depend_on_the_blocks(self):
    values = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    digest = stored.joined([values]).digest()
    with mock.patch.object(stored, '_HASHED_AT_ONCE', 40):
      self.assertEqual(stored.joined([values[:5], values[5:]]).digest(), digest)
    self.assertNotEqual(stored.joined([values[::-1]]).digest(), digest)
    self.assertNotEqual(stored.joined([values.reshape(9, 2, 2)]).digest(), digest)


class FixtureTest(absltest.TestCase):

  def test_as_a_data_set(self):
    cache = self.enterContext(tempfile.TemporaryDirectory())
    source = av_clip_fixtures.food101_source('', cache, None)
    source.validate()
    self.assertEqual(source.name, 'food101_fixture')
    self.assertIn('Generated', source.attribution)
    self.assertEqual(source.class_names, av_clip_fixtures.FOOD_CLASSES)
    self.assertEqual(source.fields['image'].shape, (48, *food101.IMAGE))
    self.assertEqual(source.fields['text'].shape, (48, *food101.TEXT))
    np.testing.assert_array_equal(np.bincount(source.fields['label']), np.full(4, 12))
    label, train = source.fields['label'], source.fields['partition'] == 'train'
    for field in ('image', 'text'):
      values = np.asarray(source.fields[field]).mean(axis=1)
      means = np.stack([values[train & (label == k)].mean(axis=0) for k in range(4)])
      nearest = ((values[~train][:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
      np.testing.assert_array_equal(nearest, label[~train])


if __name__ == '__main__':
  absltest.main()
