"""Recall per side, channel swaps, relearning, traffic."""

import re

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from unlearn_jax.evals import federated


def unit(angles) -> np.ndarray:
  """Unit vectors of the plane at these degrees: float32 [N, 2]."""
  angles = np.deg2rad(np.asarray(angles, float))
  return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


class RecallTest(parameterized.TestCase):

  def test_two_pictures_of_four_captions(self):
    """By hand: picture 0 at 0 deg, picture 1 at 90; one caption of picture 1 lies nearer to 0."""
    image = unit([0, 0, 90, 90])  # a picture's embedding stands with each of its captions
    text = unit([5, 30, 80, 40])
    picture = np.asarray([7, 7, 9, 9])
    found = federated.both_ways(image, text, picture)
    self.assertEqual(found['image_to_text/R@1'], 1.0)  # 0 -> 5 deg, 90 -> 80 deg
    self.assertEqual(found['text_to_image/R@1'], 0.75)  # 40 deg goes to picture 0
    self.assertEqual(found['R@1'], 0.875)
    self.assertEqual(federated.recall_at_1(image, text, picture), 0.875)

  def test_without_pictures_every_pair_is_its_own(self):
    image, text = unit([0, 60, 120]), unit([10, 50, 125])
    self.assertEqual(federated.recall_at_1(image, text), 1.0)
    self.assertEqual(federated.recall_at_1(image, text[[1, 2, 0]]), 0.0)

  def test_ties_count_against_the_model_whatever_the_order(self):
    image, text = unit([0, 0, 90]), unit([0, 0, 90])
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
      self.assertAlmostEqual(federated.recall_at_1(image[order], text[order]), 1 / 3)

  def test_macro_counts_clients_alike(self):
    image = unit([0, 90, 0, 90, 180, 270])
    text = unit([90, 0, 0, 90, 180, 270])
    client, picture = np.asarray([0, 0, 1, 1, 1, 1]), np.arange(6)
    self.assertEqual(federated.macro(image, text, picture, client), 0.5)
    # In one gallery the doubled pairs tie.
    self.assertAlmostEqual(federated.macro(image, text, picture, 0 * client), 1 / 3)


class SwapsTest(absltest.TestCase):

  def test_a_branch_that_was_left_alone_keeps_its_swap(self):
    original = {'image': unit([0, 90, 180]), 'text': unit([5, 95, 185])}
    moved = {'image': unit([90, 180, 0]), 'text': original['text']}
    self.assertEqual(federated.swaps(moved, original), {'swap/image': 0.0, 'swap/text': 1.0})
    self.assertEqual(federated.swaps(original, original), {'swap/image': 1.0, 'swap/text': 1.0})

  def test_steps_to(self):
    self.assertEqual(federated.steps_to([0.1, 0.5, 0.4, 0.9], 0.45), 1.0)
    self.assertEqual(federated.steps_to([0.5], 0.45), 0.0)
    self.assertIsNone(federated.steps_to([0.1, 0.2], 0.45))

  def test_traffic_of_the_papers_adapters(self):
    """CLIP-B/32, rank 8, 10 clients, 20 rounds, up and down; and 8 columns of a basis once."""
    sizes = {'image': 294_912, 'text': 196_608}
    self.assertAlmostEqual(federated.traffic(20, 10, sizes), 20 * 10 * 2 * 491_520 * 4 / 1e6)
    more = federated.traffic(20, 10, sizes, basis=8 * 491_520) - federated.traffic(20, 10, sizes)
    self.assertAlmostEqual(more / 10, 15.72864)

  def test_figures(self):
    drawn = federated.heat_map({'image': np.eye(3), 'text': np.ones((3, 3))})
    self.assertIn('text branch', drawn)
    rows = {'Original': {'regrowth': [0.9, 0.9]}, 'ease': {'regrowth': [0.1, 0.2]}}
    self.assertIn('F-R@1', federated.curves(rows, {'regrowth': 'F-R@1'}))

  def test_a_row_without_a_curve_keeps_its_colour_from_the_others(self):
    curve = {'drift': np.arange(3.0)}
    strokes = lambda rows: set(re.findall('stroke: (#[0-9a-f]{6})', federated.curves(
        rows, {'drift': 'drift'})))
    second = strokes({'a': curve, 'b': curve}) - strokes({'a': curve})
    self.assertLen(second, 1)
    self.assertContainsSubset(second, strokes({'a': {}, 'b': curve}))
    self.assertNoCommonElements(second, strokes({'b': curve}))


if __name__ == '__main__':
  absltest.main()
