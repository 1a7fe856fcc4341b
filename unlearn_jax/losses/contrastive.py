"""Contrastive losses between the embeddings of pictures and captions."""

import chex
import jax
import jax.numpy as jnp

from unlearn_jax.losses._compiled import compiled
from unlearn_jax.losses._compiled import floating
from unlearn_jax.losses._compiled import kept


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
    label_smoothing: jax.Array | float = 0.0,
) -> jax.Array:
  """CLIP's loss, `1/2 (CE over texts + CE over images)` of the logits `e^s <v_i, t_j>`.

  NCU's Eq. 1 (as a mean of both directions, where the paper adds them), Radford et al. 2021. With
  smoothing a the target of pair i is `1 - a` on i and `a / N` spread over all.

  Args:
    image: v [N, d], of unit length.
    text: t [N, d], of unit length.
    logit_scale: s, the logarithm of the scale as CLIP stores it.
    label_smoothing: a in [0, 1), traced.

  Returns:
    Scalar, float32 at least.

  Raises:
    AssertionError: shapes that do not fit.
  """
  chex.assert_equal_shape([image, text])
  logits = jnp.exp(floating(logit_scale)) * similarity(image, text)

  def direction(logits):
    log_p = jax.nn.log_softmax(logits, axis=1)
    smooth = -jnp.mean(log_p, axis=1)
    return jnp.mean((1.0 - label_smoothing) * -jnp.diagonal(log_p) + label_smoothing * smooth)

  return 0.5 * (direction(logits) + direction(logits.T))


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
  weights = (jnp.asarray(where) > 0).astype(logits.dtype)
  pairs = weights[:, None] * weights[None, :]
  return jnp.sum(pairs * losses) / jnp.maximum(jnp.sum(weights), 1.0)
