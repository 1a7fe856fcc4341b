"""What I2I's runs on OpenMoji share, whatever the generator."""

from experiments.configs import i2i_mae_openmoji
from unlearn_jax import config

MODES = ('', 'smoke')


def get(mode: str, *, name: str, model: str, model_args, train, image_size: int, patch: int,
        normalize: str, rates, epochs: float, batch_size: int = 32, generation=None):
  """The config of one family; see `i2i_mae_openmoji` for data, split and protocol.

  Args:
    mode: '' or `smoke`.
    name: of the experiment.
    model: registered generator.
    model_args: its arguments.
    train: recipe of original and retrained models.
    image_size: height and width.
    patch: pixels along a side of a patch; the grid is 8 x 8.
    normalize: see `models.contract.STATISTICS`.
    rates: learning rates that every method tries.
    epochs: of unlearning, over the forget set.
    batch_size: of each role.
    generation: further fields of that section.
  """
  if mode not in MODES:
    raise ValueError(f"the config's mode is smoke or nothing, got {mode!r}")
  smoke = mode == 'smoke'
  rows = i2i_mae_openmoji.rows('', {'epochs': 1.0 if smoke else epochs})
  tune = {} if smoke else {
      'methods': {row: {'learning_rate': rates} for row in rows if row != 'i2i-proxy'},
      'follow': {'i2i-proxy': 'i2i'}, 'trials': len(rates), 'objective': 'goal'}
  return config.experiment(
      name=name, task='generation',
      data={'name': 'openmoji', 'image_size': image_size, 'normalize': normalize},
      split=i2i_mae_openmoji.SPLIT, model=model, model_args=model_args, budget='original',
      batch_size=64 if smoke else batch_size,
      train=train | ({'epochs': 1.0, 'warmup_epochs': 0.5} if smoke else {}), methods=rows, tune=tune,
      seeds=(0,) if smoke else (0, 1, 2), audit={'retrained': (0, 1) if smoke else (0, 1, 2)},
      generation={'patch': patch, 'mask': 'random:0.5', 'holes': ('centre:4', 'centre:2'),
                  'pictures': 16 if smoke else 200, **(generation or {}),
                  **({'extractors': ('random_conv:0',)} if smoke else {})})
