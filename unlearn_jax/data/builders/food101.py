"""UPMC-Food101: pictures of dishes and the titles of their web pages, as features of both.

Recipe Recognition with Large Multimodal Food Dataset (Wang et al. 2015). The features of a frozen
ViT and a frozen BERT are made by `experiments/food101_features.py` and lie beside the published
files.
"""

from collections.abc import Sequence
import csv
import os
from typing import NamedTuple

from absl import logging
import numpy as np

from unlearn_jax.data import _checks
from unlearn_jax.data import sources
from unlearn_jax.data.builders import stored

HOMEPAGE = 'https://www.kaggle.com/datasets/gianmarco96/upmcfood101'
ATTRIBUTION = ('UPMC-Food101, X. Wang, D. Kumar, N. Thome, M. Cord and F. Precioso 2015 (pictures and '
               'titles belong to the pages they were found on; research only).')
SPLITS = ('train', 'test')
NUM_CLASSES = 25  # of 101
IMAGE = (197, 768)  # ViT-B/16 at 224: 14 x 14 patches and the class token
TEXT = (50, 768)  # BERT-base


class Title(NamedTuple):
  """A row of `texts/{train,test}_titles.csv`.

  Attributes:
    file: name of the picture, `images/SPLIT/DISH/FILE`.
    text: title of the page.
    dish: class.
  """

  file: str
  text: str
  dish: str


def source(data_dir: str, cache_dir: str, image_size: int | None) -> sources.Source:
  """Records in the order of the titles, first `train`, then `test`; the identity is the picture.

  `image` [N, 197, 768] and `text` [N, 50, 768] are the last hidden states of a frozen ViT-B/16 and
  a frozen BERT-base, as in CGGM (Guo et al. 2024), read from memory-mapped files when they are
  asked for, as float32.

  CCU (section 5.1.1) uses 25 of the 101 classes and does not name them; the code of CGGM, which it
  cites for them, has all 101. Classes are those that the feature files hold, in alphabetical order:
  the script takes the first 25 by name unless told otherwise (ours), and the attribution says when
  they are others.

  Args:
    data_dir: holds the published `texts/{train,test}_titles.csv` (file, title, class; no header),
      and `features/{train,test}_image.npy`, `..._text.npy` (float16 or float32) and
      `..._files.txt`, which names the picture of every row. Rows are those of the titles, in
      their order; pictures that could not be decoded may be left out, and are counted in `note`.
    cache_dir: not needed.
    image_size: None; features have no size to choose.

  Raises:
    FileNotFoundError: a file is missing: which, and where to get it.
    ValueError: damaged titles; features of other rows than their list says, or in another order
      than the titles; partitions with different classes; an image size.
  """
  del cache_dir
  if image_size is not None:
    raise ValueError(f'data set food101 holds features, so image_size must be None, got '
                     f'{image_size}')
  rows, image, text, left_out = {}, [], [], 0
  for split in SPLITS:
    listed = _lines(_feature_path(data_dir, f'{split}_files.txt'))
    rows[split], missing = _matched(titles(data_dir, split), listed, split)
    left_out += missing
    for kind, shape, parts in (('image', IMAGE, image), ('text', TEXT, text)):
      parts.append(_features(_feature_path(data_dir, f'{split}_{kind}.npy'), shape, len(listed)))
  found = {split: sorted({row.dish for row in part}) for split, part in rows.items()}
  if found['train'] != found['test']:
    only = set(found['train']) ^ set(found['test'])
    raise ValueError(f'UPMC-Food101: classes {_checks.some(sorted(only))} have features in one '
                     'partition only; make the features of both with the same classes')
  classes = tuple(found['train'])
  attribution, first = ATTRIBUTION, default_classes(titles(data_dir, 'train'))
  if classes != first:
    attribution += f' Not the first {NUM_CLASSES} classes by name: {", ".join(classes)}.'
  note = f'{left_out} titles without features left out' if left_out else ''
  if note:
    logging.warning('UPMC-Food101: %s', note)
  every = [row for split in SPLITS for row in rows[split]]
  return sources.Source(
      'food101', {
          'image': stored.joined(image), 'text': stored.joined(text),
          'label': np.searchsorted(classes, [row.dish for row in every]).astype(np.int32),
          'partition': np.repeat(SPLITS, [len(rows[split]) for split in SPLITS])},
      np.asarray([row.file for row in every]), len(classes), attribution, classes, note)


