"""Tests of cross entropy and accuracy."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax.losses import classification

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(5, 3)).astype(np.float32)
CLASSES = np.array([0, 2, 1, 1, 0])
ATTRIBUTES = np.array([[0, 1, 1], [1, 0, 0], [1, 1, 1], [0, 0, 0], [0, 1, 0]], np.float32)
TARGETS = (('classes', CLASSES), ('attributes', ATTRIBUTES))


class ExampleLossTest(parameterized.TestCase):

  def test_closed_forms(self):
    logits = jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.25, 0.5, 0.25]]))
    np.testing.assert_allclose(
        classification.example_loss(logits, jnp.array([0, 2])), -np.log([0.7, 0.25]), rtol=1e-6)
    odds = jnp.log(jnp.array([[0.8 / 0.2, 0.5 / 0.5]]))  # logits of the probabilities 0.8 and 0.5
    np.testing.assert_allclose(
        classification.example_loss(odds, jnp.array([[0.0, 1.0]])),
        [-(np.log(0.2) + np.log(0.5)) / 2], rtol=1e-6)

  @parameterized.named_parameters(*TARGETS)
  def test_saturated_logits(self, labels):
    for scale in (1e4, 1e30):
      loss = lambda z: jnp.sum(classification.example_loss(z, labels))
      value, gradient = jax.value_and_grad(loss)(LOGITS * scale)
      self.assertTrue(np.isfinite(value))
      self.assertTrue(np.isfinite(gradient).all())
      self.assertLessEqual(np.abs(gradient).max(), 1.0)

  @parameterized.named_parameters(*TARGETS)
  def test_vmap_is_a_loop(self, labels):
    stack = np.stack([LOGITS, LOGITS * 2, -LOGITS])
    got = jax.vmap(classification.example_loss, in_axes=(0, None))(stack, labels)
    want = [classification.example_loss(logits, labels) for logits in stack]
    np.testing.assert_allclose(got, want, rtol=1e-6)

  def test_unsigned_labels_and_half_precision(self):
    loss = classification.example_loss(LOGITS.astype(jnp.bfloat16), CLASSES.astype(np.uint8))
    self.assertEqual(loss.dtype, 'float32')
    np.testing.assert_allclose(loss, classification.example_loss(LOGITS, CLASSES), atol=0.05)

  @parameterized.parameters(
      (np.zeros((4, 3)), np.zeros(5, int)), (np.zeros((4, 3)), np.zeros(4)),
      (np.zeros((4, 3)), np.zeros((4, 2))), (np.zeros((4, 3)), np.zeros((4, 3, 1))),
      (np.zeros((4, 3)), np.zeros(4, bool)))
  def test_refuses(self, logits, labels):
    for loss in (classification.example_loss, classification.accuracy,
                 classification.cross_entropy):
      with self.assertRaisesRegex(AssertionError, 'Chex'):
        loss(logits, labels)


class CrossEntropyTest(parameterized.TestCase):

  @parameterized.named_parameters(*TARGETS)
  def test_masked_is_sliced(self, labels):
    where = np.array([1, 0, 1, 1, 0], np.float32)
    for mask in (where, where.astype(bool), where.astype(np.int32)):
      got = classification.cross_entropy(LOGITS, labels, where=mask)
      want = classification.cross_entropy(LOGITS[where > 0], labels[where > 0])
      np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(
        want, np.mean(classification.example_loss(LOGITS, labels)[where > 0]), rtol=1e-6)

  def test_padding_may_hold_anything(self):
    logits = np.concatenate([LOGITS, np.full((2, 3), np.nan, np.float32)])
    labels = np.concatenate([CLASSES, [99, -7]])
    where = np.array([1, 1, 1, 1, 1, 0, 0], np.float32)
    loss = lambda z: classification.cross_entropy(z, labels, where=where)
    value, gradient = jax.value_and_grad(loss)(logits)
    np.testing.assert_allclose(value, classification.cross_entropy(LOGITS, CLASSES), rtol=1e-6)
    np.testing.assert_array_equal(gradient[5:], 0.0)
    self.assertTrue(np.isfinite(gradient).all())

  @parameterized.named_parameters(*TARGETS)
  def test_empty_mask(self, labels):
    loss = lambda z: classification.cross_entropy(z, labels, where=np.zeros(5, np.float32))
    value, gradient = jax.value_and_grad(loss)(LOGITS)
    self.assertEqual(value, 0.0)
    np.testing.assert_array_equal(gradient, 0.0)

  def test_weights(self):
    where = np.array([2.0, 0.5, 0.0, 0.0, 0.0], np.float32)
    losses = classification.example_loss(LOGITS, CLASSES)
    np.testing.assert_allclose(
        classification.cross_entropy(LOGITS, CLASSES, where=where),
        (2.0 * losses[0] + 0.5 * losses[1]) / 2.5, rtol=1e-6)

  def test_refuses_a_mask_of_another_batch(self):
    for where in (np.ones(4), np.ones((5, 1))):
      with self.assertRaisesRegex(AssertionError, 'Chex'):
        classification.cross_entropy(LOGITS, CLASSES, where=where)


class AccuracyTest(parameterized.TestCase):

  def test_classes(self):
    logits = jnp.array([[3.0, 1.0, 2.0], [0.0, 1.0, 2.0], [2.0, 1.0, 0.0]])
    np.testing.assert_array_equal(classification.accuracy(logits, jnp.array([0, 1, 2])), [1, 0, 0])

  def test_attributes(self):
    logits = jnp.array([[3.0, -1.0], [0.0, 0.0]])  # a sigmoid of exactly one half counts as 1
    labels = jnp.array([[1.0, 1.0], [1.0, 0.0]])
    np.testing.assert_array_equal(classification.accuracy(logits, labels), [0.5, 0.5])

  @parameterized.parameters((1, [1, 0, 0]), (2, [1, 1, 0]), (3, [1, 1, 1]))
  def test_top_k(self, k, want):
    logits = jnp.array([[3.0, 1.0, 2.0], [0.0, 1.0, 2.0], [2.0, 1.0, 0.0]])
    got = classification.top_k_accuracy(logits, jnp.array([0, 1, 2]), k=k)
    np.testing.assert_array_equal(got, want)

  def test_top_1_is_accuracy(self):
    np.testing.assert_array_equal(classification.top_k_accuracy(LOGITS, CLASSES, k=1),
                                  classification.accuracy(LOGITS, CLASSES))

  @parameterized.parameters(0, 4)
  def test_top_k_refuses(self, k):
    with self.assertRaisesRegex(ValueError, r'k is in \[1, 3\]'):
      classification.top_k_accuracy(LOGITS, CLASSES, k=k)
    with self.assertRaises(AssertionError):
      classification.top_k_accuracy(LOGITS, ATTRIBUTES, k=1)


if __name__ == '__main__':
  absltest.main()
