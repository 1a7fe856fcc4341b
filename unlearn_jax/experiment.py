"""Runs an experiment: original, retrained and unlearned models for every seed, then the report."""

from collections.abc import Mapping
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from typing import Any
import zlib

from absl import logging
import jax
from ml_collections import config_dict
import numpy as np

import unlearn_jax
from unlearn_jax import config as config_lib
from unlearn_jax import methods
from unlearn_jax import models
from unlearn_jax import types
from unlearn_jax.data import sources
from unlearn_jax.data import splits as splits_lib
from unlearn_jax.data import streams as streams_lib
from unlearn_jax.evals import classification
from unlearn_jax.evals import privacy
from unlearn_jax.evals import report
from unlearn_jax.evals import run as evals_run
from unlearn_jax.losses import classification as per_example
from unlearn_jax.train import checkpoint
from unlearn_jax.train import log
from unlearn_jax.train import loop
from unlearn_jax.train import sharding

EVALUATED = ('retain', 'forget', 'validation', 'test', 'unseen')
OURS = ('config.json', 'splits.json', 'sweep.json', 'results.json', 'report.md', 'report.html',
        'rows', 'sweep', 'cases')


def cache_dir(config: config_dict.ConfigDict) -> str:
  """Where trained originals and oracles are kept between experiments."""
  return config.cache_dir or sources.cache_dir()


def versions() -> dict[str, str]:
  """What a number depends on beside the config."""
  packages = ('jax', 'flax', 'optax', 'ott-jax', 'orbax-checkpoint', 'numpy', 'scikit-learn')
  found = {name: importlib.metadata.version(name) for name in packages}
  return {'unlearn_jax': unlearn_jax.__version__, 'python': platform.python_version(), **found,
          'backend': jax.default_backend(), 'devices': str(jax.device_count())}


def write_json(path: str, data: Any) -> None:
  """Writes JSON atomically: readers see the old file or the whole new one."""
  if jax.process_index() == 0:
    temporary = f'{path}.{os.getpid()}.tmp'
    with open(temporary, 'w') as file:
      json.dump(data, file, indent=1, allow_nan=False)
      file.write('\n')
    os.replace(temporary, path)


def read_json(path: str) -> Any:
  with open(path) as file:
    return json.load(file)


