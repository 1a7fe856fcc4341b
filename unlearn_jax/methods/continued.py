"""Continued contrastive training on all pairs, with or without label smoothing."""

import math

from unlearn_jax import types
from unlearn_jax.losses import contrastive as losses
from unlearn_jax.methods import base
from unlearn_jax.methods import image_text


def continued(model: types.Model, *, train_steps: int = 100, epochs: float = 8.0,
              learning_rate: float = 5e-5, weight_decay: float = 0.2, warmup_steps: int = 0,
              label_smoothing: float = 0.0, optimizer: str = 'adamw') -> types.Method:
  """Goes on with `min_θ InfoNCE` over all training pairs, the mismatched ones among them.

  NCU's natural baseline: the same data and epochs, no unlearning. With `label_smoothing` a, its
  label-smoothed CLIP. Rates and epochs are those of NCU's release (stage 2).

  Args:
    model: two towers, inputs `image` and `text`.
    train_steps: batches in one pass over the training pairs.
    epochs: passes.
    learning_rate: peak of the cosine.
    weight_decay: decoupled.
    warmup_steps: linear, from 0.
    label_smoothing: a in [0, 1).
    optimizer: `'adamw'` or `'sgd'`.
  """
  base.check_range('continued', learning_rate=(learning_rate, 0, math.inf),
                   epochs=(epochs, 0, math.inf), label_smoothing=(label_smoothing, 0, 0.999))
  steps = base.total_steps(epochs, train_steps)
  tx = image_text.training(optimizer, learning_rate, steps=steps, warmup_steps=warmup_steps,
                           weight_decay=weight_decay)
  step = image_text.pairs_step(model, lambda e: losses.info_nce(
      e.image, e.text, e.logit_scale, label_smoothing=label_smoothing), tx, 'continued')

  def init(key, variables):
    return base.initial_state(key, variables, tx), {}

  return types.Method(init, (types.Phase('continued', step, steps, 'train'),), base.export)
