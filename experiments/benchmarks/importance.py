"""SSD's importance: squared gradients of batch means over one pass, against its twin in PyTorch."""

from collections.abc import Iterator

import jax
import numpy as np

from experiments.benchmarks import harness
from experiments.benchmarks import steps
from unlearn_jax.losses import baselines
from unlearn_jax.losses import classification

PASS = 9  # batches
ROUNDS = 9


def rows(network: str = 'resnet18', rounds: int = ROUNDS) -> Iterator[harness.Row]:
  """Its overhead over the weight gradients that it needs, and its ratio to PyTorch's."""
  from experiments.benchmarks import twin_steps
  from experiments.benchmarks import twins
  name = f'importance/{network}'
  env = steps.setup(network)
  batches = [batch['retain'] for batch in env.batches] * (PASS // steps.PARITY_STEPS)
  pairs = [batch['retain'] for batch in env.twin_batches] * (PASS // steps.PARITY_STEPS)
  collections = {key: tree for key, tree in env.variables.items() if key != 'params'}

  def loss(params, batch):
    outputs, _ = env.model.apply({'params': params, **collections}, batch, train=False)
    return classification.cross_entropy(outputs['logits'], batch['label'], where=batch['mask'])

  gradient = jax.jit(jax.grad(loss))

  def ours():
    return jax.block_until_ready(baselines.importance(loss, env.variables['params'], batches))

  def one_pass():
    return jax.block_until_ready([gradient(env.variables['params'], one) for one in batches])

  net = env.twin()
  found = twins.to_torch({'params': jax.device_get(ours())})
  wanted = dict(zip((key for key, _ in net.named_parameters()),
                    twin_steps.squared_gradients(net, pairs)))
  try:
    plain = steps.compared(network, 'plain')
    parity = harness.check_parity(
        'importances', [found[key] for key in wanted], [leaf.numpy() for leaf in wanted.values()],
        tolerance=1e-3)
  except harness.Mismatch as error:
    yield harness.Row(name, 'overhead', steps.OVERHEAD, reason=f'refused, {error}')
    return
  timings = harness.alternate({
      'ours': ours, 'PyTorch': lambda: twin_steps.squared_gradients(net, pairs),
      'weight gradients, eval': one_pass, 'plain step': plain.ours,
      'plain step in PyTorch': plain.twin}, rounds)
  yield harness.make_row(
      name, 'overhead', steps.OVERHEAD,
      harness.ratio(timings, 'ours', {'weight gradients, eval': 1}), timings, parity=parity,
      note=f'Over {PASS} x weight gradient in eval mode.')
  own = harness.ratio(timings, 'ours', {'PyTorch': 1})
  base = harness.ratio(timings, 'plain step', {'plain step in PyTorch': 1})
  yield harness.make_row(
      name, "ratio to PyTorch / plain step's", steps.PLAIN, own / base, timings, parity=parity,
      note=f'Ratio {np.median(own):.2f}; the plain step has {np.median(base):.2f} in the same '
           'rounds.')
