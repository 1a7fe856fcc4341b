"""I2I's steps against NumPy, what student and reference share, what is frozen, bad settings."""

import functools
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from tests.methods import generators
from tests.methods import reference
from tests.methods import worlds
from unlearn_jax import methods
from unlearn_jax.train import checkpoint

# Form of the loss -> settings.
FORMS = {
    'paper': {'learning_rate': 0.05},
    'release': {'learning_rate': 0.05, 'norm': 'mse', 'stage_reduce': 'sum_of_means',
                'noise': 'batch', 'weight_decay': 0.3},
    'normalised': {'learning_rate': 0.2, 'norm': 'l2_normalized', 'noise': 'covariance',
                   'optimizer': 'sgd', 'alpha': 0.7},
    'stages': {'learning_rate': 0.2, 'stage_reduce': 'sum_of_means', 'noise': 'uniform',
               'optimizer': 'sgd'},
}
ENCODER = tuple(name for name in generators.SHAPES if name.startswith('encoder/'))


def make(model, **settings):
  return methods.get('i2i')(model, pixels=generators.Pixels(), forget_steps=2,
                            **{'epochs': 1.0, **settings})


def bound(student, goal):
  """Theorem 1 on latents of unit length, term by term."""
  unit = lambda stages: (lambda x: x / np.sqrt(x @ x))(np.concatenate([np.ravel(s) for s in stages]))
  s, r = [unit(x) for x in student], [unit(x) for x in goal]
  distance = [np.sqrt((a - b) @ (a - b)) for a, b in zip(s, r)]
  terms = [np.log(np.exp(distance[i]**2 / 2 - 1) * sum(
      np.exp(distance[j] + r[i] @ r[j]) for j in range(len(r)))) for i in range(len(r))]
  return np.log(len(r)) - np.mean(terms)


@functools.cache
def compiled(**settings):
  """(method, its step under jit, state, frozen) on the default generator."""
  method = make(generators.network(), **settings)
  return method, jax.jit(method.phases[0].step), *method.init(jax.random.key(0),
                                                             generators.variables())


