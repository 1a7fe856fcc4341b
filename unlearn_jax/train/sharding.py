"""The mesh, and how state and batches lie on it."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from unlearn_jax import types
from unlearn_jax.data import fields


def make_mesh(devices: int | None = None) -> Mesh:
  """A one-axis mesh `('data',)` over all devices, or over the first `devices` of them.

  The axis is Auto: under jax's default, Explicit, Linen dropout and ott raise ShardingTypeError.

  Args:
    devices: how many; None is all of them, on every host.

  Raises:
    ValueError: more devices than there are.
  """
  available = jax.devices()
  count = len(available) if devices is None else devices
  if not 1 <= count <= len(available):
    raise ValueError(f'a mesh of {count} devices was asked for, there are {len(available)}')
  return jax.make_mesh((count,), ('data',), axis_types=(AxisType.Auto,), devices=available[:count])


def replicate(tree: types.PyTree, mesh: Mesh) -> types.PyTree:
  """Every leaf whole on every device, in buffers of its own (the loop donates them)."""
  sharding = NamedSharding(mesh, PartitionSpec())
  return jax.device_put(jax.tree.map(jax.numpy.copy, tree), sharding)


def shard_batch(batch: types.Batch, mesh: Mesh) -> types.Batch:
  """Splits the leading axis of every leaf over the mesh.

  Every host builds the same global batch (streams are pure functions of the step) and keeps its
  own devices' rows. Of a `data.fields.Lazy` leaf it reads nothing but these, each row once.

  Raises:
    ValueError: a leading axis that the number of devices does not divide.
  """
  sharding = NamedSharding(mesh, PartitionSpec('data'))

  def put(path, leaf):
    lazy = isinstance(leaf, fields.Lazy)
    leaf = leaf if lazy else np.asarray(leaf)
    if leaf.shape[0] % mesh.size:
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      raise ValueError(f'batch field {name} has {leaf.shape[0]} rows, which {mesh.size} devices '
                       'cannot share evenly; choose a batch size that is a multiple')
    if jax.process_count() == 1 and not lazy:
      return jax.device_put(leaf, sharding)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

  return jax.tree_util.tree_map_with_path(put, batch)
