"""The trainer of generators against NumPy: its schedule, its decay, where it starts."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from tests.methods import generators
from tests.methods import reference
from unlearn_jax import methods

RATE, DECAY = 0.03, 0.4
STEPS = 4  # four thirds of a pass over 3 batches, the first step warming up


def make(model, **settings):
  return methods.get('reconstruct')(
      model, example=generators.batch(0)['retain'], retain_steps=3, train_steps=5,
      **{'epochs': 4 / 3, 'warmup_epochs': 1 / 3, 'learning_rate': RATE, 'weight_decay': DECAY,
         **settings})


class ReconstructTest(parameterized.TestCase):

  @parameterized.parameters('adamw', 'sgd')
  def test_reconstruct(self, optimizer):
    """All steps: the loss, and every parameter; matrices alone decay, and with AdamW alone."""
    model = generators.network()
    method, stream = make(model, optimizer=optimizer), generators.feed()['retain']
    phase, = method.phases
    self.assertEqual((phase.steps, phase.stream), (STEPS, 'retain'))
    state, frozen = method.init(jax.random.key(3), generators.variables())
    start = w = generators.weights(state.params['model'])
    fresh = generators.weights(model.init(jax.random.key(3), None)['params'])
    jax.tree.map(np.testing.assert_array_equal, w, fresh)  # and not the variables given
    update = generators.AdamW(DECAY) if optimizer == 'adamw' else generators.sgd
    step = jax.jit(phase.step)
    for number in range(STEPS):
      fields = stream(number)['retain']
      loss = lambda w, fields=fields: generators.average(
          generators.errors(w, fields['image'], fields['visible']), fields['mask'])
      state, metrics = step(state, frozen, {'retain': fields})
      np.testing.assert_allclose(metrics['loss'], loss(w), rtol=2e-4)
      # Linear over the first step, then half a cosine over the three others.
      factor = [1.0, 1.0, 0.75, 0.25][number]
      w = update(w, {name: reference.gradient(lambda x, name=name: loss({**w, name: x}), w[name])
                     for name in w}, RATE * factor)
      for name, leaf in generators.weights(state.params['model']).items():
        np.testing.assert_allclose(leaf, w[name], rtol=5e-4, atol=5e-5, err_msg=name)
    self.assertGreater(min(np.abs(w[name] - start[name]).max() for name in w), 0.001)

  def test_an_average_of_the_parameters_is_exported(self):
    plain, method = make(generators.network()), make(generators.network(), ema=0.9)
    stream, states = generators.feed()['retain'], []
    for one in (plain, method):
      state, frozen = one.init(jax.random.key(3), generators.variables())
      states.append(state)
    average, step = states[0].params['model'], [jax.jit(m.phases[0].step) for m in (plain, method)]
    for number in range(STEPS):
      states = [run(state, {}, stream(number))[0] for run, state in zip(step, states)]
      average = jax.tree.map(lambda a, p: 0.9 * a + 0.1 * p, average, states[0].params['model'])
    jax.tree.map(np.testing.assert_array_equal, states[0].params, states[1].params)
    jax.tree.map(lambda found, mean: np.testing.assert_allclose(found, mean, rtol=1e-5, atol=1e-6),
                 method.export(states[1])['params'], average)
    self.assertNotIn('average', states[0].extra)
    with self.assertRaisesRegex(ValueError, 'ema must lie in'):
      make(generators.network(), ema=1.5)

  def test_the_original_trains_on_everything(self):
    phase, = make(generators.network(), role='train').phases
    self.assertEqual((phase.steps, phase.stream), (7, 'train'))
    method = make(generators.network(), role='train')
    state, frozen = method.init(jax.random.key(0), generators.variables())
    with self.assertRaisesRegex(ValueError, "reconstruct wants role 'train'"):
      phase.step(state, frozen, generators.feed()['retain'](0))

  def test_a_tokenizer_stays(self):
    model = generators.network(tokenizer=True)
    method = make(model)
    state, frozen = method.init(jax.random.key(0), None)
    after, _ = jax.jit(method.phases[0].step)(state, frozen, generators.feed()['retain'](0))
    found = method.export(after)['params']
    np.testing.assert_array_equal(found['tokenizer']['kernel'], np.full((2, 2), np.float32(0.7)))
    before = generators.weights(state.params['model'])
    moved = {name for name, leaf in generators.weights(found).items() if (leaf != before[name]).any()}
    self.assertEqual(moved, set(generators.SHAPES))

  @parameterized.parameters(
      ({'role': 'forget'}, "role is 'retain' or 'train'"), ({'warmup_epochs': 9.0}, 'warmup_epochs'),
      ({'learning_rate': -1.0}, 'learning_rate must lie'), ({'weight_decay': -1.0}, 'weight_decay'),
      ({'warmup_epochs': 4 / 3}, 'a warm-up of 4 steps must be shorter'),
      ({'optimizer': 'adam'}, "'adamw' or 'sgd'"))
  def test_bad_settings(self, settings, message):
    with self.assertRaisesRegex(ValueError, message):
      make(None, **settings)

  def test_methods_of_this_file(self):
    reference.check_covered(self, 'reconstruct_test')


if __name__ == '__main__':
  absltest.main()
