"""Steps on generators: training and I2I's unlearning, over the passes they need and beside PyTorch."""

from collections.abc import Callable, Iterator, Mapping
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import harness
from experiments.benchmarks import steps
from experiments.configs import i2i_mae_openmoji
from experiments.configs import i2i_mage_openmoji
from experiments.configs import i2i_palette_openmoji
from unlearn_jax import methods
from unlearn_jax import models
from unlearn_jax import types
from unlearn_jax.data import holes
from unlearn_jax.data import pixels
from unlearn_jax.methods import generation
from unlearn_jax.models import diffusion
from unlearn_jax.models import mae_keys
from unlearn_jax.models import mage_keys
from unlearn_jax.models import mage_masking
from unlearn_jax.models import palette_keys
from unlearn_jax.models import surgery

BATCH = 32
GRID, MASK, ALPHA = (8, 8), 'random:0.5', 0.25
# Plain SGD and the mean of squares: Adam, and the norm where student and reference agree, magnify
# rounding. The rate is small enough for three steps to stay close.
RATE, TOLERANCE = 0.01, 1e-4
METHODS = ('reconstruct', 'i2i')
# What each step needs. A gradient pass includes its forward pass.
PASSES = {
    'reconstruct': {'loss gradient': 1},
    # The student's encoder on both batches, and the reference's.
    'i2i': {'encoder gradient': 2, 'encoder, eval': 2}}


class Family(NamedTuple):
  """A generator of both sides.

  Attributes:
    model: registered name.
    arguments: of the model.
    side: pixels along a side of a picture.
    keys: the parameters' names in PyTorch.
    twin: (tensors) -> an object with `encode(image, visible, draws, noise)` and `losses(...)`.
    draws: (key, visible) -> what the family draws from the key of a call, as arrays.
  """

  model: str
  arguments: Mapping[str, Any]
  side: int
  keys: Any
  twin: Callable
  draws: Callable


MAE = i2i_mae_openmoji.NETWORK
TOKENIZER = {name: parameter.default for name, parameter in models.arguments('vqgan').items()
             } | i2i_mage_openmoji.NETWORK['vqgan']
MAGE = i2i_mage_openmoji.NETWORK | {'image_size': 16, 'vqgan': TOKENIZER, 'dropout': 0.0, 'classes': 1,
                                    'class_token': 0}
PALETTE = i2i_palette_openmoji.NETWORK | {'groups': 8, 'head_width': 32}
TABLES = diffusion.schedule(diffusion.linear(2000, 1e-6, 0.01))


class _MAETwin:

  def __init__(self, tensors):
    from experiments.benchmarks import generator_twins
    self.net = generator_twins.MAE(32, *(MAE[name] for name in (
        'patch', 'width', 'depth', 'heads', 'decoder_width', 'decoder_depth', 'decoder_heads')))
    self.net.load_state_dict(tensors, strict=False)  # but for the fixed positions

  def parameters(self):
    return {name: value for name, value in self.net.named_parameters() if value.requires_grad}

  def encode(self, image, visible, draws, noise=None):
    del draws
    return [self.net.encode(image if noise is None else noise, visible)]

  def losses(self, image, visible, draws):
    latent, = self.encode(image, visible, draws)
    return self.net.loss(self.net.decode(latent, visible), image, visible)


class _MAGETwin:

  def __init__(self, tensors):
    from experiments.benchmarks import generator_twins
    sizes = ('image_size', 'width', 'depth', 'heads', 'decoder_width', 'decoder_depth',
             'decoder_heads', 'classes', 'class_token')
    tokenizer = ('width', 'multipliers', 'blocks', 'latent', 'codes', 'groups')
    self.net = generator_twins.MAGE(tokenizer={name: TOKENIZER[name] for name in tokenizer},
                                    **{name: MAGE[name] for name in sizes})
    self.net.load_state_dict(tensors)
    self.net.vqgan.requires_grad_(False)

  def parameters(self):
    return dict(self.net.named_parameters())

  def encode(self, image, visible, draws, noise=None):
    tokens = self.net.vqgan.tokens(image if noise is None else noise)
    return [self.net.encode(tokens, visible, draws['masked'])]

  def losses(self, image, visible, draws):
    tokens, masked = self.net.vqgan.tokens(image), draws['masked']
    latent = self.net.encode(tokens, visible, masked)
    return self.net.loss(self.net.logits(latent, visible, masked), tokens, visible, masked)


