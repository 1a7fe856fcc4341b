"""Tests for pairs from the web in their three layouts."""

import concurrent.futures
import io
import os
import shutil
import sys
import tarfile
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from unlearn_jax.data import fields
from unlearn_jax.data import sources
from unlearn_jax.data.builders import pair_fixtures
from unlearn_jax.data.builders import web_index
from unlearn_jax.data.builders import web_pairs

WRITERS = {'tar': pair_fixtures.write_tars, 'parquet': pair_fixtures.write_parquets,
           'csv': pair_fixtures.write_csv}
LEFT_OUT = {'with a broken picture': 2, 'without a picture': 1, 'without a caption': 1,
            'with an empty caption': 1}
USABLE = {key: (picture, caption) for key, picture, caption in pair_fixtures.records()
          if not key.startswith('bad')}


class WebPairsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.root = tempfile.mkdtemp()
    self.addCleanup(shutil.rmtree, self.root)
    self.files, self.cache = os.path.join(self.root, 'files'), os.path.join(self.root, 'cache')
    os.makedirs(self.files)

  def read(self, image_size=32):
    return web_pairs.source('cc3m', self.files, self.cache, image_size)

  def indices(self):
    return sorted(os.listdir(os.path.join(self.cache, 'indices')))

  @parameterized.parameters(*WRITERS)
  def test_every_usable_pair_and_no_other(self, layout):
    WRITERS[layout](self.files)
    with self.assertLogs(level='WARNING') as logs:
      source = self.read()
    source.validate()
    caption = source.fields['caption'].tolist()
    self.assertCountEqual(caption, [text for _, text in USABLE.values()])
    self.assertLen(logs.output, 1)
    self.assertIn('2 with a broken picture, 1 with an empty caption, 1 without a caption, '
                  '1 without a picture left out', logs.output[0])
    self.assertIn(source.note, logs.output[0])
    pictures = {text: picture for picture, text in USABLE.values()}
    for text, image in zip(caption, source.fields['image'][:]):
      np.testing.assert_array_equal(image, fields.square(pictures[text], 32) / np.float32(255))
    self.assertLen(np.unique(source.identity), 96)
    self.assertIn('Conceptual Captions', source.attribution)

  @parameterized.parameters(*WRITERS)
  def test_the_index_is_made_once(self, layout):
    WRITERS[layout](self.files)
    first = self.read()
    self.assertLen(self.indices(), 1)  # and no temporary file
    with mock.patch.object(fields, 'decode', side_effect=AssertionError('decoded')):
      second = self.read()
    self.assertEqual(second.content_hash(), first.content_hash())
    self.assertEqual(second.note, first.note)
    np.testing.assert_array_equal(second.fields['image'][5:9], first.fields['image'][5:9])
    self.assertEqual(self.read(None).fields['image'].shape[1:], (224, 224, 3))

  @parameterized.parameters('tar', 'parquet')
  def test_other_files_other_index(self, layout):
    WRITERS[layout](self.files)
    first = self.read()
    os.remove(os.path.join(self.files, f'00000.{layout}'))
    second = self.read()
    self.assertLen(self.indices(), 2)
    self.assertLess(len(second), len(first))
    self.assertNotEqual(second.content_hash(), first.content_hash())

  def test_a_damaged_index_says_what_to_do(self):
    WRITERS['csv'](self.files)
    self.read()
    path = os.path.join(self.cache, 'indices', self.indices()[0])
    with open(path, 'r+b') as file:
      file.truncate(os.path.getsize(path) // 2)
    with self.assertRaisesRegex(ValueError, 'damaged index .*delete it'):
      self.read()

  def test_a_killed_build_leaves_nothing_behind(self):
    WRITERS['tar'](self.files)
    with mock.patch.object(np, 'savez', side_effect=KeyboardInterrupt):
      with self.assertRaises(KeyboardInterrupt):
        self.read()
    self.assertEmpty(self.indices())
    self.assertLen(self.read(), 96)

  def test_tars_are_read_at_offsets_without_unpacking(self):
    WRITERS['tar'](self.files)
    source = self.read()
    with mock.patch.object(tarfile, 'open', side_effect=AssertionError('unpacked')):
      with concurrent.futures.ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda row: source.fields['image'][row], [95, 0, 50, 95]))
    np.testing.assert_array_equal(rows[0], rows[3])
    self.assertEqual(os.listdir(self.cache), ['indices'])

  @parameterized.parameters(700, 8192, 100)
  def test_a_shard_that_is_cut_off_is_counted(self, left):
    """In the middle of a member, between members, and within the first header."""
    WRITERS['tar'](self.files)
    whole = self.read()
    path = os.path.join(self.files, '00002.tar')
    with open(path, 'r+b') as file:
      file.truncate(left)
    part = self.read()
    self.assertBetween(len(part), 64, len(whole) - 1)
    if left != 8192:
      self.assertIn('1 file cut short (00002.tar: ', part.note)

  def test_members_in_folders_and_with_dots(self):
    with tarfile.open(os.path.join(self.files, 'a.tar'), 'w') as tar:
      for name, data in (('x/1.jpg', USABLE['000000000'][0]), ('x/1.txt', b'one'),
                         ('x/2.caption.txt', b'no caption'), ('x/2.PNG', USABLE['000000001'][0]),
                         ('x/3.txt', 'd\u00e9j\u00e0 '.encode()), ('x/3.json', b'{}'),
                         ('x/3.webp', USABLE['000000002'][0])):
        member = tarfile.TarInfo(name)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    source = self.read()
    self.assertEqual(source.fields['caption'].tolist(), ['one', 'd\u00e9j\u00e0'])
    self.assertEqual(source.note, '1 without a caption left out')

  def test_tables_beside_tars_are_passed_over(self):
    WRITERS['tar'](self.files)
    WRITERS['parquet'](self.files)
    self.assertLen(self.read().fields['caption'], 96)

  def test_parquet_without_pictures_is_no_layout(self):
    import pyarrow
    from pyarrow import parquet
    parquet.write_table(pyarrow.table({'url': ['a'], 'caption': ['b']}),
                        os.path.join(self.files, '00000.parquet'))
    with self.assertRaisesRegex(FileNotFoundError, r'\*.parquet with pictures'):
      self.read()

  def test_parquet_needs_pyarrow(self):
    WRITERS['parquet'](self.files)
    with mock.patch.dict(sys.modules, {'pyarrow': None}):
      with self.assertRaisesRegex(ImportError, r'unlearn_jax\[parquet\]'):
        self.read()

  def test_lists(self):
    WRITERS['csv'](self.files)
    shutil.copy(os.path.join(self.files, 'train.csv'), os.path.join(self.files, 'other.csv'))
    self.assertLen(self.read(), 96)  # train.csv goes first
    os.rename(os.path.join(self.files, 'train.csv'), os.path.join(self.files, 'more.csv'))
    with self.assertRaisesRegex(ValueError, 'several lists: more.csv, other.csv'):
      self.read()
    os.remove(os.path.join(self.files, 'other.csv'))
    self.assertLen(self.read(), 96)
    with open(os.path.join(self.files, 'more.csv'), 'w') as file:
      file.write('image_path,caption\na,b\n')
    with self.assertRaisesRegex(ValueError, 'no column text_content; it has image_path, caption'):
      self.read()

  def test_nothing_usable(self):
    for data_dir in ('', self.files, os.path.join(self.root, 'none')):
      with self.assertRaisesRegex(FileNotFoundError, 'img2dataset'):
        web_pairs.source('cc12m', data_dir, self.cache, 32)
    with open(os.path.join(self.files, 'train.csv'), 'w') as file:
      file.write('image_path,text_content\nnone.jpg,words\n')
    with self.assertRaisesRegex(ValueError, 'no usable pair .*1 without a picture left out'):
      self.read()

  def test_fixtures(self):
    hashes = set()
    for name in ('cc3m', 'cc12m', 'yfcc15m_r'):
      source = sources.get(f'{name}_fixture')
      self.assertEqual((source.name, len(source)), (f'{name}_fixture', 96))
      self.assertIn('Generated', source.attribution)
      hashes.add(source.content_hash())
      self.assertEqual(sources.get(f'{name}_fixture').content_hash(), source.content_hash())
    self.assertLen(hashes, 3)  # their orders differ

  def test_index_columns(self):
    builder = web_index.Builder()
    builder.add(0, 1 << 40, 5, 1 << 31, 'a\nb', 'caption \u6771\u4eac')
    builder.add(2, 3, 4, 5, '', 'x')
    path = os.path.join(self.root, 'new', 'index.npz')
    builder.index({'broken': 3}).save(path)
    index = web_index.load(path)
    self.assertEqual((index.start.tolist(), index.checksum.tolist()), ([1 << 40, 3], [1 << 31, 5]))
    self.assertEqual((index.key.tolist(), index.caption.tolist()),
                     (['a\nb', ''], ['caption \u6771\u4eac', 'x']))
    self.assertEqual(index.left_out, {'broken': 3})
    self.assertEqual(index.digest(), builder.index({}).digest())
    self.assertLen(web_index.Builder().index(LEFT_OUT), 0)


if __name__ == '__main__':
  absltest.main()
