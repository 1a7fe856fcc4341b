"""Is the data fit for an audit? Overlaps between splits, near-duplicates, and memorisation."""

from collections.abc import Mapping
import itertools
from typing import Any

import numpy as np

from unlearn_jax.audit.outputs import Outputs

HASH_CELLS = 12  # a side; 64 bits take a third of all pairs of drawn digits for near-duplicates
NEAR_BITS = 6  # of 288: two pictures whose hashes differ in at most so many are near-duplicates
NEAR_COSINE = 0.99
_FLAT = 0.02  # of a picture's range: a smaller step is none
_BLOCK = 128
_LISTED = 20  # pairs that a report names


def difference_hash(images: np.ndarray) -> np.ndarray:
  """Perceptual hash of pictures: dHash in both directions, 2 * 12 * 12 = 288 bits.

  A picture is made grey and reduced by averaging to 12 rows of 13 and to 13 rows of 12 cells; each
  bit says whether a cell is brighter than its left, or upper, neighbour by more than 2 % of the
  picture's range (dHash, Krawetz, 2013, with 64 bits and without the 2 %: too coarse for drawings).
  Brightness, contrast and size do not matter; a mirrored or shifted picture is another one. Noise
  of 2 % of the range moves at most 4 bits in 95 of 100 Omniglot and MNIST pictures, and no two of
  400 with 4,840 Omniglot pictures lie within 6 bits (measured).

  Args:
    images: [N, H, W, C], H and W at least 13, any range.

  Returns:
    uint8 [N, 36], to compare by `hamming`.

  Raises:
    ValueError: no pictures of that size.
  """
  images = np.asarray(images)
  if images.ndim != 4 or min(images.shape[1:3]) <= HASH_CELLS:
    raise ValueError('a perceptual hash needs pictures [N, H, W, C] of at least '
                     f'{HASH_CELLS + 1} by {HASH_CELLS + 1} pixels, got {images.shape}')
  grey = images.astype(np.float32).mean(axis=-1)
  flat = _FLAT * np.maximum(np.ptp(grey, axis=(1, 2)), 1e-5)[:, None, None]
  bits = [np.diff(_reduce(grey, HASH_CELLS + (axis == 1), HASH_CELLS + (axis == 2)), axis=axis)
          > flat for axis in (2, 1)]
  return np.packbits(np.concatenate([part.reshape(len(grey), -1) for part in bits], axis=1), axis=1)


def _reduce(grey: np.ndarray, rows: int, columns: int) -> np.ndarray:
  """Means of cells, [N, rows, columns]; pixels on an edge count in part."""
  def weights(pixels, cells):
    edges, starts = np.linspace(0, pixels, cells + 1)[:, None], np.arange(pixels)
    inside = np.minimum(edges[1:], starts + 1) - np.maximum(edges[:-1], starts)
    return (np.maximum(inside, 0) * cells / pixels).astype(np.float32)  # [cells, pixels]
  return weights(grey.shape[1], rows) @ grey @ weights(grey.shape[2], columns).T


