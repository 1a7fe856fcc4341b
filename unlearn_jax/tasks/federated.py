"""A federation of clients trains adapters of a CLIP; what one of them knew is to be forgotten."""

from collections.abc import Callable
import functools
import hashlib
import math
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import config as config_lib
from unlearn_jax import methods
from unlearn_jax import types
from unlearn_jax.data import clients
from unlearn_jax.data import federation
from unlearn_jax.data import pairs
from unlearn_jax.data import sources
from unlearn_jax.evals import federated as metrics_lib
from unlearn_jax.evals import privacy
from unlearn_jax.evals import run as evals_run
from unlearn_jax.evals import similarity
from unlearn_jax.losses import subspace
from unlearn_jax.methods import fed_subspaces
from unlearn_jax.models import clip
from unlearn_jax.models import convert
from unlearn_jax.models import lora
from unlearn_jax.models import surgery
from unlearn_jax.tasks import base
from unlearn_jax.train import sharding

MODEL = ('params', 'adapter', 'adapter_fixed')  # what a forward pass reads
LOCAL = ('optimizer', 'learning_rate', 'weight_decay')
CANDIDATES = 64  # other texts that a pair's own competes with in audits
RELEARNED = 0.9  # of the original model's R@1


def recall_gap(measured: base.Measured, retrained: base.Measured) -> float:
  """Mean of |unlearned - retrained| over R@1 of both sides: Avg-Gap."""
  return float(np.mean([abs(measured[name] - retrained[name]) for name in ('R@1/forget', 'R@1/kept')]))


def read(variables: types.Variables) -> types.Variables:
  """What a forward pass reads of the variables: not the history, which may be large."""
  return {name: variables[name] for name in MODEL if name in variables}


