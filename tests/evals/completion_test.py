"""Completed pictures: distances over holes, picking the own picture out, tables for their holes."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax.evals import completion
from unlearn_jax.evals import views
from unlearn_jax.losses import classification

RNG = np.random.default_rng(0)
IMAGES = RNG.random((6, 8, 8, 3)).astype(np.float32)
VISIBLE = np.stack([RNG.permutation(16)[:10] for _ in range(6)]).astype(np.int32)


def apply(variables, inputs, *, train=False, rngs=None, method=None):
  """Paints the truth with an error of `variables` everywhere."""
  del train, rngs, method
  return {'image': inputs['image'] + variables}, variables


class RemovedTest(absltest.TestCase):

  def test_is_what_is_not_visible(self):
    found = np.asarray(completion.removed(VISIBLE, IMAGES.shape, 2))
    self.assertEqual(found.shape, (6, 8, 8, 1))
    for row in range(6):
      for patch in range(16):
        y, x = 2 * (patch // 4), 2 * (patch % 4)
        expected = 0.0 if patch in VISIBLE[row] else 1.0
        np.testing.assert_array_equal(found[row, y:y + 2, x:x + 2], expected)


class DistanceTest(absltest.TestCase):

  def test_counts_the_hole_alone(self):
    hole = np.asarray(completion.removed(VISIBLE, IMAGES.shape, 2)[..., 0]) > 0
    other = np.where(hole[..., None], IMAGES + 0.5, IMAGES + 7.0)
    np.testing.assert_allclose(completion.distance(other, IMAGES, hole), 0.25, rtol=1e-6)
    naive = [np.mean((other[i] - IMAGES[i])[hole[i]]**2) for i in range(6)]
    np.testing.assert_allclose(completion.distance(other, IMAGES, hole), naive, rtol=1e-6)

  def test_refuses(self):
    hole = np.ones((6, 8, 8), bool)
    with self.assertRaisesRegex(ValueError, 'pictures'):
      completion.distance(IMAGES[:5], IMAGES, hole)
    hole[2] = False
    with self.assertRaisesRegex(ValueError, 'nothing was taken away'):
      completion.distance(IMAGES, IMAGES, hole)


class MatchingTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.others = RNG.random((5, 8, 8, 3)).astype(np.float32)
    self.matched = completion.matching(apply, self.others, 2)
    self.inputs = {'image': jnp.asarray(IMAGES), 'visible': jnp.asarray(VISIBLE)}

  def test_logits_against_a_loop(self):
    logits = self.matched(0.1, self.inputs)[0]['logits']
    done = np.clip(IMAGES + np.float32(0.1), 0, 1)
    hole = np.asarray(completion.removed(VISIBLE, IMAGES.shape, 2)[..., 0]) > 0
    for row in range(6):
      for column, picture in enumerate((IMAGES[row], *self.others)):
        error = np.mean((done[row] - picture)[hole[row]]**2)
        np.testing.assert_allclose(logits[row, column], -error / 0.02, rtol=1e-4)

  def test_the_truth_is_recognised_and_compiled_alike(self):
    logits = self.matched(0.0, self.inputs)[0]['logits']
    np.testing.assert_allclose(logits[:, 0], 0.0, atol=1e-6)
    self.assertTrue((np.argmax(logits, axis=1) == 0).all())
    loss = classification.example_loss(logits, jnp.zeros(6, jnp.int32))
    self.assertLess(float(loss.max()), 0.01)
    compiled = jax.jit(lambda v, x: self.matched(v, x)[0]['logits'])(0.0, self.inputs)
    np.testing.assert_allclose(compiled, logits, atol=1e-5)


class NamesTest(absltest.TestCase):

  def test_measures_are_read_off_their_names(self):
    names = ('fid[classifier:12ab]/retain', 'fid[classifier:12ab]/forget', 'CLIP/retain',
             'CLIP/forget', 'cross_FID/forget', 'fid[x]/retain@centre:2', 'goal', 'unheard_of')
    metrics = dict.fromkeys(names, {'mean': 0.0})
    results = {'methods': {'original': {'metrics': metrics}}}
    self.assertEqual(views.completed(results), names[:4])
    self.assertEqual(views.completed(results, 'centre:2'), (names[5],))
    self.assertEqual(views.completed(results, crossed=True), (names[4],))
    shown = [views.metric(name) for name in names]
    self.assertEqual(shown[0], views.Metric('FID[classifier:12ab] R', 'lower'))
    self.assertEqual(shown[1].ideal, 'higher in the paper')
    self.assertEqual(shown[3], views.Metric('CLIP F', 'lower in the paper'))
    self.assertEqual(shown[4].label, 'SECOND FID F')
    self.assertEqual(shown[5].label, 'FID[x] R, centre:2')
    self.assertEqual(shown[7], views.Metric('unheard_of', ''))


class FiguresTest(absltest.TestCase):

  def test_input_shows_the_hole_in_grey(self):
    hole = np.zeros((6, 8, 8), bool)
    hole[:, :2] = True
    shown = completion.masked(IMAGES, hole)
    np.testing.assert_array_equal(shown[:, :2], 0.5)
    np.testing.assert_array_equal(shown[:, 2:], IMAGES[:, 2:])

  def test_draws(self):
    svg = completion.grid({'input': IMAGES[:3], 'truth': (255 * IMAGES[:3]).astype(np.uint8)})
    self.assertEqual(svg.count('<image'), 6)
    rows = {name: {'fid[x]/retain': 1.0, 'fid[x]/forget': 2.0, 'fid[x]/retain@right:0.5': 3.0,
                   'fid[x]/forget@right:0.5': 4.0} for name in ('original', 'i2i')}
    drawn = completion.curves(rows, {'': 0.25, 'right:0.5': 0.5}, 'fid[x]', 'FID', main='centre:4')
    for word in ('i2i', 'centre', 'right', 'forget classes'):
      self.assertIn(word, drawn)


if __name__ == '__main__':
  absltest.main()
