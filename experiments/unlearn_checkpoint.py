"""Unlearns from a public checkpoint of a CLIP or an MAE, and writes it back under its own names.

python -m experiments.unlearn_checkpoint --config=experiments/configs/ncu_cc3m.py \\
    --config.data_dir=DIR --checkpoint=cc3m.pt --workdir=runs/ncu_cc3m [--row=ncu] [--seed=0]

Nobody knows which pairs of the web are mismatched, and nobody retrains what took ImageNet and days: so
there is no retrained model to compare with and no report, only what trials of tuning are judged by,
before and after. `experiments.downstream` measures a CLIP that comes out of it. A run that was cut off
goes on from its last checkpoint when the command is given again.
"""

import os
import sys

from absl import app
from absl import flags
import jax
from ml_collections import config_dict

from unlearn_jax import cli
from unlearn_jax import config as config_lib
from unlearn_jax import tasks
from unlearn_jax import workdir as workdir_lib
from unlearn_jax.methods import registry
from unlearn_jax.models import convert
from unlearn_jax.models import surgery


def unlearn(config: config_dict.ConfigDict, checkpoint: str, workdir: str, *, row: str = 'ncu',
            seed: int = 0, layout: str | None = None) -> dict[str, object]:
  """Runs one row of a config from a public checkpoint.

  Args:
    config: of an image-text task whose split is `unlabelled`, or of a generation task; `model` and
      `model_args` describe the checkpoint.
    checkpoint: as `models.convert.load` reads it.
    workdir: gets `ROW` with the checkpoint's suffix, `measured.json`, logs and checkpoints.
    row: which of `config.rows`.
    seed: of the run.
    layout: of the checkpoint, where its tensors do not tell.

  Returns:
    The content of `measured.json`: what trials are judged by (retrieval among the validation pairs,
    FID and cosines of held-out pictures), before and after; the names of the tensors that changed,
    and the path of the new checkpoint.

  Raises:
    ValueError: bad config or data, a checkpoint of another model; FileExistsError: the new
      checkpoint is there already. All before any compute is spent.
  """
  config_lib.check(config)
  if row not in config.rows:
    raise ValueError(f'config.rows has no {row!r}{registry.suggestion(row, list(config.rows))}')
  target = os.path.join(workdir, row + os.path.splitext(checkpoint)[1])
  if os.path.exists(target):
    raise FileExistsError(f'{target} exists; choose another --workdir, or remove it')
  original, spec = convert.load(checkpoint, layout=layout)
  task = tasks.load(config, workdir)
  expected = jax.eval_shape(task.model.init, jax.random.key(0), task.example)
  if problem := surgery.first_mismatch(expected, original):
    raise ValueError(f'{checkpoint} is no {config.model} with {config.model_args.to_dict()} on '
                     f'pictures of {task.example["image"].shape[1:]}: {problem}; its own arguments '
                     f'are {spec.model_args}, its pictures have {spec.image_size} pixels')
  before = task.measure_trial(original)
  directory = tasks.row_directory(task, row, seed)
  unlearned, facts = tasks.train_row(task, row, seed, tasks.row_settings(config, row), original,
                                     directory)
  after = task.measure_trial(unlearned)
  changed = ()
  if jax.process_index() == 0:
    changed = convert.save(target, jax.device_get(unlearned), like=checkpoint)
  found = {'row': row, 'seed': seed, 'checkpoint': target, 'before': before,
           'after': after, 'changed': list(changed), 'facts': facts}
  workdir_lib.write_json(os.path.join(workdir, 'measured.json'), found)
  return found


def main(_, holders, checkpoint, row, seed, layout) -> None:
  config, workdir = (holder.value for holder in holders[:2])
  if holders[4].value:  # --distributed
    jax.distributed.initialize()
  cli.use_compilation_cache()
  try:
    found = unlearn(config, checkpoint.value, workdir, row=row.value, seed=seed.value,
                    layout=layout.value)
  except (ValueError, ImportError, OSError, FloatingPointError) as error:
    sys.exit(f'error: {error}')
  for name in found['before']:
    print(f'{name:<32} {found["before"][name]:.4f} -> {found["after"][name]:.4f}')
  print(f'{len(found["changed"])} tensors changed: {found["checkpoint"]}')


if __name__ == '__main__':
  HOLDERS = cli.define_flags()
  CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'The public checkpoint.', required=True)
  ROW = flags.DEFINE_string('row', 'ncu', 'Which row of the config.')
  SEED = flags.DEFINE_integer('seed', 0, 'Of the run.')
  LAYOUT = flags.DEFINE_string('layout', None, 'openai or open_clip, where the file does not tell.')
  app.run(lambda argv: main(argv, HOLDERS, CHECKPOINT, ROW, SEED, LAYOUT), flags_parser=cli.parse)
