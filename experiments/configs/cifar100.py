"""ResNet-18 on CIFAR-100 forgets random training pictures, or the class `rocket`.

Command:   python -m experiments.run --config=experiments/configs/cifar100.py \
               --config.data_dir=DIR --workdir=runs/cifar100
           `cifar100.py:class` forgets class 69 (rocket), the first that SSD reports; its others are
           mushroom 51, baby 2, lamp 40 and sea 71 (`--config.split.forget_classes='(51,)'`).
           DIR holds cifar-100-python.tar.gz, or cifar100/3.0.2 as TFDS prepares it; the archive is
           downloaded where it is missing.
Task:      random: 4,500 of the 45,000 training pictures, as in SalUn. Class: those of the about 450
           that are training pictures of the class. 5,000 validation pictures.
Protocol:  as cifar10, with the 200 epochs of SSD's training recipe.
Expect:    not run here: needs a GPU.
Hardware:  one GPU; `:smoke` and `:class_smoke` take a minute on 2 CPU cores.
"""

from experiments.configs import cifar10


def get_config(mode: str = ''):
  """`mode` is '' (random), 'class', 'smoke' or 'class_smoke'."""
  return cifar10.base(mode, 'cifar100', 'cifar100', forget_class=69, augment=('shift:4', 'flip'),
                      epochs=200.0)
