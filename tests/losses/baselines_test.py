"""Tests of the baselines' losses.

Golden numbers: outputs of the official functions (SCRUB's distiller_zoo/KD.py and its step losses),
run on CPU in float32 on the inputs that `waves` generates; NegGrad+ from its formula. Reference
implementations are in NumPy and float64.
"""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax.losses import baselines
from unlearn_jax.losses import classification


def waves(n, d, phase, scale):
  """The generator of the golden inputs: c sin(phase + 0.7 i + 1.3 k + 0.11 i k)."""
  i, k = np.arange(n)[:, None], np.arange(d)[None, :]
  return (scale * np.sin(phase + 0.7 * i + 1.3 * k + 0.11 * i * k)).astype(np.float32)


OUT, FULL, LABELS = waves(4, 3, 1, 2), waves(4, 3, 2, 2), np.array([0, 2, 1, 1])
WHERE = np.array([1, 0, 1, 0], np.float32)


class GoldenTest(parameterized.TestCase):

  @parameterized.parameters((1.0, 0.54841065), (4.0, 0.74921364))
  def test_distillation(self, temperature, want):
    got = baselines.distillation_kl(OUT, FULL, temperature=temperature)
    np.testing.assert_allclose(got, want, atol=1e-6)

  def test_scrub(self):
    np.testing.assert_allclose(classification.cross_entropy(OUT, LABELS), 2.62082314, atol=1e-6)
    got = baselines.scrub_min(OUT, FULL, LABELS, gamma=0.99, alpha=0.001, temperature=4.0)
    np.testing.assert_allclose(got, 2.59536409, atol=1e-6)
    got = baselines.scrub_max(OUT, FULL, temperature=4.0)
    np.testing.assert_allclose(got, -0.74921364, atol=1e-6)

  def test_neg_grad_plus(self):
    got = baselines.neg_grad_plus(OUT, LABELS, FULL, LABELS, alpha=0.95)
    np.testing.assert_allclose(got, 2.38796473, atol=1e-6)


class DistillationTest(parameterized.TestCase):

  @parameterized.parameters(False, True)
  def test_agreement_is_the_minimum(self, multi_label):
    loss = lambda s: baselines.distillation_kl(s, FULL, temperature=3.0, multi_label=multi_label)
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(FULL))
    np.testing.assert_allclose(value, 0.0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)
    self.assertGreater(loss(OUT), 0.1)

  def test_bernoullis(self):
    sigmoid = lambda z: 1 / (1 + np.exp(-z.astype(np.float64) / 2.0))
    p, q = sigmoid(FULL), sigmoid(OUT)
    want = 4.0 * np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    got = baselines.distillation_kl(OUT, FULL, temperature=2.0, multi_label=True)
    np.testing.assert_allclose(got, want, rtol=1e-5)

  @parameterized.product(multi_label=(False, True), masked=(False, True))
  def test_two_sigmoids_are_a_softmax_over_two(self, multi_label, masked):
    # A Bernoulli with logit z is a softmax over (z, 0): the two forms must agree there.
    where = WHERE if masked else None
    s, t = OUT[:, :1], FULL[:, :1]
    if not multi_label:
      s, t = np.concatenate([s, 0 * s], 1), np.concatenate([t, 0 * t], 1)
    got = baselines.distillation_kl(s, t, temperature=1.5, where=where, multi_label=multi_label)
    rows = slice(None) if where is None else where > 0
    p, q = (1 / (1 + np.exp(-z[rows, 0].astype(np.float64) / 1.5)) for z in (FULL, OUT))
    want = 1.5**2 * np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    np.testing.assert_allclose(got, want, rtol=1e-5)

  def test_the_teacher_gets_no_gradient(self):
    loss = lambda s, t: baselines.distillation_kl(s, t, temperature=4.0)
    student, teacher = jax.grad(loss, argnums=(0, 1))(OUT, FULL)
    np.testing.assert_array_equal(teacher, 0.0)
    # d/ds of T^2 KL is T (softmax(s / T) - softmax(t / T)), over the batch.
    want = 4.0 * (jax.nn.softmax(OUT / 4.0) - jax.nn.softmax(FULL / 4.0)) / 4
    np.testing.assert_allclose(student, want, atol=1e-6)

  @parameterized.parameters(False, True)
  def test_saturated_and_impossible(self, multi_label):
    loss = lambda s, t: baselines.distillation_kl(
        s, t, temperature=1.0, multi_label=multi_label)
    for student, teacher in ((OUT * 1e4, FULL * 1e4), (OUT, FULL * 1e30)):
      value, gradient = jax.value_and_grad(loss)(student, teacher)
      self.assertTrue(np.isfinite(value))
      self.assertTrue(np.isfinite(gradient).all())

  def test_a_class_that_the_teacher_rules_out(self):
    teacher = FULL.copy()
    teacher[:, 0] = -np.inf
    loss = lambda s: baselines.distillation_kl(s, teacher, temperature=2.0)
    value, gradient = jax.value_and_grad(loss)(OUT)
    self.assertTrue(np.isfinite(value))
    self.assertTrue(np.isfinite(gradient).all())
    self.assertGreater(value, 0.0)

  def test_refuses(self):
    for student, teacher, where in ((OUT, FULL[:3], None), (OUT, FULL[:, :2], None),
                                    (OUT, FULL, np.ones(3)), (OUT, FULL, np.ones((4, 1)))):
      with self.assertRaisesRegex(AssertionError, 'Chex'):
        baselines.distillation_kl(student, teacher, temperature=1.0, where=where)


