"""Tests for the Omniglot builder, on archives of our own in the published layout."""

import hashlib
import io
import os
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock
import zipfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import Image

from unlearn_jax.data import sources
from unlearn_jax.data.builders import omniglot

SETS = {'images_background_small1.zip': ('Greek', 'Korean'),
        'images_background_small2.zip': ('Greek', 'Tagalog')}
CHARACTERS, DRAWERS = 2, 3


def drawing(alphabet, character, drawer):
  """Ink on 105x105, different for every picture."""
  seed = [*alphabet.encode(), character, drawer]
  return np.random.default_rng(seed).random((105, 105)) < 0.1


def write_archives(directory, prefix='', only=None, change=False):
  for name, alphabets in SETS.items():
    if only not in (None, name):
      continue
    with zipfile.ZipFile(os.path.join(directory, prefix + name), 'w') as archive:
      top = name.removesuffix('.zip')
      archive.writestr(f'{top}/', '')
      for alphabet in alphabets:
        for character in range(1, CHARACTERS + 1):
          for drawer in range(1, DRAWERS + 1):
            ink = drawing(alphabet, character, drawer)
            if change and name.endswith('2.zip'):
              ink = ~ink
            data = io.BytesIO()
            Image.fromarray(~ink).save(data, 'PNG')  # 1 bit, ink is black, as published
            archive.writestr(
                f'{top}/{alphabet}/character{character:02}/{character:04}_{drawer:02}.png',
                data.getvalue())


class OmniglotTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.data_dir = self.enter_context(tempfile.TemporaryDirectory())
    self.cache = self.enter_context(tempfile.TemporaryDirectory())
    self.enter_context(mock.patch.dict(os.environ, UNLEARN_JAX_CACHE=self.cache))
    # No test may reach for the network; those that download name a place of their own.
    self.enter_context(mock.patch.object(omniglot, 'URL', 'file:///nowhere/'))

  @parameterized.parameters('', 'omniglot_')
  def test_reads_the_published_layout(self, prefix):
    write_archives(self.data_dir, prefix)
    records = omniglot.load(self.data_dir, self.cache)
    self.assertLen(records.label, 18)  # three alphabets: Greek stands in both archives
    self.assertEqual(set(records.alphabet), {'Greek', 'Korean', 'Tagalog'})
    self.assertLen(set(records.label), 6)
    self.assertLen(set(records.identity), 9)
    for image, label, identity in zip(records.image, records.label, records.identity):
      alphabet, character = label.split('/character')
      self.assertEqual(identity.split('/')[0], alphabet)
      expected = drawing(alphabet, int(character), int(identity.split('/')[1]))
      np.testing.assert_array_equal(image, expected)

  def test_source(self):
    write_archives(self.data_dir)
    source = sources.get('omniglot', data_dir=self.data_dir)
    source.validate()
    self.assertEqual(source.fields['image'].shape, (18, 32, 32, 1))
    self.assertEqual(source.num_classes, 6)
    self.assertIn('Lake', source.attribution)
    full = sources.get('omniglot', data_dir=self.data_dir, image_size=105).fields['image']
    np.testing.assert_array_equal(np.unique(full), [0, 1])
    self.assertLess(full.mean(), 0.12)  # ink is 1
    np.testing.assert_allclose(source.fields['image'].mean(), full.mean(), rtol=1e-5)
    np.testing.assert_array_equal(source.fields['label'], np.repeat(np.arange(6), 3))

  def test_built_once(self):
    write_archives(self.data_dir)
    first = sources.get('omniglot', data_dir=self.data_dir).content_hash()
    with mock.patch.object(omniglot.OmniglotSmall, 'download_and_prepare',
                           side_effect=AssertionError('built again')):
      self.assertEqual(sources.get('omniglot', data_dir=self.data_dir).content_hash(), first)

  def test_other_archives_are_other_data(self):
    write_archives(self.data_dir)
    first = sources.get('omniglot', data_dir=self.data_dir).content_hash()
    with mock.patch.dict(SETS, {'images_background_small2.zip': ('Latin',)}):
      write_archives(self.data_dir)
    self.assertNotEqual(sources.get('omniglot', data_dir=self.data_dir).content_hash(), first)

  def test_interrupted_build_leaves_nothing(self):
    write_archives(self.data_dir)
    whole = omniglot.OmniglotSmall._generate_examples

    def interrupted(self, paths):
      for count, example in enumerate(whole(self, paths)):
        if count == 5:
          raise KeyboardInterrupt
        yield example

    with mock.patch.object(omniglot.OmniglotSmall, '_generate_examples', interrupted):
      with self.assertRaises(KeyboardInterrupt):
        omniglot.load(self.data_dir, self.cache)
    self.assertLen(omniglot.load(self.data_dir, self.cache).label, 18)

  def test_loser_of_a_race_reads_the_winners_build(self):
    write_archives(self.data_dir)
    prepare = omniglot.OmniglotSmall.download_and_prepare

    def late(self, **kwargs):
      prepare(self, **kwargs)
      raise OSError(39, 'Directory not empty')

    with mock.patch.object(omniglot.OmniglotSmall, 'download_and_prepare', late):
      self.assertLen(omniglot.load(self.data_dir, self.cache).label, 18)

  def test_missing_archive(self):
    write_archives(self.data_dir, only='images_background_small1.zip')
    with self.assertRaises(FileNotFoundError) as caught:
      sources.get('omniglot', data_dir=self.data_dir)
    message = str(caught.exception)
    self.assertIn('images_background_small2.zip is missing', message)
    self.assertIn(self.data_dir, message)
    self.assertIn('omniglot_images_background_small2.zip', message)
    self.assertIn(omniglot.URL + 'images_background_small2.zip', message)
    with self.assertRaisesRegex(FileNotFoundError, 'small1.zip is missing.*data_dir is not set'):
      sources.get('omniglot')
    absent = os.path.join(self.data_dir, 'absent')
    with self.assertRaisesRegex(FileNotFoundError, f'looked in {absent}'):
      sources.get('omniglot', data_dir=absent)

  def test_download(self):
    site = self.enter_context(tempfile.TemporaryDirectory())
    write_archives(site)
    hashes = {name: hashlib.sha256(pathlib.Path(site, name).read_bytes()).hexdigest()
              for name in SETS}
    with mock.patch.object(omniglot, 'URL', pathlib.Path(site).as_uri() + '/'):
      with self.assertRaisesRegex(ValueError, 'not the published archive'):
        omniglot.load('', self.cache)
      with mock.patch.object(omniglot, 'ARCHIVES', hashes):
        records = omniglot.load('', self.cache)
    self.assertLen(records.label, 18)
    with mock.patch.object(omniglot, 'ARCHIVES', hashes):  # and once more, without the site
      self.assertLen(omniglot.load('', self.cache).label, 18)

  def test_damaged_archives(self):
    write_archives(self.data_dir)
    path = os.path.join(self.data_dir, 'images_background_small2.zip')
    whole = pathlib.Path(path).read_bytes()
    pathlib.Path(path).write_bytes(whole[:len(whole) // 2])
    with self.assertRaisesRegex(ValueError, 'small2.zip is not a complete zip archive'):
      omniglot.load(self.data_dir, self.cache)
    with zipfile.ZipFile(path, 'w') as archive:
      archive.writestr('readme.txt', 'nothing here')
    with self.assertRaisesRegex(ValueError, 'holds no pictures'):
      omniglot.load(self.data_dir, self.cache)
    write_archives(self.data_dir, change=True)
    with self.assertRaisesRegex(ValueError, 'Greek/.* differs from the same picture'):
      omniglot.load(self.data_dir, self.cache)

  def test_works_without_tensorflow(self):
    write_archives(self.data_dir)
    code = ('import importlib.machinery, sys\n'
            'finder = importlib.machinery.PathFinder\n'
            'find = finder.find_spec\n'
            'finder.find_spec = lambda name, *args: (\n'
            '    None if name.split(".")[0] == "tensorflow" else find(name, *args))\n'
            'from unlearn_jax.data import sources\n'
            'assert "tensorflow_datasets" not in sys.modules\n'
            f'print(len(sources.get("omniglot", data_dir={self.data_dir!r})))')
    root = str(pathlib.Path(omniglot.__file__).parents[3])
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False,
                         env={**os.environ, 'PYTHONPATH': root})
    self.assertEqual(run.returncode, 0, run.stderr)
    self.assertEqual(run.stdout.split()[-1], '18')


if __name__ == '__main__':
  absltest.main()
