"""Omniglot's small background sets as a TFDS data set; works without TensorFlow.

Two archives, `<set>/<alphabet>/<character>/<number>_<drawer>.png`: 8 distinct alphabets (Greek and
Latin stand in both archives), 242 characters, 20 drawers each, 4,840 pictures. A drawer's number
means another person in another alphabet, so an identity is (alphabet, drawer): 160 of them.
"""

from collections.abc import Iterator, Mapping
import hashlib
import io
import os
import posixpath
from typing import NamedTuple
import urllib.request
import zipfile

from absl import logging
from etils import epath
import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

from unlearn_jax.data import _files
from unlearn_jax.data import sources

SIDE = 105
URL = 'https://github.com/brendenlake/omniglot/raw/master/python/'
ARCHIVES = {  # published name -> SHA-256
    'images_background_small1.zip':
        'f38eb80f801274ac2b4dff5b24289016bfaba4a7d5bb50deebf27104ad6cb8a4',
    'images_background_small2.zip':
        '3ccaa407515a8778e5d0861875af38b17e418f301ad5bb3b5a6b65d901a41c7f',
}
PREFIXES = ('', 'omniglot_')
_TIMEOUT = 30  # seconds without a byte: a machine without a network should say so soon


class Records(NamedTuple):
  """All pictures, in the order of (label, identity).

  Attributes:
    image: uint8 [N, 105, 105], 1 is ink.
    label: str [N], `alphabet/character`.
    alphabet: str [N].
    identity: str [N], `alphabet/drawer`.
  """

  image: np.ndarray
  label: np.ndarray
  alphabet: np.ndarray
  identity: np.ndarray


class OmniglotSmall(tfds.core.GeneratorBasedBuilder):
  """One split, `train`; archives come from `manual_dir`, missing ones are downloaded."""

  VERSION = tfds.core.Version('1.0.0')
  # TFDS 4.9.10 finds this by way of `importlib_resources`, which it forgets to depend on.
  code_path = epath.Path(__file__)
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
      f'Optional: put {" and ".join(ARCHIVES)} of {URL} into manual_dir, with or without the '
      "prefix 'omniglot_'.")

  looked_in = ''  # only for error messages: TFDS does not name a manual_dir that is empty

  def _info(self) -> tfds.core.DatasetInfo:
    # Names are text, not classes: the builder takes whatever alphabets the archives hold.
    return self.dataset_info_from_configs(
        description=__doc__,
        features=tfds.features.FeaturesDict({
            'image': tfds.features.Image(shape=(SIDE, SIDE, 1), encoding_format='png'),
            'label': tfds.features.Text(),
            'alphabet': tfds.features.Text(),
            'identity': tfds.features.Text(),
        }),
        homepage='https://github.com/brendenlake/omniglot',
        license='MIT, Brenden Lake')

  def _split_generators(self, dl_manager):
    try:
      directory = os.fspath(dl_manager.manual_dir)
    except AssertionError:  # TFDS: no such directory, or empty
      directory = ''
    paths = [path or download(name, os.fspath(dl_manager.download_dir),
                              looked_in=directory or self.looked_in)
             for name, path in locate(directory).items()]
    return {'train': self._generate_examples(paths)}

  def _generate_examples(self, paths):
    for key, data in pictures(paths).items():
      alphabet, character, name = key.split('/')
      encoded = io.BytesIO()  # 8 bits: 1-bit pictures decode to 0/1 or 0/255, as the decoder likes
      Image.open(io.BytesIO(data)).convert('L').save(encoded, 'PNG')
      encoded.seek(0)
      yield key, {'image': encoded, 'label': f'{alphabet}/{character}', 'alphabet': alphabet,
                  'identity': f'{alphabet}/{name.removesuffix(".png").split("_")[-1]}'}


def locate(directory: str) -> dict[str, str | None]:
  """Published name -> path in `directory`, with or without the prefix; None where it is missing."""
  found: dict[str, str | None] = {}
  for name in ARCHIVES:
    paths = (os.path.join(directory, prefix + name) for prefix in PREFIXES)
    found[name] = next((path for path in paths if directory and os.path.isfile(path)), None)
  return found


def download(name: str, directory: str, *, looked_in: str = '') -> str:
  """Fetches a published archive into `directory`, atomically, unless it is there.

  TFDS's own downloader retries for minutes on a machine without a network; this one gives up.

  Raises:
    FileNotFoundError: no network: what is missing, where it was looked for, where to get it.
    ValueError: the download is not the published archive.
  """
  path = os.path.join(directory, name)
  if not os.path.exists(path):
    try:
      with urllib.request.urlopen(URL + name, timeout=_TIMEOUT) as response:
        data = response.read()
    except OSError as error:
      where = os.path.abspath(looked_in) if looked_in else 'no directory (data_dir is not set)'
      raise FileNotFoundError(
          f'Omniglot archive {name} is missing: looked in {where} for '
          f'{" or ".join(prefix + name for prefix in PREFIXES)}, and {URL + name} could not be '
          f'downloaded ({error}). Fetch it from there on another machine, put it into a directory '
          'and pass that as data_dir.') from error
    if (found := hashlib.sha256(data).hexdigest()) != ARCHIVES[name]:
      raise ValueError(f'{URL + name} is not the published archive: SHA-256 {found}, expected '
                       f'{ARCHIVES[name]}')
    os.makedirs(directory, exist_ok=True)
    with _files.replacing(path, 'wb') as file:
      file.write(data)
  return path


