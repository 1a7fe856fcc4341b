"""Where a run tells how it goes: JSON lines, TensorBoard events, a progress bar."""

from collections.abc import Mapping
import json
import os
import time

import jax
from tqdm import auto as tqdm

FILE = 'metrics.jsonl'


class Logger:
  """Writes scalars to `metrics.jsonl` and to TensorBoard event files (no TensorFlow involved).

  Only process 0 writes. With `directory=None` nothing is written.

  Args:
    directory: where to; created.
    start: a resumed run passes the step it resumes from: later lines of the interrupted run are
      dropped, because they will be written again.
  """

  def __init__(self, directory: str | os.PathLike | None, *, start: int = 0):
    self._file = self._events = None
    if directory is None or jax.process_index() != 0:
      return
    from tensorboard.summary.writer import event_file_writer
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, FILE)
    kept = [line for line in read(directory) if line['step'] <= start] if start else []
    with open(path, 'w') as file:
      file.writelines(json.dumps(line) + '\n' for line in kept)
    self._file = open(path, 'a')
    self._events = event_file_writer.EventFileWriter(os.fspath(directory))

  def write(self, step: int, scalars: Mapping[str, float], *, phase: str = '') -> None:
    """Appends one row of scalars."""
    if self._file is None:
      return
    from tensorboard.compat.proto import event_pb2
    from tensorboard.compat.proto import summary_pb2
    scalars = {name: float(value) for name, value in scalars.items()}
    self._file.write(json.dumps({'step': step, 'phase': phase, **scalars}) + '\n')
    self._file.flush()
    values = [summary_pb2.Summary.Value(tag=name, simple_value=value)
              for name, value in scalars.items()]
    self._events.add_event(event_pb2.Event(
        step=step, wall_time=time.time(), summary=summary_pb2.Summary(value=values)))

  def close(self) -> None:
    if self._file is not None:
      self._file.close()
      self._events.close()
      self._file = self._events = None

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


def read(directory: str | os.PathLike) -> list[dict]:
  """The rows of a run's `metrics.jsonl`; empty if there is none. A torn last line is dropped."""
  path = os.path.join(directory, FILE)
  if not os.path.exists(path):
    return []
  rows = []
  with open(path) as file:
    for line in file:
      try:
        rows.append(json.loads(line))
      except json.JSONDecodeError:  # the process was killed while writing it
        break
  return rows


def progress(total: int, *, initial: int = 0, label: str = '', show: bool = True) -> tqdm.tqdm:
  """A progress bar with an ETA; it appears once a run has taken two seconds."""
  return tqdm.tqdm(total=total, initial=initial, desc=label, unit='step', delay=2, leave=False,
                   dynamic_ncols=True, disable=not show or jax.process_index() != 0)
