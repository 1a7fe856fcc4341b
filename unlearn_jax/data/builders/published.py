"""What the builders of the usual picture sets share: published files, and sets that TFDS prepared.

The stock TFDS builders of these sets describe themselves without TensorFlow but read the published
files through it, so the sets are built by builders of our own. Sets that a stock builder has
prepared already are read as they are, without TensorFlow too.
"""

import abc
from collections.abc import Iterator, Mapping
import hashlib
import io
import os
import struct
from typing import ClassVar, NamedTuple
import urllib.request

from absl import logging
import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

from unlearn_jax.data import _files
from unlearn_jax.data import sources

_TIMEOUT = 30  # seconds without a byte: a machine without a network should say so soon


class File(NamedTuple):
  """A published file.

  Attributes:
    name: as published.
    url: where the authors publish it.
    sha256: of the file; a download must match, what lies in `data_dir` is taken as it is.
    unpacked: name of the directory that it unpacks to and that may stand for it, or ''.
  """

  name: str
  url: str
  sha256: str
  unpacked: str = ''


class Records(NamedTuple):
  """The authors' training and test pictures: first all of `train`, in published order.

  Attributes:
    image: uint8 [N, H, W, C].
    label: int32 [N].
    partition: str [N], `train` or `test`.
  """

  image: np.ndarray
  label: np.ndarray
  partition: np.ndarray


