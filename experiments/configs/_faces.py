"""What the four face experiments of the DLFD paper share: rows, grids and the smoke run."""

from collections.abc import Mapping
from typing import Any

from experiments.configs import classification_omniglot
from unlearn_jax import config

# The settings of DLFD's own runs where its baseline is the method of that name; what tuning
# chooses, see `GRIDS`, replaces them. All others are the defaults of the methods.
SGD = {'learning_rate': 0.001, 'momentum': 0.9, 'weight_decay': 5e-4}
PUBLISHED = {
    'finetune': {**SGD, 'schedule': 'cosine'},
    'neg_grad': SGD,
    'cf_k': {'learning_rate': 0.001, 'momentum': 0.9, 'weight_decay': 0.0, 'schedule': 'cosine'},
    'eu_k': {'learning_rate': 0.001, 'momentum': 0.9, 'weight_decay': 0.0, 'schedule': 'cosine'},
    'unsir': {'learning_rate': 0.001, 'repair_ratio': 1.0},
    'scrub': {'optimizer': 'sgd', 'learning_rate': 5e-4, 'weight_decay': 5e-4, 'temperature': 4.0},
}
GRIDS = classification_omniglot.GRIDS | {
    'scrub': classification_omniglot.SCRUB['dlfd'],
    'dlfd': {'learning_rate': (0.001, 0.003, 0.006, 0.008)}}  # the paper's range, its notebooks


def rows(dlfd: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """All methods; a row more is one here, in classification_omniglot.METHODS."""
  return {row: settings | PUBLISHED.get(row, {})
          for row, settings in classification_omniglot.METHODS['dlfd'].items()} | {'dlfd': {**dlfd}}


def base(mode: str, name: str, *, data: Mapping[str, Any], roles: Mapping[str, Any],
         dlfd: Mapping[str, Any], train: Mapping[str, Any], batch_size: int):
  """The config of one task.

  Args:
    mode: '' or 'smoke': generated files in the published layout, read by the same builder.
    name: of the experiment.
    data: of `config.experiment`; pictures of 128x128.
    roles: partition -> split, see `splits.published`.
    dlfd: settings of DLFD, with `step_size` in pixels of [0, 1].
    train: recipe of the original and the retrained model.
    batch_size: of both roles.
  """
  if mode not in ('', 'smoke'):
    raise ValueError(f"the config's mode is 'smoke' or nothing, got {mode!r}")
  methods = rows(dlfd)
  tune = {'methods': GRIDS, 'trials': 4, 'seeds': (0,), 'share': 0.15}
  data = {**data, 'image_size': 128}
  settings = {'model': 'resnet18', 'train': train, 'batch_size': batch_size, 'seeds': (0, 1, 2)}
  if mode == 'smoke':
    methods = {row: values | classification_omniglot.SMOKE.get(row, {})
               for row, values in methods.items()}
    tune = {}
    data |= {'name': f'{data["name"]}_fixture', 'image_size': 16}
    settings |= {'model': 'mlp', 'model_args': {'hidden': (16,)},  # compiles in a second
                 'train': {**train, 'epochs': 1.0}, 'batch_size': 16, 'seeds': (0,)}
  return config.experiment(name=name, data=data, split={'kind': 'published', 'roles': roles},
                           methods=methods, tune=tune, **settings)
