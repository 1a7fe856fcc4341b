"""The names and layouts of MAGE's and VQ-GAN's tensors in public checkpoints, from our paths.

Schemes: `mage` (the authors' release, tokenizer included) and `vqgan` (its tokenizer alone). Source:
LTH14/mage models_mage.py and taming/.
"""

from collections.abc import Mapping
import math
import re
from typing import Any, NamedTuple

import numpy as np

from unlearn_jax.models import keys

_TOKENIZER = (
    (r'^encoder\.codebook$', 'quantize.embedding.weight'),
    (r'\.(down|up)_(\d+)_block_(\d+)', r'.\1.\2.block.\3'), (r'\.mid_block_', '.mid.block_'),
    (r'\.up_(\d+)_upsample', r'.up.\1.upsample.conv'))
_TRANSFORMER = (
    (r'^encoder\.token_emb\.(word|position)$', r'token_emb.\1_embeddings.weight'),
    (r'^encoder\.token_emb\.norm', 'token_emb.LayerNorm'), (r'^encoder\.', ''),
    (r'^decoder\.position$', 'decoder_pos_embed_learned'),
    (r'^decoder\.head\.norm', 'mlm_layer.ln'), (r'^decoder\.head', 'mlm_layer'),
    (r'^decoder\.', 'decoder_'), (r'blocks_(\d+)', r'blocks.\1'), (r'\.attn\.in_proj', '.attn.qkv'),
    (r'\.attn\.out_proj', '.attn.proj'), (r'(blocks\.\d+)\.(fc[12])\.', r'\1.mlp.\2.'))
# Tables and layers that the release's network has and never reads.
_SPARE = ('cls_token', 'mask_token', 'pos_embed', 'decoder_pos_embed', 'patch_embed.proj.weight',
          'patch_embed.proj.bias', 'decoder_pred.weight', 'decoder_pred.bias',
          'token_emb.position_ids')
_LEADING = {'params/decoder/position': 1, 'params/decoder/head/bias': 2}  # axes of length 1 in files
_WORDS, _CLASS_TOKEN = 1000, 76  # beside codes and [MASK] in the release, and which comes first
# Of the published sizes; shapes tell neither.
_DECODER_HEADS, _GROUPS = 16, 32


class Names(NamedTuple):
  """How one checkpoint names its tensors.

  Attributes:
    scheme: see the top of this file.
    prefix: before every name: '', 'module.' of parallel training, ...
  """

  scheme: str
  prefix: str

  def of(self, path: str) -> tuple[str, ...]:
    """The name under which the parameter at `path` (`params/...`) is stored, in a tuple."""
    name = path.removeprefix('params/').replace('/', '.')
    name = re.sub(r'\.(kernel|scale)$', '.weight', name)
    inside = name.removeprefix('tokenizer.')
    tokenizer = self.scheme == 'vqgan' or inside != name
    for pattern, replacement in _TOKENIZER if tokenizer else _TRANSFORMER:
      inside = re.sub(pattern, replacement, inside)
    return (self.prefix + ('vqgan.' if tokenizer and self.scheme == 'mage' else '') + inside,)

  def spare(self, name: str) -> bool:
    """Whether a tensor is none of the model's parameters, but known to come with them."""
    return self.scheme == 'mage' and name in [self.prefix + each for each in _SPARE]

  def to_file(self, path: str, value: Any) -> dict[str, Any]:
    """Name -> array as it is stored, of a parameter; arrays of numpy or, when traced, of JAX."""
    if path.endswith('/kernel'):  # [in, out] -> [out, in], [h, w, in, out] -> [out, in, h, w]
      value = value.transpose() if value.ndim == 2 else value.transpose(3, 2, 0, 1)
    value = value.reshape((1,) * _LEADING.get(path, 0) + value.shape)
    return {self.of(path)[0]: value}

  def from_file(self, path: str, tensors: Mapping[str, Any], xp=np) -> Any:
    """The inverse of `to_file`; `xp` is the module of the arrays, numpy or jax.numpy."""
    value = xp.asarray(tensors[self.of(path)[0]])
    value = value.reshape(value.shape[_LEADING.get(path, 0):])
    if path.endswith('/kernel'):
      return value.transpose() if value.ndim == 2 else value.transpose(2, 3, 1, 0)
    return value


