"""Importing the losses stays light, and ott comes in only when a plan is asked for."""

import subprocess
import sys

from absl.testing import absltest

HEAVY = ('flax', 'orbax', 'tensorflow_datasets', 'sklearn', 'matplotlib', 'torch', 'ott')
SCRIPT = f"""
import sys
from unlearn_jax import losses
def heavy():
  return [name for name in {HEAVY!r} if name in sys.modules]
assert not heavy(), heavy()
for name in losses.__all__:
  getattr(losses, name)
losses.dlfd.linear_weight(1, 3, start=0.0, end=1.0)
losses.check_labels([0, 1], 2)
assert not heavy(), heavy()
import jax
import numpy as np
x = np.eye(2, dtype=np.float32)
# The first use, and with it ott's import, happens inside a trace; nothing may leak from it.
first = jax.jit(losses.dlfd.ot_distance)(x, x)
assert 'ott' in sys.modules
second = losses.dlfd.ot_distance(x + 1.0, x)
gradient = jax.jit(jax.grad(lambda x, y: losses.dlfd.ot_distance(x, y, reading='release')))(x, x)
assert np.isfinite([first, second]).all() and np.isfinite(gradient).all()
print('light')
"""


class ImportTest(absltest.TestCase):

  def test_light_until_a_plan_is_solved(self):
    run = subprocess.run([sys.executable, '-W', 'error::DeprecationWarning:jaxopt', '-c', SCRIPT],
                         capture_output=True, text=True, check=False)
    self.assertEqual(run.returncode, 0, run.stderr)
    self.assertEqual(run.stdout.strip(), 'light')

  def test_the_names_it_looks_for_exist(self):
    script = ('import sys, ott, flax, matplotlib\n'
              'print(all(n in sys.modules for n in ("ott", "flax", "matplotlib")))')
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', script], capture_output=True,
                         text=True, check=True)
    self.assertEqual(run.stdout.strip(), 'True')


if __name__ == '__main__':
  absltest.main()
