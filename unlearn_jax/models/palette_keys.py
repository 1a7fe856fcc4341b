"""The names and layouts of Palette's tensors in public checkpoints, from the paths of unet.py.

Source: Janspiry/Palette-Image-to-Image-Diffusion-Models, models/network.py and
models/guided_diffusion_modules/unet.py: `denoise_fn.` before the network's names, and the tables of
the schedule beside them; I2I's files may hold a frozen copy, `teacher_denoise_fn.`, too.
"""

from collections.abc import Mapping
import re
from typing import Any, NamedTuple

import numpy as np

from unlearn_jax.models import diffusion
from unlearn_jax.models import keys

_RULES = (
    (r'^encoder\.embedding\.fc1', 'cond_embed.0'), (r'^encoder\.embedding\.fc2', 'cond_embed.2'),
    (r'^encoder\.input_(\d+)', r'input_blocks.\1.0'), (r'^encoder\.middle_', 'middle_block.'),
    (r'^decoder\.output_(\d+)', r'output_blocks.\1.0'), (r'^decoder\.up_(\d+)', r'output_blocks.\1.1'),
    (r'^decoder\.norm', 'out.0'), (r'^decoder\.conv', 'out.2'), (r'\.norm1\.', '.in_layers.0.'),
    (r'\.conv1\.', '.in_layers.2.'), (r'\.affine\.', '.emb_layers.1.'),
    (r'\.norm2\.', '.out_layers.0.'), (r'\.conv2\.', '.out_layers.3.'),
    (r'\.shortcut\.', '.skip_connection.'), (r'\.attn\.in_proj', '.qkv'),
    (r'\.attn\.out_proj', '.proj_out'))
_NETWORK, _TEACHER = 'denoise_fn.', 'teacher_denoise_fn.'
# name of the file -> field of `diffusion.Schedule`
_TABLES = {'gammas': 'gammas', 'sqrt_recip_gammas': 'image_of_state',
           'sqrt_recipm1_gammas': 'image_of_noise', 'posterior_mean_coef1': 'mean_of_image',
           'posterior_mean_coef2': 'mean_of_state',
           'posterior_log_variance_clipped': 'log_variance'}
_SCHEDULE = (2000, 1e-6, 0.01)  # the one that the public models are trained with
GROUPS, HEAD_WIDTH, IMAGE_SIZE = 32, 32, 256  # of all public configurations; the shapes do not tell


class Names(NamedTuple):
  """How one checkpoint names its tensors.

  Attributes:
    prefix: before every name of the network: '', 'denoise_fn.', 'module.denoise_fn.', ...
    head_width: of the attention: the rows of its queries, keys and values are sorted by heads first.
  """

  prefix: str
  head_width: int = HEAD_WIDTH
  scheme: str = 'palette'

  def of(self, path: str) -> tuple[str]:
    """The name under which the parameter at `path` (`params/...`) is stored."""
    name = path.removeprefix('params/').replace('/', '.')
    name = re.sub(r'\.(kernel|scale)$', '.weight', name)
    for pattern, replacement in _RULES:
      name = re.sub(pattern, replacement, name)
    return (self.prefix + name,)

  def spare(self, name: str) -> bool:
    """Whether a tensor is none of the model's parameters, but known to come with them."""
    root = self.prefix.removesuffix(_NETWORK)
    return name in self.tables() or name.startswith(root + _TEACHER)

  def tables(self) -> dict[str, str]:
    """Names of the schedule's tables -> fields of `diffusion.Schedule`."""
    return {self.prefix.removesuffix(_NETWORK) + name: field for name, field in _TABLES.items()}

  def to_file(self, path: str, value: Any) -> dict[str, Any]:
    """Name -> array as it is stored, of a parameter; arrays of numpy or, when traced, of JAX."""
    if '/in_proj/' in path:  # [..., 3 H d] -> [..., H 3 d]
      heads = value.shape[-1] // (3 * self.head_width)
      split = value.reshape(*value.shape[:-1], 3, heads, self.head_width)
      value = split.swapaxes(-3, -2).reshape(value.shape)
    if path.endswith('/kernel'):
      if value.ndim == 4:
        value = value.transpose(3, 2, 0, 1)
      else:
        value = value.transpose()
        value = value[..., None] if '/attn/' in path else value  # a convolution along pixels
    return {self.of(path)[0]: value}

  def from_file(self, path: str, tensors: Mapping[str, Any], xp=np) -> Any:
    """The inverse of `to_file`; `xp` is not needed: every parameter is one tensor."""
    del xp
    value = tensors[self.of(path)[0]]
    if path.endswith('/kernel'):
      if value.ndim == 4:
        value = value.transpose(2, 3, 1, 0)
      else:
        value = (value[..., 0] if '/attn/' in path else value).transpose()
    if '/in_proj/' in path:
      heads = value.shape[-1] // (3 * self.head_width)
      split = value.reshape(*value.shape[:-1], heads, 3, self.head_width)
      value = split.swapaxes(-3, -2).reshape(value.shape)
    return value


