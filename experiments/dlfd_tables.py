"""Prints Table 1 or Table 2 of the DLFD paper from finished runs, beside the paper's own figures.

python -m experiments.dlfd_tables --table=1 --workdirs=runs/dlfd_age_resnet18,runs/dlfd_emotion_...

Every work directory is one task with one model; what was not run says so. Table 1: accuracy, top-2
accuracy, Forgetting Score and NoMUS with ResNet18; Table 2: NoMUS by model.
"""

from collections.abc import Mapping, Sequence
import os
from typing import Any

from absl import app
from absl import flags

from experiments import dlfd_paper
from unlearn_jax.evals import render
from unlearn_jax.evals import results as results_lib

NOT_RUN = 'n/a: not run'
FLOOR = 'Floor: retrained against retrained, largest difference'
METRICS = {'accuracy': ('Accuracy', 'accuracy/test'), 'top2': ('Top-2', 'top2/test'),
           'forgetting': ('Forgetting Score', 'forgetting_score[benchmark]'),
           'nomus': ('NoMUS', 'nomus')}
NOTE = ('Ours: mean ± standard deviation over the seeds of a run; the Forgetting Score is the '
        'balanced one of the MUFAC benchmark. [paper]: quoted from {source}; its score takes all '
        'forgotten and unseen records, so that it is not balanced, and its splits, heads and '
        'baselines differ in what the headers of the configs say. Compare differences between '
        'rows, not single figures across the columns.')

Runs = Mapping[tuple[str, str], Mapping[str, Any]]


def read(workdirs: Sequence[str]) -> Runs:
  """(task, model) -> results of a finished run.

  Raises:
    FileNotFoundError: a work directory without results.
    ValueError: not a run of one of the four tasks with one of the three models, or a second one.
  """
  runs = {}
  for workdir in workdirs:
    path = os.path.join(workdir, 'results.json')
    if not os.path.exists(path):
      raise FileNotFoundError(f'{path} is missing: the run is not finished (run it, or go on with '
                              '--resume), or that is no work directory')
    results = results_lib.from_json(path)
    config = results['config']
    key = config['name'], config['model']
    if key[0] not in dlfd_paper.TASKS or key[1] not in dlfd_paper.MODELS:
      raise ValueError(f'{workdir} holds {key[0]!r} with model {key[1]!r}; the tables have '
                       f'{", ".join(dlfd_paper.TASKS)} with {", ".join(dlfd_paper.MODELS)}')
    if config['data']['name'].endswith('_fixture'):
      raise ValueError(f'{workdir} holds a smoke run on generated files, not results')
    if key in runs:
      raise ValueError(f'{workdir} holds {key[0]} with {key[1]}, and so does another one')
    runs[key] = results
  return runs


def rows_of(runs: Runs) -> tuple[str, ...]:
  """The paper's rows, then those that only we have."""
  ours = (row for results in runs.values() for row in results['methods'])
  return tuple(dict.fromkeys((*dlfd_paper.ROWS, *ours)))


def cell(results: Mapping[str, Any] | None, row: str, metric: str) -> str:
  """A figure of a run, or why there is none."""
  if results is None or row not in results['methods']:
    return NOT_RUN
  return results_lib.cell(results, row, metric)


def floor(results: Mapping[str, Any] | None, metric: str) -> str:
  """How far two retrained models of a run lie apart."""
  if results is None:
    return NOT_RUN
  largest = results['floor'].get(metric, {}).get('max')
  return results_lib.NOT_AVAILABLE if largest is None else f'{largest:.3f}'


def quoted(values: Sequence[float] | None, row: str) -> str:
  """A figure of the paper with its four, sometimes five, digits; empty where it has none."""
  if values is None or row not in dlfd_paper.ROWS:
    return ''
  text = f'{values[list(dlfd_paper.ROWS).index(row)]:.5f}'
  return text.removesuffix('0')


def _table(columns: Sequence[tuple[str, Any, str, Sequence[float] | None]],
           names: Sequence[str]) -> render.Table:
  """Two columns for each (heading, results, metric, figures of the paper)."""
  headings = [text for heading, *_ in columns for text in (heading, f'{heading} [paper]')]
  rows = [(dlfd_paper.ROWS.get(row, row),
           *(text for _, results, metric, figures in columns
             for text in (cell(results, row, metric), quoted(figures, row)))) for row in names]
  rows.append((FLOOR, *(text for _, results, metric, _ in columns
                        for text in (floor(results, metric), ''))))
  return render.Table(('Method', *headings), tuple(rows), anchors=frozenset((0, 1, len(names))))


def table_1(runs: Runs) -> list[render.Section]:
  """Accuracy, top-2 accuracy (more than two classes), Forgetting Score, NoMUS; one part a task."""
  sections = []
  for task, figures in dlfd_paper.TABLE_1.items():
    results = runs.get((task, 'resnet18'))
    columns = [(heading, results, metric, figures.get(name))
               for name, (heading, metric) in METRICS.items()
               if name in figures or (results and any(
                   metric in part['metrics'] for part in results['methods'].values()))]
    sections.append(render.Section(f'{dlfd_paper.TASKS[task]}, ResNet18',
                                   (_table(columns, rows_of(runs)),)))
  if others := [f'{task} with {model}' for task, model in runs if model != 'resnet18']:
    sections.append(render.Section('', (f'Not in this table: {", ".join(others)}.',)))
  return sections


def table_2(runs: Runs) -> list[render.Section]:
  """NoMUS of every task; one part a model."""
  return [render.Section(dlfd_paper.MODELS[model], (_table(
      [(dlfd_paper.TASKS[task], runs.get((task, model)), 'nomus', figures)
       for task, figures in tasks.items()], rows_of(runs)),))
          for model, tasks in dlfd_paper.TABLE_2.items()]


TABLES = {'1': table_1, '2': table_2}


def markdown(table: str, workdirs: Sequence[str]) -> str:
  """Table '1' or '2' of the work directories. Errors: `read`."""
  note = render.Section('', (NOTE.format(source=dlfd_paper.SOURCE),))
  return render.to_markdown(f'Table {table} of the DLFD paper',
                            [note, *TABLES[table](read(workdirs))])


def main(_):
  try:
    print(markdown(_TABLE.value, _WORKDIRS.value))
  except (FileNotFoundError, ValueError) as error:
    raise SystemExit(f'error: {error}') from error


if __name__ == '__main__':
  _TABLE = flags.DEFINE_enum('table', '1', list(TABLES), 'Which table.')
  _WORKDIRS = flags.DEFINE_list('workdirs', [], 'Finished runs; none prints the paper\'s figures.')
  app.run(main)
