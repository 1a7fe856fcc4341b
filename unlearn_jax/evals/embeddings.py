"""Where embeddings lie: how tight classes are, where unlearned records went, and t-SNE pictures."""

from collections.abc import Mapping
import math
from typing import Any

import numpy as np

from unlearn_jax.evals import figures
from unlearn_jax.losses import checks

SILHOUETTE_RECORDS = 2000  # the score compares every pair of records
TSNE_RECORDS = 1000  # of a panel
_PERPLEXITY = 30.0
_SAME = 1e-7  # relative spread that is rounding in float32


def tightness(embeddings, labels, *, seed: int = 0) -> dict[str, float]:
  """How tight the classes are, CCU's Figure 4 in numbers (ours: the paper shows pictures only).

  With mu_k the mean of the embeddings of class k, and Euclidean distances:

  - `tightness`: mean_i ||x_i - mu_{y_i}|| / mean_{k < l} ||mu_k - mu_l||, at least 0; smaller is
    tighter. NaN where all class means coincide.
  - `silhouette`: Rousseeuw's (1987) mean_i (b_i - a_i) / max(a_i, b_i) in [-1, 1], with a_i the
    mean distance to the others of the own class, and b_i the smallest mean distance to another
    class; larger is tighter. On at most 2,000 records, drawn with `seed`.

  Both are unchanged by shifting, rotating and scaling all embeddings. Compare models on the same
  records; pass embeddings at unit length where the model compares them by cosines.

  Args:
    embeddings: [N, d].
    labels: integers [N], of two classes at least.
    seed: of the records of `silhouette`.

  Raises:
    ValueError: embeddings that are not finite [N, d], other labels, fewer than two classes, or none
      with two records.
  """
  embeddings, labels = _checked(embeddings, labels)
  _, which, sizes = np.unique(labels, return_inverse=True, return_counts=True)
  if len(sizes) < 2 or sizes.max() < 2:
    raise ValueError(f'tightness compares two classes at least, one of them with two records, got '
                     f'{len(labels)} records of {len(sizes)} classes')
  means = centres(embeddings, which, len(sizes))
  within = float(np.linalg.norm(embeddings - means[which], axis=1).mean())
  apart = np.linalg.norm(means[:, None] - means[None], axis=2)
  between = float(apart[np.triu_indices(len(sizes), 1)].mean())
  return {'tightness': within / between if between > 0 else math.nan,
          'silhouette': _silhouette(embeddings, which, seed)}


def centres(embeddings, labels, num_classes: int) -> np.ndarray:
  """Mean embedding of every class.

  Args:
    embeddings: [N, d].
    labels: integers [N] in [0, num_classes).
    num_classes: K.

  Returns:
    float64 [K, d]; NaN where a class has no record.

  Raises:
    ValueError: embeddings that are not finite [N, d]; labels out of range.
  """
  embeddings, labels = _checked(embeddings, labels)
  if labels.min() < 0 or labels.max() >= num_classes:
    raise ValueError(f'labels must lie in [0, {num_classes}), got {labels.min()} to {labels.max()}')
  sums = np.zeros((num_classes, embeddings.shape[1]))
  np.add.at(sums, labels, embeddings)
  sizes = np.bincount(labels, minlength=num_classes)
  return np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], np.nan)


def placement(embeddings, labels, class_centres) -> dict[str, Any]:
  """How close embeddings lie to their own class, and which class they lie closest to (ours).

  Of the records to forget, by the original model and by the unlearned one, this tells how far
  unlearning moved them and where to. Closeness is the cosine with the class centres of the same
  model: two models share no coordinates, so each is measured against its own.

  An embedding of length 0, which a dead network gives, has cosine 0 with everything and lies
  closest to no class: it counts as `elsewhere` and has no destination. Nothing lies closest to a
  centre of length 0 either.

  Args:
    embeddings: [N, d].
    labels: integers [N] in [0, K), their own classes.
    class_centres: [K, d] from `centres`, of retained records by the same model. Rows of NaN are
      classes without retained records, which nothing lies closest to.

  Returns:
    `cosine`: mean cosine with the centre of the own class, in [-1, 1]; `elsewhere`: share of
    records that lie closest to another class, in [0, 1]; `destinations`: int64 [K, K], records of
    class k (row) that lie closest to class l (column).

  Raises:
    ValueError: embeddings that are not finite [N, d], centres of another size, labels out of range
      or of classes without a centre.
  """
  embeddings, labels = _checked(embeddings, labels)
  class_centres = np.asarray(class_centres, np.float64)
  if class_centres.ndim != 2 or class_centres.shape[1] != embeddings.shape[1]:
    raise ValueError(f'embeddings [N, d] belong to centres [K, d], got {embeddings.shape} and '
                     f'{class_centres.shape}')
  count = len(class_centres)
  if labels.min() < 0 or labels.max() >= count:
    raise ValueError(f'labels must lie in [0, {count}), got {labels.min()} to {labels.max()}')
  missing = np.isnan(class_centres).any(axis=1)
  if missing[labels].any():
    raise ValueError(f'class {labels[missing[labels]][0]} has records here and no centre, as none '
                     'is retained')
  units, directed = _units(embeddings)
  unit_centres, there = _units(np.where(missing[:, None], 0, class_centres))
  cosine = units @ unit_centres.T
  nearest = np.where(there, cosine, -np.inf).argmax(axis=1)
  placed = directed & there.any()
  destinations = np.zeros((count, count), np.int64)
  np.add.at(destinations, (labels[placed], nearest[placed]), 1)
  return {'cosine': float(cosine[np.arange(len(labels)), labels].mean()),
          'elsewhere': float(np.mean(~placed | (nearest != labels))), 'destinations': destinations}


