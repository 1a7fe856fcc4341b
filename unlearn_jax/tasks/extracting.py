"""Feature extractors of an experiment: a classifier trained on its data, or a user's weights."""

import hashlib
import os

import jax
import numpy as np

from unlearn_jax import config as config_lib
from unlearn_jax import methods
from unlearn_jax import models
from unlearn_jax.data import sources
from unlearn_jax.data import streams
from unlearn_jax.evals import extractors
from unlearn_jax.tasks import base
from unlearn_jax.tasks import extractor_files

KINDS = ('classifier', 'random_conv', 'inception', 'clip')


def check(names) -> None:
  """Refuses an extractor that does not exist, or whose weights are not there."""
  if not names:
    raise ValueError('config.generation.extractors is empty; without one there is no FID')
  for name in names:
    kind, _, path = name.partition(':')
    if kind not in KINDS:
      raise ValueError(f'config.generation.extractors are out of {", ".join(KINDS)}, with the path of '
                       f'the weights where there are some (inception:FILE), got {name!r}')
    if kind in ('inception', 'clip') and not path:
      raise ValueError(f'config.generation.extractors: {name!r} needs the path of its weights: '
                       f'{kind}:FILE')
    if kind in ('inception', 'clip') and not os.path.isfile(path):
      load(name, None, None, None)  # says what to download


def load(name: str, config, source: sources.Source, mesh) -> extractors.Extractor:
  """The extractor that an entry of `config.generation.extractors` names."""
  kind, _, argument = name.partition(':')
  return {'classifier': lambda: classifier(config, source, mesh),
          'random_conv': lambda: extractors.random_conv(int(argument or 0)),
          'inception': lambda: extractor_files.inception(argument),
          'clip': lambda: extractor_files.clip(argument)}[kind]()


def classifier(config, source: sources.Source, mesh) -> extractors.Extractor:
  """A small ResNet that learnt all labelled training pictures, forgotten classes among them.

  The judge may know what the judged must not; it is trained once per data and split, and cached.
  """
  recipe = config.generation.classifier.to_dict()
  label, part = (np.asarray(source.fields[name]) for name in ('label', 'part'))
  ids = np.flatnonzero((label >= 0) & np.isin(part, ('retain', 'forget', 'other')))
  width, batch_size = recipe.pop('width'), recipe.pop('batch_size')
  model = models.get('resnet18', num_outputs=source.num_classes, width=width)
  example = {'image': np.asarray(source.fields['image'][:1])}
  method = methods.get('retrain')(
      model, example=example, role='train', retain_steps=streams.steps_per_epoch(len(ids), batch_size),
      **recipe)
  stream = streams.single(source, ids, 'train', batch_size=batch_size, seed=0,
                          augment=tuple(config.data.augment))
  digest = hashlib.sha256(ids.tobytes()).hexdigest()
  facts = {'source': source.content_hash(), 'ids': digest,
           'augment': config_lib.to_json(config)['data']['augment'],
           'recipe': config.generation.classifier.to_dict()}
  variables = base.beside('classifier', method, model.init(jax.random.key(0), example), stream, facts,
                          config, mesh)
  return extractors.classifier(model.apply, variables, f'classifier:{digest[:8]}')
