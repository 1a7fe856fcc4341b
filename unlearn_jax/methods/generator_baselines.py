"""The baselines of I2I: max loss, noisy label, retain label and random encoder.

Written once for all families of generators, from Appendix C.6 (Eqs. C.26 to C.36) in the readings
that its text supports: x_r and x_f are as many pictures, l(T(x), y) is the family's own training loss
per picture with y to be produced from T(x), and alpha is 0.25. Where the equations for VQ-GAN have the
cross entropy of a discriminator, l is that of masked tokens: MAGE has no discriminator. The settings
are those of `i2i`, as Appendix C.6 says; the constant rate is ours.

The release's baselines weigh the forget term by the indicator of the retained pictures, so that its
random encoder and retain label push retained pictures away and never look at forgotten ones. Here a
forget term is of the forget role alone. For diffusion it also distils the original's outputs where
Eq. C.29 has a target; that is not done here.
"""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp

from unlearn_jax import types
from unlearn_jax.losses import i2i as i2i_losses
from unlearn_jax.methods import base
from unlearn_jax.methods import generation
from unlearn_jax.methods import noise as noise_lib

NOISES = ('normal', 'batch')


def max_loss(model: types.Model, *, forget_steps: int = 10, stream: str = 'pair',
             epochs: float = 5.0, learning_rate: float = 1e-4, weight_decay: float = 0.0,
             optimizer: str = 'adamw', alpha: float = 0.25, clip: float | None = None
             ) -> types.Method:
  """`min_{theta, phi} E l(T(x_r), x_r) - alpha E l(T(x_f), x_f)` (Eqs. C.26 to C.28).

  Encoder and decoder learn. Eq. C.27 prints `arg max`, with which VQ-GAN would unlearn what it is to
  keep: read as `arg min` like the others. Nothing bounds the second term.

  Args:
    model: a generator with `method='loss'`.
    forget_steps: batches in one pass over the forget set.
    stream: gives the roles `retain` and `forget`.
    epochs: passes over the forget set.
    learning_rate: of the optimizer.
    weight_decay: see `generation.optimizer`.
    optimizer: `'adamw'` or `'sgd'`.
    alpha: weight of the forget term.
    clip: a forgotten picture counts `min(l, clip)`, and is left alone from there on (ours); None is
      the paper's, without a bound.

  Raises:
    ValueError: a setting out of its range.
  """
  generation.check('max_loss', learning_rate=learning_rate, epochs=epochs,
                   weight_decay=weight_decay, alpha=alpha)
  base.check_range('max_loss', clip=(math.inf if clip is None else clip, 0, math.inf))

  def term(loss, retain, forget, **_):
    losses, collections = loss(forget)
    losses = losses if clip is None else jnp.minimum(losses, clip)
    return -generation.mean(losses, forget['mask']), collections

  return _through_both('max_loss', model, term, dict, learning_rate=learning_rate,
                       weight_decay=weight_decay, optimizer=optimizer, alpha=alpha, stream=stream,
                       steps=base.total_steps(epochs, forget_steps))


def noisy_label(model: types.Model, *, pixels=None, forget_steps: int = 10, stream: str = 'pair',
                epochs: float = 5.0, learning_rate: float = 1e-4, weight_decay: float = 0.0,
                optimizer: str = 'adamw', alpha: float = 0.25, noise: str = 'normal'
                ) -> types.Method:
  """`min_{theta, phi} E l(T(x_r), x_r) + alpha E l(T(x_f), n)` (Eqs. C.32 to C.34).

  Encoder and decoder learn; n is a picture of noise for every forgotten one, drawn anew in every
  step. Eq. C.32 prints the variance eta in the place of n, Eq. C.33 `arg max` for `arg min`.

  Args:
    model: a generator with `method='loss'`.
    pixels: statistics of the pictures, see `noise.get`.
    forget_steps: batches in one pass over the forget set.
    stream: gives the roles `retain` and `forget`.
    epochs: passes over the forget set.
    learning_rate: of the optimizer.
    weight_decay: see `generation.optimizer`.
    optimizer: `'adamw'` or `'sgd'`.
    alpha: weight of the forget term.
    noise: what n is: `'normal'` in the paper, for others see `noise.get`.

  Raises:
    ValueError: a setting out of its range; no `pixels` for a noise that reads them.
  """
  generation.check('noisy_label', learning_rate=learning_rate, epochs=epochs,
                   weight_decay=weight_decay, alpha=alpha)
  source = noise_lib.get(noise, pixels, wanted_by='noisy_label')

  def term(loss, retain, forget, *, frozen, key):
    n = source.draw(key, frozen['noise'], retain, forget)
    losses, collections = loss({**forget, 'noise': n})
    return generation.mean(losses, forget['mask']), collections

  return _through_both('noisy_label', model, term, source.constants, learning_rate=learning_rate,
                       weight_decay=weight_decay, optimizer=optimizer, alpha=alpha, stream=stream,
                       steps=base.total_steps(epochs, forget_steps))


