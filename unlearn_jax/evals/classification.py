"""What a classifier knows: accuracies, membership inference, correlation collapse."""

from collections.abc import Mapping

import jax
import numpy as np

from unlearn_jax import types
from unlearn_jax.evals import privacy
from unlearn_jax.evals import run
from unlearn_jax.losses import checks
from unlearn_jax.losses import classification

PROBE_RECORDS = 2000
PROBE_ITERATIONS = 200
_LARGEST_RATIO = 1e12


def nomus(accuracy: float, forgetting_score: float) -> float:
  """Normalised Machine Unlearning Score, (P(y^ = y) + [1 - 2 |Acc - 0.5|]) / 2 (DLFD Eq. 5).

  Args:
    accuracy: on test data, in [0, 1].
    forgetting_score: |Acc - 0.5| of the membership attack, in [0, 0.5].

  Returns:
    A number in [0, 1]; 1 is best.

  Raises:
    ValueError: an argument is outside its range (or NaN).
  """
  if not 0 <= accuracy <= 1:
    raise ValueError(f'accuracy must lie in [0, 1], got {accuracy}')
  if not 0 <= forgetting_score <= 0.5:
    raise ValueError(f'forgetting_score is |0.5 - accuracy of the attack| and must lie in '
                     f'[0, 0.5], got {forgetting_score}')
  return (float(accuracy) + 1 - 2 * float(forgetting_score)) / 2


def upg(test_accuracy: float, retrained_test_accuracy: float) -> float:
  """Utility Performance Gain, 100 (Acc_all^test / Acc_all,Retrain^test - 1) (CCU, section 5.1.4).

  The paper's tables print it to one decimal; those of 15 % are shifted by a column from their
  first row on.

  Args:
    test_accuracy: of the unlearned model with all modalities, in [0, 1].
    retrained_test_accuracy: of the retrained model, in (0, 1].

  Returns:
    Per cent, -100 at least; 0 for a model as good as the retrained one, above 0 for a better one.

  Raises:
    ValueError: an argument is outside its range (or NaN).
  """
  return _gain('test_accuracy', test_accuracy, 'retrained_test_accuracy', retrained_test_accuracy)


def cmsg(audio_test_accuracy: float, retrained_audio_test_accuracy: float) -> float:
  """Cross-Modal Stability Gain, 100 (Acc_audio^test / Acc_audio,Retrain^test - 1) (CCU, 5.1.4).

  The paper defines it on audio; on text where the other modality is text is ours.

  Args:
    audio_test_accuracy: of the unlearned model by the modality that keeps its data, in [0, 1].
    retrained_audio_test_accuracy: of the retrained model, in (0, 1].

  Returns:
    Per cent, as `upg`.

  Raises:
    ValueError: an argument is outside its range (or NaN).
  """
  return _gain('audio_test_accuracy', audio_test_accuracy, 'retrained_audio_test_accuracy',
               retrained_audio_test_accuracy)


def separability(features, labels) -> float:
  """Class separability of features: trace(S_b) / trace(S_w), Fisher's ratio of scatters.

  S_b = sum_c n_c (mu_c - mu)(mu_c - mu)^T between classes, S_w = sum_i (x_i - mu_{y_i})
  (x_i - mu_{y_i})^T within them. Unchanged by shifting, rotating and scaling the features and by
  renaming classes. It grows with the number of classes per record: compare models on the same
  records only. Ours, as a measure of the paper's "correlation collapse".

  Args:
    features: [N, D].
    labels: [N] classes, or [N, K] attributes in {0, 1}: then the mean over attributes.

  Returns:
    A number in [0, 1e12]; 0 for features that are all the same, the upper end if all records of a
    class coincide.

  Raises:
    ValueError: features that are not finite, or no class with two records.
  """
  features, labels = _finite_features(features), np.asarray(labels)
  if labels.ndim == 2:
    return float(np.mean([separability(features, column) for column in labels.T]))
  _, which, sizes = np.unique(labels, return_inverse=True, return_counts=True)
  if sizes.max() < 2:
    raise ValueError('no class has two records, so there is no scatter within classes')
  features = features - features.mean(axis=0)
  means = np.zeros((len(sizes), features.shape[1]))
  np.add.at(means, which, features)
  means /= sizes[:, None]
  between = float(sizes @ (means**2).sum(axis=1))
  within = float(((features - means[which])**2).sum())
  if between == 0:
    return 0.0
  return between / max(within, between / _LARGEST_RATIO)


