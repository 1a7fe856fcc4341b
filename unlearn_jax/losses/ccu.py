"""CCU: contrastive unlearning of one modality of records that have two (Eqs. 4 to 6).

Embeddings are taken as they are: none of the losses normalises. The names say visual and audio, as
the paper does; the first is the modality to forget, the second any other (text, for instance).
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from unlearn_jax.losses import contrastive
from unlearn_jax.losses._compiled import compiled
from unlearn_jax.losses._compiled import kept

REDUCTIONS = ('mean', 'sum')


class SelectiveUnlearning(NamedTuple):
  """Eq. 4.

  Attributes:
    loss: visual + audio.
    visual: the first term, over pictures.
    audio: the second term, over their sounds.
  """

  loss: jax.Array
  visual: jax.Array
  audio: jax.Array


def _counts(where: jax.Array | None, size: int) -> jax.Array:
  """bool [size], the records that count."""
  if where is None:
    return jnp.ones(size, bool)
  chex.assert_shape(where, (size,))
  return jnp.asarray(where).astype(bool)


def _scores(rows, columns, rows_where, columns_where, temperature) -> jax.Array:
  """`<x_i, y_j> / temperature` [N, M], finite also where padding is not."""
  products = contrastive.similarity(kept(rows, rows_where), kept(columns, columns_where))
  return products / jnp.asarray(temperature, products.dtype)


def _log_sum_exp(scores: jax.Array, chosen: jax.Array) -> jax.Array:
  """[N], over the chosen entries of each row of [N, M]; 0 without any, with a gradient of 0."""
  some = jnp.any(chosen, axis=1)
  # An empty row takes part with zeros: both branches must be finite for the gradient to be.
  shown = jnp.where(some[:, None], jnp.where(chosen, scores, -jnp.inf), 0.0)
  return jnp.where(some, jax.nn.logsumexp(shown, axis=1), 0.0)


def _mean(scores: jax.Array, chosen: jax.Array) -> jax.Array:
  """[N], over the chosen entries of each row of [N, M]; 0 without any."""
  count = jnp.sum(chosen, axis=1, dtype=scores.dtype)
  return jnp.sum(jnp.where(chosen, scores, 0.0), axis=1) / jnp.maximum(count, 1.0)


def _reduced(terms: jax.Array, anchors: jax.Array, reduce: str) -> jax.Array:
  """Sum or mean of the terms [N] of the anchors; 0 without any."""
  if reduce not in REDUCTIONS:
    raise ValueError(f'reduce is one of {", ".join(REDUCTIONS)}, got {reduce!r}')
  total = jnp.sum(jnp.where(anchors, terms, 0.0))
  return total if reduce == 'sum' else total / jnp.maximum(
      jnp.sum(anchors, dtype=terms.dtype), 1.0)


@compiled(static=('reduce',))
def selective_visual_unlearning(
    forget_visual: jax.Array, retain_visual: jax.Array, forget_audio: jax.Array,
    retain_audio: jax.Array, forget_labels: jax.Array, retain_labels: jax.Array, *,
    temperature: jax.Array | float, reduce: str = 'mean', forget_where: jax.Array | None = None,
    retain_where: jax.Array | None = None,
) -> SelectiveUnlearning:
  """L_SVU (Eq. 4): pictures leave their class, the same records' sounds are drawn to it.

  Anchors are the records i of the unlearn batch. With P_i and N_i the records of the retain batch of
  the same and of another class, m and n the visual and audio embeddings,

  - visual: `-1/|N_i| sum_{a in N_i} log(e^{<m_i, m_a> / tau} / sum_{p in P_i} e^{<m_i, m_p> / tau})`,
    that is `LSE_{p in P_i} <m_i, m_p> / tau - mean_{a in N_i} <m_i, m_a> / tau`;
  - audio: the same on n with P_i and N_i exchanged.

  Each numerator is a single record, each denominator holds the opposite set alone. Nothing bounds
  the loss from below unless the embeddings are bounded, as unit vectors are.

  Ours: an anchor without positives or without negatives is dropped (Eq. 4 is not defined for it) from
  both terms, with a gradient of 0; `'mean'` divides the printed sum by the anchors that are left, as
  the code of Lee et al. does (contrastive unlearning, the nearest published loss).

  Gradient: to all four embeddings.

  Args:
    forget_visual: m_i [F, d].
    retain_visual: m_j [B, d].
    forget_audio: n_i [F, e].
    retain_audio: n_j [B, e]; e may differ from d.
    forget_labels: int [F].
    retain_labels: int [B].
    temperature: tau_SVU > 0, traced.
    reduce: static, `'mean'` or `'sum'` (literal) over anchors.
    forget_where: [F] mask: records that are anchors; None counts all.
    retain_where: [B] mask: records that are positives and negatives; None counts all.

  Returns:
    A `SelectiveUnlearning` of scalars, float32 at least; 0 without anchors.

  Raises:
    AssertionError: shapes that do not fit.
    ValueError: unknown reduction.
  """
  chex.assert_rank([forget_visual, retain_visual, forget_audio, retain_audio], 2)
  chex.assert_rank([forget_labels, retain_labels], 1)
  chex.assert_equal_shape_prefix([forget_visual, forget_audio, forget_labels], 1)
  chex.assert_equal_shape_prefix([retain_visual, retain_audio, retain_labels], 1)
  candidates = _counts(retain_where, len(retain_labels))[None, :]
  same = forget_labels[:, None] == retain_labels[None, :]  # [F, B]
  positives, negatives = same & candidates, ~same & candidates
  anchors = (_counts(forget_where, len(forget_labels)) & jnp.any(positives, axis=1)
             & jnp.any(negatives, axis=1))

  def term(forget, retain, numerators, denominators):
    scores = _scores(forget, retain, forget_where, retain_where, temperature)
    return _reduced(_log_sum_exp(scores, denominators) - _mean(scores, numerators), anchors, reduce)

  visual = term(forget_visual, retain_visual, negatives, positives)
  audio = term(forget_audio, retain_audio, positives, negatives)
  return SelectiveUnlearning(visual + audio, visual, audio)


@compiled(static=('reduce',))
def cross_modal_retention(
    audio: jax.Array, visual: jax.Array, *, temperature: jax.Array | float, reduce: str = 'sum',
    where: jax.Array | None = None,
) -> jax.Array:
  """L_CKR (Eq. 5): picture and sound of a retained record find each other in the batch.

  `-sum_i log softmax_j(S_ij)_i - sum_j log softmax_i(S_ij)_j` with `S_ij = <n_i, m_j> / tau`: cross
  entropy over rows (audio to visual) and over columns (visual to audio), diagonal targets. The second
  term as in CLIP, which the paper follows; as printed it would be the first with its indices renamed.
  Records of one class are negatives of one another, as printed.

  Gradient: to both embeddings.

  Args:
    audio: n [B, d], of retained records.
    visual: m [B, d].
    temperature: tau_CKR > 0, traced.
    reduce: static, `'sum'` (as printed), or `'mean'`: divided by the records that count (ours).
    where: [B] mask: records that count; the others are no negatives either. None counts all.

  Returns:
    Scalar, float32 at least, at least 0; 0 if nothing counts.

  Raises:
    AssertionError: shapes that do not fit.
    ValueError: unknown reduction.
  """
  chex.assert_rank([audio, visual], 2)
  chex.assert_equal_shape([audio, visual])
  scores = _scores(audio, visual, where, where, temperature)
  counts = _counts(where, len(audio))
  matched = jnp.diagonal(scores)
  chosen = counts[:, None] & counts[None, :]
  return _reduced(_log_sum_exp(scores, chosen) + _log_sum_exp(scores.T, chosen) - 2.0 * matched,
                  counts, reduce)


@compiled()
def dual_set_separation(
    visual: jax.Array, audio: jax.Array, labels: jax.Array, *, temperature: jax.Array | float,
    where: jax.Array | None = None,
) -> jax.Array:
  """L_DCS (Eq. 6): retained records of one class stay together, in both modalities.

  The sum over both modalities of `1/N sum_i [LSE_{j != i} s_ij - LSE_{j in P_i} s_ij]`, where
  `s_ij = <x_i, x_j> / tau` and P_i are the other records of the batch with i's class. The paper calls
  it dual-set; both sets are retained ones.

  Ours: an anchor that is alone in its class is skipped, and N counts the others.

  Gradient: to both embeddings.

  Args:
    visual: m [B, d], of retained records.
    audio: n [B, e].
    labels: int [B].
    temperature: tau_DCS > 0, traced.
    where: [B] mask: records that count, as anchors and as candidates; None counts all.

  Returns:
    Scalar, float32 at least, at least 0; 0 without anchors.

  Raises:
    AssertionError: shapes that do not fit.
  """
  chex.assert_rank([visual, audio, labels], [2, 2, 1])
  chex.assert_equal_shape_prefix([visual, audio, labels], 1)
  counts = _counts(where, len(labels))
  others = counts[:, None] & counts[None, :] & ~jnp.eye(len(labels), dtype=bool)
  positives = others & (labels[:, None] == labels[None, :])
  anchors = jnp.any(positives, axis=1)

  def term(embedding):
    scores = _scores(embedding, embedding, where, where, temperature)
    return _reduced(_log_sum_exp(scores, others) - _log_sum_exp(scores, positives), anchors, 'mean')

  return term(visual) + term(audio)
