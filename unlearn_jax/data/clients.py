"""Data of a federation: who holds which pairs, who forgets which, and the batches of a round."""

from collections.abc import Callable, Sequence
import math
from typing import NamedTuple

import numpy as np

from unlearn_jax import types
from unlearn_jax.data import _checks
from unlearn_jax.data import _random
from unlearn_jax.data import fields as fields_lib
from unlearn_jax.data import pairs
from unlearn_jax.data import sources
from unlearn_jax.data import streams as streams_lib
from unlearn_jax.data import transforms

CLIENTS, FORGET = 'clients', 'forget'  # roles of a batch
SCENARIOS = ('client', 'sample', 'concept')
DRAWS = 1000  # of a partition, before giving up
_FEWEST = 2  # rows of a step: a contrastive loss compares them with one another


class Roster(NamedTuple):
  """What unlearning methods are told about the clients.

  Attributes:
    sizes: int [K], pairs of each client.
    forget: int [K], pairs to forget of each client.
    leaving: bool [K], clients that leave with all their pairs (scenario `client`).
    scenario: one of `SCENARIOS`.
  """

  sizes: np.ndarray
  forget: np.ndarray
  leaving: np.ndarray
  scenario: str


def partition(labels: np.ndarray, *, clients: int, alpha: float, seed: int, minimum: int = 2,
              groups: np.ndarray | None = None) -> list[np.ndarray]:
  """Deals records to clients, by category in shares drawn from a Dirichlet distribution.

  For every category c, p_c ~ Dirichlet(alpha 1_K), and client k gets the share p_ck of its groups
  (Yurochkin et al. 2019). Drawn anew until every client has `minimum` records.

  Args:
    labels: category of every record, int [N]; records without one (-1) are a category like others.
    clients: K.
    alpha: above 0; the smaller, the fewer categories has a client. Infinity deals all groups
      evenly, whatever their category (IID).
    seed: of the draw.
    minimum: records that every client has at least.
    groups: what must not be cut, [N], such as the picture of a caption; None is every record on its
      own.

  Returns:
    Records of each client, sorted int64 [n_k]; every record is one client's.

  Raises:
    ValueError: an argument out of range, a group with two categories, too few records, or no
      partition with the minimum in `DRAWS` draws.
  """
  labels = np.asarray(labels)
  groups = np.arange(len(labels)) if groups is None else np.asarray(groups)
  for name, value in (('clients', clients), ('minimum', minimum)):
    _checks.integer(name, value)
    if value < 1:
      raise ValueError(f'{name} must be at least 1, got {value}')
  if not alpha > 0:
    raise ValueError(f'alpha must lie in (0, inf], got {alpha}')
  if labels.ndim != 1 or labels.dtype.kind not in 'iu' or groups.shape != labels.shape:
    raise ValueError('labels are integers [N] and groups [N]; got '
                     f'{labels.dtype} {labels.shape} and {groups.shape}')
  if len(labels) < clients * minimum:
    raise ValueError(f'{len(labels)} records are too few for {clients} clients with at least '
                     f'{minimum} each')
  names, first, unit, counts = np.unique(groups, return_index=True, return_inverse=True,
                                         return_counts=True)
  category = labels[first]
  if len(wrong := np.flatnonzero(labels != category[unit])):
    raise ValueError(f'the records of group {names[unit[wrong[0]]].item()!r} are of several '
                     'categories; give a group one')
  for draw in range(DRAWS):
    owner = _deal(category, clients, alpha, seed, draw)
    if np.bincount(owner, counts, clients).min() >= minimum:
      return [np.flatnonzero(owner[unit] == client) for client in range(clients)]
  raise ValueError(f'no partition of {len(names)} groups in {len(np.unique(category))} categories '
                   f'gives each of {clients} clients {minimum} records in {DRAWS} draws; raise '
                   f'alpha ({alpha:g}), or ask for fewer clients or a smaller minimum')


