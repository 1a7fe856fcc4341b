"""The names and layouts of MAE's tensors in public checkpoints, from the paths of mae.py.

Schemes: `mae` (the authors' release; an encoder alone or with its decoder), and three of
`transformers.ViTMAEForPreTraining`: `transformers` (version 4 and the published files),
`transformers_5` (`state_dict()` of version 5) and `transformers_5_file` (what version 5.23 saves: it
turns names back for its files, and of `decoder_layers` makes `decoder_encoder.layer`; it reads all).
Sources: facebookresearch/mae models_mae.py, transformers 5.23 modeling_vit_mae.py and
conversion_mapping.py.
"""

from collections.abc import Mapping
import functools
import math
import re
from typing import Any, NamedTuple

import numpy as np

from unlearn_jax.models import keys
from unlearn_jax.models import patches

_RELEASE = (
    (r'^encoder\.', ''), (r'^decoder\.(?!mask_token)', 'decoder_'), (r'^decoder\.', ''),
    (r'blocks_(\d+)', r'blocks.\1'), (r'^patch_embed', 'patch_embed.proj'),
    (r'\.attn\.in_proj', '.attn.qkv'), (r'\.attn\.out_proj', '.attn.proj'),
    (r'\.(fc[12])\.', r'.mlp.\1.'))
_TRANSFORMERS_5 = (
    (r'^encoder\.blocks_(\d+)', r'vit.layers.\1'), (r'^encoder\.norm', 'vit.layernorm'),
    (r'^encoder\.patch_embed', 'vit.embeddings.patch_embeddings.projection'),
    (r'^encoder\.', 'vit.embeddings.'), (r'^decoder\.blocks_(\d+)', r'decoder.decoder_layers.\1'),
    (r'^decoder\.(embed|norm|pred)\.', r'decoder.decoder_\1.'),
    (r'\.norm1\.', '.layernorm_before.'), (r'\.norm2\.', '.layernorm_after.'),
    (r'\.(fc[12])\.', r'.mlp.\1.'), (r'\.attn\.in_proj', '.attention.{}_proj'),
    (r'\.attn\.out_proj', '.attention.o_proj'))
_TRANSFORMERS = (
    *_TRANSFORMERS_5, (r'^vit\.layers', 'vit.encoder.layer'),
    (r'attention\.\{\}_proj', 'attention.attention.{}'),
    (r'attention\.o_proj', 'attention.output.dense'), (r'\.mlp\.fc1', '.intermediate.dense'),
    (r'\.mlp\.fc2', '.output.dense'))
_TRANSFORMERS_5_FILE = (*_TRANSFORMERS, (r'decoder_layers', 'decoder_encoder.layer'))


class _Scheme(NamedTuple):
  """How a publisher names things.

  Attributes:
    rules: make its names from our paths, joined by dots and with `weight` as leaf.
    tables: names of the encoder's and the decoder's position table.
    letters: put into the names of queries, keys and values; empty if they are one tensor.
  """

  rules: tuple[tuple[str, str], ...]
  tables: tuple[str, str]
  letters: tuple[str, ...] = ()


_HUGGING = ('vit.embeddings.position_embeddings', 'decoder.decoder_pos_embed')
_SCHEMES = {
    'mae': _Scheme(_RELEASE, ('pos_embed', 'decoder_pos_embed')),
    'transformers': _Scheme(_TRANSFORMERS, _HUGGING, ('query', 'key', 'value')),
    'transformers_5': _Scheme(_TRANSFORMERS_5, _HUGGING, ('q', 'k', 'v')),
    'transformers_5_file': _Scheme(_TRANSFORMERS_5_FILE, _HUGGING, ('query', 'key', 'value'))}


class Names(NamedTuple):
  """How one checkpoint names its tensors.

  Attributes:
    scheme: see the top of this file.
    prefix: before every name: '', 'module.' of parallel training, ...
    patch: pixels along a side of a patch: our matrix of patches is a convolution in the file.
  """

  scheme: str
  prefix: str
  patch: int

  def of(self, path: str) -> tuple[str, ...]:
    """The names under which the parameter at `path` (`params/...`) is stored: one, or q, k, v."""
    scheme = _SCHEMES[self.scheme]
    name = path.removeprefix('params/').replace('/', '.')
    name = re.sub(r'\.(kernel|scale)$', '.weight', name)
    for pattern, replacement in scheme.rules:
      name = re.sub(pattern, replacement, name)
    if '{}' not in name:
      return (self.prefix + name,)
    return tuple(self.prefix + name.format(letter) for letter in scheme.letters)

  def tables(self) -> tuple[str, str]:
    """The names of both position tables."""
    encoder, decoder = _SCHEMES[self.scheme].tables
    return self.prefix + encoder, self.prefix + decoder

  def spare(self, name: str) -> bool:
    """Whether a tensor is none of the model's parameters, but known to come with them."""
    return name in self.tables()

  def to_file(self, path: str, value: Any) -> dict[str, Any]:
    """Name -> array as it is stored, of a parameter; arrays of numpy or, when traced, of JAX."""
    if path == 'params/encoder/patch_embed/kernel':  # [P*P*C, D] -> [D, C, P, P]
      value = value.reshape(self.patch, self.patch, -1, value.shape[-1]).transpose(3, 2, 0, 1)
    elif path.endswith('/kernel'):
      value = value.transpose()
    return keys.split(self.of(path), value)

  def from_file(self, path: str, tensors: Mapping[str, Any], xp=np) -> Any:
    """The inverse of `to_file`; `xp` is the module of the arrays, numpy or jax.numpy."""
    value = keys.joined(self.of(path), tensors, xp)
    if path == 'params/encoder/patch_embed/kernel':
      return value.transpose(2, 3, 1, 0).reshape(-1, value.shape[0])
    return value.transpose() if path.endswith('/kernel') else value