def probe_accuracy(train_features, train_labels, features, labels, *, seed: int = 0) -> float:
  """Accuracy on (features, labels) of a linear probe trained on the other features.

  The probe is scikit-learn's multinomial `LogisticRegression` (C = 1, at most 200 L-BFGS
  iterations) on features standardised with the training mean and deviation; for attributes, one per
  attribute and the mean of their accuracies. At most 2,000 training records, drawn with `seed`.

  Args:
    train_features: [N, D].
    train_labels: [N] or [N, K].
    features: [M, D].
    labels: [M] or [M, K].

  Raises:
    ValueError: features that are not finite.
  """
  import warnings

  from sklearn import exceptions
  from sklearn import linear_model
  import threadpoolctl
  train_features, features = _finite_features(train_features), _finite_features(features)
  train_labels, labels = np.asarray(train_labels), np.asarray(labels)
  if len(train_features) > PROBE_RECORDS:
    chosen = np.random.default_rng(seed).choice(len(train_features), PROBE_RECORDS, replace=False)
    train_features, train_labels = train_features[chosen], train_labels[chosen]
  centre, scale = train_features.mean(axis=0), train_features.std(axis=0)
  scale = np.where(scale > 0, scale, 1.0)  # a dead feature stays 0
  train_features, features = (train_features - centre) / scale, (features - centre) / scale
  if labels.ndim == 1:
    train_labels, labels = train_labels[:, None], labels[:, None]
  scores = []
  for train_column, column in zip(train_labels.T, labels.T):
    if len(np.unique(train_column)) == 1:  # nothing to learn: the probe knows one answer
      scores.append(np.mean(column == train_column[0]))
      continue
    probe = linear_model.LogisticRegression(max_iter=PROBE_ITERATIONS)
    # Threads that share such small sums cost more than they bring: 1.7 s instead of 0.1 s.
    with warnings.catch_warnings(), threadpoolctl.threadpool_limits(1):
      # The number of iterations is part of the definition.
      warnings.simplefilter('ignore', exceptions.ConvergenceWarning)
      probe.fit(train_features, train_column)
    scores.append(probe.score(features, column))
  return float(np.mean(scores))


