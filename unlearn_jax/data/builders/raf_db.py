"""RAF-DB, basic emotions (Li, Deng and Du 2017): faces from the web in seven classes, 100x100.

`EmoLabel/list_patition_label.txt` (the authors' spelling; `train_00001.jpg 5` a line, classes 1 to
7) and `Image/aligned/train_00001_aligned.jpg`, ..., in `basic/` or at the top.

The authors publish training and test pictures. What is forgotten comes from DLFD's released loader,
which is followed exactly: the training pictures, ordered by class and name, are shuffled by
Python's generator with seed 42; the first 10 % are `val`, the first 70 % of the rest `retain`, the
others `forget`. These are random pictures, not people: nobody is named, so a record is an identity
of its own.
"""

from collections.abc import Mapping
import os
import random

from etils import epath
import numpy as np

from unlearn_jax.data import sources
from unlearn_jax.data.builders import faces

CLASSES = ('surprise', 'fear', 'disgust', 'happiness', 'sadness', 'anger', 'neutral')
SIZES = {'val': 1227, 'retain': 7730, 'forget': 3314, 'test': 3068}  # 15,339
ATTRIBUTION = (
    'RAF-DB, S. Li, W. Deng and J. Du (2017), Reliable crowdsourcing and deep locality-preserving '
    'learning for expression recognition in the wild, CVPR; non-commercial research only.')
_SEED, _VALIDATION, _RETAIN = 42, 0.1, 0.7  # of DLFD's loader
_LUMA = np.asarray((19595, 38470, 7471), np.int64)  # 2^16 times ITU-R 601, as PIL's mode 'L'


class RafDb(faces.FaceBuilder):
  """RAF-DB's basic emotions: 15,339 aligned faces, 7 classes."""

  # TFDS 4.9.10 finds this by way of `importlib_resources`, which it forgets to depend on.
  code_path = epath.Path(__file__)
  MANUAL_DOWNLOAD_INSTRUCTIONS = 'manual_dir holds EmoLabel and Image of the basic subset.'

  title = 'RAF-DB'
  origin = ('The authors give it on request: http://www.whdeng.cn/RAF/model1.html (non-commercial '
            'research only, no redistribution).')
  side = 100
  sizes = SIZES
  sizes_note = 'The DLFD paper rounds the number of all pictures to 15,000.'

  @classmethod
  def read(cls, directory: str, sizes: Mapping[str, int]) -> list[faces.Face]:
    del sizes
    name = 'list_patition_label.txt'
    path = cls.find(directory, *(os.path.join(*parts, name) for parts in (
        ('EmoLabel',), ('basic', 'EmoLabel'), ('basic',), ())))
    folder = cls.find(directory, os.path.join('Image', 'aligned'),
                      os.path.join('basic', 'Image', 'aligned'))
    there, found = set(os.listdir(folder)), {}
    for number, words in faces.lines(path):
      stem, extension = os.path.splitext(words[0])
      part = stem.split('_')[0]
      if (len(words) != 2 or part not in ('train', 'test') or stem in found
          or words[1] not in {str(k + 1) for k in range(len(CLASSES))}):
        raise ValueError(f'{path}, line {number}: a picture train_NUMBER or test_NUMBER, once, and '
                         f'a class 1 to {len(CLASSES)} expected, got {" ".join(words)!r}')
      if (picture := f'{stem}_aligned{extension}') not in there:
        raise cls.missing(f'{picture} ({path}, line {number})', folder, [picture])
      found[stem] = faces.Face(os.path.join(folder, picture), (int(words[1]) - 1,), stem, part)
    by_class = sorted(found.values(), key=lambda face: (face.label, face.identity))
    train, test = ([face for face in by_class if face.partition == part]
                   for part in ('train', 'test'))
    return _partitioned(train) + test


def _partitioned(train: list[faces.Face]) -> list[faces.Face]:
  """DLFD's `val`, `retain` and `forget` of the training pictures, which keep their order."""
  order = list(range(len(train)))
  random.Random(_SEED).shuffle(order)
  validation = int(len(train) * _VALIDATION)
  retain = int((len(train) - validation) * _RETAIN)
  names = dict.fromkeys(order[:validation], 'val') | dict.fromkeys(
      order[validation:validation + retain], 'retain')
  return [face._replace(partition=names.get(index, 'forget')) for index, face in enumerate(train)]


def source(data_dir: str, cache_dir: str, image_size: int | None, *,
           sizes: Mapping[str, int] = SIZES) -> sources.Source:
  """Grey pictures of 100x100 (or `image_size`) in 3 equal channels, as DLFD's loader has them.

  7 classes, partitions `val, retain, forget, test`. The build has the colours.

  Args:
    data_dir: holds `EmoLabel` and `Image`, or `basic` with them.
    cache_dir: where the build is kept.
    image_size: height and width.
    sizes: pictures per partition; files with other numbers are refused.

  Raises:
    FileNotFoundError: a missing list or picture.
    ValueError: damaged lists, other numbers of pictures, a damaged picture.
  """
  records = faces.load(RafDb, data_dir, cache_dir, sizes)
  image = faces.resized(records.image, image_size)
  grey = np.empty(image.shape[:3], np.uint8)
  for start in range(0, len(image), 512):
    luma = image[start:start + 512].astype(np.int64) @ _LUMA
    grey[start:start + 512] = (luma + 0x8000) >> 16
  grey = np.broadcast_to(grey[..., None], image.shape)  # three channels in the memory of one
  return faces.source('raf_db', records._replace(image=grey), len(CLASSES), ATTRIBUTION, None)
