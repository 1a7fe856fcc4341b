"""What a federation's model still links: retrieval per side, channel swaps, membership, cost."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from unlearn_jax.evals import figures
from unlearn_jax.evals import retrieval

BRANCHES = ('image', 'text')
BYTES = 4  # of a float32


def recall_at_1(image, text, picture=None) -> float:
  """R@1 within a gallery: mean of image to text and text to image.

  Args:
    image: embeddings [N, d], one per pair (the captions of one picture repeat it).
    text: [N, d].
    picture: [N] integers, which pairs share a picture; None is all different.

  Returns:
    Share of queries in [0, 1] whose best match is theirs; ties count against the model, see
    `retrieval.recall`.

  Raises:
    ValueError: see `retrieval.recall`.
  """
  return both_ways(image, text, picture)['R@1']


def both_ways(image, text, picture=None) -> dict[str, float]:
  """`image_to_text/R@K`, `text_to_image/R@K` and their mean `R@K` for K = 1 and 5."""
  picture = np.arange(len(text)) if picture is None else np.asarray(picture)
  _, first, inverse = np.unique(picture, return_index=True, return_inverse=True)
  found = retrieval.recall(np.asarray(image)[first], text, inverse, at=(1, 5))
  del found['mean_recall']
  return found | {f'R@{k}': (found[f'image_to_text/R@{k}'] + found[f'text_to_image/R@{k}']) / 2
                  for k in (1, 5)}


def macro(image, text, picture, client) -> float:
  """Mean over clients of R@1 within each client's own pairs [N, d]; clients count alike."""
  return float(np.mean([recall_at_1(image[client == k], text[client == k], picture[client == k])
                        for k in np.unique(client)]))


def swaps(unlearned: Mapping[str, Any], original: Mapping[str, Any], picture=None
          ) -> dict[str, float]:
  """Channel swaps: each branch of the unlearned model against the other one as it was.

  Whoever kept a copy of one branch (any former client has) can pair it with the published model.
  A branch that was never moved still carries the forgotten pairs, and its swap shows it.

  Args:
    unlearned: `image` and `text` embeddings [N, d] of the forget pairs.
    original: the same before unlearning.
    picture: see `recall_at_1`.

  Returns:
    `swap/image`, R@1 of the unlearned image branch with the original text branch, and `swap/text`.
  """
  return {'swap/image': recall_at_1(unlearned['image'], original['text'], picture),
          'swap/text': recall_at_1(original['image'], unlearned['text'], picture)}


def steps_to(curve, level: float) -> float | None:
  """The first place of a curve [T] that is at least `level`; None if none is."""
  reached = np.flatnonzero(np.asarray(curve) >= level)
  return float(reached[0]) if len(reached) else None


def traffic(rounds: int, clients: int, sizes: Mapping[str, int], basis: int = 0) -> float:
  """Megabytes sent up and down: rounds × clients × 2 × Σ P × 4, and q columns of a basis once."""
  adapter = sum(sizes.values()) * BYTES
  return (rounds * clients * 2 * adapter + clients * basis * BYTES) / 1e6


def heat_map(cosines) -> str:
  """Entanglement of clients, one panel per branch: branch -> E [K, K] in [0, 1]."""
  return figures.heat_maps({f'{branch} branch': values for branch, values in cosines.items()},
                           'client', most=1.0)


@figures.styled
def curves(rows: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]):
  """Curves over rounds, one panel per name: row -> {name: [T]}; `names`: name -> its axis label.

  A row without a curve keeps its place among the colours, so that they tell the same in all figures.
  """
  figure, axes = figures.new_figure(9.0, 3.6, 1, len(names))
  for axis, (name, label) in zip(axes[0], names.items()):
    for index, (row, found) in enumerate(rows.items()):
      if name in found:
        axis.plot(np.arange(len(found[name])), found[name], label=row, color=f'C{index % 10}',
                  linestyle=('-', '--', ':')[index // 10 % 3])
    axis.set_xlabel('federated rounds afterwards')
    axis.set_ylabel(label)
  axes[0][-1].legend(fontsize=7, loc='center left', bbox_to_anchor=(1.0, 0.5))
  return figure
