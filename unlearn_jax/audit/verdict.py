"""From values under resampling to PASS, FAIL or INCONCLUSIVE against the retrain floor.

The rule, for one statistic with values T(u) of the unlearned model and T_1, ..., T_K of the
retrained ones:

- gap = T(u) - mean T_i, two-sided: a model that gets forgotten records *more* wrong than a
  retrained one has leaked them again;
- interval: the 95 % bootstrap interval of the gap over records (all models on the same resampled
  records) and over retrained models. Its mean is shifted to the gap, because distances are biased
  upwards under resampling; the part of the models is that of their seeds alone; and both parts are
  widened as few records and few models demand (`intervals.small_sample`);
- floor: the 95 % quantile of |T_i - T_j| over all pairs of retrained models and all resamples of
  the records. With several statistics in a family it becomes simultaneous: floor_s = c rms_s, where
  rms_s is the root mean square of statistic s over pairs and resamples and c the 95 % quantile of
  max_s |T_i - T_j|_s / rms_s (max-T of Westfall and Young, 1993). A family of one gives the plain
  quantile;
- PASS if the interval lies within [-floor, floor], FAIL if it lies outside, else INCONCLUSIVE.

The overall verdict rests on a small declared family of primary statistics with simultaneous floors:
FAIL if one fails; PASS if all pass (an intersection-union test: it needs no further correction) and
the audit is sensitive, that is, fails the *original* model under the very same rule (the assay
sensitivity of equivalence trials, ICH E10: an audit that cannot see the original must not clear
anybody); else INCONCLUSIVE. That an interval is held against a floor of retrained models is the
rule of the toolkit; how the two are computed and combined is ours.

Measured on the task with a known answer (60 forgotten, 60 unseen and 300 test records; 300 draws of
records and models), overall verdicts in per cent:

| judged model | retrained models | PASS | INCONCLUSIVE | FAIL |
|---|---|---|---|---|
| retrained, like them | 5 | 79 | 21 | 0 |
| original | 5 | 0 | 0 | 100 |
| half of the records forgotten | 5 | 0 | 69 | 31 |
| retrained, like them | 3 | 61 | 39 | 0 |
| original | 3 | 0 | 0.3 | 99.7 |

A retrained model audited against four others (the self-check of a report) passes in 70 % and fails
in none of 1,500. `tests/audit/verdict_test.py` repeats this.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
import math

import numpy as np

from unlearn_jax.audit import intervals
from unlearn_jax.audit.outputs import Values

PASS, FAIL, INCONCLUSIVE = 'PASS', 'FAIL', 'INCONCLUSIVE'
MIN_RECORDS = 30  # below, bootstrap intervals cover less than they promise (measured)
GOOD_RETRAINED = 5  # fewer give wide floors
_TOLERANCE = 1e-9  # of comparisons: a gap of 0 is inside a floor of 0


@dataclasses.dataclass(frozen=True)
class Statistic:
  """A statistic beside its anchors, and what follows from it.

  Attributes:
    original: value of the original model; None if it has none.
    unlearned: of the unlearned model, the mean over several; None if not available.
    retrained: of every retrained model; of a distance to retrained models, to the others.
    floor: largest gap that retrained models show among themselves, see the module.
    gap: unlearned minus the mean of retrained.
    interval: 95 % interval of the gap.
    verdict: PASS, FAIL, INCONCLUSIVE or 'n/a: reason'.
    needed: of an INCONCLUSIVE statistic: how many records (of the smallest split that it reads)
      would settle it if the gap stays what it is; None if no number would.
    needed_retrained: how many retrained models, together with `needed`.
    primary: whether it takes part in the overall verdict.
    records: in the smallest split that it reads.
    question: that it helps to answer, a key of `statistics.QUESTIONS`.
    meaning: in plain words.
    source: paper or definition.
  """

  original: float | None = None
  unlearned: float | None = None
  retrained: tuple[float, ...] = ()
  floor: float | None = None
  gap: float | None = None
  interval: tuple[float, float] | None = None
  verdict: str = 'n/a: not computed'
  needed: int | None = None
  needed_retrained: int | None = None
  primary: bool = False
  records: int = 0
  question: str = ''
  meaning: str = ''
  source: str = ''


@dataclasses.dataclass(frozen=True)
class Gap:
  """A gap, its interval, and the half-widths that records and models alone would give."""

  value: float
  interval: tuple[float, float]
  from_records: float
  from_models: float


def deviations(reference: np.ndarray, pairwise: bool) -> np.ndarray:
  """The values whose differences make the floor, [R, K].

  A distance of retrained model i to the others holds every pair twice: if d_ij = a + x_i + x_j,
  T_i - T_j is (K - 2) / (K - 1) (x_i - x_j), while the gap of an unlearned model has its x in full.
  The spread around the mean is scaled back by (K - 1) / (K - 2). Ours.
  """
  if not pairwise:
    return reference
  k = reference.shape[1]
  centre = reference.mean(axis=1, keepdims=True)
  return centre + (reference - centre) * (k - 1) / (k - 2)


def floors(references: Mapping[str, tuple[np.ndarray, bool]]) -> dict[str, float]:
  """Simultaneous floors of a family of statistics.

  Args:
    references: name -> (values of retrained models [1 + resamples, K], pairwise).

  Returns:
    name -> floor: 95 % of all pairs and resamples lie within all floors at once.
  """
  differences = {}
  for name, (reference, pairwise) in references.items():
    values = deviations(reference, pairwise)[1:]
    left, right = np.array(list(itertools.combinations(range(values.shape[1]), 2))).T
    differences[name] = np.abs(values[:, left] - values[:, right])  # [resamples, pairs]
  scale = {name: float(np.sqrt((part**2).mean())) for name, part in differences.items()}
  moving = [part / scale[name] for name, part in differences.items() if scale[name] > 0]
  if not moving:  # retrained models never differ
    return scale
  factor = float(np.quantile(np.max(moving, axis=0), intervals.LEVEL))
  return {name: factor * width for name, width in scale.items()}


def measure_gap(values: Values, *, records: int, seed: int = 0) -> Gap:
  """Gap to the retrained models and its interval over records and models.

  Args:
    values: of the judged and the retrained models under all resamples.
    records: how many the statistic rests on, see `intervals.small_sample`.
    seed: of the resampled models.
  """
  rng = np.random.default_rng(seed)
  subject, reference = values.subject.mean(axis=1), values.reference.mean(axis=1)
  observed = float(subject[0] - reference[0])
  moved = subject[1:] - reference[1:]
  by_records = intervals.small_sample(records) * (moved - moved.mean())
  by_models = _over_models(values.subject, rng) - _over_models(values.reference, rng)
  low, high = intervals.percentile(observed + by_records + by_models)

  def half(part):
    ends = intervals.percentile(part)
    return (ends[1] - ends[0]) / 2

  return Gap(observed, (min(low, observed), max(high, observed)), half(by_records),
             half(by_models))


def _over_models(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Deviations of the mean over models when only models are resampled, [resamples].

  Values [1 + resamples, K]. The differences of the observed values hold the noise of their records,
  too, which resampling the records shows already: its share is taken out. 0 for a single model.
  """
  resamples, k = values.shape[0] - 1, values.shape[1]
  observed = values[0] - values[0].mean()
  variance = (observed**2).sum() / (k - 1) if k > 1 else 0.0
  if variance == 0:
    return np.zeros(resamples)
  noise = values[1:] - values[1:].mean(axis=1, keepdims=True)
  own = max(0.0, 1 - noise.var(axis=0).sum() / (k - 1) / variance)
  moved = observed[rng.integers(k, size=(resamples, k))].mean(axis=1)
  return intervals.small_sample(k) * own**0.5 * (moved - moved.mean())


