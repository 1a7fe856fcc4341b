"""Tests of the baselines' losses.

Golden numbers: outputs of the official functions (SCRUB's distiller_zoo/KD.py and its step losses,
Bad Teaching's unlearn.py, SSD's src/ssd.py), run on CPU in float32 on the inputs that `waves`
generates; NegGrad+ from its formula. Reference implementations are in NumPy and float64.
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
BAD, IS_FORGET = waves(4, 3, 3, 2), np.array([0, 1, 1, 0], np.float32)
# SSD's example: a linear layer, data to forget, and all data.
LINEAR = {'kernel': np.array([[1, -2, 3], [.5, 4, -1]], np.float32).T,
          'bias': np.array([.2, -.3], np.float32)}
FORGET = waves(4, 3, 0.3, 1), np.array([0, 0, 1, 0])
ALL = (np.concatenate([FORGET[0], waves(8, 3, 1.7, 1)]),
       np.concatenate([FORGET[1], [1, 1, 0, 1, 0, 0, 1, 1]]))


def linear_loss(params, batch):
  x, labels = batch
  return classification.cross_entropy(x @ params['kernel'] + params['bias'], labels)


def batches(data, size):
  x, labels = data
  return [(x[i:i + size], labels[i:i + size]) for i in range(0, len(x), size)]


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

  @parameterized.parameters(np.float32, bool, np.int32)
  def test_bad_teacher(self, dtype):
    got = baselines.bad_teacher(OUT, FULL, BAD, IS_FORGET.astype(dtype))
    np.testing.assert_allclose(got, 0.49197793, atol=1e-6)

  def test_ssd(self):
    forget = baselines.importance(linear_loss, LINEAR, batches(FORGET, 2))
    full = baselines.importance(linear_loss, LINEAR, batches(ALL, 2))
    for got, row, bias in (
        (forget, [.15994854, .34161443, .01921651], .49221247),
        (full, [.10735959, .16189463, .05473448], .26442236)):
      np.testing.assert_allclose(got['kernel'].T, [row, row], atol=1e-7)
      np.testing.assert_allclose(got['bias'], bias, atol=1e-7)
    same = baselines.dampen(LINEAR, forget, full, alpha=10.0, lam=1.0)
    jax.tree.map(np.testing.assert_array_equal, same, LINEAR)
    less = baselines.dampen(LINEAR, forget, full, alpha=1.0, lam=1.0)
    np.testing.assert_allclose(
        less['kernel'].T, [[.671213, -.947821, 3], [.335607, 1.895642, -1]], atol=1e-6)
    np.testing.assert_allclose(less['bias'], [.107442, -.161164], atol=1e-6)


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
        'bad_teacher': baselines.bad_teacher(out, full, 2 * full, labels > 0, **keep),
        'unsir': baselines.unsir_noise(out, labels, out[:, :, None], **keep),
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


class BadTeacherTest(parameterized.TestCase):

  @parameterized.product(temperature=(1.0, 2.5), multi_label=(False, True), flags=(bool, np.int32),
                         weights=(None, (1, 0, 1, 1), (0.5, 2, 0, 3)))
  def test_definition(self, temperature, multi_label, flags, weights):
    """KL(l softmax(b / T) + (1 - l) softmax(g / T) || softmax(s / T)), over B and C."""
    where = None if weights is None else np.array(weights, np.float32)
    s, g, b = (z.astype(np.float64) / temperature for z in (OUT, FULL, BAD))
    flag = IS_FORGET[:, None]
    if multi_label:
      sigmoid = lambda z: 1 / (1 + np.exp(-z))
      q, p = flag * sigmoid(b) + (1 - flag) * sigmoid(g), sigmoid(s)
      rows = np.mean(q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p)), axis=1)
    else:
      softmax = lambda z: np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
      q, p = flag * softmax(b) + (1 - flag) * softmax(g), softmax(s)
      rows = np.mean(q * np.log(q / p), axis=1)
    got = baselines.bad_teacher(OUT, FULL, BAD, IS_FORGET.astype(flags), temperature=temperature,
                                where=where, multi_label=multi_label)
    np.testing.assert_allclose(got, np.average(rows, weights=where), rtol=1e-5)

  def test_the_teachers_get_no_gradient(self):
    loss = lambda *z: baselines.bad_teacher(*z, IS_FORGET)
    student, competent, incompetent = jax.grad(loss, argnums=(0, 1, 2))(OUT, FULL, BAD)
    np.testing.assert_array_equal(competent, 0.0)
    np.testing.assert_array_equal(incompetent, 0.0)
    teacher = np.where(IS_FORGET[:, None] > 0, BAD, FULL)
    want = (jax.nn.softmax(OUT) - jax.nn.softmax(teacher)) / OUT.size
    np.testing.assert_allclose(student, want, atol=1e-7)

  def test_the_other_teacher_may_be_anything(self):
    nothing = np.full_like(OUT, np.nan)
    competent = np.where(IS_FORGET[:, None] > 0, nothing, FULL)
    incompetent = np.where(IS_FORGET[:, None] > 0, BAD, nothing)
    np.testing.assert_allclose(baselines.bad_teacher(OUT, competent, incompetent, IS_FORGET),
                               0.49197793, atol=1e-6)


class UnsirTest(parameterized.TestCase):

  @parameterized.parameters(False, True)
  def test_closed_form(self, masked):
    """-CE + w mean_i |n_i|^2, and its gradients."""
    where = np.array([1, 0, 1, 1], np.float32) if masked else None
    rows = [0, 2, 3] if masked else [0, 1, 2, 3]
    noise = waves(4, 6, 0.5, 1).reshape(4, 2, 3, 1)
    z = OUT.astype(np.float64)
    ce = np.log(np.exp(z).sum(axis=1)) - z[np.arange(4), LABELS]
    loss = lambda z, n: baselines.unsir_noise(z, LABELS, n, weight=0.3, where=where)
    want = -ce[rows].mean() + 0.3 * (noise.reshape(4, -1)[rows]**2).sum(axis=1).mean()
    np.testing.assert_allclose(loss(OUT, noise), want, rtol=1e-5)
    slope = jax.grad(loss, argnums=1)(OUT, noise)
    counts = np.isin(np.arange(4), rows)[:, None, None, None]
    np.testing.assert_allclose(slope, 2 * 0.3 * noise * counts / len(rows), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(loss)(OUT, noise),
                               -jax.grad(classification.cross_entropy)(OUT, LABELS, where=where))

  def test_weight_of_the_release(self):
    got = baselines.unsir_noise(OUT, LABELS, OUT)
    np.testing.assert_allclose(got, baselines.unsir_noise(OUT, LABELS, OUT, weight=0.1))


class SparsityTest(absltest.TestCase):

  def test_value_and_gradient(self):
    params = {'a': jnp.array([1.5, -2.0, 0.0]), 'b': {'c': jnp.array([[-0.25], [0.0]])}}
    value, slope = jax.value_and_grad(baselines.l1_norm)(params)
    self.assertEqual(value, 3.75)
    np.testing.assert_array_equal(slope['a'], [1, -1, 0])
    np.testing.assert_array_equal(slope['b']['c'], [[-1], [0]])

  def test_half_precision_is_summed_in_single(self):
    # 1 + 300 * 2^-8 is not a bfloat16.
    params = {'a': jnp.full((300,), 2.0**-8, jnp.bfloat16), 'b': jnp.ones((1,), jnp.bfloat16)}
    value = baselines.l1_norm(params)
    self.assertEqual((value.dtype, float(value)), (jnp.float32, 1 + 300 * 2.0**-8))
    self.assertEqual(jax.grad(baselines.l1_norm)(params)['a'].dtype, jnp.bfloat16)


class DampeningTest(parameterized.TestCase):

  @parameterized.parameters(2, 4, 6)
  def test_importance_by_central_differences(self, size):
    """Squares of the gradients of batch means, averaged over batches."""
    def loss(theta, x, labels):
      z = x.astype(np.float64) @ theta[:3] + theta[3]
      return np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), labels])

    theta, want = np.vstack([LINEAR['kernel'], LINEAR['bias']]).astype(np.float64), 0.0
    for x, labels in batches(ALL, size):
      slope = np.zeros_like(theta)
      for index in np.ndindex(theta.shape):
        move = np.zeros_like(theta)
        move[index] = 1e-5
        slope[index] = (loss(theta + move, x, labels) - loss(theta - move, x, labels)) / 2e-5
      want = want + slope**2 * size / len(ALL[0])
    got = baselines.importance(linear_loss, LINEAR, iter(batches(ALL, size)))
    np.testing.assert_allclose(np.vstack([got['kernel'], got['bias']]), want, rtol=1e-4, atol=1e-7)

  def test_importance_depends_on_the_batch_size(self):
    two, four = (jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(
        baselines.importance(linear_loss, LINEAR, batches(FORGET, size)))]) for size in (2, 4))
    self.assertAlmostEqual(float(jnp.mean(two / four)), 2.2, delta=0.1)

  def test_no_batch(self):
    with self.assertRaisesRegex(ValueError, 'at least one batch'):
      baselines.importance(linear_loss, LINEAR, [])

  def test_squared_gradient(self):
    got = baselines.squared_gradient(linear_loss, LINEAR, FORGET)
    slope = jax.grad(linear_loss)(LINEAR, FORGET)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b**2, rtol=1e-6), got, slope)

  @parameterized.parameters(
      # theta, I_f, I_D, alpha, lambda, wanted
      (2.0, 0.5, 0.1, 4.0, 1.0, 0.4),  # selected: 0.1 / 0.5
      (2.0, 0.5, 0.125, 4.0, 1.0, 2.0),  # equality does not select
      (2.0, 0.5, 0.2, 4.0, 1.0, 2.0),
      (-2.0, 0.5, 0.1, 4.0, 0.5, -0.2),  # lambda scales what is left
      (2.0, 0.5, 0.1, 4.0, 100.0, 2.0),  # and never enlarges
      (2.0, 0.0, 0.0, 4.0, 1.0, 2.0), (2.0, 0.0, 0.0, 0.0, 1.0, 2.0),  # no importance for D_f
      (2.0, 1e-12, 0.0, 4.0, 1.0, 0.0), (2.0, 0.5, 0.1, 0.0, 1.0, 0.4))
  def test_dampen(self, theta, forget, full, alpha, lam, want):
    tree = lambda value: {'a': {'b': jnp.full((2, 1), value)}}
    got = baselines.dampen(tree(theta), tree(forget), tree(full), alpha=alpha, lam=lam)
    np.testing.assert_allclose(got['a']['b'], np.full((2, 1), want), rtol=1e-6)

  def test_dampen_keeps_dtypes_and_refuses_other_trees(self):
    for dtype in (jnp.bfloat16, jnp.float32):
      params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), LINEAR)
      got = baselines.dampen(params, LINEAR, LINEAR, alpha=0.1, lam=0.1)
      self.assertEqual({leaf.dtype for leaf in jax.tree.leaves(got)}, {jnp.dtype(dtype)})
    with self.assertRaises(AssertionError):
      baselines.dampen(LINEAR, {'kernel': LINEAR['kernel']}, LINEAR, alpha=1.0, lam=1.0)
    with self.assertRaises(AssertionError):
      baselines.dampen(LINEAR, LINEAR, {**LINEAR, 'bias': np.ones(3)}, alpha=1.0, lam=1.0)


if __name__ == '__main__':
  absltest.main()
