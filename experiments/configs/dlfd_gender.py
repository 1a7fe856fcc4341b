"""Gender on MUCAC: DLFD and its baselines (Tables 1 and 2 of the paper, Gender).

Command:   python -m experiments.run --config=experiments/configs/dlfd_gender.py \
               --config.data_dir=DIR --workdir=runs/dlfd_gender_resnet18
           --config.model=resnet18, densenet121 or efficientnet_b0. DIR as in dlfd_multiattr.
Task:      the pictures and splits of dlfd_multiattr; two classes.
Settings:  as in dlfd_multiattr, DLFD's are ours. Original as in the benchmark: SGD 0.01 with
           momentum, 10 epochs. Ours besides: the same recipe for the retrained model (the
           benchmark: plain SGD 0.001).
Protocol:  as in dlfd_multiattr.
Expect:    not run by us: the data are given on request only. The paper (ResNet-18): DLFD .900
           accuracy, .031 forgetting score, .919 NoMUS; retrained .849, .015, .910.
           `python -m experiments.dlfd_tables` prints its numbers beside those of finished runs.
Hardware:  a GPU; not measured. `:smoke` takes about a minute on 2 CPU cores, on generated files.
"""

from experiments.configs import _faces
from experiments.configs import dlfd_multiattr


def get_config(mode: str = ''):
  """`mode` is '' or 'smoke'."""
  return _faces.base(
      mode, 'dlfd_gender', data={'name': 'mucac_gender', 'augment': dlfd_multiattr.AUGMENT},
      roles=dlfd_multiattr.ROLES, dlfd=dlfd_multiattr.DLFD,
      train={'epochs': 10.0, 'learning_rate': 0.01, 'momentum': 0.9, 'weight_decay': 0.0},
      batch_size=64)