def decide(gap: Gap, floor: float, *, records: int, retrained: int
           ) -> tuple[str, int | None, int | None]:
  """(verdict, needed records, needed retrained models); the latter two of INCONCLUSIVE only."""
  low, high = gap.interval
  tolerance = _TOLERANCE * max(1.0, abs(gap.value))
  inside = -floor - tolerance <= low and high <= floor + tolerance
  outside = low > floor + tolerance or high < -floor - tolerance
  if records >= MIN_RECORDS and (inside or outside):
    return (PASS if inside else FAIL), None, None
  distance = abs(floor - abs(gap.value))  # what the interval must shrink to
  if distance <= tolerance:
    return INCONCLUSIVE, None, None
  if distance > gap.from_models:  # then records alone settle it, as variances add
    share = gap.from_records**2 / (distance**2 - gap.from_models**2)
    needed, models = records * share, retrained
  else:
    share = (gap.from_records**2 + gap.from_models**2) / distance**2
    needed, models = records * share, math.ceil(retrained * share)
  least = MIN_RECORDS if records < MIN_RECORDS else records + 1
  return INCONCLUSIVE, max(math.ceil(needed), least), max(models, retrained)


def overall(primary: Sequence[str], *, sensitive: bool) -> str:
  """The verdict of the family; see the module.

  Args:
    primary: verdicts of the primary statistics.
    sensitive: whether the original model FAILs under the same rule.

  Returns:
    The verdict, or 'n/a: reason' without primary statistics.
  """
  if not primary:
    return 'n/a: no primary statistic was asked for'
  if FAIL in primary:
    return FAIL
  return PASS if sensitive and all(verdict == PASS for verdict in primary) else INCONCLUSIVE
