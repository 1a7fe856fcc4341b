"""Extractors from weights that the user has downloaded: Inception v3 and CLIP's image tower."""

import functools
import hashlib
import os
import pathlib

import numpy as np

from unlearn_jax import models
from unlearn_jax.evals import extractors
from unlearn_jax.models import contract
from unlearn_jax.models import convert
from unlearn_jax.models import inception as inception_lib

# How the SHA-256 of published weights begins -> metrics that published numbers are made with them.
# Torch hub puts the first eight digits into the names of its files; the longer ones are listed by
# projects that check their downloads.
OFFICIAL = {
    '6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2': ('fid',),
    '0cc3c7bd': ('is',),
    '9a78ef8e8c73fd0df621682e7a8e8eb36c6916cb3c16b291a082ecd52ab79cc4': ('emb_cos',),
}
_INCEPTION = ('pt_inception-2015-12-05-6726825d.pth from the releases of mseitzer/pytorch-fid (FID), '
              "or torchvision's inception_v3_google-0cc3c7bd.pth (inception score)")
_CLIP = ("open_clip's ViT-H-14 of laion2b_s32b_b79k, open_clip_pytorch_model.bin (the paper's), or "
         'another CLIP with a vision transformer')
INCEPTION_SIDE = 299
# open_clip's ViT-H, g and G: 16 heads in the image tower, wider than the 64 of smaller ones.
WIDE_TOWERS = (1280, 1408, 1664)


def _digest(path: str | os.PathLike, wanted: str) -> str:
  """The file's SHA-256.

  Raises:
    FileNotFoundError: says what to download.
  """
  if not pathlib.Path(path).is_file():
    raise FileNotFoundError(f'no weights at {path}: put there {wanted}')
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _official(digest: str) -> tuple[str, ...]:
  return next((metrics for start, metrics in OFFICIAL.items() if digest.startswith(start)), ())


def inception(path: str | os.PathLike, *, batch_size: int = 32) -> extractors.Extractor:
  """Inception v3 with the user's weights, of torchvision or of pytorch-fid.

  Pictures are resized to 299x299 (`extractors.resized`) and read as 2 x - 1. So FIDs are those of
  clean-fid up to its input (255 x - 128) / 128, which differs by less than 1 % of the range; the
  inception scores of the I2I release are made with a bilinear filter and the statistics of CIFAR,
  and cannot be expected to agree to the digit.

  Args:
    path: the file, as `models.inception.load` takes it.
    batch_size: pictures at a time.

  Returns:
    The extractor, 2048 features and the probabilities of the file's classes.

  Raises:
    FileNotFoundError: says what to download.
    ValueError: it is no such file.
  """
  digest = _digest(path, _INCEPTION)
  variables, arguments = inception_lib.load(path)
  model = models.get('inception_v3', **arguments)
  return extractors.network(
      model.apply, variables, f'inception:{arguments["layout"]}:{digest[:8]}', logits='logits',
      prepare=lambda images: 2 * extractors.resized(images, INCEPTION_SIDE) - 1,
      official=_official(digest), batch_size=batch_size)


def clip(path: str | os.PathLike, *, layout: str | None = None, batch_size: int = 32
         ) -> extractors.Extractor:
  """The image tower of a CLIP with the user's weights; features are its unit embeddings.

  Pictures are resized to the tower's size, squeezed if they are not square, and normalised by
  CLIP's statistics.

  Args:
    path: the file, as `models.convert.load` takes it.
    layout: likewise; needed where the file does not tell the activation. The paper's ViT-H-14 is
      known by its hash.
    batch_size: pictures at a time.

  Returns:
    The extractor, without probabilities.

  Raises:
    FileNotFoundError: says what to download.
    ValueError: it is no such file, or does not tell its layout.
  """
  digest = _digest(path, _CLIP)
  official = _official(digest)
  if official and layout is None:
    layout = 'open_clip'
  variables, spec = convert.load(path, layout=layout)
  if spec.model != 'clip':
    raise ValueError(f'{path} is of another model, {spec.model}: put there {_CLIP}')
  arguments = dict(spec.model_args)
  if arguments['image_width'] in WIDE_TOWERS:
    arguments['image_heads'] = 16
  model = models.get('clip', **arguments)
  # The text tower is the larger part of a CLIP, and not needed.
  params = {name: tree for name, tree in variables['params'].items() if name != 'text'}
  mean, std = (np.asarray(values, np.float32) for values in contract.STATISTICS['clip'])
  return extractors.network(
      functools.partial(model.apply, method='encode_image'), {'params': params},
      f'clip:{digest[:8]}', features='image_embedding',
      prepare=lambda images: (extractors.resized(images, spec.image_size) - mean) / std,
      official=official, batch_size=batch_size)
