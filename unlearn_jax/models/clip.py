"""CLIP (Radford et al., 2021): two towers, in the layouts of the checkpoints that NCU unlearns.

Parameters carry OpenAI's names under `visual/` and `text/`: joining a path by dots, dropping
`text.` and renaming the leaf (kernel, scale or embedding -> weight) gives the name in OpenAI's
state dict, by the rule of resnet.py: `text/transformer/resblocks/0/mlp/c_fc/kernel` is
`transformer.resblocks.0.mlp.c_fc.weight` there, `attn/in_proj/kernel` is `attn.in_proj_weight`.
"""

import math
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from unlearn_jax import types
from unlearn_jax.models import clip_tokenizer
from unlearn_jax.models import clip_towers
from unlearn_jax.models import contract
from unlearn_jax.models import layers

tokenize = clip_tokenizer.tokenize


class Layout(NamedTuple):
  """What tells the families apart; the attributes are those of the towers.

  Attributes:
    image: style of the image tower.
    text: style of the text tower.
    separate: the image projection is a parameter of the whole model, `image_projection`, and so
      outlives a rule that freezes `visual/.*`.
    logit_scale: its initial value, a logarithm.
    logit_bias: initial value of the bias of a sigmoid loss; None is a model without.
  """

  image: clip_towers.Style
  text: clip_towers.Style
  separate: bool = False
  class_token: bool = True
  pre_norm: bool = True
  patch_bias: bool = False
  projection_bias: bool = False
  pool_last: bool = False
  logit_scale: float = -math.log(0.07)
  logit_bias: float | None = None


_OPENAI = clip_towers.Style(clip_towers.quick_gelu, 1e-5)
_OPEN_CLIP = clip_towers.Style(clip_towers.gelu, 1e-5)
_TIMM = clip_towers.Style(clip_towers.gelu, 1e-6)
_SIGLIP = clip_towers.Style(jax.nn.gelu, 1e-6)  # the tanh approximation
LAYOUTS = {
    'openai': Layout(_OPENAI, _OPENAI._replace(causal=True)),
    'open_clip': Layout(_OPEN_CLIP, _OPEN_CLIP._replace(causal=True)),
    'laclip': Layout(_TIMM._replace(qk_norm=True), _OPENAI._replace(causal=True), separate=True,
                     pre_norm=False, patch_bias=True),
    'declip': Layout(_OPENAI, _OPENAI._replace(causal=True), projection_bias=True),
    'siglip': Layout(_SIGLIP, _SIGLIP, class_token=False, pre_norm=False, patch_bias=True,
                     projection_bias=True, pool_last=True, logit_scale=math.log(10),
                     logit_bias=-10.0),
}


def init_prompt(key: types.Array, variables: types.Variables, slots: int = 8) -> types.Array:
  """Fresh prompt vectors for the text tower of `variables`.

  Args:
    key: typed PRNG key.
    variables: of a model of this file.
    slots: m; 8 in NCU's release.

  Returns:
    [m, text_width], normal with deviation 0.02 as in NCU's release: the field `prompt` of `clip`.
  """
  width = variables['params']['text']['positional_embedding'].shape[-1]
  return 0.02 * jax.random.normal(key, (slots, width))


def _normalised(x: jax.Array) -> jax.Array:
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


