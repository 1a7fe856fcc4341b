"""Agreement of arrays with a twin's."""

import numpy as np


def close(ours, theirs, name='', tolerance=1e-4):
  """Relative to the largest entry of an array: float32 sums cannot do it entry by entry."""
  ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
  assert ours.shape == theirs.shape, (name, ours.shape, theirs.shape)
  np.testing.assert_array_less(np.abs(ours - theirs).max(), tolerance * np.abs(theirs).max(),
                               err_msg=name)
