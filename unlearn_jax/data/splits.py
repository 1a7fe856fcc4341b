"""Who is forgotten, kept, and never seen: index manifests, saved and hashed.

A split is drawn from units. The unit is the identity, so nobody stands in two splits; with
`shared_identities=True`, by class or by random instance, it is the record.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
import math
import numbers

from absl import logging
import numpy as np

from unlearn_jax.data import _checks
from unlearn_jax.data import _files
from unlearn_jax.data import _random
from unlearn_jax.data import sources

# The order in which units are dealt: first to `forget`, so that the other sizes do not change it.
NAMES = ('forget', 'retain', 'validation', 'test', 'unseen')
_FORMAT = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Splits:
  """Disjoint sets of record indices of one source.

  Attributes:
    indices: split -> sorted int64 [n]; a subset of `NAMES`.
    kind: how it was made: `identity`, `class`, `random`, `published`, `ids`, or `tuning` of one of
      them.
    seed: what the draw was keyed by.
    unit: `identity`, or `record` if identities may be shared between splits.
    source: name of the data set.
    source_hash: its `content_hash()`.
  """

  indices: Mapping[str, np.ndarray]
  kind: str
  seed: int
  unit: str
  source: str
  source_hash: str

  def __post_init__(self):
    indices = {name: np.sort(np.asarray(ids, np.int64)) for name, ids in self.indices.items()}
    for ids in indices.values():
      ids.setflags(write=False)
    object.__setattr__(self, 'indices', indices)

  @functools.cached_property
  def hash(self) -> str:
    """SHA-256 over the source's content and every non-empty split's name and sorted indices (hex).

    How the split was drawn does not enter: the same records under the same names, the same hash.
    """
    digest = hashlib.sha256(self.source_hash.encode())
    for name in sorted(self.indices):
      if len(ids := self.indices[name]):
        digest.update(f'|{name}|{len(ids)}|'.encode() + ids.astype('<i8').tobytes())
    return digest.hexdigest()

  def validate(self, source: sources.Source) -> None:
    """Checks the manifest against its data.

    Raises:
      ValueError: another source's manifest; a split of unknown name; ids that are not in the data
        or stand twice; an identity in two splits (named); an empty forget or retain set.
    """
    if self.source_hash != source.content_hash():
      raise ValueError(f'the splits were made for data {self.source!r} with content hash '
                       f'{self.source_hash[:12]}, this is {source.name!r} with '
                       f'{source.content_hash()[:12]}; make the splits again for this data')
    for name in self.indices:
      if name not in NAMES:
        raise _checks.unknown('split', name, NAMES)
    for name, ids in self.indices.items():
      if len(wrong := ids[(ids < 0) | (ids >= len(source))]):
        raise ValueError(f'split {name!r} has ids that are not in the data: '
                         f'{_checks.some(wrong)}; {source.name!r} has records 0 to '
                         f'{len(source) - 1}')
    if self.unit == 'identity':
      people = {name: np.unique(source.identity[ids]) for name, ids in self.indices.items()}
      _checks.disjoint(people, 'identity', '; give every identity to one split (by_identity does), '
                       'or pass shared_identities=True to by_class or by_random where the record '
                       'itself is what is forgotten')
    _checks.disjoint(self.indices, 'record')
    for name in ('forget', 'retain'):
      if not len(self.indices.get(name, ())):
        raise ValueError(f'the {name} set is empty; there is nothing to '
                         f'{"forget" if name == "forget" else "keep"}')

  def save(self, path: str) -> None:
    """Writes the manifest as JSON, atomically: readers see the old file or the whole new one."""
    data = {'format': _FORMAT, 'hash': self.hash, 'kind': self.kind, 'seed': self.seed,
            'unit': self.unit, 'source': self.source, 'source_hash': self.source_hash,
            'indices': {name: ids.tolist() for name, ids in self.indices.items()}}
    with _files.replacing(path) as file:
      json.dump(data, file)
      file.write('\n')


def load(path: str, source: sources.Source) -> Splits:
  """Reads a manifest and checks it against itself and the data.

  Raises:
    ValueError: not a manifest of this version, changed since it was saved, or not of this data.
  """
  try:
    with open(path) as file:
      data = json.load(file)
    splits = Splits(**{key: data[key] for key in
                       ('indices', 'kind', 'seed', 'unit', 'source', 'source_hash')})
    expected, version = data['hash'], data['format']
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ValueError(f'{path} is not a split manifest: {error!r}') from error
  if version != _FORMAT:
    raise ValueError(f'{path}: split manifest of format {version}, this is {_FORMAT}')
  if splits.hash != expected:
    raise ValueError(f'{path} was changed after it was saved: its records hash to '
                     f'{splits.hash[:12]}, the file says {expected[:12]}')
  splits.validate(source)
  return splits


def by_identity(source: sources.Source, *, sizes: Mapping[str, int | float], seed: int,
                forget_records: int | None = None, drop_rest: bool = False) -> Splits:
  """Deals whole identities, at random.

  Args:
    source: the data.
    sizes: split -> identities (ints), or shares of all identities (floats, sum at most 1). Splits
      that are not named stay empty.
    seed: the same seed draws the same forget identities whatever the other sizes are.
    forget_records: forget only so many records, drawn from those of the forget identities; the
      rest of a cut identity is left out of every split. Sets of one seed are nested.
    drop_rest: allow sizes that leave identities over, out of every split.

  Raises:
    ValueError: unknown split, sizes that do not fit the data, an empty forget or retain set.
  """
  source.validate()
  people = np.unique(source.identity)
  order = people[_random.permutation(len(people), seed, 'identity')]
  parts = deal(sizes, len(people), 'identities', drop_rest)
  indices = {name: np.flatnonzero(np.isin(source.identity, order[part]))
             for name, part in parts.items()}
  if forget_records is not None:
    available = len(indices.get('forget', ()))
    _checks.integer('forget_records', forget_records)
    if not 1 <= forget_records <= available:
      raise ValueError(f'forget_records must lie in 1 to {available}, the records of the forget '
                       f'identities; got {forget_records}')
    chosen = _random.permutation(available, seed, 'forget_records')[:forget_records]
    indices['forget'] = indices['forget'][chosen]
  return _checked(source, indices, 'identity', seed)


def by_class(source: sources.Source, *, forget_classes: Sequence[int],
             fractions: Mapping[str, float], seed: int, drop_rest: bool = False,
             shared_identities: bool = False) -> Splits:
  """Forgets all records of some classes and deals the others, at random.

  Args:
    source: the data, with class labels.
    forget_classes: forgotten wholly. No other split then holds such a record, so unseen data are
      of other classes: read membership scores of a class split with that in mind.
    fractions: split -> share (or number) of the remaining records; no `forget` among them.
    seed: of the draw.
    drop_rest: allow fractions that leave records over, out of every split.
    shared_identities: let an identity stand in two splits; the unit is the record then.

  Raises:
    ValueError: classes that the data have not, fractions as in `by_random`, a shared identity.
  """
  source.validate()
  forgotten = _in_classes(source, forget_classes)
  if 'forget' in fractions:
    raise ValueError("by_class takes 'forget' from forget_classes; leave it out of fractions")
  rest = np.flatnonzero(~forgotten)
  rest = rest[_random.permutation(len(rest), seed, 'class')]
  parts = deal(fractions, len(rest), 'remaining records', drop_rest)
  indices = {name: rest[part] for name, part in parts.items()}
  return _checked(source, indices | {'forget': np.flatnonzero(forgotten)}, 'class', seed,
                  'record' if shared_identities else 'identity')


def by_random(source: sources.Source, *, fractions: Mapping[str, float], seed: int,
              drop_rest: bool = False, shared_identities: bool = False) -> Splits:
  """Deals records, at random.

  Args:
    source: the data.
    fractions: split -> share of all records (floats, sum at most 1), or numbers of records (ints).
    seed: of the draw.
    drop_rest: allow fractions that leave records over, out of every split.
    shared_identities: let an identity stand in two splits; the unit is the record then.

  Raises:
    ValueError: unknown split, fractions that do not fit, an empty forget or retain set, an
      identity that would stand in two splits.
  """
  source.validate()
  order = _random.permutation(len(source), seed, 'random')
  indices = {name: order[part]
             for name, part in deal(fractions, len(source), 'records', drop_rest).items()}
  return _checked(source, indices, 'random', seed,
                  'record' if shared_identities else 'identity')


def by_owner(source: sources.Source, *, forget_owners: Sequence[str] | int,
             fractions: Mapping[str, float], seed: int) -> Splits:
  """Forgets what some identities gave to the training data; held-out records are of everybody.

  For voices that all speakers of a data set share in: the records of every split but `forget` and
  `retain` are dealt first, at random over all records; of the others, those of the chosen
  identities are forgotten and the rest is retained. So a forgotten speaker's voice is also heard
  in unseen and test records, which no model was trained on.

  Args:
    source: the data.
    forget_owners: identities, or how many to draw.
    fractions: held-out split -> share (or number) of all records; neither `forget` nor `retain`.
    seed: of the draws.

  Raises:
    ValueError: identities that are not in the data, fractions that do not fit, an empty forget or
      retain set.
  """
  source.validate()
  people = np.unique(source.identity)
  if isinstance(forget_owners, (int, np.integer)):
    if not 0 < forget_owners < len(people):
      raise ValueError(f'forget_owners must lie in 1 to {len(people) - 1}, got {forget_owners}')
    chosen = people[_random.permutation(len(people), seed, 'owner')[:forget_owners]]
  else:
    chosen = np.asarray(list(forget_owners), str)
    if missing := sorted(set(chosen.tolist()) - set(people.tolist())):
      raise _checks.unknown('identity', missing[0], people.tolist())
  if taken := {'forget', 'retain'} & set(fractions):
    raise ValueError(f'by_owner takes {_checks.some(sorted(taken))} from forget_owners; leave it '
                     'out of fractions')
  order = _random.permutation(len(source), seed, 'held out')
  parts = deal(fractions, len(source), 'records', True)
  indices = {name: order[part] for name, part in parts.items()}
  rest = order[max((part.stop for part in parts.values()), default=0):]
  forgotten = np.isin(source.identity[rest], chosen)
  return _checked(source, indices | {'forget': rest[forgotten], 'retain': rest[~forgotten]},
                  'owner', seed, 'record')


def published(source: sources.Source, *, roles: Mapping[str, str | Mapping[str, int | float]],
              forget_classes: Sequence[int] = (), seed: int = 0, drop_rest: bool = False,
              shared_identities: bool = False) -> Splits:
  """The authors' own partition of their data, under our names.

  Publications name the same files differently: in MUFAC, `val` is the test set of the benchmark and
  the validation set of DLFD. So the roles are given, and nothing is guessed.

  Args:
    source: the data, with a field `partition`.
    roles: partition -> split, or split -> share (or number) of the partition's identities, which
      are then dealt at random: `{'retain': {'retain': 0.9, 'validation': 0.1}}` where the authors
      publish no validation data, `{'test': {'test': 0.5, 'unseen': 0.5}}` where they use the same
      records for both and ours must be disjoint (both ours).
    forget_classes: forgotten wholly, in the place of a partition: their records in the retain set
      become the forget set, those in the test set the unseen set (SCRUB's attack on test data of
      the forgotten classes), and those in other splits are left out.
    seed: of what is dealt.
    drop_rest: leave partitions without a role, and identities left over, out of every split.
    shared_identities: an identity that the authors' border cuts stays in both splits; the unit is
      the record then. Otherwise what they do not forget of it is left out of every split, as in
      `by_identity(forget_records=...)`; a warning says how many records that are.

  Raises:
    ValueError: a source without partition, unknown names, partitions without a role, sizes that do
      not fit, an empty forget or retain set, an identity in two other splits; classes that the data
      have not, or besides a forget role.
  """
  source.validate()
  if 'partition' not in source.fields:
    raise ValueError(f'{source.name!r} carries no partition of its authors; draw its splits by '
                     'identity, class or random')
  partition = np.asarray(source.fields['partition'])
  there = np.unique(partition).tolist()
  if unknown := sorted(set(roles) - set(there)):
    raise _checks.unknown('partition', unknown[0], there)
  if (left := [name for name in there if name not in roles]) and not drop_rest:
    raise ValueError(f'partition {_checks.some(left)} of {source.name!r} has no role; pass '
                     'drop_rest=True to leave it out of every split')
  indices: dict[str, np.ndarray] = {}
  forgotten, cut = np.zeros(0, source.identity.dtype), []
  for name in sorted(roles, key=lambda name: 'forget' not in roles[name]):  # forget comes first
    role, members = roles[name], np.flatnonzero(partition == name)
    if not shared_identities and role != 'forget':
      inside = np.isin(source.identity[members], forgotten)
      if inside.any():
        cut.append(f'{inside.sum()} of {len(members)} in {name!r}')
      members = members[~inside]
    people = np.unique(source.identity[members])
    order = people[_random.permutation(len(people), seed, 'published', name)]
    sizes = {role: 1.0} if isinstance(role, str) else role
    what = f'identities of partition {name!r}'
    for split, part in deal(sizes, len(people), what, drop_rest).items():
      chosen = members[np.isin(source.identity[members], order[part])]
      indices[split] = np.concatenate([indices.get(split, np.zeros(0, np.int64)), chosen])
    forgotten = np.unique(source.identity[indices.get('forget', np.zeros(0, np.int64))])
  if forget_classes:
    if 'forget' in indices:
      raise ValueError('roles name forget, and forget_classes say what is forgotten; give one')
    inside = _in_classes(source, forget_classes)
    chosen = {new: indices[old][inside[indices[old]]]
              for old, new in (('retain', 'forget'), ('test', 'unseen')) if old in indices}
    indices = {name: ids[~inside[ids]] for name, ids in indices.items()}
    for name, ids in chosen.items():
      indices[name] = np.concatenate([indices.get(name, np.zeros(0, np.int64)), ids])
  if cut:
    logging.warning('%s: the border of the forget set runs through an identity; records left out '
                    'of every split: %s', source.name, ', '.join(cut))
  return _checked(source, indices, 'published', seed,
                  'record' if shared_identities else 'identity')


KINDS = {'identity': by_identity, 'class': by_class, 'random': by_random, 'owner': by_owner,
         'published': published}


def from_ids(source: sources.Source, ids: Mapping[str, Iterable], *, rest: str | None = None
             ) -> Splits:
  """Splits that somebody else has decided on: a deletion list, a published partition.

  Args:
    source: the data.
    ids: split -> identities (strings: all their records) or record indices (integers).
    rest: split that gets every record not named; None leaves them out. A deletion list alone is
      `from_ids(source, {'forget': ids}, rest='retain')`.

  Raises:
    ValueError: unknown split, ids that are not in the data, an identity in two splits (both are
      named), an empty forget or retain set.
  """
  source.validate()
  for name in (*ids, *([rest] if rest is not None else [])):
    if name not in NAMES:
      raise _checks.unknown('split', name, NAMES)
  indices = {name: _lookup(source, name, list(values)) for name, values in ids.items()}
  if rest is not None:
    named = np.concatenate([np.zeros(0, np.int64), *indices.values()])
    others = np.setdiff1d(np.arange(len(source)), named)
    indices[rest] = np.concatenate([indices.get(rest, np.zeros(0, np.int64)), others])
  return _checked(source, indices, 'ids', 0)


def tuning(splits: Splits, source: sources.Source, *, seed: int, share: float = 0.5) -> Splits:
  """Splits for choosing hyper-parameters, from data that no report looks at.

  Retained units stand in for forgotten ones, validation records for test and unseen ones. Records
  that the report forgets, tests on or calls unseen take no part.

  Args:
    splits: the report's splits.
    source: their data.
    seed: of the draw.
    share: of the retained units (identities; records if they are the unit), in (0, 1), that plays
      the forget set.

  Returns:
    `forget` drawn from retain, `retain` without it, `validation` as it was; nothing else.

  Raises:
    ValueError: share out of range, or too few retained units; no validation data.
  """
  splits.validate(source)
  if not 0 < share < 1:
    raise ValueError(f'share must lie in (0, 1), got {share}')
  if not len(splits.indices.get('validation', ())):
    raise ValueError('hyper-parameters are chosen on the validation split, and it is empty')
  retain = splits.indices['retain']
  units = source.identity[retain] if splits.unit == 'identity' else retain
  distinct = np.unique(units)
  count = round(share * len(distinct))
  if not 0 < count < len(distinct):
    raise ValueError(f'a share of {share} of {len(distinct)} retained {splits.unit} units leaves '
                     'no unit to forget or none to retain')
  drawn = distinct[_random.permutation(len(distinct), seed, 'tuning')[:count]]
  forgotten = np.isin(units, drawn)
  indices = {'forget': retain[forgotten], 'retain': retain[~forgotten],
             'validation': splits.indices['validation']}
  return _checked(source, indices, f'tuning of {splits.kind}', seed, splits.unit, complete=False)


def _in_classes(source: sources.Source, classes: Sequence[int]) -> np.ndarray:
  """Whether a record is of one of the classes to forget: bool [N]."""
  labels = np.asarray(source.fields['label'])
  if labels.ndim != 1:
    raise ValueError('forget_classes needs one class per record; this source has attributes')
  for name in classes:
    _checks.integer('forget_classes', name)
  if outside := sorted({int(c) for c in classes} - set(range(source.num_classes))):
    raise ValueError(f'forget_classes {_checks.some(outside)} lie outside the {source.num_classes} '
                     f'classes 0 to {source.num_classes - 1}')
  return np.isin(labels, list(classes))


def _checked(source, indices, kind, seed, unit='identity', *, complete=True) -> Splits:
  if complete:
    indices = {name: indices.get(name, np.zeros(0, np.int64)) for name in NAMES}
  splits = Splits(indices, kind, int(seed), unit, source.name, source.content_hash())
  splits.validate(source)
  return splits


def deal(sizes: Mapping[str, int | float], total: int, what: str, drop_rest: bool,
         known: Sequence[str] = NAMES) -> dict[str, slice]:
  """Sizes as consecutive slices of a shuffled list of `total` units, in the order of `known`.

  Raises:
    ValueError: a name that is not in `known`, sizes that do not fit.
  """
  for name, size in sizes.items():
    if name not in known:
      raise _checks.unknown('split', name, known)
    if (isinstance(size, bool) or not isinstance(size, numbers.Real) or not math.isfinite(size)
        or size < 0):
      raise ValueError(f'split {name!r}: the size must be a number of {what} or a share of them, '
                       f'got {size!r}')
  whole = {isinstance(size, numbers.Integral) for size in sizes.values()}
  if len(whole) > 1:
    raise ValueError(f'sizes must be all numbers of {what} (ints) or all shares (floats), got '
                     f'{dict(sizes)}')
  scale, limit = (1, total) if whole == {True} else (total, 1)
  asked = sum(sizes.values())
  names = [name for name in known if name in sizes]
  shown = f'{" + ".join(f"{sizes[name]:g}" for name in names)} = {asked:g}'
  if asked > limit + 1e-9:
    raise ValueError(f'the sizes ask for {shown} of the {limit} {what} there are' if scale == 1 else
                     f'the shares add up to {shown}, more than 1')
  if asked < limit - 1e-9 and not drop_rest:
    raise ValueError(f'the sizes {shown} leave some of the {total} {what} over; pass '
                     'drop_rest=True to leave these out of every split')
  parts, begin = {}, 0.0
  for name in names:
    end = begin + sizes[name] * scale
    parts[name] = slice(round(begin), round(end))
    if sizes[name] and parts[name].start == parts[name].stop:
      raise ValueError(f'split {name!r}: a share of {sizes[name]} of {total} {what} is none')
    begin = end
  return parts


def _lookup(source: sources.Source, name: str, values: list) -> np.ndarray:
  """Record indices of identities or of record indices."""
  if all(isinstance(value, str) for value in values):
    if missing := sorted(set(values) - set(source.identity.tolist())):
      raise ValueError(f'split {name!r} has identities that are not in the data: '
                       f'{_checks.some(missing)}')
    return np.flatnonzero(np.isin(source.identity, np.asarray(values, str)))
  for value in values:
    _checks.integer(f'ids of split {name!r} (identities are strings, records integers)', value)
  return np.asarray(values, np.int64)
