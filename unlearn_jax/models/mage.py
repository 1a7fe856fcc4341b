"""MAGE (Li et al., CVPR 2023): a generator that completes pictures token by token.

Parameters lie under `encoder/` and `decoder/`, and under `tokenizer/` those of a VQ-GAN, which nobody
trains; mage_keys.py knows their names in public checkpoints.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp

from unlearn_jax import types
from unlearn_jax.models import contract
from unlearn_jax.models import layers
from unlearn_jax.models import mage_masking
from unlearn_jax.models import mage_transformer
from unlearn_jax.models import patches as patches_lib
from unlearn_jax.models import surgery
from unlearn_jax.models import vqgan as vqgan_lib

HIDES = ('tokens', 'pixels')
_SMOOTHING = 0.1  # of labels


@dataclasses.dataclass(frozen=True, eq=False)
class _Generator:
  """A transformer over the tokens of a VQ-GAN; see `mage` for what the fields mean."""

  module: mage_transformer.Transformer
  quantizer: types.Model
  tokenizer: types.PyTree | None
  patch: int
  channels: int
  fill: tuple[float, ...]
  hide: str
  grow: int
  steps: int
  temperature: float

  @property
  def number(self) -> int:
    return self.module.encoder.number

  @property
  def side(self) -> int:
    return round(self.number**0.5)

  @property
  def picture(self) -> tuple[int, int, int]:
    return (self.side * self.patch, self.side * self.patch, self.channels)

  @functools.cached_property
  def network(self) -> types.Model:
    return contract.from_linen(self.module, ('tokens', 'visible', 'masked'))

  @functools.cached_property
  def head(self) -> types.Model:
    return contract.from_linen(self.module, ('latent', 'visible', 'masked'))

  def init(self, key, inputs):
    visible, _ = self.fields(inputs, 'image')
    network_key, tokenizer_key = jax.random.split(key)
    picture = {'image': jnp.zeros((1, *self.picture))}
    tokenizer = self.tokenizer
    if tokenizer is None:
      tokenizer = self.quantizer.init(tokenizer_key, picture)['params']
    else:
      expected = jax.eval_shape(lambda: self.quantizer.init(tokenizer_key, picture)['params'])
      if problem := surgery.first_mismatch(expected, tokenizer):
        raise ValueError(f'mage: the tokenizer is no VQ-GAN of these sizes: {problem}')
      tokenizer = jax.tree.map(jnp.array, tokenizer)  # the training loop consumes what it is given
    params = self.network.init(network_key, {
        'tokens': jnp.zeros((len(visible), self.number), jnp.int32), 'visible': visible,
        'masked': jnp.zeros(visible.shape, bool)})['params']
    return {'params': {**params, 'tokenizer': tokenizer}}

  def apply(self, variables, inputs, *, train=False, rngs=None, method=None):
    methods = {None: self.complete, 'encode': self.encode, 'decode': self.decode, 'loss': self.loss}
    if method not in methods:
      raise ValueError(f'mage: method is None, encode, decode or loss, got {method!r}')
    return methods[method](variables['params'], inputs, train, rngs), variables

  def fields(self, inputs: types.Inputs, *names: str) -> list[jax.Array]:
    """The fields by name, `visible` first, checked."""
    for name in ('visible', *names):
      if name not in inputs:
        raise ValueError(f'the model wants input {name!r}, the batch has {sorted(inputs)}')
    visible, *others = (jnp.asarray(inputs[name]) for name in ('visible', *names))
    patches_lib.check_shape(visible, self.number)
    latent = (1 + visible.shape[1], self.module.encoder.width)
    for name, value in zip(names, others):
      expected = latent if name == 'latent' else self.picture
      if value.shape[1:] != expected:
        raise ValueError(f'mage: {name} is {"x".join(map(str, expected))}, got '
                         f'{"x".join(map(str, value.shape[1:]))}')
    layers.check_lengths('mage', visible=visible, **dict(zip(names, others)))
    return [visible, *others]

  def masked(self, visible: jax.Array, rngs) -> jax.Array:
    """Which visible tokens are shown as [MASK]: none without a key."""
    key = (rngs or {}).get('noise')
    if key is None:
      return jnp.zeros(visible.shape, bool)
    return mage_masking.further(jax.random.fold_in(key, 0), *visible.shape, self.number)

  def tokens(self, params: Mapping, image: jax.Array) -> jax.Array:
    outputs, _ = self.quantizer.apply({'params': params['tokenizer']}, {'image': image},
                                      method='encode')
    return outputs['tokens'].reshape(len(image), self.number)

  def pixels(self, params: Mapping, tokens: jax.Array) -> jax.Array:
    outputs, _ = self.quantizer.apply({'params': params['tokenizer']}, {
        'tokens': tokens.reshape(-1, self.side, self.side)}, method='decode')
    return outputs['image']

  def hole(self, visible: jax.Array) -> jax.Array:
    """True where pixels are hidden, [B, H, H, 1]."""
    mask = mage_masking.hidden(visible, self.number).reshape(-1, self.side, self.side)
    return jnp.repeat(jnp.repeat(mask, self.patch, axis=1), self.patch, axis=2)[..., None]

  def filled(self, image: jax.Array, visible: jax.Array) -> jax.Array:
    return jnp.where(self.hole(visible), jnp.asarray(self.fill, image.dtype), image)

  def shown(self, params: Mapping, image: jax.Array, visible: jax.Array) -> jax.Array:
    """The tokens of T(x) in training; those that are hidden are not read."""
    return self.tokens(params, self.filled(image, visible) if self.hide == 'pixels' else image)

  def encode(self, params, inputs, train, rngs):
    inputs = contract.noise_as_picture(inputs, 'encode')
    visible, image = self.fields(inputs, 'image')
    fields = {'tokens': self.shown(params, image, visible), 'visible': visible,
              'masked': self.masked(visible, rngs)}
    return self.network.apply({'params': params}, fields, train=train, rngs=rngs,
                              method='encode')[0]

  def decode(self, params, inputs, train, rngs):
    visible, latent = self.fields(inputs, 'latent')
    fields = {'latent': latent, 'visible': visible, 'masked': self.masked(visible, rngs)}
    outputs, _ = self.head.apply({'params': params}, fields, train=train, rngs=rngs, method='decode')
    return {'image': self.pixels(params, jnp.argmax(outputs['logits'], axis=2))}

  def wanted(self, params, inputs, image, rngs):
    """The tokens that are to be produced."""
    if 'noise' not in inputs:
      _, target = self.fields(inputs, 'target') if 'target' in inputs else (None, image)
      return self.tokens(params, target)
    if (rngs or {}).get('noise') is None:
      raise ValueError("mage: noise to be produced is random tokens: pass rngs={'noise': key}")
    return jax.random.randint(jax.random.fold_in(rngs['noise'], 1), (len(image), self.number), 0,
                              self.module.encoder.codes)

  def loss(self, params, inputs, train, rngs):
    visible, image = self.fields(inputs, 'image')
    masked = self.masked(visible, rngs)
    goal = self.wanted(params, inputs, image, rngs)
    fields = {'tokens': self.shown(params, image, visible), 'visible': visible, 'masked': masked}
    outputs, _ = self.network.apply({'params': params}, fields, train=train, rngs=rngs)
    log_p = jax.nn.log_softmax(outputs['logits'])  # [B, N, codes]
    likelihood = jnp.take_along_axis(log_p, goal[:, :, None], axis=2)[:, :, 0]
    losses = -(1 - _SMOOTHING) * likelihood - _SMOOTHING * jnp.mean(log_p, axis=2)
    gone = mage_masking.hidden(visible, self.number)
    gone = gone.at[jnp.arange(len(visible))[:, None], visible].set(masked)
    return {'loss': jnp.sum(jnp.where(gone, losses, 0), axis=1) / jnp.sum(gone, axis=1)}

  def complete(self, params, inputs, train, rngs):
    inputs = contract.noise_as_picture(inputs, None)
    visible, image = self.fields(inputs, 'image')
    everywhere = jnp.broadcast_to(jnp.arange(self.number), (len(image), self.number))

    def predict(tokens, masked):
      return self.network.apply({'params': params}, {
          'tokens': tokens, 'visible': everywhere, 'masked': masked})[0]['logits']

    unknown = mage_masking.grown(mage_masking.hidden(visible, self.number), self.grow)
    key = (rngs or {}).get('noise', jax.random.key(0))
    tokens = mage_masking.paint(
        predict, self.tokens(params, self.filled(image, visible)), unknown,
        jax.random.fold_in(key, 2), steps=self.steps, temperature=self.temperature)
    painted = jnp.where(self.hole(visible), self.pixels(params, tokens), image)
    return {'image': painted, **self.encode(params, inputs, train, rngs)}


def untied(variables: types.Variables) -> types.Variables:
  """Variables of `mage(tied=True)` as those of `mage(tied=False)`: the same function so far.

  The head gets a copy of the encoder's words, so that unlearning the encoder leaves it alone.
  """
  params = variables['params']
  decoder, word = params['decoder'], params['encoder']['token_emb']['word']
  codes = len(params['tokenizer']['encoder']['codebook'])  # their words come first
  head = {**decoder['head'], 'word': jnp.array(word[:codes])}
  return {**variables, 'params': {**params, 'decoder': {**decoder, 'head': head}}}


def mage(*, image_size: int = 32, vqgan: Mapping[str, Any] | Sequence[tuple[str, Any]] | None = None,
         tokenizer: types.PyTree | None = None, width: int = 64, depth: int = 4, heads: int = 4,
         decoder_width: int = 48, decoder_depth: int = 2, decoder_heads: int = 4, classes: int = 1,
         class_token: int = 0, dropout: float = 0.1, tied: bool = True, hide: str = 'tokens',
         fill: Sequence[float] = contract.STATISTICS['imagenet'][0], grow: int = 1,
         steps: int = 20, temperature: float = 6.0, compute_dtype: str = 'float32') -> types.Model:
  """A MAGE of any size over a VQ-GAN; the default sizes are ours, for 32x32 on two cores.

  Li et al. 2023, "MAGE: masked generative encoder to unify representation learning and image
  synthesis", section 3, in the reading of the authors' PyTorch release. A picture is N tokens of a
  VQ-GAN, one per patch of P = 2^(levels - 1) pixels. The encoder sees K of them behind a class token,
  some of the K as [MASK]; the decoder sees their encodings, in all other places that of the class
  token, and predicts codes. With M the tokens that are hidden or masked and t_i those of the target,

    loss(x, t) = 1/|M| sum_{i in M} -0.9 log p_i(t_i) - 0.1 mean_c log p_i(c)

  per picture, over codes alone; its mean over a batch is the release's loss, since all rows have
  equally many in M.

  Which tokens: `visible` says the K that are left by T(x), and the others are dropped, as the release
  drops half. In `encode` and `loss` the key `rngs['noise']` masks more of them, see
  `mage_masking.further`: with half of the patches hidden these are exactly the release's two masks.
  Equal keys give equal masks, so that in unlearning student and reference share theirs; without a key
  only `visible` counts. The released unlearning code hides tokens of the whole picture
  (`hide='tokens'`, as MAGE is trained), though what a token says depends on pixels beyond its patch.
  Li et al. 2024 write E(T(x)), of a picture with a hole: `hide='pixels'` fills the hole in before
  there are tokens. A completed picture is always made so, and nothing hidden can reach it.

  Ways to call `apply(variables, inputs, method=...)`:
    None: `image` [B, H, H, C], `visible` [B, K] -> `image`, completed, and `latent`, as `encode`. The
      hole is filled with `fill`, and the tokens in it and up to `grow` around it are painted by
      `mage_masking.paint`; the hole then shows what the VQ-GAN decodes, all else the input. (The
      release blends both along the border.) The key is `rngs['noise']`, or 0; no dropout.
    `encode`: the same inputs -> `latent` [B, 1 + K, width], the class token first, then the visible
      ones in the order of `visible`, after the last layer norm.
    `decode`: `latent`, `visible` -> `image`: the likeliest code everywhere, decoded. With the key that
      encoded, the same tokens count as masked.
    `loss`: `image`, `visible` and, if wanted, `target` (default `image`) -> `loss` [B].
  A field `noise` takes the place of `image` in `encode`. In `loss` it says that noise is to be
  produced: uniformly random codes from `rngs['noise']`, the random tokens of Li et al. 2024, Eq. C.33;
  the picture of noise itself is not read. (The release draws ids around the mean id of the batch.)

  Pictures are in [0, 1], with no other normalisation, for the VQ-GAN's sake.

  The head compares with the encoder's words, through which no gradient flows. So unlearning an
  encoder changes the decoder's last layer too, in the release as well. `tied=False` gives the head
  words of its own, `decoder/head/word`; `untied` turns variables of one into the other.

  Training: blocks have no dropout, as in the released unlearning code (0.1 in MAGE's pre-training);
  embeddings have, from the stream `dropout` in train mode. Initial values are the release's: Xavier
  uniform for matrices, 0 for biases, normal with deviation 0.02 for words and positions.

  Args:
    image_size: H, pixels along a side of a square picture; a multiple of P.
    vqgan: arguments of `vqgan.vqgan`, or pairs of name and value; None is its defaults.
    tokenizer: its trained parameters; None draws new ones.
    width: D of the encoder, a multiple of `heads`.
    depth: its blocks.
    heads: its heads.
    decoder_width: of the decoder, a multiple of `decoder_heads`.
    decoder_depth: its blocks.
    decoder_heads: its heads.
    classes: words beside codes and [MASK] in the vocabulary; all but one serve nothing.
    class_token: which of them stands first, 0 to classes - 1.
    dropout: rate of embeddings, in [0, 1).
    tied: the head compares with the encoder's words.
    hide: `'tokens'` or `'pixels'`, what is taken away in `encode` and `loss`.
    fill: values of a hole, one per channel, or one for all; ImageNet's mean in the release.
    grow: tokens around a hole that are painted too, since it disturbs them; 1 in the release.
    steps: rounds of painting.
    temperature: of the noise in their confidences, at the first round.
    compute_dtype: of the transformer's layers; parameters, latents, pictures and losses are float32.

  Returns:
    The model; `init` returns the given tokenizer with a new transformer.

  Raises:
    TypeError, ValueError: an argument of the wrong type or out of range; on init, a tokenizer that is
      no such VQ-GAN's; on init and apply, a missing field, an unknown method, pictures of another
      size, `visible` that is no integer array [B, K] or leaves nothing visible or nothing hidden
      (`patches.check_visible` looks at the values), a latent that does not fit; noise to be produced
      without a key.
  """
  layers.check_positive('mage', image_size=image_size, width=width, depth=depth, heads=heads,
                        decoder_width=decoder_width, decoder_depth=decoder_depth,
                        decoder_heads=decoder_heads, classes=classes, steps=steps)
  layers.check_rate('mage', dropout=dropout)
  quantizer = vqgan_lib.vqgan(**dict(vqgan or {}))
  bound = inspect.signature(vqgan_lib.vqgan).bind(**dict(vqgan or {}))
  bound.apply_defaults()
  channels, codes = bound.arguments['channels'], bound.arguments['codes']
  patch, fill = 2**(len(bound.arguments['multipliers']) - 1), tuple(fill)
  if image_size % patch:
    raise ValueError(f'mage: tokens of {patch} pixels do not tile a picture of '
                     f'{image_size}x{image_size}')
  for half, size, number in (('', width, heads), ('decoder_', decoder_width, decoder_heads)):
    if size % number:
      raise ValueError(f'mage: {half}width must be a multiple of {half}heads, got {size} and '
                       f'{number}')
  if not 0 <= class_token < classes:
    raise ValueError(f'mage: class_token is 0 to classes - 1, got {class_token} of {classes}')
  if len(fill) not in (1, channels):
    raise ValueError(f'mage: fill has {len(fill)} values, a picture {channels} channels')
  if hide not in HIDES:
    raise ValueError(f'mage: hide is one of {", ".join(HIDES)}, got {hide!r}')
  if grow < 0 or temperature < 0:
    raise ValueError(f'mage: grow and temperature are at least 0, got {grow} and {temperature}')
  dtype, number = layers.dtype_of('mage', compute_dtype), (image_size // patch)**2
  module = mage_transformer.Transformer(
      mage_transformer.Encoder(codes, classes, class_token, number, width, depth, heads, dropout,
                               dtype),
      mage_transformer.Decoder(codes + classes + 1, number, decoder_width, decoder_depth,
                               decoder_heads, tied, dtype))
  generator = _Generator(module, quantizer, tokenizer, patch, channels, fill, hide, grow, steps,
                         temperature)
  return types.Model(generator.init, generator.apply)


def mage_vit_b(*, image_size: int = 256, tokenizer: types.PyTree | None = None, dropout: float = 0.1,
               tied: bool = True, hide: str = 'tokens', compute_dtype: str = 'float32'
               ) -> types.Model:
  """ViT-B with the published decoder (768 wide, 8 blocks, 16 heads) and tokenizer; as `mage`.

  144,896,745 parameters beside the tokenizer's 54,515,587. The release counts 146,079,465: it holds
  1,182,720 more that nothing reads (`patch_embed` 590,592, `decoder_pred` 590,592, `cls_token` and
  `mask_token` 768 each). The encoder, which unlearning trains, has 86,810,112; with the 257 numbers of
  its buffer `position_ids` 86,810,369.
  """
  return mage(image_size=image_size, vqgan=vqgan_lib.PUBLISHED, tokenizer=tokenizer, width=768,
              depth=12, heads=12, decoder_width=768, decoder_depth=8, decoder_heads=16, classes=1000,
              class_token=76, dropout=dropout, tied=tied, hide=hide, compute_dtype=compute_dtype)
