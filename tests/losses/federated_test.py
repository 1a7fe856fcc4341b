"""The baselines' server algebra against the formulas, written out in NumPy."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from unlearn_jax.losses import federated

P = 30


class FederatedTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.enterContext(jax.enable_x64(True))
    rng = np.random.default_rng(0)
    self.forget, self.retain, self.moved = rng.normal(size=P), rng.normal(size=(5, P)), rng.normal(
        size=P)

  @parameterized.parameters(1.0, 1e-6, 1e6)
  def test_orthogonal_direction(self, scale):
    g, rows = self.forget, scale * self.retain
    found = federated.orthogonal_direction(g, rows)
    want = g - rows.T @ np.linalg.pinv(rows @ rows.T) @ rows @ g
    want *= np.linalg.norm(g) / np.linalg.norm(want)
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-10)
    np.testing.assert_allclose(rows @ found / scale, 0.0, atol=1e-10)
    self.assertGreater(found @ g, 0.0)

  def test_repeated_and_absent_clients(self):
    rows = np.concatenate([self.retain, self.retain[:1], np.zeros((1, P))])
    np.testing.assert_allclose(federated.orthogonal_direction(self.forget, rows),
                               federated.orthogonal_direction(self.forget, self.retain), atol=1e-10)
    where = np.array([1, 0, 1, 1, 0])
    broken = np.where(where[:, None] > 0, self.retain, np.nan)
    np.testing.assert_allclose(
        federated.orthogonal_direction(self.forget, broken, where=where),
        federated.orthogonal_direction(self.forget, self.retain[where > 0]), atol=1e-10)
    np.testing.assert_allclose(
        federated.orthogonal_direction(self.forget, broken, where=np.zeros(5)), self.forget,
        atol=1e-12)

  def test_no_direction_is_left(self):
    inside = np.random.default_rng(1).normal(size=5) @ self.retain
    np.testing.assert_array_equal(federated.orthogonal_direction(inside, self.retain), 0.0)
    np.testing.assert_array_equal(federated.orthogonal_direction(np.zeros(P), self.retain), 0.0)

  def test_without_return(self):
    found = federated.without_return(self.forget, self.moved)
    want = self.forget - self.forget @ self.moved / np.sum(self.moved ** 2) * self.moved
    np.testing.assert_allclose(found, want * np.linalg.norm(self.forget) / np.linalg.norm(want),
                               atol=1e-12)
    np.testing.assert_allclose(found @ self.moved, 0.0, atol=1e-12)
    np.testing.assert_array_equal(federated.without_return(self.forget, np.zeros(P)), self.forget)
    np.testing.assert_allclose(federated.without_return(np.eye(P)[0], np.eye(P)[0]), 0.0)

  @parameterized.parameters(0.0, 0.5, 4.0)
  def test_project_on_ball(self, radius):
    center = self.retain[0]
    gap = self.forget - center
    found = federated.project_on_ball(self.forget, center, radius=radius)
    np.testing.assert_allclose(found, center + radius * gap / np.linalg.norm(gap), atol=1e-12)
    wide = 2.0 * np.linalg.norm(gap)
    np.testing.assert_array_equal(federated.project_on_ball(self.forget, center, radius=wide),
                                  self.forget)

  def test_gradients_at_awkward_points(self):
    total = lambda f: lambda *x: f(*x).sum()
    for gradient in (
        jax.grad(total(lambda x: federated.project_on_ball(x, self.moved, radius=1.0)))(self.moved),
        jax.grad(total(lambda x: federated.project_on_ball(x, self.moved, radius=0.0)))(self.moved),
        jax.grad(total(federated.without_return))(np.zeros(P), np.zeros(P)),
        jax.grad(total(federated.orthogonal_direction))(np.zeros(P), np.zeros((2, P)))):
      self.assertTrue(np.isfinite(gradient).all())


if __name__ == '__main__':
  absltest.main()
