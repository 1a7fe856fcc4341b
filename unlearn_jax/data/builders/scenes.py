"""ImageNet-1k and Places365 as TFDS prepared them, read picture by picture without TensorFlow."""

from collections.abc import Callable, Mapping
import hashlib
import os
import pathlib
from typing import NamedTuple
import zipfile

from absl import logging
import numpy as np
import tensorflow_datasets as tfds
import tqdm

from unlearn_jax.data import _files
from unlearn_jax.data import fields
from unlearn_jax.data import sources
from unlearn_jax.data.builders import downstream

_CHUNK = 256  # records read at a time while labels are listed


class Set(NamedTuple):
  """A set and what has been published about it.

  Attributes:
    name: ours.
    title: in messages.
    tfds: name in TFDS.
    file_name: the field that names a picture.
    size: side in pixels unless another is asked for.
    counts: pictures per split with labels; `test` has none and is not read.
    classes: how many.
    class_names: names that the data's authors gave them -> names to show.
    attribution: who made it and under which licence.
    manual: whether TFDS cannot download the archives itself.
  """

  name: str
  title: str
  tfds: str
  file_name: str
  size: int
  counts: Mapping[str, int]
  classes: int
  class_names: Callable[[list[str]], tuple[str, ...]]
  attribution: str
  manual: bool = False

  def command(self, data_dir: str) -> str:
    """What prepares it, where TensorFlow is installed too."""
    manual = ' --manual_dir=ARCHIVES' if self.manual else ''
    return f'tfds build {self.tfds} --data_dir={data_dir or "DIR"} --file_format=array_record{manual}'


def _scene_names(published: list[str]) -> tuple[str, ...]:
  """`apartment_building/outdoor` becomes `apartment building, outdoor` (ours)."""
  return tuple(name.replace('/', ', ').replace('_', ' ') for name in published)


IMAGENET = Set(
    'imagenet', 'ImageNet-1k', 'imagenet2012', 'file_name', 224,
    {'train': 1_281_167, 'validation': 50_000}, 1000,
    lambda published: downstream.class_names('imagenet'),  # theirs are numbers of WordNet
    'ImageNet ILSVRC 2012, O. Russakovsky et al. 2015 (non-commercial research).', manual=True)
PLACES365 = Set(
    'places365', 'Places365', 'places365_small', 'filename', 256,
    {'train': 1_803_460, 'validation': 36_500}, 365, _scene_names,
    'Places365-Standard, B. Zhou, A. Lapedriza, A. Khosla, A. Oliva and A. Torralba 2017 '
    '(non-commercial research and teaching).')


def imagenet(data_dir: str, cache_dir: str, image_size: int | None) -> sources.Source:
  """ImageNet-1k at 224 pixels or `image_size`; see `source`."""
  return source(IMAGENET, data_dir, cache_dir, image_size)


def places365(data_dir: str, cache_dir: str, image_size: int | None) -> sources.Source:
  """Places365-Standard, the small pictures of 256 pixels, or at `image_size`; see `source`."""
  return source(PLACES365, data_dir, cache_dir, image_size)


