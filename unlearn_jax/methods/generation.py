"""The pieces that methods on generators are made of: calls, means over pictures, optimizers."""

from collections.abc import Mapping
import math

import jax
import jax.numpy as jnp
import optax

from unlearn_jax import types
from unlearn_jax.losses import i2i
from unlearn_jax.methods import base

# Parameters outside of both, a tokenizer for instance, are nobody's to train.
ENCODER = (('model/encoder/.*', 'train'), ('.*', 'freeze'))
GENERATOR = (('model/(encoder|decoder)/.*', 'train'), ('.*', 'freeze'))


def reference(model: types.Model, variables: types.Variables, inputs: types.Inputs, *,
              key: types.Array) -> types.PyTree:
  """The latent of a frozen encoder, in eval mode."""
  return _call(model, variables, inputs, 'encode', key=key, train=False)[0]['latent']


def encode(model: types.Model, params: Mapping, collections: Mapping, inputs: types.Inputs, *,
           key: types.Array):
  """The student's `(latent, collections)`, in train mode."""
  outputs, collections = _call(model, {'params': params['model'], **collections}, inputs, 'encode',
                               key=key, train=True)
  return outputs['latent'], collections


def losses(model: types.Model, params: Mapping, collections: Mapping, inputs: types.Inputs, *,
           key: types.Array):
  """The family's own `(training loss per picture [B], collections)`, in train mode."""
  outputs, collections = _call(model, {'params': params['model'], **collections}, inputs, 'loss',
                               key=key, train=True)
  return outputs['loss'], collections


def _call(model, variables, inputs, method, *, key, train):
  """One of a generator's methods; equal keys give equal draws of its noise, in both modes."""
  dropout, noise = jax.random.split(key)
  outputs, variables = model.apply(
      variables, inputs, train=train, rngs={'dropout': dropout, 'noise': noise}, method=method)
  return outputs, {name: tree for name, tree in variables.items() if name != 'params'}


def mean(values: types.Array, weights: types.Array) -> types.Array:
  """`sum_i w_i l_i / max(sum_i w_i, 1)` of [B]; a row of weight 0 may hold anything."""
  return jnp.sum(jnp.where(weights > 0, weights * values, 0.0)) / jnp.maximum(jnp.sum(weights), 1.0)


def check(method: str, *, learning_rate: float, epochs: float, weight_decay: float, alpha: float
          ) -> None:
  """Checks the settings that all unlearning methods on generators share.

  Raises:
    ValueError: one of them is out of its range.
  """
  base.check_range(method, learning_rate=(learning_rate, 0, math.inf), epochs=(epochs, 0, math.inf),
                   weight_decay=(weight_decay, 0, math.inf), alpha=(alpha, 0, math.inf))


def check_distance(method: str, norm: str, stage_reduce: str) -> None:
  """Checks the settings of `losses.i2i.encoder_distance` before anything is computed.

  Raises:
    ValueError: an unknown norm or reduction.
  """
  for what, value, known in (('norm', norm, i2i.NORMS),
                             ('stage_reduce', stage_reduce, i2i.STAGE_REDUCTIONS)):
    if value not in known:
      raise ValueError(f'{method}: {what} is one of {", ".join(known)}, got {value!r}')


def optimizer(name: str, rate, rules: base.Rules, *, weight_decay: float = 0.0
              ) -> optax.GradientTransformation:
  """AdamW with MAE's betas (0.9, 0.95), or plain SGD, for what the path rules train.

  Args:
    name: `'adamw'` or `'sgd'` (no momentum, no decay: for comparing devices, where Adam's first steps
      magnify the order in which numbers are added).
    rate: learning rate or schedule.
    rules: see `base.trainable`; what is frozen does not decay either.
    weight_decay: decoupled, of matrices: parameters with two axes longer than 1. Biases and the
      scales of norms are exempt, as in MAE; so are tokens, which MAE's rule by rank lets decay (ours).

  Raises:
    ValueError: another name.
  """
  if name == 'sgd':
    return base.trainable(optax.sgd(rate), rules)
  if name != 'adamw':
    raise ValueError(f"optimizer is 'adamw' or 'sgd', got {name!r}")
  return base.trainable(
      optax.adamw(rate, b1=0.9, b2=0.95, weight_decay=weight_decay, mask=_matrices), rules)


def _matrices(params: types.PyTree) -> types.PyTree:
  return jax.tree.map(lambda leaf: sum(size > 1 for size in leaf.shape) > 1, params)
