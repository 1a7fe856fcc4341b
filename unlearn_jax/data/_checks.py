"""Checks of values, and messages that say what was found where."""

from collections.abc import Iterable, Mapping
import difflib
import numbers

import numpy as np


def unknown(what: str, name: object, known: Iterable[str]) -> ValueError:
  """`no WHAT named 'NAME'; did you mean ...?`, and what there is."""
  known = list(known)
  close = difflib.get_close_matches(str(name), known, n=1)
  hint = f' did you mean {close[0]!r}?' if close else ''
  return ValueError(f'no {what} named {name!r};{hint} known: {", ".join(sorted(known))}')


def disjoint(groups: Mapping[str, np.ndarray], what: str, hint: str = '') -> None:
  """No value in two groups, nor twice in one."""
  names = np.concatenate([np.full(len(ids), name) for name, ids in groups.items()] or [[]])
  values = np.concatenate(list(groups.values()) or [[]])
  order = np.argsort(values, kind='stable')
  twice = np.flatnonzero(values[order][1:] == values[order][:-1])
  if len(twice):
    first, second = order[twice[0]], order[twice[0] + 1]
    where = (f'twice in split {str(names[first])!r}' if names[first] == names[second] else
             f'in the splits {str(names[first])!r} and {str(names[second])!r}')
    raise ValueError(f'{what} {values[first].item()!r} stands {where} ({len(twice)} such '
                     f'cases){hint}')


def integer(what: str, value) -> None:
  if isinstance(value, bool) or not isinstance(value, numbers.Integral):
    raise ValueError(f'{what}: integers expected, got {value!r}')


def some(values: Iterable, limit: int = 5) -> str:
  values = [value.item() if isinstance(value, np.generic) else value for value in values]
  more = f' and {len(values) - limit} more' if len(values) > limit else ''
  return ', '.join(map(repr, values[:limit])) + more