class TwoTowers(nn.Module):
  """Both towers and the logit scale."""

  layout: Layout
  embedding: int
  visual: nn.Module
  text: nn.Module

  def setup(self):
    def scalar(name, value):
      return self.param(name, nn.initializers.constant(value), (), jnp.float32)

    self.logit_scale = scalar('logit_scale', self.layout.logit_scale)
    if self.layout.logit_bias is not None:
      self.logit_bias = scalar('logit_bias', self.layout.logit_bias)
    if self.layout.separate:
      width = self.visual.width
      self.image_projection = self.param('image_projection', nn.initializers.normal(width**-0.5),
                                         (width, self.embedding), jnp.float32)

  def encode_image(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    del train
    x, features = self.visual(image)
    x = x @ self.image_projection if self.layout.separate else x
    return {'image_embedding': _normalised(x), 'features': features}

  def encode_text(self, text: jax.Array, prompt: jax.Array | None = None, *,
                  train: bool) -> dict[str, jax.Array]:
    del train
    return {'text_embedding': _normalised(self.text(text, prompt))}

  def __call__(self, image: jax.Array, text: jax.Array, prompt: jax.Array | None = None, *,
               train: bool) -> dict[str, jax.Array]:
    scalars = {'logit_scale': self.logit_scale}
    if self.layout.logit_bias is not None:
      scalars['logit_bias'] = self.logit_bias
    return {**self.encode_image(image, train=train), **self.encode_text(text, prompt, train=train),
            **scalars}


def _as_model(module: TwoTowers) -> types.Model:
  """The module over the fields that a method reads, the prompt among them where there is one."""
  fields = {None: ('image', 'text'), 'encode_image': ('image',), 'encode_text': ('text',)}

  def apply(variables, inputs, *, train=False, rngs=None, method=None):
    if method not in fields:
      raise ValueError(f'clip: method is None, encode_image or encode_text, got {method!r}')
    wanted = fields[method]
    if 'text' in wanted and 'prompt' in inputs:
      wanted = (*wanted, 'prompt')
    return contract.from_linen(module, wanted).apply(variables, inputs, train=train, rngs=rngs,
                                                     method=method)

  return types.Model(contract.from_linen(module, fields[None]).init, apply)


def clip(*, layout: str = 'openai', embedding: int = 64, patch: int = 8, image_width: int = 128,
         image_depth: int = 3, image_heads: int = 4, text_width: int = 128, text_depth: int = 2,
         text_heads: int = 4, context: int = 32, vocabulary: int = clip_tokenizer.VOCABULARY,
         compute_dtype: str = 'float32') -> types.Model:
  """A CLIP of any size; small by default, for pictures of about 32x32 on two cores.

  v = P_v f_v(image) / ||.||, t = P_t f_t(text) / ||.||; the logits of a batch are exp(logit_scale)
  v t^T (Radford et al. 2021, figure 3).

  Layouts:
    `openai`: layer norm before the first block, QuickGELU, eps 1e-5, both projections bare
      matrices inside their towers.
    `open_clip`: `openai` with the exact GELU; open_clip's models but those named `-quickgelu`.
    `laclip`: image tower of timm, without that layer norm, exact GELU, eps 1e-6, layer norms on
      queries and keys, patch embedding with bias, its projection a parameter `image_projection` of
      its own; text tower as `openai`. The networks of NCU's CC3M and CC12M runs.
    `declip`: `openai` with a bias in the text projection; NCU's YFCC15M-R runs.
    `siglip`: both towers pre-norm with tanh GELU, no causal mask (padding is attended to), the last
      position pooled, attention pooling of the patches (a learnt query, so `embedding` equals
      `image_width`), a logit bias (Zhai et al. 2023). Not SigLIP's tokenizer: `tokenize` is CLIP's.

  Initial values are OpenAI's for the text tower, but zero biases; the image tower's blocks follow
  the same rule (ours; the releases leave them at PyTorch's or timm's defaults). The position
  embedding of the patches has the size of the pictures given to `init`.

  Args:
    layout: one of `LAYOUTS`.
    embedding: dimension of the common space.
    patch: pixels along a side of a patch; it divides the sides of the pictures.
    image_width: tokens' dimension in the image tower; a multiple of `image_heads`.
    image_depth: its blocks.
    image_heads: its heads.
    text_width: of the text tower; a multiple of `text_heads`. A prompt has this width.
    text_depth: its blocks.
    text_heads: its heads.
    context: L, tokens in a row of text, as `tokenize(..., context_length=L)` makes them.
    vocabulary: token ids lie below it, and EOT is the highest id in a row.
    compute_dtype: of the blocks; parameters and outputs are float32.

  Returns:
    The model. Inputs `image` [B, H, W, 3], `text` [B, L] int32 and, if wanted, `prompt` [m,
    text_width]: vectors that take the places of tokens 1 to m (`tokenize(..., prompt_slots=m)`
    leaves them free), differentiable, with which NCU turns captions into their negatives. Outputs
    `image_embedding`, `text_embedding` [B, embedding] of unit length (no epsilon: a zero state is
    NaN), `features` [B, image_width] before the image projection, and `logit_scale`, the log scale;
    `logit_bias` with `siglip`. `method='encode_image'` or `'encode_text'` runs one tower on its own
    field.

  Raises:
    TypeError, ValueError: an argument of the wrong type or out of range; on init and apply, a
      missing field, a patch that does not tile, text that is not [B, L] integers, a prompt of
      another width or too long for the context.
  """
  if layout not in LAYOUTS:
    raise ValueError(f'clip: layout is one of {", ".join(LAYOUTS)}, got {layout!r}')
  layers.check_positive('clip', embedding=embedding, patch=patch, image_width=image_width,
                        image_depth=image_depth, image_heads=image_heads, text_width=text_width,
                        text_depth=text_depth, text_heads=text_heads, context=context,
                        vocabulary=vocabulary)
  for side, width, heads in (('image', image_width, image_heads), ('text', text_width, text_heads)):
    if width % heads:
      raise ValueError(f'clip: {side}_width must be a multiple of {side}_heads, got {width} and '
                       f'{heads}')
  chosen, dtype = LAYOUTS[layout], layers.dtype_of('clip', compute_dtype)
  if not chosen.class_token and embedding != image_width:
    raise ValueError(f'clip: layout {layout!r} has no image projection, so embedding must equal '
                     f'image_width, got {embedding} and {image_width}')
  inside = chosen.class_token and not chosen.separate
  visual = clip_towers.ImageTower(
      chosen.image, patch, image_width, image_depth, image_heads, embedding if inside else None,
      chosen.class_token, chosen.pre_norm, chosen.patch_bias, dtype)
  text = clip_towers.TextTower(
      chosen.text, vocabulary, context, text_width, text_depth, text_heads, embedding,
      chosen.projection_bias, chosen.pool_last, dtype)
  return _as_model(TwoTowers(chosen, embedding, visual, text))


def clip_vit_b_32(*, layout: str = 'openai', compute_dtype: str = 'float32') -> types.Model:
  """ViT-B/32 of the published sizes, 151,277,313 parameters (`openai`, 224x224); as `clip`."""
  return clip(layout=layout, embedding=512, patch=32, image_width=768, image_depth=12,
              image_heads=12, text_width=512, text_depth=12, text_heads=8, context=77,
              compute_dtype=compute_dtype)


def clip_vit_b_16(*, layout: str = 'openai', compute_dtype: str = 'float32') -> types.Model:
  """ViT-B/16, 149,620,737 parameters (`openai`, 224x224); arguments as `clip`."""
  return clip(layout=layout, embedding=512, patch=16, image_width=768, image_depth=12,
              image_heads=12, text_width=512, text_depth=12, text_heads=8, context=77,
              compute_dtype=compute_dtype)


def clip_vit_l_14(*, layout: str = 'openai', compute_dtype: str = 'float32') -> types.Model:
  """ViT-L/14, 427,616,513 parameters (`openai`, 224x224); arguments as `clip`."""
  return clip(layout=layout, embedding=768, patch=14, image_width=1024, image_depth=24,
              image_heads=16, text_width=768, text_depth=12, text_heads=12, context=77,
              compute_dtype=compute_dtype)
