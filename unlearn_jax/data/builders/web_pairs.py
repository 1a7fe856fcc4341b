"""Pictures with captions from the web: CC3M, CC12M and YFCC15M-R as people hold them.

Three layouts: `*.tar` (webdataset) and `*.parquet`, as img2dataset writes them, and a CSV of paths
and captions, as NCU reads it. Whatever cannot be used is left out and counted, never fatal.
"""

import collections
from collections.abc import Iterator
import csv
import functools
import hashlib
import itertools
import os
import tarfile
from typing import NamedTuple
import zlib

from absl import logging
import numpy as np
import tqdm

from unlearn_jax.data import fields
from unlearn_jax.data import sources
from unlearn_jax.data.builders import web_index

SIZE = 224
ATTRIBUTION = {
    'cc3m': 'Conceptual Captions, P. Sharma, N. Ding, S. Goodman and R. Soricut 2018, Google '
            '(free use with acknowledgement; pictures under the terms of their sites).',
    'cc12m': 'Conceptual 12M, S. Changpinyo, P. Sharma, N. Ding and R. Soricut 2021, Google '
             '(free use with acknowledgement; pictures under the terms of their sites).',
    'yfcc15m_r': 'YFCC15M, a part of YFCC100M, B. Thomee et al. 2016 (Creative Commons licences of '
                 'the pictures), captions by T. Gu et al. 2024 (RWKV-CLIP).',
}
PICTURES = ('jpg', 'jpeg', 'png', 'webp')
CSV_COLUMNS = ('image_path', 'text_content')
_CHUNK = 256  # pictures decoded at a time while an index is made


class Candidate(NamedTuple):
  """A record as it stands in the files; what is missing is None.

  Attributes:
    shard: number of the file.
    start: where the picture is, see `Shards.read`.
    length: of it.
    key: its name.
    picture: its bytes.
    caption: its text.
    done: how far this brings the reader, in the units of `Shards.total`.
  """

  shard: int
  start: int
  length: int
  key: str
  picture: bytes | None
  caption: str | None
  done: int


class Shards:
  """Files of one layout in a directory.

  Attributes:
    directory: where they are.
    names: of the files.
    problems: what was wrong with whole files.
  """

  def __init__(self, directory: str, names: list[str]):
    self.directory, self.names, self.problems = directory, names, collections.Counter()

  def path(self, shard: int) -> str:
    return os.path.join(self.directory, self.names[shard])

  def total(self) -> int:
    """How much there is to scan."""
    return sum(os.path.getsize(self.path(shard)) for shard in range(len(self.names)))

  def scan(self) -> Iterator[Candidate]:
    """All records, in order."""
    raise NotImplementedError

  def read(self, shard: int, start: int, length: int, key: str) -> bytes:
    """The picture of a record; called from several threads."""
    raise NotImplementedError


class Tars(Shards):
  """Webdataset: members `KEY.jpg`, `KEY.txt`, `KEY.json` of a record stand next to each other.

  A picture is read at its offset, without unpacking.
  """

  def scan(self):
    for shard in range(len(self.names)):
      before = 0
      for key, members in itertools.groupby(self._members(shard), lambda item: item[0]):
        parts = {extension: (start, data) for _, extension, start, data in members}
        start, picture = next((parts[name] for name in PICTURES if name in parts), (0, None))
        caption = parts['txt'][1].decode('utf-8', 'replace') if 'txt' in parts else None
        end = max(start + len(data) for start, data in parts.values())
        yield Candidate(shard, start, len(picture or b''), key, picture, caption, end - before)
        before = end

  def _members(self, shard: int) -> Iterator[tuple[str, str, int, bytes]]:
    """Key, extension, offset and content."""
    try:
      with tarfile.open(self.path(shard), 'r:') as tar:
        for member in tar:
          if member.isfile():
            folder, name = os.path.split(member.name)
            stem, _, extension = name.partition('.')  # webdataset's rule: at the first dot
            data = tar.extractfile(member).read()
            if len(data) < member.size:
              raise tarfile.ReadError('the last member is cut off')
            yield os.path.join(folder, stem), extension.lower(), member.offset_data, data
    except tarfile.TarError as error:
      self.problems[f'file cut short ({self.names[shard]}: {error})'] += 1

  def read(self, shard, start, length, key):
    with open(self.path(shard), 'rb') as file:
      file.seek(start)
      return file.read(length)