def retain_label(model: types.Model, *, forget_steps: int = 10, stream: str = 'pair',
                 epochs: float = 5.0, learning_rate: float = 1e-4, weight_decay: float = 0.0,
                 optimizer: str = 'adamw', alpha: float = 0.25) -> types.Method:
  """`min_{theta, phi} E l(T(x_r), x_r) + alpha E l(T(x_f), x_r)` (Eqs. C.29 to C.31).

  Encoder and decoder learn; x_r is the retained picture in the same row of the batch. Eq. C.31 prints
  n as the target, but the text below it says x_r (C.34 is the equation with n); Eq. C.30 prints
  `arg max` for `arg min`. Ours: a pair with padding on either side takes no part in the second term.

  Args:
    model: a generator with `method='loss'`.
    forget_steps: batches in one pass over the forget set.
    stream: gives the roles `retain` and `forget`, in batches of one size.
    epochs: passes over the forget set.
    learning_rate: of the optimizer.
    weight_decay: see `generation.optimizer`.
    optimizer: `'adamw'` or `'sgd'`.
    alpha: weight of the forget term.

  Raises:
    ValueError: a setting out of its range; at the first step, roles of different sizes.
  """
  generation.check('retain_label', learning_rate=learning_rate, epochs=epochs,
                   weight_decay=weight_decay, alpha=alpha)

  def term(loss, retain, forget, **_):
    sizes = [role['image'].shape for role in (retain, forget)]
    if sizes[0] != sizes[1]:
      raise ValueError('retain_label gives every forgotten picture a retained one as its target; the '
                       f'retain batch is {sizes[0]}, the forget batch {sizes[1]}: feed pairs')
    losses, collections = loss({**forget, 'target': retain['image']})
    return generation.mean(losses, forget['mask'] * retain['mask']), collections

  return _through_both('retain_label', model, term, dict, learning_rate=learning_rate,
                       weight_decay=weight_decay, optimizer=optimizer, alpha=alpha, stream=stream,
                       steps=base.total_steps(epochs, forget_steps))


