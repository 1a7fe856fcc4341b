"""Work directories: whose they are, and files that are never half written."""

from collections.abc import Mapping
import hashlib
import json
import os
import shutil
from typing import Any

import jax

OURS = ('config.json', 'splits.json', 'tune.json', 'tuned.py', 'results.json', 'report.md',
        'report.html', 'audit.json', 'audit.md', 'rows', 'trials', 'cases', 'audit')


def write_json(path: str, data: Any) -> None:
  """Writes JSON atomically: readers see the old file or the whole new one."""
  if jax.process_index() == 0:
    temporary = f'{path}.{os.getpid()}.tmp'
    with open(temporary, 'w') as file:
      json.dump(data, file, indent=1, allow_nan=False)
      file.write('\n')
    os.replace(temporary, path)


def read_json(path: str) -> Any:
  with open(path) as file:
    return json.load(file)


def fingerprint(data: Any) -> str:
  """A short content hash of JSON data."""
  return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def check(workdir: str, config: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
  """Refuses a directory that holds other results, before anything is computed or deleted.

  Raises:
    ValueError: the directory holds results, and neither `resume` (same config) nor `overwrite` was
      asked for; or it holds files that no experiment wrote.
  """
  if resume and overwrite:
    raise ValueError('--resume and --overwrite exclude each other')
  names = os.listdir(workdir) if os.path.isdir(workdir) else []
  if 'config.json' not in names:
    if foreign := sorted(set(names) - set(OURS)):
      raise ValueError(f'{workdir} holds files that no experiment wrote '
                       f'({", ".join(foreign[:5])}); choose an empty --workdir')
  elif not resume and not overwrite:
    raise ValueError(f'{workdir} holds results already; pass --resume to continue them, '
                     '--overwrite to delete them, or choose another --workdir')
  elif resume and read_json(os.path.join(workdir, 'config.json')) != config:
    raise ValueError(f'{workdir} holds results of another config (see its config.json); resume '
                     'with that config, pass --overwrite, or choose another --workdir')


def claim(workdir: str, config: Mapping[str, Any], *, overwrite: bool) -> None:
  """Makes `workdir` ours: deletes what is there with `overwrite`, writes the config."""
  os.makedirs(workdir, exist_ok=True)
  if overwrite and jax.process_index() == 0:
    for name in OURS:
      target = os.path.join(workdir, name)
      if os.path.isdir(target):
        shutil.rmtree(target)
      elif os.path.exists(target):
        os.remove(target)
  write_json(os.path.join(workdir, 'config.json'), config)
