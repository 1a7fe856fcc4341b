"""Federated unlearning from what the server has stored: FedEraser, FedRecovery, PGA."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unlearn_jax import types
from unlearn_jax.losses import federated as algebra
from unlearn_jax.methods import base
from unlearn_jax.methods import fed_clients
from unlearn_jax.methods import federated
from unlearn_jax.models import lora


def fed_eraser(model: types.Model, *, roster, replay_rounds: int = 10, calibration: float = 0.5,
               recover_rounds: int = 5, optimizer: str = 'adamw', learning_rate: float = 1e-4,
               weight_decay: float = 0.01) -> types.Method:
  """Replays training from theta^0 without the clients that left: stored lengths, new directions.

  Of the T stored rounds every dt-th, `dt = floor(T / replay_rounds)`, is replayed: the retained
  clients train a few local steps from the present theta, their mean update is u, the mean of what the
  same clients sent in the stored round is s, and for each layer l `theta_l <- theta_l + ||s_l|| u_l /
  ||u_l||`; a layer is one factor, B or A, of one adapted matrix. In the first round theta is theta^0,
  where s itself needs no calibration: `theta <- theta + s`. Then `recover_rounds` rounds of FedAvg.

  Source: Liu et al. 2021 (FedEraser) in the form of its code, which averages over clients first and
  then calibrates by layers. Ours: s is the difference from what was sent out in its own round, which
  the code takes from the model of the next one; weights by numbers of pairs; recovery.

  Args:
    model: two towers with adapters, see `models.lora.adapted`.
    roster: of the clients, of which one or more leave.
    replay_rounds: rounds replayed, at least 1.
    calibration: share of the local steps of a round that calibrating clients take, in (0, 1].
    recover_rounds: of FedAvg on retained pairs afterwards.
    optimizer: of the clients, `'adamw'` or `'sgd'`, begun anew in every round.
    learning_rate: of the clients.
    weight_decay: decoupled.

  Raises:
    ValueError: a setting out of range, nobody leaves; on init, variables without an adapter or
      history, a history that does not reach back to the first round or is shorter than the replay.
  """
  federated.check_rounds('fed_eraser', replay_rounds=replay_rounds, recover_rounds=recover_rounds)
  base.check_range('fed_eraser', replay_rounds=(replay_rounds, 1, math.inf),
                   calibration=(calibration, 1e-6, 1))
  stay = np.ones(len(roster.sizes), np.float32)
  stay[fed_clients.leaving('fed_eraser', roster)] = 0.0
  tx = federated.optimizer('fed_eraser', optimizer, learning_rate, weight_decay)

  def step(state, frozen, batch):
    del frozen
    federation = state.collections['federation']
    data = base.fields(batch, federated.CLIENTS, 'fed_eraser')
    few = math.ceil(calibration * data['mask'].shape[1])
    data = {name: leaf if name in federated.PER_CLIENT else leaf[:, :few]
            for name, leaf in data.items()}
    found = federated.gather(federated.contrastive(model, state), tx, state.params['adapter'], data)
    slot = state.step * (federation['rounds'] // replay_rounds) % federation['taken'].shape[1]
    at = lambda ring: jax.lax.dynamic_index_in_dim(ring, slot, axis=1, keepdims=False)
    stored, _ = federated.average({branch: at(ring) for branch, ring in federation['updates'].items()},
                                  at(federation['taken']) * federation['weight'] * stay)
    layers = lambda vectors: lora.unflatten(model, {**federated.export(state), 'adapter': vectors})
    calibrated = jax.tree.map(_as_long, layers(found.mean), layers(stored))
    moved = {branch: jnp.where(state.step == 0, stored[branch], lora.flatten(factors))
             for branch, factors in calibrated.items()}
    return federated.added(state, moved), found.metrics

  def init(key, variables):
    federation = fed_clients.history(variables, 'fed_eraser')
    _check_complete(federation, replay_rounds)
    state = federated.initial_state(key, variables)
    return state.replace(params={'adapter': base.copied(dict(federation['start']))}), {}

  recover = federated.rounds_phase(model, tx, recover_rounds, learning_rate=learning_rate,
                                   wanted_by='fed_eraser')
  return types.Method(init, (types.Phase('replay', step, replay_rounds, 'retain'), recover),
                      federated.export)


def _as_long(direction: types.Array, length: types.Array) -> types.Array:
  """`||length|| direction / ||direction||`; 0 without a direction."""
  norm = jnp.linalg.norm(direction)
  return jnp.where(norm > 0, jnp.linalg.norm(length) / jnp.where(norm > 0, norm, 1.0), 0.0) * direction


def _check_complete(federation, replay_rounds: int) -> None:
  kept = federation['taken'].shape[1]
  if not fed_clients.known(federation['rounds']):
    return
  rounds = int(federation['rounds'])
  if rounds > kept:
    raise ValueError(f'fed_eraser replays training from its first round, but of {rounds} rounds the '
                     f'history holds the last {kept}; train with history={rounds}')
  if replay_rounds > rounds:
    raise ValueError(f'fed_eraser cannot replay {replay_rounds} of {rounds} rounds of training; give '
                     f'replay_rounds={rounds} or less')


def fed_recovery(model: types.Model, *, roster, noise: float = 0.0, recover_rounds: int = 10,
                 optimizer: str = 'adamw', learning_rate: float = 1e-4,
                 weight_decay: float = 0.01) -> types.Method:
  """Subtracts what the leaving clients have added: `theta <- theta^T - sum_t p_f^t delta_f^t + xi`.

  p_f^t is f's share of the average in round t, and `xi ~ N(0, noise^2 I)`, seeded from the run's
  key. Then `recover_rounds` rounds of FedAvg. Rounds that have left the history cannot be taken out,
  and later updates of others, which answered to f's, stay as they are.

  Source: Zhang et al. 2023 (FedRecovery), which removes a weighted sum of gradient residuals and
  calibrates its noise to a privacy budget; the weights p, a standard deviation given by hand and the
  recovery are ours. Without noise it is plain subtraction.

  Args:
    model: two towers with adapters, see `models.lora.adapted`.
    roster: of the clients, of which one or more leave.
    noise: standard deviation of each coordinate of xi.
    recover_rounds: of FedAvg on retained pairs afterwards.
    optimizer: of the clients, `'adamw'` or `'sgd'`, begun anew in every round.
    learning_rate: of the clients.
    weight_decay: decoupled.

  Raises:
    ValueError: a setting out of range, nobody leaves; on init, variables without an adapter or
      history.
  """
  federated.check_rounds('fed_recovery', recover_rounds=recover_rounds)
  base.check_range('fed_recovery', noise=(noise, 0, math.inf))
  clients = fed_clients.leaving('fed_recovery', roster)
  tx = federated.optimizer('fed_recovery', optimizer, learning_rate, weight_decay)

  def init(key, variables):
    federation = fed_clients.history(variables, 'fed_recovery')
    state = federated.initial_state(key, variables)
    share = fed_clients.shares(federation)[clients]
    noise_key = jax.random.fold_in(key, 0)
    left = {}
    for number, (branch, vector) in enumerate(state.params['adapter'].items()):
      sent = jnp.einsum('fh,fhp->p', share, federation['updates'][branch][clients],
                        precision=jax.lax.Precision.HIGHEST)
      drawn = jax.random.normal(jax.random.fold_in(noise_key, number), vector.shape, vector.dtype)
      left[branch] = vector - sent + noise * drawn
    return state.replace(params={'adapter': left}), {}

  recover = federated.rounds_phase(model, tx, recover_rounds, learning_rate=learning_rate,
                                   wanted_by='fed_recovery')
  return types.Method(init, (recover,), federated.export)


def pga(model: types.Model, *, example: types.Inputs, roster, epochs: int = 5,
        forget_learning_rate: float = 0.01, momentum: float = 0.9, clip: float = 5.0,
        radius: float = 1 / 3, stop_distance: float = 2.2, recover_rounds: int = 5,
        optimizer: str = 'adamw', learning_rate: float = 1e-4,
        weight_decay: float = 0.01) -> types.Method:
  """Projected gradient ascent of the client that leaves, around the mean of the others' models.

  With theta_f the last local model of f and p_f its share of that round's average, the reference is
  `w = (theta^T - p_f theta_f) / (1 - p_f)`, for equal clients `(K theta^T - theta_f) / (K - 1)`.
  From w, f climbs its InfoNCE by SGD with momentum and clipped gradients, after every step projected
  onto the ball `||theta - w||^2 <= radius * mean_j ||w - a_j||^2` over ten fresh adapters a_j, and
  stops once `||theta - theta_f||^2 > stop_distance`. Norms are of both branches together. Then come
  `recover_rounds` rounds of FedAvg without f.

  Source: Halimi et al. 2022 and its code, whence the defaults of ascent; there an adapter is a whole
  small network, and 2.2 belongs to that. Ours: shares p, which its code takes to be equal, momentum
  begun anew in every epoch, and f's last round where f took no part in the very last.

  Args:
    model: two towers with adapters, see `models.lora.adapted`.
    example: inputs of any batch size, for shapes.
    roster: of the clients, of which one leaves.
    epochs: passes of f over its pairs, each the local steps of one round.
    forget_learning_rate: of f.
    momentum: of f, in [0, 1).
    clip: bound on the norm of f's gradients.
    radius: share of the mean squared distance to fresh adapters.
    stop_distance: squared distance from theta_f at which f stops.
    recover_rounds: of FedAvg on retained pairs afterwards.
    optimizer: of the recovering clients, `'adamw'` or `'sgd'`, begun anew in every round.
    learning_rate: of the recovering clients.
    weight_decay: of the recovering clients, decoupled.

  Raises:
    ValueError: a setting out of range, other than one client leaves; on init, variables without an
      adapter or history, a history in which that client takes no part, or is alone.
  """
  federated.check_rounds('pga', epochs=epochs, recover_rounds=recover_rounds)
  base.check_range('pga', forget_learning_rate=(forget_learning_rate, 0, math.inf),
                   momentum=(momentum, 0, 0.999), clip=(clip, 0, math.inf),
                   radius=(radius, 0, math.inf), stop_distance=(stop_distance, 0, math.inf))
  clients = fed_clients.leaving('pga', roster)
  if clients.size != 1:
    raise ValueError(f'pga unlearns one client at a time, {clients.size} leave: {clients.tolist()}')
  tx = federated.optimizer('pga', optimizer, learning_rate, weight_decay)
  climbing = optax.chain(optax.clip_by_global_norm(clip),
                         optax.sgd(forget_learning_rate, momentum=momentum or None))

  def step(state, frozen, batch):
    loss = federated.contrastive(model, state)
    found = federated.gather(
        lambda adapter, inputs: -loss(adapter, inputs),
        _stopping(climbing, frozen['local'], stop_distance), state.params['adapter'],
        fed_clients.owned(batch, clients, 'pga'),
        after=lambda adapter: _in_ball(adapter, frozen['reference'], frozen['radius']))
    state = federated.added(state, found.mean)
    return state, {**found.metrics,
                   'distance': squared_distance(state.params['adapter'], frozen['local'])}

  def init(key, variables):
    federation = fed_clients.history(variables, 'pga')
    state = federated.initial_state(key, variables)
    local, share = last_local(federation, state.params['adapter'], int(clients[0]))
    if fed_clients.known(share) and not 0 < share < 1:
      raise ValueError(f'pga needs the last model of client {clients[0]} beside those of others, but '
                       'in the stored rounds it ' + ('was alone' if share else 'took no part'))
    reference = {branch: (vector - share * local[branch]) / (1 - share)
                 for branch, vector in state.params['adapter'].items()}
    fresh = fed_clients.fresh_adapter(model, example)
    drawn = [squared_distance(reference, fresh(jax.random.fold_in(key, number)))
             for number in range(10)]
    frozen = {'reference': reference, 'local': local,
              'radius': jnp.sqrt(radius * jnp.mean(jnp.stack(drawn)))}
    return state.replace(params={'adapter': base.copied(reference)}), frozen

  recover = federated.rounds_phase(model, tx, recover_rounds, learning_rate=learning_rate,
                                   wanted_by='pga')
  return types.Method(init, (types.Phase('ascend', step, epochs), recover), federated.export)


def squared_distance(one: federated.Adapter, other: federated.Adapter) -> types.Array:
  """Of both branches together, scalar."""
  return sum(jnp.sum(jnp.square(one[branch] - other[branch])) for branch in federated.BRANCHES)


def last_local(federation, adapter: federated.Adapter, client: int
               ) -> tuple[federated.Adapter, types.Array]:
  """The client's last local model in the stored rounds, {branch: [P]}, and its share there.

  Args:
    federation: the history.
    adapter: theta^T, {branch: [P]}.
    client: whose model.

  Returns:
    theta^t + delta^t for the client's last round t, and its share of that round's average; the share
    is 0 if it took no part in any.
  """
  share, age = fed_clients.shares(federation), fed_clients.ages(federation)
  taken = federation['taken'][client] > 0
  last = jnp.argmin(jnp.where(taken, age, age.size))
  local = {branch: sent[last] + federation['updates'][branch][client, last]
           for branch, sent in fed_clients.sent_out(federation, adapter).items()}
  return local, share[client, last]


def _stopping(tx: optax.GradientTransformation, local: federated.Adapter, distance: float
              ) -> optax.GradientTransformation:
  """`tx`, which moves nothing once the squared distance from `local` is beyond `distance`."""

  def update(grads, state, params):
    updates, state = tx.update(grads, state, params)
    go_on = squared_distance(params, local) <= distance
    return jax.tree.map(lambda value: jnp.where(go_on, value, 0.0), updates), state

  return optax.GradientTransformation(tx.init, update)


def _in_ball(adapter: federated.Adapter, center: federated.Adapter, radius: types.Array
             ) -> federated.Adapter:
  """The nearest adapter with `||adapter - center|| <= radius`, both branches together."""
  joined = [jnp.concatenate([one[branch] for branch in federated.BRANCHES])
            for one in (adapter, center)]
  inside = algebra.project_on_ball(*joined, radius=radius)
  cut = adapter[federated.BRANCHES[0]].size
  return dict(zip(federated.BRANCHES, (inside[:cut], inside[cut:])))
