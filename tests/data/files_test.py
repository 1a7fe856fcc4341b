"""Files and directories that appear whole, or not at all."""

import os
import tempfile
from unittest import mock

from absl.testing import absltest

from unlearn_jax.data import _files


class FilesTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.directory = self.enter_context(tempfile.TemporaryDirectory())
    self.path = os.path.join(self.directory, 'made')

  def test_a_failed_block_keeps_the_old_file(self):
    with _files.replacing(self.path) as file:
      file.write('old')
    with self.assertRaises(KeyError):
      with _files.replacing(self.path) as file:
        file.write('half of the n')
        raise KeyError
    with open(self.path) as file:
      self.assertEqual(file.read(), 'old')
    self.assertEqual(os.listdir(self.directory), ['made'])

  def test_a_directory_is_written_once_and_whole(self):
    def write(directory):
      with open(os.path.join(directory, 'file'), 'w') as file:
        file.write('content')
    writer = mock.Mock(side_effect=write)
    for _ in range(2):
      self.assertEqual(_files.made_once(self.path, writer), self.path)
    writer.assert_called_once()
    self.assertEqual(os.listdir(self.path), ['file'])

  def test_a_failed_directory_leaves_nothing(self):
    with self.assertRaises(KeyError):
      _files.made_once(self.path, mock.Mock(side_effect=KeyError))
    self.assertEqual(os.listdir(self.directory), [])


if __name__ == '__main__':
  absltest.main()
