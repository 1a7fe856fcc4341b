"""The loop on a two-parameter problem: resuming, signals, early stops, errors."""

import contextlib
import os
import tempfile
import threading

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from unlearn_jax import types
from unlearn_jax.data import fields
from unlearn_jax.methods import base
from unlearn_jax.train import checkpoint
from unlearn_jax.train import log
from unlearn_jax.train import loop
from unlearn_jax.train import sharding

SGD, ADAM = optax.sgd(0.1, momentum=0.9), optax.adam(0.05)
VARIABLES = {'params': {'w': jnp.asarray([1.0, -2.0])}}


def objective(params, *, state, frozen, batch, key):
  noise = jax.random.normal(key, (2,))
  loss = jnp.mean((params['model']['w'] + noise - batch['retain']['x'] * frozen['scale']) ** 2)
  return loss, ({'half': (loss, jnp.asarray(2.0))}, state.collections)


def stream(step):
  return {'retain': {'x': np.random.default_rng(step).normal(size=(8, 2)).astype(np.float32)}}


def method(steps=(4, 5, 3), until=None):
  """Three phases; the second one swaps the optimizer's tree, the third one swaps it back."""
  def init(key, variables):
    return (base.initial_state(key, variables, SGD, signals={'score': 0.0}),
            {'scale': jnp.asarray(0.5)})

  sgd, adam = base.gradient_step(objective, SGD), base.gradient_step(objective, ADAM)
  swap = lambda tx: lambda state: state.replace(opt_state=tx.init(state.params))
  return types.Method(init, (
      types.Phase('one', sgd, steps[0], 'retain', until=until, signals={'score': 2}),
      types.Phase('two', adam, steps[1], 'retain', enter=swap(ADAM)),
      types.Phase('three', sgd, steps[2], 'retain', enter=swap(SGD))), base.export)


MONITOR = types.Evaluator('score', lambda apply, variables: {
    'score': float(jnp.sum(variables['params']['w']))}, 1)


class Killed(Exception):
  pass


def killing(stream_fn, at):
  """A stream that dies when asked for the batch of global call number `at`."""
  calls = []
  def inner(step):
    calls.append(step)
    if len(calls) > at:
      raise Killed
    return stream_fn(step)
  return inner


def run(made=None, feed=stream, **kwargs):
  return loop.run(made or method(), VARIABLES, {'retain': feed}, key=jax.random.key(7),
                  apply=lambda *_: None, monitor=MONITOR, show_progress=False, **kwargs)


def leaves(state):
  return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x))
                      if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray(x), state)


class StreamTest(absltest.TestCase):

  def test_phases_that_share_a_stream_read_it_one_after_the_other(self):
    asked = {'retain': [], 'forget': []}
    def watched(name):
      def feed(step):
        asked[name].append(step)
        return stream(step)
      return feed
    first, second, third = method().phases
    made = method()._replace(phases=(first, second._replace(stream='forget'), third))
    loop.run(made, VARIABLES, {name: watched(name) for name in asked}, key=jax.random.key(7),
             apply=lambda *_: None, monitor=MONITOR, show_progress=False)
    self.assertEqual(asked, {'retain': list(range(4 + 3)), 'forget': list(range(5))})


