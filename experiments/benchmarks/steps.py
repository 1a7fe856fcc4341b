"""Training steps: their overhead over the passes they need, and their ratio to PyTorch's."""

from collections.abc import Callable, Iterator, Mapping
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import harness
from unlearn_jax import methods
from unlearn_jax import models
from unlearn_jax import types
from unlearn_jax.losses import classification
from unlearn_jax.losses import dlfd as dlfd_losses
from unlearn_jax.methods import base
from unlearn_jax.methods import random_label as random_label_lib

BATCH, SIZE, CLASSES = 64, 32, 64
NETWORKS = {
    'resnet18': ({'width': 8, 'stem': 'cifar'}, {}),
    'vit': ({'patch': 4, 'width': 128, 'depth': 4, 'heads': 4}, {'image_size': SIZE}),
}
ROUNDS = 11
PARITY_STEPS = 3
TOLERANCE = 2e-5  # of their losses
# The same twin agrees to 2e-5 on the ViT. Behind ReLUs a sign of a pixel's gradient hangs on
# rounding, and each that differs moves the pixel by twice the step size.
ROUGH = {('resnet18', 'dlfd'): 3e-2}
OVERHEAD, PLAIN = 1.15, 1.0
SGD = {'learning_rate': 0.01, 'momentum': 0.9, 'weight_decay': 5e-4}
ADAM = {'learning_rate': 1e-4, 'weight_decay': 0.0}
DLFD = {'perturb_steps': 15, 'step_size': 0.02, 'transport_weight': 3.0, 'epsilon': 0.01,
        'max_iterations': 50}
STEPS_PER_EPOCH = {'retain_steps': 100, 'forget_steps': 50, 'train_steps': 150}


class Case(NamedTuple):
  """A step and what it needs.

  Attributes:
    method: registered name.
    settings: of its factory.
    phase: index of the phase whose step is timed.
    roles: of the batch, in the order in which the twin takes them.
    passes: pass -> how many of it the algorithm needs; see `passes_of`.
  """

  method: str
  settings: Mapping[str, Any]
  phase: int
  roles: tuple[str, ...]
  passes: Mapping[str, int]


# What each step needs, from its algorithm. A gradient pass includes its forward pass.
CASES = {
    # CE on one batch. Also the step of retrain, and of CF-k and EU-k but for what they freeze.
    'plain': Case('finetune', SGD, 0, ('retain',), {'weight gradient': 1}),
    # M input gradients on the retained batch, each with a Sinkhorn between features and its
    # gradient; one forward pass of the forget batch; then the step on what came out.
    'dlfd': Case('dlfd', SGD | DLFD, 0, ('retain', 'forget'),
                 {'input gradient': DLFD['perturb_steps'], 'transport': DLFD['perturb_steps'],
                  'forward': 1, 'weight gradient': 1}),
    # The teacher's forward pass and the student's gradient, on forget and retain data in turn.
    'scrub_max': Case('scrub', {'optimizer': 'sgd', 'temperature': 4.0} | SGD, 0, ('forget',),
                      {'forward, eval': 1, 'weight gradient': 1}),
    'scrub_min': Case('scrub', {'optimizer': 'sgd', 'temperature': 4.0} | SGD, 1, ('retain',),
                      {'forward, eval': 1, 'weight gradient': 1}),
    # One gradient each for retained and for forgotten data: batch statistics never mix.
    'neg_grad_plus': Case('neg_grad_plus', SGD | {'alpha': 0.95}, 0, ('retain', 'forget'),
                          {'weight gradient': 2}),
    # Both teachers and the student see both batches at once.
    'bad_teacher': Case('bad_teacher', ADAM, 0, ('retain', 'forget'),
                        {'forward, eval, both batches': 2, 'weight gradient, both batches': 1}),
    # As the plain step, with labels drawn.
    'random_label': Case('random_label', SGD, 0, ('forget',), {'weight gradient': 1}),
    # The same under a mask.
    'salun': Case('salun', SGD, 1, ('forget',), {'weight gradient': 1}),
}


