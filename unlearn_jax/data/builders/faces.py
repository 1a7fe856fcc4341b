"""What the builders of face sets share: pictures in folders, and lists that say who is on them.

The licences of these sets forbid to download them on somebody's behalf: everything comes from
`manual_dir`. Builds are kept per content of the lists and per name, size and time of the pictures.
"""

import abc
from collections.abc import Iterable, Iterator, Mapping, Sequence
import hashlib
import io
import os
from typing import ClassVar, NamedTuple

from absl import logging
import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

from unlearn_jax.data import sources


class Face(NamedTuple):
  """A picture and what the authors' lists say about it.

  Attributes:
    path: of the picture.
    label: a class, or a value in {0, 1} per attribute.
    identity: who is on it.
    partition: of the authors.
  """

  path: str
  label: tuple[int, ...]
  identity: str
  partition: str


class Records(NamedTuple):
  """All pictures of a set, in published order.

  Attributes:
    image: uint8 [N, S, S, 3].
    label: int64 [N, K], K = 1 for classes.
    identity: str [N].
    partition: str [N].
  """

  image: np.ndarray
  label: np.ndarray
  identity: np.ndarray
  partition: np.ndarray


class FaceBuilder(tfds.core.GeneratorBasedBuilder):
  """One TFDS split per partition of the authors."""

  VERSION = tfds.core.Version('1.0.0')

  title: ClassVar[str]
  origin: ClassVar[str]  # where the files are to be had, and under which terms
  labels: ClassVar[int] = 1  # attributes per picture
  side: ClassVar[int]  # pictures are kept as `side` x `side`
  sizes: Mapping[str, int]  # pictures per partition; an instance may expect others (a fixture)
  sizes_note: ClassVar[str] = ''  # what else has been said about the sizes

  @classmethod
  @abc.abstractmethod
  def read(cls, directory: str, sizes: Mapping[str, int]) -> list[Face]:
    """The authors' lists in `directory`, in published order.

    Raises:
      FileNotFoundError: a list or a picture is missing; see `missing`.
      ValueError: a list is damaged or contradicts another; names file and line.
    """

  @classmethod
  def listed(cls, directory: str, sizes: Mapping[str, int]) -> list[Face]:
    """`read`, and the number of pictures in every partition compared with `sizes`.

    Raises:
      ValueError: besides, other numbers.
    """
    faces = cls.read(directory, sizes)
    found = dict.fromkeys(sizes, 0)
    for face in faces:
      found[face.partition] = found.get(face.partition, 0) + 1
    if wrong := [f'{name} {found.get(name, 0):,} instead of {sizes.get(name, 0):,}'
                 for name in {**sizes, **found} if found.get(name, 0) != sizes.get(name, 0)]:
      raise ValueError(f'{cls.title} in {directory}: the numbers of pictures differ from the '
                       f'published ones: {", ".join(wrong)}. {cls.sizes_note}'.strip())
    return faces

  @classmethod
  def missing(cls, what: str, directory: str, looked_for: Sequence[str]) -> FileNotFoundError:
    """What is missing, where it was looked for, where to get it and under which terms."""
    where = os.path.abspath(directory) if directory else 'no directory (data_dir is not set)'
    return FileNotFoundError(
        f'{cls.title}: {what} is missing: looked in {where} for {" or ".join(looked_for)}. '
        f'{cls.origin} Unpack it and pass the directory as data_dir; it is not downloaded for you.')

  @classmethod
  def find(cls, directory: str, *names: str) -> str:
    """The first of `names` that exists in `directory`.

    Raises:
      FileNotFoundError: none of them does.
    """
    for name in names if directory else ():
      if os.path.exists(path := os.path.join(directory, name)):
        return path
    raise cls.missing(os.path.basename(names[0]), directory, names)

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
        description=self.__doc__,
        features=tfds.features.FeaturesDict({
            'image': tfds.features.Image(shape=(self.side, self.side, 3), encoding_format='png'),
            'label': tfds.features.Tensor(shape=(self.labels,), dtype=np.int64),
            'identity': tfds.features.Text(),
            'order': tfds.features.Scalar(dtype=np.int64),
        }))

  def _split_generators(self, dl_manager):
    faces = list(enumerate(self.listed(os.fspath(dl_manager.manual_dir), self.sizes)))
    return {name: self._generate_examples(
        [(order, face) for order, face in faces if face.partition == name]) for name in self.sizes}

  def _generate_examples(self, faces):
    for order, face in faces:
      encoded = io.BytesIO()
      picture(face.path, self.side).save(encoded, 'PNG')
      encoded.seek(0)
      yield order, {'image': encoded, 'label': np.asarray(face.label, np.int64),
                    'identity': face.identity, 'order': order}


