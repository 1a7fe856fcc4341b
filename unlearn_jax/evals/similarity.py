"""How similar true pairs and others are, and what noise a selection of forget pairs caught."""

from collections.abc import Callable, Mapping, Sequence
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from unlearn_jax.evals import figures
from unlearn_jax.evals import retrieval

EMBEDDINGS = ('image_embedding', 'text_embedding')
_BLOCK = 1 << 24  # similarities held at once: 64 MiB
_KINDS = {'positive': 'positive pair', 'negative': 'mean of negatives',
          'top_negative': 'mean of the top 5 % negatives'}


class Similarities(NamedTuple):
  """Cosines of held-out pairs, one of each per picture, float32 [N].

  Attributes:
    positive: of the picture and its own caption.
    negative: mean over all other captions.
    top_negative: mean over the most similar share of the other captions.
  """

  positive: np.ndarray
  negative: np.ndarray
  top_negative: np.ndarray


class Selection(NamedTuple):
  """How well selected pairs match the planted noise; all in [0, 1], NaN where undefined.

  Attributes:
    precision: share of the selected pairs that are noise; NaN if none was selected.
    recall: share of the noise that was selected; NaN if there is none.
    chance: share of all pairs that are noise: the precision of a random selection.
  """

  precision: float
  recall: float
  chance: float


def matching(apply: Callable, others, names: Sequence[str] = EMBEDDINGS) -> Callable:
  """`apply` whose logits match a picture with its own text (class 0) and with fixed others.

  The others are the same for every picture, so that a record has a loss of its own, whatever else is
  in its batch.

  Args:
    apply: of two towers, with `method='encode_text'`.
    others: texts [M, ...], as the text tower reads them.
    names: further outputs that are handed on.

  Returns:
    `apply` with the outputs `logits` [B, 1 + M] and `names`; it runs the towers as in evaluation.
  """

  def matched(variables, inputs, *, train=False, rngs=None, method=None):
    del rngs, method
    outputs, variables = apply(variables, inputs, train=train)
    bank, _ = apply(variables, {'text': jnp.asarray(others)}, train=train, method='encode_text')
    image, text = (outputs[name] for name in EMBEDDINGS)
    own = jnp.sum(image * text, axis=1, keepdims=True)
    logits = jnp.concatenate([own, image @ bank['text_embedding'].T], axis=1)
    return {'logits': jnp.exp(outputs['logit_scale']) * logits,
            **{name: outputs[name] for name in names}}, variables

  return matched


