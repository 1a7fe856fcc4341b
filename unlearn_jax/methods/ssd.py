"""SSD: parameters that matter more for the forget set than for all data are dampened; no training."""

import math

import jax
import jax.numpy as jnp
import optax

from unlearn_jax import types
from unlearn_jax.losses import baselines
from unlearn_jax.losses import classification
from unlearn_jax.methods import base


def ssd(model: types.Model, *, forget_steps: int = 10, train_steps: int = 110, alpha: float = 10.0,
        lam: float = 1.0) -> types.Method:
  """Selective synaptic dampening: `θ ← min(λ I_D / I_f, 1) θ` where `I_f > α I_D`.

  `I = 1/n Σ_b (∂ L_b / ∂θ)²` over the n batches of one pass, with true labels and in eval mode:
  first over D_f, then over all training data. Buffers stay. The importance depends on the batch
  size (`losses.baselines.importance`).

  Source: Foster et al. 2024, Algorithm 1, and its release: α = 10 and λ = 1 for ResNets; for ViTs
  5 (class), 25 (sub-class) and 10 (random).

  Args:
    model: the network.
    forget_steps: batches in one pass over the forget set.
    train_steps: batches in one pass over all training data.
    alpha: α, how many times as important for D_f a parameter must be.
    lam: λ, dampening constant; smaller dampens more.
  """
  base.check_range('ssd', alpha=(alpha, 0, math.inf), lam=(lam, 0, math.inf))

  def measuring(role, steps):
    def step(state, frozen, batch):
      del frozen
      inputs = base.fields(batch, role, 'ssd')

      def loss(params, inputs):
        outputs, _ = base.forward(model, params, state.collections, inputs, train=False)
        return classification.cross_entropy(outputs['logits'], inputs['label'],
                                            where=inputs['mask'])

      squares = baselines.squared_gradient(loss, state.params, inputs)
      total = jax.tree.map(lambda kept, new: kept + new / steps, state.extra[role], squares)
      return state.replace(step=state.step + 1, extra={**state.extra, role: total}), {}

    return step

  def dampen(state, frozen, batch):
    del frozen, batch
    params = baselines.dampen(state.params, state.extra['forget'], state.extra['train'],
                              alpha=alpha, lam=lam)
    selected = jax.tree.map(lambda f, d: jnp.sum(f > alpha * d), state.extra['forget'],
                            state.extra['train'])
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    metrics = {'selected': sum(jax.tree.leaves(selected)) / count}
    return state.replace(step=state.step + 1, params=params), metrics

  def init(key, variables):
    state = base.initial_state(key, variables, optax.identity())
    zeros = lambda: jax.tree.map(jnp.zeros_like, state.params)
    return state.replace(extra={'forget': zeros(), 'train': zeros()}), {}

  phases = (types.Phase('importance for D_f', measuring('forget', forget_steps), forget_steps,
                        'forget'),
            types.Phase('importance for D', measuring('train', train_steps), train_steps, 'train'),
            types.Phase('dampen', dampen, 1, 'forget'))
  return types.Method(init, phases, base.export)