def measure(outputs: Mapping[str, Mapping[str, np.ndarray]], *, seed: int = 0) -> dict[str, float]:
  """All metrics that the given splits allow; a metric whose splits are not given is absent.

  | metric | needs | meaning |
  |---|---|---|
  | `accuracy/SPLIT` | the split | attributes: mean of their accuracies |
  | `top2/SPLIT` | the split, > 2 classes | label among the two largest logits |
  | `loss/SPLIT` | the split | mean per-example loss |
  | `forgetting_score[CONVENTION]` | forget, unseen | see `privacy.forgetting_score` |
  | `forgetting_floor[CONVENTION]` | forget, unseen | its no-signal floor |
  | `mia_auc/unseen` | forget, unseen | see `privacy.auc`, ideal 0.5 |
  | `loss_gap` | forget, unseen | signed mean loss forget - unseen; above 0 is over-forgetting |
  | `nomus` | test, forget, unseen | with the `benchmark` score |
  | `probe_accuracy/test` | retain, test, features | linear probe, see `probe_accuracy` |
  | `separability/SPLIT` | retain or test, features | see `separability` |

  `separability` is absent too where no class of the split has two records.

  Args:
    outputs: split -> `logits` [N, C], `label` [N] or [N, C], and optionally `features` [N, D].
    seed: draws the truncation of `forgetting_score[benchmark]` and the probe's training records.

  Raises:
    ValueError: no split; logits or features that are not finite; too few forget or unseen records.
  """
  if not outputs:
    raise ValueError('there is no split to measure')
  metrics, losses = {}, {}
  for split, fields in outputs.items():
    run.num_records(fields)
    logits, labels = np.asarray(fields['logits'], np.float32), np.asarray(fields['label'])
    checks.check_finite(f'logits of {split}', logits)
    losses[split] = np.asarray(classification.example_loss(logits, labels))
    metrics[f'accuracy/{split}'] = float(np.mean(classification.accuracy(logits, labels)))
    if labels.ndim == 1 and logits.shape[-1] > 2:
      metrics[f'top2/{split}'] = float(
          np.mean(classification.top_k_accuracy(logits, labels, k=2)))
    metrics[f'loss/{split}'] = float(np.mean(losses[split], dtype=np.float64))
  if {'forget', 'unseen'} <= set(outputs):
    for convention in privacy.CONVENTIONS:
      found = privacy.forgetting_score(losses['forget'], losses['unseen'], convention=convention,
                                       seed=seed)
      metrics[f'forgetting_score[{convention}]'] = found.score
      metrics[f'forgetting_floor[{convention}]'] = found.floor
    if 'test' in outputs:
      metrics['nomus'] = nomus(metrics['accuracy/test'], metrics['forgetting_score[benchmark]'])
    metrics['mia_auc/unseen'] = privacy.auc(losses['forget'], losses['unseen'])
    metrics['loss_gap'] = metrics['loss/forget'] - metrics['loss/unseen']
  with_features = {split: fields for split, fields in outputs.items() if 'features' in fields}
  if {'retain', 'test'} <= set(with_features):
    retain, test = with_features['retain'], with_features['test']
    metrics['probe_accuracy/test'] = probe_accuracy(
        retain['features'], retain['label'], test['features'], test['label'], seed=seed)
  for split in ('retain', 'test'):
    if split in with_features and _has_pairs(with_features[split]['label']):
      metrics[f'separability/{split}'] = separability(
          with_features[split]['features'], with_features[split]['label'])
  return metrics


def evaluator(data: Mapping[str, Mapping[str, np.ndarray]], *, every: int = 0,
              batch_size: int = 256, seed: int = 0) -> types.Evaluator:
  """`measure` as an evaluator.

  Args:
    data: split -> fields (`image`, `label`, ...).
    every: cadence in steps; 0 is at the end only.
    batch_size: records per forward pass.
    seed: as in `measure`.
  """
  data = dict(data)

  def run_all(apply, variables) -> dict[str, float]:
    outputs = {split: {**run.predict(apply, variables, fields, batch_size=batch_size),
                       'label': np.asarray(jax.device_get(fields['label']))}
               for split, fields in data.items()}
    return measure(outputs, seed=seed)

  return types.Evaluator('classification', run_all, every)


def _gain(name: str, accuracy: float, reference_name: str, reference: float) -> float:
  if not 0 <= accuracy <= 1:
    raise ValueError(f'{name} must lie in [0, 1], got {accuracy}')
  if not 0 < reference <= 1:
    raise ValueError(f'{reference_name} must lie in (0, 1], got {reference}')
  return 100 * (float(accuracy) / float(reference) - 1)


def _finite_features(features) -> np.ndarray:
  features = np.asarray(features, np.float64)
  if features.ndim != 2:
    raise ValueError(f'features must be [N, D], got shape {features.shape}')
  if bad := int((~np.isfinite(features)).any(axis=1).sum()):
    raise ValueError(f'the features of {bad} of {len(features)} records are NaN or infinite: the '
                     'model has diverged, train it with a smaller learning rate')
  return features


def _has_pairs(labels) -> bool:
  """Whether every label column has a class with two records."""
  labels = np.asarray(labels)
  columns = labels.T if labels.ndim == 2 else labels[None]
  return all(np.unique(column, return_counts=True)[1].max() >= 2 for column in columns)
