"""Training from scratch: the oracle (on retained data) and the original model (on all of it)."""

import functools
import math

from unlearn_jax import types
from unlearn_jax.methods import base


def retrain(model: types.Model, *, example: types.Inputs, retain_steps: int = 100,
            epochs: float = 15.0, learning_rate: float = 0.1, momentum: float = 0.9,
            weight_decay: float = 5e-4, optimizer: str = 'sgd', schedule: str = 'cosine',
            role: str = 'retain') -> types.Method:
  """Trains a fresh model, every layer of it, by cross entropy on one role.

  `min_θ E_{(x,y) ~ D_r} CE(y, f_θ(x))` from a new initialisation; the variables given to `init`
  are ignored, so nothing of the original model can survive. With `role='train'` the same recipe
  makes the original model. The recipe's defaults are ours (EVALUATION: ResNet-18 on Omniglot).

  Args:
    model: the network.
    example: inputs of any batch size, for shapes.
    retain_steps: batches in one pass over the role's data.
    epochs: passes over the data.
    learning_rate: peak of the schedule.
    momentum: of SGD.
    weight_decay: L2 coefficient.
    optimizer: `'sgd'` or `'adam'`.
    schedule: `'cosine'` or `'constant'`.
    role: `'retain'` for the oracle, `'train'` for the original.
  """
  base.check_range('retrain', learning_rate=(learning_rate, 0, math.inf),
                   epochs=(epochs, 0, math.inf), weight_decay=(weight_decay, 0, math.inf))
  steps = base.total_steps(epochs, retain_steps)
  tx = base.optimizer(optimizer, learning_rate, momentum=momentum, weight_decay=weight_decay,
                      steps=steps, schedule=schedule)
  step = base.gradient_step(base.supervised(model, role, wanted_by='retrain'), tx)

  def init(key, variables):
    del variables  # an oracle never sees the original's weights
    return base.initial_state(key, model.init(key, example), tx), {}

  return types.Method(init, (types.Phase('train', step, steps, role),), base.export)


# The original model: the oracle's recipe over retained and forgotten data together.
original = functools.partial(retrain, role='train')