def detect(tensors: Mapping[str, Any]) -> Names | None:
  """Finds out how a checkpoint names its tensors; None if they are those of no MAGE or VQ-GAN.

  To be asked before `mae_keys.detect`: a MAGE has all the names of a masked autoencoder too.
  """
  for scheme, first, second in (
      ('mage', 'encoder/token_emb/word', 'decoder/embed/kernel'),
      ('vqgan', 'encoder/codebook', 'encoder/mid_block_1/conv1/kernel')):
    names = Names(scheme, '')
    token, = names.of(f'params/{first}')
    other, = names.of(f'params/{second}')
    for name in tensors:
      prefix = name.removesuffix(token)
      if prefix != name and prefix + other in tensors:
        return Names(scheme, prefix)
  return None


class Sizes(NamedTuple):
  """What the shapes tell.

  Attributes:
    arguments: of `models.mage.mage` without `heads`, or of `models.vqgan.vqgan`. Shapes tell neither
      `decoder_heads` nor `groups`: 16, and 32 where that divides all channels, as published.
    image_size: pixels along a side of a picture; of a VQ-GAN alone the least that it takes.
    absent: parts that the file does not hold: none.
  """

  arguments: dict[str, Any]
  image_size: int
  absent: tuple[str, ...] = ()


def sizes(tensors: Mapping[str, Any], names: Names) -> Sizes:
  """Infers the sizes of a MAGE or a VQ-GAN from the shapes of its tensors.

  Raises:
    ValueError: a tensor that tells them is missing or has a wrong shape; positions that fill no
      square; a vocabulary that is not codes, 1000 classes and a mask.
  """
  within = 'params/tokenizer/' if names.scheme == 'mage' else 'params/'

  def shape(path: str, rank: int) -> tuple[int, ...]:
    return keys.shape(tensors, names.of(path)[0], rank)

  def count(path: str) -> int:
    """How many there are of what `{}` numbers in a path."""
    found = 0
    while names.of(path.format(found))[0] in tensors:
      found += 1
    if not found:
      raise ValueError(f'{names.of(path.format(0))[0]!r} is missing')
    return found

  width, channels = shape(within + 'encoder/conv_in/kernel', 4)[:2]
  levels = count(within + 'encoder/down_{}_block_0/conv1/kernel')
  features = [shape(f'{within}encoder/down_{number}_block_0/conv1/kernel', 4)[0]
              for number in range(levels)]
  if any(each % width for each in features):
    raise ValueError(f'the levels of a VQ-GAN have multiples of {width} channels, these {features}')
  codes, latent = shape(within + 'encoder/codebook', 2)
  tokenizer = {'channels': channels, 'width': width,
               'multipliers': tuple(each // width for each in features),
               'blocks': count(within + 'encoder/down_0_block_{}/conv1/kernel'), 'latent': latent,
               'codes': codes, 'groups': math.gcd(_GROUPS, *features)}
  patch = 2**(levels - 1)
  if names.scheme == 'vqgan':
    return Sizes(tokenizer, patch)
  words, width = shape('params/encoder/token_emb/word', 2)
  if words != codes + _WORDS + 1:
    raise ValueError(f'a vocabulary is {codes} codes, {_WORDS} classes and a mask, this has {words}')
  number = shape('params/encoder/token_emb/position', 2)[0] - 1
  side = math.isqrt(max(number, 0))
  if not side or side**2 != number:
    raise ValueError(f'{number} tokens fill no square')
  return Sizes({
      'image_size': side * patch, 'vqgan': tuple(tokenizer.items()), 'width': width,
      'depth': count('params/encoder/blocks_{}/norm1/scale'),
      'decoder_width': shape('params/decoder/embed/kernel', 2)[0],
      'decoder_depth': count('params/decoder/blocks_{}/norm1/scale'),
      'decoder_heads': _DECODER_HEADS, 'classes': _WORDS, 'class_token': _CLASS_TOKEN}, side * patch)
