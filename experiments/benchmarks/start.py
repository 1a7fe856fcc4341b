"""The first and the second start of the demo's run, each a process of its own."""

from collections.abc import Iterator
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from experiments.benchmarks import harness

CONFIG = 'experiments/configs/digits.py'
ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET = 0.5
NOTE = (f'`python -m experiments.run --config={CONFIG}`, every start with a new work directory. '
        'The second start reuses what the first left in the cache directory: the original and the '
        'retrained models, and compiled programs. It tunes, unlearns, evaluates and draws anew.')

LIMIT = ('Done anew, by profile: tracing and lowering of forty step functions (a fifth), imports, '
         'attacks and probes of scikit-learn, checkpoints, figures (an eighth each); no cache holds '
         'them. Tried and kept: every program into the cache, not those of half a second alone; '
         'trials save no checkpoints; probes fit on one thread.')


def rows(config: str = CONFIG, rounds: int = 1) -> Iterator[harness.Row]:
  """Seconds of a start with a filled cache over seconds of one with an empty cache."""
  timings = {'first start': [], 'second start': []}
  for _ in range(rounds):
    with tempfile.TemporaryDirectory() as directory:
      for number, start in enumerate(timings):
        timings[start].append(_run(config, directory, f'run{number}'))
  found = {start: harness.Timing(None, tuple(seconds)) for start, seconds in timings.items()}
  yield harness.make_row('start/demo', 'second start / first start', TARGET,
                         harness.ratio(found, 'second start', {'first start': 1}), found, note=NOTE,
                         limit=LIMIT)


def _run(config: str, directory: str, name: str) -> float:
  """Seconds from starting the process to its end.

  Raises:
    subprocess.CalledProcessError: the run failed.
  """
  environment = os.environ | {'UNLEARN_JAX_CACHE': os.path.join(directory, 'cache')}
  environment.pop('JAX_COMPILATION_CACHE_DIR', None)  # it would outlive the first start
  command = [sys.executable, '-m', 'experiments.run', f'--config={config}',
             f'--workdir={os.path.join(directory, name)}', '--overwrite']
  began = time.perf_counter()
  subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
  return time.perf_counter() - began
