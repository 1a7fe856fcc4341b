"""EASE: decoupled rounds, one-sided displacement, subspaces from histories and probes, its lock."""

import functools
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.methods import federation_toy as toy
from unlearn_jax.losses import ease as losses
from unlearn_jax.losses import subspace
from unlearn_jax.methods import federated
from unlearn_jax.methods.ease import ease
from unlearn_jax.methods.fed_finetune import fed_finetune
from unlearn_jax.methods.federate import federate
from unlearn_jax.testing import federation_toy
from unlearn_jax.train import checkpoint

BRANCHES = federated.BRANCHES
SGD = {'optimizer': 'sgd', 'learning_rate': 0.2}
SHORT = SGD | {'rounds': 2, 'recover_rounds': 1, 'displacement_steps': 3, 'probe_rounds': 2,
               'displacement_learning_rate': 0.2, 'reference_rounds': 1}


@functools.cache
def original(clients: int = 4, rounds: int = 3):
  """A federation of whose rounds the server has kept two."""
  method = federate(toy.network(), roster=toy.roster(clients=clients), rounds=rounds, history=2,
                    role='train', **SGD)
  return toy.run(method, toy.variables(), toy.feed(clients=clients)).variables


def make(scenario: str = 'client', *, clients: int = 4, **settings):
  return ease(toy.network(), roster=toy.roster(scenario, clients=clients), **SHORT | settings)


def run(scenario: str = 'client', *, clients: int = 4, devices: int = 1, streams=None, loop=None,
        **settings):
  return toy.run(make(scenario, clients=clients, **settings), original(clients),
                 streams or toy.feed(scenario, clients=clients), devices=devices, **loop or {})


def phase(method, name):
  return next(one for one in method.phases if one.name == name)


def begun(method, given):
  """The state in which unlearning begins, without measuring the lock's strength."""
  state, frozen = method.init(jax.random.key(0), given)
  return jax.jit(next(one.enter for one in method.phases if one.enter is not None))(state), frozen


def absent(batch, *roles):
  """The batch without anybody taking part in some roles."""
  return {name: fields | {'part': np.zeros_like(fields['part'])} if name in roles else fields
          for name, fields in batch.items()}


def planted(forget, others):
  """The original's variables with other histories: [H, P] of client 0, and of each of the others."""
  given = dict(original())
  updates = {branch: np.zeros((4, 2, len(vector)), np.float32)
             for branch, vector in given['adapter'].items()}
  for ring in updates.values():
    for client, rows in enumerate((forget, *others)):
      for slot, row in enumerate(rows):
        for place, value in row.items():
          ring[client, slot, place] = value
  given['federation'] = {**given['federation'], 'updates': jax.tree.map(jnp.asarray, updates)}
  return given


def similarity(adapter_image, adapter_text, inputs):
  """<u_i, w_j> of one client's pairs, [N, N]."""
  state = federated.initial_state(jax.random.key(0), toy.variables())
  outputs = federated.forward(
      toy.network(), state, {'image': adapter_image['image'], 'text': adapter_text['text']},
      {name: inputs[name][0].reshape(-1, toy.FEATURES) for name in BRANCHES})
  return np.asarray(outputs['image_embedding'] @ outputs['text_embedding'].T)


def recall(scores) -> float:
  return float(np.mean(scores.argmax(axis=1) == np.arange(len(scores))))


def margin(scores) -> float:
  """How much more alike a picture is to its own caption than to any."""
  return float(np.mean(np.diagonal(scores)) - np.mean(scores))


