"""COCO captions and Flickr30k in the splits of Karpathy and Fei-Fei (2015).

`dataset_NAME.json` lists every picture with its split and its captions, about five each.
"""

from collections.abc import Mapping
import hashlib
import json
import os
from typing import NamedTuple

from absl import logging
import numpy as np

from unlearn_jax.data import _checks
from unlearn_jax.data import fields
from unlearn_jax.data import sources

SIZE = 224
LISTS = 'https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip'


class Published(NamedTuple):
  """A set and what has been published about it.

  Attributes:
    name: ours.
    title: in messages.
    list_name: file that lists pictures and captions.
    folder: of the pictures, where the list names none per picture.
    pictures: where they are to be had, and under which terms.
    sizes: pictures per split.
    attribution: who made it and under which licence.
  """

  name: str
  title: str
  list_name: str
  folder: str
  pictures: str
  sizes: Mapping[str, int]
  attribution: str


COCO = Published(
    'coco_captions', 'COCO captions', 'dataset_coco.json', '',
    'https://cocodataset.org/#download (train2014.zip and val2014.zip; Flickr terms of use)',
    {'train': 82783, 'restval': 30504, 'val': 5000, 'test': 5000},
    'Microsoft COCO, T.-Y. Lin et al. 2014, captions X. Chen et al. 2015 (CC BY 4.0; pictures under '
    "Flickr's terms of use), splits of A. Karpathy and L. Fei-Fei 2015.")
FLICKR30K = Published(
    'flickr30k', 'Flickr30k', 'dataset_flickr30k.json', 'flickr30k-images',
    'https://shannon.cs.illinois.edu/DenotationGraph/ (on request, research only)',
    {'train': 29000, 'val': 1014, 'test': 1000},
    'Flickr30k, P. Young, A. Lai, M. Hodosh and J. Hockenmaier 2014 (non-commercial research; '
    "pictures under Flickr's terms of use), splits of A. Karpathy and L. Fei-Fei 2015.")


def coco_captions(data_dir: str, cache_dir: str, image_size: int | None, *,
                  sizes: Mapping[str, int] = COCO.sizes) -> sources.Source:
  """COCO captions, partitions `train, restval, val, test`; see `source`."""
  return source(COCO, data_dir, image_size, sizes)


def flickr30k(data_dir: str, cache_dir: str, image_size: int | None, *,
              sizes: Mapping[str, int] = FLICKR30K.sizes) -> sources.Source:
  """Flickr30k, partitions `train, val, test`; see `source`."""
  return source(FLICKR30K, data_dir, image_size, sizes)


def source(published: Published, data_dir: str, image_size: int | None, sizes: Mapping[str, int]
           ) -> sources.Source:
  """One record per caption, in published order; the identity is the picture.

  Pictures are decoded when they are read, see `fields.Encoded`, at 224 pixels or `image_size`.
  Captions lose the white space around them; those of nothing else are left out and counted in
  `note`. There are no labels.

  Args:
    published: which set.
    data_dir: holds the list and the folders of pictures.
    image_size: height and width.
    sizes: pictures per split; lists with other numbers are refused.

  Raises:
    FileNotFoundError: the list or a picture is missing: which, and where to get it.
    ValueError: a damaged list, or of other sizes.
  """
  path = os.path.join(data_dir, published.list_name)
  if not data_dir or not os.path.isfile(path):
    raise _missing(published, published.list_name, data_dir, LISTS)
  try:
    with open(path, encoding='utf-8') as file:
      rows = json.load(file)['images']
    names = [os.path.join(row.get('filepath', published.folder), row['filename']) for row in rows]
    partition = [row['split'] for row in rows]
    texts = [[sentence['raw'].strip() for sentence in row['sentences']] for row in rows]
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ValueError(f'{path} is no list of pictures with captions: {error!r}') from error
  found = {split: partition.count(split) for split in {**sizes, **dict.fromkeys(partition)}}
  if found != dict(sizes):
    raise ValueError(f'{path}: the numbers of pictures differ from the published ones: {found} '
                     f'instead of {dict(sizes)}')
  known = _files(data_dir, {os.path.dirname(name) for name in names})
  if absent := [name for name in names if name not in known]:
    raise _missing(published, f'{len(absent)} of {len(names)} pictures ({_checks.some(absent)})',
                   data_dir, published.pictures)

  def read(row: int) -> bytes:
    with open(os.path.join(data_dir, names[row]), 'rb') as file:
      return file.read()

  picture = np.asarray([row for row, captions in enumerate(texts) for text in captions if text],
                       np.int32)
  caption = np.asarray([text for captions in texts for text in captions if text],
                       np.dtypes.StringDType())
  empty = sum(map(len, texts)) - len(caption)
  note = f'{empty} empty captions left out' if empty else ''
  if note:
    logging.warning('%s: %s', published.title, note)
  content = hashlib.sha256('\0'.join(f'{name}|{known[name]}' for name in names).encode()).digest()
  images = fields.Encoded(read, len(names), image_size or SIZE, name=names.__getitem__,
                          content=content)
  return sources.Source(
      published.name, {'image': fields.Rows(images, picture), 'caption': caption,
                       'picture': picture, 'partition': np.asarray(partition)[picture]},
      np.asarray(names)[picture], 0, published.attribution, note=note)


def _files(data_dir: str, folders: set[str]) -> dict[str, int]:
  """Name and size of every file in the folders that exist."""
  return {os.path.join(folder, entry.name): entry.stat().st_size for folder in sorted(folders)
          if os.path.isdir(os.path.join(data_dir, folder))
          for entry in os.scandir(os.path.join(data_dir, folder))}


def _missing(published: Published, what: str, data_dir: str, where: str) -> FileNotFoundError:
  looked = os.path.abspath(data_dir) if data_dir else 'no directory (data_dir is not set)'
  return FileNotFoundError(
      f'{published.title}: missing {what}: looked in {looked}; get it from {where}, and pass the '
      f'directory that holds {published.list_name} and the folders of pictures as data_dir.')