class ResumeTest(parameterized.TestCase):

  # Phase boundaries lie at 4, 9 and 12 steps; everything else is mid-phase.
  @parameterized.parameters(*range(1, 12))
  def test_killed_and_resumed_is_bitwise_uninterrupted(self, killed_at):
    whole = run()
    directory = tempfile.mkdtemp()
    with checkpoint.Checkpointer(directory) as saved, self.assertRaises(Killed):
      # The feed runs ahead of the steps; without prefetching it dies exactly where it says.
      run(feed=killing(stream, killed_at), checkpointer=saved, checkpoint_every=1)
    with checkpoint.Checkpointer(directory) as saved:
      self.assertIsNotNone(saved.latest() or killed_at == 1)
      resumed = run(checkpointer=saved, checkpoint_every=1)
    jax.tree.map(np.testing.assert_array_equal, leaves(resumed.state), leaves(whole.state))
    self.assertEqual(resumed.steps, 12)

  @parameterized.parameters((0, 3), (1, 0), (1, 2), (2, 0), (2, 1))
  def test_resume_at_an_exact_position(self, number, index):
    """The checkpoint at every kind of position, taken from inside a run, restores and continues."""
    whole = run()
    directory = tempfile.mkdtemp()

    class Stop(checkpoint.Checkpointer):
      def save(self, tree, note):
        super().save(tree, note)
        if tuple(note['position']) == (number, index):
          raise Killed

    with contextlib.closing(Stop(directory)) as saved, self.assertRaises(Killed):
      run(checkpointer=saved, checkpoint_every=1)
    with checkpoint.Checkpointer(directory) as saved:
      self.assertEqual(tuple(saved.latest()['position']), (number, index))
      resumed = run(checkpointer=saved)
    jax.tree.map(np.testing.assert_array_equal, leaves(resumed.state), leaves(whole.state))

  def test_a_finished_run_is_returned_as_it_was(self):
    with checkpoint.Checkpointer(tempfile.mkdtemp()) as saved:
      whole = run(checkpointer=saved)
      again = run(checkpointer=saved, feed=killing(stream, 0))
    jax.tree.map(np.testing.assert_array_equal, leaves(again.state), leaves(whole.state))

  def test_metrics_file_has_no_doubles_after_a_resume(self):
    directory, metrics = tempfile.mkdtemp(), tempfile.mkdtemp()
    with checkpoint.Checkpointer(directory) as saved, self.assertRaises(Killed):
      run(feed=killing(stream, 8), checkpointer=saved, checkpoint_every=3, directory=metrics,
          log_every=1)
    with checkpoint.Checkpointer(directory) as saved:
      run(checkpointer=saved, directory=metrics, log_every=1)
    self.assertEqual([row['step'] for row in log.read(metrics)], list(range(1, 13)))

  def test_facts_of_another_run_are_refused(self):
    with checkpoint.Checkpointer(tempfile.mkdtemp()) as saved:
      run(checkpointer=saved, note={'split': 'a'})
      with self.assertRaisesRegex(ValueError, 'belongs to another run'):
        run(checkpointer=saved, note={'split': 'b'})