class ServerTest(absltest.TestCase):

  def test_a_round_is_decoupled_in_float64(self):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
      both = np.linalg.qr(rng.normal(size=(40, 9)))[0]
      exclusive, support = jnp.asarray(both[:, :3]), jnp.asarray(both[:, 3:])
      theta, pushed, mean = (jnp.asarray(rng.normal(size=40)) for _ in range(3))
      moved = losses.server_round(theta, pushed, mean, support, exclusive) - theta
      self.assertEqual(moved.dtype, jnp.float64)
      np.testing.assert_allclose(exclusive.T @ moved, exclusive.T @ pushed, atol=1e-10)
      np.testing.assert_allclose(support.T @ moved, support.T @ mean, atol=1e-10)

  def test_a_real_round_is_decoupled(self):
    found = {}
    for projected in (True, False):
      method = make(strength=2.0, server_projection=projected)
      state, frozen = begun(method, original())
      step = jax.jit(phase(method, 'unlearn').step)
      batch = toy.feed()['pair'](0)
      for name, roles in (('both', ()), ('forget', ('clients',)), ('retain', ('forget',))):
        after, _ = step(state, frozen, absent(batch, *roles))
        found[projected, name] = {branch: np.asarray(
            after.params['adapter'][branch] - state.params['adapter'][branch], np.float64)
                                  for branch in BRANCHES}
    for branch in BRANCHES:
      exclusive, support = (np.asarray(state.extra[name][branch], np.float64)
                            for name in ('exclusive', 'support'))
      self.assertGreater(np.abs(exclusive).max(), 0)
      moved = found[True, 'both'][branch]
      pushed, mean = (found[False, name][branch] for name in ('forget', 'retain'))
      np.testing.assert_allclose(exclusive.T @ moved, exclusive.T @ pushed, atol=2e-6)
      np.testing.assert_allclose(support.T @ moved, support.T @ mean, atol=2e-6)
      self.assertGreater(np.linalg.norm(exclusive.T @ pushed), 1e-3)
      self.assertGreater(np.linalg.norm(support.T @ mean), 1e-3)
      np.testing.assert_allclose(found[False, 'both'][branch], pushed + mean, atol=2e-6)
      expected = losses.server_round(np.zeros_like(moved, np.float32), pushed, mean, support,
                                     exclusive)
      np.testing.assert_allclose(moved, expected, atol=2e-6)


class DisplacementTest(parameterized.TestCase):

  # Trained until pairs of the client to forget lie closer than others.
  ROUNDS = 20

  def pushed(self, **settings):
    """The adapter after four rounds in which the leaving client alone takes part."""
    method = make(strength=1.0, **settings)
    state, frozen = begun(method, original(rounds=self.ROUNDS))
    step = jax.jit(phase(method, 'unlearn').step)
    for number in range(4):
      state, _ = step(state, frozen, absent(toy.feed()['pair'](number), 'clients'))
    return state.params['adapter']

  def test_one_branch_leaves_the_other_bit_identical(self):
    before = original(rounds=self.ROUNDS)['adapter']
    forget = toy.feed()['pair'](0)['forget']
    one = self.pushed(branches='image')
    np.testing.assert_array_equal(one['text'], before['text'])
    self.assertTrue((np.asarray(one['image']) != np.asarray(before['image'])).any())
    scores, swap = similarity(before, before, forget), similarity(before, one, forget)
    np.testing.assert_array_equal(swap, scores)  # captions still lie where pictures used to be
    self.assertGreater(margin(scores), 0.2)
    self.assertGreater(recall(scores), 1 / len(scores))
    self.assertEqual(recall(swap), recall(scores))

  def test_both_branches_lower_both_swaps(self):
    before = original(rounds=self.ROUNDS)['adapter']
    forget = toy.feed()['pair'](0)['forget']
    both = self.pushed()
    whole = margin(similarity(before, before, forget))
    for swap in (similarity(both, before, forget), similarity(before, both, forget)):
      self.assertLess(margin(swap), 0.75 * whole)

  def test_displacement_ends_near_the_reference(self):
    method = make(rounds=4, displacement_steps=10, strength=0.0)
    state, frozen = begun(method, original())
    step, values = jax.jit(phase(method, 'unlearn').step), []
    for number in range(4):
      state, metrics = step(state, frozen, absent(toy.feed()['pair'](number), 'clients'))
      values.append(float(metrics['loss/forget'][0]))
    self.assertLess(values[-1], 0.5 * values[0])

  @parameterized.named_parameters(
      ('neg_nce', {'displacement': 'neg_nce'}), ('uce', {'displacement': 'uce'}),
      ('hinge', {'displacement': 'hinge'}), ('uniform', {'reference': 'uniform'}),
      ('probe', {'reference': 'probe'}), ('joint', {'channels': (1.0, 0.0, 0.0)}))
  @pytest.mark.slow
  def test_variants_go_their_own_ways(self, settings):
    """Each displaces, stays finite, and differs from the default."""
    adapters = []
    for changes in ({}, settings):
      method = make(strength=1.0, **changes)
      state, frozen = begun(method, original())
      if 'reference' in state.extra:
        state, _ = jax.jit(method.phases[0].step)(state, frozen, toy.feed()['retain'](0))
      state, metrics = jax.jit(phase(method, 'unlearn').step)(state, frozen, toy.feed()['pair'](0))
      self.assertEqual(int(metrics['failed/forget']), 0)
      adapters.append(state.params['adapter'])
    for branch in BRANCHES:
      plain, found = (np.asarray(adapter[branch]) for adapter in adapters)
      self.assertTrue(np.isfinite(found).all())
      self.assertGreater(np.abs(found - plain).max(), 1e-4)

  def test_the_reference_of_retained_rounds_starts_from_theta_0(self):
    method = make(reference='probe', reference_rounds=2)
    self.assertEqual([(one.name, one.steps, one.stream) for one in method.phases][0],
                     ('reference', 2, 'retain'))
    state, frozen = method.init(jax.random.key(0), original())
    step = jax.jit(method.phases[0].step)
    for number in range(2):
      state, _ = step(state, frozen, toy.feed()['retain'](number))
    oracle = federate(toy.network(), roster=toy.roster(), rounds=2, **SGD)
    expected = toy.run(oracle, toy.variables(), toy.feed()).variables['adapter']
    for branch in BRANCHES:
      np.testing.assert_allclose(state.extra['reference'][branch], expected[branch], rtol=1e-5,
                                 atol=1e-6)
      np.testing.assert_array_equal(state.params['adapter'][branch], original()['adapter'][branch])


