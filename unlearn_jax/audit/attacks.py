"""Membership inference under seven named conventions; their numbers must never share a column."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from unlearn_jax.audit import outputs as outputs_lib
from unlearn_jax.evals import privacy
from unlearn_jax.losses import checks

_TOP = 3  # largest probabilities that the administrator's attack looks at


class Convention(NamedTuple):
  """What a convention reads, where it comes from, and what its best value is.

  Attributes:
    splits: that it needs.
    source: paper or release.
    ideal: a key of `IDEALS`.
    meaning: in plain words.
  """

  splits: tuple[str, ...]
  source: str
  ideal: str
  meaning: str


IDEALS = {'half': 'that of an attack without any signal', 'retrained': 'that of retrained models',
          'zero': '0, or what retrained models have among themselves'}
CONVENTIONS = {
    'benchmark': Convention(
        ('forget', 'unseen'), 'MUFAC/MUCAC benchmark, cal_mia (Choi and Na, 2023)', 'half',
        'accuracy of an attack on the loss that tells forgotten from unseen records, as many of '
        'each'),
    'dlfd': Convention(
        ('forget', 'unseen'), 'DLFD, released evaluation/mia.py', 'half',
        'the same attack on all records; with unequal numbers an attack that knows nothing already '
        'scores the share of the larger kind'),
    'ssd': Convention(
        ('forget', 'retain', 'test'),
        'Selective Synaptic Dampening, released code (Foster et al., 2024); entropy attack of '
        'Chundawat et al. (2023)', 'retrained',
        'share of forgotten records that an attack on the entropy, trained on retained against '
        'test records, takes for training data'),
    'salun': Convention(
        ('forget', 'retain', 'test'), 'SalUn, released SVC_MIA (Fan et al., 2024)', 'retrained',
        'share of forgotten records that an attack on the confidence, trained on retained against '
        'test records, takes for records never seen (true negatives)'),
    'ccu_admin': Convention(
        ('forget', 'retain', 'test'),
        'member prediction rate of CCU by its administrator, who has the unlearned model and its '
        'training data; the attack itself is ours', 'retrained',
        'share of forgotten records that an attack on the probabilities, trained on retained '
        'against test records, takes for training data'),
    'auc': Convention(
        ('forget', 'unseen'), 'loss attack of Yeom et al. (2018), as an area under the ROC curve',
        'half', 'chance that a forgotten record has a smaller loss than an unseen one'),
    'privacy_loss': Convention(
        ('forget',), 'privacy loss ln(P / Q) of Dwork and Roth (2014), Section 2.3, between the '
        'probabilities that two models give the true label; its use here is ours', 'zero',
        'how differently a retrained model rates the true labels of forgotten records'),
}


class Membership(NamedTuple):
  """A membership-inference number.

  Attributes:
    value: under the convention.
    ideal: what a model that never saw the records would have, as far as it is known.
    source: of the convention.
  """

  value: float
  ideal: float
  source: str


def membership(logits: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], *,
               convention: str,
               retrained_logits: Mapping[str, np.ndarray] | Sequence | None = None, seed: int = 0
               ) -> Membership:
  """A membership-inference number without shadow models, from one pass of logits.

  - `benchmark`: accuracy of a logistic regression on the loss, forget (shuffled and truncated)
    against unseen, 10 stratified 90/10 splits. Ideal: its no-signal value, 0.5 if balanced.
  - `dlfd`: the same without truncation. Ideal: its no-signal value, max(n, m) / (n + m).
  - `ssd`: share of forget called member by a balanced logistic regression on the entropy, trained
    on retain (1) against test (0). Ideal: the retrained model's.
  - `salun`: share of forget called non-member by `SVC(C=3, gamma='auto')` on the confidence,
    trained on as many retain as test records. Ideal: the retrained model's.
  - `ccu_admin`: share of forget called member by a balanced logistic regression on p_y and the
    three largest probabilities, retain against test. Lower is better; ideal: the retrained model's.
  - `auc`: area under the ROC curve of the loss, forget against unseen. Ideal: 0.5.
  - `privacy_loss`: mean over forget of abs(ln p_y - ln p'_y), p' of the retrained model. Ideal: 0;
    what can be reached is the floor between retrained models.

  CCU's paper fixes neither features nor classifier of its administrator's attack; and no paper that
  we implement defines a privacy loss against the retrained model: these two are plain definitions
  of ours in their spirit. `ccu_admin` reads probabilities in decreasing order (as Salem et al.,
  2019), so that renaming classes changes nothing.

  Args:
    logits: split -> [N, C] of the evaluated model.
    labels: split -> int [N], or [N, K] attributes (not for `ccu_admin`).
    convention: one of `CONVENTIONS`.
    retrained_logits: the same of a model retrained without the forgotten records, or a sequence of
      such; `privacy_loss` needs it, and without it the `ideal` of the conventions that take it from
      the retrained model is NaN.
    seed: draws the records that `benchmark` and `salun` leave out.

  Returns:
    (value, ideal, source).

  Raises:
    ValueError: unknown convention, missing splits, labels that do not fit, logits that are not
      finite, too few records.
  """
  if convention not in CONVENTIONS:
    raise ValueError(f'convention is one of {sorted(CONVENTIONS)}, got {convention!r}')
  rule = CONVENTIONS[convention]
  if missing := [name for name in rule.splits if name not in logits or name not in labels]:
    raise ValueError(f'convention {convention!r} needs logits and labels of {missing}')
  if isinstance(retrained_logits, Mapping):
    retrained_logits = [retrained_logits]
  retrained_logits = list(retrained_logits or ())

  def scored(given):
    return {name: _scores(np.asarray(given[name]), np.asarray(labels[name]), convention)
            for name in rule.splits}
  model, retrained = scored(logits), [scored(given) for given in retrained_logits]
  if convention == 'privacy_loss':
    if not retrained:
      raise ValueError("'privacy_loss' compares with retrained models: pass retrained_logits")
    return Membership(float(np.mean([privacy_loss(model['forget'], other['forget']).mean()
                                     for other in retrained])), 0.0, rule.source)
  if convention == 'auc':
    return Membership(privacy.auc(model['forget']['loss'], model['unseen']['loss']), 0.5,
                      rule.source)
  if convention in privacy.CONVENTIONS:
    found = privacy.forgetting_score(model['forget']['loss'], model['unseen']['loss'],
                                     convention=convention, seed=seed)
    return Membership(found.accuracy, 0.5 + found.floor, rule.source)
  decide = DECISIONS[convention]
  ideal = float(np.mean([decide(other, seed).mean() for other in retrained])) if retrained else (
      float('nan'))
  return Membership(float(decide(model, seed).mean()), ideal, rule.source)


def _scores(logits: np.ndarray, labels: np.ndarray, convention: str) -> dict[str, np.ndarray]:
  checks.check_finite('logits', logits)
  found = outputs_lib.scores(logits, labels)
  if convention == 'ccu_admin':
    found['posterior'] = posterior(logits, labels)
  return found


def posterior(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """What the administrator's attack looks at: p_y and the largest probabilities, [N, 1 + 3].

  Raises:
    ValueError: attribute labels; they have no common distribution over classes.
  """
  if labels.ndim == 2:
    raise ValueError("'ccu_admin' needs one class per record, the labels are attributes")
  p = np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))
  largest = -np.sort(-p, axis=-1)[:, :_TOP]
  return np.concatenate([p[np.arange(len(labels)), labels][:, None], largest], axis=1)


def privacy_loss(model: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> np.ndarray:
  """abs(ln p_y - ln p'_y) per record, [N]; attributes: of the mean log-probabilities."""
  return np.abs(model['loss'] - other['loss'])


def _taken_for_members(classifier, features: Callable, scores, keep=None) -> np.ndarray:
  """Fits retain (1) against test (0) and returns its answers on forget, [N] of 0 and 1."""
  import threadpoolctl
  retain, test, forget = (features(scores[name]) for name in ('retain', 'test', 'forget'))
  if keep is not None:
    retain = retain[keep(len(retain), len(test))]
  known = np.repeat([1, 0], [len(retain), len(test)])
  with threadpoolctl.threadpool_limits(1):  # small fits; more threads only wait for one another
    return classifier.fit(np.concatenate([retain, test]), known).predict(forget).astype(float)


def _ssd(scores, seed):
  from sklearn import linear_model
  del seed  # there is nothing to draw
  return _taken_for_members(linear_model.LogisticRegression(class_weight='balanced'),
                            lambda part: part['entropy'][:, None], scores)


def _salun(scores, seed):
  from sklearn import svm

  def keep(n_retain, n_test):
    return np.random.default_rng(seed).permutation(n_retain)[:n_test]
  return 1 - _taken_for_members(svm.SVC(C=3, gamma='auto'),
                                lambda part: part['confidence'][:, None], scores, keep)


def _ccu_admin(scores, seed):
  from sklearn import linear_model
  del seed
  return _taken_for_members(linear_model.LogisticRegression(class_weight='balanced', max_iter=1000),
                            lambda part: part['posterior'], scores)


# Convention -> what the attack says of every forgotten record, [N] of 0 and 1.
DECISIONS = {'ssd': _ssd, 'salun': _salun, 'ccu_admin': _ccu_admin}


def cross_validated(forget: np.ndarray, unseen: np.ndarray, forget_counts: np.ndarray,
                    unseen_counts: np.ndarray, *, convention: str, seed: int) -> np.ndarray:
  """Accuracy of `evals.privacy.forgetting_score` under every row of counts, [R].

  The attacks are fitted once, to the records as they are; a resample only re-weights the records
  that they are tested on. With counts of one it equals `forgetting_score(...).accuracy`.

  Args:
    forget: losses [N].
    unseen: losses [M].
    forget_counts: [R, N].
    unseen_counts: [R, M].
    convention: `'benchmark'` or `'dlfd'`.
    seed: as there.
  """
  from sklearn import linear_model
  from sklearn import model_selection
  import threadpoolctl
  chosen, unseen = privacy.attacked_losses(np.arange(len(forget)), unseen, convention=convention,
                                           seed=seed)
  chosen = chosen.astype(int)
  features = np.concatenate([unseen, forget[chosen]])[:, None]
  labels = np.repeat([0, 1], [len(unseen), len(chosen)])
  counts = np.concatenate([unseen_counts, forget_counts[:, chosen]], axis=1)
  splits = model_selection.StratifiedShuffleSplit(n_splits=10, random_state=0)
  right, total = [], []
  with threadpoolctl.threadpool_limits(1):  # small fits; more threads only wait for one another
    for train, test in splits.split(features, labels):
      fitted = linear_model.LogisticRegression().fit(features[train], labels[train])
      hits = fitted.predict(features[test]) == labels[test]
      right.append(counts[:, test] @ hits)
      total.append(counts[:, test].sum(axis=1))
  right, total = np.stack(right), np.stack(total)  # [10, R]
  tested = total > 0  # a resample may leave a small test split empty
  return (np.where(tested, right / np.maximum(total, 1), 0).sum(axis=0)
          / np.maximum(tested.sum(axis=0), 1))
