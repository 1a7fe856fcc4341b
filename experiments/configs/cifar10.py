"""The usual benchmark: ResNet-18 on CIFAR-10 forgets random training pictures, or a whole class.

Command:   python -m experiments.run --config=experiments/configs/cifar10.py \
               --config.data_dir=DIR --workdir=runs/cifar10
           `cifar10.py:class` forgets a class, `--config.split.forget_classes='(3,)'` another one.
           DIR holds cifar-10-python.tar.gz, or cifar10/3.0.2 as TFDS prepares it; the archive is
           downloaded where it is missing. `unlearn-jax audit` with the same config adds verdicts.
Task:      random: 4,500 of the 45,000 training pictures, as in SalUn. Class: all 4,500 of class 0
           (airplane). 5,000 validation pictures are held out of the authors' 50,000 first; SalUn
           holds out as many of every class, we draw them at random.
Test:      the authors' 10,000. Random: SalUn tests and attacks with the same pictures, our test and
           unseen sets are disjoint halves (ours). Class: the test set is without the class, as in
           SalUn, and the class's own 1,000 test pictures are the unseen set: SCRUB attacks with
           test pictures of forgotten classes only.
Protocol:  SalUn's training recipe (182 epochs of SGD at 0.1, batch 256, weight decay 5e-4, random
           crops after padding 4 black pixels, flips) but a cosine schedule in the place of its two
           steps (ours). `budget='original'`: every method with the epochs, rates and schedules of
           its own paper, untuned; three seeds. SalUn, SSD and SCRUB differ from each other in their
           recipes; what a row runs with stands in results.json.
Expect:    not run here: needs a GPU.
Hardware:  one GPU; `:smoke` and `:class_smoke` take a minute on 2 CPU cores.
"""

from collections.abc import Sequence

from experiments.configs import classification_omniglot
from unlearn_jax import config

MODES = ('', 'class', 'smoke', 'class_smoke')
METHODS = classification_omniglot.METHODS['original']


def base(mode: str, name: str, data: str, *, forget_class: int, augment: Sequence[str],
         epochs: float):
  """What these benchmarks share.

  Args:
    mode: one of `MODES`; a smoke run reads generated files in the published layout.
    name: of the experiment.
    data: name of the source.
    forget_class: of the mode `class`.
    augment: see `data.transforms.parse`.
    epochs: of the original and the retrained models.
  """
  if mode not in MODES:
    raise ValueError(f"the config's mode is {', '.join(map(repr, MODES))}; got {mode!r}")
  smoke = mode.endswith('smoke')
  if mode.startswith('class'):
    split = {'roles': {'train': {'retain': 0.9, 'validation': 0.1}, 'test': 'test'},
             'forget_classes': (forget_class,)}
  else:
    split = {'roles': {'train': {'retain': 0.81, 'forget': 0.09, 'validation': 0.1},
                       'test': {'test': 0.5, 'unseen': 0.5}}}
  settings = {'model': 'resnet18', 'model_args': {'stem': 'cifar'}, 'methods': METHODS,
              'budget': 'original', 'seeds': (0, 1, 2), 'batch_size': 256}
  if smoke:
    few = classification_omniglot.SMOKE
    settings = {'model': 'mlp', 'model_args': {'hidden': (16,)},  # compiles in a second
                'methods': {row: values | few.get(row, {}) for row, values in METHODS.items()},
                'budget': 'dlfd', 'seeds': (0,), 'batch_size': 16}
  return config.experiment(
      name=f'{name}_class' if mode == 'class' else name,
      data={'name': f'{data}_fixture' if smoke else data, 'augment': tuple(augment)},
      split={'kind': 'published', 'seed': 0, **split},
      train={'epochs': 1.0 if smoke else epochs, 'learning_rate': 0.1},
      **settings)


def get_config(mode: str = ''):
  """`mode` is '' (random), 'class', 'smoke' or 'class_smoke'."""
  return base(mode, 'cifar10', 'cifar10', forget_class=0, augment=('shift:4', 'flip'), epochs=182.0)
