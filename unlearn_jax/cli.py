"""The command line: `unlearn-jax run`, `tune`, `audit` and `list`."""

import os
import sys

from absl import app
from absl import flags
from absl import logging
import jax
from ml_collections import config_flags

from unlearn_jax import auditing
from unlearn_jax import experiment
from unlearn_jax import methods
from unlearn_jax import models
from unlearn_jax.data import sources
from unlearn_jax.methods import registry

USAGE = """unlearn-jax COMMAND

  run --config=experiments/configs/NAME.py[:smoke] --workdir=DIR [--resume | --overwrite]
      [--config.KEY=VALUE ...]     run an experiment; the report lands in DIR
  tune (the same flags)            only choose its settings: DIR/tune.json and DIR/tuned.py
  audit (the same flags)           run what is missing, then audit every row: DIR/audit.md
  list                             methods, models and data sets, and what each needs
"""


def define_flags() -> tuple[flags.FlagHolder, ...]:
  """The flags of `run`; called once, by whoever owns the process."""
  config = config_flags.DEFINE_config_file(
      'config', None, 'The experiment, a .py file with get_config(mode).', lock_config=True)
  workdir = flags.DEFINE_string('workdir', None, 'Where checkpoints, results and report go.')
  resume = flags.DEFINE_bool('resume', False, 'Continue the results in --workdir.')
  overwrite = flags.DEFINE_bool('overwrite', False, 'Delete the results in --workdir first.')
  distributed = flags.DEFINE_bool(
      'distributed', False, 'Several hosts: call jax.distributed.initialize() first.')
  flags.mark_flags_as_required(['config', 'workdir'])
  return config, workdir, resume, overwrite, distributed


def use_compilation_cache() -> None:
  """Keeps compiled programs between runs, beside the other cached files."""
  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update('jax_compilation_cache_dir', os.path.join(sources.cache_dir(), 'jax'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)


def parse(argv: list[str]) -> list[str]:
  """Parses flags; a wrong `--config.KEY=VALUE` is one line, not a traceback."""
  try:
    return app.parse_flags_with_usage(argv)
  except (AttributeError, KeyError, TypeError, ValueError) as error:  # ml_collections, config files
    sys.exit(f'error: in the flags: {" ".join(str(error).split())}')


def launch(argv: list[str], command: str = 'run') -> None:
  """Runs or tunes an experiment from command line arguments; argv[0] is the program's name."""
  holders = define_flags()
  app.run(lambda _: main(holders, command), argv=argv, flags_parser=parse)


COMMANDS = {'run': (experiment.run, 'report', 'report.html'),
            'tune': (experiment.tune, 'chosen settings', 'tuned.py'),
            'audit': (auditing.audit, 'verdicts', 'audit.md')}


def main(holders, command: str) -> None:
  """Does `command` with the experiment that the parsed flags describe."""
  action, product, filename = COMMANDS[command]
  config, workdir, resume, overwrite, distributed = (holder.value for holder in holders)
  if flags.FLAGS.verbosity <= 0:  # orbax tells every step of every save; -v 1 shows it
    logging.set_verbosity(logging.WARNING)
  if distributed:
    jax.distributed.initialize()
  use_compilation_cache()
  try:
    action(config, workdir, resume=resume, overwrite=overwrite)
  except (ValueError, ImportError, FileNotFoundError, FloatingPointError) as error:
    # What the user can mend is one line; the traceback is for -v 1.
    logging.vlog(1, 'traceback', exc_info=True)
    sys.exit(f'error: {error}')
  print(f'{product}: {os.path.join(workdir, filename)}')


def listing() -> str:
  """The text of `unlearn-jax list`."""
  lines = []
  for task in registry.TASKS:
    lines += [f'methods for {task} tasks (config.methods.NAME)']
    for name in methods.names(task):
      summary = methods.get(name).__doc__.splitlines()[0]
      lines += [f'  {name:<16} {summary}',
                f'  {"":<16} settings: {", ".join(methods.arguments(name))}']
    lines += ['']
  lines += ['models (config.model)', *(f'  {name}' for name in models.names())]
  lines += ['', 'data sets (config.data.name)']
  lines += [f'  {name:<18} {needs}' for name, needs in sources.NAMES.items()]
  return '\n'.join(lines)


def console() -> None:
  """Entry point of the `unlearn-jax` script."""
  command = sys.argv[1] if len(sys.argv) > 1 else ''
  if command == 'list':
    print(listing())
  elif command in COMMANDS:
    launch([sys.argv[0], *sys.argv[2:]], command)
  else:
    sys.exit(USAGE if command in ('', '-h', '--help') else f'no command {command!r}\n{USAGE}')
