"""Kinds of task: what an experiment forgets from, and how that is fed, measured and audited."""

from unlearn_jax.tasks import classification
from unlearn_jax.tasks import federated
from unlearn_jax.tasks import generation
from unlearn_jax.tasks import image_text
from unlearn_jax.tasks import multimodal
from unlearn_jax.tasks.base import Objective
from unlearn_jax.tasks.base import Task
from unlearn_jax.tasks.base import anchor
from unlearn_jax.tasks.base import cache_dir
from unlearn_jax.tasks.base import row_directory
from unlearn_jax.tasks.base import row_settings
from unlearn_jax.tasks.base import train_row

__all__ = ('KINDS', 'Objective', 'Task', 'anchor', 'cache_dir', 'load', 'row_directory',
           'row_settings', 'train_row')

KINDS = {'classification': classification.load, 'image_text': image_text.load,
         'multimodal': multimodal.load, 'federated': federated.load,
         'generation': generation.load}


def load(config, workdir: str) -> Task:
  """Reads and splits the data, builds the model, and every method to check its settings.

  Raises:
    ValueError: data, splits or settings that are wrong; before any compute is spent.
  """
  task = KINDS[config.task](config, workdir)
  for row in ('original', 'retrain', *config.rows):
    task.method(row, row_settings(config, row))
  return task
