"""The evaluation sets of CLIP: their table, what TFDS prepared, and three published layouts."""

import io
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
from etils import epath
import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

from unlearn_jax.data.builders import downstream
from unlearn_jax.data.builders import downstream_fixtures
from unlearn_jax.evals import zero_shot

SIZES = {'imagenet': 1000, 'caltech101': 102, 'cifar10': 10, 'cifar100': 100, 'dtd': 47, 'sst2': 2,
         'flowers102': 102, 'food101': 101, 'gtsrb': 43, 'oxford_pets': 37, 'resisc45': 45,
         'sun397': 397, 'eurosat': 10, 'stanford_cars': 196, 'stl10': 10}


def prepare(directory, classes=47, name='dtd'):
  """A set as TFDS leaves it behind, under the name of a stock builder, without TensorFlow."""

  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('3.0.1')
    # TFDS 4.9.10 finds this by way of `importlib_resources`, which it forgets to depend on.
    code_path = epath.Path(__file__)

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
          'image': tfds.features.Image(shape=(None, None, 3)),
          'label': tfds.features.ClassLabel(num_classes=classes)}))

    def _split_generators(self, dl_manager):
      return {split: self._generate_examples() for split in ('train', 'test')}

    def _generate_examples(self):
      for row in range(20):
        encoded = io.BytesIO()
        Image.fromarray(np.full((6, 9, 3), row * 10, np.uint8)).save(encoded, 'PNG')
        encoded.seek(0)
        yield row, {'image': encoded, 'label': row}

  Builder.name = name
  Builder(data_dir=directory, file_format='array_record').download_and_prepare()


class TableTest(parameterized.TestCase):

  def test_every_set_has_what_an_evaluation_needs(self):
    self.assertLen(downstream.SETS, 16)
    for name, entry in downstream.SETS.items():
      self.assertIn(name, zero_shot.templates())
      self.assertEqual(tuple(entry.splits), downstream.SPLITS)
      self.assertLen(set(entry.splits.values()), 3)
      self.assertNotEqual(bool(entry.tfds), name in ('aircraft', 'gtsrb', 'sst2'))
      if name != 'aircraft':
        names = downstream.class_names(name)
        self.assertLen(set(names), SIZES[name])
        self.assertTrue(all(word == word.strip() and '_' not in word for word in names))
    self.assertEqual({name for name, entry in downstream.SETS.items() if entry.per_class},
                     {'caltech101', 'aircraft', 'flowers102', 'oxford_pets'})

  def test_class_names_stand_in_the_order_of_tfds(self):
    # Sets whose stock builders list their classes before anything is prepared.
    def plain(name):
      return name.lower().replace('_', ' ').replace('-', ' ').replace('/', ' ')

    with tempfile.TemporaryDirectory() as directory:
      for name in ('dtd', 'food101', 'oxford_pets', 'resisc45', 'sun397', 'stanford_cars',
                   'caltech101', 'flowers102'):
        theirs = tfds.builder(downstream.SETS[name].tfds, data_dir=directory
                              ).info.features['label'].names
        theirs = [plain(text[3:] if name == 'sun397' else text) for text in theirs]
        ours = [plain(text) for text in downstream.class_names(name)]
        differ = [pair for pair in zip(theirs, ours) if pair[0] != pair[1]]
        self.assertLen(ours, len(theirs))
        if name == 'caltech101':  # 13 classes are called otherwise by CLIP's authors
          self.assertLen(differ, 13)
          self.assertIn(('faces', 'off center face'), differ)
          self.assertIn(('car side', 'side of a car'), differ)
        elif name == 'flowers102':
          self.assertEqual(differ, [('pink yellow dahlia?', 'pink and yellow dahlia'),
                                    ('ball moss', 'air plant')])
        else:
          self.assertEqual(differ, [], name)

  def test_names_of_imagenet_and_eurosat(self):
    names = downstream.class_names('imagenet')
    self.assertEqual((names[0], names[657], names[744], names[836], names[837], names[999]),
                     ('tench', 'missile', 'projectile', 'sunglass', 'sunglasses', 'toilet paper'))
    self.assertEqual(downstream.class_names('eurosat')[5:8], (
        'pasture land', 'permanent crop land', 'residential buildings or homes or apartments'))

  def test_unknown_names(self):
    with self.assertRaisesRegex(ValueError, "did you mean 'cifar100'"):
      downstream.get('cifar1000', '')
    with self.assertRaisesRegex(ValueError, "no split named 'tests'; did you mean 'test'"):
      downstream.get('dtd', '', split='tests')
    with self.assertRaisesRegex(ValueError, 'image_size must be a positive integer'):
      downstream.get('dtd', '', image_size=0)


class PreparedTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.data_dir = self.enter_context(tempfile.TemporaryDirectory())

  def test_reads_what_tfds_prepared(self):
    prepare(self.data_dir)
    source = downstream.get('dtd', self.data_dir, image_size=4)
    self.assertLen(source, 20)
    self.assertEqual(source.class_names[:2], ('banded', 'blotchy'))
    images, labels = source.fields['image'][:], source.fields['label']
    self.assertEqual((images.shape, images.dtype), ((20, 4, 4, 3), np.float32))
    self.assertCountEqual(labels, range(20))
    # Each picture has the brightness of its label: pictures and labels belong together.
    np.testing.assert_allclose(images, np.broadcast_to(
        labels[:, None, None, None] * np.float32(10 / 255), images.shape), atol=1e-6)

  def test_slices_share_no_record(self):
    prepare(self.data_dir, name='caltech101', classes=102)
    train, validation = (downstream.get('caltech101', self.data_dir, split=split).fields['label']
                         for split in ('train', 'validation'))
    self.assertLen(train, 18)
    self.assertCountEqual([*train, *validation], range(20))

  def test_not_prepared(self):
    for name, part in (('dtd', 'tfds build dtd --data_dir=.* --file_format=array_record$'),
                       ('imagenet', 'tfds build imagenet2012 .* --manual_dir=ARCHIVES'),
                       ('eurosat', 'has no eurosat/rgb; prepare it: tfds build eurosat/rgb')):
      with self.assertRaisesRegex(FileNotFoundError, part):
        downstream.get(name, self.data_dir)
    with self.assertRaisesRegex(FileNotFoundError, r'data_dir \(not set\) has no dtd'):
      downstream.get('dtd', '')

  def test_prepared_otherwise(self):
    prepare(self.data_dir, name='stl10', classes=20)
    with self.assertRaisesRegex(ValueError, 'has 20 classes, STL10 has 10'):
      downstream.get('stl10', self.data_dir)
    prepare(self.data_dir)
    with self.assertRaisesRegex(ValueError, "has no split 'validation', only train, test"):
      downstream.get('dtd', self.data_dir, split='validation')
    info = next(pathlib.Path(self.data_dir, 'dtd').glob('*/dataset_info.json'))
    info.write_text(info.read_text().replace('array_record', 'tfrecord'))
    with self.assertRaisesRegex(FileNotFoundError, 'in the format tfrecord, .* prepare it again'):
      downstream.get('dtd', self.data_dir)

  def test_tensorflow_is_not_imported(self):
    prepare(self.data_dir)
    code = ('import sys; from unlearn_jax.data.builders import downstream; '
            f'downstream.get("dtd", {self.data_dir!r}).fields["image"][:2]; '
            'print("tensorflow" in sys.modules)')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True,
                          cwd=pathlib.Path(__file__).parents[3])
    self.assertEqual(done.stdout.strip(), 'False')


class PublishedTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.data_dir = self.enter_context(tempfile.TemporaryDirectory())
    self.root = pathlib.Path(self.data_dir)

  @parameterized.parameters(('aircraft', 3, (12, 12, 12)), ('gtsrb', 43, (172, 86, 172)),
                            ('sst2', 2, (8, 8, 8)))
  def test_layout(self, name, classes, sizes):
    downstream_fixtures.write(name, self.data_dir)
    names = []
    for split, size in zip(downstream.SPLITS, sizes):
      source = downstream.get(name, self.data_dir, split=split, image_size=8)
      self.assertLen(source, size)
      self.assertLen(source.class_names, classes)
      labels = source.fields['label']
      np.testing.assert_array_equal(np.bincount(labels), np.full(classes, size // classes))
      names += [source.fields['image'].name(row) for row in range(size)]
      # Pictures of a class resemble one another more than those of other classes.
      images = source.fields['image'][:].reshape(size, -1)
      distance = np.linalg.norm(images[:, None] - images, axis=-1) + 1e9 * np.eye(size)
      same = labels[distance.argmin(axis=1)] == labels
      self.assertGreater(same.mean(), 0.9)
    self.assertLen(set(names), sum(sizes))  # no picture in two splits

  def test_aircraft_names(self):
    downstream_fixtures.write('aircraft', self.data_dir)
    source = downstream.get('aircraft', str(self.root / 'fgvc-aircraft-2013b'))
    self.assertEqual(source.class_names, ('707-320', 'BAE 146-200', 'F-16A/B'))

  def test_gtsrb_keeps_the_photographs_of_a_sign_together(self):
    downstream_fixtures.write('gtsrb', self.data_dir)
    train, validation = (downstream.get('gtsrb', self.data_dir, split=split)
                         for split in ('train', 'validation'))
    self.assertEmpty(set(train.identity) & set(validation.identity))
    self.assertEqual(set(validation.identity), {f'{label:05d}/00002' for label in range(43)})

  @parameterized.parameters('', 'GTSRB/Final_Test/Images')
  def test_gtsrb_table_elsewhere(self, folder):
    downstream_fixtures.write('gtsrb', self.data_dir)
    table = self.root / 'GTSRB' / 'GT-final_test.csv'
    table.rename(self.root / folder / table.name)
    self.assertLen(downstream.get('gtsrb', self.data_dir), 172)
    (self.root / folder / table.name).unlink()
    with self.assertRaisesRegex(FileNotFoundError, 'GT-final_test.csv is missing: .*of its own'):
      downstream.get('gtsrb', self.data_dir)

  @parameterized.parameters(('aircraft', 'data/variants.txt'), ('sst2', 'test'),
                            ('gtsrb', 'Final_Test/Images'))
  def test_nothing_there(self, name, what):
    with self.assertRaisesRegex(FileNotFoundError, f'{what} is missing: looked in {self.data_dir}'):
      downstream.get(name, self.data_dir)
    with self.assertRaisesRegex(FileNotFoundError, 'data_dir, which is not set'):
      downstream.get(name, '')

  def test_damaged(self):
    for name in ('aircraft', 'gtsrb', 'sst2'):
      downstream_fixtures.write(name, self.data_dir)
    lists = self.root / 'fgvc-aircraft-2013b' / 'data' / 'images_variant_test.txt'
    text = lists.read_text()
    lists.write_text(text.replace('707-320', '707', 1))
    with self.assertRaisesRegex(ValueError, r"images_variant_test.txt:1: '2000000 707' is no pict"):
      downstream.get('aircraft', self.data_dir)
    lists.write_text(text + '9999999 707-320\n')
    with self.assertRaisesRegex(FileNotFoundError, '9999999.jpg is listed but missing'):
      downstream.get('aircraft', self.data_dir)
    lists.unlink()
    with self.assertRaisesRegex(FileNotFoundError, 'images_variant_test.txt is missing'):
      downstream.get('aircraft', self.data_dir)
    table = self.root / 'GTSRB' / 'GT-final_test.csv'
    table.write_text(table.read_text().replace(';3\n', ';three\n', 1))
    with self.assertRaisesRegex(ValueError, 'GT-final_test.csv:5: no Filename and ClassId'):
      downstream.get('gtsrb', self.data_dir)
    table.write_text('Filename;Width\n00000.ppm;12\n')  # as GT-final_test.test.csv: no classes
    with self.assertRaisesRegex(ValueError, ':2: no Filename and ClassId'):
      downstream.get('gtsrb', self.data_dir)
    picture = next((self.root / 'rendered-sst2' / 'test' / 'positive').iterdir())
    picture.write_bytes(picture.read_bytes()[:40])
    with self.assertRaisesRegex(ValueError, f'positive/{picture.name} is no complete picture'):
      _ = downstream.get('sst2', self.data_dir).fields['image'][:]
    for picture in (self.root / 'rendered-sst2' / 'train').rglob('*.png'):
      picture.unlink()
    with self.assertRaisesRegex(ValueError, 'lists no picture'):
      downstream.get('sst2', self.data_dir, split='train')

  def test_fixtures_of_other_sets(self):
    with self.assertRaisesRegex(ValueError, "not for 'dtd'"):
      downstream_fixtures.write('dtd', self.data_dir)


if __name__ == '__main__':
  absltest.main()
