"""Every statistic of an audit, by name; values under all bootstrap resamples at once."""

from collections.abc import Callable, Sequence
import functools
from typing import NamedTuple

import numpy as np

from unlearn_jax.audit import attacks
from unlearn_jax.audit import distances
from unlearn_jax.audit import intervals
from unlearn_jax.audit.outputs import NotAvailable
from unlearn_jax.audit.outputs import Outputs
from unlearn_jax.audit.outputs import Values

QUESTIONS = {
    'forgotten': 'Has it forgotten the records?',
    'attack': 'Can an attacker tell that the records were used?',
    'useful': 'Is it still as good?',
    'alike': 'Does it answer like a retrained model?',
}
CLASS_RECORDS = 5  # fewer of a kind, and the AUC of a class means nothing


class Measure(NamedTuple):
  """How a statistic is computed and read.

  Attributes:
    compute: `(outputs, subject, reference) -> Values`; models by their positions.
    splits: that it reads.
    question: one of `QUESTIONS`.
    meaning: in plain words.
    pairwise: whether it is a distance to retrained models, see `verdict.deviations`.
    records: how many records it rests on: the smallest split.
    source: paper and definition.
  """

  compute: Callable[[Outputs, Sequence[int], Sequence[int]], Values]
  splits: tuple[str, ...]
  question: str
  meaning: str
  pairwise: bool = False
  records: int = 0
  source: str = ''


def primary(out: Outputs) -> tuple[str, ...]:
  """The declared family that decides the overall verdict: few, fixed, one per question or two."""
  useful = 'test' if 'test' in out.data else 'retain'
  return ('accuracy/forget', 'loss_gap', 'membership[auc]', f'accuracy/{useful}',
          'logit_distance/forget')


def catalogue(out: Outputs) -> dict[str, Measure]:
  """Name -> measure, for the splits and classes of this audit; what needs other splits is there
  too and says so when it is computed."""
  found: dict[str, Measure] = {}

  def add(name, compute, splits, question, meaning, source='', **kwargs):
    records = min((out.size(split) for split in splits if split in out.data), default=0)
    found[name] = Measure(compute, tuple(splits), question, meaning,
                          **{'records': records, 'source': source} | kwargs)

  for split in out.data:
    add(f'accuracy/{split}', per_model(_mean('correct', split)), (split,),
        'forgotten' if split == 'forget' else 'useful',
        f'share of {split} records that it gets right')
  add('loss_gap', per_model(_loss_gap), ('forget', 'unseen'), 'forgotten',
      'mean loss on forgotten minus mean loss on unseen records')
  for name, convention in attacks.CONVENTIONS.items():
    add(f'membership[{name}]', _membership(name), convention.splits, 'attack', convention.meaning,
        f'{convention.source}. Ideal: {attacks.IDEALS[convention.ideal]}',
        pairwise=name == 'privacy_loss')
  add('auc[entropy]', per_model(_auc('entropy')), ('forget', 'unseen'), 'attack',
      'chance that it is surer of a forgotten than of an unseen record',
      'Shokri et al. (2017); Song and Mittal (2021)')
  for name in ('loss', 'confidence', 'entropy', 'margin'):
    for kind, distance in distances.BETWEEN.items():
      add(f'{kind}[{name}]/unseen', per_model(functools.partial(distance, name=name)),
          ('forget', 'unseen'), 'attack',
          f'{distances.WORDS[kind]} between its {name} on forgotten and on unseen records',
          distances.SOURCES[kind])
      add(f'{kind}[{name}]/retrained', _to_retrained(distances.ACROSS[kind], name), ('forget',),
          'alike', f'{distances.WORDS[kind]} between its {name} on forgotten records and that of '
          'retrained models', distances.SOURCES[kind], pairwise=True)
  for split in ('forget', 'test'):
    for kind, distance in distances.OUTPUTS.items():
      add(f'{kind}/{split}', _to_retrained(distance, split), (split,), 'alike',
          f'mean {distances.WORDS[kind]} to retrained models on {split} records',
          distances.SOURCES[kind], pairwise=True)
    add(f'klom/{split}', functools.partial(distances.klom, split=split), (split,), 'alike',
        f'KL divergence of margins from retrained models on {split} records',
        distances.SOURCES['klom'])
  add('tow', _tow, ('forget', 'retain', 'test'), 'useful',
      'tug of war: 1 if all three accuracies equal those of retrained models',
      'RUM (Zhao et al., 2024): the product of 1 - abs(accuracy difference)')
  add('membership[auc]/worst_class', per_model(_worst_class), ('forget', 'unseen'), 'attack',
      'the largest loss attack AUC of a class', 'per-class attack: Shokri et al. (2017)')
  for which in ([] if out.attributes else np.unique(out.labels['forget'])):
    sizes = [int((out.labels[split] == which).sum()) for split in ('forget', 'unseen')]
    add(f'membership[auc]/class={which}',
        per_model(functools.partial(_class_auc, which=which)), ('forget', 'unseen'), 'attack',
        f'chance that a forgotten record of class {which} has a smaller loss than an unseen one '
        'of that class', 'per-class attack: Shokri et al. (2017)', records=min(sizes))
  return found