class PublishedBuilder(tfds.core.GeneratorBasedBuilder):
  """Splits `train` and `test` of pictures with one label each, from published files.

  Files come from `manual_dir`; those missing are downloaded unless `terms` stand against it.
  """

  VERSION = tfds.core.Version('1.0.0')
  MANUAL_DOWNLOAD_INSTRUCTIONS = 'Put the published files, see `files`, into manual_dir.'

  title: ClassVar[str]
  tfds_name: ClassVar[str]
  files: ClassVar[tuple[File, ...]]
  shape: ClassVar[tuple[int, int, int]]
  classes: ClassVar[int]
  sizes: ClassVar[Mapping[str, int]]  # published pictures per split
  homepage: ClassVar[str]
  attribution: ClassVar[str]
  terms: ClassVar[str] = ''  # why the files are not downloaded on somebody's behalf

  looked_in = ''  # only for error messages: TFDS does not name a manual_dir that is empty

  @classmethod
  @abc.abstractmethod
  def read(cls, paths: Mapping[str, str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Published name -> path, to split -> pictures uint8 [n, H, W, C] and labels [n].

    Raises:
      ValueError: files that are damaged or of another layout.
    """

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
        description=f'{self.title}: the published files, in their order. {self.attribution}',
        features=tfds.features.FeaturesDict({
            'id': tfds.features.Text(),  # as in the stock builders: split_number
            'image': tfds.features.Image(shape=self.shape, encoding_format='png'),
            'label': tfds.features.ClassLabel(num_classes=self.classes),
        }),
        homepage=self.homepage)

  def _split_generators(self, dl_manager):
    try:
      directory = os.fspath(dl_manager.manual_dir)
    except AssertionError:  # TFDS: no such directory, or empty
      directory = ''
    paths = {file.name: find(directory, file) or self._download(
        file, os.fspath(dl_manager.download_dir), directory or self.looked_in)
             for file in self.files}
    return {split: self._generate_examples(split, *arrays)
            for split, arrays in self.read(paths).items()}

  def _generate_examples(self, split, images, labels):
    if images.dtype != np.uint8 or images.shape != (len(labels), *self.shape):
      raise ValueError(f'{self.title}: the {split} files hold {images.dtype} {images.shape} '
                       f'pictures and {len(labels)} labels, expected uint8 (n, '
                       f'{", ".join(map(str, self.shape))}) and n labels')
    for index, (image, label) in enumerate(zip(images, labels)):
      encoded = io.BytesIO()  # TFDS encodes arrays by way of TensorFlow
      Image.fromarray(image.squeeze()).save(encoded, 'PNG')
      encoded.seek(0)
      yield index, {'id': f'{split}_{index:06d}', 'image': encoded, 'label': int(label)}

  def _download(self, file: File, directory: str, looked_in: str) -> str:
    """Fetches a published file into `directory`, atomically, unless it is there.

    Raises:
      FileNotFoundError: not to be had: what is missing, where it was looked for, where it is.
      ValueError: the download is not the published file.
    """
    path = os.path.join(directory, file.name)
    if os.path.exists(path):
      return path
    if self.terms:
      raise self._missing(file, looked_in, f'{self.terms}, so get it yourself from {file.url}')
    digest = hashlib.sha256()
    os.makedirs(directory, exist_ok=True)
    try:
      with urllib.request.urlopen(file.url, timeout=_TIMEOUT) as response:
        with _files.replacing(path, 'wb') as out:
          while block := response.read(1 << 20):
            digest.update(block)
            out.write(block)
          if digest.hexdigest() != file.sha256:
            raise ValueError(f'{file.url} is not the published file: SHA-256 {digest.hexdigest()}, '
                             f'expected {file.sha256}')
    except OSError as error:
      raise self._missing(file, looked_in, f'{file.url} could not be downloaded ({error}); fetch '
                          'it from there on another machine') from error
    return path

  def _missing(self, file: File, looked_in: str, why: str) -> FileNotFoundError:
    where = os.path.abspath(looked_in) if looked_in else 'no directory (data_dir is not set)'
    names = ' or '.join(name for name in (file.name, file.unpacked) if name)
    return FileNotFoundError(
        f'{self.title}: {file.name} is missing: looked in {where} for {names}, and for a data set '
        f'{self.tfds_name}/VERSION prepared by TFDS; {why}, put it into a directory and pass that '
        'as data_dir.')


def find(directory: str, file: File) -> str | None:
  """Path of a published file, or of what it unpacks to, in `directory`; None if it is not there."""
  if not directory:
    return None
  paths = [os.path.join(directory, name) for name in (file.name, file.unpacked) if name]
  return next((path for path in paths if os.path.exists(path)), None)


def source(cls: type[PublishedBuilder], data_dir: str, cache_dir: str, image_size: int | None
           ) -> sources.Source:
  """A set as records with their published partition; everybody is an identity of their own.

  The attribution names what differs from the published numbers of pictures, if anything does.

  Args:
    cls: whose set.
    data_dir: see `load`.
    cache_dir: see `load`.
    image_size: side of the pictures, by area averaging and rounded to 8 bits; None keeps them.

  Raises:
    FileNotFoundError: see `load`.
    ValueError: see `load`.
  """
  records = load(cls, data_dir, cache_dir)
  attribution = cls.attribution
  sizes = {split: int((records.partition == split).sum()) for split in cls.sizes}
  if sizes != cls.sizes:
    found, wanted = (', '.join(f'{count:,} {split}' for split, count in counts.items())
                     for counts in (sizes, cls.sizes))
    attribution += f' Not the published set: {found} pictures instead of {wanted}.'
    logging.warning('%s', attribution)
  return sources.Source(
      cls.tfds_name,
      {'image': sources.Pictures(_resized(records.image, image_size)), 'label': records.label,
       'partition': records.partition},
      np.arange(len(records.label)).astype(str), cls.classes, attribution)


def _resized(images: np.ndarray, size: int | None) -> np.ndarray:
  if size is None or images.shape[1:3] == (size, size):
    return images
  out = np.empty((len(images), size, size, images.shape[3]), np.uint8)
  for start in range(0, len(images), 512):  # float64 inside: bound it
    part = slice(start, start + 512)
    for channel in range(images.shape[3]):
      exact = sources.area_resize(images[part, ..., channel], size, white=1)
      out[part, ..., channel] = np.rint(exact[..., 0])
  return out


def load(cls: type[PublishedBuilder], data_dir: str, cache_dir: str) -> Records:
  """All pictures of a set: prepared by TFDS in `data_dir`, or built at most once.

  Args:
    cls: whose set.
    data_dir: holds `NAME/VERSION` as TFDS prepares it (the highest version is taken), or the
      published files; those missing are downloaded where that is allowed.
    cache_dir: where builds are kept, per content of the files.

  Raises:
    FileNotFoundError: see `PublishedBuilder`.
    ValueError: damaged files, or a set of another layout.
  """
  data_dir = os.path.expanduser(data_dir)
  if version := _prepared(os.path.join(data_dir, cls.tfds_name) if data_dir else ''):
    logging.info('reading %s from %s, prepared by TFDS', cls.title, version)
    return _read(tfds.builder_from_directory(version))
  return _read(_build(cls, data_dir, cache_dir))


def _prepared(directory: str) -> str | None:
  """The highest version that TFDS has prepared in a data set's directory, or None."""
  found = {}
  for name in os.listdir(directory) if directory and os.path.isdir(directory) else ():
    path = os.path.join(directory, name)  # unfinished ones are called incomplete.X_VERSION
    if tfds.core.Version.is_valid(name) and os.path.exists(os.path.join(path, 'dataset_info.json')):
      found[tfds.core.Version(name)] = path
  return found[max(found)] if found else None


def _build(cls: type[PublishedBuilder], data_dir: str, cache_dir: str
           ) -> tfds.core.DatasetBuilder:
  """TFDS writes to a temporary directory and renames it: a killed build leaves nothing behind."""
  digest = hashlib.sha256()
  for file in cls.files:
    path = find(data_dir, file)
    digest.update((_hash(path) if path else file.sha256).encode())
  root = os.path.join(cache_dir, digest.hexdigest()[:16])
  builder = cls(data_dir=root, file_format='array_record')
  finished = os.path.join(builder.data_dir, 'dataset_info.json')
  if not os.path.exists(finished):
    logging.info('building %s in %s', cls.title, root)
    builder.looked_in = data_dir
    try:
      builder.download_and_prepare(download_dir=os.path.join(cache_dir, 'downloads'),
                                   download_config=tfds.download.DownloadConfig(
                                       manual_dir=data_dir or None))
    except OSError:
      if not os.path.exists(finished):  # another process may have been first with the same data
        raise
  return tfds.builder_from_directory(builder.data_dir)


def _hash(path: str) -> str:
  """SHA-256 of a file, or of all files in a directory with their names (hex)."""
  if os.path.isfile(path):
    with open(path, 'rb') as file:
      return hashlib.file_digest(file, 'sha256').hexdigest()
  names = sorted(name for name in os.listdir(path) if os.path.isfile(os.path.join(path, name)))
  hashes = [f'{name}|{_hash(os.path.join(path, name))}' for name in names]
  return hashlib.sha256('|'.join(hashes).encode()).hexdigest()


def _read(builder: tfds.core.DatasetBuilder) -> Records:
  """Both splits; TFDS shuffles, `id` (where a set has it) puts them into published order."""
  parts = []
  for split in ('train', 'test'):
    if split not in builder.info.splits:
      raise ValueError(f'{builder.data_dir} has no split {split!r}, only '
                       f'{", ".join(builder.info.splits)}')
    count = builder.info.splits[split].num_examples
    image = np.empty((count, *builder.info.features['image'].shape), np.uint8)
    label, names, done = np.empty(count, np.int32), [], 0
    for example in _examples(builder, split):
      image[done], label[done] = example['image'], example['label']
      names.append(example.get('id', b''))
      done += 1
    if done != count:
      raise ValueError(f'{builder.data_dir}: split {split!r} has {done} of {count} pictures')
    order = np.argsort(np.asarray(names), kind='stable')
    parts.append((image[order], label[order], np.full(count, split)))
  return Records(*(np.concatenate(arrays) for arrays in zip(*parts)))


def _examples(builder: tfds.core.DatasetBuilder, split: str) -> Iterator[Mapping]:
  """The decoded examples of a split, in stored order, without TensorFlow."""
  if builder.info.file_format != tfds.core.file_adapters.FileFormat.TFRECORD:
    data = builder.as_data_source(split=split)
    for start in range(0, len(data), 512):
      yield from data.__getitems__(range(start, min(start + 512, len(data))))
    return
  for path in sorted(map(os.fspath, builder.info.splits[split].filepaths)):
    with open(path, 'rb') as file:
      # A TFRecord is a length (8 bytes), its CRC-32C (4), the record, and its CRC-32C (4). The
      # sums are not checked; lengths are, and `_read` counts.
      while header := file.read(12):
        length = struct.unpack('<Q', header[:8])[0] if len(header) == 12 else 0
        record, end = file.read(length), file.read(4)
        if len(end) < 4:
          raise ValueError(f'{path} ends inside a record; prepare the data set again')
        yield builder.info.features.deserialize_example_np(record)