class LoopTest(parameterized.TestCase):

  def test_signals_are_refreshed_at_their_cadence(self):
    seen = []
    def run_monitor(apply, variables):
      seen.append(1)
      return {'score': 0.0}
    loop.run(method(), VARIABLES, {'retain': stream}, key=jax.random.key(0),
             apply=lambda *_: None, monitor=types.Evaluator('m', run_monitor, 1),
             show_progress=False)
    self.assertLen(seen, 3)  # once to compile, then before steps 0 and 2 of the first phase

  def test_flops_are_those_of_the_steps_taken_on_all_devices(self):
    rows, width = 64, 32
    tx = optax.sgd(0.1)

    def objective(params, *, state, frozen, batch, key):
      del frozen, key
      return jnp.mean((batch['retain']['x'] @ params['model']['w']) ** 2), ({}, state.collections)

    step = base.gradient_step(objective, tx)
    made = lambda steps: types.Method(
        lambda key, variables: (base.initial_state(key, variables, tx), {}),
        (types.Phase('one', step, steps, 'retain'),), base.export)
    feed = lambda step: {'retain': {'x': np.ones((rows, width), np.float32)}}
    count = lambda steps, devices, **kwargs: loop.run(
        made(steps), {'params': {'w': jnp.ones((width, width))}}, {'retain': feed},
        key=jax.random.key(0), mesh=sharding.make_mesh(devices), show_progress=False,
        **kwargs).flops
    products = 2 * 2 * rows * width**2  # one forward, one backward
    self.assertBetween(count(3, 1), 3 * products, 3.3 * products)
    self.assertBetween(count(3, 8), 3 * products, 4.5 * products)  # updates are made on each
    directory = tempfile.mkdtemp()
    with checkpoint.Checkpointer(directory) as saved:
      count(2, 1, checkpointer=saved)
      again = count(2, 1, checkpointer=saved)  # of a finished run, from its checkpoint
    np.testing.assert_allclose(again, count(2, 1))

  def test_batches_are_placed_where_they_are_made(self):
    """In the stream's own thread, which runs ahead: no step waits for decoding or a transfer."""
    places = []

    def read(rows):
      places.append((threading.current_thread(), tuple(rows.tolist())))
      return np.ones((len(rows), 2), np.float32)

    run(feed=lambda step: {'retain': {'x': fields.Lazy((8, 2), np.float32, read)}},
        mesh=sharding.make_mesh(4))
    self.assertLen(places, 12 * 4)  # every device's rows once, in every step
    self.assertNotIn(threading.main_thread(), {thread for thread, _ in places})
    self.assertEqual({rows for _, rows in places}, {(0, 1), (2, 3), (4, 5), (6, 7)})

  def test_errors_of_placing_reach_the_caller(self):
    def read(rows):
      raise OSError('the disk is gone')

    with self.assertRaisesRegex(OSError, 'the disk is gone'):
      run(feed=lambda step: {'retain': {'x': fields.Lazy((8, 2), np.float32, read)}})

  def test_until_stops_a_phase_early(self):
    result = run(method(until=lambda signals: signals['score'] > -2.0))
    self.assertLess(result.steps, 12)
    self.assertGreaterEqual(result.steps, 8)

  def test_non_finite_names_phase_and_step_and_keeps_the_last_checkpoint(self):
    def poisoned(step):
      batch = stream(step)
      if step == 3:
        batch['retain']['x'][0, 0] = np.nan
      return batch
    with checkpoint.Checkpointer(tempfile.mkdtemp()) as saved:
      with self.assertRaisesRegex(loop.NonFiniteError, r"phase 'one', step 4"):
        run(feed=poisoned, checkpointer=saved, checkpoint_every=2, log_every=100)
      self.assertEqual(saved.latest()['position'], [0, 2])

  def test_devices_agree(self):
    one, eight = run(mesh=sharding.make_mesh(1)), run(mesh=sharding.make_mesh(8))
    np.testing.assert_allclose(one.variables['params']['w'], eight.variables['params']['w'],
                               rtol=1e-5)

  def test_missing_stream_and_monitor_are_named(self):
    with self.assertRaisesRegex(ValueError, "wants stream 'retain', there is: forget"):
      loop.run(method(), VARIABLES, {'forget': stream}, key=jax.random.key(0))
    with self.assertRaisesRegex(ValueError, r"signals \['score'\], but no monitor"):
      loop.run(method(), VARIABLES, {'retain': stream}, key=jax.random.key(0))

  def test_batch_that_devices_cannot_share(self):
    feed = lambda step: {'retain': {'x': np.zeros((6, 2), np.float32)}}
    with self.assertRaisesRegex(ValueError, 'retain/x has 6 rows, which 8 devices'):
      run(feed=feed, mesh=sharding.make_mesh(8))

  def test_too_many_devices(self):
    with self.assertRaisesRegex(ValueError, 'mesh of 99 devices'):
      sharding.make_mesh(99)

  def test_events_are_written_without_tensorflow(self):
    import sys
    directory = tempfile.mkdtemp()
    run(directory=directory)
    events = [name for name in os.listdir(directory) if 'tfevents' in name]
    self.assertLen(events, 1)
    from tensorboard.backend.event_processing import event_file_loader
    path = os.path.join(directory, events[0])
    tags = {value.tag for event in event_file_loader.EventFileLoader(path).Load()
            for value in event.summary.value}
    self.assertContainsSubset({'loss', 'half'}, tags)
    self.assertNotIn('tensorflow', sys.modules)

  def test_metrics_are_sums_over_counts(self):
    directory = tempfile.mkdtemp()
    run(directory=directory, log_every=1)
    for row in log.read(directory):
      np.testing.assert_allclose(row['half'], row['loss'] / 2, rtol=1e-6)


if __name__ == '__main__':
  absltest.main()
