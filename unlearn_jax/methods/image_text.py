"""The pieces that methods on image-text pairs are made of: embeddings, optimizer, schedule."""

from collections.abc import Mapping
import functools
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from unlearn_jax import types
from unlearn_jax.methods import base
from unlearn_jax.models import surgery

ROLE = 'pairs'
LARGEST_SCALE = math.log(100.0)
# Biases, layer norms of OpenAI's layout and scalars; as CLIP and NCU's release. timm's norms decay.
NO_DECAY = r'(.*/)?bias|(.*/)?ln_[^/]*/scale|model/logit_(scale|bias)'


class Embeddings(NamedTuple):
  """What the losses read; the collections are the model's own."""

  image: types.Array
  text: types.Array
  logit_scale: types.Array
  collections: Mapping[str, types.PyTree]


def embeddings(model: types.Model, params: Mapping, state: types.TrainState, batch: types.Batch,
               wanted_by: str) -> tuple[Embeddings, types.Inputs]:
  """Both towers on the batch's pairs, and the pairs."""
  inputs = base.fields(batch, ROLE, wanted_by)
  outputs, collections = base.forward(
      model, params, state.collections, {name: inputs[name] for name in ('image', 'text')})
  return Embeddings(outputs['image_embedding'], outputs['text_embedding'], outputs['logit_scale'],
                    collections), inputs


def warm_cosine(rate: float, *, steps: int, warmup_steps: int, start: int = 0) -> optax.Schedule:
  """`rate` times `(s + 1) / w` below w, then `1/2 (1 + cos(pi (s - w) / (T - w)))`, s = start + count.

  CLIP's schedule. Past T the cosine climbs again, as NCU's release lets it.

  Args:
    rate: peak learning rate.
    steps: T.
    warmup_steps: w < T.
    start: of the counter.

  Raises:
    ValueError: a warm-up that does not end within the steps.
  """
  if not 0 <= warmup_steps < steps:
    raise ValueError(f'a warm-up of {warmup_steps} steps must be shorter than the {steps} of the '
                     'schedule; give fewer warmup_steps or more epochs')

  def schedule(count):
    step = count + start
    cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * (step - warmup_steps) / (steps - warmup_steps)))
    return rate * jnp.where(step < warmup_steps, (step + 1) / max(warmup_steps, 1), cosine)

  return schedule


def optimizer(name: str, rate, *, weight_decay: float) -> optax.GradientTransformation:
  """AdamW with CLIP's betas (0.9, 0.98) and decay rules, or plain SGD.

  Args:
    name: `'adamw'` or `'sgd'` (no momentum, no decay: for comparing devices, where Adam's first
      steps magnify the order in which numbers are added).
    rate: learning rate or schedule.
    weight_decay: decoupled, of what `NO_DECAY` does not exempt.

  Raises:
    ValueError: another name.
  """
  if name == 'sgd':
    return optax.sgd(rate)
  if name != 'adamw':
    raise ValueError(f"optimizer is 'adamw' or 'sgd', got {name!r}")
  return optax.adamw(rate, b1=0.9, b2=0.98, weight_decay=weight_decay, mask=_decays)


def _decays(params: types.PyTree) -> types.PyTree:
  structure = jax.tree.structure(params)
  return structure.unflatten([not re.fullmatch(NO_DECAY, name) for name in surgery.paths(params)])


def bounded_scale(tx: optax.GradientTransformation) -> optax.GradientTransformation:
  """`tx`, after whose updates CLIP's log scale lies in [0, ln 100]; a frozen one is left alone."""

  def bound(path, update, param):
    if jax.tree_util.keystr(path, simple=True, separator='/') != 'model/logit_scale':
      return update
    return jnp.where(update == 0.0, 0.0, jnp.clip(param + update, 0.0, LARGEST_SCALE) - param)

  def update(updates, state, params):
    updates, state = tx.update(updates, state, params)
    return jax.tree_util.tree_map_with_path(bound, updates, params), state

  return optax.GradientTransformation(tx.init, update)


def training(name: str, learning_rate: float, *, steps: int, warmup_steps: int,
             weight_decay: float) -> optax.GradientTransformation:
  """The optimizer of one training run over all parameters, its scale kept in bounds."""
  rate = warm_cosine(learning_rate, steps=steps, warmup_steps=warmup_steps)
  return bounded_scale(optimizer(name, rate, weight_decay=weight_decay))


def partition(transforms: Mapping[str, optax.GradientTransformation], rules: base.Rules
              ) -> optax.GradientTransformation:
  """One optimizer per label of the path rules; the label `freeze` leaves parameters as they are."""
  return optax.multi_transform({**transforms, 'freeze': optax.set_to_zero()},
                               functools.partial(base.by_path, rules))


def check_batch(method: str, forget_fraction: float, batch_size: int | None) -> None:
  """A fraction that selects nothing, or everything, fails before anything is computed.

  Raises:
    ValueError: int(P N) is 0 or N; without a batch size only P itself is checked.
  """
  if not 0 < forget_fraction < 1:
    raise ValueError(f'{method}: forget_fraction must lie in (0, 1), got {forget_fraction:g}')
  if batch_size is not None and not 0 < int(forget_fraction * batch_size) < batch_size:
    raise ValueError(
        f'{method}: forget_fraction {forget_fraction:g} of a batch of {batch_size} pairs selects '
        f'{int(forget_fraction * batch_size)}; at least one must be forgotten and one retained')


def pairs_step(model: types.Model, loss, tx: optax.GradientTransformation, wanted_by: str
               ) -> types.StepFn:
  """A gradient step on `loss(embeddings) -> scalar` of the batch's pairs."""

  def objective(params, *, state, frozen, batch, key):
    del frozen, key
    found, _ = embeddings(model, params, state, batch, wanted_by)
    return loss(found), ({'logit_scale': found.logit_scale}, found.collections)

  return base.gradient_step(objective, tx)
