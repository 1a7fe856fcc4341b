"""GA, SFU and FedOSD against NumPy: clipping, subspaces, orthogonality."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from tests.methods import fed_towers
from tests.methods import reference
from unlearn_jax.methods import fed_ascent

FORGET_RATE = 0.3
SETTINGS = {'rounds': 2, 'recover_rounds': 1, 'forget_learning_rate': FORGET_RATE, **fed_towers.SGD}


def losses(given):
  """(climbed, descended) by clients, from the backbone alone."""
  nce = functools.partial(fed_towers.nce, given['params'])
  return (lambda theta, inputs: -nce(theta, inputs)), nce


def uce(params, theta, inputs):
  return 0.5 * sum(np.mean(-np.log(1 - p / 2))
                   for p in fed_towers.probabilities(params, theta, inputs))


def support(columns, energy):
  """Left singular vectors [P, q] of the least q whose squares sum to the energy."""
  left, values, _ = np.linalg.svd(np.asarray(columns, np.float64), full_matrices=False)
  share = np.cumsum(values**2) / np.sum(values**2)
  return left[:, :np.searchsorted(share, energy) + 1]


class FedAscentTest(parameterized.TestCase):

  @parameterized.parameters('client', 'sample')
  def test_fed_ga(self, scenario):
    given, _ = fed_towers.variables()
    climbed, nce = losses(given)
    method = fed_ascent.fed_ga(fed_towers.network(), roster=fed_towers.ROSTERS[scenario], clip=0.1,
                               **SETTINGS)
    names = []
    for phase, before, _, batch, after, metrics in fed_towers.play(method, given, scenario):
      theta = fed_towers.adapter(before)
      if phase.name == 'ascend':
        data, loss, how = batch['forget'], climbed, {'rate': FORGET_RATE, 'clip': 0.1}
      else:
        data, loss, how = batch['clients'], nce, {'rate': 0.5}
      sent = fed_towers.updates(theta, data, loss, **how)
      fed_towers.assert_adapters(
          fed_towers.adapter(after), fed_towers.moved(theta, fed_towers.mean(sent, data['weight'])))
      self.assertEqual(metrics['failed'], 0)
      names.append((phase.name, phase.stream))
    self.assertEqual(names, [('ascend', 'pair')] * 2 + [('recover', 'retain')])

  def test_clipping_bounds_both_branches_together(self):
    """A step of SGD is rate times clip long, for any gradient that is longer."""
    given, _ = fed_towers.variables()
    method = fed_ascent.fed_ga(fed_towers.network(), roster=fed_towers.ROSTERS['client'], clip=1e-3,
                               **{**SETTINGS, 'rounds': 1, 'recover_rounds': 0})
    (_, before, _, _, after, _), = fed_towers.play(method, given, change=lambda stream, found: {
        **found, 'forget': {**found['forget'], 'mask': found['forget']['mask']
                            * np.array([1, 0], np.float32)[None, :, None]}})
    theta, later = fed_towers.adapter(before), fed_towers.adapter(after)
    length = np.sqrt(sum(np.sum((later[branch] - theta[branch])**2) for branch in theta))
    np.testing.assert_allclose(length, FORGET_RATE * 1e-3, rtol=1e-3)

  def test_sfu(self):
    given, _ = fed_towers.variables()
    climbed, nce = losses(given)
    roster, energy = fed_towers.ROSTERS['client'], 0.8
    method = fed_ascent.sfu(fed_towers.network(), roster=roster, clip=5.0, probe_rounds=3,
                            energy=energy, **SETTINGS)
    probed, spans = [], None
    for phase, before, _, batch, after, _ in fed_towers.play(method, given):
      theta = fed_towers.adapter(before)
      if phase.name == 'probe':
        np.testing.assert_array_equal(after.params['adapter']['text'], given['adapter']['text'])
        probed.append(fed_towers.updates(theta, batch['clients'], nce, 0.5))
      if phase.name == 'ascend':
        if spans is None:
          spans = {branch: np.linalg.qr(np.concatenate([support(np.stack(
              [sent[client][branch] for sent in probed], axis=1), energy)
                                                        for client in probed[0]], axis=1))[0]
                   for branch in theta}
          self.assertGreater(min(span.shape[1] for span in spans.values()), 3)

        def keep(adapter, theta=theta, spans=spans):
          step = {branch: adapter[branch] - theta[branch] for branch in theta}
          return {branch: theta[branch] + step[branch] - spans[branch] @ (
              spans[branch].T @ step[branch]) for branch in theta}

        data = batch['forget']
        sent = fed_towers.updates(theta, data, climbed, FORGET_RATE, clip=5.0, after=keep)
        fed_towers.assert_adapters(fed_towers.adapter(after), fed_towers.moved(
            theta, fed_towers.mean(sent, data['weight'])), atol=1e-4)
        for branch, vector in fed_towers.adapter(after).items():
          step = vector - theta[branch]
          self.assertGreater(np.linalg.norm(step), 1e-3)
          self.assertLess(np.linalg.norm(spans[branch].T @ step), 1e-4 * np.linalg.norm(step))

  @parameterized.parameters('client', 'sample')
  def test_fed_osd(self, scenario):
    given, _ = fed_towers.variables()
    _, nce = losses(given)
    method = fed_ascent.fed_osd(fed_towers.network(), roster=fed_towers.ROSTERS[scenario],
                                **{**SETTINGS, 'recover_rounds': 2})
    loss = functools.partial(uce, given['params'])
    for phase, before, _, batch, after, _ in fed_towers.play(method, given, scenario):
      theta, later = fed_towers.adapter(before), fed_towers.adapter(after)
      kept = fed_towers.updates(theta, batch['clients'], nce, 0.5)
      if phase.name == 'unlearn':
        data = batch['forget']
        gone = fed_towers.mean(fed_towers.updates(theta, data, loss, FORGET_RATE), data['weight'])
        by = {}
        for branch, g in gone.items():
          rows = np.stack([delta[branch] for delta in kept.values()]).astype(np.float64)
          d = g - rows.T @ np.linalg.pinv(rows @ rows.T) @ rows @ g
          by[branch] = d * np.linalg.norm(g) / np.linalg.norm(d)
          step = later[branch] - theta[branch]
          cosines = rows @ step / np.linalg.norm(rows, axis=1) / np.linalg.norm(step)
          self.assertLess(np.abs(cosines).max(), 1e-3)
          np.testing.assert_allclose(np.linalg.norm(step), np.linalg.norm(g), rtol=1e-3)
      else:
        turned = {}
        for client, delta in kept.items():
          turned[client] = {}
          for branch, g in delta.items():
            back = theta[branch] - np.asarray(given['adapter'][branch])
            d = g - back * (g @ back) / (back @ back)
            turned[client][branch] = d * np.linalg.norm(g) / np.linalg.norm(d)
        by = fed_towers.mean(turned, batch['clients']['weight'])
      fed_towers.assert_adapters(later, fed_towers.moved(theta, by), atol=1e-4)

  @parameterized.parameters(
      ('fed_ga', {'clip': -1.0}, 'fed_ga: clip'), ('fed_ga', {'rounds': 1.5}, 'fed_ga: rounds'),
      ('sfu', {'energy': 0.0}, 'sfu: energy'), ('sfu', {'probe_rounds': 0}, 'sfu: probe_rounds'),
      ('fed_osd', {'forget_learning_rate': float('nan')}, 'fed_osd: forget_learning_rate'),
      ('fed_osd', {'optimizer': 'lion'}, "optimizer is 'adamw' or 'sgd'"))
  def test_bad_settings(self, name, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      getattr(fed_ascent, name)(fed_towers.network(), roster=fed_towers.ROSTERS['client'],
                                **{**SETTINGS, **changes})

  def test_every_method_has_a_reference_step(self):
    reference.check_covered(self, 'fed_ascent_test')

  def test_nothing_to_forget(self):
    roster = fed_towers.ROSTERS['client']._replace(forget=np.zeros(4, int))
    with self.assertRaisesRegex(ValueError, 'no client of the roster has anything to forget'):
      fed_ascent.fed_ga(fed_towers.network(), roster=roster)


if __name__ == '__main__':
  absltest.main()
