"""Tests for the augmentation of captions."""

import collections
import os
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from unlearn_jax.data import text_transforms

TEXT = 'the quick brown fox jumps over a lazy dog while nine cats watch it'
WORDS = TEXT.split()
TABLE = {'quick': ('fast', 'speedy'), 'dog': ('hound',), 'the': ('ye',)}
DATA = {
    'noun': ['  1 This software and database is being provided to you',
             '02084071 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 022 @ 02083346 n 0000 | x  ',
             '10114209 18 n 02 frump 0 dog 1 003 @ 10787470 n 0000 | a dull woman  '],
    'verb': ['02001858 38 v 02 chase 0 dog 0 002 @ 01 v 0000 01 + 08 00 | go after  '],
    'adj': ['00014490 00 s 02 abounding 0 galore(ip) 0 003 & 0 a 0000 | existing in abundance  '],
    'adv': ['00001740 02 r 01 a_cappella 0 000 | without music  ',
            "00002 02 r 02 o'clock 0 hourly 0 000 | x  "]}


def write(directory: str, data=DATA) -> str:
  for name, lines in data.items():
    with open(os.path.join(directory, f'data.{name}'), 'w', encoding='utf-8') as file:
      file.write(''.join(f'{line}\n' for line in lines))
  return directory


def run(count=2000, text=TEXT, seed=0, epoch=0, **settings):
  transform = text_transforms.eda(**settings)
  return [one.split() for one in transform([text] * count, seed, np.arange(count), epoch)]


