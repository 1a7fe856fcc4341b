"""Subspaces of updates against SciPy's angles and decomposition, and at their awkward points."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from tests.losses.float64 import Float64Test
from unlearn_jax.losses import subspace
from unlearn_jax.models import lora

P, A, B = 40, 7, 9
PLANTED = (3.0, 15.0, 35.0, 55.0, 70.0, 85.0, 90.0)
CUTS = (0.0, 0.3, 0.5, 0.8, 1.0)


def frame(seed, columns, size=P):
  """A random orthonormal frame [size, columns]."""
  return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, columns)))[0]


def planted(radians, *, seed=0, retain=B, size=P):
  """(U_f, U_r) with these principal angles, both turned about at random."""
  count = len(radians)
  axes = frame(seed, retain + count, size)
  support, rest = axes[:, :retain], axes[:, retain:]
  forget = support[:, :count] * np.cos(radians) + rest * np.sin(radians)
  return (forget @ frame(seed + 1, count, count), support @ frame(seed + 2, retain, retain))


def projector(vectors):
  return np.asarray(vectors) @ np.asarray(vectors).T


def padded(vectors, places, size):
  """The columns of `vectors` at `places` among `size`, the rest NaN; and the mask."""
  wide, mask = np.full((len(vectors), size), np.nan), np.zeros(size, bool)
  wide[:, places], mask[list(places)] = vectors, True
  return wide, mask


def exclusive(parts, **kwargs):
  return subspace.exclusive(parts.cosines, parts.sines, parts.exclusive_vectors, **kwargs)


class BasisTest(Float64Test):

  @parameterized.product(seed=(0, 1, 2), energy=(0.3, 0.9, 0.95, 0.999))
  def test_spans_what_the_full_svd_does(self, seed, energy):
    rng = np.random.default_rng(seed)
    updates = rng.normal(size=(P, 8)) * 0.6 ** np.arange(8) @ rng.normal(size=(8, 8))
    found = subspace.basis(updates, energy=energy, max_rank=8)
    left, values, _ = np.linalg.svd(updates, full_matrices=False)
    shares = np.cumsum(values ** 2) / np.sum(values ** 2)
    rank = next(q for q in range(1, 9) if shares[q - 1] >= energy)
    self.assertEqual(found.rank, rank)
    np.testing.assert_array_equal(found.mask, np.arange(8) < rank)
    self.assert_close(projector(found.vectors), projector(left[:, :rank]), 1e-12)
    self.assert_close(found.vectors.T @ found.vectors, np.diag(found.mask), 1e-12)

  def test_capped_by_max_rank(self):
    updates = np.random.default_rng(0).normal(size=(P, 8))
    found = subspace.basis(updates, energy=1.0, max_rank=3)
    self.assertEqual((found.vectors.shape, found.rank), ((P, 3), 3))
    self.assert_close(projector(found.vectors), projector(np.linalg.svd(updates)[0][:, :3]), 1e-12)

  def test_zero_and_repeated_columns(self):
    rng = np.random.default_rng(0)
    one, two, none = rng.normal(size=P), rng.normal(size=P), np.zeros(P)
    found = subspace.basis(np.stack([none, one, one, two, none, 2 * one, none, two], axis=1),
                           energy=1.0, max_rank=8)
    self.assertEqual(found.rank, 2)
    self.assert_close(projector(found.vectors),
                      projector(np.linalg.qr(np.stack([one, two], 1))[0]), 1e-12)
    nothing = subspace.basis(np.zeros((P, 8)), energy=1.0, max_rank=8)
    self.assertEqual(nothing.rank, 0)
    self.assertFalse(np.any(nothing.mask))
    np.testing.assert_array_equal(nothing.vectors, 0.0)

  def test_weaker_than_a_millionth_is_noise(self):
    strong, weak, noise = frame(0, 3).T
    found = subspace.basis(np.stack([strong, 2e-6 * weak, 5e-7 * noise], axis=1), energy=1.0,
                           max_rank=3)
    self.assertEqual(found.rank, 2)

  @parameterized.parameters(1e-150, 1e-8, 1e8, 1e150)
  def test_one_scale_of_all_updates_changes_nothing(self, scale):
    updates = np.random.default_rng(3).normal(size=(P, 8)) * 0.7 ** np.arange(8)
    want, found = (subspace.basis(u, max_rank=8) for u in (updates, scale * updates))
    self.assertEqual(found.rank, want.rank)
    self.assert_close(projector(found.vectors), projector(want.vectors), 1e-12)

  def test_more_rounds_than_parameters(self):
    found = subspace.basis(np.random.default_rng(0).normal(size=(3, 5)), energy=1.0, max_rank=4)
    self.assertEqual((found.vectors.shape, found.rank), ((3, 4), 3))
    self.assert_close(projector(found.vectors), np.eye(3), 1e-12)

  def test_updates_that_are_not_finite_are_not_taken_for_none(self):
    updates = np.random.default_rng(0).normal(size=(P, 8))
    updates[3, 2] = np.nan
    self.assertTrue(np.isnan(subspace.basis(updates, max_rank=8).vectors).any())

  def test_vmap_decomposes_one_matrix_after_the_other(self):
    """Two batched LAPACK calls at once can wait for each other where there are few threads."""
    compiled = jax.jit(jax.vmap(subspace.basis)).lower(np.ones((3, 7, 2), np.float32)).compile()
    calls = [line for line in compiled.as_text().splitlines() if 'lapack' in line]
    self.assertNotEmpty(calls)
    for line in calls:
      self.assertNotRegex(line.split('custom-call(')[0], r'f32\[3,')

  def test_inside_scan_and_vmap(self):
    updates = np.random.default_rng(0).normal(size=(3, P, 8)) * 0.6 ** np.arange(8)
    one = lambda u: subspace.basis(u, max_rank=8)
    scanned = jax.lax.scan(lambda carry, u: (carry, one(u)), None, updates)[1]
    mapped = jax.vmap(one)(updates)
    for k, u in enumerate(updates):
      want = one(u)
      for found in (scanned, mapped):
        self.assertEqual(found.rank[k], want.rank)
        self.assert_close(projector(found.vectors[k]), projector(want.vectors), 1e-12)


class UnionTest(Float64Test):

  def test_contains_every_client_that_counts(self):
    bases = np.stack([frame(s, 3) for s in range(4)])
    bases[3] = bases[0] @ frame(9, 3, 3)  # says what another has said
    found = subspace.union(bases, np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1]]))
    self.assertEqual(found.rank, 5)
    self.assertEqual(found.vectors.shape, (P, 12))
    inside = np.concatenate([bases[0], bases[1][:, [0, 2]]], axis=1)
    self.assert_close(projector(found.vectors), projector(np.linalg.qr(inside)[0]), 1e-12)

  def test_nearly_shared_directions_are_kept(self):
    axes = frame(0, 2)
    tilted = axes[:, :1] * np.cos(1e-9) + axes[:, 1:] * np.sin(1e-9)
    found = subspace.union(np.stack([axes[:, :1], tilted]), np.ones((2, 1)))
    self.assertEqual(found.rank, 2)

  def test_another_client_never_frees_a_direction(self):
    """200 federations: no sorted cosine falls, no direction becomes exclusive."""
    rng = np.random.default_rng(0)
    masks = np.ones((2, 4, 2), bool)
    masks[0, 3] = False  # without the fourth client, with it

    @jax.jit
    @jax.vmap
    def both(forget, bases):
      def angles(mask):
        support = subspace.union(bases, mask)
        parts = subspace.cosine_sine(forget, support.vectors, retain_mask=support.mask)
        return parts.cosines, exclusive(parts, threshold=0.6).rank
      return jax.vmap(angles)(masks)

    frames = np.linalg.qr(rng.normal(size=(200, 5, 16, 2)))[0]
    cosines, ranks = both(frames[:, 0, :, :], frames[:, 1:])
    self.assertGreaterEqual(np.min(cosines[:, 1] - cosines[:, 0]), -1e-12)
    self.assertGreaterEqual(np.min(ranks[:, 0] - ranks[:, 1]), 0)
    self.assertGreater(np.mean(ranks[:, 0] - ranks[:, 1]), 0.1)  # and some are lost

  def test_pairwise_is_not_the_union(self):
    """The mean of 16 axes has the cosine 1/4 to each and lies in their sum."""
    axes = np.eye(P)[:, :16].T[:, :, None]  # [16, P, 1]
    forget = np.sum(axes, axis=0) / 4.0
    cosines, sines = subspace.pairwise(forget, axes)
    self.assert_close(cosines, [0.25], 1e-12)
    self.assert_close(sines, [np.sqrt(15) / 4], 1e-12)
    self.assertEqual(subspace.exclusive(cosines, sines, forget).rank, 1)
    parts = subspace.cosine_sine(forget, subspace.union(axes, np.ones((16, 1))).vectors)
    self.assert_close(parts.cosines, [1.0], 1e-12)
    self.assertEqual(exclusive(parts).rank, 0)

  def test_pairwise_is_the_nearest_client(self):
    axes = np.eye(P)[:, :3]
    cosines, sines = subspace.pairwise(axes @ np.array([[0.6], [0.8], [0.0]]), axes.T[:, :, None])
    self.assert_close((cosines, sines), [[0.8], [0.6]], 1e-12)

  def test_pairwise_of_padding_is_nothing(self):
    forget, mask = padded(frame(0, 2), (0, 2), 3)
    cosines, sines = subspace.pairwise(forget, frame(1, 2)[None], forget_mask=mask)
    self.assertEqual((cosines[1], sines[1]), (0.0, 0.0))
    found = subspace.exclusive(cosines, sines, np.nan_to_num(forget), threshold=1.0)
    np.testing.assert_array_equal(found.mask, mask)


class CosineSineTest(Float64Test):

  def assert_decomposed(self, parts, forget, retain):
    """The identities of the decomposition; the frames hold no padding."""
    self.assert_close(parts.cosines ** 2 + parts.sines ** 2, 1.0, 1e-12)
    self.assert_close(
        parts.retain_vectors * parts.cosines + parts.exclusive_vectors * parts.sines,
        parts.forget_vectors, 1e-10)
    self.assert_close(projector(parts.forget_vectors), projector(forget), 1e-12)
    self.assert_close(parts.exclusive_vectors.T @ retain, 0.0, 1e-10)
    self.assert_close(parts.exclusive_vectors.T @ parts.exclusive_vectors,
                      np.diag(np.asarray(parts.sines) > 1.5e-8), 1e-10)
    self.assert_close(retain @ (retain.T @ parts.retain_vectors), parts.retain_vectors, 1e-10)
    self.assertTrue(np.all(np.diff(parts.cosines) <= 1e-12))

  @parameterized.parameters(0, 1, 2)
  def test_planted_angles(self, seed):
    forget, retain = planted(np.radians(PLANTED), seed=seed)
    parts = subspace.cosine_sine(forget, retain)
    self.assert_decomposed(parts, forget, retain)
    self.assert_close(np.degrees(np.arctan2(parts.sines, parts.cosines)), PLANTED, 1e-6)
    partners = np.asarray(parts.retain_vectors)[:, :6]  # 90 degrees has none
    self.assert_close(partners.T @ partners, np.eye(6), 1e-10)
    np.testing.assert_array_equal(parts.retain_vectors[:, 6], 0.0)

  def test_small_angles(self):
    radians = np.array([1e-7, 3e-7, 1e-6, 1e-5, 1e-3, 0.1, 1.0])
    forget, retain = planted(radians)
    parts = subspace.cosine_sine(forget, retain)
    self.assert_decomposed(parts, forget, retain)
    np.testing.assert_allclose(parts.sines, np.sin(radians), rtol=1e-7)

  @parameterized.product(seed=(0, 1, 2), retain=(B, A, 3))
  def test_scipy_agrees(self, seed, retain):
    forget, support = frame(seed, A, 20), frame(seed + 10, retain, 20)
    parts = subspace.cosine_sine(forget, support)
    self.assert_decomposed(parts, forget, support)
    found = np.arctan2(parts.sines, parts.cosines)
    shared = min(A, retain)
    self.assert_close(np.sort(found)[:shared][::-1],
                      scipy.linalg.subspace_angles(forget, support), 1e-8)
    self.assert_close(found[shared:], np.pi / 2, 1e-8)
    self.assert_close(subspace.principal_angles(forget, support), found[:shared], 1e-12)
    # scipy.linalg.cossin wants the square matrix that the (b + a) x a block is the edge of.
    inside = support.T @ forget
    block = np.concatenate([inside, np.linalg.qr(forget - support @ inside)[1]])
    rest = scipy.linalg.null_space(block.T)
    _, angles, _ = scipy.linalg.cossin(np.concatenate([block, rest], 1), p=retain, q=A,
                                       separate=True)
    self.assert_close(np.sort(found)[:len(angles)], np.sort(angles), 1e-8)

  def test_spaces_that_must_meet(self):
    """7 + 9 dimensions of 12 share 4: exact zeros, where SciPy's angles are off by 1.5e-8."""
    forget, support = frame(0, A, 12), frame(10, B, 12)
    parts = subspace.cosine_sine(forget, support)
    self.assert_decomposed(parts, forget, support)
    self.assert_close(parts.sines[:4], 0.0, 1e-14)
    self.assertGreater(parts.sines[4], 0.01)
    self.assertEqual(exclusive(parts, threshold=1.0).rank, 3)

  @parameterized.parameters(0, 1, 2)
  def test_rotated_bases_change_nothing(self, seed):
    forget, retain = planted(np.radians(PLANTED), seed=seed)
    turned = (forget @ frame(seed + 5, A, A), retain @ frame(seed + 6, B, B))
    one, two = subspace.cosine_sine(forget, retain), subspace.cosine_sine(*turned)
    self.assert_close(one.cosines, two.cosines, 1e-12)
    self.assert_close(one.sines, two.sines, 1e-12)
    self.assert_close(projector(exclusive(one).vectors), projector(exclusive(two).vectors), 1e-12)

  @parameterized.parameters(0, 3, 5)
  def test_padding_is_kept_out(self, partners):
    """Columns that do not count may hold NaN and stand anywhere; b < a and b = 0 among them."""
    forget = frame(0, 4, 12)
    retain = frame(1, partners, 12) if partners else np.zeros((12, 0))
    if partners:
      forget, retain = planted(np.radians([20.0, 60.0, 90.0, 90.0])[:4], retain=5, size=12)
      retain = retain[:, :partners]
    want = subspace.cosine_sine(forget, retain)
    wide_forget, forget_mask = padded(forget, (1, 2, 4, 6), 7)
    wide_retain, retain_mask = padded(retain, tuple(range(1, 1 + partners)), 8)
    found = subspace.cosine_sine(wide_forget, wide_retain, forget_mask=forget_mask,
                                 retain_mask=retain_mask)
    for one, other in zip(found, want):
      np.testing.assert_array_equal(one[..., 4:], 0.0)
      self.assertEqual(one.shape[-1], 7)
      if one.ndim == 1:
        self.assert_close(one[:4], other, 1e-12)
    for threshold in CUTS:
      cut = exclusive(found, threshold=threshold)
      self.assertEqual(cut.rank, exclusive(want, threshold=threshold).rank)
      self.assertFalse(np.any(cut.mask[4:]))
      self.assert_close(projector(cut.vectors),
                        projector(exclusive(want, threshold=threshold).vectors), 1e-12)
    angles = subspace.principal_angles(wide_forget, wide_retain, first_mask=forget_mask,
                                       second_mask=retain_mask)
    shared = min(4, partners)
    self.assertEqual(angles.shape, (7,))
    if shared:
      self.assert_close(angles[:shared], np.arctan2(want.sines, want.cosines)[:shared], 1e-12)
    self.assert_close(angles[shared:], np.pi / 2, 1e-12)

  def test_empty_sides(self):
    nothing = np.zeros((P, 0))
    parts = subspace.cosine_sine(frame(0, A), nothing)
    self.assert_decomposed(parts, frame(0, A), nothing)
    np.testing.assert_array_equal(parts.cosines, 0.0)
    self.assertEqual(exclusive(parts, threshold=0.0).rank, A)
    parts = subspace.cosine_sine(nothing, frame(0, B))
    self.assertEqual([x.shape for x in parts], [(0,), (0,), (P, 0), (P, 0), (P, 0)])
    self.assertEqual(exclusive(parts).rank, 0)
    self.assertEqual(subspace.principal_angles(nothing, frame(0, B)).shape, (0,))
    everything_masked = subspace.cosine_sine(frame(0, A), frame(1, B), forget_mask=np.zeros(A))
    for leaf in everything_masked:
      np.testing.assert_array_equal(leaf, 0.0)