class Setup(NamedTuple):
  """A network of both sides and its data.

  Attributes:
    name: of the network.
    model: ours.
    variables: after a few training steps, so that batch statistics are not those of a new network.
    batches: `PARITY_STEPS` of role -> fields, on the device.
    twin: () -> the same network in PyTorch, with the same variables unless others are given.
    twin_batches: the same batches for PyTorch, role -> (image, label).
  """

  name: str
  model: types.Model
  variables: types.Variables
  batches: list
  twin: Callable[..., Any]
  twin_batches: list


@functools.cache
def setup(name: str) -> Setup:
  """The network and its data, made once."""
  import torch

  from experiments.benchmarks import twins
  arguments, twin_arguments = NETWORKS[name]
  arguments = {'num_outputs': CLASSES, **arguments}
  model = models.get(name, **arguments)
  rng = np.random.default_rng(0)
  plain = [{role: {'image': rng.random((BATCH, SIZE, SIZE, 3), np.float32),
                   'label': rng.integers(0, CLASSES, BATCH).astype(np.int32)}
            for role in ('retain', 'forget')} for _ in range(PARITY_STEPS)]
  batches = jax.device_put([{role: fields | {'mask': np.ones(BATCH, np.float32)}
                             for role, fields in batch.items()} for batch in plain])
  twin_batches = [{role: (torch.from_numpy(fields['image'].transpose(0, 3, 1, 2).copy()),
                          torch.from_numpy(fields['label'].astype(np.int64)))
                   for role, fields in batch.items()} for batch in plain]
  variables = model.init(jax.random.key(0), batches[0]['retain'])

  def twin(other=None):
    net = getattr(twins, name)(**arguments, **twin_arguments)
    return twins.load(net, jax.device_get(variables if other is None else other))

  found = Setup(name, model, variables, batches, twin, twin_batches)
  ours = Ours(found, CASES['plain'])
  for batch in batches:
    ours(batch)
  variables = jax.tree.map(jnp.copy, base.export(ours.state))
  return found._replace(variables=variables)


class Ours:
  """Our step, compiled as the loop compiles it; a call takes one step and waits for it."""

  def __init__(self, env: Setup, case: Case):
    example = {'image': env.batches[0]['retain']['image'][:1]}
    self.method = methods.get(case.method)(
        env.model, example=example, **STEPS_PER_EPOCH, **case.settings)
    self.key = jax.random.key(1)
    state, self.frozen = self.method.init(self.key, env.variables)
    self.state = jax.tree.map(jnp.copy, state)  # the step donates it, and others start from there
    if case.method == 'salun':  # the mask comes from a phase of its own
      self.state, _ = jax.jit(self.method.phases[0].step)(self.state, self.frozen, env.batches[0])
      self.state = jax.jit(self.method.phases[1].enter)(self.state)
    self.start = jax.device_get(self.state.opt_state)
    self.step = harness.FirstCall(jax.jit(self.method.phases[case.phase].step, donate_argnums=0))

  def __call__(self, batch) -> jax.Array:
    self.state, metrics = self.step(self.state, self.frozen, batch)
    return jax.block_until_ready(metrics)['loss']

  def labels(self, step: int, batch) -> np.ndarray:
    """The labels that `random_label` and `salun` draw in a step."""
    key, _ = jax.random.split(jax.random.fold_in(self.key, step))
    label = batch['forget']['label']
    return np.asarray(random_label_lib.draw_labels(key, jnp.zeros((BATCH, CLASSES)), label))


