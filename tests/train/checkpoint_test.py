"""Checkpoints survive what can go wrong."""

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax.train import checkpoint

TREE = {'params': {'w': jnp.arange(6.0).reshape(2, 3)}, 'key': jax.random.key(3)}


class CheckpointTest(parameterized.TestCase):

  def test_round_trip_with_a_typed_key(self):
    with checkpoint.Checkpointer(tempfile.mkdtemp()) as saved:
      self.assertIsNone(saved.latest())
      saved.save(TREE, {'position': [1, 2]})
      self.assertEqual(saved.latest(), {'position': [1, 2]})
      back = saved.restore(jax.eval_shape(lambda: TREE))
    np.testing.assert_array_equal(back['params']['w'], TREE['params']['w'])
    np.testing.assert_array_equal(jax.random.key_data(back['key']), jax.random.key_data(TREE['key']))

  def test_keeps_the_newest(self):
    with checkpoint.Checkpointer(tempfile.mkdtemp(), keep=2) as saved:
      for index in range(4):
        saved.save({'w': jnp.full((2,), float(index))}, {'index': index})
      self.assertEqual(saved.latest()['index'], 3)

  @parameterized.parameters(
      ({'params': {'w': jnp.zeros((3, 3))}, 'key': jax.random.key(0)},
       r"'params/w' should have shape \(3, 3\), found \(2, 3\)"),
      ({'params': {'v': jnp.zeros((2, 3))}, 'key': jax.random.key(0)}, "'params/v' .* is missing"),
      ({'params': {}, 'key': jax.random.key(0)}, "'params/w' .* has no place in this model"))
  def test_another_model_names_the_first_leaf(self, other, message):
    with checkpoint.Checkpointer(tempfile.mkdtemp()) as saved:
      saved.save(TREE, {})
      with self.assertRaisesRegex(ValueError, message):
        saved.restore(other)

  def test_nothing_to_restore(self):
    with checkpoint.Checkpointer(tempfile.mkdtemp()) as saved:
      with self.assertRaises(FileNotFoundError):
        saved.restore(TREE)

  def test_full_disk_keeps_the_previous_checkpoint(self):
    """A file size limit makes the write of the large second checkpoint fail, as a full disk does."""
    directory = tempfile.mkdtemp()
    code = textwrap.dedent(f'''
        import resource, signal
        import jax.numpy as jnp, numpy as np
        from unlearn_jax.train import checkpoint
        saved = checkpoint.Checkpointer({directory!r}, keep=1)
        saved.save({{'w': jnp.ones((4,))}}, {{'good': True}})
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        big = np.random.default_rng(0).normal(size=(1_000_000,))
        try:
          saved.save({{'w': jnp.asarray(big)}}, {{'good': False}})
        except Exception as error:
          print('failed', type(error).__name__)
        else:
          print('saved')
        ''')
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    self.assertIn('failed', out.stdout, msg=out.stderr[-2000:])
    with checkpoint.Checkpointer(directory) as saved:
      self.assertEqual(saved.latest(), {'good': True})
      np.testing.assert_array_equal(saved.restore({'w': jnp.zeros((4,))})['w'], np.ones(4))

  def test_killed_while_saving_keeps_the_previous_checkpoint(self):
    directory = tempfile.mkdtemp()
    code = textwrap.dedent(f'''
        import jax.numpy as jnp, numpy as np
        from unlearn_jax.train import checkpoint
        saved = checkpoint.Checkpointer({directory!r}, keep=1)
        saved.save({{'w': jnp.zeros((2_000_000,))}}, {{'index': 0}})
        print('ready', flush=True)
        for index in range(1, 1000):
          saved.save({{'w': jnp.full((2_000_000,), float(index))}}, {{'index': index}})
        ''')
    process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    self.assertEqual(process.stdout.readline().strip(), 'ready')
    time.sleep(0.73)  # somewhere inside one of the saves
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with checkpoint.Checkpointer(directory) as saved:
      index = saved.latest()['index']
      back = saved.restore({'w': jnp.zeros((2_000_000,))})
      saved.save({'w': jnp.zeros((2,))}, {'index': -1})  # and it can be written to again
      self.assertEqual(saved.latest()['index'], -1)
    np.testing.assert_array_equal(back['w'], np.full(2_000_000, float(index)))


if __name__ == '__main__':
  absltest.main()
