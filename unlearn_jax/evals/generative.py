"""How good and how close generated pictures are: FID, inception score, cosine of embeddings.

The numbers depend on the network that made the features (`extractors`) and on how many pictures
there are: name both beside them. I2I (Li et al., ICLR 2024) reports 5,000 pictures per set in its main
tables and 500 in its ablations, whose FIDs cannot be compared with the former; it calls the mean
cosine of CLIP embeddings a distance, although higher is closer.
"""

import numpy as np
from scipy import special

from unlearn_jax.losses import checks

_SUM = 1e-3  # how far a row of probabilities may be from 1: half precision


def fid(features_a, features_b) -> float:
  """Squared Frechet distance of two sets of features (Heusel et al. 2017, Eq. 6).

  `||mu_a - mu_b||^2 + tr(S_a + S_b - 2 (S_a^{1/2} S_b S_a^{1/2})^{1/2})` with means mu and unbiased
  covariances S (divided by N - 1), in float64 whatever JAX's x64 flag. The trace of the root is the
  sum of the roots of the eigenvalues of S_a^{1/2} S_b S_a^{1/2}, and these roots are the singular
  values of R_a R_b^T for S = R^T R: exact for singular covariances too, where the usual
  Schur square root adds a multiple of the identity.

  Biased upwards for few samples, and of N <= D samples (`rank_deficient`) the covariances are
  singular, so compare only FIDs of the same extractor and equally many pictures.

  Args:
    features_a: [N, D], N at least 2.
    features_b: [M, D], M at least 2.

  Returns:
    At least 0, in squared units of the features.

  Raises:
    ValueError: features that are not finite [N, D], dimensions that differ, fewer than two rows.
  """
  a, b = _features('features_a', features_a, 2), _features('features_b', features_b, 2)
  if a.shape[1] != b.shape[1]:
    raise ValueError(f'features_a has {a.shape[1]} dimensions and features_b {b.shape[1]}; '
                     'both come from one extractor')
  roots = [np.linalg.qr((x - x.mean(axis=0)) / np.sqrt(len(x) - 1), mode='r') for x in (a, b)]
  shift = np.sum((a.mean(axis=0) - b.mean(axis=0))**2)
  traces = sum(np.sum(root**2) for root in roots)
  common = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
  return float(max(shift + traces - 2 * common, 0.0))  # below 0 by rounding only


def rank_deficient(samples: int, dimension: int) -> bool:
  """Whether `samples` pictures are too few for a covariance of full rank in `dimension` dimensions.

  Its rank is N - 1 at most, so that a full-rank FID needs N > D: 2,049 pictures for Inception.

  Raises:
    ValueError: a number below 1.
  """
  if samples < 1 or dimension < 1:
    raise ValueError(f'samples and dimension are at least 1, got {samples} and {dimension}')
  return samples <= dimension


def inception_score(probabilities, splits: int = 10) -> tuple[float, float]:
  """exp(mean_x KL(p(y|x) || p(y))) over contiguous splits (Salimans et al. 2016).

  Split s holds the rows from floor(s N / splits) to floor((s + 1) N / splits), equally many where
  `splits` divides N, and p(y) is its own mean. 0 log 0 = 0. float64.

  Args:
    probabilities: p(y|x) [N, K], rows that sum to 1.
    splits: 10 as published; at most N.

  Returns:
    Mean and standard deviation (divided by `splits`) over the splits; the mean lies in [1, K].

  Raises:
    ValueError: no finite [N, K], negative entries, rows that do not sum to 1 (within 1e-3, then
      they are divided by their sum), or splits that are not in [1, N].
  """
  p = _features('probabilities', probabilities, 1)
  if (p < 0).any():
    raise ValueError(f'probabilities: negative, down to {p.min():.3g}; pass a softmax, not logits')
  sums = p.sum(axis=1, keepdims=True)
  if (off := np.abs(sums - 1) > _SUM).any():
    raise ValueError(f'probabilities: {int(off.sum())} of {len(p)} rows do not sum to 1, the first '
                     f'to {sums[off][0]:.6g}; pass a softmax over classes')
  if not 1 <= splits <= len(p):
    raise ValueError(f'splits must lie in [1, {len(p)}], the number of pictures, got {splits}')
  p /= sums
  bounds = [part * len(p) // splits for part in range(splits + 1)]
  scores = [np.exp(np.mean(np.sum(special.rel_entr(rows, rows.mean(axis=0)), axis=1)))
            for rows in (p[low:high] for low, high in zip(bounds, bounds[1:]))]
  return float(np.mean(scores)), float(np.std(scores))


def embedding_cosine(a, b) -> float:
  """mean_i cos(a_i, b_i): how close generated pictures are to the real ones that they complete.

  The CLIP score of I2I's Table 1 when the embeddings are CLIP's; higher is closer. An embedding of
  length 0 has no direction, and cosine 0 with everything (ours). float64.

  Args:
    a: embeddings [N, D] of generated pictures.
    b: [N, D]; row i is of the original of picture i.

  Returns:
    In [-1, 1].

  Raises:
    ValueError: embeddings that are not finite [N, D], or shapes that differ.
  """
  a, b = _features('a', a, 1), _features('b', b, 1)
  if a.shape != b.shape:
    raise ValueError(f'embeddings of pairs have one shape, got {a.shape} and {b.shape}')
  lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
  return float(np.mean(np.sum(a * b, axis=1) / np.where(lengths > 0, lengths, 1.0)))


def _features(name: str, values, least: int) -> np.ndarray:
  """A finite float64 copy [N, D] with `least` rows at least."""
  checks.check_finite(name, values)
  values = np.array(values, np.float64)
  if values.ndim != 2 or len(values) < least or not values.shape[1]:
    raise ValueError(f'{name} must be [N, D] with N at least {least}, got shape {values.shape}')
  return values
