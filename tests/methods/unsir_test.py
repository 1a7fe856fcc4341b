"""UNSIR: what its phases may touch, the labels of the noise, its share of a batch."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from tests.methods import reference
from unlearn_jax import methods
from unlearn_jax import models

EXAMPLE = {'image': np.zeros((1, 4, 4, 1), np.float32)}
SETTINGS = {'retain_steps': 2, 'noise_size': 8, 'noise_steps': 2}


def leaves(tree):
  """Host copies, names first."""
  return {jax.tree_util.keystr(path): np.array(leaf)
          for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def same(one, other):
  return [np.array_equal(a, b) for a, b in zip(leaves(one).values(), leaves(other).values(),
                                               strict=True)]


class UnsirTest(parameterized.TestCase):

  def test_what_each_phase_touches(self):
    model = models.get('cnn', num_outputs=4, width=2, blocks=1)
    variables = reference.values(model, EXAMPLE)
    method = methods.get('unsir')(model, example=EXAMPLE, **SETTINGS)
    self.assertEqual([(phase.name, phase.steps, phase.stream) for phase in method.phases],
                     [('draw', 1, 'forget'), ('noise', 2, 'forget'), ('impair', 2, 'retain'),
                      ('repair', 2, 'retain')])
    state, frozen = method.init(jax.random.key(1), variables)
    self.assertEqual(state.params['noise'].shape, (8, 4, 4, 1))
    for phase in method.phases:
      before = state if phase.enter is None else phase.enter(state)
      state, _ = jax.jit(phase.step)(before, frozen, {
          phase.stream: reference.pictures(phase.stream, 0)})
      model_moved = not any(same(before.params['model'], state.params['model']))
      model_stayed = all(same(before.params['model'], state.params['model']))
      noise_stayed = all(same(before.params['noise'], state.params['noise']))
      self.assertEqual(model_moved, phase.name in ('impair', 'repair'), phase.name)
      self.assertEqual(model_stayed, phase.name in ('draw', 'noise'), phase.name)
      self.assertEqual(noise_stayed, phase.name != 'noise', phase.name)
      # Train mode throughout: the release never leaves it.
      statistics = any(same(before.collections, state.collections))
      self.assertEqual(statistics, phase.name == 'draw', phase.name)
    self.assertEqual(jax.tree.structure(method.export(state)), jax.tree.structure(variables))

  def test_the_noise_is_normal(self):
    model = models.get('mlp', num_outputs=4, hidden=())
    variables = reference.values(model, EXAMPLE)
    method = methods.get('unsir')(model, example=EXAMPLE, noise_size=1000)
    noise = np.asarray(method.init(jax.random.key(1), variables)[0].params['noise'])
    self.assertAlmostEqual(noise.mean(), 0.0, delta=4 / np.sqrt(noise.size))
    self.assertAlmostEqual(noise.var(), 1.0, delta=4 * np.sqrt(2 / noise.size))

  def test_labels_are_drawn_from_forgotten_records(self):
    """Padding, whose label is 9 here, never gives one; the others do as often as they occur."""
    model = models.get('mlp', num_outputs=10, hidden=())
    variables = reference.values(model, EXAMPLE)
    method = methods.get('unsir')(model, example=EXAMPLE, noise_size=5000)
    state, frozen = method.init(jax.random.key(1), variables)
    forget = reference.pictures('forget', 3)
    drawn = []
    for seed in (1, 2):
      state, _ = method.phases[0].step(state.replace(key=jax.random.key(seed)), frozen,
                                       {'forget': forget})
      np.testing.assert_array_equal(np.sum(state.extra['label'], axis=1), 1.0)
      drawn.append(np.argmax(np.asarray(state.extra['label']), axis=1))
    self.assertTrue((drawn[0] != drawn[1]).any())
    true = forget['label'][forget['mask'] > 0]
    self.assertGreater(len(set(true)), 1)
    expected = np.bincount(true, minlength=10) / len(true)
    np.testing.assert_allclose(np.bincount(drawn[0], minlength=10) / 5000, expected,
                               atol=4 * np.sqrt(0.25 / 5000))
    self.assertEqual(set(drawn[0]), set(true))

  @parameterized.parameters((0.36, 3), (0.5, 6), (0.75, 18), (0.01, 1))
  def test_share_of_noise_in_a_batch(self, share, copies):
    """Six retain rows, so share / (1 - share) x 6 rows of noise, at least one."""
    seen = []

    def apply(variables, inputs, **kwargs):
      seen.append(inputs['image'].shape[0])
      return model.apply(variables, inputs, **kwargs)

    model = models.get('mlp', num_outputs=4, hidden=())
    variables = reference.values(model, EXAMPLE)
    method = methods.get('unsir')(model._replace(apply=apply), example=EXAMPLE,
                                  **{**SETTINGS, 'noise_share': share})
    state, frozen = method.init(jax.random.key(1), variables)
    seen.clear()
    impair = method.phases[2]
    jax.eval_shape(lambda s: impair.step(impair.enter(s), frozen, {
        'retain': reference.pictures('retain', 0)}), state)
    self.assertEqual(seen, [6 + copies])
    if share > 0.1:
      self.assertAlmostEqual(copies / (6 + copies), share, delta=0.05)

  def test_every_picture_of_noise_comes_up(self):
    """An impair step shows several of them, not one: its loss changes with its key."""
    model = models.get('mlp', num_outputs=4, hidden=())
    variables = reference.values(model, EXAMPLE)
    method = methods.get('unsir')(model, example=EXAMPLE, **{**SETTINGS, 'noise_share': 0.75})
    state, frozen = method.init(jax.random.key(1), variables)
    state, _ = method.phases[0].step(state, frozen, {'forget': reference.pictures('forget', 3)})
    retain = {'retain': reference.pictures('retain', 0)}

    def loss(picture, noise, key):
      now = state.replace(params={**state.params, 'noise': noise.at[picture].add(1.0)}, key=key)
      return method.phases[2].step(method.phases[2].enter(now), frozen, retain)[1]['loss']

    many = jax.jit(jax.vmap(loss, in_axes=(0, None, None)))
    pictures, met = np.arange(9), np.zeros(8, bool)  # the ninth is out of range: nothing changes
    for seed in range(3):
      values = np.asarray(many(pictures, state.params['noise'], jax.random.key(seed)))
      met |= np.abs(values[:8] - values[8]) > 1e-7
    self.assertTrue(met.all(), met)


if __name__ == '__main__':
  absltest.main()
