"""The steps on generators and their twins in PyTorch agree; a changed twin is refused."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import pytest

from experiments.benchmarks import generators
from experiments.benchmarks import harness

torch = pytest.importorskip('torch')
pytestmark = pytest.mark.slow


class GeneratorsTest(parameterized.TestCase):

  @parameterized.product(family=tuple(generators.FAMILIES), method=generators.METHODS)
  def test_first_losses_agree(self, family, method):
    both = generators.compared(family, method)
    self.assertLess(both.parity.difference, 1e-5)
    self.assertGreater(float(both.ours()), 0.0)

  def test_a_twin_with_other_noise_is_refused(self):
    honest = generators.Ours.draws
    other = lambda self, number: honest(self, number + 1)
    generators.compared.cache_clear()
    with mock.patch.object(generators.Ours, 'draws', other):
      with self.assertRaises(harness.Mismatch):
        generators.compared('mae', 'i2i')
    generators.compared.cache_clear()


if __name__ == '__main__':
  absltest.main()
