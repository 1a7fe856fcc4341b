"""Distances between distributions of scores, and between the outputs of two models."""

from collections.abc import Sequence
import itertools

import numpy as np
from scipy import special

from unlearn_jax.audit import intervals
from unlearn_jax.audit.outputs import LARGEST_MARGIN
from unlearn_jax.audit.outputs import NotAvailable
from unlearn_jax.audit.outputs import Outputs
from unlearn_jax.audit.outputs import Values

BINS = 20
KLOM_EPSILON = 1e-5
_SPLITTINGS = 20  # of the retrained models into two groups, at most

WORDS = {
    'js': 'Jensen-Shannon distance', 'ks': 'Kolmogorov-Smirnov distance',
    'logit_distance': 'distance of the logits',
    'activation_distance[softmax]': 'distance of the predicted probabilities',
    'activation_distance[features]': 'distance of the internal features',
}
SOURCES = {
    'js': 'Lin (1991): square root of the divergence in bits, 20 bins of equal weight',
    'ks': 'two-sample Kolmogorov-Smirnov: largest difference of the distribution functions',
    'logit_distance': 'root mean square over classes of the difference of logits; for classes they '
                      'are centred first, as a softmax ignores their mean',
    'activation_distance[softmax]': 'Golatkar et al. (2021): L2 distance of the final activations',
    'activation_distance[features]':
        'relative representation (after Moschella et al., 2023): root mean square difference of '
        'the cosines to the means of all classes (of retained records, else of test records); '
        'unchanged by rotating or scaling the features of a model',
    'klom': 'KLOM (Georgiev et al., 2024, Appendix E.1, and its release): per record KL divergence '
            'of histograms of margins over models, 20 bins, margins clipped to +-100, empty bins '
            'of the reference raised to 1e-5; mean over records',
}


def _histograms(out: Outputs, name: str, splits: tuple[str, ...]) -> dict[str, np.ndarray]:
  """split -> shares [1 + resamples, models, BINS] on bins that all models share."""
  def compute():
    values = {split: out.score(split, name) for split in splits}
    pooled = np.concatenate([part[out.retrained].ravel() for part in values.values()])
    edges = np.unique(np.quantile(pooled, np.linspace(0, 1, BINS + 1)[1:-1]))
    found = {}
    for split, part in values.items():
      which = np.searchsorted(edges, part, side='right')  # [models, N]
      inside = (which[..., None] == np.arange(len(edges) + 1)).astype(np.float64)
      found[split] = np.einsum('rn,mnb->rmb', out.counts[split], inside, optimize=True)
      found[split] /= out.size(split)
    return found
  return out.remember(('histograms', name, splits), compute)


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> np.ndarray:
  """Square root of the Jensen-Shannon divergence in bits, over the last axis; in [0, 1]."""
  middle = (p + q) / 2
  divergence = (special.rel_entr(p, middle) + special.rel_entr(q, middle)).sum(axis=-1) / 2
  return np.sqrt(np.maximum(divergence / np.log(2), 0))


def kolmogorov_smirnov(x: np.ndarray, y: np.ndarray, x_counts: np.ndarray, y_counts: np.ndarray
                       ) -> np.ndarray:
  """max |F_x - F_y| of samples [N] and [M] under counts [R, N] and [R, M]: [R] in [0, 1]."""
  values = np.concatenate([x, y])
  order = np.argsort(values, kind='stable')
  ends = np.append(np.diff(values[order]) > 0, True)  # the last of equal values
  steps = np.concatenate([x_counts / x_counts.sum(axis=1, keepdims=True),
                          -y_counts / y_counts.sum(axis=1, keepdims=True)], axis=1)
  return np.abs(np.cumsum(steps[:, order], axis=1)[:, ends]).max(axis=1)


def _js_unseen(out: Outputs, model: int, *, name: str) -> np.ndarray:
  shares = _histograms(out, name, ('forget', 'unseen'))
  return jensen_shannon(shares['forget'][:, model], shares['unseen'][:, model])


def _ks_unseen(out: Outputs, model: int, *, name: str) -> np.ndarray:
  return kolmogorov_smirnov(out.score('forget', name)[model], out.score('unseen', name)[model],
                            out.counts['forget'], out.counts['unseen'])


def _js_models(out: Outputs, name: str, model: int, other: int) -> np.ndarray:
  shares = _histograms(out, name, ('forget',))['forget']
  return jensen_shannon(shares[:, model], shares[:, other])


def _ks_models(out: Outputs, name: str, model: int, other: int) -> np.ndarray:
  values, counts = out.score('forget', name), out.counts['forget']
  return kolmogorov_smirnov(values[model], values[other], counts, counts)


