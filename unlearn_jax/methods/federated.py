"""The pieces that federated methods are made of: local updates, averages, rounds, locks."""

from collections.abc import Callable, Mapping
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from unlearn_jax import types
from unlearn_jax.losses import ease as losses
from unlearn_jax.losses import subspace
from unlearn_jax.methods import base
from unlearn_jax.methods import image_text

BRANCHES = ('image', 'text')
CLIENTS, FORGET = 'clients', 'forget'  # roles of a batch
PER_CLIENT = ('weight', 'part')  # fields [K]; all others are [K, S, B, ...]

Adapter = Mapping[str, types.Array]  # {'image': [P_image], 'text': [P_text]}, one flat vector each
Objective = Callable[[Adapter, types.Inputs], types.Array]  # (adapter, one batch of pairs) -> loss


class Gathered(NamedTuple):
  """What the server holds once the clients of a round have answered.

  Attributes:
    deltas: {branch: [K, P]}, local adapter minus the one that was sent out; as the clients sent
      them, so a failed one may hold anything.
    mean: {branch: [P]}, their weighted mean over the clients that count.
    used: bool [K], clients that took part, have data and did not fail.
    metrics: `loss`, the mean local loss, and `failed`, the number of failed clients.
  """

  deltas: Adapter
  mean: Adapter
  used: types.Array
  metrics: types.Metrics


def initial_state(key: types.Array, variables: types.Variables, *,
                  extra: types.PyTree | None = None) -> types.TrainState:
  """A state whose parameters are the adapter alone, at step 0.

  The backbone and all other collections (`adapter_fixed`, `federation`, `lock`) are collections of
  the state, because `export` sees nothing else; steps hand them on as they are, and a donated
  buffer that is handed on costs neither time nor memory. There is no optimizer state: a client's
  optimizer begins anew in every round.

  Args:
    key: typed PRNG key.
    variables: of a model that `models.lora.adapted` made.
    extra: owned by the method.

  Raises:
    ValueError: variables without an adapter.
  """
  if 'adapter' not in variables:
    raise ValueError(f'a federated method trains the collection "adapter", the variables have '
                     f'{sorted(variables)}; wrap the model with models.lora.adapted')
  return types.TrainState(
      step=jnp.zeros((), jnp.int32),
      params={'adapter': dict(variables['adapter'])},
      collections={name: tree for name, tree in variables.items() if name != 'adapter'},
      opt_state=(),
      key=key,
      extra={} if extra is None else extra)


def export(state: types.TrainState) -> types.Variables:
  """The model's variables, as evaluators and users receive them."""
  return {**state.collections, 'adapter': state.params['adapter']}


def forward(model: types.Model, state: types.TrainState, adapter: Adapter,
            inputs: types.Inputs) -> Mapping[str, types.Array]:
  """The outputs of both towers under `adapter`, and the frozen parameters of `state`.

  The towers run as in evaluation: clients train adapters only, without dropout, and batch
  statistics stay as they are.
  """
  given = {name: state.collections[name] for name in ('params', 'adapter_fixed')
           if name in state.collections}
  outputs, _ = model.apply({**given, 'adapter': adapter},
                           {name: inputs[name] for name in BRANCHES}, train=False)
  return outputs


def contrastive(model: types.Model, state: types.TrainState) -> Objective:
  """The local objective of every client: CLIP's symmetric InfoNCE among the rows that count."""

  def objective(adapter, inputs):
    outputs = forward(model, state, adapter, inputs)
    return losses.local_loss(outputs['image_embedding'], outputs['text_embedding'],
                             jax.lax.stop_gradient(outputs['logit_scale']), where=inputs['mask'])

  return objective


def optimizer(method: str, name: str, learning_rate: float, weight_decay: float
              ) -> optax.GradientTransformation:
  """The clients' optimizer: `image_text.optimizer` at a constant rate, settings checked.

  Raises:
    ValueError: a rate or decay out of range, an unknown name.
  """
  base.check_range(method, learning_rate=(learning_rate, 0, math.inf),
                   weight_decay=(weight_decay, 0, math.inf))
  return image_text.optimizer(name, learning_rate, weight_decay=weight_decay)


def check_rounds(method: str, **rounds: int) -> None:
  """Numbers of rounds are whole and not negative.

  Raises:
    ValueError: names the setting and its value.
  """
  for name, value in rounds.items():
    if value != int(value) or value < 0:
      raise ValueError(f'{method}: {name} must be a whole number of at least 0, got {value}')


