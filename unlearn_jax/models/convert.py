"""Public CLIP checkpoints in and out: OpenAI, open_clip, LaCLIP, DeCLIP, transformers.

    variables, spec = convert.load('ViT-B-32.pt')
    model = models.get('clip', **spec.model_args)
    ...                                               # unlearn
    convert.save('unlearned.pt', variables, like='ViT-B-32.pt')
"""

from collections.abc import Mapping
import functools
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import types
from unlearn_jax.models import archive
from unlearn_jax.models import clip
from unlearn_jax.models import clip_keys
from unlearn_jax.models import surgery

read = archive.read

Source = str | os.PathLike | Mapping[str, np.ndarray]


class Spec(NamedTuple):
  """What a checkpoint holds.

  Attributes:
    model_args: `models.get('clip', **model_args)` is its model.
    image_size: pixels along a side of its pictures.
    scheme: how it names its tensors: `openai`, `laclip` or `transformers`.
  """

  model_args: dict[str, Any]
  image_size: int
  scheme: str


def _some(what: str, items: list[str]) -> list[str]:
  if not items:
    return []
  return [f'{len(items)} {what}: {", ".join(items[:3])}{", ..." if len(items) > 3 else ""}']


@functools.cache
def _abstract(layout: str, arguments: tuple[tuple[str, int], ...], image_size: int) -> dict:
  model = clip.clip(**{'image_heads': 1, 'text_heads': 1, **dict(arguments), 'layout': layout})

  def init(key):
    return model.init(key, {
        'image': jnp.zeros((1, image_size, image_size, 3)),
        'text': jnp.zeros((1, dict(arguments)['context']), jnp.int32)})

  variables = jax.eval_shape(init, jax.random.key(0))
  return dict(zip(surgery.paths(variables), jax.tree.leaves(variables)))


def _plan(tensors: Mapping[str, Any]) -> tuple[clip_keys.Names, clip_keys.Sizes, dict]:
  """The names and sizes of a checkpoint, and path -> abstract leaf of its model; all checked."""
  names = clip_keys.detect(tensors)
  sizes = clip_keys.sizes(tensors, names)
  # The activation does not matter to shapes, nor the number of heads where it is not known.
  leaves = _abstract(names.layout or 'openai', tuple(sizes.arguments.items()), sizes.image_size)
  expected = {}
  for path, leaf in leaves.items():
    expected |= jax.eval_shape(functools.partial(names.to_file, path), leaf)
  missing = [name for name in expected if name not in tensors]
  unexpected = [name for name in tensors if name not in expected and not names.spare(name)]
  wrong = [f'{name} {tuple(tensors[name].shape)} {tensors[name].dtype} instead of {leaf.shape} '
           'floats' for name, leaf in expected.items() if name in tensors and (
               tuple(tensors[name].shape) != leaf.shape
               or not jnp.issubdtype(tensors[name].dtype, jnp.floating))]
  problems = (_some('missing', missing) + _some('unexpected', unexpected)
              + _some('misshapen', wrong))
  if problems:
    raise ValueError(f'no CLIP by the names of {names.scheme}: '
                     + '; '.join(problems))
  return names, sizes, leaves


def _open(source: Source):
  tensors = source if isinstance(source, Mapping) else read(source)
  try:
    return tensors, *_plan(tensors)
  except ValueError as error:
    where = 'the tensors' if isinstance(source, Mapping) else source
    raise ValueError(f'{where}: {error}') from None


