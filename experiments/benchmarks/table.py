"""The results of the benchmarks as JSON and as a table."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import os
from typing import Any

from experiments.benchmarks import harness

HEAD = """# Benchmarks

Written by `make bench`. Sides run in turn, in one process and with the same number of threads; a
row gives the median over rounds of the paired ratio and its quartiles, the median time of one call,
and the first call (compilation included) apart. Sides must compute the same before they are timed;
a row whose sides differ is refused. A target is judged on the value as printed.

"""


def time(seconds: float) -> str:
  """Seconds with a unit and three digits."""
  if seconds >= 1:
    return f'{seconds:.3g} s'
  return f'{seconds * 1e3:.3g} ms' if seconds >= 1e-3 else f'{seconds * 1e6:.3g} us'


def line(row: harness.Row) -> str:
  """A row for the terminal."""
  value = '' if row.value is None else f'{row.value:.2f}'
  target = '' if row.target is None else f'target {row.target:.2f}'
  return f'{row.name:<34} {row.figure:<36} {value:>6}  {target:<12} {row.verdict}'


def markdown(rows: Sequence[harness.Row], machine: Mapping[str, Any]) -> str:
  """The whole table."""
  lines = ['Machine: ' + ', '.join(f'{key} {value}' for key, value in machine.items()) + '.', '',
           '| benchmark | figure | value | quartiles | target | verdict |',
           '|---|---|---|---|---|---|']
  for row in rows:
    value = '' if row.value is None else f'{row.value:.2f}'
    quartiles = '' if row.quartiles is None else '{:.2f} to {:.2f}'.format(*row.quartiles)
    target = '' if row.target is None else f'{row.target:.2f}'
    lines.append(f'| {row.name} | {row.figure} | {value} | {quartiles} | {target} | '
                 f'{row.verdict} |')
  details = []
  for row in rows:
    parts = []
    if row.seconds:
      parts.append('Times: ' + ', '.join(
          f'{side} {time(seconds)}'
          + (f' (first {time(row.first[side])})' if side in row.first else '')
          for side, seconds in row.seconds.items()) + f'; rounds: {row.rounds}.')
    if row.parity:
      parts.append(f'{row.parity.what[0].upper()}{row.parity.what[1:]} agree to '
                   f'{row.parity.difference:.1e} (tolerance {row.parity.tolerance:.0e}).')
    if row.note:
      parts.append(row.note)
    if parts:
      details.append(f'- **{row.name}, {row.figure}.** {" ".join(parts)}')
  return HEAD + '\n'.join(lines) + '\n\n## Details\n\n' + '\n'.join(details) + '\n'


def write(rows: Sequence[harness.Row], machine: Mapping[str, Any], directory: str) -> None:
  """Writes `results.json` and `results.md`."""
  found = [{**dataclasses.asdict(row), 'parity': row.parity and row.parity._asdict(),
            'verdict': row.verdict} for row in rows]
  os.makedirs(directory, exist_ok=True)
  with open(os.path.join(directory, 'results.json'), 'w') as file:
    json.dump({'machine': dict(machine), 'rows': found}, file, indent=1)
    file.write('\n')
  with open(os.path.join(directory, 'results.md'), 'w') as file:
    file.write(markdown(rows, machine))
