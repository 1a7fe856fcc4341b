"""Tests for what the builders of the usual picture sets share, on generated files."""

import hashlib
import importlib.resources.abc
import io
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from array_record.python import array_record_module
import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

from unlearn_jax.data import sources
from unlearn_jax.data import splits
from unlearn_jax.data.builders import fashion_mnist
from unlearn_jax.data.builders import published
from unlearn_jax.data.builders import published_fixtures

NAMES = {'cifar10': (32, 32, 3), 'cifar100': (32, 32, 3), 'fashion_mnist': (28, 28, 1),
         'svhn_cropped': (32, 32, 3)}


class PublishedTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.data_dir = self.enter_context(tempfile.TemporaryDirectory())
    self.cache = self.enter_context(tempfile.TemporaryDirectory())
    self.enter_context(mock.patch.dict(os.environ, UNLEARN_JAX_CACHE=self.cache))
    # No test may reach for the network; those that download name a place of their own.
    self.enter_context(mock.patch.object(
        published.urllib.request, 'urlopen', side_effect=OSError('no network')))

  def serve(self, builder, hashes=None):
    """Makes every file of a builder downloadable from a directory of the test's own."""
    site = self.enter_context(tempfile.TemporaryDirectory())
    published_fixtures.write(builder.tfds_name, site)
    files = [file._replace(
        url=pathlib.Path(site, file.name).as_uri(),
        sha256=hashes or hashlib.sha256(pathlib.Path(site, file.name).read_bytes()).hexdigest())
             for file in builder.files]
    self.enter_context(mock.patch.object(builder, 'files', tuple(files)))
    self.enter_context(mock.patch.object(
        published.urllib.request, 'urlopen',
        lambda url, timeout: open(url.removeprefix('file://'), 'rb')))
    return site

  def expected(self, name, train=8, test=8):
    parts = [published_fixtures.pictures(name, 'train', train),
             published_fixtures.pictures(name, 'test', test)]
    return [np.concatenate(arrays) for arrays in zip(*parts)]

  @parameterized.parameters(*NAMES)
  def test_reads_the_published_layout(self, name):
    published_fixtures.write(name, self.data_dir)
    source = sources.get(name, data_dir=self.data_dir)
    source.validate()
    images, labels = self.expected(name)
    self.assertEqual(source.fields['image'].shape, (len(labels), *NAMES[name]))
    np.testing.assert_array_equal(source.fields['image'].bytes, images)
    np.testing.assert_array_equal(source.fields['label'], labels)
    partition = source.fields['partition']
    self.assertEqual(partition.tolist(), ['train'] * (len(labels) // 2)
                     + ['test'] * (len(labels) // 2))
    self.assertEqual(source.num_classes, labels.max() + 1)
    self.assertLen(np.unique(source.identity), len(labels))

  def test_other_numbers_than_published_are_named(self):
    published_fixtures.write('fashion_mnist', self.data_dir)
    source = sources.get('fashion_mnist', data_dir=self.data_dir)
    self.assertIn('Not the published set: 80 train, 80 test pictures instead of 60,000 train, '
                  '10,000 test.', source.attribution)
    with mock.patch.object(fashion_mnist.PublishedFashionMnist, 'sizes',
                           {'train': 80, 'test': 80}):
      source = sources.get('fashion_mnist', data_dir=self.data_dir)
    self.assertEqual(source.attribution, fashion_mnist.PublishedFashionMnist.attribution)

  def test_image_size(self):
    published_fixtures.write('cifar10', self.data_dir)
    native = sources.get('cifar10', data_dir=self.data_dir).fields['image'].bytes
    half = sources.get('cifar10', data_dir=self.data_dir, image_size=16).fields['image']
    mean = native.reshape(-1, 16, 2, 16, 2, 3).mean((2, 4))
    np.testing.assert_array_equal(half.bytes, np.rint(mean))  # kept as bytes
    same = sources.get('cifar10', data_dir=self.data_dir, image_size=32).fields['image']
    np.testing.assert_array_equal(same.bytes, native)

  def test_built_once_per_content(self):
    published_fixtures.write('fashion_mnist', self.data_dir)
    first = sources.get('fashion_mnist', data_dir=self.data_dir).content_hash()
    with mock.patch.object(fashion_mnist.PublishedFashionMnist, 'download_and_prepare',
                           side_effect=AssertionError('built again')):
      again = sources.get('fashion_mnist', data_dir=self.data_dir).content_hash()
    self.assertEqual(again, first)
    published_fixtures.write('fashion_mnist', self.data_dir, train=9)
    other = sources.get('fashion_mnist', data_dir=self.data_dir)
    self.assertLen(other, 170)
    self.assertNotEqual(other.content_hash(), first)

  def test_interrupted_build_leaves_nothing(self):
    published_fixtures.write('fashion_mnist', self.data_dir)
    whole = fashion_mnist.PublishedFashionMnist._generate_examples

    def interrupted(self, split, *arrays):
      for count, example in enumerate(whole(self, split, *arrays)):
        if count == 5:
          raise KeyboardInterrupt
        yield example

    with mock.patch.object(fashion_mnist.PublishedFashionMnist, '_generate_examples', interrupted):
      with self.assertRaises(KeyboardInterrupt):
        sources.get('fashion_mnist', data_dir=self.data_dir)
    self.assertLen(sources.get('fashion_mnist', data_dir=self.data_dir), 160)

  def test_loser_of_a_race_reads_the_winners_build(self):
    published_fixtures.write('fashion_mnist', self.data_dir)
    prepare = fashion_mnist.PublishedFashionMnist.download_and_prepare

    def late(self, **kwargs):
      prepare(self, **kwargs)
      raise OSError(39, 'Directory not empty')

    with mock.patch.object(fashion_mnist.PublishedFashionMnist, 'download_and_prepare', late):
      self.assertLen(sources.get('fashion_mnist', data_dir=self.data_dir), 160)

  def test_missing_file(self):
    published_fixtures.write('fashion_mnist', self.data_dir)
    os.remove(os.path.join(self.data_dir, 't10k-labels-idx1-ubyte.gz'))
    with self.assertRaises(FileNotFoundError) as caught:
      sources.get('fashion_mnist', data_dir=self.data_dir)
    message = str(caught.exception)
    for part in ('Fashion-MNIST: t10k-labels-idx1-ubyte.gz is missing', self.data_dir,
                 'fashion_mnist/VERSION prepared by TFDS', 'no network', 'data_dir',
                 fashion_mnist.PublishedFashionMnist.files[3].url):
      self.assertIn(part, message)
    with self.assertRaisesRegex(FileNotFoundError, 'train-images.*missing.*data_dir is not set'):
      sources.get('fashion_mnist')
    absent = os.path.join(self.data_dir, 'absent')
    with self.assertRaisesRegex(FileNotFoundError, f'looked in {absent}'):
      sources.get('fashion_mnist', data_dir=absent)

  def test_download(self):
    site = self.serve(fashion_mnist.PublishedFashionMnist)
    self.assertLen(sources.get('fashion_mnist'), 160)
    shutil.rmtree(site)
    os.mkdir(site)
    self.assertLen(sources.get('fashion_mnist'), 160)  # once more, without the site

  def test_download_of_something_else(self):
    self.serve(fashion_mnist.PublishedFashionMnist, hashes='0' * 64)
    with self.assertRaisesRegex(ValueError, 'not the published file: SHA-256 .*, expected 0000'):
      sources.get('fashion_mnist')
    left = [name for _, _, names in os.walk(self.cache) for name in names]
    self.assertEmpty([name for name in left if 'ubyte' in name])

  @parameterized.product(name=tuple(NAMES), file_format=('array_record', 'tfrecord'))
  def test_prepared_by_tfds(self, name, file_format):
    """The stock builder's own layout; only what reads the downloads is replaced."""
    self.prepare(name)
    if file_format == 'tfrecord':
      self.as_tfrecord(pathlib.Path(self.data_dir))
    source = sources.get(name, data_dir=self.data_dir)
    images, labels = self.expected(name, 2, 1)
    if name == 'fashion_mnist':  # the stock set has no ids: stored order
      self.assertCountEqual([picture.tobytes() for picture in source.fields['image'].bytes],
                            [picture.tobytes() for picture in images])
      np.testing.assert_array_equal(np.sort(source.fields['label']), np.sort(labels))
    else:
      np.testing.assert_array_equal(source.fields['image'].bytes, images)
      np.testing.assert_array_equal(source.fields['label'], labels)
    self.assertEqual((source.fields['partition'] == 'test').sum(), len(labels) // 3)

  def prepare(self, name):
    stock = tfds.builder_cls(name)

    def examples(split, features):
      for index, (image, label) in enumerate(zip(*published_fixtures.pictures(
          name, split, {'train': 2, 'test': 1}[split]))):
        encoded = io.BytesIO()
        Image.fromarray(image.squeeze()).save(encoded, 'PNG')
        encoded.seek(0)
        example = {'image': encoded, 'label': int(label), 'id': f'{split}_{index:05d}',
                   'coarse_label': 0}
        yield index, {key: value for key, value in example.items() if key in features}

    def split_generators(builder, *args):
      del args
      return {split: examples(split, builder.info.features) for split in ('train', 'test')}

    # TFDS 4.9.10 needs `importlib_resources` and forgets to depend on it.
    with mock.patch.dict(sys.modules, {'importlib_resources': importlib.resources}):
      with mock.patch.object(stock, '_split_generators', split_generators):
        stock(data_dir=self.data_dir, file_format='array_record').download_and_prepare()

  def as_tfrecord(self, directory):
    """Rewrites array_record files: TFDS writes TFRecords with TensorFlow only."""
    for path in directory.rglob('*.array_record-*'):
      reader = array_record_module.ArrayRecordReader(str(path))
      with open(str(path).replace('.array_record-', '.tfrecord-'), 'wb') as file:
        for record in reader.read_all():
          file.write(struct.pack('<Q4x', len(record)) + record + bytes(4))
      reader.close()
      path.unlink()
    info, = directory.rglob('dataset_info.json')
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))

  def test_highest_version_is_read_before_the_files(self):
    self.prepare('cifar10')
    published_fixtures.write('cifar10', self.data_dir)
    self.assertLen(sources.get('cifar10', data_dir=self.data_dir), 30)
    own = pathlib.Path(self.data_dir, 'cifar10')
    version, = own.iterdir()
    for name in ('2.9.10', 'incomplete.AB12_4.0.0'):
      shutil.copytree(version, own / name)
      (own / name / 'dataset_info.json').write_text('not read')
    self.assertLen(sources.get('cifar10', data_dir=self.data_dir), 30)

  def test_truncated_tfrecord(self):
    self.prepare('cifar10')
    self.as_tfrecord(pathlib.Path(self.data_dir))
    path, = pathlib.Path(self.data_dir).rglob('*-train.tfrecord-*')
    whole = path.read_bytes()
    length, = struct.unpack('<Q', whole[:8])
    for size, message in ((length + 16, 'has 1 of 20 pictures'),  # one whole record
                          (length + 14, 'ends inside a record'), (5, 'ends inside a record')):
      path.write_bytes(whole[:size])
      with self.assertRaisesRegex(ValueError, message):
        sources.get('cifar10', data_dir=self.data_dir)

  def test_random_split_forgets_training_pictures_and_tests_on_test_pictures(self):
    source = published_fixtures.cifar10_source('', '', None)
    made = splits.published(source, seed=1, roles={
        'train': {'retain': 0.81, 'forget': 0.09, 'validation': 0.1},
        'test': {'test': 0.5, 'unseen': 0.5}})
    self.assertEqual({name: len(ids) for name, ids in made.indices.items()},
                     {'forget': 7, 'retain': 65, 'validation': 8, 'test': 40, 'unseen': 40})
    for name, ids in made.indices.items():
      expected = 'test' if name in ('test', 'unseen') else 'train'
      self.assertEqual(set(source.fields['partition'][ids]), {expected})

  def test_class_split(self):
    """One class is forgotten; its test pictures are unseen, and in no other split is any of it."""
    source = published_fixtures.cifar10_source('', '', None)
    roles = {'train': {'retain': 0.9, 'validation': 0.1}, 'test': 'test'}
    made = splits.published(source, seed=1, roles=roles, forget_classes=(3,))
    label, partition = source.fields['label'], source.fields['partition']
    for name, ids in made.indices.items():
      self.assertEqual((label[ids] == 3).mean(), float(name in ('forget', 'unseen')))
      self.assertEqual(set(partition[ids]), {'test'} if name in ('test', 'unseen') else {'train'})
    self.assertLen(made.indices['unseen'], 8)
    self.assertLen(made.indices['test'], 72)
    plain = splits.published(source, seed=1, roles={
        'train': {'retain': 0.81, 'forget': 0.09, 'validation': 0.1}, 'test': 'test'})
    trained = [np.union1d(found.indices['retain'], found.indices['forget'])
               for found in (made, plain)]
    np.testing.assert_array_equal(*trained)  # one original model serves both
    with self.assertRaisesRegex(ValueError, 'roles name forget'):
      splits.published(source, roles={'train': 'forget', 'test': 'test'}, forget_classes=(3,))
    with self.assertRaisesRegex(ValueError, '10 lie outside the 10'):
      splits.published(source, roles=roles, forget_classes=(10,))

  def test_works_without_tensorflow(self):
    published_fixtures.write('svhn_cropped', self.data_dir)
    code = ('import importlib.machinery, sys\n'
            'finder = importlib.machinery.PathFinder\n'
            'find = finder.find_spec\n'
            'finder.find_spec = lambda name, *args: (\n'
            '    None if name.split(".")[0] == "tensorflow" else find(name, *args))\n'
            'from unlearn_jax.data import sources\n'
            'assert "tensorflow_datasets" not in sys.modules\n'
            f'print(len(sources.get("svhn_cropped", data_dir={self.data_dir!r})))')
    root = str(pathlib.Path(published.__file__).parents[3])
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False,
                         env={**os.environ, 'PYTHONPATH': root})
    self.assertEqual(run.returncode, 0, run.stderr)
    self.assertEqual(run.stdout.split()[-1], '160')


if __name__ == '__main__':
  absltest.main()
