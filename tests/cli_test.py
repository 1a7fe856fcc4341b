"""The command line, as a user types it."""

import os
import subprocess
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized

from unlearn_jax import cli
from unlearn_jax import methods

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CONFIG = 'experiments/configs/digits.py:smoke'
CACHE = tempfile.mkdtemp()


def command(*arguments, module='experiments.run'):
  environment = {**os.environ, 'XLA_FLAGS': '', 'COLUMNS': '100'}
  return subprocess.run([sys.executable, '-m', module, *arguments], cwd=ROOT, env=environment,
                        capture_output=True, text=True, check=False)


class CommandLineTest(parameterized.TestCase):

  def test_run_resume_refuse(self):
    workdir = tempfile.mkdtemp()
    flags = (f'--config={CONFIG}', f'--workdir={workdir}', f'--config.cache_dir={CACHE}',
             '--config.seeds=(0,)', '--config.methods.dlfd.epsilon=0.05',
             "--config.rows=('dlfd', 'finetune')")
    first = command(*flags)
    self.assertEqual(first.returncode, 0, msg=first.stderr[-3000:])
    self.assertIn(f'report: {workdir}/report.html', first.stdout)
    self.assertEqual(first.stderr.count('INFO'), 0)
    with open(os.path.join(workdir, 'config.json')) as file:
      self.assertIn('"epsilon": 0.05', file.read())
    refused = command(*flags)
    self.assertNotEqual(refused.returncode, 0)
    self.assertIn('pass --resume', refused.stderr)
    self.assertNotIn('Traceback', refused.stderr)
    resumed = command(*flags, '--resume')
    self.assertEqual(resumed.returncode, 0, msg=resumed.stderr[-3000:])

  @parameterized.parameters(
      ('--config.methods.dlfd.epsilom=0.05', 'epsilon'),
      ('--config.methods.dlfd.epsilon=small', 'epsilon'),
      ('--config.batch_sise=3', 'batch_size'),
      ("--config.rows=('dlfdd',)", "did you mean 'dlfd'"),
      ('--config.methods.dlfd.epsilon=-1', 'dlfd: epsilon must lie in'),
      ('--config.model=resnet81', "did you mean 'resnet18'"),
      ('--config.data.name=digit', "did you mean 'digits'"),
      ('--config.devices=99', 'mesh of 99 devices'),
      ('--config.split.fractions.retain=0.9', 'more than 1'))
  def test_wrong_flags_say_what_to_do(self, flag, message):
    result = command(f'--config={CONFIG}', f'--workdir={tempfile.mkdtemp()}', flag)
    self.assertNotEqual(result.returncode, 0)
    self.assertIn(message, result.stderr + result.stdout)
    self.assertNotIn('Traceback', result.stderr)

  def test_list_names_everything(self):
    text = cli.listing()
    for name in (*methods.names(), 'resnet18', 'omniglot', 'epsilon'):
      self.assertIn(name, text)

  def test_console_script(self):
    code = 'import sys; from unlearn_jax import cli; sys.argv = ["unlearn-jax", {}]; cli.console()'
    for argument, expected, status in (('"list"', 'data sets', 0), ('"runn"', "no command 'runn'", 1)):
      result = subprocess.run([sys.executable, '-c', code.format(argument)], cwd=ROOT, check=False,
                              capture_output=True, text=True)
      self.assertEqual(result.returncode, status)
      self.assertIn(expected, result.stdout + result.stderr)


if __name__ == '__main__':
  absltest.main()
