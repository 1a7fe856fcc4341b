"""The pytest plugin: tests in three lines, run by a pytest of their own."""

import os
import tempfile
import textwrap

from absl.testing import absltest
import pytest


class Outcomes:
  """A plugin that collects what happened."""

  def __init__(self):
    self.found = {}

  def pytest_runtest_logreport(self, report):
    if report.when == 'call' or report.failed:
      self.found[report.nodeid.split('::')[-1]] = (report.outcome, report.longreprtext)


def run(name, source, *arguments):
  """Runs a test file in a directory of its own; in this process, so that the toy is there.

  Modules stay imported: every file has another name.
  """
  with tempfile.TemporaryDirectory() as directory:
    for path, text in ((f'{name}.py', textwrap.dedent(source)), ('pytest.ini', '[pytest]\n')):
      with open(os.path.join(directory, path), 'w', encoding='utf-8') as file:
        file.write(text)
    outcomes = Outcomes()
    code = pytest.main(
        [directory, '-c', os.path.join(directory, 'pytest.ini'), '--rootdir', directory,
         '-p', 'no:cacheprovider', '-p', 'no:terminal', '--import-mode=importlib',
         '-o', 'python_files=*_test.py', *arguments], plugins=[outcomes])
  return code, outcomes.found


class PluginTest(absltest.TestCase):

  def test_a_method_in_three_lines(self):
    code, found = run('mine_test', '''
        from unlearn_jax import methods

        SETTINGS = {'epochs': 1.0}
        REASON = {'forget accuracy': 'hardly moves', 'forget data': 'reads retained data only'}

        def test_good(method_conforms):
          method_conforms(methods.get('finetune'), settings=SETTINGS, expects=REASON)

        def test_bad(method_conforms):
          method_conforms(methods.get('finetune'), settings=SETTINGS)
        ''', '-p', 'unlearn_jax.testing.plugin')
    self.assertEqual(code, pytest.ExitCode.TESTS_FAILED)
    self.assertEqual(found['test_good'], ('passed', ''))
    outcome, text = found['test_bad']
    self.assertEqual(outcome, 'failed')
    self.assertEqual(text.splitlines()[0],
                     'the method fails 2 checks of the conformance suite')
    self.assertIn('\n  forget data: forgetting other records gives the same model', text)
    self.assertNotIn('Traceback', text)

  def test_a_metric_in_three_lines(self):
    code, found = run('metric_test', '''
        pytest_plugins = ('unlearn_jax.testing.plugin',)

        def error(outputs, split):
          logits, label = outputs[split]['logits'], outputs[split]['label']
          if not len(label) or logits.max() != logits.max():
            raise ValueError('no records, or NaN among them')
          return float((logits.argmax(axis=1) != label).mean())

        def test_good(metric_conforms):
          metric_conforms(lambda outputs, reference: error(outputs, 'forget'))

        def test_bad(metric_conforms):
          metric_conforms(lambda outputs, reference: error(outputs, 'retain'), ideal=1.0)
        ''')
    self.assertEqual(code, pytest.ExitCode.TESTS_FAILED)
    self.assertEqual(found['test_good'], ('passed', ''))
    self.assertIn('\n  ideal: retrained models score', found['test_bad'][1])

  def test_without_the_plugin_there_is_no_fixture(self):
    _, found = run('bare_test', 'def test_good(method_conforms): pass\n')
    self.assertIn("fixture 'method_conforms' not found", found['test_good'][1])


if __name__ == '__main__':
  absltest.main()
