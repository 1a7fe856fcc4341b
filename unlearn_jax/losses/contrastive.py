"""Contrastive losses between the embeddings of pictures and captions."""

import chex
import jax
import jax.numpy as jnp

from unlearn_jax.losses._compiled import compiled
from unlearn_jax.losses._compiled import floating
from unlearn_jax.losses._compiled import kept
from unlearn_jax.losses._compiled import masked_mean


@compiled()
def similarity(image: jax.Array, text: jax.Array) -> jax.Array:
  """`<v_i, t_j>`, in the highest precision, since it meets scales of 100.

  Args:
    image: v [N, d].
    text: t [M, d].

  Returns:
    [N, M], float32 at least.

  Raises:
    AssertionError: shapes that do not fit.
  """
  chex.assert_rank([image, text], 2)
  chex.assert_equal_shape_suffix([image, text], 1)
  return jnp.matmul(floating(image), floating(text).T, precision=jax.lax.Precision.HIGHEST)


@compiled()
def info_nce(
    image: jax.Array, text: jax.Array, logit_scale: jax.Array, *,
    label_smoothing: jax.Array | float = 0.0, where: jax.Array | None = None,
) -> jax.Array:
  """CLIP's loss, `1/2 (CE over texts + CE over images)` of the logits `e^s <v_i, t_j>`.

  NCU's Eq. 1 (as a mean of both directions, where the paper adds them), Radford et al. 2021. With
  smoothing a the target of pair i is `1 - a` on i and `a / N` spread over all.

  Args:
    image: v [N, d], of unit length.
    text: t [N, d], of unit length.
    logit_scale: s, the logarithm of the scale as CLIP stores it.
    label_smoothing: a in [0, 1), traced.
    where: [N] mask: pairs whose own terms count; all pairs stay negatives of one another.

  Returns:
    Scalar, float32 at least; 0 if nothing counts.

  Raises:
    AssertionError: shapes that do not fit.
  """
  chex.assert_equal_shape([image, text])
  logits = jnp.exp(floating(logit_scale)) * similarity(image, text)

  def direction(logits):
    log_p = jax.nn.log_softmax(logits, axis=1)
    smooth = -jnp.mean(log_p, axis=1)
    return masked_mean((1.0 - label_smoothing) * -jnp.diagonal(log_p) + label_smoothing * smooth,
                       where)

  return 0.5 * (direction(logits) + direction(logits.T))


@compiled()
def gradient_ascent(
    image: jax.Array, text: jax.Array, logit_scale: jax.Array, forget: jax.Array, *,
    label_smoothing: jax.Array | float = 0.1, weight: jax.Array | float = 1.0,
) -> jax.Array:
  """`L(D_RT, smoothed) - weight L(D_FG)` with `L = 2 info_nce`, the sum of both directions.

  NCU, section 5.3: the CLIP loss is climbed on pairs taken for mismatched, and descended with label
  smoothing on the others. Ours, where the paper is silent: every pair of the batch is a negative of
  every other, in both sets; smoothing 0.1 and weight 1.

  Args:
    image: v [N, d], of unit length.
    text: t [N, d].
    logit_scale: s.
    forget: [N] mask, 1 for D_FG; not differentiated.
    label_smoothing: on D_RT, traced.
    weight: of the ascent, traced.

  Returns:
    Scalar, float32 at least; not bounded from below.

  Raises:
    AssertionError: shapes that do not fit.
  """
  chex.assert_equal_shape_prefix([image, text, forget], 1)
  forget = jnp.asarray(forget).astype(bool)
  retain = info_nce(image, text, logit_scale, label_smoothing=label_smoothing, where=~forget)
  return 2.0 * (retain - weight * info_nce(image, text, logit_scale, where=forget))


@compiled()
def relabelling(
    image: jax.Array, text: jax.Array, logit_scale: jax.Array, forget: jax.Array
) -> jax.Array:
  """`info_nce` after the pairs in D_FG have passed their captions around a circle.

  NCU, section 3.2: the relation of v_i and t_i is forgotten by learning that of v_i and another
  caption. Here (ours) it is that of the next pair of D_FG, so that no caption stands in the batch
  twice; with a single pair there is nothing to exchange.

  Args:
    image: v [N, d], of unit length.
    text: t [N, d].
    logit_scale: s.
    forget: [N] mask, 1 for D_FG.

  Returns:
    Scalar, float32 at least.

  Raises:
    AssertionError: shapes that do not fit.
  """
  chex.assert_equal_shape_prefix([image, text, forget], 1)
  forget = jnp.asarray(forget).astype(bool)
  places = jnp.arange(len(forget))
  # The next forgotten place after i, around the end of the batch: the nearest in this distance.
  ahead = (places[None, :] - places[:, None] - 1) % len(forget)
  following = jnp.argmin(jnp.where(forget[None, :], ahead, len(forget)), axis=1)
  return info_nce(image, text[jnp.where(forget, following, places)], logit_scale)


