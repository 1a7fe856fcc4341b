"""Cross entropy and accuracy, for one class per record or for several attributes.

The rank of the labels decides which: int [B] are classes, float [B, K] in {0, 1} are attributes,
each with a sigmoid of its own.
"""

import chex
import jax
import jax.numpy as jnp
import optax

from unlearn_jax.losses._compiled import compiled
from unlearn_jax.losses._compiled import floating
from unlearn_jax.losses._compiled import kept
from unlearn_jax.losses._compiled import masked_mean


def _check(logits: jax.Array, labels: jax.Array) -> None:
  """Shapes at the door: logits [B, C] with labels [B], or [B, K] with labels [B, K]."""
  chex.assert_rank(logits, 2)
  chex.assert_rank(labels, {1, 2})
  if labels.ndim == 1:
    chex.assert_equal_shape_prefix([logits, labels], 1)
    chex.assert_type(labels, int)
  else:
    chex.assert_equal_shape([logits, labels])


@compiled()
def example_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Cross entropy of every record.

  Classes (Eq. 4 of DLFD): `l_i = -log softmax(z_i)[y_i]`. Attributes:
  `l_i = -1/K sum_k [y_ik log s(z_ik) + (1 - y_ik) log s(-z_ik)]` with the sigmoid s, the loss of
  the MUFAC/MUCAC benchmark. Both are computed from log-sum-exps and stay finite for saturated
  logits. Labels outside the classes cannot be refused here: they give NaN, or count from the last
  class if negative. `losses.check_labels` finds them beforehand.

  Args:
    logits: [B, C], or [B, K] for attributes.
    labels: int [B] in [0, C), or float [B, K] in {0, 1}.

  Returns:
    [B], float32 at least.

  Raises:
    AssertionError: shapes that do not fit, or class labels that are not integers.
  """
  _check(logits, labels)
  logits = floating(logits)
  if labels.ndim == 1:
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
  attributes = optax.losses.sigmoid_binary_cross_entropy(logits, labels.astype(logits.dtype))
  return jnp.mean(attributes, axis=1)


@compiled()
def cross_entropy(
    logits: jax.Array, labels: jax.Array, *, where: jax.Array | None = None
) -> jax.Array:
  """Mean cross entropy over the records that count: `sum_i w_i l_i / max(sum_i w_i, 1)`.

  Args:
    logits: [B, C], or [B, K] for attributes.
    labels: int [B], or float [B, K] in {0, 1}; see `example_loss`.
    where: [B] weights, 1 counts and 0 does not; None counts every record. Rows of weight 0 may
      hold anything in `logits`, NaN included. Without any record the loss and its gradient are 0.

  Returns:
    Scalar, float32 at least.

  Raises:
    AssertionError: shapes that do not fit.
  """
  _check(logits, labels)
  if where is not None:
    chex.assert_equal_shape_prefix([logits, where], 1)
    chex.assert_rank(where, 1)
  return masked_mean(example_loss(kept(logits, where), kept(labels, where)), where)


@compiled()
def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Whether every record is classified correctly; has no useful gradient.

  Classes: `[argmax_c z_ic = y_i]`. Attributes: the share of k with `[z_ik >= 0] = [y_ik >= 1/2]`,
  that is a sigmoid of at least one half (the benchmark's rule).

  Args:
    logits: [B, C], or [B, K] for attributes.
    labels: int [B], or float [B, K] in {0, 1}.

  Returns:
    [B], 0 or 1 for classes and in [0, 1] for attributes, float32 at least.

  Raises:
    AssertionError: shapes that do not fit.
  """
  _check(logits, labels)
  logits = floating(logits)
  if labels.ndim == 1:
    return (jnp.argmax(logits, axis=1) == labels).astype(logits.dtype)
  return jnp.mean(((logits >= 0.0) == (labels >= 0.5)).astype(logits.dtype), axis=1)


@compiled(static=('k',))
def top_k_accuracy(logits: jax.Array, labels: jax.Array, *, k: int) -> jax.Array:
  """Whether the true class is among the k largest logits; ties go to the smaller class index.

  Args:
    logits: [B, C].
    labels: int [B] in [0, C); attributes have no top k.
    k: in [1, C], static.

  Returns:
    [B] of 0 or 1, float32 at least.

  Raises:
    AssertionError: shapes that do not fit.
    ValueError: k out of range.
  """
  chex.assert_rank([logits, labels], [2, 1])
  _check(logits, labels)
  if not 1 <= k <= logits.shape[1]:
    raise ValueError(f'top_k_accuracy: k is in [1, {logits.shape[1]}], got {k}')
  _, best = jax.lax.top_k(floating(logits), k)  # [B, k]
  hits = jnp.any(best == labels[:, None].astype(best.dtype), axis=1)
  return hits.astype(floating(logits).dtype)
