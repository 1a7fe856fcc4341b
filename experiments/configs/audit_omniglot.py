"""Verdicts: does any approximate method behave as if retrained? The task of dlfd_omniglot, audited.

Command:   unlearn-jax audit --config=experiments/configs/audit_omniglot.py \
               --config.data_dir=DIR --workdir=runs/audit_omniglot
           needs the extra: pip install 'unlearn_jax[audit]'
Protocol:  five retrained models. Settings minimise the gap to a retrained model on a forget set of
           32 identities drawn from the 72 retained ones, as many as the report forgets; every
           method may spend four times the time of one retraining on its trials.
Expect:    the original fails, a held-out retrained model does not. See
           experiments/results/audit_omniglot.md.
Hardware:  2 CPU cores, about 20 minutes, most of it for tuning; `:smoke` takes seconds.
"""

from experiments.configs import dlfd_omniglot

TUNE = {**dlfd_omniglot.TUNE, 'objective': 'retrain_gap', 'budget': 4.0, 'trials': 0, 'seeds': (0,),
        'share': 4 / 9}


def get_config(mode: str = ''):
  """`mode` is '' or 'smoke'."""
  return dlfd_omniglot.base(mode, 'audit_omniglot', dlfd_omniglot.METHODS, tune=TUNE,
                            audit={'retrained': (0, 1, 2, 3, 4)})
