"""The one loop: runs any method's phases, whatever they do."""

from collections.abc import Callable, Mapping
import contextlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from unlearn_jax import types
from unlearn_jax.data import streams as streams_lib
from unlearn_jax.evals import metrics as metrics_lib
from unlearn_jax.train import checkpoint as checkpoint_lib
from unlearn_jax.train import log
from unlearn_jax.train import sharding


class NonFiniteError(FloatingPointError):
  """A loss or metric that is not finite; says in which phase and step."""


class Result(NamedTuple):
  """What a run returns.

  Attributes:
    state: the last state.
    variables: `method.export(state)`.
    seconds: time spent in steps and in the signals they read, compilation excluded.
    compile_seconds: time spent in compilation.
    steps: steps taken, over all runs of a resumed one.
    flops: of these steps, as the compiler counts them: the body of a loop (a Sinkhorn solve) once.
    memory: bytes on a device that the largest step takes, as compiled: arguments, outputs,
      temporaries; 0 where the compiler does not say.
  """

  state: types.TrainState
  variables: types.Variables
  seconds: float
  compile_seconds: float
  steps: int
  flops: float
  memory: float


def run(method: types.Method, variables: types.Variables, streams: Mapping[str, types.Stream], *,
        key: types.Array, apply: Callable | None = None, mesh: Mesh | None = None,
        monitor: types.Evaluator | None = None, evaluators: tuple[types.Evaluator, ...] = (),
        checkpointer: checkpoint_lib.Checkpointer | None = None, checkpoint_every: int = 0,
        note: Mapping[str, Any] | None = None, directory: str | None = None, log_every: int = 10,
        label: str = '', show_progress: bool = True) -> Result:
  """Runs a method's phases and returns the unlearned model.

  If `checkpointer` holds a checkpoint, the run continues from it, bitwise as if it had never
  stopped. A checkpoint is written every `checkpoint_every` steps and at every phase boundary.

  Args:
    method: what to run.
    variables: the model to start from.
    streams: stream name -> stream; every phase names one.
    key: typed PRNG key.
    apply: the model's `apply`, needed by `monitor` and `evaluators`.
    mesh: devices to use; all of them by default.
    monitor: gives the signals that phases ask for.
    evaluators: run every `evaluator.every` steps, into the log.
    checkpointer: where to save and resume; None for neither.
    checkpoint_every: cadence in steps; 0 saves at phase boundaries only.
    note: JSON facts saved with every checkpoint; a checkpoint whose facts differ is refused.
    directory: of the log; None writes none.
    log_every: cadence in steps.
    label: of the progress bar.
    show_progress: whether to show one.

  Raises:
    ValueError: a phase names a stream or signal that nobody gives; a batch that does not divide
      over the mesh; a checkpoint of another model, or of other facts.
    NonFiniteError: a metric is NaN or infinite; the last good checkpoint is kept.
  """
  mesh = sharding.make_mesh() if mesh is None else mesh
  note = dict(note or {})
  _check_wiring(method, streams, monitor, evaluators, apply)
  state, frozen = method.init(key, variables)
  state, frozen = sharding.replicate(state, mesh), sharding.replicate(frozen, mesh)
  position, spent = (0, 0), {'seconds': 0.0, 'compile_seconds': 0.0, 'flops': 0.0,
                             'memory': 0.0}
  if checkpointer is not None and (saved := checkpointer.latest()) is not None:
    if saved['note'] != note:
      raise ValueError(f'the checkpoint belongs to another run: it says {saved["note"]}, '
                       f'this run is {note}')
    position, spent = tuple(saved['position']), spent | saved['spent']
    state = checkpointer.restore(_template(method, state, position, mesh))
  taken = int(state.step)
  compiled: dict[types.StepFn, Callable] = {}  # once per step function, however many phases use it
  flops: dict[types.StepFn, float] = {}
  pending: list[types.Metrics] = []
  warm = None

  def flush(phase):
    """Fetches and checks the metrics of the latest steps, before anything of them is kept."""
    if pending:
      # Metrics may be empty: without this wait the next phase's programs are enqueued behind running
      # ones, and collectives of several programs on fake CPU devices can wait for each other.
      jax.block_until_ready(state.step)
      rows = jax.device_get(pending)
      _check_finite(rows, phase.name, taken)
      logger.write(taken, metrics_lib.compute(metrics_lib.merge(rows)), phase=phase.name)
      pending.clear()

  def save(position):
    if checkpointer is not None:
      checkpointer.save(state, {'position': position, 'note': note, 'spent': spent})

  total = sum(phase.steps for phase in method.phases)
  with log.Logger(directory, start=taken) as logger, \
       log.progress(total, initial=taken, label=label, show=show_progress) as bar:
    for number, phase in enumerate(method.phases):
      if number < position[0]:
        continue
      begin = position[1] if number == position[0] else 0
      if begin == 0 and phase.enter is not None:
        state = sharding.replicate(jax.jit(phase.enter)(state), mesh)
      # A stream goes on where the last phase that read it was to end: no epoch comes twice.
      before = sum(other.steps for other in method.phases[:number] if other.stream == phase.stream)
      # Batches are put onto the devices in the thread that makes them: a host decodes only its own
      # devices' rows, and neither that nor the transfer keeps a step waiting.
      stream = streams[phase.stream]
      batches = streams_lib.prefetch(
          lambda step, stream=stream: sharding.shard_batch(stream(step), mesh),
          before + begin, before + phase.steps)
      with contextlib.closing(batches):
        for index, batch in enumerate(batches, begin):
          if phase.step not in compiled:
            with _clock(spent, 'compile_seconds'):
              compiled[phase.step] = _compile(phase.step, state, frozen, batch, mesh)
              flops[phase.step] = _flops(compiled[phase.step])
              spent['memory'] = max(spent['memory'], _memory(compiled[phase.step]))
              if phase.signals and not warm:
                warm = monitor.run(apply, method.export(state))  # compiles the monitor
          with _clock(spent, 'seconds'):
            due = [name for name, every in phase.signals.items() if index % every == 0]
            if due:
              state = _refresh(state, monitor.run(apply, method.export(state)), due, mesh)
            if phase.until is not None and phase.until(jax.device_get(state.signals)):
              break
            state, metrics = compiled[phase.step](state, frozen, batch)
            spent['flops'] += flops[phase.step]
            pending.append(metrics)
            taken += 1
            save_now = checkpoint_every and (index + 1) % checkpoint_every == 0
            if (index + 1) % log_every == 0 or save_now or index + 1 == phase.steps:
              flush(phase)
          if save_now and index + 1 < phase.steps:
            save((number, index + 1))
          for evaluator in evaluators:
            if evaluator.every and taken % evaluator.every == 0:
              logger.write(taken, evaluator.run(apply, method.export(state)), phase=phase.name)
          bar.set_postfix_str(phase.name, refresh=False)
          bar.update()
      flush(phase)  # of a phase that stopped early
      save((number + 1, 0))
  return Result(state, method.export(state), spent['seconds'], spent['compile_seconds'], taken,
                spent['flops'], spent['memory'])


