"""Audio-visual digits without a download: MNIST pictures, and the words spoken by eSpeak NG."""

from collections.abc import Iterable, Iterator
import ctypes
import hashlib
import importlib
import importlib.metadata
import os
import shutil
import tempfile
import zipfile

from absl import logging
import numpy as np

from unlearn_jax.data import _files
from unlearn_jax.data import _random
from unlearn_jax.data import audio
from unlearn_jax.data import sources
from unlearn_jax.data.builders import packaged

WORDS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
ACCENTS = ('en', 'en-us', 'en-029', 'en-gb-scotland', 'en-gb-x-gbcwmd')
VARIANTS = ('m1', 'm2', 'm4', 'm7', 'f1', 'f2', 'f3', 'f4', 'croak', 'whisper')
VOICES = tuple(f'{accent}+{variant}' for accent in ACCENTS for variant in VARIANTS)
RATES = tuple(range(130, 230, 10))  # words per minute; eSpeak NG's own is 175
PITCHES = tuple(range(32, 72, 4))  # eSpeak NG's scale of 0 to 99, its own is 50
SIZE = 32  # cells of a spectrogram along time and along frequency
_VERSION = 1  # of what is made here beside what the constants say
# Of eSpeak NG's speak_lib.h.
_SYNCHRONOUS, _DO_NOT_EXIT, _UTF8, _RATE, _PITCH = 2, 0x8000, 1, 1, 3
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int,
                             ctypes.c_void_p)


def source(data_dir: str, cache_dir: str, image_size: int | None) -> sources.Source:
  """5,000 digits, seen and heard: 500 records of each, 50 voices that say each ten times.

  A voice is an accent with a variant of eSpeak NG (`en-us+f2`); the ten times differ in rate and
  pitch, which take each of `RATES` and `PITCHES` once, in an order of their own per voice and
  digit. Every picture of `mnist5k` stands beside one utterance of its digit (`pictures`), so voice
  and handwriting say nothing about one another. The identity is the voice. Design: ours.

  Spectrograms are `audio.spectrogram`'s with its defaults, rounded to 8 bits, [N, 32, 32, 1]. They
  are made once, in half a minute, and kept in `cache_dir`.

  Args:
    data_dir: not needed, the packages carry the data.
    cache_dir: where spectrograms are kept, by all that they depend on.
    image_size: height and width of the pictures; None keeps 28.

  Raises:
    ImportError: a package is missing.
    RuntimeError: the installed eSpeak NG lacks a voice, or fails.
    ValueError: a damaged file in `cache_dir`.
  """
  spectrograms = _cached(cache_dir)
  voice, label, _ = np.indices(spectrograms.shape[:3]).reshape(3, -1)
  label = label.astype(np.int32)
  mnist = packaged.mnist5k(data_dir, cache_dir, image_size)
  return sources.Source(
      'av_digits',
      {'image': pictures(mnist, label, 'av_digits'),
       'audio': spectrograms.reshape(-1, SIZE, SIZE, 1) / np.float32(255), 'label': label},
      np.asarray(VOICES)[voice], 10,
      f'{mnist.attribution} Spoken digits: synthesised with eSpeak NG (GPL 3.0 or later), as '
      'packaged in espeakng-loader.', WORDS)


def pictures(mnist: sources.Source, label: np.ndarray, key: str) -> np.ndarray:
  """A picture of its digit for every record, none twice, in an order that only `key` decides.

  Args:
    mnist: pictures with labels.
    label: digits wanted, int [N].
    key: of the random order.

  Returns:
    float32 [N, H, W, 1].

  Raises:
    ValueError: more records of a digit than pictures.
  """
  chosen = np.empty(len(label), np.int64)
  for digit in np.unique(label):
    records, there = np.flatnonzero(label == digit), np.flatnonzero(mnist.fields['label'] == digit)
    if len(records) > len(there):
      raise ValueError(f'{key}: there are {len(records)} records of digit {digit}, but only '
                       f'{len(there)} pictures of it in {mnist.name}')
    chosen[records] = there[_random.permutation(len(there), key, 'picture', int(digit))][
        :len(records)]
  return mnist.fields['image'][chosen]


