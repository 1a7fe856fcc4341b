"""Conformance of a metric: known answers on the toy, and defects seen in published tools."""

from collections.abc import Callable, Iterator, Mapping
import functools
import itertools

import numpy as np
import scipy.optimize  # noqa: F401 (its BLAS must be loaded before its threads are limited)
import threadpoolctl

from unlearn_jax.testing import checks as checks_lib
from unlearn_jax.testing import toy

Metric = Callable[[toy.Outputs, toy.Outputs], float]
HELD_OUT = ('unseen', 'validation', 'test')
DEALS = 4  # how often forgotten and unseen records change places, per retrained model
FLOORS = 3.0  # standard deviations of the floor that an ideal value may lie away
CLOSE = 1e-4  # relative; what is left of float32 sums in another order


def conformance_metric(metric: Metric, *, ideal: float | None = None,
                       expects: Mapping[str, str] | None = None) -> list[checks_lib.Failed]:
  """Runs a metric on models with known answers (`toy`) and returns what is wrong with it.

  A metric is `metric(outputs, reference) -> float`: `outputs` of the model to judge and `reference`
  of a retrained model, both split -> `logits` [N, C], `features` [N, D], `label` [N], on the splits
  retain, forget, unseen, validation and test. A metric that needs no retrained model ignores the
  second argument: `lambda outputs, reference: measure(outputs)['mia_auc/unseen']`.

  - `finite`: a finite number on every pair of models.
  - `ideal`: retrained models score the declared `ideal` within the noise floor.
  - `separates`: the original is farther from the ideal than every retrained model is.
  - `not constant`: original, retrained and untrained models do not all score the same.
  - `relabelling`: renaming the classes changes nothing.
  - `permutation`: the order of the records changes nothing.
  - `empty input`: it raises when a split that it reads has no record.
  - `NaN input`: it raises when an array that it reads holds one NaN.
  - `forget data`: it reads the forgotten records. A gap on retained data rates doing nothing as
    perfect.
  - `non-members`: it does not set forgotten records against retained ones without reading any that
    are held out: retained records are members.

  The noise floor: values v of pairs of retrained models of different seeds, with forgotten and
  unseen records dealt anew. A retrained model has seen neither, so they are exchangeable and v is
  what "no difference" looks like, the sampling of records included. `ideal` asks that
  `|mean(v) - ideal| <= 3 std(v)`; a metric bounded by its ideal (`|0.5 - accuracy|`) stays
  within 3 of the deviations of its own folded noise. Without a declared ideal it is what retrained
  models score, and `separates` is against their mean. Rules: EVALUATION 1.1, 1.4 and 2; floor and
  thresholds are ours.

  Args:
    metric: what to check; deterministic. It is called about 150 times.
    ideal: its value for a model that has forgotten perfectly; None: what a retrained model scores.
    expects: check -> why it is not expected to pass; such checks are not run.

  Returns:
    The failed checks, each with a reason.

  Raises:
    ValueError: `expects` names no check.
  """
  suite = _Suite(metric, ideal)
  checks = {
      'finite': suite.finite, 'ideal': suite.is_ideal, 'separates': suite.separates,
      'not constant': suite.not_constant, 'relabelling': suite.relabelling,
      'permutation': suite.permutation, 'empty input': suite.empty, 'NaN input': suite.not_a_number,
      'forget data': suite.forget_data, 'non-members': suite.non_members}
  # A solver's inner problems are tiny here: more threads only wait for each other (5x, measured).
  with threadpoolctl.threadpool_limits(1):
    return checks_lib.failures(checks, expects or {})


