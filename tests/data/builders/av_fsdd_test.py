"""Tests for the recordings of spoken digits, on generated WAV files."""

import os
import pathlib
import shutil
import tempfile
from unittest import mock
import zipfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy.io import wavfile

from tests.data.builders import small_mnist
from unlearn_jax.data import audio
from unlearn_jax.data.builders import av_fixtures
from unlearn_jax.data.builders import av_fsdd
from unlearn_jax.data.builders import packaged

SPEAKERS = ('ada', 'ben')


class AvFsddTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.data_dir = self.enter_context(tempfile.TemporaryDirectory())
    self.enter_context(mock.patch.object(packaged, 'mnist5k', lambda *_: small_mnist.small_mnist()))
    av_fixtures.write_fsdd(self.data_dir, speakers=SPEAKERS, count=2)
    self.folder = pathlib.Path(self.data_dir, 'recordings')

  def source(self):
    return av_fsdd.source(self.data_dir, 'unused', None)

  def test_source(self):
    source = self.source()
    source.validate()
    self.assertLen(source, 40)
    image, sound, label = (source.fields[name] for name in ('image', 'audio', 'label'))
    np.testing.assert_array_equal(label, np.repeat(np.arange(10), 4))
    np.testing.assert_array_equal(source.identity, np.tile(np.repeat(SPEAKERS, 2), 10))
    np.testing.assert_allclose(image[:, 0, 0, 0] * 10, label, atol=1e-6)
    self.assertLen(np.unique(image[:, 0, :2, 0], axis=0), 40)  # no picture twice
    self.assertEqual((sound.shape, sound.dtype), ((40, 32, 32, 1), np.float32))
    rate, waveform = audio.read_wav(self.folder / '3_ben_1.wav')
    np.testing.assert_allclose(sound[15, ..., 0], audio.spectrogram([waveform], rate)[0],
                               atol=0.51 / 255)
    self.assertEqual(source.content_hash(), self.source().content_hash())

  def test_attribution(self):
    attribution = self.source().attribution
    for part in ('MNIST.', 'CC BY-SA 4.0', av_fsdd.URL, '40 recordings instead of 3,000'):
      self.assertIn(part, attribution)
    with mock.patch.object(av_fsdd, 'PUBLISHED', 40):
      self.assertEndsWith(self.source().attribution, av_fsdd.ATTRIBUTION)

  @parameterized.parameters('', 'free-spoken-digit-dataset-1.0.10/', 'a/b/c/')
  def test_any_depth_of_a_directory_and_of_a_zip_file(self, prefix):
    expected = self.source().content_hash()
    with zipfile.ZipFile(os.path.join(self.data_dir, 'fsdd.zip'), 'w') as archive:
      archive.writestr('README.md', 'text')
      for path in self.folder.iterdir():
        archive.write(path, f'{prefix}recordings/{path.name}')
        archive.writestr(f'__MACOSX/{prefix}recordings/._{path.name}', b'forks')
    if prefix:
      shutil.move(self.folder, pathlib.Path(self.data_dir, prefix, 'recordings'))
    self.assertEqual(self.source().content_hash(), expected)  # the directory
    shutil.rmtree(pathlib.Path(self.data_dir, prefix, 'recordings'))
    os.makedirs(os.path.join(self.data_dir, 'deeper'))
    shutil.move(os.path.join(self.data_dir, 'fsdd.zip'), os.path.join(self.data_dir, 'deeper'))
    self.assertEqual(self.source().content_hash(), expected)

  def test_recordings_are_missing(self):
    shutil.rmtree(self.folder)
    with self.assertRaisesRegex(FileNotFoundError, f'looked in {self.data_dir} for .*{av_fsdd.URL}'):
      self.source()
    with self.assertRaisesRegex(FileNotFoundError, 'data_dir is not set'):
      av_fsdd.source('', 'unused', None)
    path = pathlib.Path(self.data_dir, 'fsdd.zip')
    path.write_bytes(b'PK half of a download')
    with self.assertRaisesRegex(FileNotFoundError, f'no complete zip files: {path}'):
      self.source()

  def test_damaged_zip(self):
    path = pathlib.Path(self.data_dir, 'fsdd.zip')
    with zipfile.ZipFile(path, 'w') as archive:
      archive.write(self.folder / '0_ada_0.wav', 'recordings/0_ada_0.wav')
    shutil.rmtree(self.folder)
    damaged = bytearray(path.read_bytes())
    damaged[200] ^= 255
    path.write_bytes(damaged)
    with self.assertRaisesRegex(ValueError, f'{path} is damaged.*CRC'):
      self.source()

  def test_some_are_missing(self):
    (self.folder / '3_ben_1.wav').unlink()
    (self.folder / '4_ada_0.wav').unlink()
    with self.assertRaisesRegex(FileNotFoundError, '2 recordings are missing in .*recordings: '
                                "'3_ben_1.wav', '4_ada_0.wav'; get them from http"):
      self.source()

  def test_several_sets(self):
    shutil.copytree(self.folder, pathlib.Path(self.data_dir, 'old', 'recordings'))
    with self.assertRaisesRegex(ValueError, 'several sets of recordings: .*old/recordings'):
      self.source()

  @parameterized.parameters('seven.wav', '10_ada_0.wav', '3_ada.wav', '3_ada_00.wav')
  def test_wrong_names(self, name):
    shutil.copy(self.folder / '3_ada_0.wav', self.folder / name)
    with self.assertRaisesRegex(ValueError, f"<digit>_<speaker>_<number>.wav; in .*'{name}'"):
      self.source()

  @parameterized.named_parameters(
      ('empty', np.zeros(0, np.int16), 8000, 'is empty'),
      ('silent', np.zeros(900, np.int16), 8000, 'is silent'),
      ('not_finite', np.full(900, np.nan, np.float32), 8000, 'not finite'),
      ('another_rate', np.arange(900, dtype=np.int16), 16000,
       'another sample rate than 8000 Hz, the first is 3_ben_1.wav with 16000'))
  def test_bad_recordings(self, samples, rate, message):
    wavfile.write(self.folder / '3_ben_1.wav', rate, samples)
    with self.assertRaisesRegex(ValueError, message) as caught:
      self.source()
    self.assertIn('3_ben_1.wav', str(caught.exception))
    self.assertIn(str(self.folder), str(caught.exception))

  def test_no_wav_file(self):
    (self.folder / '3_ben_1.wav').write_bytes(b'<html>')
    with self.assertRaisesRegex(ValueError, '3_ben_1.wav in .* is no complete WAV file'):
      self.source()

  def test_more_recordings_than_pictures(self):
    with mock.patch.object(packaged, 'mnist5k', lambda *_: small_mnist.small_mnist(3)):
      with self.assertRaisesRegex(ValueError, '4 records of digit 0, but only 3 pictures'):
        self.source()


class FixtureTest(absltest.TestCase):

  def test_source(self):
    self.enter_context(mock.patch.object(packaged, 'mnist5k', lambda *_: small_mnist.small_mnist(20)))
    source = av_fixtures.av_fsdd_source('ignored', 'ignored', None)
    source.validate()
    self.assertEqual(source.name, 'av_fsdd_fixture')
    self.assertIn('generated', source.attribution)
    self.assertIn('MNIST.', source.attribution)
    self.assertNotIn('Jackson', source.attribution)
    self.assertLen(np.unique(source.identity), len(av_fixtures.SPEAKERS))
    values, label = source.fields['audio'][..., 0].mean(axis=1), source.fields['label']
    centres = np.stack([values[label == digit].mean(0) for digit in range(10)])
    nearest = np.square(values[:, None] - centres[None]).sum(-1).argmin(1)
    self.assertGreater(np.mean(nearest == label), 0.8)  # there is something to learn


if __name__ == '__main__':
  absltest.main()
