"""Every classification method forgets MNIST digits with planted label noise, under two budgets.

Command:   unlearn-jax audit --config=experiments/configs/classification_mnist5k.py \
               --workdir=runs/classification_mnist5k
           `classification_mnist5k.py:original` for the other budget; needs the extra `audit`.
Task:      5,000 MNIST digits, 20 % of the labels drawn at random, so that there is something to
           memorise; 2,250 retain, 750 each forget, test and unseen, 500 validation. An MLP of
           256-256 that learns every wrong label of its training data.
Protocol:  as classification_omniglot, with 12 trials for every method and no limit of time.
Expect:    original .99 on forgotten digits, retrained .71 as on unseen ones. See
           experiments/results/classification_mnist5k.md.
Hardware:  2 CPU cores, about ten minutes for each budget; `:smoke` takes a minute.
"""

from experiments.configs import classification_omniglot
from unlearn_jax import config


def get_config(mode: str = ''):
  """`mode` is '', 'original' or 'smoke'."""
  task, shared = classification_omniglot.settings(mode, trials=12, share=0.25)
  smoke = task == 'smoke'
  if smoke:
    shared['methods'] = {row: {**values, **classification_omniglot.SMOKE.get(row, {})}
                         for row, values in shared['methods'].items()}
    shared['tune'].update(methods={'ssd': classification_omniglot.GRIDS['ssd']}, trials=2)
  return config.experiment(
      name='_'.join(filter(None, ('classification_mnist5k', mode if mode == 'original' else ''))),
      data={'name': 'synthetic'} if smoke else {'name': 'mnist5k', 'label_noise': 0.2},
      split={'kind': 'random', 'seed': 0, 'shared_identities': True, 'fractions': {
          'retain': 0.45, 'forget': 0.15, 'validation': 0.1, 'test': 0.15, 'unseen': 0.15}},
      model='mlp',
      model_args={'hidden': (16,)} if smoke else {'hidden': (256, 256)},
      train={'epochs': 1.0 if smoke else 30.0, 'learning_rate': 0.05, 'weight_decay': 0.0},
      seeds=(0, 1) if smoke else (0, 1, 2),
      batch_size=16 if smoke else 64,
      **shared)
