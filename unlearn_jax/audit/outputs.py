"""What all models say about all records, once; with the counts of every bootstrap resample."""

from collections.abc import Callable, Mapping, Sequence
import hashlib
from typing import Any, NamedTuple

import jax
import numpy as np

from unlearn_jax.audit import intervals
from unlearn_jax.evals import run

SPLITS = ('forget', 'retain', 'validation', 'test', 'unseen')
SCORES = ('loss', 'confidence', 'entropy', 'margin', 'correct')
LARGEST_MARGIN = 100.0  # as KLOM clips them: a saturated model's margins are infinite


class NotAvailable(Exception):
  """A statistic that cannot be computed on this data; its text is the reason."""


class Values(NamedTuple):
  """A statistic under all resamples; the first row is observed.

  Attributes:
    subject: [1 + resamples, U], the judged model or models.
    reference: [1 + resamples, K], the retrained models, each against the others where it is a
      distance to retrained models.
  """

  subject: np.ndarray
  reference: np.ndarray


class Outputs:
  """Logits, features and scores of every model, beside bootstrap counts of every split.

  Models are ordered original, unlearned, retrained. Records lie in the order of their content
  hashes, so that no number depends on the order in which they came.

  Attributes:
    models: their names.
    unlearned: positions of the unlearned models.
    retrained: positions of the retrained ones.
    logits: split -> [models, N, C].
    features: split -> [models, N, D], or None if the model has no `features`.
    labels: split -> [N] classes or [N, K] attributes.
    data: split -> fields, ordered alike.
    hashes: split -> content hash of each record, [N].
    counts: split -> [1 + resamples, N], the first row ones; the same for all models, because
      models are compared on the same records.
    memo: intermediate results of the statistics.
  """

  def __init__(self, apply: Callable, variables: Mapping[str, Any],
               data: Mapping[str, Mapping[str, np.ndarray]], *, resamples: int, seed: int):
    self.models = tuple(variables)
    self.unlearned = [i for i, name in enumerate(self.models) if name.startswith('unlearned')]
    self.retrained = [i for i, name in enumerate(self.models) if name.startswith('retrained')]
    self.hashes, self.data, self.counts = {}, {}, {}
    for number, split in enumerate(name for name in SPLITS if name in data):
      hashes = content_hashes(data[split])
      order = np.argsort(hashes, kind='stable')
      self.hashes[split] = hashes[order]
      self.data[split] = {name: np.asarray(values)[order] for name, values in data[split].items()}
      rng = np.random.default_rng((seed, number))
      self.counts[split] = intervals.resample(rng, len(order), resamples)
    self.labels = {split: fields['label'] for split, fields in self.data.items()}
    example = {name: values[:1] for name, values in
               run.inputs_of(next(iter(self.data.values()))).items()}
    first = next(iter(variables.values()))
    shapes = jax.eval_shape(lambda v, x: apply(v, x, train=False)[0], first, example)
    if 'logits' not in shapes:
      raise ValueError(f'the model has no output logits; it has {sorted(shapes)}')
    names = tuple(name for name in ('logits', 'features') if name in shapes)
    found = {split: [run.predict(apply, each, fields, names=names)
                     for each in variables.values()] for split, fields in self.data.items()}
    stacked = {split: {name: np.stack([part[name] for part in parts]).astype(np.float64)
                       for name in names} for split, parts in found.items()}
    self.logits = {split: parts['logits'] for split, parts in stacked.items()}
    self.features = ({split: parts['features'].reshape(*parts['features'].shape[:2], -1)
                      for split, parts in stacked.items()} if 'features' in names else None)
    for split, logits in self.logits.items():
      for name, values in zip(self.models, logits):
        if not np.isfinite(values).all():
          raise ValueError(f'logits of {name} on {split} are NaN or infinite: that model has '
                           'diverged')
    self.memo: dict[Any, Any] = {}
    self._scores = {split: scores(logits, self.labels[split])
                    for split, logits in self.logits.items()}

  @property
  def attributes(self) -> bool:
    """Whether a record has several attributes instead of one class."""
    return self.labels['forget'].ndim == 2

  def size(self, split: str) -> int:
    return len(self.labels[split])

  def score(self, split: str, name: str) -> np.ndarray:
    """[models, N] of one of `SCORES`.

    Raises:
      NotAvailable: the split was not given.
    """
    self.need(split)
    return self._scores[split][name]

  def need(self, *splits: str) -> None:
    """Raises NotAvailable unless the splits were given."""
    if missing := [split for split in splits if split not in self.data]:
      raise NotAvailable(f'no {" and no ".join(missing)} records were given')

  def need_features(self, *splits: str) -> None:
    """Raises NotAvailable unless the model has features and the splits were given."""
    self.need(*splits)
    if self.features is None:
      raise NotAvailable('the model has no output `features`')

  def remember(self, key, compute: Callable):
    """`compute()`, the first time; afterwards what it returned."""
    if key not in self.memo:
      self.memo[key] = compute()
    return self.memo[key]


def scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
  """One number per record and score, from logits [..., N, C] and labels [N] or [N, K].

  With p the softmax, or the sigmoid of each attribute (then the mean over attributes):
  loss -ln p_y; confidence p_y; entropy -sum_c p_c ln p_c; margin ln(p_y / (1 - p_y)), which is
  z_y - logsumexp of the other logits, clipped to +-100; correct 1 or 0.

  Raises:
    ValueError: labels that do not fit the logits.
  """
  logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
  if labels.ndim == 2:
    if logits.shape[-2:] != labels.shape:
      raise ValueError(f'attribute labels {labels.shape} do not fit logits {logits.shape}')
    signed = np.where(labels >= 0.5, logits, -logits)
    log_true, log_false = -np.logaddexp(0, -signed), -np.logaddexp(0, signed)
    entropy = -(np.exp(log_true) * log_true + np.exp(log_false) * log_false)
    found = {'loss': -log_true, 'confidence': np.exp(log_true), 'entropy': entropy,
             'margin': np.clip(signed, -LARGEST_MARGIN, LARGEST_MARGIN),
             'correct': (logits >= 0) == (labels >= 0.5)}
    return {name: values.mean(axis=-1) for name, values in found.items()}
  if not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(f'class labels must be integers, got {labels.dtype}')
  if len(labels) != logits.shape[-2] or labels.min() < 0 or labels.max() >= logits.shape[-1]:
    raise ValueError(f'labels {labels.shape} in [{labels.min()}, {labels.max()}] do not fit '
                     f'logits {logits.shape}')
  log_p = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
  chosen = np.broadcast_to(labels[:, None], (*logits.shape[:-1], 1))
  true = np.take_along_axis(log_p, chosen, axis=-1)[..., 0]
  rest = log_p.copy()
  np.put_along_axis(rest, chosen, -np.inf, axis=-1)
  margin = true - np.logaddexp.reduce(rest, axis=-1)
  return {'loss': -true, 'confidence': np.exp(true),
          'entropy': -(np.exp(log_p) * log_p).sum(axis=-1),
          'margin': np.clip(margin, -LARGEST_MARGIN, LARGEST_MARGIN),
          'correct': (logits.argmax(axis=-1) == labels).astype(np.float64)}


def content_hashes(fields: Mapping[str, np.ndarray]) -> np.ndarray:
  """sha256 of each record's inputs, [N] of text; labels, ids and masks take no part."""
  inputs = {name: np.ascontiguousarray(values)
            for name, values in sorted(run.inputs_of(fields).items())}
  return np.array([hashlib.sha256(b''.join(
      name.encode() + str(values[i].shape).encode() + str(values.dtype).encode()
      + values[i].tobytes() for name, values in inputs.items())).hexdigest()
                   for i in range(run.num_records(inputs))])


def model_hash(variables: Any) -> str:
  """sha256 over the names, shapes and bytes of a model's arrays."""
  digest = hashlib.sha256()
  for path, leaf in sorted((jax.tree_util.keystr(path), np.asarray(leaf)) for path, leaf in
                           jax.tree_util.tree_leaves_with_path(jax.device_get(variables))):
    digest.update(f'{path} {leaf.shape} {leaf.dtype} '.encode() + leaf.tobytes())
  return digest.hexdigest()


def digest_of(hashes: Sequence[str]) -> str:
  """One sha256 for a set of records, whatever their order."""
  return hashlib.sha256('\n'.join(sorted(hashes)).encode()).hexdigest()
