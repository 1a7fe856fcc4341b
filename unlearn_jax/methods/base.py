"""The pieces that methods are made of: gradient steps, path rules, optimizers, states."""

from collections.abc import Callable, Mapping, Sequence
import functools

import jax
import jax.numpy as jnp
import optax

from unlearn_jax import types
from unlearn_jax.losses import classification
from unlearn_jax.models import surgery

Rules = Sequence[tuple[str, str]]


def by_path(rules: Rules, tree: types.PyTree) -> types.PyTree:
  """Labels every leaf of `tree` with the value of the first rule whose regex matches its path.

  Args:
    rules: `(regex, label)` pairs; a regex must match the whole `/`-joined path, first match wins.
    tree: nested dicts, for instance `state.params` (paths start with `model/`).

  Returns:
    A tree of labels with the structure of `tree`.

  Raises:
    ValueError: a rule that matches no path, or a path that no rule matches; both list names.
  """
  masks = [jax.tree.leaves(surgery.match(tree, pattern)) for pattern, _ in rules]
  labels = []
  for index, name in enumerate(surgery.paths(tree)):
    label = next((label for mask, (_, label) in zip(masks, rules) if mask[index]), None)
    if label is None:
      raise ValueError(f'no path rule matches parameter {name!r}; end the rules with (".*", LABEL)')
    labels.append(label)
  return jax.tree.structure(tree).unflatten(labels)


def trainable(tx: optax.GradientTransformation, rules: Rules) -> optax.GradientTransformation:
  """Applies `tx` where the rules say `'train'` and leaves the rest bitwise unchanged.

  Frozen leaves get zero updates, so they escape weight decay as well, and XLA drops their dead
  gradients.

  Args:
    tx: the optimizer of the trained leaves.
    rules: `(regex, 'train' | 'freeze')` pairs, see `by_path`.

  Returns:
    The partitioned optimizer.
  """
  unknown = {label for _, label in rules} - {'train', 'freeze'}
  if unknown:
    raise ValueError(f'path rules say {sorted(unknown)}; a label is "train" or "freeze"')
  return optax.multi_transform({'train': tx, 'freeze': optax.set_to_zero()},
                               functools.partial(by_path, rules))


def gradient_step(objective: Callable, tx: optax.GradientTransformation) -> types.StepFn:
  """A step that descends `objective` with `tx`; most methods need only this.

  Args:
    objective: `(params, *, state, frozen, batch, key) -> (loss, (metrics, collections))`; `state`
      is read-only context.
    tx: an optax optimizer.

  Returns:
    `step(state, frozen, batch) -> (state, metrics)`; metrics hold `loss` too.
  """

  def step(state: types.TrainState, frozen: types.PyTree, batch: types.Batch):
    key = jax.random.fold_in(state.key, state.step)
    fn = functools.partial(objective, state=state, frozen=frozen, batch=batch, key=key)
    (loss, (metrics, collections)), grads = jax.value_and_grad(fn, has_aux=True)(state.params)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    state = state.replace(
        step=state.step + 1, params=params, collections=collections, opt_state=opt_state)
    return state, {**metrics, 'loss': loss}

  return step


def fields(batch: types.Batch, role: str, wanted_by: str) -> types.Inputs:
  """One role of a batch, or an error that says who wanted it and what was there."""
  if role not in batch:
    raise ValueError(f'{wanted_by} wants role {role!r}, the batch has {sorted(batch)}; '
                     'check which stream feeds this phase')
  return batch[role]


def forward(model: types.Model, params: Mapping, collections: Mapping, inputs: types.Inputs, *,
            key: types.Array | None = None, train: bool = True):
  """Runs the model under `params['model']`; returns `(outputs, collections)`."""
  rngs = {'dropout': key} if train and key is not None else None
  outputs, variables = model.apply(
      {'params': params['model'], **collections}, inputs, train=train, rngs=rngs)
  return outputs, {name: tree for name, tree in variables.items() if name != 'params'}