class DecompositionTest(parameterized.TestCase):

  # Client 0 moves along axis 0 alone, and along 1 with a cosine of 0.8 to the others' axis 5.
  FORGET = ({0: 2.0}, {1: 0.6, 5: 0.8})
  OTHERS = (({5: 1.0}, {6: 1.0}), ({6: 1.0}, {7: 1.0}), ({7: 3.0}, {}))

  def bases(self, given=None, **settings):
    state, _ = begun(make(energy=1.0, **settings), given or planted(self.FORGET, self.OTHERS))
    return tuple({branch: np.asarray(state.extra[name][branch], np.float64) for branch in BRANCHES}
                 for name in ('exclusive', 'support'))

  def projector(self, size, axes):
    return np.diag([float(axes.get(place, 0.0)) for place in range(size)])

  @parameterized.named_parameters(
      ('threshold', {}, {0: 1.0}),
      ('everything', {'threshold': 1.0}, {0: 1.0, 1: 1.0}),
      ('soft', {'soft': True}, {0: 1.0, 1: 0.36}))
  def test_planted_directions(self, settings, axes):
    exclusive, support = self.bases(**settings)
    for branch in BRANCHES:
      u, r = exclusive[branch], support[branch]
      np.testing.assert_allclose(u @ u.T, self.projector(len(u), axes), atol=1e-5)
      np.testing.assert_allclose(r @ r.T, self.projector(len(r), {5: 1, 6: 1, 7: 1}), atol=1e-5)

  def test_principal_vectors_take_the_shared_part_along(self):
    exclusive, _ = self.bases(threshold=0.9, exclusive_basis='principal')
    for u in exclusive.values():
      expected = self.projector(len(u), {0: 1, 1: 0.36, 5: 0.64})
      expected[1, 5] = expected[5, 1] = 0.48
      np.testing.assert_allclose(u @ u.T, expected, atol=1e-5)

  def test_pairwise_angles_miss_what_the_union_holds(self):
    """Four axes of four slots: a vector with cosine 1/sqrt(3) to each of three clients."""
    given = planted(({0: 1.0, 1: 1.0, 2: 1.0}, {}), (({0: 1.0}, {}), ({1: 1.0}, {}), ({2: 1.0}, {})))
    union, pairwise = (self.bases(given, threshold=0.6, exclusive_basis='principal',
                                  retain_rule=rule)[0] for rule in ('union', 'pairwise'))
    for branch in BRANCHES:
      np.testing.assert_array_equal(union[branch], 0)
      np.testing.assert_allclose(np.abs(pairwise[branch][:3]).max(axis=1), 3**-0.5, rtol=1e-5)

  @parameterized.parameters(0.0, 0.5, 1.0)
  def test_excision_takes_back_what_was_written(self, excise):
    given = original()
    state, _ = begun(make(excise=excise, branches='text'), given)
    np.testing.assert_array_equal(state.params['adapter']['image'], given['adapter']['image'])
    basis, start = state.extra['exclusive']['text'], given['federation']['start']['text']
    along = lambda adapter: np.asarray(basis.T @ (adapter['text'] - start))
    self.assertGreater(np.abs(along(given['adapter'])).max(), 1e-3)
    np.testing.assert_allclose(along(state.params['adapter']),
                               (1.0 - excise) * along(given['adapter']), atol=1e-6)

  def test_without_an_exclusive_direction_the_method_goes_on(self):
    same = ({0: 1.0, 3: 1.0}, {1: 1.0})
    given = planted(same, (same, same, same))
    method = make()
    result = toy.run(method, given, toy.feed())
    state, frozen = begun(method, given)
    _, metrics = jax.jit(phase(method, 'unlearn').step)(state, frozen, toy.feed()['pair'](0))
    for branch in BRANCHES:
      self.assertEqual(int(metrics[f'exclusive_rank/{branch}']), 0)
      self.assertEqual(float(result.variables['lock'][branch]['strength']), 0.0)
      moved = np.asarray(result.variables['adapter'][branch] - given['adapter'][branch])
      self.assertTrue(np.isfinite(moved).all())
      self.assertGreater(np.abs(moved).max(), 1e-3)

  @pytest.mark.slow
  def test_matrices_keep_off_what_retained_clients_write(self):
    """Of either side of every matrix: U_u off U_r; excised and locked as the vector is."""
    given = original()
    method = make(basis='matrix', excise=1.0, energy=0.6, threshold=0.9)
    state, frozen = begun(method, given)
    start = given['federation']['start']
    _, metrics = jax.jit(phase(method, 'unlearn').step)(state, frozen, toy.feed()['pair'](0))
    for branch, tower in (('image', 'visual'), ('text', 'text')):
      sides, support = (state.extra[name][branch][f'{tower}/kernel']
                        for name in ('exclusive', 'support'))
      ranks = 0
      for side, size in (('left', toy.EMBEDDING), ('right', toy.FEATURES)):
        self.assertLen(sides[side], size)
        np.testing.assert_allclose(sides[side].T @ support[side], 0, atol=1e-5)
        ranks += np.linalg.matrix_rank(sides[side])
      self.assertGreater(ranks, 0)
      self.assertEqual(int(metrics[f'exclusive_rank/{branch}']), ranks)
      along = lambda vector: np.asarray(subspace.coordinates(vector, state.extra['exclusive'][branch]))
      self.assertGreater(np.abs(along(given['adapter'][branch] - start[branch])).max(), 1e-3)
      np.testing.assert_allclose(along(state.params['adapter'][branch] - start[branch]), 0, atol=1e-5)
    for scenario in ('sample', 'client'):  # from probes, from histories
      found = run(scenario, basis='matrix', energy=0.6, threshold=0.9).variables
      for branch in BRANCHES:
        held = found['lock'][branch]
        self.assertGreater(float(held['strength']), 0)
        moved = found['adapter'][branch] - held['center']
        self.assertGreater(np.linalg.norm(moved), 1e-3)
        np.testing.assert_allclose(subspace.coordinates(moved, held['basis']), 0, atol=1e-5)
    with checkpoint.Checkpointer(tempfile.mkdtemp()) as saved:
      saved.save(found['lock'], {})
      jax.tree.map(np.testing.assert_array_equal, saved.restore(found['lock']), found['lock'])

  def test_a_displacement_small_enough_ends(self):
    """Early stop: nothing is added once the mean loss is below the tolerance."""
    states = {}
    for tolerance in (0.0, 1e3):
      method = make(strength=1.0, tolerance=tolerance)
      state, frozen = begun(method, original())
      step = jax.jit(phase(method, 'unlearn').step)
      batch = toy.feed()['pair'](0)
      states[tolerance] = step(state, frozen, batch)[0].params['adapter']
    alone = step(state, frozen, absent(batch, 'forget'))[0].params['adapter']
    for branch in BRANCHES:
      np.testing.assert_array_equal(states[1e3][branch], alone[branch])
      self.assertGreater(np.abs(states[0.0][branch] - alone[branch]).max(), 1e-3)

  @parameterized.parameters('sample', 'concept')
  def test_probes_tell_what_history_cannot(self, scenario):
    method = make(scenario, energy=1.0, threshold=1.0)
    self.assertEqual([one.name for one in method.phases],
                     ['probe', 'calibrate', 'unlearn', 'calibrate', 'recover'])
    state, frozen = method.init(jax.random.key(0), original())
    step, feed = jax.jit(method.phases[0].step), toy.feed(scenario)['pair']
    for number in range(2):
      state, _ = step(state, frozen, feed(number))
    probes = state.extra['probe']
    objective = federated.contrastive(toy.network(), state)
    tx = federated.optimizer('test', 'sgd', 0.2, 0.0)
    update = jax.jit(functools.partial(federated.local_update, objective, tx))
    for role, asked in (('clients', 4), ('forget', 2)):  # clients 0 and 1 have some to forget
      for number in range(2):
        deltas, _ = update(state.params['adapter'], feed(number)[role])
        for branch in BRANCHES:
          self.assertLen(probes[role][branch], asked)
          np.testing.assert_allclose(probes[role][branch][:, number], deltas[branch][:asked],
                                     atol=1e-5)
    for branch in BRANCHES:
      np.testing.assert_array_equal(state.params['adapter'][branch], original()['adapter'][branch])
    state = jax.jit(phase(method, 'calibrate').enter)(state)
    self.assertNotIn('probe', state.extra)
    for branch in BRANCHES:
      exclusive = np.asarray(state.extra['exclusive'][branch])
      retain = np.asarray(probes['clients'][branch]).reshape(8, -1)
      forget = np.asarray(probes['forget'][branch]).reshape(4, -1)
      np.testing.assert_allclose(retain @ exclusive, 0, atol=1e-4 * np.abs(retain).max())
      self.assertGreater(np.linalg.norm(forget @ exclusive), 1e-2)


