"""What NCU's runs on web pairs share: the release's scripts, batch 2048, 2 + 8 epochs."""

from unlearn_jax import config

BATCH = 2048  # 16 devices with 128 pairs each, in the paper
TINY = {'embedding': 16, 'patch': 16, 'image_width': 16, 'image_depth': 1, 'image_heads': 2,
        'text_width': 64, 'text_depth': 2, 'text_heads': 1, 'context': 24}


def get(mode: str, *, name: str, layout: str, models: dict[str, str]):
  """The config of one data set.

  Args:
    mode: one of `models`, or `smoke`: a tiny network on generated files in the data's layout.
    name: of the data set.
    layout: of the checkpoint that is unlearned, see `models.clip`.
    models: mode -> registered model.
  """
  if mode not in (*models, 'smoke'):
    raise ValueError(f"the config's mode is one of {', '.join((*models, 'smoke'))}, got {mode!r}")
  smoke = mode == 'smoke'
  row = {'warmup_steps': 0, 'negative_epochs': 1.0, 'epochs': 1.0, 'forget_fraction': 0.25,
         'frozen_text_blocks': 1} if smoke else {}
  return config.experiment(
      name=f'ncu_{name}', task='image_text',
      data={'name': f'{name}_fixture' if smoke else name, 'image_size': 32 if smoke else 224,
            'augment': ('random_resized_crop:0.5,1.0',), 'normalize': 'imagenet'},
      split={'kind': 'unlabelled', 'seed': 42,
             'sizes': {'train': 0.8, 'validation': 0.2} if smoke else
                      {'train': 0.999, 'validation': 0.001}},
      model='clip' if smoke else models[mode],
      model_args={'layout': layout, **(TINY if smoke else {})},
      methods={'ncu': row, 'ncu-release': {**row, 'reading': 'release'}}, budget='original',
      text={'prompt_slots': 4 if smoke else 8}, seeds=(42,), batch_size=8 if smoke else BATCH)
