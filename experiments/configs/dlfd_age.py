"""Age classes on MUFAC: DLFD and its baselines (Tables 1 and 2 of the paper, Age).

Command:   python -m experiments.run --config=experiments/configs/dlfd_age.py \
               --config.data_dir=DIR --workdir=runs/dlfd_age_resnet18
           --config.model=resnet18, densenet121 or efficientnet_b0. DIR holds MUFAC as its authors
           publish it (data/builders/mufac.py); `python -m experiments.duplicates` with the same
           config lists near-duplicates of forgotten pictures that are retained.
Task:      13,068 faces of 128x128, 8 classes; 8,525 retain, 1,500 forget. Roles as in the DLFD
           paper: validation is custom_val; custom_test, which the paper uses for accuracy and for
           the attack, is dealt to test and unseen people in equal parts (ours: the two sets must be
           disjoint). Whatever else of a person is in the training list beyond the 1,500th row is
           left out (a warning says how much). The benchmark's own roles are
           {'forget': 'forget', 'retain': {'retain': 0.9, 'validation': 0.1}, 'val': 'test',
           'test': 'unseen'}.
Settings:  DLFD as in its notebook: M = 15, transport weight 3, class weight 0 to 1, threshold
           0.15, batches of 32. Its step of 0.4 on pictures normalised with ImageNet's deviations
           (0.226 on average) is 0.09 in pixels of [0, 1], the unit of these configs. Original: SGD
           0.01, 100 epochs, flips, rotation and shear by 10 degrees, scale 0.8 to 1.2, colours by
           0.2 (the notebook's). Ours: one fall of the learning rate along a cosine instead of its
           many oscillations; the same augmentation while unlearning, where the notebook has none; a
           linear layer as head instead of 512-256-128-8 with dropout; the attack balanced; the
           baselines of the original papers.
Protocol:  one or two epochs for every method (`budget='dlfd'`), four trials each from our grids,
           judged by NoMUS on validation people. Three seeds.
Expect:    not run by us: the data are given on request only. The paper (ResNet-18): DLFD .617
           accuracy, .039 forgetting score, .770 NoMUS; retrained .605, .077, .726.
           `python -m experiments.dlfd_tables` prints its numbers beside those of finished runs.
Hardware:  a GPU; not measured. `:smoke` takes about a minute on 2 CPU cores, on generated files.
"""

from experiments.configs import _faces


def get_config(mode: str = ''):
  """`mode` is '' or 'smoke'."""
  return _faces.base(
      mode, 'dlfd_age',
      data={'name': 'mufac', 'normalize': 'imagenet',
            'augment': ('flip', 'affine:10,10,0.8,1.2', 'color:0.2')},
      roles={'forget': 'forget', 'retain': 'retain', 'val': 'validation',
             'test': {'test': 0.5, 'unseen': 0.5}},
      dlfd={'learning_rate': 0.008, 'perturb_steps': 15, 'step_size': 0.09, 'transport_weight': 3.0,
            'weight_start': 0.0, 'weight_end': 1.0, 'threshold': 0.15},
      train={'epochs': 100.0, 'learning_rate': 0.01, 'weight_decay': 5e-4},
      batch_size=32)
