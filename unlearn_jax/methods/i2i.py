"""I2I: the encoder takes forgotten pictures for noise and keeps what it says of the others."""

import jax

from unlearn_jax import types
from unlearn_jax.losses import i2i as losses
from unlearn_jax.methods import base
from unlearn_jax.methods import generation
from unlearn_jax.methods import noise as noise_lib


def i2i(model: types.Model, *, pixels=None, forget_steps: int = 10, stream: str = 'pair',
        epochs: float = 5.0, learning_rate: float = 1e-4, weight_decay: float = 0.0,
        optimizer: str = 'adamw', alpha: float = 0.25, norm: str = 'l2',
        stage_reduce: str = 'concat', noise: str = 'normal', rank: int = 0) -> types.Method:
  """`min_theta ||E_theta(T(x_r)) - E_0(T(x_r))||_2 + alpha ||E_theta(T(x_f)) - E_0(T(n))||_2`.

  Source: Li et al. 2024, Eq. 10 and Algorithm 1. E_0 is a frozen copy of the original encoder, x_r
  and x_f are as many pictures, and n is drawn anew in every step. Only the encoder learns, parameters
  `encoder/...`; neither updates nor decay touch the others. Student and reference see the same
  patches and draw from the same key, so that a family's masks and noise are shared. The settings are
  the paper's for MAE and VQ-GAN (Appendix C.3): AdamW (0.9, 0.95), 1e-4, no decay, 5 epochs, alpha
  0.25; for diffusion it says Adam, 1e-5 and 3 epochs. Sigma = I (Appendix C.4).

  The released code (VQ-GAN and diffusion) has `norm='mse'` and `stage_reduce='sum_of_means'`; for
  VQ-GAN `noise='batch'`, a warm-up over 5 of 6 epochs before half a cosine, decay 0.05, and gradients
  clipped to 3. Ours, where the paper is silent: a constant rate without warm-up, no clipping, epochs
  counted over the forget set, a student in train mode and E_0 in eval mode (as in the release);
  which patches T hides is the stream's choice, and padding takes no part. E_0 is given n in the place
  of the picture, in every family; Eq. C.25 goes on conditioning diffusion on T(x_f).

  The metrics `information_bound/retain` and `information_bound/forget` are the right sides of Eqs. 8
  and 9 for the batch, on latents scaled to unit length as Theorem 1 assumes; they are measured, and
  nothing descends them.

  Args:
    model: a generator with `method='encode'`.
    pixels: statistics of the pictures, see `noise.get`.
    forget_steps: batches in one pass over the forget set.
    stream: gives the roles `retain` and `forget`: `'pair'`, or another one that pairs them (proxies,
      a limited retain set).
    epochs: passes over the forget set.
    learning_rate: of the optimizer.
    weight_decay: see `generation.optimizer`.
    optimizer: `'adamw'` or `'sgd'`.
    alpha: weight of the forget term.
    norm: `'l2'` (paper), `'mse'` (release) or `'l2_normalized'`, see `losses.i2i.encoder_distance`.
    stage_reduce: `'concat'` (paper) or `'sum_of_means'` (release), of encoders with several stages.
    noise: what n is: `'normal'` (paper), `'covariance'`, `'batch'` or `'uniform'`, see `noise.get`.
    rank: of `noise='covariance'`; 0 is exact.

  Raises:
    ValueError: a setting out of its range; no `pixels` for a noise that reads them.
  """
  generation.check('i2i', learning_rate=learning_rate, epochs=epochs, weight_decay=weight_decay,
                   alpha=alpha)
  generation.check_distance('i2i', norm, stage_reduce)
  source = noise_lib.get(noise, pixels, rank=rank, wanted_by='i2i')
  tx = generation.optimizer(optimizer, learning_rate, generation.ENCODER, weight_decay=weight_decay)

  def objective(params, *, state, frozen, batch, key):
    retain, forget = (base.fields(batch, role, 'i2i') for role in ('retain', 'forget'))
    retain_key, forget_key, noise_key = jax.random.split(key, 3)
    kept, collections = generation.encode(model, params, state.collections, retain, key=retain_key)
    gone, collections = generation.encode(model, params, collections, forget, key=forget_key)
    n = source.draw(noise_key, frozen['noise'], retain, forget)
    kept_goal = generation.reference(model, frozen['reference'], retain, key=retain_key)
    gone_goal = generation.reference(model, frozen['reference'], {**forget, 'noise': n},
                                     key=forget_key)
    found = losses.unlearning(
        kept, kept_goal, gone, gone_goal, alpha=alpha, norm=norm, stage_reduce=stage_reduce,
        retain_where=retain['mask'], forget_where=forget['mask'])
    bound = lambda student, goal, role: losses.information_bound(
        student, goal, normalize=True, where=role['mask'])
    return found.loss, ({'retain': found.retain, 'forget': found.forget,
                         'information_bound/retain': bound(kept, kept_goal, retain),
                         'information_bound/forget': bound(gone, gone_goal, forget)}, collections)

  def init(key, variables):
    frozen = {'reference': base.copied(dict(variables)), 'noise': source.constants()}
    return base.initial_state(key, variables, tx), frozen

  steps = base.total_steps(epochs, forget_steps)
  step = base.gradient_step(objective, tx)
  return types.Method(init, (types.Phase('unlearn', step, steps, stream),), base.export)
