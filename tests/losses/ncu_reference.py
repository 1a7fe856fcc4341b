"""NCU's losses in plain NumPy (float64), written from the paper's equations and the release's facts.

Names: v pictures, t captions, n negatives [N, d], all of unit length; s the log scale.
"""

import numpy as np


def log_softmax(z):
  z = z - z.max(axis=1, keepdims=True)
  return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def forget_pairs(v, t, s, fraction, reading):
  """Eq. 2 and the lowest int(P N): bool [N]."""
  z = np.exp(s) * v @ t.T
  omega = np.exp(np.diagonal(log_softmax(z)))
  if reading == 'paper':
    omega = (omega + np.exp(np.diagonal(log_softmax(z.T)))) / 2
  chosen = np.zeros(len(v), bool)
  chosen[np.argsort(omega, kind='stable')[:int(fraction * len(v))]] = True
  return chosen


def separation(t, n, *, opposite='relation', lower=-0.7, upper=-0.2):
  """Eq. 3, or V2: the mean of 2 - ||t - n||, over the rows given."""
  if opposite == 'distance':
    return np.mean([2 - np.linalg.norm(a - b) for a, b in zip(t, n)])
  return np.mean([max(lower - a @ b, 0) + max(a @ b - upper, 0) for a, b in zip(t, n)])


def hardest_negative(v, t, n, s, kept, *, reading='paper', opposite='relation', weight=10.0):
  """Eqs. 3 to 6 over the retained rows `kept`."""
  v, t, n, count = v[kept], t[kept], n[kept], kept.sum()
  relation = matching = 0.0
  for i in range(count):
    for j in range(count):
      pair = ((t[i] @ n[j], t[j] @ n[i]) if reading == 'paper' else (t[i] @ t[j], n[i] @ n[j]))
      relation += (pair[0] - pair[1])**2 / count
      sign = 1 if i == j else -1
      for text, z in ((t, sign), (n, -sign)):
        matching += np.log1p(np.exp(-z * np.exp(s) * v[i] @ text[j])) / count
  relation = relation if opposite == 'relation' else 0.0
  return weight * (separation(t, n, opposite=opposite) + relation) + matching


def sinkhorn(cost, mask, *, epsilon, iterations=20000, stop=None):
  """Masked transport between uniform marginals, in the log domain: exact updates in turn."""
  a, b = (-np.log(size) for size in cost.shape)
  log_k = np.where(mask, -cost / epsilon, -np.inf)
  u, w = np.zeros(cost.shape[0]), np.zeros(cost.shape[1])  # potentials over epsilon
  soft = lambda z, axis: np.logaddexp.reduce(z, axis=axis)
  for _ in range(iterations):
    old = u
    u = a - soft(log_k + w[None, :], 1)
    w = b - soft(log_k + u[:, None], 0)
    moved = epsilon * np.abs(u - old).sum()
    if moved < (1e-12 if stop is None else stop):
      break
  return np.exp(log_k + u[:, None] + w[None, :])


def problem(v, t, n, forget, targets='both'):
  """(similarities, mask, labels), [N, N + 1], or [N, N] for V3 (Eqs. 7, 8 and 10)."""
  count = len(v)
  scores = v @ t.T
  if targets == 'false_negatives':
    return scores, np.ones((count, count), bool), np.eye(count)
  mask, label = np.ones((count, count + 1), bool), np.zeros((count, count + 1))
  for i in range(count):
    mask[i, count] = forget[i]
    mask[i, i] = not forget[i]
    label[i, count if forget[i] else i] = 1
  return np.c_[scores, np.sum(v * n, axis=1)], mask, label


def transport_targets(v, t, n, forget, *, reading='paper', targets='both', gamma=0.7, epsilon=0.03):
  """Targets of pictures over captions, and of captions over pictures (Eqs. 7 to 10)."""
  scores, mask, label = problem(v, t, n, forget, targets)
  normal = lambda x: x / x.sum(axis=1, keepdims=True)
  cost = 1 - scores
  if reading == 'paper':
    mixture = gamma * sinkhorn(cost, mask, epsilon=epsilon) + (1 - gamma) * label
    rows, columns = normal(mixture), normal(mixture.T)
  else:
    cost = cost / cost.max()
    options = {'epsilon': epsilon, 'iterations': 100, 'stop': 1e-4}
    rows = gamma * normal(sinkhorn(cost, mask, **options)) + (1 - gamma) * label
    columns = gamma * normal(sinkhorn(cost.T, mask.T, **options)) + (1 - gamma) * label.T
  if targets == 'false_positives':  # V4: retained pictures and captions are one-hot
    for i in np.flatnonzero(~forget):
      rows[i], columns[i] = label[i], label[:, i]
  return rows, columns


def unlearning(v, t, n, s, given, forget, *, reading='paper', opposite='relation', targets='both'):
  """Eqs. 11 and 12 for `given` targets."""
  scores = problem(v, t, n, forget, targets)[0]
  total = 0.0
  for target, z in ((given[0], scores), (given[1], scores.T)):
    log_p = log_softmax(np.exp(s) * z)
    some = target > 0
    total += np.sum(target[some] * (np.log(target[some]) - log_p[some])) / len(target)
  rows = np.ones(len(v), bool) if reading == 'release' else ~forget
  return (0.5 if reading == 'release' else 1.0) * total + separation(
      t[rows], n[rows], opposite=opposite)


def info_nce(v, t, s, smoothing=0.0, where=slice(None)):
  """Eq. 1 as a mean of both directions, over the rows `where`, with all pairs as negatives."""
  total = 0.0
  for z in (np.exp(s) * v @ t.T, np.exp(s) * t @ v.T):
    log_p = log_softmax(z)
    losses = -(1 - smoothing) * np.diagonal(log_p) - smoothing * log_p.mean(axis=1)
    total += 0.5 * np.mean(losses[where])
  return total


def gradient_ascent(v, t, s, forget, *, smoothing=0.1, weight=1.0):
  """Descent with smoothing on the retained pairs, ascent on the others, both directions added."""
  return 2 * (info_nce(v, t, s, smoothing, ~forget) - weight * info_nce(v, t, s, where=forget))


def relabelling(v, t, s, forget):
  """InfoNCE after the forgotten pairs have passed their captions around a circle."""
  places = np.flatnonzero(forget)
  exchanged = t.copy()
  exchanged[places] = t[np.roll(places, -1)]
  return info_nce(v, exchanged, s)


def soft_clip(v, t, s, guides, *, softness=0.3, soft_weight=1.0, relation_weight=0.5):
  """InfoNCE and KL from softened labels; `guides`: (v, t, s) that make the targets, held constant."""
  total, count = info_nce(v, t, s), len(v)
  for z, guide in ((v @ t.T, guides[0]), (t @ v.T, guides[1])):
    intra, z = np.exp(guides[2]) * guide @ guide.T, np.exp(s) * z
    target = (1 - softness) * np.eye(count) + softness * np.exp(log_softmax(intra))
    total += soft_weight * 0.5 * np.mean(np.sum(target * (np.log(target) - log_softmax(z)), axis=1))
    for i in range(count):  # negatives alone
      rest = np.delete(np.arange(count), i)
      log_p, log_q = (log_softmax(x[None, i, rest]) for x in (intra, z))
      total += relation_weight * 0.5 * np.sum(np.exp(log_p) * (log_p - log_q)) / count
  return total
