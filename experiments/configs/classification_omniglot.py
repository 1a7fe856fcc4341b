"""Every classification method forgets what a drawer has drawn, with verdicts, under two budgets.

Command:   unlearn-jax audit --config=experiments/configs/classification_omniglot.py \
               --config.data_dir=DIR --workdir=runs/classification_omniglot
           `classification_omniglot.py:original` for the other budget; needs the extra `audit`.
Task:      that of dlfd_omniglot.
Protocol:  `budget='dlfd'`, one or two epochs for every method, with a cosine schedule where the
           method has none of its own (ours); or, as `:original`, the epochs and schedules of each
           method's own paper. Settings minimise the gap to a retrained model on a small copy of the
           task: models trained on the retained identities forget 31 % of them, the report's share.
           Every method draws 6 trials from its grid (4 as `:original`, where they are longer),
           whatever they cost. Five retrained models, three unlearning seeds.
Expect:    see experiments/results/classification_omniglot.md.
Hardware:  2 CPU cores, about an hour for each budget; `:smoke` takes a minute.
"""

from experiments.configs import dlfd_omniglot

COSINE = {'schedule': 'cosine'}
METHODS = {
    'dlfd': {
        'finetune': COSINE, 'neg_grad': COSINE, 'neg_grad_plus': COSINE, 'random_label': COSINE,
        'l1_sparse': COSINE, 'cf_k': COSINE, 'eu_k': COSINE, 'unsir': {}, 'bad_teacher': COSINE,
        'scrub': dlfd_omniglot.BASELINES['scrub'], 'ssd': {}, 'salun': COSINE,
        'dlfd': dlfd_omniglot.DLFD},
    'original': {
        'finetune': {}, 'neg_grad': {}, 'neg_grad_plus': {}, 'random_label': {}, 'l1_sparse': {},
        'cf_k': {}, 'eu_k': {}, 'unsir': {}, 'bad_teacher': {}, 'scrub': {}, 'ssd': {},
        'salun': {}, 'dlfd': {**dlfd_omniglot.DLFD, 'schedule': 'constant'}},
}
RATES = (0.001, 0.003, 0.01, 0.03, 0.1)
GRIDS = {
    'finetune': {'learning_rate': RATES, 'weight_decay': (0.0, 5e-4)},
    'neg_grad': {'learning_rate': (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2), 'momentum': (0.0, 0.9)},
    'neg_grad_plus': {'learning_rate': RATES, 'alpha': (0.9, 0.95, 0.99)},
    'random_label': {'learning_rate': RATES, 'weight_decay': (0.0, 5e-4)},
    'l1_sparse': {'learning_rate': RATES, 'alpha': (1e-5, 1e-4, 5e-4)},
    'cf_k': {'learning_rate': (0.01, 0.03, 0.1, 0.3), 'k': (1, 2, 3)},
    'eu_k': {'learning_rate': (0.01, 0.03, 0.1, 0.3), 'k': (1, 2, 3)},
    'unsir': {'learning_rate': (3e-4, 1e-3, 3e-3, 1e-2, 2e-2), 'noise_share': (0.1, 0.36)},
    'bad_teacher': {'learning_rate': (1e-4, 3e-4, 1e-3, 3e-3), 'temperature': (1.0, 4.0)},
    'ssd': {'alpha': (1.0, 2.0, 5.0, 10.0, 20.0), 'lam': (0.1, 0.5, 1.0)},
    'salun': {'learning_rate': RATES, 'share': (0.3, 0.5, 0.8)},
    'dlfd': {'learning_rate': RATES, 'step_size': (0.005, 0.01, 0.02)},
}
SCRUB = {
    'dlfd': {'learning_rate': (3e-4, 1e-3, 3e-3, 1e-2), 'alpha': (0.1, 0.5)},
    'original': {'learning_rate': (5e-5, 2e-4, 5e-4, 2e-3), 'weight_decay': (5e-4, 0.1)},
}


def settings(mode: str, **tune) -> tuple[str, dict]:
  """(mode of the task, what the two classification experiments share)."""
  if mode not in ('', 'original', 'smoke'):
    raise ValueError(f"the config's mode is 'original', 'smoke' or nothing, got {mode!r}")
  budget = 'original' if mode == 'original' else 'dlfd'
  shared = {'methods': METHODS[budget], 'budget': budget,
            'audit': {'retrained': (0, 1, 2) if mode == 'smoke' else (0, 1, 2, 3, 4)},
            'tune': {'methods': GRIDS | {'scrub': SCRUB[budget]}, 'objective': 'retrain_gap',
                     'seeds': (0,), **tune}}
  return 'smoke' if mode == 'smoke' else '', shared


def get_config(mode: str = ''):
  """`mode` is '', 'original' or 'smoke'."""
  task, shared = settings(mode, trials=4 if mode == 'original' else 6, share=0.31)
  if mode == 'smoke':
    shared['methods'] = {row: {**values, **SMOKE.get(row, {})}
                         for row, values in shared['methods'].items()}
    shared['tune']['share'] = 0.5
    shared['tune']['methods'] = {'ssd': GRIDS['ssd']}
  name = '_'.join(filter(None, ('classification_omniglot', mode if mode == 'original' else '')))
  return dlfd_omniglot.base(task, name, shared.pop('methods'), **shared)


# Few steps: a smoke run shows that the machinery runs, not what it finds.
SMOKE = {'unsir': {'noise_size': 8, 'noise_steps': 2}, 'cf_k': {'k': 1}, 'eu_k': {'k': 1},
         'dlfd': {'perturb_steps': 2}}