def random_encoder(model: types.Model, *, forget_steps: int = 10, stream: str = 'pair',
                   epochs: float = 5.0, learning_rate: float = 1e-4, weight_decay: float = 0.0,
                   optimizer: str = 'adamw', alpha: float = 0.25, norm: str = 'l2',
                   stage_reduce: str = 'concat', noise: str = 'normal') -> types.Method:
  """`min_theta E ||E_theta(T(x_r)) - E_0(T(x_r))||_2 + alpha E ||E_theta(T(x_f)) - n||_2` (Eq. C.36).

  The encoder alone learns, E_0 is its frozen original; n has the shape of the latent, every stage its
  own, and is drawn anew in every step. Eq. C.35 prints the variance eta for n.

  Args:
    model: a generator with `method='encode'`.
    forget_steps: batches in one pass over the forget set.
    stream: gives the roles `retain` and `forget`.
    epochs: passes over the forget set.
    learning_rate: of the optimizer.
    weight_decay: see `generation.optimizer`.
    optimizer: `'adamw'` or `'sgd'`.
    alpha: weight of the forget term.
    norm: see `losses.i2i.encoder_distance`.
    stage_reduce: of encoders with several stages, likewise.
    noise: `'normal'`: N(0, I), the paper's; `'batch'`: with the mean and the deviation of all numbers
      that E_0 gives for the batch, stage by stage, the release's.

  Raises:
    ValueError: a setting out of its range.
  """
  generation.check('random_encoder', learning_rate=learning_rate, epochs=epochs,
                   weight_decay=weight_decay, alpha=alpha)
  generation.check_distance('random_encoder', norm, stage_reduce)
  if noise not in NOISES:
    raise ValueError(f'random_encoder: noise is one of {", ".join(NOISES)}, got {noise!r}')
  tx = generation.optimizer(optimizer, learning_rate, generation.ENCODER, weight_decay=weight_decay)

  def objective(params, *, state, frozen, batch, key):
    retain, forget = (base.fields(batch, role, 'random_encoder') for role in ('retain', 'forget'))
    retain_key, forget_key, noise_key = jax.random.split(key, 3)
    kept, collections = generation.encode(model, params, state.collections, retain, key=retain_key)
    gone, collections = generation.encode(model, params, collections, forget, key=forget_key)
    goal = generation.reference(model, frozen['reference'], retain, key=retain_key)
    n = _like(noise_key, gone)
    if noise == 'batch':
      other = generation.reference(model, frozen['reference'], forget, key=forget_key)
      masks = (retain['mask'], forget['mask'])
      n = jax.tree.map(lambda z, *stage: _scaled(z, *noise_lib.moments(stage, masks)),
                       n, goal, other)
    found = i2i_losses.unlearning(
        kept, goal, gone, n, alpha=alpha, norm=norm, stage_reduce=stage_reduce,
        retain_where=retain['mask'], forget_where=forget['mask'])
    return found.loss, ({'retain': found.retain, 'forget': found.forget}, collections)

  def init(key, variables):
    return base.initial_state(key, variables, tx), {'reference': base.copied(dict(variables))}

  step = base.gradient_step(objective, tx)
  phase = types.Phase('unlearn', step, base.total_steps(epochs, forget_steps), stream)
  return types.Method(init, (phase,), base.export)


def _like(key: types.Array, tree: types.PyTree) -> types.PyTree:
  """N(0, I) of the shapes of a tree, its leaves independent."""
  leaves, structure = jax.tree.flatten(tree)
  return structure.unflatten([
      jax.random.normal(one, leaf.shape, leaf.dtype)
      for one, leaf in zip(jax.random.split(key, len(leaves)), leaves)])


def _scaled(z: types.Array, mean: types.Array, std: types.Array) -> types.Array:
  return mean + std * z


def _through_both(name: str, model: types.Model, term: Callable, constants: Callable, *,
                  learning_rate: float, weight_decay: float, optimizer: str, alpha: float,
                  stream: str, steps: int) -> types.Method:
  """`E l(T(x_r), x_r) + alpha term`, descended by encoder and decoder.

  Args:
    name: of the method.
    model: the generator.
    term: `(loss, retain, forget, *, frozen, key) -> (scalar, collections)`, where `loss(inputs)` is
      the model's, per picture, and its collections.
    constants: gives `frozen['noise']`.
    learning_rate: as in the method.
    weight_decay: likewise.
    optimizer: likewise.
    alpha: likewise.
    stream: likewise.
    steps: of the one phase.
  """
  tx = generation.optimizer(optimizer, learning_rate, generation.GENERATOR,
                            weight_decay=weight_decay)

  def objective(params, *, state, frozen, batch, key):
    retain, forget = (base.fields(batch, role, name) for role in ('retain', 'forget'))
    retain_key, forget_key, noise_key = jax.random.split(key, 3)
    losses, collections = generation.losses(model, params, state.collections, retain,
                                            key=retain_key)
    kept = generation.mean(losses, retain['mask'])
    loss = lambda inputs: generation.losses(model, params, collections, inputs, key=forget_key)
    gone, collections = term(loss, retain, forget, frozen=frozen, key=noise_key)
    return kept + alpha * gone, ({'retain': kept, 'forget': gone}, collections)

  def init(key, variables):
    return base.initial_state(key, variables, tx), {'noise': constants()}

  phase = types.Phase('unlearn', base.gradient_step(objective, tx), steps, stream)
  return types.Method(init, (phase,), base.export)
