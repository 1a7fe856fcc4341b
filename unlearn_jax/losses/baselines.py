"""Losses of the methods that DLFD is compared with: NegGrad(+), SCRUB, Bad Teacher, UNSIR, SSD.

Formulas and numbers follow the original repositories, not DLFD's re-implementations of them.
"""

from collections.abc import Callable, Iterable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from unlearn_jax.losses._compiled import compiled
from unlearn_jax.losses._compiled import floating
from unlearn_jax.losses._compiled import kept
from unlearn_jax.losses._compiled import masked_mean
from unlearn_jax.losses.classification import cross_entropy

PyTree = Any  # nested dicts of arrays


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


@compiled(static=('multi_label',))
def bad_teacher(
    student_logits: jax.Array, competent_logits: jax.Array, incompetent_logits: jax.Array,
    is_forget: jax.Array, *, temperature: jax.Array | float = 1.0,
    where: jax.Array | None = None, multi_label: bool = False,
) -> jax.Array:
  """Bad Teaching: `1 / (B C) * sum_i KL(q_i || softmax(s_i / T))`, one teacher per record.

  `q_i = l_i softmax(b_i / T) + (1 - l_i) softmax(g_i / T)`: the incompetent teacher b where the
  record is to be forgotten (l = 1), the competent one g elsewhere. Chundawat et al. 2023, Eq. 1,
  as released: the mean runs over records and classes, and there is no factor T^2. With
  `multi_label` the divergences are those between Bernoullis (ours).

  Gradient: to the student. Both teachers are held constant.

  Args:
    student_logits: [B, C].
    competent_logits: [B, C], of the original model.
    incompetent_logits: [B, C], of a randomly initialised one.
    is_forget: [B], bool or 0/1.
    temperature: T > 0, traced.
    where: [B] weights (any size at or above 0); None counts every record.
    multi_label: static; sigmoids instead of a softmax.

  Returns:
    Scalar, float32 at least; 0 if no record counts.

  Raises:
    AssertionError: shapes that do not fit.
  """
  chex.assert_rank([student_logits, competent_logits, incompetent_logits, is_forget], [2, 2, 2, 1])
  chex.assert_equal_shape([student_logits, competent_logits, incompetent_logits])
  chex.assert_equal_shape_prefix([student_logits, is_forget], 1)
  # A flag is 0 or 1, so that choosing the logits chooses the teacher.
  teacher = jnp.where(jnp.asarray(is_forget).astype(bool)[:, None], incompetent_logits,
                      competent_logits)
  student = kept(floating(student_logits), where) / temperature
  teacher = jax.lax.stop_gradient(kept(floating(teacher), where)) / temperature
  if multi_label:
    return masked_mean(_sigmoid_kl(student, teacher), where)
  return masked_mean(_softmax_kl(student, teacher), where) / student.shape[1]


@compiled()
def unsir_noise(
    logits: jax.Array, labels: jax.Array, noise: jax.Array, *, weight: jax.Array | float = 0.1,
    where: jax.Array | None = None,
) -> jax.Array:
  """UNSIR's noise objective: `-CE(f(n), y) + w * mean_i sum_pixels n_i^2`, to be minimised over n.

  Tarun et al. 2023 (Fast Yet Effective Machine Unlearning), Eq. 2: noise that maximises the error
  of the class to forget, kept small by its norm. w is 0.1 in the release.

  Args:
    logits: [B, C], the model's on the noise; [B, K] for attributes.
    labels: int [B], or float [B, K] in {0, 1}: what is to be forgotten.
    noise: [B, ...] pictures.
    weight: w, traced.
    where: [B] weights; None counts every record.

  Returns:
    Scalar; gradients to logits and noise.

  Raises:
    AssertionError: shapes that do not fit.
  """
  chex.assert_rank(logits, 2)
  chex.assert_equal_shape_prefix([logits, noise], 1)
  noise = kept(floating(noise), where)
  size = jnp.sum(noise.reshape(noise.shape[0], -1) ** 2, axis=1)
  return -cross_entropy(logits, labels, where=where) + weight * masked_mean(size, where)


@compiled()
def l1_norm(params: PyTree) -> jax.Array:
  """`sum_k |theta_k|` over all leaves: the sparsity term of l1-sparse unlearning (Jia et al. 2023).

  Args:
    params: nested dicts of arrays.

  Returns:
    Scalar, float32 at least; its gradient at 0 is 0.
  """
  # |x| has gradient sign(0) = 1 at 0 in JAX; PyTorch's, and a subgradient of least norm, is 0.
  return sum(jnp.sum(jnp.where(leaf == 0, 0.0, jnp.abs(leaf)))
             for leaf in map(floating, jax.tree.leaves(params)))


def importance(apply_loss: Callable, params: PyTree, batches: Iterable) -> PyTree:
  """SSD's importance of a data set: `1 / n * sum_b (d L_b / d theta)^2` over its n batches.

  Foster et al. 2024 (Selective Synaptic Dampening), as released: gradients of the batch mean are
  squared, not those of single records, so the figure depends on the batch size. One compiled pass
  per batch; a loop outside of jit, since XLA:CPU is slow at weight gradients inside of one.

  Args:
    apply_loss: `(params, batch) -> scalar`, the mean loss of a batch; one function object is
      compiled once.
    params: where the gradients are taken.
    batches: one or more batches of the same shapes.

  Returns:
    A tree of the structure of `params`, at least 0.

  Raises:
    ValueError: no batch.
  """
  total, count = None, 0
  for batch in batches:
    squares = squared_gradient(apply_loss, params, batch)
    total = squares if total is None else jax.tree.map(jnp.add, total, squares)
    count += 1
  if total is None:
    raise ValueError('importance needs at least one batch')
  return jax.tree.map(lambda leaf: leaf / count, total)


@compiled(static=('apply_loss',))
def squared_gradient(apply_loss: Callable, params: PyTree, batch: PyTree) -> PyTree:
  """`(d L / d theta)^2`, element by element: one batch's term of `importance`."""
  return jax.tree.map(jnp.square, jax.grad(apply_loss)(params, batch))


@compiled()
def dampen(
    params: PyTree, forget_importance: PyTree, full_importance: PyTree, *,
    alpha: jax.Array | float, lam: jax.Array | float,
) -> PyTree:
  """SSD: `theta <- min(lambda I_D / I_f, 1) theta` where `I_f > alpha I_D`; the rest is kept.

  Foster et al. 2024, Eq. 6 and 7. A parameter without importance for the forget set is never
  selected, equality does not select.

  Args:
    params: what is dampened.
    forget_importance: I_f, see `importance`.
    full_importance: I_D, of all training data, retained and forgotten.
    alpha: selection threshold, traced; 10 in the paper's ResNet experiments.
    lam: lambda, traced; 1 there.

  Returns:
    A tree of the structure of `params`.

  Raises:
    AssertionError: trees of different structure or shapes.
  """
  chex.assert_trees_all_equal_shapes(params, forget_importance, full_importance)

  def one(theta, forget, full):
    selected = forget > alpha * full
    ratio = lam * full / jnp.where(selected, forget, 1.0)
    return jnp.where(selected, jnp.minimum(ratio, 1.0), 1.0).astype(theta.dtype) * theta

  return jax.tree.map(one, params, forget_importance, full_importance)
