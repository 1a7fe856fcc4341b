"""Subspaces of client updates: bases, principal angles, cosine-sine decomposition, projections.

A basis is [P, n] with orthonormal columns, of which a mask says which count: the others are zero, so
that shapes stay static while ranks depend on the data. Nothing of size P x P is ever formed, and no
gradient flows through a decomposition. EASE is re-implemented from its abstract, which names the
decomposition and no formula: energies, ranks, thresholds and the treatment of noise are ours.

Bases come from `G = Q R` (Householder) and the singular values of R. The eigenvalues of `G^T G` tell
the same with half the digits and would need float64 throughout, which TPUs lack and which cannot be
switched on inside vmap; QR loses none, in the dtype of its inputs.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from unlearn_jax.losses._compiled import compiled
from unlearn_jax.losses._compiled import floating

# Bases for both sides of the matrices that low-rank factors adapt: {matrix: {'left': U [d_out, q],
# 'right': V [d_in, q]}}; B is projected on the left, A on the right. Without 'right' A is fixed.
Sides = Mapping[str, Mapping[str, jax.Array]]


class Basis(NamedTuple):
  """Directions in a space of P parameters.

  Attributes:
    vectors: [P, n]; columns that do not count are 0.
    rank: int32, the number of columns that count.
    mask: bool [n], those columns.
  """

  vectors: jax.Array
  rank: jax.Array
  mask: jax.Array


class CosineSine(NamedTuple):
  """`F_i = c_i R_i + s_i Q_i`, by falling cosine; what stems from padding is 0 and stands last.

  Attributes:
    cosines: c [a], in [0, 1]: the cosine of the i-th principal angle.
    sines: s [a], in [0, 1], `c^2 + s^2 = 1`.
    forget_vectors: F [P, a], principal vectors of the forget basis.
    retain_vectors: R [P, a], their partners in the retain support; 0 where c_i is 0 up
      to rounding.
    exclusive_vectors: Q [P, a], orthonormal and orthogonal to the retain support; 0 where s_i is 0,
      that is below 1e-8 in float64 and 3e-4 in float32.
  """

  cosines: jax.Array
  sines: jax.Array
  forget_vectors: jax.Array
  retain_vectors: jax.Array
  exclusive_vectors: jax.Array


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _counts(mask: jax.Array | None, size: int) -> jax.Array:
  """bool [size]."""
  if mask is None:
    return jnp.ones(size, bool)
  chex.assert_shape(mask, (size,))
  return jnp.asarray(mask).astype(bool)


def _columns(vectors: jax.Array, mask: jax.Array | None) -> jax.Array:
  """[P, n] without gradient, with the columns set to 0 that do not count."""
  vectors = jax.lax.stop_gradient(floating(vectors))
  return jnp.where(_counts(mask, vectors.shape[1])[None, :], vectors, 0.0)


def _norms(columns: jax.Array) -> jax.Array:
  return jnp.sqrt(jnp.sum(jnp.square(columns), axis=0))


def _eps(x: jax.Array) -> float:
  return float(jnp.finfo(x.dtype).eps)


def _noise(x: jax.Array) -> float:
  """Sines below belong to directions that are mostly rounding."""
  return _eps(x) ** 0.5


# One matrix after the other, also under vmap: two batched LAPACK calls that run at the same time, as
# those of two branches may, can take all threads of a CPU with few cores and wait for each other.
@jax.custom_batching.sequential_vmap
def _qr(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
  return tuple(jnp.linalg.qr(matrix))


@jax.custom_batching.sequential_vmap
def _svd(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  return tuple(jnp.linalg.svd(matrix, full_matrices=False))


def _left_vectors(columns: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Left singular vectors [P, n] and values [n], falling, up to the scale of `columns` [P, n]."""
  # Scaled: energies are squares, and those of small updates would vanish in float32.
  peak = jnp.max(jnp.abs(columns), initial=0.0)
  q, r = _qr(columns / jnp.where(peak > 0, peak, jnp.ones_like(peak)))
  left, values, _ = _svd(r)
  missing = columns.shape[1] - len(values)  # more columns than parameters
  return jnp.pad(_product(q, left), ((0, 0), (0, missing))), jnp.pad(values, (0, missing))


