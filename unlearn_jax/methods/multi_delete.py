"""MultiDelete: fused states of forgotten pairs become those of unassociated ones."""

import math

import jax
import jax.numpy as jnp

from unlearn_jax import types
from unlearn_jax.methods import base


def multi_delete(model: types.Model, *, retain_steps: int = 100, other: str = 'audio',
                 epochs: float = 1.0, learning_rate: float = 1e-4, optimizer: str = 'adam',
                 momentum: float = 0.9, weight_decay: float = 0.0) -> types.Method:
  """`min_theta L_MD + L_MKR + L_UKR`, mean squared distances to the frozen original g.

  With h the fused state (what enters the last layer, `features`), m and n the embeddings of the two
  modalities, and (v, a) a record:

  - modality decoupling: `L_MD = E_{D_f} ||h_theta(v, a) - h_g(v, a')||^2 / d`, where a' is the second
    modality of another record;
  - multimodal knowledge retention: `L_MKR = E_{D_r} ||h_theta(v, a) - h_g(v, a)||^2 / d`;
  - unimodal knowledge retention: `L_UKR = E_{D_f} ||m_theta - m_g||^2 / d + ||n_theta - n_g||^2 / d`.

  Source: Cheng and Amiri 2024, in the form that its release has for classifiers; there the weights
  are 1, student in train mode and original in eval mode. It forgets how modalities belong together
  and by intent nothing of either of them, so pictures alone are kept, which is CCU's objection to it.

  Ours: a' belongs to a retained record of the batch, drawn anew in every step (the release shuffles
  the forget batch, where a record may meet itself and a single one must; the paper draws both from
  D_r); both embeddings in L_UKR, where the release has the picture's; optimizer and its settings.

  Args:
    model: outputs `features`, `image_embedding` and `{other}_embedding`.
    retain_steps: batches in one pass over the retained data.
    other: the second modality, also the name of its input.
    epochs: passes over the retained data.
    learning_rate: of the optimizer.
    optimizer: `'adam'` or `'sgd'`.
    momentum: of SGD.
    weight_decay: L2 coefficient.

  Raises:
    ValueError: a setting out of its range.
  """
  base.check_range('multi_delete', learning_rate=(learning_rate, 0, math.inf),
                   epochs=(epochs, 0, math.inf))
  steps = base.total_steps(epochs, retain_steps)
  tx = base.optimizer(optimizer, learning_rate, momentum=momentum, weight_decay=weight_decay)

  def objective(params, *, state, frozen, batch, key):
    retain, forget = (base.fields(batch, role, 'multi_delete') for role in ('retain', 'forget'))
    draw_key, retain_key, forget_key = jax.random.split(key, 3)
    weights = jnp.where(retain['mask'] > 0, 0.0, -jnp.inf)
    drawn = jax.random.categorical(draw_key, weights, shape=forget['mask'].shape)
    unassociated = {**forget, other: retain[other][drawn]}
    kept, collections = base.forward(model, params, state.collections, retain, key=retain_key)
    gone, collections = base.forward(model, params, collections, forget, key=forget_key)
    teacher = lambda inputs: jax.lax.stop_gradient(
        model.apply(frozen['teacher'], inputs, train=False)[0])
    apart, before = teacher(unassociated), teacher(forget)
    terms = {'decoupling': _distance(gone['features'], apart['features'], forget['mask']),
             'retention': _distance(kept['features'], teacher(retain)['features'], retain['mask']),
             'unimodal': sum(_distance(gone[name], before[name], forget['mask'])
                             for name in ('image_embedding', f'{other}_embedding'))}
    return sum(terms.values()), (terms, collections)

  def init(key, variables):
    return base.initial_state(key, variables, tx), {'teacher': base.copied(dict(variables))}

  phase = types.Phase('unlearn', base.gradient_step(objective, tx), steps, 'pair')
  return types.Method(init, (phase,), base.export)


def _distance(student: jax.Array, teacher: jax.Array, weights: jax.Array) -> jax.Array:
  """Mean of squares over [B, d], records weighted by [B]; 0 if none counts."""
  rows = jnp.mean(jnp.square(student - teacher), axis=1)
  return jnp.sum(weights * rows) / jnp.maximum(jnp.sum(weights), 1.0)
