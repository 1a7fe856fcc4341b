"""I2I and its baselines on the ViT-B MAGE of ImageNet-1k (the paper's VQ-GAN columns).

Command:   python -m experiments.run --config=experiments/configs/i2i_mage_imagenet.py \
               --config.data_dir=DIR --workdir=runs/i2i_mage_imagenet
           DIR holds ImageNet-1k as TFDS prepares it (array_record). To start from the authors'
           mage-vitb-1600.pth with its VQ-GAN, whose training had seen all classes, instead of training
           for days: `python -m experiments.unlearn_checkpoint` with this config, `--row=i2i` and
           `--checkpoint=FILE`. `:smoke` runs tiny networks on generated files of that layout.
Task:      as i2i_mae_imagenet, at 256 x 256: 16 x 16 tokens of 16 x 16 pixels; holes of 8 x 8 and
           4 x 4 tokens in the middle (25 and 6 %).
Protocol:  the paper's (Appendix C.3): AdamW (.9, .95) at 1e-4 without decay, 5 epochs, 64 + 64
           pictures, alpha .25; nothing tuned. Half of the tokens are hidden in training and
           unlearning, and `models.mage` masks some of the others: the release's two masks. The
           tokenizer is trained on the pictures that nobody forgets (recipe ours).
Expect:    in the paper, 8 x 8: original FID R 14.4, F 14.4; i2i 15.0, 83.4; max_loss 16.9, 115.2. Not
           run: the data were not at hand.
Hardware:  8 accelerators; `:smoke` some minutes on 2 CPU cores.
"""

from experiments.configs import _i2i
from experiments.configs import i2i_mage_openmoji
from unlearn_jax.models import vqgan

MODES = _i2i.MODES
NETWORK = {'image_size': 256, 'vqgan': vqgan.PUBLISHED, 'width': 768, 'depth': 12, 'heads': 12,
           'decoder_width': 768, 'decoder_depth': 8, 'decoder_heads': 16, 'classes': 1000,
           'class_token': 76}


def get_config(mode: str = ''):
  """`mode` is one of `MODES`."""
  return _i2i.photographs(
      mode, name='i2i_mage_imagenet', data='imagenet', classes=100, per_class=100, per_class_test=50,
      model='mage', model_args=NETWORK, unlearn={'epochs': 5.0, 'learning_rate': 1e-4},
      train={'epochs': 400.0, 'learning_rate': 1.5e-4, 'warmup_epochs': 40.0}, image_size=256,
      normalize='', batch_size=64, holes=('centre:8', 'centre:4'), tiny_model='mage',
      tiny=i2i_mage_openmoji.TINY, tiny_size=32, tiny_patch=2, generation={
          'mask': 'random:0.5', 'tokenizer': {'epochs': 50.0, 'learning_rate': 1e-4,
                                              'warmup_epochs': 1.0, 'batch_size': 64}})
