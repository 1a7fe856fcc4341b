"""MAGE's masks (Li et al., CVPR 2023): what training hides, and the rounds that fill a hole in."""

from collections.abc import Callable
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

_MEAN, _DEVIATION = 0.55, 0.25  # of the normal that masking ratios are drawn from, then cut


def hidden(visible: jax.Array, number: int) -> jax.Array:
  """True where a token is none of the visible ones: [B, K] -> [B, N]."""
  everywhere = jnp.ones((len(visible), number), bool)
  return everywhere.at[jnp.arange(len(visible))[:, None], visible].set(False)


def grown(mask: jax.Array, by: int) -> jax.Array:
  """A mask of a square grid, [B, N], with `by` tokens more on each side, diagonals too."""
  side = round(mask.shape[1]**0.5)
  grid = mask.reshape(-1, side, side, 1).astype(jnp.float32)
  window = (2 * by + 1,) * 2
  return nn.max_pool(grid, window, padding='SAME').reshape(mask.shape) > 0


def further(key: jax.Array, batch: int, kept: int, number: int) -> jax.Array:
  """Which of the tokens that the encoder is shown are masked, so that it learns all ratios.

  With h = (N - K) / N, the ratio that is hidden: m ~ N(0.55, 0.25^2) cut to [h, 1], one draw for the
  batch; of each row, ceil(m N) tokens are masked, the N - K hidden ones and uniformly drawn others.
  With h = 1/2 these are MAGE's ratios, whose mean is 0.694; half of its tokens are dropped, the
  rest of the masked ones are shown as [MASK].

  Args:
    key: of the draws.
    batch: B.
    kept: K, tokens shown.
    number: N, tokens of a picture.

  Returns:
    bool [B, K].
  """
  ratio_key, place_key = jax.random.split(key)
  lowest = (1 - kept / number - _MEAN) / _DEVIATION
  ratio = _MEAN + _DEVIATION * jax.random.truncated_normal(ratio_key, lowest,
                                                           (1 - _MEAN) / _DEVIATION)
  count = jnp.clip(jnp.ceil(number * ratio).astype(jnp.int32) - (number - kept), 0, kept)
  return _ranks(jax.random.uniform(place_key, (batch, kept))) < count


def _ranks(values: jax.Array) -> jax.Array:
  return jnp.argsort(jnp.argsort(values, axis=1), axis=1)


class Schedule(NamedTuple):
  """Rounds s = 0 ... S - 1 of filling in, with r = (s + 1) / S.

  Attributes:
    ratio: r, float64 [S].
    fraction: cos(pi r / 2), of all tokens, that stay masked after a round, float64 [S].
    count: floor(N fraction), int [S].
  """

  ratio: np.ndarray
  fraction: np.ndarray
  count: np.ndarray


def schedule(number: int, steps: int) -> Schedule:
  """The cosine schedule for N tokens and S rounds."""
  ratio = np.arange(1, steps + 1) / steps
  fraction = np.cos(np.pi / 2 * ratio)
  return Schedule(ratio, fraction, np.floor(number * fraction).astype(np.int32))


def paint(predict: Callable[[jax.Array, jax.Array], jax.Array], tokens: jax.Array,
          unknown: jax.Array, key: jax.Array, *, steps: int, temperature: float) -> jax.Array:
  """Fills unknown tokens in, the surest first: MaskGIT's decoding as MAGE's authors use it.

  Round s (see `Schedule`) draws every masked token from the prediction. The confidence of a draw is
  log p + temperature (1 - r) g, g Gumbel; the max(1, min(count, masked - 1)) least confident ones are
  masked again, and those of the last round kept. A row starts with the first round whose fraction is
  below its share of unknown tokens.

  All rows share their draws, as if each were painted alone from the same seed (as in the release), so
  that a result does not depend on the rest of a batch.

  Args:
    predict: `(tokens [B, N], masked bool [B, N]) -> logits [B, N, codes]`.
    tokens: int32 [B, N]; those that are unknown are not read.
    unknown: bool [B, N], at least one in a row.
    key: of the draws.
    steps: S.
    temperature: of the noise in confidences.

  Returns:
    int32 [B, N]; known tokens are as they were.
  """
  number = tokens.shape[1]
  table = schedule(number, steps)
  share = jnp.sum(unknown, axis=1, keepdims=True)  # [B, 1], times N
  skipped = jnp.sum(jnp.asarray(number * table.fraction, jnp.float32) >= share, axis=1,
                    keepdims=True)
  counts, noise = jnp.asarray(table.count), jnp.asarray(temperature * (1 - table.ratio), jnp.float32)

  def round_of(step, state):
    tokens, masked = state
    logits = predict(tokens, masked)
    token_key, order_key = jax.random.split(jax.random.fold_in(key, step))
    drawn = jnp.argmax(logits + jax.random.gumbel(token_key, logits.shape[1:]), axis=2)
    drawn = jnp.where(masked, drawn.astype(tokens.dtype), tokens)
    sure = jnp.take_along_axis(jax.nn.log_softmax(logits), drawn[:, :, None], axis=2)[:, :, 0]
    sure = sure + noise[step] * jax.random.gumbel(order_key, (number,))
    again = jnp.maximum(1, jnp.minimum(counts[step], jnp.sum(masked, axis=1, keepdims=True) - 1))
    left = _ranks(jnp.where(masked, sure, jnp.inf)) < again
    active = step >= skipped
    return jnp.where(active, drawn, tokens), jnp.where(active, left, masked)

  return jax.lax.fori_loop(jnp.min(skipped), steps, round_of, (tokens, unknown))[0]
