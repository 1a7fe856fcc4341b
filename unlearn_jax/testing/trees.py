"""Trees of arrays leaf by leaf: what differs, and what is not finite."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax.models import surgery


def host(tree):
  """A copy of the tree in numpy arrays; keys as their data."""
  return jax.tree.map(lambda leaf: np.array(
      jax.random.key_data(leaf) if jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key)
      else leaf), tree)


def flat(tree) -> dict[str, np.ndarray]:
  return dict(zip(surgery.paths(tree), jax.tree.leaves(host(tree))))


def differences(before, after) -> Iterator[tuple[str, float]]:
  """(path, largest difference) of two trees of one structure."""
  before, after = flat(before), flat(after)
  if before.keys() != after.keys():
    raise ValueError(f'trees differ: {sorted(before.keys() ^ after.keys())} are in one only')
  for name, leaf in before.items():
    change = np.abs(leaf.astype(np.float64) - after[name].astype(np.float64))
    yield name, float(np.max(change, initial=0.0))


def changed(before, after) -> Iterator[str]:
  for name, difference in differences(before, after):
    if difference != 0:  # NaN is a change
      yield name


def not_finite(tree) -> Iterator[str]:
  for name, leaf in flat(tree).items():
    if bad := int((~np.isfinite(leaf)).sum()):
      yield f'{bad} of {leaf.size} values of {name} are NaN or infinite'


def norm(tree) -> float:
  return float(np.sqrt(sum(np.vdot(leaf, leaf) for leaf in map(np.asarray, jax.tree.leaves(tree)))))
