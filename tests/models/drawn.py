"""Values for abstract parameters; initialisers take seconds to compile, and start at 0 or 1."""

import jax
import numpy as np


def drawn(tree, seed, *, spread):
  """Normal leaves; biases and scales of norms deviate by `spread`, kernels by their fan-in's root."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    centre = float(jax.tree_util.keystr(path).endswith("['scale']"))
    scale = spread if leaf.ndim < 2 else np.prod(leaf.shape[:-1])**-0.5
    return (centre + scale * rng.normal(size=leaf.shape)).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, tree)
