"""Tests in double precision, where the tolerances of closed forms hold."""

from absl.testing import parameterized
import jax
import numpy as np


class Float64Test(parameterized.TestCase):
  """Runs every test in float64."""

  def setUp(self):
    super().setUp()
    self.enterContext(jax.enable_x64(True))

  def assert_close(self, found, wanted, tolerance):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance)
