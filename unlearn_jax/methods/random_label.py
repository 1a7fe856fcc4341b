"""Random labels: the forget set is learned anew with labels drawn at random."""

import math

import jax
import jax.numpy as jnp

from unlearn_jax import types
from unlearn_jax.losses import classification
from unlearn_jax.methods import base


def random_label(model: types.Model, *, retain_steps: int = 100, forget_steps: int = 10,
                 epochs: int = 10, learning_rate: float = 0.013, momentum: float = 0.9,
                 weight_decay: float = 5e-4, optimizer: str = 'sgd', schedule: str = 'constant'
                 ) -> types.Method:
  """`min_θ E_{D_f} CE(y', f_θ(x))` with `y' ~ U(classes)`, then `min_θ E_{D_r} CE(y, f_θ(x))`.

  In every epoch first one pass over D_f, labels drawn anew for every batch from all classes (the
  true one included), then one over D_r. Attributes are drawn one by one (ours).

  Source: Golatkar et al. 2020 (random labels on D_f) in the form that SalUn's release (Fan et al.
  2024) gives it on CIFAR-10, whose settings are the defaults.

  Args:
    model: the network.
    retain_steps: batches in one pass over the retained data.
    forget_steps: batches in one pass over the forget set.
    epochs: how many times both passes are made.
    learning_rate: of the optimizer.
    momentum: of SGD.
    weight_decay: L2 coefficient.
    optimizer: `'sgd'` or `'adam'`.
    schedule: `'constant'` or `'cosine'`.
  """
  tx = make_optimizer('random_label', optimizer, learning_rate, momentum, weight_decay, schedule,
                      epochs, retain_steps + forget_steps)

  def init(key, variables):
    return base.initial_state(key, variables, tx), {}

  phases = relabelling('random_label', model, tx, epochs, forget_steps, retain_steps)
  return types.Method(init, phases, base.export)


def make_optimizer(name: str, optimizer: str, learning_rate: float, momentum: float,
                   weight_decay: float, schedule: str, epochs: int, steps_per_epoch: int):
  """The optimizer of all phases."""
  base.check_range(name, learning_rate=(learning_rate, 0, math.inf), epochs=(epochs, 1, math.inf),
                   weight_decay=(weight_decay, 0, math.inf))
  return base.optimizer(optimizer, learning_rate, momentum=momentum, weight_decay=weight_decay,
                        steps=epochs * steps_per_epoch, schedule=schedule)


def relabelling(name: str, model: types.Model, tx, epochs: int, forget_steps: int,
                retain_steps: int) -> tuple[types.Phase, ...]:
  """(forget with random labels, retain) once per epoch."""

  def relabelled(params, *, state, frozen, batch, key):
    del frozen
    forget = base.fields(batch, 'forget', name)
    label_key, key = jax.random.split(key)
    outputs, collections = base.forward(model, params, state.collections, forget, key=key)
    logits = outputs['logits']
    labels = draw_labels(label_key, logits, forget['label'])
    loss = classification.cross_entropy(logits, labels, where=forget['mask'])
    return loss, ({'accuracy_forget': base.accuracy(logits, forget)}, collections)

  forget_step = base.gradient_step(relabelled, tx)
  retain_step = base.gradient_step(base.supervised(model, 'retain', wanted_by=name), tx)
  return (types.Phase('forget', forget_step, forget_steps, 'forget'),
          types.Phase('retain', retain_step, retain_steps, 'retain')) * epochs


def draw_labels(key: types.Array, logits: types.Array, labels: types.Array) -> types.Array:
  """Uniform classes [B], or uniform attributes [B, K], in the shape and type of `labels`."""
  if labels.ndim == 1:
    return jax.random.randint(key, labels.shape, 0, logits.shape[1], labels.dtype)
  return jax.random.bernoulli(key, shape=labels.shape).astype(jnp.result_type(labels))
