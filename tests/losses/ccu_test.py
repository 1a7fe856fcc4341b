"""CCU's losses against loops written from Eqs. 4 to 6, and at their awkward points."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from tests.losses.ccu_reference import retention
from tests.losses.ccu_reference import selective
from tests.losses.ccu_reference import separation
from unlearn_jax.losses import ccu


def records(seed, forget=5, retain=7, classes=4, dims=(3, 2)):
  """(m_u, m_r, n_u, n_r, y_u, y_r), float64; some classes are in one of the batches alone."""
  rng = np.random.default_rng(seed)
  return (rng.normal(size=(forget, dims[0])), rng.normal(size=(retain, dims[0])),
          rng.normal(size=(forget, dims[1])), rng.normal(size=(retain, dims[1])),
          rng.integers(0, classes, forget), rng.integers(0, classes, retain))


def chosen(seed, size):
  return (np.random.default_rng(seed + 99).uniform(size=size) < 0.7).astype(np.float32)


def polluted(array, where):
  """NaN in the rows that must not count."""
  return np.where(np.asarray(where)[:, None] > 0, array, np.nan)


class EquationsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.enterContext(jax.enable_x64(True))

  @parameterized.product(seed=tuple(range(6)), reduce=('mean', 'sum'), classes=(2, 4, 9))
  def test_selective_visual_unlearning(self, seed, reduce, classes):
    given = records(seed, classes=classes)
    found = ccu.selective_visual_unlearning(*given, temperature=0.6, reduce=reduce)
    visual, audio = selective(*given, 0.6)
    scale = max(len(visual), 1) if reduce == 'mean' else 1
    np.testing.assert_allclose(found.visual, sum(visual) / scale, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.audio, sum(audio) / scale, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.loss, found.visual + found.audio, rtol=0, atol=1e-12)

  def test_the_random_inputs_have_empty_sets(self):
    kinds = set()
    for seed in range(6):
      for classes in (2, 4, 9):
        *_, y_u, y_r = records(seed, classes=classes)
        for y in y_u:
          kinds.add((bool((y_r == y).any()), bool((y_r != y).any())))
    self.assertContainsSubset({(True, True), (False, True)}, kinds)

  @parameterized.product(seed=tuple(range(4)), reduce=('mean', 'sum'))
  def test_cross_modal_retention(self, seed, reduce):
    n, m = np.random.default_rng(seed).normal(size=(2, 6, 3))
    scale = 6 if reduce == 'mean' else 1
    found = ccu.cross_modal_retention(n, m, temperature=0.6, reduce=reduce)
    np.testing.assert_allclose(found, retention(n, m, 0.6) / scale, rtol=0, atol=1e-6)

  @parameterized.product(seed=tuple(range(6)), classes=(1, 3, 9, 40))
  def test_dual_set_separation(self, seed, classes):
    _, m, _, n, _, y = records(seed, classes=classes)
    found = ccu.dual_set_separation(m, n, y, temperature=0.6)
    np.testing.assert_allclose(found, separation(m, n, y, 0.6), rtol=0, atol=1e-6)

  @parameterized.parameters(*range(6))
  def test_masked_is_sliced(self, seed):
    m_u, m_r, n_u, n_r, y_u, y_r = records(seed, forget=8, retain=10)
    a, b = chosen(seed, 8), chosen(seed + 1, 10)
    u, r = a > 0, b > 0
    masked = ccu.selective_visual_unlearning(
        polluted(m_u, a), polluted(m_r, b), polluted(n_u, a), polluted(n_r, b), y_u, y_r,
        temperature=0.6, forget_where=a, retain_where=b)
    sliced = ccu.selective_visual_unlearning(m_u[u], m_r[r], n_u[u], n_r[r], y_u[u], y_r[r],
                                             temperature=0.6)
    np.testing.assert_allclose(masked, sliced, rtol=1e-12, atol=1e-12)
    n_r = np.random.default_rng(seed).normal(size=m_r.shape)
    for reduce in ccu.REDUCTIONS:
      np.testing.assert_allclose(
          ccu.cross_modal_retention(polluted(n_r, b), polluted(m_r, b), temperature=0.6, where=b,
                                    reduce=reduce),
          ccu.cross_modal_retention(n_r[r], m_r[r], temperature=0.6, reduce=reduce), rtol=1e-12)
    np.testing.assert_allclose(
        ccu.dual_set_separation(polluted(m_r, b), polluted(n_r, b), y_r, temperature=0.6, where=b),
        ccu.dual_set_separation(m_r[r], n_r[r], y_r[r], temperature=0.6), rtol=1e-12, atol=1e-12)


class ClosedFormTest(parameterized.TestCase):

  def test_one_positive_one_negative(self):
    """Eq. 4 is then `<m, m_p - m_a> / tau` for pictures, and the opposite for sounds."""
    m, m_p, m_a = np.array([[3.0, 4.0], [2.0, 0.0], [0.0, 1.0]], np.float32)
    found = ccu.selective_visual_unlearning(
        m[None], np.stack([m_p, m_a]), m[None], np.stack([m_p, m_a]), np.array([1]),
        np.array([1, 0]), temperature=0.5)
    np.testing.assert_allclose(found.visual, 2 * (6.0 - 4.0), rtol=1e-6)
    np.testing.assert_allclose(found.audio, -found.visual, rtol=1e-6)
    np.testing.assert_allclose(found.loss, 0.0, atol=1e-6)

  def test_equal_embeddings(self):
    """All scores alike: logarithms of the sets' sizes are left."""
    same = np.ones((6, 2), np.float32)
    y = np.array([0, 0, 0, 1, 1, 2])
    found = ccu.selective_visual_unlearning(same[:2], same, same[:2], same, np.array([0, 2]), y,
                                            temperature=0.1, reduce='sum')
    np.testing.assert_allclose(found.visual, np.log(3) + np.log(1), rtol=1e-4)
    np.testing.assert_allclose(found.audio, np.log(3) + np.log(5), rtol=1e-4)
    np.testing.assert_allclose(ccu.cross_modal_retention(same, same, temperature=0.1),
                               2 * 6 * np.log(6), rtol=1e-4)
    expected = 2 * (3 * np.log(5 / 2) + 2 * np.log(5)) / 5  # the sixth is alone in its class
    np.testing.assert_allclose(ccu.dual_set_separation(same, same, y, temperature=0.1), expected,
                               rtol=1e-4)

  def test_perfect_embeddings_have_no_loss_but_eq_4(self):
    """Bounded from below by 0: attained by pairs, and by classes, that are orthogonal."""
    axes = np.repeat(np.eye(3, dtype=np.float32), 2, axis=0)
    y = np.repeat(np.arange(3), 2)
    self.assertLess(float(ccu.dual_set_separation(axes, axes, y, temperature=0.01)), 1e-6)
    self.assertLess(float(ccu.cross_modal_retention(axes[::2], axes[::2], temperature=0.01)), 1e-6)

  def test_a_step_pushes_pictures_out_of_their_class_and_draws_sounds_in(self):
    m_u, m_r, n_u, n_r, y_u, y_r = (x.astype(np.float32) for x in records(1, classes=2))
    # So warm that all positives, and all negatives, count alike: the gradient is that of a mean.
    gradients = jax.grad(lambda m, n: ccu.selective_visual_unlearning(
        m, m_r, n, n_r, y_u, y_r, temperature=100.0).loss, argnums=(0, 1))(m_u, n_u)

    def nearness(x, others):
      same = (y_u[:, None] == y_r[None]).astype(np.float32)
      scores = x @ others.T
      return (scores * same).sum(1) / same.sum(1) - (scores * (1 - same)).sum(1) / (1 - same).sum(1)

    moved_m, moved_n = m_u - 10 * gradients[0], n_u - 10 * gradients[1]
    self.assertTrue((nearness(moved_m, m_r) < nearness(m_u, m_r)).all())
    self.assertTrue((nearness(moved_n, n_r) > nearness(n_u, n_r)).all())