def local_update(objective: Objective, tx: optax.GradientTransformation, adapter: Adapter,
                 data: types.Inputs, *, after: Callable[[Adapter], Adapter] | None = None
                 ) -> tuple[Adapter, types.Array]:
  """What every client sends after its local steps: `delta_k = theta_k - theta`.

  A step with fewer than two counting rows has no negatives; it changes neither the client's adapter
  nor its optimizer. Padded rows are overwritten by the first counting row before the towers see
  them, so that padding may hold anything: the gradient of a masked NaN is NaN.

  Args:
    objective: `(adapter, inputs) -> loss` of one local batch, fields [B, ...] and `mask` [B].
    tx: the clients' optimizer, begun anew.
    adapter: theta, as sent to every client; {branch: [P]}.
    data: a role of the batch: fields [K, S, B, ...], S local steps, with `mask` [K, S, B].
    after: applied after every local optimizer step (a lock's proximal step).

  Returns:
    Deltas {branch: [K, P]}, and the mean loss over each client's steps, [K].
  """
  if answered(data):
    return {branch: data[branch] for branch in BRANCHES}, data['loss']

  def step(carry, inputs):
    theta, opt_state = carry
    inputs, active = _filled(inputs)
    loss, grads = jax.value_and_grad(objective)(theta, inputs)
    updates, moved = tx.update(grads, opt_state, theta)
    stepped = optax.apply_updates(theta, updates)
    stepped = stepped if after is None else after(stepped)
    carry = jax.tree.map(lambda new, old: jnp.where(active, new, old), (stepped, moved), carry)
    return carry, (jnp.where(active, loss, 0.0), active)

  def client(rows):
    (theta, _), (values, active) = jax.lax.scan(step, (adapter, tx.init(adapter)), rows)
    delta = jax.tree.map(jnp.subtract, theta, adapter)
    return delta, jnp.sum(values) / jnp.maximum(jnp.sum(active), 1)

  return jax.vmap(client)(_rows(data))


def gradients(objective: Objective, adapter: Adapter, data: types.Inputs
              ) -> tuple[Adapter, types.Array]:
  """What every client sends if it is asked for its gradient: the mean over its local batches.

  Args:
    objective: as `local_update`.
    adapter: theta, {branch: [P]}.
    data: as `local_update`; steps with fewer than two counting rows count in no mean.

  Returns:
    Gradients {branch: [K, P]}, and the mean loss over each client's batches, [K].
  """
  if answered(data):
    return {branch: data[branch] for branch in BRANCHES}, data['loss']

  def add(total, inputs):
    inputs, active = _filled(inputs)
    found = jax.value_and_grad(objective)(adapter, inputs)
    return jax.tree.map(lambda a, b: a + jnp.where(active, b, 0.0), total, found), active

  def client(rows):
    zero = jnp.zeros((), adapter['image'].dtype), jax.tree.map(jnp.zeros_like, adapter)
    total, active = jax.lax.scan(add, zero, rows)
    loss, grads = jax.tree.map(lambda leaf: leaf / jnp.maximum(jnp.sum(active), 1), total)
    return grads, loss

  return jax.vmap(client)(_rows(data))


def answered(data: types.Inputs) -> bool:
  """Whether a role holds what clients elsewhere have answered, instead of the pairs to work on.

  Such a role has `image` [K, P] and `text` [K, P], the updates or gradients that were asked for,
  `loss` [K], `weight` [K] and `part` [K]. A step is then the server's half of a round.
  """
  return 'loss' in data


def _rows(data: types.Inputs) -> types.Inputs:
  return {name: leaf for name, leaf in data.items() if name not in PER_CLIENT}


def _filled(inputs: types.Inputs) -> tuple[types.Inputs, types.Array]:
  """A batch whose padding repeats its first counting row, and whether it has rows enough."""
  counting = inputs['mask'] > 0
  first = jnp.argmax(counting)
  filled = {name: leaf if name == 'mask' else jnp.where(
      counting.reshape((-1,) + (1,) * (leaf.ndim - 1)), leaf, leaf[first])
            for name, leaf in inputs.items()}
  return filled, jnp.sum(counting) >= 2


def average(deltas: Adapter, weight: types.Array) -> tuple[Adapter, types.Array]:
  """FedAvg's `sum_k w_k delta_k / sum_k w_k` over the clients that have not failed.

  McMahan et al. 2017. A client of positive weight with any value that is not finite, in either
  branch, has failed: its update is dropped whole and the weights are renormalised over the others.
  Of `full` adapters this averages B and A apart, which is not the average of the products BA; of
  `ffa` adapters both are the same.

  Args:
    deltas: {branch: [K, P]}.
    weight: [K], not negative; 0 leaves a client out, whatever it holds.

  Returns:
    The mean {branch: [P]}, 0 if no client counts, and the failed clients, bool [K].
  """
  finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(deltas[branch]), axis=1)
                              for branch in BRANCHES]), axis=0)
  used = (weight > 0) & finite
  kept = jnp.where(used, weight, 0.0)
  share = kept / jnp.maximum(jnp.sum(kept), jnp.finfo(kept.dtype).tiny)
  mean = {branch: jnp.einsum('k,kp->p', share, jnp.where(used[:, None], deltas[branch], 0.0),
                             precision=jax.lax.Precision.HIGHEST) for branch in BRANCHES}
  return mean, (weight > 0) & ~finite


