"""Runs the benchmarks: python -m experiments.benchmarks.run [--only=step/resnet18,sinkhorn]."""

from collections.abc import Callable, Iterator
import functools
import os
import time

from absl import app
from absl import flags

from experiments.benchmarks import gate
from experiments.benchmarks import generators
from experiments.benchmarks import harness
from experiments.benchmarks import importance
from experiments.benchmarks import sinkhorn
from experiments.benchmarks import start
from experiments.benchmarks import steps
from experiments.benchmarks import table

_ONLY = flags.DEFINE_list('only', [], 'Benchmarks whose name starts with one of these.')
_RESULTS = flags.DEFINE_string('results', '', 'Where results.{json,md} go; by default beside this '
                                              'file, and nowhere with --only.')


def _gpu() -> Iterator[harness.Row]:
  """Steps on an accelerator; the harness times CPUs only so far."""
  for name in steps.CASES:
    yield harness.Row(f'step/resnet18/{name}', 'ratio to torch.compile on GPU', 0.8,
                      reason='no GPU here')


BENCHMARKS: dict[str, Callable[[], Iterator[harness.Row]]] = {
    **{f'sinkhorn/{case}': functools.partial(sinkhorn.rows, case) for case in sinkhorn.CASES},
    **{f'step/resnet18/{name}': functools.partial(steps.rows, 'resnet18', name)
       for name in steps.CASES},
    'step/vit/plain': functools.partial(steps.rows, 'vit', 'plain'),
    'step/vit/dlfd': functools.partial(steps.rows, 'vit', 'dlfd'),
    **{f'step/{family}/{method}': functools.partial(generators.rows, family, method)
       for family in generators.FAMILIES for method in generators.METHODS},
    'importance/resnet18': importance.rows,
    **{f'epoch/dlfd/gate {name}': functools.partial(gate.rows, name) for name in gate.GATES},
    'start/demo': start.rows,
    'gpu': _gpu,
}


def main(_):
  chosen = [name for name in BENCHMARKS
            if not _ONLY.value or any(name.startswith(prefix) for prefix in _ONLY.value)]
  if not chosen:
    raise app.UsageError(f'--only fits none of: {", ".join(BENCHMARKS)}')
  harness.use_equal_threads()
  machine, rows = harness.machine(), []
  for number, name in enumerate(chosen, start=1):
    began = time.perf_counter()
    print(f'[{number}/{len(chosen)}] {name}', flush=True)
    for row in BENCHMARKS[name]():
      rows.append(row)
      print('  ' + table.line(row), flush=True)
    print(f'  took {time.perf_counter() - began:.0f} s', flush=True)
  print('\n' + table.markdown(rows, machine))
  if _RESULTS.value or not _ONLY.value:
    table.write(rows, machine, _RESULTS.value or os.path.dirname(__file__))


if __name__ == '__main__':
  app.run(main)
