"""Checks that BUILD covers every Python file, and that BUILD, setup.py and the lock agree.

Bazel itself is not run: BUILD is a subset of Python, so it is executed with recording stand-ins.
"""

import ast
import json
import pathlib
import re
import tempfile

from absl.testing import absltest

ROOT = pathlib.Path(__file__).resolve().parents[1]
RULES = ('py_binary', 'py_library', 'py_test')


def run_build(root: pathlib.Path, text: str) -> list[dict]:
  """Executes a BUILD file over the tree at `root`; returns the arguments of its rules."""
  targets = []

  def glob(include, exclude=(), allow_empty=False):
    def expand(patterns):
      return {path.relative_to(root).as_posix() for pattern in patterns
              for path in root.glob(pattern)
              if path.is_file() and '__pycache__' not in path.parts}
    found = sorted(expand(include) - expand(exclude))
    if not found and not allow_empty:
      raise ValueError(f'glob({include}) is empty: Bazel would refuse')
    return found

  def recorder(rule):
    def record(**kwargs):
      targets.append({'rule': rule, **kwargs})
    return record

  names = {'glob': glob, 'load': lambda *_: None, 'package': lambda **_: None,
           'requirement': lambda name: f'@pypi//{name}', **{rule: recorder(rule) for rule in RULES}}
  exec(compile(text, 'BUILD', 'exec'), names)  # pylint: disable=exec-used
  return targets


def problems(root: pathlib.Path, text: str) -> list[str]:
  """What is wrong with a BUILD file, in words."""
  targets = run_build(root, text)
  found = []
  names = [target['name'] for target in targets]
  found += [f'two targets are called {name}' for name in set(names) if names.count(name) > 1]
  for target in targets:
    found += [f'{target["name"]} depends on {dep}, which is not defined'
              for dep in target.get('deps', ()) if dep.startswith(':') and dep[1:] not in names]
    for path in [*target['srcs'], *target.get('data', ())]:
      if not (root / path).is_file():
        found.append(f'{target["name"]} names {path}, which is not there')

  def python_files(*folders):
    return {path.relative_to(root).as_posix() for folder in folders
            for path in (root / folder).rglob('*.py') if '__pycache__' not in path.parts}

  tests = {path for path in python_files('tests') if path.endswith('_test.py')}
  for rule, wanted in (
      ('py_library', python_files('unlearn_jax', 'experiments', 'tests') - tests),
      ('py_test', tests)):
    sources = [path for target in targets if target['rule'] == rule for path in target['srcs']]
    found += [f'no {rule} covers {path}' for path in sorted(wanted - set(sources))]
    found += [f'a {rule} should not hold {path}' for path in sorted(set(sources) - wanted)]
    found += [f'several {rule} hold {path}' for path in sorted(set(sources))
              if sources.count(path) > 1]
  for target in targets:
    if target['rule'] == 'py_test' and target['srcs'] != [target['main']]:
      found.append(f'{target["name"]} does not run its source')
  return found


def canonical(requirement: str) -> str:
  """The package of a requirement, as the registry spells it."""
  return re.split(r'[<>=!~\[; ]', requirement, maxsplit=1)[0].lower().replace('_', '-')


def literal(path: pathlib.Path, name: str):
  """The value of a module-level literal, without running the module."""
  for node in ast.parse(path.read_text(encoding='utf-8')).body:
    if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == name:
      return ast.literal_eval(node.value)
  raise AssertionError(f'{path} has no {name}')


