"""What the CCU experiments share: rows, grids, ablations and sweeps."""

from collections.abc import Mapping
from typing import Any

from unlearn_jax import config

EPOCHS = {'epochs': 4.0}
ROWS = {
    'retrain-visual': {'role': 'masked'},
    'ccu': {'epochs': 8.0},
    'finetune': EPOCHS,
    'neg_grad_plus': EPOCHS,
    'bad_teacher': {'epochs': 4.0},
    'scrub': {'epochs': 6, 'max_epochs': 3},
    'ssd': {},
    'multi_delete': EPOCHS,
}
RATES = (1e-3, 1e-2)
GRIDS = {
    'ccu': {'learning_rate': (3e-5, 1e-4, 3e-4, 1e-3)},  # 1e-3 and more ruin the visual modality
    'finetune': {'learning_rate': (1e-3, 3e-3, 1e-2, 3e-2)},
    'neg_grad_plus': {'learning_rate': RATES, 'alpha': (0.9, 0.99)},
    'bad_teacher': {'learning_rate': (1e-5, 1e-4, 3e-4, 1e-3)},
    'scrub': {'learning_rate': (1e-4, 5e-4), 'alpha': (0.1, 1.0)},
    'ssd': {'alpha': (2.0, 10.0), 'lam': (0.3, 1.0)},
    'multi_delete': {'learning_rate': (1e-4, 3e-4, 1e-3, 3e-3)},
}
# The three modules of CCU, alone and together (the paper claims them and shows no ablation).
ABLATION = {
    'ccu-svu': {'beta': 0.0, 'gamma': 0.0},
    'ccu-svu_ckr': {'gamma': 0.0},
    'ccu-svu_dcs': {'beta': 0.0},
}
SWEEPS = {
    **{f'ccu-omega{omega}': {'omega': omega} for omega in (1, 2, 8)},
    **{f'ccu-final{round(100 * share)}': {'final_share': share} for share in (0.05, 0.5)},
    # No name of a field holds a dot: temperatures in hundredths.
    **{f'ccu-tau{round(100 * tau)}': {'temperature': tau} for tau in (0.05, 0.3, 2.0)},
}


def ablation(chosen: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """CCU with chosen settings, without its modules, and with other omega, n and tau."""
  return {row: {**ROWS['ccu'], **chosen, **changes}
          for row, changes in {'ccu': {}, **ABLATION, **SWEEPS}.items()}


def experiment(name: str, *, train: Mapping[str, Any], smoke: bool = False,
               rows: Mapping[str, Mapping[str, Any]] | None = None, shadows: int = 2,
               **arguments):
  """The config of a CCU experiment.

  Args:
    name: of the experiment.
    train: recipe of the original model and of both oracles.
    smoke: one epoch of everything, two seeds, nothing tuned.
    rows: other rows than the table's, with settings of their own: nothing is tuned then.
    shadows: shadow models of the member prediction attack.
    **arguments: of `config.experiment`.
  """
  tune = {} if smoke or rows else {'methods': GRIDS, 'trials': 4, 'objective': 'multimodal_gap',
                                   'share': 0.1}
  train = {**train, **({'epochs': 1.0} if smoke else {})}
  epochs = {'ssd': {}, 'scrub': {'epochs': 2, 'max_epochs': 1}}
  methods = {row: {**values, **(epochs.get(row, {'epochs': 1.0}) if smoke else {}),
                   **(train if row.startswith('retrain') else {})}
             for row, values in (rows or ROWS).items()}
  return config.experiment(
      name=name, task='multimodal', train=train, methods=methods, budget='original', tune=tune,
      modalities={'shadows': 1 if smoke else shadows, 'stop_every': 1 if smoke else 10},
      seeds=(0, 1) if smoke else (0, 1, 2), **arguments)


def random_split(forget: float, held_out: Mapping[str, float]) -> dict[str, Any]:
  """Records drawn at random; `forget` is a share of the training records."""
  share = 1.0 - sum(held_out.values())
  return {'kind': 'random', 'seed': 0, 'shared_identities': True, 'fractions': {
      'retain': share * (1 - forget), 'forget': share * forget, **held_out}}


def published_split(forget: float, partitions: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
  """The authors' partition; `forget` is a share of their training data."""
  return {'kind': 'published', 'seed': 0, 'roles': {
      'train': {'retain': 1 - forget, 'forget': forget}, **partitions}}


def check(mode: str, modes) -> None:
  if mode not in modes:
    raise ValueError(f"the config's mode is one of {', '.join(m for m in modes if m)} or nothing, "
                     f'got {mode!r}')
