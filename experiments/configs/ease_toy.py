"""EASE, its ablations and three baselines on a toy federation (the toy and its numbers are ours).

Command:   python -m experiments.run --config=experiments/configs/ease_toy.py --workdir=runs/ease_toy
           python -m experiments.ease_tables runs/ease_toy/results.json  # the table
           Needs no extra and no download. `:smoke` is one draw with a few rounds.
Task:      Six clients with 64 pairs of features each; 8 factors are everybody's, 10 each client's
           own. Of the ten of the client that leaves the others know 30 % or none. Linear towers
           with adapters of rank 16 on a backbone that knows the shared factors.
Protocol:  Eight draws of data and adapters, one training seed each; nothing is tuned. 40 rounds of 5
           full-batch steps, 10 of unlearning, 10 of recovery; retrained models get 60. Then 60
           ordinary rounds.
Expect:    EASE nearer to the retrained model than without decomposition or lock, by 3 points of
           F-R@1 at 30 % and, after 60 more rounds, by 5 at none; with one branch only, the other
           branch's swap stays at 99 or more. See experiments/results/ease_toy.md.
Hardware:  2 CPU cores, about half an hour; `:smoke` a minute.
"""

from unlearn_jax import config

SHARES = {'share30': 'factor_pairs', 'share0': 'factor_pairs_apart'}
DRAWS = 8
LOCAL = {'optimizer': 'sgd', 'learning_rate': 0.5, 'weight_decay': 0.0}
UNPROTECTED = {'lock': 'off', 'server_projection': False}


def rows(rounds: int, recover: int):
  """Row -> settings: EASE and its ablations, then baselines, with as many rounds each."""
  ease = {**LOCAL, 'rounds': rounds, 'recover_rounds': recover, 'displacement_steps': 5,
          'displacement_learning_rate': 0.5, 'max_rank': 64}
  climbing = {**LOCAL, 'rounds': rounds, 'recover_rounds': recover, 'forget_learning_rate': 0.5}
  return {
      'ease': ease,
      'ease-excise': ease | {'excise': 1.0},
      'ease-image': ease | {'branches': 'image'},
      'ease-text': ease | {'branches': 'text'},
      'ease-no_decomposition': ease | {'decomposition': False},
      'ease-no_lock': ease | UNPROTECTED,
      'ease-server_only': ease | {'displacement': 'off', 'excise': 1.0},
      'fed_finetune': {**LOCAL, 'rounds': rounds + recover},
      'fed_ga': climbing,
      'sfu': climbing | {'max_rank': 64},
      'fed_osd': climbing,
  }


def get_config(mode: str = ''):
  """`mode` is '' or 'smoke'."""
  if mode not in ('', 'smoke'):
    raise ValueError(f"the config's mode is 'smoke' or nothing, got {mode!r}")
  smoke = bool(mode)
  rounds, recover, train = (2, 1, 4) if smoke else (10, 10, 40)
  cases = {} if smoke else {
      f'{share}-{draw}': {'data': {'name': name, 'seed': draw}, 'seeds': (draw,)}
      for share, name in SHARES.items() for draw in range(DRAWS)}
  return config.experiment(
      name='ease_toy', task='federated', data={'name': 'factor_pairs'}, cases=cases,
      split={'kind': 'federation', 'scenario': 'client', 'target': 0}, model='linear_towers',
      model_args={'embedding': 48, 'temperature': 0.1}, budget='original', batch_size=64,
      train={**LOCAL, 'rounds': train, 'further_rounds': rounds + recover, 'history': train},
      methods=rows(rounds, recover), seeds=(0,), audit={'retrained': (0, 1, 2)},
      federation={'rank': 16, 'alpha': 32.0, 'local_epochs': 5, 'post_rounds': 2 if smoke else 60,
                  'relearn_rounds': 2 if smoke else 10})