class ExclusiveTest(Float64Test):

  def setUp(self):
    super().setUp()
    self.forget, self.retain = planted(np.radians(PLANTED))
    self.parts = subspace.cosine_sine(self.forget, self.retain)
    self.cosines = np.cos(np.radians(PLANTED))

  @parameterized.parameters(*CUTS)
  def test_what_a_projection_removes_and_leaves(self, threshold):
    cut = exclusive(self.parts, threshold=threshold)
    kept = self.cosines <= threshold + 1e-12
    np.testing.assert_array_equal(cut.mask, kept)
    self.assertEqual(cut.rank, kept.sum())
    out = jax.vmap(lambda v: subspace.project_out(v, cut.vectors), 1, 1)
    rng = np.random.default_rng(0)
    support = self.retain @ rng.normal(size=(B, 5))
    self.assert_close(np.linalg.norm(out(support) - support, axis=0)
                      / np.linalg.norm(support, axis=0), 0.0, 1e-12)
    self.assert_close(out(cut.vectors), 0.0, 1e-12)
    x, y = rng.normal(size=(2, P, 5))
    self.assert_close(out(out(x)), out(x), 1e-12)
    self.assert_close(x.T @ out(y), out(x).T @ y, 1e-12)
    self.assertTrue(np.all(np.linalg.norm(out(x), axis=0) <= np.linalg.norm(x, axis=0)))
    left = np.sum(np.square(out(self.parts.forget_vectors)), axis=0)
    self.assert_close(left, np.where(kept, self.cosines ** 2, 1.0), 1e-12)

  @parameterized.parameters(0.2, 0.5, 0.9)
  def test_principal_vectors_leak_up_to_the_threshold(self, threshold):
    cut = subspace.exclusive(self.parts.cosines, self.parts.sines, self.parts.forget_vectors,
                             threshold=threshold)
    out = jax.vmap(lambda v: subspace.project_out(v, cut.vectors), 1, 1)
    exact = np.asarray(cut.mask)
    self.assert_close(np.where(exact, out(self.parts.forget_vectors), 0.0), 0.0, 1e-12)
    support = self.retain @ np.random.default_rng(0).normal(size=(B, 50))
    leak = np.linalg.norm(out(support) - support, axis=0) / np.linalg.norm(support, axis=0)
    self.assertLessEqual(np.max(leak), threshold + 1e-12)
    worst = np.max(self.cosines[exact])
    partner = np.asarray(self.parts.retain_vectors)[:, np.argmax(exact)]
    self.assert_close(np.linalg.norm(out(partner[:, None])[:, 0] - partner), worst, 1e-12)

  def test_soft_weights_are_squared_sines(self):
    cut = exclusive(self.parts, soft=True)
    self.assertEqual(cut.rank, A)
    sines = np.sin(np.radians(PLANTED))
    q = np.asarray(self.parts.exclusive_vectors)
    self.assert_close(projector(cut.vectors), (q * sines ** 2) @ q.T, 1e-12)

  def test_identical_and_disjoint_clients(self):
    one = self.retain[:, :A]
    for retain in (one, one @ frame(3, A, A)):
      parts = subspace.cosine_sine(one, retain)
      self.assertEqual(exclusive(parts, threshold=1.0).rank, 0)
      self.assertEqual(exclusive(parts, soft=True).rank, 0)
      np.testing.assert_array_equal(exclusive(parts, threshold=1.0).vectors, 0.0)
    axes = np.eye(P)
    parts = subspace.cosine_sine(axes[:, :A], axes[:, A:A + B])
    self.assertEqual(exclusive(parts, threshold=0.0).rank, A)
    self.assert_close(projector(exclusive(parts, threshold=0.0).vectors), np.diag(np.arange(P) < A),
                      1e-12)


