"""Digits with planted label noise: the demo.

Command:   python -m experiments.run --config=experiments/configs/digits.py --workdir=runs/digits
Task:      1,797 real 8x8 digits (scikit-learn), 20 % of the labels replaced at random, so that the
           original has something to memorise; forget 300 of its training records.
Expect:    the original knows the wrong labels that it was given (forgetting score far above its
           floor), the retrained model does not; the approximate methods lie in between.
Hardware:  2 CPU cores, about a minute for three seeds; `:smoke` takes seconds.
"""

from unlearn_jax import config


def get_config(mode: str = ''):
  """`mode` is '' or 'smoke'."""
  smoke = mode == 'smoke'
  return config.experiment(
      name='digits',
      data={'name': 'synthetic'} if smoke else {'name': 'digits', 'label_noise': 0.2},
      split={'kind': 'random', 'seed': 0, 'shared_identities': True, 'fractions': {
          'retain': 0.4, 'forget': 0.17, 'validation': 0.13, 'test': 0.13, 'unseen': 0.17}},
      model='mlp',
      model_args={'hidden': (16,)} if smoke else {'hidden': (256, 256)},
      train={'epochs': 1.0 if smoke else 60.0, 'learning_rate': 0.05, 'weight_decay': 0.0},
      methods={
          'finetune': {},
          'neg_grad': {},
          'neg_grad_plus': {'alpha': 0.9},
          'scrub': {'optimizer': 'sgd', 'weight_decay': 0.0},
          'dlfd': {'epochs': 2.0, 'step_size': 0.05, 'perturb_steps': 5, 'threshold': 0.05,
                   'weight_decay': 0.0},
      },
      tune={'common': {'learning_rate': (0.01,) if smoke else (0.003, 0.01, 0.03, 0.1)},
            'share': 0.3},
      budget='original',
      seeds=(0, 1) if smoke else (0, 1, 2),
      batch_size=16 if smoke else 64,
  )
