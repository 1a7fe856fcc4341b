"""The numbers of an experiment: per-seed rows -> `results.json`, and the tables made from it."""

from collections.abc import Mapping, Sequence
import itertools
import json
import math
import os
import statistics
from typing import Any

from unlearn_jax.evals import render
from unlearn_jax.evals import views

ANCHORS = ('original', 'retrain')
NOT_AVAILABLE = 'n/a'


def summarise(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
  """The `methods` and `floor` parts of `results.json`.

  Args:
    rows: method -> one row per seed, all in the same order of seeds; a row has `metrics`
      (name -> number or None), `seconds` and `compile_seconds`, and where several rows are one and
      the same model, its `replicate`, which counts once in spreads and floors. `original` and
      `retrain` must be among the methods.

  Returns:
    `methods`: NAME -> `metrics` (METRIC -> mean, std with ddof=1, values), `seconds` and
    `compile_seconds` likewise; `floor`: METRIC -> `pairs`, |retrain_i - retrain_j| of all pairs of
    seeds (of `views.RELATIVE` metrics 100 |retrain_i / retrain_j - 1|), and their `max`. What
    cannot be computed is None: std of one seed, the mean if a seed has
    no value, NaN and infinities.

  Raises:
    ValueError: an anchor is missing, there are no seeds, or methods differ in the number of seeds.
  """
  _require_anchors(rows)
  seeds = {name: len(per_seed) for name, per_seed in rows.items()}
  if len(set(seeds.values())) != 1 or 0 in seeds.values():
    raise ValueError(f'every method needs one row per seed, got {seeds}')
  methods = {}
  for name in ordered(rows):
    per_seed = rows[name]
    once = distinct(per_seed)
    names = dict.fromkeys(metric for row in per_seed for metric in row['metrics'])
    methods[name] = {
        'metrics': {metric: _statistics([row['metrics'].get(metric) for row in per_seed], once)
                    for metric in names},
        **{cost: _statistics([row.get(cost) for row in per_seed], once)
           for cost in ('seconds', 'compile_seconds', 'flops')}}
  floor, once = {}, distinct(rows['retrain'])
  for metric, found in methods['retrain']['metrics'].items():
    pairs, base = [], methods['retrain']['metrics'].get(views.RELATIVE.get(metric), found)
    if None not in base['values']:
      ours, theirs = ([part['values'][index] for index in once] for part in (found, base))
      pairs = ([100.0 * abs(a / b - 1) for a, b in itertools.permutations(theirs, 2)]
               if metric in views.RELATIVE else
               [abs(a - b) for a, b in itertools.combinations(ours, 2)])
    floor[metric] = {'pairs': pairs, 'max': max(pairs, default=None)}
  return {'methods': methods, 'floor': floor}


def distinct(per_seed: Sequence[Mapping[str, Any]]) -> list[int]:
  """Indices of the rows that are different models."""
  replicates = [row.get('replicate', index) for index, row in enumerate(per_seed)]
  return sorted(map(replicates.index, set(replicates)))


def from_json(path: str | os.PathLike) -> dict[str, Any]:
  """Reads `results.json`.

  Raises:
    ValueError: it is no such file, or lacks the original or the retrained model.
  """
  with open(path) as file:
    results = json.load(file)
  for part in results.get('cases', {'': results}).values():
    if 'methods' not in part:
      raise ValueError(f'{path} holds no results of an experiment (no "methods")')
    _require_anchors(part['methods'])
  return results


def ordered(methods) -> tuple[str, ...]:
  """Original and retrained first, then the methods in their own order."""
  return ANCHORS + tuple(name for name in methods if name not in ANCHORS)


def display(name: str) -> str:
  return {'original': 'Original', 'retrain': 'Retrained'}.get(name, name)


def best(results: Mapping[str, Any], metric: str | None = None) -> str | None:
  """The approximate method with the best mean (of the view's metric by default), or None."""
  view = views.of(results)
  metric = view.best if metric is None else metric
  means = {name: value(results, name, metric)['mean'] for name in ordered(results['methods'])
           if name not in ANCHORS and not name.startswith(view.beside)}
  able = {name: mean for name, mean in means.items() if mean is not None}
  choose = min if views.metric(metric).ideal == 'lower' else max
  return choose(able, key=able.get) if able else None


def value(results: Mapping[str, Any], name: str, metric: str) -> dict[str, Any]:
  """mean, std and values of a metric, all None where there is none."""
  count = len(results['methods'][name]['seconds']['values'])
  return results['methods'][name]['metrics'].get(
      metric, {'mean': None, 'std': None, 'values': [None] * count})


def gap(results: Mapping[str, Any], name: str, metric: str) -> dict[str, Any]:
  """Signed gap to the retrained model of the same seed, as mean, std and values."""
  ours, theirs = (value(results, who, metric)['values'] for who in (name, 'retrain'))
  return _statistics([None if None in pair else pair[0] - pair[1] for pair in zip(ours, theirs)])


def cost_share(results: Mapping[str, Any], name: str) -> dict[str, Any]:
  """Seconds as a fraction of retraining with the same seed, compilation excluded on both sides."""
  ours, theirs = (results['methods'][who]['seconds']['values'] for who in (name, 'retrain'))
  return _statistics([a / b if a is not None and b else None for a, b in zip(ours, theirs)])


def spread(found: Mapping[str, Any], *, signed: bool = False, digits: int = 3) -> str:
  """'mean ± std'; '–' for the spread of one seed, 'n/a' for what has no value."""
  if _number(found['mean']) is None:
    return NOT_AVAILABLE
  mean = f'{found["mean"]:{"+" if signed else ""}.{digits}f}'
  std = _number(found['std'])
  return f'{mean} ± {"–" if std is None else f"{std:.{digits}f}"}'


def cell(results: Mapping[str, Any], name: str, metric: str) -> str:
  """A metric as a table shows it; the floor of an attack belongs to the split: no spread."""
  found = value(results, name, metric)
  if _is_floor(metric):
    return NOT_AVAILABLE if found['mean'] is None else f'{found["mean"]:.3f}'
  return spread(found, signed=metric in views.SIGNED)


def main_table(results: Mapping[str, Any], metrics: Sequence[str] | None = None) -> render.Table:
  """The methods beside both anchors, and the spread between retrained models as the last row.

  Without `metrics` those of the kind of task.

  Raises:
    ValueError: results without an original and a retrained model.
  """
  _require_anchors(results['methods'])
  metrics = views.of(results).main if metrics is None else metrics
  names = ordered(results['methods'])
  rows = []
  for name in names:
    share = cost_share(results, name)
    rows.append((display(name),
                 *(cell(results, name, metric) for metric in metrics),
                 NOT_AVAILABLE if share['mean'] is None else f'{100 * share["mean"]:.1f} %'))
  rows.append(_floor_row(results, metrics) + ('',))
  winner = best(results)
  strong = frozenset()
  if winner is not None:
    columns = [0] + [1 + index for index, metric in enumerate(metrics)
                     if metric == views.of(results).best]
    strong = frozenset((names.index(winner), column) for column in columns)
  headings = ('Method', *(_heading(metric) for metric in metrics), 'Time, of retraining')
  return render.Table(headings, tuple(rows), strong, frozenset((0, 1, len(rows) - 1)))


def gap_table(results: Mapping[str, Any], metrics: Sequence[str] | None = None) -> render.Table:
  """Signed gaps to the retrained model; a dagger where the floor is at least as large."""
  _require_anchors(results['methods'])
  metrics = [metric for metric in (views.of(results).main if metrics is None else metrics)
             if not _is_floor(metric)]
  rows = []
  for name in ordered(results['methods']):
    if name == 'retrain':
      continue
    cells = []
    for metric in metrics:
      found = gap(results, name, metric)
      largest = _number(results['floor'].get(metric, {}).get('max'))
      inside = found['mean'] is not None and largest is not None and abs(found['mean']) <= largest
      cells.append(('† ' if inside else '') + spread(found, signed=True))
    rows.append((display(name), *cells))
  rows.append(_floor_row(results, metrics))
  headings = ('Method', *(views.metric(metric).label for metric in metrics))
  return render.Table(headings, tuple(rows), anchors=frozenset((0, len(rows) - 1)))


def markdown_table(results: Mapping[str, Any], metrics: Sequence[str] | None = None) -> str:
  """`main_table` in Markdown."""
  return render.table_markdown(main_table(results, metrics))


def _floor_row(results, metrics):
  """Largest difference between two retrained models."""
  cells = []
  for metric in metrics:
    largest = _number(results['floor'].get(metric, {}).get('max'))
    shown = NOT_AVAILABLE if largest is None else f'{largest:.3f}'
    cells.append('' if _is_floor(metric) else shown)
  return ('Floor: retrained against retrained, largest difference', *cells)


def _is_floor(metric):
  return metric.startswith('forgetting_floor')


def _heading(metric):
  shown = views.metric(metric)
  return f'{shown.label} ({shown.ideal})' if shown.ideal else shown.label


def _require_anchors(methods):
  if missing := [name for name in ANCHORS if name not in methods]:
    raise ValueError(f'results without {" and ".join(missing)}: no table is written without the '
                     f'original and the retrained model; there is {sorted(methods)}')


def _number(x) -> float | None:
  """A finite float, or None."""
  return float(x) if x is not None and math.isfinite(x) else None


def _statistics(values: Sequence[Any], once: Sequence[int] | None = None) -> dict[str, Any]:
  """Mean and spread of the values at the indices `once`, by default of all."""
  values = [_number(x) for x in values]
  counted = values if once is None else [values[index] for index in once]
  whole = None not in counted
  return {'mean': statistics.fmean(counted) if whole else None,
          'std': statistics.stdev(counted) if whole and len(counted) > 1 else None,
          'values': values}