class ForgetLockTest(parameterized.TestCase):

  def test_automatic_strength(self):
    """mu = max_k ||U^T grad L_k|| / (kappa ||U^T (theta^T - theta^0)||), at both calibrations."""
    method, given = make(kappa=0.1), original()
    state, frozen = begun(method, given)
    names = [(one.name, one.steps, one.stream) for one in method.phases]
    self.assertEqual(names, [('calibrate', 1, 'retain'), ('unlearn', 2, 'pair'),
                             ('calibrate', 1, 'retain'), ('recover', 1, 'retain')])
    self.assertIs(method.phases[0].step, method.phases[2].step)  # compiled once
    role = toy.feed()['retain'](0)['clients']
    after, metrics = jax.jit(method.phases[0].step)(state, frozen, {'clients': role})
    slope = jax.jit(jax.grad(federated.contrastive(toy.network(), state)))
    norms = {branch: [] for branch in BRANCHES}
    for client in (1, 2, 3):
      grads = [slope(given['adapter'], {name: role[name][client, step] for name in (
          'image', 'text', 'mask')}) for step in range(toy.STEPS)]
      for branch in BRANCHES:
        mean = sum(grad[branch] for grad in grads) / toy.STEPS
        norms[branch].append(np.linalg.norm(state.extra['exclusive'][branch].T @ mean))
    for branch in BRANCHES:
      learnt = given['adapter'][branch] - given['federation']['start'][branch]
      learnt = np.linalg.norm(state.extra['exclusive'][branch].T @ learnt)
      expected = max(norms[branch]) / (0.1 * learnt)
      np.testing.assert_allclose(after.collections['lock'][branch]['strength'], expected, rtol=1e-3)
      np.testing.assert_allclose(metrics[f'strength/{branch}'], expected, rtol=1e-3)

  def test_continued_rounds_stay_within_g_over_mu(self):
    """The drift of later rounds along U_u, with the gradients that clients really met."""
    strength, rate = 5.0, SGD['learning_rate']
    tight, loose = run(strength=strength).variables, run(strength=0.0).variables
    network, drifts = toy.network(), {}
    for name, given in (('tight', tight), ('loose', loose)):
      method = fed_finetune(network, rounds=4, **SGD)
      state, frozen = method.init(jax.random.key(0), given)
      step, largest = jax.jit(method.phases[0].step), 0.0
      found = {branch: [] for branch in BRANCHES}
      slopes = jax.jit(jax.vmap(jax.grad(federated.contrastive(network, state)), (0, 0)))
      held = given['lock']
      along = {branch: np.asarray(held[branch]['basis'].T) for branch in BRANCHES}
      for number in range(4):
        batch = toy.feed()['retain'](number)
        role = batch['clients']
        adapters = {branch: jnp.broadcast_to(vector, (4, *vector.shape))
                    for branch, vector in state.params['adapter'].items()}
        for local in range(toy.STEPS):  # clients 1 to 3, step by step, for their gradients
          grads = slopes(adapters, {key: role[key][:, local] for key in ('image', 'text', 'mask')})
          for branch in BRANCHES:
            largest = max(largest, *(float(np.linalg.norm(along[branch] @ grads[branch][client]))
                                     for client in (1, 2, 3)))
          stepped = {branch: adapters[branch] - rate * grads[branch] for branch in BRANCHES}
          adapters = jax.vmap(federated.lock(state, rate))(stepped)
        state, metrics = step(state, frozen, batch)
        for branch in BRANCHES:
          found[branch].append(float(metrics[f'drift/{branch}']))
      drifts[name] = {branch: max(values) for branch, values in found.items()}
      if name == 'tight':
        bound = largest / strength
    for branch in BRANCHES:
      self.assertLessEqual(drifts['tight'][branch], bound)
      self.assertGreater(drifts['tight'][branch], 0)
      self.assertGreater(drifts['loose'][branch], 1.5 * drifts['tight'][branch])
      # Around where unlearning has ended: recovery does not move the locked directions.
      basis = np.asarray(tight['lock'][branch]['basis'])
      moved = np.asarray(tight['adapter'][branch] - tight['lock'][branch]['center'])
      self.assertGreater(np.linalg.norm(moved), 1e-3)
      np.testing.assert_allclose(basis.T @ moved, 0, atol=1e-6)

  @parameterized.named_parameters(
      ('off', {'lock': 'off'}), ('isotropic', {'lock': 'isotropic'}),
      ('empty', {'decomposition': False}),
      ('server_only', {'displacement': 'off', 'excise': 1.0}))
  @pytest.mark.slow
  def test_parts_switched_off(self, settings):
    method, result = make(**settings), run(**settings)
    given, found = original(), result.variables
    for branch in BRANCHES:
      leaf = np.asarray(found['adapter'][branch])
      self.assertTrue(np.isfinite(leaf).all())
      self.assertGreater(np.abs(leaf - np.asarray(given['adapter'][branch])).max(), 1e-3)
    for name in ('params', 'federation'):
      jax.tree.map(np.testing.assert_array_equal, found[name], given[name])
    if settings.get('lock') == 'off':
      self.assertNotIn('lock', found)
      self.assertEqual([one.name for one in method.phases], ['unlearn', 'recover'])
    elif settings.get('lock') == 'isotropic':
      for branch in BRANCHES:
        self.assertEqual(found['lock'][branch].keys(), {'center', 'strength'})
        self.assertGreater(float(found['lock'][branch]['strength']), 0)
    elif 'excise' in settings:
      self.assertEqual({one.stream for one in method.phases}, {'retain'})
      for branch in BRANCHES:
        basis = np.asarray(found['lock'][branch]['basis'])
        start = np.asarray(given['federation']['start'][branch])
        np.testing.assert_allclose(basis.T @ (np.asarray(found['adapter'][branch]) - start), 0,
                                   atol=2e-6)
    else:
      for branch in BRANCHES:
        np.testing.assert_array_equal(found['lock'][branch]['basis'], 0)


