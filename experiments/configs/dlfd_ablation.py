"""DLFD's three components switched on one after the other (Table 3 of the paper), on Omniglot.

Command:   python -m experiments.run --config=experiments/configs/dlfd_ablation.py \
               --config.data_dir=DIR --workdir=runs/dlfd_ablation
Rows:      alone = transport only; class_loss = with the weighted classification loss; dlfd = both
           and dynamic forgetting. And two that the paper has not: class_only = classification
           loss without transport, release = what the released code computes.
Learning rate: fixed, the one that dlfd_omniglot's sweep chose for the full method.
Hardware:  2 CPU cores, about 5 minutes; `:smoke` takes seconds.
"""

from experiments.configs import dlfd_omniglot


def get_config(mode: str = ''):
  """`mode` is '' or 'smoke'."""
  full = dlfd_omniglot.tuned()['dlfd']
  return dlfd_omniglot.base(mode, 'dlfd_ablation', {
      'dlfd-alone': full | {'class_loss': False, 'dynamic': False},
      'dlfd-class_loss': full | {'dynamic': False},
      'dlfd-class_only': full | {'distancing': False, 'dynamic': False},
      'dlfd-release': full | {'reading': 'release'},
      'dlfd': full,
  })
