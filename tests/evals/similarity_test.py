"""Similarities of pairs by hand, their summary and figure, and the planted noise caught."""

import math
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from unlearn_jax.evals import similarity


def pairs(n, noise, seed=0):
  rng = np.random.default_rng(seed)
  image = rng.normal(size=(n, 16))
  return image, image + noise * rng.normal(size=(n, 16))


class DistributionsTest(parameterized.TestCase):

  def test_by_hand(self):
    image = np.array([[2, 0], [0, 3], [1, 0.0]])
    text = np.array([[1, 0], [0.6, 0.8], [0, 5]])
    found = similarity.distributions(image, text, top=0.5)  # one of two negatives
    np.testing.assert_allclose(found.positive, [1, 0.8, 0], atol=1e-6)
    np.testing.assert_allclose(found.negative, [0.3, 0.5, 0.8], atol=1e-6)
    np.testing.assert_allclose(found.top_negative, [0.6, 1, 1], atol=1e-6)
    summary = similarity.summary(found)
    want = {'positive': 0.6, 'negative': 1.6 / 3, 'top_negative': 2.6 / 3, 'gap': -0.8 / 3,
            'positive_std': np.std([1, 0.8, 0])}
    self.assertCountEqual(summary, [f'similarity/{name}' for name in want])
    for name, value in want.items():
      self.assertAlmostEqual(summary[f'similarity/{name}'], value, places=5)

  @parameterized.parameters(1, 150, 10**9)
  def test_is_the_naive_computation_whatever_the_blocks(self, block):
    image, text = pairs(61, 1.0)
    with mock.patch.object(similarity, '_BLOCK', block):
      found = similarity.distributions(image, text)
    for i in range(61):
      cosine = text @ image[i] / np.linalg.norm(text, axis=1) / np.linalg.norm(image[i])
      others = np.sort(np.delete(cosine, i))
      self.assertAlmostEqual(found.positive[i], cosine[i], places=5)
      self.assertAlmostEqual(found.negative[i], others.mean(), places=5)
      self.assertAlmostEqual(found.top_negative[i], others[-3:].mean(), places=5)  # 5 % of 60

  def test_all_negatives(self):
    found = similarity.distributions(*pairs(10, 1.0), top=1.0)
    np.testing.assert_allclose(found.top_negative, found.negative, atol=1e-6)

  def test_a_better_model_has_a_wider_gap(self):
    gaps = [similarity.summary(similarity.distributions(*pairs(200, noise)))['similarity/gap']
            for noise in (0.3, 1.0, 3.0)]
    self.assertEqual(gaps, sorted(gaps, reverse=True))

  def test_what_is_refused(self):
    image, text = pairs(5, 1.0)
    for arguments, top, message in (
        ((image, text[:4]), 0.05, 'two equal tables'), ((image[:1], text[:1]), 0.05, 'two rows'),
        ((image * np.nan, text), 0.05, 'image: not finite'), ((image, text), 0.0, 'share'),
        ((image, text), 1.5, 'share')):
      with self.assertRaisesRegex(ValueError, message):
        similarity.distributions(*arguments, top=top)


class DensitiesTest(absltest.TestCase):

  def test_a_panel_per_model(self):
    models = {name: similarity.distributions(*pairs(40, noise, seed=1))
              for name, noise in (('CLIP', 1.5), ('NCU', 0.5))}
    svg = similarity.densities(models)
    self.assertStartsWith(svg, '<svg')
    self.assertEqual(svg, similarity.densities(models))  # the same file for the same numbers
    other = similarity.densities({**models, 'NCU': models['CLIP']})
    self.assertNotEqual(svg, other)

  def test_a_collapsed_model_can_be_drawn(self):
    same = np.ones((6, 3))
    self.assertStartsWith(similarity.densities({'same': similarity.distributions(same, same)}),
                          '<svg')

  def test_no_model(self):
    with self.assertRaisesRegex(ValueError, 'no model'):
      similarity.densities({})


class SelectionTest(parameterized.TestCase):

  def test_by_hand(self):
    noisy = np.array([True, False, True, False, False, True, False, False])
    found = similarity.selection([2, 3, 5], noisy)
    self.assertEqual(found, (2 / 3, 2 / 3, 3 / 8))

  def test_random_selections_reach_chance(self):
    rng = np.random.default_rng(0)
    noisy = rng.random(20_000) < 0.3
    found = similarity.selection(rng.permutation(20_000)[:5000], noisy)
    self.assertAlmostEqual(found.precision, found.chance, delta=0.03)
    self.assertAlmostEqual(found.recall, 0.25, delta=0.02)

  def test_what_has_no_value_is_nan(self):
    empty = similarity.selection([], np.array([True, False]))
    self.assertTrue(math.isnan(empty.precision))
    self.assertEqual(empty.recall, 0.0)
    clean = similarity.selection([0], np.array([False, False]))
    self.assertEqual(clean.precision, 0.0)
    self.assertTrue(math.isnan(clean.recall))

  def test_what_is_refused(self):
    noisy = np.array([True, False])
    for selected, planted, message in (
        ([0, 2], noisy, 'id 2 is none of the 2'), ([-1], noisy, 'id -1'),
        ([0, 0], noisy, 'selected twice'), ([0.0], noisy, 'integer ids'),
        ([0], noisy.astype(int), 'bool'), ([], noisy[:0], 'bool')):
      with self.assertRaisesRegex(ValueError, message):
        similarity.selection(selected, planted)


if __name__ == '__main__':
  absltest.main()
