"""Value checks on the host. Values cannot raise inside jit: test them before the first step."""

import numpy as np

SHOWN = 5  # offending positions that a message lists


def _places(bad: np.ndarray) -> str:
  """Where a boolean array is true: how many, and the first few indices."""
  found = [tuple(int(i) for i in place) for place in np.argwhere(bad)[:SHOWN]]
  shown = ', '.join(str(place[0]) if len(place) == 1 else str(place) for place in found)
  return f'{int(bad.sum())} of {bad.size} entries, first at {shown}'


def _floats(name: str, array) -> np.ndarray:
  array = np.asarray(array)
  # bfloat16 is no NumPy float; every narrow dtype fits into float32.
  if array.dtype.kind not in 'biuf':
    try:
      array = array.astype(np.float32)
    except (TypeError, ValueError) as error:
      raise ValueError(f'{name}: expected numbers, got dtype {array.dtype}') from error
  return array


def check_finite(name: str, array) -> None:
  """Refuses NaN and infinity.

  Args:
    name: what the array is, for the message.
    array: any shape; of numbers.

  Raises:
    ValueError: says how many entries are not finite and where the first ones stand.
  """
  array = _floats(name, array)
  bad = ~np.isfinite(array)
  if bad.any():
    raise ValueError(
        f'{name}: not finite (NaN or infinite) in {_places(np.atleast_1d(bad))}. Clean the data, '
        'or lower the learning rate if a model computed it.')


def check_labels(labels, num_classes: int) -> None:
  """Refuses labels that a loss would silently turn into NaN or into another class.

  Args:
    labels: integers [B] in [0, num_classes), or attributes [B, num_classes] in {0, 1}.
    num_classes: outputs of the model's head, at least 1.

  Raises:
    ValueError: wrong rank or dtype, labels outside the classes, attributes other than 0 and 1.
  """
  labels = np.asarray(labels)
  if num_classes < 1:
    raise ValueError(f'labels: num_classes is at least 1, got {num_classes}')
  if labels.ndim == 1:
    if labels.dtype.kind not in 'iu':
      raise ValueError(f'labels: classes are integers, got dtype {labels.dtype}; convert them, or '
                       'pass attributes as [B, K]')
    bad = (labels < 0) | (labels >= num_classes)
    if bad.any():
      raise ValueError(
          f'labels: outside [0, {num_classes}) in {_places(bad)} (values '
          f'{sorted(set(labels[bad].tolist()))[:SHOWN]}). Set num_classes to at least '
          f'{int(labels.max()) + 1}, or drop or renumber these records.')
  elif labels.ndim == 2:
    labels = _floats('labels', labels)
    if labels.shape[1] != num_classes:
      raise ValueError(f'labels: {labels.shape[1]} attributes for {num_classes} outputs of the '
                       'model; they must agree')
    bad = (labels != 0) & (labels != 1)
    if bad.any():
      raise ValueError(f'labels: attributes are 0 or 1, which fails in {_places(bad)}; '
                       'threshold them first')
  else:
    raise ValueError(f'labels: expected [B] classes or [B, K] attributes, got shape {labels.shape}')


def check_embeddings(
    name: str, array, *, normalized: bool = False, tolerance: float = 1e-3
) -> None:
  """Refuses features on which a cosine cost means nothing.

  Args:
    name: what the array is, for the message.
    array: [B, D].
    normalized: also require unit length.
    tolerance: largest deviation from it.

  Raises:
    ValueError: wrong rank, not finite, rows of length 0, or not normalised.
  """
  array = _floats(name, array)
  if array.ndim != 2:
    raise ValueError(f'{name}: expected embeddings [B, D], got shape {array.shape}; flatten them')
  check_finite(name, array)
  lengths = np.linalg.norm(array.astype(np.float64), axis=1)
  if (lengths < 1e-6).any():
    raise ValueError(
        f'{name}: rows shorter than 1e-6 have no direction: {_places(lengths < 1e-6)}. '
        'Drop these records, or take features before the last rectifier.')
  off = np.abs(lengths - 1.0) > tolerance
  if normalized and off.any():
    raise ValueError(f'{name}: not of unit length in {_places(off)}; divide by the norm first')


