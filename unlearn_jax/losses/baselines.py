"""Losses of the methods that DLFD is compared with: NegGrad, NegGrad+ and SCRUB.

Formulas and numbers follow the original repositories, not DLFD's re-implementations of them.
"""

import chex
import jax
import jax.numpy as jnp

from unlearn_jax.losses._compiled import compiled
from unlearn_jax.losses._compiled import floating
from unlearn_jax.losses._compiled import kept
from unlearn_jax.losses._compiled import masked_mean
from unlearn_jax.losses.classification import cross_entropy


def _softmax_kl(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """[B], KL between the softmaxes of two [B, C]."""
  log_p, log_q = jax.nn.log_softmax(teacher, axis=1), jax.nn.log_softmax(student, axis=1)
  p = jnp.exp(log_p)
  # 0 log 0 = 0: a class that the teacher rules out entirely has log_p = -inf.
  return jnp.sum(jnp.where(p > 0, p * (log_p - log_q), 0.0), axis=1)


def _sigmoid_kl(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """[B], mean over attributes of the KL between the Bernoullis of two [B, K]."""
  sides = [jax.nn.sigmoid(s * teacher) * (jax.nn.log_sigmoid(s * teacher)
                                          - jax.nn.log_sigmoid(s * student)) for s in (1.0, -1.0)]
  return jnp.mean(sides[0] + sides[1], axis=1)


@compiled(static=('multi_label',))
def distillation_kl(
    student_logits: jax.Array, teacher_logits: jax.Array, *, temperature: jax.Array | float,
    where: jax.Array | None = None, multi_label: bool = False,
) -> jax.Array:
  """`T^2 / B * sum_i KL(softmax(t_i / T) || softmax(s_i / T))`.

  SCRUB (Kurmanji et al. 2023), `DistillKL` of its released code: the mean runs over records, not
  over records and classes. With `multi_label` every logit is a sigmoid of its own and the
  divergence is the mean over attributes of those between Bernoullis (ours; the benchmark takes a
  softmax over independent attributes there).

  Gradient: to the student. The teacher is held constant.

  Args:
    student_logits: [B, C].
    teacher_logits: [B, C].
    temperature: T > 0, traced.
    where: [B] weights, 1 counts and 0 does not; None counts every record.
    multi_label: static; sigmoids instead of a softmax.

  Returns:
    Scalar, float32 at least; 0 if no record counts.

  Raises:
    AssertionError: shapes that do not fit.
  """
  chex.assert_rank([student_logits, teacher_logits], 2)
  chex.assert_equal_shape([student_logits, teacher_logits])
  if where is not None:
    chex.assert_rank(where, 1)
    chex.assert_equal_shape_prefix([student_logits, where], 1)
  student = kept(floating(student_logits), where) / temperature
  teacher = jax.lax.stop_gradient(kept(floating(teacher_logits), where)) / temperature
  divergence = (_sigmoid_kl if multi_label else _softmax_kl)(student, teacher)
  return temperature**2 * masked_mean(divergence, where)


@compiled()
def neg_grad(
    logits: jax.Array, labels: jax.Array, *, where: jax.Array | None = None
) -> jax.Array:
  """NegGrad: `-CE(z, y)` on the records to forget, to be minimised (gradient ascent).

  Args:
    logits: [B, C], or [B, K] for attributes.
    labels: int [B], or float [B, K] in {0, 1}.
    where: [B] weights, 1 counts and 0 does not; None counts every record.

  Returns:
    Scalar, at most 0, unbounded below.

  Raises:
    AssertionError: shapes that do not fit.
  """
  chex.assert_rank(logits, 2)
  return -cross_entropy(logits, labels, where=where)


@compiled()
def neg_grad_plus(
    retain_logits: jax.Array, retain_labels: jax.Array,
    forget_logits: jax.Array, forget_labels: jax.Array, *, alpha: jax.Array | float,
    retain_where: jax.Array | None = None, forget_where: jax.Array | None = None,
) -> jax.Array:
  """NegGrad+: `alpha * CE(retain) - (1 - alpha) * CE(forget)` (SCRUB's repository).

  Args:
    retain_logits: [B, C], or [B, K] for attributes.
    retain_labels: int [B], or float [B, K] in {0, 1}.
    forget_logits: [F, C] or [F, K]; F may differ from B.
    forget_labels: int [F], or float [F, K].
    alpha: in [0, 1], traced; 0.95 in SCRUB's repository.
    retain_where: [B] weights; None counts every record.
    forget_where: [F] weights; None counts every record.

  Returns:
    Scalar, unbounded below for alpha < 1.

  Raises:
    AssertionError: shapes that do not fit.
  """
  chex.assert_rank([retain_logits, forget_logits], 2)
  chex.assert_equal(retain_logits.shape[1], forget_logits.shape[1])
  retain = cross_entropy(retain_logits, retain_labels, where=retain_where)
  forget = cross_entropy(forget_logits, forget_labels, where=forget_where)
  return alpha * retain - (1.0 - alpha) * forget


@compiled()
def scrub_min(
    student_logits: jax.Array, teacher_logits: jax.Array, labels: jax.Array, *,
    gamma: jax.Array | float, alpha: jax.Array | float, temperature: jax.Array | float,
    where: jax.Array | None = None,
) -> jax.Array:
  """SCRUB's min step on retained records: `gamma * CE(s, y) + alpha * KD_T(s, t)`.

  KD_T is `distillation_kl`, over sigmoids if the labels are attributes. Gradient: to the student.

  Args:
    student_logits: [B, C], or [B, K] for attributes.
    teacher_logits: the same shape.
    labels: int [B], or float [B, K] in {0, 1}.
    gamma: weight of the cross entropy, traced.
    alpha: weight of the distillation, traced.
    temperature: T > 0, traced.
    where: [B] weights; None counts every record.

  Returns:
    Scalar.

  Raises:
    AssertionError: shapes that do not fit.
  """
  chex.assert_rank([student_logits, teacher_logits], 2)
  distance = distillation_kl(student_logits, teacher_logits, temperature=temperature, where=where,
                             multi_label=labels.ndim == 2)
  return gamma * cross_entropy(student_logits, labels, where=where) + alpha * distance


@compiled(static=('multi_label',))
def scrub_max(
    student_logits: jax.Array, teacher_logits: jax.Array, *, temperature: jax.Array | float,
    where: jax.Array | None = None, multi_label: bool = False,
) -> jax.Array:
  """SCRUB's max step on records to forget: `-KD_T(s, t)`, to be minimised; no cross entropy.

  Gradient: to the student; it is 0 where student and teacher agree, so a student that starts as
  the teacher's copy moves only once a min step has moved it.

  Args:
    student_logits: [B, C].
    teacher_logits: [B, C].
    temperature: T > 0, traced.
    where: [B] weights; None counts every record.
    multi_label: static; sigmoids instead of a softmax, see `distillation_kl`.

  Returns:
    Scalar, at most 0.

  Raises:
    AssertionError: shapes that do not fit.
  """
  chex.assert_rank([student_logits, teacher_logits], 2)
  return -distillation_kl(student_logits, teacher_logits, temperature=temperature, where=where,
                          multi_label=multi_label)
