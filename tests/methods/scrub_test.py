"""SCRUB's schedule of epochs and its rewind."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import methods
from unlearn_jax import models
from unlearn_jax import types
from unlearn_jax.train import loop
from unlearn_jax.train import sharding

MODEL = models.get('mlp', num_outputs=3, hidden=(4,))
VARIABLES = MODEL.init(jax.random.key(0), {'image': np.zeros((1, 2, 2, 1), np.float32)})


def stream(role):
  def batch(step):
    rng = np.random.default_rng(step)
    return {role: {'image': rng.uniform(size=(4, 2, 2, 1)).astype(np.float32),
                   'label': rng.integers(0, 3, 4).astype(np.int32),
                   'id': np.arange(4, dtype=np.int32), 'mask': np.ones(4, np.float32)}}
  return batch


class ScrubTest(absltest.TestCase):

  def test_max_epochs_come_first_and_stop(self):
    method = methods.get('scrub')(MODEL, epochs=4, max_epochs=2, retain_steps=5, forget_steps=3)
    self.assertEqual([(p.name, p.steps, p.stream) for p in method.phases],
                     [('max', 3, 'forget'), ('min', 5, 'retain')] * 2 + [('min', 5, 'retain')] * 2)

  def test_rewind_exports_the_epoch_closest_to_the_last_validation_error(self):
    forget = iter([0.0, 0.9, 0.55, 0.2])  # the first one compiles the monitor
    validation = iter([0.0, 0.1, 0.1, 0.6])
    snapshots = []

    def monitor(apply, variables):
      snapshots.append(jax.tree.map(np.asarray, variables))
      return {'accuracy/forget': next(forget), 'accuracy/validation': next(validation)}

    method = methods.get('scrub')(MODEL, epochs=3, max_epochs=1, retain_steps=2, forget_steps=2,
                                  optimizer='sgd', learning_rate=0.1, rewind=True)
    result = loop.run(
        method, VARIABLES, {'retain': stream('retain'), 'forget': stream('forget')},
        key=jax.random.key(0), apply=MODEL.apply, mesh=sharding.make_mesh(1), show_progress=False,
        monitor=types.Evaluator('m', monitor, 1))
    # Forget errors .1, .45, .8 against the last validation error .4: the second epoch.
    for mine, his in zip(jax.tree.leaves(result.variables), jax.tree.leaves(snapshots[2])):
      np.testing.assert_array_equal(mine, his)

  def test_learning_rate_drops_after_the_named_epochs(self):
    """With zero gradients' worth of momentum, one plain SGD step shows the rate."""
    moves = []
    for decay in ((), (1,)):
      method = methods.get('scrub')(MODEL, epochs=2, max_epochs=0, retain_steps=1, momentum=0.0,
                                    weight_decay=0.0, optimizer='sgd', learning_rate=0.1,
                                    decay_epochs=decay)
      state, frozen = method.init(jax.random.key(0), VARIABLES)
      after, _ = method.phases[0].step(state, frozen, stream('retain')(0))
      again, _ = method.phases[1].step(after, frozen, stream('retain')(1))
      moves.append(jnp.concatenate([(b - a).ravel() for a, b in zip(
          jax.tree.leaves(after.params), jax.tree.leaves(again.params))]))
    np.testing.assert_allclose(moves[1], 0.1 * moves[0], rtol=1e-3, atol=1e-7)


if __name__ == '__main__':
  absltest.main()
