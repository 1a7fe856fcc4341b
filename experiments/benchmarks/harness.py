"""Fair timing of two or more sides: the same losses first, then alternating runs and medians."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import gc
import importlib.metadata
import math
import os
import platform
import time
from typing import Any, NamedTuple

import jax
import numpy as np

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'ott-jax', 'numpy', 'scikit-learn', 'torch', 'POT')


class Mismatch(ValueError):
  """The two sides do not compute the same thing; their times must not be compared."""


class Timing(NamedTuple):
  """Times of one side.

  Attributes:
    first: seconds of the first call, compilation and lazy set-up included; None if it was no other.
    seconds: per call, one entry for every round.
  """

  first: float | None
  seconds: tuple[float, ...]


class Parity(NamedTuple):
  """How close two sides are before they are timed.

  Attributes:
    what: the quantity that was compared.
    difference: max |a - b| / max |b|.
    tolerance: what it had to stay within.
  """

  what: str
  difference: float
  tolerance: float


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of the table.

  Attributes:
    name: of the benchmark.
    figure: what `value` is.
    target: largest value that meets it; None for a figure that others refer to.
    value: median over rounds of the paired ratio; None if it was not measured.
    quartiles: of the paired ratios.
    seconds: side -> median seconds of one call.
    first: side -> seconds of the first call.
    rounds: how often every side was timed.
    parity: see `Parity`.
    reason: why there is no value.
    note: what the figure says and what limits it.
  """

  name: str
  figure: str
  target: float | None = None
  value: float | None = None
  quartiles: tuple[float, float] | None = None
  seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
  first: Mapping[str, float] = dataclasses.field(default_factory=dict)
  rounds: int = 0
  parity: Parity | None = None
  reason: str = ''
  note: str = ''

  @property
  def verdict(self) -> str:
    """`met` or `not met` for the value as it is printed, to two decimals."""
    if self.value is None:
      return f'not measured: {self.reason}'
    if self.target is None:
      return 'reference'
    return 'met' if round(self.value, 2) <= self.target else 'not met'


def threads() -> int:
  """The cores that this process may use; XLA takes all of them for its pool."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def use_equal_threads() -> int:
  """Gives PyTorch as many threads as XLA has, and says how many; without PyTorch only says it."""
  count = threads()
  if _version('torch'):
    import torch
    torch.set_num_threads(count)
  return count


def check_parity(what: str, ours: Sequence, other: Sequence, *, tolerance: float) -> Parity:
  """Compares what two sides computed from the same numbers.

  Args:
    what: the quantity, in words.
    ours: floats or arrays.
    other: the same of the other side, in the same order.
    tolerance: of max |a - b| / max |b|.

  Raises:
    Mismatch: a larger difference, other shapes, or numbers that are not finite.
  """
  a, b = (np.concatenate([[], *(np.ravel(np.asarray(x, np.float64)) for x in side)])
          for side in (ours, other))
  if a.shape != b.shape or not a.size:
    raise Mismatch(f'{what}: {a.size} values here, {b.size} there')
  if not (np.isfinite(a).all() and np.isfinite(b).all()):
    raise Mismatch(f'{what}: not finite')
  difference = float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-12))
  if difference > tolerance:
    raise Mismatch(f'{what} differ by {difference:.1e}, the tolerance is {tolerance:.0e}')
  return Parity(what, difference, tolerance)


class FirstCall:
  """A function that remembers how long its first call took: tracing, compilation, lazy set-up."""

  def __init__(self, call: Callable, clock: Callable[[], float] = time.perf_counter):
    self.call, self.clock, self.seconds = call, clock, None

  def __call__(self, *args):
    if self.seconds is not None:
      return self.call(*args)
    began = self.clock()
    found = self.call(*args)
    self.seconds = self.clock() - began
    return found


def alternate(sides: Mapping[str, Callable[[], Any]], rounds: int, *,
              first: Mapping[str, float] | None = None, at_least: float = 0.05,
              clock: Callable[[], float] = time.perf_counter) -> dict[str, Timing]:
  """Times the sides in turn: A, B, A, B, ...

  The first call of every side is timed apart. A short side is called several times in a round, and
  once before that untimed: the other side's threads spin on for some milliseconds, and the caches
  are full of its data.

  Args:
    sides: name -> a call that returns when its work is done.
    rounds: at least 1.
    first: side -> seconds of its first call, where that was made before.
    at_least: seconds that a side's turn lasts, about.
    clock: seconds.

  Returns:
    name -> timing, one entry per round.

  Raises:
    ValueError: no rounds.
  """
  if rounds < 1:
    raise ValueError(f'rounds is at least 1, got {rounds}')

  def timed(call, repeat=1):
    began = clock()
    for _ in range(repeat):
      call()
    return (clock() - began) / repeat

  first = {name: timed(call) for name, call in sides.items()} | dict(first or {})
  repeat = {name: max(1, math.ceil(at_least / max(timed(call), 1e-9)))
            for name, call in sides.items()}
  seconds = {name: [] for name in sides}
  gc.collect()
  gc.disable()
  try:
    for _ in range(rounds):
      for name, call in sides.items():
        if repeat[name] > 1:
          call()
        seconds[name].append(timed(call, repeat[name]))
  finally:
    gc.enable()
  return {name: Timing(first[name], tuple(seconds[name])) for name in sides}


def spread(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
  """(median, (lower quartile, upper quartile))."""
  low, middle, high = (float(x) for x in np.percentile(values, (25, 50, 75)))
  return middle, (low, high)


def ratio(timings: Mapping[str, Timing], above: str, below: Mapping[str, float]) -> np.ndarray:
  """`above / sum_k count_k below_k`, round by round; neighbours share the machine's mood."""
  cost = sum(count * np.asarray(timings[name].seconds) for name, count in below.items())
  return np.asarray(timings[above].seconds) / cost


def make_row(name: str, figure: str, target: float | None, ratios: Sequence[float],
             timings: Mapping[str, Timing], *, parity: Parity | None = None, note: str = '',
             limit: str = '') -> Row:
  """A measured row: median and quartiles of `ratios`, medians of every side.

  `limit` says what keeps the value above its target; it is part of the note where it does.
  """
  value, quartiles = spread(ratios)
  row = Row(
      name, figure, target, value, quartiles,
      seconds={side: float(np.median(timing.seconds)) for side, timing in timings.items()},
      first={side: timing.first for side, timing in timings.items()
             if timing.first is not None},
      rounds=len(ratios), parity=parity, note=note)
  if row.verdict == 'not met' and limit:
    row = dataclasses.replace(row, note=f'{note} {limit}'.strip())
  return row


def machine() -> dict[str, Any]:
  """What the times depend on: cores, what else ran on them, versions; nothing that names it."""
  return {'cores': threads(), 'load before': round(os.getloadavg()[0], 1),
          'backend': jax.default_backend(), 'python': platform.python_version(),
          **{name: found for name in PACKAGES if (found := _version(name))}}


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None
