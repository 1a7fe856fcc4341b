"""Palette (Saharia et al., SIGGRAPH 2022): a diffusion that completes pictures; a generator.

unet.py is its network, diffusion.py the process. Constants are those of the public implementation
(Janspiry/Palette-Image-to-Image-Diffusion-Models) that I2I unlearns.
"""

from collections.abc import Sequence
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import types
from unlearn_jax.models import diffusion
from unlearn_jax.models import layers
from unlearn_jax.models import patches
from unlearn_jax.models import unet

_METHODS = {None: ('image', 'visible'), 'encode': ('image', 'visible'),
            'decode': ('image', 'visible', 'latent'), 'loss': ('image', 'visible')}


class _Draws(NamedTuple):
  """What a call draws, in this order whichever method it is.

  Attributes:
    gamma: [B], level of the noise.
    noise: eps [B, H, W, C].
    fill: [B, H, W, C], what the condition has in the hole.
    chain: key of the sampler's steps.
  """

  gamma: jax.Array
  noise: jax.Array
  fill: jax.Array
  chain: jax.Array


def _hole(visible: jax.Array, shape: tuple[int, ...], patch: int) -> jax.Array:
  """1 where a pixel is hidden: [B, H, W, 1]; NaN in rows that do not name K patches."""
  rows, columns = shape[1] // patch, shape[2] // patch
  hidden = jnp.ones((shape[0], rows * columns)).at[jnp.arange(shape[0])[:, None], visible].set(0)
  right = hidden.sum(axis=1, keepdims=True) == rows * columns - visible.shape[1]
  hidden = jnp.where(right, hidden, jnp.nan).reshape(shape[0], rows, columns, 1)
  return hidden.repeat(patch, axis=1).repeat(patch, axis=2)


