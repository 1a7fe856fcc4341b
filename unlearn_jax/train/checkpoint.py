"""Checkpoints; the only file that touches orbax."""

from collections.abc import Mapping
import os
from typing import Any

import jax
import orbax.checkpoint as ocp

from unlearn_jax import types
from unlearn_jax.models import surgery


class Checkpointer:
  """Saves trees with a JSON note beside them, atomically, and keeps the newest ones.

  A checkpoint appears under its final name only once it is complete, and an old one is deleted
  only after that: a full disk or a killed process leaves the previous checkpoint readable.

  Args:
    directory: where to; created.
    keep: how many of the newest to keep.
  """

  def __init__(self, directory: str | os.PathLike, *, keep: int = 2):
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, create=True, enable_async_checkpointing=False,
        cleanup_tmp_directories=True)
    self._directory = os.path.abspath(directory)
    self._manager = ocp.CheckpointManager(self._directory, options=options, item_handlers={
        'tree': ocp.StandardCheckpointHandler(), 'note': ocp.JsonCheckpointHandler()})

  def latest(self) -> dict[str, Any] | None:
    """The note of the newest checkpoint, or None if there is no checkpoint."""
    newest = self._manager.latest_step()
    if newest is None:
      return None
    return dict(self._manager.restore(newest, args=ocp.args.Composite(
        note=ocp.args.JsonRestore()))['note'])

  def save(self, tree: types.PyTree, note: Mapping[str, Any]) -> None:
    """Saves `tree` and `note` as the newest checkpoint.

    Raises:
      OSError: the disk is full, or not writable; the previous checkpoint is untouched.
    """
    newest = self._manager.latest_step()
    self._manager.save(0 if newest is None else newest + 1, args=ocp.args.Composite(
        tree=ocp.args.StandardSave(tree), note=ocp.args.JsonSave(dict(note))))
    self._manager.wait_until_finished()

  def restore(self, template: types.PyTree) -> types.PyTree:
    """The newest checkpoint's tree, with the structure, shapes and shardings of `template`.

    Args:
      template: arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the checkpoint is of another model; names the first leaf that differs.
    """
    newest = self._manager.latest_step()
    if newest is None:
      raise FileNotFoundError(f'no checkpoint in {self._directory}')
    saved = self._manager.item_metadata(newest)['tree']
    if problem := surgery.first_mismatch(_stored(template), _stored(saved)):
      raise ValueError(f'the checkpoint in {self._directory} is of another model: {problem}')
    return self._manager.restore(newest, args=ocp.args.Composite(
        tree=ocp.args.StandardRestore(template)))['tree']

  def close(self) -> None:
    self._manager.close()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


def _stored(tree: types.PyTree) -> types.PyTree:
  """Abstract leaves as they lie on the disk: typed keys are saved as their data."""
  def stored(leaf):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
  return jax.tree.map(stored, tree)
