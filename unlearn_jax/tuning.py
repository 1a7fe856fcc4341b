"""Choosing hyper-parameters: the same stated budget for every method, none of the report's data."""

from collections.abc import Mapping
import itertools
import os
import pprint
import time
from typing import Any

from absl import logging
import jax
from ml_collections import config_dict
import numpy as np

from unlearn_jax import config as config_lib
from unlearn_jax import tasks
from unlearn_jax import types
from unlearn_jax import workdir as workdir_lib
from unlearn_jax.train import loop


def candidates(config: config_dict.ConfigDict, row: str) -> list[dict[str, Any]]:
  """The settings that a row may try, in the order in which it tries them; none without a grid.

  All combinations of `config.tune.common` and of the row's own entry in `config.tune.methods`,
  in an order drawn from the split's seed: a budget that ends early leaves a random search.
  """
  space = {**config.tune.common.to_dict(), **config.tune.methods.get(row, {})}
  if not space or row in config.tune.follow:
    return []
  found = [dict(zip(space, values)) for values in itertools.product(*space.values())]
  order = np.random.default_rng(config.split.get('seed', 0)).permutation(len(found))
  return [found[index] for index in order]


def check(task: tasks.Task) -> None:
  """Builds the method of every candidate, so that a wrong one fails before anything is trained.

  Raises:
    ValueError: an unknown objective or row, an empty grid, a setting that a method refuses.
  """
  tune = task.config.tune
  if enabled(task.config) and tune.objective not in task.OBJECTIVES:
    raise ValueError(f'config.tune.objective {tune.objective!r} is not one of '
                     f'{tuple(task.OBJECTIVES)}')
  if tune.budget < 0 or tune.trials < 0:
    raise ValueError('config.tune.budget and config.tune.trials are 0 (no limit) or more, got '
                     f'{tune.budget:g} and {tune.trials}')
  if not tune.seeds:
    raise ValueError('config.tune.seeds is empty; name at least one seed')
  if unknown := set(tune.methods) - set(task.config.rows):
    raise ValueError(f'config.tune.methods names {sorted(unknown)}, rows of this experiment are '
                     f'{list(task.config.rows)}')
  for row, leader in tune.follow.items():
    if row not in task.config.rows or leader not in task.config.rows or leader in tune.follow:
      raise ValueError(f'config.tune.follow: {row!r} cannot follow {leader!r}; both must be rows of '
                       'this experiment, the second with a grid of its own')
  if enabled(task.config):
    for row in task.config.rows:
      found = candidates(task.config, row)
      if not found and {**tune.common, **tune.methods.get(row, {})} and row not in tune.follow:
        raise ValueError(f'{row}: a grid of config.tune has no values')
      for changes in found:
        if unknown := set(changes) - set(config_lib.resolved(task.config, row)):
          raise ValueError(f'config.tune: {row} has no setting {sorted(unknown)}')
        task.method(row, tasks.row_settings(task.config, row, **changes))


def enabled(config: config_dict.ConfigDict) -> bool:
  return bool(config.tune.common or config.tune.methods)


