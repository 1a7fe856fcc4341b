"""MultiDelete's steps against NumPy, whom it takes for unassociated, and bad settings."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from tests.methods import reference
from tests.methods import towers
from unlearn_jax import methods

SETTINGS = {'retain_steps': 2, 'epochs': 1.5, 'optimizer': 'sgd', 'learning_rate': 0.5,
            'momentum': 0.9, 'weight_decay': 0.01}


def same_sound(step):
  """A batch whose retained records sound alike, so that any of them gives the same target."""
  found = towers.batch(step)
  found['retain']['audio'][:] = found['retain']['audio'][:1]
  return found


def states(w, image, sound):
  """(m, n, h)."""
  m, n = image @ w['image'], sound @ w['audio']
  return m, n, np.tanh(np.concatenate([m, n], axis=1) @ w['fusion'])


def terms(w, teacher, batch):
  """The three mean squared distances."""
  image, sound, _ = towers.kept(batch['forget'])
  retained = towers.kept(batch['retain'])[:2]
  m, n, h = states(w, image, sound)
  m_g, n_g, _ = states(teacher, image, sound)
  apart = states(teacher, image, np.repeat(retained[1][:1], len(image), axis=0))[2]
  kept, before = (states(given, *retained)[2] for given in (w, teacher))
  return {'decoupling': np.mean((h - apart)**2), 'retention': np.mean((kept - before)**2),
          'unimodal': np.mean((m - m_g)**2) + np.mean((n - n_g)**2)}


class MultiDeleteTest(parameterized.TestCase):

  def test_multi_delete(self):
    batches = [same_sound(step) for step in range(3)]
    teacher = towers.weights(towers.variables()['params'])
    w, update = dict(teacher), {name: reference.SGD(0.5, 0.9, 0.01) for name in teacher}
    method = methods.get('multi_delete')(towers.network(), **SETTINGS)
    for (phase, state, metrics), batch in zip(towers.steps(method, batches), batches, strict=True):
      self.assertEqual((phase.name, phase.steps, phase.stream), ('unlearn', 3, 'pair'))
      expected = terms(w, teacher, batch)
      self.assertEqual(metrics.keys(), {*expected, 'loss'})
      for name, value in {**expected, 'loss': sum(expected.values())}.items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-4, atol=2e-5, err_msg=name)
      loss = lambda name, value: sum(terms({**w, name: value}, teacher, batch).values())
      gradients = {name: reference.gradient(lambda value, name=name: loss(name, value), w[name])
                   for name in w}
      w = {name: update[name](w[name], gradients[name]) for name in w}
      found = towers.weights(state.params['model'])
      for name, value in w.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
    self.assertGreater(min(expected.values()), 1e-4)  # every term has been at work

  def test_partners_are_retained_records_that_count(self):
    """A record draws among those whose mask is 1, all of them, and never itself."""
    method = methods.get('multi_delete')(towers.network(), **SETTINGS)
    state, frozen = method.init(jax.random.key(0), towers.variables())
    step = jax.jit(method.phases[0].step)
    batch, clean, seen = towers.batch(0), towers.batch(0), set()
    image = clean['forget']['image']
    clean['forget']['mask'] = (np.arange(4) == 1).astype(np.float32)
    clean['retain']['mask'] = np.array([0, 1, 0, 1, 0, 0], np.float32)
    weights = towers.weights(towers.variables()['params'])
    apart = {j: states(weights, image[1:2], batch['retain']['audio'][j:j + 1])[2] for j in range(6)}
    own = states(weights, image[1:2], clean['forget']['audio'][1:2])[2]
    for number in range(12):
      _, metrics = step(state.replace(key=jax.random.key(number)), frozen, clean)
      seen.add(min(apart, key=lambda j: abs(np.mean((own - apart[j])**2) - metrics['decoupling'])))
    self.assertEqual(seen, {1, 3})

  def test_methods_of_this_file(self):
    reference.check_covered(self, 'multi_delete_test')

  @parameterized.parameters(({'epochs': -1.0}, 'multi_delete: epochs'),
                            ({'learning_rate': float('nan')}, 'multi_delete: learning_rate'),
                            ({'optimizer': 'lion'}, "optimizer is 'sgd' or 'adam'"))
  def test_bad_settings(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      methods.get('multi_delete')(towers.network(), **{**SETTINGS, **changes})


if __name__ == '__main__':
  absltest.main()
