"""Enforces the one-way imports between the layers of the package, by reading the sources."""

import ast
import pathlib
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Layer -> layers of the package that it may import, beside itself.
BELOW = {
    '': set(),  # unlearn_jax/__init__.py
    'losses': set(),
    'types': set(),
    'models': {'types', 'losses'},
    'methods': {'types', 'losses', 'models'},
    'data': {'types', 'losses'},
    'evals': {'types', 'losses'},
    'train': {'types', 'losses', 'models', 'methods', 'data', 'evals'},
}
BELOW['audit'] = BELOW['train'] | {'train'}
BELOW['cli'] = BELOW['audit'] | {'audit', ''}
BELOW['experiments'] = BELOW['cli'] | {'cli'}
# Modules at the top of the package that belong to the layer of the command line.
TOP = dict.fromkeys(
    ('auditing', 'cli', 'config', 'experiment', 'tasks', 'testing', 'tuning', 'workdir'), 'cli')
TOP['types'] = 'types'

# What losses may import from outside, and who alone may import what.
LOSSES_MAY = {'jax', 'optax', 'chex', 'numpy', 'scipy'} | set(sys.stdlib_module_names)
ONLY_IN = {
    'orbax': 'unlearn_jax/train/checkpoint.py',
    'ott': 'unlearn_jax/losses/transport.py',
    'flax.linen': 'unlearn_jax/models/',
    'flax.nnx': 'unlearn_jax/models/',
}
NOWHERE = {'tensorflow', 'torch'}
# Measures the package against others, so that it may import them.
COMPARES = 'experiments/benchmarks/'


def layer_of(module: str) -> str | None:
  """The layer of a dotted module name: '' for the package itself, None for a foreign module."""
  parts = module.split('.')
  if parts[0] == 'experiments':
    return 'experiments'
  if parts[0] != 'unlearn_jax':
    return None
  if len(parts) == 1:
    return ''
  return TOP.get(parts[1], parts[1])


def imports(source: str):
  """Yields (line, dotted name, at module level) of everything that a source imports.

  `from a import b` yields `a.b`: whether b is a module or a name in one, its layer is the same.
  Blocks under `if TYPE_CHECKING` count as well.
  """
  tree = ast.parse(source)
  inside = {id(child) for node in ast.walk(tree)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for child in ast.walk(node)}
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield node.lineno, alias.name, id(node) not in inside
    elif isinstance(node, ast.ImportFrom):
      for alias in node.names:
        name = '.' * node.level + f'{node.module or ""}.{alias.name}'
        yield node.lineno, name, id(node) not in inside


def violations(path: str, source: str) -> list[str]:
  """What a file at `path` (relative to the root) imports although it must not."""
  own = layer_of(path.removesuffix('.py').removesuffix('/__init__').replace('/', '.'))
  if own not in BELOW:
    return [f'{path}: layer {own!r} is not in the table of tests/imports_test.py']
  found = []
  for line, name, at_top in imports(source):
    where = f'{path}:{line}'
    if name.startswith('.'):
      found.append(f'{where} imports relatively')
      continue
    top, layer = name.split('.')[0], layer_of(name)
    if layer is not None:
      if layer != own and layer not in BELOW[own]:
        found.append(f'{where} imports {name}: {own or "unlearn_jax"} must not see {layer}')
      continue
    if path.startswith(COMPARES):
      continue
    if top in NOWHERE:
      found.append(f'{where} imports {top}')
    for package, home in ONLY_IN.items():
      if f'{name}.'.startswith(f'{package}.') and not path.startswith(home):
        found.append(f'{where} imports {package}, which only {home} may')
    if top == 'ott' and at_top:
      found.append(f'{where} imports ott at module level; it must wait for its first use')
    if own == 'losses' and top != 'ott' and top not in LOSSES_MAY:
      found.append(f'{where} imports {top}: losses may import only jax, optax, chex, numpy and scipy')
  return found


