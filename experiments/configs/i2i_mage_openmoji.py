"""I2I and its baselines on a MAGE over a VQ-GAN of OpenMoji (the VQ-GAN columns of Tables 1 and 2).

Command:   python -m experiments.run --config=experiments/configs/i2i_mage_openmoji.py \
               --workdir=runs/i2i_mage_openmoji
           Needs the extra `openmoji`, no download; `:smoke` is short.
Task:      as i2i_mae_openmoji, at 16 x 16 pixels: 8 x 8 tokens of 2 x 2. The tokenizer is trained
           once, on the pictures that nobody forgets, and stays as it is.
Protocol:  as i2i_mae_openmoji, with a row for the release's distance and noise, but one original and
           one retrained model, and 20 passes over the forget set; a hole is painted in 20 steps, and
           every picture gets the same draws.
Expect:    see experiments/results/README.md.
Hardware:  2 CPU cores, about half an hour; `:smoke` some minutes.
"""

from experiments.configs import _i2i
from unlearn_jax.models import contract

MODES = _i2i.MODES
NETWORK = {'width': 64, 'depth': 3, 'heads': 4, 'decoder_width': 64, 'decoder_depth': 2,
           'decoder_heads': 4, 'vqgan': {'width': 16, 'multipliers': (1, 2), 'codes': 128},
           'fill': contract.STATISTICS['openmoji'][0]}
TINY = NETWORK | {'width': 32, 'depth': 1, 'decoder_width': 32, 'decoder_depth': 1, 'steps': 4,
                  'vqgan': {'width': 8, 'multipliers': (1, 2), 'codes': 32}}
TRAIN = {'epochs': 60.0, 'learning_rate': 1.5e-3, 'weight_decay': 0.05, 'warmup_epochs': 6.0}
TOKENIZER = {'epochs': 60.0, 'learning_rate': 1e-3, 'warmup_epochs': 2.0, 'batch_size': 32}


def get_config(mode: str = ''):
  """`mode` is one of `MODES`."""
  smoke = mode == 'smoke'
  return _i2i.get(
      mode, name='i2i_mage_openmoji', model='mage', model_args=TINY if smoke else NETWORK,
      train=TRAIN, image_size=16, patch=2, normalize='', rates=(3e-4, 1e-3, 3e-3, 1e-2), epochs=20.0,
      release={'noise': 'batch'},
      generation={'tokenizer': TOKENIZER | ({'epochs': 1.0, 'warmup_epochs': 0.5} if smoke else {})})