def pictures(paths: list[str]) -> dict[str, bytes]:
  """`alphabet/character/file.png` -> encoded picture, each once.

  Raises:
    ValueError: a file is no zip archive, holds no pictures in the published layout, or two
      archives disagree on a picture.
  """
  found: dict[str, bytes] = {}
  for path in paths:
    count = 0
    for key, data in _entries(path):
      if found.setdefault(key, data) != data:
        raise ValueError(f'{path}: {key} differs from the same picture in another archive')
      count += 1
    if not count:
      raise ValueError(f'{path} holds no pictures named <set>/<alphabet>/<character>/'
                       '<number>_<drawer>.png')
  return found


def _entries(path: str) -> Iterator[tuple[str, bytes]]:
  try:
    with zipfile.ZipFile(path) as archive:
      for name in archive.namelist():
        parts = posixpath.normpath(name).split('/')
        if len(parts) == 4 and parts[-1].endswith('.png') and '_' in parts[-1]:
          yield '/'.join(parts[1:]), archive.read(name)
  except zipfile.BadZipFile as error:
    raise ValueError(f'{path} is not a complete zip archive ({error}); fetch it again from '
                     f'{URL}') from error


def build(data_dir: str, cache_dir: str) -> OmniglotSmall:
  """The data set of the archives in `data_dir`, built at most once.

  Builds are kept per content of the archives, so other archives never answer for these; TFDS
  writes to a temporary directory and renames it, so a killed build leaves nothing half-written.

  Args:
    data_dir: holds the archives; those missing are the published ones, downloaded if need be.
    cache_dir: where builds are kept.

  Raises:
    FileNotFoundError: see `download`.
    ValueError: damaged archives, see `pictures`.
  """
  data_dir = os.path.expanduser(data_dir)
  digest = hashlib.sha256()
  for name, path in locate(data_dir).items():
    digest.update((_file_hash(path) if path else ARCHIVES[name]).encode())
  root = os.path.join(cache_dir, digest.hexdigest()[:16])
  make = lambda: OmniglotSmall(data_dir=root, file_format='array_record')
  builder = make()
  if not _is_built(builder):
    logging.info('building Omniglot in %s', root)
    builder.looked_in = data_dir
    try:
      builder.download_and_prepare(download_dir=os.path.join(cache_dir, 'downloads'),
                                   download_config=tfds.download.DownloadConfig(
                                       manual_dir=data_dir or None))
    except OSError:
      if not _is_built(make()):  # another process may have built the same data, and renamed first
        raise
    builder = make()
  return builder


def load(data_dir: str, cache_dir: str) -> Records:
  """All pictures; builds the data set if that was not done yet. Arguments and errors: `build`."""
  data = build(data_dir, cache_dir).as_data_source(split='train')
  columns: Mapping[str, list] = {name: [] for name in Records._fields}
  for start in range(0, len(data), 512):
    for example in data.__getitems__(range(start, min(start + 512, len(data)))):
      columns['image'].append((example['image'][..., 0] < 128).astype(np.uint8))
      for name in ('label', 'alphabet', 'identity'):
        value = example[name]
        columns[name].append(value.decode() if isinstance(value, bytes) else str(value))
  text = {name: np.asarray(columns[name]) for name in ('label', 'alphabet', 'identity')}
  order = np.lexsort((text['identity'], text['label']))  # TFDS shuffles; this order is ours
  return Records(np.stack(columns['image'])[order], *(text[name][order] for name in text))


def source(data_dir: str, cache_dir: str, image_size: int | None) -> sources.Source:
  """Pictures of 32x32 (or `image_size`), ink is 1. Errors: `build`."""
  records = load(data_dir, cache_dir)
  names, label = np.unique(records.label, return_inverse=True)
  size = 32 if image_size is None else image_size
  image = np.concatenate([sources.area_resize(records.image[start:start + 512], size, white=1)
                          for start in range(0, len(label), 512)])  # float64 inside: bound it
  return sources.Source(
      'omniglot', {'image': image, 'label': label.astype(np.int32)}, records.identity, len(names),
      'Omniglot, B. M. Lake, R. Salakhutdinov and J. B. Tenenbaum (2015), Human-level concept '
      'learning through probabilistic program induction, Science 350; MIT licence, Brenden Lake.')


def _is_built(builder: OmniglotSmall) -> bool:
  return os.path.exists(os.path.join(builder.data_dir, 'dataset_info.json'))


def _file_hash(path: str) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