BETWEEN = {'js': _js_unseen, 'ks': _ks_unseen}  # forget against unseen, within a model
ACROSS = {'js': _js_models, 'ks': _ks_models}  # a model against another, on forget


def _logits(out: Outputs, split: str, model: int, other: int) -> np.ndarray:
  out.need(split)
  difference = out.logits[split][model] - out.logits[split][other]
  if not out.attributes:
    difference = difference - difference.mean(axis=-1, keepdims=True)
  return intervals.mean(np.sqrt((difference**2).mean(axis=-1)), out.counts[split])


def probabilities(out: Outputs, split: str) -> np.ndarray:
  """Softmax, or the sigmoids of attributes, [models, N, C]."""
  def compute():
    logits = out.logits[split]
    return special.expit(logits) if out.attributes else special.softmax(logits, axis=-1)
  return out.remember(('probabilities', split), compute)


def _softmax(out: Outputs, split: str, model: int, other: int) -> np.ndarray:
  out.need(split)
  p = probabilities(out, split)
  return intervals.mean(np.linalg.norm(p[model] - p[other], axis=-1), out.counts[split])


def _features(out: Outputs, split: str, model: int, other: int) -> np.ndarray:
  out.need_features(split)

  def relative(which):
    def compute():
      home = 'retain' if 'retain' in out.data else 'test'
      known, labels = out.features[home][which], out.labels[home]
      member = labels >= 0.5 if out.attributes else labels[:, None] == np.unique(labels)
      member = member[:, member.any(axis=0)].astype(np.float64)  # [N, C]
      centre = known.mean(axis=0)
      means = member.T @ (known - centre) / member.sum(axis=0)[:, None]  # [C, D]
      return _unit(out.features[split][which] - centre) @ _unit(means).T  # [N, C]
    return out.remember(('relative', split, which), compute)
  difference = relative(model) - relative(other)
  return intervals.mean(np.sqrt((difference**2).mean(axis=-1)), out.counts[split])


def _unit(x: np.ndarray) -> np.ndarray:
  return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


# Distance of two models on a split, mean over records.
OUTPUTS = {'logit_distance': _logits, 'activation_distance[softmax]': _softmax,
           'activation_distance[features]': _features}


def klom_per_record(margins: np.ndarray, reference: np.ndarray) -> np.ndarray:
  """KL divergence of histograms over models, per record: [N].

  KL(p || q) with p the margins of the judged models and q those of the retrained ones, on 20 bins
  between the smallest and the largest of both. Georgiev et al. (2024), as their release computes
  it. With few models most bins are empty and the value is near its bound ln(1 / 1e-5) = 11.5 for
  identical distributions as well: read it against its floor.

  Args:
    margins: [models, N].
    reference: [other models, N].
  """
  margins, reference = (np.clip(x, -LARGEST_MARGIN, LARGEST_MARGIN) for x in (margins, reference))
  both = np.concatenate([margins, reference])
  low, width = both.min(axis=0), np.ptp(both, axis=0)
  width = np.where(width > 0, width, 1.0)

  def shares(values):
    # The release leaves the largest value out of its last bin; here it is inside.
    which = np.minimum(((values - low) / width * BINS).astype(int), BINS - 1)
    return (which[..., None] == np.arange(BINS)).mean(axis=0)  # [N, BINS]
  p, q = shares(margins), shares(reference)
  return special.rel_entr(p, np.maximum(q, KLOM_EPSILON)).sum(axis=-1)


def klom(out: Outputs, subject: Sequence[int], reference: Sequence[int], *, split: str):
  """KLOM of several unlearned models, and of groups of retrained models against the others.

  Groups on both sides have the same sizes, a of the judged and K - a of the reference models with
  a = min(judged, K // 2), because the histograms' error depends on them.
  """
  out.need(split)
  if len(subject) < 2:
    raise NotAvailable('KLOM compares distributions over models; pass several unlearned models')
  if len(reference) < 4:
    raise NotAvailable('KLOM needs four retrained models, two in each group')
  size = min(len(subject), len(reference) // 2)
  margins, counts = out.score(split, 'margin'), out.counts[split]
  groups = list(itertools.combinations(reference, size))
  groups = [groups[i] for i in np.linspace(0, len(groups) - 1, min(_SPLITTINGS, len(groups)),
                                           dtype=int)]
  judged = list(itertools.combinations(subject, size))
  values, floor = [], []
  for number, group in enumerate(groups):
    others = margins[[r for r in reference if r not in group]]
    mine = margins[list(judged[number % len(judged)])]
    values.append(klom_per_record(mine, others))
    floor.append(intervals.mean(klom_per_record(margins[list(group)], others), counts))
  return Values(intervals.mean(np.mean(values, axis=0), counts)[:, None], np.stack(floor, axis=1))
