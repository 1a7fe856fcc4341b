"""Streams: `step -> batch`, pure functions of (seed, step), so that resuming needs no state.

An epoch is a permutation of a role's records, keyed by (seed, role, epoch). Its last, ragged batch
is filled with records from the start of the permutation under mask 0: every batch has one static
shape, and every epoch counts each record exactly once.
"""

from collections.abc import Callable, Iterator, Sequence
import functools
import queue
import threading

import numpy as np

from unlearn_jax import types
from unlearn_jax.data import _random
from unlearn_jax.data import sources
from unlearn_jax.data import splits as splits_lib
from unlearn_jax.data import transforms

MOST_REPEATS = 16  # of a forget batch


def steps_per_epoch(n: int, batch_size: int) -> int:
  """ceil(n / batch_size)."""
  return -(-n // batch_size)


def single(source: sources.Source, indices: np.ndarray, role: str, *, batch_size: int, seed: int,
           augment: Sequence[str] = ()) -> types.Stream:
  """A stream of batches with one role.

  Args:
    source: where the records are.
    indices: the role's records, [n]; n may be smaller than a batch.
    role: key of the batch; the order of an epoch depends on it.
    batch_size: B.
    seed: of the order and the augmentation.
    augment: see `transforms.parse`; applied to `image`.

  Returns:
    step -> {role: {image float32 [B, H, W, C], label, ..., id int32 [B], mask float32 [B]}}: every
    integer or float field of the source, as int32 or float32 (boolean and text fields stay
    behind); `id` is the record's index in the source.

  Raises:
    ValueError: no records, batch size below 1, ids that are not in the data; a negative step.
  """
  order = schedule(source, indices, role, batch_size=batch_size, seed=seed)
  fields = {name: field for name, field in source.fields.items()
            if np.dtype(field.dtype).kind in 'iuf'}
  transform = transforms.parse(augment) if augment else None

  def stream(step: int) -> types.Batch:
    ids, epoch, mask = order(step)
    batch = {name: _cast(field[ids]) for name, field in fields.items()}
    if transform is not None:
      batch['image'] = transform(batch['image'], seed, ids, epoch)
    return {role: {**batch, 'id': ids.astype(np.int32), 'mask': mask}}

  return stream


def schedule(source: sources.Source, indices: np.ndarray, role: str, *, batch_size: int, seed: int,
             full: bool = False) -> Callable[[int], tuple[np.ndarray, int, np.ndarray]]:
  """Which records a step reads.

  Args:
    source: where the records are.
    indices: the role's records, [n].
    role: key of the batch; the order of an epoch depends on it.
    batch_size: B.
    seed: of the order.
    full: leave out the ragged rest of an epoch: floor(n / B) batches of B different records, where
      a loss compares the records of a batch with one another.

  Returns:
    step -> (record ids int64 [B], epoch, mask float32 [B]).

  Raises:
    ValueError: no records, or fewer than a full batch; batch size below 1, ids that are not in the
      data; a negative step.
  """
  indices = np.array(indices, np.int64)  # a copy: the stream must not change with the caller's
  count = len(indices)
  if not count:
    raise ValueError(f'role {role!r} has no records to stream')
  if batch_size < 1:
    raise ValueError(f'batch_size must be at least 1, got {batch_size}')
  if indices.min() < 0 or indices.max() >= len(source):
    raise ValueError(f'role {role!r}: ids lie outside the {len(source)} records of {source.name!r}')
  if full and count < batch_size:
    raise ValueError(f'role {role!r} has {count} records, fewer than one batch of {batch_size}; '
                     'its batches must be full: choose a smaller batch size')
  steps = count // batch_size if full else steps_per_epoch(count, batch_size)

  @functools.lru_cache(maxsize=2)  # saves time only: the order is a function of the epoch
  def order(epoch: int) -> np.ndarray:
    return indices[_random.permutation(count, seed, role, epoch)]

  def records(step: int) -> tuple[np.ndarray, int, np.ndarray]:
    if step < 0:
      raise ValueError(f'steps start at 0, got {step}')
    epoch, position = divmod(int(step), steps)
    places = position * batch_size + np.arange(batch_size)
    return order(epoch)[places % count], epoch, (places < count).astype(np.float32)

  return records


def pair(source: sources.Source, splits: splits_lib.Splits, *, batch_size: int,
         forget_batch_size: int | None = None, seed: int, augment: Sequence[str] = ()
         ) -> types.Stream:
  """Batches with the roles `retain` and `forget`.

  Retain drives: its epochs are what steps are counted in. Forget is cycled through epochs of its
  own. Both are the batches that `single` gives.

  Args:
    source: where the records are.
    splits: whose `retain` and `forget` are paired.
    batch_size: of the retain role.
    forget_batch_size: of the forget role; None is `batch_size`.
    seed: of the orders and the augmentation.
    augment: see `transforms.parse`.
  """
  retain = single(source, splits.indices['retain'], 'retain', batch_size=batch_size, seed=seed,
                  augment=augment)
  forget = single(source, splits.indices['forget'], 'forget', seed=seed, augment=augment,
                  batch_size=batch_size if forget_batch_size is None else forget_batch_size)
  return _paired(retain, forget)


def _paired(retain: types.Stream, forget: types.Stream, times: int = 1) -> types.Stream:
  """Both roles; a forget batch is kept for `times` steps, each with a fresh retain batch."""
  def stream(step: int) -> types.Batch:
    return {**retain(step), **forget(step // times)}
  return stream


def make(source: sources.Source, splits: splits_lib.Splits, *, batch_size: int,
         forget_batch_size: int | None = None, seed: int, augment: Sequence[str] = ()
         ) -> dict[str, types.Stream]:
  """All streams that methods ask for by name.

  Returns:
    `pair` (retain and forget); `pair/K` for K = 1 to 16, where a forget batch stays for K steps
    (CCU's omega; `pair/1` is `pair`); `retain`, `forget`, and `train` (retain and forget records
    mixed under the role `train`: what the original model was trained on).
  """
  forget_batch_size = batch_size if forget_batch_size is None else forget_batch_size
  one = functools.partial(single, source, seed=seed, augment=augment)
  retain, forget = splits.indices['retain'], splits.indices['forget']
  streams = {'retain': one(retain, 'retain', batch_size=batch_size),
             'forget': one(forget, 'forget', batch_size=forget_batch_size)}
  return {
      **streams,
      'pair': _paired(streams['retain'], streams['forget']),
      **{f'pair/{times}': _paired(streams['retain'], streams['forget'], times)
         for times in range(1, MOST_REPEATS + 1)},
      'train': one(np.concatenate([retain, forget]), 'train', batch_size=batch_size),
  }


def prefetch(stream: types.Stream, start: int, stop: int, *, size: int = 2
             ) -> Iterator[types.Batch]:
  """The batches of steps `start` to `stop - 1`, in order, made ahead in a thread.

  The thread starts with the first batch asked for and has ended when the iterator is exhausted,
  closed or collected. An exception in `stream` is raised where its batch would have come.

  Args:
    stream: what to read.
    start: first step.
    stop: step to stop before.
    size: batches that may wait, at least 1.
  """
  if size < 1:
    raise ValueError(f'prefetch size must be at least 1, got {size}')
  return _prefetch(stream, start, stop, size)


def _prefetch(stream, start, stop, size):
  ready = queue.Queue(maxsize=size)
  closed = threading.Event()

  def put(item) -> None:
    while not closed.is_set():
      try:
        return ready.put(item, timeout=0.1)
      except queue.Full:  # wake up to see whether the consumer has gone
        pass

  def produce() -> None:
    try:
      for step in range(start, stop):
        if closed.is_set():
          return
        put((stream(step), None))
    except BaseException as error:  # pylint: disable=broad-except; raised by the consumer
      put((None, error))

  thread = threading.Thread(target=produce, name='prefetch', daemon=True)
  thread.start()
  try:
    for _ in range(start, stop):
      batch, error = ready.get()
      if error is not None:
        raise error
      yield batch
  finally:
    closed.set()
    thread.join()


def _cast(values) -> np.ndarray:
  values = np.asarray(values)
  return values.astype(np.float32 if values.dtype.kind == 'f' else np.int32, copy=False)
