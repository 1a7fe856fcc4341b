"""The training loop and what it needs: mesh, checkpoints, logs."""

from unlearn_jax.train.checkpoint import Checkpointer
from unlearn_jax.train.log import Logger
from unlearn_jax.train.loop import Result
from unlearn_jax.train.loop import run
from unlearn_jax.train.sharding import make_mesh

__all__ = ('Checkpointer', 'Logger', 'Result', 'make_mesh', 'run')
