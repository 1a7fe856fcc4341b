"""Early stopping: when it looks, what it ends, and what it leaves alone."""

from absl.testing import absltest
import jax
import jax.numpy as jnp

from unlearn_jax import types
from unlearn_jax.methods import base
from unlearn_jax.methods import stopping
from unlearn_jax.train import loop
from unlearn_jax.train import sharding

SIGNALS = {'value': 2}


def counting(*phases: types.Phase) -> types.Method:
  def init(key, variables):
    return base.initial_state(key, variables, base.optimizer('sgd', 0.1)), {}
  return types.Method(init, phases, base.export)


def add(state, frozen, batch):
  del frozen, batch
  params = jax.tree.map(lambda x: x + 1.0, state.params)
  return state.replace(step=state.step + 1, params=params), {'loss': jnp.zeros(())}


def run(method, below=3.0):
  """The value of the only parameter, which steps count in, and what the monitor was asked."""
  seen = []

  def look(apply, variables):
    del apply
    seen.append(float(variables['params']['x']))
    return {'value': seen[-1]}

  stopped = stopping.stop_early(method, signals=SIGNALS, until=lambda s: s['value'] >= below)
  result = loop.run(
      stopped, {'params': {'x': jnp.zeros(())}}, {'pair': lambda step: {'a': {'x': jnp.zeros(8)}}},
      key=jax.random.key(0), apply=lambda *args, **kwargs: None, mesh=sharding.make_mesh(1),
      monitor=types.Evaluator('look', look, 1), show_progress=False)
  return float(result.variables['params']['x']), seen


class StopEarlyTest(absltest.TestCase):

  def test_looks_every_second_step_and_stops(self):
    value, seen = run(counting(types.Phase('unlearn', add, 10)))
    self.assertEqual(value, 4.0)  # 3 is reached between two looks
    self.assertEqual(seen[1:], [0.0, 2.0, 4.0])  # the first look only compiles

  def test_without_reason_it_runs_to_the_end(self):
    self.assertEqual(run(counting(types.Phase('unlearn', add, 10)), below=99.0)[0], 10.0)

  def test_later_phases_take_no_step_either(self):
    value, _ = run(counting(types.Phase('max', add, 6), types.Phase('min', add, 6)))
    self.assertEqual(value, 4.0)

  def test_a_phase_with_a_rule_of_its_own_runs(self):
    value, _ = run(counting(types.Phase('unlearn', add, 6),
                            types.Phase('final', add, 3, until=base.never)))
    self.assertEqual(value, 4.0 + 3.0)

  def test_a_stage_with_a_state_of_its_own_runs(self):
    enter = lambda state: state.replace(extra={}, signals={})
    again = lambda *args: add(*args)  # a compiled step belongs to its function and state
    value, _ = run(counting(types.Phase('unlearn', add, 6),
                            types.Phase('recover', again, 2, enter=enter)))
    self.assertEqual(value, 4.0 + 2.0)

  def test_rule_that_holds_from_the_start(self):
    self.assertEqual(run(counting(types.Phase('unlearn', add, 6)), below=0.0)[0], 0.0)


if __name__ == '__main__':
  absltest.main()
