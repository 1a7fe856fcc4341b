"""What turns pictures into features and class probabilities, for `generative`.

A number belongs to its extractor: FIDs of two networks have nothing in common. `title` names it, and
gives the plain names FID, IS and CLIP to the weights alone that published numbers are made with.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from unlearn_jax.evals import run
from unlearn_jax.losses import checks

TITLES = {'fid': 'FID', 'is': 'IS', 'emb_cos': 'CLIP'}
_CHANNELS = (16, 32, 64)  # of the random network


class Extractor(NamedTuple):
  """A fixed network that measures pictures.

  Attributes:
    id: what it is, with what tells two of a kind apart: `classifier:5f0c2a91`.
    features: pictures [N, H, W, C] in [0, 1] -> float32 [N, D].
    probabilities: pictures -> p(y|x), float32 [N, K]; None if it has no classes.
    official: metrics, out of `TITLES`, that published numbers are made with these weights.
  """

  id: str
  features: Callable[[np.ndarray], np.ndarray]
  probabilities: Callable[[np.ndarray], np.ndarray] | None = None
  official: tuple[str, ...] = ()


def title(metric: str, extractor: Extractor) -> str:
  """How a report calls a metric: `fid[classifier:5f0c2a91]`; `FID` with the published weights."""
  if metric not in TITLES:
    raise ValueError(f'metric is one of {", ".join(TITLES)}, got {metric!r}')
  return TITLES[metric] if metric in extractor.official else f'{metric}[{extractor.id}]'


def network(apply: Callable, variables: Any, name: str, *, features: str = 'features',
            logits: str | None = None, prepare: Callable[[np.ndarray], np.ndarray] | None = None,
            official: tuple[str, ...] = (), batch_size: int = 256) -> Extractor:
  """An extractor of a model of this toolkit, in evaluation mode.

  Pictures are clipped to [0, 1] first, as a picture file would.

  Args:
    apply: of the model; input `image`.
    variables: of the model.
    name: id of the extractor.
    features: name of the output [B, D].
    logits: name of the output [B, K] whose softmax are the probabilities; None: there are none.
    prepare: pictures [B, H, W, C] in [0, 1] -> what the model reads, batch by batch.
    official: see `Extractor`.
    batch_size: pictures at a time.

  Returns:
    The extractor; its functions raise ValueError unless pictures are finite [N, H, W, C], N > 0.
  """
  def outputs(images, wanted):
    images = checked(images)
    size = min(batch_size, len(images))
    found = []
    for start in range(0, len(images), size):
      part = images[start:start + size]
      batch = run.pad(part, size)  # one shape, one compilation
      batch = batch if prepare is None else prepare(batch)
      done = run.predict(apply, variables, {'image': batch}, batch_size=size, names=(wanted,))
      found.append(np.asarray(done[wanted], np.float32)[:len(part)])
    return np.concatenate(found)

  def probabilities(images):
    return np.asarray(jax.nn.softmax(outputs(images, logits), axis=-1))

  return Extractor(name, lambda images: outputs(images, features),
                   None if logits is None else probabilities, official)


def classifier(apply: Callable, variables: Any, name: str, *, batch_size: int = 256) -> Extractor:
  """Penultimate features and softmax of a classifier, say one trained on the same data.

  Arguments as `network`; the model's outputs are `features` and `logits`.
  """
  return network(apply, variables, name, logits='logits', batch_size=batch_size)


def random_conv(seed: int) -> Extractor:
  """64 features of three random convolutions: for smoke tests only, it knows nothing of pictures.

  3x3, stride 2, He's normal weights drawn from `seed`, ReLU, mean over the picture.
  """
  def apply(variables, inputs, *, train=False):
    del train
    x, rng = inputs['image'], np.random.default_rng(seed)
    for channels in _CHANNELS:
      shape = (3, 3, x.shape[-1], channels)
      kernel = jnp.asarray(rng.normal(size=shape) * (2 / np.prod(shape[:3]))**0.5, x.dtype)
      x = jax.nn.relu(lax.conv_general_dilated(
          x, kernel, (2, 2), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')))
    return {'features': jnp.mean(x, axis=(1, 2))}, variables

  return network(apply, {}, f'random_conv:{seed}')


def checked(images) -> np.ndarray:
  """Finite pictures, float32 [N, H, W, C], clipped to [0, 1].

  Raises:
    ValueError: not finite, another rank, or no picture.
  """
  images = np.asarray(images, np.float32)
  if images.ndim != 4 or not images.size:
    raise ValueError(f'pictures must be [N, H, W, C] with one at least, got shape {images.shape}')
  checks.check_finite('pictures', images)
  return np.clip(images, 0.0, 1.0)


def resized(images: np.ndarray, side: int) -> np.ndarray:
  """Colour pictures of side x side, by PIL's antialiased bicubic filter on floats.

  Each channel for itself and without rounding to bytes, as clean-fid does (Parmar et al. 2022);
  values may leave the range by a little. Grey pictures become colour ones of equal channels.

  Args:
    images: float32 [N, H, W, C], C 1 or 3.
    side: pixels.

  Returns:
    float32 [N, side, side, 3].

  Raises:
    ValueError: another number of channels.
  """
  if images.shape[-1] not in (1, 3):
    raise ValueError(f'pictures with 1 or 3 channels, got {images.shape[-1]}')
  planes = [np.stack([np.asarray(Image.fromarray(plane).resize((side, side), Image.Resampling.BICUBIC))
                      for plane in np.moveaxis(picture, -1, 0)], axis=-1)
            for picture in np.ascontiguousarray(images, np.float32)]
  return np.broadcast_to(np.stack(planes), (len(images), side, side, 3))
