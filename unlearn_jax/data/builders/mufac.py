"""MUFAC (Choi and Na 2023): faces of Korean families in eight age classes, 128x128.

`custom_{train,val,test}_dataset.csv` with the columns `family_id`, `person_id`, `age_class` (a to
h) and `image_path`, and the folders `{train,val,test}_images` with `FAMILY_AGE_PERSON_YEARS_CLASSn`
`.jpg`. The benchmark forgets the first 1,500 rows of the training list, whoever they show: that
border may run through the pictures of one person. An identity is a person of a family; families do
not overlap between the lists.

Roles: the benchmark tests on `val` and takes `test` as unseen data; the DLFD paper validates on
`val` and takes `test` for both. See `splits.published`.
"""

from collections.abc import Mapping
import csv
import os

from etils import epath

from unlearn_jax.data import sources
from unlearn_jax.data.builders import faces

CLASSES = 'abcdefgh'  # 0-6, 7-12, 13-19, 20-30, 31-45, 46-55, 56-66, 67-80 years
SIZES = {'forget': 1500, 'retain': 8525, 'val': 1539, 'test': 1504}  # 13,068
COLUMNS = ('family_id', 'person_id', 'age_class', 'image_path')
ATTRIBUTION = (
    'MUFAC, D. Choi and D. Na (2023), Towards machine unlearning benchmarks: forgetting the '
    'personal identities in facial recognition systems, arXiv:2311.02240; pictures from "Facial '
    'images with known family relationships", AI Hub Korea, for research under its terms of use.')
_FOLDER = 'custom_korean_family_dataset_resolution_128'  # the published archive's name


class Mufac(faces.FaceBuilder):
  """MUFAC: 13,068 faces, 8 age classes, 900 households numbered."""

  # TFDS 4.9.10 finds this by way of `importlib_resources`, which it forgets to depend on.
  code_path = epath.Path(__file__)
  MANUAL_DOWNLOAD_INSTRUCTIONS = 'manual_dir holds the lists custom_*_dataset.csv and *_images.'

  title = 'MUFAC'
  origin = (f'The authors publish {_FOLDER}.zip at https://github.com/ndb796/korean_family_dataset '
            '(from AI Hub Korea, data set 528: research only, no redistribution).')
  side = 128
  sizes = SIZES

  @classmethod
  def read(cls, directory: str, sizes: Mapping[str, int]) -> list[faces.Face]:
    found, homes = [], {}
    for part in ('train', 'val', 'test'):
      name, folder = f'custom_{part}_dataset.csv', f'{part}_images'
      path = cls.find(directory, name, os.path.join(_FOLDER, name))
      folder = cls.find(os.path.dirname(path), folder)
      there = set(os.listdir(folder))
      for index, (number, row) in enumerate(_rows(path)):
        face = _face(path, number, row)
        if row['image_path'] not in there:
          raise cls.missing(f'{row["image_path"]} ({path}, line {number})', folder,
                            [row['image_path']])
        if (home := homes.setdefault(row['family_id'], part)) != part:
          raise ValueError(f'{path}, line {number}: family {row["family_id"]} stands in the {home} '
                           'list too')
        partition = part if part != 'train' else (
            'forget' if index < sizes['forget'] else 'retain')
        found.append(face._replace(path=os.path.join(folder, face.path), partition=partition))
    return found


def _rows(path: str):
  """(line number, row) of a list; the lists have an unnamed column of row numbers besides."""
  try:
    with open(path, encoding='utf-8-sig', newline='') as file:
      reader = csv.DictReader(file)
      if lacking := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
        raise ValueError(f'{path}, line 1: no column {", ".join(lacking)}; there is '
                         f'{", ".join(reader.fieldnames or ()) or "nothing"}')
      for row in reader:
        yield reader.line_num, row
  except (csv.Error, UnicodeDecodeError) as error:
    raise ValueError(f'{path} is no list of pictures ({error})') from error


def _face(path: str, number: int, row: Mapping[str, str | None]) -> faces.Face:
  """A row, compared with the name of its picture, which says the same."""
  if any(not row[name] for name in COLUMNS) or None in row:
    raise ValueError(f'{path}, line {number}: not one value per column: {dict(row)}')
  if row['age_class'] not in CLASSES or len(row['age_class']) != 1:
    raise ValueError(f'{path}, line {number}: age_class {row["age_class"]!r} is not one of a to h')
  words = row['image_path'].split('_')
  if (len(words) != 5 or (words[0], words[2]) != (row['family_id'], row['person_id'])
      or words[4][0] != row['age_class']):
    raise ValueError(f'{path}, line {number}: {row["image_path"]} is not a picture of person '
                     f'{row["person_id"]} of family {row["family_id"]} in age class '
                     f'{row["age_class"]}')
  return faces.Face(row['image_path'], (CLASSES.index(row['age_class']),),
                    f'{row["family_id"]}_{row["person_id"]}', '')


def source(data_dir: str, cache_dir: str, image_size: int | None, *,
           sizes: Mapping[str, int] = SIZES) -> sources.Source:
  """Pictures of 128x128 (or `image_size`), 8 classes, partitions `forget, retain, val, test`.

  Args:
    data_dir: holds the lists and folders, or the directory that the published archive unpacks to.
    cache_dir: where the build is kept.
    image_size: height and width.
    sizes: pictures per partition; files with other numbers are refused.

  Raises:
    FileNotFoundError: a missing list or picture.
    ValueError: damaged or contradictory lists, other numbers of pictures, a damaged picture.
  """
  records = faces.load(Mufac, data_dir, cache_dir, sizes)
  return faces.source('mufac', records, len(CLASSES), ATTRIBUTION, image_size)