class MaskTest(parameterized.TestCase):

  def losses(self, out, full, labels, where):
    keep = {'where': where}
    return {
        'distillation': baselines.distillation_kl(out, full, temperature=4.0, **keep),
        'attributes': baselines.distillation_kl(out, full, temperature=4.0, multi_label=True,
                                                **keep),
        'neg_grad': baselines.neg_grad(out, labels, **keep),
        'plus': baselines.neg_grad_plus(out, labels, full, labels, alpha=0.7, retain_where=where,
                                        forget_where=where),
        'min': baselines.scrub_min(out, full, labels, gamma=1.0, alpha=0.5, temperature=2.0,
                                   **keep),
        'max': baselines.scrub_max(out, full, temperature=2.0, **keep),
    }

  def test_masked_is_sliced(self):
    rows = WHERE > 0
    got = self.losses(OUT, FULL, LABELS, WHERE)
    want = self.losses(OUT[rows], FULL[rows], LABELS[rows], None)
    for name in want:
      np.testing.assert_allclose(got[name], want[name], rtol=1e-6, err_msg=name)

  def test_padding_may_hold_anything_and_an_empty_mask_is_zero(self):
    broken = np.where(WHERE[:, None] > 0, OUT, np.nan).astype(np.float32)
    for where, source in ((WHERE, broken), (np.zeros(4, np.float32), np.full_like(OUT, np.nan))):
      jacobian = jax.jacrev(lambda z: self.losses(z, FULL, LABELS, where))(source)
      for name, gradient in jacobian.items():
        self.assertTrue(np.isfinite(gradient).all(), name)
        np.testing.assert_array_equal(gradient[where == 0], 0.0, err_msg=name)
    for name, value in self.losses(source, source, LABELS, where).items():
      self.assertEqual(value, 0.0, name)

  def test_neg_grad_plus_takes_two_batch_sizes(self):
    got = baselines.neg_grad_plus(OUT, LABELS, FULL[:3], LABELS[:3], alpha=0.25)
    want = (0.25 * classification.cross_entropy(OUT, LABELS)
            - 0.75 * classification.cross_entropy(FULL[:3], LABELS[:3]))
    np.testing.assert_allclose(got, want, rtol=1e-6)


class AttributesTest(absltest.TestCase):

  def test_scrub_and_neg_grad_use_sigmoids(self):
    labels = np.array([[0, 1, 1], [1, 0, 0], [1, 1, 1], [0, 0, 0]], np.float32)
    loss = classification.cross_entropy(OUT, labels)
    distance = baselines.distillation_kl(OUT, FULL, temperature=2.0, multi_label=True)
    np.testing.assert_allclose(baselines.neg_grad(OUT, labels), -loss, rtol=1e-6)
    np.testing.assert_allclose(
        baselines.scrub_min(OUT, FULL, labels, gamma=0.5, alpha=2.0, temperature=2.0),
        0.5 * loss + 2.0 * distance, rtol=1e-6)
    np.testing.assert_allclose(
        baselines.scrub_max(OUT, FULL, temperature=2.0, multi_label=True), -distance, rtol=1e-6)


if __name__ == '__main__':
  absltest.main()
