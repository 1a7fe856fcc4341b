"""Tightness, placement and t-SNE pictures of embeddings: closed forms, symmetries, bad input."""

import math
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from unlearn_jax.evals import embeddings as lib

SQUARE = np.array([[0.0, 1], [0, -1], [4, 1], [4, -1]])  # two classes, 1 from their centres
PAIRS = np.array([0, 0, 1, 1])


def blobs(n, spread, seed=0, classes=4, d=6):
  rng = np.random.default_rng(seed)
  label = np.arange(n) % classes
  means = 5 * np.random.default_rng(7).normal(size=(classes, d))
  return means[label] + spread * rng.normal(size=(n, d)), label


def rotation(d, seed=0):
  return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]


class TightnessTest(parameterized.TestCase):

  def test_by_hand(self):
    found = lib.tightness(SQUARE, PAIRS)
    self.assertAlmostEqual(found['tightness'], 1 / 4)
    other = (4 + math.sqrt(20)) / 2  # mean distance to the two records of the other class
    self.assertAlmostEqual(found['silhouette'], (other - 2) / other)

  def test_classes_of_different_sizes(self):
    values = np.array([[0.0], [2], [4], [12], [22]])
    found = lib.tightness(values, np.array([5, 5, 5, 7, 9]))
    # Centres at 2, 12 and 22; the distances to them are 2, 0, 2, 0 and 0.
    self.assertAlmostEqual(found['tightness'], (4 / 5) / (40 / 3))

  def test_symmetries(self):
    values, label = blobs(80, 2.0)
    want = lib.tightness(values, label)
    order = np.random.default_rng(1).permutation(80)
    for changed, names in ((7 * values @ rotation(6) - 3, label), (values, 9 - 2 * label),
                           (values[order], label[order])):
      found = lib.tightness(changed, names)
      for name, value in want.items():
        self.assertAlmostEqual(found[name], value, places=6)

  def test_tighter_blobs_are_tighter(self):
    found = [lib.tightness(*blobs(80, spread)) for spread in (0.5, 1.0, 2.0, 4.0)]
    self.assertEqual(found, sorted(found, key=lambda each: each['tightness']))
    self.assertEqual(found, sorted(found, key=lambda each: -each['silhouette']))

  def test_large_sets_are_drawn_from(self):
    values, label = blobs(120, 2.0)
    whole = lib.tightness(values, label)
    with mock.patch.object(lib, 'SILHOUETTE_RECORDS', 60):
      found = lib.tightness(values, label)
      self.assertEqual(lib.tightness(values, label), found)
      self.assertNotEqual(lib.tightness(values, label, seed=1), found)
    self.assertEqual(found['tightness'], whole['tightness'])
    self.assertAlmostEqual(found['silhouette'], whole['silhouette'], delta=0.1)

  def test_a_collapsed_model(self):
    found = lib.tightness(np.ones((6, 3)), np.arange(6) % 2)
    self.assertTrue(math.isnan(found['tightness']))
    self.assertEqual(found['silhouette'], 0.0)

  @parameterized.parameters(
      (np.ones((3, 2)), [0, 0, 0], 'two classes'), (np.eye(3), [0, 1, 2], 'two records'),
      (np.ones((3, 2)) * np.nan, [0, 0, 1], 'embeddings: not finite'),
      (np.ones(3), [0, 0, 1], r'must be \[N, d\]'), (np.ones((0, 2)), [], r'must be \[N, d\]'),
      (np.ones((3, 2)), [0, 1], '3 integers'), (np.ones((3, 2)), [0.0, 0.0, 1.0], '3 integers'))
  def test_bad_input(self, values, labels, message):
    with self.assertRaisesRegex(ValueError, message):
      lib.tightness(values, np.asarray(labels))


class CentresTest(absltest.TestCase):

  def test_by_hand(self):
    np.testing.assert_array_equal(lib.centres(SQUARE, PAIRS + 1, 4),
                                  [[np.nan] * 2, [0, 0], [4, 0], [np.nan] * 2])

  def test_labels_out_of_range(self):
    for labels in (PAIRS - 1, PAIRS + 1):
      with self.assertRaisesRegex(ValueError, r'lie in \[0, 2\)'):
        lib.centres(SQUARE, labels, 2)


