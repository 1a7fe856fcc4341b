"""What I2I's runs share, whatever the generator: on OpenMoji, and at the paper's scale."""

from experiments.configs import i2i_mae_openmoji
from unlearn_jax import config

MODES = ('', 'smoke')


def get(mode: str, *, name: str, model: str, model_args, train, image_size: int, patch: int,
        normalize: str, rates, epochs: float, release, batch_size: int = 32, generation=None):
  """The config of one family; see `i2i_mae_openmoji` for data, split and protocol.

  One original and one retrained model, three seeds of unlearning: gaps, and no verdicts.

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
    release: settings of the row `i2i-release`, beside the mean of squares: I2I as its authors' code
      has it for this family.
    batch_size: of each role.
    generation: further fields of that section.
  """
  if mode not in MODES:
    raise ValueError(f"the config's mode is smoke or nothing, got {mode!r}")
  smoke = mode == 'smoke'
  settings = {'epochs': 1.0 if smoke else epochs}
  rows = i2i_mae_openmoji.rows('', settings) | {'i2i-release': {**settings, 'norm': 'mse', **release}}
  tune = {} if smoke else {
      'methods': {row: {'learning_rate': rates} for row in rows if row != 'i2i-proxy'},
      'follow': {'i2i-proxy': 'i2i'}, 'trials': len(rates), 'objective': 'goal'}
  return config.experiment(
      name=name, task='generation',
      data={'name': 'openmoji', 'image_size': image_size, 'normalize': normalize},
      split=i2i_mae_openmoji.SPLIT, model=model, model_args=model_args, budget='original',
      batch_size=64 if smoke else batch_size,
      train=train | ({'epochs': 1.0, 'warmup_epochs': 0.5} if smoke else {}), methods=rows, tune=tune,
      seeds=(0,) if smoke else (0, 1, 2), anchor_seeds=(0,), audit={'retrained': ()},
      generation={'patch': patch, 'mask': 'random:0.5', 'holes': ('centre:4', 'centre:2'),
                  'pictures': 16 if smoke else 200, **(generation or {}),
                  **({'extractors': ('random_conv:0',)} if smoke else {})})


def photographs(mode: str, *, name: str, data: str, classes: int, per_class: int, per_class_test: int,
                model: str, model_args, unlearn, train, image_size: int, normalize: str,
                batch_size: int, holes, tiny, tiny_model: str, tiny_size: int, tiny_patch: int,
                generation=None):
  """The config of one family at the paper's scale, and its smoke run on generated files.

  Args:
    mode: '' or `smoke`.
    name: of the experiment.
    data: `imagenet` or `places365`.
    classes: to forget, and as many to keep.
    per_class: training pictures of each.
    per_class_test: held-out pictures of each.
    model: registered generator, on patches of 16 x 16 pixels.
    model_args: its arguments.
    unlearn: settings of every method.
    train: recipe of original and retrained models.
    image_size: height and width.
    normalize: see `models.contract.STATISTICS`.
    batch_size: of each role.
    holes: in patches of 16 x 16 pixels.
    tiny: arguments of the smoke run's model.
    tiny_model: its registered name.
    tiny_size: its pictures' height and width.
    tiny_patch: pixels along a side of its patches.
    generation: further fields of that section.
  """
  if mode not in MODES:
    raise ValueError(f"the config's mode is smoke or nothing, got {mode!r}")
  smoke = mode == 'smoke'
  generation = generation or {}
  if smoke:
    train = train | {'epochs': 1.0, 'warmup_epochs': 0.5}
    generation = {key: value | {'epochs': 1.0, 'warmup_epochs': 0.5} if key == 'tokenizer' else value
                  for key, value in generation.items()}
  return config.experiment(
      name=name, task='generation',
      data={'name': f'{data}_fixture' if smoke else data,
            'image_size': tiny_size if smoke else image_size, 'normalize': normalize,
            'augment': () if smoke else ('flip',)},
      split={'kind': 'classes', 'forget_classes': 3 if smoke else classes,
             'retain_classes': 3 if smoke else classes, 'held_out': None,
             'per_class': 8 if smoke else per_class,
             'per_class_test': 4 if smoke else per_class_test},
      model=tiny_model if smoke else model, model_args=tiny if smoke else model_args,
      budget='original', batch_size=8 if smoke else batch_size, train=train,
      methods=i2i_mae_openmoji.rows('', unlearn | ({'epochs': 1.0} if smoke else {})),
      seeds=(0,) if smoke else (0, 1, 2),
      generation={'patch': tiny_patch if smoke else 16,
                  'holes': ('centre:4', 'centre:2') if smoke else holes,
                  **({'extractors': ('random_conv:0',)} if smoke else {
                      'classifier': {'width': 64, 'epochs': 30.0, 'batch_size': 256}}),
                  **generation})
