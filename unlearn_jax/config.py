"""Experiment configs: defaults, method settings from their factories' signatures, checks."""

from collections.abc import Mapping
import inspect
import itertools
import json
import types as python_types
import typing
from typing import Any

from ml_collections import config_dict

from unlearn_jax import methods
from unlearn_jax.data import federation as federation_lib
from unlearn_jax.data import generation as generation_lib
from unlearn_jax.data import pairs
from unlearn_jax.data import splits
from unlearn_jax.methods import registry
from unlearn_jax.models import contract

VARIANT = '-'  # 'dlfd-alone' is a row of its own, run by the method 'dlfd'
BUILTIN = ('original', 'retrain')
# Kind of task -> kinds of split, and the sections that only its configs have.
SPLITS = {'classification': splits.KINDS,
          'image_text': {'planted': pairs.split, 'unlabelled': pairs.unlabelled},
          'multimodal': splits.KINDS,
          'federated': {'federation': federation_lib.split},
          'generation': {'classes': generation_lib.split}}
SECTIONS = {
    'classification': {},
    'image_text': {'text': {'prompt_slots': 8, 'share': 1.0, 'eda': (), 'wordnet': '',
                            'templates': 'imagenet', 'candidates': 64}},
    'multimodal': {'modalities': {'reading': 'shapley', 'stop_on': 'validation', 'stop_every': 10,
                                  'shadows': 0}},
    'federated': {'federation': {
        'rank': 8, 'alpha': 16.0, 'lora_mode': 'full', 'local_epochs': 1, 'participation': 1.0,
        'post_rounds': 10, 'relearn_rounds': 10, 'backbone': {}}},
    'generation': {'generation': {
        'patch': 4, 'mask': 'random:0.75', 'holes': ('centre:4', 'centre:2'), 'sweep': (),
        'tokenizer': {}, 'extractors': ('classifier',), 'pictures': 0, 'eval_batch_size': 128,
        'cross_check': True,
        'classifier': {'width': 8, 'epochs': 15.0, 'batch_size': 128, 'learning_rate': 0.1,
                       'weight_decay': 5e-4}}}}


