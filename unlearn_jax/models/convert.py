"""Public checkpoints in and out: CLIP (OpenAI, open_clip, LaCLIP, DeCLIP, transformers), generators.

    variables, spec = convert.load('ViT-B-32.pt')
    model = models.get(spec.model, **spec.model_args)
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
from unlearn_jax.models import mae
from unlearn_jax.models import mae_keys
from unlearn_jax.models import mage
from unlearn_jax.models import mage_keys
from unlearn_jax.models import palette
from unlearn_jax.models import palette_keys
from unlearn_jax.models import surgery
from unlearn_jax.models import vqgan

read = archive.read

Source = str | os.PathLike | Mapping[str, np.ndarray]
_Names = clip_keys.Names | mae_keys.Names | mage_keys.Names | palette_keys.Names
_Sizes = clip_keys.Sizes | mae_keys.Sizes | mage_keys.Sizes | palette_keys.Sizes
# Networks by their sizes; the number of heads does not matter to shapes.
_NETWORKS = {
    'clip': lambda sizes: clip.clip(**{'image_heads': 1, 'text_heads': 1, **sizes}),
    'mae': lambda sizes: mae.mae(**{**sizes, 'heads': 1, 'decoder_heads': 1}),
    'mage': lambda sizes: mage.mage(**{**sizes, 'heads': 1, 'decoder_heads': 1}),
    'palette': lambda sizes: palette.palette(**sizes),
    'vqgan': lambda sizes: vqgan.vqgan(**sizes),
}


class Spec(NamedTuple):
  """What a checkpoint holds.

  Attributes:
    model_args: `models.get(model, **model_args)` is its model.
    image_size: pixels along a side of its pictures.
    scheme: how it names its tensors: `openai`, `laclip` or `transformers` of a CLIP; see mae_keys.py
      for those of an MAE; else the model's name.
    model: `clip`, `mae`, `mage`, `palette` or `vqgan`.
    absent: parts of the model that the file does not hold: ('decoder',) of an MAE's encoder alone.
  """

  model_args: dict[str, Any]
  image_size: int
  scheme: str
  model: str = 'clip'
  absent: tuple[str, ...] = ()


def _some(what: str, items: list[str]) -> list[str]:
  if not items:
    return []
  return [f'{len(items)} {what}: {", ".join(items[:3])}{", ..." if len(items) > 3 else ""}']


@functools.cache
def _abstract(model: str, arguments: tuple[tuple[str, Any], ...], image_size: int) -> dict:
  """Path -> abstract leaf of a model."""
  arguments = dict(arguments)
  network = _NETWORKS[model](arguments)

  def init(key):  # each takes what it reads
    image = jnp.zeros((1, image_size, image_size, arguments.get('channels', 3)))
    return network.init(key, {'image': image, 'visible': jnp.zeros((1, 1), jnp.int32),
                              'text': jnp.zeros((1, arguments.get('context', 1)), jnp.int32)})

  variables = jax.eval_shape(init, jax.random.key(0))
  return dict(zip(surgery.paths(variables), jax.tree.leaves(variables)))


def _describe(tensors: Mapping[str, Any]) -> tuple[str, _Names, _Sizes, dict]:
  """The model of a checkpoint, its names and sizes, and path -> abstract leaf of what it holds."""
  for family in (mage_keys, mae_keys, palette_keys):  # MAGE first: it has the names of an MAE too
    if (names := family.detect(tensors)) is not None:
      sizes = family.sizes(tensors, names)
      model = 'mae' if family is mae_keys else names.scheme  # of an MAE there are several schemes
      leaves = _abstract(model, tuple(sizes.arguments.items()), sizes.image_size)
      return model, names, sizes, {
          path: leaf for path, leaf in leaves.items() if path.split('/')[1] not in sizes.absent}
  names = clip_keys.detect(tensors)
  sizes = clip_keys.sizes(tensors, names)
  # The activation does not matter to shapes.
  arguments = {**sizes.arguments, 'layout': names.layout or 'openai'}
  return 'clip', names, sizes, _abstract('clip', tuple(arguments.items()), sizes.image_size)


def _plan(tensors: Mapping[str, Any]) -> tuple[str, _Names, _Sizes, dict]:
  """As `_describe`, with every tensor checked."""
  model, names, sizes, leaves = _describe(tensors)
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
    raise ValueError(f'no {model.upper()} by the names of {names.scheme}: ' + '; '.join(problems))
  return model, names, sizes, leaves


def _open(source: Source):
  tensors = source if isinstance(source, Mapping) else read(source)
  try:
    return tensors, *_plan(tensors)
  except ValueError as error:
    where = 'the tensors' if isinstance(source, Mapping) else source
    raise ValueError(f'{where}: {error}') from None


def _layout(tensors: Mapping[str, Any], names: clip_keys.Names, given: str | None) -> str:
  known = names.layout
  if f'{names.prefix}input_resolution' in tensors:  # a buffer of OpenAI's archives alone
    known = 'openai'
  if known is None and given not in ('openai', 'open_clip'):
    raise ValueError("the tensors do not tell QuickGELU from GELU: layout is 'openai' or "
                     f"'open_clip' (see convert.load), got {given!r}")
  if known is not None and given not in (None, known):
    raise ValueError(f'the checkpoint has layout {known!r}, not {given!r}')
  return known or given


def load(source: Source, *, layout: str | None = None, head_width: int = 64,
         decoder_head_width: int = 32) -> tuple[types.Variables, Spec]:
  """Reads a public checkpoint of a CLIP with a vision transformer, or of a generator.

  Names are detected, and a prefix such as `module.` may stand before all of them. Sizes are read
  from the shapes.

  CLIP: the names of OpenAI (also open_clip's, with the text tower at the top or under `text.`, and
  DeCLIP's, with a biased text projection, at the top or under `encode_text.`), LaCLIP (image tower
  of timm with norms of queries and keys) and `transformers.CLIPModel`. Not read: ResNet image
  towers, image towers of timm in open_clip (`visual.trunk.`), SigLIP (its tokenizer is another),
  DeCLIP with a BERT as text tower or with the extra heads of its training.

  MAE: the names of the authors' release and of `transformers.ViTMAEForPreTraining`. Of the release's
  files, `mae_pretrain_vit_*.pth` hold the encoder alone: so do the variables, `spec.absent` is
  ('decoder',), and a decoder of one's own stays with

      variables = surgery.load(model.init(key, fields), variables, keep='params/decoder/.*')

  The tensors do not tell whether targets were normalised: they were in `mae_pretrain_*_full.pth`, so
  its model is `models.get('mae', **spec.model_args, normalize_targets=True)`, and not in
  `mae_visualize_*.pth`. The position tables must be the fixed ones. Not read: fine-tuned classifiers.
  `transformers` sets the epsilon of layer norms to 1e-12 unless told; ours is the release's 1e-6.

  MAGE: the authors' files, with the tokenizer in them, and that tokenizer (`vqgan`) alone. 16 heads in
  the decoder and 32 groups, as published, for the shapes do not tell; the token head is tied.

  Palette: the public implementation's `*_Network.pth`, and I2I's, whose frozen copy is not read; with
  the published schedule, 32 groups and heads of 32. The files that end in `_ema` are alike. Patches
  of its holes are 16 pixels, ours.

  Args:
    source: a file, as `read` takes it, or tensors by name.
    layout: of a CLIP, `openai` (QuickGELU: OpenAI's weights, open_clip's models whose names end in
      `-quickgelu`, `hidden_act` "quick_gelu" in transformers) or `open_clip` (exact GELU: LAION-2B,
      DataComp, LaCLIP's LAION-400M; "gelu"). The tensors do not tell the activation, and a wrong
      one gives wrong embeddings without an error; None will do where names or buffers tell:
      OpenAI's own archives, LaCLIP, DeCLIP.
    head_width: of every head whose width the shapes do not tell; 64 in all published sizes but MAE's
      ViT-H, which has 80.
    decoder_head_width: of the heads of an MAE's decoder; 32 in all published sizes.

  Returns:
    The variables, float32, and what they are of.

  Raises:
    OSError: there is no such file.
    ValueError: it is damaged; names that are not known; tensors that are missing, superfluous,
      misshapen or no floats (says how many, and which come first); a layout that is needed, or does
      not fit; a width that is no multiple of its head width; position tables of another kind.
    ImportError: safetensors is not installed.
  """
  tensors, model, names, sizes, leaves = _open(source)
  arguments, absent = dict(sizes.arguments), ()
  if model == 'clip':
    arguments = {'layout': _layout(tensors, names, layout), **arguments}
    head_widths = {'image_': head_width, 'text_': head_width}
  elif layout is not None:
    raise ValueError(f'layout is of a CLIP, this is of model {model!r}; got {layout!r}')
  elif model in ('palette', 'vqgan'):
    head_widths = {}  # in the arguments, or none
  else:
    absent = sizes.absent
    head_widths = {'': head_width, 'decoder_': decoder_head_width}
  for part, each in head_widths.items():
    width = arguments.get(f'{part}width')
    if width is None or f'{part}heads' in arguments:
      continue
    if width % each:
      raise ValueError(f'{part}width {width} is no multiple of '
                       f'{"decoder_" if part == "decoder_" else ""}head_width {each}')
    arguments[f'{part}heads'] = width // each
  variables = clip_keys.variables_of({
      path: np.array(names.from_file(path, tensors), np.float32) for path in leaves})
  return variables, Spec(arguments, sizes.image_size, names.scheme, model, absent)


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
  tensors, _, names, _, leaves = _open(like)
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
