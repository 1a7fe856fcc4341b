"""EASE and federated baselines on OpenMoji: a client, pictures of a client, or a category leaves.

Command:   python -m experiments.run --config=experiments/configs/ease_openmoji.py \
               --workdir=runs/ease_openmoji
           Needs the extras `openmoji` and `clip`, no download. Modes: `sample`, `concept`,
           `ablation`, `anchors`, `matrix`, `ffa` and `reference` (of the client scenario), `smoke`.
Task:      3,944 pictograms and their names; half of the base emoji are public and train the
           backbone, a CLIP of width 96 with 2 + 2 layers; the others belong to 8 clients, by
           Dirichlet(0.5) over the categories of the emoji. LoRA of rank 8 on queries and values.
Protocol:  20 rounds of one local epoch; 5 of unlearning and 5 of recovery. At this local rate the
           federation learns its pairs by heart, so that there is something to forget. Four trials
           for every method in the client scenario, judged by the mean gap in R@1 to a federation
           retrained without the trials' forget set, in a federation without the client that
           leaves; the other modes run with what they chose (the histories that PGA, FedEraser and
           FedRecovery need exist there alone). Three training seeds, one federation.
           `anchors` are all eight combinations of both branches or one, decomposition or none, lock
           or none: the paper's abstract claims that all three anchors must be closed.
Expect:    see experiments/results/README.md.
Hardware:  2 CPU cores, about half an hour, and `:ablation` as long; `:smoke` a few minutes.
"""

import functools
import itertools
import operator

from unlearn_jax import config

MODES = ('', 'sample', 'concept', 'ablation', 'anchors', 'matrix', 'ffa', 'reference', 'smoke')
NETWORK = {'layout': 'openai', 'embedding': 96, 'patch': 8, 'image_width': 96, 'image_depth': 2,
           'image_heads': 4, 'text_width': 96, 'text_depth': 2, 'text_heads': 4, 'context': 16}
LOCAL = {'optimizer': 'adamw', 'learning_rate': 1e-2, 'weight_decay': 0.01}
BACKBONE = {'epochs': 30.0, 'learning_rate': 5e-4, 'weight_decay': 0.1, 'warmup_steps': 40,
            'batch_size': 128}
HISTORY_ONLY = ('pga', 'fed_eraser', 'fed_recovery')  # need a client that leaves
CONCEPT = 50  # people at work; 126 training pairs of five clients


def rows(local, rounds: int, recover: int):
  """Row -> settings, with as many rounds each."""
  both = {**local, 'rounds': rounds, 'recover_rounds': recover}
  after = {**local, 'recover_rounds': rounds + recover}
  return {
      'ease': both,
      'fed_finetune': {**local, 'rounds': rounds + recover},
      'fed_ga': both,
      'pga': {**local, 'recover_rounds': rounds + recover},
      'fed_eraser': {**local, 'replay_rounds': rounds, 'recover_rounds': recover},
      'fed_recovery': after,
      'sfu': both,
      'fed_osd': both,
      'fed_not': after,
      'fused': after,
      'fed_multi_delete': both,
      'clip_erase': both,
  }


def ablations(ease):
  """EASE without each of its parts, and with other choices for them."""
  return {row: {**ease, **changes} for row, changes in {
      'ease': {},
      'ease-image': {'branches': 'image'},
      'ease-text': {'branches': 'text'},
      'ease-joint': {'channels': (1.0, 0.0, 0.0)},
      'ease-server_only': {'displacement': 'off', 'excise': 1.0},
      'ease-excise': {'excise': 1.0},
      'ease-no_decomposition': {'decomposition': False},
      'ease-principal': {'exclusive_basis': 'principal'},
      'ease-soft': {'soft': True},
      'ease-threshold2': {'threshold': 0.2},
      'ease-threshold9': {'threshold': 0.9},
      'ease-energy': {'energy': 0.99},
      'ease-pairwise': {'retain_rule': 'pairwise'},
      'ease-no_projection': {'server_projection': False},
      'ease-no_lock': {'lock': 'off'},
      'ease-isotropic': {'lock': 'isotropic'},
      'ease-probe': {'reference': 'probe'},
      'ease-uniform': {'reference': 'uniform'},
      'ease-neg_nce': {'displacement': 'neg_nce'},
      'ease-uce': {'displacement': 'uce'},
      'ease-hinge': {'displacement': 'hinge'},
  }.items()}


def anchors(ease):
  """EASE with each of its three parts on or off; the one branch that moves is the image's."""
  parts = {'b': {'branches': 'image'}, 'd': {'decomposition': False}, 'l': {'lock': 'off'}}
  found = {}
  for chosen in itertools.product((True, False), repeat=3):
    on = ''.join(name for name, there in zip(parts, chosen) if there)
    off = [changes for changes, there in zip(parts.values(), chosen) if not there]
    found[f'ease-{on or "none"}'] = functools.reduce(operator.or_, off, ease)
  return found


