"""What the conformance suite returns, and how checks are run one by one."""

from collections.abc import Callable, Iterator, Mapping
import difflib
import re
from typing import NamedTuple


class Failed(NamedTuple):
  """A check that failed.

  Attributes:
    check: its name.
    reason: what was found, in words and numbers.
  """

  check: str
  reason: str


def failures(checks: Mapping[str, Callable[[], Iterator[str]]], expects: Mapping[str, str]
             ) -> list[Failed]:
  """Runs the checks, each on its own: an exception is the reason why its check failed.

  Args:
    checks: name -> generator function of reasons; yields nothing if all is well.
    expects: name -> why the check is not expected to pass; such checks are not run.

  Raises:
    ValueError: `expects` names a check that does not exist, or gives no reason.
  """
  for name, reason in expects.items():
    if name not in checks:
      close = difflib.get_close_matches(name, checks, n=1)
      hint = f'; did you mean {close[0]!r}?' if close else ';'
      raise ValueError(f'there is no check {name!r}{hint} there is: {", ".join(checks)}')
    if not reason:
      raise ValueError(f'expects[{name!r}] needs the reason why this check may fail')
  found = []
  for name, check in checks.items():
    if name in expects:
      continue
    try:
      found += [Failed(name, reason) for reason in check()]
    except Exception as error:  # pylint: disable=broad-except; it is the check's finding
      found.append(Failed(name, describe(error)))
  return found


def describe(error: Exception) -> str:
  """An exception in one line."""
  return re.sub(r'\s+', ' ', f'{type(error).__name__}: {error}').strip()