def fingerprint(data: Any) -> str:
  """A short content hash of JSON data."""
  return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def check_workdir(workdir: str, config: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
  """Refuses a directory that holds other results, before anything is computed or deleted.

  Raises:
    ValueError: the directory holds results, and neither `resume` (same config) nor `overwrite` was
      asked for; or it holds files that no experiment wrote.
  """
  if resume and overwrite:
    raise ValueError('--resume and --overwrite exclude each other')
  names = os.listdir(workdir) if os.path.isdir(workdir) else []
  if 'config.json' not in names:
    if foreign := sorted(set(names) - set(OURS)):
      raise ValueError(f'{workdir} holds files that no experiment wrote ({", ".join(foreign[:5])}); '
                       'choose an empty --workdir')
  elif not resume and not overwrite:
    raise ValueError(f'{workdir} holds results already; pass --resume to continue them, '
                     '--overwrite to delete them, or choose another --workdir')
  elif resume and read_json(os.path.join(workdir, 'config.json')) != config:
    raise ValueError(f'{workdir} holds results of another config (see its config.json); resume '
                     'with that config, pass --overwrite, or choose another --workdir')


def claim(workdir: str, config: Mapping[str, Any], *, overwrite: bool) -> None:
  """Makes `workdir` ours: deletes what is there with `overwrite`, writes the config."""
  os.makedirs(workdir, exist_ok=True)
  if overwrite and jax.process_index() == 0:
    for name in OURS:
      target = os.path.join(workdir, name)
      if os.path.isdir(target):
        shutil.rmtree(target)
      elif os.path.exists(target):
        os.remove(target)
  write_json(os.path.join(workdir, 'config.json'), config)


@dataclasses.dataclass(frozen=True)
class Task:
  """Data, splits and model of one experiment: what all its rows share."""

  config: config_dict.ConfigDict
  source: sources.Source
  splits: splits_lib.Splits
  model: types.Model
  mesh: jax.sharding.Mesh
  workdir: str

  @functools.cached_property
  def fields(self) -> dict[str, dict[str, np.ndarray]]:
    """Split -> image and label arrays."""
    return {name: {key: self.source.fields[key][self.splits.indices[name]]
                   for key in ('image', 'label')}
            for name in EVALUATED if len(self.splits.indices.get(name, ()))}

  @property
  def example(self) -> dict[str, np.ndarray]:
    return {'image': np.asarray(self.source.fields['image'][:1])}

  def with_splits(self, splits: splits_lib.Splits) -> 'Task':
    return dataclasses.replace(self, splits=splits)

  def streams(self, seed: int) -> dict[str, types.Stream]:
    config = self.config
    return streams_lib.make(
        self.source, self.splits, batch_size=config.batch_size,
        forget_batch_size=config.forget_batch_size or config.batch_size, seed=seed,
        augment=tuple(config.data.augment))

  def method(self, row: str, settings: Mapping[str, Any]) -> types.Method:
    """Builds a row's method; raises before any compute if a setting is wrong."""
    count = lambda *names: sum(len(self.splits.indices[name]) for name in names)
    forget_batch = self.config.forget_batch_size or self.config.batch_size
    role = ('retain', 'forget') if row == 'original' else ('retain',)
    context = {
        'example': self.example,
        'retain_steps': streams_lib.steps_per_epoch(count(*role), self.config.batch_size),
        'forget_steps': streams_lib.steps_per_epoch(count('forget'), forget_batch)}
    return methods.get(config_lib.method_of(row) if row != 'original' else 'retrain')(
        self.model, **context, **settings)


def load(config: config_dict.ConfigDict, workdir: str) -> Task:
  """Reads and splits the data, builds the model and, to check their settings, every method."""
  data = config.data
  source = sources.get(data.name, data_dir=config.data_dir, label_noise=data.label_noise,
                       seed=data.seed, image_size=data.image_size or None)
  arguments = {key: value.to_dict() if isinstance(value, config_dict.ConfigDict) else value
               for key, value in config.split.items() if key != 'kind'}
  make = {'identity': splits_lib.by_identity, 'class': splits_lib.by_class,
          'random': splits_lib.by_random}[config.split.kind]
  splits = make(source, **arguments)
  model = models.get(config.model, num_outputs=source.num_classes, **config.model_args.to_dict())
  mesh = sharding.make_mesh(config.devices or None)
  task = Task(config, source, splits, model, mesh, workdir)
  for row in ('original', 'retrain', *config.rows):
    task.method(row, row_settings(config, row))
  return task


def row_settings(config: config_dict.ConfigDict, row: str, **changes) -> dict[str, Any]:
  """Resolved settings of a row; `original` is the oracle's recipe on all of the training data."""
  settings = config_lib.resolved(config, 'retrain' if row == 'original' else row) | changes
  return settings | ({'role': 'train'} if row == 'original' else {})


def train_row(task: Task, row: str, seed: int, settings: Mapping[str, Any], variables, directory: str
              ) -> tuple[types.Variables, dict[str, float]]:
  """Runs one method for one seed in `directory`, or reads its finished result from there.

  Returns:
    The exported variables, and seconds, compile_seconds and steps.
  """
  method = task.method(row, settings)
  template = jax.eval_shape(lambda v: method.export(method.init(jax.random.key(0), v)[0]), variables)
  finished = os.path.join(directory, 'model')
  if os.path.isdir(finished):
    with checkpoint.Checkpointer(finished) as saved:
      if (note := saved.latest()) is not None:
        return saved.restore(template), note
  key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(config_lib.method_of(row).encode()))
  note = {'row': row, 'seed': seed, 'split': task.splits.hash,
          'settings': json.loads(json.dumps(dict(settings)))}
  monitor = None
  if any(phase.signals for phase in method.phases):
    monitor = privacy.forgetting_gate(
        {name: task.fields[name] for name in ('forget', 'validation')})
  with checkpoint.Checkpointer(os.path.join(directory, 'checkpoints'), keep=1) as checkpointer:
    result = loop.run(
        method, variables, task.streams(seed), key=key, apply=task.model.apply, mesh=task.mesh,
        monitor=monitor, checkpointer=checkpointer, checkpoint_every=task.config.checkpoint_every,
        note=note, directory=directory, log_every=task.config.log_every,
        label=f'{row}, seed {seed}')
  facts = {'seconds': result.seconds, 'compile_seconds': result.compile_seconds,
           'steps': result.steps, 'settings': note['settings']}
  with checkpoint.Checkpointer(finished) as saved:
    saved.save(dict(result.variables), facts)
  return result.variables, facts