class Parquets(Shards):
  """Rows with the picture's bytes in `jpg` (`png`, `webp`), and `caption`, maybe `key`.

  A picture is read with its row group: `start` is the group's number, `length` the row in it.
  """

  def __init__(self, directory, names):
    super().__init__(directory, names)
    self._metadata = [_parquet().read_metadata(self.path(shard)) for shard in range(len(names))]

  def total(self):
    return sum(metadata.num_rows for metadata in self._metadata)

  def scan(self):
    for shard, name in enumerate(self.names):
      file = self._open(shard)
      columns = [column for column in ('key', 'caption', self._pictures(shard))
                 if column in file.schema_arrow.names]
      for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=columns).to_pydict()
        for row, picture in enumerate(table[columns[-1]]):
          key = table['key'][row] if 'key' in table else f'{name}/{group}/{row}'
          caption = table['caption'][row] if 'caption' in table else None
          yield Candidate(shard, group, row, str(key), picture, caption, 1)

  def read(self, shard, start, length, key):
    table = self._open(shard).read_row_group(start, columns=[self._pictures(shard)])
    return table.column(0)[length].as_py()

  def _pictures(self, shard: int) -> str:
    names = self._open(shard).schema_arrow.names
    return next(name for name in PICTURES if name in names)

  def _open(self, shard: int):
    # A file object per call: pyarrow promises no use of one from several threads.
    return _parquet().ParquetFile(self.path(shard), metadata=self._metadata[shard])


class Csv(Shards):
  """A list of pictures in files of their own: their paths, relative to the list, and captions."""

  def total(self):
    return sum(1 for _ in self._rows())

  def scan(self):
    for path, caption in self._rows():
      try:
        picture = self.read(0, 0, 0, path) if path else None
      except OSError:
        picture = None
      yield Candidate(0, 0, len(picture or b''), path or '', picture, caption, 1)

  def _rows(self) -> Iterator[tuple[str | None, str | None]]:
    with open(self.path(0), encoding='utf-8-sig', newline='', errors='replace') as file:
      rows = csv.DictReader(file)
      if missing := [name for name in CSV_COLUMNS if name not in (rows.fieldnames or ())]:
        raise ValueError(f'{self.path(0)} has no column {" or ".join(missing)}; it has '
                         f'{", ".join(rows.fieldnames or ())}')
      for row in rows:
        yield tuple(row[name] for name in CSV_COLUMNS)

  def read(self, shard, start, length, key):
    with open(os.path.join(self.directory, key), 'rb') as file:
      return file.read()


def source(name: str, data_dir: str, cache_dir: str, image_size: int | None) -> sources.Source:
  """A set in whichever layout `data_dir` holds it; one record per pair, in the order of the files.

  All pictures are decoded once, in parallel, to find broken ones; where the good ones are is kept
  in `cache_dir`, by the names and sizes of the files (of the list, for CSV: delete the index after
  pictures have changed). After that pictures are decoded when they are read, see `fields.Encoded`,
  at 224 pixels or `image_size`. NCU's release uses what can be decoded of truncated pictures; here
  they are left out (ours). There are no labels, and everybody is an identity of their own.

  Args:
    name: a key of `ATTRIBUTION`.
    data_dir: holds `*.tar`; else `*.parquet` with pictures; else one `*.csv`, or `train.csv`, with
      columns `image_path` and `text_content`. The tables without pictures that img2dataset puts
      beside its tars are passed over.
    cache_dir: where indices are kept.
    image_size: height and width.

  Returns:
    The pairs; `note` counts what was left out and why.

  Raises:
    FileNotFoundError: no such files.
    ImportError: parquet files, and no pyarrow.
    ValueError: a CSV without the columns, or not one usable pair.
  """
  shards = _shards(name, data_dir)
  index = _index(name, shards, cache_dir)
  problems = ', '.join(f'{count:,} {reason}' for reason, count in sorted(index.left_out.items()))
  note = f'{problems} left out' if problems else ''
  if note:
    logging.warning('%s in %s: %s', name, data_dir, note)
  if not len(index):
    raise ValueError(f'{name}: no usable pair in {data_dir}: {note or "the files are empty"}')
  images = fields.Encoded(
      lambda row: shards.read(int(index.shard[row]), int(index.start[row]), int(index.length[row]),
                              index.key[row]),
      len(index), image_size or SIZE, content=index.digest(),
      name=lambda row: f'{shards.names[index.shard[row]]}: {index.key[row]}')
  picture = np.arange(len(index), dtype=np.int32)
  return sources.Source(name, {'image': images, 'caption': index.caption, 'picture': picture},
                        picture.astype(str), 0, ATTRIBUTION[name], note=note)


