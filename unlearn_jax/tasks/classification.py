"""Classification: forget records, identities or classes; judged by accuracy and attacks."""

import functools
from typing import Any

import numpy as np

from unlearn_jax import config as config_lib
from unlearn_jax import types
from unlearn_jax.data import sources
from unlearn_jax.data import splits as splits_lib
from unlearn_jax.data import streams as streams_lib
from unlearn_jax.evals import classification
from unlearn_jax.evals import privacy
from unlearn_jax.evals import run as evals_run
from unlearn_jax.losses import classification as per_example
from unlearn_jax.tasks import base
from unlearn_jax.train import sharding

EVALUATED = ('retain', 'forget', 'validation', 'test', 'unseen')
COMPARED = ('accuracy/forget', 'accuracy/validation', 'mia_auc/validation')


def retrain_gap(measured: base.Measured, retrained: base.Measured) -> float:
  """Mean of |unlearned - retrained| over forget accuracy, validation accuracy and attack AUC.

  Ours: all three lie in [0, 1], and 0 is a model that behaves as the retrained one does. Two-sided:
  to do worse than the retrained model on forgotten records costs as much as to do better.
  """
  return float(np.mean([abs(measured[name] - retrained[name]) for name in COMPARED]))


def nomus(measured: base.Measured, retrained: base.Measured | None) -> float:
  """NoMUS with validation data in the place of test and unseen data; needs no retrained model."""
  del retrained
  return classification.nomus(measured['accuracy/validation'], measured['forgetting_score'])


class Classification(base.Task):
  """Records with a class or with attributes; any model with the output `logits`."""

  OBJECTIVES = {'nomus': base.Objective(nomus, max, False),
                'retrain_gap': base.Objective(retrain_gap, min, True)}

  @property
  def inputs(self) -> tuple[str, ...]:
    """Fields that the model reads."""
    return ('image',)

  @functools.cached_property
  def fields(self) -> dict[str, dict[str, Any]]:
    """Split -> inputs and labels; pictures held as bytes stay so."""
    return {name: {key: sources.take(self.source.fields[key], self.splits.indices[name])
                   for key in (*self.inputs, 'label')}
            for name in EVALUATED if len(self.splits.indices.get(name, ()))}

  @property
  def example(self) -> types.Inputs:
    return {name: np.asarray(self.source.fields[name][:1]) for name in self.inputs}

  @property
  def context(self) -> dict[str, Any]:
    count = lambda *names: sum(len(self.splits.indices[name]) for name in names)
    size = self.config.batch_size
    return {'example': self.example,
            'retain_steps': streams_lib.steps_per_epoch(count('retain'), size),
            'forget_steps': streams_lib.steps_per_epoch(
                count('forget'), self.config.forget_batch_size or size),
            'train_steps': streams_lib.steps_per_epoch(count('retain', 'forget'), size)}

  def streams(self, seed: int) -> dict[str, types.Stream]:
    config = self.config
    return streams_lib.make(
        self.source, self.splits, batch_size=config.batch_size,
        forget_batch_size=config.forget_batch_size or config.batch_size, seed=seed,
        augment=tuple(config.data.augment))

  def monitor(self) -> types.Evaluator:
    return privacy.forgetting_gate({name: self.fields[name] for name in ('forget', 'validation')})

  def outputs(self, variables) -> dict[str, dict[str, np.ndarray]]:
    """Split -> logits, features and labels."""
    return {name: {**evals_run.predict(self.model.apply, variables, fields),
                   'label': fields['label']} for name, fields in self.fields.items()}

  def measure(self, variables):
    return self.judge(self.outputs(variables))

  def judge(self, outputs):
    """Metrics, and the losses of forgotten and unseen records."""
    losses = {name: np.asarray(per_example.example_loss(outputs[name]['logits'],
                                                        outputs[name]['label']))
              for name in ('forget', 'unseen')}
    return classification.measure(outputs), losses

  def for_tuning(self) -> 'Classification':
    """Forgets retained units; validation data stand for test and unseen data."""
    return self.with_splits(splits_lib.tuning(
        self.splits, self.source, seed=self.config.split.get('seed', 0),
        share=self.config.tune.share))

  def measure_trial(self, variables):
    """Accuracies and the loss attack, forget against validation data."""
    losses, found = {}, {}
    for name in ('forget', 'validation'):
      fields = self.fields[name]
      logits = evals_run.predict(self.model.apply, variables, fields)['logits']
      losses[name] = np.asarray(per_example.example_loss(logits, fields['label']))
      found[f'accuracy/{name}'] = float(np.mean(per_example.accuracy(logits, fields['label'])))
    pair = losses['forget'], losses['validation']
    return found | {'mia_auc/validation': privacy.auc(*pair),
                    'forgetting_score': privacy.forgetting_score(*pair).score}

  def audited(self):
    return self.model.apply, {name: {**fields, 'id': self.splits.indices[name]}
                              for name, fields in self.fields.items()}


def load(config, workdir: str, *, kind: type[Classification] = Classification) -> Classification:
  """Reads and splits the data and builds the model."""
  data = config.data
  source = sources.get(data.name, data_dir=config.data_dir, label_noise=data.label_noise,
                       seed=data.seed, image_size=data.image_size or None)
  split = config_lib.SPLITS[config.task][config.split.kind]
  splits = split(source, **config_lib.split_arguments(config))
  model = base.network(config, num_outputs=source.num_classes)
  return kind(config, source, splits, model, sharding.make_mesh(config.devices or None), workdir)