def anchor(task: Task, row: str, seed: int) -> tuple[types.Variables, dict[str, float], str]:
  """The original or the retrained model, trained once per seed and cached by content hash."""
  settings = row_settings(task.config, row)
  roles = ('retain', 'forget') if row == 'original' else ('retain',)
  ids = np.sort(np.concatenate([task.splits.indices[role] for role in roles]))
  config = config_lib.to_json(task.config)
  facts = {'source': task.source.content_hash(), 'ids': hashlib.sha256(ids.tobytes()).hexdigest(),
           'settings': json.loads(json.dumps(settings)), 'seed': seed, 'devices': task.mesh.size,
           'version': unlearn_jax.__version__, 'augment': config['data']['augment'],
           **{key: config[key] for key in ('model', 'model_args', 'batch_size')}}
  directory = os.path.join(cache_dir(task.config), 'models', f'{row}-{fingerprint(facts)}')
  fresh = task.model.init(jax.random.key(seed), task.example)
  variables, facts = train_row(task, row, seed, settings, fresh, directory)
  return variables, facts, directory


def measure(task: Task, variables: types.Variables) -> tuple[dict[str, float], dict[str, np.ndarray]]:
  """All metrics of a model, and its losses on forgotten and unseen data."""
  outputs = {}
  for name, fields in task.fields.items():
    outputs[name] = {**evals_run.predict(task.model.apply, variables, fields),
                     'label': fields['label']}
  losses = {name: np.asarray(per_example.example_loss(outputs[name]['logits'],
                                                       outputs[name]['label']))
            for name in ('forget', 'unseen')}
  return classification.measure(outputs), losses


def finish_row(task: Task, row: str, seed: int, variables, facts, directory: str) -> dict[str, Any]:
  """Measures a row and writes `row.json`, unless that is done already."""
  os.makedirs(directory, exist_ok=True)
  path = os.path.join(directory, 'row.json')
  if not os.path.exists(path):
    metrics, losses = measure(task, variables)
    if jax.process_index() == 0:
      np.savez(os.path.join(directory, 'losses.npz'), **losses)
    write_json(path, {'row': row, 'seed': seed, 'metrics': metrics, **facts})
  return read_json(path)


def row_directory(task: Task, row: str, seed: int) -> str:
  return os.path.join(task.workdir, 'rows', f'seed_{seed}', row)


def sweep(task: Task) -> dict[str, Any] | None:
  """One learning-rate grid for every method, chosen without the report's data.

  The forget set of a trial is drawn from retained identities and trained away from the same
  original model; forgotten, test and unseen records of the report take no part. A trial's score is
  NoMUS with validation data in the place of test and unseen data, averaged over `sweep.seeds`.
  """
  config = task.config
  if not config.sweep.learning_rates:
    return None
  tuning = task.with_splits(splits_lib.tuning(task.splits, task.source, seed=config.split.seed,
                                              share=config.sweep.share))
  trials, chosen = {}, {}
  for row in config.rows:
    trials[row] = []
    for rate in config.sweep.learning_rates:
      values = [_trial(tuning, task, row, seed, rate) for seed in config.sweep.seeds]
      finite = [value for value in values if value is not None]
      # A trial that diverges for any seed is out of the race, and is shown as such.
      mean = float(np.mean(finite)) if len(finite) == len(values) else None
      trials[row].append({'learning_rate': rate, 'nomus/validation': mean, 'values': values})
    able = [trial for trial in trials[row] if trial['nomus/validation'] is not None]
    if not able:
      raise ValueError(f'{row}: every learning rate of {tuple(config.sweep.learning_rates)} '
                       'diverged; add smaller ones to config.sweep.learning_rates')
    chosen[row] = max(able, key=lambda trial: trial['nomus/validation'])['learning_rate']
  found = {'objective': 'nomus/validation', 'learning_rates': list(config.sweep.learning_rates),
           'seeds': list(config.sweep.seeds), 'split_hash': tuning.splits.hash,
           'forget_records': len(tuning.splits.indices['forget']),
           'trials': trials, 'chosen': chosen}
  write_json(os.path.join(task.workdir, 'sweep.json'), found)
  return found