class _PaletteTwin:

  def __init__(self, tensors):
    from experiments.benchmarks import generator_twins
    self.net = generator_twins.Palette(tensors, (
        PALETTE['width'], PALETTE['multipliers'], PALETTE['blocks'], PALETTE['groups'],
        PALETTE['head_width']))

  def parameters(self):
    return self.net.tensors

  def seen(self, image, visible, draws, noise):
    from experiments.benchmarks import generator_twins
    gone = generator_twins.hidden(visible, GRID[0] * GRID[1]).reshape(-1, 1, *GRID).to(image.dtype)
    gone = gone.repeat_interleave(PALETTE['patch'], 2).repeat_interleave(PALETTE['patch'], 3)
    share = draws['gamma'][:, None, None, None]
    content = share.sqrt() * image + (1 - share).sqrt() * draws['noise'] if noise is None else noise
    shown = image * (1 - gone)
    import torch
    return torch.cat([shown + draws['fill'] * gone, shown + content * gone], dim=1), gone

  def encode(self, image, visible, draws, noise=None):
    return self.net.encode(self.seen(image, visible, draws, noise)[0], draws['gamma'])

  def losses(self, image, visible, draws):
    seen, gone = self.seen(image, visible, draws, None)
    predicted = self.net.decode(self.net.encode(seen, draws['gamma']), draws['gamma'])
    return ((gone * (draws['noise'] - predicted))**2).mean(dim=(1, 2, 3))


def _masks(key, visible, shape):
  del shape
  return {'masked': mage_masking.further(jax.random.fold_in(key, 0), *visible.shape,
                                         GRID[0] * GRID[1])}


def _levels(key, visible, shape):
  del visible
  level, noise, fill, _ = jax.random.split(key, 4)
  return {'gamma': diffusion.draw_levels(level, TABLES, shape[0]),
          'noise': jax.random.normal(noise, shape), 'fill': jax.random.normal(fill, shape)}


FAMILIES = {
    'mae': Family('mae', MAE, 32, mae_keys.Names('mae', '', MAE['patch']), _MAETwin,
                  lambda key, visible, shape: {}),
    'mage': Family('mage', MAGE, 16, mage_keys.Names('mage', ''), _MAGETwin, _masks),
    'palette': Family('palette', PALETTE, 16, palette_keys.Names('', PALETTE['head_width']),
                      _PaletteTwin, _levels)}


class Setup(NamedTuple):
  """A generator, its variables and one batch.

  Attributes:
    family: whose.
    model: ours.
    variables: random.
    batch: role -> fields, on the device.
  """

  family: Family
  model: types.Model
  variables: types.Variables
  batch: types.Batch


@functools.cache
def setup(name: str) -> Setup:
  """Made once; all parameters are random: a layer that starts at 0 has no gradient behind it."""
  family = FAMILIES[name]
  model = models.get(family.model, **family.arguments)
  rng = np.random.default_rng(0)
  batch = {}
  for number, role in enumerate(('retain', 'forget')):
    batch[role] = {
        'image': rng.random((BATCH, family.side, family.side, 3), np.float32),
        'visible': holes.draw(MASK, GRID, seed=0, ids=np.arange(BATCH), step=number),
        'mask': np.ones(BATCH, np.float32)}
  drawn = jax.tree.map(lambda leaf: leaf + 0.02 * rng.normal(size=leaf.shape).astype(np.float32),
                       jax.device_get(model.init(jax.random.key(0), batch['retain'])))
  return Setup(family, model, jax.device_put(drawn), jax.device_put(batch))


class Ours:
  """Our step, compiled as the loop compiles it; a call takes one step and waits for it."""

  def __init__(self, env: Setup, method: str):
    self.env, self.method, self.key = env, method, jax.random.key(1)
    context = {'example': {name: env.batch['retain'][name][:1] for name in ('image', 'visible')},
               'retain_steps': 100, 'train_steps': 100}
    settings = {'optimizer': 'sgd', 'learning_rate': RATE, 'weight_decay': 0.0}
    if method == 'i2i':
      context = {'forget_steps': 100, 'pixels': pixels.Pixels(
          np.full(3, 0.5, np.float32), np.full(3, 0.25, np.float32), lambda: None)}
      settings |= {'norm': 'mse', 'alpha': ALPHA}
    else:
      settings |= {'warmup_epochs': 0.0}
    built = methods.get(method)(env.model, **context, **settings)
    state, self.frozen = built.init(self.key, env.variables)
    # `reconstruct` starts afresh; both sides are to start from the same variables.
    self.state = jax.tree.map(jnp.copy, state.replace(params={'model': env.variables['params']}))
    self.step = harness.FirstCall(jax.jit(built.phases[0].step, donate_argnums=0))

  def __call__(self) -> jax.Array:
    self.state, metrics = self.step(self.state, self.frozen, self.env.batch)
    return jax.block_until_ready(metrics)['loss']

  def draws(self, number: int) -> dict[str, Any]:
    """What step `number` draws: per role, and the noise n of I2I."""
    key, batch = jax.random.fold_in(self.key, number), self.env.batch
    shape = batch['retain']['image'].shape
    of = lambda key, role: self.env.family.draws(jax.random.split(key)[1], batch[role]['visible'],
                                                 shape)
    if self.method == 'reconstruct':
      return {'retain': of(key, 'retain')}
    retain, forget, noise = jax.random.split(key, 3)
    return {'retain': of(retain, 'retain'), 'forget': of(forget, 'forget'),
            'n': 0.5 + 0.25 * jax.random.normal(noise, shape)}