class MeasuresTest(Float64Test):

  def test_entanglement(self):
    forget, retain = planted(np.radians(PLANTED))
    wide, mask = padded(forget, range(1, 1 + A), B)
    found = subspace.entanglement(np.stack([wide, retain, np.zeros((P, B))]),
                                  np.stack([mask, np.ones(B, bool), np.zeros(B, bool)]))
    between = np.mean(np.cos(np.radians(PLANTED)) ** 2)
    self.assert_close(found, [[1, between, 0], [between, 1, 0], [0, 0, 0]], 1e-12)

  def test_captured_energy(self):
    axes = np.eye(P)
    updates = 3.0 * axes[:, :1] + 4.0 * axes[:, 1:2]
    self.assert_close(subspace.captured_energy(updates, axes[:, 1:3]), 16 / 25, 1e-12)
    self.assert_close(subspace.captured_energy(np.zeros((P, 1)), axes[:, :2]), 0.0, 0.0)

  @parameterized.parameters(((1, 1),), ((3, 2), (0, 4)))
  def test_projecting_factors_is_projecting_their_product(self, *ranks):
    """(I - U U^T) B A (I - V V^T) from B and A alone: what makes the rule one of LoRA's."""
    rng = np.random.default_rng(len(ranks))
    given = {f'matrix {n}': lora.Factors(rng.normal(size=(P - n, 4)), rng.normal(size=(4, 12 + n)))
             for n in range(len(ranks))}
    sides = {f'matrix {n}': {'left': frame(n, left, P - n), 'right': frame(n, right, 12 + n)}
             for n, (left, right) in enumerate(ranks)}
    vector = lora.flatten(given)
    left = np.asarray(subspace.project_out(vector, sides))
    shapes = {name: lora.Factors(*(part.shape for part in one)) for name, one in given.items()}
    start = 0
    for name, one in shapes.items():
      b, a = (left[start + shift:start + shift + np.prod(shape)].reshape(shape)
              for shift, shape in ((0, one.b), (np.prod(one.b), one.a)))
      start += b.size + a.size
      u, v = sides[name]['left'], sides[name]['right']
      want = ((np.eye(len(u)) - projector(u)) @ (given[name].b @ given[name].a)
              @ (np.eye(len(v)) - projector(v)))
      self.assert_close(b @ a, want, 1e-12)
    found = np.asarray(subspace.coordinates(vector, sides))
    want = [part for name, one in given.items() for part in (
        sides[name]['left'].T @ one.b, sides[name]['right'].T @ one.a.T)]
    self.assert_close(found, np.concatenate([np.ravel(part) for part in want]), 1e-12)
    # Orthonormal columns: what is taken out has the length of its coordinates.
    self.assert_close(np.linalg.norm(vector - left), np.linalg.norm(found), 1e-12)

  def test_a_fixed_factor_has_no_right_side(self):
    b, u = np.random.default_rng(0).normal(size=(P, 3)), frame(0, 2)
    found = subspace.project_out(b.ravel(), {'matrix': {'left': u}})
    self.assert_close(found.reshape(P, 3), b - projector(u) @ b, 1e-12)
    with self.assertRaises(AssertionError):
      subspace.project_out(b.ravel()[1:], {'matrix': {'left': u}})

  def test_with_a_common_factor_the_mean_update_is_the_update_of_the_mean(self):
    """FFA: sum p_k (B_k A) = (sum p_k B_k) A; with factors of their own it is not so."""
    rng = np.random.default_rng(0)
    weight = rng.dirichlet(np.ones(5))
    b, a = rng.normal(size=(5, 6, 2)), rng.normal(size=(5, 2, 7))
    mean = lambda x: np.einsum('k,kij->ij', weight, x)
    self.assert_close(mean(b) @ a[0], mean(b @ a[0]), 1e-12)
    self.assertGreater(np.max(np.abs(mean(b) @ mean(a) - mean(b @ a))), 0.1)

  def test_gradients(self):
    forget, _ = planted(np.radians(PLANTED))
    vector = np.random.default_rng(0).normal(size=P)

    def through(forget, retain, vector):  # degenerate: equal angles, and no angle at all
      support = subspace.union(retain[None], np.ones((1, retain.shape[1])))
      cut = exclusive(subspace.cosine_sine(forget, support.vectors), threshold=1.0)
      return jnp.sum(subspace.project_out(vector, cut.vectors) ** 2)

    gradients = jax.jit(jax.grad(through, (0, 1, 2)))(forget, forget, vector)
    np.testing.assert_array_equal(gradients[0], 0.0)
    np.testing.assert_array_equal(gradients[1], 0.0)
    self.assert_close(gradients[2], 2.0 * vector, 1e-12)


