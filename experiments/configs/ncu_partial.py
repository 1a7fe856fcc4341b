"""NCU with a part of the pairs that the CLIP was trained on (the paper's Figure 4).

Command:   python -m experiments.run --config=experiments/configs/ncu_partial.py \
               --workdir=runs/ncu_partial
           Needs the extras `openmoji` and `clip`, no download.
Task:      that of ncu_openmoji.py. The original has seen all training pairs; a sixth to all of them
           are at hand when it unlearns, the paper's 0.5 to 3 of 3 million.
Protocol:  The settings that tuning chose with all pairs (ncu_openmoji.py), a shorter warm-up, since
           a sixth of the pairs are three batches. Equal epochs, so fewer steps with fewer pairs.
Expect:    NCU above continued training from half of the pairs on, see
           experiments/results/ncu_partial.md and the README beside it.
Hardware:  2 CPU cores, about 20 minutes; `:smoke` takes a minute.
"""

from experiments.configs import ncu_openmoji

SHARES = {'sixth': 1 / 6, 'third': 1 / 3, 'half': 1 / 2, 'two_thirds': 2 / 3, 'five_sixths': 5 / 6,
          'all': 1.0}
ROWS = ('continued', 'ncu')


def get_config(mode: str = ''):
  """`mode` is '' or 'smoke'."""
  if mode not in ('', 'smoke'):
    raise ValueError(f"the config's mode is 'smoke' or nothing, got {mode!r}")
  shares = {name: SHARES[name] for name in (('half', 'all') if mode else SHARES)}
  config = ncu_openmoji.get_config(mode)
  with config.unlocked():
    config.name = 'ncu_partial'
    config.tune = {**config.tune.to_dict(), 'methods': {}, 'follow': {}}
    config.cases = {name: {'text': {'share': share}} for name, share in shares.items()}
  config.rows = ROWS
  for row in ROWS:
    config.methods[row].warmup_steps = 0 if mode else 2
    config.methods[row].update(ncu_openmoji.CHOSEN[row])
  return config