def accuracy(logits: types.Array, inputs: types.Inputs) -> tuple[types.Array, types.Array]:
  """Training accuracy of a batch as (sum, count), padding excluded."""
  hits = classification.accuracy(logits, inputs['label']) * inputs['mask']
  return jnp.sum(hits), jnp.sum(inputs['mask'])


def supervised(model: types.Model, role: str, *, wanted_by: str, train: bool = True) -> Callable:
  """The objective CE(y, model(x)) over one role of the batch."""

  def objective(params, *, state, frozen, batch, key):
    del frozen
    inputs = fields(batch, role, wanted_by)
    outputs, collections = forward(model, params, state.collections, inputs, key=key, train=train)
    loss = classification.cross_entropy(outputs['logits'], inputs['label'], where=inputs['mask'])
    return loss, ({'accuracy': accuracy(outputs['logits'], inputs)}, collections)

  return objective


def optimizer(name: str, learning_rate, *, momentum: float = 0.9, weight_decay: float = 0.0,
              steps: int | None = None, schedule: str = 'constant') -> optax.GradientTransformation:
  """SGD or Adam as PyTorch defines them: L2 decay enters the gradient before momentum.

  Args:
    name: `'sgd'` or `'adam'`.
    learning_rate: a float, or an optax schedule (then `schedule` must stay `'constant'`).
    momentum: of SGD.
    weight_decay: L2 coefficient, on every trained parameter.
    steps: length of the schedule.
    schedule: `'constant'` or `'cosine'` (to zero over `steps`).

  Raises:
    ValueError: unknown name or schedule, or a cosine without its length.
  """
  if schedule == 'cosine':
    if not steps:
      raise ValueError('a cosine schedule needs steps >= 1')
    learning_rate = optax.cosine_decay_schedule(learning_rate, steps)
  elif schedule != 'constant':
    raise ValueError(f"schedule is 'constant' or 'cosine', got {schedule!r}")
  if name == 'sgd':
    core = optax.sgd(learning_rate, momentum=momentum or None)
  elif name == 'adam':
    core = optax.adam(learning_rate)
  else:
    raise ValueError(f"optimizer is 'sgd' or 'adam', got {name!r}")
  return optax.chain(optax.add_decayed_weights(weight_decay), core) if weight_decay else core


def initial_state(key: types.Array, variables: types.Variables, tx: optax.GradientTransformation, *,
                  learned: Mapping[str, types.PyTree] | None = None,
                  extra: types.PyTree | None = None,
                  signals: Mapping[str, float] | None = None) -> types.TrainState:
  """A state that starts from `variables`, at step 0; `learned` are the trees beside the model."""
  params = {'model': variables['params'], **(learned or {})}
  return types.TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      collections={name: tree for name, tree in variables.items() if name != 'params'},
      opt_state=tx.init(params),
      key=key,
      extra={} if extra is None else extra,
      signals={name: jnp.asarray(value, jnp.float32) for name, value in (signals or {}).items()})


def export(state: types.TrainState) -> types.Variables:
  """The model's variables, as evaluators and users receive them."""
  return {'params': state.params['model'], **state.collections}


def copied(tree: types.PyTree) -> types.PyTree:
  """A copy for `frozen`: the state's own buffers are donated to the first step."""
  return jax.tree.map(jnp.copy, tree)


def never(signals: Mapping[str, float]) -> bool:
  """`until` of a phase that no early-stopping rule may end."""
  del signals
  return False


def total_steps(epochs: float, steps_per_epoch: int) -> int:
  """Whole steps in `epochs` (fractions allowed), at least one."""
  return max(1, round(epochs * steps_per_epoch))


def check_range(method: str, **values) -> None:
  """Checks factory arguments given as `name=(value, low, high)`, bounds included.

  Raises:
    ValueError: names the argument, its value and its range; NaN lies outside any range.
  """
  for name, (value, low, high) in values.items():
    if not low <= value <= high:
      raise ValueError(f'{method}: {name} must lie in [{low}, {high}], got {value}')