def _deal(category: np.ndarray, clients: int, alpha: float, seed: int, draw: int) -> np.ndarray:
  """The client of every group: int64 [U]."""
  order = _random.permutation(len(category), seed, 'partition', draw)
  owner = np.empty(len(category), np.int64)
  if math.isinf(alpha):
    owner[order] = np.arange(len(order)) % clients
    return owner
  rng = np.random.default_rng((seed, draw))
  for value in np.unique(category):
    chosen = order[category[order] == value]
    ends = np.rint(np.cumsum(rng.dirichlet(np.full(clients, alpha)))[:-1] * len(chosen))
    owner[chosen] = np.searchsorted(ends, np.arange(len(chosen)), side='right')
  return owner


def roster(parts: Sequence[np.ndarray], scenario: str, *, client: int | None = None,
           share: float = 0.2, concept: int | None = None, labels: np.ndarray | None = None,
           groups: np.ndarray | None = None, seed: int = 0) -> tuple[Roster, np.ndarray]:
  """Who is to forget what.

  Scenarios:
    `client`: client `client` leaves, and all its pairs are forgotten.
    `sample`: a share of the groups (pictures) of client `client` are forgotten; it stays.
    `concept`: every pair of category `concept` is forgotten, whoever has it.

  Args:
    parts: records of each client, as `partition` gives them.
    scenario: one of `SCENARIOS`.
    client: of `client` and `sample`.
    share: of `sample`, in (0, 1); rounded to whole groups. The groups of a smaller share are among
      those of a larger one.
    concept: of `concept`.
    labels: category of every record of the source, for `concept`.
    groups: what is forgotten as a whole, by record of the source, for `sample`; None is the record.
    seed: of the draw of `sample`.

  Returns:
    The roster, and the records to forget, sorted int64 [n].

  Raises:
    ValueError: an unknown scenario or client, a client without data, a record of two clients, the
      last client removed, a share that takes nothing or everything, a concept that nobody has, a
      missing argument; nothing would be left to retain.
  """
  parts = [np.asarray(part, np.int64) for part in parts]
  if scenario not in SCENARIOS:
    raise _checks.unknown('scenario', scenario, SCENARIOS)
  for number, part in enumerate(parts):
    if not len(part):
      raise ValueError(f'client {number} has no data')
  _checks.disjoint({f'client {number}': part for number, part in enumerate(parts)}, 'record')
  if scenario == 'concept':
    forget = _of_concept(np.concatenate(parts), concept, labels)
  else:
    _checks.integer(f'scenario {scenario!r}, client', client)
    if client not in range(len(parts)):
      raise ValueError(f'scenario {scenario!r}: no client {client!r}, there are 0 to '
                       f'{len(parts) - 1}')
    forget = parts[client]
    if scenario == 'sample':
      forget = _sample(forget, f'client {client}', share, groups, seed)
    elif len(parts) == 1:
      raise ValueError(f'client {client} is the last one: nobody would be left to retain anything')
  sizes = np.asarray([len(part) for part in parts])
  taken = np.asarray([np.isin(part, forget).sum() for part in parts])
  if (sizes == taken).all():
    raise ValueError('all pairs of all clients would be forgotten: nothing is left to retain')
  leaving = (sizes == taken) & (scenario == 'client')
  return Roster(sizes, taken, leaving, scenario), np.sort(forget)


def _of_concept(records: np.ndarray, concept, labels) -> np.ndarray:
  if concept is None or labels is None:
    raise ValueError("scenario 'concept' needs a concept and the labels of the records")
  found = np.asarray(labels)[records]
  if concept not in found:
    raise ValueError(f'nobody has a pair of concept {concept}; there are '
                     f'{_checks.some(np.unique(found), 20)}')
  return records[found == concept]


