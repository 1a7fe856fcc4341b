"""What clients have written into each matrix, against histories followed by hand."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from tests.methods import federation_toy as toy
from unlearn_jax.methods import fed_clients
from unlearn_jax.methods import fed_subspaces
from unlearn_jax.methods import federated
from unlearn_jax.methods.federate import federate
from unlearn_jax.models import lora

BRANCHES = federated.BRANCHES
ROUNDS, KEPT = 3, 2


def trained(mode: str):
  """(variables after every round, those of the last with the history of the last two)."""
  settings = {'history': KEPT, 'role': 'train', 'optimizer': 'sgd', 'learning_rate': 0.2}
  network, found = toy.network(mode), []
  for rounds in range(1, ROUNDS + 1):
    method = federate(network, roster=toy.roster(), rounds=rounds, **settings)
    found.append(toy.run(method, toy.variables(mode), toy.feed()).variables)
  return [toy.variables(mode), *found]


class WrittenTest(parameterized.TestCase):

  @parameterized.parameters('full', 'ffa')
  def test_histories_by_hand(self, mode):
    """Where rounds set out from, and the sum of W(theta_t + delta_t) - W(theta_t)."""
    after = trained(mode)
    last, network = after[-1], toy.network(mode)
    federation = last['federation']
    sent = fed_clients.sent_out(federation, last['adapter'])
    for branch in BRANCHES:
      for number in range(ROUNDS - KEPT, ROUNDS):
        np.testing.assert_allclose(sent[branch][number % KEPT], after[number]['adapter'][branch],
                                   atol=1e-6)
    weights = lambda adapter: lora.updates(network, {**last, 'adapter': adapter})
    found = fed_subspaces.written(network, last, sent, federation['updates'])
    for branch in BRANCHES:
      (matrix,) = found[branch]
      for client in range(4):
        want = 0.0
        for slot in range(KEPT):
          start = {name: sent[name][slot] for name in BRANCHES}
          local = {name: start[name] + federation['updates'][name][client, slot]
                   for name in BRANCHES}
          want += weights(local)[branch][matrix] - weights(start)[branch][matrix]
        self.assertGreater(np.abs(want).max(), 1e-3)
        np.testing.assert_allclose(found[branch][matrix][client], want, atol=2e-6)

  def test_who_took_no_part_has_written_nothing(self):
    last, network = trained('full')[-1], toy.network()
    nothing = jax.tree.map(jnp.zeros_like, last['federation']['updates'])
    sent = fed_clients.sent_out(last['federation'], last['adapter'])
    for leaf in jax.tree.leaves(fed_subspaces.written(network, last, sent, nothing)):
      np.testing.assert_array_equal(leaf, 0)

  @parameterized.parameters('full', 'ffa')
  def test_planted_directions_of_a_matrix(self, mode):
    """Client 0 writes one row of W, the others another one: its row is its own, columns are not."""
    given, network = dict(toy.variables(mode)), toy.network(mode)
    factors = lora.unflatten(network, given)
    rounds = {branch: np.zeros((4, 1, len(vector)), np.float32)
              for branch, vector in given['adapter'].items()}
    for branch, matrices in factors.items():
      (name, one), = matrices.items()
      for client in range(4):
        moved = np.zeros(one.b.shape, np.float32)
        moved[0 if client == 0 else 1] = 1.0  # B A: the sum of the rows of A, in this row
        rounds[branch][client, 0] = lora.flatten({name: lora.Factors(
            moved, None if one.a is None else np.zeros_like(one.a))})
    starts = {branch: vector[None] for branch, vector in given['adapter'].items()}
    settings = {'energy': 1.0, 'max_rank': 4, 'threshold': 0.5}
    exclusive, support = fed_subspaces.of_matrices(
        network, given, starts, {branch: ring[:1] for branch, ring in rounds.items()},
        {branch: ring[1:] for branch, ring in rounds.items()},
        lambda forget, retain: fed_subspaces.decompose(forget, retain, **settings))
    for branch in BRANCHES:
      (own,), (others,) = exclusive[branch].values(), support[branch].values()
      self.assertEqual(own.keys(), {'left'} | ({'right'} if mode == 'full' else set()))
      for vectors, row in ((own['left'], 0), (others['left'], 1)):
        want = np.zeros((toy.EMBEDDING, toy.EMBEDDING))
        want[row, row] = 1.0
        np.testing.assert_allclose(vectors @ vectors.T, want, atol=1e-5)
      if mode == 'full':
        np.testing.assert_array_equal(own['right'], 0)
      self.assertEqual(int(fed_subspaces.exclusive_rank(exclusive[branch])), 1)


if __name__ == '__main__':
  absltest.main()
