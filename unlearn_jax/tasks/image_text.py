"""Image-text pairs: a CLIP unlearns planted noisy correspondence; judged by what it can still do."""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
import numpy as np

from unlearn_jax import config as config_lib
from unlearn_jax import types
from unlearn_jax.data import pairs
from unlearn_jax.data import sources
from unlearn_jax.data import streams as streams_lib
from unlearn_jax.data import text_transforms
from unlearn_jax.evals import linear_probe
from unlearn_jax.evals import privacy
from unlearn_jax.evals import retrieval
from unlearn_jax.evals import run as evals_run
from unlearn_jax.evals import similarity
from unlearn_jax.evals import zero_shot
from unlearn_jax.losses import ncu
from unlearn_jax.models import clip
from unlearn_jax.models import clip_tokenizer
from unlearn_jax.tasks import base
from unlearn_jax.train import sharding

EMBEDDINGS = similarity.EMBEDDINGS
FROM_SCRATCH = ('contrastive', 'soft_clip')  # train before anybody thinks of unlearning


class _Tokens:
  """Token rows of captions, each made once: `(ids, seed, epoch) -> int32 [B, L]`."""

  def __init__(self, captions: np.ndarray, tokenize: Callable[[Sequence[str]], np.ndarray],
               context: int):
    self.captions, self.tokenize = captions, tokenize
    self.rows = np.zeros((len(captions), context), np.uint16)  # ids lie below 2^16
    self.made = np.zeros(len(captions), bool)

  def __call__(self, ids, seed=0, epoch=0) -> np.ndarray:
    del seed, epoch
    ids = np.asarray(ids)
    if len(new := np.unique(ids[~self.made[ids]])):
      self.rows[new] = self.tokenize(self.captions[new].tolist())
      self.made[new] = True
    return self.rows[ids].astype(np.int32)


def _mean_recall(measured: base.Measured, retrained: base.Measured | None) -> float:
  """Mean recall on validation pairs; needs no retrained model."""
  del retrained
  return measured['mean_recall/validation']


