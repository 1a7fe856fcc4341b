"""CF-k: the last k layers go on learning from retained data, the others stay."""

import math
import re

import jax
import jax.numpy as jnp
import optax

from unlearn_jax import types
from unlearn_jax.methods import base
from unlearn_jax.models import order


def warm_restarts(learning_rate: float, steps_per_epoch: int, *, ratio: float) -> optax.Schedule:
  """Cosine annealing with warm restarts after 1, 2, 4, ... epochs (SGDR), constant in an epoch.

  Epoch e (from 0) lies in the cycle of length `T = 2^floor(log2(e + 1))` at `t = e + 1 - T`:
  `lr (r + (1 - r) (1 + cos(pi t / T)) / 2)`; PyTorch's CosineAnnealingWarmRestarts with T_0 = 1,
  T_mult = 2, stepped once an epoch.

  Args:
    learning_rate: lr, at every restart.
    steps_per_epoch: steps in an epoch.
    ratio: r, the smallest rate over the largest.
  """

  def schedule(count):
    epoch = jnp.asarray(count, jnp.int32) // steps_per_epoch + 1
    length = jnp.left_shift(1, 31 - jax.lax.clz(epoch))
    done = (epoch - length) / length
    return learning_rate * (ratio + (1 - ratio) * (1 + jnp.cos(jnp.pi * done)) / 2)

  return schedule


def last_layers(name: str, model: types.Model, *, example: types.Inputs, retain_steps: int, k: int,
                epochs: float, learning_rate: float, ratio: float, momentum: float,
                weight_decay: float, clip: float, schedule: str):
  """What CF-k and EU-k share.

  Returns:
    (optimizer, the phase of plain training on D_r, paths of the last k weight layers).
  """
  base.check_range(name, k=(k, 1, math.inf), epochs=(epochs, 0, math.inf), ratio=(ratio, 0, 1),
                   learning_rate=(learning_rate, 0, math.inf), clip=(clip, 1e-12, math.inf),
                   weight_decay=(weight_decay, 0, math.inf))
  met, weights = order.last(model, example, k)
  steps = base.total_steps(epochs, retain_steps)
  if schedule == 'restarts':
    learning_rate, schedule = warm_restarts(learning_rate, retain_steps, ratio=ratio), 'constant'
  tx = optax.chain(optax.clip_by_global_norm(clip), base.optimizer(
      'sgd', learning_rate, momentum=momentum, weight_decay=weight_decay, steps=steps,
      schedule=schedule))
  rules = [('/'.join(filter(None, ('model', re.escape(module), '[^/]+'))), 'train')
           for module in met]
  tx = base.trainable(tx, (*rules, ('.*', 'freeze')))
  step = base.gradient_step(base.supervised(model, 'retain', wanted_by=name), tx)
  return tx, types.Phase(name, step, steps, 'retain'), weights


def cf_k(model: types.Model, *, example: types.Inputs, retain_steps: int = 100, k: int = 3,
         epochs: float = 62.0, learning_rate: float = 0.1, ratio: float = 0.05,
         momentum: float = 0.9, weight_decay: float = 5e-5, clip: float = 10.0,
         schedule: str = 'restarts') -> types.Method:
  """Trains the last k layers on D_r and hopes that they forget: `min_{θ_k} E_{D_r} CE(y, f_θ(x))`.

  The k last convolutions or linear layers in order of use, and the batch norms met on the way to
  them, see `models.order.last`. The batch statistics of the frozen layers follow the data as well:
  the network is in train mode.

  Source: Goel et al. 2022 (Towards Adversarial Evaluations for Inexact Machine Unlearning) and its
  release: k up to 3, the schedule and length of the original training, clipped gradients. The
  benchmark's CF-3 and DLFD's own CF-k choose other layers.

  Args:
    model: the network.
    example: inputs of any batch size, for the order of the layers.
    retain_steps: batches in one pass over the retained data.
    k: how many weight layers are trained.
    epochs: passes over the retained data.
    learning_rate: largest.
    ratio: smallest learning rate over the largest, of `schedule='restarts'`.
    momentum: of SGD.
    weight_decay: L2 coefficient, on what is trained.
    clip: largest norm of the gradient.
    schedule: `'restarts'` (cosine with warm restarts after 1, 2, 4, ... epochs), `'cosine'` or
      `'constant'`.

  Raises:
    ValueError: a setting out of range, or more layers than the network has.
  """
  tx, phase, _ = last_layers(
      'cf_k', model, example=example, retain_steps=retain_steps, k=k, epochs=epochs,
      learning_rate=learning_rate, ratio=ratio, momentum=momentum, weight_decay=weight_decay,
      clip=clip, schedule=schedule)

  def init(key, variables):
    return base.initial_state(key, variables, tx), {}

  return types.Method(init, (phase,), base.export)