def hamming(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Differing bits of hashes [N, D] and [M, D]: [N, M]."""
  return np.bitwise_count(a[:, None] ^ b[None]).sum(axis=-1)


def overlaps(out: Outputs) -> dict[str, Any]:
  """Records that two splits share, by content (sha256 of the inputs) and by `id`.

  Returns:
    'content' and 'ids' -> {'split & split': how many distinct ones}, only where there are any; a
    text 'n/a: reason' where it cannot be told.
  """
  def shared(values):
    found = {}
    for a, b in itertools.combinations(values, 2):
      if number := len(np.intersect1d(values[a], values[b])):
        found[f'{a} & {b}'] = int(number)
    return found
  ids = {split: fields['id'] for split, fields in out.data.items() if 'id' in fields}
  return {'content': shared(out.hashes),
          'ids': shared(ids) if len(ids) == len(out.data) else 'n/a: not every split has `id`'}


def near_duplicates(out: Outputs) -> dict[str, Any]:
  """Pairs of a forgotten and another record that look alike.

  By perceptual hash (`image` fields; at most `NEAR_BITS` bits differ), and by embedding: the
  cosine, at least `NEAR_COSINE`, of the features that the first retrained model gives them, with
  the mean over its known records subtracted. A retrained model, because one that was trained on the
  forgotten records may have pulled them together. Two records of a class can be alike to a model
  and different to people: the pairs are to be looked at.

  Returns:
    'hash' and 'embedding' -> {'threshold', 'splits': {split: {'records': forgotten records with a
    near-duplicate there, 'pairs': how many}}, 'examples': the closest pairs}, or 'n/a: reason'.
  """
  found: dict[str, Any] = {}
  others = [split for split in out.data if split != 'forget']
  try:
    hashes = {split: difference_hash(_images(fields)) for split, fields in out.data.items()}
  except ValueError as error:
    found['hash'] = f'n/a: {error}'
  else:
    found['hash'] = _pairs(out, others, lambda rows, split: hamming(
        hashes['forget'][rows], hashes[split]), NEAR_BITS, smaller=True)
  if out.features is None:
    found['embedding'] = 'n/a: the model has no output `features`'
  else:
    model = out.retrained[0]
    centre = np.concatenate([out.features[split][model] for split in others]).mean(axis=0)
    units = {}
    for split, features in out.features.items():
      centred = features[model] - centre
      units[split] = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    found['embedding'] = _pairs(out, others, lambda rows, split: (
        units['forget'][rows] @ units[split].T), NEAR_COSINE, smaller=False)
  return found


def _images(fields: Mapping[str, np.ndarray]) -> np.ndarray:
  if 'image' not in fields:
    raise ValueError('a perceptual hash needs a field `image`')
  return fields['image']


def _pairs(out, others, compare, threshold, *, smaller) -> dict[str, Any]:
  """All pairs beyond the threshold, in blocks of forgotten records."""
  splits, examples = {}, []
  for split in others:
    rows, columns, values = [], [], []
    for start in range(0, out.size('forget'), _BLOCK):
      block = slice(start, min(start + _BLOCK, out.size('forget')))
      likeness = compare(block, split)
      near = likeness <= threshold if smaller else likeness >= threshold
      i, j = np.nonzero(near)
      rows.append(i + start)
      columns.append(j)
      values.append(likeness[i, j])
    i, j, v = np.concatenate(rows), np.concatenate(columns), np.concatenate(values)
    splits[split] = {'records': int(len(np.unique(i))), 'pairs': int(len(i))}
    for at in np.argsort(v if smaller else -v, kind='stable')[:_LISTED]:
      examples.append({'forget': _name(out, 'forget', i[at]), 'split': split,
                       'other': _name(out, split, j[at]), 'value': float(v[at])})
  examples.sort(key=lambda pair: pair['value'] if smaller else -pair['value'])
  return {'threshold': threshold, 'splits': splits, 'examples': examples[:_LISTED]}


def _name(out: Outputs, split: str, row: int) -> str:
  """The `id` of a record, or the start of its content hash."""
  fields = out.data[split]
  return str(fields['id'][row]) if 'id' in fields else out.hashes[split][row][:12]


def memorisation(out: Outputs) -> dict[str, Any]:
  """How much the original model owes its answers on the forgotten records to having seen them.

  Per record, correct(original) minus the share of retrained models that are correct: the
  memorisation of Feldman and Zhang (2020) with the given models as its sample, one of them trained
  on the record; and the same difference of margins. RUM (Zhao et al., 2024) explains the difficulty
  of a forget set by it.

  Returns:
    'mean' and 'margin' (means over records), 'high' (share of records with memorisation above 0.5)
    and 'records': [{'id', 'memorisation', 'margin'}] in descending order of the margin.
  """
  correct, margin = (out.score('forget', name) for name in ('correct', 'margin'))
  scores = correct[0] - correct[out.retrained].mean(axis=0)
  gaps = margin[0] - margin[out.retrained].mean(axis=0)
  return {'mean': float(scores.mean()), 'margin': float(gaps.mean()),
          'high': float((scores > 0.5).mean()),
          'records': [{'id': _name(out, 'forget', i), 'memorisation': float(scores[i]),
                       'margin': float(gaps[i])} for i in np.argsort(-gaps, kind='stable')]}


def measure(out: Outputs) -> dict[str, Any]:
  """`overlaps`, `near_duplicates` and `memorisation` of the data of an audit."""
  return {'overlaps': overlaps(out), 'near_duplicates': near_duplicates(out),
          'memorisation': memorisation(out)}
