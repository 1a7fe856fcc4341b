"""Cross-modal retrieval: recall at K between pictures and captions, both ways."""

from collections.abc import Sequence

import numpy as np

from unlearn_jax.losses import checks

# Cosines of unit vectors that lie closer than float32 can compute them count as equal.
TIE = 2e-6
_BLOCK = 1 << 24  # similarities held at once: 64 MiB


def normalised(name: str, embeddings) -> np.ndarray:
  """Embeddings at unit length, float32 [N, d].

  Raises:
    ValueError: wrong rank, not finite, or rows without a direction.
  """
  checks.check_embeddings(name, embeddings)
  embeddings = np.asarray(embeddings, np.float32)
  return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def recall(image, text, picture, *, at: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
  """Recall at K: the share of queries with a match among the K most similar candidates.

  With s = cos(image, text), the match of a query ranks 1 + #{candidates that do not match, with
  similarity of at least the match's - `TIE`}, and is a hit if its rank is at most K:

  - image to text: a query is a picture, its match the most similar one of its captions, the
    candidates all N captions;
  - text to image: a query is a caption, its match its own picture, the candidates all P pictures.

  This is R@K of Karpathy and Fei-Fei (2015) and of NCU's Table 2, but for ties, which count
  against the model (ours): with a sort, a collapsed model whose similarities are all equal scores
  whatever the order of the candidates gives it, up to 1. Identical captions of two pictures, and
  identical pictures, tie by themselves and so cost a place.

  Args:
    image: [P, d], brought to unit length here.
    text: [N, d], likewise.
    picture: [N] integers in [0, P), the picture of each caption; every picture has one at least.
    at: the Ks.

  Returns:
    `image_to_text/R@K` and `text_to_image/R@K` for every K, and `mean_recall`, the mean of them
    all: shares in [0, 1]. Memory: about 64 MiB beside the embeddings, whatever P and N are.

  Raises:
    ValueError: embeddings that are not finite, of length 0 or of two dimensions; `picture` out of
      range, not integer or of another length; a picture without a caption; a K below 1.
  """
  image, text = normalised('image', image), normalised('text', text)
  picture = np.asarray(picture)
  if image.shape[1] != text.shape[1]:
    raise ValueError(f'image and text embeddings have {image.shape[1]} and {text.shape[1]} '
                     'dimensions; both towers end in one space')
  if picture.shape != (len(text),) or picture.dtype.kind not in 'iu':
    raise ValueError(f'picture must be one integer per caption, [{len(text)}], got '
                     f'{picture.dtype} {picture.shape}')
  if len(wrong := np.flatnonzero((picture < 0) | (picture >= len(image)))):
    raise ValueError(f'caption {wrong[0]} names picture {picture[wrong[0]]}, there are '
                     f'{len(image)} pictures')
  if len(bare := np.setdiff1d(np.arange(len(image)), picture)):
    raise ValueError(f'{len(bare)} pictures have no caption, the first is {bare[0]}: no text could '
                     'be retrieved for them')
  if not at or min(at) < 1:
    raise ValueError(f'recall is taken at one K or more, each at least 1, got {tuple(at)}')

  own = np.einsum('nd,nd->n', image[picture], text)
  best = np.full(len(image), -np.inf, np.float32)
  np.maximum.at(best, picture, own)
  ahead_of_text = np.zeros(len(image), int)  # captions of others ahead of a picture's best one
  ahead_of_image = np.zeros(len(text), int)  # other pictures ahead of a caption's own one
  captions = np.argsort(picture, kind='stable')
  size = max(_BLOCK // len(text), 1)
  for start in range(0, len(image), size):
    block = image[start:start + size] @ text.T  # [size, N]
    first, last = np.searchsorted(picture[captions], (start, start + len(block)))
    inside = captions[first:last]
    block[picture[inside] - start, inside] = -np.inf  # matches are no competitors
    ahead_of_text[start:start + size] = (
        block >= best[start:start + size, None] - TIE).sum(axis=1)
    ahead_of_image += (block >= own - TIE).sum(axis=0)
  metrics = {f'{way}/R@{k}': float(np.mean(ahead < k))
             for way, ahead in (('image_to_text', ahead_of_text),
                                ('text_to_image', ahead_of_image)) for k in at}
  return {**metrics, 'mean_recall': float(np.mean(list(metrics.values())))}
