"""The baselines' steps against NumPy, on whom their forget terms act, bad settings."""

import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from tests.methods import generators
from tests.methods import reference
from unlearn_jax import methods
from unlearn_jax.methods import generator_baselines as module
from unlearn_jax.methods import registry

NAMES = ('max_loss', 'noisy_label', 'retain_label', 'random_encoder')
ENCODER = tuple(name for name in generators.SHAPES if name.startswith('encoder/'))
RATE = 0.05


def make(name, model=None, **settings):
  factory = methods.get(name)
  return factory(generators.network() if model is None else model, forget_steps=2,
                 pixels=generators.Pixels(),
                 **{'epochs': 1.0, 'learning_rate': RATE, 'optimizer': 'sgd', **settings})


@functools.cache
def compiled(name):
  """(step under jit, state, frozen) of a method with its default losses."""
  method = make(name)
  return jax.jit(method.phases[0].step), *method.init(jax.random.key(0), generators.variables())


def masked(batch, **empty):
  """The batch with masks of 0 where a role is to be empty."""
  return {role: {**fields, 'mask': np.zeros_like(fields['mask'])} if role in empty else fields
          for role, fields in batch.items()}


class StepsTest(parameterized.TestCase):

  def walk(self, name, terms, *, trained=tuple(generators.SHAPES), settings=None):
    """Two steps outside of jit against `terms(w, original, batch, seen) -> (retain, forget)`.

    `seen` holds the calls of the model and the latents' noise of the step.
    """
    settings = settings or {}
    model, calls = generators.recorded(generators.network())
    method, start = make(name, model, **settings), generators.variables()
    state, frozen = method.init(jax.random.key(3), start)
    original = w = generators.weights(start['params'])
    update = (generators.AdamW(settings.get('weight_decay', 0.0))
              if settings.get('optimizer') == 'adamw' else generators.sgd)
    alpha, found = settings.get('alpha', 0.25), []
    for number in range(2):
      batch = generators.batch(number)
      calls.clear()
      with mock.patch.object(module.i2i_losses, 'unlearning',
                             side_effect=module.i2i_losses.unlearning) as distances:
        state, metrics = method.phases[0].step(state, frozen, batch)
      noise = [call.args[3] for call in distances.call_args_list]
      seen = {'calls': list(calls), 'noise': noise[0] if noise else None}
      found.append(seen)
      retain, forget = terms(w, original, batch, seen)
      close = lambda key, value: np.testing.assert_allclose(
          metrics[key], value, rtol=2e-4, atol=2e-5, err_msg=key)
      close('retain', retain)
      close('forget', forget)
      close('loss', retain + alpha * forget)

      def loss(w):
        own, other = terms(w, original, batch, seen)
        return (own if retain else 0.0) + alpha * other  # 0 is the kink of a norm: slope 0

      gradients = {path: reference.gradient(lambda x, path=path: loss({**w, path: x}), w[path])
                   for path in trained}
      w = update(w, gradients, settings.get('learning_rate', RATE))
      for path, leaf in generators.weights(state.params['model']).items():
        np.testing.assert_allclose(leaf, w[path], rtol=2e-4, atol=2e-5, err_msg=path)
    for path in w:
      moved = np.abs(w[path] - original[path]).max()
      self.assertEqual(moved > 1e-4, path in trained, path)
    return found

  def losses(self, w, batch, role, targets=None):
    fields = batch[role]
    return generators.errors(w, fields['image'], fields['visible'], targets)

  @parameterized.parameters(
      {}, {'clip': 0.25, 'learning_rate': 0.5}, {'optimizer': 'adamw', 'weight_decay': 0.3})
  def test_max_loss(self, **settings):
    clipped = []

    def terms(w, original, batch, seen):
      self.assertEqual([call.method for call in seen['calls']], ['loss', 'loss'])
      forget = self.losses(w, batch, 'forget')
      clipped.append(forget > settings.get('clip', np.inf))
      return (generators.average(self.losses(w, batch, 'retain'), batch['retain']['mask']),
              -generators.average(np.minimum(forget, settings.get('clip', np.inf)),
                                  batch['forget']['mask']))

    self.walk('max_loss', terms, settings=settings)
    if 'clip' in settings:
      self.assertBetween(np.mean(clipped), 0.05, 0.95)

  def test_noisy_label(self):
    def terms(w, original, batch, seen):
      retain, forget = seen['calls']
      self.assertNotIn('target', retain.inputs)
      np.testing.assert_array_equal(forget.inputs['image'], batch['forget']['image'])
      noise = np.asarray(forget.inputs['noise'])
      return (generators.average(self.losses(w, batch, 'retain'), batch['retain']['mask']),
              generators.average(self.losses(w, batch, 'forget', noise), batch['forget']['mask']))

    one, two = (np.asarray(seen['calls'][1].inputs['noise'])
                for seen in self.walk('noisy_label', terms, settings={'optimizer': 'adamw'}))
    self.assertGreater(np.abs(one - two).max(), 0.01)  # drawn anew
    pixels = generators.Pixels()
    self.assertLess(np.abs((np.stack([one, two]) - pixels.mean) / pixels.std).max(), 5.0)

  def test_retain_label(self):
    """The text's x_r, not the printed n; rows with padding on either side take no part."""
    def terms(w, original, batch, seen):
      both = batch['retain']['mask'] * batch['forget']['mask']
      self.assertLess(both.sum(), batch['forget']['mask'].sum())
      forget = self.losses(w, batch, 'forget', batch['retain']['image'])
      return (generators.average(self.losses(w, batch, 'retain'), batch['retain']['mask']),
              generators.average(forget, both))

    self.walk('retain_label', terms, settings={'alpha': 0.6})

  @parameterized.parameters(
      {}, {'noise': 'batch', 'norm': 'mse', 'stage_reduce': 'sum_of_means', 'optimizer': 'adamw',
           'weight_decay': 0.3})
  def test_random_encoder(self, **settings):
    form = {name: settings[name] for name in ('norm', 'stage_reduce') if name in settings}

    def terms(w, original, batch, seen):
      latents = lambda w, role: generators.latents(w, batch[role]['image'], batch[role]['visible'])
      noise = list(zip(*(np.asarray(seen['noise'][stage], np.float64)
                         for stage in ('first', 'second'))))
      return (generators.average(generators.distances(
                  latents(w, 'retain'), latents(original, 'retain'), **form),
                                 batch['retain']['mask']),
              generators.average(generators.distances(latents(w, 'forget'), noise, **form),
                                 batch['forget']['mask']))

    self.walk('random_encoder', terms, trained=ENCODER, settings=settings)

  def test_noise_of_random_encoder(self):
    """Per stage: N(0, I), or with the moments of what the original gives for the batch."""
    drawn = {}
    for kind in module.NOISES:
      method = make('random_encoder', noise=kind)
      state, frozen = method.init(jax.random.key(3), generators.variables())
      with mock.patch.object(module.i2i_losses, 'unlearning',
                             side_effect=module.i2i_losses.unlearning) as distances:
        method.phases[0].step(state, frozen, generators.batch(0, size=64))
      drawn[kind] = jax.tree.map(np.asarray, distances.call_args.args[3])
    w, batch = generators.weights(generators.variables()['params']), generators.batch(0, size=64)
    given = [latent for fields in batch.values() for latent, counts in zip(
        generators.latents(w, fields['image'], fields['visible']), fields['mask']) if counts]
    for place, stage in enumerate(('first', 'second')):
      z = drawn['normal'][stage]
      self.assertLess(abs(z.mean()) * np.sqrt(z.size), 4.0)
      self.assertLess(abs(z.std() - 1) * np.sqrt(2 * z.size), 4.0)
      numbers = np.stack([latent[place] for latent in given])
      np.testing.assert_allclose(drawn['batch'][stage],
                                 numbers.mean() + numbers.std(ddof=1) * z, rtol=1e-4, atol=1e-5)
    self.assertNotEqual(drawn['normal']['first'].flat[0], drawn['normal']['second'].flat[0])


