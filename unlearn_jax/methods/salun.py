"""SalUn: random labels on the forget set, and only the weights that matter for it may move."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from unlearn_jax import types
from unlearn_jax.losses import classification
from unlearn_jax.methods import base
from unlearn_jax.methods import random_label


class MaskedState(NamedTuple):
  """State of `masked`: 1 where a parameter may move, and the inner optimizer's state."""

  mask: types.PyTree
  inner: types.PyTree


def masked(tx: optax.GradientTransformation) -> optax.GradientTransformation:
  """`tx` with its updates multiplied by a mask that lives in the optimizer's state (ones at first).

  Masking updates and not gradients keeps masked weights where they are under weight decay and
  momentum too.
  """

  def init(params):
    return MaskedState(jax.tree.map(jnp.ones_like, params), tx.init(params))

  def update(grads, state, params=None):
    updates, inner = tx.update(grads, state.inner, params)
    return jax.tree.map(jnp.multiply, updates, state.mask), MaskedState(state.mask, inner)

  return optax.GradientTransformation(init, update)


def saliency_mask(gradient: types.PyTree, share: float) -> types.PyTree:
  """1 for the `int(share * P)` largest of all P entries by |g|, 0 for the others.

  One ranking over all leaves (SalUn Eq. 3 with the threshold at a quantile); of equal entries those
  that come first are taken.

  Args:
    gradient: a tree of arrays.
    share: in [0, 1].

  Returns:
    A tree of 0 and 1 of the structure, shapes and types of `gradient`.
  """
  leaves, treedef = jax.tree.flatten(gradient)
  flat = jnp.concatenate([jnp.abs(leaf).ravel() for leaf in leaves])
  rank = jnp.argsort(jnp.argsort(-flat))
  chosen, start, found = rank < int(share * flat.size), 0, []
  for leaf in leaves:
    found.append(chosen[start:start + leaf.size].reshape(leaf.shape).astype(leaf.dtype))
    start += leaf.size
  return treedef.unflatten(found)


def salun(model: types.Model, *, retain_steps: int = 100, forget_steps: int = 10, epochs: int = 10,
          learning_rate: float = 0.013, momentum: float = 0.9, weight_decay: float = 5e-4,
          share: float = 0.5, optimizer: str = 'sgd', schedule: str = 'constant') -> types.Method:
  """Random labels under a saliency mask: `θ = m ⊙ (θ_o + Δθ) + (1 - m) ⊙ θ_o`.

  m marks the largest `share` of all parameters by `|∇_θ E_{D_f} CE(y, f_{θ_o}(x))|`, summed over
  one pass in eval mode and signed until its end (Eq. 3). Then random labels as in `random_label`.

  Source: Fan et al. 2024 (SalUn), Eq. 3 to 5, and its release on CIFAR-10: half of the weights,
  SGD 0.013, 10 epochs. Masked weights are kept exactly, as the release does since February 2026;
  the numbers of the paper come from code that let weight decay and momentum move them.

  Args:
    model: the network.
    retain_steps: batches in one pass over the retained data.
    forget_steps: batches in one pass over the forget set.
    epochs: how many times both passes are made.
    learning_rate: of the optimizer.
    momentum: of SGD.
    weight_decay: L2 coefficient, on what may move.
    share: of the parameters that may move, in [0, 1].
    optimizer: `'sgd'` or `'adam'`.
    schedule: `'constant'` or `'cosine'`.
  """
  base.check_range('salun', share=(share, 0, 1))
  tx = masked(random_label.make_optimizer(
      'salun', optimizer, learning_rate, momentum, weight_decay, schedule, epochs,
      retain_steps + forget_steps))

  def accumulate(state, frozen, batch):
    del frozen
    forget = base.fields(batch, 'forget', 'salun')

    def loss(params):
      outputs, _ = base.forward(model, params, state.collections, forget, train=False)
      return classification.cross_entropy(outputs['logits'], forget['label'], where=forget['mask'])

    value, gradient = jax.value_and_grad(loss)(state.params)
    total = jax.tree.map(jnp.add, state.extra['gradient'], gradient)
    return state.replace(step=state.step + 1, extra={'gradient': total}), {'loss': value}

  def init(key, variables):
    state = base.initial_state(key, variables, tx)
    return state.replace(extra={'gradient': jax.tree.map(jnp.zeros_like, state.params)}), {}

  def choose(state):
    mask = saliency_mask(state.extra['gradient'], share)
    return state.replace(extra={}, opt_state=state.opt_state._replace(mask=mask))

  first, *others = random_label.relabelling('salun', model, tx, epochs, forget_steps, retain_steps)
  phases = (types.Phase('saliency', accumulate, forget_steps, 'forget'),
            first._replace(enter=choose), *others)
  return types.Method(init, phases, base.export)
