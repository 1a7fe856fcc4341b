"""DLFD's readings, its gate and its switches."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from unlearn_jax import methods
from unlearn_jax import models
from unlearn_jax import types
from unlearn_jax.losses import classification
from unlearn_jax.train import loop
from unlearn_jax.train import sharding

SHORT = {'perturb_steps': 3, 'step_size': 0.03, 'max_iterations': 10, 'learning_rate': 0.05,
         'retain_steps': 4}


@functools.cache
def network():
  model = models.get('cnn', num_outputs=3, width=4, blocks=1)
  return model, model.init(jax.random.key(0), {'image': np.zeros((1, 6, 6, 1), np.float32)})


def stream(step):
  rng = np.random.default_rng(step)
  def role(n):
    return {'image': rng.uniform(size=(8, 6, 6, 1)).astype(np.float32),
            'label': rng.integers(0, 3, 8).astype(np.int32), 'id': np.arange(8, dtype=np.int32),
            'mask': (np.arange(8) < n).astype(np.float32)}
  return {'retain': role(8), 'forget': role(5)}


def retain_only(step):
  return {'retain': stream(step)['retain']}


def run(*, score=lambda variables: 1.0, name='dlfd', validation=0.5, **changes):
  model, variables = network()
  settings = {**SHORT, **changes} if name == 'dlfd' else changes

  def measure(apply, v):
    value = score(v)
    return {'forgetting_score': value, 'forgetting_score[dlfd]': value,
            'accuracy/validation': validation(v) if callable(validation) else validation}

  monitor = types.Evaluator('gate', measure, 1)
  return loop.run(methods.get(name)(model, **settings), variables,
                  {'pair': stream, 'retain': retain_only}, key=jax.random.key(1),
                  apply=model.apply, monitor=monitor, mesh=sharding.make_mesh(1),
                  show_progress=False)


def leaves(result):
  return [np.asarray(leaf) for leaf in jax.tree.leaves(result.variables)]


def same(a, b):
  return all((x == y).all() for x, y in zip(leaves(a), leaves(b)))


class DlfdTest(parameterized.TestCase):

  def test_the_released_transport_term_is_a_no_op(self):
    """Weights 0, 3 and -1000 train to bit-identical weights, as the released code does."""
    reference = run(reading='release', transport_weight=0.0)
    for weight in (3.0, -1000.0):
      self.assertTrue(same(run(reading='release', transport_weight=weight), reference))
    self.assertFalse(same(run(transport_weight=-1000.0), run(transport_weight=0.0)))

  def test_closed_gate_is_fine_tuning(self):
    closed = run(score=lambda _: 0.0, threshold=0.1, weight_decay=0.0)
    tuned = run(name='finetune', epochs=1.0, learning_rate=0.05, retain_steps=4)
    for mine, his in zip(leaves(closed), leaves(tuned)):
      np.testing.assert_allclose(mine, his, rtol=1e-5, atol=1e-6)

  def test_gate_reopens(self):
    scores = iter([1.0, 1.0, 0.0, 0.0, 1.0])  # the first one compiles the monitor
    half = run(score=lambda _: next(scores))
    self.assertFalse(same(half, run()))
    self.assertFalse(same(half, run(score=lambda _: 0.0)))

  def test_gate_every(self):
    calls = []
    run(score=lambda _: calls.append(1) or 1.0, gate_every=2)
    self.assertLen(calls, 3)  # to compile, and before steps 0 and 2

  def test_without_dynamic_forgetting_no_signal_is_read(self):
    def never(_):
      raise AssertionError('read')
    run(score=never, dynamic=False)

  def test_switches_change_the_perturbation(self):
    results = [run(distancing=a, class_loss=b, weight_start=1.0)
               for a, b in ((True, True), (True, False), (False, True), (False, False))]
    for i, first in enumerate(results):
      for second in results[i + 1:]:
        self.assertFalse(same(first, second))
    # With both off there is nothing to ascend.
    self.assertTrue(same(results[3], run(perturb_steps=0)))

  def test_perturbation_lowers_the_class_loss_and_respects_bounds(self):
    """One open-gate step trains on x*; its batch statistics and loss tell what x* was."""
    model, variables = network()
    method = methods.get('dlfd')(model, **SHORT, distancing=False, weight_start=1.0,
                                 bounds=(0.2, 0.8))
    state, frozen = method.init(jax.random.key(0), variables)
    batch = stream(0)
    _, metrics = jax.jit(method.phases[0].step)(state, frozen, batch)
    outputs, _ = model.apply(variables, batch['retain'], train=True)
    plain = classification.cross_entropy(outputs['logits'], batch['retain']['label'])
    self.assertLess(float(metrics['loss']), float(plain))
    wide = methods.get('dlfd')(model, **SHORT, distancing=False, weight_start=1.0)
    _, free = jax.jit(wide.phases[0].step)(state, frozen, batch)
    self.assertAlmostEqual(float(free['perturbation']), 0.09, delta=0.02)  # 3 steps of 0.03
    self.assertNotAlmostEqual(float(free['perturbation']), float(metrics['perturbation']), places=3)

  def test_release_exports_the_best_validation_model_below_its_score(self):
    accuracy = iter([0.0] + [0.3, 0.9, 0.5, 0.4])  # to compile, then before steps 2, 3, 4 and select
    seen = []
    def validation(variables):
      seen.append(jax.tree.map(np.asarray, variables))
      return next(accuracy)
    result = run(reading='release', validation=validation, score=lambda _: 0.05, threshold=0.0,
                 max_forgetting_score=0.09)
    best = seen[2]  # what 0.9 was measured on
    for mine, his in zip(jax.tree.leaves(result.variables), jax.tree.leaves(best)):
      np.testing.assert_array_equal(mine, his)

  def test_release_without_a_qualifying_model_exports_the_last(self):
    result = run(reading='release', score=lambda _: 0.5, max_forgetting_score=0.09)
    for mine, his in zip(jax.tree.leaves(result.variables['params']),
                         jax.tree.leaves(result.state.params['model'])):
      np.testing.assert_array_equal(mine, his)

  def test_release_freezes_pixels_that_have_left_the_bounds(self):
    """One step of 0.4 takes nearly every pixel out of [0.4, 0.6]; further steps change nothing."""
    settings = {'reading': 'release', 'bounds': (0.4, 0.6), 'step_size': 0.4, 'retain_steps': 1,
                'weight_start': 1.0}
    self.assertTrue(same(run(**settings, perturb_steps=2), run(**settings, perturb_steps=9)))
    back = run(**settings | {'step_size': 0.02}, perturb_steps=2)
    self.assertFalse(same(back, run(**settings | {'step_size': 0.02}, perturb_steps=9)))

  def test_release_freezes_batch_statistics_after_the_first_batch(self):
    first = run(reading='release', retain_steps=1, score=lambda _: 0.5)
    more = run(reading='release', retain_steps=4, score=lambda _: 0.5)
    for mine, his in zip(jax.tree.leaves(first.variables['batch_stats']),
                         jax.tree.leaves(more.variables['batch_stats'])):
      np.testing.assert_array_equal(mine, his)

  @parameterized.parameters(
      {'reading': 'papier'}, {'bounds': (1.0, 0.0)}, {'bounds': (0.0,)}, {'epsilon': 0.0},
      {'gate_every': 0}, {'perturb_steps': -1}, {'step_size': float('nan')})
  def test_bad_arguments(self, **bad):
    with self.assertRaisesRegex(ValueError, 'dlfd'):
      methods.get('dlfd')(network()[0], **bad)


if __name__ == '__main__':
  absltest.main()
