"""Forward passes over whole data sets in padded batches."""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

# Fields that describe a record and are no input of a model.
BOOKKEEPING = ('label', 'id', 'mask')
DATA_AXIS = 'data'


def inputs_of(fields: Mapping[str, Any]) -> dict[str, Any]:
  """The fields that a model reads."""
  return {name: value for name, value in fields.items() if name not in BOOKKEEPING}


def num_records(fields: Mapping[str, Any]) -> int:
  """The length that all fields share.

  Raises:
    ValueError: there is no field, no record, or the lengths differ.
  """
  lengths = {name: len(value) for name, value in fields.items()}
  if not lengths or len(set(lengths.values())) != 1 or 0 in lengths.values():
    raise ValueError('fields must have one common length of at least 1, got '
                     f'{lengths if lengths else "no field"}')
  return next(iter(lengths.values()))


def pad(values: np.ndarray, size: int) -> np.ndarray:
  """Appends copies of the first record until there are `size`: always a valid input."""
  values = np.asarray(values)
  return np.concatenate([values, np.repeat(values[:1], size - len(values), axis=0)])


def mesh_of(variables: Any) -> Mesh | None:
  """The mesh of several devices that the variables lie on, None if there is none."""
  for leaf in jax.tree.leaves(variables):
    sharding = getattr(leaf, 'sharding', None)
    if (isinstance(sharding, NamedSharding) and sharding.mesh.size > 1
        and DATA_AXIS in sharding.mesh.axis_names):
      return sharding.mesh
  return None


def round_up(size: int, mesh: Mesh | None) -> int:
  """The next batch size that divides over the mesh."""
  shards = mesh.shape[DATA_AXIS] if mesh is not None else 1
  return -(-size // shards) * shards


@functools.partial(jax.jit, static_argnames=('apply', 'names', 'replicated'))
def _forward(variables, inputs, *, apply, names, replicated):
  outputs, _ = apply(variables, inputs, train=False)
  if missing := [name for name in names if name not in outputs]:
    raise ValueError(f'the model has no output {missing}; it has {sorted(outputs)}')
  outputs = {name: outputs[name] for name in names}
  if replicated is not None:  # every process must be able to read all of it
    outputs = jax.lax.with_sharding_constraint(outputs, replicated)
  return outputs


def predict(apply: Callable, variables: Any, fields: Mapping[str, np.ndarray], *,
            batch_size: int = 256, names: tuple[str, ...] = ('logits', 'features')
            ) -> dict[str, np.ndarray]:
  """Outputs of a model for every record, in evaluation mode.

  Compiled once per `apply` and shape: the last batch is padded and its padding cut off. If the
  variables lie on a mesh, batches are sharded over its `data` axis.

  Args:
    apply: a model's `apply`.
    variables: of the model.
    fields: name -> [N, ...]; label, id and mask are not passed on.
    batch_size: records at a time; rounded up to a multiple of the mesh's size.
    names: which outputs; the others are not computed.

  Returns:
    name -> [N, ...].

  Raises:
    ValueError: fields of different lengths, no records, an output that the model does not have.
  """
  inputs = inputs_of(fields)
  total = num_records(inputs)
  mesh = mesh_of(variables)
  size = round_up(min(batch_size, total), mesh)
  sharded = NamedSharding(mesh, PartitionSpec(DATA_AXIS)) if mesh is not None else None
  replicated = NamedSharding(mesh, PartitionSpec()) if mesh is not None else None
  batches = []
  for start in range(0, total, size):
    batch = {name: pad(value[start:start + size], size) for name, value in inputs.items()}
    batches.append(_forward(variables, jax.device_put(batch, sharded), apply=apply, names=names,
                            replicated=replicated))
  batches = jax.device_get(batches)
  return {name: np.concatenate([batch[name] for batch in batches])[:total] for name in names}