@figures.styled
def tsne_figure(models: Mapping[str, tuple[Any, Any]]):
  """t-SNE pictures of embeddings, a panel per model, a colour per class (CCU's Figures 3 and 4).

  scikit-learn's t-SNE from a PCA, with perplexity 30 (less for fewer than 91 records) and a fixed
  seed, of at most 1,000 records; models with equally many records show the same ones. Neither
  distances between clusters nor their sizes mean anything in such a picture: `tightness` does.

  Args:
    models: name -> (embeddings [N, d], labels integers [N]), N at least 4.

  Raises:
    ValueError: no model, embeddings that are not finite [N, d], other labels, too few records.
  """
  from matplotlib import colormaps
  if not models:
    raise ValueError('there is no model to draw')
  classes = np.unique(np.concatenate([np.ravel(labels) for _, labels in models.values()]))
  colours = colormaps['turbo'](np.linspace(0.05, 0.95, len(classes)))
  columns = min(3, len(models))
  rows = -(-len(models) // columns)
  canvas, axes = figures.new_figure(9.0, 0.3 + 3.0 * rows, rows, columns)
  for axis, (name, (embeddings, labels)) in zip(axes.flat, models.items()):
    embeddings, labels = _checked(embeddings, labels)
    if len(labels) < 4:
      raise ValueError(f'{name}: t-SNE needs four records, got {len(labels)}')
    chosen = _drawn(len(labels), TSNE_RECORDS, 0)
    places = _tsne(embeddings[chosen])
    axis.scatter(*places.T, s=5, lw=0, color=colours[np.searchsorted(classes, labels[chosen])])
    axis.set_title(name, fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])
  for axis in axes.flat[len(models):]:
    axis.set_visible(False)
  return canvas


def _tsne(embeddings: np.ndarray) -> np.ndarray:
  """Places [N, 2]; all at the origin where the embeddings are one point."""
  from sklearn import manifold
  import threadpoolctl
  centred = embeddings - embeddings.mean(axis=0)
  scale = centred.std()
  if scale <= _SAME * np.abs(embeddings).max():  # scikit-learn divides by 0, and the process dies
    return np.zeros((len(embeddings), 2))
  solver = manifold.TSNE(init='pca', perplexity=min(_PERPLEXITY, (len(embeddings) - 1) / 3),
                         random_state=0)
  with threadpoolctl.threadpool_limits(1):  # the order of a sum over threads changes the picture
    return solver.fit_transform((centred / scale).astype(np.float32))


def _silhouette(embeddings: np.ndarray, labels: np.ndarray, seed: int) -> float:
  from sklearn import metrics
  import threadpoolctl
  chosen = _drawn(len(labels), SILHOUETTE_RECORDS, seed)
  with threadpoolctl.threadpool_limits(1):
    return float(metrics.silhouette_score(embeddings[chosen], labels[chosen]))


def _drawn(count: int, most: int, seed: int) -> np.ndarray:
  """All records, or so many of them at random, in their order."""
  if count <= most:
    return np.arange(count)
  return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


def _units(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Vectors at unit length, and which of them have a direction; the others are 0."""
  lengths = np.linalg.norm(vectors, axis=1)
  directed = lengths > 0
  return vectors / np.where(directed, lengths, 1)[:, None], directed


def _checked(embeddings, labels) -> tuple[np.ndarray, np.ndarray]:
  """Finite embeddings float64 [N, d] and integer labels [N], N > 0."""
  embeddings, labels = np.asarray(embeddings, np.float64), np.asarray(labels)
  if embeddings.ndim != 2 or not len(embeddings):
    raise ValueError(f'embeddings must be [N, d] with a record at least, got {embeddings.shape}')
  checks.check_finite('embeddings', embeddings)
  if labels.shape != embeddings.shape[:1] or labels.dtype.kind not in 'iu':
    raise ValueError(f'labels must be {len(embeddings)} integers, one per embedding, got '
                     f'{labels.dtype} {labels.shape}')
  return embeddings, labels