def twin_step(env: Setup, method: str) -> Callable[..., float]:
  """The twin's step: (draws) -> loss, with everything but the draws in it."""
  import torch

  def nchw(leaf):
    leaf = np.array(leaf)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(leaf, -1, 1)) if leaf.ndim == 4 else leaf)

  names, tensors, learned = env.family.keys, {}, set()
  for path, leaf in zip(surgery.paths(env.variables), jax.tree.leaves(env.variables)):
    found = names.to_file(path, np.asarray(leaf))
    tensors |= {name: torch.from_numpy(np.array(value)) for name, value in found.items()}
    wanted = 'encoder' if method == 'i2i' else 'encoder|decoder'
    if path.split('/')[1] in wanted.split('|'):
      learned |= set(found)
  copies = lambda: {name: value.clone() for name, value in tensors.items()}
  net, reference = env.family.twin(copies()), env.family.twin(copies())
  parameters = net.parameters()
  for name, value in parameters.items():
    value.requires_grad_(name in learned)
  for value in reference.parameters().values():
    value.requires_grad_(False)
  tx = torch.optim.SGD([value for name, value in parameters.items() if name in learned], RATE)
  batch = {role: (nchw(fields['image']), torch.from_numpy(np.array(fields['visible'])).long())
           for role, fields in env.batch.items()}

  def distance(student, goal):
    student, goal = (torch.cat([stage.flatten(1) for stage in stages], 1)
                     for stages in (student, goal))
    return ((student - goal)**2).mean(1).mean()

  def unlearning(draws):
    total = 0.0
    for role, weight, noise in (('retain', 1.0, None), ('forget', ALPHA, draws['n'])):
      with torch.no_grad():
        goal = reference.encode(*batch[role], draws[role], noise)
      total = total + weight * distance(net.encode(*batch[role], draws[role]), goal)
    return total

  def step(draws):
    draws = jax.tree.map(nchw, draws)
    loss = (unlearning(draws) if method == 'i2i' else
            net.losses(*batch['retain'], draws['retain']).mean())
    tx.zero_grad()
    loss.backward()
    tx.step()
    return loss.item()

  return step


@functools.cache
def passes_of(name: str) -> dict[str, harness.FirstCall]:
  """The passes that steps are made of, each compiled alone."""
  env, key = setup(name), jax.random.key(2)
  one, model = env.batch['retain'], env.model
  rest = lambda params: {'model': params}

  @jax.jit
  def loss_gradient(params, inputs):
    return jax.value_and_grad(lambda halves: jnp.mean(generation.losses(
        model, rest({**params, **halves}), {}, inputs, key=key)[0]))(
            {half: params[half] for half in ('encoder', 'decoder')})

  @jax.jit
  def encoder_gradient(params, inputs):
    def size(encoder):
      latent = generation.encode(model, rest({**params, 'encoder': encoder}), {}, inputs, key=key)[0]
      return sum(jnp.sum(jnp.square(stage)) for stage in jax.tree.leaves(latent))
    return jax.value_and_grad(size)(params['encoder'])

  @jax.jit
  def encoder(params, inputs):
    return generation.reference(model, {'params': params}, inputs, key=key)

  calls = {'loss gradient': loss_gradient, 'encoder gradient': encoder_gradient,
           'encoder, eval': encoder}
  return {label: harness.FirstCall(lambda call=call: jax.block_until_ready(
      call(env.variables['params'], one))) for label, call in calls.items()}


@functools.cache
def compared(name: str, method: str) -> steps.Compared:
  """Takes the first steps of both sides.

  Raises:
    harness.Mismatch: their losses differ.
  """
  env = setup(name)
  ours, twin = Ours(env, method), harness.FirstCall(twin_step(env, method))
  drawn = [jax.device_get(ours.draws(number)) for number in range(steps.PARITY_STEPS)]
  losses, twin_losses = [], []
  for draws in drawn:
    losses.append(ours())
    twin_losses.append(twin(draws))
  parity = harness.check_parity(f'the losses of the first {steps.PARITY_STEPS} steps', losses,
                                twin_losses, tolerance=TOLERANCE)
  return steps.Compared(ours, lambda: twin(drawn[0]), (ours.step.seconds, twin.seconds), parity)


def rows(name: str, method: str, rounds: int = steps.ROUNDS) -> Iterator[harness.Row]:
  """Overhead and ratio of one step; the training step's ratio is what I2I's is held against."""
  return steps.step_rows(f'step/{name}/{method}', method, 'reconstruct',
                         functools.partial(compared, name), PASSES[method], passes_of(name), rounds,
                         note='The twin is told what we draw.')