def _clear(values: jax.Array, tolerance: jax.Array | float) -> jax.Array:
  """int32, how many singular values stand out; NaN do, so that they are not mistaken for none."""
  return jnp.sum(~(values <= tolerance * jnp.max(values, initial=0.0)), dtype=jnp.int32)


def _rounding(columns: jax.Array) -> float:
  return 10.0 * columns.shape[1] * _eps(columns)


def _first(vectors: jax.Array, rank: jax.Array, size: int) -> Basis:
  """The first `rank` columns of [P, n], cut or padded to `size`."""
  mask = jnp.arange(size) < rank
  vectors = jnp.pad(vectors[:, :size], ((0, 0), (0, max(0, size - vectors.shape[1]))))
  return Basis(jnp.where(mask[None, :], vectors, 0.0), rank, mask)


@compiled(static=('max_rank',))
def basis(
    updates: jax.Array, *, energy: jax.Array | float = 0.95, max_rank: int = 32
) -> Basis:
  """The directions in which a client has moved: left singular vectors of its updates.

  `q = min{q : sum_{j <= q} lambda_j >= energy sum_j lambda_j}` with `lambda_j = sigma_j^2`, capped by
  `max_rank` and by `lambda_j > 1e-12 lambda_1`. The rule of energies is GPM's (Saha et al. 2021);
  EASE's abstract gives none, and the values are ours.

  Gradient: none.

  Args:
    updates: G [P, H], a column per round; zero columns (rounds without the client) and repeated ones
      change nothing but the energy of what they repeat, all zero gives rank 0.
    energy: in (0, 1], traced.
    max_rank: static; the vectors take P x max_rank numbers, so no more than H is of use.

  Returns:
    A `Basis` of max_rank columns, by falling singular value; float32 at least. NaN updates give NaN.

  Raises:
    AssertionError: updates that are not a matrix.
  """
  chex.assert_rank(updates, 2)
  updates = _columns(updates, None)
  vectors, values = _left_vectors(updates)
  energies = jnp.square(values)
  short = jnp.cumsum(energies) < energy * jnp.sum(energies)
  enough = jnp.sum(short, dtype=jnp.int32) + 1
  clear = _clear(values, max(1e-6, _rounding(updates)))
  return _first(vectors, jnp.minimum(jnp.minimum(enough, clear), max_rank), max_rank)


@compiled()
def orthonormal(columns: jax.Array, *, tolerance: jax.Array | float | None = None) -> Basis:
  """A basis of the span of any columns, without truncation.

  Gradient: none.

  Args:
    columns: [P, n].
    tolerance: directions with `sigma_j <= tolerance sigma_1` are taken for rounding, traced; None is
      `10 n eps`.

  Returns:
    A `Basis` of n columns, float32 at least.

  Raises:
    AssertionError: columns that are not a matrix.
  """
  chex.assert_rank(columns, 2)
  columns = _columns(columns, None)
  vectors, values = _left_vectors(columns)
  tolerance = _rounding(columns) if tolerance is None else tolerance
  return _first(vectors, _clear(values, tolerance), columns.shape[1])


@compiled()
def union(bases: jax.Array, masks: jax.Array) -> Basis:
  """The retain support `U_r = orth[U_1, ..., U_K]`: the sum of the clients' spaces (ours).

  Pairwise angles do not tell what it holds: `(e_1 + ... + e_n) / sqrt(n)` has the cosine
  `1 / sqrt(n)` to each of n axes and lies in their sum.

  Gradient: none.

  Args:
    bases: [K, P, q].
    masks: [K, q], columns that count; zeros leave a client out.

  Returns:
    A `Basis` of K q columns, float32 at least.

  Raises:
    AssertionError: shapes that do not fit.
  """
  chex.assert_rank([bases, masks], [3, 2])
  chex.assert_shape(masks, (bases.shape[0], bases.shape[2]))
  columns = jnp.moveaxis(bases, 0, 1).reshape(bases.shape[1], -1)  # [P, K q]
  return orthonormal.__wrapped__(_columns(columns, masks.reshape(-1)))


