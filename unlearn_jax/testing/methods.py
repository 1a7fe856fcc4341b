"""Conformance of a method: known answers on the toy, and defects seen in published tools."""

from collections.abc import Callable, Iterator, Mapping
import functools
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import types
from unlearn_jax.losses import classification
from unlearn_jax.methods import registry
from unlearn_jax.testing import checks as checks_lib
from unlearn_jax.testing import federation_toy
from unlearn_jax.testing import generation_toy
from unlearn_jax.testing import multimodal_toy
from unlearn_jax.testing import pairs_toy
from unlearn_jax.testing import toy
from unlearn_jax.testing import trees

# Kind of task -> its known answer.
TOYS = {'classification': toy, 'image_text': pairs_toy, 'multimodal': multimodal_toy,
        'federated': federation_toy, 'generation': generation_toy}
RETAIN_DROP = 0.1  # largest fall of the retain accuracy; ours
SMALL = 5  # a forget set smaller than a batch
SHORT = 2  # steps of a phase in the runs that only look for what goes wrong at once


def conformance(method_factory: Callable[..., types.Method], *,
                settings: Mapping[str, Any] | None = None, oracle: bool = False,
                expects: Mapping[str, str] | None = None, task: str | None = None
                ) -> list[checks_lib.Failed]:
  """Runs a method on a toy with a known answer and returns what is wrong with it.

  A classifier's toy is `toy`. That of image-text pairs is `pairs_toy`: there the records to forget
  are mismatched pairs, and their accuracy is the share of them that the model still matches; small
  sets, padding and retained records are not checked (its batches are full, and mix both). That of
  records of two modalities is `multimodal_toy`, whose accuracies are visual ones. That of generators
  is `generation_toy`: its accuracy is the share of pictures whose hole is painted well, its loss the
  generator's own. That of federations is `federation_toy`: its accuracy is R@1 of the client that
  leaves, or of the others; what moves are the adapters, and retained records are not checked.

  - `finite`: the run ends; all that its steps report and all that it exports is finite.
  - `student moves`: at least one exported parameter differs from the original's.
  - `teacher stays`: `frozen` and the variables given are bitwise unchanged; `frozen['teacher']` is
    the original; no copy of the original beside the student in `state.params` is trained.
  - `forget accuracy`: ends nearer to the retrained models' mean than the original's is.
  - `retain accuracy`: falls by at most 0.1.
  - `forget data`: other forgotten records give another model.
  - `one record`: a forget set of one record works.
  - `small batches`: forget batches smaller than retain batches work, with a ragged last one; of
    pairs: smaller batches.
  - `small set`: a forget set smaller than a batch works.
  - `padding`: what stands in rows of mask 0 changes nothing.
  - `retained records`: with nothing to forget (mask 0), no step climbs the loss of retained
    records. Every step function is compared, from a disturbed original, with itself on no data at
    all: with d the difference of both updates and g the gradient of the retained batch's loss, the
    cross entropy of labels, `<g, d> <= 1e-3 |g| |d|`.
  - `fresh start` (`oracle` only): the first parameters depend on the key and not on the variables
    given, in every leaf of an MLP and of a network of nested modules.

  The whole run, one record and small batches go through `train.loop.run`; the checks that need
  altered batches take a few single steps. Rules: EVALUATION, known answers; thresholds are ours.

  Args:
    method_factory: `(model, *, example, retain_steps, forget_steps, **settings) -> Method`, as
      `methods.get(name)`; context that its signature does not name is left out.
    settings: its keyword arguments; choose short runs that forget.
    oracle: whether it claims to be a retraining from scratch.
    expects: check -> why it is not expected to pass; such checks are not run.
    task: kind of task, `classification`, `image_text`, `multimodal`, `federated` or `generation`.
      None: the first that a registered method is for, and classification for any other.

  Returns:
    The failed checks, each with a reason; an exception is the reason of the check that met it.

  Raises:
    ValueError: `expects` names no check; unknown kind of task.
  """
  task = _kind(method_factory) if task is None else task
  if task not in TOYS:
    raise ValueError(f'task {task!r}{registry.suggestion(task, TOYS)}')
  suite = _Suite(method_factory, dict(settings or {}), TOYS[task])
  checks = {
      'finite': suite.finite, 'student moves': suite.student_moves,
      'teacher stays': suite.teacher_stays, 'forget accuracy': suite.forget_accuracy,
      'retain accuracy': suite.retain_accuracy, 'forget data': suite.forget_data,
      'one record': functools.partial(suite.works, **suite.toy.ONE_RECORD),
      'small batches': functools.partial(suite.works, **suite.toy.SMALL_BATCHES),
      'small set': lambda: trees.not_finite(suite.unaltered),
      'padding': suite.padding, 'retained records': suite.retained_records}
  if oracle:
    checks['fresh start'] = suite.fresh_start
  return checks_lib.failures(
      {name: check for name, check in checks.items() if name not in suite.toy.WITHOUT},
      expects or {})