@contextlib.contextmanager
def _clock(spent: dict[str, float], name: str):
  """Adds the time of the block to `spent[name]`."""
  started = time.perf_counter()
  try:
    yield
  finally:
    spent[name] += time.perf_counter() - started


def _compile(step: types.StepFn, state, frozen, batch, mesh: Mesh) -> Callable:
  """Compiles a step ahead of time: state donated, outputs replicated."""
  replicated = NamedSharding(mesh, PartitionSpec())
  jitted = jax.jit(step, donate_argnums=0, out_shardings=(replicated, replicated))
  return jitted.lower(state, frozen, batch).compile()


def _flops(compiled: jax.stages.Compiled) -> float:
  """Of one step on all devices; 0 where the compiler does not count."""
  return float((compiled.cost_analysis() or {}).get('flops', 0.0)) * len(
      jax.tree.leaves(compiled.input_shardings)[0].device_set)


def _memory(compiled: jax.stages.Compiled) -> float:
  """Bytes on a device; donated arguments count once. 0 where the compiler does not say."""
  found = compiled.memory_analysis()
  return 0.0 if found is None else float(
      found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
      - found.alias_size_in_bytes)


def _refresh(state: types.TrainState, values: Mapping[str, Any], due: list[str], mesh: Mesh):
  """The state with the due signals replaced."""
  fresh = {name: jnp.asarray(values[name], jnp.float32) for name in due}
  return state.replace(signals={**state.signals, **sharding.replicate(fresh, mesh)})


def _template(method: types.Method, state: types.TrainState, position: tuple[int, int], mesh: Mesh):
  """The state's shapes at `position`: `enter` may have changed the optimizer's tree."""
  number, index = position
  shapes = jax.eval_shape(lambda s: s, state)
  for phase in method.phases[:number + (index > 0)]:
    if phase.enter is not None:
      shapes = jax.eval_shape(phase.enter, shapes)
  replicated = NamedSharding(mesh, PartitionSpec())
  return jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated), shapes)


def _check_finite(rows: list[types.Metrics], phase: str, taken: int) -> None:
  """Names the first step of `rows`, which end at step `taken`, with a NaN or an infinity."""
  for back, row in enumerate(rows):
    for name, value in row.items():
      if not np.all(np.isfinite(np.asarray(jax.tree.leaves(value)))):
        raise NonFiniteError(
            f'{name} is not finite in phase {phase!r}, step {taken - len(rows) + back + 1}; the '
            'last checkpoint before it is kept. A smaller learning rate is the usual cure')


def _check_wiring(method, streams, monitor, evaluators, apply) -> None:
  """Everything that phases ask for must be there before any compute is spent."""
  for phase in method.phases:
    if phase.stream not in streams:
      raise ValueError(f'phase {phase.name!r} wants stream {phase.stream!r}, there is: '
                       f'{", ".join(sorted(streams))}')
    if phase.signals and monitor is None:
      raise ValueError(f'phase {phase.name!r} reads the signals {sorted(phase.signals)}, but no '
                       'monitor gives them')
  if apply is None and (evaluators or any(phase.signals for phase in method.phases)):
    raise ValueError("evaluators and signals need the model's apply")