class PlacementTest(parameterized.TestCase):

  def test_by_hand(self):
    middle = np.array([[2.0, 0], [0, 3], [-1, 0]])
    label = np.array([0, 0, 1])
    before = lib.placement(np.array([[1.0, 0], [5, 0], [0, 1]]), label, middle)
    self.assertEqual((before['cosine'], before['elsewhere']), (1.0, 0.0))
    np.testing.assert_array_equal(before['destinations'], np.diag([2, 1, 0]))
    after = lib.placement(np.array([[0.6, 0.8], [-3, 0], [0.8, 0.6]]), label, middle)
    self.assertAlmostEqual(after['cosine'], (0.6 - 1 + 0.6) / 3)
    self.assertEqual(after['elsewhere'], 1.0)
    np.testing.assert_array_equal(after['destinations'], [[0, 1, 1], [1, 0, 0], [0, 0, 0]])

  def test_is_the_naive_computation(self):
    values, label = blobs(40, 6.0)
    middle = lib.centres(*blobs(60, 1.0, seed=3), 4)
    found = lib.placement(values, label, middle)
    destinations = np.zeros((4, 4), int)
    own = []
    for value, k in zip(values, label):
      cosine = [value @ m / np.linalg.norm(value) / np.linalg.norm(m) for m in middle]
      own.append(cosine[k])
      destinations[k, int(np.argmax(cosine))] += 1
    self.assertAlmostEqual(found['cosine'], np.mean(own))
    np.testing.assert_array_equal(found['destinations'], destinations)
    self.assertAlmostEqual(found['elsewhere'], 1 - np.trace(destinations) / 40)
    self.assertBetween(found['elsewhere'], 0.05, 0.95)

  def test_symmetries(self):
    values, label = blobs(60, 6.0)
    middle = lib.centres(values, label, 4)
    want = lib.placement(values, label, middle)
    turn = np.pad(5 * rotation(6), ((0, 0), (0, 3)))  # turned, scaled and in more dimensions
    names = np.array([2, 0, 3, 1])
    found = lib.placement(values @ turn, names[label], (middle @ turn)[np.argsort(names)])
    np.testing.assert_array_equal(found['destinations'][np.ix_(names, names)],
                                  want['destinations'])
    for name in ('cosine', 'elsewhere'):
      self.assertAlmostEqual(found[name], want[name])

  def test_what_has_no_direction_lies_closest_to_nothing(self):
    middle = np.array([[0.0, 1], [1, 0], [0, 0]])
    values = np.array([[0.0, 0], [0, 2], [1, 0], [-1, -1]])
    found = lib.placement(values, np.array([0, 0, 2, 2]), middle)
    self.assertEqual((found['cosine'], found['elsewhere']), (0.25, 0.75))
    np.testing.assert_array_equal(found['destinations'], [[1, 0, 0], [0, 0, 0], [1, 1, 0]])
    dead = lib.placement(0 * values, np.array([0, 0, 2, 2]), 0 * middle)
    self.assertEqual((dead['cosine'], dead['elsewhere'], dead['destinations'].sum()), (0, 1, 0))

  def test_a_class_that_is_not_retained_is_no_destination(self):
    middle = np.array([[1.0, 0], [np.nan, np.nan], [-1, 0]])
    value = np.array([[0.1, 1]])
    found = lib.placement(value, np.array([2]), middle)
    np.testing.assert_array_equal(found['destinations'], [[0] * 3, [0] * 3, [1, 0, 0]])
    with self.assertRaisesRegex(ValueError, 'class 1 has records here and no centre'):
      lib.placement(value, np.array([1]), middle)

  @parameterized.parameters(
      (SQUARE * np.nan, PAIRS, np.eye(2), 'not finite'), (SQUARE, PAIRS[:3], np.eye(2), '4 integers'),
      (SQUARE, PAIRS, np.eye(3), r'belong to centres'), (SQUARE, PAIRS, np.ones(2), 'belong to cent'),
      (SQUARE, PAIRS + 1, np.eye(2), r'lie in \[0, 2\)'),
      (SQUARE, PAIRS - 1, np.eye(2), r'lie in \[0, 2\)'))
  def test_bad_input(self, values, label, middle, message):
    with self.assertRaisesRegex(ValueError, message):
      lib.placement(values, label, middle)


def records(svg, *titles):
  """Points of a figure: what is used again and is no letter of a title."""
  return svg.count('<use ') - len(''.join(titles))


class TsneTest(absltest.TestCase):

  def test_a_panel_per_model(self):
    models = {'original': blobs(12, 2.0), 'ccu': blobs(12, 0.2)}
    svg = lib.tsne_figure(models)
    self.assertStartsWith(svg, '<svg')
    for name in models:
      self.assertIn(f'<!-- {name} -->', svg)  # matplotlib draws letters as shapes
    self.assertEqual(svg, lib.tsne_figure(models))  # the same file for the same numbers
    self.assertEqual(records(svg, *models), 24)

  def test_at_most_so_many_records(self):
    with mock.patch.object(lib, 'TSNE_RECORDS', 9):
      svg = lib.tsne_figure({'model': blobs(30, 1.0)})
    self.assertEqual(records(svg, 'model'), 9)

  def test_neighbours_stay_neighbours(self):
    values, label = blobs(24, 0.2)
    places = lib._tsne(values)
    apart = np.linalg.norm(places[:, None] - places, axis=2)
    np.fill_diagonal(apart, np.inf)
    np.testing.assert_array_equal(label[apart.argmin(axis=1)], label)

  def test_collapsed_models_can_be_drawn(self):
    """Left to itself, scikit-learn's t-SNE of equal rows ends the process."""
    values = np.full((8, 3), 0.1)
    values[:, 1] += 1e-12 * np.arange(8)
    almost = np.where(np.arange(8)[:, None] < 7, 0.0, 1e-30) * np.ones(3)
    for same in (np.ones((8, 3)), np.zeros((8, 3)), values, almost):
      svg = lib.tsne_figure({'same': (same, np.arange(8) % 2)})
      self.assertStartsWith(svg, '<svg')
      self.assertNotIn('nan', svg)

  def test_bad_input(self):
    for models, message in (({}, 'no model'), ({'few': (SQUARE[:3], PAIRS[:3])}, 'four records'),
                            ({'nan': (SQUARE * np.nan, PAIRS)}, 'not finite'),
                            ({'names': (SQUARE, PAIRS.astype(str))}, '4 integers')):
      with self.assertRaisesRegex(ValueError, message):
        lib.tsne_figure(models)


if __name__ == '__main__':
  absltest.main()