def tune(task: tasks.Task) -> dict[str, Any] | None:
  """Gives every row of the experiment the same budget, and chooses its settings.

  The forget set of a trial is drawn from retained data, validation data stand for test and unseen
  data; what the report forgets, tests on or calls unseen takes no part. For `retrain_gap` a model
  is trained on the retained data and another without the trial's forget set: a small copy of the
  report's task. For `nomus` a trial starts from the report's original model, and nothing is
  retrained.

  A row stops when it has tried its whole grid or `trials` candidates, or when a further trial, at
  the mean cost of those done, would take it beyond `budget` times the seconds of one retraining;
  one trial is always made. Trials are timed without compilation (a diverged one with it); their
  number can therefore differ between machines, and a resumed run keeps the trials that it finds.

  Args:
    task: the report's task, with `config.tune`.

  Returns:
    The content of `tune.json`; None if `config.tune` has no grid. `tuned.py`, written beside it, is
    the config with the chosen settings.

  Raises:
    ValueError: all trials of a row diverged.
  """
  config = task.config
  if not enabled(config):
    return None
  objective = task.OBJECTIVES[config.tune.objective]
  small = task.for_tuning()
  retraining = float(np.mean([tasks.anchor(task, 'retrain', seed)[1]['seconds']
                              for seed in config.tune.seeds]))
  references = {
      seed: (small.measure_trial(tasks.anchor(small, 'retrain', seed)[0])
             if objective.retrains else None) for seed in config.tune.seeds}
  starts = {seed: tasks.anchor(small if objective.retrains else task, 'original', seed)[0]
            for seed in config.tune.seeds}
  trials, chosen = {}, {}
  for row in config.rows:
    if not candidates(config, row):
      continue
    trials[row] = _search(small, row, starts, references, retraining)
    able = [trial for trial in trials[row] if trial['score'] is not None]
    if not able:
      raise ValueError(f'{row}: every one of its {len(trials[row])} trials diverged; give '
                       'config.tune smaller learning rates or a larger budget')
    chosen[row] = objective.best(able, key=lambda trial: trial['score'])['settings']
  chosen = {row: chosen.get(config.tune.follow.get(row, row), {}) for row in config.rows}
  found = {
      'objective': config.tune.objective, 'best': objective.best.__name__,
      'follow': config.tune.follow.to_dict(),
      'budget': config.tune.budget, 'trials_per_row': config.tune.trials,
      'seeds': list(config.tune.seeds), 'retraining_seconds': retraining,
      'split_hash': small.splits.hash, 'forget_records': len(small.splits.indices['forget']),
      'retrained': [references[seed] for seed in config.tune.seeds] if objective.retrains else None,
      'trials': trials, 'chosen': chosen}
  workdir_lib.write_json(os.path.join(task.workdir, 'tune.json'), found)
  _write_config(config, chosen, os.path.join(task.workdir, 'tuned.py'))
  return found


def _search(small: tasks.Task, row: str, starts, references, retraining: float
            ) -> list[dict[str, Any]]:
  """The trials of a row, until its grid or its budget is spent."""
  settings = small.config.tune
  found, spent = [], 0.0
  for index, changes in enumerate(candidates(small.config, row)):
    if settings.trials and index == settings.trials:
      break
    if settings.budget and found and spent * (index + 1) / index > settings.budget:
      break
    values = [_trial(small, row, index, changes, seed, starts[seed], references[seed])
              for seed in starts]
    cost = sum(value['seconds'] for value in values) / retraining
    spent += cost
    scores = [value['score'] for value in values]
    # A trial that diverges for any seed is out of the race, and is shown as such.
    score = None if None in scores else float(np.mean(scores))
    found.append({'settings': changes, 'score': score, 'values': scores, 'cost': cost})
  return found


def _trial(small: tasks.Task, row: str, index: int, changes: Mapping[str, Any], seed: int,
           start: types.Variables, reference: Mapping[str, float] | None) -> dict[str, Any]:
  """Score and seconds of one candidate for one seed; the score is None if it diverged."""
  directory = os.path.join(small.workdir, 'trials', row, f'{index}', f'seed_{seed}')
  path = os.path.join(directory, 'trial.json')
  if not os.path.exists(path):
    began = time.perf_counter()
    try:
      settings = tasks.row_settings(small.config, row, **changes)
      variables, facts = tasks.train_row(small, row, seed, settings, start, directory,
                                            keep=False)
      measured = small.measure_trial(variables)
      score = small.OBJECTIVES[small.config.tune.objective].score(measured, reference)
      result = {'score': score, 'seconds': facts['seconds'], 'measured': measured}
    except loop.NonFiniteError as error:
      logging.warning('%s with %s: %s', row, dict(changes), error)
      result = {'score': None, 'seconds': time.perf_counter() - began, 'measured': None}
    os.makedirs(directory, exist_ok=True)
    workdir_lib.write_json(path, result)
  return workdir_lib.read_json(path)


def _write_config(config: config_dict.ConfigDict, chosen: Mapping[str, Any], path: str) -> None:
  """A config file that runs what was chosen."""
  if jax.process_index() != 0:
    return
  arguments = config_lib.to_arguments(config)
  del arguments['tune']
  for row, changes in chosen.items():
    arguments['methods'][row] |= changes
  body = pprint.pformat(arguments, indent=1, width=92, sort_dicts=False)
  text = (f'"""{config.name} with the settings that tuning chose (tune.json)."""\n\n'
          'from unlearn_jax import config\n\nARGUMENTS = \\\n' + body +
          '\n\n\ndef get_config():\n  return config.experiment(**ARGUMENTS)\n')
  with open(f'{path}.tmp', 'w') as file:
    file.write(text)
  os.replace(f'{path}.tmp', path)
