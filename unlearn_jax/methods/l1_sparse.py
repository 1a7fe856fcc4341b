"""l1-sparse: fine-tuning on retained data under a sparsity penalty that fades."""

import math

import jax.numpy as jnp

from unlearn_jax import types
from unlearn_jax.losses import baselines
from unlearn_jax.losses import classification
from unlearn_jax.methods import base


def l1_sparse(model: types.Model, *, retain_steps: int = 100, epochs: int = 10,
              learning_rate: float = 0.01, momentum: float = 0.9, weight_decay: float = 5e-4,
              alpha: float = 5e-4, plain_epochs: int = 0, optimizer: str = 'sgd',
              schedule: str = 'constant') -> types.Method:
  """`min_θ E_{D_r} CE(y, f_θ(x)) + α_e |θ|_1` with `α_e = α max(0, 1 - e / (E - P))` in epoch e.

  Source: Jia et al. 2023 (Model Sparsity Can Simplify Machine Unlearning), Eq. 3, and the linear
  schedule of its release (e from 0; over all parameters, batch norm included; train mode). The
  release sets α and the learning rate per run: 5e-4 and 0.01 are ours.

  Args:
    model: the network.
    retain_steps: batches in one pass over the retained data.
    epochs: E, passes over the retained data.
    learning_rate: of the optimizer.
    momentum: of SGD.
    weight_decay: L2 coefficient.
    alpha: α, weight of the l1 norm in the first epoch.
    plain_epochs: P, epochs without penalty at the end.
    optimizer: `'sgd'` or `'adam'`.
    schedule: `'constant'` or `'cosine'`, of the learning rate.
  """
  base.check_range('l1_sparse', learning_rate=(learning_rate, 0, math.inf),
                   epochs=(epochs, 1, math.inf), alpha=(alpha, 0, math.inf),
                   plain_epochs=(plain_epochs, 0, epochs - 1))
  steps = epochs * retain_steps
  tx = base.optimizer(optimizer, learning_rate, momentum=momentum, weight_decay=weight_decay,
                      steps=steps, schedule=schedule)

  def objective(params, *, state, frozen, batch, key):
    del frozen
    retain = base.fields(batch, 'retain', 'l1_sparse')
    outputs, collections = base.forward(model, params, state.collections, retain, key=key)
    epoch = state.step // retain_steps
    weight = alpha * jnp.maximum(0.0, 1 - epoch / (epochs - plain_epochs))
    norm = baselines.l1_norm(params['model'])
    loss = classification.cross_entropy(outputs['logits'], retain['label'], where=retain['mask'])
    metrics = {'accuracy': base.accuracy(outputs['logits'], retain), 'l1_norm': norm}
    return loss + weight * norm, (metrics, collections)

  def init(key, variables):
    return base.initial_state(key, variables, tx), {}

  step = base.gradient_step(objective, tx)
  return types.Method(init, (types.Phase('sparse', step, steps, 'retain'),), base.export)