def _sample(records: np.ndarray, who: str, share: float, groups, seed: int) -> np.ndarray:
  if not 0 < share < 1:
    raise ValueError(f"scenario 'sample': the share must lie in (0, 1), got {share}")
  group = records if groups is None else np.asarray(groups)[records]
  names = np.unique(group)
  count = round(share * len(names))
  if not 0 < count < len(names):
    raise ValueError(f'a share of {share:g} of the {len(names)} groups of {who} is '
                     f'{"none of them" if not count else "all of them"}')
  chosen = names[_random.permutation(len(names), seed, 'sample', who)[:count]]
  return records[np.isin(group, chosen)]


def streams(source: sources.Source, parts: Sequence[np.ndarray], forget: np.ndarray, *,
            batch_size: int, seed: int, text: pairs.Text | None = None,
            local_epochs: int = 1, local_steps: int | None = None, forget_steps: int | None = None,
            participation: float = 1.0, augment: Sequence[str] = ()) -> dict[str, types.Stream]:
  """Streams of rounds: what every client reads in one, with the clients along the leading axis.

  Within a round a client walks through epochs of its own, permutations keyed by (seed, client,
  epoch). Ragged batches, clients that have done all their steps, and clients without data are
  filled up under mask 0, and never with a record to forget unless the role is `forget`. A batch of
  fewer than two pairs has mask 0 as well: a contrastive loss has nothing to compare.

  Args:
    source: whose `image` and, without `text`, features `text` the clients read.
    parts: records of each client, K of them.
    forget: records to forget, as `roster` gives them.
    batch_size: B, of one client in one local step; at least 2.
    seed: of the orders, the participants and the augmentation.
    text: (record ids [B], seed, epoch) to rows of tokens int32 [B, L].
    local_epochs: epochs of each client in a round. The round has S steps, as many as the client
      with most data takes; the others are done earlier.
    local_steps: S, the steps that every client takes in a round, wherever that is in its epochs;
      None counts in `local_epochs`.
    forget_steps: the same for the role `forget`; None counts in `local_epochs`.
    participation: share of the clients with data that take part in a round, at least one of them.
    augment: see `transforms.parse`; applied to `image`.

  Returns:
    `train` (all pairs), `retain` (without those to forget), and, where there are any to forget,
    `pair` and `probe` (both roles): round -> {'clients': fields} or {'clients': fields, 'forget':
    fields} with the fields `image` [K, S, B, ...] (a `fields.Lazy`, read by client when it is
    indexed), `text` [K, S, B, L], `id` int32 and `mask` float32 [K, S, B], `weight` float32 [K],
    the client's pairs in this role (0 with fewer than two), and `part` float32 [K], 1 where it
    takes part in this round. S is that of `train` but for the role `forget`, whose clients take
    part in every round.

  Raises:
    ValueError: an argument out of range; records to forget that no client has; a role in which no
      client has two pairs; what `streams.schedule` raises.
  """
  limits = {'batch_size': (batch_size, _FEWEST), 'local_epochs': (local_epochs, 1),
            'local_steps': (local_steps, 1), 'forget_steps': (forget_steps, 1)}
  for name, (value, least) in limits.items():
    if value is not None and value < least:
      raise ValueError(f'{name} must be at least {least}, got {value}')
  if not 0 < participation <= 1:
    raise ValueError(f'participation must lie in (0, 1], got {participation}')
  if augment and len(source.fields['image'].shape) != 4:
    raise ValueError(f'{source.name!r} has features for pictures; they cannot be augmented')
  parts = [np.sort(np.asarray(part, np.int64)) for part in parts]
  if len(foreign := np.setdiff1d(forget, np.concatenate(parts))):
    raise ValueError(f'no client has the records to forget {_checks.some(foreign)}')
  read = _reader(source, text, seed, augment)

  def taken(held, fixed) -> list[int]:  # steps that each client takes in a round
    return [fixed or local_epochs * streams_lib.steps_per_epoch(len(ids), batch_size)
            for ids in held]

  def role(name, held, fixed, length, share) -> types.Stream:
    weight = np.asarray([len(ids) if len(ids) >= _FEWEST else 0 for ids in held], np.float32)
    if not weight.any():
      raise ValueError(f'role {name!r}: no client has {_FEWEST} pairs, but a contrastive loss '
                       'compares them')
    order = _order(source, name, held, taken(held, fixed), length, batch_size, seed)
    return lambda number: {name: {**read(*order(number)), 'weight': weight,
                                  'part': _participants(weight, share, seed, number)}}

  kept = [np.setdiff1d(part, forget) for part in parts]
  gone = [np.intersect1d(part, forget) for part in parts]
  length = max(taken(parts, local_steps))
  retain = role(CLIENTS, kept, local_steps, length, participation)
  found = {'train': role(CLIENTS, parts, local_steps, length, participation), 'retain': retain}
  if not len(forget):
    return found
  forgotten = role(FORGET, gone, forget_steps, max(taken(gone, forget_steps)), 1.0)
  pair = lambda number: {**retain(number), **forgotten(number)}
  return {**found, 'pair': pair, 'probe': pair}


