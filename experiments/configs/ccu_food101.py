"""CCU and its baselines on pictures of food and their titles: vision and text (supplement of CCU).

Command:   python -m experiments.run --config=experiments/configs/ccu_food101.py \
               --config.data_dir=DIR --workdir=runs/ccu_food101
           DIR holds UPMC-Food101 and the token features of experiments/food101_features.py. `:30`
           forgets 30 %; `:smoke` runs on generated files of that layout.
Task:      25 classes of UPMC-Food101; tokens of a frozen ViT-B/16 and a frozen BERT-base, a small
           fusion transformer; 15 or 30 % of the training records are to be forgotten.
Protocol:  as ccu_av_digits; the text is the kept modality, so CMSG is that of text (ours).
Expect:    the paper's numbers are in a supplement that is not published. Not run: the files were
           not at hand.
Hardware:  one GPU; `:smoke` takes a minute on 2 CPU cores.
"""

from experiments.configs import _ccu

MODES = ('', '30', 'smoke')
TRAIN = {'epochs': 60.0, 'optimizer': 'adam', 'learning_rate': 1e-3, 'weight_decay': 6e-3}


def get_config(mode: str = ''):
  """`mode` is one of `MODES`."""
  _ccu.check(mode, MODES)
  smoke = mode == 'smoke'
  return _ccu.experiment(
      'ccu_food101' + (f'_{mode}' if mode == '30' else ''), smoke=smoke, train=TRAIN,
      data={'name': 'food101_fixture' if smoke else 'food101'},
      split=_ccu.published_split(0.3 if mode else 0.15, {
          'test': {'validation': 0.2, 'test': 0.4, 'unseen': 0.4}}),
      model='token_fusion', batch_size=16 if smoke else 128)