def experiment(*, name: str, data: Mapping[str, Any], split: Mapping[str, Any], model: str,
               model_args: Mapping[str, Any] | None = None, train: Mapping[str, Any] | None = None,
               methods: Mapping[str, Mapping[str, Any]] | None = None,
               tune: Mapping[str, Any] | None = None,
               audit: Mapping[str, Any] | None = None,
               cases: Mapping[str, Mapping[str, Any]] | None = None,
               task: str = 'classification', text: Mapping[str, Any] | None = None,
               modalities: Mapping[str, Any] | None = None,
               federation: Mapping[str, Any] | None = None,
               generation: Mapping[str, Any] | None = None, **settings
               ) -> config_dict.ConfigDict:
  """A locked, typed config.

  Settings of a method that stay None take the budget's value, then the factory's own default.

  Args:
    name: of the experiment; names its results.
    data: `name` of a source, and any of `label_noise`, `seed`, `image_size`, `augment`, and
      `normalize` (a name in `models.contract.STATISTICS`; pictures stay in [0, 1]).
    split: `kind` (`identity`, `class`, `random`, `owner`, `published`; of pairs `planted`,
      `unlabelled`; of federations `federation`; of generators `classes`), `seed`, and that kind's
      arguments, see `data.splits`, `data.pairs.split`, `data.federation.split` and
      `data.generation.split`.
    model: a registered model.
    model_args: its arguments.
    train: the recipe of the original and the retrained model: settings of `retrain` (of pairs:
      `contrastive`).
    methods: row -> settings. A row is a method's name, or `METHOD-VARIANT`. `config.rows` lists
      those to run, in the table's order.
    tune: how settings are chosen, see `tuning.tune`: `common`, a grid for every row (setting ->
      values), and `methods`, row -> a further grid of its own (both empty: nothing is tuned, and a
      row without a grid keeps its settings); `follow`, row -> the row whose choice it takes over,
      for ablations;
      `budget`, the share of the retraining cost that each row may spend, and `trials`, how many
      it may make (0: no limit); `objective` (`nomus` or `retrain_gap`); `seeds`; `share` of the
      retained units that plays the forget set.
    audit: `retrained`, the seeds of the retrained models that `unlearn-jax audit` compares with.
    cases: case -> nested changes of this config: the experiment is run once per case.
    task: kind of task, `classification`, `image_text`, `multimodal`, `federated` or `generation`; it
      decides which methods, splits and metrics there are, and by which method original and retrained
      model are trained.
    text: of image-text tasks: `prompt_slots`, the length of a negative prompt; `share` of the
      training pairs that is at hand when a trained model unlearns; `eda`, operations
      that change negative captions (see `data.text_transforms`), and `wordnet`, the directory of
      their synonyms; `templates` of zero-shot prompts; `candidates`, how many other captions a
      pair's own competes with in losses and audits.
    modalities: of multimodal tasks: `reading` of uni-modal accuracies (`evals.multimodal.unimodal`);
      `stop_on`, the data of CCU's stopping rule (`validation`; `test` is the paper's; '' for none)
      and `stop_every`, the steps between two looks; `shadows`, how many shadow models the member
      prediction attack trains (0: only the administrator's attack).
    federation: of federated tasks: `rank`, `alpha` and `lora_mode` (`full`, `ffa`) of the adapters;
      `local_epochs` of a client in a round and `participation`, the share of clients that take part;
      `post_rounds`, the ordinary rounds after unlearning over which regrowth is measured, and
      `relearn_rounds`, those in which a tenth of the forgotten data comes back (0: neither);
      `backbone`, the recipe of `contrastive` that trains the frozen backbone on public records,
      with its `batch_size`, or `weights`, the file of a published one (empty: the data bring one).
    generation: of generation tasks: `tokenizer`, the recipe of `reconstruct` that trains the VQ-GAN
      `model_args.vqgan` under a MAGE, with its `batch_size` (empty: none); `patch`, pixels along a
      side of what is taken away together; `mask`, how much of a picture original and unlearned models
      are shown in training; `holes`, what is taken away when they are judged, the first of them for
      figures and audits, and `sweep`, further ones (see `data.holes`); `extractors` of features
      (`classifier`, trained on the data by the recipe `classifier`; `random_conv:SEED`;
      `inception:FILE`, `clip:FILE`), the last of which gives the cosines that rows are compared by;
      `pictures`, how many per split are completed (0: all) and `eval_batch_size`; `cross_check`,
      whether the original model paints around what a row painted (the paper's Table E.4).
    **settings: the remaining top-level fields, see the code; among them `anchor_seeds` of original
      and retrained models, where these are too costly for one of their own per seed: they are dealt
      out to `seeds` in turn (empty: those of `seeds`).

  Raises:
    ValueError: unknown fields or settings ("did you mean"), wrong types.
  """
  if task not in SPLITS:
    raise ValueError(f'config.task {task!r}{registry.suggestion(task, SPLITS)}')
  config = config_dict.ConfigDict({
      'name': name,
      'task': task,
      'data_dir': '',
      'cache_dir': '',
      'data': {'name': '', 'label_noise': 0.0, 'seed': 0, 'image_size': 0, 'augment': (),
               'normalize': ''},
      'split': _split(split, SPLITS[task]),
      'model': model,
      'model_args': dict(model_args or {}),
      'train': _settings(registry.trainer(task), train or {}, 'train'),
      'methods': {row: _settings(method_of(row), values, f'methods.{row}')
                  for row, values in (methods or {}).items()},
      'rows': tuple(methods or ()),
      'budget': 'dlfd',
      'seeds': (0, 1, 2),
      'anchor_seeds': (),
      'batch_size': 64,
      'forget_batch_size': 0,
      'tune': {'common': {}, 'methods': {}, 'follow': {}, 'budget': 0.0, 'trials': 0,
               'objective': 'nomus', 'seeds': (0,), 'share': 0.5},
      'audit': {'retrained': (0, 1, 2, 3, 4)},
      'cases': dict(cases or {}),
      'devices': 0,
      'log_every': 10,
      'checkpoint_every': 0,
      **SECTIONS[task],
  })
  _update(config.data, data, 'data')
  _update(config.tune, tune or {}, 'tune')
  _update(config.audit, audit or {}, 'audit')
  for section, values, kind in (('text', text, 'image_text'),
                                ('modalities', modalities, 'multimodal'),
                                ('federation', federation, 'federated'),
                                ('generation', generation, 'generation')):
    if values and section not in config:
      raise ValueError(f'config.{section} belongs to {kind} tasks, this is one of {task}')
    if values:
      _update(config[section], values, section)
  _update(config, settings, '')
  return config.lock()


def method_of(row: str) -> str:
  """The registered method that runs a row."""
  return row.split(VARIANT)[0]


def _update(target: config_dict.ConfigDict, values: Mapping[str, Any], where: str) -> None:
  for key, value in values.items():
    path = f'{where}.{key}' if where else key
    if key not in target:
      raise ValueError(f'config has no field {path!r}{registry.suggestion(key, list(target))}')
    try:
      target[key] = value
    except TypeError as error:
      raise ValueError(f'config.{path}: {error}') from error


def _settings(name: str, values: Mapping[str, Any], where: str) -> config_dict.ConfigDict:
  """A method's settings as typed placeholders: the factory's signature is the only source."""
  settings = config_dict.ConfigDict({
      key: config_dict.placeholder(_type_of(parameter))
      for key, parameter in methods.arguments(name).items()})
  _update(settings, values, where)
  return settings