def titles(data_dir: str, split: str) -> list[Title]:
  """The published titles of a partition, in their order.

  Raises:
    FileNotFoundError: no such file.
    ValueError: a row that is no (file, title, class); a file that stands twice.
  """
  name = os.path.join('texts', f'{split}_titles.csv')
  path = os.path.join(data_dir, name)
  if not data_dir or not os.path.isfile(path):
    raise FileNotFoundError(
        f'UPMC-Food101: missing {name}: looked in {_looked(data_dir)}; get the set from {HOMEPAGE}, '
        'and pass the directory that holds images/ and texts/ as data_dir.')
  with open(path, encoding='utf-8', newline='') as file:
    rows = list(csv.reader(file))
  for number, row in enumerate(rows):
    if len(row) != 3 or not row[0] or not row[2]:
      raise ValueError(f'{path}: row {number + 1} is no (file, title, class): {row}')
  found = [Title(*row) for row in rows]
  if len({row.file for row in found}) != len(found):
    names, counts = np.unique([row.file for row in found], return_counts=True)
    raise ValueError(f'{path}: {_checks.some(names[counts > 1])} stand twice')
  return found


def default_classes(rows: Sequence[Title]) -> tuple[str, ...]:
  """The first 25 classes by name."""
  return tuple(sorted({row.dish for row in rows})[:NUM_CLASSES])


def _matched(rows: list[Title], listed: list[str], split: str) -> tuple[list[Title], int]:
  """The titles of the files that have features, and how many of their classes have none."""
  place = {row.file: number for number, row in enumerate(rows)}
  if unknown := [file for file in listed if file not in place]:
    raise ValueError(f'features/{split}_files.txt names {len(unknown)} pictures that have no title: '
                     f'{_checks.some(unknown)}')
  order = [place[file] for file in listed]
  if not order or any(first >= second for first, second in zip(order, order[1:])):
    raise ValueError(f'features/{split}_files.txt is empty, or its order is not that of '
                     f'texts/{split}_titles.csv; make the features again')
  found = [rows[number] for number in order]
  dishes = {row.dish for row in found}
  return found, sum(row.dish in dishes for row in rows) - len(found)


def _feature_path(data_dir: str, name: str) -> str:
  path = os.path.join(data_dir, 'features', name)
  if not data_dir or not os.path.isfile(path):
    raise FileNotFoundError(
        f'UPMC-Food101: missing features/{name}: looked in {_looked(data_dir)}; make it from the '
        f'pictures and titles of {HOMEPAGE} with python -m experiments.food101_features.')
  return path


def _looked(data_dir: str) -> str:
  return os.path.abspath(data_dir) if data_dir else 'no directory (data_dir is not set)'


def _lines(path: str) -> list[str]:
  with open(path, encoding='utf-8') as file:
    return file.read().splitlines()


def _features(path: str, shape: tuple[int, ...], count: int) -> np.ndarray:
  """A memory-mapped array [count, *shape]."""
  try:
    values = np.load(path, mmap_mode='r', allow_pickle=False)
  except (ValueError, EOFError) as error:
    raise ValueError(f'{path} is no complete .npy file ({error})') from error
  if values.shape != (count, *shape) or values.dtype not in (np.float16, np.float32):
    raise ValueError(f'{path}: features must be float16 or float32 [N, '
                     f'{", ".join(map(str, shape))}] of the {count} pictures in its list, got '
                     f'{values.dtype} {values.shape}')
  return values
