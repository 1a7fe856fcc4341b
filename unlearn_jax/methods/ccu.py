"""CCU: forgotten pictures leave their class by contrast, the other modality and the rest stay."""

import functools
import math
import re

import jax
import jax.numpy as jnp

from unlearn_jax import types
from unlearn_jax.losses import ccu as losses
from unlearn_jax.methods import base

MOST_OMEGA = 16  # there is a stream `pair/K` for every K up to it


def ccu(model: types.Model, *, forget_steps: int = 10, other: str = 'audio', epochs: float = 5.0,
        omega: int = 4, learning_rate: float = 1e-3, momentum: float = 0.9,
        weight_decay: float = 0.0, alpha: float = 1.0, beta: float = 1.0, gamma: float = 1.0,
        temperature: float = 0.7, retention_temperature: float = 0.7,
        separation_temperature: float = 0.7, final_share: float = 0.2, normalize: bool = True,
        freeze_other: bool = False) -> types.Method:
  """`min_theta alpha L_SVU + beta L_CKR + gamma L_DCS` (Eq. 7) on embeddings, by SGD.

  L_SVU (Eq. 4) contrasts every unlearn batch with omega fresh retain batches, one step each; L_CKR
  (Eq. 5) aligns the modalities of the retain batch; L_DCS (Eq. 6), on the retain batch too, joins in
  the final n of all T = epochs * forget_steps * omega steps: phase `separate`, with the optimizer as
  phase `unlearn` left it. For the losses' readings see `losses.ccu`. They touch embeddings alone, so
  what comes after the encoders gets no gradient (of a weight decay it has its share).

  An early-stopping rule ends `unlearn` only: `separate` always runs all its n steps (ours; the paper
  does not say what of them is left when its rule of section 5.1.3 fires).

  Source: CCU, sections 4.1 to 4.4. It publishes no value of any setting, so every default is ours.
  Omega, tau_SVU, learning rate and momentum follow the code of Lee et al. 2024 (contrastive
  unlearning, the paper's [30]); that tau serves the other two losses as well, the weights are 1, and
  n is 20 % of T. Ours too, where the paper is silent: embeddings of unit length, L_CKR divided by the
  size of the batch (the printed sum is beta times that size), each set a forward pass of its own in
  train mode, and both encoders trained: "strictly confined to visual components" would leave the
  audio terms of Eqs. 4 and 6 without effect, which is `freeze_other`.

  Args:
    model: outputs `image_embedding` and `{other}_embedding`; encoders are named `image` and `other`.
    forget_steps: batches in one pass over the forget set.
    other: the second modality.
    epochs: passes over the forget set, with omega steps per batch.
    omega: retain batches per unlearn batch, 1 to 16.
    learning_rate: of SGD.
    momentum: of SGD.
    weight_decay: L2 coefficient.
    alpha: weight of L_SVU.
    beta: weight of L_CKR; 0 leaves it out.
    gamma: weight of L_DCS; 0 leaves it out.
    temperature: tau_SVU.
    retention_temperature: tau_CKR.
    separation_temperature: tau_DCS.
    final_share: n / T, in [0, 1].
    normalize: embeddings of unit length; off gives the literal dot products, with which L_SVU has no
      lower bound.
    freeze_other: parameters and batch statistics of the second modality's encoder (modules called
      `other`, or `other_...`) stay; in train mode it normalises by the batch all the same.

  Raises:
    ValueError: a setting out of its range; at the first step, a model without those embeddings.
  """
  base.check_range(
      'ccu', learning_rate=(learning_rate, 0, math.inf), epochs=(epochs, 0, math.inf),
      omega=(omega, 1, MOST_OMEGA), alpha=(alpha, 0, math.inf), beta=(beta, 0, math.inf),
      gamma=(gamma, 0, math.inf), temperature=(temperature, 1e-6, math.inf),
      retention_temperature=(retention_temperature, 1e-6, math.inf),
      separation_temperature=(separation_temperature, 1e-6, math.inf),
      final_share=(final_share, 0, 1))
  if omega != int(omega):
    raise ValueError(f'ccu: omega is a whole number of batches, got {omega}')
  steps = base.total_steps(epochs, forget_steps * omega)
  final = round(final_share * steps) if gamma else 0
  own = rf'{other}(_[^/]*)?/.*'  # encoder, projection and head of the second modality
  tx = base.optimizer('sgd', learning_rate, momentum=momentum, weight_decay=weight_decay)
  if freeze_other:
    tx = base.trainable(tx, ((f'model/{own}', 'freeze'), ('.*', 'train')))

  def restored(collections, before):
    """The collections with those of the second modality as they were."""
    def leaf(path, new, old):
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      return old if re.fullmatch(f'[^/]+/{own}', name) else new

    return jax.tree_util.tree_map_with_path(leaf, collections, before)

  def embed(params, collections, inputs, key):
    """(visual, other) embeddings, and the collections."""
    outputs, collections = base.forward(model, params, collections, inputs, key=key)
    found = [_embedding(outputs, name) for name in ('image', other)]
    return *(map(_unit, found) if normalize else found), collections

  def objective(params, *, state, frozen, batch, key, separate):
    del frozen
    retain, forget = (base.fields(batch, role, 'ccu') for role in ('retain', 'forget'))
    retain_key, forget_key = jax.random.split(key)
    m, n, collections = embed(params, state.collections, retain, retain_key)
    m_u, n_u, collections = embed(params, collections, forget, forget_key)
    if freeze_other:
      collections = restored(collections, state.collections)
    svu = losses.selective_visual_unlearning(
        m_u, m, n_u, n, forget['label'], retain['label'], temperature=temperature,
        forget_where=forget['mask'], retain_where=retain['mask'])
    loss, metrics = alpha * svu.loss, {'svu_visual': svu.visual, 'svu_audio': svu.audio}
    if beta:
      metrics['retention'] = losses.cross_modal_retention(
          n, m, temperature=retention_temperature, reduce='mean', where=retain['mask'])
      loss += beta * metrics['retention']
    if separate:
      metrics['separation'] = losses.dual_set_separation(
          m, n, retain['label'], temperature=separation_temperature, where=retain['mask'])
      loss += gamma * metrics['separation']
    return loss, (metrics, collections)

  def phase(name, count, until=None):
    step = base.gradient_step(functools.partial(objective, separate=name == 'separate'), tx)
    return types.Phase(name, step, count, f'pair/{omega:g}', until=until)

  phases = (phase('unlearn', steps - final), phase('separate', final, base.never))
  return types.Method(lambda key, variables: (base.initial_state(key, variables, tx), {}),
                      tuple(one for one in phases if one.steps), base.export)


def _embedding(outputs, name: str) -> jax.Array:
  if f'{name}_embedding' not in outputs:
    raise ValueError(f'ccu wants the output {name}_embedding, the model gives {sorted(outputs)}; '
                     'is `other` the second modality?')
  return outputs[f'{name}_embedding'].astype(jnp.float32)


def _unit(x: jax.Array) -> jax.Array:
  """Rows of [B, d] of unit length; a row of zeros stays one, with a gradient of 0."""
  square = jnp.sum(x * x, axis=1, keepdims=True)
  some = square > 0.0
  return jnp.where(some, x / jnp.sqrt(jnp.where(some, square, 1.0)), 0.0)
