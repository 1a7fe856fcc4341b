"""Bad Teaching: the student follows an untrained teacher on D_f and the original elsewhere."""

import math

import jax
import jax.numpy as jnp

from unlearn_jax import types
from unlearn_jax.losses import baselines
from unlearn_jax.methods import base


def bad_teacher(model: types.Model, *, example: types.Inputs, retain_steps: int = 100,
                forget_steps: int = 10, epochs: float = 1.0, learning_rate: float = 1e-4,
                optimizer: str = 'adam', momentum: float = 0.9, weight_decay: float = 0.0,
                retain_share: float = 0.3, temperature: float = 1.0, schedule: str = 'constant'
                ) -> types.Method:
  """`min_θ E KL(softmax(t / T) ‖ softmax(f_θ / T))`, t the incompetent teacher's logits on D_f and
  the original's on a share of D_r.

  Source: Chundawat et al. 2023, Eq. 1, and its release: D_f and 30 % of D_r in one shuffled set,
  one epoch of Adam 1e-4; the incompetent teacher is a new network in eval mode, the student in
  train mode; the mean runs over records and classes (`losses.baselines.bad_teacher`). DLFD's own
  Bad-T is another method.

  A batch holds a retain and a forget part; their records are weighted so that the parts count as in
  that union (ours), whatever the sizes of batches and sets.

  Args:
    model: the network.
    example: inputs of any batch size, for the incompetent teacher's shapes.
    retain_steps: batches in one pass over the retained data.
    forget_steps: batches in one pass over the forget set.
    epochs: passes over the share of the retained data.
    learning_rate: of the optimizer.
    optimizer: `'adam'` or `'sgd'`.
    momentum: of SGD.
    weight_decay: L2 coefficient.
    retain_share: of the retained data that is shown in an epoch, in (0, 1].
    temperature: T.
    schedule: `'constant'` or `'cosine'`.
  """
  base.check_range('bad_teacher', learning_rate=(learning_rate, 0, math.inf),
                   epochs=(epochs, 0, math.inf), retain_share=(retain_share, 1e-6, 1),
                   temperature=(temperature, 1e-6, math.inf))
  steps = base.total_steps(epochs * retain_share, retain_steps)
  tx = base.optimizer(optimizer, learning_rate, momentum=momentum, weight_decay=weight_decay,
                      steps=steps, schedule=schedule)
  # A batch stands for its share of a pass: as many like it make up D_f, or the share of D_r.
  weights = (retain_share * retain_steps, float(forget_steps))

  def objective(params, *, state, frozen, batch, key):
    roles = [base.fields(batch, role, 'bad_teacher') for role in ('retain', 'forget')]
    inputs = {name: jnp.concatenate([role[name] for role in roles])
              for name in roles[0] if name in roles[1]}
    student, collections = base.forward(model, params, state.collections, inputs, key=key)
    competent, _ = model.apply(frozen['teacher'], inputs, train=False)
    incompetent, _ = model.apply(frozen['incompetent'], inputs, train=False)
    sizes = [len(role['mask']) for role in roles]
    is_forget = jnp.repeat(jnp.array([False, True]), jnp.array(sizes),
                           total_repeat_length=sum(sizes))
    loss = baselines.bad_teacher(
        student['logits'], competent['logits'], incompetent['logits'], is_forget,
        temperature=temperature, multi_label=inputs['label'].ndim == 2,
        where=jnp.concatenate([w * role['mask'] for w, role in zip(weights, roles)]))
    logits = jnp.split(student['logits'], (sizes[0],))
    return loss, ({'accuracy': base.accuracy(logits[0], roles[0]),
                   'accuracy_forget': base.accuracy(logits[1], roles[1])}, collections)

  def init(key, variables):
    untrained = model.init(jax.random.fold_in(key, 1), example)
    return base.initial_state(key, variables, tx), {
        'teacher': base.copied(dict(variables)), 'incompetent': untrained}

  step = base.gradient_step(objective, tx)
  return types.Method(init, (types.Phase('teach', step, steps, 'pair'),), base.export)
