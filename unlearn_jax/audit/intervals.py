"""Bootstrap, BCa and Clopper-Pearson intervals, and epsilon; resamples are counts, never copies."""

from collections.abc import Sequence
import importlib

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 500


def require() -> None:
  """Makes sure that the auditing library is there, before anything is computed.

  Raises:
    ImportError: it is not, with the command that installs it.
  """
  try:
    importlib.import_module('jax_privacy.auditing')
  except ImportError as error:
    raise ImportError("an audit needs jax_privacy: pip install 'unlearn_jax[audit]'") from error


def resample(rng: np.random.Generator, size: int, resamples: int) -> np.ndarray:
  """How often each of `size` records occurs: [1 + resamples, size], the first row all ones.

  The first row is the observed sample, so that a statistic of counts gives its value and its
  bootstrap replicates in one call.
  """
  drawn = rng.integers(size, size=(resamples, size)) + size * np.arange(resamples)[:, None]
  counts = np.bincount(drawn.ravel(), minlength=resamples * size).reshape(resamples, size)
  return np.concatenate([np.ones((1, size)), counts])


def mean(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """Means of [..., N] values under counts [R, N]: [R, ...]."""
  return np.moveaxis(values @ counts.T, -1, 0) / counts.shape[1]


def auc(members: np.ndarray, others: np.ndarray, member_counts: np.ndarray,
        other_counts: np.ndarray) -> np.ndarray:
  """P(member > other) + P(member = other) / 2 under every row of counts.

  Args:
    members: [N] scores.
    others: [M] scores.
    member_counts: [R, N].
    other_counts: [R, M].

  Returns:
    [R] in [0, 1]; with counts of one it is `evals.privacy.auc` of the negated scores.
  """
  order = np.argsort(others)
  below = np.zeros((len(other_counts), len(others) + 1))
  np.cumsum(other_counts[:, order], axis=1, out=below[:, 1:])
  low, high = (np.searchsorted(others[order], members, side=side) for side in ('left', 'right'))
  wins = np.einsum('rn,rn->r', member_counts, below[:, low] + below[:, high])
  return wins / (2 * member_counts.sum(axis=1) * other_counts.sum(axis=1))


def auc_influence(members: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Exact jackknife of the AUC, as empirical influence values: ([N], [M]).

  Leaving out member i changes the AUC A by -(a_i - A) / (N - 1) with a_i = P(member i > other)
  (ties half): the influence value of member i is a_i - A; likewise for the others.
  """
  def above(scores, reference):
    reference = np.sort(reference)
    return (np.searchsorted(reference, scores, side='left')
            + np.searchsorted(reference, scores, side='right')) / (2 * len(reference))
  member, other = above(members, others), 1 - above(others, members)
  return member - member.mean(), other - other.mean()


def bca(value: float, replicates: np.ndarray, influence: Sequence[np.ndarray], *,
        level: float = LEVEL) -> tuple[float, float]:
  """Bias-corrected and accelerated bootstrap interval of independent samples.

  z0 = Phi^-1(share of replicates below the value, ties half), acceleration
  a = sum_s sum_i l_si^3 / n_s^3 / (6 (sum_s sum_i l_si^2 / n_s^2)^(3/2)), and the ends are the
  quantiles Phi(z0 + (z0 + z) / (1 - a (z0 + z))) of the replicates. Efron (1987); several samples:
  Davison and Hinkley (1997), Section 5.3.

  Args:
    value: observed.
    replicates: [R].
    influence: influence values of each sample, [n_s].
    level: in (0, 1).

  Returns:
    (low, high).
  """
  below = np.mean(replicates < value) + np.mean(replicates == value) / 2
  smallest = 0.5 / len(replicates)
  z0 = stats.norm.ppf(np.clip(below, smallest, 1 - smallest))
  squares = sum((part**2).sum() / len(part)**2 for part in influence)
  cubes = sum((part**3).sum() / len(part)**3 for part in influence)
  acceleration = cubes / (6 * squares**1.5) if squares > 0 else 0.0
  z = z0 + stats.norm.ppf([(1 - level) / 2, (1 + level) / 2])
  shares = stats.norm.cdf(z0 + z / (1 - acceleration * z))
  low, high = np.quantile(replicates, shares)
  return float(low), float(high)


def auc_interval(members: np.ndarray, others: np.ndarray, *, resamples: int = 2000,
                 level: float = LEVEL, seed: int = 0) -> tuple[float, float]:
  """BCa interval of the AUC of two independent samples of scores, [N] and [M]."""
  rng = np.random.default_rng(seed)
  replicates = auc(members, others, resample(rng, len(members), resamples),
                   resample(rng, len(others), resamples))
  return bca(replicates[0], replicates[1:], auc_influence(members, others), level=level)


def percentile(replicates: np.ndarray, *, level: float = LEVEL) -> tuple[float, float]:
  """The plain bootstrap interval: quantiles of the replicates [R]."""
  low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)


def small_sample(size: int) -> float:
  """What bootstrap deviations of a mean of few are multiplied by: sqrt(n / (n - 1)) t / z.

  The bootstrap takes the variance with 1 / n and the normal quantile z for that of Student's t with
  n - 1 degrees (Hesterberg, 2015, the expanded percentile interval).
  """
  if size < 2:
    return 1.0
  tail = (1 + LEVEL) / 2
  return float((size / (size - 1))**0.5 * stats.t.ppf(tail, size - 1) / stats.norm.ppf(tail))


def clopper_pearson(successes: int, trials: int, *, level: float = LEVEL) -> tuple[float, float]:
  """Exact interval of a share; it covers at least `level` (Clopper and Pearson, 1934).

  Raises:
    ValueError: no trials, or successes outside [0, trials].
  """
  found = stats.binomtest(int(successes), int(trials)).proportion_ci(level, method='exact')
  return float(found.low), float(found.high)


def attack(members: np.ndarray, others: np.ndarray):
  """`jax_privacy`'s auditor of an attack: members are expected to have the higher scores.

  Raises:
    ImportError: jax_privacy is not installed.
  """
  require()
  from jax_privacy import auditing
  return auditing.CanaryScoreAuditor(members, others)


def tpr_at_fpr(members: np.ndarray, others: np.ndarray, fpr: float) -> float:
  """Largest true positive rate at a false positive rate, thresholds may be mixed at random."""
  return float(attack(members, others).tpr_at_given_fpr(fpr))


def epsilon(members: np.ndarray, others: np.ndarray, *, delta: float = 0.0, level: float = LEVEL
            ) -> float:
  """Lower bound of the epsilon that the attack proves, at confidence `level`; 0 proves nothing.

  ln((TPR - delta) / FPR) with Clopper-Pearson bounds and Bonferroni over all thresholds
  (`jax_privacy`; Nasr et al. 2021, arXiv:2101.04535), and the larger of the attack and its reverse,
  each at half the error, so that over-forgetting counts as well. It bounds how well *this*
  population attack can tell forgotten from unseen records, not what a stronger one could.
  """
  return max(float(attack(sign * members, sign * others).epsilon_clopper_pearson(
      (1 - level) / 2, delta, one_sided=False)) for sign in (1, -1))
