"""Tests of CLIP's tokenizer: golden ids, cleaning, truncation, prompt slots, bad captions."""

import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

from unlearn_jax.models import clip_tokenizer
from unlearn_jax.models.clip_tokenizer import EOT
from unlearn_jax.models.clip_tokenizer import SOT

pytest.importorskip('instant_clip_tokenizer', reason='it has no wheels for this Python')

DOG = [320, 1125, 539, 320, 1929]  # 'a photo of a dog', by OpenAI's tokenizer


def ids(caption, **kwargs):
  """The tokens of one caption between SOT and EOT."""
  row = clip_tokenizer.tokenize([caption], **kwargs)[0].tolist()
  return row[1:row.index(EOT)]


class TokenizeTest(parameterized.TestCase):

  def test_golden_rows(self):
    tokens = clip_tokenizer.tokenize(['a photo of a dog', 'Dog!'])
    self.assertEqual((tokens.shape, tokens.dtype), ((2, 77), np.int32))
    self.assertEqual(tokens[0].tolist(), [SOT, *DOG, EOT] + [0] * 70)
    self.assertEqual(tokens[1].tolist(), [SOT, 1929, 256, EOT] + [0] * 73)
    self.assertEqual(clip_tokenizer.tokenize([]).shape, (0, 77))

  def test_golden_row_with_slots(self):  # NCU's release: 'X ' eight times, then the caption
    self.assertEqual(ids('X X X X X X X X  a photo of a dog'), [343] * 8 + DOG)
    self.assertEqual(ids('a photo of a dog', prompt_slots=8), [343] * 8 + DOG)

  @parameterized.product(
      caption=('a photo of a dog', "it's 12 &amp; x", 'word ' * 90), length=(77, 16))
  def test_slots_are_the_prefix_of_the_release(self, caption, length):
    np.testing.assert_array_equal(
        clip_tokenizer.tokenize([caption], length, prompt_slots=8),
        clip_tokenizer.tokenize(['X ' * 8 + caption], length))

  @parameterized.parameters(  # expected: cleaned as OpenAI's tokenizer cleans
      ('A  Photo\tof\n a DOG ', 'a photo of a dog'),
      ('salt &amp;amp; pepper', 'salt & pepper'),
      ('1 < 2 &amp;amp; 3', '1 < 2 & 3'),  # ftfy leaves entities beside a '<'
      ('&lt;b&gt;', '<b>'),
      ('I\u2019m \u201chere\u201d', 'i\'m "here"'),  # ftfy: straight quotes
      ('cafÃ©', 'café'),  # repaired encoding
      ('\ufb01ne', 'fine'),  # no ligatures
      ('a\u00a0b', 'a b'))
  def test_cleaning(self, raw, cleaned):
    self.assertEqual(clip_tokenizer.clean(raw), cleaned)
    self.assertEqual(ids(raw), ids(cleaned))

  @parameterized.parameters(  # by OpenAI's tokenizer
      ("it's don't", [585, 568, 847, 713]), ('12345', [272, 273, 274, 275, 276]),
      ('a_b', [320, 318, 321]), ("!'s", [13222, 338]), ('\U0001F600', [7334]))
  def test_words(self, caption, expected):
    self.assertEqual(ids(caption), expected)

  def test_a_caption_cannot_write_special_tokens(self):
    found = ids('a <|endoftext|> b <|startoftext|> c')
    self.assertTrue(set(found).isdisjoint((SOT, EOT)))
    self.assertEqual(found[-1], 322)

  def test_truncation_keeps_eot(self):
    tokens = clip_tokenizer.tokenize(['dog ' * 100, 'dog ' * 5, 'dog ' * 6, 'dog ' * 4], 7)
    self.assertEqual(tokens.tolist(), [[SOT] + [1929] * 5 + [EOT]] * 3
                     + [[SOT] + [1929] * 4 + [EOT, 0]])
    with_slots = clip_tokenizer.tokenize(['dog ' * 100], 77, prompt_slots=8)[0].tolist()
    self.assertEqual(with_slots, [SOT] + [343] * 8 + [1929] * 67 + [EOT])
    self.assertEqual(clip_tokenizer.tokenize(['dog cat'], 6, 3).tolist(),
                     [[SOT, 343, 343, 343, 1929, EOT]])

  @parameterized.parameters(
      ('a dog', TypeError, 'sequence of captions, got one str'),
      ([b'a dog'], TypeError, "caption 0 is no text: b'a dog'"),
      (['a', None], TypeError, 'caption 1 is no text: None'),
      (['a', float('nan')], TypeError, 'caption 1 is no text: nan'),  # a hole in a table
      (['a', ''], ValueError, "caption 1 is empty: ''"),
      ([' \n&nbsp; '], ValueError, 'caption 0 is empty'))
  def test_bad_captions(self, texts, error, message):
    with self.assertRaisesRegex(error, message):
      clip_tokenizer.tokenize(texts)

  @parameterized.parameters((2, 0, 3), (10, 8, 11), (77, 75, 78), (77, -1, 3))
  def test_contexts_too_short(self, length, slots, least):
    with self.assertRaisesRegex(ValueError, f'{slots} prompt slots.* at least {least}'):
      clip_tokenizer.tokenize(['dog'], length, slots)

  def test_missing_packages(self):
    clip_tokenizer._encoder.cache_clear()
    self.addCleanup(clip_tokenizer._encoder.cache_clear)
    with mock.patch.dict(sys.modules, {'instant_clip_tokenizer': None}):
      with self.assertRaisesRegex(ImportError, r'pip install "unlearn-jax\[clip\]"'):
        clip_tokenizer.tokenize(['dog'])


class CheckSlotsTest(absltest.TestCase):

  def test_slots(self):
    tokens = clip_tokenizer.tokenize(['a dog', 'x x x'], prompt_slots=4)
    clip_tokenizer.check_slots(tokens, 4)
    clip_tokenizer.check_slots(tokens, 0)
    with self.assertRaisesRegex(ValueError, r'row 0 .* no 5 prompt slots.*343, 320\].*slots=5'):
      clip_tokenizer.check_slots(tokens, 5)
    tokens[1, 2] = 320
    with self.assertRaisesRegex(ValueError, 'row 1 of the tokens has no 4 prompt slots'):
      clip_tokenizer.check_slots(tokens, 4)


if __name__ == '__main__':
  absltest.main()
