"""What all rows of an experiment share, and the training of one row."""

import abc
from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import hashlib
import json
import os
from typing import Any, ClassVar, NamedTuple
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
from unlearn_jax.methods import registry
from unlearn_jax.models import contract
from unlearn_jax.train import checkpoint
from unlearn_jax.train import loop

Measured = dict[str, float]


class Objective(NamedTuple):
  """What a trial of tuning is judged by.

  Attributes:
    score: (measured on the trial's model, measured on the retrained one or None) -> float.
    best: `max` or `min`.
    retrains: a retrained model of the tuning task is needed.
  """

  score: Callable[[Measured, Measured | None], float]
  best: Callable
  retrains: bool


def cache_dir(config: config_dict.ConfigDict) -> str:
  """Where trained originals and oracles are kept between experiments."""
  return config.cache_dir or sources.cache_dir()


def network(config: config_dict.ConfigDict, **arguments) -> types.Model:
  """The config's model, on pictures normalised as the config says."""
  model = models.get(config.model, **arguments, **config.model_args.to_dict())
  if config.data.normalize:
    model = contract.normalized(model, *contract.STATISTICS[config.data.normalize])
  return model


def context_length(config: config_dict.ConfigDict) -> int:
  """Tokens that the text tower of the config's model reads: its argument, or CLIP's 77."""
  sized = models.arguments(config.model).get('context')
  return config.model_args.get('context', 77 if sized is None else sized.default)


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
  """Data, splits and model of one experiment: what all its rows share.

  A kind of task says how its data are read, fed, measured and audited; the rest of the package
  treats all kinds alike.

  Attributes:
    OBJECTIVES: name -> objective, what `config.tune.objective` may be.
  """

  config: config_dict.ConfigDict
  source: sources.Source
  splits: splits_lib.Splits
  model: types.Model
  mesh: jax.sharding.Mesh
  workdir: str

  OBJECTIVES: ClassVar[Mapping[str, Objective]]

  @property
  @abc.abstractmethod
  def example(self) -> types.Inputs:
    """One record's inputs of the model, for shapes."""

  @property
  @abc.abstractmethod
  def context(self) -> dict[str, Any]:
    """What factories are told about the data, see `methods.registry.CONTEXT`."""

  @abc.abstractmethod
  def streams(self, seed: int) -> dict[str, types.Stream]:
    """All streams that phases may name."""

  @property
  def recipe(self) -> dict[str, Any]:
    """What a trained original or retrained model depends on beside settings, data and model."""
    return {}

  def monitor(self) -> types.Evaluator:
    """What gives the signals that phases read."""
    raise ValueError(f'{type(self).__name__} tasks have no signals for methods that read some')

  @abc.abstractmethod
  def measure(self, variables: types.Variables) -> tuple[Measured, dict[str, np.ndarray]]:
    """All metrics of a model, and its losses on `forget` and `unseen` records."""

  @abc.abstractmethod
  def for_tuning(self) -> 'Task':
    """The task that trials are made on, with nothing of what the report forgets or tests on."""

  @abc.abstractmethod
  def measure_trial(self, variables: types.Variables) -> Measured:
    """What the objectives read, from validation data."""

  @abc.abstractmethod
  def audited(self) -> tuple[Callable, dict[str, dict[str, Any]]]:
    """`apply` with logits as output, and split -> fields with labels, as an audit takes them."""

  def compare(self, rows: Mapping[str, list[dict[str, Any]]],
              arrays: Mapping[tuple[str, int], Mapping[str, np.ndarray]]) -> None:
    """Adds metrics that compare rows with one another, seed by seed, to `rows[ROW][INDEX]`.

    `arrays[ROW, SEED]` are those that `measure` gave.
    """
    del rows, arrays

  def for_row(self, row: str) -> 'Task':
    """The task as a row sees it."""
    del row
    return self

  def with_splits(self, splits: splits_lib.Splits) -> 'Task':
    return dataclasses.replace(self, splits=splits)

  def method(self, row: str, settings: Mapping[str, Any]) -> types.Method:
    """Builds a row's method; raises before any compute if a setting is wrong."""
    context = dict(self.for_row(row).context)
    if settings.get('role', 'retain') != 'retain':  # the oracle's recipe, on all training data
      context['retain_steps'] = context['train_steps']
    name = (registry.trainer(self.config.task) if row in config_lib.BUILTIN else
            config_lib.method_of(row))
    return methods.get(name)(self.model, **context, **settings)


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
  method, task = task.method(row, settings), task.for_row(row)
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
  monitor = task.monitor() if any(phase.signals for phase in method.phases) else None
  saving = (checkpoint.Checkpointer(os.path.join(directory, 'checkpoints'), keep=1) if keep else
            contextlib.nullcontext())
  with saving as checkpointer:
    result = loop.run(
        method, variables, task.streams(seed), key=key, apply=task.model.apply, mesh=task.mesh,
        monitor=monitor, checkpointer=checkpointer, checkpoint_every=task.config.checkpoint_every,
        note=note, directory=directory, log_every=task.config.log_every,
        label=f'{row}, seed {seed}')
  facts = {'seconds': result.seconds, 'compile_seconds': result.compile_seconds,
           'steps': result.steps, 'planned_steps': sum(phase.steps for phase in method.phases),
           'flops': result.flops, 'memory': result.memory, 'settings': note['settings'],
           'trained': changed(variables, result.variables)}
  if keep:
    with checkpoint.Checkpointer(finished) as saved:
      saved.save(dict(result.variables), facts)
  return result.variables, facts