def load(source: Source, *, layout: str | None = None,
         head_width: int = 64) -> tuple[types.Variables, Spec]:
  """Reads a public checkpoint of a CLIP with a vision transformer.

  Names are detected: those of OpenAI (also open_clip's, with the text tower at the top or under
  `text.`, and DeCLIP's, with a biased text projection, at the top or under `encode_text.`), LaCLIP
  (image tower of timm with norms of queries and keys) and `transformers.CLIPModel`; a prefix such
  as `module.` may stand before all of them. Sizes are read from the shapes. Not read: ResNet image
  towers, image towers of timm in open_clip (`visual.trunk.`), SigLIP (its tokenizer is another),
  DeCLIP with a BERT as text tower or with the extra heads of its training.

  Args:
    source: a file, as `read` takes it, or tensors by name.
    layout: `openai` (QuickGELU: OpenAI's weights, open_clip's models whose names end in
      `-quickgelu`, `hidden_act` "quick_gelu" in transformers) or `open_clip` (exact GELU: LAION-2B,
      DataComp, LaCLIP's LAION-400M; "gelu"). The tensors do not tell the activation, and a wrong
      one gives wrong embeddings without an error; None will do where names or buffers tell:
      OpenAI's own archives, LaCLIP, DeCLIP.
    head_width: of every head whose width the shapes do not tell; 64 in all published sizes.

  Returns:
    The variables, float32, and what they are of.

  Raises:
    OSError: there is no such file.
    ValueError: it is damaged; names that are not known; tensors that are missing, superfluous,
      misshapen or no floats (says how many, and which come first); a layout that is needed, or does
      not fit; a width that is no multiple of `head_width`.
    ImportError: safetensors is not installed.
  """
  tensors, names, sizes, leaves = _open(source)
  known = names.layout
  if f'{names.prefix}input_resolution' in tensors:  # a buffer of OpenAI's archives alone
    known = 'openai'
  if known is None and layout not in ('openai', 'open_clip'):
    raise ValueError("the tensors do not tell QuickGELU from GELU: layout is 'openai' or "
                     f"'open_clip' (see convert.load), got {layout!r}")
  if known is not None and layout not in (None, known):
    raise ValueError(f'the checkpoint has layout {known!r}, not {layout!r}')
  arguments = dict(sizes.arguments)
  for tower in ('image', 'text'):
    width = arguments[f'{tower}_width']
    if f'{tower}_heads' not in arguments:
      if width % head_width:
        raise ValueError(f'{tower}_width {width} is no multiple of head_width {head_width}')
      arguments[f'{tower}_heads'] = width // head_width
  variables = clip_keys.variables_of({
      path: np.array(names.from_file(path, tensors), np.float32) for path in leaves})
  return variables, Spec({'layout': known or layout, **arguments}, sizes.image_size, names.scheme)


def save(path: str | os.PathLike, variables: types.Variables, *, like: Source,
         overwrite: bool = False) -> tuple[str, ...]:
  """Writes variables under the names, in the shapes and dtypes of the checkpoint they came from.

  Entries whose variables did not change are written bit by bit as they were, as is everything that
  is no parameter (`position_ids`, NCU's `prompt_ctx`, the code of a TorchScript archive). A change
  below the precision of the file, float16 in OpenAI's, is lost; the returned names tell.

  Args:
    path: the new file, written atomically: a name in `.safetensors` in that format; any other as
      PyTorch's, which must be that of `like`.
    variables: of the model that `load(like)` describes; `params` alone is read.
    like: the file that was loaded, or its tensors. Of a training checkpoint the model alone is
      written: its optimizer state and averages remember the data.
    overwrite: replaces a file that is there.

  Returns:
    The names of the tensors that changed.

  Raises:
    FileExistsError: there is such a file.
    OSError: no such directory, or `like` cannot be read.
    ValueError: `like` is no checkpoint that `load` reads; variables of another model (names the
      first leaf); a value that overflows the file's dtype; and as `archive.write`. Nothing has been
      written then.
    ImportError: safetensors is not installed.
  """
  path = pathlib.Path(path)
  if path.exists() and not overwrite:
    raise FileExistsError(f'{path} exists; overwrite=True replaces it')
  if not path.parent.is_dir():
    raise FileNotFoundError(f'{path.parent} is no directory')
  tensors, names, _, leaves = _open(like)
  found = {'params': variables.get('params', {})}
  if problem := surgery.first_mismatch(clip_keys.variables_of(leaves), found):
    raise ValueError(f'the variables are of another model than the checkpoint: {problem}')
  changed = {}
  for leaf_path, leaf in zip(surgery.paths(found), jax.tree.leaves(found)):
    for name, value in names.to_file(leaf_path, np.asarray(leaf, np.float32)).items():
      old = tensors[name]
      before = old.astype(np.float32)
      same = (before == value) | (np.isnan(before) & np.isnan(value))
      with np.errstate(over='ignore'):
        new = np.where(same, old, value.astype(old.dtype))
      if np.any(np.isinf(new) & ~np.isinf(value)):
        raise ValueError(f'{name}: {np.abs(value).max():.6g} overflows {old.dtype}')
      if not np.array_equal(old, new, equal_nan=True):
        changed[name] = new
  archive.write(path, changed, like=like)
  return tuple(changed)
