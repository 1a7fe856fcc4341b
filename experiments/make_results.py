"""Runs the committed experiments and writes experiments/results/<config>.md and .json.

Some are audited: their table is the one of verdicts. `config:mode` names a config's mode, its result
is `config_mode`.

python -m experiments.make_results --data_dir=DIR [--only=dlfd_omniglot,...] [--runs=runs]
"""

import importlib
import os

from absl import app
from absl import flags
from absl import logging

from unlearn_jax import auditing
from unlearn_jax import cli
from unlearn_jax import experiment
from unlearn_jax import workdir as workdir_lib

CONFIGS = {
    'digits': experiment.run, 'dlfd_omniglot': experiment.run, 'dlfd_ablation': experiment.run,
    'dlfd_small_forget': experiment.run, 'dlfd_tradeoff': experiment.run,
    'audit_omniglot': auditing.audit, 'classification_mnist5k': auditing.audit,
    'classification_mnist5k:original': auditing.audit, 'classification_omniglot': auditing.audit,
    'classification_omniglot:original': auditing.audit, 'ncu_openmoji': auditing.audit}
PRODUCTS = {experiment.run: 'report', auditing.audit: 'audit'}

_DATA_DIR = flags.DEFINE_string('data_dir', '', "Holds Omniglot's two archives; '' downloads them.")
_RUNS = flags.DEFINE_string('runs', 'runs', 'Work directories go under this one; resumed if there.')
_ONLY = flags.DEFINE_list('only', list(CONFIGS), 'Which experiments.')
_RESULTS = flags.DEFINE_string('results', os.path.join(os.path.dirname(__file__), 'results'),
                               'Where the tables go.')


def main(_):
  logging.set_verbosity(logging.WARNING)
  cli.use_compilation_cache()
  os.makedirs(_RESULTS.value, exist_ok=True)
  for key in _ONLY.value:
    if key not in CONFIGS:
      raise app.UsageError(f'--only names {key!r}, there is: {", ".join(CONFIGS)}')
    module, _, mode = key.partition(':')
    name = '_'.join(filter(None, (module, mode)))
    config = importlib.import_module(f'experiments.configs.{module}').get_config(mode)
    config.data_dir = _DATA_DIR.value
    workdir = os.path.join(_RUNS.value, name)
    results = CONFIGS[key](config, workdir, resume=os.path.exists(
        os.path.join(workdir, 'config.json')))
    workdir_lib.write_json(os.path.join(_RESULTS.value, f'{name}.json'), results)
    product = PRODUCTS[CONFIGS[key]]
    with open(os.path.join(workdir, f'{product}.md')) as source:
      text = source.read()
    with open(os.path.join(_RESULTS.value, f'{name}.md'), 'w') as target:
      target.write(text)
    print(f'{name}: {os.path.join(workdir, product)}.md')


if __name__ == '__main__':
  app.run(main)
