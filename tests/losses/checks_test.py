"""Tests of the host's value checks: what they refuse, and what they say."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from unlearn_jax import losses
from unlearn_jax.losses import checks


class AcceptTest(absltest.TestCase):

  def test_good_values_pass(self):
    for dtype in (np.float32, np.float16, np.int32, np.bool_, jnp.bfloat16):
      checks.check_finite('x', jnp.ones((2, 3), dtype))
    checks.check_finite('scalar', 3.0)
    checks.check_labels(np.array([0, 4, 2]), 5)
    checks.check_labels(np.array([0, 4, 2], np.uint8), 5)
    checks.check_labels(np.array([[0, 1], [1, 1]], np.float32), 2)
    checks.check_embeddings('features', np.eye(3), normalized=True)
    checks.check_embeddings('features', 5.0 * np.eye(3))
    checks.check_weights('mask', np.array([0.0, 0.0, 2.0]))

  def test_reachable_from_the_package(self):
    for name in ('check_finite', 'check_labels', 'check_embeddings', 'check_weights'):
      self.assertIs(getattr(losses, name), getattr(checks, name))


class RefuseTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('nan', np.array([[1.0, 2.0], [np.nan, np.inf]]),
       r'x: .*2 of 4 entries, first at \(1, 0\), \(1, 1\)'),
      ('scalar', np.float32('inf'), 'x: .*1 of 1 entries'),
      ('half', jnp.array([1.0, jnp.nan], jnp.bfloat16), 'x: .*first at 1'),
      ('text', np.array(['a', 'b']), 'x: expected numbers'))
  def test_finite(self, array, message):
    with self.assertRaisesRegex(ValueError, message):
      checks.check_finite('x', array)

  def test_long_lists_are_cut(self):
    with self.assertRaisesRegex(ValueError, r'100 of 100 entries, first at 0, 1, 2, 3, 4\. '):
      checks.check_finite('x', np.full(100, np.nan))

  @parameterized.named_parameters(
      ('above', np.array([0, 5, 9]), r'outside \[0, 5\) in 2 of 3 .*\[5, 9\].*at least 10'),
      ('below', np.array([0, -1]), r'outside \[0, 5\).*\[-1\]'),
      ('floats', np.array([0.0, 1.0]), 'classes are integers'),
      ('attributes', np.array([[0.5, 1, 0, 0, 1]]), r'0 or 1, .*first at \(0, 0\)'),
      ('nan', np.array([[np.nan, 1, 0, 0, 1]]), '0 or 1'),
      ('heads', np.array([[0, 1]]), '2 attributes for 5 outputs'),
      ('rank', np.zeros((2, 5, 1)), r'got shape \(2, 5, 1\)'))
  def test_labels(self, labels, message):
    with self.assertRaisesRegex(ValueError, message):
      checks.check_labels(labels, 5)

  def test_number_of_classes(self):
    with self.assertRaisesRegex(ValueError, 'num_classes is at least 1'):
      checks.check_labels(np.array([0]), 0)

  @parameterized.named_parameters(
      ('rank', np.ones(3), r'expected embeddings \[B, D\], got shape \(3,\)'),
      ('nan', np.array([[np.nan, 1.0]]), 'not finite'),
      ('zero', np.array([[1.0, 0.0], [0.0, 0.0]]), 'no direction: 1 of 2 entries, first at 1'),
      ('length', np.array([[1.0, 0.0], [0.0, 2.0]]), 'not of unit length in 1 of 2'))
  def test_embeddings(self, array, message):
    with self.assertRaisesRegex(ValueError, message):
      checks.check_embeddings('features', array, normalized=True)

  @parameterized.named_parameters(
      ('rank', np.ones((2, 2)), r'expected weights \[B\]'),
      ('negative', np.array([1.0, -1.0]), 'negative in 1 of 2 entries, first at 1'),
      ('empty', np.zeros(3), 'no positive weight'),
      ('nan', np.array([np.nan]), 'not finite'))
  def test_weights(self, weights, message):
    with self.assertRaisesRegex(ValueError, message):
      checks.check_weights('mask', weights)

  def test_anchors(self):
    checks.check_anchors([0, 1, 1], np.array([1, 0, 0, 2]))
    checks.check_anchors(np.zeros(0, int), [3])  # nothing to forget
    for forget, retain, message in (
        ([0, 5, 7], [0, 1], r'no retained record has class \[5, 7\] \(2 classes\)'),
        ([1, 1], [1, 1, 1], 'a single class'),
        ([0.0], [0], 'forget_labels: expected integer classes .*float64'),
        ([0], [[0, 1]], r'retain_labels: .*\(1, 2\)')):
      with self.assertRaisesRegex(ValueError, message):
        checks.check_anchors(forget, retain)

  def test_mask(self):
    checks.check_mask(np.eye(3))
    checks.check_mask([[1, 0], [1, 0]], a=[0.5, 0.5], b=[1.0, 0.0])
    checks.check_mask(np.ones((300, 301)))
    for mask, weights, message in (
        ([1, 0], {}, r'expected \[m, n\]'),
        ([[1, 1], [0, 0]], {}, 'some rows that ask for mass: 1 of 2 entries, first at 1'),
        ([[1, 0], [1, 0]], {}, 'some columns'),
        ([[1, 1, 1], [1, 0, 0], [1, 0, 0]], {}, '0.33 of the mass finds no allowed place'),
        (np.eye(2), {'a': [0.7, 0.3]}, '0.2 of the mass'),
        (np.eye(2), {'a': [0.7, 0.7]}, 'a sums to 1.4'),
        (np.eye(2), {'a': [1.0]}, '1 weights for a mask'),
        (np.eye(2), {'b': [1.5, -0.5]}, 'b: negative')):
      with self.assertRaisesRegex(ValueError, message):
        checks.check_mask(mask, **weights)


if __name__ == '__main__':
  absltest.main()