@compiled()
def cosine_sine(
    forget_basis: jax.Array, retain_basis: jax.Array, *, forget_mask: jax.Array | None = None,
    retain_mask: jax.Array | None = None,
) -> CosineSine:
  """The cosine-sine decomposition of a forget basis against the retain support.

  With orthonormal U_f and U_r there is one rotation X of U_f for which

  `F = U_f X,  U_r U_r^T F = R C,  (I - U_r U_r^T) F = Q S,  C^2 + S^2 = I,  Q^T U_r = 0,  Q^T Q = I`:

  what the retained clients share (R) and what belongs to the forgotten client alone (Q). It is the
  thin CSD (Golub and Van Loan, section 2.5.4); EASE's abstract names it and no more. X is taken from
  the sines' side, since Q is what will be used: it stays orthonormal at small angles. Cosines are
  the norms of `U_r^T F_i`. Angles of which the sines (near 90 degrees) agree to rounding have
  principal vectors up to a rotation, and cosines to `sqrt(eps)`.

  Gradient: none.

  Args:
    forget_basis: U_f [P, a], orthonormal where it counts.
    retain_basis: U_r [P, b], orthonormal where it counts; b < a and b = 0 are allowed.
    forget_mask: [a], columns that count; None counts all. The others are kept out of the
      decomposition.
    retain_mask: [b].

  Returns:
    A `CosineSine`, float32 at least.

  Raises:
    AssertionError: shapes that do not fit.
  """
  chex.assert_rank([forget_basis, retain_basis], 2)
  chex.assert_equal_shape_prefix([forget_basis, retain_basis], 1)
  forget, retain = _columns(forget_basis, forget_mask), _columns(retain_basis, retain_mask)
  size = forget.shape[1]
  if not size:
    return CosineSine(*[jnp.zeros(0, forget.dtype)] * 2, *[forget] * 3)
  shared = lambda vectors: _product(retain, _product(retain.T, vectors))
  q, r = _qr(forget - shared(forget))
  # Padding gets a row of its own and the value 2, which no sine reaches: it cannot mix with
  # directions, comes first among the falling sines, and so last among the falling cosines.
  counts = _counts(forget_mask, size)
  padding = 2.0 * jnp.diag((~counts).astype(r.dtype))
  left, sines, right = _svd(jnp.concatenate([r, padding]))
  valid = jnp.arange(size) < jnp.sum(counts)
  sines = jnp.where(valid, sines[::-1], 0.0)
  vectors = jnp.where(valid[None, :], _product(forget, right[::-1].T), 0.0)  # F
  coordinates = _product(retain.T, vectors)  # [b, a]
  cosines = _norms(coordinates)
  partnered = cosines > 100.0 * _eps(r)
  partners = _product(retain, coordinates) / jnp.where(partnered, cosines, 1.0)[None, :]
  exclusive_vectors = _product(q, left[:len(r), ::-1])
  exclusive_vectors -= shared(exclusive_vectors)  # rounding, that small sines have scaled up
  return CosineSine(
      cosines, sines, vectors, jnp.where(partnered[None, :], partners, 0.0),
      jnp.where((valid & (sines > _noise(r)))[None, :], exclusive_vectors, 0.0))


