"""One call from models and data to an `AuditReport`."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
from typing import Any

import numpy as np

from unlearn_jax.audit import hygiene as hygiene_lib
from unlearn_jax.audit import intervals
from unlearn_jax.audit import outputs as outputs_lib
from unlearn_jax.audit import statistics as statistics_lib
from unlearn_jax.audit import verdict as verdict_lib
from unlearn_jax.audit.verdict import Statistic
from unlearn_jax.evals import privacy
from unlearn_jax.evals import run


@dataclasses.dataclass(frozen=True)
class AuditReport:
  """What an audit found.

  Attributes:
    verdict: PASS, FAIL or INCONCLUSIVE, by the primary statistics; see `audit.verdict`.
    statistics: name -> `Statistic`; one that could not be computed has the verdict 'n/a: reason'.
    original_verdict: what the same rule says of the original model. Unless it is FAIL, the audit is
      too small to see anything, or there was nothing to see, and nobody can PASS.
    self_check: every retrained model audited against the others by the same rule: its name,
      `verdict` and `statistics` (primary name -> verdict); or 'n/a: reason'.
    attacks: model -> AUC with BCa interval, true positive rates at low false positive rates and the
      lower bound of epsilon of the loss attack.
    hygiene: see `audit.hygiene.measure`.
    records: forgotten records: id, losses of the original, unlearned and (mean) retrained models.
    losses: model -> {'forget': [n], 'unseen': [m]}, ascending, for figures.
    splits: split -> number of records and the hashes of their ids and contents.
    models: name -> sha256 of its variables.
    notes: limits of this audit, in words.
    settings: seed, resamples, level.
  """

  verdict: str
  statistics: Mapping[str, Statistic]
  original_verdict: str
  self_check: Sequence[Mapping[str, Any]] | str
  attacks: Mapping[str, Mapping[str, Any]]
  hygiene: Mapping[str, Any]
  records: Sequence[Mapping[str, Any]]
  losses: Mapping[str, Mapping[str, Sequence[float]]]
  splits: Mapping[str, Mapping[str, Any]]
  models: Mapping[str, str]
  notes: Sequence[str]
  settings: Mapping[str, Any]

  def to_json(self, path: str | os.PathLike) -> None:
    """Writes `report.json`, whose schema is `unlearn_jax/audit/report.schema.json`."""
    from unlearn_jax.audit import report
    report.write_json(self, path)

  def to_html(self, path: str | os.PathLike) -> None:
    """Writes one self-contained page for readers who are no engineers.

    Raises:
      ValueError: a table without its oracle, the retrained model.
    """
    from unlearn_jax.audit import report
    report.write_html(self, path)


def audit(apply: Callable, *, original: Any, unlearned: Any, retrained: list,
          data: Mapping[str, Mapping[str, np.ndarray]], statistics: Sequence[str] | None = None,
          seed: int = 0) -> AuditReport:
  """Audits an unlearned model against the original and several retrained ones.

  Args:
    apply: a model's `apply`; its outputs hold `logits` and, for feature distances, `features`.
    original: variables of the model trained on everything.
    unlearned: variables of the model to be judged, or a list of them from several seeds (their mean
      is judged then, and KLOM can be computed).
    retrained: variables of at least two models trained from fresh initialisations, by the same
      recipe, without the forget records; five give floors worth trusting.
    data: split -> fields. `forget`, `unseen` (drawn like `forget`, seen by no model) and one of
      `retain` and `test` are needed, `validation` may be there. Fields are the model's inputs,
      `label` (int [N] or attributes [N, K]) and, optionally, `id`.
    statistics: names out of `audit.statistics.catalogue`; None for all.
    seed: of the bootstrap. Equal arguments give equal reports, whatever the order of the records.

  Returns:
    The report.

  Raises:
    ImportError: jax_privacy is not installed; raised before anything is computed.
    ValueError: splits, models or statistics that are missing, or models that have diverged.
  """
  intervals.require()
  several = list(unlearned) if isinstance(unlearned, (list, tuple)) else [unlearned]
  _check(several, retrained, data)
  variables = {'original': original, **{f'unlearned/{i}': v for i, v in enumerate(several)},
               **{f'retrained/{i}': v for i, v in enumerate(retrained)}}
  out = outputs_lib.Outputs(apply, variables, data, resamples=intervals.RESAMPLES, seed=seed)
  catalogue = statistics_lib.catalogue(out)
  if unknown := sorted(set(statistics or ()) - set(catalogue)):
    raise ValueError(f'unknown statistics {unknown}; there are {sorted(catalogue)}')
  chosen = {name: catalogue[name] for name in catalogue if statistics is None or name in statistics}
  family = {name: chosen[name] for name in statistics_lib.primary(out) if name in chosen}
  found = judge(out, chosen, family, out.unlearned, out.retrained, seed)
  anchors = judge(out, chosen, family, [0], out.retrained, seed)
  original_verdict = _overall(anchors, family, sensitive=True)
  found = {name: dataclasses.replace(statistic, original=anchors[name].unlearned)
           for name, statistic in found.items()}
  return AuditReport(
      verdict=_overall(found, family, sensitive=original_verdict == verdict_lib.FAIL),
      statistics=found,
      original_verdict=original_verdict,
      self_check=_self_check(out, family, original_verdict, seed),
      attacks=_attacks(out),
      hygiene=hygiene_lib.measure(out),
      records=_records(out),
      losses=_losses(out),
      splits={split: _describe(out, split) for split in out.data},
      models={name: outputs_lib.model_hash(v) for name, v in variables.items()},
      notes=_notes(out, found, original_verdict),
      settings={'seed': seed, 'resamples': intervals.RESAMPLES, 'level': intervals.LEVEL,
                'primary': list(family)})


def _check(unlearned, retrained, data) -> None:
  if not unlearned:
    raise ValueError('there is no unlearned model')
  if not isinstance(retrained, (list, tuple)) or len(retrained) < 2:
    raise ValueError('an audit needs a list of at least two retrained models (five are better): '
                     'without them there is no floor to read a gap against')
  if unknown := sorted(set(data) - set(outputs_lib.SPLITS)):
    raise ValueError(f'unknown splits {unknown}; splits are {outputs_lib.SPLITS}')
  if missing := [split for split in ('forget', 'unseen') if split not in data]:
    raise ValueError(f'an audit needs the splits {missing}')
  if not {'retain', 'test'} & set(data):
    raise ValueError('an audit needs retain or test records, to see whether the model is as good')
  for split, fields in data.items():
    if 'label' not in fields:
      raise ValueError(f'{split} has no field `label`; it has {sorted(fields)}')
    run.num_records(fields)


def judge(out: outputs_lib.Outputs, chosen: Mapping[str, statistics_lib.Measure],
          family: Mapping[str, statistics_lib.Measure], subject: Sequence[int],
          reference: Sequence[int], seed: int) -> dict[str, Statistic]:
  """Every chosen statistic of some models against others.

  Args:
    out: outputs of all models.
    chosen: name -> measure.
    family: those that share simultaneous floors; the others have a floor of their own.
    subject: positions of the judged models.
    reference: positions of the retrained models.
    seed: of the resampled models.

  Returns:
    name -> statistic; `unlearned` is the judged model's value, `original` is left empty.
  """
  values, reasons = {}, {}
  for name, measure in chosen.items():
    try:
      values[name] = measure.compute(out, subject, reference)
    except outputs_lib.NotAvailable as error:
      reasons[name] = str(error)
  floors = {}
  if together := {name: (values[name].reference, measure.pairwise)
                  for name, measure in family.items() if name in values}:
    floors = verdict_lib.floors(together)
  found = {}
  for name, measure in chosen.items():
    described = {'primary': name in family, 'records': measure.records,
                 'question': measure.question, 'meaning': measure.meaning, 'source': measure.source}
    if name in reasons:
      found[name] = Statistic(verdict=f'n/a: {reasons[name]}', **described)
      continue
    floor = floors.get(name)
    if floor is None:
      alone = {name: (values[name].reference, measure.pairwise)}
      floor = verdict_lib.floors(alone)[name]
    gap = verdict_lib.measure_gap(values[name], records=measure.records, seed=seed)
    verdict, needed, models = verdict_lib.decide(
        gap, floor, records=measure.records, retrained=len(reference))
    found[name] = Statistic(
        unlearned=float(values[name].subject[0].mean()),
        retrained=tuple(float(x) for x in values[name].reference[0]), floor=floor, gap=gap.value,
        interval=gap.interval, verdict=verdict, needed=needed, needed_retrained=models, **described)
  return found


def _overall(found, family, *, sensitive) -> str:
  """The verdict of a family; a primary statistic that is not available keeps it from PASS."""
  return verdict_lib.overall([found[name].verdict for name in family], sensitive=sensitive)


def _self_check(out, family, original_verdict, seed):
  """Each retrained model against the others, by the rule that the unlearned model is held to."""
  if len(out.retrained) < 4:
    return 'n/a: auditing a retrained model against the others needs four of them'
  found = []
  for model in out.retrained:
    others = [other for other in out.retrained if other != model]
    judged = judge(out, family, family, [model], others, seed)
    found.append({'model': out.models[model],
                  'verdict': _overall(judged, family,
                                      sensitive=original_verdict == verdict_lib.FAIL),
                  'statistics': {name: part.verdict for name, part in judged.items()}})
  return found


def _attacks(out) -> dict[str, dict[str, Any]]:
  found = {}
  for i, name in enumerate(out.models):
    members, others = (-out.score(split, 'loss')[i] for split in ('forget', 'unseen'))
    replicates = intervals.auc(members, others, out.counts['forget'], out.counts['unseen'])
    low, high = intervals.bca(replicates[0], replicates[1:],
                              intervals.auc_influence(members, others))
    auditor = intervals.attack(members, others)
    found[name] = {
        'auc': privacy.auc(-members, -others), 'auc_interval': [low, high],
        'tpr_at_fpr_0.01': float(auditor.tpr_at_given_fpr(0.01)),
        'tpr_at_fpr_0.1': float(auditor.tpr_at_given_fpr(0.1)),
        'epsilon_lower_bound': intervals.epsilon(members, others)}
  return found


def _records(out) -> list[dict[str, Any]]:
  losses = out.score('forget', 'loss')
  ids = out.data['forget'].get('id', out.hashes['forget'])
  groups = {'original': [0], 'unlearned': out.unlearned, 'retrained': out.retrained}
  return [{'id': str(ids[i]), 'hash': out.hashes['forget'][i],
           **{name: float(losses[models, i].mean()) for name, models in groups.items()}}
          for i in range(len(ids))]


def _losses(out) -> dict[str, dict[str, list[float]]]:
  return {name: {split: sorted(map(float, out.score(split, 'loss')[i]))
                 for split in ('forget', 'unseen')} for i, name in enumerate(out.models)}


def _describe(out, split) -> dict[str, Any]:
  ids = out.data[split].get('id')
  return {'records': out.size(split), 'content': outputs_lib.digest_of(out.hashes[split]),
          'ids': 'n/a: no field `id`' if ids is None else outputs_lib.digest_of(map(str, ids))}


def _notes(out, found, original_verdict) -> list[str]:
  """What a reader must know before believing the numbers."""
  notes = []
  count = len(out.retrained)
  if count < verdict_lib.GOOD_RETRAINED:
    notes.append(f'Only {count} retrained models: the normal spread between them is known roughly, '
                 'and margins are wide or accidental. Five or more are better.')
  if original_verdict != verdict_lib.FAIL:
    notes.append('The same test does not fail the original model. Either the records left no trace '
                 'that this audit can see, or it holds too few records: nothing can be cleared.')
  small = [f'{out.size(split)} {split}' for split in out.data
           if out.size(split) < verdict_lib.MIN_RECORDS]
  if small:
    notes.append(f'Too few records for intervals ({", ".join(small)}; {verdict_lib.MIN_RECORDS} '
                 'are needed): what rests on them is inconclusive.')
  missing = sum(part.verdict.startswith('n/a') for part in found.values())
  if missing:
    notes.append(f'{missing} of {len(found)} measurements could not be made; each says why.')
  return notes
