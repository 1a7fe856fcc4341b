"""Tests for the digits that eSpeak NG speaks, with a few of its voices."""

import importlib.util
import itertools
import os
import pathlib
import sys
import tempfile
import unittest
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from tests.data.builders import small_mnist
from unlearn_jax.data import audio
from unlearn_jax.data.builders import av_digits
from unlearn_jax.data.builders import packaged

SPEECH = unittest.skipUnless(importlib.util.find_spec('espeakng_loader'),
                             'needs espeakng-loader (the extra `speech`)')


class PicturesTest(parameterized.TestCase):

  def test_every_picture_once_and_of_the_digit(self):
    label = np.repeat(np.arange(10), 8)
    found = av_digits.pictures(small_mnist.small_mnist(), label, 'key')
    np.testing.assert_allclose(found[:, 0, 0, 0] * 10, label, atol=1e-6)
    self.assertLen(np.unique(found[:, 0, :2, 0], axis=0), 80)
    again = av_digits.pictures(small_mnist.small_mnist(), label, 'key')
    np.testing.assert_array_equal(found, again)
    self.assertFalse((found == av_digits.pictures(small_mnist.small_mnist(), label, 'other')).all())
    numbers = found[:, 0, 1, 0].reshape(10, 8)
    self.assertFalse((numbers == numbers[0]).all())  # each digit has an order of its own

  def test_some_of_the_pictures(self):
    label = np.asarray([3, 3, 9])
    found = av_digits.pictures(small_mnist.small_mnist(), label, 'key')
    np.testing.assert_allclose(found[:, 0, 0, 0] * 10, label, atol=1e-6)

  def test_more_records_than_pictures(self):
    with self.assertRaisesRegex(ValueError, 'key: there are 9 records of digit 4, but only 8 pict'):
      av_digits.pictures(small_mnist.small_mnist(), np.full(9, 4), 'key')


class ConstantsTest(absltest.TestCase):

  def test_five_thousand_records(self):
    self.assertLen(set(av_digits.VOICES), 50)
    self.assertEqual(len(av_digits.VOICES) * len(av_digits.RATES) * len(av_digits.WORDS), 5000)

  def test_utterances_of_a_word_differ_in_rate_and_pitch(self):
    utterances = list(av_digits._utterances())
    self.assertLen(set(utterances), 5000)
    orders = set()
    for _, group in itertools.groupby(utterances, lambda utterance: utterance[:2]):
      _, _, rates, pitches = zip(*group)
      self.assertCountEqual(rates, av_digits.RATES)
      self.assertCountEqual(pitches, av_digits.PITCHES)
      orders.add((rates, pitches))
    self.assertLen(orders, 500)

  def test_package_is_missing(self):
    with mock.patch.dict(sys.modules, espeakng_loader=None):
      with self.assertRaisesRegex(ImportError, r'espeakng-loader is missing.*unlearn_jax\[speech\]'):
        av_digits.source('', 'unused', None)


