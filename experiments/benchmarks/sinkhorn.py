"""Our Sinkhorn against POT's log-domain solver (PyTorch) and against plain ott-jax."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import harness
from unlearn_jax.losses import transport

# Batch by batch of DLFD with its epsilon; a batch of texts and NCU's negative column with its own.
CASES = (((32, 32), 0.01, 50), ((128, 128), 0.01, 50), ((512, 513), 0.03, 100))
ROUNDS = 15
TOLERANCE = 1e-5  # of plans times their size, float32


def rows(rounds: int = ROUNDS) -> Iterator[harness.Row]:
  """Plain transport in all sizes, then the masked one."""
  for shape, epsilon, iterations in CASES:
    name = f'sinkhorn/plain/{shape[0]}x{shape[1]}'
    try:
      yield from _plain(name, shape, epsilon, iterations, rounds)
    except harness.Mismatch as error:
      yield harness.Row(name, 'ours / POT', 0.2, reason=f'refused, {error}')
  reason = ('masked_plan belongs to a later release; sinkhorn_plan takes finite costs only')
  yield harness.Row('sinkhorn/masked/512x513', 'ours / POT', 0.2, reason=reason)
  yield harness.Row('sinkhorn/masked/512x513', 'ours / plain ott-jax', 1.0, reason=reason)


def _plain(name, shape, epsilon, iterations, rounds):
  from ot import bregman
  from ott.geometry import geometry
  from ott.problems.linear import linear_problem
  from ott.solvers.linear import sinkhorn
  import torch

  rng = np.random.default_rng(0)
  x, y = (jnp.asarray(rng.normal(size=(count, 64)), jnp.float32) for count in shape)
  cost = transport.cosine_cost(x, y)
  a, b = (jnp.full((count,), 1 / count, jnp.float32) for count in shape)
  t_cost, t_a, t_b = (torch.from_numpy(np.array(array)) for array in (cost, a, b))

  @jax.jit
  def ours(cost, a, b):
    # No error is below -1: every side runs all iterations.
    return transport.sinkhorn_plan(cost, a, b, epsilon=epsilon, max_iterations=iterations,
                                   threshold=-1.0).plan

  @jax.jit
  def plain(cost, a, b):
    geom = geometry.Geometry(cost, epsilon=epsilon)
    solver = sinkhorn.Sinkhorn(threshold=-1.0, min_iterations=iterations, max_iterations=iterations)
    return solver(linear_problem.LinearProblem(geom, a, b)).matrix

  def pot():
    with torch.no_grad():
      # 0 is never undercut; POT looks at its error in every tenth iteration.
      return bregman.sinkhorn_log(t_a, t_b, t_cost, epsilon, numItermax=iterations, stopThr=0,
                                  warn=False)

  # POT updates the rows last, as we do (its first update is that of the columns).
  size = shape[0] * shape[1]
  plans = [size * np.asarray(plan) for plan in (ours(cost, a, b), plain(cost, a, b), pot())]
  parity = harness.check_parity('plans (times their size)', [plans[0], plans[0]], plans[1:],
                                tolerance=TOLERANCE * size)
  timings = harness.alternate({
      'ours': lambda: ours(cost, a, b).block_until_ready(),
      'POT': pot,
      'plain ott-jax': lambda: plain(cost, a, b).block_until_ready()}, rounds)
  note = f'epsilon {epsilon}, {iterations} iterations on each side, float32, cosine costs.'
  for other, target in (('POT', 0.2), ('plain ott-jax', 1.0)):
    yield harness.make_row(name, f'ours / {other}', target,
                           harness.ratio(timings, 'ours', {other: 1}), timings,
                           parity=parity, note=note)
