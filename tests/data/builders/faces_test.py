"""The builders of the face sets, on generated files in each published layout."""

import os
import pathlib
import random
import shutil
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import Image

from unlearn_jax.data import sources
from unlearn_jax.data.builders import face_fixtures
from unlearn_jax.data.builders import faces
from unlearn_jax.data.builders import mucac
from unlearn_jax.data.builders import mufac
from unlearn_jax.data.builders import raf_db

SETS = {
    'mufac': (face_fixtures.write_mufac, mufac.source, face_fixtures.MUFAC_SIZES),
    'mucac': (face_fixtures.write_mucac, mucac.source, face_fixtures.MUCAC_SIZES),
    'raf_db': (face_fixtures.write_raf_db, raf_db.source, face_fixtures.RAF_DB_SIZES),
}
# set -> its list, the list's folder of pictures, a picture, and where the message says to ask
PLACES = {
    'mufac': ('custom_val_dataset.csv', 'val_images', 'F0801_AGE_D_18_a0.jpg', 'korean_family'),
    'mucac': ('CelebA-HQ-identity.txt', 'CelebAMask-HQ/CelebA-HQ-img', '7.jpg', 'on request'),
    'raf_db': ('basic/EmoLabel/list_patition_label.txt', 'basic/Image/aligned',
               'train_00002_aligned.jpg', 'whdeng.cn/RAF'),
}


