"""SCRUB: a student that obeys its teacher on retained data and disobeys on the data to forget."""

import math

import jax
import jax.numpy as jnp
import optax

from unlearn_jax import types
from unlearn_jax.losses import baselines
from unlearn_jax.methods import base


def scrub(model: types.Model, *, retain_steps: int = 100, forget_steps: int = 10, epochs: int = 10,
          max_epochs: int = 3, learning_rate: float = 5e-4, optimizer: str = 'adam',
          momentum: float = 0.9, weight_decay: float = 0.1, gamma: float = 1.0, alpha: float = 0.5,
          temperature: float = 2.0, decay_epochs: tuple[int, ...] = (5, 8, 9),
          rewind: bool = False) -> types.Method:
  """Alternates max-epochs on D_f and min-epochs on D_r against a frozen teacher, the original.

  max: `min_θ −KD(f_θ, f_teacher)` on D_f, in the first `max_epochs` epochs;
  min: `min_θ γ CE(y, f_θ) + α KD(f_θ, f_teacher)` on D_r, in every epoch;
  `KD = T² KL(teacher ‖ student)`. The learning rate drops by 10 after each of `decay_epochs`.

  Source: Kurmanji et al. 2023, small-scale settings of its release; student in train mode, teacher
  in eval mode. `rewind` (SCRUB+R) exports the epoch whose forget error is closest to the final
  error on validation data, instead of the last one; it holds one snapshot of the model per epoch.

  Args:
    model: the network.
    retain_steps: batches in one pass over the retained data (a min epoch).
    forget_steps: batches in one pass over the forget set (a max epoch).
    epochs: epochs in all.
    max_epochs: how many of the first epochs begin with a max epoch.
    learning_rate: initial.
    optimizer: `'adam'` or `'sgd'`.
    momentum: of SGD.
    weight_decay: L2 coefficient.
    gamma: weight of CE.
    alpha: weight of KD in the min epochs.
    temperature: T.
    decay_epochs: epochs (from 1) after which the learning rate drops by 10.
    rewind: SCRUB+R.
  """
  base.check_range('scrub', learning_rate=(learning_rate, 0, math.inf),
                   epochs=(epochs, 1, math.inf), max_epochs=(max_epochs, 0, epochs),
                   temperature=(temperature, 1e-6, math.inf), alpha=(alpha, 0, math.inf),
                   gamma=(gamma, 0, math.inf))
  ends, done = {}, 0
  for epoch in range(1, epochs + 1):
    done += retain_steps + (forget_steps if epoch <= max_epochs else 0)
    ends[epoch] = done
  schedule = optax.piecewise_constant_schedule(
      learning_rate, {ends[epoch]: 0.1 for epoch in decay_epochs if epoch in ends})
  tx = base.optimizer(optimizer, schedule, momentum=momentum, weight_decay=weight_decay)

  def both(params, state, frozen, inputs, key):
    student, collections = base.forward(model, params, state.collections, inputs, key=key)
    teacher, _ = model.apply(frozen['teacher'], inputs, train=False)
    return student['logits'], jax.lax.stop_gradient(teacher['logits']), collections

  def maximise(params, *, state, frozen, batch, key):
    forget = base.fields(batch, 'forget', 'scrub')
    student, teacher, collections = both(params, state, frozen, forget, key)
    loss = baselines.scrub_max(student, teacher, temperature=temperature, where=forget['mask'],
                               multi_label=forget['label'].ndim == 2)
    return loss, ({'accuracy_forget': base.accuracy(student, forget)}, collections)

  def minimise(params, *, state, frozen, batch, key):
    retain = base.fields(batch, 'retain', 'scrub')
    student, teacher, collections = both(params, state, frozen, retain, key)
    loss = baselines.scrub_min(student, teacher, retain['label'], gamma=gamma, alpha=alpha,
                               temperature=temperature, where=retain['mask'])
    return loss, ({'accuracy': base.accuracy(student, retain)}, collections)

  def snapshot(state, frozen, batch):
    """Keeps this epoch's model and errors; not a training step."""
    del frozen, batch
    extra, model_now = state.extra, base.export(state)
    index = extra['count']
    extra = {
        'count': index + 1,
        'models': jax.tree.map(lambda kept, now: kept.at[index].set(now),
                               extra['models'], model_now),
        'forget_error': extra['forget_error'].at[index].set(1 - state.signals['accuracy/forget']),
        'validation_error': 1 - state.signals['accuracy/validation'],
    }
    return state.replace(step=state.step + 1, extra=extra), {}

  def init(key, variables):
    extra, signals = {}, {}
    if rewind:
      extra = {'count': jnp.zeros((), jnp.int32),
               'models': jax.tree.map(lambda x: jnp.zeros((epochs, *x.shape), x.dtype),
                                      dict(variables)),
               'forget_error': jnp.zeros((epochs,)), 'validation_error': jnp.zeros(())}
      signals = {'accuracy/forget': 0.0, 'accuracy/validation': 0.0}
    state = base.initial_state(key, variables, tx, extra=extra, signals=signals)
    return state, {'teacher': base.copied(dict(variables))}

  def export(state):
    if not rewind:
      return base.export(state)
    # Epochs not run yet are out of the race; before the first snapshot the current model stands.
    gap = jnp.abs(state.extra['forget_error'] - state.extra['validation_error'])
    gap = jnp.where(jnp.arange(epochs) < state.extra['count'], gap, jnp.inf)
    chosen = jax.tree.map(lambda kept: kept[jnp.argmin(gap)], state.extra['models'])
    finished = state.extra['count'] == epochs
    return jax.tree.map(lambda a, b: jnp.where(finished, a, b), chosen, base.export(state))

  max_step, min_step = base.gradient_step(maximise, tx), base.gradient_step(minimise, tx)
  phases = []
  for epoch in range(1, epochs + 1):
    if epoch <= max_epochs:
      phases.append(types.Phase('max', max_step, forget_steps, 'forget'))
    phases.append(types.Phase('min', min_step, retain_steps, 'retain'))
    if rewind:
      phases.append(types.Phase('snapshot', snapshot, 1, 'retain', signals={
          'accuracy/forget': 1, 'accuracy/validation': 1}))
  return types.Method(init, tuple(phases), export)
