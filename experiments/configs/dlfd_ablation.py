"""DLFD's three components switched on one after the other (Table 3 of the paper), on Omniglot.

Command:   python -m experiments.run --config=experiments/configs/dlfd_ablation.py \
               --config.data_dir=DIR --workdir=runs/dlfd_ablation
Rows:      alone = transport only; class_loss = with the weighted classification loss; dlfd = both
           and dynamic forgetting. And three that the paper has not: class_only = classification
           loss without transport, release = what the released code computes, and unperturbed =
           step size 0, which is fine-tuning with DLFD's schedule: what the optimizer alone does.
Settings:  fixed, those that tuning chose for the full method in dlfd_omniglot.
Hardware:  2 CPU cores, about 5 minutes; `:smoke` takes seconds.
"""

from experiments.configs import dlfd_omniglot


def get_config(mode: str = ''):
  """`mode` is '' or 'smoke'."""
  full = dlfd_omniglot.tuned()['dlfd']
  return dlfd_omniglot.base(mode, 'dlfd_ablation', {
      'dlfd-unperturbed': full | {'step_size': 0.0, 'dynamic': False},
      'dlfd-alone': full | {'class_loss': False, 'dynamic': False},
      'dlfd-class_loss': full | {'dynamic': False},
      'dlfd-class_only': full | {'distancing': False, 'dynamic': False},
      'dlfd-release': full | {'reading': 'release'},
      'dlfd': full,
  })
