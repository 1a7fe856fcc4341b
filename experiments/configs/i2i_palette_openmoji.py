"""I2I and its baselines on a small Palette of OpenMoji (the diffusion columns of Tables 1 and 2).

Command:   python -m experiments.run --config=experiments/configs/i2i_palette_openmoji.py \
               --workdir=runs/i2i_palette_openmoji
           Needs the extra `openmoji`, no download; `:smoke` is short.
Task:      as i2i_mae_openmoji, at 16 x 16 pixels; holes on a grid of 8 x 8 patches of 2 x 2 pixels.
           A U-Net of width 16 with multipliers (1, 2) and one block; 13 stages of the paper's size are
           5 here.
Protocol:  as i2i_mae_openmoji, with a row for the release's distance, but one original and one
           retrained model, and 20 passes over the forget set; a hole is painted in 20 of 2,000 steps.
Expect:    see experiments/results/README.md.
Hardware:  2 CPU cores, about half an hour; `:smoke` some minutes.
"""

from experiments.configs import _i2i

MODES = _i2i.MODES
NETWORK = {'patch': 2, 'width': 16, 'multipliers': (1, 2), 'blocks': 1, 'sampling_steps': 20}
TINY = NETWORK | {'sampling_steps': 4}
TRAIN = {'epochs': 60.0, 'learning_rate': 1e-3, 'weight_decay': 0.0, 'warmup_epochs': 3.0}


def get_config(mode: str = ''):
  """`mode` is one of `MODES`."""
  return _i2i.get(
      mode, name='i2i_palette_openmoji', model='palette',
      model_args=TINY if mode == 'smoke' else NETWORK, train=TRAIN, image_size=16, patch=2,
      normalize='half', rates=(1e-5, 1e-4, 3e-4, 1e-3), epochs=20.0,
      release={'stage_reduce': 'sum_of_means'})