def gather(objective: Objective, tx: optax.GradientTransformation, adapter: Adapter,
           data: types.Inputs, *, after: Callable[[Adapter], Adapter] | None = None) -> Gathered:
  """Local updates of all clients and their average; see `local_update` and `collected`."""
  return collected(*local_update(objective, tx, adapter, data, after=after), data)


def collected(deltas: Adapter, loss: types.Array, data: types.Inputs) -> Gathered:
  """The average of updates {branch: [K, P]} by `weight` times `part`, and mean losses [K]."""
  weight = data['weight'] * data['part']
  mean, failed = average(deltas, weight)
  used = (weight > 0) & ~failed
  metrics = {'loss': (jnp.sum(jnp.where(used, loss, 0.0)), jnp.sum(used)),
             'failed': jnp.sum(failed)}
  return Gathered(deltas, mean, used, metrics)


def recorded(rings: Adapter, found: Gathered, place: types.Array) -> Adapter:
  """Histories {branch: [K, H, P]} with a round's updates in slot `place % H`.

  Clients that did not take part, or failed, leave zeros there.
  """
  return {branch: jax.lax.dynamic_update_index_in_dim(
      ring, jnp.where(found.used[:, None], found.deltas[branch], 0.0), place % ring.shape[1], axis=1)
          for branch, ring in rings.items()}


def lock(state: types.TrainState, learning_rate: float) -> Callable[[Adapter], Adapter] | None:
  """The proximal step of the state's collection `lock`, to run after every local step.

  `losses.ease.forget_lock` in every locked branch; a branch whose lock has no `basis` is held in
  all directions alike (the proximal term of FedProx, Li et al. 2020).

  Args:
    state: its collection `lock`, if there is one, holds per branch `center` [P], `strength` [] and
      `basis`, [P, q] or the `subspace.Sides` of its matrices.
    learning_rate: of the clients' optimizer, the step size of the proximal step.

  Returns:
    `adapter -> adapter`, or None if nothing is locked.
  """
  found = state.collections.get('lock')
  if found is None:
    return None

  def after(adapter):
    return {branch: losses.forget_lock(
        vector, found[branch]['center'], found[branch].get('basis'), step_size=learning_rate,
        strength=found[branch]['strength']) for branch, vector in adapter.items()}

  return after


def locked_norm(held: Mapping[str, types.Array], vector: types.Array) -> types.Array:
  """The norm of a vector [P] along the locked directions of a branch."""
  return jnp.linalg.norm(
      subspace.coordinates(vector, held['basis']) if 'basis' in held else vector)


def drift(state: types.TrainState) -> types.Metrics:
  """`drift/BRANCH`, how far the adapter stands from its lock's centre in the locked directions."""
  return {f'drift/{branch}': locked_norm(held, state.params['adapter'][branch] - held['center'])
          for branch, held in state.collections.get('lock', {}).items()}


def added(state: types.TrainState, displacement: Adapter) -> types.TrainState:
  """The state one round later, its adapter moved by `displacement`."""
  moved = {branch: state.params['adapter'][branch] + displacement[branch] for branch in BRANCHES}
  return state.replace(step=state.step + 1, params={**state.params, 'adapter': moved})


def round_step(model: types.Model, tx: optax.GradientTransformation, *, learning_rate: float,
               wanted_by: str,
               server: Callable[[types.TrainState, Adapter], Adapter] | None = None
               ) -> types.StepFn:
  """A round of FedAvg on role `clients`, under the state's lock if it has one.

  Metrics: those of `gather` and, under a lock, of `drift`.

  Args:
    model: two towers with adapters.
    tx: the clients' optimizer.
    learning_rate: of `tx`.
    wanted_by: named if the batch lacks the role.
    server: `(state, mean update) -> displacement`; the mean update itself by default.
  """

  def step(state, frozen, batch):
    del frozen
    data = base.fields(batch, CLIENTS, wanted_by)
    found = gather(contrastive(model, state), tx, state.params['adapter'], data,
                   after=lock(state, learning_rate))
    moved = found.mean if server is None else server(state, found.mean)
    state = added(state, moved)
    return state, found.metrics | drift(state)

  return step


def rounds_phase(model: types.Model, tx: optax.GradientTransformation, rounds: int, *,
                 learning_rate: float, wanted_by: str, name: str = 'recover',
                 stream: str = 'retain',
                 server: Callable[[types.TrainState, Adapter], Adapter] | None = None,
                 enter: Callable[[types.TrainState], types.TrainState] | None = None
                 ) -> types.Phase:
  """`rounds` rounds of FedAvg as a phase; arguments as `round_step` and `types.Phase`."""
  step = round_step(model, tx, learning_rate=learning_rate, wanted_by=wanted_by, server=server)
  return types.Phase(name, step, rounds, stream, enter=enter)
