"""CCU's steps against NumPy, what is frozen, when DCS joins, and bad settings."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from tests.losses import ccu_reference as equations
from tests.methods import reference
from tests.methods import towers
from unlearn_jax import methods
from unlearn_jax import types
from unlearn_jax.methods import base
from unlearn_jax.methods import ccu as module
from unlearn_jax.methods import stopping
from unlearn_jax.train import loop
from unlearn_jax.train import sharding

# Two steps of `unlearn` and two of `separate`.
SETTINGS = {'forget_steps': 2, 'epochs': 1.0, 'omega': 2, 'final_share': 0.5, 'learning_rate': 0.05,
            'momentum': 0.9, 'weight_decay': 0.01, 'alpha': 0.8, 'beta': 0.4, 'gamma': 1.5,
            'temperature': 0.6, 'retention_temperature': 0.9, 'separation_temperature': 0.5}
FORMS = {'default': {}, 'raw': {'normalize': False, 'learning_rate': 0.005},
         'text': {'other': 'text', 'freeze_other': True}}


def objective(w, batch, *, separate, other='audio', normalize=True, **given):
  """Eq. 7 at the weights w, from the equations' loops."""
  s = {**SETTINGS, **given}
  def embed(role):
    image, sound, labels = towers.kept(batch[role], other)
    m, n = image @ w['image'], sound @ w[other]
    if normalize:
      m, n = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (m, n))
    return m, n, labels

  (m, n, y), (m_u, n_u, y_u) = embed('retain'), embed('forget')
  visual, audio = equations.selective(m_u, m, n_u, n, y_u, y, s['temperature'])
  terms = {'svu_visual': sum(visual) / len(visual), 'svu_audio': sum(audio) / len(audio),
           'retention': equations.retention(n, m, s['retention_temperature']) / len(y)}
  loss = (s['alpha'] * (terms['svu_visual'] + terms['svu_audio'])
          + s['beta'] * terms['retention'])
  if separate:
    terms['separation'] = equations.separation(m, n, y, s['separation_temperature'])
    loss += s['gamma'] * terms['separation']
  return {**terms, 'loss': loss}


def make(**settings) -> types.Method:
  return methods.get('ccu')(towers.network(settings.get('other', 'audio')),
                            **{**SETTINGS, **settings})


class StepsTest(parameterized.TestCase):

  @parameterized.parameters(*FORMS)
  def test_ccu(self, form):
    """Four steps across both phases: metrics, parameters, momentum, and what stays."""
    changes = FORMS[form]
    other = changes.get('other', 'audio')
    batches = [towers.batch(step, other) for step in range(4)]
    start = towers.variables(other)
    w = towers.weights(start['params'])
    stays = {'audio', 'text'} if changes.get('freeze_other') else set()
    update = {name: reference.SGD(changes.get('learning_rate', SETTINGS['learning_rate']),
                                  SETTINGS['momentum'], SETTINGS['weight_decay'])
              for name in w if name not in stays}
    seen = []
    for (phase, state, metrics), batch in zip(towers.steps(make(**changes), batches), batches,
                                              strict=True):
      separate = phase.name == 'separate'
      of = lambda name, value: objective({**w, name: value}, batch, separate=separate,
                                         **changes)
      expected = of('image', w['image'])
      self.assertEqual(metrics.keys(), expected.keys())
      for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-4, atol=2e-5, err_msg=name)
      gradients = {name: reference.gradient(lambda value, name=name: of(name, value)['loss'],
                                            w[name]) for name in update}
      w |= {name: rule(w[name], gradients[name]) for name, rule in update.items()}
      found = towers.weights(state.params['model'])
      for name, value in w.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
      seen.append(phase.name)
    self.assertEqual(seen, ['unlearn'] * 2 + ['separate'] * 2)
    self.assertGreater(np.abs(w['image'] - towers.weights(start['params'])['image']).max(), 0.01)
    means = {name: np.asarray(tree['mean']) for name, tree in
             state.collections['batch_stats'].items()}
    for name, mean in means.items():
      before = np.asarray(start['batch_stats'][name]['mean'])
      self.assertEqual(np.array_equal(mean, before), name in stays, name)
    for name in stays & w.keys():
      np.testing.assert_array_equal(state.params['model'][name]['kernel'],
                                    start['params'][name]['kernel'])

  def test_modules_that_are_left_out_are_no_metrics(self):
    (_, state, metrics), = towers.steps(make(beta=0.0, gamma=0.0, epochs=0.25),
                                        [towers.batch(0)])
    self.assertEqual(metrics.keys(), {'svu_visual', 'svu_audio', 'loss'})
    np.testing.assert_allclose(
        metrics['loss'], 0.8 * (metrics['svu_visual'] + metrics['svu_audio']), rtol=1e-6)
    self.assertEqual(int(state.step), 1)

  def test_embeddings_of_length_zero(self):
    x = jnp.asarray([[0.0, 0.0], [3.0, 4.0]])
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(module._unit(x) ** 2))(x)
    np.testing.assert_allclose(value, 1.0, rtol=1e-6)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)
    np.testing.assert_allclose(module._unit(x), [[0, 0], [0.6, 0.8]], rtol=1e-6)


  def test_methods_of_this_file(self):
    reference.check_covered(self, 'ccu_test')


