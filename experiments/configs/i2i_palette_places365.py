"""I2I and its baselines on the Palette of Places-365 (the paper's diffusion columns).

Command:   python -m experiments.run --config=experiments/configs/i2i_palette_places365.py \
               --config.data_dir=DIR --workdir=runs/i2i_palette_places365
           DIR holds Places365-small as TFDS prepares it (array_record). To start from the public
           in-painting network instead of training for days: `python -m experiments.unlearn_checkpoint`
           with this config, `--row=i2i` and `--checkpoint=FILE`. `:smoke` runs a tiny network on
           generated files of that layout.
Task:      50 classes to forget and 50 to keep, 5,000 training and 100 validation pictures of each;
           proxies from the other 265. 256 x 256; holes of 8 x 8 and 4 x 4 patches of 16 x 16 pixels
           in the middle (25 and 6 %).
Protocol:  the paper's (Appendix C.3): Adam at 1e-5 without decay, 3 epochs, 64 + 64 pictures, alpha
           .25; nothing tuned; no dropout in unlearning or training (the release's .2 in training is
           left out, so that both have one network). Half of the patches are hidden at random in
           training (ours; the release draws boxes and strokes). Sampling in all 2,000 steps.
Expect:    in the paper, 8 x 8: original FID R 12.2, F 14.6; i2i 13.4, 107.9; retain_label 23.1, 104.7.
           Not run: the data were not at hand.
Hardware:  8 accelerators; `:smoke` some minutes on 2 CPU cores.
"""

from experiments.configs import _i2i

MODES = _i2i.MODES
TINY = {'patch': 4, 'width': 16, 'multipliers': (1, 2), 'blocks': 1, 'sampling_steps': 4}


def get_config(mode: str = ''):
  """`mode` is one of `MODES`."""
  return _i2i.photographs(
      mode, name='i2i_palette_places365', data='places365', classes=50, per_class=5000,
      per_class_test=100, model='palette_256', model_args={'dropout': 0.0},
      unlearn={'epochs': 3.0, 'learning_rate': 1e-5}, train={
          'epochs': 50.0, 'learning_rate': 5e-5, 'weight_decay': 0.0, 'warmup_epochs': 1.0,
          'ema': 0.9999},
      image_size=256, normalize='half', batch_size=64, holes=('centre:8', 'centre:4'),
      tiny_model='palette', tiny=TINY, tiny_size=32, tiny_patch=4, generation={'mask': 'random:0.5'})
