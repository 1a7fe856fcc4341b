"""CLIP's tokenizer: captions to rows of token ids, with slots for learnable prompt vectors.

The vocabulary and its byte-pair encoding come from the package `instant-clip-tokenizer`; cleaning,
slots, truncation and padding are here, in numpy. Compared with open_clip's tokenizer on 40,000
random strings, cleaning is equal throughout and so are the ids, but for characters that are younger
than the package's Unicode tables (28 of the first 65,536) and contractions before a lone accent.
"""

from collections.abc import Sequence
import functools
import html

import numpy as np

SOT, EOT = 49406, 49407  # start and end of text; EOT is the highest id of the vocabulary
SLOT = 343  # the id of 'x', which NCU's release writes where prompt vectors go
PAD = 0  # also the id of '!': only positions after EOT are padding
VOCABULARY = 49408


@functools.cache
def _encoder():
  try:
    import ftfy
    import instant_clip_tokenizer
  except ImportError as error:
    raise ImportError('CLIP\'s tokenizer needs two packages: pip install "unlearn-jax[clip]"'
                      ) from error
  return instant_clip_tokenizer.Tokenizer(), ftfy.fix_text


def clean(caption: str) -> str:
  """CLIP's cleaning: ftfy, HTML entities (twice), runs of white space to one space, lower case."""
  text = html.unescape(html.unescape(_encoder()[1](caption)))
  return ' '.join(text.split()).lower()


def tokenize(texts: Sequence[str], context_length: int = 77, prompt_slots: int = 0) -> np.ndarray:
  """Token ids of captions, as CLIP's text tower reads them.

  A row is SOT, `prompt_slots` times SLOT, the caption, EOT, padding. A caption that is too long
  loses its tail, never its EOT, at which the tower pools (NCU's release loses it; its pooled state
  is then the one at SOT, whatever the caption says). With slots a row is that of `'X ' *
  prompt_slots + caption`, which is how the release makes room for its prompt.

  `<|startoftext|>` and `<|endoftext|>` inside a caption are text; OpenAI's tokenizer lets captions
  write special tokens.

  Args:
    texts: B captions.
    context_length: L, the text tower's; 77 in every published CLIP.
    prompt_slots: m, positions 1 to m that a prompt [m, width] will fill.

  Returns:
    [B, L] int32.

  Raises:
    TypeError: `texts` is a single string, or a caption is not a string.
    ValueError: a caption is empty once cleaned, or the context has no room for SOT, the slots, one
      token and EOT.
    ImportError: the extra `clip` is not installed.
  """
  if isinstance(texts, (str, bytes)):
    raise TypeError(f'tokenize takes a sequence of captions, got one {type(texts).__name__}')
  if prompt_slots < 0 or context_length < prompt_slots + 3:
    raise ValueError(f'a context of {context_length} has no room for {prompt_slots} prompt slots: '
                     f'with SOT, EOT and a caption it takes at least {max(prompt_slots, 0) + 3}')
  encode = _encoder()[0].encode
  tokens = np.full((len(texts), context_length), PAD, np.int32)
  tokens[:, 0] = SOT
  tokens[:, 1:1 + prompt_slots] = SLOT
  for number, caption in enumerate(texts):
    if not isinstance(caption, str):
      raise TypeError(f'caption {number} is no text: {caption!r}')
    ids = encode(clean(caption))[:context_length - prompt_slots - 2]
    if not ids:
      raise ValueError(f'caption {number} is empty: {caption!r}')
    end = 1 + prompt_slots + len(ids)
    tokens[number, 1 + prompt_slots:end] = ids
    tokens[number, end] = EOT
  return tokens


def check_slots(tokens: np.ndarray, prompt_slots: int) -> None:
  """Checks on the host that a prompt of m vectors falls on slots, not on words.

  The text tower cannot: under jit a wrong number would silently overwrite the caption.

  Args:
    tokens: [B, L], from `tokenize`.
    prompt_slots: m.

  Raises:
    ValueError: a row does not begin with SOT and m times SLOT.
  """
  expected = np.array([SOT] + [SLOT] * prompt_slots)
  wrong = np.any(np.asarray(tokens)[:, :len(expected)] != expected, axis=1)
  if wrong.any():
    row = int(np.argmax(wrong))
    raise ValueError(f'row {row} of the tokens has no {prompt_slots} prompt slots: it begins with '
                     f'{np.asarray(tokens)[row, :len(expected)].tolist()}; tokenize captions with '
                     f'prompt_slots={prompt_slots}')
