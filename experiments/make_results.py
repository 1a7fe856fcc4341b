"""Runs the committed experiments and writes experiments/results/<config>.md and .json.

Some are audited: their table is the one of verdicts. `config:mode` names a config's mode, its result
is `config_mode`.

python -m experiments.make_results --data_dir=DIR [--only=dlfd_omniglot,...] [--runs=runs]
"""

import importlib
import os
import shutil

from absl import app
from absl import flags
from absl import logging

from experiments import figures
from unlearn_jax import auditing
from unlearn_jax import cli
from unlearn_jax import experiment

RUN, AUDIT = (experiment.run, ('report',)), (auditing.audit, ('audit',))
BOTH = (auditing.audit, ('report', 'audit'))
# config -> what is done, and which of its products are committed: the first as NAME, others as
# NAME_PRODUCT.
CONFIGS = {
    'digits': RUN, 'dlfd_omniglot': RUN, 'dlfd_ablation': RUN, 'dlfd_small_forget': RUN,
    'dlfd_tradeoff': RUN, 'audit_omniglot': AUDIT, 'classification_mnist5k': AUDIT,
    'classification_mnist5k:original': AUDIT, 'classification_omniglot': AUDIT,
    'classification_omniglot:original': AUDIT,
    'ncu_openmoji': BOTH, 'ncu_partial': RUN,
    'ccu_av_digits': BOTH, 'ccu_av_digits:15': BOTH, 'ccu_av_digits:voice': BOTH,
    'ccu_av_digits:ablation': RUN, 'ccu_av_fsdd': BOTH, 'ease_toy': RUN,
    'ease_openmoji': RUN, 'ease_openmoji:sample': RUN, 'ease_openmoji:concept': RUN,
    'ease_openmoji:ablation': RUN, 'ease_openmoji:anchors': RUN,
    'ease_openmoji:matrix': RUN, 'ease_openmoji:ffa': RUN, 'ease_openmoji:reference': RUN,
    'i2i_mae_openmoji': BOTH, 'i2i_mae_openmoji:limited': RUN, 'i2i_mae_openmoji:alpha': RUN,
    'i2i_mae_openmoji:noise': RUN, 'i2i_mae_openmoji:holes': RUN,
    'i2i_mage_openmoji': RUN, 'i2i_palette_openmoji': RUN}
DRAWN = ('ease_openmoji', 'i2i_mae_openmoji', 'i2i_mae_openmoji:holes', 'i2i_mage_openmoji',
         'i2i_palette_openmoji')  # whose pictures are committed too
JSON = {'report': 'results.json', 'audit': 'audit.json'}

_DATA_DIR = flags.DEFINE_string(
    'data_dir', '', "Holds Omniglot's two archives ('' downloads them) and FSDD's recordings.")
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
    action, products = CONFIGS[key]
    action(config, workdir, resume=os.path.exists(os.path.join(workdir, 'config.json')))
    for product in products:
      target = os.path.join(_RESULTS.value, name if product == products[0] else f'{name}_{product}')
      shutil.copyfile(os.path.join(workdir, JSON[product]), f'{target}.json')
      shutil.copyfile(os.path.join(workdir, f'{product}.md'), f'{target}.md')
      print(f'{target}.md')
    if key in DRAWN:
      figures.write(workdir, os.path.join(_RESULTS.value, name))


if __name__ == '__main__':
  app.run(main)