def per_model(values: Callable[[Outputs, int], np.ndarray]) -> Callable[..., Values]:
  """A measure from `(outputs, model) -> [1 + resamples]` that looks at one model alone."""
  def compute(out, subject, reference):
    def of(model):
      return out.remember((values, model), lambda: values(out, model))
    return Values(np.stack([of(m) for m in subject], axis=1),
                  np.stack([of(m) for m in reference], axis=1))
  return compute


def _to_retrained(distance: Callable, argument: str) -> Callable[..., Values]:
  """A measure from `(outputs, argument, model, other) -> [1 + resamples]`, symmetric: the mean
  distance to the retrained models other than itself."""
  def compute(out, subject, reference):
    if len(reference) < 3:
      raise NotAvailable('the floor of a distance to retrained models needs three of them')

    def between(m, r):
      pair = (min(m, r), max(m, r))
      return out.remember((distance, argument, pair), lambda: distance(out, argument, *pair))

    def of(m):
      return np.mean([between(m, r) for r in reference if r != m], axis=0)
    return Values(np.stack([of(m) for m in subject], axis=1),
                  np.stack([of(m) for m in reference], axis=1))
  return compute


def _mean(score: str, split: str):
  def values(out, model):
    return intervals.mean(out.score(split, score)[model], out.counts[split])
  return values


def _loss_gap(out, model):
  return _mean('loss', 'forget')(out, model) - _mean('loss', 'unseen')(out, model)


def _auc(score: str):
  def values(out, model):
    return intervals.auc(-out.score('forget', score)[model], -out.score('unseen', score)[model],
                         out.counts['forget'], out.counts['unseen'])
  return values


def _class_auc(out, model, *, which):
  out.need('unseen')
  chosen = {split: out.labels[split] == which for split in ('forget', 'unseen')}
  sizes = {split: int(rows.sum()) for split, rows in chosen.items()}
  if min(sizes.values()) < CLASS_RECORDS:
    raise NotAvailable(f'{sizes["forget"]} forgotten and {sizes["unseen"]} unseen records of this '
                       f'class; {CLASS_RECORDS} of each are needed')
  losses = {split: out.score(split, 'loss')[model, rows] for split, rows in chosen.items()}
  # A resample may hold no record of the class: it then counts the observed ones.
  counts = {split: out.counts[split][:, rows] for split, rows in chosen.items()}
  counts = {split: np.where(part.sum(axis=1, keepdims=True) > 0, part, 1.0)
            for split, part in counts.items()}
  return intervals.auc(-losses['forget'], -losses['unseen'], counts['forget'], counts['unseen'])


def _worst_class(out, model):
  if out.attributes:
    raise NotAvailable('records have attributes, not classes')
  found = []
  for which in np.unique(out.labels['forget']):
    try:
      found.append(_class_auc(out, model, which=which))
    except NotAvailable:
      continue  # that class says so itself
  if not found:
    raise NotAvailable(f'no class has {CLASS_RECORDS} forgotten and {CLASS_RECORDS} unseen records')
  return np.max(found, axis=0)


def _tow(out, subject, reference):
  out.need('forget', 'retain', 'test')
  accuracy = {split: intervals.mean(out.score(split, 'correct'), out.counts[split])
              for split in ('forget', 'retain', 'test')}  # [1 + resamples, models]

  def of(m):
    others = [r for r in reference if r != m]
    return np.prod([1 - np.abs(part[:, m] - part[:, others].mean(axis=1))
                    for part in accuracy.values()], axis=0)
  return Values(np.stack([of(m) for m in subject], axis=1),
                np.stack([of(m) for m in reference], axis=1))


def _membership(convention: str) -> Callable[..., Values]:
  if convention == 'auc':
    return per_model(_auc('loss'))
  if convention == 'privacy_loss':
    return _to_retrained(_privacy_loss, 'forget')

  def values(out, model):
    rule = attacks.CONVENTIONS[convention]
    out.need(*rule.splits)
    if convention in attacks.DECISIONS:
      scores = {split: {name: out.score(split, name)[model] for name in ('entropy', 'confidence')}
                for split in rule.splits}
      if convention == 'ccu_admin':
        if out.attributes:
          raise NotAvailable('its attack needs one class per record')
        for split, part in scores.items():
          part['posterior'] = attacks.posterior(out.logits[split][model], out.labels[split])
      answers = attacks.DECISIONS[convention](scores, 0)
      return intervals.mean(answers, out.counts['forget'])
    if min(out.size('forget'), out.size('unseen')) < 11:
      raise NotAvailable('the cross-validated attack needs 11 records of each kind')
    return attacks.cross_validated(
        out.score('forget', 'loss')[model], out.score('unseen', 'loss')[model],
        out.counts['forget'], out.counts['unseen'], convention=convention, seed=0)
  return per_model(values)


def _privacy_loss(out, split, model, other):
  losses = out.score(split, 'loss')
  return intervals.mean(np.abs(losses[model] - losses[other]), out.counts[split])
