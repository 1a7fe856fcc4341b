"""SalUn's mask, and the random labels that it shares with `random_label`."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from tests.methods import reference
from unlearn_jax import models
from unlearn_jax.losses import classification
from unlearn_jax.methods import random_label
from unlearn_jax.methods import salun

EXAMPLE = {'image': np.zeros((1, 4, 4, 1), np.float32)}


def ranking(gradient, share):
  """The largest entries by size over all leaves, the first of equals first, in NumPy."""
  leaves, treedef = jax.tree.flatten(jax.tree.map(np.asarray, gradient))
  flat = np.abs(np.concatenate([leaf.ravel() for leaf in leaves]))
  order = sorted(range(flat.size), key=lambda i: (-flat[i], i))
  chosen = np.zeros(flat.size)
  chosen[order[:int(share * flat.size)]] = 1
  ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
  return treedef.unflatten(
      [part.reshape(leaf.shape) for part, leaf in zip(np.split(chosen, ends), leaves)])


class MaskTest(parameterized.TestCase):

  @parameterized.product(share=(0.0, 0.1, 0.33, 0.5, 0.99, 1.0), ties=(False, True))
  def test_against_numpy(self, share, ties):
    rng = np.random.default_rng(7)
    tree = {'b': {'kernel': rng.normal(size=(3, 4, 2)), 'bias': rng.normal(size=(5,))},
            'a': rng.normal(size=(7, 3)) * 10, 'c': rng.normal()}
    tree = jax.tree.map(lambda x: np.asarray(np.round(x) if ties else x, np.float32), tree)
    mask = jax.jit(salun.saliency_mask, static_argnums=1)(tree, share)
    jax.tree.map(np.testing.assert_array_equal, mask, ranking(tree, share))
    self.assertEqual(sum(np.sum(leaf) for leaf in jax.tree.leaves(mask)), int(share * 51))

  def test_by_hand(self):
    """Size decides, not sign; of the three twos the first one is taken."""
    tree = {'a': jnp.array([0.0, 2.0, -3.0]), 'b': jnp.array([[2.0, -2.0], [5.0, 1.0]])}
    mask = salun.saliency_mask(tree, 3 / 7 + 1e-6)
    np.testing.assert_array_equal(mask['a'], [0, 1, 1])
    np.testing.assert_array_equal(mask['b'], [[0, 0], [1, 0]])

  @parameterized.parameters(('sgd', 0.3), ('adam', 0.5))
  def test_the_others_stay_bitwise(self, optimizer, share):
    """Three epochs with weight decay and momentum; the mask is that of the summed gradient."""
    model = models.get('cnn', num_outputs=4, width=3, blocks=1)
    variables = reference.values(model, EXAMPLE)
    result, fed = reference.run_loop(
        'salun', model, variables, records=reference.pictures, retain_steps=2, forget_steps=2,
        epochs=3, share=share, learning_rate=0.05, weight_decay=0.1, optimizer=optimizer)
    self.assertLen(fed, 2 + 3 * 4)

    @jax.jit
    @jax.grad
    def slope(params, fields):  # eval mode, true labels
      logits = model.apply({**variables, 'params': params}, fields, train=False)[0]['logits']
      return classification.cross_entropy(logits[:5], fields['label'][:5])

    gradients = [slope(variables['params'], reference.pictures('forget', step))
                 for step in fed[:2]]
    mask = ranking(jax.tree.map(np.add, *gradients), share)

    def check(new, old, mask):
      np.testing.assert_array_equal(np.asarray(new)[mask == 0], np.asarray(old)[mask == 0])
      self.assertTrue((np.asarray(new)[mask == 1] != np.asarray(old)[mask == 1]).all())

    jax.tree.map(check, result.variables['params'], variables['params'], mask)
    # Sums of sizes instead of the size of the sum would have been another mask.
    sizes = ranking(jax.tree.map(lambda *g: sum(np.abs(a) for a in g), *gradients), share)
    self.assertTrue(any((a != b).any() for a, b in zip(
        jax.tree.leaves(mask), jax.tree.leaves(sizes))))


class RandomLabelTest(parameterized.TestCase):

  def test_uniform_over_all_classes(self):
    """The true class too: every (class, row) comes up in 1 / C of 4000 draws."""
    logits, labels = jnp.zeros((3, 5)), jnp.array([0, 4, 2], jnp.int32)
    drawn = jax.vmap(lambda key: random_label.draw_labels(key, logits, labels))(
        jax.random.split(jax.random.key(0), 4000))
    self.assertEqual((drawn.shape, drawn.dtype), ((4000, 3), labels.dtype))
    shares = np.stack([np.mean(np.asarray(drawn) == c, axis=0) for c in range(5)])
    np.testing.assert_allclose(shares, 0.2, atol=4 * np.sqrt(0.2 * 0.8 / 4000))
    np.testing.assert_allclose(shares.sum(axis=0), 1.0, rtol=1e-6)  # and no other class
    both = np.mean(drawn[:, 0] == drawn[:, 1])  # rows are independent
    self.assertAlmostEqual(both, 0.2, delta=4 * np.sqrt(0.2 * 0.8 / 4000))

  def test_attributes_one_by_one(self):
    labels = jnp.array([[0.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    drawn = jax.vmap(lambda key: random_label.draw_labels(key, labels, labels))(
        jax.random.split(jax.random.key(1), 2000))
    self.assertEqual((drawn.shape, drawn.dtype), ((2000, 2, 3), labels.dtype))
    self.assertEqual(set(np.unique(drawn)), {0.0, 1.0})
    np.testing.assert_allclose(drawn.mean(axis=0), 0.5, atol=4 * np.sqrt(0.25 / 2000))

  def test_labels_change_from_step_to_step(self):
    """The same batch again: other labels."""
    from_methods = random_label.random_label(
        reference.network(), retain_steps=1, forget_steps=1, epochs=1, learning_rate=0.0)
    variables = {'params': {'w': jnp.asarray(reference.START, jnp.float32)}}
    state, frozen = from_methods.init(jax.random.key(0), variables)
    step, losses = jax.jit(from_methods.phases[0].step), set()
    for _ in range(20):
      state, metrics = step(state, frozen, {'forget': reference.batch('forget', 0)})
      losses.add(round(float(metrics['loss']), 4))
    # Eight ways to label three records, each with a loss of its own.
    self.assertBetween(len(losses), 4, 8)


if __name__ == '__main__':
  absltest.main()
