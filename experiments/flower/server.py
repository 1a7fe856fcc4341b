"""The ServerApp: trains a federation, unlearns the client that leaves, and writes the adapters."""

import functools
import logging

from flwr.app import Context
from flwr.serverapp import Grid
from flwr.serverapp import ServerApp
import jax
import numpy as np

from experiments.flower import messages
from experiments.flower import rounds

KEPT = ('adapter', 'federation', 'lock')  # collections that rounds make; the backbone stays as it was

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
  """All rounds; arrays in the output are called `STAGE/COLLECTION/...`."""
  logging.basicConfig()
  rounds.LOG.setLevel(logging.INFO)
  settings = messages.settings(context.run_config)
  found = rounds.federation(settings)
  nodes = messages.connected(grid, settings.clients, timeout=settings.timeout)
  ask = functools.partial(messages.exchange, grid, nodes, timeout=settings.timeout)
  trained = rounds.run(found.train, found.variables, found.roster, ask)
  unlearned = rounds.run(found.unlearn, trained, found.roster, ask)
  tree = {stage: {name: variables[name] for name in KEPT if name in variables}
          for stage, variables in (('trained', trained), ('unlearned', unlearned))}
  np.savez(settings.output, **{
      jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf)
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)})
