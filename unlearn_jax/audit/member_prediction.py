"""CCU's member prediction rate: the share of records that an attack takes for training data."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from unlearn_jax.audit import attacks
from unlearn_jax.losses import checks

SPLITS = ('forget', 'retain', 'test')


class Shadow(NamedTuple):
  """What a shadow model says of the records it was trained on, and of others.

  Attributes:
    members: logits [N, K].
    member_labels: [N].
    others: logits [M, K].
    other_labels: [M].
  """

  members: np.ndarray
  member_labels: np.ndarray
  others: np.ndarray
  other_labels: np.ndarray


def admin(logits: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], *, seed: int = 0
          ) -> dict[str, float]:
  """Rates of an administrator, who has the unlearned model and its training data.

  A balanced logistic regression on p_y and the three largest probabilities
  (`attacks.posterior`), fitted to one half of the retained (members) and of the test records, is
  asked about the forgotten records and the other halves. CCU names the setting and neither features
  nor classifier: ours.

  Args:
    logits: `forget`, `retain` and `test` -> [N, K] of the model in question.
    labels: likewise, int [N].
    seed: of the halves.

  Returns:
    split -> share taken for members, in [0, 1]: on `forget` the false positive rate, lower is
    better (ideal: the retrained model's); on `retain` the true positive rate; on `test` the false
    positive rate of records that were never trained on.

  Raises:
    ValueError: a split is missing, logits that are not finite, fewer than two records.
  """
  from sklearn import linear_model
  _check(logits, labels)
  features = {name: attacks.posterior(np.asarray(logits[name]), np.asarray(labels[name]))
              for name in SPLITS}
  rng = np.random.default_rng(seed)
  halves = {name: rng.permutation(len(features[name])) for name in ('retain', 'test')}
  first = {name: order[:len(order) // 2] for name, order in halves.items()}
  second = {name: order[len(order) // 2:] for name, order in halves.items()}
  x = np.concatenate([features[name][first[name]] for name in ('retain', 'test')])
  y = np.repeat([1, 0], [len(first['retain']), len(first['test'])])
  model = linear_model.LogisticRegression(class_weight='balanced', max_iter=1000).fit(x, y)
  asked = {'forget': features['forget'],
           **{name: features[name][second[name]] for name in ('retain', 'test')}}
  return {name: float(np.mean(model.predict(part))) for name, part in asked.items()}


def shadow(logits: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray],
           shadows: Sequence[Shadow]) -> dict[str, float]:
  """Rates of Shokri et al. (2017): attack models trained on shadow models, one per class.

  The attack on class c is a balanced logistic regression on the probability vector of records
  labelled c, with all shadow models' members (1) and others (0) as data. Source: CCU section 5.1.4
  by way of Shokri et al.; the classifier is ours (theirs is a small network).

  Args:
    logits: as in `admin`.
    labels: as in `admin`.
    shadows: one or more.

  Returns:
    As `admin`; records of a class for which the shadow models have no members or no others are
    left out.

  Raises:
    ValueError: no shadow model, or as `admin`.
  """
  from sklearn import linear_model
  _check(logits, labels)
  if not shadows:
    raise ValueError('the attack needs at least one shadow model')
  member = np.concatenate([np.concatenate([np.ones(len(s.members)), np.zeros(len(s.others))])
                           for s in shadows])
  features = np.concatenate([special.softmax(np.concatenate([s.members, s.others]), axis=1)
                             for s in shadows])
  known = np.concatenate([np.concatenate([s.member_labels, s.other_labels]) for s in shadows])
  found = {name: np.full(len(labels[name]), np.nan) for name in SPLITS}
  for label in np.unique(known):
    rows = known == label
    if len(np.unique(member[rows])) < 2:
      continue
    model = linear_model.LogisticRegression(class_weight='balanced', max_iter=1000)
    model.fit(features[rows], member[rows])
    for name in SPLITS:
      chosen = np.asarray(labels[name]) == label
      if chosen.any():
        found[name][chosen] = model.predict(special.softmax(
            np.asarray(logits[name])[chosen], axis=1))
  return {name: float(np.nanmean(values)) for name, values in found.items()}


def _check(logits, labels) -> None:
  for name in SPLITS:
    if name not in logits or name not in labels:
      raise ValueError(f'member prediction needs logits and labels of {", ".join(SPLITS)}; '
                       f'{name!r} is missing')
    checks.check_finite(f'logits of {name}', np.asarray(logits[name]))
    if len(logits[name]) != len(labels[name]) or len(labels[name]) < 2:
      raise ValueError(f'{name}: {len(logits[name])} logits for {len(labels[name])} labels; at '
                       'least two records, and one label for each')
