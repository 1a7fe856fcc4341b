"""NegGrad: gradient ascent on the data to forget."""

import math

from unlearn_jax import types
from unlearn_jax.losses import baselines
from unlearn_jax.methods import base


def neg_grad(model: types.Model, *, forget_steps: int = 10, epochs: float = 2.0,
             learning_rate: float = 1e-3, momentum: float = 0.0, weight_decay: float = 0.0,
             schedule: str = 'constant'
             ) -> types.Method:
  """Ascends the classification loss of the forget set: `min_θ −E_{D_f} CE(y, f_θ(x))`.

  Source: Golatkar et al. 2020; defaults of the MU benchmark (plain SGD 1e-3, 2 epochs).

  Args:
    model: the network.
    forget_steps: batches in one pass over the forget set.
    epochs: passes over the forget set.
    learning_rate: of SGD.
    momentum: of SGD.
    weight_decay: L2 coefficient.
    schedule: `'constant'` or `'cosine'` (to zero; ours).
  """
  base.check_range('neg_grad', learning_rate=(learning_rate, 0, math.inf),
                   epochs=(epochs, 0, math.inf))
  steps = base.total_steps(epochs, forget_steps)
  tx = base.optimizer('sgd', learning_rate, momentum=momentum, weight_decay=weight_decay,
                      steps=steps, schedule=schedule)

  def objective(params, *, state, frozen, batch, key):
    del frozen
    forget = base.fields(batch, 'forget', 'neg_grad')
    outputs, collections = base.forward(model, params, state.collections, forget, key=key)
    loss = baselines.neg_grad(outputs['logits'], forget['label'], where=forget['mask'])
    return loss, ({'accuracy': base.accuracy(outputs['logits'], forget)}, collections)

  def init(key, variables):
    return base.initial_state(key, variables, tx), {}

  phase = types.Phase('ascend', base.gradient_step(objective, tx), steps, 'forget')
  return types.Method(init, (phase,), base.export)