def distributions(image, text, *, top: float = 0.05) -> Similarities:
  """Similarities of N pairs, as in NCU's Figure 5.

  With s_ij = cos(image_i, text_j): s_ii, the mean of s_ij over j != i, and the mean of the
  ceil(top (N - 1)) largest of them. The paper plots "normalized similarity" and does not say how
  it is normalised; these are plain cosines. That the top 5 % are averaged per picture is our
  reading of "top 5% maximum of negative pairs".

  Args:
    image: [N, d], brought to unit length here.
    text: [N, d]; row i is the caption of picture i. Of pairs whose captions are the same text,
      each counts as a negative of the other: pass pairs of distinct captions.
    top: share of the negatives, in (0, 1].

  Raises:
    ValueError: fewer than two pairs, numbers of rows or dimensions that differ, embeddings that
      are not finite or of length 0, or a share out of range.
  """
  image, text = retrieval.normalised('image', image), retrieval.normalised('text', text)
  if image.shape != text.shape or len(image) < 2:
    raise ValueError(f'pairs are rows of two equal tables with two rows at least, got image '
                     f'{image.shape} and text {text.shape}')
  if not 0 < top <= 1:
    raise ValueError(f'top is a share of the negatives in (0, 1], got {top}')
  others = len(text) - 1
  count = math.ceil(top * others)
  positive = np.einsum('nd,nd->n', image, text)
  negative, top_negative = np.empty_like(positive), np.empty_like(positive)
  size = max(_BLOCK // len(text), 1)
  for start in range(0, len(image), size):
    block = image[start:start + size] @ text.T
    rows = np.arange(len(block))
    block[rows, start + rows] = -np.inf
    largest = np.partition(block, others + 1 - count, axis=1)[:, others + 1 - count:]
    block[rows, start + rows] = 0
    negative[start:start + size] = block.sum(axis=1, dtype=np.float64) / others
    top_negative[start:start + size] = largest.mean(axis=1, dtype=np.float64)
  return Similarities(positive, negative, top_negative)


def summary(found: Similarities) -> dict[str, float]:
  """The distributions as numbers.

  Returns:
    `similarity/positive`, `similarity/negative` and `similarity/top_negative`: means over
    pictures, in [-1, 1]; `similarity/positive_std`: the spread of the positives, which NCU widens
    according to its section 5.6; `similarity/gap`: mean of positive - top_negative, in [-2, 2],
    what separates true pairs from hard negatives.
  """
  return {
      **{f'similarity/{kind}': float(np.mean(getattr(found, kind), dtype=np.float64))
         for kind in _KINDS},
      'similarity/positive_std': float(np.std(found.positive, dtype=np.float64)),
      'similarity/gap': float(np.mean(found.positive - found.top_negative, dtype=np.float64))}


@figures.styled
def densities(models: Mapping[str, Similarities]):
  """Kernel densities of the three similarities, a panel per model on shared axes (Figure 5)."""
  from scipy import stats
  if not models:
    raise ValueError('there is no model to draw')
  values = np.concatenate([part for found in models.values() for part in found])
  margin = 0.05 * max(float(np.ptp(values)), 1e-3)
  x = np.linspace(values.min() - margin, values.max() + margin, 256)
  columns = min(3, len(models))
  rows = -(-len(models) // columns)
  canvas, axes = figures.new_figure(9.0, 0.7 + 1.9 * rows, rows, columns, sharex=True)
  for axis, (name, found) in zip(axes.flat, models.items()):
    for (kind, label), colour in zip(_KINDS.items(), (figures.FORGET, *figures.COLOURS)):
      part = np.asarray(getattr(found, kind), np.float64)
      if np.ptp(part) > 1e-6:
        density = stats.gaussian_kde(part)(x)
        axis.plot(x, density, color=colour, lw=1.3, label=label)
        axis.fill_between(x, density, color=colour, alpha=0.2, lw=0)
      else:  # a point mass has no density
        axis.axvline(part[0], color=colour, lw=1.3, label=label)
    axis.set_title(name, fontsize=9)
    axis.tick_params(labelbottom=True)  # below a panel of the last row there may be none
  for axis in axes.flat[len(models):]:
    axis.set_visible(False)
  canvas.legend(*axes[0, 0].get_legend_handles_labels(), loc='outside upper center', ncols=3)
  canvas.supxlabel('cosine similarity', fontsize=9)
  canvas.supylabel('density', fontsize=9)
  return canvas


def selection(selected, noisy) -> Selection:
  """Precision and recall of the planted noise among the pairs that NCU selected to forget.

  Args:
    selected: ids of the pairs, positions in `noisy`, each at most once: the selections of one
      epoch, in which every pair stands in one batch.
    noisy: bool [N], where noise was planted.

  Raises:
    ValueError: ids that are not integers, out of range or repeated; `noisy` not bool [N], or
      empty.
  """
  selected, noisy = np.asarray(selected), np.asarray(noisy)
  if noisy.ndim != 1 or noisy.dtype != bool or not len(noisy):
    raise ValueError(f'noisy must be bool [N], got {noisy.dtype} {noisy.shape}')
  if selected.ndim != 1 or (len(selected) and selected.dtype.kind not in 'iu'):
    raise ValueError(f'selected must be integer ids, got {selected.dtype} {selected.shape}')
  selected = selected.astype(np.int64)
  if len(wrong := selected[(selected < 0) | (selected >= len(noisy))]):
    raise ValueError(f'id {wrong[0]} is none of the {len(noisy)} pairs')
  if len(np.unique(selected)) != len(selected):
    raise ValueError('an id was selected twice; pass the selections of one epoch')
  caught = int(noisy[selected].sum())
  return Selection(caught / len(selected) if len(selected) else math.nan,
                   caught / noisy.sum().item() if noisy.any() else math.nan,
                   float(noisy.mean()))