def _split(split: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
  """The arguments of a kind of split, with those that were not given; `check` looks at the kind."""
  if split.get('kind') not in kinds:
    return dict(split)
  parameters = dict(inspect.signature(kinds[split['kind']]).parameters)
  del parameters['source']
  for key in set(split) - {'kind', *parameters}:
    raise ValueError(f"config has no field 'split.{key}'"
                     f'{registry.suggestion(key, list(parameters))}')
  found = {'kind': split['kind']}
  for key, parameter in parameters.items():
    if key in split:
      found[key] = split[key]
    elif parameter.default is None:
      found[key] = config_dict.placeholder(_type_of(parameter))
    elif parameter.default is not parameter.empty:
      found[key] = parameter.default
  return found


def _type_of(parameter: inspect.Parameter) -> type:
  """The plain type of an annotation such as `tuple[float, ...] | None`."""
  kind = parameter.annotation
  if typing.get_origin(kind) in (typing.Union, python_types.UnionType):
    kind = next(arg for arg in typing.get_args(kind) if arg is not type(None))
  return typing.get_origin(kind) or kind


def anchor_seeds(config: Mapping[str, Any]) -> dict[int, int]:
  """Seed of a row -> seed of the original and the retrained model beside it; also from JSON."""
  seeds = config['seeds']
  return dict(zip(seeds, itertools.cycle(config.get('anchor_seeds') or seeds)))


def resolved(config: config_dict.ConfigDict, row: str) -> dict[str, Any]:
  """The settings that a row runs with: config, else budget, else the factory's default."""
  name = method_of(row) if row not in BUILTIN else registry.trainer(config.task)
  chosen = {key: parameter.default for key, parameter in methods.arguments(name).items()}
  chosen |= registry.BUDGETS[config.budget].get(name, {})
  given = config.train if row in BUILTIN else config.methods[row]
  return chosen | {key: value for key, value in given.items() if value is not None}


def check(config: config_dict.ConfigDict) -> None:
  """Checks what types cannot.

  Raises:
    ValueError: says which field, what was wrong and what is allowed.
  """
  if config.budget not in registry.BUDGETS:
    raise ValueError(f'config.budget {config.budget!r}'
                     f'{registry.suggestion(config.budget, registry.BUDGETS)}')
  if not config.seeds or len(set(config.seeds)) != len(config.seeds):
    raise ValueError(f'config.seeds must be one or more different integers, got {config.seeds}')
  if len(set(config.anchor_seeds)) != len(config.anchor_seeds):
    raise ValueError(f'config.anchor_seeds must be different integers, got {config.anchor_seeds}')
  for field in ('batch_size', 'log_every'):
    if config[field] < 1:
      raise ValueError(f'config.{field} must be at least 1, got {config[field]}')
  if config.data.normalize and config.data.normalize not in contract.STATISTICS:
    raise ValueError(f'config.data.normalize {config.data.normalize!r}'
                     f'{registry.suggestion(config.data.normalize, contract.STATISTICS)}')
  for row in config.methods:
    if row in BUILTIN:
      raise ValueError(f'config.methods names {row!r}, which every experiment runs anyway; its '
                       'recipe is config.train')
  if config.split.get('kind') not in SPLITS[config.task]:
    raise ValueError(f'config.split.kind is one of {tuple(SPLITS[config.task])}, got '
                     f'{config.split.get("kind")!r}')
  for row in config.methods:
    if (name := method_of(row)) not in registry.TASKS[config.task]:
      raise ValueError(f'config.methods names {name!r}, which is no method for {config.task} tasks'
                       f'{registry.suggestion(name, registry.TASKS[config.task])}')
  for row in config.rows:
    if row not in config.methods:
      raise ValueError(f'config.rows names {row!r}{registry.suggestion(row, list(config.methods))}')


def split_arguments(config: config_dict.ConfigDict) -> dict[str, Any]:
  """The keyword arguments of the split's function that are given."""
  return {key: value.to_dict() if isinstance(value, config_dict.ConfigDict) else value
          for key, value in config.split.items() if key != 'kind' and value is not None}


def to_arguments(config: config_dict.ConfigDict) -> dict[str, Any]:
  """The keyword arguments of `experiment` that give this config again, as plain data."""
  plain = config.to_dict()
  given = lambda settings: {key: value for key, value in settings.items() if value is not None}
  return plain | {'train': given(plain['train']), 'split': given(plain['split']), 'methods': {
      row: given(settings) for row, settings in plain['methods'].items()}}


def to_json(config: config_dict.ConfigDict) -> dict[str, Any]:
  """The config as plain JSON data, tuples as lists."""
  return json.loads(config.to_json_best_effort())
