"""DLFD and its baselines on Omniglot: forget what a drawer has drawn (Table 1 of the paper).

Command:   python -m experiments.run --config=experiments/configs/dlfd_omniglot.py \
               --config.data_dir=DIR --workdir=runs/dlfd_omniglot
           DIR holds images_background_small1.zip and images_background_small2.zip.
Task:      242 characters; an identity is (alphabet, drawer), 160 of them: 72 retain, 32 forget,
           16 validation, 16 test, 24 unseen. ResNet-18 of width 8 on 32x32 pictures.
Protocol:  `budget='dlfd'` (one or two epochs each, as in the paper). One learning-rate grid with
           equal trials for every method, chosen on validation identities with forget sets drawn
           from retained identities. Learning rates fall to zero along a cosine (ours, for every
           method but SCRUB, which has a schedule of its own): at a constant rate one epoch ends
           where it happens to be. Three training seeds, one split.
Expect:    original accuracy .99 on forgotten and .73 on unseen identities, forgetting score about
           .23; retrained .60 / .62 and below .03. See experiments/results/dlfd_omniglot.md.
Hardware:  2 CPU cores, about 20 minutes, most of it for the sweep; `:smoke` takes seconds.
"""

from unlearn_jax import config

LEARNING_RATES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.05, 0.1)
BASELINES = {
    'finetune': {'schedule': 'cosine'},
    'neg_grad': {'schedule': 'cosine'},
    'neg_grad_plus': {'schedule': 'cosine'},
    'scrub': {'optimizer': 'sgd', 'weight_decay': 5e-4, 'temperature': 4.0},
}
# The paper's M and weights; step size and threshold were looked for on the sweep's validation task.
DLFD = {'schedule': 'cosine', 'step_size': 0.02, 'perturb_steps': 15, 'transport_weight': 3.0,
        'threshold': 0.05}

# What the sweep of this experiment chose; the experiments beside it start from here.
CHOSEN = {'finetune': 0.1, 'neg_grad': 0.01, 'neg_grad_plus': 0.1, 'scrub': 0.1, 'dlfd': 0.1}


def tuned():
  """Every method with the learning rate that the sweep chose."""
  return {row: settings | {'learning_rate': CHOSEN[row]}
          for row, settings in (BASELINES | {'dlfd': DLFD}).items()}


def base(mode: str, name: str, methods, **settings):
  """The task that all DLFD experiments share."""
  if mode not in ('', 'smoke'):
    raise ValueError(f"the config's mode is 'smoke' or nothing, got {mode!r}")
  smoke = mode == 'smoke'
  sizes = ({'retain': 4, 'forget': 2, 'validation': 1, 'test': 1, 'unseen': 2} if smoke else
           {'retain': 72, 'forget': 32, 'validation': 16, 'test': 16, 'unseen': 24})
  settings = {'seeds': (0, 1, 2), **settings}
  if smoke:
    settings |= {'seeds': (0, 1), 'batch_size': 16}
    if 'sweep' in settings:
      settings['sweep'] = {'learning_rates': (0.01, 0.03), 'seeds': (0,)}
  return config.experiment(
      name=name,
      data={'name': 'synthetic'} if smoke else {'name': 'omniglot', 'image_size': 32},
      split={'kind': 'identity', 'seed': 0, 'sizes': sizes},
      model='cnn' if smoke else 'resnet18',
      model_args={'width': 4, 'blocks': 1} if smoke else {'width': 8, 'stem': 'cifar'},
      train={'epochs': 1.0 if smoke else 15.0},
      methods=methods,
      **settings)


def get_config(mode: str = ''):
  """`mode` is '' or 'smoke'."""
  return base(mode, 'dlfd_omniglot', BASELINES | {'dlfd': DLFD}, sweep={'learning_rates': LEARNING_RATES, 'seeds': (0,), 'share': 0.25})