class Federated(base.Task):
  """Clients with private pairs and one shared pair of adapters.

  `retain` and `forget` are training pairs of all clients; whose they are says `client`.
  """

  OBJECTIVES = {'recall_gap': base.Objective(recall_gap, min, True)}

  @functools.cached_property
  def client(self) -> np.ndarray:
    return np.asarray(self.source.fields['client'])

  @functools.cached_property
  def picture(self) -> np.ndarray:
    return np.asarray(self.source.fields.get('picture', np.arange(len(self.source))))

  @functools.cached_property
  def texts(self) -> np.ndarray:
    """What the text branch reads: token rows int32 [N, L] of captions, or features [N, D]."""
    return texts(self.source, self.config)

  def inputs(self, ids: np.ndarray) -> dict[str, Any]:
    return {'image': sources.take(self.source.fields['image'], ids), 'text': self.texts[ids]}

  @functools.cached_property
  def roster(self) -> clients.Roster:
    """How much every client has, and how much of it is to be forgotten."""
    count = int(self.client.max()) + 1
    held = {name: np.bincount(self.client[self.splits.indices[name]], minlength=count)
            for name in ('retain', 'forget')}
    return clients.Roster(
        sizes=held['retain'] + held['forget'], forget=held['forget'],
        leaving=(held['forget'] > 0) & (held['retain'] == 0), scenario=self.config.split.scenario)

  @property
  def example(self) -> types.Inputs:
    found = self.inputs(np.arange(1))
    return {name: np.asarray(values) for name, values in found.items()}

  @property
  def context(self) -> dict[str, Any]:
    # A pass over the data is a round here.
    return {'example': self.example, 'roster': self.roster, 'retain_steps': 1, 'forget_steps': 1,
            'train_steps': 1}

  def streams(self, seed: int) -> dict[str, types.Stream]:
    return self.rounds(self.splits.indices['retain'], self.splits.indices['forget'], seed)

  def rounds(self, retain: np.ndarray, forget: np.ndarray, seed: int) -> dict[str, types.Stream]:
    chosen = self.config.federation
    ids = np.sort(np.concatenate([retain, forget]))
    return clients.streams(
        self.source, federation.parts(self.source, ids), forget, seed=seed,
        batch_size=self.config.batch_size, text=lambda rows, seed, epoch: self.texts[rows],
        local_epochs=chosen.local_epochs, participation=chosen.participation,
        augment=tuple(self.config.data.augment))

  @property
  def recipe(self) -> dict[str, Any]:
    chosen = config_lib.to_json(self.config)['federation']
    return {'federation': {name: value for name, value in chosen.items()
                           if name not in ('post_rounds', 'relearn_rounds')}}

  # Measurements.

  def embed(self, variables, split_or_ids) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Record ids of a split, and `image` and `text` embeddings [N, d] of them."""
    ids = (self.splits.indices[split_or_ids] if isinstance(split_or_ids, str) else split_or_ids)
    found = evals_run.predict(self.model.apply, read(variables), self.inputs(ids),
                              names=similarity.EMBEDDINGS)
    return ids, {'image': found['image_embedding'], 'text': found['text_embedding']}

  def kept(self, ids: np.ndarray, found) -> float:
    """Mean over the clients that stay of R@1 on their own ones of embedded pairs."""
    stay = ~np.asarray(self.roster.leaving)[self.client[ids]]
    return metrics_lib.macro(found['image'][stay], found['text'][stay], self.picture[ids][stay],
                             self.client[ids][stay])

  def measure(self, variables):
    for branch, held in variables.get('lock', {}).items():
      if 'basis' in held and not fed_subspaces.exclusive_rank(held['basis']):
        logging.warning('%s branch: nothing was locked: there was no decomposition, or the forgotten '
                        'updates have no direction of their own and lie in the span of the retained '
                        'ones', branch)
    forget, embedded = self.embed(variables, 'forget')
    picture = self.picture[forget]
    metrics = {f'{name}/forget': value for name, value in metrics_lib.both_ways(
        embedded['image'], embedded['text'], picture).items()}
    test, found = self.embed(variables, 'test')
    metrics['R@1/kept'] = self.kept(test, found)
    metrics |= {f'{name}/test': value for name, value in metrics_lib.both_ways(
        found['image'], found['text'], self.picture[test]).items()}
    _, unseen = self.embed(variables, 'unseen')
    losses = {name: 1.0 - np.sum(found['image'] * found['text'], axis=1)
              for name, found in (('forget', embedded), ('unseen', unseen))}
    metrics |= {'mia_auc/unseen': privacy.auc(losses['forget'], losses['unseen']),
                'loss_gap': float(losses['forget'].mean() - losses['unseen'].mean())}
    arrays = {**losses, 'forget_image': embedded['image'], 'forget_text': embedded['text']}
    chosen = self.config.federation
    if chosen.post_rounds:
      curve, drift = self.continued(variables, chosen.post_rounds)
      metrics |= {'R@1/forget_later': float(curve[-1]), 'regrowth': float(curve[-1] - curve[0])}
      metrics |= {f'drift/{branch}': float(values[-1]) for branch, values in drift.items()}
      arrays |= {'regrowth': curve, **{f'drift_{branch}': v for branch, v in drift.items()}}
    if 'federation' in variables:
      arrays |= {f'entanglement_{branch}': np.asarray(subspace.entanglement(*jax.vmap(
          subspace.basis)(jnp.swapaxes(updates, 1, 2))[::2]))
                 for branch, updates in variables['federation']['updates'].items()}
    if chosen.relearn_rounds:
      arrays['relearn'] = self.relearned(variables, chosen.relearn_rounds)
    return metrics, arrays

  @functools.cached_property
  def later_round(self) -> tuple[types.Method, types.StepFn]:
    """One ordinary round after unlearning; the lock of a locked model holds."""
    local = {name: self.config.train[name] for name in LOCAL if self.config.train[name] is not None}
    method = methods.get('fed_finetune')(self.model, **self.context, rounds=1, **local)
    return method, jax.jit(method.phases[0].step)

  def later(self, variables, stream: types.Stream, rounds: int):
    """The variables after 0, 1, ..., `rounds` further rounds."""
    method, step = self.later_round
    state, frozen = method.init(jax.random.key(self.config.split.seed), variables)
    yield variables
    for number in range(rounds):
      state, _ = step(state, frozen, jax.tree.map(np.asarray, stream(number)))
      yield {**variables, 'adapter': method.export(state)['adapter']}

  def forget_recall(self, variables) -> float:
    ids, found = self.embed(variables, 'forget')
    return metrics_lib.recall_at_1(found['image'], found['text'], self.picture[ids])

  def continued(self, variables, rounds: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """R@1 on the forget pairs, and drift along forget-exclusive directions, over further rounds.

    Drift is |U_u^T (theta - theta_0)| per branch with theta_0 where the rounds start, along the
    directions that the default decomposition finds in the history of the row's own training; a row
    whose history does not have the forgotten client (the retrained model) has none.
    """
    stream = self.streams(self.config.split.seed + 1)['retain']
    recalls, drift = [], {}
    exclusive = self.exclusive(variables)
    for found in self.later(variables, stream, rounds):
      recalls.append(self.forget_recall(found))
      for branch, basis in exclusive.items():
        moved = found['adapter'][branch] - variables['adapter'][branch]
        drift.setdefault(branch, []).append(float(jnp.linalg.norm(basis.T @ moved)))
    return np.asarray(recalls), {branch: np.asarray(values) for branch, values in drift.items()}

  def exclusive(self, variables) -> dict[str, types.Array]:
    """Branch -> basis [P, q] of forget-exclusive directions, from the history in `variables`."""
    if self.roster.scenario != 'client' or 'federation' not in variables:
      return {}
    history = variables['federation']
    leaving = np.asarray(self.roster.leaving)
    if not np.asarray(history['taken'])[leaving].any():
      return {}
    settings = {name: parameter.default for name, parameter in methods.arguments('ease').items()}
    return {branch: fed_subspaces.decompose(
        updates[leaving], updates[~leaving],
        **{name: settings[name] for name in ('energy', 'max_rank', 'threshold')})[0]
            for branch, updates in history['updates'].items()}

  def relearned(self, variables, rounds: int) -> np.ndarray:
    """R@1 on the forget pairs while their owners train again on a tenth of them: [rounds + 1]."""
    forget = self.splits.indices['forget']
    people = np.unique(self.source.identity[forget])
    few = people[:max(len(people) // 10, 2)]
    again = forget[np.isin(self.source.identity[forget], few)]
    stream = self.rounds(again, np.zeros(0, np.int64), self.config.split.seed + 2)['retain']
    open_model = {name: tree for name, tree in variables.items() if name != 'lock'}
    return np.asarray([self.forget_recall(found)
                       for found in self.later(open_model, stream, rounds)])

  def compare(self, rows, arrays) -> None:
    """Gaps to the retrained model, channel swaps with the original, relearning, traffic."""
    picture = self.picture[self.splits.indices['forget']]
    staying = int(np.sum(~np.asarray(self.roster.leaving)))
    for row, per_seed in rows.items():
      for index, found in enumerate(per_seed):
        metrics, seed = found['metrics'], found['seed']
        retrained = rows['retrain'][index]['metrics']
        original = {branch: arrays['original', seed][f'forget_{branch}']
                    for branch in metrics_lib.BRANCHES}
        mine = {branch: arrays[row, seed][f'forget_{branch}'] for branch in metrics_lib.BRANCHES}
        metrics |= metrics_lib.swaps(mine, original, picture)
        gaps = {'gap/forget': abs(metrics['R@1/forget'] - retrained['R@1/forget']),
                'gap/kept': abs(metrics['R@1/kept'] - retrained['R@1/kept']),
                'gap/mia': abs(metrics['mia_auc/unseen'] - retrained['mia_auc/unseen'])}
        metrics |= gaps | {'gap/mean': (gaps['gap/forget'] + gaps['gap/kept']) / 2}
        if 'R@1/forget_later' in metrics:
          metrics['gap/forget_later'] = abs(metrics['R@1/forget_later'] - retrained['R@1/forget'])
        if 'relearn' in arrays[row, seed]:
          level = RELEARNED * rows['original'][index]['metrics']['R@1/forget']
          metrics['relearn_rounds'] = metrics_lib.steps_to(arrays[row, seed]['relearn'], level)
        metrics['rounds'] = float(found['steps'])
        metrics['megabytes'] = metrics_lib.traffic(found['steps'], staying, self.sizes)

  @functools.cached_property
  def sizes(self) -> dict[str, int]:
    shapes = jax.eval_shape(lambda: self.model.init(jax.random.key(0), self.example))
    return lora.sizes(shapes)

  def measure_trial(self, variables):
    return {'R@1/forget': self.forget_recall(variables),
            'R@1/kept': self.kept(*self.embed(variables, 'validation'))}

  def for_tuning(self) -> 'Federated':
    split = self.config.split
    return self.with_splits(federation.tuning(
        self.splits, self.source, scenario=split.scenario, target=split.target, share=split.share,
        seed=split.seed))

  @functools.cached_property
  def matching(self) -> Callable:
    """`similarity.matching` with texts of validation pairs as the others."""
    def apply(variables, inputs, **how):
      outputs, _ = self.model.apply(read(variables), inputs, **how)
      return outputs, variables

    return similarity.matching(apply, self.texts[self.splits.indices['validation'][:CANDIDATES]])

  def audited(self):
    return self.matching, {
        name: {**{key: np.asarray(value) for key, value in self.inputs(ids).items()},
               'label': np.zeros(len(ids), np.int32), 'id': ids}
        for name in ('retain', 'forget', 'test', 'unseen') for ids in [self.splits.indices[name]]}


def texts(source: sources.Source, config) -> np.ndarray:
  """What the text branch reads of every record."""
  if 'caption' not in source.fields:
    return np.asarray(source.fields['text'])
  return clip.tokenize(np.asarray(source.fields['caption']).tolist(),
                       base.context_length(config)).astype(np.int32)


def pretrained(source: sources.Source, config, model: types.Model, mesh) -> Callable[[], types.PyTree]:
  """`() -> params` of a backbone that has seen public records alone; trained once and cached."""

  @functools.cache
  def params():
    ids = np.flatnonzero(np.asarray(source.fields['part']) == 'public')
    recipe = config.federation.backbone.to_dict()
    captions = texts(source, config)
    facts = {'source': source.content_hash(), 'ids': hashlib.sha256(ids.tobytes()).hexdigest(),
             'recipe': recipe,
             **{key: config_lib.to_json(config)[key] for key in ('model', 'model_args')}}
    example = {'image': np.asarray(source.fields['image'][:1]), 'text': captions[:1]}
    settings = dict(recipe)
    batch_size = settings.pop('batch_size')
    method = methods.get('contrastive')(
        model, example=example, role='train', batch_size=batch_size,
        train_steps=max(pairs.steps_per_epoch(len(ids), batch_size), 1), **settings)
    stream = pairs.stream(source, ids, batch_size=batch_size, seed=0,
                          augment=tuple(config.data.augment),
                          texts={'text': lambda rows, seed, epoch: captions[rows]})
    fresh = model.init(jax.random.key(0), example)
    return base.beside('backbone', method, fresh, stream, facts, config, mesh)['params']

  return params


def published(path: str, model: types.Model, example: types.Inputs) -> Callable[[], types.PyTree]:
  """`() -> params` of a backbone that others have published, as `models.convert` reads it.

  Raises:
    ValueError: at once, a file that is none, or whose network is not the config's.
  """
  variables, spec = convert.load(path)
  wanted = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), example)['params']
  if (problem := surgery.first_mismatch(wanted, variables['params'])) is not None:
    raise ValueError(f'{path} holds {spec.model} with {spec.model_args}, which is not config.model: '
                     f'{problem}')
  return lambda: variables['params']


def load(config, workdir: str) -> Federated:
  """Reads the pairs, deals them to clients, builds the adapters; nothing is trained."""
  data, chosen = config.data, config.federation
  source = sources.get(data.name, data_dir=config.data_dir, seed=data.seed,
                       image_size=data.image_size or None)
  source, splits = config_lib.SPLITS['federated'][config.split.kind](
      source, **config_lib.split_arguments(config))
  for name in ('validation', 'test', 'unseen'):
    if len(splits.indices[name]) < 2:
      raise ValueError(f'config.split.held_out leaves {len(splits.indices[name])} pairs for {name}; '
                       'pairs are judged against one another, so at least two are needed')
  if chosen.post_rounds < 0 or chosen.relearn_rounds < 0:
    raise ValueError('config.federation.post_rounds and relearn_rounds are 0 (none) or more, got '
                     f'{chosen.post_rounds} and {chosen.relearn_rounds}')
  inner = base.network(config)
  # Clients are shared out evenly over the devices, so as many of these are used as divide them.
  count = int(np.asarray(source.fields['client']).max()) + 1
  devices = config.devices or math.gcd(count, len(jax.devices()))
  if count % devices:
    raise ValueError(f'{count} clients cannot be shared evenly by config.devices = {devices}; choose '
                     'a divisor, or 0 for the largest one that is there')
  mesh = sharding.make_mesh(devices)
  adapted = lora.adapted(inner, rank=chosen.rank, alpha=chosen.alpha, mode=chosen.lora_mode)
  if not chosen.backbone and source.backbone is None:
    raise ValueError(f'data {data.name!r} bring no backbone; config.federation.backbone says how one '
                     'is trained on public records: {"epochs": 20.0, "batch_size": 128, ...}')
  if 'weights' in chosen.backbone:
    example = {'image': np.asarray(source.fields['image'][:1]), 'text': texts(source, config)[:1]}
    backbone = published(chosen.backbone.weights, inner, example)
  else:
    backbone = (pretrained(source, config, inner, mesh) if chosen.backbone else
                lambda: source.backbone)

  def init(key, inputs):
    return {**adapted.init(key, inputs), 'params': backbone()}

  task = Federated(config, source, splits, types.Model(init, adapted.apply), mesh, workdir)
  task.streams(config.seeds[0])  # refuses what cannot be streamed
  return task
