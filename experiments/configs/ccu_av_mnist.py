"""CCU and its baselines on AV-MNIST, as the paper runs them (Tables 1, 3, 4 and 6).

Command:   python -m experiments.run --config=experiments/configs/ccu_av_mnist.py \
               --config.data_dir=DIR --workdir=runs/ccu_av_mnist
           DIR holds the public .npy files (`image/train_data.npy`, `audio/train_data.npy`,
           `train_labels.npy`, and the same of `test`). `:15` forgets 15 %; `:smoke` runs on
           generated files of that layout.
Task:      54,000 training records; 5 or 15 % of them are to be forgotten. Early fusion of two
           ResNet-18. AGM's test set is the first 9,000 test records; ours halves it into test and
           unseen records, and validates on the rest of the training file.
Protocol:  as ccu_av_digits, with AGM's optimizer (SGD 0.9, weight decay 1e-4; its step-wise rate
           becomes a cosine: ours).
Expect:    in the paper, 5 %: retrained .707, CCU .725, UPG +2.5, CMSG +95.5. Not run: the files
           were not at hand.
Hardware:  one GPU; `:smoke` takes a minute on 2 CPU cores.
"""

from experiments.configs import _ccu

MODES = ('', '15', 'smoke')
TRAIN = {'epochs': 100.0, 'learning_rate': 1e-2, 'weight_decay': 1e-4}


def get_config(mode: str = ''):
  """`mode` is one of `MODES`."""
  _ccu.check(mode, MODES)
  smoke = mode == 'smoke'
  return _ccu.experiment(
      'ccu_av_mnist' + (f'_{mode}' if mode == '15' else ''), smoke=smoke, train=TRAIN,
      data={'name': 'av_mnist_fixture' if smoke else 'av_mnist'},
      split=_ccu.published_split(0.15 if mode else 0.05, {
          'dep': {'validation': 1.0}, 'test': {'test': 0.5, 'unseen': 0.5}}),
      model='audio_visual', model_args={'width': 2} if smoke else {},
      batch_size=16 if smoke else 64)
