"""DLFD: train on retained images perturbed away from the forgotten ones by optimal transport."""

import math

import jax
import jax.numpy as jnp

from unlearn_jax import types
from unlearn_jax.losses import classification
from unlearn_jax.losses import dlfd as losses
from unlearn_jax.methods import base


def dlfd(model: types.Model, *, retain_steps: int = 100, epochs: float = 1.0,
         learning_rate: float = 0.008, momentum: float = 0.9, weight_decay: float = 5e-4,
         schedule: str = 'constant', perturb_steps: int = 15, step_size: float = 0.4,
         transport_weight: float = 3.0, weight_start: float = 0.0, weight_end: float = 1.0,
         epsilon: float = 0.01, max_iterations: int = 50, threshold: float = 0.15, gate_every: int = 1,
         max_forgetting_score: float = 0.09, bounds: tuple[float, ...] | None = None,
         distancing: bool = True, class_loss: bool = True, dynamic: bool = True,
         reading: str = 'paper') -> types.Method:
  """Algorithm 1 of the paper: perturb retained images (Eq. 3), then train on them.

  While the forgetting score is at least `threshold`, each retained image takes M steps
  `x* ← x* + α sign ∇_x [ w_OT l_OT(F(x*), F(x_f)) − λ_k CE(y, θ(x*)) ]` (Eqs. 1 to 4), λ_k rising
  linearly from w0 to w1; then one SGD step on CE(y, θ(x*)). Below the threshold the step is plain
  fine-tuning; the gate can reopen.

  `reading='paper'`: F is the penultimate layer, transport is stabilised Sinkhorn between perturbed
  retained and forgotten images, train mode throughout (batch statistics of the inner passes are
  discarded: ours), no clipping unless `bounds` (ours, in image units). The gate is the balanced
  score of forgotten against validation identities, never the unseen ones.

  `reading='release'`: what the released code computes. Its transport term compares logits of the
  *unperturbed* retained batch, so it moves nothing; images are clipped to `bounds` (default
  [0, 1]) in every inner step; the first batch runs in train mode and all later ones in eval mode;
  the first gate is forced open; the score is unbalanced; the exported model is the one with the
  best validation accuracy among those whose score is at most `max_forgetting_score`, or the last
  if none qualifies. The score itself is our one-pass regression, not a 10-fold one.

  Defaults: the age task of the release, one epoch.

  Args:
    model: the network; its outputs hold `logits` and `features`.
    retain_steps: batches in one pass over the retained data.
    epochs: passes over the retained data.
    learning_rate: of SGD.
    momentum: of SGD.
    weight_decay: L2 coefficient.
    schedule: `'constant'` or `'cosine'` (to zero; ours).
    perturb_steps: M.
    step_size: α, in image units.
    transport_weight: weight of the transport loss.
    weight_start: w0, weight of the classification loss in the first step.
    weight_end: w1, in the last step.
    epsilon: entropic regularisation, absolute.
    max_iterations: of Sinkhorn.
    threshold: the gate is open while the forgetting score is at least this.
    gate_every: steps between evaluations of the gate.
    max_forgetting_score: `reading='release'` only, see above.
    bounds: (low, high) of the perturbed image, or None.
    distancing: component 1 of Table 3, the transport loss.
    class_loss: component 2, the weighted classification loss.
    dynamic: component 3, the gate; off means always open.
    reading: `'paper'` or `'release'`.

  Raises:
    ValueError: an argument out of range, or an unknown reading.
  """
  base.check_range(
      'dlfd', learning_rate=(learning_rate, 0, math.inf), epochs=(epochs, 0, math.inf),
      perturb_steps=(perturb_steps, 0, math.inf), step_size=(step_size, 0, math.inf),
      epsilon=(epsilon, 1e-6, math.inf), max_iterations=(max_iterations, 1, math.inf),
      gate_every=(gate_every, 1, math.inf), threshold=(threshold, 0, math.inf))
  if reading not in ('paper', 'release'):
    raise ValueError(f"dlfd: reading is 'paper' or 'release', got {reading!r}")
  release = reading == 'release'
  if bounds is not None and (len(bounds) != 2 or not bounds[0] < bounds[1]):
    raise ValueError(f'dlfd: bounds are (low, high) with low < high, got {bounds}')
  if release and bounds is None:
    bounds = (0.0, 1.0)
  score_name = 'forgetting_score[dlfd]' if release else 'forgetting_score'
  steps = base.total_steps(epochs, retain_steps)
  tx = base.optimizer('sgd', learning_rate, momentum=momentum, weight_decay=weight_decay,
                      steps=steps, schedule=schedule)

  def perturbed(state, retain, forget, key, train):
    """x* of Eq. 3. Only input gradients run inside the loop: weight gradients there are slow."""
    weight = losses.linear_weight(state.step, steps, start=weight_start, end=weight_end)
    inner_key = jax.random.fold_in(key, 1)

    def outputs(inputs):
      return base.forward(model, state.params, state.collections, inputs, key=inner_key,
                          train=train)[0]

    forgotten = outputs(forget)
    still = outputs(retain) if release else None

    def shown(image):
      # The release moves a copy that it never clips, and clips what the model sees: a pixel that
      # has left the bounds gets no gradient any more. In the paper's reading each step is clipped.
      return jnp.clip(image, *bounds) if release else image

    def objective(image):
      out = outputs({**retain, 'image': shown(image)})
      moved = still['logits'] if release else out['features']
      fixed = forgotten['logits'] if release else forgotten['features']
      return losses.perturbation_objective(
          moved, jax.lax.stop_gradient(fixed), out['logits'], retain['label'],
          class_weight=weight if class_loss else 0.0,
          transport_weight=transport_weight if distancing else 0.0,
          epsilon=epsilon, max_iterations=max_iterations, reading=reading,
          retain_where=retain['mask'], forget_where=forget['mask'])

    def ascend(_, image):
      return losses.ascend(image, jax.grad(objective)(image), step_size=step_size,
                           bounds=None if release else bounds)

    return shown(jax.lax.fori_loop(0, perturb_steps, ascend, retain['image']))

  def make_step(train):
    def objective(params, *, state, frozen, batch, key):
      del frozen
      retain = base.fields(batch, 'retain', 'dlfd')
      outputs, collections = base.forward(
          model, params, state.collections, retain, key=key, train=train)
      loss = classification.cross_entropy(outputs['logits'], retain['label'], where=retain['mask'])
      return loss, ({'accuracy': base.accuracy(outputs['logits'], retain)}, collections)

    descend = base.gradient_step(objective, tx)

    def step(state, frozen, batch):
      key = jax.random.fold_in(state.key, state.step)
      retain = base.fields(batch, 'retain', 'dlfd')
      forget = base.fields(batch, 'forget', 'dlfd')
      gate = state.signals[score_name] >= threshold if dynamic else jnp.asarray(True)
      if release:
        state = keep_best(state)
      # The weight gradient stays outside the conditional: XLA:CPU slows it down in control flow.
      image = jax.lax.cond(gate, lambda: perturbed(state, retain, forget, key, train),
                           lambda: retain['image'])
      state, metrics = descend(
          state, frozen, {'retain': {**retain, 'image': jax.lax.stop_gradient(image)}})
      shift = jnp.mean(jnp.abs(image - retain['image']))
      return state, {**metrics, **state.signals, 'gate': gate.astype(jnp.float32),
                     'perturbation': shift}

    return step

  def keep_best(state):
    """The release's checkpoint rule, applied to the model that the signals describe."""
    better = ((state.signals[score_name] <= max_forgetting_score)
              & (state.signals['accuracy/validation'] > state.extra['accuracy']))
    best = jax.tree.map(lambda now, kept: jnp.where(better, now, kept),
                        base.export(state), state.extra['model'])
    value = jnp.where(better, state.signals['accuracy/validation'], state.extra['accuracy'])
    return state.replace(extra={'model': best, 'accuracy': value, 'done': state.extra['done']})

  def select(state, frozen, batch):
    del frozen, batch
    state = keep_best(state)
    extra = {**state.extra, 'done': jnp.asarray(True)}
    return (state.replace(step=state.step + 1, extra=extra),
            {'accuracy_selected': extra['accuracy']})  # -1: no model qualified

  def init(key, variables):
    # 3 forces the first gate open in the release; the loop refreshes it before any other step.
    signals = {score_name: 3.0} if dynamic or release else {}
    extra = {}
    if release:
      signals['accuracy/validation'] = -1.0
      extra = {'model': base.copied(dict(variables)), 'accuracy': jnp.full((), -1.0),
               'done': jnp.asarray(False)}
    state = base.initial_state(key, variables, tx, extra=extra, signals=signals)
    return state, {}

  def export_best(state):
    # On the way the current model is what the signals must describe.
    found = state.extra['done'] & (state.extra['accuracy'] >= 0)
    return jax.tree.map(lambda best, last: jnp.where(found, best, last),
                        state.extra['model'], base.export(state))

  if not release:
    signals = {score_name: gate_every} if dynamic else {}
    phase = types.Phase('unlearn', make_step(train=True), steps, 'pair', signals=signals)
    return types.Method(init, (phase,), base.export)
  signals = {score_name: gate_every, 'accuracy/validation': gate_every}
  phases = [types.Phase('first', make_step(train=True), 1, 'pair')]
  if steps > 1:
    phases.append(types.Phase('unlearn', make_step(train=False), steps - 1, 'pair', signals=signals))
  phases.append(types.Phase('select', select, 1, 'pair', signals=signals))
  return types.Method(init, tuple(phases), export_best)
