"""The features of UPMC-Food101, written by small encoders and read back as the data set."""

import functools
import os
import tempfile
from unittest import mock
import zlib

from absl.testing import absltest
import numpy as np
from PIL import Image
import pytest

from experiments import food101_features
from unlearn_jax.data.builders import av_clip_fixtures
from unlearn_jax.data.builders import food101

SIDE, PATCH, WIDTH = 16, 8, 8
WORDS = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'apple', 'pie', 'a', 'red', 'green', ',')


class Case(absltest.TestCase):
  """Published files, and directories for weights."""

  def setUp(self):
    super().setUp()
    self.directory = self.enterContext(tempfile.TemporaryDirectory())
    self.vit, self.bert = (os.path.join(self.directory, name) for name in ('vit', 'bert'))
    av_clip_fixtures.write_food101_published(self.directory)
    for name, shape in (('IMAGE', (1 + (SIDE // PATCH)**2, WIDTH)), ('TEXT', (50, WIDTH))):
      self.enterContext(mock.patch.object(food101, name, shape))

  def write(self, **settings):
    food101_features.write(self.directory, self.vit, self.bert, **{'batch_size': 5, **settings})

  def path(self, name):
    return os.path.join(self.directory, 'features', name)

  def picture(self, split, name):
    return os.path.join(self.directory, 'images', split, name.rsplit('_', 1)[0], name)


class WriteTest(Case):
  """What is written when, by encoders that tell what they were given."""

  def setUp(self):
    super().setUp()
    self.enterContext(mock.patch.object(food101_features, '_check'))
    self.calls = []
    for kind, shape in (('image', food101.IMAGE), ('text', food101.TEXT)):
      self.enterContext(mock.patch.object(
          food101_features, f'{kind}_encoder', functools.partial(self.make, kind, shape)))

  def make(self, kind, shape, directory, device):
    self.calls.append((kind, os.path.basename(directory), device))

    def encode(values):
      self.assertLessEqual(len(values), 5)
      return np.stack([np.full(shape, self.number(value), np.float32) for value in values])

    return encode

  def number(self, value):
    """A float16 that tells which picture or text it is."""
    return float(zlib.crc32(os.path.basename(value).encode()) % 1000)

  def test_every_row_has_the_features_of_its_own_picture_and_title(self):
    self.write(device='cuda:1')
    self.assertEqual(self.calls, [('image', 'vit', 'cuda:1'), ('text', 'bert', 'cuda:1')] * 2)
    source = food101.source(self.directory, '', None)
    self.assertEqual(source.class_names, (*av_clip_fixtures.FOOD_CLASSES, 'waffles'))
    self.assertEqual((source.attribution, source.note), (food101.ATTRIBUTION, ''))
    rows = [row for split in food101.SPLITS for row in food101.titles(self.directory, split)]
    self.assertLen(source, len(rows))
    for field, names in (('image', [row.file for row in rows]),
                         ('text', [row.text for row in rows])):
      np.testing.assert_array_equal(np.asarray(source.fields[field])[:, 0, 0],
                                    [self.number(name) for name in names])

  def test_chosen_classes_and_a_broken_picture(self):
    os.truncate(self.picture('train', 'waffles_2.jpg'), 200)
    with self.assertLogs(level='WARNING') as logs:
      self.write(classes=('waffles', 'apple_pie'))
    self.assertIn('waffles_2.jpg is no complete picture', logs.output[0])
    source = food101.source(self.directory, '', None)
    self.assertEqual(source.class_names, ('apple_pie', 'waffles'))
    self.assertEqual(source.note, '1 titles without features left out')
    self.assertLen(source, 23)
    self.assertNotIn('waffles_2.jpg', source.identity)
    np.testing.assert_array_equal(np.asarray(source.fields['image'])[:, 0, 0],
                                  [self.number(name) for name in source.identity])

  def test_goes_on_where_it_was_cut_off(self):
    number, seen = self.number, []

    def dies(value):
      seen.append(value)
      if len(seen) == 97:  # 40 training pictures and titles, and 17 test pictures
        raise KeyboardInterrupt
      return number(value)

    with mock.patch.object(self, 'number', dies):
      with self.assertRaises(KeyboardInterrupt):
        self.write()
    done = {name for name in os.listdir(self.path('')) if not name.endswith('.part')}
    self.assertEqual(done, {'train_files.txt', 'train_image.npy', 'train_text.npy',
                            'test_files.txt'})
    with self.assertRaisesRegex(FileNotFoundError, 'test_image.npy'):
      food101.source(self.directory, '', None)
    self.calls.clear()
    self.write()
    self.assertEqual([kind for kind, *_ in self.calls], ['image', 'text'])
    self.assertFalse([name for name in os.listdir(self.path('')) if name.endswith('.part')])
    source = food101.source(self.directory, '', None)
    np.testing.assert_array_equal(np.asarray(source.fields['image'])[:, 0, 0],
                                  [self.number(name) for name in source.identity])
    with self.assertRaisesRegex(ValueError, 'lists other pictures than those of the chosen'):
      self.write(classes=('donuts',))

  def test_what_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'no class sushi'):
      self.write(classes=('sushi',))
    with mock.patch.object(self, 'number', return_value=1e5):  # too large for float16
      with self.assertRaisesRegex(ValueError, 'rows 0 to 4 are not finite as float16'):
        self.write()
    os.remove(self.picture('train', 'donuts_0.jpg'))
    with self.assertRaisesRegex(FileNotFoundError, '1 pictures are missing, .*donuts_0.jpg'):
      self.write()
    self.assertFalse(os.path.exists(self.path('train_image.npy')))


class CheckTest(Case):

  def test_packages_and_weights(self):
    with mock.patch.object(food101_features.importlib.util, 'find_spec', return_value=None):
      with self.assertRaisesRegex(ImportError, r'torch is missing; .*unlearn_jax\[parity\]'):
        self.write()
    with mock.patch.object(food101_features.importlib.util, 'find_spec'):
      with self.assertRaisesRegex(FileNotFoundError, 'vit is no directory of weights'):
        self.write()


@pytest.mark.slow
class EncodersTest(Case):
  """The encoders themselves, with random weights."""

  def setUp(self):
    super().setUp()
    pytest.importorskip('torch', reason='extra `parity`; make test-slow installs it')
    transformers = pytest.importorskip('transformers', reason='extra `parity`')
    small = dict(hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    transformers.set_seed(0)
    transformers.ViTModel(transformers.ViTConfig(
        image_size=SIDE, patch_size=PATCH, **small)).save_pretrained(self.vit)
    transformers.BertModel(transformers.BertConfig(
        vocab_size=len(WORDS), max_position_embeddings=64, **small)).save_pretrained(self.bert)
    transformers.BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(
        self.bert)

  def test_the_data_set_reads_what_the_script_writes(self):
    self.write(classes=('apple_pie', 'waffles'))
    source = food101.source(self.directory, '', None)
    source.validate()
    text = {row.file: row.text for split in food101.SPLITS
            for row in food101.titles(self.directory, split)}
    encoders = (('image', food101_features.image_encoder(self.vit)),
                ('text', food101_features.text_encoder(self.bert)))
    for record in (0, 7, 9, 15, 23):  # one at a time; batches of five pad nothing else
      name = source.identity[record]
      given = {'image': self.picture(source.fields['partition'][record], name),
               'text': text[name]}
      for field, encode in encoders:
        want = encode([given[field]])[0]
        self.assertEqual(want.dtype, np.float32)
        np.testing.assert_allclose(source.fields[field][record], want, rtol=2e-3, atol=1e-3)
    self.assertGreater(np.abs(np.diff(source.fields['image'], axis=0)).max(axis=(1, 2)).min(), 0)

  def test_titles_have_50_tokens(self):
    encode = food101_features.text_encoder(self.bert)
    short, other, long = encode(['Apple pie', 'apple  PIE', 'red ' * 80])
    np.testing.assert_array_equal(short, other)
    self.assertEqual(long.shape, (50, WIDTH))
    self.assertGreater(np.abs(short - long).max(), 0.01)

  def test_pictures_are_squeezed_into_the_unit_range(self):
    transformers = pytest.importorskip('transformers')
    path = os.path.join(self.directory, 'white.png')
    Image.new('RGB', (7, 40), 'white').save(path)
    encode = food101_features.image_encoder(self.vit)
    with mock.patch.object(transformers, 'BatchFeature', wraps=transformers.BatchFeature) as made:
      encode([path])
    pixels = made.call_args.args[0]['pixel_values']
    self.assertEqual(pixels.dtype, np.float32)
    np.testing.assert_array_equal(pixels, np.ones((1, 3, SIDE, SIDE)))


if __name__ == '__main__':
  absltest.main()
