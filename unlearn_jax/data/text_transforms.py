"""Augmentation of captions, keyed by (seed, record, epoch) as that of pictures."""

from collections.abc import Callable, Mapping, Sequence
import functools
import os
import random
import re

import numpy as np

from unlearn_jax.data import _checks
from unlearn_jax.data import _random

OPERATIONS = ('replace', 'insert', 'swap', 'delete')
WITHOUT_SYNONYMS = ('swap', 'delete')
# For NCU's ablation V1. The first two are its paper's examples; the list of its release is longer, and
# the others are ours.
NEGATIONS = ('the image has no', 'this picture lacks', 'there is no', 'a picture without',
             'nothing here shows', 'this does not show', 'an image that is not of',
             'anything other than')
_PARTS_OF_SPEECH = ('noun', 'verb', 'adj', 'adv')

# (texts [B], seed, index [B], epoch) -> texts [B]
TextTransform = Callable[[Sequence[str], int, np.ndarray, int], list[str]]


def eda(*, synonyms: Mapping[str, Sequence[str]] | None = None,
        operations: Sequence[str] = OPERATIONS, rate: float = 0.1) -> TextTransform:
  """Easy data augmentation (Wei and Zou, EMNLP 2019, section 2): one of four, drawn uniformly.

  With n = max(1, floor(rate l)) for a text of l words, which is first put into the letters a to z
  (apostrophes vanish, all else separates words):

  - `replace`: n different words that are no stop words become a synonym each, everywhere;
  - `insert`: n times a synonym of any word is inserted anywhere;
  - `swap`: n times two words change places;
  - `delete`: every word goes with probability `rate`; one stays.

  NCU's release does this to its negative captions, with rate 0.1, and takes the caption as it is
  where WordNet is missing; here that is an error. The stop words are scikit-learn's (ours: the
  paper prints no list). Words without a synonym are passed over, and a text without a letter a to z
  is left alone.

  Args:
    synonyms: word -> others for it, such as `wordnet(directory)`.
    operations: to draw from; `WITHOUT_SYNONYMS` need no table.
    rate: share of the words that change, in (0, 1).

  Raises:
    ValueError: no or unknown operations, some that need synonyms and no table; a rate out of range.
  """
  for name in operations:
    if name not in OPERATIONS:
      raise _checks.unknown('operation', name, OPERATIONS)
  if not operations or len(set(operations)) < len(operations):
    raise ValueError(f'operations must be some of {", ".join(OPERATIONS)}, each once, got '
                     f'{tuple(operations)}')
  if not 0 < rate < 1:
    raise ValueError(f'rate must lie in (0, 1), got {rate}')
  if synonyms is None and (missing := sorted(set(operations) - set(WITHOUT_SYNONYMS))):
    raise ValueError(
        f'{" and ".join(missing)} need synonyms: pass synonyms=wordnet(directory of the WordNet '
        'database), a table of your own, or operations=WITHOUT_SYNONYMS to do without them')
  functions = [{'replace': _replace, 'insert': _insert, 'swap': _swap, 'delete': _delete}[name]
               for name in operations]

  def transform(texts, seed, index, epoch):
    keys = _random.bits(seed, 'eda', epoch, np.asarray(index))
    out = []
    for text, key in zip(texts, keys.tolist(), strict=True):
      # Python promises the same numbers for a seed in all versions, of `random` alone.
      fraction = random.Random(key).random
      draw = lambda limit, fraction=fraction: int(fraction() * limit)
      words = _words(text)
      if words:
        function = functions[draw(len(functions))]
        text = ' '.join(function(words, max(1, int(rate * len(words))), rate, synonyms, draw))
      out.append(text)
    return out

  return transform


def wordnet(directory: str) -> dict[str, tuple[str, ...]]:
  """Synonyms in WordNet: of every word, the other words of the synsets that it stands in.

  Words are lower case, of the letters a to z; several may make up a synonym. Inflected forms
  (`dogs`) are looked up as they stand, while NLTK would reduce them (ours).

  Args:
    directory: of the database files `data.noun`, `data.verb`, `data.adj`, `data.adv`: `dict` of a
      WordNet 3 release, `/usr/share/wordnet` of Debian's package wordnet-base, or
      `corpora/wordnet` of NLTK's data.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: a file is not of WordNet.
  """
  found: dict[str, set[str]] = {}
  for name in _PARTS_OF_SPEECH:
    path = os.path.join(directory, f'data.{name}')
    if not os.path.isfile(path):
      raise FileNotFoundError(
          f'WordNet: {path} is missing; directory must hold data.noun, data.verb, data.adj and '
          'data.adv (https://wordnet.princeton.edu/download, or Debian package wordnet-base, '
          'directory /usr/share/wordnet)')
    with open(path, encoding='utf-8') as file:
      for number, line in enumerate(file, start=1):
        if line.startswith('  '):  # the licence
          continue
        parts = line.split(' ')
        try:  # offset, file, type, number of words (hexadecimal), word, lex id, word, ...
          members = parts[4:4 + 2 * int(parts[3], 16):2]
        except (IndexError, ValueError) as error:
          raise ValueError(f'{path}, line {number} is no synset of WordNet: {line[:40]!r}'
                           ) from error
        # Adjectives may carry a mark of their place, as in `galore(ip)`.
        texts = {' '.join(_words(re.sub(r'\(\w+\)$', '', member).replace('_', ' ')))
                 for member in members} - {''}
        for text in texts:
          if ' ' not in text:
            found.setdefault(text, set()).update(texts - {text})
  return {word: tuple(sorted(others)) for word, others in found.items() if others}


def _words(text: str) -> list[str]:
  return re.sub('[^a-z]+', ' ', re.sub("['\u2019]", '', text.lower())).split()


@functools.cache
def _stop_words() -> frozenset[str]:
  from sklearn.feature_extraction import text  # slow to import

  return text.ENGLISH_STOP_WORDS


def _replace(words, count, rate, synonyms, draw):
  left = [word for word in dict.fromkeys(words) if word not in _stop_words()]
  while left and count:
    word = left.pop(draw(len(left)))
    if others := synonyms.get(word):
      other = others[draw(len(others))]
      words = [other if word == one else one for one in words]
      count -= 1
  return words


def _insert(words, count, rate, synonyms, draw):
  for _ in range(count):
    known = [word for word in words if synonyms.get(word)]
    if known:
      others = synonyms[known[draw(len(known))]]
      place = draw(len(words) + 1)
      words = [*words[:place], others[draw(len(others))], *words[place:]]
  return words


def _swap(words, count, rate, synonyms, draw):
  words = list(words)
  for _ in range(count if len(words) > 1 else 0):
    first = draw(len(words))
    second = (first + 1 + draw(len(words) - 1)) % len(words)
    words[first], words[second] = words[second], words[first]
  return words


def _delete(words, count, rate, synonyms, draw):
  kept = [word for word in words if draw(1 << 30) >= rate * (1 << 30)]
  return kept or [words[draw(len(words))]]


def written_negative(texts: Sequence[str], seed: int, index: np.ndarray, epoch: int) -> list[str]:
  """Captions behind a negation in words, drawn uniformly from `NEGATIONS`: a `TextTransform`."""
  drawn = _random.below(len(NEGATIONS), seed, 'negation', epoch, np.asarray(index))
  return [f'{NEGATIONS[number]} {text}' for number, text in zip(drawn, texts, strict=True)]