class PhasesTest(parameterized.TestCase):

  @parameterized.parameters(
      ({}, [('unlearn', 80, 'pair/4'), ('separate', 20, 'pair/4')]),
      ({'omega': 16}, [('unlearn', 320, 'pair/16'), ('separate', 80, 'pair/16')]),
      ({'omega': 1, 'epochs': 0.5}, [('unlearn', 2, 'pair/1')]),  # n rounds to 0
      ({'gamma': 0.0}, [('unlearn', 100, 'pair/4')]),
      ({'final_share': 0.0}, [('unlearn', 100, 'pair/4')]),
      ({'final_share': 1.0}, [('separate', 100, 'pair/4')]))
  def test_steps_and_streams(self, changes, expected):
    method = methods.get('ccu')(towers.network(), forget_steps=5, **changes)
    self.assertEqual([(p.name, p.steps, p.stream) for p in method.phases], expected)
    for phase in method.phases:
      self.assertIsNone(phase.enter)  # the optimizer's state goes on
      self.assertEqual(phase.until is base.never, phase.name == 'separate')
    self.assertFalse(base.never({'visual_accuracy/forget': 0.0}))

  def test_early_stopping_leaves_the_final_steps(self):
    method = stopping.stop_early(make(), signals={'accuracy': 1},
                                 until=lambda signals: signals['accuracy'] < 0.5)
    monitor = types.Evaluator('accuracy', lambda apply, variables: {'accuracy': 0.1}, 1)
    found = loop.run(method, towers.variables(), {'pair/2': towers.batch}, key=jax.random.key(0),
                     apply=towers.network().apply, mesh=sharding.make_mesh(1), monitor=monitor,
                     show_progress=False)
    self.assertEqual(found.steps, 2)


class BadInputTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'omega': 0}, r'ccu: omega must lie in \[1, 16\]'),
      ({'omega': 17}, r'ccu: omega must lie in \[1, 16\]'),
      ({'omega': 2.5}, 'ccu: omega is a whole number'),
      ({'final_share': 1.5}, r'ccu: final_share must lie in \[0, 1\]'),
      ({'temperature': 0.0}, 'ccu: temperature'),
      ({'retention_temperature': -1.0}, 'ccu: retention_temperature'),
      ({'separation_temperature': 0.0}, 'ccu: separation_temperature'),
      ({'alpha': -1.0}, 'ccu: alpha'), ({'beta': -1.0}, 'ccu: beta'),
      ({'gamma': float('nan')}, 'ccu: gamma'), ({'epochs': -1.0}, 'ccu: epochs'))
  def test_refused_before_anything_is_computed(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      make(**changes)

  def test_a_model_without_the_other_modality(self):
    method = methods.get('ccu')(towers.network(), **SETTINGS, other='text')
    with self.assertRaisesRegex(ValueError, 'ccu wants the output text_embedding, the model gives'):
      jax.eval_shape(method.phases[0].step, *method.init(jax.random.key(0), towers.variables()),
                     towers.batch(0))

  def test_freezing_what_is_not_there(self):
    method = methods.get('ccu')(towers.network(), **SETTINGS, other='sound', freeze_other=True)
    with self.assertRaisesRegex(ValueError, 'matches no parameter'):
      method.init(jax.random.key(0), towers.variables())


if __name__ == '__main__':
  absltest.main()