def twin_step(env: Setup, name: str, ours: Ours) -> Callable[..., float]:
  """The twin of a case, with the settings of `ours`."""
  import torch

  from experiments.benchmarks import twin_steps
  from experiments.benchmarks import twins
  net, settings = env.twin(), CASES[name].settings
  if name == 'bad_teacher':
    weight = STEPS_PER_EPOCH['forget_steps'] / (
        STEPS_PER_EPOCH['forget_steps'] + 0.3 * STEPS_PER_EPOCH['retain_steps'])
    return twin_steps.bad_teacher(net, twin_steps.adam(net, **ADAM), forget_weight=weight,
                                  incompetent=env.twin(ours.frozen['incompetent']))
  tx = twin_steps.sgd(net, **SGD)
  if name == 'plain':
    return twin_steps.supervised(net, tx)
  if name == 'dlfd':
    return twin_steps.dlfd(net, tx, steps=STEPS_PER_EPOCH['retain_steps'], **DLFD)
  if name == 'scrub_max':
    return twin_steps.scrub_max(net, tx, temperature=settings['temperature'])
  if name == 'scrub_min':
    return twin_steps.scrub_min(net, tx, gamma=1.0, alpha=0.5, temperature=settings['temperature'])
  if name == 'neg_grad_plus':
    return twin_steps.neg_grad_plus(net, tx, alpha=settings['alpha'])
  if name == 'random_label':
    return twin_steps.random_label(net, tx)
  if name == 'salun':
    mask = twins.to_torch({'params': ours.start.mask['model']})
    return twin_steps.salun(net, tx, mask={key: torch.from_numpy(leaf)
                                           for key, leaf in mask.items()})
  raise ValueError(f'no twin for {name!r}')


@functools.cache
def passes_of(network: str) -> dict[str, harness.FirstCall]:
  """The passes that steps are made of, each compiled alone."""
  env = setup(network)
  variables, apply = env.variables, env.model.apply
  one = env.batches[0]['retain']
  both = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), one, env.batches[0]['forget'])

  @functools.partial(jax.jit, static_argnames='train')
  def forward(variables, inputs, *, train):
    outputs, _ = apply(variables, inputs, train=train)
    return outputs

  @jax.jit
  def input_gradient(variables, inputs):
    def loss(image):
      outputs, _ = apply(variables, {**inputs, 'image': image}, train=True)
      return classification.cross_entropy(outputs['logits'], inputs['label'])
    return jax.grad(loss)(inputs['image'])

  @jax.jit
  def weight_gradient(variables, inputs):
    def loss(params):
      outputs, moved = apply({**variables, 'params': params}, inputs, train=True)
      return classification.cross_entropy(outputs['logits'], inputs['label']), moved
    (value, moved), gradient = jax.value_and_grad(loss, has_aux=True)(variables['params'])
    return value, {key: tree for key, tree in moved.items() if key != 'params'}, gradient

  @jax.jit
  def transport(x, y):
    return jax.value_and_grad(functools.partial(
        dlfd_losses.ot_distance, epsilon=DLFD['epsilon'],
        max_iterations=DLFD['max_iterations']))(x, y)

  features = [forward(variables, env.batches[0][role], train=True)['features']
              for role in ('retain', 'forget')]
  calls = {
      'forward': functools.partial(forward, variables, one, train=True),
      'forward, eval': functools.partial(forward, variables, one, train=False),
      'forward, eval, both batches': functools.partial(forward, variables, both, train=False),
      'input gradient': functools.partial(input_gradient, variables, one),
      'weight gradient': functools.partial(weight_gradient, variables, one),
      'weight gradient, both batches': functools.partial(weight_gradient, variables, both),
      'transport': functools.partial(transport, *features),
  }
  return {name: harness.FirstCall(lambda call=call: jax.block_until_ready(call()))
          for name, call in calls.items()}


class Compared(NamedTuple):
  """Both sides of a case, after the first steps, in which their losses agreed.

  Attributes:
    ours: () -> one more step on the first batch.
    twin: likewise, in PyTorch.
    first: seconds of the first call of either.
    parity: of the losses.
  """

  ours: Callable[[], Any]
  twin: Callable[[], Any]
  first: tuple[float, float]
  parity: harness.Parity


