"""Means as mergeable (sum, count) states, so that ragged and padded batches average correctly."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Mean(NamedTuple):
  """A running mean: `sum / count`. Any plain `(sum, count)` tuple is as good."""

  sum: Any
  count: Any


def mean(values: jax.Array, *, where: jax.Array | None = None) -> Mean:
  """The state of the masked mean of per-example values, `sum(w * v) / sum(w)`; traceable.

  Args:
    values: [B, ...].
    where: [B], 1 counts and 0 does not; None counts everything. Values that do not count may be
      anything, NaN included.
  """
  values = jnp.asarray(values, jnp.float32)
  if where is None:
    return Mean(values.sum(), jnp.asarray(values.size, jnp.float32))
  where = jnp.asarray(where, jnp.float32).reshape((-1,) + (1,) * (values.ndim - 1))
  where = jnp.broadcast_to(where, values.shape)
  return Mean(jnp.where(where > 0, values * where, 0.0).sum(), where.sum())


def merge(rows: Iterable[Mapping[str, Any]]) -> dict[str, Mean]:
  """Adds up the metrics of several steps, name by name; a name may be missing in some rows.

  Args:
    rows: each maps a name to a scalar (counts once) or to a `(sum, count)` tuple.

  Returns:
    name -> (sum, count), names in the order of their first appearance.
  """
  total: dict[str, Mean] = {}
  for row in rows:
    for name, value in row.items():
      value = Mean(*value) if isinstance(value, tuple) else Mean(value, 1)
      before = total.get(name, Mean(0.0, 0.0))
      total[name] = Mean(before.sum + value.sum, before.count + value.count)
  return total


def compute(states: Mapping[str, tuple[Any, Any]]) -> dict[str, float]:
  """name -> sum / count. A state that counted nothing has no value: its name is left out."""
  return {name: float(total) / float(count) for name, (total, count) in states.items()
          if float(count) > 0}
