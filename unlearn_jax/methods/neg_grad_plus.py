"""NegGrad+: descent on retained data, ascent on the data to forget, in one step."""

import math

import jax

from unlearn_jax import types
from unlearn_jax.losses import baselines
from unlearn_jax.methods import base


def neg_grad_plus(model: types.Model, *, retain_steps: int = 100, epochs: float = 10.0,
                  learning_rate: float = 0.01, momentum: float = 0.9, weight_decay: float = 0.0,
                  schedule: str = 'constant',
                  alpha: float = 0.95) -> types.Method:
  """`min_θ α E_{D_r} CE(y, f_θ(x)) − (1 − α) E_{D_f} CE(y, f_θ(x))`.

  Source: Kurmanji et al. 2023 and its release (SGD 0.01, 10 epochs, α = 0.95; retained data drive
  the epoch, forgotten data are cycled). Each set is a forward pass of its own, so batch statistics
  never mix the two.

  Args:
    model: the network.
    retain_steps: batches in one pass over the retained data.
    epochs: passes over the retained data.
    learning_rate: of SGD.
    momentum: of SGD.
    weight_decay: L2 coefficient.
    schedule: `'constant'` or `'cosine'` (to zero; ours).
    alpha: weight of the retained data, in [0, 1].
  """
  base.check_range('neg_grad_plus', learning_rate=(learning_rate, 0, math.inf),
                   epochs=(epochs, 0, math.inf), alpha=(alpha, 0, 1))
  steps = base.total_steps(epochs, retain_steps)
  tx = base.optimizer('sgd', learning_rate, momentum=momentum, weight_decay=weight_decay,
                      steps=steps, schedule=schedule)

  def objective(params, *, state, frozen, batch, key):
    del frozen
    retain = base.fields(batch, 'retain', 'neg_grad_plus')
    forget = base.fields(batch, 'forget', 'neg_grad_plus')
    retain_key, forget_key = jax.random.split(key)
    kept, collections = base.forward(model, params, state.collections, retain, key=retain_key)
    gone, collections = base.forward(model, params, collections, forget, key=forget_key)
    loss = baselines.neg_grad_plus(
        kept['logits'], retain['label'], gone['logits'], forget['label'], alpha=alpha,
        retain_where=retain['mask'], forget_where=forget['mask'])
    metrics = {'accuracy': base.accuracy(kept['logits'], retain),
               'accuracy_forget': base.accuracy(gone['logits'], forget)}
    return loss, (metrics, collections)

  def init(key, variables):
    return base.initial_state(key, variables, tx), {}

  phase = types.Phase('unlearn', base.gradient_step(objective, tx), steps, 'pair')
  return types.Method(init, (phase,), base.export)
