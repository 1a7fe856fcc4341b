"""CLIP's contrastive training from scratch: original, oracle and ceiling of image-text models."""

import math

from unlearn_jax import types
from unlearn_jax.losses import contrastive as losses
from unlearn_jax.methods import base
from unlearn_jax.methods import image_text


def contrastive(model: types.Model, *, example: types.Inputs, retain_steps: int = 100,
                train_steps: int = 100, epochs: float = 32.0, learning_rate: float = 5e-4,
                weight_decay: float = 0.2, warmup_steps: int = 0, optimizer: str = 'adamw',
                role: str = 'retain') -> types.Method:
  """`min_θ InfoNCE(f_v(image), f_t(text))` from a new initialisation.

  The variables given to `init` are ignored: over the retained pairs this is the oracle. Radford et
  al. 2021: AdamW 5e-4, betas (0.9, 0.98), decay 0.2, 32 epochs, a cosine to zero, the scale at most
  100; their 2,000 steps of warm-up are a setting here.

  Args:
    model: two towers, inputs `image` and `text`.
    example: inputs of any batch size, for shapes.
    retain_steps: batches in one pass over the retained pairs.
    train_steps: batches in one pass over all training pairs.
    epochs: passes.
    learning_rate: peak of the schedule.
    weight_decay: decoupled.
    warmup_steps: linear, from 0.
    optimizer: `'adamw'` or `'sgd'`.
    role: the stream: `'retain'` for the oracle, `'train'` for the original, `'clean'` for all
      training pairs with their true captions, the ceiling.
  """
  if role not in ('retain', 'train', 'clean'):
    raise ValueError(f"contrastive: role is 'retain', 'train' or 'clean', got {role!r}")
  base.check_range('contrastive', learning_rate=(learning_rate, 0, math.inf),
                   epochs=(epochs, 0, math.inf), weight_decay=(weight_decay, 0, math.inf))
  steps = base.total_steps(epochs, retain_steps if role == 'retain' else train_steps)
  tx = image_text.training(optimizer, learning_rate, steps=steps, warmup_steps=warmup_steps,
                           weight_decay=weight_decay)
  step = image_text.pairs_step(
      model, lambda e: losses.info_nce(e.image, e.text, e.logit_scale), tx, 'contrastive')

  def init(key, variables):
    del variables  # an oracle never sees the original's weights
    return base.initial_state(key, model.init(key, example), tx), {}

  return types.Method(init, (types.Phase('train', step, steps, role),), base.export)
