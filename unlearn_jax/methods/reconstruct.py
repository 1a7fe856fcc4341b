"""Training a generator to complete pictures: the original model and the retrained one."""

import math

import jax

from unlearn_jax import types
from unlearn_jax.methods import base
from unlearn_jax.methods import generation
from unlearn_jax.methods import image_text


def reconstruct(model: types.Model, *, example: types.Inputs, retain_steps: int = 100,
                train_steps: int = 100, epochs: float = 100.0, learning_rate: float = 1e-3,
                weight_decay: float = 0.05, warmup_epochs: float = 5.0, optimizer: str = 'adamw',
                ema: float = 0.0, role: str = 'retain') -> types.Method:
  """`min_{theta, phi} E_x l(D_phi(E_theta(T(x))), x)` from a new initialisation, l the family's loss.

  The variables given to `init` are ignored: over the retained pictures this is the oracle. A
  tokenizer trained beforehand is the model's: its `init` gives it, and it stays as it is.

  Source: the recipe of He et al. 2022, Appendix A.1: AdamW, betas (0.9, 0.95), decoupled decay 0.05
  of matrices only, a linear warm-up and half a cosine to 0, per step; gradients are not clipped. Its
  800 epochs at 1.5e-4 per 256 pictures are for ImageNet: epochs, peak and warm-up here are ours, for
  small data. So is the first step's rate, peak / warm-up steps and not 0.

  Args:
    model: a generator with `method='loss'`.
    example: `image` and `visible` of any batch size, for shapes.
    retain_steps: batches in one pass over the retained pictures.
    train_steps: batches in one pass over all training pictures.
    epochs: passes.
    learning_rate: peak of the schedule.
    weight_decay: see `generation.optimizer`.
    warmup_epochs: linear, fewer than `epochs`.
    optimizer: `'adamw'` or `'sgd'`.
    ema: decay of an average of the parameters over steps, which is what is exported then (Palette's
      public training has 0.9999); 0 exports the parameters themselves, as I2I does.
    role: the stream: `'retain'` for the oracle, `'train'` for the original.

  Raises:
    ValueError: a setting out of its range.
  """
  if role not in ('retain', 'train'):
    raise ValueError(f"reconstruct: role is 'retain' or 'train', got {role!r}")
  base.check_range('reconstruct', learning_rate=(learning_rate, 0, math.inf),
                   epochs=(epochs, 0, math.inf), weight_decay=(weight_decay, 0, math.inf),
                   warmup_epochs=(warmup_epochs, 0, epochs), ema=(ema, 0, 1))
  per_epoch = retain_steps if role == 'retain' else train_steps
  steps = base.total_steps(epochs, per_epoch)
  rate = image_text.warm_cosine(learning_rate, steps=steps,
                                warmup_steps=round(warmup_epochs * per_epoch))
  tx = generation.optimizer(optimizer, rate, generation.GENERATOR, weight_decay=weight_decay)

  def objective(params, *, state, frozen, batch, key):
    del frozen
    inputs = base.fields(batch, role, 'reconstruct')
    losses, collections = generation.losses(model, params, state.collections, inputs, key=key)
    return generation.mean(losses, inputs['mask']), ({}, collections)

  def init(key, variables):
    del variables  # an oracle never sees the original's weights
    fresh = model.init(key, example)
    return base.initial_state(
        key, fresh, tx, extra={'average': base.copied(fresh['params'])} if ema else None), {}

  plain = base.gradient_step(objective, tx)

  def averaged(state, frozen, batch):
    state, metrics = plain(state, frozen, batch)
    average = jax.tree.map(lambda mean, new: ema * mean + (1 - ema) * new, state.extra['average'],
                           state.params['model'])
    return state.replace(extra={'average': average}), metrics

  def export(state):
    return {'params': state.extra['average'], **state.collections}

  return types.Method(init, (types.Phase('train', averaged if ema else plain, steps, role),),
                      export if ema else base.export)
