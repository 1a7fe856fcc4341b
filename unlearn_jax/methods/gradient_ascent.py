"""Gradient ascent and relabelling on the pairs that a CLIP itself takes for mismatched."""

import math

from unlearn_jax import types
from unlearn_jax.losses import contrastive as losses
from unlearn_jax.losses import ncu
from unlearn_jax.methods import base
from unlearn_jax.methods import image_text


def _fine_tuning(name, model, loss, *, train_steps, epochs, learning_rate, weight_decay,
                 warmup_steps, forget_fraction, reading, optimizer, batch_size) -> types.Method:
  """A fine-tuning on `loss(embeddings, forget)` of every training batch."""
  base.check_range(name, learning_rate=(learning_rate, 0, math.inf), epochs=(epochs, 0, math.inf))
  image_text.check_batch(name, forget_fraction, batch_size)
  steps = base.total_steps(epochs, train_steps)
  tx = image_text.training(optimizer, learning_rate, steps=steps, warmup_steps=warmup_steps,
                           weight_decay=weight_decay)

  def selected(e):
    forget = ncu.forget_pairs(e.image, e.text, e.logit_scale, forget_fraction=forget_fraction,
                              reading=reading)
    return loss(e, forget)

  step = image_text.pairs_step(model, selected, tx, name)

  def init(key, variables):
    return base.initial_state(key, variables, tx), {}

  return types.Method(init, (types.Phase(name, step, steps, 'train'),), base.export)


def gradient_ascent(model: types.Model, *, train_steps: int = 100, batch_size: int | None = None,
                    epochs: float = 8.0, learning_rate: float = 5e-5, weight_decay: float = 0.2,
                    warmup_steps: int = 0, forget_fraction: float = 0.1,
                    label_smoothing: float = 0.1, ascent_weight: float = 1.0,
                    reading: str = 'paper', optimizer: str = 'adamw') -> types.Method:
  """`min_θ L(D_RT, smoothed) − w L(D_FG)` per batch, see `losses.gradient_ascent`.

  The baseline of NCU's Table 4, without code of its own there. D_FG is selected as NCU selects it
  (Eq. 2); smoothing, weight and the recipe, that of NCU's stage 2, are ours.

  Args:
    model: two towers, inputs `image` and `text`.
    train_steps: batches in one pass over the training pairs.
    batch_size: N, to check the fraction beforehand.
    epochs: passes.
    learning_rate: peak of the cosine.
    weight_decay: decoupled.
    warmup_steps: linear, from 0.
    forget_fraction: P, share of a batch that is taken for mismatched.
    label_smoothing: on the retained pairs.
    ascent_weight: w.
    reading: of Eq. 2, `'paper'` or `'release'`.
    optimizer: `'adamw'` or `'sgd'`.
  """
  base.check_range('gradient_ascent', label_smoothing=(label_smoothing, 0, 0.999),
                   ascent_weight=(ascent_weight, 0, math.inf))
  return _fine_tuning(
      'gradient_ascent', model,
      lambda e, forget: losses.gradient_ascent(
          e.image, e.text, e.logit_scale, forget, label_smoothing=label_smoothing,
          weight=ascent_weight),
      train_steps=train_steps, epochs=epochs, learning_rate=learning_rate,
      weight_decay=weight_decay, warmup_steps=warmup_steps, forget_fraction=forget_fraction,
      reading=reading, optimizer=optimizer, batch_size=batch_size)


def relabelling(model: types.Model, *, train_steps: int = 100, batch_size: int | None = None,
                epochs: float = 8.0, learning_rate: float = 5e-5, weight_decay: float = 0.2,
                warmup_steps: int = 0, forget_fraction: float = 0.1, reading: str = 'paper',
                optimizer: str = 'adamw') -> types.Method:
  """`min_θ InfoNCE` after the pairs in D_FG have exchanged captions, see `losses.relabelling`.

  NCU, section 3.2 (forget loss); the recipe is that of `gradient_ascent`.

  Args:
    model: two towers, inputs `image` and `text`.
    train_steps: batches in one pass over the training pairs.
    batch_size: N, to check the fraction beforehand.
    epochs: passes.
    learning_rate: peak of the cosine.
    weight_decay: decoupled.
    warmup_steps: linear, from 0.
    forget_fraction: P.
    reading: of Eq. 2, `'paper'` or `'release'`.
    optimizer: `'adamw'` or `'sgd'`.
  """
  return _fine_tuning(
      'relabelling', model,
      lambda e, forget: losses.relabelling(e.image, e.text, e.logit_scale, forget),
      train_steps=train_steps, epochs=epochs, learning_rate=learning_rate,
      weight_decay=weight_decay, warmup_steps=warmup_steps, forget_fraction=forget_fraction,
      reading=reading, optimizer=optimizer, batch_size=batch_size)