class BuildTest(absltest.TestCase):

  def test_build_covers_the_tree(self):
    self.assertEqual(problems(ROOT, (ROOT / 'BUILD').read_text(encoding='utf-8')), [])

  def test_every_test_file_is_a_target_of_its_own(self):
    targets = run_build(ROOT, (ROOT / 'BUILD').read_text(encoding='utf-8'))
    mains = [target['main'] for target in targets if target['rule'] == 'py_test']
    self.assertIn('tests/build_test.py', mains)
    self.assertLen(set(mains), len(mains))

  def test_packages_are_the_sub_packages(self):
    # A new sub-package needs a line in BUILD; a line for a future one is fine.
    text = (ROOT / 'BUILD').read_text(encoding='utf-8')
    names = {target['name'] for target in run_build(ROOT, text)}
    there = {path.parent.name for path in (ROOT / 'unlearn_jax').glob('*/__init__.py')}
    self.assertEmpty(there - names)

  def test_the_lock_pins_what_setup_asks_for(self):
    lock = dict(line.split('==') for line in
                (ROOT / 'requirements_lock.txt').read_text(encoding='utf-8').splitlines())
    pinned = {canonical(name) for name in lock}
    core = {canonical(requirement) for requirement in literal(ROOT / 'setup.py', 'CORE')}
    extras = literal(ROOT / 'setup.py', 'EXTRAS')
    self.assertEmpty((core | {canonical(name) for name in extras['test']}) - pinned)
    targets = run_build(ROOT, (ROOT / 'BUILD').read_text(encoding='utf-8'))
    base = next(target for target in targets if target['name'] == 'base')
    self.assertEqual({canonical(dep.removeprefix('@pypi//')) for dep in base['deps']}, core)

  def test_versions_agree(self):
    pattern = r"__version__ = '([^']+)'"
    text = (ROOT / 'unlearn_jax' / '__init__.py').read_text(encoding='utf-8')
    module = (ROOT / 'MODULE.bazel').read_text(encoding='utf-8')
    self.assertEqual(re.search(pattern, text).group(1),
                     re.search(r'version = "([^"]+)"', module).group(1))

  def test_no_deep_learning_framework_but_jax_in_the_core(self):
    core = {canonical(requirement) for requirement in literal(ROOT / 'setup.py', 'CORE')}
    self.assertEmpty(core & {'torch', 'tensorflow', 'tensorflow-cpu', 'keras', 'torchvision'})
    self.assertIn('torch==2.13.0', literal(ROOT / 'setup.py', 'EXTRAS')['parity'])

  def test_checkpoint_manifest(self):
    manifest = json.loads((ROOT / 'checkpoints' / 'manifest.json').read_text(encoding='utf-8'))
    fields = {'name', 'source', 'sha256', 'licence', 'experiment'}
    self.assertEqual(set(manifest['schema']), fields)
    for entry in manifest['checkpoints']:
      self.assertEqual(set(entry), fields)
      self.assertRegex(entry['sha256'], r'^[0-9a-f]{64}$')


class CheckerTest(absltest.TestCase):
  """The checker itself: it must see what it is there for."""

  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    for path in ('unlearn_jax/a.py', 'experiments/run.py', 'tests/x/a_test.py',
                 'tests/conftest.py'):
      (self.root / path).parent.mkdir(parents=True, exist_ok=True)
      (self.root / path).write_text('')
    self.good = '''
py_library(name = "a", srcs = glob(["unlearn_jax/*.py", "experiments/*.py", "tests/conftest.py"]))
[py_test(name = p, srcs = [p], main = p, deps = [":a"]) for p in glob(["tests/**/*_test.py"])]
'''

  def test_a_complete_file_passes(self):
    self.assertEqual(problems(self.root, self.good), [])

  def test_uncovered_file(self):
    (self.root / 'unlearn_jax' / 'deep').mkdir()
    (self.root / 'unlearn_jax' / 'deep' / 'b.py').write_text('')
    self.assertEqual(problems(self.root, self.good), ['no py_library covers unlearn_jax/deep/b.py'])

  def test_uncovered_test(self):
    text = self.good.replace('tests/**/', 'tests/x/')
    (self.root / 'tests' / 'b_test.py').write_text('')
    self.assertEqual(problems(self.root, text), ['no py_test covers tests/b_test.py'])

  def test_undefined_dependency_and_double_cover(self):
    self.assertEqual(problems(self.root, self.good.replace('":a"', '":b"')),
                     ['tests/x/a_test.py depends on :b, which is not defined'])
    twice = self.good + 'py_library(name = "c", srcs = ["unlearn_jax/a.py"])'
    self.assertEqual(problems(self.root, twice), ['several py_library hold unlearn_jax/a.py'])

  def test_empty_glob(self):
    with self.assertRaisesRegex(ValueError, 'Bazel would refuse'):
      run_build(self.root, 'glob(["nothing/*.py"])')


if __name__ == '__main__':
  absltest.main()
