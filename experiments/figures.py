"""Writes the figures of a finished experiment's report as SVG files, with their captions.

  python -m experiments.figures --workdir=runs/i2i_mae_openmoji --out=figures/i2i

gives figures/i2i_1.svg, i2i_2.svg, ... in the report's order, and prints Markdown with them. They
are those of the kind of task; histograms and training curves stay in `report.html`.
"""

import json
import os
import pathlib

from absl import app
from absl import flags
import numpy as np

from unlearn_jax import config
from unlearn_jax.evals import report
from unlearn_jax.evals import views


def write(workdir: str | os.PathLike, out: str | os.PathLike) -> list[str]:
  """Writes the figures of one experiment without cases.

  Args:
    workdir: of a finished run.
    out: path and beginning of the files' names.

  Returns:
    A line of Markdown per figure.

  Raises:
    FileNotFoundError: no finished experiment is there.
  """
  workdir, out = pathlib.Path(workdir), pathlib.Path(out)
  with open(workdir / 'results.json') as file:
    results = json.load(file)
  first = results['config']['seeds'][0]
  panels = {}
  for row in results['methods']:
    seed = config.anchor_seeds(results['config'])[first] if row in config.BUILTIN else first
    with np.load(workdir / 'rows' / f'seed_{seed}' / row / 'arrays.npz') as saved:
      panels[row] = dict(saved)
  lines = []
  for number, figure in enumerate(report.FIGURES[views.kind(results)](results, panels), 1):
    path = out.with_name(f'{out.name}_{number}.svg')
    path.write_text(figure.svg)
    lines.append(f'![{figure.caption}]({path.name})')
  return lines


def main(_, workdir, out) -> None:
  print('\n\n'.join(write(workdir.value, out.value)))


if __name__ == '__main__':
  WORKDIR = flags.DEFINE_string('workdir', None, 'Of a finished experiment.', required=True)
  OUT = flags.DEFINE_string('out', None, 'Path and beginning of the files.', required=True)
  app.run(lambda argv: main(argv, WORKDIR, OUT))