class EdaTest(parameterized.TestCase):

  def test_replace(self):
    for words in run(operations=('replace',), synonyms=TABLE):
      changed = [(old, new) for old, new in zip(WORDS, words, strict=True) if old != new]
      self.assertLen(changed, 1)
      self.assertIn(changed[0], [('quick', 'fast'), ('quick', 'speedy'), ('dog', 'hound')])
    both = run(operations=('replace',), synonyms=TABLE, rate=0.2)  # two of fourteen words
    self.assertEqual({tuple(np.flatnonzero(np.asarray(words) != WORDS)) for words in both},
                     {(1, 8)})
    everywhere = run(5, 'dog eats dog', operations=('replace',), synonyms=TABLE)
    self.assertEqual(everywhere, [['hound', 'eats', 'hound']] * 5)

  def test_insert(self):
    places = collections.Counter()
    for words in run(operations=('insert',), synonyms=TABLE):
      self.assertLen(words, 15)
      new = [place for place, word in enumerate(words) if word not in WORDS]
      self.assertLen(new, 1)
      self.assertEqual(words[:new[0]] + words[new[0] + 1:], WORDS)
      places[new[0], words[new[0]]] += 1
    self.assertEqual({place for place, _ in places}, set(range(15)))
    self.assertEqual({word for _, word in places}, {'fast', 'speedy', 'hound', 'ye'})

  def test_swap(self):
    seen = set()
    for words in run(operations=('swap',)):
      self.assertCountEqual(words, WORDS)
      moved = [place for place in range(14) if words[place] != WORDS[place]]
      self.assertLen(moved, 2)
      seen.add(tuple(moved))
    self.assertLen(seen, 14 * 13 // 2)
    self.assertEqual(run(3, 'alone', operations=('swap',)), [['alone']] * 3)

  def test_delete(self):
    lengths = []
    for words in run(operations=('delete',)):
      rest = iter(WORDS)
      self.assertTrue(all(word in rest for word in words))  # in order
      lengths.append(len(words))
    self.assertLess(abs(np.mean(lengths) - 0.9 * 14), 0.15)  # five standard deviations
    almost_all = {tuple(words) for words in run(50, 'red hat', operations=('delete',), rate=0.99)}
    self.assertEqual(almost_all, {('red',), ('hat',)})  # one stays, either of them

  def test_operations_are_drawn_uniformly(self):
    lengths = collections.Counter(
        len(words) for words in run(4000, rate=0.999, synonyms=TABLE,
                                    operations=('insert', 'swap', 'delete')))
    # 13 insertions, 13 swaps, or hardly a word left.
    self.assertEqual(set(lengths) & {13 + 14, 14}, {27, 14})
    for count in (lengths[27], lengths[14], 4000 - lengths[27] - lengths[14]):
      self.assertLess(abs(count - 4000 / 3), 5 * np.sqrt(4000 * 2 / 9))

  def test_keyed_by_seed_record_and_epoch(self):
    transform = text_transforms.eda(synonyms=TABLE)
    texts = [f'{TEXT} {word}' for word in ('one', 'two', 'three', 'four', 'five', 'six')] * 5
    whole = transform(texts, 0, np.arange(30), 2)
    order = [7, 3, 29]
    self.assertEqual(transform([texts[k] for k in order], 0, np.asarray(order), 2),
                     [whole[k] for k in order])
    for other in (transform(texts, 1, np.arange(30), 2), transform(texts, 0, np.arange(30), 3),
                  transform(texts, 0, np.arange(30) + 1, 2)):
      self.assertNotEqual(other, whole)

  def test_pinned(self):
    # On every machine and with every Python the same texts.
    self.assertEqual(
        [' '.join(words) for words in run(5, 'A dog\u2019s life, by the Sea-Side: 2 ships!',
                                          operations=text_transforms.WITHOUT_SYNONYMS)],
        ['a dogs by the sea ships', 'a dogs by the sea', 'a dogs by the sea ships',
         'a dogs by the sea side ships', 'a dogs life by the ships side sea'])

  def test_texts_without_letters_stay(self):
    self.assertEqual(run(2, '\u6771\u4eac 2020', synonyms=TABLE), [['\u6771\u4eac', '2020']] * 2)

  @parameterized.parameters(
      ({}, r'insert and replace need synonyms.*WITHOUT_SYNONYMS'),
      ({'operations': ('swap', 'insert')}, '^insert need'),
      ({'operations': ()}, 'each once'), ({'operations': ('swap', 'swap')}, 'each once'),
      ({'operations': ('swop',)}, "did you mean 'swap'"),
      ({'synonyms': {}, 'rate': 0.0}, r'\(0, 1\)'), ({'synonyms': {}, 'rate': 1.0}, r'\(0, 1\)'))
  def test_bad_settings(self, settings, message):
    with self.assertRaisesRegex(ValueError, message):
      text_transforms.eda(**settings)


class WrittenNegativeTest(absltest.TestCase):

  def test_a_negation_in_front(self):
    index = np.arange(400)
    texts = [f'a {TEXT}'] * 400
    out = text_transforms.written_negative(texts, 0, index, 3)
    fronts = collections.Counter(one.removesuffix(f' a {TEXT}') for one in out)
    self.assertEqual(set(fronts), set(text_transforms.NEGATIONS))
    self.assertGreater(min(fronts.values()), 50 - 5 * np.sqrt(50))
    self.assertEqual(text_transforms.written_negative(texts[5:9], 0, index[5:9], 3), out[5:9])
    self.assertNotEqual(text_transforms.written_negative(texts, 0, index, 4), out)


class WordnetTest(absltest.TestCase):

  def test_synonyms_of_the_database(self):
    table = text_transforms.wordnet(write(tempfile.mkdtemp()))
    self.assertEqual(table, {
        'dog': ('canis familiaris', 'chase', 'domestic dog', 'frump'), 'frump': ('dog',),
        'chase': ('dog',), 'abounding': ('galore',), 'galore': ('abounding',),
        'oclock': ('hourly',), 'hourly': ('oclock',)})

  def test_missing_and_damaged_files(self):
    directory = tempfile.mkdtemp()
    with self.assertRaisesRegex(FileNotFoundError, 'data.noun is missing.*wordnet-base'):
      text_transforms.wordnet(directory)
    write(directory, DATA | {'verb': ['no synset']})
    with self.assertRaisesRegex(ValueError, 'data.verb, line 1 is no synset'):
      text_transforms.wordnet(directory)


if __name__ == '__main__':
  absltest.main()