def _soft_divergence(logits: jax.Array, intra: jax.Array, softness) -> tuple[jax.Array, jax.Array]:
  """Both KL terms of `soft_clip` in one direction; intra [N, N] are similarities in one modality."""
  own = jnp.eye(len(logits), dtype=bool)
  divergence = lambda p, log_q: jnp.mean(jnp.sum(
      jnp.where(p > 0, p * (jnp.log(jnp.where(p > 0, p, 1.0)) - log_q), 0.0), axis=1))
  target = jax.lax.stop_gradient(
      (1.0 - softness) * own.astype(intra.dtype) + softness * jax.nn.softmax(intra, axis=1))
  rest = jax.lax.stop_gradient(jax.nn.softmax(jnp.where(own, -jnp.inf, intra), axis=1))
  log_rest = jnp.where(own, 0.0, jax.nn.log_softmax(jnp.where(own, -jnp.inf, logits), axis=1))
  return divergence(target, jax.nn.log_softmax(logits, axis=1)), divergence(rest, log_rest)


@compiled()
def soft_clip(
    image: jax.Array, text: jax.Array, logit_scale: jax.Array, *, softness: jax.Array | float = 0.3,
    soft_weight: jax.Array | float = 1.0, relation_weight: jax.Array | float = 0.5,
) -> jax.Array:
  """SoftCLIP's structure: `info_nce + w_s L_soft + w_r L_relation`.

  With intra-modal similarities A (pictures guide pictures to captions, captions the way back):
  `L_soft = mean_i KL((1 - b) e_i + b softmax(e^s A_i) || softmax(e^s S_i))`, and L_relation the
  same divergence over the negatives alone, the pair's own entry left out on both sides, each a mean
  of the two directions.

  Source: Gao et al. 2024 (SoftCLIP), as far as its abstract tells. Left out: their similarities come
  from the features of detected regions and from object tags; ours are those of the embeddings being
  trained, held constant. b, w_s and w_r are a third party's and not the paper's.

  Args:
    image: v [N, d], of unit length; N >= 2.
    text: t [N, d].
    logit_scale: s.
    softness: b in [0, 1), traced.
    soft_weight: w_s, traced.
    relation_weight: w_r, traced.

  Returns:
    Scalar, float32 at least.

  Raises:
    AssertionError: shapes that do not fit.
  """
  chex.assert_equal_shape([image, text])
  scale = jnp.exp(floating(logit_scale))
  logits = scale * similarity(image, text)
  sides = [_soft_divergence(one, scale * similarity(modality, modality), softness)
           for one, modality in ((logits, image), (logits.T, text))]
  soft, relation = (0.5 * (a + b) for a, b in zip(*sides))
  return (info_nce(image, text, logit_scale) + soft_weight * soft + relation_weight * relation)


@compiled(static=('opposite',))
def pairwise_sigmoid(
    image: jax.Array, text: jax.Array, logit_scale: jax.Array, *, opposite: bool = False,
    where: jax.Array | None = None,
) -> jax.Array:
  """`-1/N sum_ij log sigmoid(z_ij e^s <v_i, t_j>)`, z = 1 on the diagonal and -1 off it.

  SigLIP (Zhai et al. 2023) without its bias, as NCU's Eq. 5 uses it; `opposite` turns z around.

  Args:
    image: v [N, d], of unit length.
    text: t [N, d], of unit length.
    logit_scale: s, the logarithm of the scale.
    opposite: static.
    where: [N] mask: pairs of records that both count, N is their number; None counts all.

  Returns:
    Scalar, float32 at least; 0 if nothing counts.

  Raises:
    AssertionError: shapes that do not fit.
  """
  chex.assert_equal_shape([image, text])
  logits = jnp.exp(floating(logit_scale)) * similarity(kept(image, where), kept(text, where))
  count = logits.shape[0]
  signs = 2.0 * jnp.eye(count, dtype=logits.dtype) - 1.0
  losses = -jax.nn.log_sigmoid((-signs if opposite else signs) * logits)
  if where is None:
    return jnp.sum(losses) / count
  weights = jnp.asarray(where).astype(bool).astype(logits.dtype)
  pairs = weights[:, None] * weights[None, :]
  return jnp.sum(pairs * losses) / jnp.maximum(jnp.sum(weights), 1.0)
