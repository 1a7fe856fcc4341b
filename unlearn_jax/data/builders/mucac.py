"""MUCAC (Choi and Na 2023): CelebA-HQ with identities, three attributes: male, smiling, young.

`CelebAMask-HQ/CelebA-HQ-img/0.jpg` to `29999.jpg`, `CelebA-HQ-identity.txt` (picture, number) and
`CelebA-HQ-attribute.txt` (a count, 40 names, then a picture and 40 values of -1 or 1 a line).
Partitions follow the benchmark's ranges of identity numbers: below 190 `test`, below 1250 `forget`,
below 4855 `retain`, the rest `unseen`. That gives 10,183 pictures to forget and 15,750 to retain.
The DLFD paper says 10,548 and 15,385 (the same sum), which these ranges do not give; it does not
say by which others. The benchmark's notebooks ran with 100 pictures missing (10,135 and 15,711).

The authors publish no validation data: hold back a share of the retained identities, as the configs
of this package do (`splits.published`).
"""

from collections.abc import Mapping
import dataclasses
import os

from etils import epath
import numpy as np

from unlearn_jax.data import sources
from unlearn_jax.data.builders import faces

ATTRIBUTES = ('Male', 'Smiling', 'Young')
BELOW = {'test': 190, 'forget': 1250, 'retain': 4855}  # identity numbers; `unseen` is the rest
SIZES = {'test': 2065, 'forget': 10_183, 'retain': 15_750, 'unseen': 2002}  # 30,000
ATTRIBUTION = (
    'MUCAC, D. Choi and D. Na (2023), Towards machine unlearning benchmarks: forgetting the '
    'personal identities in facial recognition systems, arXiv:2311.02240; pictures from '
    'CelebAMask-HQ, C.-H. Lee, Z. Liu, L. Wu and P. Luo (2020), and CelebA, Z. Liu et al. (2015): '
    'non-commercial research only.')
_FOLDER = 'CelebAMask-HQ'


class Mucac(faces.FaceBuilder):
  """MUCAC: 30,000 faces of 6,217 identities with three attributes, kept as 128x128."""

  # TFDS 4.9.10 finds this by way of `importlib_resources`, which it forgets to depend on.
  code_path = epath.Path(__file__)
  MANUAL_DOWNLOAD_INSTRUCTIONS = f'manual_dir holds {_FOLDER} and CelebA-HQ-*.txt.'

  title = 'MUCAC'
  origin = ('The pictures are at https://github.com/switchablenorms/CelebAMask-HQ, the identity '
            'and attribute lists come from the CelebA team on request, or with the benchmark at '
            'https://github.com/ndb796/MachineUnlearning (non-commercial research only, no '
            'redistribution).')
  labels = len(ATTRIBUTES)
  side = 128  # the benchmark's size
  sizes = SIZES
  sizes_note = ('The ranges of identities are the benchmark\'s. (The DLFD paper says 15,385 retain '
                'and 10,548 forget, which they do not give.)')

  @classmethod
  def read(cls, directory: str, sizes: Mapping[str, int]) -> list[faces.Face]:
    del sizes
    folder = cls.find(directory, os.path.join(_FOLDER, 'CelebA-HQ-img'), 'CelebA-HQ-img')
    identities, attributes = (
        cls.find(directory, *names, *(os.path.join(_FOLDER, name) for name in names))
        for names in (('CelebA-HQ-identity.txt',),
                      ('CelebA-HQ-attribute.txt', 'CelebAMask-HQ-attribute-anno.txt')))
    people, values = _identities(identities), _attributes(attributes)
    if alone := sorted(set(people) ^ set(values)):
      raise ValueError(f'{len(alone)} pictures stand in only one of {identities} and {attributes}; '
                       f'the first is {alone[0]}')
    if lacking := sorted(set(people) - set(os.listdir(folder))):
      raise cls.missing(f'{lacking[0]} (with {len(lacking)} of {len(people)} pictures)', folder,
                        [lacking[0]])
    by_number = sorted(people, key=lambda name: (len(name), name))  # 0.jpg, 1.jpg, ..., 29999.jpg
    return [faces.Face(os.path.join(folder, name), values[name], f'{people[name]:04}',
                       _partition(people[name])) for name in by_number]


def _identities(path: str) -> dict[str, int]:
  """Picture -> number of whom it shows."""
  found = {}
  for number, words in faces.lines(path):
    if len(words) != 2 or not words[1].isdecimal() or words[0] in found:
      raise ValueError(f'{path}, line {number}: a picture, once, and the number of its identity '
                       f'expected, got {" ".join(words)!r}')
    found[words[0]] = int(words[1])
  return found


def _attributes(path: str) -> dict[str, tuple[int, ...]]:
  """Picture -> `ATTRIBUTES` as 0 or 1."""
  rows = list(faces.lines(path))
  if len(rows) < 2 or len(rows[0][1]) != 1 or not rows[0][1][0].isdecimal():
    raise ValueError(f'{path}, line 1: the number of pictures, and then the names of the '
                     'attributes expected')
  names = rows[1][1]
  if lacking := [name for name in ATTRIBUTES if name not in names]:
    raise ValueError(f'{path}, line {rows[1][0]}: no attribute {", ".join(lacking)} among '
                     f'{len(names)}')
  columns = [1 + names.index(name) for name in ATTRIBUTES]
  found = {}
  for number, words in rows[2:]:
    if len(words) != 1 + len(names) or not set(words[1:]) <= {'-1', '1'} or words[0] in found:
      raise ValueError(f'{path}, line {number}: a picture, once, and {len(names)} values of -1 or '
                       f'1 expected, got {" ".join(words[:4])!r} and {len(words)} words in all')
    found[words[0]] = tuple(int(words[column] == '1') for column in columns)
  if len(found) != int(rows[0][1][0]):
    raise ValueError(f'{path}, line 1: {rows[0][1][0]} pictures announced, {len(found)} listed')
  return found


def _partition(identity: int) -> str:
  return next((name for name, border in BELOW.items() if identity < border), 'unseen')


def source(data_dir: str, cache_dir: str, image_size: int | None, *,
           sizes: Mapping[str, int] = SIZES) -> sources.Source:
  """Pictures of 128x128 (or `image_size`), 3 attributes, partitions `test, forget, retain, unseen`.

  Args:
    data_dir: holds the pictures and lists.
    cache_dir: where the build is kept.
    image_size: height and width.
    sizes: pictures per partition; files with other numbers are refused.

  Raises:
    FileNotFoundError: a missing list or picture.
    ValueError: damaged or contradictory lists, other numbers of pictures, a damaged picture.
  """
  records = faces.load(Mucac, data_dir, cache_dir, sizes)
  return faces.source('mucac', records, len(ATTRIBUTES), ATTRIBUTION, image_size)


def gender_source(data_dir: str, cache_dir: str, image_size: int | None, *,
                  sizes: Mapping[str, int] = SIZES) -> sources.Source:
  """The same pictures and partitions with 2 classes: 0 female, 1 male. Arguments as `source`."""
  both = source(data_dir, cache_dir, image_size, sizes=sizes)
  male = both.fields['label'][:, ATTRIBUTES.index('Male')].astype(np.int32)
  return dataclasses.replace(both, name='mucac_gender', fields={**both.fields, 'label': male},
                             num_classes=2)
