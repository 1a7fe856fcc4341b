"""I2I and its baselines on the ViT-B masked autoencoder of ImageNet-1k (the paper's MAE columns).

Command:   python -m experiments.run --config=experiments/configs/i2i_mae_imagenet.py \
               --config.data_dir=DIR --workdir=runs/i2i_mae_imagenet
           DIR holds ImageNet-1k as TFDS prepares it (array_record). To start from the authors'
           mae_visualize_vit_base.pth, whose training had seen all classes, instead of training for
           days: `python -m experiments.unlearn_checkpoint` with this config, `--row=i2i` and
           `--checkpoint=FILE`. `:smoke` runs tiny networks on generated files of that layout.
Task:      100 classes to forget and 100 to keep, 100 training and 50 validation pictures of each;
           proxies from the other 800. Patches of 16 x 16 pixels, 14 x 14 of them; holes of 8 x 8 and
           4 x 4 patches in the middle (33 and 8 %: the paper's text says 25 %, which is that of its
           256-pixel models).
Protocol:  the paper's (Appendix C.3): AdamW (.9, .95) at 1e-4 without decay, 5 epochs, 64 + 64
           pictures, alpha .25; nothing tuned. Which patches are hidden in unlearning is not stated:
           75 % at random, as in MAE's training (ours). With the weights of Inception and CLIP:
           `--config.generation.extractors="('inception:FILE', 'clip:FILE')"`.
Expect:    in the paper, 8 x 8: original FID R 56.7, F 84.1; i2i 59.9, 153.0; random_encoder 58.1,
           146.4. Not run: the data were not at hand.
Hardware:  8 accelerators; `:smoke` some minutes on 2 CPU cores.
"""

from experiments.configs import _i2i
from experiments.configs import i2i_mae_openmoji

MODES = _i2i.MODES


def get_config(mode: str = ''):
  """`mode` is one of `MODES`."""
  return _i2i.photographs(
      mode, name='i2i_mae_imagenet', data='imagenet', classes=100, per_class=100, per_class_test=50,
      model='mae_vit_b', model_args={}, unlearn={'epochs': 5.0, 'learning_rate': 1e-4},
      train={'epochs': 400.0, 'learning_rate': 1.5e-4, 'warmup_epochs': 40.0}, image_size=224,
      normalize='imagenet', batch_size=64, holes=('centre:8', 'centre:4'), tiny_model='mae',
      tiny=i2i_mae_openmoji.TINY | {'patch': 8}, tiny_size=64, tiny_patch=8)
