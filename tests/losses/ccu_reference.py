"""Eqs. 4 to 6 of CCU as loops in NumPy, one exponential at a time; inputs are float64."""

import numpy as np


def selective(m_u, m_r, n_u, n_r, y_u, y_r, tau):
  """[visual, audio] terms of Eq. 4 as lists over the anchors that have positives and negatives."""
  visual, audio = [], []
  for m_i, n_i, y_i in zip(m_u, n_u, y_u):
    positives = [j for j in range(len(y_r)) if y_r[j] == y_i]
    negatives = [j for j in range(len(y_r)) if y_r[j] != y_i]
    if not positives or not negatives:
      continue
    below = sum(np.exp(m_i @ m_r[p] / tau) for p in positives)
    visual.append(-sum(np.log(np.exp(m_i @ m_r[a] / tau) / below) for a in negatives)
                  / len(negatives))
    below = sum(np.exp(n_i @ n_r[a] / tau) for a in negatives)
    audio.append(-sum(np.log(np.exp(n_i @ n_r[p] / tau) / below) for p in positives)
                 / len(positives))
  return visual, audio


def retention(n, m, tau):
  """Eq. 5, rows and columns."""
  s, size = n @ m.T / tau, range(len(m))
  rows = -sum(np.log(np.exp(s[i, i]) / sum(np.exp(s[i, j]) for j in size)) for i in size)
  columns = -sum(np.log(np.exp(s[j, j]) / sum(np.exp(s[i, j]) for i in size)) for j in size)
  return rows + columns


def separation(m, n, y, tau):
  """Eq. 6 over the anchors with company."""
  total = 0.0
  for x in (m, n):
    terms = []
    for i in range(len(y)):
      same = [j for j in range(len(y)) if j != i and y[j] == y[i]]
      if same:
        above = sum(np.exp(x[i] @ x[j] / tau) for j in same)
        below = sum(np.exp(x[i] @ x[j] / tau) for j in range(len(y)) if j != i)
        terms.append(-np.log(above / below))
    total += sum(terms) / len(terms) if terms else 0.0
  return total
