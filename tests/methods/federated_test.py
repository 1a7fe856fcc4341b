"""Rounds of a federation against loops and NumPy: averages, masks, failures, rings, devices."""

import functools
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.methods import federation_toy as toy
from unlearn_jax.methods import federated
from unlearn_jax.methods.fed_finetune import fed_finetune
from unlearn_jax.methods.federate import federate
from unlearn_jax.train import checkpoint

SGD = {'optimizer': 'sgd', 'learning_rate': 0.2}
BRANCHES = federated.BRANCHES


def ragged(number: int = 0) -> dict[str, np.ndarray]:
  """Clients with 8, 6, 4 and 1 rows in two steps; padding is NaN."""
  role = toy.pairs(number)
  for client, (first, second) in enumerate(((4, 4), (4, 2), (4, 0), (1, 0))):
    role['mask'][client, 0, first:] = role['mask'][client, 1, second:] = 0
  for name in BRANCHES:
    role[name][role['mask'] == 0] = np.nan
  return role


def one_by_one(objective, tx, adapter, role, after=lambda adapter: adapter):
  """What `local_update` does, in Python: one client, one step, only the rows that count."""
  deltas, losses, slope = [], [], jax.jit(jax.value_and_grad(objective))
  for client in range(len(role['mask'])):
    theta, opt_state, values = adapter, tx.init(adapter), []
    for step in range(role['mask'].shape[1]):
      rows = role['mask'][client, step] > 0
      if rows.sum() < 2:
        continue
      inputs = {name: jnp.asarray(role[name][client, step][rows])
                for name in ('image', 'text', 'mask')}
      loss, grads = slope(theta, inputs)
      updates, opt_state = tx.update(grads, opt_state, theta)
      theta = after(optax.apply_updates(theta, updates))
      values.append(float(loss))
    deltas.append(jax.tree.map(jnp.subtract, theta, adapter))
    losses.append(np.mean(values) if values else 0.0)
  return jax.tree.map(lambda *leaves: np.stack(leaves), *deltas), np.asarray(losses)


def state_of(given=None):
  return federated.initial_state(jax.random.key(0), given or toy.variables())


def weighted(deltas, weight):
  return {branch: np.einsum('k,kp->p', weight / weight.sum(), np.asarray(deltas[branch]))
          for branch in BRANCHES}


class AverageTest(absltest.TestCase):

  def test_is_the_weighted_mean(self):
    rng = np.random.default_rng(0)
    deltas = {branch: rng.normal(size=(3, 5)).astype(np.float32) for branch in BRANCHES}
    mean, failed = jax.jit(federated.average)(deltas, jnp.asarray([1.0, 0.0, 3.0]))
    for branch in BRANCHES:
      np.testing.assert_allclose(mean[branch], 0.25 * deltas[branch][0] + 0.75 * deltas[branch][2],
                                 rtol=1e-6)
    self.assertFalse(np.any(failed))

  def test_a_failed_client_is_dropped_whole_and_the_weights_renormalised(self):
    rng = np.random.default_rng(0)
    deltas = {branch: rng.normal(size=(4, 5)).astype(np.float32) for branch in BRANCHES}
    deltas['text'][1, 3] = np.inf  # its picture branch is finite
    deltas['image'][3] = np.nan  # takes no part: that is no failure
    mean, failed = federated.average(deltas, jnp.asarray([1.0, 5.0, 1.0, 0.0]))
    for branch in BRANCHES:
      np.testing.assert_allclose(mean[branch], 0.5 * (deltas[branch][0] + deltas[branch][2]),
                                 rtol=1e-6)
    np.testing.assert_array_equal(failed, [False, True, False, False])

  def test_nobody_counts(self):
    deltas = {branch: jnp.full((2, 3), jnp.nan) for branch in BRANCHES}
    mean, failed = federated.average(deltas, jnp.ones(2))
    for branch in BRANCHES:
      np.testing.assert_array_equal(mean[branch], np.zeros(3))
    self.assertTrue(np.all(failed))


