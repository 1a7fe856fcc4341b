"""ResNet-18 on SVHN's cropped digits forgets random training pictures, or a whole digit.

Command:   python -m experiments.run --config=experiments/configs/svhn.py \
               --config.data_dir=DIR --workdir=runs/svhn
           `svhn.py:class` forgets the digit 0, `--config.split.forget_classes='(3,)'` another one.
           DIR holds train_32x32.mat and test_32x32.mat, or svhn_cropped/3.1.0 as TFDS prepares it.
           They are for non-commercial use only, so nothing is downloaded.
Task:      random: 6,593 of the 65,931 training pictures (10 %, as in SalUn); class: those of the
           digit. 7,326 validation pictures. The `extra` pictures take no part.
Protocol:  as cifar10, but without augmentation, as in SalUn: mirrored digits are none. 50 epochs
           (ours).
Expect:    not run here: needs a GPU.
Hardware:  one GPU; `:smoke` and `:class_smoke` take a minute on 2 CPU cores.
"""

from experiments.configs import cifar10


def get_config(mode: str = ''):
  """`mode` is '' (random), 'class', 'smoke' or 'class_smoke'."""
  return cifar10.base(mode, 'svhn', 'svhn_cropped', forget_class=0, augment=(), epochs=50.0)