def detect(tensors: Mapping[str, Any]) -> Names | None:
  """Finds out how a checkpoint names its tensors; None if they are none of an MAE known here."""
  if any(name.rpartition('.')[2] == 'logit_scale' for name in tensors):
    return None  # a CLIP: LaCLIP's image tower has the names of an encoder
  for scheme in _SCHEMES:
    names = Names(scheme, '', 1)
    token, = names.of('params/encoder/cls_token')
    kernel, = names.of('params/encoder/patch_embed/kernel')
    mask, = names.of('params/decoder/mask_token')
    first = [names.of(f'params/{half}/blocks_0/attn/in_proj/kernel')[0]
             for half in ('encoder', 'decoder')]
    for name in tensors:
      prefix = name.removesuffix(token)
      if prefix == name or prefix + kernel not in tensors or prefix + first[0] not in tensors:
        continue
      if prefix + mask not in tensors or prefix + first[1] in tensors:
        return Names(scheme, prefix, (1, *tensors[prefix + kernel].shape)[-1])
  return None


class Sizes(NamedTuple):
  """What the shapes tell.

  Attributes:
    arguments: of `models.mae.mae` without heads; without the decoder's if there is none.
    image_size: pixels along a side of a picture.
    absent: the halves that the file does not hold: () or ('decoder',).
  """

  arguments: dict[str, int]
  image_size: int
  absent: tuple[str, ...]


def sizes(tensors: Mapping[str, Any], names: Names) -> Sizes:
  """Infers the sizes of an MAE from the shapes of its tensors, and checks its position tables.

  Raises:
    ValueError: a tensor that tells them is missing or has a wrong shape; patches that fill no
      square; position tables that are not the fixed ones of this size (learnt, or interpolated).
  """

  shape = functools.partial(keys.shape, tensors)

  def depth(half: str) -> int:
    start = names.of(f'params/{half}/blocks_0/norm1/scale')[0].partition('.0.')[0] + '.'
    return len({key.removeprefix(start).partition('.')[0] for key in tensors
                if key.startswith(start)})

  width, channels, rows, columns = shape(names.of('params/encoder/patch_embed/kernel')[0], 4)
  tables = names.tables()
  tokens = shape(tables[0], 3)[1]
  side = math.isqrt(max(tokens - 1, 0))
  if rows != columns or not side or side**2 != tokens - 1:
    raise ValueError(f'sizes of no MAE: patches of {rows}x{columns}, {tokens} positions')
  arguments = {'image_size': side * rows, 'channels': channels, 'patch': rows, 'width': width,
               'depth': depth('encoder')}
  widths = {tables[0]: width}
  token, = names.of('params/decoder/mask_token')
  if token in tensors:
    widths[tables[1]] = shape(token, 3)[2]
    arguments |= {'decoder_width': widths[tables[1]], 'decoder_depth': depth('decoder')}
  for name, size in widths.items():
    _check_table(name, tensors, side, size)
  return Sizes(arguments, side * rows, () if token in tensors else ('decoder',))


def _check_table(name: str, tensors: Mapping[str, Any], side: int, width: int) -> None:
  """Ours are computed, so another one in the file would be lost without a word."""
  expected = np.zeros((1, 1 + side**2, width), np.float32)
  if name not in tensors:
    raise ValueError(f'{name!r} is missing')
  if width % 4 or tuple(tensors[name].shape) != expected.shape:
    raise ValueError(f'{name!r} should have shape {expected.shape}, has '
                     f'{tuple(tensors[name].shape)}; a width is a multiple of 4')
  expected[0, 1:] = patches.positions(side, width)
  found = np.asarray(tensors[name], np.float32)
  error = np.abs(found - expected).max()
  # A table that was computed in single precision, or stored in half, is still the same.
  if not error <= (1e-4 if tensors[name].dtype.itemsize > 2 else 1e-2):
    raise ValueError(f'{name!r} is not the fixed table of {side}x{side} patches (off by '
                     f'{error:.3g}): learnt or interpolated positions are not read')