class StepsTest(parameterized.TestCase):

  @parameterized.parameters(*FORMS)
  def test_i2i(self, form):
    """Two steps, outside of jit, with the very noise that the reference encoder was given."""
    settings = FORMS[form]
    model, calls = generators.recorded(generators.network())
    method, start = make(model, **settings), generators.variables()
    state, frozen = method.init(jax.random.key(3), start)
    original = w = generators.weights(start['params'])
    update = (generators.sgd if settings.get('optimizer') == 'sgd' else
              generators.AdamW(settings.get('weight_decay', 0.0)))
    alpha = settings.get('alpha', 0.25)
    form = {name: settings[name] for name in ('norm', 'stage_reduce') if name in settings}
    drawn = []
    for number in range(2):
      batch = generators.batch(number)
      calls.clear()
      state, metrics = method.phases[0].step(state, frozen, batch)
      noise = self.check_calls(calls, batch)
      drawn.append(noise)

      def terms(w):
        """(d of retained pictures, d of forgotten ones), from the equations."""
        goals = [generators.latents(original, images, batch[role]['visible']) for role, images in (
            ('retain', batch['retain']['image']), ('forget', noise))]
        found = [generators.latents(w, batch[role]['image'], batch[role]['visible'])
                 for role in ('retain', 'forget')]
        return [generators.average(generators.distances(s, g, **form), batch[role]['mask'])
                for s, g, role in zip(found, goals, ('retain', 'forget'))], (found, goals)

      (retain, forget), latents = terms(w)

      def loss(w):
        own, other = terms(w)[0]
        # Where student and reference agree in everything the norm has a kink, and slope 0 is taken.
        return (own if retain > 0 else 0.0) + alpha * other

      close = lambda name, value: np.testing.assert_allclose(
          metrics[name], value, rtol=2e-4, atol=2e-5, err_msg=name)
      close('retain', retain)
      close('forget', forget)
      close('loss', retain + alpha * forget)
      for role, student, goal in zip(('retain', 'forget'), *latents):
        rows = np.flatnonzero(batch[role]['mask'])
        close(f'information_bound/{role}',
              bound([student[i] for i in rows], [goal[i] for i in rows]))
      self.assertEqual(retain > 0, number > 0)
      gradients = {name: reference.gradient(lambda x, name=name: loss({**w, name: x}), w[name])
                   for name in ENCODER}
      w = update(w, gradients, settings['learning_rate'])
      for name, leaf in generators.weights(state.params['model']).items():
        np.testing.assert_allclose(leaf, w[name], rtol=2e-4, atol=2e-5, err_msg=name)
    for name in ENCODER:
      self.assertGreater(np.abs(w[name] - original[name]).max(), 0.005, name)
    jax.tree.map(np.testing.assert_array_equal, state.params['model']['decoder'],
                 start['params']['decoder'])  # bitwise: no decay either
    self.assertGreater(np.abs(drawn[0] - drawn[1]).max(), 0.01)  # n is drawn anew

  def check_calls(self, calls, batch):
    """What the four passes of a step are given; returns n."""
    self.assertEqual([call.method for call in calls], ['encode'] * 4)
    student, frozen = [c for c in calls if c.train], [c for c in calls if not c.train]
    for one, other, role in zip(student, frozen, ('retain', 'forget'), strict=True):
      np.testing.assert_array_equal(one.inputs['visible'], batch[role]['visible'])
      np.testing.assert_array_equal(other.inputs['visible'], batch[role]['visible'])
      np.testing.assert_array_equal(one.inputs['image'], batch[role]['image'])
      jax.tree.map(np.testing.assert_array_equal, one.keys, other.keys)
    for call, role in zip(frozen, ('retain', 'forget')):
      np.testing.assert_array_equal(call.inputs['image'], batch[role]['image'])
    self.assertNotIn('noise', frozen[0].inputs)
    self.assertFalse((student[0].keys['noise'] == student[1].keys['noise']).all())
    self.assertFalse((student[0].keys['noise'] == student[0].keys['dropout']).all())
    return np.asarray(frozen[1].inputs['noise'])

  def test_what_is_drawn_is_the_same_for_student_and_reference(self):
    """At the start a noisy encoder agrees with itself on retained pictures."""
    method = make(generators.network(noise=0.5))
    state, frozen = method.init(jax.random.key(0), generators.variables())
    _, metrics = jax.jit(method.phases[0].step)(state, frozen, generators.batch(0))
    self.assertLess(metrics['retain'], 1e-5)
    self.assertGreater(metrics['forget'], 0.1)

  def test_statistics_follow_the_student(self):
    method, step, state, frozen = compiled()
    start, batch = generators.variables(), generators.batch(0)
    jax.tree.map(np.testing.assert_array_equal, frozen['reference'], start)
    found = method.export(step(state, frozen, batch)[0])
    mean = np.asarray(start['batch_stats']['encoder']['mean'], np.float64)
    w = generators.weights(start['params'])
    for role in ('retain', 'forget'):
      tokens = [t for t, _ in generators.latents(w, batch[role]['image'], batch[role]['visible'])]
      mean = 0.75 * mean + 0.25 * np.mean(tokens, axis=(0, 1))
    np.testing.assert_allclose(found['batch_stats']['encoder']['mean'], mean, rtol=1e-5)

  @parameterized.parameters('normal', 'batch')
  def test_padding_takes_no_part(self, noise):
    _, step, state, frozen = compiled(**({} if noise == 'normal' else {'noise': noise}))
    batch = generators.batch(0)
    other = {role: {**fields, 'image': np.where(
        fields['mask'][:, None, None, None] > 0, fields['image'], 0.9)}
             for role, fields in batch.items()}
    self.assertGreater(np.abs(other['retain']['image'] - batch['retain']['image']).max(), 0.1)
    (first, metrics), (second, others) = (step(state, frozen, b) for b in (batch, other))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, first.params, second.params)
    jax.tree.map(close, metrics, others)

  def test_nothing_counts(self):
    _, step, state, frozen = compiled()
    batch = {role: {**fields, 'mask': np.zeros_like(fields['mask'])}
             for role, fields in generators.batch(0).items()}
    after, metrics = step(state, frozen, batch)
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    for name, value in metrics.items():
      self.assertEqual(value, 0.0, name)

  def test_phase(self):
    phase, = make(generators.network(), epochs=2.5, stream='limited/5').phases
    self.assertEqual((phase.stream, phase.steps), ('limited/5', 5))

  @parameterized.parameters(
      ({'norm': 'l1'}, 'i2i: norm is one of l2, mse'), ({'stage_reduce': 'sum'}, 'i2i: stage_reduce'),
      ({'noise': 'salt'}, 'i2i: noise is one of normal'), ({'rank': 2}, 'of noise=.covariance. only'),
      ({'alpha': -1.0}, r'i2i: alpha must lie in \[0'), ({'optimizer': 'adam'}, "'adamw' or 'sgd'"),
      ({'weight_decay': float('nan')}, 'i2i: weight_decay'))
  def test_bad_settings(self, settings, message):
    with self.assertRaisesRegex(ValueError, message):
      make(None, **settings)

  def test_bad_context(self):
    with self.assertRaisesRegex(ValueError, 'i2i: noise .normal. reads the statistics of pixels'):
      methods.get('i2i')(generators.network())
    methods.get('i2i')(generators.network(), noise='batch')  # reads none
    method = make(generators.network())
    state, frozen = method.init(jax.random.key(0), generators.variables())
    with self.assertRaisesRegex(ValueError, "i2i wants role 'forget'"):
      method.phases[0].step(state, frozen, {'retain': generators.batch(0)['retain']})
    flat = {'encoderless': {'kernel': jnp.ones(2)}, 'decoder': {'kernel': jnp.ones(2)}}
    with self.assertRaisesRegex(ValueError, 'model/encoder/.* matches no parameter'):
      method.init(jax.random.key(0), {'params': flat})

  def test_resumed_is_bitwise_uninterrupted(self):
    """Noise and the moments of AdamW go on where they were; so does the low-rank covariance."""
    settings = {'epochs': 2.0, 'noise': 'covariance', 'rank': 2}
    whole = worlds.run('i2i', settings)
    self.assertEqual(whole.steps, 4)

    class Killed(Exception):
      pass

    def dying(step):
      if step == 3:
        raise Killed
      return streams['pair'](step)

    streams, directory = worlds.generation().streams, tempfile.mkdtemp()
    with checkpoint.Checkpointer(directory) as saved, self.assertRaises(Killed):
      worlds.run('i2i', settings, checkpointer=saved, checkpoint_every=2, feed={'pair': dying})
    with checkpoint.Checkpointer(directory) as saved:
      self.assertEqual(tuple(saved.latest()['position']), (0, 2))
      resumed = worlds.run('i2i', settings, checkpointer=saved)
    for part in ('params', 'opt_state', 'collections'):
      jax.tree.map(np.testing.assert_array_equal, worlds.flat(getattr(resumed.state, part)),
                   worlds.flat(getattr(whole.state, part)))

  def test_methods_of_this_file(self):
    reference.check_covered(self, 'i2i_test')


if __name__ == '__main__':
  absltest.main()
