"""Tests for spectrograms and the reading of WAV files."""

import io
import os
import struct
import tempfile
import wave

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy import signal
from scipy.io import wavfile

from unlearn_jax.data import audio

RATE = 8000


def tone(frequency, seconds=0.5, rate=RATE):
  return np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def wav(samples, rate=RATE):
  file = io.BytesIO()
  wavfile.write(file, rate, samples)
  return file.getvalue()


class SpectrogramTest(parameterized.TestCase):

  def test_formula(self):
    """Scipy's transform of the same windows, averaged with weights from a plain loop."""
    waveform = np.random.default_rng(0).normal(size=6000)
    found, = audio.spectrogram([waveform], RATE, size=(7, 5), highest=3000.0, decibels=30.0)
    padded = np.pad(waveform, 1000)  # 0.75 s in the middle of 1 s
    transform = signal.ShortTimeFFT(signal.get_window('hann', 256), 64, RATE)
    # Scipy centres slice p at p * 64; ours stands around the middle of 64 samples.
    power = transform.spectrogram(np.roll(padded, -32), p0=0, p1=125)[transform.f < 3000]

    def area_mean(values, size):
      fine = np.repeat(values, size, axis=0)  # every bin in `size` parts: whole parts per cell
      return fine.reshape(size, len(values), *values.shape[1:]).mean(1)

    cells = area_mean(area_mean(power.T, 7).T, 5).T
    expected = np.clip(1 + 10 * np.log10(cells / cells.max()) / 30, 0, 1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    self.assertEqual(found.dtype, np.float32)

  @parameterized.parameters(8000, 16000, 22050)
  def test_a_tone_is_where_it_sounds(self, rate):
    """In the cell of its frequency, in the middle half of the second, at any rate and volume."""
    found = audio.spectrogram([tone(1050, rate=rate), 0.01 * tone(1050, rate=rate)], rate)
    self.assertEqual(found.shape, (2, 32, 32))
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    loud = np.argwhere(found[0] > 0.9)
    np.testing.assert_array_equal(np.unique(loud[:, 1]), [8])  # cells of 125 Hz
    np.testing.assert_array_equal(np.unique(loud[:, 0]), np.arange(8, 24))
    self.assertEqual(found[0].max(), 1)
    self.assertEqual(found[0, :7].max(), 0)  # digital silence around it

  def test_of_a_long_recording_the_loudest_second(self):
    generator = np.random.default_rng(0)
    waveform = 0.001 * generator.normal(size=3 * RATE)
    waveform[12_500:20_500] = generator.choice([-1.0, 1.0], RATE)
    found = audio.spectrogram([waveform, waveform[12_500:20_500]], RATE)
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)

  def test_nothing_below_the_range(self):
    waveform = tone(1050) + 1e-3 * tone(3050)
    for decibels, heard in ((40.0, False), (80.0, True)):
      found, = audio.spectrogram([waveform], RATE, decibels=decibels)
      self.assertEqual(bool(found[12:20, 24].min() > 0), heard)

  @parameterized.named_parameters(
      ('empty', np.zeros(0), "'b' is empty"),
      ('silent', np.zeros(50), "'b' is silent: all its 50 samples are 0"),
      ('constant', np.full(50, 0.5), "'b' is silent: all its 50 samples are 0.5"),
      ('nan', np.asarray([0, 1, np.nan]), "'b' has samples that are not finite"),
      ('infinite', np.asarray([0, 1, np.inf]), "'b' has samples that are not finite"),
      ('stereo', np.ones((2, 50)), r"'b' is no recording of one channel but of shape \(2, 50\)"))
  def test_bad_recordings_are_named(self, waveform, message):
    with self.assertRaisesRegex(ValueError, message):
      audio.spectrogram([tone(500), waveform], RATE, names=('a', 'b'))
    with self.assertRaisesRegex(ValueError, message.replace("'b'", 'recording 1')):
      audio.spectrogram(iter([tone(500), waveform]), RATE)

  def test_sample_rates_that_differ(self):
    with self.assertRaisesRegex(ValueError, "sample rates differ: 'a' has 8000 Hz, 'c' has 16000"):
      audio.spectrogram([tone(500)] * 3, [RATE, RATE, 16000], names='abc')
    np.testing.assert_array_equal(audio.spectrogram([tone(500)] * 3, [RATE] * 3),
                                  audio.spectrogram([tone(500)] * 3, RATE))

  @parameterized.parameters(
      (dict(size=(126, 32)), r'size must lie in \(1, 1\) to \(125, 128\)'),
      (dict(size=(32, 129)), 'size must lie in'), (dict(size=(0, 32)), 'size must lie in'),
      (dict(decibels=0.0), 'decibels above 0'),
      (dict(highest=4001.0), 'highest must lie above 0 and at 4000 Hz'),
      (dict(highest=0.0), 'highest must lie above 0'),
      (dict(rate=[]), 'there are no recordings'), (dict(waveforms=[]), 'there are no recordings'),
      (dict(rate=[RATE, RATE]), '1 recordings and 2 sample rates'),
      (dict(names='ab'), 'longer'))
  def test_bad_arguments(self, given, message):
    with self.assertRaisesRegex(ValueError, message):
      audio.spectrogram(**{'waveforms': [tone(500)], 'rate': RATE, **given})


class ReadWavTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.path = os.path.join(self.enter_context(tempfile.TemporaryDirectory()), 'a.wav')

  @parameterized.parameters((np.int16, 32767, 1e-4), (np.int32, 2**31 - 1, 1e-7),
                            (np.float32, 1, 1e-7))
  def test_values(self, dtype, white, tolerance):
    wave_form = tone(440)
    rate, samples = audio.read_wav(wav((wave_form * white).astype(dtype)))
    self.assertEqual((rate, samples.dtype), (RATE, np.float32))
    np.testing.assert_allclose(samples, wave_form, atol=tolerance)

  def test_unsigned_bytes(self):
    _, samples = audio.read_wav(wav(np.asarray([0, 128, 255], np.uint8)))
    np.testing.assert_array_equal(samples, np.float32([-1, 0, 127 / 128]))

  def test_channels_are_averaged(self):
    _, samples = audio.read_wav(wav(np.asarray([[16384, 0], [0, -32768]], np.int16)))
    np.testing.assert_array_equal(samples, np.float32([0.25, -0.5]))

  def test_agrees_with_the_standard_library(self):
    samples = (np.random.default_rng(0).normal(size=100) * 5000).astype('<i2')
    with wave.open(self.path, 'wb') as file:
      file.setparams((1, 2, 11025, 0, 'NONE', ''))
      file.writeframes(samples.tobytes())
    rate, found = audio.read_wav(self.path)
    self.assertEqual(rate, 11025)
    np.testing.assert_array_equal(found * 32768, samples)

  def test_remarks_are_skipped(self):
    whole = wav(np.arange(9, dtype=np.int16))
    remark = b'ISFT' + struct.pack('<I', 4) + b'Lavf'
    _, samples = audio.read_wav(whole[:36] + b'zzzz' + struct.pack('<I', 12) + remark + whole[36:])
    self.assertLen(samples, 9)

  @parameterized.named_parameters(
      ('text', lambda whole: b'no sound at all'), ('nothing', lambda whole: b''),
      ('head', lambda whole: whole[:20]), ('half', lambda whole: whole[:-40]))
  def test_damaged(self, damage):
    damaged = damage(wav(np.arange(99, dtype=np.int16)))
    with self.assertRaisesRegex(ValueError, 'seven.wav is no complete WAV file'):
      audio.read_wav(damaged, 'seven.wav')
    with open(self.path, 'wb') as file:
      file.write(damaged)
    with self.assertRaisesRegex(ValueError, f'{self.path} is no complete WAV file'):
      audio.read_wav(self.path)

  def test_missing(self):
    with self.assertRaises(FileNotFoundError):
      audio.read_wav('/nowhere/a.wav')


if __name__ == '__main__':
  absltest.main()