@compiled()
def pairwise(
    forget_basis: jax.Array, retain_bases: jax.Array, *, forget_mask: jax.Array | None = None,
    retain_masks: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """The angle of each forget vector to the nearest single client, as (c, s), for an ablation.

  `c_i = max_k ||U_k^T u_i||`, `s_i = sqrt(1 - c_i^2)`: what `union` warns of. Ours.

  Gradient: none.

  Args:
    forget_basis: U_f [P, a].
    retain_bases: [K, P, q].
    forget_mask: [a], columns that count; None counts all.
    retain_masks: [K, q].

  Returns:
    Cosines [a] and sines [a], float32 at least; both 0 for padding.

  Raises:
    AssertionError: shapes that do not fit.
  """
  chex.assert_rank([forget_basis, retain_bases], [2, 3])
  chex.assert_equal(forget_basis.shape[0], retain_bases.shape[1])
  if retain_masks is None:
    retain_masks = jnp.ones((retain_bases.shape[0], retain_bases.shape[2]), bool)
  forget = _columns(forget_basis, forget_mask)

  def angles(retain, mask):
    retain = _columns(retain, mask)
    inside = _product(retain.T, forget)
    return _norms(inside), _norms(forget - _product(retain, inside))

  cosines, sines = jax.vmap(angles)(retain_bases, retain_masks)
  return jnp.max(cosines, axis=0, initial=0.0), jnp.min(sines, axis=0, initial=1.0)


@compiled(static=('soft',))
def exclusive(
    cosines: jax.Array, sines: jax.Array, vectors: jax.Array, *,
    threshold: jax.Array | float = 0.5, soft: bool = False,
) -> Basis:
  """The forget-exclusive directions U_u = {Q_i : c_i <= tau_c}.

  The vectors may be Q (`exclusive_vectors`: orthogonal to the retain support, an update in it is
  left untouched) or F (`forget_vectors`: all of F_i goes, and up to tau_c of an update in the
  support). Why a threshold if Q is orthogonal anyway: with a small sine, Q_i is mostly the truncated
  tail of the clients' bases. Softly, all columns count, scaled by s_i, so that `U U^T` has weights
  s_i^2 in the place of 0 and 1. Rule and default are ours.

  Gradient: none.

  Args:
    cosines: c [a], of `cosine_sine` (or `pairwise`).
    sines: s [a].
    vectors: [P, a].
    threshold: tau_c in [0, 1], traced; 0 keeps what is orthogonal up to rounding. Not used softly.
    soft: static.

  Returns:
    A `Basis` of a columns, in their places, float32 at least; rank 0 if nothing is exclusive.

  Raises:
    AssertionError: shapes that do not fit.
  """
  chex.assert_rank([cosines, sines, vectors], [1, 1, 2])
  chex.assert_equal_shape([cosines, sines])
  chex.assert_equal(vectors.shape[1], cosines.shape[0])
  vectors = _columns(vectors, None)
  sines = floating(sines).astype(vectors.dtype)
  mask = sines > _noise(vectors)
  if soft:
    vectors = vectors * jax.lax.stop_gradient(sines)[None, :]
  else:
    mask &= floating(cosines) <= threshold + 100.0 * _eps(vectors)
  return Basis(_columns(vectors, mask), jnp.sum(mask, dtype=jnp.int32), mask)


@compiled()
def principal_angles(
    first: jax.Array, second: jax.Array, *, first_mask: jax.Array | None = None,
    second_mask: jax.Array | None = None,
) -> jax.Array:
  """Principal angles between two subspaces, `theta_i = atan2(s_i, c_i)`.

  Accurate at both ends: small angles come from sines, large ones from cosines (Bjorck and Golub
  1973).

  Gradient: none.

  Args:
    first: [P, a], orthonormal where it counts.
    second: [P, b].
    first_mask: [a], columns that count; None counts all.
    second_mask: [b].

  Returns:
    [min(a, b)] in radians, rising, in [0, pi/2]; pi/2 where padding has no partner.

  Raises:
    AssertionError: shapes that do not fit.
  """
  parts = cosine_sine.__wrapped__(first, second, forget_mask=first_mask, retain_mask=second_mask)
  angles = jnp.arctan2(parts.sines, parts.cosines)
  valid = jnp.arange(len(angles)) < jnp.sum(_counts(first_mask, len(angles)))
  return jnp.where(valid, angles, 0.5 * jnp.pi)[:min(first.shape[1], second.shape[1])]


@compiled()
def entanglement(bases: jax.Array, masks: jax.Array) -> jax.Array:
  """`E_kl = ||U_k^T U_l||_F^2 / min(q_k, q_l)`: the mean squared cosine of each pair (ours).

  Gradient: none.

  Args:
    bases: [K, P, q], orthonormal where they count.
    masks: [K, q], columns that count.

  Returns:
    [K, K] in [0, 1], symmetric, float32 at least; 0 beside an empty basis.

  Raises:
    AssertionError: shapes that do not fit.
  """
  chex.assert_rank([bases, masks], [3, 2])
  chex.assert_shape(masks, (bases.shape[0], bases.shape[2]))
  vectors = jax.vmap(_columns)(bases, masks)
  inner = jnp.einsum('kpi,lpj->klij', vectors, vectors, precision=jax.lax.Precision.HIGHEST)
  ranks = jnp.sum(masks.astype(bool), axis=1).astype(inner.dtype)
  smaller = jnp.minimum(ranks[:, None], ranks[None, :])
  return jnp.sum(jnp.square(inner), axis=(2, 3)) / jnp.maximum(smaller, 1.0)


@compiled()
def captured_energy(updates: jax.Array, basis: jax.Array) -> jax.Array:  # pylint: disable=redefined-outer-name
  """`||U^T G||_F^2 / ||G||_F^2`: how much of the updates lies along a basis.

  Args:
    updates: G [P, H].
    basis: U [P, q], orthonormal or zero columns.

  Returns:
    Scalar in [0, 1], float32 at least; 0 without updates.

  Raises:
    AssertionError: shapes that do not fit.
  """
  chex.assert_rank([updates, basis], 2)
  chex.assert_equal_shape_prefix([updates, basis], 1)
  updates, vectors = floating(updates), floating(basis)
  total = jnp.sum(jnp.square(updates))
  inside = jnp.sum(jnp.square(_product(vectors.T, updates)))
  return inside / jnp.where(total > 0, total, jnp.ones_like(total))


@compiled()
def project_out(vector: jax.Array, basis: jax.Array | Sides) -> jax.Array:  # pylint: disable=redefined-outer-name
  """`(I - U U^T) v = v - U (U^T v)`; of the factors of matrices `(I - U U^T) B` and `A (I - V V^T)`.

  The latter projects their product: `(I - U U^T) B A (I - V V^T) = (I - U U^T) (B A) (I - V V^T)`.

  Args:
    vector: v [P]; with `Sides` as `models.lora.flatten` lays factors out: vec(B), vec(A), by rows,
      of one matrix after the other in the order of their names.
    basis: U [P, q], orthonormal or zero columns, q = 0 is allowed; or `Sides`.

  Returns:
    [P], float32 at least.

  Raises:
    AssertionError: shapes that do not fit.
  """
  return jnp.concatenate([flat(rows - _product(vectors, _product(vectors.T, rows)))
                          for rows, vectors, flat in _acted_on(vector, basis)])


@compiled()
def coordinates(vector: jax.Array, basis: jax.Array | Sides) -> jax.Array:  # pylint: disable=redefined-outer-name
  """`U^T v`; of factors `U^T B` and `A V` of every matrix, one after the other.

  Args:
    vector: v [P].
    basis: as `project_out`.

  Returns:
    [q], float32 at least.

  Raises:
    AssertionError: shapes that do not fit.
  """
  return jnp.concatenate([_product(vectors.T, rows).ravel()
                          for rows, vectors, _ in _acted_on(vector, basis)])


def _acted_on(vector: jax.Array, basis: jax.Array | Sides) -> list[
    tuple[jax.Array, jax.Array, Callable[[jax.Array], jax.Array]]]:
  """[(rows [n, c], the U [n, q] that acts on them, rows -> their piece of the vector)], in order."""
  chex.assert_rank(vector, 1)
  vector = floating(vector)
  if not isinstance(basis, Mapping):
    chex.assert_rank(basis, 2)
    chex.assert_equal_shape_prefix([vector, basis], 1)
    return [(vector[:, None], floating(basis), jnp.ravel)]
  sides = [(side, floating(basis[name][side])) for name in sorted(basis)
           for side in ('left', 'right') if side in basis[name]]
  chex.assert_rank([vectors for _, vectors in sides], 2)
  height = sum(len(vectors) for _, vectors in sides)
  chex.assert_is_divisible(len(vector), height)
  rank, found, start = len(vector) // height, [], 0
  for side, vectors in sides:
    piece = vector[start:start + rank * len(vectors)]
    start += len(piece)
    if side == 'left':
      found.append((piece.reshape(-1, rank), vectors, jnp.ravel))
    else:
      found.append((piece.reshape(rank, -1).T, vectors, lambda rows: jnp.ravel(rows.T)))
  return found
