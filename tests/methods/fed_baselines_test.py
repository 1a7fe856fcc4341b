"""What all federated baselines have in common: seeds, compilation, collections, who is left alone."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from tests.methods import fed_towers
from unlearn_jax.methods import fed_ascent
from unlearn_jax.methods import fed_history
from unlearn_jax.methods import fed_pairs
from unlearn_jax.methods import fed_parts

ROSTER = {'roster': fed_towers.ROSTERS['client']}
EXAMPLE = {'example': fed_towers.example()}
ROUNDS = {'rounds': 1, 'recover_rounds': 1, **ROSTER}
CASES = {
    'fed_ga': functools.partial(fed_ascent.fed_ga, **ROUNDS),
    'sfu': functools.partial(fed_ascent.sfu, **ROUNDS, probe_rounds=2),
    'fed_osd': functools.partial(fed_ascent.fed_osd, **ROUNDS),
    'fed_eraser': functools.partial(fed_history.fed_eraser, **ROSTER, replay_rounds=2,
                                    recover_rounds=1),
    'fed_recovery': functools.partial(fed_history.fed_recovery, **ROSTER, noise=0.01,
                                      recover_rounds=1),
    'pga': functools.partial(fed_history.pga, **EXAMPLE, **ROSTER, epochs=1, recover_rounds=1,
                             radius=1e-4),
    'fed_not': functools.partial(fed_parts.fed_not, recover_rounds=1),
    'fused': functools.partial(fed_parts.fused, **EXAMPLE, recover_rounds=1),
    'fed_multi_delete': functools.partial(fed_pairs.fed_multi_delete, **ROUNDS),
    'clip_erase': functools.partial(fed_pairs.clip_erase, **ROUNDS),
}
RANDOM = ('fed_recovery', 'pga', 'fused', 'fed_multi_delete')  # draw noise, adapters, partners
LEAVING = 1


@functools.cache
def build(name):
  return CASES[name](fed_towers.network(), **fed_towers.SGD)


@functools.cache
def compiled(fn):
  return jax.jit(fn, donate_argnums=0)


def variables():
  """A copy of its own: what is donated is gone."""
  return jax.tree.map(jnp.copy, fed_towers.variables()[0])


def run(name, **how):
  *_, (*_, state, metrics) = fed_towers.play(build(name), variables(), **{'jit': compiled, **how})
  return build(name).export(state), metrics


def flat(tree):
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


class FedBaselinesTest(parameterized.TestCase):

  @parameterized.parameters(*CASES)
  def test_seeds(self, name):
    first, again, other = (run(name, key=key)[0] for key in (0, 0, 1))
    self.assertTrue(np.isfinite(flat(first)).all())
    np.testing.assert_array_equal(flat(first), flat(again))
    differs = np.any(flat(first['adapter']) != flat(other['adapter']))
    self.assertEqual(differs, name in RANDOM)

  @parameterized.parameters('sfu', 'fed_eraser', 'fed_multi_delete')
  def test_compiled_as_plain(self, name):
    plain, _ = run(name, jit=lambda fn: fn)
    np.testing.assert_allclose(flat(run(name)[0]), flat(plain), rtol=1e-4, atol=1e-5)

  @parameterized.parameters(*CASES)
  def test_collections(self, name):
    """As a checkpoint's template promises; the history as it was; the backbone too, but FUSED's."""
    given = variables()
    found, _ = run(name)
    template = jax.eval_shape(
        lambda v: build(name).export(build(name).init(jax.random.key(0), v)[0]), given)
    self.assertEqual(jax.tree.structure(found), jax.tree.structure(template))
    self.assertEqual([leaf.shape for leaf in jax.tree.leaves(found)],
                     [leaf.shape for leaf in jax.tree.leaves(template)])
    np.testing.assert_array_equal(flat(found['federation']), flat(given['federation']))
    same = np.array_equal(flat(found['params']), flat(given['params']))
    self.assertEqual(same, name != 'fused')
    for branch, vector in found['adapter'].items():
      self.assertGreater(np.abs(vector - given['adapter'][branch]).max(), 1e-3)

  @parameterized.parameters(*CASES)
  def test_the_client_that_left_has_no_part_in_rounds_of_the_others(self, name):
    """Whatever it holds in the role of those who stay, NaN included, nothing depends on it."""

    def spoilt(stream, found):
      del stream
      rows = np.arange(fed_towers.CLIENTS)[:, None, None, None] == LEAVING
      data = {field: np.where(rows, np.nan, leaf) if field in fed_towers.WIDTHS else leaf
              for field, leaf in found['clients'].items()}
      return {**found, 'clients': data}

    expected, _ = run(name)
    actual, metrics = run(name, change=spoilt)
    np.testing.assert_array_equal(flat(actual), flat(expected))
    self.assertEqual(metrics['failed'], 0)

  @parameterized.parameters(*CASES)
  def test_a_client_that_fails_is_left_out(self, name):
    """NaN in the pairs of a client that stays: rounds go on without it, as if it took no part."""
    change = lambda found, **fields: {**found, 'clients': {**found['clients'], **fields}}
    chosen = np.arange(fed_towers.CLIENTS) == 2

    def failing(stream, found):
      del stream
      image = found['clients']['image']
      return change(found, image=np.where(chosen[:, None, None, None], np.nan, image))

    def absent(stream, found):
      del stream
      return change(found, part=np.where(chosen, 0, found['clients']['part']).astype(np.float32))

    actual, metrics = run(name, change=failing)
    np.testing.assert_allclose(flat(actual), flat(run(name, change=absent)[0]), rtol=1e-5,
                               atol=1e-6)
    self.assertTrue(np.isfinite(flat(actual)).all())
    self.assertEqual(metrics['failed'], 1)


if __name__ == '__main__':
  absltest.main()
