"""Records of two modalities: a classifier forgets pictures and keeps what it knows of the rest."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

from absl import logging
import numpy as np

from unlearn_jax import config as config_lib
from unlearn_jax import types
from unlearn_jax.audit import member_prediction
from unlearn_jax.data import sources
from unlearn_jax.evals import classification as metrics_lib
from unlearn_jax.evals import embeddings
from unlearn_jax.evals import multimodal
from unlearn_jax.evals import run as evals_run
from unlearn_jax.losses import checks
from unlearn_jax.methods import stopping
from unlearn_jax.tasks import base
from unlearn_jax.tasks import classification

STOP_ON = ('validation', 'test', '')
SPLITS = ('test', 'retain', 'forget')
# What both oracles are compared in.
COMPARED = ('accuracy/forget', 'accuracy/validation', 'mia_auc/validation',
            'accuracy_visual/forget', 'accuracy_visual/validation', 'accuracy_other/validation')
ORACLES = ('accuracy/test', 'accuracy_visual/test', 'accuracy_other/test',
           'accuracy_visual/forget', 'member/admin/forget')


def multimodal_gap(measured: base.Measured, retrained: base.Measured) -> float:
  """Mean of |unlearned - retrained| over accuracies of both modalities and the attack (ours)."""
  return float(np.mean([abs(measured[name] - retrained[name]) for name in COMPARED]))


def from_scratch(row: str) -> bool:
  return row in config_lib.BUILTIN or config_lib.method_of(row) == 'retrain'


class Multimodal(classification.Classification):
  """A picture and a second modality with one label; the visual part is to be forgotten.

  Methods run under CCU's stopping rule (`config.modalities.stop_on`), but for those that train from
  scratch. Beside the model retrained without the forgotten records there may be a second oracle, a
  row `retrain-visual` with `role='masked'`: trained on everything, the forgotten pictures black and
  their other modality kept.
  """

  OBJECTIVES = {**classification.Classification.OBJECTIVES,
                'multimodal_gap': base.Objective(multimodal_gap, min, True)}

  @property
  def other(self) -> str:
    """The second modality."""
    return next(name for name in sources.MODALITIES if name in self.source.fields)

  @property
  def inputs(self) -> tuple[str, ...]:
    return tuple(name for name in ('image', *sources.MODALITIES, 'segment')
                 if name in self.source.fields)

  @property
  def context(self) -> dict[str, Any]:
    return {**super().context, 'other': self.other}

  def streams(self, seed: int) -> dict[str, types.Stream]:
    found = super().streams(seed)
    forgotten = self.splits.indices['forget']

    def masked(step: int) -> types.Batch:
      batch = found['train'](step)['train']
      gone = np.isin(batch['id'], forgotten).reshape(-1, *(1,) * (batch['image'].ndim - 1))
      return {'masked': {**batch, 'image': np.where(gone, np.float32(0), batch['image'])}}

    return {**found, 'masked': masked}

  def method(self, row: str, settings: Mapping[str, Any]) -> types.Method:
    method, chosen = super().method(row, settings), self.config.modalities
    if from_scratch(row) or not chosen.stop_on:
      return method
    names = ('visual_accuracy/forget', 'visual_accuracy/held_out')
    return stopping.stop_early(method, signals=dict.fromkeys(names, chosen.stop_every),
                               until=multimodal.stopped)

  def monitor(self) -> types.Evaluator:
    held_out = self.config.modalities.stop_on
    # Trials have no test data: they stop on validation data whatever the report does.
    held_out = held_out if held_out in self.fields else 'validation'
    return multimodal.visual_monitor(self.evaluated, self.fields['forget'], self.fields[held_out])

  @functools.cached_property
  def evaluated(self) -> Callable:
    """One stable `apply` with logits of each modality; a compiled pass belongs to a function."""
    reading = self.config.modalities.reading
    names = ('image', self.other)
    train = {name: sources.take(self.source.fields[name], self.splits.indices['retain'])
             for name in names}
    return multimodal.unimodal(
        self.model.apply, self.other, reading=reading,
        means=multimodal.means(train, names) if reading == 'mean' else None)

  def outputs(self, variables):
    names = ('logits', 'features', 'visual_logits', 'other_logits', 'image_embedding',
             f'{self.other}_embedding')
    return {split: {**evals_run.predict(self.evaluated, variables, fields, names=names),
                    'label': fields['label']} for split, fields in self.fields.items()}

  @functools.cached_property
  def shadows(self) -> list[member_prediction.Shadow]:
    """Models of the same kind, each trained on a random half of the training data; cached."""
    train = np.sort(np.concatenate([self.splits.indices[name] for name in ('retain', 'forget')]))
    found = []
    for number in range(self.config.modalities.shadows):
      order = np.random.default_rng((self.config.split.seed, number)).permutation(train)
      half = {'members': np.sort(order[:len(order) // 2]), 'others': np.sort(order[len(order) // 2:])}
      small = self.with_splits(dataclasses.replace(self.splits, indices={
          **self.splits.indices, 'retain': half['members'], 'forget': half['others']}))
      variables, _, _ = base.anchor(small, 'retrain', 1000 + number)
      logits = {name: evals_run.predict(
          self.model.apply, variables, {key: sources.take(self.source.fields[key], ids)
                                        for key in self.inputs}, names=('logits',))['logits']
                for name, ids in half.items()}
      label = np.asarray(self.source.fields['label'])
      found.append(member_prediction.Shadow(logits['members'], label[half['members']],
                                            logits['others'], label[half['others']]))
    return found

  def measure(self, variables):
    outputs = self.outputs(variables)
    metrics, losses = self.judge(outputs)
    for split, found in outputs.items():
      alone = multimodal.accuracies(found, found['label'])
      metrics |= {f'accuracy_{name}/{split}': value for name, value in alone.items()}
    logits, label = ({split: outputs[split][name] for split in SPLITS} for name in ('logits', 'label'))
    rates = {'admin': member_prediction.admin(logits, label)}
    if self.config.modalities.shadows:
      rates['shadow'] = member_prediction.shadow(logits, label, self.shadows)
    metrics |= {f'member/{mode}/{split}': value for mode, found in rates.items()
                for split, value in found.items()}
    retain, forget = outputs['retain'], outputs['forget']
    for name, key in (('visual', 'image_embedding'), ('other', f'{self.other}_embedding')):
      metrics |= {f'{measure}/{name}': value for measure, value in embeddings.tightness(
          retain[key], retain['label']).items()}
    placed = embeddings.placement(
        forget['image_embedding'], forget['label'],
        embeddings.centres(retain['image_embedding'], retain['label'], self.source.num_classes))
    metrics |= {'own_class/forget': placed['cosine'], 'moved/forget': placed['elsewhere']}
    return metrics, {**losses, 'visual_embedding': retain['image_embedding'].astype(np.float16),
                     'label': retain['label'], 'nearest': placed['destinations']}

  def compare(self, rows, arrays) -> None:
    """UPG and CMSG against the retrained model, and gaps to the one retrained on masked pictures."""
    del arrays
    masked = next((row for row in rows if from_scratch(row) and row not in config_lib.BUILTIN),
                  None)
    for row, per_seed in rows.items():
      for index, found in enumerate(per_seed):
        metrics, retrained = found['metrics'], rows['retrain'][index]['metrics']
        metrics['upg'] = metrics_lib.upg(metrics['accuracy/test'], retrained['accuracy/test'])
        metrics['cmsg'] = metrics_lib.cmsg(metrics['accuracy_other/test'],
                                           retrained['accuracy_other/test'])
        metrics['steps_taken'] = found['steps'] / found['planned_steps']
        if masked is not None:
          oracle = rows[masked][index]['metrics']
          metrics |= {f'gap_masked/{name}': metrics[name] - oracle[name] for name in ORACLES}
      whole = all(found['steps'] == found['planned_steps'] for found in per_seed)
      if whole and self.config.modalities.stop_on and not from_scratch(row):
        logging.warning('%s: early stopping never fired, it ran to its step limit; its visual '
                        'accuracy on the forget set stayed at the held-out one or above', row)

  def measure_trial(self, variables):
    found = super().measure_trial(variables)
    for name in ('forget', 'validation'):
      fields = self.fields[name]
      alone = multimodal.accuracies(evals_run.predict(
          self.evaluated, variables, fields, names=('visual_logits', 'other_logits')),
                                    fields['label'])
      found |= {f'accuracy_{modality}/{name}': value for modality, value in alone.items()}
    return found


def load(config, workdir: str) -> Multimodal:
  """Reads and splits the data and builds the model; both modalities must be there."""
  if config.modalities.stop_on not in STOP_ON:
    raise ValueError(f'config.modalities.stop_on is one of {STOP_ON}, got '
                     f'{config.modalities.stop_on!r}')
  if config.modalities.reading not in multimodal.READINGS:
    raise ValueError(f'config.modalities.reading is one of {", ".join(multimodal.READINGS)}, got '
                     f'{config.modalities.reading!r}')
  if config.modalities.stop_every < 1 or config.modalities.shadows < 0:
    raise ValueError('config.modalities.stop_every is at least 1 and shadows at least 0, got '
                     f'{config.modalities.stop_every} and {config.modalities.shadows}')
  task = classification.load(config, workdir, kind=Multimodal)
  there = [name for name in sources.MODALITIES if name in task.source.fields]
  if len(there) != 1:
    raise ValueError(f'data {config.data.name!r} must have one second modality of '
                     f'{", ".join(sources.MODALITIES)}, it has {there or "none"}')
  label = np.asarray(task.source.fields['label'])
  checks.check_anchors(*(label[task.splits.indices[name]] for name in ('forget', 'retain')))
  return task
