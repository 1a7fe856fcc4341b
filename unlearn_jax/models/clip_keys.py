"""The names and layouts of CLIP's tensors in public checkpoints, from the paths of clip.py.

Schemes: `openai` (also open_clip's, DeCLIP's), `laclip` (image tower of timm 0.5, as in LaCLIP's
and NCU's code) and `transformers` (`CLIPModel`). Sources: openai/CLIP model.py, LijieFan/LaCLIP
models.py, Sense-GVT/DeCLIP clip.py and text_transformer.py, hhc1997/NCU pkgs, transformers 5.23.
"""

from collections.abc import Mapping
import itertools
import math
import re
from typing import Any, NamedTuple

import numpy as np

from unlearn_jax import types
from unlearn_jax.models import keys

_TRANSFORMERS = (
    (r'^visual\.proj$', 'visual_projection.weight'), (r'^text\.text_projection$',
                                                       'text_projection.weight'),
    (r'^visual\.', 'vision_model.'), (r'^text\.', 'text_model.'),
    (r'transformer\.resblocks', 'encoder.layers'), (r'\.attn\.', '.self_attn.'),
    (r'ln_([12])', r'layer_norm\1'), ('c_fc', 'fc1'), ('c_proj', 'fc2'),
    ('ln_pre', 'pre_layrnorm'), ('ln_post', 'post_layernorm'), ('ln_final', 'final_layer_norm'),
    ('token_embedding', 'embeddings.token_embedding'),
    ('positional_embedding', 'embeddings.position_embedding.weight'),
    ('class_embedding', 'embeddings.class_embedding'), ('conv1', 'embeddings.patch_embedding'))
_TIMM = (
    (r'^visual\.class_embedding', 'visual.cls_token'),
    (r'^visual\.positional_embedding', 'visual.pos_embed'),
    (r'^visual\.conv1', 'visual.patch_embed.proj'), (r'^visual\.ln_post', 'visual.norm'),
    (r'^visual\.transformer\.resblocks', 'visual.blocks'),
    (r'^(visual\.blocks\.\d+)\.ln_', r'\1.norm'),
    (r'^(visual\.blocks\.\d+\.attn)\.in_proj_', r'\1.qkv.'),
    (r'^(visual\.blocks\.\d+\.attn)\.out_proj', r'\1.proj'),
    (r'^(visual\.blocks\.\d+\.mlp)\.c_fc', r'\1.fc1'),
    (r'^(visual\.blocks\.\d+\.mlp)\.c_proj', r'\1.fc2'))
# scheme -> (the name that tells it, rules that make its names from OpenAI's with `text.` in front)
_SCHEMES = {'openai': ('visual.class_embedding', ()), 'laclip': ('visual.cls_token', _TIMM),
            'transformers': ('vision_model.embeddings.class_embedding', _TRANSFORMERS)}
_TEXT = ('', 'text.', 'encode_text.')  # OpenAI's, open_clip's CustomTextCLIP, DeCLIP's
# Axes of size 1 that timm puts in front.
_LEADING = {'params/visual/class_embedding': 2, 'params/visual/positional_embedding': 1}
# Buffers that releases keep beside the parameters, and NCU's prompt.
_SPARE = re.compile(r'(.+\.)?(position_ids|attn_mask)|input_resolution|context_length|vocab_size'
                    r'|prompt_ctx')


class Names(NamedTuple):
  """How one checkpoint names its tensors.

  Attributes:
    scheme: see the top of this file.
    layout: of `models.clip`, where the names tell it; None is `openai` or `open_clip`.
    prefix: before every name: '', 'module.' of parallel training, ...
    text: before the names of the text tower.
    scalar: shape of the logit scale, () or (1,).
  """

  scheme: str
  layout: str | None
  prefix: str
  text: str
  scalar: tuple[int, ...]

  def of(self, path: str) -> tuple[str, ...]:
    """The names under which the parameter at `path` (`params/...`) is stored: one, or q, k, v."""
    name = path.removeprefix('params/').replace('/', '.')
    name = re.sub(r'\.(kernel|scale|embedding)$', '.weight', name)
    name = name.replace('in_proj.', 'in_proj_')
    for pattern, replacement in _SCHEMES[self.scheme][1]:
      name = re.sub(pattern, replacement, name)
    if self.scheme != 'transformers' and name.startswith('text.'):
      name = self.text + name.removeprefix('text.')
    if self.scheme == 'transformers' and 'in_proj_' in name:
      return tuple(self.prefix + name.replace('in_proj_', f'{letter}_proj.') for letter in 'qkv')
    return (self.prefix + name,)

  def spare(self, name: str) -> bool:
    """Whether a tensor is none of the model's parameters, but known to come with them."""
    return bool(_SPARE.fullmatch(name.removeprefix(self.prefix)))

  def _turned(self, path: str) -> bool:
    bare = path in ('params/visual/proj', 'params/text/text_projection')
    return path.endswith('/kernel') or (bare and self.scheme == 'transformers')

  def _leading(self, path: str) -> int:
    return _LEADING.get(path, 0) if self.scheme == 'laclip' else 0

  def to_file(self, path: str, value: Any) -> dict[str, Any]:
    """Name -> array as it is stored, of a parameter; arrays of numpy or, when traced, of JAX."""
    if self._turned(path):  # [H, W, in, out] -> [out, in, H, W]; [in, out] -> [out, in]
      value = value.transpose((3, 2, 0, 1) if value.ndim == 4 else (1, 0))
    shape = self.scalar if path == 'params/logit_scale' else (1,) * self._leading(path) + value.shape
    value = value.reshape(shape)
    return keys.split(self.of(path), value)

  def from_file(self, path: str, tensors: Mapping[str, Any], xp=np) -> Any:
    """The inverse of `to_file`; `xp` is the module of the arrays, numpy or jax.numpy."""
    value = keys.joined(self.of(path), tensors, xp)
    if self._turned(path):
      return value.transpose((2, 3, 1, 0) if value.ndim == 4 else (1, 0))
    return value.reshape(() if path == 'params/logit_scale' else value.shape[self._leading(path):])