class RunTest(parameterized.TestCase):

  @pytest.mark.slow
  def test_resuming_is_bitwise(self):
    class Killed(Exception):
      pass

    def dying(at, t):
      if t >= at:
        raise Killed
      return toy.feed('sample')['pair'](t)

    settings = {'rounds': 2, 'probe_rounds': 1}
    whole = run('sample', **settings)
    with checkpoint.Checkpointer(tempfile.mkdtemp()) as saved:
      loop = {'checkpointer': saved, 'checkpoint_every': 1}
      for at in (1, 2):  # after the probes, and after the first round of unlearning
        with self.assertRaises(Killed):
          run('sample', streams=toy.feed('sample') | {'pair': functools.partial(dying, at)},
              loop=loop, **settings)
        self.assertIsNotNone(saved.latest())
      again = run('sample', loop=loop, **settings)
    jax.tree.map(np.testing.assert_array_equal, toy.mapped(again.variables),
                 toy.mapped(whole.variables))

  @pytest.mark.slow  # the contract suite compares a shorter run
  def test_one_device_against_eight(self):
    one, eight = (run(clients=8, devices=devices).variables['adapter'] for devices in (1, 8))
    for branch in BRANCHES:
      np.testing.assert_allclose(eight[branch], one[branch], rtol=1e-5, atol=1e-5)

  def test_a_failing_forget_client_leaves_the_round_to_the_others(self):
    method = make(strength=1.0)
    state, frozen = begun(method, original())
    step = jax.jit(phase(method, 'unlearn').step)
    batch = toy.feed()['pair'](0)
    broken = jax.tree.map(np.copy, batch)
    broken['forget']['text'][0, 0, 0, 0] = np.nan
    found, metrics = step(state, frozen, broken)
    expected, _ = step(state, frozen, absent(batch, 'forget'))
    self.assertEqual(int(metrics['failed/forget']), 1)
    self.assertEqual(int(metrics['failed']), 0)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)

  def test_bad_settings(self):
    for message, settings in (
        ('displacement is one of', {'displacement': 'both'}), ('lock is one of', {'lock': 'on'}),
        ('branches is one of', {'branches': 'v'}), ('reference is one of', {'reference': 'zero'}),
        ('exclusive_basis is one of', {'exclusive_basis': 'cosine'}),
        ('retain_rule is one of', {'retain_rule': 'mean'}), ('basis is one of', {'basis': 'layer'}),
        ('tolerance', {'tolerance': -1.0}),
        ('rounds must be a whole number', {'rounds': -1}), ('energy', {'energy': 0.0}),
        ('threshold', {'threshold': 1.5}), ('excise', {'excise': 2.0}),
        ('strength', {'strength': -1.0}), ('kappa', {'kappa': 0.0}),
        ('displacement_steps', {'displacement_steps': 0})):
      with self.assertRaisesRegex(ValueError, message):
        make(**settings)

  def test_variables_of_no_federation_or_another_one(self):
    with self.assertRaisesRegex(ValueError, 'collection "federation"'):
      make().init(jax.random.key(0), toy.variables())
    with self.assertRaisesRegex(ValueError, 'of 4 clients, the roster has 5'):
      make(clients=5).init(jax.random.key(0), original())

  @pytest.mark.slow
  def test_drift_in_a_federation_falls_with_the_inverse_of_the_strength(self):
    # Property 12 of the specification; measured for 1, 3, 10 and 30: .0074, .0023, .00066, .00022.
    roster, drift = federation_toy.context()['roster'], {}
    for strength in (1.0, 3.0, 10.0):
      locked = federation_toy.run(
          ease(federation_toy.network(), roster=roster, **federation_toy.LOCAL, rounds=3,
               recover_rounds=0, displacement_steps=5, displacement_learning_rate=0.5, max_rank=64,
               strength=strength), federation_toy.original()).variables
      later = federation_toy.run(fed_finetune(
          federation_toy.network(), **federation_toy.LOCAL, rounds=20), locked).variables
      self.assertGreater(federation_toy.accuracy(later, 'retain'), 0.98)
      for branch in BRANCHES:
        held = locked['lock'][branch]
        drift[branch, strength] = np.linalg.norm(
            held['basis'].T @ (later['adapter'][branch] - held['center']))
    for branch in BRANCHES:
      for low, high in ((1.0, 3.0), (3.0, 10.0)):
        slope = np.log(drift[branch, high] / drift[branch, low]) / np.log(high / low)
        self.assertBetween(slope, -1.2, -0.9, f'{branch}, {low} to {high}')


if __name__ == '__main__':
  absltest.main()