def _kind(factory: Callable) -> str:
  """The kind of task of a registered method."""
  plain = inspect.unwrap(factory)
  return next((kind for kind, known in registry.TASKS.items() if plain in known.values()),
              'classification')


class _Run(NamedTuple):
  """What a whole run leaves behind."""

  variables: types.Variables  # exported
  params: types.PyTree  # of the last state
  source: types.Variables  # what init was given
  frozen: types.PyTree
  frozen_before: types.PyTree
  params_before: types.PyTree


class _Suite:
  """The checks of one factory; they share the long run."""

  def __init__(self, factory, settings, toy_module):
    self.factory, self.settings, self.toy = factory, settings, toy_module

  def build(self, model=None, **sizes) -> types.Method:
    parameters = inspect.signature(self.factory).parameters
    given = self.toy.context(**sizes)
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
      accepted = given
    else:
      accepted = {name: value for name, value in given.items() if name in parameters}
    model = self.toy.task().model if model is None else model
    return self.factory(model, **accepted, **self.settings)

  @functools.cached_property
  def long(self) -> _Run:
    """The whole method, from a copy of the original."""
    source = jax.tree.map(jnp.copy, self.toy.original())
    method, seen = self.build(), []

    def init(key, variables):
      state, frozen = method.init(key, variables)
      seen.append((frozen, trees.host(frozen), trees.host(state.params)))
      return state, frozen

    result = self.toy.run(method._replace(init=init), source)
    return _Run(result.variables, result.state.params, source, *seen[0])

  @functools.cached_property
  def probe(self):
    """(method, compiled step functions) for a forget set of 5 in batches of 20."""
    method = self.build(forget=SMALL)
    return method, {phase.step: jax.jit(phase.step) for phase in method.phases}

  def walk(self, alter=lambda role, fields: fields) -> types.Variables:
    """A few steps of every phase on altered batches."""
    (method, steps), fed = self.probe, self.toy.feed(forget=SMALL)
    state, frozen = method.init(jax.random.key(0), self.toy.original())
    for phase in method.phases:
      state = state if phase.enter is None else phase.enter(state)
      for index in range(min(phase.steps, SHORT)):
        batch = jax.tree.map(np.asarray, dict(fed[phase.stream](index)))
        batch = {role: alter(role, fields) for role, fields in batch.items()}
        state, metrics = steps[phase.step](state, frozen, batch)
        for problem in trees.not_finite(metrics):
          raise FloatingPointError(f'phase {phase.name!r}, step {index + 1}: {problem}')
    return trees.host(method.export(state))

  @functools.cached_property
  def unaltered(self) -> types.Variables:
    return self.walk()

  def finite(self) -> Iterator[str]:
    yield from trees.not_finite(self.long.variables)

  def works(self, **sizes) -> Iterator[str]:
    method = self.build(**sizes)
    if 'batch_size' not in sizes and {phase.stream for phase in method.phases} == {'retain'}:
      return  # the very run of `finite`
    method = method._replace(phases=tuple(
        phase._replace(steps=min(phase.steps, SHORT)) for phase in method.phases))
    result = self.toy.run(method, self.toy.original(), streams=self.toy.feed(**sizes),
                          forget=sizes.get('forget', self.toy.SIZES['forget']))
    yield from trees.not_finite(result.variables)

  def student_moves(self) -> Iterator[str]:
    before, after = (trees.flat(variables[getattr(self.toy, 'LEARNED', 'params')])
                     for variables in (self.toy.original(), self.long.variables))
    if before.keys() != after.keys():
      yield f'exported {sorted(after)}, the model has {sorted(before)}'
    elif all(np.array_equal(before[name], after[name]) for name in before):
      yield 'every exported parameter equals the original'

  def teacher_stays(self) -> Iterator[str]:
    original = self.toy.original()
    for what, before, after in (('frozen', self.long.frozen_before, self.long.frozen),
                                ('the variables given to init', original, self.long.source)):
      yield from (f'{what}: {name} has changed' for name in trees.changed(before, after))
    if isinstance(self.long.frozen, Mapping) and 'teacher' in self.long.frozen:
      yield from (f"frozen['teacher']: {name} is not the original's"
                  for name in trees.changed(original, self.long.frozen['teacher']))
    # A copy of the original among the parameters is a teacher too, unless it is the student.
    for key, tree in self.long.params_before.items():
      for copy in (original, original['params']):
        if (key != 'model' and trees.flat(tree).keys() == trees.flat(copy).keys()
            and not any(trees.changed(copy, tree))):
          yield from (f"params[{key!r}] was a copy of the original, {name} has been trained"
                      for name in trees.changed(tree, self.long.params[key]))

  def forget_accuracy(self) -> Iterator[str]:
    goal = np.mean([self.toy.accuracy(variables, 'forget') for variables in self.toy.retrained()])
    start = self.toy.accuracy(self.toy.original(), 'forget')
    found = self.toy.accuracy(self.long.variables, 'forget')
    if not abs(found - goal) < abs(start - goal):
      yield (f'{found:.3f} is no nearer to the {goal:.3f} of retrained models than the {start:.3f} '
             'of the original')

  def retain_accuracy(self) -> Iterator[str]:
    start = self.toy.accuracy(self.toy.original(), 'retain')
    found = self.toy.accuracy(self.long.variables, 'retain')
    if not found >= start - RETAIN_DROP:
      yield f'{found:.3f}, the original has {start:.3f}: it may fall by {RETAIN_DROP}'

  def forget_data(self) -> Iterator[str]:
    if not any(trees.changed(self.unaltered, self.walk(self.toy.other_forgotten))):
      yield 'forgetting other records gives the same model: it does not look at them'

  def padding(self) -> Iterator[str]:
    def other(role, fields):
      del role
      return self.toy.other_records(fields, fields['mask'] == 0)

    for name, difference in trees.differences(self.unaltered, self.walk(other)):
      if not difference <= 1e-5:
        yield f'{name} differs by {difference:.1g} when only rows of mask 0 do'

  def retained_records(self) -> Iterator[str]:
    (method, steps), fed = self.probe, self.toy.feed(forget=SMALL)
    state, frozen = method.init(jax.random.key(0), self.toy.original())
    seen = set()
    for phase in method.phases:
      state = state if phase.enter is None else phase.enter(state)
      if phase.step in seen:
        continue
      seen.add(phase.step)
      # Away from the original, where its loss and SCRUB's divergence have no gradient.
      disturbed = state.replace(params={**state.params, 'model': _disturbed(state.params['model'])})
      batch = fed[phase.stream](0)
      nothing = {role: {**f, 'mask': np.zeros_like(f['mask'])} for role, f in batch.items()}
      only_retain = {role: nothing[role] if role == 'forget' else f for role, f in batch.items()}
      after = [steps[phase.step](disturbed, frozen, data)[0] for data in (only_retain, nothing)]
      update = jax.tree.map(np.subtract, *(trees.host(s.params['model']) for s in after))
      yield from (f'phase {phase.name!r}, forget batch of mask 0: {reason}'
                  for reason in trees.not_finite(update))
      kept = fed['retain'](0)['retain'] if 'retain' not in batch else batch['retain']
      gradient = _retain_gradient(getattr(self.toy, 'loss', _cross_entropy),
                                  self.toy.task().model.apply, disturbed.params['model'],
                                  state.collections, kept)
      slope = sum(float(np.vdot(g, d)) for g, d in zip(jax.tree.leaves(gradient),
                                                       jax.tree.leaves(update)))
      size = trees.norm(gradient) * trees.norm(update)
      if slope > 1e-3 * size:
        yield (f'phase {phase.name!r} climbs the loss of retained records although nothing is to '
               f'be forgotten (cosine {slope / size:.2f})')

  def fresh_start(self) -> Iterator[str]:
    for name, model in self.toy.networks().items():
      method = self.build(model=model)
      # No leaf of the second source equals the first one's, biases included.
      sources = [model.init(jax.random.key(1), self.toy.task().example)]
      sources.append(jax.tree.map(lambda leaf: leaf + 0.5, trees.host(sources[0])))
      first, second = (method.init(jax.random.key(0), source)[0].params for source in sources)
      for leaf in trees.changed(first, second):
        yield f'{name}: {leaf} depends on the variables given, a retraining starts without them'
      other = method.init(jax.random.key(3), sources[0])[0].params
      if not list(trees.changed(first, other)):
        yield f'{name}: two keys give the same initialisation'


def _disturbed(params):
  rng = np.random.default_rng(0)
  return jax.tree.map(
      lambda leaf: leaf + (0.5 * leaf.std() * rng.normal(size=leaf.shape)).astype(leaf.dtype),
      trees.host(params))


def _cross_entropy(apply, variables, inputs):
  outputs, _ = apply(variables, inputs, train=False)
  return classification.cross_entropy(outputs['logits'], inputs['label'], where=inputs['mask'])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _retain_gradient(loss, apply, params, collections, inputs):
  """Gradient of the records' `loss(apply, variables, inputs)`."""
  return jax.grad(lambda params: loss(apply, {'params': params, **collections}, inputs))(params)