class ImportsTest(parameterized.TestCase):

  def test_the_tree_keeps_the_order(self):
    found = []
    files = [path for folder in ('unlearn_jax', 'experiments')
             for path in sorted((ROOT / folder).rglob('*.py')) if '__pycache__' not in path.parts]
    self.assertNotEmpty(files)
    for path in files:
      found += violations(path.relative_to(ROOT).as_posix(), path.read_text(encoding='utf-8'))
    self.assertEqual(found, [])

  @parameterized.parameters(
      ('unlearn_jax/losses/a.py', 'from unlearn_jax import types', 'losses must not see types'),
      ('unlearn_jax/losses/a.py', 'import flax', 'losses may import only'),
      ('unlearn_jax/losses/a.py', 'def f():\n  from sklearn import svm', 'losses may import only'),
      ('unlearn_jax/losses/transport.py', 'import ott', 'must wait for its first use'),
      ('unlearn_jax/losses/dlfd.py', 'def f():\n  import ott.geometry', 'only unlearn_jax/lo'),
      ('unlearn_jax/types.py', 'from unlearn_jax.models import mlp', 'types must not see models'),
      ('unlearn_jax/models/a.py', 'import unlearn_jax.methods.base', 'must not see methods'),
      ('unlearn_jax/methods/a.py', 'from unlearn_jax import data', 'methods must not see data'),
      ('unlearn_jax/data/a.py', 'from unlearn_jax.evals import run', 'data must not see evals'),
      ('unlearn_jax/evals/a.py', 'from unlearn_jax import models', 'evals must not see models'),
      ('unlearn_jax/train/a.py', 'from unlearn_jax import cli', 'train must not see cli'),
      ('unlearn_jax/train/loop.py', 'import orbax.checkpoint as ocp', 'only unlearn_jax/train/ch'),
      ('unlearn_jax/methods/a.py', 'from flax import linen as nn', 'flax.linen, which only'),
      ('unlearn_jax/audit/a.py', 'import experiments.run', 'audit must not see experiments'),
      ('unlearn_jax/cli.py', 'from experiments import run', 'cli must not see experiments'),
      ('unlearn_jax/train/a.py', 'import unlearn_jax', 'train must not see'),
      ('unlearn_jax/data/a.py', 'import tensorflow as tf', 'imports tensorflow'),
      ('unlearn_jax/data/a.py', 'from . import b', 'imports relatively'),
      ('experiments/run.py', 'import torch', 'imports torch'),
      ('unlearn_jax/novel/a.py', '', "layer 'novel' is not in the table"),
  )
  def test_the_check_sees(self, path, source, message):
    self.assertIn(message, '\n'.join(violations(path, source)))

  @parameterized.parameters(
      ('unlearn_jax/losses/transport.py', 'def f():\n  from ott.geometry import geometry'),
      ('unlearn_jax/losses/dlfd.py', 'import functools\nfrom unlearn_jax.losses import transport'),
      ('unlearn_jax/models/a.py', 'from flax import linen as nn\nfrom unlearn_jax import types'),
      ('unlearn_jax/methods/a.py', 'from unlearn_jax.models import surgery'),
      ('unlearn_jax/train/checkpoint.py', 'import orbax.checkpoint as ocp'),
      ('unlearn_jax/data/a.py', 'import tensorflow_datasets as tfds'),
      ('unlearn_jax/experiment.py', 'import unlearn_jax\nfrom unlearn_jax.train import loop'),
      ('experiments/run.py', 'from unlearn_jax import cli'),
      ('experiments/benchmarks/a.py', 'import ott\nimport torch'),
  )
  def test_the_check_allows(self, path, source):
    self.assertEqual(violations(path, source), [])

  def test_losses_are_light(self):
    heavy = ('flax', 'orbax', 'tensorflow_datasets', 'sklearn', 'matplotlib', 'torch', 'ott')
    code = ('import sys; from unlearn_jax import losses; '
            f'print([name for name in {heavy} if name in sys.modules])')
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True,
                          check=True)
    self.assertEqual(done.stdout.strip(), '[]')


if __name__ == '__main__':
  absltest.main()
