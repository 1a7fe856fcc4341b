"""One table over several generators: I2I and its baselines beside the paper's Tables 1 and 2.

  python -m experiments.i2i_tables experiments/results/i2i_{mae,mage,palette}_openmoji.json

Extractors, sizes of holes and numbers of pictures differ from the paper's: compare orders, not values.
"""

from collections.abc import Mapping, Sequence
import json
import statistics
import sys
from typing import Any

from unlearn_jax.evals import completion
from unlearn_jax.evals import results as results_lib

FAMILIES = {'mae': 'MAE', 'mage': 'VQ-GAN/MAGE', 'palette': 'diffusion'}
# Li et al. 2024: FID R, FID F, CLIP R, CLIP F. Holes of 8 x 8 (Table 1) and 4 x 4 patches (Table 2).
PUBLISHED = {
    'mae': (
        {'original': (56.7, 84.1, .73, .71), 'i2i': (59.9, 153.0, .72, .67),
         'i2i-proxy': (61.1, 133.8, .72, .68), 'max_loss': (75.8, 112.6, .69, .65),
         'noisy_label': (60.4, 136.5, .71, .67), 'retain_label': (72.8, 145.3, .69, .66),
         'random_encoder': (58.1, 146.4, .72, .67)},
        {'original': (11.4, 15.8, .87, .87), 'i2i': (12.2, 45.1, .86, .83),
         'i2i-proxy': (12.5, 39.9, .86, .83), 'max_loss': (13.3, 20.2, .86, .83),
         'noisy_label': (12.2, 44.3, .86, .82), 'retain_label': (15.3, 47.5, .85, .81),
         'random_encoder': (11.8, 43.6, .86, .83)}),
    'mage': (
        {'original': (14.4, 14.4, .75, .77), 'i2i': (15.0, 83.4, .74, .60),
         'i2i-proxy': (17.6, 69.7, .73, .63), 'max_loss': (16.9, 115.2, .73, .55),
         'noisy_label': (14.8, 79.5, .74, .64), 'retain_label': (21.8, 23.3, .72, .74),
         'random_encoder': (14.7, 72.8, .74, .64)},
        {'original': (8.4, 7.8, .84, .85), 'i2i': (8.6, 22.0, .84, .79),
         'i2i-proxy': (8.9, 20.0, .84, .80), 'max_loss': (9.2, 39.9, .83, .72),
         'noisy_label': (8.7, 21.3, .84, .80), 'retain_label': (11.0, 10.3, .83, .84),
         'random_encoder': (8.6, 19.4, .84, .81)}),
    'palette': (
        {'original': (12.2, 14.6, .88, .89), 'i2i': (13.4, 107.9, .87, .69),
         'i2i-proxy': (17.9, 75.5, .83, .74), 'max_loss': (34.1, 45.7, .77, .76),
         'noisy_label': (14.7, 36.9, .86, .80), 'retain_label': (23.1, 104.7, .81, .69),
         'random_encoder': (15.3, 30.6, .86, .81)},
        {'original': (7.8, 6.0, .93, .96), 'i2i': (8.2, 39.8, .93, .88),
         'i2i-proxy': (11.2, 29.0, .91, .90), 'max_loss': (11.9, 15.4, .88, .93),
         'noisy_label': (19.6, 18.5, .87, .91), 'retain_label': (8.5, 35.1, .93, .89),
         'random_encoder': (15.3, 11.6, .86, .94)})}
HEAD = ('| | FID R | FID F | cosine R | cosine F | one-sided goal | rank | gap | published FID R, F | '
        'CLIP R, F |')


def family(results: Mapping[str, Any]) -> str:
  """Key of `FAMILIES` of an experiment's results.

  Raises:
    ValueError: results of no generator of the paper.
  """
  model = results['config']['model']
  if model not in FAMILIES:
    raise ValueError(f'{results["config"]["name"]}: model {model!r} is none of '
                     f'{", ".join(FAMILIES)}')
  return model


def table(results: Mapping[str, Any], number: int) -> list[str]:
  """The rows for hole `number`, 0 or 1, as lines of Markdown.

  The goal, the cosine lost on F less that lost on R, and the gap to the retrained model are those of
  the hole; ranks go by the goal, among the unlearned.
  """
  holes, published = results['config']['generation']['holes'], PUBLISHED[family(results)][number]
  suffix = f'@{holes[number]}' if number else ''
  known = results['methods']['original']['metrics']
  fid, cosine = (next(name.rpartition('/')[0] for name in known if name.startswith(start))
                 for start in ('fid[', 'emb_cos['))
  value = lambda row, metric, side: results_lib.value(results, row, f'{metric}/{side}{suffix}')
  mean = lambda row, side: value(row, cosine, side)['mean']
  lost = {row: mean('original', 'forget') - mean(row, 'forget')
          - mean('original', 'retain') + mean(row, 'retain') for row in results['methods']}
  order = sorted((row for row in lost if row not in results_lib.ANCHORS), key=lost.get, reverse=True)
  lines = [HEAD, '|---' * (HEAD.count('|') - 1) + '|']
  for row in results_lib.ordered(results['methods']):
    gap = statistics.fmean(
        abs(ours - theirs) for side in completion.SIDES for ours, theirs in zip(
            *(value(name, cosine, side)['values'] for name in (row, 'retrain'))))
    theirs = published.get(row)
    cells = [*(results_lib.spread(value(row, fid, side), digits=1) for side in completion.SIDES),
             *(results_lib.spread(value(row, cosine, side), digits=2)
               for side in completion.SIDES),
             f'{lost[row]:+.3f}', str(order.index(row) + 1) if row in order else '', f'{gap:.3f}',
             *(('', '') if theirs is None else (f'{theirs[0]}, {theirs[1]}',
                                                f'{theirs[2]:.2f}, {theirs[3]:.2f}'))]
    lines.append(f'| {results_lib.display(row)} | ' + ' | '.join(cells) + ' |')
  return lines


def document(experiments: Sequence[Mapping[str, Any]]) -> str:
  """Both tables of every family."""
  lines = ['# I2I and its baselines on three kinds of generator', '',
           'Mean ± standard deviation over seeds; R and F: held-out pictures of the classes to retain '
           'and to forget. FID and cosine by the classifier that each report names; the paper has '
           "Inception and CLIP. Published: Li et al. 2024, ImageNet-1k (MAE, VQ-GAN), Places-365 "
           '(diffusion), 256 or 224 pixels.', '']
  for number in range(2):
    for results in experiments:
      hole = results['config']['generation']['holes'][number]
      sizes = results['split_sizes']
      lines += [f'## Table {number + 1}, {FAMILIES[family(results)]}: '
                f'{results["config"]["name"]}, {hole}', '',
                f'{results["config"]["data"]["image_size"]} pixels, {sizes["forget"]} pictures to '
                f'forget, {sizes["retain"]} to retain.', '', *table(results, number), '']
  return '\n'.join(lines)


def main(argv: list[str]) -> None:
  if len(argv) < 2:
    raise SystemExit('usage: python -m experiments.i2i_tables RESULTS.json [RESULTS.json ...]')
  found = []
  for path in argv[1:]:
    with open(path) as file:
      found.append(json.load(file))
  try:
    print(document(found), end='')
  except ValueError as error:
    raise SystemExit(f'error: {error}') from error


if __name__ == '__main__':
  main(sys.argv)
