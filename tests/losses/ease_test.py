"""EASE's displacement and lock against plain NumPy, their closed forms and their bounds."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate
import scipy.special

from tests.losses.float64 import Float64Test
from unlearn_jax.losses import ease
from unlearn_jax.losses import subspace

N, D, P = 6, 5, 30
TAU = 0.3


def unit(seed, count=N):
  x = np.random.default_rng(seed).normal(size=(count, D))
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def six(seed, count=N):
  """u, w, u*, w*, u^0, w^0."""
  return tuple(unit(6 * seed + i, count) for i in range(6))


def polluted(x, where):
  return np.where(np.asarray(where)[:, None] > 0, x, np.nan)


def divergence(scores, targets):
  """1/2 mean_i of both directions, written out."""
  total = 0.0
  for s, t in ((scores, targets), (scores.T, targets.T)):
    p, q = scipy.special.softmax(t, axis=1), scipy.special.softmax(s, axis=1)
    total += np.mean([sum(scipy.special.rel_entr(p[i], q[i])) for i in range(len(s))])
  return 0.5 * total


def nce(image, text, scale):
  scores = scale * image @ text.T
  return -0.5 * np.mean(np.diag(scipy.special.log_softmax(scores, axis=1))
                        + np.diag(scipy.special.log_softmax(scores, axis=0)))


def frames(*sizes, seed=0, size=P):
  """Orthonormal frames of R^size that are orthogonal to one another."""
  q = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, sum(sizes))))[0]
  return np.split(q, np.cumsum(sizes)[:-1], axis=1)


class DisplacementTest(Float64Test):

  @parameterized.parameters(0, 1, 2)
  def test_three_channels(self, seed):
    u, w, u1, w1, u0, w0 = given = six(seed)
    found = ease.bilateral_displacement(*given, temperature=TAU, weights=(0.5, 2.0, 3.0))
    want = [divergence(s / TAU, t / TAU) for s, t in (
        (u @ w.T, u0 @ w0.T), (u @ w1.T, u0 @ w1.T), (u1 @ w.T, u1 @ w0.T))]
    self.assert_close(found[1:], want, 1e-12)
    self.assert_close(found.loss, np.dot((0.5, 2.0, 3.0), want), 1e-12)
    self.assertGreater(min(want), 0.01)

  def test_nothing_to_do_at_the_reference(self):
    _, _, u1, w1, u0, w0 = six(0)
    loss = lambda u, w, weights: ease.bilateral_displacement(
        u, w, u1, w1, u0, w0, temperature=TAU, weights=weights).loss
    for weights in ((1.0, 0.0, 0.0), (1.0, 1.0, 1.0)):
      value, gradients = jax.value_and_grad(loss, (0, 1))(u0, w0, weights)
      self.assert_close(value, 0.0, 1e-12)
      for gradient in gradients:
        self.assert_close(gradient, 0.0, 1e-12)

  def test_each_channel_moves_its_own_branch(self):
    gradient = jax.jit(lambda channel: jax.grad(
        lambda *x: ease.bilateral_displacement(*x, temperature=TAU, weights=channel).loss,
        tuple(range(6)))(*six(0)))
    joint, image, text = (gradient(c) for c in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
    moved = [[bool(np.any(np.asarray(g) != 0)) for g in channel] for channel in (joint, image, text)]
    nobody = [False] * 4  # originals and references are constants
    self.assertEqual(moved, [[True, True] + nobody, [True, False] + nobody, [False, True] + nobody])

  @parameterized.parameters('embeddings', 'uniform')
  def test_gradient_is_that_of_finite_differences(self, reference):
    u, w, *rest = six(1)
    where = np.array([1, 1, 0, 1, 1, 1])
    loss = jax.jit(lambda u, w: ease.bilateral_displacement(
        u, w, *rest, temperature=TAU, weights=(1.0, 0.5, 2.0), reference=reference,
        where=where).loss)
    gradients = jax.grad(loss, (0, 1))(u, w)
    step = 1e-5
    for place, gradient in enumerate(gradients):
      for i, j in np.ndindex(N, D):
        ends = []
        for sign in (1, -1):
          moved = [u.copy(), w.copy()]
          moved[place][i, j] += sign * step
          ends.append(loss(*moved))
        self.assert_close((ends[0] - ends[1]) / (2 * step), gradient[i, j], 1e-6)
      self.assertGreater(np.max(np.abs(gradient)), 0.01)

  def test_uniform_reference_is_mean_log_softmax(self):
    u, w, u1, w1, u0, w0 = six(2)
    found = ease.bilateral_displacement(u, w, u1, w1, np.full_like(u0, np.nan), w0 * np.nan,
                                        temperature=TAU, reference='uniform')
    for value, scores in zip(found[1:], (u @ w.T, u @ w1.T, u1 @ w.T)):
      cross = -0.5 * (np.mean(scipy.special.log_softmax(scores / TAU, axis=1))
                      + np.mean(scipy.special.log_softmax(scores / TAU, axis=0)))
      self.assert_close(value, cross - np.log(N), 1e-12)

  @parameterized.parameters('embeddings', 'uniform')
  def test_masked_is_sliced(self, reference):
    given, where = six(3), np.array([1, 0, 1, 1, 0, 1])
    pick = where > 0
    masked = ease.bilateral_displacement(*(polluted(x, where) for x in given), temperature=TAU,
                                         reference=reference, where=where)
    sliced = ease.bilateral_displacement(*(x[pick] for x in given), temperature=TAU,
                                         reference=reference)
    self.assert_close(masked, sliced, 1e-12)

  def test_bounded_where_ascent_is_not(self):
    """A pair far apart: the displacement stays small and ends, `-L_NCE` goes on."""
    u, w = unit(0), -unit(0)
    value = ease.bilateral_displacement(u, w, unit(0), unit(0), u, w, temperature=0.01)
    self.assert_close(value.joint, 0.0, 1e-12)
    self.assertLess(ease.neg_nce(u, w, np.log(100.0)), -50.0)

  def test_awkward_batches(self):
    for where in (np.zeros(N), np.eye(N)[2]):  # nobody; one, that nothing is told from
      loss = lambda u, w: ease.bilateral_displacement(
          u, w, *(polluted(x, where) for x in six(0)[2:]), temperature=0.01, where=where).loss
      value, gradients = jax.value_and_grad(loss, (0, 1))(*(polluted(x, where) for x in six(0)[:2]))
      self.assertEqual(value, 0.0)
      for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0.0)

  def test_unknown_reference(self):
    with self.assertRaisesRegex(ValueError, 'embeddings, uniform'):
      ease.bilateral_displacement(*six(0), temperature=TAU, reference='backbone')


class PairLossesTest(Float64Test):

  def setUp(self):
    super().setUp()
    self.where = np.array([1, 0, 1, 1, 0, 1])
    self.pick = self.where > 0

  def test_local_loss(self):
    u, w = unit(0), unit(1)
    self.assert_close(ease.local_loss(u, w, np.log(7.0)), nce(u, w, 7.0), 1e-12)
    masked = [polluted(x, self.where) for x in (u, w)]
    self.assert_close(ease.local_loss(*masked, np.log(7.0), where=self.where),
                      nce(u[self.pick], w[self.pick], 7.0), 1e-12)
    self.assert_close(ease.neg_nce(*masked, np.log(7.0), where=self.where),
                      -nce(u[self.pick], w[self.pick], 7.0), 1e-12)

  def test_uce(self):
    u, w = unit(0), unit(1)
    p = scipy.special.softmax(7.0 * u @ w.T, axis=1).diagonal()
    q = scipy.special.softmax(7.0 * u @ w.T, axis=0).diagonal()
    self.assert_close(ease.uce(u, w, np.log(7.0)), -0.5 * np.mean(np.log((1 - p / 2) * (1 - q / 2))),
                      1e-12)
    masked = ease.uce(*(polluted(x, self.where) for x in (u, w)), np.log(7.0), where=self.where)
    self.assert_close(masked, ease.uce(u[self.pick], w[self.pick], np.log(7.0)), 1e-12)
    self.assert_close(ease.uce(np.eye(D), np.eye(D), np.log(1e3)), np.log(2), 1e-12)

  def test_hinge(self):
    u, w, u1, w1 = six(0)[:4]
    excess = lambda x, y: np.maximum(np.sum(x * y, axis=1) - 0.1, 0.0) ** 2
    want = lambda pick: 0.5 * np.mean((excess(u, w) + 2 * excess(u, w1) + 3 * excess(u1, w))[pick])
    found = functools.partial(ease.hinge, margin=0.1, weights=(1.0, 2.0, 3.0))
    self.assert_close(found(u, w, u1, w1), want(slice(None)), 1e-12)
    self.assert_close(found(*(polluted(x, self.where) for x in (u, w, u1, w1)), where=self.where),
                      want(self.pick), 1e-12)
    gradients = jax.grad(lambda *x: ease.hinge(*x), (0, 1, 2, 3))(u, w, u1, w1)
    self.assertEqual([bool(np.any(np.asarray(g) != 0)) for g in gradients],
                     [True, True, False, False])

  @parameterized.named_parameters(('local_loss', ease.local_loss), ('uce', ease.uce),
                                  ('neg_nce', ease.neg_nce))
  def test_nobody_counts(self, loss):
    nobody = np.full((N, D), np.nan)
    value, gradients = jax.value_and_grad(
        lambda u, w: loss(u, w, 0.0, where=np.zeros(N)), (0, 1))(nobody, nobody)
    self.assertEqual(value, 0.0)
    for gradient in gradients:
      np.testing.assert_array_equal(gradient, 0.0)


class SaddleTest(Float64Test):
  """Why both branches must move: s = <W_v x, W_t y> rebuilds from one that has not."""

  def test_one_step_rebuilds_regardless_of_the_displacement(self):
    rng = np.random.default_rng(0)
    x, y, text = rng.normal(size=4), rng.normal(size=3), rng.normal(size=(D, 3))
    score = lambda visual: (visual @ x) @ (text @ y)
    for size in (0.0, 1.0, 1e3):  # however far the image branch was pushed
      visual = size * rng.normal(size=(D, 4))
      gain = score(visual + 0.1 * np.asarray(jax.grad(score)(visual))) - score(visual)
      self.assert_close(gain, 0.1 * np.sum(x ** 2) * np.sum((text @ y) ** 2), 1e-9)

  @parameterized.parameters(((0.0, 1.0), 0.5 * np.arcsinh(1.0), 0.44),
                            ((0.01, 0.01), 0.5 * np.log(0.5 / 1e-4), 4.26))
  def test_time_to_rebuild(self, start, closed_form, told):
    flow = lambda _, ab: np.asarray(jax.grad(lambda z: z[0] * z[1])(jnp.asarray(ab)))
    reached = lambda _, ab: ab[0] * ab[1] - 0.5
    reached.terminal = True
    found = scipy.integrate.solve_ivp(flow, (0, 6), start, events=reached, rtol=1e-8, atol=1e-10)
    self.assert_close(found.t_events[0][0], closed_form, 1e-5)
    self.assert_close(closed_form, told, 5e-3)

  def test_both_at_zero_stay(self):
    gradient = jax.grad(lambda z: z[0] * z[1])(jnp.zeros(2))
    np.testing.assert_array_equal(gradient, 0.0)


class ServerTest(Float64Test):

  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.support, self.exclusive = frames(6, 3)
    self.exclusive = np.concatenate([self.exclusive, np.zeros((P, 2))], axis=1)  # padding
    self.params, self.forget, self.retain = rng.normal(size=(3, P))

  def test_each_side_writes_its_own_coordinates(self):
    found = ease.server_round(self.params, self.forget, self.retain, self.support, self.exclusive)
    step = found - self.params
    self.assert_close(self.exclusive.T @ step, self.exclusive.T @ self.forget, 1e-10)
    self.assert_close(self.support.T @ step, self.support.T @ self.retain, 1e-10)
    want = (self.forget - self.support @ (self.support.T @ self.forget)
            + self.retain - self.exclusive @ (self.exclusive.T @ self.retain))
    self.assert_close(step, want, 1e-12)

  def test_from_updates_to_a_round(self):
    """The same with bases that were computed: seven clients, the first of which leaves."""
    rng = np.random.default_rng(1)
    updates = rng.normal(size=(7, P, 4)) * 0.5 ** np.arange(4)
    bases = jax.vmap(lambda u: subspace.basis(u, energy=0.8, max_rank=3))(updates)
    support = subspace.union(bases.vectors, bases.mask & (np.arange(7) > 0)[:, None])
    parts = subspace.cosine_sine(bases.vectors[0], support.vectors, forget_mask=bases.mask[0],
                                 retain_mask=support.mask)
    unique = subspace.exclusive(parts.cosines, parts.sines, parts.exclusive_vectors, threshold=0.9)
    self.assertBetween(int(unique.rank), 1, 3)
    step = ease.server_round(self.params, self.forget, self.retain, support.vectors,
                             unique.vectors) - self.params
    self.assert_close(unique.vectors.T @ step, unique.vectors.T @ self.forget, 1e-10)
    self.assert_close(support.vectors.T @ step, support.vectors.T @ self.retain, 1e-10)

  def test_without_an_exclusive_direction(self):
    found = ease.server_round(self.params, 0.0 * self.forget, self.retain, self.support,
                              np.zeros((P, 3)))
    self.assert_close(found, self.params + self.retain, 1e-12)

  @parameterized.parameters(0.0, 0.5, 1.0)
  def test_excise(self, fraction):
    found = ease.excise(self.params, self.forget, self.exclusive, fraction=fraction)
    coordinates = lambda x: self.exclusive.T @ (x - self.forget)
    self.assert_close(coordinates(found), (1 - fraction) * coordinates(self.params), 1e-12)
    rest = lambda x: x - self.exclusive @ (self.exclusive.T @ x)
    self.assert_close(rest(found), rest(self.params), 1e-12)


class LockTest(Float64Test):
  STRENGTH, BOUND = 5.0, 0.2

  def setUp(self):
    super().setUp()
    self.basis, = frames(3)
    self.locked = np.random.default_rng(5).normal(size=P)

  def drift(self, params):
    return np.linalg.norm((params - self.locked) @ self.basis, axis=-1)

  def lock(self, params, step_size, strength=STRENGTH):
    return ease.forget_lock(params, self.locked, self.basis, step_size=step_size,
                            strength=strength)

  def test_is_the_minimiser_of_its_problem(self):
    start = np.random.default_rng(1).normal(size=P)
    found = self.lock(start, 0.3)
    objective = lambda x: (jnp.sum((x - start) ** 2) / (2 * 0.3)
                           + 0.5 * self.STRENGTH * jnp.sum(((x - self.locked) @ self.basis) ** 2))
    self.assert_close(jax.grad(objective)(found), 0.0, 1e-12)
    self.assert_close((found - self.locked) @ self.basis,
                      (start - self.locked) @ self.basis / (1 + 0.3 * self.STRENGTH), 1e-12)

  @parameterized.parameters(1e-2, 0.2, 1.0, 1e3)
  def test_drift_under_adversarial_steps_is_bounded(self, step_size):
    """Steps of eta G straight away along U: bounded for any eta mu, and by G / mu."""
    outward = self.basis @ np.array([2.0, -1.0, 0.5]) / np.linalg.norm([2.0, -1.0, 0.5])

    def run(strength):
      def body(params, _):
        params = self.lock(params + step_size * self.BOUND * outward, step_size, strength)
        return params, jnp.linalg.norm((params - self.locked) @ self.basis)
      return np.max(jax.lax.scan(body, jnp.asarray(self.locked), None, length=400)[1])

    bound = self.BOUND / self.STRENGTH
    self.assertLessEqual(run(self.STRENGTH), bound * (1 + 1e-9))
    self.assertGreater(run(self.STRENGTH), 0.95 * bound)  # and the bound is reached
    np.testing.assert_allclose(run(0.0), 400 * step_size * self.BOUND, rtol=1e-9)

  def test_the_explicit_penalty_has_the_same_bound(self):
    """z <- (1 - eta mu) z - eta g for eta mu <= 1, in one coordinate; beyond 2 it diverges."""
    def largest(step_size):
      z, worst = 0.0, 0.0
      for _ in range(400):
        z = (1 - step_size * self.STRENGTH) * z + step_size * self.BOUND
        worst = max(worst, abs(z))
      return worst

    for step_size in (0.01, 0.1, 0.2):
      self.assertLessEqual(largest(step_size), self.BOUND / self.STRENGTH * (1 + 1e-9))
    self.assertGreater(largest(0.5), 1e3)

  def test_means_of_clients_keep_the_bound(self):
    rng = np.random.default_rng(2)
    bound = self.BOUND / self.STRENGTH
    params = np.tile(self.locked, (4, 1))
    lock = jax.vmap(functools.partial(ease.forget_lock, step_size=0.1, strength=self.STRENGTH),
                    (0, None, None))
    largest = 0.0
    for _ in range(30):  # rounds of five local steps, each client in a direction of its own
      outward = rng.normal(size=(4, 3))
      outward = outward / np.linalg.norm(outward, axis=1, keepdims=True) @ self.basis.T
      for _ in range(5):
        params = np.asarray(lock(params + 0.1 * self.BOUND * outward, self.locked, self.basis))
      self.assertLessEqual(np.max(self.drift(params)), bound * (1 + 1e-9))
      mean = rng.dirichlet(np.ones(4)) @ params
      largest = max(largest, self.drift(mean))
      params = np.tile(mean, (4, 1))
    self.assertBetween(largest, 0.1 * bound, bound)

  def test_other_directions_do_not_feel_it(self):
    start = np.random.default_rng(3).normal(size=P)
    rest = lambda x: np.asarray(x) - self.basis @ (self.basis.T @ np.asarray(x))
    self.assert_close(rest(self.lock(start, 0.3)), rest(start), 1e-12)
    within, = frames(4, seed=8)
    within = within[:, 0] - self.basis @ (self.basis.T @ within[:, 0])
    self.assert_close(self.lock(self.locked + within, 0.3), self.locked + within, 1e-12)

  def test_off_and_isotropic(self):
    start = np.random.default_rng(3).normal(size=P)
    np.testing.assert_array_equal(self.lock(start, 0.3, 0.0), start)
    self.assert_close(ease.forget_lock(start, self.locked, np.zeros((P, 3)), step_size=0.3,
                                       strength=5.0), start, 0.0)
    everywhere = ease.forget_lock(start, self.locked, None, step_size=0.3, strength=5.0)
    self.assert_close(everywhere, self.locked + (start - self.locked) / 2.5, 1e-12)
    self.assert_close(everywhere, ease.forget_lock(start, self.locked, np.eye(P), step_size=0.3,
                                                   strength=5.0), 1e-12)

  def test_automatic_strength(self):
    gradients = np.random.default_rng(4).normal(size=(5, P))
    moved = np.random.default_rng(6).normal(size=P)
    sizes = np.linalg.norm(gradients @ self.basis, axis=1)
    where = sizes < sizes.max()
    written = np.linalg.norm(moved @ self.basis)
    self.assert_close(ease.automatic_strength(gradients, moved, self.basis),
                      sizes.max() / (0.05 * written), 1e-12)
    found = ease.automatic_strength(polluted(gradients, where), moved, self.basis, fraction=0.2,
                                    where=where)
    self.assert_close(found, np.sort(sizes)[-2] / (0.2 * written), 1e-12)
    self.assertEqual(ease.automatic_strength(gradients, moved, np.zeros((P, 3))), 0.0)
    tight = ease.automatic_strength(gradients, np.zeros(P), self.basis)
    self.assertTrue(np.isfinite(tight))
    self.assert_close(self.drift(self.lock(self.locked + 1.0, 0.1, tight)), 0.0, 1e-9)


class Float32Test(parameterized.TestCase):

  def test_at_clips_temperature(self):
    """Scores of +-100: finite in float32, and what float64 gives."""
    given = six(4)
    loss = jax.jit(lambda *x: ease.bilateral_displacement(*x, temperature=0.01).loss)
    value, gradients = jax.value_and_grad(loss, (0, 1))(*(x.astype(np.float32) for x in given))
    self.assertEqual(value.dtype, np.float32)
    with jax.enable_x64(True):
      want, want_gradients = jax.value_and_grad(loss, (0, 1))(*given)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    for found, wanted in zip(gradients, want_gradients):
      np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)

  def test_lock_inside_scan(self):
    basis, = frames(3)
    basis, locked = basis.astype(np.float32), np.zeros(P, np.float32)
    step = lambda params, _: (ease.forget_lock(params + 0.1 * basis[:, 0], locked, basis,
                                               step_size=0.1, strength=10.0), None)
    params, _ = jax.lax.scan(step, jnp.zeros(P), None, length=100)
    np.testing.assert_allclose(params @ basis, [0.1, 0.0, 0.0], atol=1e-5)


if __name__ == '__main__':
  absltest.main()