def _order(source, name: str, held: Sequence[np.ndarray], taken: Sequence[int], length: int,
           batch_size: int, seed: int) -> Callable[[int], tuple[np.ndarray, ...]]:
  """Which records a round reads: round -> (ids [K, S, B], epochs [K, S], mask [K, S, B])."""
  orders = [streams_lib.schedule(source, ids, f'{name} {client}', batch_size=batch_size, seed=seed)
            if len(ids) else None for client, ids in enumerate(held)]
  anybody = next(ids[0] for ids in held if len(ids))  # stands in, masked, for those without data
  filling = np.asarray([ids[0] if len(ids) else anybody for ids in held])

  def order(number: int) -> tuple[np.ndarray, ...]:
    ids = np.tile(filling[:, None, None], (1, length, batch_size))
    epochs, mask = np.zeros(ids.shape[:2], np.int64), np.zeros(ids.shape, np.float32)
    for client, (records, count) in enumerate(zip(orders, taken)):
      for step in range(count if records else 0):
        ids[client, step], epochs[client, step], mask[client, step] = records(number * count + step)
    mask[mask.sum(-1) < _FEWEST] = 0
    return ids, epochs, mask

  return order


def _participants(weight: np.ndarray, share: float, seed: int, number: int) -> np.ndarray:
  able = np.flatnonzero(weight)
  count = max(1, round(share * len(able)))
  part = np.zeros(len(weight), np.float32)
  part[able[_random.permutation(len(able), seed, 'participants', number)[:count]]] = 1
  return part


def _reader(source: sources.Source, text: pairs.Text | None, seed: int, augment: Sequence[str]
            ) -> Callable[..., types.Inputs]:
  """(ids [K, S, B], epochs [K, S], mask) -> the fields that belong to records."""
  image, transform = source.fields['image'], transforms.parse(augment)
  text = text or (lambda ids, seed, epoch: np.asarray(source.fields['text'][ids], np.float32))

  def each(values: Callable, ids, epochs) -> np.ndarray:  # [k, S, B, ...]
    return np.stack([[values(one, epoch) for one, epoch in zip(*client)]
                     for client in zip(ids, epochs)])

  def picture(ids, epoch) -> np.ndarray:
    return transform(np.asarray(image[ids], np.float32), seed, ids, epoch)

  def read(ids, epochs, mask) -> types.Inputs:
    return {'image': fields_lib.Lazy((*ids.shape, *image.shape[1:]), np.float32,
                                     lambda rows: each(picture, ids[rows], epochs[rows])),
            'text': each(lambda one, epoch: text(one, seed, epoch), ids, epochs),
            'id': ids.astype(np.int32), 'mask': mask}

  return read
