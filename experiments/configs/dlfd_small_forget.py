"""How the loss of forgotten data behaves when little is forgotten (Figure 4 of the paper).

Command:   python -m experiments.run --config=experiments/configs/dlfd_small_forget.py \
               --config.data_dir=DIR --workdir=runs/dlfd_small_forget
Cases:     forget sets of 10, 30, 100 and 300 pictures drawn from the forget identities (sizes are
           ours); the rest of a cut identity is left out of every split. Error-maximising methods
           are expected to push the loss of forgotten data above that of unseen data (a positive
           loss gap leaks as well), the more so the smaller the set.
Seeds:     two, because every case trains an original and a retrained model of its own.
Hardware:  2 CPU cores, about 15 minutes; `:smoke` takes seconds.
"""

from experiments.configs import dlfd_omniglot


def get_config(mode: str = ''):
  """`mode` is '' or 'smoke'."""
  sizes = (4, 8) if mode == 'smoke' else (10, 30, 100, 300)
  return dlfd_omniglot.base(
      mode, 'dlfd_small_forget', dlfd_omniglot.tuned(), seeds=(0, 1),
      cases={f'{size:03d}_pictures': {'split': {'forget_records': size}} for size in sizes})
