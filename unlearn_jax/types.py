"""The seven nouns of the toolkit: aliases and containers, no logic."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flax import struct
import jax

Array = jax.Array
PyTree = Any
Variables = Mapping[str, PyTree]  # {'params': tree, 'batch_stats': tree, ...}, as Flax names them
Inputs = Mapping[str, Array]  # fields of one role: image, label, text, audio, id, mask
Batch = Mapping[str, Inputs]  # role -> fields: {'retain': {...}, 'forget': {...}}
Stream = Callable[[int], Batch]  # step -> batch, a pure function of (seed, step)
Metrics = Mapping[str, Any]  # name -> scalar, or (sum, count)


class Model(NamedTuple):
  """A network as two pure functions.

  Attributes:
    init: `(key, inputs) -> variables`.
    apply: `(variables, inputs, *, train=False, rngs=None, method=None) -> (outputs, variables)`;
      `outputs` is a dict (`logits`, `features`, ...), the returned variables hold the updated
      collections (batch statistics) and the same parameters.
  """

  init: Callable[..., Variables]
  apply: Callable[..., tuple[Mapping[str, Array], Variables]]


@struct.dataclass
class TrainState:
  """Everything that changes during a run, and nothing that does not.

  Attributes:
    step: int32 scalar, steps taken over all phases.
    params: dict of named parameter trees (`model`, `noise`, `prompt`, `adapter`, ...).
    collections: the model's other collections (batch statistics).
    opt_state: state of the current phase's optimizer.
    key: typed PRNG key; steps fold `step` into it and never split it, so resuming needs no replay.
    extra: owned by the method (accumulators, snapshots, histories).
    signals: scalars that the loop refreshes from evaluators; the only feedback from host to device.
  """

  step: Array
  params: Mapping[str, PyTree]
  collections: Mapping[str, PyTree]
  opt_state: PyTree
  key: Array
  extra: PyTree = struct.field(default_factory=dict)
  signals: Mapping[str, Array] = struct.field(default_factory=dict)


StepFn = Callable[[TrainState, PyTree, Batch], tuple[TrainState, Metrics]]


class Phase(NamedTuple):
  """A stretch of identical steps.

  Attributes:
    name: unique within a method only by convention; used in logs and errors.
    step: `(state, frozen, batch) -> (state, metrics)`, pure, traced once.
    steps: how many.
    stream: which stream feeds it (`pair`, `retain`, `forget`, `train`, ...); phases that share a
      stream read it one after the other.
    enter: `state -> state` on first entry (new optimizer, re-initialisation); traceable.
    until: `signals -> bool`, checked on the host before each step: stops the phase early.
    signals: signal name -> cadence in steps of this phase; refreshed before the step.
  """

  name: str
  step: StepFn
  steps: int
  stream: str = 'pair'
  enter: Callable[[TrainState], TrainState] | None = None
  until: Callable[[Mapping[str, float]], bool] | None = None
  signals: Mapping[str, int] = {}


class Method(NamedTuple):
  """An unlearning algorithm.

  Attributes:
    init: `(key, variables) -> (state, frozen)`; `frozen` (teachers, reference encoders) is passed
      to every step and is never donated, saved or closed over.
    phases: run in order.
    export: `state -> variables`, what evaluators and users receive.
  """

  init: Callable[[Array, Variables], tuple[TrainState, PyTree]]
  phases: tuple[Phase, ...]
  export: Callable[[TrainState], Variables]


class Evaluator(NamedTuple):
  """A measurement of a model.

  Attributes:
    name: shown in logs and errors.
    run: `(apply, variables) -> {metric: float}`.
    every: cadence in steps when the loop drives it; 0 is at the end only.
  """

  name: str
  run: Callable[..., Mapping[str, float]]
  every: int = 0
