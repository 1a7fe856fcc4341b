"""FedEraser, FedRecovery and PGA against NumPy: replay, subtraction, reference model and ball."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from tests.methods import fed_towers
from tests.methods import reference
from unlearn_jax.methods import fed_history
from unlearn_jax.models import lora

ROSTER = fed_towers.ROSTERS['client']
LEAVING = 1
CUT = fed_towers.EMBEDDING * fed_towers.RANK  # where B ends
FEW_ROUNDS = {'recover_rounds': 1, **fed_towers.SGD}
FACTORIES = {'fed_eraser': fed_history.fed_eraser, 'fed_recovery': fed_history.fed_recovery,
             'pga': functools.partial(fed_history.pga, example=fed_towers.example())}


def partly_taken(rounds, last):
  """Client 1 takes part up to round `last`, client 2 in every other one."""
  taken = np.ones((4, rounds), np.float32)
  taken[LEAVING, last + 1:] = 0.0
  taken[2, ::2] = 0.0
  return taken


def build(name, **changes):
  return FACTORIES[name](fed_towers.network(), roster=ROSTER, **{**FEW_ROUNDS, **changes})


class FedHistoryTest(parameterized.TestCase):

  @parameterized.parameters({'taken': None}, {'taken': partly_taken(5, 2)})
  def test_fed_eraser(self, taken):
    given, known = fed_towers.variables(taken=taken)
    sent, nce = known['sent'], functools.partial(fed_towers.nce, given['params'])
    taken, sizes = np.asarray(given['federation']['taken']), ROSTER.sizes
    method = build('fed_eraser', replay_rounds=2, calibration=0.5)
    start = {name: np.asarray(value, np.float64) for name, value in
             given['federation']['start'].items()}
    for number, (phase, before, _, batch, after, _) in enumerate(fed_towers.play(method, given)):
      theta = fed_towers.adapter(before)
      if phase.name == 'recover':
        by = fed_towers.mean(fed_towers.updates(theta, batch['clients'], nce, 0.5), sizes)
        fed_towers.assert_adapters(fed_towers.adapter(after), fed_towers.moved(theta, by))
        continue
      stored = fed_towers.mean({
          client: {branch: sent[branch][client, 2 * number] for branch in sent}  # every second round
          for client in (0, 2, 3) if taken[client, 2 * number]}, sizes)
      if number == 0:
        fed_towers.assert_adapters(theta, start)
        by = stored
      else:
        first = {name: leaf[:, :1] if leaf.ndim > 1 else leaf
                 for name, leaf in batch['clients'].items()}  # half of two steps
        by, fresh = {}, fed_towers.mean(fed_towers.updates(theta, first, nce, 0.5), sizes)
        for branch in fresh:
          parts = []
          for layer in (slice(None, CUT), slice(CUT, None)):
            length = np.linalg.norm(stored[branch][layer])
            parts.append(fresh[branch][layer] * length / np.linalg.norm(fresh[branch][layer]))
            step = (fed_towers.adapter(after)[branch] - theta[branch])[layer]
            np.testing.assert_allclose(np.linalg.norm(step), length, rtol=1e-4)
          by[branch] = np.concatenate(parts)
      fed_towers.assert_adapters(fed_towers.adapter(after), fed_towers.moved(theta, by))
    self.assertEqual(number, 2)

  def test_fed_eraser_without_calibration(self):
    """Nobody who stays takes part: there is no direction, and the model stays."""
    given, _ = fed_towers.variables()
    absent = lambda stream, found: {'clients': {**found['clients'], 'part': np.zeros(4, np.float32)}}
    method = build('fed_eraser', replay_rounds=2, recover_rounds=0)
    *_, (_, before, _, _, after, _) = fed_towers.play(method, given, change=absent)
    for branch, vector in fed_towers.adapter(after).items():
      np.testing.assert_array_equal(vector, fed_towers.adapter(before)[branch])

  @parameterized.parameters((5, 3, 3, 'of 5 rounds the history holds the last 3'),
                            (3, 3, 4, 'cannot replay 4 of 3 rounds'))
  def test_fed_eraser_needs_the_whole_history(self, rounds, kept, replayed, message):
    given, _ = fed_towers.variables(rounds, kept)
    method = build('fed_eraser', replay_rounds=replayed)
    with self.assertRaisesRegex(ValueError, message):
      method.init(jax.random.key(0), given)
    jax.eval_shape(method.init, jax.random.key(0), given)  # values cannot be looked at

  @parameterized.parameters({'taken': None}, {'taken': partly_taken(5, 2)})
  def test_fed_recovery(self, taken):
    """What is left is theta^0 and what the others added, with the weights that they had."""
    given, known = fed_towers.variables(taken=taken)
    state, _ = build('fed_recovery').init(jax.random.key(0), given)
    others = known['share'].copy()
    others[LEAVING] = 0.0
    expected = {branch: np.asarray(start) + np.einsum('kt,ktp->p', others, known['sent'][branch])
                for branch, start in given['federation']['start'].items()}
    fed_towers.assert_adapters(fed_towers.adapter(state), expected)

  def test_fed_recovery_short_history(self):
    """Of five rounds the ring holds the last two, in the slots 0 (round 4) and 1 (round 3)."""
    given, known = fed_towers.variables(rounds=5, kept=2)
    state, _ = build('fed_recovery').init(jax.random.key(0), given)
    expected = {branch: vector - sum(known['share'][LEAVING, t] * known['sent'][branch][LEAVING, t]
                                     for t in (3, 4))
                for branch, vector in fed_towers.adapter(given).items()}
    fed_towers.assert_adapters(fed_towers.adapter(state), expected)

  def test_fed_recovery_noise(self):
    given, _ = fed_towers.variables()
    start = lambda noise, key: np.concatenate(list(fed_towers.adapter(
        build('fed_recovery', noise=noise).init(jax.random.key(key), given)[0]).values()))
    drawn = np.stack([start(0.5, key) - start(0.0, 0) for key in range(40)])
    np.testing.assert_allclose(drawn.std(), 0.5, rtol=0.06)  # of 1520 numbers
    np.testing.assert_allclose(drawn.mean(), 0.0, atol=0.05)
    np.testing.assert_array_equal(start(0.5, 3), start(0.5, 3))
    self.assertLess(np.abs(np.corrcoef(drawn[0], drawn[1])[0, 1]), 0.6)

  def test_pga(self):
    """Projected in the first epoch, stopped in the second."""
    given, known = fed_towers.variables(weight=np.ones(4, np.float32))
    theta_t = fed_towers.adapter(given)
    # theta_f stands in the last round on what theirs moved away from; all clients weigh alike.
    last = {branch: theta_t[branch] - sent[:, -1].mean(0) + sent[LEAVING, -1]
            for branch, sent in known['sent'].items()}
    reference = {branch: (4 * theta_t[branch] - last[branch]) / 3 for branch in last}
    climbed = lambda theta, inputs: -fed_towers.nce(given['params'], theta, inputs)

    def distance(one, other):
      return sum(np.sum((one[branch] - other[branch])**2) for branch in one)

    settings = {'epochs': 3, 'momentum': 0.5, 'clip': 0.1, 'forget_learning_rate': 2.0,
                'radius': 1e-3, 'recover_rounds': 0}
    beyond = distance(reference, last) + 2e-3
    method = build('pga', stop_distance=beyond, **settings)
    ball, rounds = None, 0
    for phase, before, frozen, batch, after, metrics in fed_towers.play(method, given):
      theta = fed_towers.adapter(before)
      if ball is None:
        fed_towers.assert_adapters(theta, reference)
        draw = jax.jit(lambda key: fed_towers.network().init(key, fed_towers.example()))
        fresh = [draw(jax.random.key(100 + number)) for number in range(30)]
        ball = float(frozen['radius'])
        expected = 1e-3 * np.mean([distance(reference, fed_towers.adapter(one)) for one in fresh])
        np.testing.assert_allclose(ball**2, expected, rtol=0.1)  # other draws, the same mean

      def project(adapter, ball=ball):
        norm = np.sqrt(distance(adapter, reference))
        scale = min(1.0, ball / norm)
        return {branch: reference[branch] + scale * (adapter[branch] - reference[branch])
                for branch in adapter}

      by = fed_towers.local(theta, batch['forget'], LEAVING, climbed, 2.0, clip=0.1, momentum=0.5,
                            after=project, stop=lambda now: distance(now, last) > beyond)
      later = fed_towers.adapter(after)
      fed_towers.assert_adapters(later, fed_towers.moved(theta, by))
      self.assertLessEqual(distance(later, reference), ball**2 * (1 + 1e-4))
      np.testing.assert_allclose(metrics['distance'], distance(later, last), rtol=1e-4)
      rounds += 1
    self.assertEqual((phase.name, rounds), ('ascend', 3))
    self.assertGreater(distance(later, last), beyond)
    fed_towers.assert_adapters(later, theta, atol=1e-6)  # the last epoch stood still

  @parameterized.parameters((5, 5, 4), (5, 5, 2), (5, 3, 2), (5, 3, 3))
  def test_last_local(self, rounds, kept, last):
    """theta^t of the client's last round, by going forward from theta^0, and what it sent."""
    given, known = fed_towers.variables(rounds, kept, taken=partly_taken(rounds, last))
    found, share = fed_history.last_local(given['federation'], given['adapter'], LEAVING)
    expected = {branch: np.asarray(start) + sent[LEAVING, last] + np.einsum(
        'kt,ktp->p', known['share'][:, :last], sent[:, :last])
                for (branch, start), sent in zip(given['federation']['start'].items(),
                                                 known['sent'].values())}
    fed_towers.assert_adapters({name: np.asarray(v) for name, v in found.items()}, expected)
    np.testing.assert_allclose(share, known['share'][LEAVING, last], rtol=1e-6)

  def test_pga_needs_the_client_beside_others(self):
    given, _ = fed_towers.variables(5, 2, taken=partly_taken(5, 2))
    with self.assertRaisesRegex(ValueError, 'last model of client 1 .* it took no part'):
      build('pga').init(jax.random.key(0), given)
    alone = np.zeros((4, 5), np.float32)
    alone[LEAVING] = 1.0
    given, _ = fed_towers.variables(taken=alone)
    with self.assertRaisesRegex(ValueError, 'last model of client 1 .* it was alone'):
      build('pga').init(jax.random.key(0), given)
    roster = ROSTER._replace(leaving=np.array([True, True, False, False]))
    with self.assertRaisesRegex(ValueError, 'one client at a time, 2 leave'):
      FACTORIES['pga'](fed_towers.network(), roster=roster)

  @parameterized.parameters(*FACTORIES)
  def test_who_and_what_must_be_there(self, name):
    with self.assertRaisesRegex(ValueError, f"{name} takes out .* nobody leaves .* 'sample'"):
      FACTORIES[name](fed_towers.network(), roster=fed_towers.ROSTERS['sample'])
    given, _ = fed_towers.variables()
    del given['federation']
    with self.assertRaisesRegex(ValueError, f'{name} reads the collection "federation"'):
      build(name).init(jax.random.key(0), given)

  @parameterized.parameters(
      ('fed_eraser', {'calibration': 0.0}, 'fed_eraser: calibration'),
      ('fed_eraser', {'replay_rounds': 0}, 'fed_eraser: replay_rounds'),
      ('fed_recovery', {'noise': -1.0}, 'fed_recovery: noise'),
      ('pga', {'momentum': 1.0}, 'pga: momentum'), ('pga', {'epochs': -1}, 'pga: epochs'),
      ('pga', {'learning_rate': float('inf'), 'radius': -1.0}, 'pga: radius'))
  def test_bad_settings(self, name, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      build(name, **changes)

  def test_every_method_has_a_reference_step(self):
    reference.check_covered(self, 'fed_history_test')

  def test_layers_are_factors(self):
    """What a layer of this network is: B before A, one matrix per branch."""
    given, _ = fed_towers.variables()
    for branch, matrices in lora.unflatten(fed_towers.network(), given).items():
      (one,) = matrices.values()
      np.testing.assert_array_equal(one.b.ravel(), given['adapter'][branch][:CUT])


if __name__ == '__main__':
  absltest.main()