def bases(ease):
  """EASE on the directions of the whole adapter, and on those of each matrix."""
  return {'ease': ease, 'ease-matrix': ease | {'basis': 'matrix'}}


RATES = (3e-4, 1e-3, 3e-3, 1e-2)
STAY = (1e-3, 3e-3, 1e-2, 3e-2)  # of clients that go on with what they keep
GRIDS = {
    'ease': {'displacement_learning_rate': RATES},
    'fed_finetune': {'learning_rate': STAY},
    'fed_ga': {'forget_learning_rate': RATES},
    # Its authors' distance, 2.2, lies below where adapters of this size start: nothing would move.
    'pga': {'forget_learning_rate': (1e-2, 1e-1), 'stop_distance': (10.0, 40.0)},
    'fed_eraser': {'calibration': (0.25, 0.5, 1.0), 'learning_rate': (1e-2,)},
    'fed_recovery': {'learning_rate': STAY},
    'sfu': {'forget_learning_rate': RATES},
    'fed_osd': {'forget_learning_rate': RATES},
    'fed_not': {'learning_rate': STAY},
    'fused': {'learning_rate': STAY},
    'fed_multi_delete': {'forget_learning_rate': RATES},
    'clip_erase': {'forget_learning_rate': RATES},
}
AIMS = {'displacement_learning_rate': (3e-3, 1e-2), 'reference': ('backbone', 'probe')}
# What tuning chose in the client scenario; the other modes start from here.
CHOSEN = {
    'ease': {'displacement_learning_rate': 0.01},
    'fed_finetune': {'learning_rate': 0.03},
    'fed_ga': {'forget_learning_rate': 0.003},
    'pga': {'forget_learning_rate': 0.01, 'stop_distance': 40.0},
    'fed_eraser': {'calibration': 1.0, 'learning_rate': 0.01},
    'fed_recovery': {'learning_rate': 0.01},
    'sfu': {'forget_learning_rate': 0.003},
    'fed_osd': {'forget_learning_rate': 0.001},
    'fed_not': {'learning_rate': 0.01},
    'fused': {'learning_rate': 0.03},
    'fed_multi_delete': {'forget_learning_rate': 0.01},
    'clip_erase': {'forget_learning_rate': 0.001},
}


def get_config(mode: str = ''):
  """`mode` is one of `MODES`."""
  if mode not in MODES:
    raise ValueError(f"the config's mode is one of {', '.join(m for m in MODES if m)} or nothing, "
                     f'got {mode!r}')
  smoke = mode == 'smoke'
  rounds, recover, train = (1, 1, 2) if smoke else (5, 5, 20)
  post, relearn = {'': (10, 10), 'smoke': (1, 1), 'anchors': (10, 0), 'ablation': (5, 0)}.get(
      mode, (5, 5))
  lora_mode = 'ffa' if mode == 'ffa' else 'full'
  local = LOCAL | ({'optimizer': 'sgd', 'learning_rate': 0.1} if smoke else {})
  found = rows(local, rounds, recover)
  scenario = mode if mode in ('sample', 'concept') else 'client'
  if mode and not smoke:
    found = {row: found[row] | chosen for row, chosen in CHOSEN.items() if row not in HISTORY_ONLY}
  single = {'ablation': ablations, 'anchors': anchors, 'matrix': bases, 'ffa': bases,
            'reference': lambda ease: {'ease': ease}}
  found = single[mode](found['ease']) if mode in single else found
  grids = {'': GRIDS, 'reference': {'ease': AIMS}}.get(mode)
  tune = {'methods': grids, 'trials': 4, 'objective': 'recall_gap'} if grids else {}
  tiny = {'embedding': 32, 'image_width': 32, 'image_depth': 1, 'text_width': 32, 'text_depth': 1,
          'image_heads': 2, 'text_heads': 2}
  return config.experiment(
      name='ease_openmoji' + (f'_{mode}' if mode and not smoke else ''), task='federated',
      data={'name': 'openmoji', 'image_size': 32},
      split={'kind': 'federation', 'scenario': scenario, 'clients': 8, 'alpha': 0.5,
             'target': CONCEPT if scenario == 'concept' else 0, 'public': 0.8 if smoke else 0.5},
      model='clip', model_args=NETWORK | (tiny if smoke else {}), budget='original',
      batch_size=64 if smoke else 32, tune=tune, methods=found,
      train={**local, 'rounds': train, 'further_rounds': rounds + recover, 'history': train},
      seeds=(0,) if smoke else (0, 1, 2),
      federation={'rank': 2 if smoke else 8, 'alpha': 4.0 if smoke else 16.0, 'lora_mode': lora_mode,
                  'post_rounds': post, 'relearn_rounds': relearn,
                  'backbone': BACKBONE | ({'epochs': 1.0, 'warmup_steps': 0} if smoke else {})})