class LocalUpdateTest(parameterized.TestCase):

  @parameterized.parameters('sgd', 'adamw')
  def test_ragged_clients_under_masks_equal_sliced_ones_in_a_loop(self, name):
    state, role = state_of(), ragged()
    tx = federated.optimizer('test', name, 0.05, 0.1)
    objective = federated.contrastive(toy.network(), state)
    found, losses = jax.jit(functools.partial(federated.local_update, objective, tx))(
        state.params['adapter'], role)
    expected, values = one_by_one(objective, tx, state.params['adapter'], role)
    for branch in BRANCHES:
      np.testing.assert_allclose(found[branch], expected[branch], rtol=1e-4, atol=2e-6)
      self.assertGreater(np.abs(expected[branch][:3]).min(axis=0).max(), 0)
      # One row has no negatives: not even weight decay moves anything.
      np.testing.assert_array_equal(found[branch][3], 0)
    np.testing.assert_allclose(losses, values, rtol=1e-5, atol=1e-6)

  def test_gradients_are_means_over_local_batches(self):
    state, role = state_of(), ragged()
    objective = federated.contrastive(toy.network(), state)
    found, losses = jax.jit(functools.partial(federated.gradients, objective))(
        state.params['adapter'], role)
    # The update of a single step at rate 1 is the gradient of its batch, turned around.
    single = [one_by_one(objective, optax.sgd(1.0), state.params['adapter'], {
        name: leaf[:, step:step + 1] for name, leaf in role.items() if leaf.ndim > 1})
              for step in range(2)]
    steps = np.asarray([2.0, 2.0, 1.0, 1.0])  # that have rows enough; the last client's are 0
    for branch in BRANCHES:
      expected = -sum(deltas[branch] for deltas, _ in single) / steps[:, None]
      np.testing.assert_allclose(found[branch], expected, rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(losses, sum(values for _, values in single) / steps, rtol=1e-5)

  def test_one_round_against_numpy(self):
    """FedAvg of one round with gradients written by hand, in float64; client 2 does not take part."""
    role, given = toy.pairs(0), toy.variables()
    role['part'][2] = 0
    result = toy.run(federate(toy.network(), roster=toy.roster(), rounds=1, role='train', **SGD),
                     given, {'train': lambda t: {'clients': role}})
    scale = toy.ALPHA / toy.RANK
    cut = toy.EMBEDDING * toy.RANK
    start = {branch: np.asarray(vector, np.float64) for branch, vector in given['adapter'].items()}
    fixed = {'image': given['params']['visual'], 'text': given['params']['text']}

    def forward(branch, theta, x):
      b, a = theta[:cut].reshape(-1, toy.RANK), theta[cut:].reshape(toy.RANK, -1)
      w = np.asarray(fixed[branch]['kernel'], np.float64).T + scale * b @ a
      z = x @ w.T
      return z / np.linalg.norm(z, axis=1, keepdims=True), np.linalg.norm(z, axis=1), b, a

    def backward(found, x, upward):
      unit, norm, b, a = found
      towards = (upward - unit * np.sum(unit * upward, axis=1, keepdims=True)) / norm[:, None]
      of_w = towards.T @ x
      return np.concatenate([(scale * of_w @ a.T).ravel(), (scale * b.T @ of_w).ravel()])

    deltas = {branch: np.zeros((4, len(vector))) for branch, vector in start.items()}
    for client in (0, 1, 3):
      theta = dict(start)
      for step in range(toy.STEPS):
        x = {branch: role[branch][client, step].astype(np.float64) for branch in BRANCHES}
        found = {branch: forward(branch, theta[branch], x[branch]) for branch in BRANCHES}
        scores = found['image'][0] @ found['text'][0].T / toy.TEMPERATURE
        softmax = lambda s: np.exp(s) / np.exp(s).sum(axis=1, keepdims=True)
        of_scores = 0.5 * (softmax(scores) + softmax(scores.T).T - 2 * np.eye(toy.ROWS))
        of_scores /= toy.ROWS * toy.TEMPERATURE
        upward = {'image': of_scores @ found['text'][0], 'text': of_scores.T @ found['image'][0]}
        theta = {branch: theta[branch] - SGD['learning_rate'] * backward(
            found[branch], x[branch], upward[branch]) for branch in BRANCHES}
      for branch in BRANCHES:
        deltas[branch][client] = theta[branch] - start[branch]
    mean = weighted(deltas, role['weight'] * role['part'])
    for branch in BRANCHES:
      np.testing.assert_allclose(result.variables['adapter'][branch], start[branch] + mean[branch],
                                 rtol=1e-5, atol=1e-5)
      np.testing.assert_allclose(result.variables['federation']['updates'][branch][:, 0],
                                 deltas[branch], rtol=1e-4, atol=1e-5)
      self.assertGreater(np.abs(mean[branch]).max(), 1e-2)

  def test_ffa_rounds_average_weights(self):
    """With A fixed, the average of adapters is the average of the clients' weights."""
    network, given = toy.network('ffa'), toy.variables('ffa')
    state = federated.initial_state(jax.random.key(0), given)
    found = jax.jit(functools.partial(
        federated.gather, federated.contrastive(network, state), optax.sgd(0.2)))(
            state.params['adapter'], toy.pairs(0))
    merged = jax.jit(
        lambda adapter: network.apply({**given, 'adapter': adapter}, {}, method='merged')[0])
    clients = [merged(jax.tree.map(lambda a, d, k=k: a + d[k], state.params['adapter'],
                                   dict(found.deltas))) for k in range(4)]
    weight = toy.pairs(0)['weight']
    server = merged(federated.added(state, found.mean).params['adapter'])
    for tower in ('visual', 'text'):
      average = sum(w * one[tower]['kernel'] for w, one in zip(weight, clients)) / weight.sum()
      np.testing.assert_allclose(server[tower]['kernel'], average, rtol=1e-5, atol=1e-6)


class FederateTest(parameterized.TestCase):

  def trained(self, *, rounds=5, history=5, streams=None, devices=1, clients=4, **settings):
    method = federate(toy.network(), roster=toy.roster(clients=clients), rounds=rounds,
                      history=history, role='train', **SGD)
    return toy.run(method, toy.variables(), streams or toy.feed(clients=clients), devices=devices,
                   **settings)

  def test_the_history_explains_the_adapter(self):
    def partly(t):
      role = toy.pairs(t)
      role['part'][(t + np.arange(2)) % 4] = 0
      return {'clients': role}
    result = self.trained(streams={'train': partly})
    federation = result.variables['federation']
    weight, taken = np.asarray(federation['weight']), np.asarray(federation['taken'])
    np.testing.assert_array_equal(weight, toy.pairs(0)['weight'])
    np.testing.assert_array_equal(taken, np.stack([partly(t)['clients']['part'] for t in range(5)], 1))
    self.assertEqual(int(federation['rounds']), 5)
    for branch in BRANCHES:
      updates = np.asarray(federation['updates'][branch])
      np.testing.assert_array_equal(updates[taken == 0], 0)
      moved = sum(np.einsum('k,kp->p', weight * taken[:, t] / (weight @ taken[:, t]), updates[:, t])
                  for t in range(5))
      np.testing.assert_array_equal(federation['start'][branch], toy.variables()['adapter'][branch])
      np.testing.assert_allclose(result.variables['adapter'][branch],
                                 federation['start'][branch] + moved, rtol=1e-5, atol=1e-6)

  def test_a_short_history_is_a_ring(self):
    whole, ring = (self.trained(history=kept).variables['federation'] for kept in (9, 3))
    self.assertEqual(whole['taken'].shape, (4, 5))  # no more than there are rounds
    for branch in BRANCHES:
      for place, number in enumerate((3, 4, 2)):
        np.testing.assert_array_equal(ring['updates'][branch][:, place],
                                      whole['updates'][branch][:, number])

  def test_an_oracle_starts_where_the_original_did(self):
    original = self.trained(rounds=2).variables
    oracle = federate(toy.network(), roster=toy.roster(), rounds=1, further_rounds=1, **SGD)
    self.assertEqual(oracle.phases[0].steps, 2)
    self.assertEqual(oracle.phases[0].stream, 'retain')
    again, fresh = (toy.run(oracle, given, toy.feed()).variables
                    for given in (original | {'lock': {}}, toy.variables()))
    self.assertNotIn('lock', again)
    jax.tree.map(np.testing.assert_array_equal, again, fresh)
    np.testing.assert_array_equal(again['federation']['updates']['image'][0], 0)
    np.testing.assert_array_equal(again['federation']['weight'], [0, 11, 12, 13])

  def test_a_client_with_nan_data_is_dropped_whole(self):
    def broken(t):
      role = toy.pairs(t)
      role['image'][1, 1, 0, 0] = np.nan
      return {'clients': role}
    def absent(t):
      role = toy.pairs(t)
      role['part'][1] = 0
      return {'clients': role}
    found, expected = (self.trained(rounds=2, streams={'train': stream}).variables
                       for stream in (broken, absent))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    method = federate(toy.network(), roster=toy.roster(), rounds=1, role='train', **SGD)
    state, frozen = method.init(jax.random.key(0), toy.variables())
    _, metrics = method.phases[0].step(state, frozen, broken(0))
    self.assertEqual(int(metrics['failed']), 1)
    self.assertTrue(np.isfinite(metrics['loss'][0]))
    self.assertEqual(int(metrics['loss'][1]), 3)

  def test_one_device_against_eight(self):
    one, eight = (toy.mapped(self.trained(rounds=2, clients=8, devices=devices).variables)
                  for devices in (1, 8))
    for name, leaf in one.items():
      np.testing.assert_allclose(eight[name], leaf, rtol=1e-5, atol=1e-5, err_msg=name)

  def test_resuming_is_bitwise(self):
    class Killed(Exception):
      pass

    def dying(t):
      if t >= 4:
        raise Killed
      return toy.feed()['train'](t)

    whole = self.trained(history=3)
    with checkpoint.Checkpointer(tempfile.mkdtemp()) as saved:
      with self.assertRaises(Killed):
        self.trained(history=3, streams={'train': dying}, checkpointer=saved, checkpoint_every=2,
                     log_every=1)
      self.assertIsNotNone(saved.latest())
      again = self.trained(history=3, checkpointer=saved, checkpoint_every=2)
    jax.tree.map(np.testing.assert_array_equal, toy.mapped(again.variables),
                 toy.mapped(whole.variables))

  def test_bad_settings(self):
    for message, settings in (("role is 'retain' or 'train'", {'role': 'clean'}),
                              (r'rounds must lie in \[1', {'rounds': 0}),
                              ('whole number', {'rounds': 1.5}),
                              (r'history must lie in \[1', {'history': 0}),
                              ('optimizer is', {'optimizer': 'lion'}),
                              ('learning_rate', {'learning_rate': -1.0})):
      with self.assertRaisesRegex(ValueError, message):
        federate(toy.network(), roster=toy.roster(), **settings)
    with self.assertRaisesRegex(ValueError, 'models.lora.adapted'):
      federate(toy.network(), roster=toy.roster()).init(
          jax.random.key(0), {'params': toy.variables()['params']})


class LockTest(parameterized.TestCase):

  def locked(self, strength, *, basis=True):
    """The toy's variables under a lock of two directions per branch."""
    rng = np.random.default_rng(5)
    given, held = toy.variables(), {}
    for branch, vector in given['adapter'].items():
      held[branch] = {'center': vector, 'strength': jnp.float32(strength)}
      if basis:
        found = np.linalg.qr(rng.normal(size=(len(vector), 2)))[0].astype(np.float32)
        held[branch]['basis'] = jnp.asarray(found)
    return {**given, 'lock': held}

  @parameterized.parameters(True, False)
  def test_drift_in_real_rounds_stays_within_g_over_mu(self, basis):
    rate, most = 0.2, 0.3
    tx = optax.chain(optax.clip_by_global_norm(most), optax.sgd(rate))
    step = jax.jit(federated.round_step(toy.network(), tx, learning_rate=rate, wanted_by='test'))
    reached = {}
    for strength in (0.0, 3.0, 30.0):
      state = federated.initial_state(jax.random.key(0), self.locked(strength, basis=basis))
      drifts = []
      for number in range(6):
        state, metrics = step(state, {}, toy.feed()['retain'](number))
        drifts.append([float(metrics[f'drift/{branch}']) for branch in BRANCHES])
      reached[strength] = np.max(drifts, axis=0)
      for held, vector, last in zip(state.collections['lock'].values(),
                                    state.params['adapter'].values(), drifts[-1]):
        moved = np.asarray(vector - held['center'], np.float64)
        moved = np.asarray(held['basis'], np.float64).T @ moved if basis else moved
        np.testing.assert_allclose(last, np.linalg.norm(moved), rtol=1e-3)
      if strength:
        self.assertTrue((reached[strength] <= most / strength).all(), msg=(strength, drifts))
    self.assertTrue((reached[0.0] > most / 30.0).all(), msg=reached)  # the bound does bind
    self.assertTrue((reached[30.0] < 0.3 * reached[3.0]).all(), msg=reached)
    self.assertTrue((reached[30.0] > 0).all())

  def test_the_lock_leaves_other_directions_alone(self):
    """Of one local step: what is orthogonal to the basis is the same with and without the lock."""
    role = {name: leaf[:, :1] if leaf.ndim > 1 else leaf for name, leaf in toy.pairs(0).items()}
    moved = {}
    for strength in (0.0, 50.0):
      state = federated.initial_state(jax.random.key(0), self.locked(strength))
      moved[strength] = jax.jit(lambda state: federated.gather(
          federated.contrastive(toy.network(), state), optax.sgd(0.2), state.params['adapter'], role,
          after=federated.lock(state, 0.2)).mean)(state)
    for branch, held in state.collections['lock'].items():
      basis = np.asarray(held['basis'], np.float64)
      free, tied = (np.asarray(moved[strength][branch], np.float64) for strength in (0.0, 50.0))
      out = lambda v, basis=basis: v - basis @ (basis.T @ v)
      np.testing.assert_allclose(out(tied), out(free), atol=1e-6)
      np.testing.assert_allclose(basis.T @ tied, basis.T @ free / 11.0, atol=1e-6)  # 1 + 0.2 * 50

  def test_finetune_is_fedavg_and_hands_the_rest_on(self):
    given = self.locked(10.0)
    result = toy.run(fed_finetune(toy.network(), rounds=2, **SGD), given, toy.feed())
    adapter = given['adapter']
    state = federated.initial_state(jax.random.key(0), given)
    for number in range(2):
      role = toy.feed()['retain'](number)['clients']
      deltas, _ = one_by_one(federated.contrastive(toy.network(), state), optax.sgd(0.2), adapter,
                             role, after=federated.lock(state, 0.2))
      mean = weighted(deltas, role['weight'] * role['part'])
      adapter = {branch: adapter[branch] + mean[branch] for branch in BRANCHES}
    for branch in BRANCHES:
      np.testing.assert_allclose(result.variables['adapter'][branch], adapter[branch], rtol=1e-4,
                                 atol=1e-5)
    for name in ('params', 'lock'):
      jax.tree.map(np.testing.assert_array_equal, result.variables[name], given[name])

  def test_a_batch_without_clients_says_so(self):
    method = fed_finetune(toy.network(), rounds=1)
    state, frozen = method.init(jax.random.key(0), toy.variables())
    with self.assertRaisesRegex(ValueError, "fed_finetune wants role 'clients'"):
      method.phases[0].step(state, frozen, {'retain': {}})


if __name__ == '__main__':
  absltest.main()