class Float32Test(parameterized.TestCase):

  def test_planted_angles_and_ranks(self):
    forget, retain = (x.astype(np.float32) for x in planted(np.radians(PLANTED)))
    parts = subspace.cosine_sine(forget, retain)
    for leaf in parts:
      self.assertEqual(leaf.dtype, np.float32)
    angles = np.degrees(np.arctan2(parts.sines, parts.cosines))
    np.testing.assert_allclose(angles, PLANTED, rtol=0, atol=1e-3)
    cut = exclusive(parts, threshold=1.0)
    self.assertEqual(cut.rank, A)
    np.testing.assert_allclose(cut.vectors.T @ cut.vectors, np.eye(A), atol=1e-5)
    np.testing.assert_allclose(cut.vectors.T @ retain, 0.0, atol=1e-5)
    self.assertEqual(exclusive(parts, threshold=0.0).rank, 1)

  def test_tiny_updates_repeated_clients(self):
    updates = np.float32(1e-25) * np.random.default_rng(0).normal(size=(P, 6)).astype(np.float32)
    found = subspace.basis(np.concatenate([updates, updates], axis=1), energy=1.0, max_rank=12)
    self.assertEqual(found.rank, 6)
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.diag(found.mask), atol=1e-5)
    support = subspace.union(jnp.stack([found.vectors] * 3), jnp.stack([found.mask] * 3))
    self.assertEqual(support.rank, 6)
    parts = subspace.cosine_sine(found.vectors, support.vectors, forget_mask=found.mask,
                                 retain_mask=support.mask)
    self.assertEqual(exclusive(parts, threshold=1.0).rank, 0)


if __name__ == '__main__':
  absltest.main()
