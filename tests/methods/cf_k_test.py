"""CF-k and EU-k: schedule, choice of layers, new weights."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from tests.methods import reference
from unlearn_jax import methods
from unlearn_jax import models
from unlearn_jax.methods import cf_k
from unlearn_jax.models import surgery

EXAMPLE = {'image': np.zeros((1, 4, 4, 1), np.float32)}
# The last three layers of a ResNet-18 in Goel et al.'s release.
KERNELS = {'fc/kernel', 'layer4/1/conv2/kernel', 'layer4/1/conv1/kernel'}
NORMS = {f'layer4/1/bn{number}/{leaf}' for number in (1, 2) for leaf in ('scale', 'bias')}


def flat(tree):
  return dict(zip(surgery.paths(tree), map(np.asarray, jax.tree.leaves(tree))))


@functools.cache
def network():
  """A ResNet-18, one eighth as wide."""
  model = models.get('resnet18', num_outputs=4, width=8, stem='cifar')
  return model, reference.values(model, EXAMPLE)


class ScheduleTest(parameterized.TestCase):

  def test_values(self):
    """(1 + cos(pi t / T)) / 2 at t = 0 of T = 1; 0, 1 of 2; 0 to 3 of 4; and 0 of 8."""
    root = np.sqrt(0.5) / 2
    shape = np.array([1, 1, 0.5, 1, 0.5 + root, 0.5, 0.5 - root, 1])
    got = [cf_k.warm_restarts(0.1, 3, ratio=0.05)(step) for step in range(24)]
    np.testing.assert_allclose(got, np.repeat(0.005 + 0.095 * shape, 3), rtol=1e-6)

  def test_sixty_two_epochs(self):
    """The defaults' length: PyTorch's counters, stepped once an epoch."""
    expected, length, since = [], 1, 0
    for _ in range(62):
      expected.append(0.005 + (0.1 - 0.005) * (1 + np.cos(np.pi * since / length)) / 2)
      since += 1
      if since >= length:
        since, length = since - length, length * 2
    schedule = jax.jit(jax.vmap(cf_k.warm_restarts(0.1, 7, ratio=0.05)))
    np.testing.assert_allclose(schedule(np.arange(62) * 7), expected, rtol=1e-5)
    np.testing.assert_allclose(schedule(np.arange(62) * 7 + 6), expected, rtol=1e-5)


class LayersTest(parameterized.TestCase):

  @parameterized.parameters('cf_k', 'eu_k')
  def test_exactly_the_last_layers_of_a_resnet_learn(self, name):
    model, variables = network()
    method = methods.get(name)(model, example=EXAMPLE, retain_steps=1, epochs=1.0, k=3)
    before, frozen = method.init(jax.random.key(1), variables)
    # What state the step is given, it keeps: compare the step with its own start.
    after, _ = jax.jit(method.phases[0].step)(
        before, frozen, {'retain': reference.pictures('retain', 0)})
    start, end = flat(before.params['model']), flat(after.params['model'])
    moved = {leaf for leaf in start if (start[leaf] != end[leaf]).any()}
    self.assertEqual(moved, KERNELS | NORMS | {'fc/bias'})
    for leaf, old in flat(variables['batch_stats']).items():  # frozen layers' statistics too
      self.assertTrue((old != flat(after.collections['batch_stats'])[leaf]).any(), leaf)

  def test_cf_k_starts_from_the_original(self):
    model, variables = network()
    state, _ = methods.get('cf_k')(model, example=EXAMPLE).init(jax.random.key(1), variables)
    jax.tree.map(np.testing.assert_array_equal, state.params['model'], variables['params'])

  def test_eu_k_draws_kernels_anew(self):
    model, variables = network()
    method = methods.get('eu_k')(model, example=EXAMPLE, k=3)
    states = [method.init(jax.random.key(seed), variables)[0] for seed in (1, 1, 2)]
    drawn, again, other = (flat(state.params['model']) for state in states)
    for name, old in flat(variables['params']).items():
      if name in KERNELS:
        fan_in = np.prod(old.shape[:-1])  # height x width x channels, or features
        # 9 x 64 x 64 or 64 x 4 normal draws: four standard errors of the variance.
        self.assertAlmostEqual(float(drawn[name].var() * fan_in / 2), 1.0,
                               delta=4 * np.sqrt(2 / old.size), msg=name)
        self.assertAlmostEqual(float(drawn[name].mean()), 0.0,
                               delta=4 * np.sqrt(2 / fan_in / old.size), msg=name)
        self.assertFalse((drawn[name] == other[name]).any(), name)
        self.assertFalse((drawn[name] == old).any(), name)
      elif name == 'fc/bias':
        np.testing.assert_array_equal(drawn[name], 0.0)
      else:  # batch norm of the last layers included
        np.testing.assert_array_equal(drawn[name], old, err_msg=name)
      np.testing.assert_array_equal(drawn[name], again[name])
    one, two = (drawn[f'layer4/1/conv{number}/kernel'] for number in (1, 2))
    self.assertLess(abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]), 0.03)  # not the same draw
    for state in states:
      jax.tree.map(np.testing.assert_array_equal, state.collections['batch_stats'],
                   variables['batch_stats'])

  @parameterized.parameters('cf_k', 'eu_k')
  def test_more_layers_than_there_are(self, name):
    model = models.get('mlp', num_outputs=4, hidden=(4,))
    with self.assertRaisesRegex(ValueError, 'last 3 weight layers'):
      methods.get(name)(model, example=EXAMPLE, k=3)
    with self.assertRaisesRegex(ValueError, 'k must lie in'):
      methods.get(name)(model, example=EXAMPLE, k=0)


if __name__ == '__main__':
  absltest.main()
