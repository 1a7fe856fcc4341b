"""Runs an experiment: original, retrained and unlearned models for every seed, then the report."""

from collections.abc import Mapping
import importlib.metadata
import os
import platform
from typing import Any

import jax
from ml_collections import config_dict
import numpy as np

import unlearn_jax
from unlearn_jax import config as config_lib
from unlearn_jax import tasks
from unlearn_jax import tuning
from unlearn_jax import workdir as workdir_lib
from unlearn_jax.evals import report
from unlearn_jax.train import log


def versions() -> dict[str, str]:
  """What a number depends on beside the config."""
  packages = ('jax', 'flax', 'optax', 'ott-jax', 'orbax-checkpoint', 'numpy', 'scikit-learn')
  found = {name: importlib.metadata.version(name) for name in packages}
  return {'unlearn_jax': unlearn_jax.__version__, 'python': platform.python_version(), **found,
          'backend': jax.default_backend(), 'devices': str(jax.device_count())}


def finish_row(task: tasks.Task, row: str, seed: int, variables, facts, directory: str
               ) -> dict[str, Any]:
  """Measures a row and writes `row.json`, unless that is done already."""
  os.makedirs(directory, exist_ok=True)
  path = os.path.join(directory, 'row.json')
  if not os.path.exists(path):
    metrics, arrays = task.measure(variables)
    if jax.process_index() == 0:
      np.savez(os.path.join(directory, 'arrays.npz'), **arrays)
    workdir_lib.write_json(path, {'row': row, 'seed': seed, 'metrics': metrics, **facts})
  return workdir_lib.read_json(path)


def run(config: config_dict.ConfigDict, workdir: str, *, resume: bool = False,
        overwrite: bool = False) -> dict[str, Any]:
  """Runs a whole experiment into `workdir`; finished rows of a resumed one are read, not run.

  Args:
    config: from `config.experiment`.
    workdir: gets `results.json`, `report.md`, `report.html`, the split manifest and every row.
    resume: continue what is there, same config.
    overwrite: delete what is there.

  Returns:
    The content of `results.json`.

  Raises:
    ValueError: bad config, data or work directory; before any compute is spent.
  """
  prepared, as_json = prepare(config, workdir, resume=resume, overwrite=overwrite)
  if not config.cases:
    return _run(prepared[''], as_json)
  results = {'config': as_json, 'versions': versions(), 'cases': {
      case: _run(task, as_json | {'case': case}) for case, task in prepared.items()}}
  workdir_lib.write_json(os.path.join(workdir, 'results.json'), results)
  if jax.process_index() == 0:
    report.write_cases(results, workdir)
  return results


def tune(config: config_dict.ConfigDict, workdir: str, *, resume: bool = False,
         overwrite: bool = False) -> dict[str, Any]:
  """Only tunes: writes `tune.json` and `tuned.py`; `run` with `resume` goes on from there.

  Args, errors: as `run`.

  Returns:
    case -> the content of its `tune.json`; '' is the case of an experiment without cases.

  Raises:
    ValueError: besides, a config without a grid to search.
  """
  if not tuning.enabled(config):
    raise ValueError('nothing to tune: config.tune.common and config.tune.methods are empty; '
                     'a grid is a setting and its values, {"learning_rate": (0.01, 0.1)}')
  prepared, _ = prepare(config, workdir, resume=resume, overwrite=overwrite)
  return {case: tuning.tune(task) for case, task in prepared.items()}


def prepare(config: config_dict.ConfigDict, workdir: str, *, resume: bool, overwrite: bool
            ) -> tuple[dict[str, tasks.Task], dict[str, Any]]:
  """Checks everything that can be wrong, then makes the work directory ours.

  Returns:
    case -> task ('' without cases), and the config as it stands in results.
  """
  config_lib.check(config)
  as_json = config_lib.to_json(config)
  for location in ('data_dir', 'cache_dir'):  # where things lie changes no result
    del as_json[location]
  workdir_lib.check(workdir, as_json, resume=resume, overwrite=overwrite)
  # Wrong data and settings of every case fail here, before anything is deleted or trained.
  found = {case: tasks.load(one, os.path.join(workdir, 'cases', case) if case else workdir)
           for case, one in _cases(config).items()}
  for task in found.values():
    if not len(task.splits.indices['forget']):
      raise ValueError(f'config {config.name!r} does not say what is to be forgotten, so there is no '
                       'retrained model to compare with; experiments.unlearn_checkpoint runs it')
    tuning.check(task)
  workdir_lib.claim(workdir, as_json, overwrite=overwrite)
  for task in found.values():
    os.makedirs(task.workdir, exist_ok=True)
    if jax.process_index() == 0:
      task.splits.save(os.path.join(task.workdir, 'splits.json'))
  return found, as_json


def _cases(config: config_dict.ConfigDict) -> dict[str, config_dict.ConfigDict]:
  """The config of every case; of the one case '' without any."""
  if not config.cases:
    return {'': config}
  found = {}
  for case, changes in config.cases.items():
    found[case] = config.copy_and_resolve_references()
    try:
      found[case].update(changes)
    except (AttributeError, KeyError, TypeError) as error:
      raise ValueError(f'config.cases.{case}: {" ".join(str(error).split())}') from error
  return found


def _run(task: tasks.Task, as_json: Mapping[str, Any]) -> dict[str, Any]:
  """All rows of one experiment, its results and its report."""
  config, workdir = task.config, task.workdir
  found = tuning.tune(task)
  table: dict[str, list[dict[str, Any]]] = {}
  arrays, curves = {}, {}
  for seed, anchor_seed in config_lib.anchor_seeds(config).items():
    runs = {row: tasks.anchor(task, row, anchor_seed) for row in config_lib.BUILTIN}
    original = runs['original'][0]
    for row in config.rows:
      settings = tasks.row_settings(config, row, **(found['chosen'][row] if found else {}))
      directory = tasks.row_directory(task, row, seed)
      variables, facts = tasks.train_row(task, row, seed, settings, original, directory)
      runs[row] = (variables, facts, directory)
    for row, (variables, facts, directory) in runs.items():
      replicate = anchor_seed if row in config_lib.BUILTIN else seed
      where = tasks.row_directory(task, row, replicate)
      table.setdefault(row, []).append({
          **finish_row(task, row, replicate, variables, facts, where),
          'seed': seed, 'replicate': replicate})
      with np.load(os.path.join(where, 'arrays.npz')) as saved:
        arrays[row, seed] = dict(saved)
      if seed == config.seeds[0]:
        lines = [line for line in log.read(directory) if 'loss' in line]
        curves[row] = {key: [line[key] for line in lines] for key in ('step', 'loss')}
  task.compare(table, arrays)
  results = {
      'config': as_json, 'split_hash': task.splits.hash, 'versions': versions(),
      'attribution': task.source.attribution,
      'split_sizes': {name: len(ids) for name, ids in task.splits.indices.items()},
      'settings': {row: table[row][0]['settings'] for row in table},
      'tune': found, **report.summarise(table)}
  workdir_lib.write_json(os.path.join(workdir, 'results.json'), results)
  if jax.process_index() == 0:
    report.write(results, workdir, arrays=arrays, curves=curves)
  return results
