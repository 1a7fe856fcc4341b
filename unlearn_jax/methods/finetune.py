"""Fine-tuning on retained data."""

import math

from unlearn_jax import types
from unlearn_jax.methods import base


def finetune(model: types.Model, *, retain_steps: int = 100, epochs: float = 10.0,
             learning_rate: float = 0.01, momentum: float = 0.9, weight_decay: float = 0.0,
             optimizer: str = 'sgd', schedule: str = 'constant') -> types.Method:
  """Continues training on D_r and hopes to forget: `min_θ E_{D_r} CE(y, f_θ(x))`.

  Defaults follow the SCRUB release (SGD 0.01, no decay, 10 epochs).

  Args:
    model: the network.
    retain_steps: batches in one pass over the retained data.
    epochs: passes over the retained data.
    learning_rate: of the optimizer.
    momentum: of SGD.
    weight_decay: L2 coefficient.
    optimizer: `'sgd'` or `'adam'`.
    schedule: `'constant'` or `'cosine'`.
  """
  base.check_range('finetune', learning_rate=(learning_rate, 0, math.inf),
                   epochs=(epochs, 0, math.inf))
  steps = base.total_steps(epochs, retain_steps)
  tx = base.optimizer(optimizer, learning_rate, momentum=momentum, weight_decay=weight_decay,
                      steps=steps, schedule=schedule)
  step = base.gradient_step(base.supervised(model, 'retain', wanted_by='finetune'), tx)

  def init(key, variables):
    return base.initial_state(key, variables, tx), {}

  return types.Method(init, (types.Phase('finetune', step, steps, 'retain'),), base.export)
