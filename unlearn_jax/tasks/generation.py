"""Generators that complete pictures: they forget classes, judged by what they paint into holes."""

from collections.abc import Callable
import functools
import hashlib
from typing import Any

import jax
import numpy as np

from unlearn_jax import config as config_lib
from unlearn_jax import methods
from unlearn_jax import models
from unlearn_jax import types
from unlearn_jax.data import generation
from unlearn_jax.data import holes
from unlearn_jax.data import pixels
from unlearn_jax.data import sources
from unlearn_jax.data import streams as streams_lib
from unlearn_jax.evals import completion
from unlearn_jax.evals import extractors
from unlearn_jax.evals import generative
from unlearn_jax.evals import privacy
from unlearn_jax.evals import run as evals_run
from unlearn_jax.models import contract
from unlearn_jax.tasks import base
from unlearn_jax.tasks import extracting
from unlearn_jax.train import sharding

CANDIDATES = 64  # other pictures that a record's own competes with in audits
COVARIANCE_SIDE = 16  # pixels
GRID_ROWS, TSNE_PICTURES = 5, 50  # pictures per side in figures; the paper's Figure 4 has 50
MANY = 1000  # pictures, of which the usual ten splits of the inception score make sense
DISTANCES = ('forget', 'retain', 'test', 'unseen')


def cosine(measured: base.Measured, side: str) -> float:
  """The cosine with the truth by the last extractor (CLIP, where there is one)."""
  return [value for name, value in measured.items()
          if name.startswith(('emb_cos[', 'CLIP/')) and name.endswith(f'/{side}')][-1]


def goal(measured: base.Measured, retrained: base.Measured | None) -> float:
  """The paper's one-sided goal: near to the truth on retained classes, far from it on forgotten."""
  del retrained
  return cosine(measured, 'retain') - cosine(measured, 'forget')


def completion_gap(measured: base.Measured, retrained: base.Measured) -> float:
  """Mean of |unlearned - retrained| in the cosine with the truth on both sides (ours)."""
  return float(np.mean([abs(cosine(measured, side) - cosine(retrained, side))
                        for side in completion.SIDES]))


