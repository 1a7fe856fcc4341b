"""Spectrograms of short recordings, as the pictures that the models of sound read."""

from collections.abc import Iterable, Sequence
import io
import itertools
import os
import struct
import warnings

import numpy as np
from scipy import signal
from scipy.io import wavfile

_WINDOW, _HOP = 0.032, 0.008  # seconds


def read_wav(file: bytes | str | os.PathLike, name: str = '') -> tuple[int, np.ndarray]:
  """Reads a WAV file: integers are scaled to [-1, 1), channels averaged.

  Args:
    file: the path, or what is in it.
    name: what errors call it; the path by default.

  Returns:
    Samples per second, and the samples float32 [n].

  Raises:
    FileNotFoundError: no such file.
    ValueError: no WAV file, or not a whole one.
  """
  if not isinstance(file, bytes):
    name = name or os.fspath(file)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('error', wavfile.WavFileWarning)  # the data end before their length
      warnings.filterwarnings('ignore', 'Chunk', wavfile.WavFileWarning)  # remarks, cover pictures
      rate, samples = wavfile.read(io.BytesIO(file) if isinstance(file, bytes) else file)
  except (ValueError, EOFError, struct.error, wavfile.WavFileWarning) as error:
    raise ValueError(f'{name or "the recording"} is no complete WAV file ({error})') from error
  if samples.dtype == np.uint8:  # WAV keeps 8 bits unsigned, around 128
    samples = (samples - 128.0) / 128
  elif samples.dtype.kind == 'i':
    samples = samples / -float(np.iinfo(samples.dtype).min)
  if samples.ndim == 2:
    samples = samples.mean(axis=1)
  return rate, samples.astype(np.float32)


def spectrogram(waveforms: Iterable[np.ndarray], rate: int | Sequence[int], *,
                names: Sequence[str] | None = None, size: tuple[int, int] = (32, 32),
                seconds: float = 1.0, highest: float = 4000.0, decibels: float = 80.0
                ) -> np.ndarray:
  """Log-magnitude spectrograms of recordings of any length, in [0, 1].

    P[p, k] = |sum_{n < m} w[n] x[p h + n - (m - h) / 2] exp(-2 pi i k n / m)|^2
    S[t, f] = mean of P over cell (t, f), of T x F that divide all p and the k < m highest / rate
    out     = max(0, 1 + 10 log10(S / max S) / decibels)

  The window w is Hann's, m = 32 ms wide and moved by h = 8 ms; beyond the ends are zeros. Cells
  average areas: a value that a cell covers partly counts by its part. 1 is the loudest cell of the
  recording and 0 is `decibels` below it or less, so that the volume does not matter. The grid is
  always `seconds` long: a shorter recording stands in its middle, of a longer one the stretch with
  the most energy is taken, the first of equals. The grid and all defaults are ours.

  Args:
    waveforms: recordings float [n_i], read one after another.
    rate: samples per second, of all recordings or of each.
    names: what errors call the recordings; their numbers by default.
    size: cells (T, F) along time and frequency.
    seconds: length of the grid.
    highest: the frequency in Hz at which the grid ends; half the rate at most.
    decibels: range.

  Returns:
    float32 [N, T, F].

  Raises:
    ValueError: rates that differ or are below twice `highest`; sizes out of range; a recording that
      is empty, silent (all its samples are equal), not finite or of several channels; names or
      rates that are not one per recording.
  """
  rates = [rate] if isinstance(rate, (int, np.integer)) else list(rate)
  if not rates:
    raise ValueError('there are no recordings')
  called = lambda: (map(repr, names) if names is not None else
                    (f'recording {index}' for index in itertools.count()))
  for name, other in zip(called(), rates):
    if other != rates[0]:
      raise ValueError(f'the sample rates differ: {next(called())} has {rates[0]} Hz, {name} has '
                       f'{other} Hz; bring them to one rate first')
  samples, hop, window = (round(rates[0] * time) for time in (seconds, _HOP, _WINDOW))
  if not 0 < highest <= rates[0] / 2:
    raise ValueError(f'highest must lie above 0 and at {rates[0] / 2:g} Hz, half the sample rate, '
                     f'or below it; got {highest:g}')
  frames, bins = -(-samples // hop), int(np.sum(np.fft.rfftfreq(window, 1 / rates[0]) < highest))
  if not (0 < size[0] <= frames and 0 < size[1] <= bins) or decibels <= 0:
    raise ValueError(f'size must lie in (1, 1) to {(frames, bins)} and decibels above 0, got '
                     f'{tuple(size)} and {decibels}')
  rows, columns = _areas(frames, size[0]), _areas(bins, size[1])
  hann, before = signal.get_window('hann', window), (window - hop) // 2
  after = (frames - 1) * hop + window - before - samples
  out = []
  for waveform, name in zip(waveforms, called(), strict=names is not None):
    waveform = _framed(np.asarray(waveform, np.float64), samples, name)
    stretches = np.lib.stride_tricks.sliding_window_view(np.pad(waveform, (before, after)), window)
    power = np.abs(np.fft.rfft(stretches[::hop] * hann)[:, :bins]) ** 2  # [P, K]
    cells = rows @ power @ columns.T
    with np.errstate(divide='ignore'):  # digital silence has no logarithm; it is below any range
      level = 10 * np.log10(cells / cells.max())
    out.append(np.maximum(0, 1 + level / decibels).astype(np.float32))
  if not out:
    raise ValueError('there are no recordings')
  if len(rates) not in (1, len(out)):
    raise ValueError(f'there are {len(out)} recordings and {len(rates)} sample rates')
  return np.stack(out)


def _framed(waveform: np.ndarray, samples: int, name: str) -> np.ndarray:
  """A recording on the grid: its loudest stretch of so many samples, or zeros around it."""
  if waveform.ndim != 1:
    raise ValueError(f'{name} is no recording of one channel but of shape {waveform.shape}')
  if not len(waveform):
    raise ValueError(f'{name} is empty')
  if not np.isfinite(waveform).all():
    raise ValueError(f'{name} has samples that are not finite')
  if np.ptp(waveform) == 0:
    raise ValueError(f'{name} is silent: all its {len(waveform)} samples are {waveform[0]:g}')
  spare = samples - len(waveform)
  if spare >= 0:
    return np.pad(waveform, (spare // 2, spare - spare // 2))
  energy = np.concatenate([[0], np.cumsum(np.square(waveform))])
  start = int(np.argmax(energy[samples:] - energy[:-samples]))
  return waveform[start:start + samples]


def _areas(length: int, size: int) -> np.ndarray:
  """Weights of `length` bins in the means over `size` equal stretches of them: [size, length]."""
  edge = np.arange(size + 1)[:, None] * length / size
  cell = np.arange(length)
  overlap = np.minimum(edge[1:], cell + 1) - np.maximum(edge[:-1], cell)
  return np.maximum(overlap, 0) * size / length