class _Suite:
  """The checks of one metric. Inputs are made once per process: a metric may memoise on them."""

  def __init__(self, metric, ideal):
    self.metric, self.ideal = metric, ideal

  def value(self, pair) -> float:
    found = self.metric(*pair)
    if np.ndim(found) != 0:
      raise ValueError(f'a metric returns one number, this one returned shape {np.shape(found)}')
    return float(found)

  @functools.cached_property
  def floor(self) -> np.ndarray:
    return np.array([self.value(pair) for pair in _retrained_pairs()])

  @functools.cached_property
  def originals(self) -> np.ndarray:
    return np.array([self.value(pair) for pair in _original_pairs()])

  @functools.cached_property
  def base(self) -> float:
    return self.value(_base())

  @functools.cached_property
  def reads(self) -> frozenset[tuple[str, str, str]]:
    """(side, split, field) whose replacement by an untrained model's changes the value."""
    if np.isnan(self.base):
      raise ValueError(f'a retrained model scores {self.base}: no telling what the metric reads')
    return frozenset(place for place, pair in _replaced().items()
                     if self.value(pair) != self.base)

  def finite(self) -> Iterator[str]:
    for what, values in (('pairs of retrained models', self.floor),
                         ('the original', self.originals),
                         ('an untrained model', np.array([self.value(_random_pair())]))):
      if not np.isfinite(values).all():
        yield f'{values[~np.isfinite(values)][0]} on {what}'

  def is_ideal(self) -> Iterator[str]:
    if self.ideal is None:
      return
    mean, noise = self.floor.mean(), self.floor.std(ddof=1)
    if not abs(mean - self.ideal) <= FLOORS * noise + CLOSE * abs(self.ideal):
      yield (f'retrained models score {mean:.4g} with a deviation of {noise:.2g}, the declared '
             f'ideal is {self.ideal:.4g}: it fails the retrained model itself')

  def separates(self) -> Iterator[str]:
    ideal = self.floor.mean() if self.ideal is None else self.ideal
    gap = np.abs(self.originals - ideal).mean()
    # As the data lie, without dealing anew: the records are the same for all models.
    largest = max(abs(self.value(pair) - ideal) for pair in _retrained_pairs()[::DEALS + 1])
    if not gap > largest:
      yield (f'the original is {gap:.4g} from the ideal {ideal:.4g}, a retrained model up to '
             f'{largest:.4g}')

  def not_constant(self) -> Iterator[str]:
    values = [*self.originals, *self.floor[::DEALS + 1], self.value(_random_pair())]
    if not np.ptp(values) > CLOSE * np.max(np.abs(values)):
      yield f'original, retrained and untrained models all score {values[0]:.6g}'

  def relabelling(self) -> Iterator[str]:
    yield from self._unchanged(_relabelled(), 'the classes are renamed')

  def permutation(self) -> Iterator[str]:
    yield from self._unchanged(_permuted(), 'the records stand in another order')

  def _unchanged(self, pair, what) -> Iterator[str]:
    found = self.value(pair)
    if not abs(found - self.base) <= CLOSE * max(abs(found), abs(self.base)):
      yield f'{self.base:.6g} becomes {found:.6g} when {what}'

  def empty(self) -> Iterator[str]:
    for side, split in sorted({place[:2] for place in self.reads}):
      yield from self._raises(_emptied(side, split), f'{side}[{split!r}] has no record')

  def not_a_number(self) -> Iterator[str]:
    for place in sorted(self.reads):
      yield from self._raises(_poisoned(*place), '{}[{!r}][{!r}] holds a NaN'.format(*place))

  def _raises(self, pair, what) -> Iterator[str]:
    try:
      found = self.value(pair)
    except Exception:  # pylint: disable=broad-except; any exception is what is asked for
      return
    yield f'returns {found:.4g} when {what}; it must raise'

  def forget_data(self) -> Iterator[str]:
    if 'forget' not in {split for _, split, _ in self.reads}:
      yield (f'reads {self._splits()}, never the forgotten records: it cannot tell whether they '
             'were forgotten')

  def non_members(self) -> Iterator[str]:
    splits = {split for side, split, _ in self.reads if side == 'outputs'}
    compared = {'forget', 'retain'} <= splits and not splits & set(HELD_OUT)
    if compared and not any(side == 'reference' for side, _, _ in self.reads):
      yield ('sets forgotten records against retained ones, and reads none that are held out: '
             'non-members must be records that no model was trained on')

  def _splits(self) -> str:
    return ', '.join(sorted({split for _, split, _ in self.reads})) or 'no split'


@functools.cache
def _models() -> dict[str, toy.Outputs]:
  found = {f'retrained{i}': toy.outputs(v) for i, v in enumerate(toy.retrained())}
  return {**found, 'original': toy.outputs(toy.original()), 'random': toy.outputs(toy.random())}


def _base():
  return _retrained_pairs()[0]


@functools.cache
def _retrained_pairs():
  """Each retrained model against the next: as it is, then dealt anew `DEALS` times."""
  rng = np.random.default_rng(0)
  pairs = []
  for index in range(toy.RETRAINED):
    pair = (_models()[f'retrained{index}'], _models()[f'retrained{(index + 1) % toy.RETRAINED}'])
    pairs.append(pair)
    for _ in range(DEALS):
      order = rng.permutation(toy.SIZES['forget'] + toy.SIZES['unseen'])
      pairs.append(tuple(_dealt(outputs, order) for outputs in pair))
  return pairs


def _dealt(outputs, order):
  """Forgotten and unseen records shuffled among themselves."""
  pooled = {name: np.concatenate([outputs['forget'][name], outputs['unseen'][name]])[order]
            for name in outputs['forget']}
  count = toy.SIZES['forget']
  return {**outputs, 'forget': {name: field[:count] for name, field in pooled.items()},
          'unseen': {name: field[count:] for name, field in pooled.items()}}


@functools.cache
def _original_pairs():
  return [(_models()['original'], _models()[f'retrained{i}']) for i in range(toy.RETRAINED)]


@functools.cache
def _random_pair():
  return _models()['random'], _base()[1]


def _altered(side, split, change):
  """The base pair with `change(fields)` in one split of one side."""
  pair = dict(zip(('outputs', 'reference'), _base()))
  pair[side] = {**pair[side], split: change(pair[side][split])}
  return pair['outputs'], pair['reference']


@functools.cache
def _replaced():
  return {(side, split, name): _altered(
      side, split, lambda fields, s=split, n=name: {**fields, n: _models()['random'][s][n]})
          for side, split, name in itertools.product(
              ('outputs', 'reference'), toy.SIZES, ('logits', 'features'))}


@functools.cache
def _emptied(side, split):
  return _altered(side, split, lambda fields: {name: field[:0] for name, field in fields.items()})


@functools.cache
def _poisoned(side, split, name):
  def poison(fields):
    field = fields[name].copy()
    field[0, 0] = np.nan
    return {**fields, name: field}

  return _altered(side, split, poison)


@functools.cache
def _relabelled():
  new = np.roll(np.arange(toy.CLASSES), 1)  # class c is called new[c]

  def rename(fields):
    return {**fields, 'logits': fields['logits'][:, np.argsort(new)],
            'label': new[fields['label']].astype(fields['label'].dtype)}

  return tuple({split: rename(fields) for split, fields in outputs.items()} for outputs in _base())


@functools.cache
def _permuted():
  rng = np.random.default_rng(1)
  order = {split: rng.permutation(size) for split, size in toy.SIZES.items()}
  return tuple({split: {name: field[order[split]] for name, field in fields.items()}
                for split, fields in outputs.items()} for outputs in _base())