def detect(tensors: Mapping[str, Any]) -> Names | None:
  """Finds out how a checkpoint names its tensors; None if they are none of a Palette."""
  first, = Names('').of('params/encoder/embedding/fc1/kernel')
  stem, = Names('').of('params/encoder/input_0/kernel')
  for name in tensors:
    prefix = name.removesuffix(first)
    if name.endswith(first) and prefix + stem in tensors and not prefix.endswith(_TEACHER):
      return Names(prefix)
  return None


class Sizes(NamedTuple):
  """What the shapes tell.

  Attributes:
    arguments: of `models.palette.palette`.
    image_size: pixels along a side of the pictures that it was published for; any will do.
    absent: as in mae_keys.py; a file holds both halves.
  """

  arguments: dict[str, Any]
  image_size: int = IMAGE_SIZE
  absent: tuple[str, ...] = ()


def sizes(tensors: Mapping[str, Any], names: Names) -> Sizes:
  """Infers the sizes of a Palette from names and shapes, and checks its schedule.

  Raises:
    ValueError: a tensor that tells them is missing or has a wrong shape; resolutions that do not have
      the same number of blocks; another schedule than the published one.
  """

  def shape(path: str, rank: int) -> tuple[int, ...]:
    return keys.shape(tensors, names.of(path)[0], rank)

  def number(part: int) -> int:
    pattern = re.escape(names.prefix) + rf'output_blocks\.\d+\.{part}\.in_layers\.0\.weight'
    return sum(bool(re.fullmatch(pattern, name)) for name in tensors)

  width = shape('params/encoder/embedding/fc1/kernel', 2)[1]
  channels = shape('params/decoder/conv/kernel', 4)[0]
  levels, total = 1 + number(1), number(0)
  blocks = total // levels - 1
  if total % levels or blocks < 1:
    raise ValueError(f'sizes of no Palette: {total} blocks on the way up at {levels} resolutions')
  outputs = [shape(f'params/encoder/input_{1 + level * (blocks + 1)}/conv1/kernel', 4)[0]
             for level in range(levels)]
  if any(features % width for features in outputs):
    raise ValueError(f'sizes of no Palette: {outputs} channels are no multiples of {width}')
  _check_tables(tensors, names)
  return Sizes({'channels': channels, 'patch': 16, 'width': width,
                'multipliers': tuple(features // width for features in outputs), 'blocks': blocks,
                'groups': GROUPS, 'head_width': names.head_width})


def _check_tables(tensors: Mapping[str, Any], names: Names) -> None:
  """Ours are computed, so another schedule in the file would be lost without a word."""
  expected = diffusion.schedule(diffusion.linear(*_SCHEDULE))
  for name, field in names.tables().items():
    if name not in tensors:
      continue
    found, wanted = np.asarray(tensors[name], np.float32), getattr(expected, field)
    if found.shape != wanted.shape or not np.allclose(found, wanted, rtol=1e-4, atol=1e-7):
      raise ValueError(f'{name!r} is of another schedule than {_SCHEDULE[0]} steps with beta from '
                       f'{_SCHEDULE[1]} to {_SCHEDULE[2]}, the only one that is read')