def check_weights(name: str, weights) -> None:
  """Refuses weights or masks that are not a measure.

  Args:
    name: what the weights are, for the message.
    weights: [B].

  Raises:
    ValueError: wrong rank, not finite, negative, or all 0.
  """
  weights = _floats(name, weights)
  if weights.ndim != 1:
    raise ValueError(f'{name}: expected weights [B], got shape {weights.shape}')
  check_finite(name, weights)
  if (weights < 0).any():
    raise ValueError(f'{name}: negative in {_places(weights < 0)}; weights are at least 0')
  if not (weights > 0).any():
    raise ValueError(f'{name}: no positive weight, so nothing would count; select some records')


def check_anchors(forget_labels, retain_labels) -> None:
  """Refuses records to forget that can never be anchors of CCU's Eq. 4.

  In a batch a class may be missing, and its anchors are dropped; a class without any retained record
  would be dropped from every batch, and nothing of it unlearned.

  Args:
    forget_labels: int [F], of all records to forget.
    retain_labels: int [N], of all retained records.

  Raises:
    ValueError: wrong rank or dtype, a class with no retained record (named), or retained records of
      one class alone, which leave no negatives.
  """
  forget, retain = (np.asarray(labels) for labels in (forget_labels, retain_labels))
  for name, labels in (('forget_labels', forget), ('retain_labels', retain)):
    if labels.ndim != 1 or labels.dtype.kind not in 'iu':
      raise ValueError(f'{name}: expected integer classes [B], got {labels.dtype} {labels.shape}')
  if alone := sorted(set(forget.tolist()) - set(retain.tolist())):
    raise ValueError(
        f'forget_labels: no retained record has class {alone[:SHOWN]} ({len(alone)} classes), so its '
        'pictures have no class to leave; retain some records, or use a method without positives')
  if len(forget) and len(set(retain.tolist())) < 2:
    raise ValueError('retain_labels: a single class leaves no records of another one to move to; '
                     'contrast needs two classes at least')


def check_mask(mask, a=None, b=None) -> None:
  """Refuses a transport mask through which the marginals cannot be met.

  Whether they can is a maximum flow from rows to columns (weights rounded to 2^-30 of their sum).

  Args:
    mask: [m, n], True or 1 where mass may go.
    a: [m] weights of the rows; None is uniform.
    b: [n] weights of the columns; None is uniform.

  Raises:
    ValueError: wrong shapes, weights of different sums, a line of positive weight that allows
      nothing (named), or marginals that the mask cannot meet (says how much is left over).
  """
  mask = np.asarray(mask).astype(bool)
  if mask.ndim != 2:
    raise ValueError(f'mask: expected [m, n], got shape {mask.shape}')
  sides = []
  for name, weights, size in (('a', a, mask.shape[0]), ('b', b, mask.shape[1])):
    weights = np.full(size, 1.0 / size) if weights is None else _floats(name, weights)
    check_weights(name, weights)
    if len(weights) != size:
      raise ValueError(f'{name}: {len(weights)} weights for a mask of shape {mask.shape}')
    sides.append(weights.astype(np.float64))
  totals = [side.sum() for side in sides]
  if not np.isclose(*totals, rtol=1e-5):
    raise ValueError(f'a sums to {totals[0]:g}, b to {totals[1]:g}; both sides carry the same mass')
  for axis, what, side in ((1, 'row', sides[0]), (0, 'column', sides[1])):
    able = mask.any(axis=axis)
    if (dead := (side > 0) & ~able).any():
      raise ValueError(f'mask: nothing is allowed for some {what}s that ask for mass: '
                       f'{_places(dead)}. Allow something there, or give them weight 0.')
  left = 1.0 - _flow(mask, *(side / side.sum() for side in sides))
  if left > 1e-6:
    raise ValueError(f'mask: {left:.2g} of the mass finds no allowed place, so the marginals cannot '
                     'be met; allow more entries, or change the weights')


def _flow(mask: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
  """Largest mass that can go from rows to columns."""
  from scipy import sparse  # JAX needs it too; only this check does here
  from scipy.sparse import csgraph

  scale = 2**30
  rows, columns = np.nonzero(mask)
  m, n = mask.shape
  source, sink = m + n, m + n + 1
  begin = np.concatenate([np.full(m, source), rows, m + np.arange(n)])
  end = np.concatenate([np.arange(m), m + columns, np.full(n, sink)])
  capacity = np.concatenate([np.rint(a * scale), np.full(len(rows), scale), np.rint(b * scale)])
  graph = sparse.csr_array((capacity.astype(np.int32), (begin, end)), shape=(m + n + 2,) * 2)
  return csgraph.maximum_flow(graph, source, sink).flow_value / scale
