"""EASE: bilateral displacement, and projection with a direction-selective Forget Lock.

Re-implemented from the abstract, the only part of the paper that is public in full: it names the two
branches, the cosine-sine decomposition (`subspace.cosine_sine`) and the lock that bounds drift. All
formulas and defaults here are ours. Embeddings are of unit length, `image` and `text` those of the
model that learns; parameters are one flat vector per branch, and each call concerns one branch.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from unlearn_jax.losses import contrastive
from unlearn_jax.losses import subspace
from unlearn_jax.losses._compiled import compiled
from unlearn_jax.losses._compiled import floating
from unlearn_jax.losses._compiled import kept
from unlearn_jax.losses._compiled import masked_mean

REFERENCES = ('embeddings', 'uniform')
_EXCLUDED = -1e30  # a score that takes no part, finite so that its gradient is


class BilateralDisplacement(NamedTuple):
  """The three channels between both branches.

  Attributes:
    loss: lambda_1 joint + lambda_2 image + lambda_3 text.
    joint: both branches as they are now; before weighting, as the other two.
    image: the image branch against the captions' original embeddings: moves the image branch only.
    text: the text branch against the pictures' original embeddings: moves the text branch only.
  """

  loss: jax.Array
  joint: jax.Array
  image: jax.Array
  text: jax.Array


def _counts(where: jax.Array | None, size: int) -> jax.Array:
  """bool [size], the pairs that count."""
  if where is None:
    return jnp.ones(size, bool)
  chex.assert_shape(where, (size,))
  return jnp.asarray(where).astype(bool)


def _similarity(rows: jax.Array, columns: jax.Array, counts: jax.Array) -> jax.Array:
  """`<x_i, y_j>` [N, N], finite also where padding is not."""
  return contrastive.similarity(kept(rows, counts), kept(columns, counts))


def _log_softmax(scores: jax.Array, counts: jax.Array) -> jax.Array:
  """[N, N], over the columns that count."""
  return jax.nn.log_softmax(jnp.where(counts[None, :], scores, _EXCLUDED), axis=1)


def _both(one_way, scores: tuple[jax.Array, ...], counts: jax.Array) -> jax.Array:
  """Mean over pairs and over both directions of `one_way(*scores) -> [N]`."""
  there, back = one_way(*scores), one_way(*(s.T for s in scores))
  return 0.5 * (masked_mean(there, counts) + masked_mean(back, counts))


def _diagonal(scores: jax.Array, counts: jax.Array) -> jax.Array:
  """log p_ii [N]."""
  return jnp.diagonal(_log_softmax(scores, counts))


def _logits(image, text, logit_scale, where) -> tuple[jax.Array, jax.Array]:
  chex.assert_rank([image, text], 2)
  chex.assert_equal_shape([image, text])
  counts = _counts(where, len(image))
  similarity = _similarity(image, text, counts)
  return jnp.exp(jnp.asarray(logit_scale, similarity.dtype)) * similarity, counts


@compiled()
def local_loss(
    image: jax.Array, text: jax.Array, logit_scale: jax.Array, *, where: jax.Array | None = None
) -> jax.Array:
  """L_NCE, what clients minimise: `1/2 [CE(S, diag) + CE(S^T, diag)]`, `S = e^s <u_i, w_j>`.

  CLIP's loss (Radford et al. 2021) over ragged batches: padding is no negative either, unlike in
  `contrastive.info_nce`.

  Args:
    image: u [N, d].
    text: w [N, d].
    logit_scale: s, the logarithm of the scale as CLIP stores it.
    where: [N] mask: pairs that count; None counts all.

  Returns:
    Scalar, float32 at least, at least 0; 0 if nothing counts.

  Raises:
    AssertionError: shapes that do not fit.
  """
  logits, counts = _logits(image, text, logit_scale, where)
  return -_both(lambda s: _diagonal(s, counts), (logits,), counts)


@compiled(static=('reference',))
def bilateral_displacement(
    image: jax.Array, text: jax.Array, image_original: jax.Array, text_original: jax.Array,
    image_reference: jax.Array, text_reference: jax.Array, *, temperature: jax.Array | float,
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0), reference: str = 'embeddings',
    where: jax.Array | None = None,
) -> BilateralDisplacement:
  """Both branches leave the alignment of forgotten pairs for that of a reference model (ours).

  With * the trained model and 0 the reference, three channels of scores and of targets:

  - joint: `S_1 = U W^T / tau`, `S_1^ref = U^0 W^0T / tau`;
  - image: `S_2 = U W*^T / tau`, `S_2^ref = U^0 W*^T / tau`;
  - text: `S_3 = U* W^T / tau`, `S_3^ref = U* W^0T / tau`;

  `L = sum_c lambda_c 1/2 mean_i [KL(P_c^ref_i || P_c_i) + KL(Q_c^ref_i || Q_c_i)]` with P the softmax
  over the rows of S and Q over those of its transpose. The last two cut the alignment of each branch
  to the other's original embeddings, which every former client holds: from them, the gradient of
  one branch could rebuild the pair. Bounded from below by 0, with gradient 0 at the reference.

  Gradient: to `image` and `text` alone.

  Args:
    image: u [N, d] of the pairs to forget; a single pair has nothing to be told from: loss 0.
    text: w [N, d].
    image_original: u* [N, d], of the trained model.
    text_original: w* [N, d].
    image_reference: u^0 [N, d], of the reference model.
    text_reference: w^0 [N, d].
    temperature: tau > 0, traced.
    weights: (lambda_1, lambda_2, lambda_3), traced.
    reference: static, `'embeddings'`, or `'uniform'`: targets are 1/N everywhere, and the embeddings
      of the reference are not looked at. Forgets more than a model would that never saw the pairs.
    where: [N] mask: pairs that count, on both sides; None counts all.

  Returns:
    A `BilateralDisplacement` of scalars, float32 at least; 0 if nothing counts.

  Raises:
    AssertionError: shapes that do not fit.
    ValueError: unknown reference.
  """
  if reference not in REFERENCES:
    raise ValueError(f'reference is one of {", ".join(REFERENCES)}, got {reference!r}')
  given = (image_original, text_original, image_reference, text_reference)
  chex.assert_rank([image, text, *given], 2)
  chex.assert_equal_shape([image, text, *given])
  u_original, w_original, u_reference, w_reference = jax.lax.stop_gradient(given)
  counts = _counts(where, len(image))

  def divergence(scores, targets):
    log_p, log_target = _log_softmax(scores, counts), _log_softmax(targets, counts)
    return jnp.sum(jnp.exp(log_target) * (log_target - log_p), axis=1)

  def channel(u, w, u_target, w_target):
    scores = _similarity(u, w, counts)
    targets = _similarity(u_target, w_target, counts)
    if reference == 'uniform':
      targets = jnp.zeros_like(targets)
    tau = jnp.asarray(temperature, scores.dtype)
    return _both(divergence, (scores / tau, targets / tau), counts)

  channels = (channel(image, text, u_reference, w_reference),
              channel(image, w_original, u_reference, w_original),
              channel(u_original, text, u_original, w_reference))
  loss = sum(weight * value for weight, value in zip(weights, channels, strict=True))
  return BilateralDisplacement(loss, *channels)


@compiled()
def neg_nce(
    image: jax.Array, text: jax.Array, logit_scale: jax.Array, *, where: jax.Array | None = None
) -> jax.Array:
  """`-L_NCE`: gradient ascent, in the place of the bilateral displacement (ablation).

  Args:
    image: u [N, d].
    text: w [N, d].
    logit_scale: s.
    where: [N] mask: pairs that count; None counts all.

  Returns:
    Scalar, float32 at least; not bounded from below.

  Raises:
    AssertionError: shapes that do not fit.
  """
  return -local_loss.__wrapped__(image, text, logit_scale, where=where)


@compiled()
def uce(
    image: jax.Array, text: jax.Array, logit_scale: jax.Array, *, where: jax.Array | None = None
) -> jax.Array:
  """`1/2 mean_i [-log(1 - p_ii / 2) - log(1 - q_ii / 2)]`, in the place of the displacement.

  FedOSD's unlearning cross entropy (Pan et al., AAAI 2025); on both directions of the contrastive
  softmax: ours. Bounded, and its gradient fades as pairs are forgotten.

  Args:
    image: u [N, d].
    text: w [N, d].
    logit_scale: s.
    where: [N] mask: pairs that count; None counts all.

  Returns:
    Scalar in [0, log 2], float32 at least.

  Raises:
    AssertionError: shapes that do not fit.
  """
  logits, counts = _logits(image, text, logit_scale, where)
  return _both(lambda s: -jnp.log1p(-0.5 * jnp.exp(_diagonal(s, counts))), (logits,), counts)


@compiled()
def hinge(
    image: jax.Array, text: jax.Array, image_original: jax.Array, text_original: jax.Array, *,
    margin: jax.Array | float = 0.0, weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
    where: jax.Array | None = None,
) -> jax.Array:
  """`sum_c lambda_c 1/2 mean_i [<x_ci, y_ci> - rho]_+^2`, in the place of the displacement (ours).

  The channels are those of `bilateral_displacement`: (u, w), (u, w*), (u*, w).

  Gradient: to `image` and `text` alone.

  Args:
    image: u [N, d].
    text: w [N, d].
    image_original: u* [N, d].
    text_original: w* [N, d].
    margin: rho, the cosine that is left to forgotten pairs, traced.
    weights: lambda, traced.
    where: [N] mask: pairs that count; None counts all.

  Returns:
    Scalar, float32 at least, at least 0.

  Raises:
    AssertionError: shapes that do not fit.
  """
  given = (image, text, image_original, text_original)
  chex.assert_rank(given, 2)
  chex.assert_equal_shape(given)
  counts = _counts(where, len(image))
  u, w, u_original, w_original = (floating(kept(x, counts)) for x in given)
  u_original, w_original = jax.lax.stop_gradient((u_original, w_original))
  total = jnp.zeros((), u.dtype)
  for weight, x, y in zip(weights, (u, u, u_original), (w, w_original, w), strict=True):
    excess = jax.nn.relu(jnp.sum(x * y, axis=1) - jnp.asarray(margin, u.dtype))
    total += weight * 0.5 * masked_mean(jnp.square(excess), counts)
  return total


@compiled()
def server_round(
    params: jax.Array, forget_update: jax.Array, retain_update: jax.Array,
    retain_basis: jax.Array | subspace.Sides, exclusive_basis: jax.Array | subspace.Sides,
) -> jax.Array:
  """`theta + (I - Pi_r) d_f + (I - Pi_u) sum_k p_k Delta_k`, one branch's part of a round (ours).

  Since `U_u^T U_r = 0`, the displacement alone writes exclusive coordinates and the retained clients
  alone write those of their support: `U_u^T step = U_u^T d_f`, `U_r^T step = U_r^T sum p Delta`.

  Args:
    params: theta [P].
    forget_update: d_f [P], the displacement's; 0 in rounds of recovery.
    retain_update: [P], the weighted mean over the retained clients.
    retain_basis: U_r [P, b], or the `subspace.Sides` of matrices.
    exclusive_basis: U_u [P, a], or `Sides`; zero columns are allowed in both.

  Returns:
    [P], float32 at least.

  Raises:
    AssertionError: shapes that do not fit.
  """
  chex.assert_rank([params, forget_update, retain_update], 1)
  chex.assert_equal_shape([params, forget_update, retain_update])
  return (floating(params) + subspace.project_out(forget_update, retain_basis)
          + subspace.project_out(retain_update, exclusive_basis))


@compiled()
def excise(
    params: jax.Array, start: jax.Array, basis: jax.Array | subspace.Sides, *,
    fraction: jax.Array | float = 1.0
) -> jax.Array:
  """`theta - gamma Pi_u (theta - theta^0)`: takes back what training wrote along a basis (ours).

  Args:
    params: theta [P].
    start: theta^0 [P], from which the federation started.
    basis: U_u [P, q], or the `subspace.Sides` of matrices.
    fraction: gamma in [0, 1], traced.

  Returns:
    [P], float32 at least.

  Raises:
    AssertionError: shapes that do not fit.
  """
  chex.assert_rank([params, start], 1)
  chex.assert_equal_shape([params, start])
  params, moved = floating(params), floating(params) - floating(start)
  return params - fraction * (moved - subspace.project_out(moved, basis))


@compiled()
def forget_lock(
    params: jax.Array, locked: jax.Array, basis: jax.Array | subspace.Sides | None, *,
    step_size: jax.Array | float, strength: jax.Array | float,
) -> jax.Array:
  """The direction-selective Forget Lock, as a proximal step after an optimizer's (ours).

  The exact minimiser of `||theta' - theta||^2 / (2 eta) + mu/2 ||U^T (theta' - theta_lock)||^2`:

  `theta' = theta - U z eta mu / (1 + eta mu)`, `z = U^T (theta - theta_lock)`, so that
  `z' = z / (1 + eta mu)`.

  If steps move at most eta G along U, `||z|| <= max(||z_0||, G / mu)` ever after, for any eta mu, and
  for weighted means of clients as well: drift falls as the inverse of the strength. What is
  orthogonal to U is left untouched.

  Args:
    params: theta [P], after the optimizer's step.
    locked: theta_lock [P].
    basis: U [P, q], orthonormal or zero columns, or the `subspace.Sides` of matrices; None locks all
      directions alike (FedProx, for an ablation). Columns scaled by s_i (`subspace.exclusive`,
      softly) have their z pulled by s_i^2 of that share.
    step_size: eta of the optimizer's step, traced.
    strength: mu >= 0, traced; 0 changes nothing.

  Returns:
    [P], float32 at least.

  Raises:
    AssertionError: shapes that do not fit.
  """
  chex.assert_rank([params, locked], 1)
  chex.assert_equal_shape([params, locked])
  params, drift = floating(params), floating(params) - floating(locked)
  if basis is not None:
    drift -= subspace.project_out(drift, basis)
  pull = jnp.asarray(step_size, params.dtype) * jnp.asarray(strength, params.dtype)
  return params - pull / (1.0 + pull) * drift


@compiled()
def automatic_strength(
    gradients: jax.Array, moved: jax.Array, basis: jax.Array, *,
    fraction: jax.Array | float = 0.05, where: jax.Array | None = None,
) -> jax.Array:
  """`mu = max_k ||U^T g_k|| / (kappa ||U^T (theta^T - theta^0)||)` for `forget_lock` (ours).

  The bound `G / mu` is then the fraction kappa of what training had written along U.

  Gradient: none.

  Args:
    gradients: g_k [K, P], of the retained clients' loss at theta_lock.
    moved: theta^T - theta^0 [P].
    basis: U [P, q].
    fraction: kappa > 0, traced.
    where: [K] mask: clients that count; None counts all.

  Returns:
    Scalar, float32 at least; 0 with an empty basis. What is less than eps counts as eps in the
    denominator, so that the lock is tight, not infinite, where nothing was written.

  Raises:
    AssertionError: shapes that do not fit.
  """
  chex.assert_rank([gradients, moved, basis], [2, 1, 2])
  chex.assert_equal(gradients.shape[1], moved.shape[0])
  chex.assert_equal_shape_prefix([moved, basis], 1)
  gradients, moved, basis = jax.lax.stop_gradient(
      (floating(kept(gradients, where)), floating(moved), floating(basis)))
  along = lambda vectors: jnp.linalg.norm(
      jnp.matmul(vectors, basis, precision=jax.lax.Precision.HIGHEST), axis=-1)
  least = float(jnp.finfo(moved.dtype).eps)
  return jnp.max(along(gradients), initial=0.0) / jnp.maximum(fraction * along(moved), least)
