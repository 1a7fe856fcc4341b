"""Lists near-duplicates of forgotten pictures in the other splits of an experiment; trains nothing.

python -m experiments.duplicates --config=experiments/configs/dlfd_age.py --config.data_dir=DIR

Whoever forgets a picture and retains its twin has not forgotten it: MUFAC has more than 250 such
pairs. `unlearn-jax audit` reports the same by perceptual hash, and by the features of a retrained
model besides.
"""

from typing import Any

from absl import app
from absl import flags
from ml_collections import config_dict
from ml_collections import config_flags
import numpy as np

from unlearn_jax import config as config_lib
from unlearn_jax import tasks
from unlearn_jax.audit import hygiene

_BLOCK = 128  # pictures at a time


def find(task: tasks.Task) -> dict[str, list[dict[str, Any]]]:
  """Split -> pairs (`forget` and `other`, indices of records; `bits`, how many of 288 differ).

  Pairs with at most `hygiene.NEAR_BITS` differing bits of `hygiene.difference_hash`, closest first.

  Raises:
    ValueError: pictures that are too small for the hash.
  """
  hashes = {split: _hashes(fields['image']) for split, fields in task.fields.items()}
  found = {}
  for split in (name for name in hashes if name != 'forget'):
    pairs = []
    for start in range(0, len(hashes['forget']), _BLOCK):
      bits = hygiene.hamming(hashes['forget'][start:start + _BLOCK], hashes[split])
      for row, column in np.argwhere(bits <= hygiene.NEAR_BITS):
        pairs.append({'forget': int(task.splits.indices['forget'][start + row]),
                      'other': int(task.splits.indices[split][column]),
                      'bits': int(bits[row, column])})
    found[split] = sorted(pairs, key=lambda pair: pair['bits'])
  return found


def _hashes(images) -> np.ndarray:
  return np.concatenate([hygiene.difference_hash(images[start:start + _BLOCK])
                         for start in range(0, len(images), _BLOCK)])


def text(task: tasks.Task) -> str:
  """A line per split, then a line per pair with the identities."""
  found, identity = find(task), task.source.identity
  lines = []
  for split, pairs in found.items():
    forgotten = len({pair['forget'] for pair in pairs})
    lines.append(f'{split}: {len(pairs)} pairs, {forgotten} of '
                 f'{len(task.splits.indices["forget"])} forgotten records')
    lines += [f'  {pair["bits"]} bits: forget {pair["forget"]} ({identity[pair["forget"]]}), '
              f'{split} {pair["other"]} ({identity[pair["other"]]})' for pair in pairs]
  return '\n'.join(lines)


def load(config: config_dict.ConfigDict) -> tasks.Task:
  """The task of a config, for its data only."""
  config_lib.check(config)
  return tasks.load(config, workdir='')


def main(_):
  try:
    print(text(load(_CONFIG.value)))
  except (FileNotFoundError, ValueError) as error:
    raise SystemExit(f'error: {error}') from error


if __name__ == '__main__':
  _CONFIG = config_flags.DEFINE_config_file('config', None, 'The experiment.', lock_config=True)
  flags.mark_flags_as_required(['config'])
  app.run(main)