class Generation(base.Task):
  """Pictures with a class; any model that completes pictures, see `models.contract`.

  Original and retrained model are trained on the pictures of all other classes too (`part` is
  `other`), from which proxies of the retain set come.
  """

  OBJECTIVES = {'goal': base.Objective(goal, max, False),
                'completion_gap': base.Objective(completion_gap, min, True)}

  @property
  def grid(self) -> tuple[int, int]:
    chosen = self.config.generation
    return holes.check(chosen.mask, self.source.fields['image'].shape[1:3], chosen.patch)

  @property
  def example(self) -> types.Inputs:
    first = np.zeros(1, np.int64)
    return {'image': np.asarray(self.source.fields['image'][first]),
            'visible': holes.draw(self.config.generation.mask, self.grid, seed=0, ids=first, step=0)}

  @functools.cached_property
  def trained(self) -> dict[str, np.ndarray]:
    """Role -> records that the original (`train`) or the retrained model (`retain`) learn."""
    return generation.trained(self.source, self.splits)

  @property
  def context(self) -> dict[str, Any]:
    steps = functools.partial(streams_lib.steps_per_epoch, batch_size=self.config.batch_size)
    return {'example': self.example, 'pixels': self.pixels,
            'forget_steps': steps(len(self.splits.indices['forget'])),
            **{f'{role}_steps': steps(len(ids)) for role, ids in self.trained.items()}}

  @property
  def pixels(self) -> pixels.Pixels:
    """Normalised space, and the pictures to forget, in [0, 1] units."""
    name, forgotten = self.config.data.normalize, self.splits.indices['forget']
    space = dict(zip(('mean', 'std'), contract.STATISTICS[name])) if name else {}
    return pixels.of(self.source, forgotten, **space)

  @property
  def recipe(self) -> dict[str, Any]:
    chosen = self.config.generation
    tokenizer = {'tokenizer': chosen.tokenizer.to_dict()} if chosen.tokenizer else {}
    return {'mask': chosen.mask, 'patch': chosen.patch, **tokenizer,
            'retained': hashlib.sha256(self.trained['retain'].tobytes()).hexdigest()}

  def streams(self, seed: int) -> dict[str, types.Stream]:
    config = self.config
    return generation.streams(self.source, self.splits, batch_size=config.batch_size, seed=seed,
                              mask=config.generation.mask, grid=self.grid,
                              augment=tuple(config.data.augment))

  @functools.cached_property
  def extractors(self) -> list[extractors.Extractor]:
    return [extracting.load(name, self.config, self.source, self.mesh)
            for name in self.config.generation.extractors]

  def shown(self, split: str) -> np.ndarray:
    """Ids of the split's records that are completed when a model is judged."""
    ids, most = self.splits.indices[split], self.config.generation.pictures
    if not most or len(ids) <= most:
      return ids
    return np.sort(np.random.default_rng(self.config.split.seed).permutation(ids)[:most])

  def fields(self, ids: np.ndarray, spec: str) -> dict[str, np.ndarray]:
    """Inputs of a generator; equal for every model, whatever the hole."""
    return {'image': np.asarray(self.source.fields['image'][ids]),
            'visible': holes.draw(spec, self.grid, seed=0, ids=ids, step=0)}

  def complete(self, variables, fields) -> np.ndarray:
    """Completed pictures in [0, 1]."""
    done = evals_run.predict(self.model.apply, variables, fields, names=('image',),
                             batch_size=self.config.generation.eval_batch_size)
    return np.clip(done['image'], 0.0, 1.0)

  @functools.cached_property
  def true_features(self) -> dict[str, list[np.ndarray]]:
    """Side -> features of its true pictures, by each extractor: the same for every row and hole."""
    return {side: [extractor.features(self.source.fields['image'][self.shown(split)])
                   for extractor in self.extractors] for side, split in completion.SIDES.items()}

  def judge(self, side: str, done: np.ndarray, suffix: str = '') -> dict[str, float]:
    """FID, inception score and cosine of completed pictures with the true ones, per extractor."""
    found = {}
    for extractor, real in zip(self.extractors, self.true_features[side]):
      made = extractor.features(done)
      values = {'fid': generative.fid(made, real),
                'emb_cos': generative.embedding_cosine(made, real)}
      if extractor.probabilities is not None:
        values['is'], _ = generative.inception_score(
            extractor.probabilities(done), 10 if len(done) >= MANY else 1)
      found |= {f'{extractors.title(name, extractor)}/{side}{suffix}': value
                for name, value in values.items()}
    return found

  def share_removed(self, spec: str) -> float:
    """Of the patches."""
    seen = holes.draw(spec, self.grid, seed=0, ids=np.zeros(1, np.int64), step=0)
    return float(1 - seen.shape[1] / np.prod(self.grid))

  def measure(self, variables):
    first, *others = (*self.config.generation.holes, *self.config.generation.sweep)
    metrics, arrays = {'removed': self.share_removed(first)}, {}
    fields = {split: self.fields(self.shown(split), first) for split in DISTANCES}
    done = {split: self.complete(variables, fields[split]) for split in DISTANCES}
    for split in DISTANCES:
      losses = completion.distance(done[split], fields[split]['image'],
                                   self.gone(fields[split]['visible']))
      metrics[f'distance/{split}'] = float(losses.mean())
      if split in ('forget', 'unseen'):
        arrays[split] = losses
    for side, split in completion.SIDES.items():
      metrics |= self.judge(side, done[split])
      arrays[f'completed_{side}'] = np.round(255 * done[split]).astype(np.uint8)
      for spec in others:
        metrics[f'removed@{spec}'] = self.share_removed(spec)
        metrics |= self.judge(side, self.complete(
            variables, self.fields(self.shown(split), spec)), f'@{spec}')
    metrics['mia_auc/unseen'] = privacy.auc(arrays['forget'], arrays['unseen'])
    metrics['loss_gap'] = metrics['distance/forget'] - metrics['distance/unseen']
    return metrics, arrays | self.drawn(arrays)

  def drawn(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What figures show beside the completed pictures themselves."""
    found = {'covariance': self.covariance}
    features = self.extractors[-1].features
    for side, split in completion.SIDES.items():
      ids = self.shown(split)
      some, few = (np.unique(np.linspace(0, len(ids) - 1, count).astype(int))  # of all classes
                   for count in (TSNE_PICTURES, GRID_ROWS))
      done = arrays[f'completed_{side}']
      found |= {f'true_features_{side}': self.true_features[side][-1][some],
                f'features_{side}': features(done[some] / np.float32(255))}
      fields = self.fields(ids[few], self.config.generation.holes[0])
      truth, gone = fields['image'], self.gone(fields['visible'])
      found |= {f'painted_{side}': done[few], f'truth_{side}': np.round(255 * truth).astype(np.uint8),
                f'input_{side}': np.round(255 * completion.masked(truth, gone)).astype(np.uint8)}
    return found

  @functools.cached_property
  def covariance(self) -> np.ndarray:
    """Of the pictures to forget, grey and at 16 pixels or less: float32 [D, D], Figure C.5."""
    images = self.pixels.images()
    factor = max(1, images.shape[1] // COVARIANCE_SIDE)
    count, height, width, channels = images.shape
    pooled = images[:, :height // factor * factor, :width // factor * factor].reshape(
        count, height // factor, factor, width // factor, factor, channels).mean(axis=(2, 4))
    return pixels.covariance(pooled, grey=channels == 3).astype(np.float32)

  def gone(self, visible: np.ndarray) -> np.ndarray:
    """Where pixels were taken away: bool [N, H, W]."""
    shape = self.source.fields['image'].shape
    return np.asarray(completion.removed(visible, shape, self.config.generation.patch)[..., 0]) > 0

  def compare(self, rows, arrays) -> None:
    """The paper's goal and the gaps to the retrained model, and the cross-check of Appendix E.2."""
    for row, per_seed in rows.items():
      for index, found in enumerate(per_seed):
        metrics, seed = found['metrics'], self.config.seeds[index]
        retrained, original = (rows[name][index]['metrics'] for name in ('retrain', 'original'))
        metrics['goal'] = goal(metrics, None) - goal(original, None)
        for side in completion.SIDES:
          metrics[f'gap/{side}'] = abs(cosine(metrics, side) - cosine(retrained, side))
          fid = f'{extractors.title("fid", self.extractors[0])}/{side}'
          metrics[f'fid_ratio/{side}'] = metrics[fid] / original[fid]
        metrics['gap/mean'] = completion_gap(metrics, retrained)
        metrics['trained'] = found['trained']
        metrics['gigabytes'] = found['memory'] / 2**30
        if self.config.generation.cross_check:
          metrics |= self.cross_check(seed, arrays[row, seed])

  def cross_check(self, seed: int, first: dict[str, np.ndarray]) -> dict[str, float]:
    """SECOND reconstructions: the original model paints around what a model put into the hole."""
    original, _, _ = base.anchor(self, 'original', config_lib.anchor_seeds(self.config)[seed])
    hole = holes.hole(self.config.generation.holes[0], self.grid)
    found = {}
    for side, split in completion.SIDES.items():
      ids = self.shown(split)
      painted = first[f'completed_{side}'] / np.float32(255)
      visible = np.tile(holes.visible(~hole), (len(ids), 1))
      done = self.complete(original, {'image': painted, 'visible': visible})
      found |= self.judge(side, done)
    return {f'cross_{name}': value for name, value in found.items()}

  def for_tuning(self) -> 'Generation':
    """Half of the retain classes play the forget classes; see `data.generation.tuning`."""
    return self.with_splits(generation.tuning(
        self.splits, self.source, seed=self.config.split.seed, share=self.config.tune.share))

  def measure_trial(self, variables):
    """FID and cosine on held-out validation pictures of both sides, in the first hole."""
    found = {}
    for side, split in completion.SIDES.items():
      fields = self.fields(self.shown(split), self.config.generation.holes[0])
      found |= self.judge(side, self.complete(variables, fields))
    return found

  @functools.cached_property
  def matching(self) -> Callable:
    """`completion.matching` with validation pictures as the others."""
    ids = self.splits.indices['validation'][:CANDIDATES]
    return completion.matching(self.model.apply, np.asarray(self.source.fields['image'][ids]),
                               self.config.generation.patch)

  def audited(self):
    spec = self.config.generation.holes[0]
    return self.matching, {
        name: {**self.fields(self.shown(name), spec), 'id': self.shown(name),
               'label': np.zeros(len(self.shown(name)), np.int64)}
        for name in ('forget', 'retain', 'validation', 'test', 'unseen')}


def tokenized(model: types.Model, config, source: sources.Source, ids: np.ndarray, mesh
              ) -> types.Model:
  """The model over a tokenizer that is trained on pictures `ids` when it is first initialised; cached.

  All rows share it and nobody trains it further. It learns from the pictures that nobody forgets, so
  that the retrained model has not seen the others through it either (ours; the paper's tokenizer has
  seen all of ImageNet).
  """

  @functools.cache
  def tokenizer():
    settings = config.generation.tokenizer.to_dict()
    batch_size = settings.pop('batch_size')
    inner = models.get('vqgan', channels=source.fields['image'].shape[-1],
                       **config.model_args.vqgan.to_dict())
    example = {'image': np.asarray(source.fields['image'][ids[:1]])}
    method = methods.get('reconstruct')(
        inner, example=example, role='train', weight_decay=0.0,  # decay pulls the codes to 0
        train_steps=streams_lib.steps_per_epoch(len(ids), batch_size), **settings)
    facts = {'source': source.content_hash(), 'ids': hashlib.sha256(ids.tobytes()).hexdigest(),
             'recipe': config.generation.tokenizer.to_dict(),
             'vqgan': config.model_args.vqgan.to_dict()}
    stream = streams_lib.single(source, ids, 'train', batch_size=batch_size, seed=0,
                                augment=tuple(config.data.augment))
    return base.beside('tokenizer', method, inner.init(jax.random.key(0), example), stream, facts,
                       config, mesh)['params']

  def init(key, inputs):
    variables = model.init(key, inputs)
    return {**variables, 'params': {**variables['params'], 'tokenizer': tokenizer()}}

  return types.Model(init, model.apply)


def load(config, workdir: str) -> Generation:
  """Reads the pictures, draws the classes and builds the generator; nothing is trained."""
  data, chosen = config.data, config.generation
  if not chosen.holes:
    raise ValueError("config.generation.holes is empty; name a hole at least, such as 'centre:4'")
  if data.normalize and data.normalize not in contract.STATISTICS:
    raise ValueError(f'config.data.normalize is one of {", ".join(contract.STATISTICS)}, got '
                     f'{data.normalize!r}')
  extracting.check(chosen.extractors)
  source = sources.get(data.name, data_dir=config.data_dir, seed=data.seed,
                       image_size=data.image_size or None)
  source, splits = config_lib.SPLITS['generation'][config.split.kind](
      source, **config_lib.split_arguments(config))
  known, shape = models.arguments(config.model), source.fields['image'].shape
  if 'patch' in known:
    patch = config.model_args.get('patch', known['patch'].default)
    if patch != chosen.patch:
      raise ValueError(f'config.generation.patch is {chosen.patch} and the model\'s {patch}; holes '
                       'lie on the grid of the model\'s patches')
  sizes = {name: size for name, size in (('image_size', shape[1]), ('channels', shape[3]))
           if name in known and name not in config.model_args}
  for spec in (chosen.mask, *chosen.holes, *chosen.sweep):
    holes.check(spec, shape[1:3], chosen.patch)
  if chosen.cross_check and not chosen.holes[0].startswith('centre'):
    raise ValueError('config.generation.cross_check keeps what was painted into the middle, so the '
                     f'first of config.generation.holes must be a centre, got {chosen.holes[0]!r}')
  mesh, model = sharding.make_mesh(config.devices or None), base.network(config, **sizes)
  if chosen.tokenizer:
    if 'vqgan' not in config.model_args:
      raise ValueError('config.generation.tokenizer says how a tokenizer is trained; '
                       'config.model_args.vqgan must say which')
    model = tokenized(model, config, source, generation.trained(source, splits)['retain'], mesh)
  task = Generation(config, source, splits, model, mesh, workdir)
  streams = task.streams(config.seeds[0])
  for row in config.rows:
    if (name := config.methods[row].get('stream')) in streams:
      streams[name](0)  # refuses what cannot be streamed, before anything is trained
  return task
