"""Audio-visual digits with real voices: MNIST pictures, and the Free Spoken Digit Dataset."""

from collections.abc import Mapping
import os
import pathlib
import re
import zipfile
import zlib

from absl import logging
import numpy as np

from unlearn_jax.data import _checks
from unlearn_jax.data import audio
from unlearn_jax.data import sources
from unlearn_jax.data.builders import av_digits
from unlearn_jax.data.builders import packaged

URL = 'https://github.com/Jakobovski/free-spoken-digit-dataset'
ATTRIBUTION = ('Free Spoken Digit Dataset, Z. Jackson and contributors (CC BY-SA 4.0), '
               f'{URL}.')
PUBLISHED = 3000  # 6 speakers, 10 digits, 50 recordings
RATE = 8000  # Hz
SIZE = av_digits.SIZE
_NAME = re.compile(r'([0-9])_([^_]+)_(0|[1-9][0-9]*)\.wav')
_Files = Mapping[str, bytes | pathlib.Path]


def source(data_dir: str, cache_dir: str, image_size: int | None) -> sources.Source:
  """The 3,000 recordings, each beside an MNIST picture of its digit.

  Records are in the order of digit, speaker and number; the identity is the speaker. Of the 500
  pictures per digit of `mnist5k` a fixed random choice of 300 is shown (`av_digits.pictures`); this
  pairing is ours. Spectrograms are `audio.spectrogram`'s with its defaults, rounded to 8 bits.

  Args:
    data_dir: holds, at any depth, a directory `recordings` of WAV files or a zip file with one.
    cache_dir: not needed, spectrograms take seconds.
    image_size: height and width of the pictures; None keeps 28.

  Raises:
    FileNotFoundError: no recordings, or some are missing.
    ValueError: several sets of recordings; names that are not `<digit>_<speaker>_<number>.wav`;
      another sample rate than 8 kHz; empty, silent or damaged recordings; more of a digit than
      there are pictures.
  """
  where, files = _locate(data_dir)
  names = _sorted(files, where)
  rates, waveforms = zip(*(audio.read_wav(files[name], f'{name} in {where}') for name in names))
  if wrong := [(name, rate) for name, rate in zip(names, rates) if rate != RATE]:
    raise ValueError(f'{len(wrong)} recordings in {where} have another sample rate than {RATE} Hz, '
                     f'the first is {wrong[0][0]} with {wrong[0][1]} Hz; fetch them again from '
                     f'{URL}, or bring them to {RATE} Hz')
  values = audio.spectrogram(waveforms, rates, names=[f'{name} in {where}' for name in names],
                             size=(SIZE, SIZE))
  label = np.asarray([int(name[0]) for name in names], np.int32)
  mnist = packaged.mnist5k(data_dir, cache_dir, image_size)
  attribution = f'{mnist.attribution} {ATTRIBUTION}'
  if len(names) != PUBLISHED:
    attribution += (f' Not the published set: {len(names):,} recordings instead of '
                    f'{PUBLISHED:,}.')
    logging.warning('%s', attribution)
  return sources.Source(
      'av_fsdd',
      {'image': av_digits.pictures(mnist, label, 'av_fsdd'),
       'audio': np.rint(255 * values)[..., None] / np.float32(255), 'label': label},
      np.asarray([name.split('_')[1] for name in names]), 10, attribution, av_digits.WORDS)


def _locate(data_dir: str) -> tuple[str, _Files]:
  """Where the recordings are, and their files by name; directories go before zip files."""
  root, found, broken = pathlib.Path(data_dir), {}, []
  for folder in sorted(root.rglob('recordings')) if data_dir else ():
    if files := {path.name: path for path in folder.glob('*.wav') if _shown(path)}:
      found[str(folder)] = files
  for path in sorted(root.rglob('*.zip')) if data_dir and not found else ():
    if not zipfile.is_zipfile(path):
      broken.append(str(path))
    elif files := _zipped(path):
      found[str(path)] = files
  if not found:
    where = os.path.abspath(data_dir) if data_dir else 'no directory (data_dir is not set)'
    raise FileNotFoundError(
        f'av_fsdd: the recordings are missing: looked in {where} for a directory recordings/ with '
        '<digit>_<speaker>_<number>.wav, and for a zip file that holds one'
        f'{"; no complete zip files: " * bool(broken)}{", ".join(broken)}. Get them from {URL}, '
        'put them into a directory and pass that as data_dir.')
  if len(found) > 1:
    raise ValueError(f'{data_dir} holds several sets of recordings: {", ".join(found)}; pass a '
                     'data_dir with one of them')
  return next(iter(found.items()))


def _zipped(path: pathlib.Path) -> _Files:
  with zipfile.ZipFile(path) as archive:
    members = [name for name in map(pathlib.PurePosixPath, archive.namelist())
               if name.suffix == '.wav' and name.parent.name == 'recordings' and _shown(name)]
    try:
      return {name.name: archive.read(str(name)) for name in members}
    except (zipfile.BadZipFile, zlib.error) as error:
      raise ValueError(f'{path} is damaged ({error}); fetch it again from {URL}') from error


def _shown(path: pathlib.PurePath) -> bool:
  return not path.name.startswith('.')  # macOS adds ._NAME to what it packs


def _sorted(files: _Files, where: str) -> list[str]:
  """The names by digit, speaker and number, when they make a whole grid of these."""
  matches = {name: _NAME.fullmatch(name) for name in files}
  if wrong := sorted(name for name, match in matches.items() if not match):
    raise ValueError(f'recordings are called <digit>_<speaker>_<number>.wav; in {where} there is '
                     f'{_checks.some(wrong)}')
  keys = {(int(digit), speaker, int(number)): name
          for name, match in matches.items() for digit, speaker, number in [match.groups()]}
  speakers, numbers = ({key[part] for key in keys} for part in (1, 2))
  missing = sorted((digit, speaker, number) for digit in range(10) for speaker in speakers
                   for number in range(max(numbers) + 1) if (digit, speaker, number) not in keys)
  if missing:
    first = _checks.some(['{}_{}_{}.wav'.format(*key) for key in missing])
    raise FileNotFoundError(f'{len(missing)} recordings are missing in {where}: {first}; get them '
                            f'from {URL}')
  return [keys[key] for key in sorted(keys)]