def palette(*, channels: int = 3, patch: int = 4, width: int = 32,
            multipliers: Sequence[int] = (1, 2), blocks: int = 1, groups: int = 8,
            head_width: int = 32, steps: int = 2000, beta: Sequence[float] = (1e-6, 0.01),
            sampling_steps: int | None = None, dropout: float = 0.0, shared_noise: bool = False,
            compute_dtype: str = 'float32') -> types.Model:
  """A diffusion model of any size that paints holes; the default size is ours, for 16x16 pictures.

  With f the network, m = 1 in the hole, y_0 the picture, gamma a level of noise, eps and u standard
  normal, T(x) = (1 - m) x + m u and y_gamma = sqrt(gamma) y_0 + sqrt(1 - gamma) eps:

    loss(x, y_0) = mean((m eps - m f([T(x), m y_gamma + (1 - m) x], gamma))^2) over all H*W*C numbers,

  so that a picture with a larger hole weighs more. gamma is drawn per picture, between the levels of
  two neighbouring steps of the linear schedule (`diffusion.draw_levels`). Norms of groups with
  epsilon 1e-5, SiLU, attention in the middle block alone.

  The network works in [-1, 1]: wrap it with `contract.normalized(model, *STATISTICS['half'])`.

  Ways to call `apply(variables, inputs, method=...)`:
    None: `image` [B, H, W, C], `visible` [B, K] -> `image`, the completed picture: y_T = T(x), then
      ancestral sampling over all steps of the schedule, or over `sampling_steps` evenly spaced ones
      (`diffusion.respaced`), with the estimate of y_0 clipped to [-1, 1] and the visible pixels put
      back in every step. Nothing of the hole's truth reaches it, and nothing is dropped out. And
      `latent`, as `encode`.
    `encode`: the same inputs -> `latent`, the tuple of stages of one draw: outputs of the input blocks
      and of the middle block, 13 at the published size. They see the hole's truth through noise, as
      in training (E_theta of I2I, Eq. C.25, is given the noisy picture). With a field `noise`
      [B, H, W, C], n is in the hole in the place of y_gamma, while T(x) and the visible pixels stay
      those of the picture: the second encoder of Eq. C.25.
    `decode`: `latent`, `visible` and the `image` of `encode` -> `image`, the estimate of y_0 at that
      level of noise, (y_gamma - sqrt(1 - gamma) eps_hat) / sqrt(gamma), clipped to [-1, 1]. The
      network predicts noise, so y_gamma is needed too: give the picture and the key that `encode`
      was given. This is what training sees of a picture, no completion; outside of the hole nothing
      trains it.
    `loss`: `image`, `visible` -> `loss` [B]. With a field `target`, y_0 is the target in the hole
      (x_r in the second term of Eq. C.29) and T(x) and the visible pixels are the picture's; with a
      field `noise`, n is in the hole and eps to be predicted (Eq. C.32, which prints eta for n).

  A loss of denoising does not see completed pictures, and a network's encoding of T(x) alone does not
  exist: the distances of I2I are between encodings at one level of noise.

  Draws (gamma, eps, u and the sampler's) come from `rngs['noise']`: equal keys give equal draws in all
  methods, with `noise` and without. Without a key, evaluation draws from key 0; training refuses.
  Dropout draws from `rngs['dropout']` in train mode.

  Initial values: PyTorch's uniform in +-1/sqrt(fan in), biases 0 (ours); the last convolution of
  every residual branch, of the attention and of the network 0, as in guided diffusion (the release
  draws these anew with He's normal). The first loss is thus mean((m eps)^2).

  Averages of weights: the release keeps one (decay 0.9999, `reconstruct(ema=...)` here), and I2I's
  evaluates the weights themselves, the default here.

  Args:
    channels: C.
    patch: pixels along a side of a patch of the grid that `visible` counts.
    width: W, channels of the first stage, a multiple of `groups` and even.
    multipliers: of W, at each resolution; every further one halves the sides.
    blocks: residual blocks at each resolution (one more on the way up).
    groups: of the norms.
    head_width: channels of an attention head; W times the last multiplier is a multiple of it.
    steps: T, of the schedule.
    beta: of the first and of the last step; at the defaults gamma_T is 4.4e-5.
    sampling_steps: steps that a completion takes; None is all.
    dropout: rate.
    shared_noise: puts eps in the hole where a field `noise` asks for n, as the released code does,
      whose forget reference shares the draw of the student; False is the paper's independent n.
    compute_dtype: of the layers; parameters, latents, pictures and losses are float32.

  Returns:
    The model.

  Raises:
    TypeError, ValueError: an argument of the wrong type or out of range; on init and apply, a missing
      field, an unknown method, pictures whose sides are no multiples of `patch` and of
      2^(resolutions - 1), `visible` as in `mae`, a latent of other shapes, `noise` where nothing is
      to be noise; on apply in train mode, no key.
  """
  multipliers, beta = tuple(multipliers), tuple(beta)
  layers.check_positive('palette', channels=channels, patch=patch, width=width, blocks=blocks,
                        groups=groups, head_width=head_width, steps=steps,
                        **{f'multipliers[{i}]': value for i, value in enumerate(multipliers)})
  layers.check_rate('palette', dropout=dropout)
  if not multipliers or len(beta) != 2:
    raise ValueError('palette: multipliers holds one number or more and beta two, got '
                     f'{multipliers} and {beta}')
  if width % 2 or width % groups or width * multipliers[-1] % head_width:
    raise ValueError(f'palette: width must be even and a multiple of {groups} groups, and width * '
                     f'{multipliers[-1]} one of head_width {head_width}; got {width}')
  betas = diffusion.linear(steps, *beta)
  tables = diffusion.schedule(betas)
  chain = tables if sampling_steps is None else diffusion.schedule(
      diffusion.respaced(betas, sampling_steps))
  sizes = (width, multipliers, blocks, groups, head_width, dropout,
           layers.dtype_of('palette', compute_dtype))
  network = unet.UNet(unet.Encoder(*sizes), unet.Decoder(*sizes, channels))

  def read(inputs, method):
    """The fields that a method needs, in order, and the hole."""
    for name in _METHODS[method]:
      if name not in inputs:
        raise ValueError(f'the model wants input {name!r}, the batch has {sorted(inputs)}')
    image, visible, *rest = (inputs[name] for name in _METHODS[method])
    image, visible = check(image), jnp.asarray(visible)
    patches.check_shape(visible, image.shape[1] // patch * (image.shape[2] // patch))
    layers.check_lengths('palette', image=image, visible=visible)
    return image, _hole(visible, image.shape, patch), *rest

  def check(image, like=None):
    image = jnp.asarray(image)
    layers.check_image(image)
    unit = np.lcm(patch, 2**(len(multipliers) - 1))
    if image.shape[3] != channels or image.shape[1] % unit or image.shape[2] % unit:
      raise ValueError(f'palette: pictures have sides that are multiples of {unit}, and {channels} '
                       f'channels; got {"x".join(map(str, image.shape[1:]))}')
    if like is not None and image.shape != like.shape:
      raise ValueError(f'palette: target and noise have the shape of the pictures, {like.shape}, got '
                       f'{image.shape}')
    return image

  def draw(key, shape):
    level, noise, fill, chain_key = jax.random.split(key, 4)
    return _Draws(diffusion.draw_levels(level, tables, shape[0]), jax.random.normal(noise, shape),
                  jax.random.normal(fill, shape), chain_key)

  def content(inputs, image, draws, method):
    """What the network sees in the hole."""
    if 'noise' in inputs:
      n = check(inputs['noise'], image)
      return draws.noise if shared_noise else n
    if method == 'loss' and 'target' in inputs:
      image = check(inputs['target'], image)
    return diffusion.noisy(image, draws.noise, draws.gamma)

  # Compiled because only the variables are wanted: XLA drops the forward pass.
  @functools.partial(jax.jit, static_argnums=1)
  def create(key, shape):
    return network.init(key, jnp.zeros((*shape[:3], 2 * channels)), jnp.zeros(shape[0]), train=False)

  def init(key, inputs):
    return dict(create(key, read(inputs, None)[0].shape))

  def apply(variables, inputs, *, train=False, rngs=None, method=None):
    if method not in _METHODS:
      raise ValueError(f'palette: method is None, encode, decode or loss, got {method!r}')
    if 'noise' in inputs and method != 'encode' and (method != 'loss' or 'target' in inputs):
      raise ValueError("noise stands in for the hole's content in method 'encode' or 'loss', there "
                       f'without a target; got method {method!r} and {sorted(inputs)}')
    key = (rngs or {}).get('noise')
    if key is None:
      if train:
        raise ValueError("palette draws from stream 'noise' in train mode: pass rngs={'noise': key}")
      key = jax.random.key(0)
    image, hole, *latent = read(inputs, method)
    draws = draw(key, image.shape)

    def call(*arguments, dropout=train, method=None):
      keys = {'dropout': rngs['dropout']} if dropout and 'dropout' in rngs else None
      return network.apply(variables, *arguments, train=dropout, rngs=keys, method=method)

    if method == 'decode':
      stages = latent[0]
      expected = [(len(image), *shape) for shape in unet.stage_shapes(
          image.shape[1:3], width, multipliers, blocks)]
      if [jnp.shape(stage) for stage in stages] != expected:
        raise ValueError(f'palette: the latent of these pictures has stages {expected}, got '
                         f'{[jnp.shape(stage) for stage in stages]}')
      noise, gamma = call(stages, draws.gamma, method='decode'), draws.gamma[:, None, None, None]
      state = diffusion.noisy(image, draws.noise, draws.gamma)
      estimate = (state - jnp.sqrt(1 - gamma) * noise) / jnp.sqrt(gamma)
      return {'image': jnp.clip(estimate, -1.0, 1.0)}, variables

    known = diffusion.inside(hole, draws.fill, image)  # T(x)
    sees = diffusion.inside(hole, content(inputs, image, draws, method), image)
    sees = jnp.concatenate([known, sees], axis=3)
    if method == 'loss':
      error = hole * (draws.noise - call(sees, draws.gamma))
      return {'loss': jnp.mean(jnp.square(error), axis=(1, 2, 3))}, variables
    outputs = {'latent': call(sees, draws.gamma, method='encode')}
    if method is None:

      def predict(state, gamma):
        return call(jnp.concatenate([known, state], axis=3), gamma, dropout=False)

      outputs['image'] = diffusion.inpaint(predict, chain, draws.chain, known, image, hole)
    return outputs, variables

  return types.Model(init, apply)


def palette_256(*, sampling_steps: int | None = None, dropout: float = 0.2,
                shared_noise: bool = False, patch: int = 16, compute_dtype: str = 'float32'
                ) -> types.Model:
  """The network of the public in-painting configurations, for 256x256 pictures; as `palette`.

  62,641,347 parameters, of which 25,044,416 are the encoder's; 13 stages. I2I unlearns it with
  `dropout=0.0`. Its holes lie on a grid of 16x16 patches, ours for comparison with `mae_vit_b`; the
  public training draws boxes and strokes of pixels.
  """
  return palette(patch=patch, width=64, multipliers=(1, 2, 4, 8), blocks=2, groups=32,
                 sampling_steps=sampling_steps, dropout=dropout, shared_noise=shared_noise,
                 compute_dtype=compute_dtype)
