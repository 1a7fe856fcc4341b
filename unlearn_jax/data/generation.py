"""Pictures for generators: classes to forget and to retain, and the streams of unlearning."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools

from absl import logging
import numpy as np

from unlearn_jax import types
from unlearn_jax.data import _checks
from unlearn_jax.data import _random
from unlearn_jax.data import holes
from unlearn_jax.data import sources
from unlearn_jax.data import splits as splits_lib
from unlearn_jax.data import streams as streams_lib

PARTS = ('retain', 'forget', 'other', 'held out')
LIMITS = (1, 5, 10, 20, 25, 50, 100)  # retain pictures per class (Li et al. 2024, section D.1)
TRAINING = 'train'  # partition of the authors that trains


def split(source: sources.Source, *, forget_classes: int | Sequence[int] = 10,
          retain_classes: int | Sequence[int] = 10, held_out: float | None = 0.25,
          smallest: int = 8, per_class: int | None = None, per_class_test: int | None = None,
          seed: int = 0) -> tuple[sources.Source, splits_lib.Splits]:
  """Classes that a generator forgets, and classes by which it is judged.

  Li et al. (2024), sections 4.1 and C.1: ImageNet-1k with 100 classes of each kind, `per_class=100`
  and `per_class_test=50`; Places365 with 50 classes, 5000 and 100; the authors' own partition
  (`held_out=None`). The defaults are ours, for small sets.

  An identity is in one part only. Where it has pictures in several classes, those of the class that
  is dealt first (forget before retain before others) count, and its other pictures take no part; a
  warning says how many these are.

  Args:
    source: pictures with one class each; -1, no class, is neither forgotten nor retained.
    forget_classes: labels, or how many to draw.
    retain_classes: likewise; drawn after the classes to forget, which do not depend on it.
    held_out: share of each class's identities that is held out: half of them (rounded down)
      validates, the others test. None: what the authors do not call `train` is held out.
    smallest: identities of a class that may be drawn; ours.
    per_class: training pictures of a class, at most; None takes all. What is over takes no part,
      also where an original that others trained has seen it.
    per_class_test: test pictures of a class, at most, and as many for validation out of what is
      left of the held-out ones, then of the training pictures that `per_class` leaves over (an
      original that others trained has seen these); None: the halves above.
    seed: of all draws.

  Returns:
    The source with `part` str [N], one of `PARTS`: training pictures of the retain classes (D_R),
    of the forget classes (D_F), of all other classes, which the original and the retrained model
    are trained on too, and the rest. And splits: `retain` and `forget`, these pictures;
    `validation`, held-out pictures of both; `test` and `unseen`, held-out pictures of the retain
    and of the forget classes.

  Raises:
    ValueError: classes that overlap, do not exist or are too few; a class that has no picture left
      for one of its parts; a share out of range; no partition, or none that trains; labels that are
      no classes.
  """
  source.validate()
  label, person = _labels(source), np.unique(source.identity, return_inverse=True)[1]
  training = _training(source) if held_out is None else None
  if held_out is not None and not 0 < held_out < 1:
    raise ValueError(f'held_out is a share of the identities in (0, 1), or None, got {held_out}')
  for name, count in (('per_class', per_class), ('per_class_test', per_class_test)):
    if count is not None and count < 1:
      raise ValueError(f'{name} must be at least 1 or None, got {count}')
  classes = _classes(source, label, person, forget_classes, retain_classes, smallest, seed)
  part = np.full(len(source), 'held out', f'<U{max(map(len, PARTS))}')
  dealt, taken = np.zeros(len(source), bool), np.zeros(person.max() + 1, bool)
  indices = {}
  for kind, test in (('forget', 'unseen'), ('retain', 'test')):
    for number in classes[kind]:
      ids = np.flatnonzero((label == number) & ~taken[person])
      train, validation, tested = _deal(
          ids, person[ids], None if training is None else training[ids], held_out=held_out,
          per_class=per_class, per_class_test=per_class_test, seed=seed, number=number)
      for name, found in ((kind, train), ('validation', validation), (test, tested)):
        if not len(found):
          raise ValueError(
              f'class {_named(source, number)}: of {len(np.unique(person[ids]))} identities no '
              f'picture is left for {name}; draw from larger classes (smallest), or change held_out, '
              'per_class or per_class_test')
        indices.setdefault(name, []).append(found)
      part[train], dealt[ids], taken[person[ids]] = kind, True, True
  chosen = np.isin(label, [*classes['forget'], *classes['retain']])
  part[~chosen & ~taken[person] & (True if training is None else training)] = 'other'
  if cut := int(np.sum(taken[person] & ~dealt)):
    logging.warning('%s: %d pictures of another class than the rest of their identity take no part',
                    source.name, cut)
  source = dataclasses.replace(source, fields={**source.fields, 'part': part})
  splits = splits_lib.Splits({name: np.concatenate(found) for name, found in indices.items()},
                             'generation', int(seed), 'identity', source.name,
                             source.content_hash())
  splits.validate(source)
  return source, splits


def tuning(splits: splits_lib.Splits, source: sources.Source, *, seed: int, share: float = 0.5
           ) -> splits_lib.Splits:
  """Splits for choosing hyper-parameters, from pictures that no report looks at.

  Some of the retain classes play the classes to forget, and the validation pictures of both stand
  in for test and unseen ones. What the report forgets, tests on or calls unseen takes no part.

  Args:
    splits: the report's splits.
    source: their data.
    seed: of the draw.
    share: of the retain classes, in (0, 1), that play the classes to forget; half is ours.

  Returns:
    `forget` and `retain` out of retain; `unseen` and `test` out of the validation pictures of
    these classes; nothing else.

  Raises:
    ValueError: share out of range, or fewer than two retain classes.
  """
  splits.validate(source)
  if not 0 < share < 1:
    raise ValueError(f'share must lie in (0, 1), got {share}')
  label, retain = _labels(source), splits.indices['retain']
  classes = np.unique(label[retain])
  count = int(share * len(classes))
  if not count:
    raise ValueError(f'a share of {share} of {len(classes)} retain classes leaves none to forget')
  drawn = classes[_random.permutation(len(classes), seed, 'tuning')[:count]]
  validation = splits.indices['validation']
  validation = validation[np.isin(label[validation], classes)]
  indices = {}
  for ids, gone, kept in ((retain, 'forget', 'retain'), (validation, 'unseen', 'test')):
    forgotten = np.isin(label[ids], drawn)
    indices |= {gone: ids[forgotten], kept: ids[~forgotten]}
  found = splits_lib.Splits(indices, f'tuning of {splits.kind}', int(seed), splits.unit,
                            source.name, source.content_hash())
  found.validate(source)
  return found


def trained(source: sources.Source, splits: splits_lib.Splits) -> dict[str, np.ndarray]:
  """What models are trained on: `train` the original, `retain` the retrained one.

  Returns:
    Sorted records: training pictures of the retain and all other classes, and for `train` those to
    forget as well.
  """
  retain = np.union1d(splits.indices['retain'], _others(source))
  return {'train': np.union1d(retain, splits.indices['forget']), 'retain': retain}


def streams(source: sources.Source, splits: splits_lib.Splits, *, batch_size: int, seed: int,
            grid: tuple[int, int], mask: str = 'random:0.75', augment: Sequence[str] = ()
            ) -> dict[str, types.Stream]:
  """All streams that methods for generators ask for by name.

  Streams of one role count every picture once an epoch, as `streams.single` does. In those of two,
  both have batches of B pictures that all count (Algorithm 1: |x_r| = |x_f|): each role goes round
  in epochs of its own, and a batch that its epoch does not fill goes on with pictures from the
  epoch's start. So the smaller role is oversampled, as in section D.1.

  Args:
    source: see `split`.
    splits: see `split`, or `tuning`.
    batch_size: B, of each role.
    seed: of orders, augmentation, holes and draws.
    grid: rows and columns of patches.
    mask: the hole of training and unlearning, see `holes.draw`. Li et al. do not state theirs; 75 %
      at random is that of MAE's training, the centre only a test's.
    augment: see `transforms.parse`.

  Returns:
    stream -> step -> role -> `image` float32 [B, H, W, C], `label`, `visible` int32 [B, K], `id`
    int32 [B] and `mask` float32 [B]:

    - `train`, `retain`: see `trained`; `forget`: D_F.
    - `pair`: D_R and D_F.
    - `limited/N`, N in `LIMITS`: N pictures of each retain class, and D_F (section D.1); a draw
      with a smaller N is a part of one with a larger.
    - `proxy`: as many pictures of other classes as D_F has instead of D_R (section 4.3).
    - `forget_proxy`: D_R, and other pictures of other classes instead of D_F, for the case that
      these are gone, which the authors name as a limitation; ours.

    A stream that the data cannot give raises ValueError when a batch is asked for.

  Raises:
    ValueError: a source without parts; a grid that does not divide the pictures, a hole that does
      not fit it; see `streams.single`.
  """
  height, width = source.fields['image'].shape[1:3]
  if height % grid[0] or width % grid[1]:
    raise ValueError(f'a grid of {grid[0]} x {grid[1]} patches does not divide pictures of {height} '
                     f'x {width}')
  holes.draw(mask, grid, seed=seed, ids=[0], step=0)  # raises now what would raise in every batch
  retain, forget = splits.indices['retain'], splits.indices['forget']
  label, others = _labels(source), _others(source)
  whole = trained(source, splits)
  shown = dataclasses.replace(source, fields={name: source.fields[name]
                                              for name in ('image', 'label')})

  def one(ids, role, every=False) -> types.Stream:
    read = streams_lib.single(shown, ids, role, batch_size=batch_size, seed=seed, augment=augment)

    def stream(step: int) -> types.Batch:
      fields = dict(read(step)[role])
      fields['visible'] = holes.draw(mask, grid, seed=seed, ids=fields['id'], step=step)
      if every:
        fields['mask'] = np.ones_like(fields['mask'])
      return {role: fields}

    return stream

  def two(kept, gone) -> types.Stream:
    kept, gone = one(kept, 'retain', True), one(gone, 'forget', True)
    return lambda step: {**kept(step), **gone(step)}

  def proxy(draw: int) -> np.ndarray:
    need = len(forget) * (draw + 1)
    if len(others) < need:
      raise ValueError(f'{source.name!r} has {len(others)} training pictures of other classes, and '
                       f'{need} are needed ({len(forget)} pictures are forgotten)')
    order = others[_random.permutation(len(others), seed, 'proxy')]
    return order[len(forget) * draw:need]

  return {
      **{name: one(ids, name) for name, ids in whole.items()}, 'forget': one(forget, 'forget'),
      'pair': two(retain, forget),
      **{f'limited/{limit}': _on_demand(
          lambda limit=limit: two(_limited(source, retain, label, limit, seed), forget))
         for limit in LIMITS},
      'proxy': _on_demand(lambda: two(proxy(0), forget)),
      'forget_proxy': _on_demand(lambda: two(retain, proxy(1))),
  }


def _on_demand(make: Callable[[], types.Stream]) -> types.Stream:
  """A stream that is made, or found impossible, when its first batch is asked for."""
  made = functools.cache(make)
  return lambda step: made()(step)


def _limited(source, retain, label, limit: int, seed: int) -> np.ndarray:
  """The first `limit` pictures of each class, in an order that does not depend on `limit`."""
  found = []
  for number in np.unique(label[retain]):
    ids = retain[label[retain] == number]
    if len(ids) < limit:
      raise ValueError(f'class {_named(source, number)} has {len(ids)} training pictures, and '
                       f'{limit} of each retain class are asked for')
    found.append(ids[_random.permutation(len(ids), seed, 'limited', int(number))[:limit]])
  return np.concatenate(found)


def _others(source: sources.Source) -> np.ndarray:
  if 'part' not in source.fields:
    raise ValueError(f'source {source.name!r} has no field part; take the source that '
                     'generation.split returns')
  return np.flatnonzero(np.asarray(source.fields['part']) == 'other')


def _labels(source: sources.Source) -> np.ndarray:
  label = np.asarray(source.fields['label']) if 'label' in source.fields else np.zeros((0, 0))
  if label.ndim != 1:
    raise ValueError(f'generators forget classes, and {source.name!r} has '
                     f'{"attributes" if "label" in source.fields else "no labels"}')
  return label


def _training(source: sources.Source) -> np.ndarray:
  """Whether the authors call a picture training data: bool [N]."""
  there = np.asarray(source.fields.get('partition', np.zeros(0, str)))
  if TRAINING not in there:
    raise ValueError(f'{source.name!r} has no partition {TRAINING!r} of its authors; hold out a '
                     'share of each class instead (held_out=0.25)')
  return there == TRAINING


def _classes(source, label, person, forget, retain, smallest: int, seed: int
             ) -> Mapping[str, list[int]]:
  """Labels to forget and to retain, as given or drawn."""
  wanted = {'forget': forget, 'retain': retain}
  known = np.unique(label[label >= 0])
  found = {}
  for kind, value in wanted.items():
    if not isinstance(value, (int, np.integer)):
      for number in value:
        _checks.integer(f'{kind}_classes', number)
      found[kind] = [int(number) for number in value]
      if missing := sorted(set(found[kind]) - set(known.tolist())):
        raise ValueError(f'{kind}_classes: {source.name!r} has no pictures of classes '
                         f'{_checks.some(missing)}; there are {len(known)} classes, {known.min()} to '
                         f'{known.max()}')
    elif value < 1:
      raise ValueError(f'{kind}_classes must be at least 1, got {value}')
  if both := sorted(set(found.get('forget', ())) & set(found.get('retain', ()))):
    raise ValueError('classes cannot be forgotten and retained: '
                     + ', '.join(_named(source, number) for number in both))
  for kind, numbers in found.items():
    if not numbers or len(set(numbers)) < len(numbers):
      raise ValueError(f'{kind}_classes must name each class once, and at least one: {numbers}')
  people = person.max() + 1
  pairs = np.unique(label[label >= 0].astype(np.int64) * people + person[label >= 0])
  count = np.bincount(pairs // people)  # identities of each class
  able = np.flatnonzero(count >= smallest)
  able = able[_random.permutation(len(able), seed, 'classes')]
  for kind, value in wanted.items():
    if kind in found:
      continue
    left = [int(number) for number in able if number not in sum(found.values(), [])]
    if len(left) < value:
      raise ValueError(f'{value} classes to {kind} are asked for; {source.name!r} has {len(able)} '
                       f'classes of at least {smallest} identities, of which {len(left)} are left')
    found[kind] = left[:value]
  return found


def _deal(ids, person, training, *, held_out, per_class, per_class_test, seed, number
          ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """One class's records for training, validation and test, identity by identity."""
  people, place = np.unique(person, return_inverse=True)
  place = np.argsort(_random.permutation(len(people), seed, 'people', number))[place]
  order = np.argsort(place, kind='stable')
  ids, place = ids[order], place[order]
  held = place < round(held_out * len(people)) if training is None else ~training[order]
  train, test = np.flatnonzero(~held)[:per_class], np.flatnonzero(held)
  if per_class_test is None:
    turns = np.unique(place[held])
    validates = np.isin(place[test], turns[:len(turns) // 2])
    test, validation = test[~validates], test[validates]
  else:
    test = test[:per_class_test]
    spare = np.flatnonzero(~np.isin(place, place[np.concatenate([train, test])]))
    validation = spare[np.argsort(~held[spare], kind='stable')][:per_class_test]
  return ids[train], ids[validation], ids[test]


def _named(source: sources.Source, number: int) -> str:
  return f'{number} ({source.class_names[number]})' if source.class_names else str(number)
