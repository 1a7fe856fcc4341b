"""What the key tables of all public checkpoints share: a parameter's tensors, and their shapes."""

from collections.abc import Mapping
from typing import Any


def split(names: tuple[str, ...], value: Any) -> dict[str, Any]:
  """Name -> its rows of a parameter that is stored under one name, or in equal parts under several."""
  if len(names) == 1:
    return {names[0]: value}
  rows = len(value) // len(names)
  return {name: value[number * rows:(number + 1) * rows] for number, name in enumerate(names)}


def joined(names: tuple[str, ...], tensors: Mapping[str, Any], xp) -> Any:
  """The inverse of `split`; `xp` is the module of the arrays, numpy or jax.numpy."""
  parts = [tensors[name] for name in names]
  return parts[0] if len(parts) == 1 else xp.concatenate(parts)


def shape(tensors: Mapping[str, Any], name: str, rank: int) -> tuple[int, ...]:
  """The shape of a tensor that tells sizes.

  Raises:
    ValueError: it is missing, or has another number of axes.
  """
  if name not in tensors:
    raise ValueError(f'{name!r} is missing')
  if len(tensors[name].shape) != rank:
    raise ValueError(f'{name!r} should have {rank} axes, has shape {tuple(tensors[name].shape)}')
  return tuple(tensors[name].shape)
