"""A multi-layer perceptron over flattened pictures."""

from collections.abc import Sequence

from flax import linen as nn
import jax
import jax.numpy as jnp

from unlearn_jax import types
from unlearn_jax.models import contract
from unlearn_jax.models import layers


class MLP(nn.Module):
  """Dense layers with ReLU, dropout after each, and a linear head `fc`."""

  num_outputs: int
  hidden: tuple[int, ...]
  dropout: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    layers.check_image(image)
    x = image.reshape(image.shape[0], -1).astype(self.dtype)  # [B, H*W*C]
    for number, width in enumerate(self.hidden):
      x = nn.Dense(width, kernel_init=nn.initializers.he_normal(), dtype=self.dtype,
                   name=f'dense{number + 1}')(x)
      x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))
    features = x.astype(jnp.float32)
    return {'logits': layers.linear(features, self.num_outputs, name='fc'), 'features': features}


def mlp(*, num_outputs: int, hidden: Sequence[int] = (256, 256), dropout: float = 0.0,
        compute_dtype: str = 'float32') -> types.Model:
  """A multi-layer perceptron.

  Args:
    num_outputs: classes, or attributes of a multi-attribute head (trained with sigmoids).
    hidden: widths of the hidden layers; the last one is the dimension of `features`. Empty: a
      linear model, whose features are the pixels.
    dropout: rate in [0, 1), drawn from the stream `dropout` in train mode.
    compute_dtype: of the hidden layers; parameters, features and logits are float32.

  Returns:
    The model; outputs `logits` [B, num_outputs] and `features` [B, hidden[-1]].

  Raises:
    TypeError, ValueError: an argument of the wrong type or out of range.
  """
  if isinstance(hidden, str) or not isinstance(hidden, Sequence):
    raise TypeError(f'mlp: hidden must be a sequence of ints, got {hidden!r}')
  layers.check_positive('mlp', num_outputs=num_outputs,
                        **{f'hidden[{i}]': width for i, width in enumerate(hidden)})
  layers.check_rate('mlp', dropout=dropout)
  return contract.from_linen(
      MLP(num_outputs, tuple(hidden), dropout, layers.dtype_of('mlp', compute_dtype)))
