"""Pictures with captions: planted noisy correspondence, splits and contrastive batches."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses

from absl import logging
import numpy as np

from unlearn_jax import types
from unlearn_jax.data import _random
from unlearn_jax.data import fields as fields_lib
from unlearn_jax.data import sources
from unlearn_jax.data import splits as splits_lib
from unlearn_jax.data import streams
from unlearn_jax.data import transforms

ROLE = 'pairs'
PARTS = ('train', 'validation', 'test', 'unseen')

# (record ids [B], seed, epoch) -> rows of tokens int32 [B, L]
Text = Callable[[np.ndarray, int, int], np.ndarray]


def plant_noise(source: sources.Source, indices: np.ndarray, share: float, seed: int
                ) -> sources.Source:
  """Gives a share of the pairs the captions of one another: noisy correspondence of known place.

  The captions of the chosen records are permuted among these alone, so that nobody keeps a caption
  of its own text or identity (picture), nor one of its own category. Where more than half of the
  chosen are of one category, that is impossible for some; a warning says for how many. Records
  without a category (label -1, or no label) take part with the first two conditions only.

  Args:
    source: with captions.
    indices: records among which noise is planted, [n].
    share: of them, in [0, 1]; of one seed, the records of a smaller share are among those of a
      larger one.
    seed: of the draw.

  Returns:
    The source with permuted `caption`, bool `noisy`, and `true_caption`, what it was before.

  Raises:
    ValueError: no captions, a share out of range, records twice or not in the data; more than half
      of the chosen share one text or identity (one record alone does).
  """
  if 'caption' not in source.fields:
    raise ValueError(f'{source.name!r} has no captions; it has {", ".join(sorted(source.fields))}')
  if not 0 <= share <= 1:
    raise ValueError(f'the share of noisy pairs must lie in [0, 1], got {share}')
  indices = np.sort(np.asarray(indices, np.int64))
  if (np.diff(indices) == 0).any() or ((indices < 0) | (indices >= len(source))).any():
    raise ValueError(f'noise is planted among distinct records 0 to {len(source) - 1}')
  drawn = _random.permutation(len(indices), seed, 'noisy pairs')[:round(share * len(indices))]
  chosen = indices[np.sort(drawn)]
  caption, label = np.asarray(source.fields['caption']), source.fields.get('label')
  # Rows of facts that a record and its caption must not share: text, identity, category.
  facts = [np.unique(values[chosen], return_inverse=True)[1]
           for values in (caption, source.identity)]
  if label is not None and label.ndim == 1:
    category = np.asarray(label)[chosen]
    # Those without a category differ from one another too.
    facts.append(np.where(category < 0, -1 - np.arange(len(chosen)), category))
  order = _random.permutation(len(chosen), seed, 'caption')
  _repair(order, facts[:2], seed)
  if left := _clashes(order, facts[:2]).sum():
    raise ValueError(f'{left} of {len(chosen)} noisy pairs would keep a caption of their own: too '
                     'many of them share one text or identity')
  _repair(order, facts, seed)
  if left := _clashes(order, facts).sum():
    logging.warning('%s: %d of %d noisy pairs have a caption of their own category, which most of '
                    'them share', source.name, left, len(chosen))
  noisy, planted = np.zeros(len(source), bool), caption.copy()
  noisy[chosen], planted[chosen] = True, caption[chosen[order]]
  return dataclasses.replace(source, fields={
      **source.fields, 'caption': planted, 'true_caption': caption, 'noisy': noisy})


def split(source: sources.Source, *, sizes: Mapping[str, int | float], seed: int, noise: float,
          drop_rest: bool = False) -> tuple[sources.Source, splits_lib.Splits]:
  """Deals identities to training and held-out data and plants noise among the former.

  Args:
    source: with captions.
    sizes: `train`, `validation`, `test`, `unseen` -> identities (ints), or shares of all
      identities (floats that add up to 1). Parts that are not named stay empty.
    seed: of the draw and of the noise.
    noise: share of the training pairs with another's caption.
    drop_rest: leave out the identities that the sizes do not deal, instead of refusing.

  Returns:
    The source with planted noise, and its splits: `forget`, the noisy training pairs; `retain`, the
    other ones; `validation`, `test` and `unseen`, with their true captions. The unit is the record:
    an identity's pairs may be noisy or not, but none of them is held out if another one is not.

  Raises:
    ValueError: see `plant_noise`; unknown parts, sizes that do not fit the data, no noisy pair
      ("the forget set is empty") or none but those.
  """
  source.validate()
  parts = _deal(source, sizes, seed, drop_rest)
  train = parts.pop('train')
  source = plant_noise(source, train, noise, seed)
  noisy = source.fields['noisy'][train]
  indices = {'forget': train[noisy], 'retain': train[~noisy], **parts}
  splits = splits_lib.Splits(indices, 'pairs', int(seed), 'record', source.name,
                             source.content_hash())
  splits.validate(source)
  return source, splits


def unlabelled(source: sources.Source, *, sizes: Mapping[str, int | float], seed: int,
               drop_rest: bool = False) -> tuple[sources.Source, splits_lib.Splits]:
  """Deals identities as `split` does, of pairs of which nobody knows which are mismatched.

  Returns:
    The source, its captions taken for the true ones, and splits whose `forget` is empty: all of the
    training pairs are `retain`. There is no oracle to be had for them.

  Raises:
    ValueError: unknown parts, sizes that do not fit the data.
  """
  source.validate()
  parts = _deal(source, sizes, seed, drop_rest)
  indices = {'forget': np.zeros(0, np.int64), 'retain': parts.pop('train'), **parts}
  source = dataclasses.replace(source, fields={
      **source.fields, 'true_caption': np.asarray(source.fields['caption']),
      'noisy': np.zeros(len(source), bool)})
  return source, splits_lib.Splits(indices, 'unlabelled', int(seed), 'record', source.name,
                                   source.content_hash())


def _deal(source: sources.Source, sizes, seed: int, drop_rest: bool) -> dict[str, np.ndarray]:
  """Record indices of every part; empty where a part has no size."""
  people, number = np.unique(source.identity, return_inverse=True)
  place = np.argsort(_random.permutation(len(people), seed, 'pairs'))[number]  # of a record's own
  dealt = splits_lib.deal(sizes, len(people), 'identities', drop_rest, PARTS)
  parts = {name: dealt.get(name, slice(0, 0)) for name in PARTS}
  return {name: np.flatnonzero((part.start <= place) & (place < part.stop))
          for name, part in parts.items()}


def portion(splits: splits_lib.Splits, share: float, seed: int) -> splits_lib.Splits:
  """The splits with a share of the training pairs, mismatched and other ones in one draw.

  Args:
    splits: from `split` or `unlabelled`.
    share: in (0, 1]; of one seed, a smaller portion is part of a larger one.
    seed: of the draw.

  Raises:
    ValueError: a share out of range.
  """
  if not 0 < share <= 1:
    raise ValueError(f'the share of the training pairs must lie in (0, 1], got {share}')
  train = np.sort(np.concatenate([splits.indices['retain'], splits.indices['forget']]))
  kept = train[_random.permutation(len(train), seed, 'portion')[:round(share * len(train))]]
  return dataclasses.replace(splits, indices={
      **splits.indices, **{name: np.intersect1d(splits.indices[name], kept)
                           for name in ('retain', 'forget')}})


def steps_per_epoch(n: int, batch_size: int) -> int:
  """floor(n / batch_size): contrastive batches are full."""
  return n // batch_size


def stream(source: sources.Source, indices: np.ndarray, *, batch_size: int, seed: int,
           augment: Sequence[str] = (), texts: Mapping[str, Text]) -> types.Stream:
  """A stream of full batches of pairs, which a contrastive loss compares with one another.

  An epoch is a permutation of the records; the ragged rest of it is left out, another one in every
  epoch. Like all streams a pure function of the step.

  Args:
    source: where the pictures are.
    indices: records to read, [n], at least a batch.
    batch_size: B, over all devices and hosts.
    seed: of the order and the augmentation.
    augment: see `transforms.parse`; applied to `image`.
    texts: name of a field -> (record ids [B], seed, epoch) to rows of tokens int32 [B, L], such as
      those of the caption and of its augmented negative.

  Returns:
    step -> {'pairs': {image, label if there is one, id int32 [B], mask float32 [B], and the fields
    of `texts`}}. `image` is a `fields.Lazy` [B, H, W, C]: it reads, decodes and augments the rows
    that are asked for when they are, so a host spends time on those of its own devices only
    (`sharding.shard_batch`); `numpy.asarray` makes the whole of it.

  Raises:
    ValueError: fewer records than a batch, texts that hide another field; what `streams.schedule`
      raises.
  """
  order = streams.schedule(source, indices, ROLE, batch_size=batch_size, seed=seed, full=True)
  transform = transforms.parse(augment)
  image, label = source.fields['image'], source.fields.get('label')
  if hidden := sorted({'image', 'label', 'id', 'mask'} & set(texts)):
    raise ValueError(f'texts cannot be called {", ".join(hidden)}: the batch has such a field')

  def read(step: int) -> types.Batch:
    ids, epoch, mask = order(step)
    batch = {name: text(ids, seed, epoch) for name, text in texts.items()}
    batch['image'] = fields_lib.Lazy(
        (batch_size, *image.shape[1:]), np.float32,
        lambda rows: transform(np.asarray(image[ids[rows]], np.float32), seed, ids[rows], epoch))
    if label is not None:
      label_type = np.int32 if label.ndim == 1 else np.float32
      batch['label'] = label[ids].astype(label_type)
    return {ROLE: {**batch, 'id': ids.astype(np.int32), 'mask': mask}}

  return read


def _clashes(order: np.ndarray, facts: Sequence[np.ndarray]) -> np.ndarray:
  """Whether record i shares a fact with record `order[i]`, whose caption it gets: bool [n]."""
  return np.any([fact == fact[order] for fact in facts], axis=0)


def _repair(order: np.ndarray, facts: Sequence[np.ndarray], seed: int) -> None:
  """Swaps captions, in place, where that removes a clash and makes none.

  For one fact that no more than half of the records share, a partner always exists: at least one
  of the records without the clashing value gets no such caption either.
  """
  for i in np.flatnonzero(_clashes(order, facts)):
    if all(fact[order[i]] != fact[i] for fact in facts):
      continue  # an earlier swap has mended it
    good = np.all([(fact[order] != fact[i]) & (fact != fact[order[i]]) for fact in facts], axis=0)
    if len(partners := np.flatnonzero(good)):
      j = partners[_random.below(len(partners), seed, 'partner', int(i))]
      order[i], order[j] = order[j], order[i]
