"""SoftCLIP: training from scratch with targets softened by similarities within each modality."""

import math

from unlearn_jax import types
from unlearn_jax.losses import contrastive as losses
from unlearn_jax.methods import base
from unlearn_jax.methods import image_text


def soft_clip(model: types.Model, *, example: types.Inputs, train_steps: int = 100,
              epochs: float = 32.0, learning_rate: float = 5e-4, weight_decay: float = 0.2,
              warmup_steps: int = 0, softness: float = 0.3, soft_weight: float = 1.0,
              relation_weight: float = 0.5, optimizer: str = 'adamw') -> types.Method:
  """`min_θ L_SoftCLIP` over all training pairs from a new initialisation, see `losses.soft_clip`.

  In NCU's Table 4 it is trained from scratch, on the noisy pairs; nothing is unlearned. Without
  features of detected regions and object tags, of which we have none, it is SoftCLIP in its
  structure only. The recipe is that of `contrastive`.

  Args:
    model: two towers, inputs `image` and `text`.
    example: inputs of any batch size, for shapes.
    train_steps: batches in one pass over the training pairs.
    epochs: passes.
    learning_rate: peak of the cosine.
    weight_decay: decoupled.
    warmup_steps: linear, from 0.
    softness: share of the intra-modal similarities in the targets, in [0, 1].
    soft_weight: of the softened term.
    relation_weight: of the term over negatives alone.
    optimizer: `'adamw'` or `'sgd'`.
  """
  base.check_range('soft_clip', learning_rate=(learning_rate, 0, math.inf),
                   epochs=(epochs, 0, math.inf), softness=(softness, 0, 1),
                   soft_weight=(soft_weight, 0, math.inf),
                   relation_weight=(relation_weight, 0, math.inf))
  steps = base.total_steps(epochs, train_steps)
  tx = image_text.training(optimizer, learning_rate, steps=steps, warmup_steps=warmup_steps,
                           weight_decay=weight_decay)
  step = image_text.pairs_step(model, lambda e: losses.soft_clip(
      e.image, e.text, e.logit_scale, softness=softness, soft_weight=soft_weight,
      relation_weight=relation_weight), tx, 'soft_clip')

  def init(key, variables):
    del variables
    return base.initial_state(key, model.init(key, example), tx), {}

  return types.Method(init, (types.Phase('train', step, steps, 'train'),), base.export)
