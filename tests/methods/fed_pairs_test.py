"""MultiDelete and CLIPErase, federated, against NumPy; who is paired with whom."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from tests.methods import fed_towers
from tests.methods import reference
from unlearn_jax.methods import fed_pairs

FORGET_RATE = 0.4
SETTINGS = {'rounds': 2, 'recover_rounds': 1, 'forget_learning_rate': FORGET_RATE, **fed_towers.SGD}


def square(a, b):
  return np.mean((a - b)**2)


def joint(u, w):
  return (u + w) / np.linalg.norm(u + w, axis=1, keepdims=True)


class FedPairsTest(parameterized.TestCase):

  def check(self, method, forget, retain, scenario='client', fields=lambda state, data: data):
    """Plays the method; both losses are `(params, original, theta, inputs) -> scalar`."""
    given, _ = fed_towers.variables()
    original = fed_towers.adapter(given)
    of = lambda loss: lambda theta, inputs: loss(given['params'], original, theta, inputs)
    names = []
    for phase, before, _, batch, after, metrics in fed_towers.play(method, given, scenario):
      theta, names = fed_towers.adapter(before), [*names, (phase.name, phase.stream)]
      kept = of(retain) if phase.name == 'unlearn' else lambda theta, inputs: fed_towers.nce(
          given['params'], theta, inputs)
      data = batch['clients']
      by = fed_towers.mean(fed_towers.updates(theta, data, kept, 0.5), data['weight'])
      if phase.name == 'unlearn':
        data = fields(before, batch['forget'])
        gone = fed_towers.updates(theta, data, of(forget), FORGET_RATE)
        by = fed_towers.moved(fed_towers.mean(gone, data['weight']), by)
      for branch in by:
        self.assertGreater(np.linalg.norm(by[branch]), 1e-3)
      fed_towers.assert_adapters(fed_towers.adapter(after), fed_towers.moved(theta, by), atol=1e-4)
      self.assertEqual(metrics['failed'], 0)
    unlearned = method.phases[0].steps
    self.assertEqual(names, [('unlearn', 'pair')] * unlearned + [('recover', 'retain')])

  @parameterized.parameters('client', 'sample')
  def test_fed_multi_delete(self, scenario):
    roster = fed_towers.ROSTERS[scenario]
    owners = np.flatnonzero(roster.forget)

    def fields(state, data):
      """The captions' partners, as a field of two numbers: row and partner, both of the batch."""
      key = jax.random.fold_in(state.key, state.step)
      partner = np.zeros(data['mask'].shape, int)
      partner[owners] = fed_pairs.partners(key, data['mask'][owners])
      places = np.broadcast_to(np.arange(fed_towers.BATCH), partner.shape)
      return {**data, 'partner': np.stack([places, partner], axis=-1)}

    def forget(params, original, theta, inputs):
      (u, w), (u_0, w_0) = (fed_towers.embed(params, one, inputs) for one in (theta, original))
      rows, partner = inputs['partner'].T
      other = np.array([list(rows).index(one) for one in partner])
      self.assertTrue(np.all(other != np.arange(len(other))))
      return (2 * square(u @ w.T, u_0 @ w_0[other].T) + square(u, u_0) + square(w, w_0))

    def retain(params, original, theta, inputs):
      return square(joint(*fed_towers.embed(params, theta, inputs)),
                    joint(*fed_towers.embed(params, original, inputs)))

    method = fed_pairs.fed_multi_delete(fed_towers.network(), roster=roster,
                                        **{**SETTINGS, 'rounds': 1})

    def init(key, variables):  # beside theta^T, where nothing would be left to retain
      state, frozen = method.init(key, variables)
      return state.replace(params=jax.tree.map(lambda vector: vector + 0.1, state.params)), frozen

    self.check(method._replace(init=init), forget, retain, scenario, fields)

  def test_clip_erase(self):
    def forget(params, original, theta, inputs):
      del original
      u, w = fed_towers.embed(params, theta, inputs)
      return np.mean(np.sum(u * w, axis=1))

    def retain(params, original, theta, inputs):
      (u, w), (u_0, w_0) = (fed_towers.embed(params, one, inputs) for one in (theta, original))
      return fed_towers.nce(params, theta, inputs) + 7.0 * (square(u, u_0) + square(w, w_0))

    self.check(fed_pairs.clip_erase(
        fed_towers.network(), roster=fed_towers.ROSTERS['client'], consistency=7.0, **SETTINGS),
               forget, retain)

  def test_every_method_has_a_reference_step(self):
    reference.check_covered(self, 'fed_pairs_test')

  def test_partners(self):
    """One cycle through the counting rows of each batch, any of them, and anew for each key."""
    mask = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 1, 1], [0, 1, 0, 1, 1], [0, 1, 0, 1, 0],
                     [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]])
    find = jax.jit(fed_pairs.partners)
    seen = set()
    for key in range(40):
      found = np.asarray(find(jax.random.key(key), jnp.asarray(mask, jnp.float32)))
      for row, counts in zip(found, mask):
        np.testing.assert_array_equal(row[counts == 0], np.flatnonzero(counts == 0))
        if counts.any():
          first = here = np.argmax(counts)
          walked = [here]
          while (here := row[here]) != first:
            walked.append(here)
          self.assertEqual(sorted(walked), np.flatnonzero(counts).tolist())
      seen.add(tuple(found[0]))
    self.assertGreater(len(seen), 12)  # of 24

  @parameterized.parameters(
      ('fed_multi_delete', {'forget_learning_rate': -1.0}, 'fed_multi_delete: forget_learning_rate'),
      ('fed_multi_delete', {'weight_decay': -1.0}, 'fed_multi_delete: weight_decay'),
      ('clip_erase', {'consistency': float('nan')}, 'clip_erase: consistency'),
      ('clip_erase', {'rounds': -1}, 'clip_erase: rounds'))
  def test_bad_settings(self, name, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      getattr(fed_pairs, name)(fed_towers.network(), roster=fed_towers.ROSTERS['client'],
                               **{**SETTINGS, **changes})


if __name__ == '__main__':
  absltest.main()