def _cached(cache_dir: str) -> np.ndarray:
  """Spectrograms uint8 [voice, digit, utterance, T, F], made at most once."""
  loader = _loader()
  made_of = (_VERSION, importlib.metadata.version('espeakng-loader'), VOICES, WORDS, RATES, PITCHES,
             SIZE)
  name = hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]
  path = os.path.join(cache_dir, 'av_digits', f'{name}.npz')
  shape = (len(VOICES), len(WORDS), len(RATES), SIZE, SIZE)
  if not os.path.exists(path):
    logging.info('av_digits: synthesising %d spoken digits into %s', np.prod(shape[:3]), path)
    names = [f'{word} by {voice}' for voice, word, _, _ in _utterances()]
    waveforms = _speak(loader, _utterances())
    rate = next(waveforms)
    values = audio.spectrogram(waveforms, rate, names=names, size=(SIZE, SIZE))
    _save(path, np.rint(255 * values).astype(np.uint8).reshape(shape))
  try:
    with np.load(path) as file:
      values = file['audio']
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(f'{path} is damaged ({error}); remove it, and it is made again') from error
  if values.dtype != np.uint8 or values.shape != shape:
    raise ValueError(f'{path} is damaged (it holds {values.dtype} {values.shape}, expected uint8 '
                     f'{shape}); remove it, and it is made again')
  return values


def _save(path: str, values: np.ndarray) -> None:
  """Atomically: who reads at the same time sees nothing or the whole file."""
  os.makedirs(os.path.dirname(path), exist_ok=True)
  with _files.replacing(path, 'wb') as file:
    np.savez_compressed(file, audio=values)


def _loader():
  try:
    return importlib.import_module('espeakng_loader')
  except ModuleNotFoundError as error:
    raise ImportError('data set av_digits: the package espeakng-loader is missing; install '
                      "'unlearn_jax[speech]'") from error


def _utterances() -> Iterator[tuple[str, str, int, int]]:
  """Voice, word, rate and pitch of every recording, in the order of the records."""
  for voice in VOICES:
    for word in WORDS:
      order = [_random.permutation(len(values), 'av_digits', what, voice, word)
               for what, values in (('rate', RATES), ('pitch', PITCHES))]
      for rate, pitch in zip(*order, strict=True):
        yield voice, word, RATES[rate], PITCHES[pitch]


def _speak(loader, utterances: Iterable[tuple[str, str, int, int]]) -> Iterator:
  """Yields the sample rate, then each utterance: int16 [n].

  eSpeak NG keeps state from one utterance to the next (the phase of a voice's flutter, the random
  numbers of a whisper), so utterances are the same only after the same ones. A copy of the library
  has a state of its own: the n-th utterance is the same whatever this process has said before.

  Raises:
    RuntimeError: no such voice, or a call that fails.
  """
  data = loader.get_data_path()
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
    library = ctypes.CDLL(shutil.copy(loader.get_library_path(), directory))
  parts = []

  @_Callback
  def receive(samples, count, events):
    del events
    if samples and count:  # none mark the end
      parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
    return 0  # go on

  def call(name, *arguments):
    if status := getattr(library, name)(*arguments):
      raise RuntimeError(f'eSpeak NG: {name}{arguments} failed with status {status}')

  rate = library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(data), _DO_NOT_EXIT)
  if rate <= 0:
    raise RuntimeError(f'eSpeak NG found no data in {data}')
  try:
    library.espeak_SetSynthCallback(receive)
    call('espeak_ng_SetRandSeed', ctypes.c_long(0))
    yield rate
    speaking = None
    for voice, word, speed, pitch in utterances:
      if voice != speaking:
        # It takes an unknown variant for none without a word.
        variant = os.path.join(data, 'voices', '!v', voice.partition('+')[2])
        if not os.path.isfile(variant):
          raise RuntimeError(f'eSpeak NG has no voice {voice!r}: {variant} is missing')
        call('espeak_SetVoiceByName', voice.encode())
        speaking = voice
      call('espeak_SetParameter', _RATE, speed, 0)
      call('espeak_SetParameter', _PITCH, pitch, 0)
      text = word.encode()
      call('espeak_Synth', text, ctypes.c_size_t(len(text) + 1), 0, 0, 0, _UTF8, None, None)
      yield np.concatenate(parts) if parts else np.zeros(0, np.int16)
      parts.clear()
  finally:
    library.espeak_Terminate()
