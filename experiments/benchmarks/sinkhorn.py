"""Our Sinkhorn against POT's log-domain solver (PyTorch) and against plain ott-jax."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import harness
from unlearn_jax.losses import transport

# Two batches of DLFD with its epsilon; pictures against texts and a negative column, with NCU's.
CASES = {
    'plain/32x32': ((32, 32), 0.01, 50, False),
    'plain/128x128': ((128, 128), 0.01, 50, False),
    'plain/512x513': ((512, 513), 0.03, 100, False),
    'masked/32x33': ((32, 33), 0.03, 100, True),
    'masked/128x129': ((128, 129), 0.03, 100, True),
    'masked/512x513': ((512, 513), 0.03, 100, True),
}
ROUNDS = 11
NOISY_SHARE = 0.1
TOLERANCE = 1e-3  # of plans, relative to their largest entry, float32
TARGETS = {'POT': 0.2, 'plain ott-jax': 1.0}
LIMITS = {'plain ott-jax': (
    'Both run the same log-domain updates of ott. Ours looks at the error after every iteration, '
    "ott's own after every tenth, by summing the plan. Tried and kept: the error from the change of "
    'the column potentials, which is known anyhow (0.6 to 0.75 of the time of summing).')}


def rows(case: str, rounds: int = ROUNDS) -> Iterator[harness.Row]:
  """One size against both others; all sides run the same number of iterations."""
  from ot import bregman
  import torch
  shape, epsilon, iterations, masked = CASES[case]
  cost, mask = _problem(shape, masked)
  a, b = (jnp.full((count,), 1 / count, jnp.float32) for count in shape)
  # What may not be used costs infinitely much: the form in which the others take a mask.
  infinite = jnp.where(mask, cost, jnp.inf)
  tensors = [torch.from_numpy(np.array(array)) for array in (a, b, infinite)]

  @jax.jit
  def ours(cost, mask, a, b):
    # No error is below -1, so that all iterations are run.
    settings = {'epsilon': epsilon, 'max_iterations': iterations, 'threshold': -1.0}
    if masked:
      return transport.masked_plan(cost, mask, a, b, **settings).plan
    return transport.sinkhorn_plan(cost, a, b, **settings).plan

  plain = _plain_ott(epsilon, iterations)

  def pot():
    with torch.no_grad():
      # No error is below 0; POT looks at its error in every tenth iteration, as plain ott does.
      return bregman.sinkhorn_log(*tensors, epsilon, numItermax=iterations, stopThr=0, warn=False)

  calls = {'ours': harness.FirstCall(lambda: ours(cost, mask, a, b).block_until_ready()),
           'POT': harness.FirstCall(pot),
           'plain ott-jax': harness.FirstCall(lambda: plain(infinite, a, b).block_until_ready())}
  plans = {side: np.asarray(call()) for side, call in calls.items()}
  note = f'Epsilon {epsilon}, {iterations} iterations on each side, float32, cosine costs.'
  try:
    parity = {other: harness.check_parity('the plans', [plans['ours']], [plans[other]],
                                          tolerance=TOLERANCE) for other in TARGETS}
  except harness.Mismatch as error:
    for other, target in TARGETS.items():
      yield harness.Row(f'sinkhorn/{case}', f'ours / {other}', target, reason=f'refused, {error}')
    return
  timings = harness.alternate(calls, rounds,
                              first={side: call.seconds for side, call in calls.items()})
  for other, target in TARGETS.items():
    yield harness.make_row(f'sinkhorn/{case}', f'ours / {other}', target,
                           harness.ratio(timings, 'ours', {other: 1}), timings,
                           parity=parity[other], note=note, limit=LIMITS.get(other, ''))


def _problem(shape: tuple[int, int], masked: bool) -> tuple[jax.Array, jax.Array]:
  """Cosine costs of random features, and where mass may go: everywhere, or as in NCU's Eq. 8."""
  rng = np.random.default_rng(0)
  x, y = (jnp.asarray(rng.normal(size=(count, 64)), jnp.float32) for count in shape)
  mask = np.ones(shape, bool)
  if masked:  # the last column is the noisy pictures' and theirs alone, their own text is forbidden
    noisy = np.arange(max(1, int(NOISY_SHARE * shape[0])))
    mask[:, -1] = False
    mask[noisy, noisy], mask[noisy, -1] = False, True
  return transport.cosine_cost(x, y), jnp.asarray(mask)


def _plain_ott(epsilon: float, iterations: int):
  """ott's own solver with its defaults but for the number of iterations."""
  from ott.geometry import geometry
  from ott.problems.linear import linear_problem
  from ott.solvers.linear import sinkhorn

  @jax.jit
  def plan(cost, a, b):
    geom = geometry.Geometry(cost, epsilon=epsilon)
    solver = sinkhorn.Sinkhorn(threshold=-1.0, min_iterations=iterations,
                               max_iterations=iterations)
    return solver(linear_problem.LinearProblem(geom, a, b)).matrix

  return plan
