"""CCU and its baselines on digits spoken by people, one of whom is forgotten.

Command:   unlearn-jax audit --config=experiments/configs/ccu_av_fsdd.py --config.data_dir=DIR \
               --workdir=runs/ccu_av_fsdd
           DIR holds FSDD's recordings (a zip, or the directory `recordings`); needs the extra
           `audit`. `:random` forgets 5 % of the training records instead; `:smoke` runs on
           generated recordings.
Task:      3,000 recordings of the Free Spoken Digit Dataset (six speakers; CC BY-SA 4.0), each with
           an MNIST picture of the same digit; 20 % of the labels drawn at random. The training
           records of one speaker are to be forgotten; held-out records are of all six.
Protocol:  as ccu_av_digits.
Expect:    in the paper CCU has the best UPG and CMSG; here it comes last, see
           experiments/results/ccu_av_fsdd.md and the README beside it.
Hardware:  2 CPU cores, about twenty minutes; `:smoke` takes a minute.
"""

from experiments.configs import _ccu
from experiments.configs import ccu_av_digits

MODES = ('', 'random', 'smoke')


def get_config(mode: str = ''):
  """`mode` is one of `MODES`."""
  _ccu.check(mode, MODES)
  smoke = mode == 'smoke'
  split = (_ccu.random_split(0.05, ccu_av_digits.HELD_OUT) if mode == 'random' else
           {'kind': 'owner', 'seed': 0, 'forget_owners': 1, 'fractions': ccu_av_digits.HELD_OUT})
  return _ccu.experiment(
      'ccu_av_fsdd' + (f'_{mode}' if mode and not smoke else ''), smoke=smoke,
      train=ccu_av_digits.TRAIN,
      data={'name': 'av_fsdd_fixture' if smoke else 'av_fsdd', 'label_noise': 0.2}, split=split,
      model='audio_visual', model_args={'width': 2 if smoke else 8}, batch_size=32 if smoke else 64)
