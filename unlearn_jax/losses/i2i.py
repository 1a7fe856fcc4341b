"""I2I (Li et al., ICLR 2024): unlearning of image-to-image generators through their encoders.

A latent is a pytree of stages, every leaf [B, ...]; a bare array is one stage. The paper's Lemma 1,
that among all Q of the same mean and covariance a Gaussian Q maximises KL(P || Q), does not hold as
stated: for P = N(0, 1) and any other Q of unit variance the left side of its Eq. 5 is above 0 and the
right side is 0. Gaussian targets are motivation; Theorem 1, the bound below, does not need the lemma.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from unlearn_jax.losses._compiled import compiled
from unlearn_jax.losses._compiled import floating
from unlearn_jax.losses._compiled import kept
from unlearn_jax.losses._compiled import masked_mean

NORMS = ('l2', 'mse', 'l2_normalized')
STAGE_REDUCTIONS = ('concat', 'sum_of_means')
_ROUNDING = 32  # machine epsilons within which unit latents are equal

Stages = list[jax.Array]  # [B, P] each


class Unlearning(NamedTuple):
  """Eq. 10.

  Attributes:
    loss: retain + alpha * forget.
    retain: mean distance on the retain batch.
    forget: mean distance on the forget batch, without alpha.
  """

  loss: jax.Array
  retain: jax.Array
  forget: jax.Array


def _pair(first, second, where: jax.Array | None) -> tuple[Stages, Stages]:
  """The stages of two latents of the same shapes, flattened; rows that do not count are 0."""
  if not jax.tree.leaves(first):
    raise ValueError('a latent without stages: encode returned no array')
  chex.assert_trees_all_equal_structs(first, second)
  chex.assert_trees_all_equal_shapes(first, second)
  rows = jax.tree.leaves(first)[0].shape[:1]
  for latent in (first, second):
    chex.assert_tree_shape_prefix(latent, rows if where is None else jnp.shape(where))

  def flat(latent):
    stages = (kept(floating(leaf), where) for leaf in jax.tree.leaves(latent))
    return [stage.reshape(stage.shape[0], -1) for stage in stages]

  return flat(first), flat(second)


def _root(squares: jax.Array, floor: float = 0.0) -> jax.Array:
  """Square root with a gradient of 0, not infinity, at 0: where student and target agree."""
  positive = squares > floor
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0)


def _squares(stages: Stages) -> jax.Array:
  """Squared length [B] of all stages as one vector."""
  return sum(jnp.sum(jnp.square(stage), axis=1) for stage in stages)


def _unit(stages: Stages) -> Stages:
  """All stages as one vector of unit length; a vector of length 0 stays."""
  squares = _squares(stages)
  length = _root(jnp.where(squares > 0, squares, 1.0))
  return [stage / length[:, None] for stage in stages]


def _difference(first: Stages, second: Stages) -> Stages:
  return [one - other for one, other in zip(first, second)]


def _distance(student: Stages, target: Stages, norm: str) -> jax.Array:
  floor = 0.0
  if norm == 'l2_normalized':
    student, target = _unit(student), _unit(target)
    # Equal latents may be rounded differently, and a root has the same slope however small it is.
    floor = float(_ROUNDING * jnp.finfo(student[0].dtype).eps)**2
  squares = _squares(_difference(student, target))
  if norm == 'mse':
    return squares / sum(stage.shape[1] for stage in student)
  return _root(squares, floor)


def _scores(first: Stages, second: Stages) -> jax.Array:
  """Inner products [B, B] of all stages as one vector."""
  return sum(jnp.matmul(one, other.T, precision=jax.lax.Precision.HIGHEST)
             for one, other in zip(first, second))


def _contrast(own: jax.Array, scores: jax.Array, where: jax.Array | None) -> jax.Array:
  """log K + mean_i [own_i - log sum_j e^{scores_ij}] over the K records that count; 0 if none."""
  if where is None:
    return jnp.log(jnp.asarray(len(own), own.dtype)) + jnp.mean(
        own - jax.nn.logsumexp(scores, axis=1))
  counts = jnp.asarray(where).astype(bool)
  # Rows that do not count see all columns: both branches must be finite for the gradient to be.
  shown = jnp.where(counts[None, :] | ~counts[:, None], scores, -jnp.inf)
  terms = own - jax.nn.logsumexp(shown, axis=1)
  count = jnp.maximum(jnp.sum(counts, dtype=own.dtype), 1.0)
  return jnp.where(jnp.any(counts), jnp.log(count) + masked_mean(terms, counts), 0.0)


@compiled(static=('norm', 'stage_reduce'))
def encoder_distance(
    student: jax.Array, target: jax.Array, *, norm: str = 'l2', stage_reduce: str = 'concat',
) -> jax.Array:
  """d(E_theta, E_theta0) per picture: the distance between two latents, the norm of Eq. 10.

  With z and t the latents of a picture, all stages flattened into one vector of P numbers:

  - `'l2'`: ||z - t||_2, not squared, as printed: its slope has length 1 however close they are;
  - `'mse'`: ||z - t||_2^2 / P, which the released MAGE code computes;
  - `'l2_normalized'`: || z/||z||_2 - t/||t||_2 ||_2, in [0, 2], with the unit latents that Theorem 1
    assumes and neither paper nor release makes (ours). A latent of length 0 stays 0, and so does a
    distance within 32 machine epsilons, which is rounding.

  Gradient: to both; targets come from the frozen encoder. It is 0 where a root has its argument at
  0: student and target agree.

  Args:
    student: z, pytree of stages, every leaf [B, ...].
    target: t, of the same structure and shapes.
    norm: static, one of `NORMS`.
    stage_reduce: static, `'concat'` (the paper's one vector) or `'sum_of_means'`: the distance of
      each stage by itself, summed over stages; with `'mse'` this is what the released diffusion code
      does. The same for a single stage.

  Returns:
    [B], float32 at least, at least 0.

  Raises:
    AssertionError: structures or shapes that differ.
    ValueError: unknown norm or reduction, or no stage.
  """
  student, target = _pair(student, target, None)
  return _reduced(student, target, norm, stage_reduce)


def _reduced(student: Stages, target: Stages, norm: str, stage_reduce: str) -> jax.Array:
  if norm not in NORMS:
    raise ValueError(f'norm is one of {", ".join(NORMS)}, got {norm!r}')
  if stage_reduce not in STAGE_REDUCTIONS:
    raise ValueError(f'stage_reduce is one of {", ".join(STAGE_REDUCTIONS)}, got {stage_reduce!r}')
  if stage_reduce == 'concat':
    return _distance(student, target, norm)
  return sum(_distance([one], [other], norm) for one, other in zip(student, target))


@compiled(static=('norm', 'stage_reduce'))
def unlearning(
    retain_student: jax.Array, retain_reference: jax.Array, forget_student: jax.Array,
    noise_reference: jax.Array, *, alpha: jax.Array | float = 0.25, norm: str = 'l2',
    stage_reduce: str = 'concat', retain_where: jax.Array | None = None,
    forget_where: jax.Array | None = None,
) -> Unlearning:
  """L = mean_i d(E(T(x_r_i)), E0(T(x_r_i))) + alpha mean_j d(E(T(x_f_j)), E0(T(n_j))) (Eq. 10).

  The encoder E that is unlearnt keeps the latents of the frozen one, E0, on retained pictures, and
  takes those of noise n ~ N(0, Sigma) on forgotten ones. d is `encoder_distance`. Masks of T are
  those of the picture; the two batches need not have the same size, since each has a mean of its own
  (the release divides both by one count, which for its balanced batches is the same up to a factor).

  Gradient: to all four latents; references come from the frozen encoder.

  Args:
    retain_student: E(T(x_r)), pytree of stages, every leaf [B, ...].
    retain_reference: E0(T(x_r)), of the same shapes.
    forget_student: E(T(x_f)), every leaf [F, ...].
    noise_reference: E0(T(n)), of the same shapes.
    alpha: weight of the forget term, traced; 0.25 in the paper.
    norm: static, as in `encoder_distance`; `'l2'` is Eq. 10.
    stage_reduce: static, as in `encoder_distance`.
    retain_where: [B] mask or weights of the pictures that count; None counts all.
    forget_where: [F] likewise.

  Returns:
    An `Unlearning` of scalars, float32 at least; a batch in which nothing counts adds 0.

  Raises:
    AssertionError: structures or shapes that differ.
    ValueError: unknown norm or reduction, or no stage.
  """
  def term(student, reference, where):
    student, reference = _pair(student, reference, where)
    return masked_mean(_reduced(student, reference, norm, stage_reduce), where)

  retain = term(retain_student, retain_reference, retain_where)
  forget = term(forget_student, noise_reference, forget_where)
  return Unlearning(retain + jnp.asarray(alpha, forget.dtype) * forget, retain, forget)


@compiled(static=('normalize',))
def infonce(
    student: jax.Array, reference: jax.Array, *, normalize: bool = False,
    where: jax.Array | None = None,
) -> jax.Array:
  """I_NCE = log K + 1/K sum_i log(e^{<r_i, s_i>} / sum_j e^{<r_i, s_j>}), Eq. B.12 by B.15.

  An estimate, from K records, of a lower bound of the mutual information between what the original
  generator makes and what the unlearnt one makes. By Eq. B.15, for encoders that invert their
  decoders, its critic is the inner product of latents: s_i of E on the picture, r_i of E0 on its
  target (the same picture, or noise). `information_bound` never exceeds it on unit latents, and it
  is below 2 nats there: inner products of unit vectors differ by 2 at most.

  Gradient: to both.

  Args:
    student: s, pytree of stages, every leaf [K, ...].
    reference: r, of the same structure and shapes.
    normalize: static; brings every latent to unit length first, all stages as one vector.
    where: [K] mask: records that count; the others are no candidates either. None counts all.

  Returns:
    Scalar in nats, float32 at least; 0 if nothing counts.

  Raises:
    AssertionError: structures or shapes that differ.
    ValueError: no stage.
  """
  student, reference = _pair(student, reference, where)
  if normalize:
    student, reference = _unit(student), _unit(reference)
  scores = _scores(reference, student)
  return _contrast(jnp.diagonal(scores), scores, where)


@compiled(static=('normalize',))
def information_bound(
    student: jax.Array, reference: jax.Array, *, normalize: bool = False,
    where: jax.Array | None = None,
) -> jax.Array:
  """log K - 1/K sum_i log(e^{eps_i^2/2 - 1} sum_j e^{eps_j + R_ij}): Theorem 1, Eqs. 8 and 9.

  With s the latents of the encoder that is unlearnt and r those of the frozen one, eps_i =
  ||s_i - r_i||_2 and R_ij = <r_i, r_j>. On retained pictures (Eq. 8) r belongs to the same picture;
  on forgotten ones (Eq. 9, where eps and R are called delta and F) to noise. The smaller the
  distances, the larger the bound: minimising Eq. 10 raises it.

  It bounds `infonce` from below if every latent has unit length, and equals it where eps = 0. Rows
  are taken as they are unless `normalize` is set; of other lengths it bounds nothing. Beyond the
  paper: it is below 2 nats, as `infonce` is there.

  Misprints: in B.20 the last line's eps_i^2 is delta_i^2; B.21 lacks the "<=" of Cauchy and Schwarz
  in its third line, as B.17 has it.

  Gradient: to both, finite where they agree.

  Args:
    student: s, pytree of stages, every leaf [K, ...].
    reference: r, of the same structure and shapes.
    normalize: static; brings every latent to unit length first, all stages as one vector (ours, for
      encoders that do not: no released one does).
    where: [K] mask: records that count, in both sums; None counts all.

  Returns:
    Scalar in nats, float32 at least, negative where the bound says nothing; 0 if nothing counts.

  Raises:
    AssertionError: structures or shapes that differ.
    ValueError: no stage.
  """
  student, reference = _pair(student, reference, where)
  if normalize:
    student, reference = _unit(student), _unit(reference)
  squares = _squares(_difference(student, reference))
  scores = _root(squares)[None, :] + _scores(reference, reference)
  return _contrast(1.0 - squares / 2.0, scores, where)
