"""What EASE's runs on Flickr30k and COCO share: a published CLIP, 8 clients, three scenarios."""

from experiments.configs import ease_openmoji
from unlearn_jax import config

WORDS = ('l14', 'sample', 'concept', 'smoke')  # a mode is some of them, joined by commas
TINY = ease_openmoji.NETWORK | {
    'embedding': 32, 'patch': 16, 'image_width': 32, 'image_depth': 1, 'image_heads': 2,
    'text_width': 32, 'text_depth': 1, 'text_heads': 2}
CONCEPT = 1  # of 20 themes, which are numbered by size


def get(mode: str, *, name: str, data: str):
  """The config of one data set.

  Args:
    mode: '' is B/32 and the client scenario; `l14`, `sample`, `concept` and `smoke` (a tiny network
      on generated files in the data's layout) may be combined: `l14,sample,smoke`.
    name: of the experiment.
    data: name of the data set.
  """
  words = [word for word in mode.split(',') if word]
  if not set(words) <= set(WORDS) or {'sample', 'concept'} <= set(words):
    raise ValueError(f"the config's mode is some of {', '.join(WORDS)}, joined by commas, with one "
                     f'scenario at most; got {mode!r}')
  smoke, large = 'smoke' in words, 'l14' in words
  scenario = next((word for word in words if word in ('sample', 'concept')), 'client')
  local = {'optimizer': 'adamw', 'learning_rate': 1e-4, 'weight_decay': 0.01}
  rounds, recover, train = (1, 1, 2) if smoke else (5, 5, 30)
  rows = ease_openmoji.rows(local, rounds, recover)
  if scenario != 'client':
    rows = {row: values for row, values in rows.items() if row not in ease_openmoji.HISTORY_ONLY}
  if smoke:
    rows = {row: rows[row] for row in ('ease', 'fed_finetune', 'clip_erase')}
  tag = ''.join(f'_{word}' for word in words if word != 'smoke')
  return config.experiment(
      name=f'{name}{tag}', task='federated',
      data={'name': f'{data}_fixture' if smoke else data, 'image_size': 32 if smoke else 224,
            'normalize': 'clip'},
      split={'kind': 'federation', 'scenario': scenario, 'clients': 4 if smoke else 8, 'alpha': 0.5,
             'themes': 4 if smoke else 20, 'target': CONCEPT if scenario == 'concept' else 0,
             'public': 0.25 if smoke else 0.0, 'minimum': 4 if smoke else 256},
      model='clip' if smoke else 'clip_vit_l_14' if large else 'clip_vit_b_32',
      model_args=TINY if smoke else {}, budget='original', batch_size=4 if smoke else 64,
      methods=rows, train={**local, 'rounds': train, 'further_rounds': rounds + recover,
                           'history': 2 if smoke else 10},
      seeds=(0,) if smoke else (0, 1, 2),
      federation={'rank': 2 if smoke else 8, 'alpha': 4.0 if smoke else 16.0,
                  'post_rounds': 1 if smoke else 10, 'relearn_rounds': 1 if smoke else 10,
                  'backbone': {'epochs': 1.0, 'learning_rate': 5e-4, 'weight_decay': 0.1,
                               'warmup_steps': 0, 'batch_size': 4} if smoke else
                              {'weights': f'ViT-{"L-14" if large else "B-32"}.pt'}})