@SPEECH
class SpeechTest(parameterized.TestCase):

  def speak(self, utterances):
    rate, *waveforms = av_digits._speak(av_digits._loader(), utterances)
    return rate, waveforms

  def test_the_same_again(self):
    utterances = [('en+m1', 'seven', 175, 50), ('en+whisper', 'seven', 175, 50)]
    _, first = self.speak(utterances)
    self.speak([('en-us+f2', 'nine', 130, 70)])
    _, second = self.speak(utterances)
    for left, right in zip(first, second, strict=True):
      np.testing.assert_array_equal(left, right)

  def test_rate_and_pitch(self):
    rate, (slow, fast, high) = self.speak([('en+m1', 'nine', 130, 32), ('en+m1', 'nine', 220, 32),
                                           ('en+m1', 'nine', 220, 68)])
    self.assertGreater(len(slow), 1.2 * len(fast))

    def fundamental(samples):  # the peak of the autocorrelation from 60 to 200 Hz
      middle = samples[len(samples) // 4:len(samples) // 2].astype(float)
      lags = np.correlate(middle, middle, 'full')[len(middle) - 1:]
      return rate / (rate // 200 + np.argmax(lags[rate // 200:rate // 60]))

    self.assertGreater(fundamental(high), 1.1 * fundamental(fast))

  def test_voices_differ(self):
    """A voice is further from the nearest other voice than from itself, said once more."""
    words = [(voice, word, 175, 50) for voice in av_digits.VOICES
             for word in ('zero', 'three', 'seven')]
    rate, waveforms = self.speak(words + words)
    self.assertLess(max(map(len, waveforms)), rate)  # none is cut
    values = audio.spectrogram(waveforms, rate).reshape(2, len(av_digits.VOICES), -1)
    distance = np.sqrt(np.square(values[0][:, None] - values[1][None]).mean(-1))
    same = np.diag(distance)
    others = distance + np.diag(np.full(len(same), np.inf))
    self.assertTrue((others.min(axis=1) > 1.3 * same).all(), (others.min(axis=1) / same).min())

  def test_words_are_told_apart_by_their_sound(self):
    """The nearest utterance of another rate is the same word."""
    rate, waveforms = self.speak([('en-us+m1', word, speed, 50) for speed in range(130, 230, 10)
                                  for word in av_digits.WORDS])
    values, label = audio.spectrogram(waveforms, rate).reshape(100, -1), np.arange(100) % 10
    distance = np.square(values[:, None] - values[None]).sum(-1) + np.diag(np.full(100, np.inf))
    self.assertGreater(np.mean(label[distance.argmin(1)] == label), 0.9)

  def test_unknown_voices(self):
    with self.assertRaisesRegex(RuntimeError, "no voice 'en\\+nobody'"):
      self.speak([('en+nobody', 'one', 175, 50)])
    with self.assertRaisesRegex(RuntimeError, 'espeak_SetVoiceByName.*failed'):
      self.speak([('xx-nowhere+m1', 'one', 175, 50)])


@SPEECH
class SourceTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.cache = self.enter_context(tempfile.TemporaryDirectory())
    for name, value in (('VOICES', ('en+m1', 'en-us+f2', 'en+whisper')), ('RATES', (150, 190)),
                        ('PITCHES', (40, 60))):
      self.enter_context(mock.patch.object(av_digits, name, value))
    self.enter_context(mock.patch.object(packaged, 'mnist5k', lambda *_: small_mnist.small_mnist()))

  def test_source(self):
    source = av_digits.source('', self.cache, None)
    source.validate()
    self.assertLen(source, 60)
    image, sound, label = (source.fields[name] for name in ('image', 'audio', 'label'))
    self.assertEqual((sound.shape, sound.dtype), ((60, 32, 32, 1), np.float32))
    np.testing.assert_allclose(image[:, 0, 0, 0] * 10, label, atol=1e-6)
    np.testing.assert_array_equal(np.bincount(label), np.full(10, 6))
    for voice in av_digits.VOICES:
      np.testing.assert_array_equal(np.bincount(label[source.identity == voice]), np.full(10, 2))
    np.testing.assert_array_equal(sound.max(axis=(1, 2, 3)), np.ones(60))
    self.assertEqual(sound.min(), 0)
    np.testing.assert_allclose(sound * 255, np.rint(sound * 255), atol=1e-4)
    for part in ('MNIST', 'eSpeak NG'):
      self.assertIn(part, source.attribution)

  def test_made_once_and_the_same_everywhere(self):
    first = av_digits.source('', self.cache, None).content_hash()
    with mock.patch.object(av_digits, '_speak', side_effect=AssertionError('made again')):
      self.assertEqual(av_digits.source('', self.cache, None).content_hash(), first)
    with tempfile.TemporaryDirectory() as elsewhere:
      self.assertEqual(av_digits.source('', elsewhere, None).content_hash(), first)

  def test_other_voices_are_another_file(self):
    av_digits.source('', self.cache, None)
    with mock.patch.object(av_digits, 'VOICES', ('en+m2', 'en-us+f2', 'en+whisper')):
      self.assertEqual(av_digits.source('', self.cache, None).identity[0], 'en+m2')
    self.assertLen(os.listdir(os.path.join(self.cache, 'av_digits')), 2)

  def test_interrupted_leaves_nothing(self):
    def interrupted(file, **arrays):
      file.write(b'half')
      raise KeyboardInterrupt

    with mock.patch.object(np, 'savez_compressed', interrupted):
      with self.assertRaises(KeyboardInterrupt):
        av_digits.source('', self.cache, None)
    self.assertEmpty(os.listdir(os.path.join(self.cache, 'av_digits')))

  def test_damaged_cache(self):
    av_digits.source('', self.cache, None)
    path, = pathlib.Path(self.cache, 'av_digits').iterdir()
    whole = path.read_bytes()
    for damaged in (whole[:len(whole) // 2], b'', b'text'):
      path.write_bytes(damaged)
      with self.assertRaisesRegex(ValueError, f'{path} is damaged.*remove it'):
        av_digits.source('', self.cache, None)
    with path.open('wb') as file:
      np.savez(file, audio=np.zeros(3))
    with self.assertRaisesRegex(ValueError, 'it holds float64'):
      av_digits.source('', self.cache, None)


if __name__ == '__main__':
  absltest.main()
