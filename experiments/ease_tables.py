"""Tables of federations. Of the toy: means over draws, and whether the expected orderings hold.

  python -m experiments.ease_tables experiments/results/ease_toy.json

Of any other federation: every row over its seeds, with the published figures beside ours where there
are some (Flickr30k, B/32, a client leaves: the abstract has no others).
"""

import json
import sys
from typing import NamedTuple

import numpy as np

PERCENT = ('R@1/forget', 'R@1/kept', 'gap/forget', 'gap/kept', 'gap/forget_later', 'swap/image',
           'swap/text')
COLUMNS = {
    'R@1/forget': 'F-R@1', 'R@1/kept': 'R-R@1', 'gap/forget': 'Gap F', 'gap/kept': 'Gap R',
    'gap/forget_later': 'Gap F after further rounds', 'swap/image': 'swap (v, t*)',
    'swap/text': 'swap (v*, t)', 'drift/image': 'drift, image', 'drift/text': 'drift, text'}
SHARES = ('share30', 'share0')


PUBLISHED = {'ease_flickr30k': {'gap/forget': 0.2, 'gap/kept': 4.2}}  # points of R@1, EASE's abstract


class Ordering(NamedTuple):
  """An expectation: what it says, and the margin by which it holds (negative: it does not)."""

  says: str
  margin: float


def values(results, share: str, row: str, metric: str) -> np.ndarray:
  """A metric over draws, [D], in percent where it is a share; NaN where there is none."""
  found = []
  for case, part in results.get('cases', {'': results}).items():
    if case.split('-')[0] == share:
      metrics = part['methods'][row]['metrics']
      found += [np.nan if value is None else value
                for value in metrics.get(metric, {'values': [None]})['values']]
  return np.asarray(found) * (100.0 if metric in PERCENT else 1.0)


def orderings(results) -> list[Ordering]:
  """What the completed method should show, on means over draws; in points of R@1 but for drift."""
  def mean(share, row, metric):
    return float(np.nanmean(values(results, share, row, metric)))

  def more(share, row, metric, margin):
    return Ordering(f'{share}: {COLUMNS[metric]} of {row} at least {margin:g} above ease',
                    mean(share, row, metric) - mean(share, 'ease', metric) - margin)

  wanted = (('share30', 'gap/forget', 3), ('share0', 'gap/forget_later', 5))
  found = [more(share, row, metric, margin) for share, metric, margin in wanted
           for row in ('ease-no_decomposition', 'ease-no_lock')]
  found.append(more('share30', 'fed_finetune', 'gap/forget', 15))
  for share in SHARES:
    found.append(Ordering(f'{share}: Gap R of ease at most 2',
                          2 - mean(share, 'ease', 'gap/kept')))
    for branch in ('image', 'text'):
      metric = f'drift/{branch}'
      found.append(Ordering(
          f'{share}: {COLUMNS[metric]}, of ease below a tenth of that without lock',
          0.1 * mean(share, 'ease-no_lock', metric) - mean(share, 'ease', metric)))
      other = {'image': 'text', 'text': 'image'}[branch]
      found.append(Ordering(f'{share}: {COLUMNS[f"swap/{other}"]} of ease-{branch} at least 99',
                            mean(share, f'ease-{branch}', f'swap/{other}') - 99))
      found.append(Ordering(f'{share}: {COLUMNS[f"swap/{branch}"]} of ease at most 95',
                            95 - mean(share, 'ease', f'swap/{branch}')))
  return found


def one_federation(results) -> str:
  """The rows of one federation, and what is published of it."""
  name = results['config']['name']
  lines = [f'# {name}', '', 'Mean ± standard deviation over seeds; R@1 and gaps in percent.', '',
           *_table(results, '')]
  if name in PUBLISHED:
    lines.insert(-1, '| *ease, as published* | ' + ' | '.join(
        str(PUBLISHED[name].get(metric, '')) for metric in COLUMNS) + ' |')
  return '\n'.join(lines) + '\n'


def _table(results, share: str) -> list[str]:
  """The rows of one share (of '' without cases), as lines of Markdown."""
  lines = ['| | ' + ' | '.join(COLUMNS.values()) + ' |', '|---' * (1 + len(COLUMNS)) + '|']
  for row in next(iter(results.get('cases', {'': results}).values()))['methods']:
    cells = []
    for metric in COLUMNS:
      found = values(results, share, row, metric)
      if np.isnan(found).all():
        cells.append('')
        continue
      digits = 1 if metric in PERCENT else 3
      spread = '–' if len(found) < 2 else f'{np.nanstd(found, ddof=1):.{digits}f}'
      cells.append(f'{np.nanmean(found):.{digits}f} ± {spread}')
    lines.append(f'| {row} | ' + ' | '.join(cells) + ' |')
  return [*lines, '']


def toy(results) -> str:
  """Both tables and the orderings."""
  lines = ['# EASE on a toy federation', '']
  for share in SHARES:
    draws = len(values(results, share, 'original', 'R@1/forget'))
    lines += [f'{share}: mean ± standard deviation over {draws} draws of data and adapters; '
              'R@1 and gaps in percent.', '', *_table(results, share)]
  lines += ['Expected orderings, on means (margin: how far on the right side):', '']
  lines += [f'- {"holds" if one.margin >= 0 else "FAILS"} ({one.margin:+.3g}): {one.says}'
            for one in orderings(results)]
  return '\n'.join(lines) + '\n'


def main(argv: list[str]) -> None:
  if len(argv) != 2:
    raise SystemExit('usage: python -m experiments.ease_tables RESULTS.json')
  with open(argv[1]) as file:
    results = json.load(file)
  print((toy if 'cases' in results else one_federation)(results), end='')


if __name__ == '__main__':
  main(sys.argv)