def _trial(tuning: Task, task: Task, row: str, seed: int, rate: float) -> float | None:
  """NoMUS on validation data after one trial; None if it diverged."""
  directory = os.path.join(task.workdir, 'sweep', row, f'{rate:g}', f'seed_{seed}')
  path = os.path.join(directory, 'trial.json')
  if not os.path.exists(path):
    original, _, _ = anchor(task, 'original', seed)
    settings = row_settings(task.config, row, learning_rate=rate)
    try:
      variables, _ = train_row(tuning, row, seed, settings, original, directory)
      value = _validation_nomus(tuning, variables)
    except loop.NonFiniteError as error:
      logging.warning('%s at learning rate %g: %s', row, rate, error)
      value = None
    write_json(path, {'nomus/validation': value})
    shutil.rmtree(os.path.join(directory, 'checkpoints'), ignore_errors=True)
    shutil.rmtree(os.path.join(directory, 'model'), ignore_errors=True)
  return read_json(path)['nomus/validation']


def _validation_nomus(task: Task, variables: types.Variables) -> float:
  losses, hits = {}, {}
  for name in ('forget', 'validation'):
    fields = task.fields[name]
    logits = evals_run.predict(task.model.apply, variables, fields)['logits']
    losses[name] = np.asarray(per_example.example_loss(logits, fields['label']))
    hits[name] = np.asarray(per_example.accuracy(logits, fields['label']))
  score = privacy.forgetting_score(losses['forget'], losses['validation']).score
  return classification.nomus(float(np.mean(hits['validation'])), score)


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
  config_lib.check(config)
  as_json = config_lib.to_json(config)
  for location in ('data_dir', 'cache_dir'):  # where things lie changes no result
    del as_json[location]
  check_workdir(workdir, as_json, resume=resume, overwrite=overwrite)
  # Wrong data and settings of every case fail here, before anything is deleted or trained.
  cases = {case: load(one, os.path.join(workdir, 'cases', case))
           for case, one in _cases(config).items()}
  task = None if cases else load(config, workdir)
  claim(workdir, as_json, overwrite=overwrite)
  if task is not None:
    return _run(task, as_json)
  results = {'config': as_json, 'versions': versions(), 'cases': {
      case: _run(task, as_json | {'case': case}) for case, task in cases.items()}}
  write_json(os.path.join(workdir, 'results.json'), results)
  if jax.process_index() == 0:
    report.write_cases(results, workdir)
  return results


def _cases(config: config_dict.ConfigDict) -> dict[str, config_dict.ConfigDict]:
  """The config of every case."""
  found = {}
  for case, changes in config.cases.items():
    found[case] = config.copy_and_resolve_references()
    found[case].update(changes)
  return found


def _run(task: Task, as_json: Mapping[str, Any]) -> dict[str, Any]:
  """All rows of one experiment, its results and its report."""
  config, workdir = task.config, task.workdir
  os.makedirs(workdir, exist_ok=True)
  if jax.process_index() == 0:
    task.splits.save(os.path.join(workdir, 'splits.json'))
  found = sweep(task)
  table: dict[str, list[dict[str, Any]]] = {}
  losses, curves = {}, {}
  for seed in config.seeds:
    original, facts, directory = anchor(task, 'original', seed)
    runs = {'original': (original, facts, directory), 'retrain': anchor(task, 'retrain', seed)}
    for row in config.rows:
      changes = {'learning_rate': found['chosen'][row]} if found else {}
      directory = row_directory(task, row, seed)
      variables, facts = train_row(task, row, seed, row_settings(config, row, **changes), original,
                                   directory)
      runs[row] = (variables, facts, directory)
    for row, (variables, facts, directory) in runs.items():
      where = row_directory(task, row, seed)
      table.setdefault(row, []).append(finish_row(task, row, seed, variables, facts, where))
      with np.load(os.path.join(where, 'losses.npz')) as arrays:
        losses[row, seed] = dict(arrays)
      if seed == config.seeds[0]:
        lines = [line for line in log.read(directory) if 'loss' in line]
        curves[row] = {key: [line[key] for line in lines] for key in ('step', 'loss')}
  results = {
      'config': as_json, 'split_hash': task.splits.hash, 'versions': versions(),
      'attribution': task.source.attribution,
      'split_sizes': {name: len(ids) for name, ids in task.splits.indices.items()},
      'settings': {row: table[row][0]['settings'] for row in table},
      'sweep': found, **report.summarise(table)}
  write_json(os.path.join(workdir, 'results.json'), results)
  if jax.process_index() == 0:
    report.write(results, workdir, losses=losses, curves=curves)
  return results
