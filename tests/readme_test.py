"""Runs the Python of README.md as a newcomer would: block after block, in one namespace."""

import pathlib
import re

from absl.testing import absltest

ROOT = pathlib.Path(__file__).resolve().parents[1]


class ReadmeTest(absltest.TestCase):

  def test_python_blocks_run(self):
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    blocks = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    self.assertLen(blocks, 3)
    names = {'__name__': 'readme'}
    for block in blocks:
      exec(compile(block, 'README.md', 'exec'), names)  # pylint: disable=exec-used
    self.assertGreater(float(names['distance']), 0)
    self.assertEqual(names['gradient'].shape, names['x'].shape)
    self.assertCountEqual(names['unlearned'], names['variables'])
    self.assertGreater(names['result'].steps, 0)

  def test_files_that_it_names_are_there(self):
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    for path in re.findall(r'(?:experiments|tests|unlearn_jax)/[\w/]+\.py', text):
      self.assertTrue((ROOT / path).is_file(), path)
    for path in re.findall(r'\]\(([\w/.]+)\)', text):
      self.assertTrue((ROOT / path).exists(), path)


if __name__ == '__main__':
  absltest.main()