class ImageText(base.Task):
  """Pictures with captions, a share of which belong to other pictures.

  `forget` are the mismatched pairs, `retain` the others. Unlearning methods are given all training
  pairs and not told which is which; the truth serves the oracle and the measurements alone.
  """

  OBJECTIVES = {'mean_recall': base.Objective(_mean_recall, max, False)}

  @property
  def context_length(self) -> int:
    return base.context_length(self.config)

  @property
  def train_ids(self) -> np.ndarray:
    return np.sort(np.concatenate([self.splits.indices[name] for name in ('retain', 'forget')]))

  def tokenize(self, texts: Sequence[str], slots: int = 0) -> np.ndarray:
    return clip.tokenize(texts, self.context_length, slots)

  @functools.cached_property
  def at_hand(self) -> 'ImageText':
    """The task with `config.text.share` of the training pairs; made once, with its tokens."""
    return self.with_splits(pairs.portion(self.splits, self.config.text.share,
                                          self.config.split.seed))

  def for_row(self, row: str) -> 'ImageText':
    """A model that is there already unlearns with the pairs that are at hand."""
    if row in config_lib.BUILTIN or config_lib.method_of(row) in FROM_SCRATCH:
      return self
    return self.at_hand

  @functools.cached_property
  def texts(self) -> dict[str, pairs.Text]:
    """Token rows by name: captions as given, true ones, and negatives of two kinds."""
    source, text = self.source, self.config.text
    captions, slots = source.fields['caption'], text.prompt_slots
    plain = functools.partial(_Tokens, tokenize=self.tokenize, context=self.context_length)

    def changed(transform, slots):
      def tokens(ids, seed, epoch):
        return self.tokenize(transform(captions[ids].tolist(), seed, ids, epoch), slots)
      return tokens

    prompted = functools.partial(self.tokenize, slots=slots)
    negative = _Tokens(captions, prompted, self.context_length)
    if text.eda:
      synonyms = text_transforms.wordnet(text.wordnet) if text.wordnet else None
      negative = changed(text_transforms.eda(synonyms=synonyms, operations=tuple(text.eda)), slots)
    return {'caption': plain(captions), 'true': plain(source.fields['true_caption']),
            'negative': negative, 'written': changed(text_transforms.written_negative, 0)}

  @functools.cached_property
  def unseen_captions(self) -> np.ndarray:
    """Captions of the source, those of unseen pairs exchanged: what no model was trained on."""
    return pairs.plant_noise(self.source, self.splits.indices['unseen'], 1.0,
                             self.config.split.seed).fields['caption']

  @property
  def example(self) -> types.Inputs:
    return {'image': np.asarray(self.source.fields['image'][:1]), 'text': self.texts['caption']([0])}

  @property
  def context(self) -> dict[str, Any]:
    steps = lambda ids: max(pairs.steps_per_epoch(len(ids), self.config.batch_size), 1)
    return {'example': self.example, 'batch_size': self.config.batch_size,
            'prompt_slots': self.config.text.prompt_slots,
            'retain_steps': steps(self.splits.indices['retain']),
            'forget_steps': steps(self.splits.indices['forget']),
            'train_steps': steps(self.train_ids)}

  def streams(self, seed: int) -> dict[str, types.Stream]:
    def one(ids, **texts):
      return pairs.stream(self.source, ids, batch_size=self.config.batch_size, seed=seed,
                          augment=tuple(self.config.data.augment),
                          texts={name: self.texts[text] for name, text in texts.items()})

    train, retain = self.train_ids, self.splits.indices['retain']
    return {'train': one(train, text='caption', negative='negative'),
            'retain': one(retain, text='caption'),
            'clean': one(train, text='true'),
            'written': one(train, text='caption', negative='written')}

  # Measurements.

  @functools.cached_property
  def encoders(self) -> dict[str, Callable]:
    """One stable `apply` per tower: a compiled forward pass belongs to a function object."""
    return {name: functools.partial(self.model.apply, method=f'encode_{name}')
            for name in ('image', 'text')}

  def encode(self, variables, tower: str, values, *names: str) -> tuple[np.ndarray, ...]:
    found = evals_run.predict(self.encoders[tower], variables, {tower: values}, names=names)
    return tuple(found[name] for name in names)

  def pictures(self, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Of a split: the place of each picture's first record, and the picture of every record."""
    picture = self.source.fields['picture'][self.splits.indices[split]]
    return np.unique(picture, return_index=True, return_inverse=True)[1:]

  def recall(self, split: str, image, text) -> dict[str, float]:
    """Retrieval within a split, from embeddings of its pictures [P, d] and true captions [N, d]."""
    found = retrieval.recall(image, text, self.pictures(split)[1])
    return {f'{name}/{split}': value for name, value in found.items()}

  def classes(self, variables) -> np.ndarray:
    """Vectors of the named classes."""
    return zero_shot.class_embeddings(
        lambda tokens: self.encode(variables, 'text', tokens, 'text_embedding')[0],
        self.source.class_names, zero_shot.templates()[self.config.text.templates], self.tokenize)

  def classify(self, variables, train, test) -> dict[str, float]:
    """Zero-shot classification and linear probe of pictures with a class.

    Args:
      variables: of the model; validation pictures are encoded here.
      train: features [N, D] of `train_ids`.
      test: features and embeddings of the test records.
    """
    label = self.source.fields['label']
    has_class = {split: np.flatnonzero(label[ids] >= 0) for split, ids in (
        ('train', self.train_ids), *self.splits.indices.items())}
    validation = self.splits.indices['validation'][has_class['validation']]
    features, = self.encode(variables, 'image', sources.take(
        self.source.fields['image'], validation), 'features')
    test_label = label[self.splits.indices['test'][has_class['test']]]
    probed = linear_probe.evaluate(
        (train[has_class['train']], label[self.train_ids[has_class['train']]]),
        (features, label[validation]), (test['features'][has_class['test']], test_label),
        num_classes=self.source.num_classes)
    shown = ('linear_probe/top1', 'linear_probe/validation', 'linear_probe/C',
             'linear_probe/converged')
    image = test['image_embedding'][has_class['test']]
    return {**zero_shot.evaluate(image, self.classes(variables), test_label),
            **{name: probed[name] for name in shown}}

  def selection(self, image, text, logit_scale: float) -> dict[str, float]:
    """Planted noise among the pairs that Eq. 2 of NCU selects in an epoch of training batches.

    Args:
      image: embeddings [N, d] of the pictures of `train_ids`.
      text: of their captions.
      logit_scale: its logarithm.
    """
    config, ids = self.config, self.train_ids
    order = streams_lib.schedule(self.source, ids, pairs.ROLE, batch_size=config.batch_size,
                                 seed=config.split.seed, full=True)
    chosen, seen = [], []
    for step in range(self.context['train_steps']):
      batch = np.searchsorted(ids, order(step)[0])
      forget = ncu.forget_pairs(image[batch], text[batch], logit_scale,
                                forget_fraction=config.split.noise)
      chosen.append(batch[np.asarray(forget)])
      seen.append(batch)
    seen = np.sort(np.concatenate(seen))
    found = similarity.selection(np.searchsorted(seen, np.concatenate(chosen)),
                                 self.source.fields['noisy'][ids][seen])
    return {'selection/precision': found.precision, 'selection/recall': found.recall,
            'selection/chance': found.chance}

  @functools.cached_property
  def matching(self) -> Callable:
    """`similarity.matching` with captions of validation pairs as the others."""
    ids = self.splits.indices['validation']
    rng = np.random.default_rng(self.config.split.seed)
    rows = rng.permutation(len(ids))[:self.config.text.candidates]
    return similarity.matching(self.model.apply, self.texts['true'](ids[np.sort(rows)]),
                               (*EMBEDDINGS, 'features'))

  @functools.cached_property
  def matched(self) -> dict[str, dict[str, Any]]:
    """Split -> the records of `matching`: forgotten and unseen pairs are mismatched ones."""
    unseen = _Tokens(self.unseen_captions, self.tokenize, self.context_length)
    texts = {'retain': self.texts['caption'], 'forget': self.texts['caption'],
             'test': self.texts['true'], 'unseen': unseen}
    return {split: {'image': sources.take(self.source.fields['image'], ids), 'text': text(ids),
                    'label': np.zeros(len(ids), np.int32), 'id': ids}
            for split, text in texts.items() for ids in [self.splits.indices[split]] if len(ids)}

  def audited(self):
    return self.matching, {name: {**fields, 'image': np.asarray(fields['image'])}
                           for name, fields in self.matched.items()}

  def measure(self, variables):
    metrics, losses, found = {}, {}, {}
    for split, fields in self.matched.items():
      found[split] = evals_run.predict(self.matching, variables, fields,
                                       names=('logits', 'features', *EMBEDDINGS))
      logits = found[split].pop('logits')
      own = logits[:, :1]
      metrics[f'match/{split}'] = float(np.mean(np.all(logits[:, 1:] < own, axis=1)))
      losses[split] = np.asarray(jax.nn.logsumexp(logits, axis=1) - own[:, 0])
    metrics |= {'mia_auc/unseen': privacy.auc(losses['forget'], losses['unseen']),
                'loss_gap': float(losses['forget'].mean() - losses['unseen'].mean())}
    order = np.argsort(np.concatenate([self.splits.indices[x] for x in ('retain', 'forget')]))
    train, test = jax.tree.map(lambda *parts: np.concatenate(parts)[order],
                               found['retain'], found['forget']), found['test']
    image, text = (test[name] for name in EMBEDDINGS)
    first, _ = self.pictures('test')
    similarities = similarity.distributions(image[first], text[first])
    metrics |= {**self.recall('test', image[first], text), **similarity.summary(similarities),
                **self.selection(*(train[name] for name in EMBEDDINGS),
                                 float(np.asarray(variables['params']['logit_scale'])))}
    if self.source.class_names:
      metrics |= self.classify(variables, train['features'], test)
    return metrics, {**{name: losses[name] for name in ('forget', 'unseen')},
                     **similarities._asdict()}

  def for_tuning(self) -> 'ImageText':
    """The task itself: methods are not told what to forget, and trials see validation pairs only."""
    return self

  def measure_trial(self, variables):
    ids = self.splits.indices['validation']
    images = sources.take(self.source.fields['image'], ids[self.pictures('validation')[0]])
    image, = self.encode(variables, 'image', images, 'image_embedding')
    text, = self.encode(variables, 'text', self.texts['true'](ids), 'text_embedding')
    return self.recall('validation', image, text)


def load(config, workdir: str) -> ImageText:
  """Reads the pairs, plants noise, builds the model."""
  data = config.data
  source = sources.get(data.name, data_dir=config.data_dir, image_size=data.image_size or None)
  split = config_lib.SPLITS['image_text'][config.split.kind]
  source, splits = split(source, **config_lib.split_arguments(config))
  held_out = ('validation', 'test', 'unseen') if len(splits.indices['forget']) else ('validation',)
  for name in held_out:
    if len(splits.indices[name]) < 2:
      raise ValueError(f'config.split.sizes leaves {len(splits.indices[name])} pairs for {name}; '
                       'pairs are judged against one another, so at least two are needed')
  model = base.network(config)
  if config.text.templates not in zero_shot.templates():
    raise ValueError(f'config.text.templates {config.text.templates!r} is not one of '
                     f'{", ".join(zero_shot.templates())}')
  task = ImageText(config, source, splits, model, sharding.make_mesh(config.devices or None),
                   workdir)
  clip_tokenizer.check_slots(task.texts['negative'](splits.indices['retain'][:8], 0, 0),
                             config.text.prompt_slots)
  if len(splits.indices['forget']) and not int(config.split.noise * config.batch_size):
    raise ValueError(f'config.split.noise {config.split.noise:g} of a batch of {config.batch_size} '
                     'pairs selects none; choose a larger config.batch_size')
  for row in ('retrain', *config.rows):
    task.for_row(row).streams(0)  # refuses batches that are larger than the data
  return task
