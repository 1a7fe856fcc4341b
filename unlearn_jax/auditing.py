"""Audits every row of an experiment against several retrained models: `unlearn-jax audit`."""

import collections
from collections.abc import Mapping
import dataclasses
import os
from typing import Any

import jax
from ml_collections import config_dict

from unlearn_jax import audit as audit_lib
from unlearn_jax import config as config_lib
from unlearn_jax import experiment
from unlearn_jax import tasks
from unlearn_jax import workdir as workdir_lib
from unlearn_jax.evals import render

FEWEST = 3  # one is held out and audited, the others make a floor


def audit(config: config_dict.ConfigDict, workdir: str, *, resume: bool = False,
          overwrite: bool = False) -> dict[str, Any]:
  """Runs what is missing of an experiment, then audits each of its rows.

  Every row is compared with the retrained models of the seeds `config.audit.retrained`. The
  original model is audited like a method, and so is the first retrained one against the others: an
  audit worth its name fails the first and does not fail the second.

  Args:
    config: from `config.experiment`, with `audit.retrained` seeds; five or more are advised.
    workdir: gets, beside what `experiment.run` writes, `audit/ROW.html` and `audit/ROW.json`,
      `audit.json` and `audit.md`.
    resume: continue what is there, same config.
    overwrite: delete what is there.

  Returns:
    The content of `audit.json`.

  Raises:
    ImportError: the extra `audit` is not installed.
    ValueError: too few retrained models, an experiment with cases, or as `experiment.run`; all
      before any compute is spent.
  """
  audit_lib.intervals.require()
  if len(set(config.audit.retrained)) < FEWEST:
    raise ValueError(f'config.audit.retrained must name at least {FEWEST} seeds of retrained models '
                     f'(five or more are advised), got {tuple(config.audit.retrained)}')
  if config.cases:
    raise ValueError(f'config {config.name!r} has cases; audit one by writing it into a config')
  results = experiment.run(config, workdir, resume=resume, overwrite=overwrite)
  task = tasks.load(config, workdir)
  retrained = [tasks.anchor(task, 'retrain', seed)[0] for seed in config.audit.retrained]
  originals = [tasks.anchor(task, 'original', seed)[0]
               for seed in config_lib.anchor_seeds(config).values()]
  unlearned = {row: [tasks.train_row(task, row, seed, results['settings'][row], original,
                                     tasks.row_directory(task, row, seed))[0]
                     for seed, original in zip(config.seeds, originals)] for row in config.rows}
  apply, data = task.audited()
  os.makedirs(os.path.join(workdir, 'audit'), exist_ok=True)
  reports = {}
  for row, models, against in (('original', originals, retrained),
                               ('retrain', retrained[:1], retrained[1:]),
                               *((row, models, retrained) for row, models in unlearned.items())):
    found = audit_lib.audit(apply, original=originals[0], unlearned=models,
                            retrained=against, data=data)
    if jax.process_index() == 0:
      found.to_html(os.path.join(workdir, 'audit', f'{row}.html'))
      found.to_json(os.path.join(workdir, 'audit', f'{row}.json'))
    reports[row] = found
  summary = summarise(reports, results)
  workdir_lib.write_json(os.path.join(workdir, 'audit.json'), summary)
  if jax.process_index() == 0:
    with open(os.path.join(workdir, 'audit.md'), 'w', encoding='utf-8') as file:
      file.write(markdown(summary))
  return summary


def summarise(reports: Mapping[str, audit_lib.AuditReport], results: Mapping[str, Any]
              ) -> dict[str, Any]:
  """The content of `audit.json`: verdicts and statistics of every row."""
  any_report = reports['original']
  return {
      'config': results['config'], 'split_hash': results['split_hash'],
      'split_sizes': results['split_sizes'], 'versions': results['versions'],
      'attribution': results['attribution'], 'settings': dict(any_report.settings),
      'tune': results['tune'],
      'self_check': any_report.self_check,
      'rows': {row: {
          'verdict': report.verdict,
          'notes': list(report.notes),
          'statistics': {name: dataclasses.asdict(part)
                         for name, part in report.statistics.items()
                         if '/class=' not in name},  # in the row's own report
      } for row, report in reports.items()}}


def markdown(summary: Mapping[str, Any]) -> str:
  """Tables of verdicts: the primary statistics with their gaps, then all others in short."""
  rows, primary = summary['rows'], summary['settings']['primary']
  shown = {'original': 'Original (must fail)', 'retrain': 'Retrained, held out (must not fail)'}
  names = [name for name in rows['original']['statistics'] if name not in primary]
  retrained = summary['config']['audit']['retrained']
  sizes = ', '.join(f'{n:,} {name}' for name, n in summary['split_sizes'].items())
  main = render.Table(
      ('Model', 'Verdict', *primary),
      tuple((shown.get(row, row), part['verdict'],
             *(_gap(part['statistics'][name]) for name in primary)) for row, part in rows.items())
      + (('Retrain floor', '', *(_number(rows['original']['statistics'][name]['floor'])
                                 for name in primary)),),
      anchors=frozenset((0, 1, len(rows))), text=True)
  others = render.Table(
      ('Statistic', *(shown.get(row, row).split(' (')[0] for row in rows), 'Retrain floor'),
      tuple((name, *(_short(part['statistics'][name]) for part in rows.values()),
             _number(rows['original']['statistics'][name]['floor'])) for name in names), text=True)
  counts = collections.Counter(part['verdict'] for part in summary['self_check']) if isinstance(
      summary['self_check'], list) else {}
  checked = (', '.join(f'{count} {verdict}' for verdict, count in counts.items())
             if counts else summary['self_check'])
  return render.to_markdown(f'Audit: {summary["config"]["name"]}', [
      render.Section('', (
          'Does each unlearned model behave as one that never saw the forgotten records? Gap to the '
          f'mean of {len(retrained)} retrained models, with its 95 % interval; PASS if the interval '
          'lies within the retrain floor (how far retrained models lie apart), FAIL if it lies '
          'outside, INCONCLUSIVE if it overlaps the edge. A model passes if all primary statistics '
          f'pass. Records: {sizes}. Unlearning seeds {summary["config"]["seeds"]}, retrained seeds '
          f'{retrained}.', main,
          f'Self-check, each retrained model against the others by the same rule: {checked}.')),
      render.Section('All other statistics', (
          'Gap and verdict (P pass, F fail, ? inconclusive). They do not enter the overall verdict.',
          others)),
      render.Section('Limits', (_limits(rows),)),
      render.Section('Data attribution', (summary['attribution'],))])


def _limits(rows: Mapping[str, Any]) -> list[str]:
  """Every note once, with the rows that it is about."""
  about = collections.defaultdict(list)
  for row, part in rows.items():
    for note in part['notes']:
      about[note].append(row)
  return [f'{", ".join(names)}: {note}' for note, names in about.items()] or ['None noted.']


def _number(value: float | None) -> str:
  return 'n/a' if value is None else f'{value:.3f}'


def _gap(part: Mapping[str, Any]) -> str:
  if part['gap'] is None:
    return part['verdict']
  low, high = part['interval']
  settle = f', {part["needed"]:,} records would settle it' if part['needed'] else ''
  return f'{part["gap"]:+.3f} [{low:+.3f}, {high:+.3f}] {part["verdict"]}{settle}'


def _short(part: Mapping[str, Any]) -> str:
  mark = {'PASS': 'P', 'FAIL': 'F', 'INCONCLUSIVE': '?'}.get(part['verdict'])
  return f'{part["gap"]:+.3f} {mark}' if mark else part['verdict']
