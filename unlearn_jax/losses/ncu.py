"""NCU: unlearning noisy correspondence with hardest negatives and masked transport (Eqs. 2 to 12).

`reading='paper'` follows the equations, `'release'` the authors' code where it differs; what differs
is said at each function. Embeddings are of unit length, `logit_scale` is the logarithm of the scale.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from unlearn_jax.losses import contrastive
from unlearn_jax.losses import transport
from unlearn_jax.losses._compiled import compiled
from unlearn_jax.losses._compiled import floating
from unlearn_jax.losses._compiled import masked_mean

READINGS = ('paper', 'release')
OPPOSITES = ('relation', 'distance')
TARGETS = ('both', 'false_negatives', 'false_positives')


class HardestNegative(NamedTuple):
  """Eq. 6, terms as they enter the sum.

  Attributes:
    loss: separation + relation + matching.
    separation: lambda L_sep, Eq. 3.
    relation: lambda L_rel, Eq. 4.
    matching: L_itm, Eq. 5.
    forget: bool [N], the pairs of the batch that are taken for mismatched.
  """

  loss: jax.Array
  separation: jax.Array
  relation: jax.Array
  matching: jax.Array
  forget: jax.Array


class Unlearning(NamedTuple):
  """Eq. 12.

  Attributes:
    loss: realign + separation.
    realign: L_otr, Eq. 11.
    separation: L_sep, Eq. 3.
    plan: the transport plan [N, N + 1] of pictures to captions and their own negative.
    forget: bool [N], the pairs of the batch that are taken for mismatched.
  """

  loss: jax.Array
  realign: jax.Array
  separation: jax.Array
  plan: transport.MaskedPlan
  forget: jax.Array


def _check(reading: str, *arrays: jax.Array, **choices: tuple[str, tuple[str, ...]]) -> None:
  for name, (value, known) in {'reading': (reading, READINGS), **choices}.items():
    if value not in known:
      raise ValueError(f'{name} is one of {", ".join(known)}, got {value!r}')
  chex.assert_rank(arrays, 2)
  chex.assert_equal_shape(arrays)


@compiled(static=('reading',))
def clean_confidence(
    image: jax.Array, text: jax.Array, logit_scale: jax.Array, *, reading: str = 'paper'
) -> jax.Array:
  """omega_i (Eq. 2): how surely picture and caption of a pair find each other in the batch.

  `1/2 [softmax_j(e^s <v_i, t_j>)_i + softmax_j(e^s <t_i, v_j>)_i]`; the release takes only the
  first term. No gradient.

  Args:
    image: v [N, d].
    text: t [N, d].
    logit_scale: s.
    reading: static, `'paper'` or `'release'`.

  Returns:
    [N] in (0, 1], float32 at least.

  Raises:
    AssertionError: shapes that do not fit.
    ValueError: unknown reading.
  """
  _check(reading, image, text)
  logits = jnp.exp(floating(logit_scale)) * contrastive.similarity(image, text)
  confidence = jnp.diagonal(jax.nn.softmax(logits, axis=1))
  if reading == 'paper':
    confidence = 0.5 * (confidence + jnp.diagonal(jax.nn.softmax(logits, axis=0)))
  return jax.lax.stop_gradient(confidence)


@compiled(static=('forget_fraction', 'reading'))
def forget_pairs(
    image: jax.Array, text: jax.Array, logit_scale: jax.Array, *, forget_fraction: float,
    reading: str = 'paper'
) -> jax.Array:
  """D_FG of section 4.1: the int(P N) pairs of the batch with the least `clean_confidence`.

  Args:
    image: v [N, d].
    text: t [N, d].
    logit_scale: s.
    forget_fraction: P in (0, 1), static; 0.1 in the release's scripts.
    reading: static, as `clean_confidence`.

  Returns:
    bool [N]; of equal confidences those that come first.

  Raises:
    AssertionError: shapes that do not fit.
    ValueError: unknown reading, or no pair to forget or to retain.
  """
  _check(reading, image, text)
  count = int(forget_fraction * image.shape[0])
  if not 0 < count < image.shape[0]:
    raise ValueError(
        f'forget_fraction {forget_fraction:g} of a batch of {image.shape[0]} pairs selects {count}; '
        'at least one pair must be forgotten and one retained: take larger batches')
  confidence = clean_confidence(image, text, logit_scale, reading=reading)
  return jnp.argsort(jnp.argsort(confidence)) < count


def _separation(text, negative, where, opposite, lower, upper) -> jax.Array:
  """L_sep (Eq. 3), or for V2 the mean of 2 - ||t_i - n_i||, whose gradient is 0 at n_i = t_i."""
  if opposite == 'distance':  # as 2 - 2 <t_i, n_i> the square would drown in rounding near 0
    square = jnp.sum((floating(text) - floating(negative))**2, axis=1)
    apart = square > 0.0
    return masked_mean(2.0 - jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1.0)), 0.0), where)
  along = jnp.sum(floating(text) * floating(negative), axis=1)
  return masked_mean(jax.nn.relu(lower - along) + jax.nn.relu(along - upper), where)


@compiled(static=('forget_fraction', 'reading', 'opposite'))
def hardest_negative(
    image: jax.Array, text: jax.Array, negative: jax.Array, logit_scale: jax.Array, *,
    forget_fraction: float, reading: str = 'paper', weight: jax.Array | float = 10.0,
    lower: jax.Array | float = -0.7, upper: jax.Array | float = -0.2, opposite: str = 'relation',
) -> HardestNegative:
  """L_HN = lambda (L_sep + L_rel) + L_itm over the retained pairs of the batch (Eqs. 3 to 6).

  - `L_sep = mean_i [lower - <t_i, n_i>]_+ + [<t_i, n_i> - upper]_+`;
  - `L_rel = 1/N~ sum_ij (<t_i, n_j> - <t_j, n_i>)^2`; the release compares the Gram matrices
    instead, `1/N~ sum_ij (<t_i, t_j> - <n_i, n_j>)^2`;
  - `L_itm`: pairwise sigmoid of captions, and of negatives with the opposite signs (Eq. 5 with the
    leading minus that the paper leaves out).

  Retained is what `clean_confidence` does not rank among the lowest int(P N). Gradient: to all
  embeddings and the scale, none through the selection.

  Args:
    image: v [N, d].
    text: t [N, d].
    negative: n [N, d], embeddings of the prompted captions.
    logit_scale: s.
    forget_fraction: P in (0, 1), static; 0.1 in the release's scripts.
    reading: static, `'paper'` or `'release'`.
    weight: lambda, traced; 10 (release).
    lower: alpha, traced; -0.7 (release).
    upper: beta, traced; -0.2 (release).
    opposite: static. `'distance'` is the ablation V2: the mean of `2 - ||t_i - n_i||` in the place
      of L_sep + L_rel (CLIPN's target of section 4.2; its form is ours).

  Returns:
    A `HardestNegative`.

  Raises:
    AssertionError: shapes that do not fit.
    ValueError: unknown reading, or no pair to forget or to retain.
  """
  _check(reading, image, text, negative, opposite=(opposite, OPPOSITES))
  forget = forget_pairs(
      image, text, logit_scale, forget_fraction=forget_fraction, reading=reading)
  where = 1.0 - forget.astype(floating(text).dtype)
  if reading == 'paper':
    cross = contrastive.similarity(text, negative)
    difference = cross - cross.T
  else:
    difference = contrastive.similarity(text, text) - contrastive.similarity(negative, negative)
  relation = jnp.sum(where[:, None] * where[None, :] * difference**2) / jnp.sum(where)
  relation = jnp.where(opposite == 'relation', relation, 0.0)
  separation = _separation(text, negative, where, opposite, lower, upper)
  matching = (contrastive.pairwise_sigmoid(image, text, logit_scale, where=where)
              + contrastive.pairwise_sigmoid(image, negative, logit_scale, opposite=True,
                                             where=where))
  separation, relation = weight * separation, weight * relation
  return HardestNegative(separation + relation + matching, separation, relation, matching, forget)


def _divergence(target: jax.Array, logits: jax.Array) -> jax.Array:
  """mean_i KL(target_i || softmax(logits_i)) of unnormalised targets, with 0 log 0 = 0."""
  some = target > 0
  entropy = jnp.where(some, target * jnp.log(jnp.where(some, target, 1.0)), 0.0)
  cross = jnp.where(some, target * jax.nn.log_softmax(logits, axis=1), 0.0)
  return jnp.sum(entropy - cross) / target.shape[0]


@compiled(static=('forget_fraction', 'reading', 'max_iterations', 'opposite', 'targets'),
          inline=False)
def unlearning(
    image: jax.Array, text: jax.Array, negative: jax.Array, logit_scale: jax.Array, *,
    forget_fraction: float, gamma: jax.Array | float = 0.7, epsilon: jax.Array | float = 0.03,
    max_iterations: int | None = None, threshold: jax.Array | float | None = None,
    reading: str = 'paper', lower: jax.Array | float = -0.7, upper: jax.Array | float = -0.2,
    opposite: str = 'relation', targets: str = 'both',
) -> Unlearning:
  """L_UL = L_otr + L_sep (Eqs. 7 to 12): the batch is aligned with a masked transport plan.

  Every picture may go to all captions and to its own negative (column N + 1), at the cost 1 - cos;
  a pair to be forgotten not to its own caption, a retained one not to its negative (Eq. 8).
  Marginals are uniform. With the plan G and I, the diagonal of retained pairs and column N + 1 of
  the others, the targets are `gamma G + (1 - gamma) I` (Eq. 10), and L_otr is the KL divergence of
  the softmax of `e^s [V T', <v_i, n_i>]` from them, over rows and over columns (Eq. 11).

  Paper: one solve to convergence, the mixture is normalised over rows or columns, both terms are
  added, L_sep runs over retained pairs (Eq. 3); the scale e^s is ours, Eq. 11 omits it. Release:
  the cost is divided by its maximum, two solves that stop by the potentials (pictures to captions
  and back), each plan is normalised before it is mixed and the mixture is not (rows of the second
  target sum to gamma, 1, or gamma + (1 - gamma) |forget|), the terms are averaged, L_sep runs over
  all pairs.

  Gradient: to all embeddings and the scale; targets are constant.

  Args:
    image: v [N, d].
    text: t [N, d].
    negative: n [N, d].
    logit_scale: s.
    forget_fraction: P in (0, 1), static.
    gamma: weight of the plan, traced; 0.7 (release).
    epsilon: entropy, traced; 0.03 (release, of the scaled cost).
    max_iterations: static; None is 1000 (paper; ours) or 100 (release).
    threshold: of the solver's stop rule, traced; None is 1e-6 (paper; ours) or 1e-4 (release).
    reading: static, `'paper'` or `'release'`.
    lower: alpha, traced.
    upper: beta, traced.
    opposite: static, as `hardest_negative`.
    targets: static, the ablations of section 5.4 (our readings). `'false_negatives'` (V3): no
      column N + 1, nothing masked, I the identity. `'false_positives'` (V4): rows and columns of
      retained pairs are one-hot.

  Returns:
    An `Unlearning`; `plan` is the first solve's.

  Raises:
    AssertionError: shapes that do not fit.
    ValueError: unknown reading, or no pair to forget or to retain.
  """
  _check(reading, image, text, negative, opposite=(opposite, OPPOSITES), targets=(targets, TARGETS))
  forget = forget_pairs(
      image, text, logit_scale, forget_fraction=forget_fraction, reading=reading)
  scores = contrastive.similarity(image, text)
  if targets == 'false_negatives':
    identity = jnp.eye(len(forget), dtype=bool)
    mask = jnp.ones_like(identity)
  else:
    own = jnp.sum(floating(image) * floating(negative), axis=1)
    scores = jnp.concatenate([scores, own[:, None]], axis=1)
    identity = jnp.concatenate([jnp.diag(~forget), forget[:, None]], axis=1)
    mask = jnp.concatenate([~jnp.diag(forget), forget[:, None]], axis=1)
  cost = jax.lax.stop_gradient(1.0 - scores)
  release = reading == 'release'
  options = {'epsilon': epsilon,
             'max_iterations': max_iterations or (100 if release else 1000),
             'threshold': (1e-4 if release else 1e-6) if threshold is None else threshold}
  identity = identity.astype(cost.dtype)
  mix = lambda plan, label: gamma * plan + (1.0 - gamma) * label
  # A line without mass, which only an impossible mask gives, stays without.
  normal = lambda x: x / jnp.where((total := jnp.sum(x, axis=1, keepdims=True)) > 0, total, 1.0)
  if release:
    cost = cost / jnp.max(cost)
    solved = transport.released_ncu_plan(cost, mask, **options)
    back = transport.released_ncu_plan(cost.T, mask.T, **options)
    rows = mix(normal(solved.plan), identity)
    columns = mix(normal(back.plan), identity.T)
  else:
    solved = transport.masked_plan(cost, mask, **options)
    mixture = mix(solved.plan, identity)
    rows, columns = normal(mixture), normal(mixture.T)
  if targets == 'false_positives':
    rows = jnp.where(forget[:, None], rows, identity)
    columns = jnp.where(jnp.append(forget, True)[:, None], columns, identity.T)
  solved, rows, columns = jax.lax.stop_gradient((solved, rows, columns))
  logits = jnp.exp(floating(logit_scale)) * scores
  realign = _divergence(rows, logits) + _divergence(columns, logits.T)
  retained = None if release else 1.0 - forget.astype(cost.dtype)
  separation = _separation(text, negative, retained, opposite, lower, upper)
  realign = 0.5 * realign if release else realign
  return Unlearning(realign + separation, realign, separation, solved, forget)