def detect(tensors: Mapping[str, Any]) -> Names:
  """Finds out how a checkpoint names its tensors.

  Raises:
    ValueError: in no way that is known here; shows the first names.
  """
  for name in tensors:
    if name.rpartition('.')[2] != 'logit_scale':
      continue
    prefix = name.removesuffix('logit_scale')
    for scheme, (token, _) in _SCHEMES.items():
      if prefix + token in tensors:
        text = next((text for text in _TEXT
                     if f'{prefix}{text}token_embedding.weight' in tensors), '')
        biased = f'{prefix}{text}text_projection.bias' in tensors
        layout = {'openai': 'declip' if biased else None, 'laclip': 'laclip'}.get(scheme)
        return Names(scheme, layout, prefix, text, tuple(tensors[name].shape))
  raise ValueError('no names of a CLIP with a vision transformer, nor of an MAE, known here (OpenAI, '
                   'open_clip, DeCLIP, LaCLIP, transformers); the first ones are: '
                   f'{", ".join(itertools.islice(tensors, 5)) or "none"}')


class Sizes(NamedTuple):
  """What the shapes tell.

  Attributes:
    arguments: of `models.clip.clip`, without `layout`, and without heads unless the shapes tell
      them (LaCLIP's image tower: each head has a norm).
    image_size: pixels along a side of a picture.
  """

  arguments: dict[str, int]
  image_size: int


def sizes(tensors: Mapping[str, Any], names: Names) -> Sizes:
  """Infers the sizes of a CLIP from the shapes of its tensors.

  Raises:
    ValueError: a tensor that tells them is missing or has a wrong number of axes, or patches that
      fill no square.
  """

  def shape(path: str, rank: int) -> tuple[int, ...]:
    return keys.shape(tensors, names.of(path)[0], rank)

  def depth(tower: str) -> int:
    name, = names.of(f'params/{tower}/transformer/resblocks/0/ln_1/scale')
    start = name[:name.index('.0.') + 1]
    return len({key.removeprefix(start).partition('.')[0] for key in tensors
                if key.startswith(start)})

  laclip = names.scheme == 'laclip'
  width, _, _, patch = shape('params/visual/conv1/kernel', 4)
  tokens = shape('params/visual/positional_embedding', 3 if laclip else 2)[-2]
  vocabulary, text_width = shape('params/text/token_embedding/embedding', 2)
  projection = shape('params/image_projection' if laclip else 'params/visual/proj', 2)
  arguments = {
      'embedding': projection[0 if names.scheme == 'transformers' else 1], 'patch': patch,
      'image_width': width, 'image_depth': depth('visual'), 'text_width': text_width,
      'text_depth': depth('text'), 'context': shape('params/text/positional_embedding', 2)[0],
      'vocabulary': vocabulary}
  if laclip:
    head, = shape('params/visual/transformer/resblocks/0/attn/q_norm/scale', 1)
    arguments['image_heads'] = width // max(head, 1)
  side = math.isqrt(max(tokens - 1, 0))
  if side**2 != tokens - 1 or not all(arguments.values()) or not side:
    raise ValueError(f'sizes of no vision transformer: {arguments}, {tokens} image tokens')
  return Sizes(arguments, side * patch)


def variables_of(leaves: Mapping[str, Any]) -> types.Variables:
  """Nested dicts from `/`-joined paths."""
  tree = {}
  for path, leaf in leaves.items():
    node = tree
    *parents, last = path.split('/')
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return tree