def picture(path: str, side: int) -> Image.Image:
  """A square picture in RGB, brought to `side` by PIL's bilinear filter (torchvision's `Resize`).

  Raises:
    ValueError: no complete picture, or not square; names the file.
  """
  try:
    with Image.open(path) as image:
      image = image.convert('RGB')
  except OSError as error:  # PIL's errors are OSErrors: no picture, or a truncated one
    raise ValueError(f'{path} is no complete picture ({error})') from error
  if image.width != image.height:
    raise ValueError(f'{path} is not square: {image.width}x{image.height}')
  return image if image.width == side else image.resize((side, side), Image.Resampling.BILINEAR)


def resized(images: np.ndarray, size: int | None) -> np.ndarray:
  """Pictures uint8 [N, S, S, 3] at another size, see `picture`; None keeps it."""
  if size in (None, images.shape[1]):
    return images
  out = np.empty((len(images), size, size, 3), np.uint8)
  for index, image in enumerate(images):
    out[index] = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
  return out


def lines(path: str) -> Iterator[tuple[int, list[str]]]:
  """(line number, words) of every line of a text file that is not empty.

  Raises:
    ValueError: it is no text.
  """
  try:
    with open(path, encoding='utf-8-sig') as file:
      for number, line in enumerate(file, start=1):
        if words := line.split():
          yield number, words
  except UnicodeDecodeError as error:
    raise ValueError(f'{path} is no text ({error})') from error


def build(cls: type[FaceBuilder], data_dir: str, cache_dir: str, sizes: Mapping[str, int]
          ) -> FaceBuilder:
  """The data set of the files in `data_dir`, built at most once.

  TFDS writes to a temporary directory and renames it: a killed build leaves nothing behind.

  Args:
    cls: whose set.
    data_dir: holds the published files.
    cache_dir: where builds are kept.
    sizes: pictures that every partition must have.

  Raises:
    FileNotFoundError, ValueError: see `FaceBuilder.listed`; a damaged picture.
  """
  faces = cls.listed(data_dir, sizes)
  root = os.path.join(cache_dir, _digest(faces, sizes))
  builder = cls(data_dir=root, file_format='array_record')
  info = os.path.join(builder.data_dir, 'dataset_info.json')
  if not os.path.exists(info):
    logging.info('building %s in %s', cls.title, root)
    builder.sizes = sizes
    try:
      builder.download_and_prepare(
          download_dir=os.path.join(cache_dir, 'downloads'),
          download_config=tfds.download.DownloadConfig(manual_dir=data_dir))
    except OSError:
      if not os.path.exists(info):  # another process may have built it too, and renamed first
        raise
    builder = cls(data_dir=root, file_format='array_record')
  return builder


def _digest(faces: Iterable[Face], sizes: Mapping[str, int]) -> str:
  digest = hashlib.sha256(repr(sorted(sizes.items())).encode())
  for face in faces:
    facts = os.stat(face.path)
    name = os.path.basename(face.path)
    digest.update(repr((name, *face[1:], facts.st_size, facts.st_mtime_ns)).encode())
  return digest.hexdigest()[:16]


def load(cls: type[FaceBuilder], data_dir: str, cache_dir: str, sizes: Mapping[str, int]
         ) -> Records:
  """All pictures; builds the data set if that was not done yet. Arguments and errors: `build`."""
  builder = build(cls, data_dir, cache_dir, sizes)
  count = sum(sizes.values())
  image = np.empty((count, cls.side, cls.side, 3), np.uint8)
  label = np.empty((count, cls.labels), np.int64)
  identity, partition = [''] * count, [''] * count
  for name in sizes:
    data = builder.as_data_source(split=name)
    for start in range(0, len(data), 512):
      for example in data.__getitems__(range(start, min(start + 512, len(data)))):
        order = int(example['order'])  # TFDS shuffles; this puts them back
        image[order], label[order] = example['image'], example['label']
        identity[order], partition[order] = _text(example['identity']), name
  return Records(image, label, np.asarray(identity), np.asarray(partition))


def source(name: str, records: Records, num_classes: int, attribution: str,
           image_size: int | None) -> sources.Source:
  """Pictures held as bytes; one label is a class, several are attributes."""
  label = (records.label[:, 0].astype(np.int32) if records.label.shape[1] == 1 else
           records.label.astype(np.float32))
  return sources.Source(
      name, {'image': sources.Pictures(resized(records.image, image_size)), 'label': label,
             'partition': records.partition}, records.identity, num_classes, attribution)


def _text(value: str | bytes) -> str:
  return value.decode() if isinstance(value, bytes) else str(value)