cc3m = functools.partial(source, 'cc3m')
cc12m = functools.partial(source, 'cc12m')
yfcc15m_r = functools.partial(source, 'yfcc15m_r')


def _shards(name: str, data_dir: str) -> Shards:
  names = sorted(os.listdir(data_dir)) if data_dir and os.path.isdir(data_dir) else []
  tars, parquets, lists = ([file for file in names if file.endswith(ending)]
                           for ending in ('.tar', '.parquet', '.csv'))
  if tars:
    return Tars(data_dir, tars)
  if parquets := [file for file in parquets if set(PICTURES) & set(
      _parquet().read_schema(os.path.join(data_dir, file)).names)]:
    return Parquets(data_dir, parquets)
  if lists := (['train.csv'] if 'train.csv' in lists else lists):
    if len(lists) > 1:
      raise ValueError(f'{name}: {data_dir} holds several lists: {", ".join(lists)}; call the one '
                       'to use train.csv')
    return Csv(data_dir, lists)
  where = os.path.abspath(data_dir) if data_dir else 'no directory (data_dir is not set)'
  raise FileNotFoundError(
      f'{name}: looked in {where} for *.tar, *.parquet with pictures, or a *.csv with '
      f'{" and ".join(CSV_COLUMNS)}. Fetch the pictures of the published list of links with '
      'img2dataset (--output_format webdataset or parquet) and pass its output folder as data_dir.')


def _parquet():
  try:
    from pyarrow import parquet
  except ModuleNotFoundError as error:
    raise ImportError("parquet files need pyarrow; install 'unlearn_jax[parquet]'") from error
  return parquet


def _index(name: str, shards: Shards, cache_dir: str) -> web_index.Index:
  """Where the usable pairs are: read from the cache, or found out."""
  words = [type(shards).__name__]
  words += [f'{file}|{os.path.getsize(shards.path(shard))}'
            for shard, file in enumerate(shards.names)]
  key = hashlib.sha256('\0'.join(words).encode()).hexdigest()[:16]
  path = os.path.join(cache_dir, 'indices', f'{name}-{key}.npz')
  if os.path.exists(path):
    return web_index.load(path)
  logging.info('%s: looking through %d files, once', name, len(shards.names))
  found, left_out = web_index.Builder(), collections.Counter()
  candidates = shards.scan()
  with tqdm.tqdm(total=shards.total(), desc=f'index of {name}', unit_scale=True) as bar:
    while chunk := list(itertools.islice(candidates, _CHUNK)):
      for one, problem in zip(chunk, fields.threads().map(_problem, chunk)):
        if problem:
          left_out[problem] += 1
        else:
          found.add(one.shard, one.start, one.length, zlib.crc32(one.picture), one.key,
                    one.caption.strip())
      bar.update(sum(one.done for one in chunk))
  index = found.index(left_out + shards.problems)
  index.save(path)
  return index


def _problem(one: Candidate) -> str:
  """Why a record cannot be used; '' if it can."""
  if one.picture is None:
    return 'without a picture'
  if one.caption is None:
    return 'without a caption'
  if not one.caption.strip():
    return 'with an empty caption'
  try:
    fields.decode(one.picture)
  except fields.BROKEN:
    return 'with a broken picture'
  return ''
