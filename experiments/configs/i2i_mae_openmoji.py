"""I2I and its baselines on a masked autoencoder of OpenMoji (the paper's Tables 1 to 3, E.4, D.1).

Command:   unlearn-jax audit --config=experiments/configs/i2i_mae_openmoji.py \
               --workdir=runs/i2i_mae_openmoji
           Needs the extras `openmoji` and `audit`, no download. Modes: `limited` (1, 5 or 10 retain
           pictures per class, D.1: the smallest class has 12), `alpha` (Table 3), `noise` (other
           covariances, Figure E.20), `holes` (the curves of D.11, E.18 and E.19) and `smoke`.
Task:      3,944 pictograms of 32 x 32 pixels in 70 classes; of those with 20 base emoji or more 12
           are to be forgotten and 12 to be kept, with 60 training pictures each at most, and 40 %
           of their emoji held out; the pictures of all others train the original too and serve as
           proxies. A masked autoencoder on patches of 4 x 4 pixels; holes of 4 x 4 and 2 x 2 of
           8 x 8 patches in the middle (25 and 6 % of a picture; the paper's are 33 and 8 %). Half of
           the patches are hidden in training and unlearning: with 75 %, as at ImageNet's scale, so
           small a model leaves half as much again of the error in the hole.
Protocol:  four trials for every method over its learning rate, judged by the paper's one-sided goal
           on held-out validation pictures; alpha .25, 32 + 32 pictures in a batch. Judged by a small
           classifier trained on all classes in place of Inception and CLIP. Three training seeds,
           three retrained models, one draw of classes.
Expect:    see experiments/results/README.md.
Hardware:  2 CPU cores, about an hour; `:smoke` some minutes.
"""

from unlearn_jax import config

MODES = ('', 'limited', 'alpha', 'noise', 'holes', 'smoke')
NETWORK = {'patch': 4, 'width': 64, 'depth': 3, 'heads': 4, 'decoder_width': 48, 'decoder_depth': 1,
           'decoder_heads': 4}
TINY = NETWORK | {'width': 32, 'depth': 1, 'decoder_width': 32, 'decoder_depth': 1}
SPLIT = {'kind': 'classes', 'forget_classes': 12, 'retain_classes': 12, 'held_out': 0.4,
         'smallest': 20, 'per_class': 60}
TRAIN = {'epochs': 100.0, 'learning_rate': 3e-3, 'weight_decay': 0.05, 'warmup_epochs': 10.0}
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
BASELINES = ('max_loss', 'noisy_label', 'retain_label', 'random_encoder')
# What tuning chose for i2i; the other modes start from here.
CHOSEN = {'learning_rate': 1e-2}
SWEEP = ('centre:6', 'random:0.25', 'random:0.5', 'random:0.75', 'left:0.25', 'left:0.5', 'up:0.25',
         'up:0.5', 'outpaint:0.25', 'outpaint:0.5')


def rows(mode: str, unlearn):
  """Row -> settings; `unlearn` is how long each runs."""
  ours = unlearn | CHOSEN
  if mode == 'limited':
    return {'i2i': ours, **{f'i2i-{n}': ours | {'stream': f'limited/{n}'}
                            for n in (1, 5, 10)},
            'i2i-proxy': ours | {'stream': 'proxy'}, 'i2i-forget_proxy': ours | {
                'stream': 'forget_proxy'}}
  if mode == 'alpha':
    # No name of a field holds a dot: alpha in hundredths.
    return {f'i2i-alpha{round(100 * alpha)}': ours | {'alpha': alpha}
            for alpha in (0.01, 0.05, 0.1, 0.2, 0.25, 0.5, 1.0)}
  if mode == 'noise':
    return {'i2i': ours, 'i2i-covariance': ours | {'noise': 'covariance'},
            'i2i-low_rank': ours | {'noise': 'covariance', 'rank': 32},
            'i2i-batch': ours | {'noise': 'batch'}, 'i2i-uniform': ours | {'noise': 'uniform'},
            'i2i-mse': ours | {'norm': 'mse'}, 'i2i-normalized': ours | {'norm': 'l2_normalized'}}
  if mode == 'holes':
    return {'i2i': ours}
  return {'i2i': unlearn, 'i2i-proxy': unlearn | {'stream': 'proxy'},
          **dict.fromkeys(BASELINES, unlearn)}


def get_config(mode: str = ''):
  """`mode` is one of `MODES`."""
  if mode not in MODES:
    raise ValueError(f"the config's mode is one of {', '.join(m for m in MODES if m)} or nothing, "
                     f'got {mode!r}')
  smoke = mode == 'smoke'
  found = rows(mode, {'epochs': 1.0 if smoke else 40.0})
  tune = {'methods': {row: {'learning_rate': RATES} for row in found if row != 'i2i-proxy'},
          'follow': {'i2i-proxy': 'i2i'}, 'trials': 4, 'objective': 'goal'} if not mode else {}
  return config.experiment(
      name='i2i_mae_openmoji' + (f'_{mode}' if mode and not smoke else ''), task='generation',
      data={'name': 'openmoji', 'image_size': 32, 'normalize': 'openmoji'},
      split=SPLIT,
      model='mae', model_args=TINY if smoke else NETWORK, budget='original',
      batch_size=64 if smoke else 32, train=TRAIN | ({'epochs': 1.0, 'warmup_epochs': 0.5} if smoke
                                                     else {}),
      methods=found, tune=tune, seeds=(0,) if smoke else (0, 1, 2),
      audit={'retrained': (0, 1) if smoke else (0, 1, 2)},
      generation={'patch': 4, 'mask': 'random:0.5', 'holes': ('centre:4', 'centre:2'),
                  'sweep': SWEEP if mode == 'holes' else (),
                  'pictures': 32 if smoke else 200,
                  **({'classifier': {'epochs': 1.0}} if smoke else {})})