class AwkwardTest(parameterized.TestCase):

  def check(self, loss, *arrays, zero=False, **options):
    """Value and all gradients are finite; both 0 if nothing counts."""
    fn = functools.partial(loss, **options)
    value = lambda *moving: sum(jax.tree.leaves(fn(*moving, *arrays[len(moving):])))
    moving = tuple(a for a in arrays if np.asarray(a).dtype == np.float32)
    found, gradients = jax.value_and_grad(value, argnums=tuple(range(len(moving))))(*moving)
    self.assertTrue(np.isfinite(found), found)
    for gradient in gradients:
      self.assertTrue(np.isfinite(gradient).all())
      if zero:
        np.testing.assert_array_equal(gradient, 0.0)
    if zero:
      self.assertEqual(float(found), 0.0)
    return found, gradients

  def given(self, **changes):
    return tuple(x.astype(np.float32 if x.dtype.kind == 'f' else np.int32)
                 for x in records(3, **changes))

  @parameterized.parameters(('mean',), ('sum',))
  def test_temperature_and_norms(self, reduce):
    """Scores up to 100^2 / 0.01 = 1e6."""
    m_u, m_r, n_u, n_r, y_u, y_r = self.given(dims=(3, 3))
    long = lambda x: (100 * x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    m_r[0], n_r[0] = m_u[0], n_u[0]
    options = {'temperature': 0.01, 'reduce': reduce}
    found, _ = self.check(ccu.selective_visual_unlearning, long(m_u), long(m_r), long(n_u),
                          long(n_r), y_u, y_r, **options)
    self.assertGreater(abs(float(found)), 1e4)
    self.check(ccu.cross_modal_retention, long(n_r), long(m_r), **options)
    self.check(ccu.dual_set_separation, long(m_r), long(n_r), y_r, temperature=0.01)
    self.check(ccu.dual_set_separation, 0 * m_r, 0 * n_r, y_r, temperature=0.01)

  @parameterized.named_parameters(
      ('no_positives', [5, 5], [0, 1, 2]), ('no_negatives', [1, 1], [1, 1, 1]))
  def test_anchors_without_a_set(self, forget, retain):
    m_u, m_r, n_u, n_r, *_ = self.given(forget=2, retain=3)
    self.check(ccu.selective_visual_unlearning, m_u, m_r, n_u, n_r, np.array(forget),
               np.array(retain), temperature=0.1, zero=True)

  def test_a_dropped_anchor_moves_nothing(self):
    m_u, m_r, n_u, n_r, *_ = self.given(forget=2, retain=3)
    _, gradients = self.check(ccu.selective_visual_unlearning, m_u, m_r, n_u, n_r,
                              np.array([0, 7]), np.array([0, 1, 1]), temperature=0.1)
    for gradient in (gradients[0], gradients[2]):
      np.testing.assert_array_equal(gradient[1], 0.0)
      self.assertTrue((gradient[0] != 0).all())

  def test_nothing_counts(self):
    m_u, m_r, n_u, n_r, y_u, y_r = self.given(classes=2, dims=(3, 3))
    arrays = (m_u, m_r, n_u, n_r, y_u, y_r)
    for masks in ({'forget_where': np.zeros(5)}, {'retain_where': np.zeros(7)}):
      self.check(ccu.selective_visual_unlearning, *arrays, temperature=0.1, zero=True, **masks)
    for count in (0, 1):  # a record alone has no class mate, and finds its pair for certain
      where = np.arange(7) < count
      self.check(ccu.dual_set_separation, m_r, n_r, y_r, temperature=0.1, where=where, zero=True)
      for reduce in ccu.REDUCTIONS:
        self.check(ccu.cross_modal_retention, m_r, n_r, temperature=0.1, where=where, reduce=reduce,
                   zero=True)
    self.check(ccu.dual_set_separation, m_r, n_r, np.arange(7), temperature=0.1, zero=True)

  def test_gradient_of_padding_is_zero(self):
    m_u, m_r, n_u, n_r, y_u, y_r = self.given(classes=2)
    where = np.array([1, 1, 0, 1, 1, 0, 1], np.float32)
    _, gradients = self.check(
        ccu.selective_visual_unlearning, m_u, polluted(m_r, where).astype(np.float32), n_u, n_r,
        y_u, y_r, temperature=0.5, retain_where=where)
    np.testing.assert_array_equal(gradients[1][where == 0], 0.0)
    self.assertTrue((np.abs(gradients[1][where > 0]).max(axis=1) > 0).all())

  def test_half_precision_is_computed_in_float32(self):
    m_u, m_r, n_u, n_r, y_u, y_r = self.given()
    half = lambda x: jnp.asarray(x, jnp.bfloat16)
    wide = lambda x: np.asarray(half(x), np.float32)
    found = ccu.selective_visual_unlearning(half(m_u), half(m_r), half(n_u), half(n_r), y_u, y_r,
                                            temperature=0.1)
    expected = ccu.selective_visual_unlearning(wide(m_u), wide(m_r), wide(n_u), wide(n_r), y_u,
                                               y_r, temperature=0.1)
    np.testing.assert_array_equal(found, expected)

  def test_bad_arguments(self):
    m_u, m_r, n_u, n_r, y_u, y_r = self.given(dims=(3, 3))
    svu = functools.partial(ccu.selective_visual_unlearning, temperature=0.1)
    with self.assertRaisesRegex(ValueError, "reduce is one of mean, sum, got 'none'"):
      svu(m_u, m_r, n_u, n_r, y_u, y_r, reduce='none')
    with self.assertRaisesRegex(ValueError, 'reduce is one of'):
      ccu.cross_modal_retention(n_r, m_r, temperature=0.1, reduce='max')
    for call in (lambda: svu(m_u, m_r, n_u[:4], n_r, y_u, y_r),
                 lambda: svu(m_u, m_r, n_u, n_r, y_u, y_r[:6]),
                 lambda: svu(m_u, m_r[:, :2], n_u, n_r, y_u, y_r),
                 lambda: svu(m_u, m_r, n_u, n_r, y_u, y_r, forget_where=np.ones(4)),
                 lambda: svu(m_u, m_r, n_u, n_r, y_u, y_r, retain_where=np.ones((7, 1))),
                 lambda: ccu.cross_modal_retention(n_r, m_u, temperature=0.1),
                 lambda: ccu.dual_set_separation(m_r, n_u, y_r, temperature=0.1)):
      with self.assertRaises(AssertionError):
        call()


if __name__ == '__main__':
  absltest.main()