class FaceCase(parameterized.TestCase):
  """Files are written once; a test that changes them takes a copy."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = tempfile.mkdtemp()
    cls.addClassCleanup(shutil.rmtree, cls.root)
    for name, (write, _, _) in SETS.items():
      os.makedirs(os.path.join(cls.root, name))
      write(os.path.join(cls.root, name))

  def load(self, name, directory=None, cache='cache', image_size=None, sizes=None):
    _, read, own = SETS[name]
    return read(directory or os.path.join(self.root, name), os.path.join(self.root, cache),
                image_size, sizes=sizes or own)

  def copy(self, name):
    directory = os.path.join(self.enter_context(tempfile.TemporaryDirectory()), 'files')
    shutil.copytree(os.path.join(self.root, name), directory)
    return directory

  def change(self, path, old, new):
    """Replaces `old`, which stands in the file once; returns the number of its line."""
    text = pathlib.Path(path).read_text()
    self.assertEqual(text.count(old), 1)
    pathlib.Path(path).write_text(text.replace(old, new))
    return text[:text.index(old)].count('\n') + 1


class FacesTest(FaceCase):
  """What all sets promise."""

  @parameterized.parameters(('mufac', 128), ('mucac', 128), ('raf_db', 100))
  def test_builds(self, name, side):
    source = self.load(name)
    source.validate()
    sizes = SETS[name][2]
    self.assertEqual(source.fields['image'].shape, (sum(sizes.values()), side, side, 3))
    self.assertIsInstance(source.fields['image'], sources.Pictures)
    partition = source.fields['partition']
    self.assertEqual({part: int((partition == part).sum()) for part in sizes}, sizes)
    self.assertNotEmpty(source.attribution)

  @parameterized.parameters(*SETS)
  def test_built_once_and_other_pictures_are_other_data(self, name):
    first = self.load(name).content_hash()
    builder = {'mufac': mufac.Mufac, 'mucac': mucac.Mucac, 'raf_db': raf_db.RafDb}[name]
    with mock.patch.object(builder, 'download_and_prepare', side_effect=AssertionError('again')):
      self.assertEqual(self.load(name).content_hash(), first)
    directory = self.copy(name)
    _, folder, picture, _ = PLACES[name]
    other = next(file for file in sorted(os.listdir(os.path.join(directory, folder)))
                 if file != picture)
    shutil.copyfile(os.path.join(directory, folder, other),
                    os.path.join(directory, folder, picture))
    self.assertNotEqual(self.load(name, directory).content_hash(), first)

  def test_interrupted_build_leaves_nothing(self):
    whole = faces.FaceBuilder._generate_examples

    def interrupted(self, listed):
      for count, example in enumerate(whole(self, listed)):
        if count == 5:
          raise KeyboardInterrupt
        yield example

    with mock.patch.object(faces.FaceBuilder, '_generate_examples', interrupted):
      with self.assertRaises(KeyboardInterrupt):
        self.load('mufac', cache='interrupted')
    self.assertLen(self.load('mufac', cache='interrupted'), sum(face_fixtures.MUFAC_SIZES.values()))

  @parameterized.parameters(*SETS)
  def test_missing_list(self, name):
    wanted, _, _, origin = PLACES[name]
    directory = self.copy(name)
    os.remove(os.path.join(directory, wanted))
    with self.assertRaises(FileNotFoundError) as caught:
      self.load(name, directory)
    message = str(caught.exception)
    for part in (f'{os.path.basename(wanted)} is missing', directory, origin, 'not downloaded',
                 'no redistribution'):
      self.assertIn(part, message)

  @parameterized.parameters(*SETS)
  def test_missing_directory(self, name):
    with self.assertRaisesRegex(FileNotFoundError, r'is missing.*data_dir is not set'):
      sources.get(name)
    absent = os.path.join(self.root, 'absent')
    with self.assertRaisesRegex(FileNotFoundError, f'is missing: looked in {absent}'):
      sources.get(name, data_dir=absent)

  @parameterized.parameters(*SETS)
  def test_missing_picture(self, name):
    _, folder, picture, _ = PLACES[name]
    directory = self.copy(name)
    os.remove(os.path.join(directory, folder, picture))
    with self.assertRaisesRegex(FileNotFoundError, f'{picture} .*is missing: looked in .*{folder}'):
      self.load(name, directory)

  @parameterized.parameters(*SETS)
  def test_damaged_picture(self, name):
    _, folder, picture, _ = PLACES[name]
    directory = self.copy(name)
    path = pathlib.Path(directory, folder, picture)
    path.write_bytes(path.read_bytes()[:500])
    with self.assertRaisesRegex(ValueError, f'{picture} is no complete picture'):
      self.load(name, directory)
    Image.new('RGB', (100, 90)).save(path)
    with self.assertRaisesRegex(ValueError, f'{picture} is not square: 100x90'):
      self.load(name, directory)

  @parameterized.parameters(*SETS)
  def test_other_numbers_of_pictures_than_published(self, name):
    # What a user gets who passes these files as the real set.
    with self.assertRaises(ValueError) as caught:
      sources.get(name, data_dir=os.path.join(self.root, name))
    published = {'mufac': mufac, 'mucac': mucac, 'raf_db': raf_db}[name].SIZES
    for part, count in SETS[name][2].items():
      if name == 'mufac' and part in ('forget', 'retain'):
        continue  # the first 1,500 rows are forgotten: all of these 80
      self.assertIn(f'{part} {count:,} instead of {published[part]:,}', str(caught.exception))
    self.assertIn('differ from the published ones', str(caught.exception))

  def test_published_sizes(self):
    self.assertEqual(sum(mufac.SIZES.values()), 13_068)
    self.assertEqual(sum(mucac.SIZES.values()), 30_000)
    self.assertEqual(mucac.SIZES['forget'] + mucac.SIZES['retain'], 25_933)
    self.assertEqual(sum(raf_db.SIZES.values()), 15_339)
    self.assertIn('15,385', mucac.Mucac.sizes_note)

  def test_size(self):
    self.assertEqual(self.load('mucac', image_size=16).fields['image'].shape[1:], (16, 16, 3))
    with Image.open(os.path.join(self.root, 'mufac', 'train_images',
                                 'F0001_AGE_D_18_a0.jpg')) as image:
      expected = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(self.load('mufac', image_size=32).fields['image'].bytes[0],
                                  expected)


class MufacTest(FaceCase):

  def test_labels_and_people(self):
    source = self.load('mufac')
    rows = [line.split(',') for part in ('train', 'val', 'test') for line in pathlib.Path(
        self.root, 'mufac', f'custom_{part}_dataset.csv').read_text().splitlines()[1:]]
    self.assertEqual(source.num_classes, 8)
    np.testing.assert_array_equal(source.fields['label'], ['abcdefgh'.index(r[3]) for r in rows])
    np.testing.assert_array_equal(source.identity, [f'{r[1]}_{r[2]}' for r in rows])
    np.testing.assert_array_equal(np.flatnonzero(source.fields['partition'] == 'forget'),
                                  np.arange(30))  # the first rows
    with Image.open(os.path.join(self.root, 'mufac', 'train_images', rows[3][4])) as image:
      np.testing.assert_array_equal(source.fields['image'].bytes[3], np.asarray(image))

  def test_unpacked_archive(self):
    directory = self.enter_context(tempfile.TemporaryDirectory())
    shutil.copytree(os.path.join(self.root, 'mufac'),
                    os.path.join(directory, 'custom_korean_family_dataset_resolution_128'))
    self.assertEqual(self.load('mufac', directory).content_hash(),
                     self.load('mufac').content_hash())

  @parameterized.parameters(
      ('4,F0001,S,', '4,,S,', 'not one value per column'),
      ('4,F0001,S,', '4,F0001,S,extra,', 'not one value per column'),
      ('4,F0001,S,d', '4,F0001,S,i', "age_class 'i' is not one of a to h"),
      ('4,F0001,S,d', '4,F0001,S,e', 'not a picture of person S of family F0001 in age class e'),
      ('4,F0001,S,', '4,F0002,S,', 'not a picture of person S of family F0002'),
      ('4,F0001,S,', '4,F0001,M,', 'not a picture of person M'))
  def test_damaged_line(self, old, new, message):
    directory = self.copy('mufac')
    path = os.path.join(directory, 'custom_train_dataset.csv')
    line = self.change(path, old, new)
    with self.assertRaisesRegex(ValueError, f'{path}, line {line}: .*{message}'):
      self.load('mufac', directory)

  def test_damaged_list(self):
    directory = self.copy('mufac')
    path = os.path.join(directory, 'custom_test_dataset.csv')
    self.change(path, 'person_id', 'who')
    with self.assertRaisesRegex(ValueError, f'{path}, line 1: no column person_id; there is '):
      self.load('mufac', directory)
    pathlib.Path(path).write_bytes(b'\xff\xfe\x00')
    with self.assertRaisesRegex(ValueError, f'{path} is no list of pictures'):
      self.load('mufac', directory)

  def test_family_in_two_lists(self):
    directory = self.copy('mufac')
    name = 'F0801_AGE_D_18_a0.jpg'
    with open(os.path.join(directory, 'custom_test_dataset.csv'), 'a') as file:
      file.write(f'32,F0801,D,a,{name}\n')
    shutil.copyfile(os.path.join(directory, 'val_images', name),
                    os.path.join(directory, 'test_images', name))
    with self.assertRaisesRegex(ValueError, 'line 34: family F0801 stands in the val list too'):
      self.load('mufac', directory)


class MucacTest(FaceCase):

  def test_attributes_and_people(self):
    source = self.load('mucac')
    self.assertEqual(source.num_classes, 3)
    self.assertEqual(source.fields['label'].dtype, np.float32)
    lines = pathlib.Path(self.root, 'mucac', 'CelebA-HQ-attribute.txt').read_text().splitlines()
    names = lines[1].split()
    for index, line in enumerate(lines[2:]):
      words = line.split()
      expected = [float(words[1 + names.index(name)] == '1')
                  for name in ('Male', 'Smiling', 'Young')]
      np.testing.assert_array_equal(source.fields['label'][index], expected)
    self.assertTrue((source.fields['label'].mean(axis=0) > 0.2).all())
    border = {'test': range(190), 'forget': range(190, 1250), 'retain': range(1250, 4855),
              'unseen': range(4855, 10_000)}
    for person, partition in zip(source.identity, source.fields['partition']):
      self.assertIn(int(person), border[partition])

  def test_order_is_that_of_the_numbers(self):
    source = self.load('mucac')
    path = os.path.join(self.root, 'mucac', 'CelebAMask-HQ', 'CelebA-HQ-img', '10.jpg')
    np.testing.assert_array_equal(source.fields['image'].bytes[10],
                                  np.asarray(faces.picture(path, 128)))

  def test_gender(self):
    both = self.load('mucac')
    gender = mucac.gender_source(os.path.join(self.root, 'mucac'),
                                 os.path.join(self.root, 'cache'), None,
                                 sizes=face_fixtures.MUCAC_SIZES)
    gender.validate()
    self.assertEqual((gender.name, gender.num_classes), ('mucac_gender', 2))
    np.testing.assert_array_equal(gender.fields['label'], both.fields['label'][:, 0])
    self.assertEqual(gender.fields['label'].dtype, np.int32)

  def test_lists_of_celebamask_hq(self):
    directory = self.copy('mucac')
    os.rename(os.path.join(directory, 'CelebA-HQ-attribute.txt'),
              os.path.join(directory, 'CelebAMask-HQ', 'CelebAMask-HQ-attribute-anno.txt'))
    self.assertEqual(self.load('mucac', directory).content_hash(),
                     self.load('mucac').content_hash())

  @parameterized.parameters(
      ('identity', '\n7.jpg 3\n', '\n7.jpg three\n', 1, 'number of its identity expected'),
      ('identity', '\n7.jpg 3\n', '\n7.jpg\n', 1, 'number of its identity expected'),
      ('identity', '\n7.jpg 3\n', '\n6.jpg 3\n', 1, 'a picture, once'),
      ('attribute', '\n7.jpg  -1', '\n7.jpg  0', 1, '40 values of -1 or 1 expected'),
      ('attribute', '\n7.jpg  -1', '\n7.jpg', 1, 'and 40 words in all'),
      ('attribute', 'Smiling', 'Smile', 0, 'no attribute Smiling among 40'),
      ('attribute', '112\n', '113\n', 0, '113 pictures announced, 112 listed'),
      ('attribute', '112\n', '', 0, 'the number of pictures'))
  def test_damaged_line(self, kind, old, new, below, message):
    directory = self.copy('mucac')
    path = os.path.join(directory, f'CelebA-HQ-{kind}.txt')
    line = self.change(path, old, new) + below
    with self.assertRaisesRegex(ValueError, f'{path}, line {line}: .*{message}'):
      self.load('mucac', directory)

  def test_lists_that_disagree(self):
    directory = self.copy('mucac')
    self.change(os.path.join(directory, 'CelebA-HQ-identity.txt'), '\n7.jpg 3\n', '\n')
    with self.assertRaisesRegex(ValueError, '1 pictures stand in only one of .*7.jpg'):
      self.load('mucac', directory)


class RafDbTest(FaceCase):

  def test_labels_and_dlfds_partition(self):
    source = self.load('raf_db')
    self.assertEqual(source.num_classes, 7)
    listed = dict(line.split() for line in pathlib.Path(
        self.root, 'raf_db', PLACES['raf_db'][0]).read_text().splitlines())
    for name, label in zip(source.identity, source.fields['label']):
      self.assertEqual(label, int(listed[f'{name}.jpg']) - 1)
    self.assertLen(set(source.identity), 182)
    # As DLFD's loader: folders of classes in order, names in order, Python's shuffle with seed 42.
    order = sorted((name for name in listed if name.startswith('train')),
                   key=lambda name: (listed[name], name))
    indices = list(range(len(order)))
    random.seed(42)
    random.shuffle(indices)
    partition = dict(zip(source.identity, source.fields['partition']))
    for position, index in enumerate(indices):
      expected = 'val' if position < 14 else 'retain' if position < 14 + 88 else 'forget'
      self.assertEqual(partition[order[index].removesuffix('.jpg')], expected)

  def test_sizes_follow_from_the_rule(self):
    train = [faces.Face('', (0,), str(index), 'train') for index in range(12_271)]
    found = [face.partition for face in raf_db._partitioned(train)]
    self.assertEqual({name: found.count(name) for name in ('val', 'retain', 'forget')},
                     {'val': 1227, 'retain': 7730, 'forget': 3314})

  def test_grey(self):
    source = self.load('raf_db')
    image = source.fields['image'].bytes
    np.testing.assert_array_equal(image[..., 0], image[..., 2])
    path = os.path.join(self.root, 'raf_db', PLACES['raf_db'][1],
                        f'{source.identity[5]}_aligned.jpg')
    with Image.open(path) as picture:
      np.testing.assert_array_equal(image[5, ..., 1], np.asarray(picture.convert('L')))

  @parameterized.parameters((('EmoLabel', 'Image'), ''), (('EmoLabel', 'Image'), 'basic'))
  def test_layouts(self, names, top):
    directory = self.enter_context(tempfile.TemporaryDirectory())
    for name in names:
      shutil.copytree(os.path.join(self.root, 'raf_db', 'basic', name),
                      os.path.join(directory, top, name))
    self.assertEqual(self.load('raf_db', directory).content_hash(),
                     self.load('raf_db').content_hash())

  @parameterized.parameters(
      ('train_00002.jpg 2', 'train_00002.jpg 8'), ('train_00002.jpg 2', 'train_00002.jpg'),
      ('train_00002.jpg 2', 'train_00001.jpg 2'), ('train_00002.jpg 2', 'other_00002.jpg 2'))
  def test_damaged_line(self, old, new):
    directory = self.copy('raf_db')
    path = os.path.join(directory, PLACES['raf_db'][0])
    line = self.change(path, old, new)
    with self.assertRaisesRegex(ValueError, f'{path}, line {line}: a picture train_NUMBER'):
      self.load('raf_db', directory)


class FixturesTest(absltest.TestCase):

  def test_names_say_what_they_are(self):
    source = sources.get('mucac_gender_fixture', image_size=16)
    self.assertEqual(source.name, 'mucac_gender_fixture')
    self.assertIn('Generated', source.attribution)

  def test_no_noise_for_attributes(self):
    with self.assertRaisesRegex(ValueError, 'random classes.*has attributes'):
      sources.get('mucac_fixture', image_size=16, label_noise=0.1)


if __name__ == '__main__':
  absltest.main()
