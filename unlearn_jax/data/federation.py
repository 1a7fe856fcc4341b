"""A federation's data: records dealt to clients, and what one of them, or all of them, forget."""

from collections.abc import Mapping
import dataclasses

import numpy as np

from unlearn_jax.data import _checks
from unlearn_jax.data import _random
from unlearn_jax.data import clients as clients_lib
from unlearn_jax.data import sources
from unlearn_jax.data import splits as splits_lib
from unlearn_jax.data import themes as themes_lib

PARTS = ('train', 'validation', 'test', 'unseen')
HELD_OUT = {'validation': 0.1, 'test': 0.2, 'unseen': 0.1}
NOBODY = -1  # client of a public record


def deal(source: sources.Source, *, clients: int, alpha: float, public: float, minimum: int,
         held_out: Mapping[str, float], seed: int) -> sources.Source:
  """Deals identities to the public half and to clients, and each client's to its parts.

  Clients own identities, never single captions or variants of a picture, by a Dirichlet(`alpha`)
  distribution over the categories of `label` (records of no class, -1, are a category).

  Args:
    source: with `label` int [N].
    clients: K.
    alpha: concentration; infinite is an even draw.
    public: share of the identities that no client owns: what a backbone is trained on.
    minimum: records that every client must have.
    held_out: `validation`, `test`, `unseen` -> share of each client's identities; the rest trains.
    seed: of all draws.

  Returns:
    The source with `client` int32 [N] (-1: public) and `part` str [N] (`public` or one of `PARTS`).

  Raises:
    ValueError: shares out of range; see `clients.partition`.
  """
  if not 0 <= public < 1:
    raise ValueError(f'config.split.public is the share of public identities, in [0, 1), got {public}')
  if unknown := set(held_out) - set(PARTS[1:]):
    raise _checks.unknown('part', sorted(unknown)[0], PARTS[1:])
  if min(held_out.values(), default=0) < 0 or not sum(held_out.values()) < 1:
    raise ValueError('config.split.held_out are shares of a client\'s identities that leave some to '
                     f'train on, got {dict(held_out)}')
  people, number = np.unique(source.identity, return_inverse=True)
  order = _random.permutation(len(people), seed, 'public')
  is_public = np.isin(number, order[:round(public * len(people))])
  client, part = np.full(len(source), NOBODY, np.int32), np.full(len(source), 'public', '<U10')
  ids = np.flatnonzero(~is_public)
  owned = clients_lib.partition(np.asarray(source.fields['label'])[ids], clients=clients,
                                alpha=alpha, seed=seed, minimum=minimum, groups=number[ids])
  for index, places in enumerate(owned):
    records = ids[places]
    client[records] = index
    mine = np.unique(number[records])
    mine = mine[_random.permutation(len(mine), seed, 'parts', index)]
    sizes = {'train': 1.0 - sum(held_out.values()), **held_out}
    for name, chosen in splits_lib.deal(sizes, len(mine), f'identities of client {index}', False,
                                        PARTS).items():
      part[records[np.isin(number[records], mine[chosen])]] = name
  return dataclasses.replace(source, fields={**source.fields, 'client': client, 'part': part})


