"""Accuracy against forgetting over the forgetting strength (the paper's trade-off section).

Command:   python -m experiments.run --config=experiments/configs/dlfd_tradeoff.py \
               --config.data_dir=DIR --workdir=runs/dlfd_tradeoff
Rows:      DLFD without its gate at rising step sizes of the perturbation, and NegGrad+ at rising
           weights of the ascent: the stronger the forgetting, the lower the score and, past some
           point, the accuracy.
Hardware:  2 CPU cores, about 10 minutes; `:smoke` takes seconds.
"""

from experiments.configs import dlfd_omniglot


def get_config(mode: str = ''):
  """`mode` is '' or 'smoke'."""
  tuned = dlfd_omniglot.tuned()
  steps = {'0': 0.0, '1': 0.01, '2': 0.02, '5': 0.05, '10': 0.1, '20': 0.2}
  alphas = {'99': 0.99, '95': 0.95, '90': 0.9, '80': 0.8, '70': 0.7}
  return dlfd_omniglot.base(mode, 'dlfd_tradeoff', {
      **{f'dlfd-step_{name}': tuned['dlfd'] | {'step_size': step, 'dynamic': False}
         for name, step in steps.items()},
      **{f'neg_grad_plus-alpha_{name}': tuned['neg_grad_plus'] | {'alpha': alpha}
         for name, alpha in alphas.items()}})
