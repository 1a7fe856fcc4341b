"""What all rows of an experiment share, and the training of one row."""

from collections.abc import Mapping
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from typing import Any
import zlib

import jax
from ml_collections import config_dict
import numpy as np

import unlearn_jax
from unlearn_jax import config as config_lib
from unlearn_jax import methods
from unlearn_jax import models
from unlearn_jax import types
from unlearn_jax import workdir as workdir_lib
from unlearn_jax.data import sources
from unlearn_jax.data import splits as splits_lib
from unlearn_jax.data import streams as streams_lib
from unlearn_jax.evals import privacy
from unlearn_jax.models import contract
from unlearn_jax.train import checkpoint
from unlearn_jax.train import loop
from unlearn_jax.train import sharding

EVALUATED = ('retain', 'forget', 'validation', 'test', 'unseen')


def cache_dir(config: config_dict.ConfigDict) -> str:
  """Where trained originals and oracles are kept between experiments."""
  return config.cache_dir or sources.cache_dir()


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
  def fields(self) -> dict[str, dict[str, Any]]:
    """Split -> image and label arrays; pictures held as bytes stay so."""
    return {name: {key: sources.take(self.source.fields[key], self.splits.indices[name])
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
        'forget_steps': streams_lib.steps_per_epoch(count('forget'), forget_batch),
        'train_steps': streams_lib.steps_per_epoch(count('retain', 'forget'),
                                                   self.config.batch_size)}
    return methods.get(config_lib.method_of(row) if row != 'original' else 'retrain')(
        self.model, **context, **settings)


def load(config: config_dict.ConfigDict, workdir: str) -> Task:
  """Reads and splits the data, builds the model, and every method to check its settings."""
  data = config.data
  source = sources.get(data.name, data_dir=config.data_dir, label_noise=data.label_noise,
                       seed=data.seed, image_size=data.image_size or None)
  arguments = {key: value.to_dict() if isinstance(value, config_dict.ConfigDict) else value
               for key, value in config.split.items() if key != 'kind' and value is not None}
  splits = splits_lib.KINDS[config.split.kind](source, **arguments)
  model = models.get(config.model, num_outputs=source.num_classes, **config.model_args.to_dict())
  if data.normalize:
    model = contract.normalized(model, *contract.STATISTICS[data.normalize])
  mesh = sharding.make_mesh(config.devices or None)
  task = Task(config, source, splits, model, mesh, workdir)
  for row in ('original', 'retrain', *config.rows):
    task.method(row, row_settings(config, row))
  return task


def row_settings(config: config_dict.ConfigDict, row: str, **changes) -> dict[str, Any]:
  """Resolved settings of a row; `original` is the oracle's recipe on all of the training data."""
  settings = config_lib.resolved(config, 'retrain' if row == 'original' else row) | changes
  return settings | ({'role': 'train'} if row == 'original' else {})


def train_row(task: Task, row: str, seed: int, settings: Mapping[str, Any], variables,
              directory: str, *, keep: bool = True) -> tuple[types.Variables, dict[str, float]]:
  """Runs one method for one seed in `directory`, or reads its finished result from there.

  Without `keep` only logs are written there: a trial's model is measured once and never used again.

  Returns:
    The exported variables, and seconds, compile_seconds and steps.
  """
  method = task.method(row, settings)
  template = jax.eval_shape(
      lambda v: method.export(method.init(jax.random.key(0), v)[0]), variables)
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
  saving = (checkpoint.Checkpointer(os.path.join(directory, 'checkpoints'), keep=1) if keep else
            contextlib.nullcontext())
  with saving as checkpointer:
    result = loop.run(
        method, variables, task.streams(seed), key=key, apply=task.model.apply, mesh=task.mesh,
        monitor=monitor, checkpointer=checkpointer, checkpoint_every=task.config.checkpoint_every,
        note=note, directory=directory, log_every=task.config.log_every,
        label=f'{row}, seed {seed}')
  facts = {'seconds': result.seconds, 'compile_seconds': result.compile_seconds,
           'steps': result.steps, 'settings': note['settings']}
  if keep:
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
           **({'normalize': config['data']['normalize']} if config['data']['normalize'] else {}),
           **{key: config[key] for key in ('model', 'model_args', 'batch_size')}}
  directory = os.path.join(cache_dir(task.config), 'models',
                           f'{row}-{workdir_lib.fingerprint(facts)}')
  fresh = task.model.init(jax.random.key(seed), task.example)
  variables, facts = train_row(task, row, seed, settings, fresh, directory)
  return variables, facts, directory


def row_directory(task: Task, row: str, seed: int) -> str:
  return os.path.join(task.workdir, 'rows', f'seed_{seed}', row)