def split(source: sources.Source, *, scenario: str = 'client', target: int = 0, share: float = 0.2,
          clients: int = 8, alpha: float = 0.5, public: float = 0.5, minimum: int = 32,
          held_out: Mapping[str, float] | None = None, themes: int = 20, seed: int = 0
          ) -> tuple[sources.Source, splits_lib.Splits]:
  """A federation and what it forgets.

  Args:
    source: pairs; where it has `client` and `part` already, it is dealt as they say.
    scenario: `client`, all training pairs of client `target`; `sample`, a share of them by
      identity; `concept`, the training pairs of class `target` at all clients.
    target: client, or class.
    share: of the scenario `sample`.
    clients: see `deal`, as alpha, public, minimum and held_out (None: `HELD_OUT`).
    themes: pseudo-classes where records have captions and no label, see `data.themes`.
    seed: of all draws.

  Returns:
    The source with `client` and `part`, and splits of the clients' records: `forget`, `retain`,
    `validation`, `test`, `unseen`.

  Raises:
    ValueError: an unknown scenario, client or class; nothing to forget, nothing to retain; see
      `deal` and `clients.roster`.
  """
  source.validate()
  if 'label' not in source.fields:
    label = themes_lib.themes(np.asarray(source.fields['caption']).tolist(), source.identity,
                              count=themes, seed=seed)
    source = dataclasses.replace(source, fields={**source.fields, 'label': label})
  if 'client' not in source.fields:
    source = deal(source, clients=clients, alpha=alpha, public=public, minimum=minimum,
                  held_out=HELD_OUT if held_out is None else held_out, seed=seed)
  part = np.asarray(source.fields['part'])
  indices = {name: np.flatnonzero(part == name) for name in PARTS}
  train = indices.pop('train')
  forget = forgotten(source, train, scenario=scenario, target=target, share=share, seed=seed)
  splits = splits_lib.Splits({'forget': forget, 'retain': np.setdiff1d(train, forget), **indices},
                             f'federation, {scenario}', int(seed), 'record', source.name,
                             source.content_hash())
  splits.validate(source)
  return source, splits


def parts(source: sources.Source, ids: np.ndarray) -> list[np.ndarray]:
  """The records of `ids` that each client has, K arrays."""
  client = np.asarray(source.fields['client'])
  return [ids[client[ids] == k] for k in range(client.max() + 1)]


def forgotten(source: sources.Source, train: np.ndarray, *, scenario: str, target: int,
              share: float, seed: int) -> np.ndarray:
  """The training records [n] that a scenario forgets, see `split` and `clients.roster`."""
  held = parts(source, train)
  able = [k for k, ids in enumerate(held) if len(ids)]  # a smaller federation has lost somebody
  if scenario != 'concept' and target not in able:
    raise ValueError(f'config.split.target: client {target} has no training pairs, those that have '
                     f'are {_checks.some(np.asarray(able))}')
  client = able.index(target) if target in able else None
  return clients_lib.roster([held[k] for k in able], scenario, client=client, share=share,
                            concept=target, labels=np.asarray(source.fields['label']),
                            groups=source.identity, seed=seed)[1]


def tuning(splits: splits_lib.Splits, source: sources.Source, *, scenario: str, target: int,
           share: float, seed: int) -> splits_lib.Splits:
  """Splits of a smaller federation for choosing hyper-parameters.

  What the report forgets is taken out of the federation; another client (class) is forgotten.

  Args:
    splits: the report's splits.
    source: their data, with `client`.
    scenario, target, share, seed: those of the report.

  Returns:
    `forget` (that of the next client, or class, with as many training pairs as the middle one of
    them), `retain`, `validation` (without the report's client); nothing else.
  """
  retain = splits.indices['retain']
  field = np.asarray(source.fields['label' if scenario == 'concept' else 'client'])
  values, counts = np.unique(field[retain], return_counts=True)
  counts, values = (found[(values != target) & (values >= 0)] for found in (counts, values))
  if len(values) < 2:
    raise ValueError('choosing hyper-parameters needs two more clients (classes) than the one that '
                     f'is forgotten, there are {len(values)}')
  other = int(values[np.argsort(counts, kind='stable')[len(counts) // 2]])
  validation = splits.indices['validation']
  if scenario == 'client':
    validation = validation[np.asarray(source.fields['client'])[validation] != target]
  chosen = forgotten(source, retain, scenario=scenario, target=other, share=share, seed=seed)
  found = splits_lib.Splits({'forget': chosen, 'retain': np.setdiff1d(retain, chosen),
                             'validation': validation}, f'tuning of {splits.kind}', int(seed),
                            'record', source.name, source.content_hash())
  found.validate(source)
  return found