def changed(before: types.Variables, after: types.Variables) -> int:
  """How many numbers unlearning may have touched: sizes of the arrays that are not as they were.

  Batch statistics are no parameters; collections that only one side has are not compared.
  """
  shared = sorted((set(before) & set(after)) - {'batch_stats'})
  pairs = [pair for name in shared
           if jax.tree.structure(before[name]) == jax.tree.structure(after[name])
           for pair in zip(jax.tree.leaves(before[name]), jax.tree.leaves(after[name]))]
  return sum(new.size for old, new in pairs if not np.array_equal(old, new))


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
           **{key: config[key] for key in ('model', 'model_args', 'batch_size')}, **task.recipe}
  directory = os.path.join(cache_dir(task.config), 'models',
                           f'{row}-{workdir_lib.fingerprint(facts)}')
  fresh = task.model.init(jax.random.key(seed), task.example)
  variables, facts = train_row(task, row, seed, settings, fresh, directory)
  return variables, facts, directory


def beside(name: str, method: types.Method, fresh: types.Variables, stream: types.Stream,
           facts: Mapping[str, Any], config: config_dict.ConfigDict, mesh: jax.sharding.Mesh
           ) -> types.Variables:
  """A trained model that is no row, a backbone or a feature extractor; cached by content hash.

  Args:
    name: of what it is for, in the cache and on the progress bar.
    method: trains it.
    fresh: its variables, freshly initialised.
    stream: the one that the method's phase reads, under the name of its role `train`.
    facts: all that the result depends on, but devices and version.
    config: of the experiment.
    mesh: to train on.
  """
  facts = json.loads(json.dumps({**facts, 'devices': mesh.size, 'version': unlearn_jax.__version__}))
  directory = os.path.join(cache_dir(config), 'models', f'{name}-{workdir_lib.fingerprint(facts)}')
  template = jax.eval_shape(lambda v: method.export(method.init(jax.random.key(0), v)[0]), fresh)
  with checkpoint.Checkpointer(directory) as saved:
    if saved.latest() is not None:
      return saved.restore(template)
    result = loop.run(method, fresh, {'train': stream}, key=jax.random.key(0), mesh=mesh,
                      log_every=config.log_every, label=name)
    saved.save(dict(result.variables), facts)
    return result.variables


def row_directory(task: Task, row: str, seed: int) -> str:
  return os.path.join(task.workdir, 'rows', f'seed_{seed}', row)