class RolesTest(parameterized.TestCase):
  """The release's baselines give the forget term to retained pictures; these do not."""

  @parameterized.parameters(*NAMES)
  def test_without_forgotten_pictures_nothing_is_pushed(self, name):
    """Retained pictures alone: no forget term, and the step is that of the retain term."""
    step, state, frozen = compiled(name)
    batch = generators.batch(0)
    after, metrics = step(state, frozen, masked(batch, forget=True))
    self.assertEqual(metrics['forget'], 0.0)
    np.testing.assert_array_equal(metrics['loss'], metrics['retain'])
    other = {**batch, 'forget': {**generators.batch(5)['forget'],
                                 'mask': np.zeros_like(batch['forget']['mask'])}}
    again, _ = step(state, frozen, other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
                 after.params, again.params)

  @parameterized.parameters(*NAMES)
  def test_forgotten_pictures_are_looked_at(self, name):
    step, state, frozen = compiled(name)
    batch, fresh = generators.batch(0), generators.batch(5)
    after, metrics = step(state, frozen, batch)
    other, others = step(state, frozen, {**batch, 'forget': {
        **batch['forget'], 'image': fresh['forget']['image']}})
    np.testing.assert_allclose(metrics['retain'], others['retain'], rtol=1e-5, atol=1e-6)
    self.assertGreater(abs(metrics['forget'] - others['forget']), 1e-4)
    self.assertTrue(any((a != b).any() for a, b in zip(*map(jax.tree.leaves,
                                                            (after.params, other.params)))))

  def test_what_a_noisy_label_is_does_not_touch_retained_pictures(self):
    batch = generators.batch(0)
    found = []
    for noise in ('normal', 'batch'):
      method = make('noisy_label', noise=noise)
      state, frozen = method.init(jax.random.key(0), generators.variables())
      found.append(method.phases[0].step(state, frozen, batch)[1])
    self.assertEqual(found[0]['retain'], found[1]['retain'])
    self.assertGreater(abs(found[0]['forget'] - found[1]['forget']), 1e-4)

  @parameterized.parameters(*NAMES)
  def test_padding_takes_no_part(self, name):
    step, state, frozen = compiled(name)
    batch = generators.batch(0)
    other = {role: {**fields, 'image': np.where(
        fields['mask'][:, None, None, None] > 0, fields['image'], 0.9)}
             for role, fields in batch.items()}
    (first, _), (second, _) = (step(state, frozen, b) for b in (batch, other))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
                 first.params, second.params)

  def test_retain_label_wants_pairs(self):
    method = make('retain_label')
    state, frozen = method.init(jax.random.key(0), generators.variables())
    batch = {**generators.batch(0), 'forget': generators.role('forget', 0, 3)}
    with self.assertRaisesRegex(ValueError, r'retain batch is \(5, 4, 4, 1\), the forget batch '
                                r'\(3, 4, 4, 1\): feed pairs'):
      method.phases[0].step(state, frozen, batch)

  @parameterized.parameters(*NAMES)
  def test_phase(self, name):
    phase, = make(name, epochs=2.5, stream='proxy').phases
    self.assertEqual((phase.stream, phase.steps), ('proxy', 5))

  def test_bad_settings(self):
    for name, settings, message in (
        ('max_loss', {'clip': -1.0}, 'clip must lie'), ('max_loss', {'alpha': -1.0}, 'alpha must'),
        ('noisy_label', {'noise': 'salt'}, 'noise is one of normal, covariance'),
        ('random_encoder', {'noise': 'uniform'}, 'noise is one of normal, batch'),
        ('random_encoder', {'norm': 'l1'}, 'norm is one of'),
        ('retain_label', {'epochs': -1.0}, 'epochs must lie')):
      with self.assertRaisesRegex(ValueError, f'{name}: {message}'):
        make(name, **settings)
    with self.assertRaisesRegex(ValueError, 'noisy_label: .* give `pixels`'):
      methods.get('noisy_label')(generators.network())

  def test_pixels_are_context(self):
    self.assertIn('pixels', registry.CONTEXT)
    self.assertNotIn('pixels', methods.arguments('noisy_label'))

  def test_methods_of_this_file(self):
    reference.check_covered(StepsTest, 'generator_baselines_test')


if __name__ == '__main__':
  absltest.main()