def source(known: Set, data_dir: str, cache_dir: str, image_size: int | None) -> sources.Source:
  """A set with the authors' partition `train` and `validation`, in the order that TFDS stored.

  Pictures are decoded when they are read: the shorter side by PIL's bicubic filter, and the central
  square (`fields.square`). Labels stand inside the records, so all files are read once to list
  them; the list is kept in `cache_dir`, by the sizes that TFDS noted. Everybody is an identity of
  their own. The attribution names what differs from the published numbers of pictures, if anything.

  Args:
    known: which set.
    data_dir: holds what TFDS prepared, in the format array_record; the highest version is taken.
    cache_dir: where the list is kept.
    image_size: height and width.

  Raises:
    FileNotFoundError: nothing prepared there, or in a format without random access: how to.
    ValueError: another number of classes, a split that is missing, a damaged list.
  """
  builder = _opened(known, data_dir)
  parts = {split: builder.as_data_source(split=split, decoders={'image': tfds.decode.SkipDecoding()})
           for split in known.counts}
  counts = {split: len(part) for split, part in parts.items()}
  label, content = _listed(known, builder, parts, cache_dir)
  partition = np.repeat(list(counts), list(counts.values()))
  starts = dict(zip(counts, np.cumsum([0, *counts.values()])))

  def read(row: int) -> bytes:
    split = str(partition[row])
    return parts[split][row - int(starts[split])]['image']

  attribution = known.attribution
  if counts != known.counts:
    found, wanted = (', '.join(f'{count:,} {split}' for split, count in numbers.items())
                     for numbers in (counts, known.counts))
    attribution += f' Not the published set: {found} pictures instead of {wanted}.'
    logging.warning('%s', attribution)
  images = fields.Encoded(
      read, len(label), image_size or known.size, content=content,
      name=lambda row: f'{builder.info.full_name}, {partition[row]}, row '
                       f'{row - int(starts[str(partition[row])])}')
  return sources.Source(
      known.name, {'image': images, 'label': label, 'partition': partition},
      np.arange(len(label)).astype(str), known.classes, attribution,
      known.class_names(builder.info.features['label'].names))


def _opened(known: Set, data_dir: str) -> tfds.core.DatasetBuilder:
  data_dir = os.path.expanduser(data_dir)
  where = os.path.abspath(data_dir) if data_dir else 'no directory (data_dir is not set)'
  missing = (f'{known.title}: looked in {where} for {known.tfds}/VERSION as TFDS prepares it; prepare '
             f'it on a machine with TensorFlow: {known.command(data_dir)}'
             + (' (ARCHIVES holds the published archives)' if known.manual else ''))
  if not data_dir:
    raise FileNotFoundError(missing)
  try:
    builder = tfds.core.read_only_builder.builder_from_files(known.tfds, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError as error:
    raise FileNotFoundError(missing) from error
  if builder.info.file_format != tfds.core.file_adapters.FileFormat.ARRAY_RECORD:
    raise FileNotFoundError(
        f'{known.title}: {builder.data_dir} is in the format {builder.info.file_format.value}, which '
        f'has no random access; prepare it again: {known.command(data_dir)}')
  if (found := builder.info.features['label'].num_classes) != known.classes:
    raise ValueError(f'{builder.data_dir} has {found} classes, {known.title} has {known.classes}')
  if lacking := [split for split in known.counts if split not in builder.info.splits]:
    raise ValueError(f'{builder.data_dir} has no split {lacking[0]!r}, only '
                     f'{", ".join(builder.info.splits)}')
  return builder


def _listed(known: Set, builder, parts, cache_dir: str) -> tuple[np.ndarray, bytes]:
  """Labels int32 [N], and a digest of the pictures' names: read from the cache, or found out."""
  info = pathlib.Path(builder.data_dir, 'dataset_info.json').read_bytes()
  path = os.path.join(cache_dir, 'labels',
                      f'{known.name}-{hashlib.sha256(info).hexdigest()[:16]}.npz')
  if os.path.exists(path):
    try:
      with np.load(path, allow_pickle=False) as data:
        return data['label'], data['content'].tobytes()
    except (KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
      raise ValueError(f'{path} is a damaged list of labels ({error}); delete it, it is made again'
                       ) from error
  logging.info('%s: reading %s once for its labels', known.title, builder.data_dir)
  labels, content = [], hashlib.sha256(builder.info.full_name.encode())
  with tqdm.tqdm(total=sum(map(len, parts.values())), desc=f'labels of {known.title}') as bar:
    for split, part in parts.items():
      for start in range(0, len(part), _CHUNK):
        examples = part.__getitems__(range(start, min(start + _CHUNK, len(part))))
        labels += [int(example['label']) for example in examples]
        for example in examples:
          content.update(f'\0{split}/'.encode() + bytes(example[known.file_name]))
        bar.update(len(examples))
  label, content = np.asarray(labels, np.int32), content.digest()
  os.makedirs(os.path.dirname(path), exist_ok=True)
  with _files.replacing(path, 'wb') as file:
    np.savez(file, label=label, content=np.frombuffer(content, np.uint8))
  return label, content
