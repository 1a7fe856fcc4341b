"""ResNet-18 on Fashion-MNIST forgets random training pictures, or a whole class.

Command:   python -m experiments.run --config=experiments/configs/fashion_mnist.py \
               --config.data_dir=DIR --workdir=runs/fashion_mnist
           `fashion_mnist.py:class` forgets class 0 (T-shirt/top),
           `--config.split.forget_classes='(7,)'` another one. DIR holds the four published files,
           such as Debian's package dataset-fashion-mnist has in /usr/share/datasets/fashion-mnist,
           or fashion_mnist/3.0.1 as TFDS prepares it; files that are missing are downloaded.
Task:      random: 5,400 of the 54,000 training pictures (10 %); class: those of the class.
           6,000 validation pictures.
Protocol:  as cifar10, with 50 epochs (ours; none of the papers reports this data set).
Expect:    not run here: needs a GPU.
Hardware:  one GPU; `:smoke` and `:class_smoke` take a minute on 2 CPU cores.
"""

from experiments.configs import cifar10


def get_config(mode: str = ''):
  """`mode` is '' (random), 'class', 'smoke' or 'class_smoke'."""
  return cifar10.base(mode, 'fashion_mnist', 'fashion_mnist', forget_class=0,
                      augment=('shift:4', 'flip'), epochs=50.0)