@functools.cache
def compared(network: str, name: str) -> Compared:
  """Takes the first steps of both sides.

  Raises:
    harness.Mismatch: their losses differ.
  """
  env, case = setup(network), CASES[name]
  ours = Ours(env, case)
  twin = harness.FirstCall(twin_step(env, name, ours))
  begin = int(ours.state.step)
  losses, twin_losses = [], []
  batch = env.batches[0]  # one batch again and again: its loss shows what the updates did
  pair = [tensor for role in case.roles for tensor in env.twin_batches[0][role]]
  for index in range(PARITY_STEPS):
    drawn = []
    if name in ('random_label', 'salun'):
      import torch
      drawn = [torch.from_numpy(ours.labels(begin + index, batch).astype(np.int64))]
    losses.append(ours(batch))
    twin_losses.append(twin(*pair, *drawn))
  parity = harness.check_parity(f'the losses of the first {PARITY_STEPS} steps', losses,
                                twin_losses, tolerance=ROUGH.get((network, name), TOLERANCE))
  return Compared(lambda: ours(batch), lambda: twin(*pair), (ours.step.seconds, twin.seconds),
                  parity)


def rows(network: str, name: str, rounds: int = ROUNDS) -> Iterator[harness.Row]:
  """Overhead and ratio of one step; the plain step's ratio is what the others are held against."""
  return step_rows(f'step/{network}/{name}', name, 'plain', functools.partial(compared, network),
                   CASES[name].passes, passes_of(network), rounds)


def step_rows(label: str, name: str, plain_name: str, compare: Callable[[str], Compared],
              needed: Mapping[str, int], passes: Mapping[str, harness.FirstCall], rounds: int, *,
              note: str = '') -> Iterator[harness.Row]:
  """Overhead of a step over the passes it needs, and its ratio to the twin's.

  Args:
    label: of the rows.
    name: of the step.
    plain_name: of the step whose ratio the others are held against.
    compare: name of a step -> both sides of it.
    needed: pass -> how many of it the step needs.
    passes: all passes.
    rounds: of timing.
    note: to the ratio.
  """
  reference = name == plain_name
  figure = 'ratio to PyTorch' if reference else f"ratio to PyTorch / {plain_name} step's"
  target = None if reference else PLAIN
  try:
    both, plain = compare(name), compare(plain_name)
  except harness.Mismatch as error:
    yield harness.Row(label, 'overhead', OVERHEAD, reason=f'refused, {error}')
    yield harness.Row(label, figure, target, reason=f'refused, {error}')
    return
  passes = {key: call for key, call in passes.items() if key in needed}
  sides = {'ours': both.ours, 'PyTorch': both.twin, **passes}
  first = dict(zip(('ours', 'PyTorch'), both.first))
  base_sides = (f'{plain_name} step', f'{plain_name} step in PyTorch')
  if not reference:
    sides |= dict(zip(base_sides, (plain.ours, plain.twin)))
    first |= dict(zip(base_sides, plain.first))
  for call in passes.values():
    call()
  first |= {key: call.seconds for key, call in passes.items()}
  timings = harness.alternate(sides, rounds, first=first)
  needs = ' + '.join(f'{count} x {key}' for key, count in needed.items())
  yield harness.make_row(label, 'overhead', OVERHEAD, harness.ratio(timings, 'ours', needed),
                         timings, parity=both.parity, note=f'Over {needs}.')
  ratios = harness.ratio(timings, 'ours', {'PyTorch': 1})
  if not reference:
    own, against = ratios, harness.ratio(timings, base_sides[0], {base_sides[1]: 1})
    ratios = own / against
    note = (f'Ratio {np.median(own):.2f}; the {plain_name} step has {np.median(against):.2f} in the '
            f'same rounds. {note}').strip()
  yield harness.make_row(label, figure, target, ratios, timings, parity=both.parity, note=note)
