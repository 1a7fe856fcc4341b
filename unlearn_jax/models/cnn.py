"""A small convolutional network with batch norm."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from unlearn_jax import types
from unlearn_jax.models import contract
from unlearn_jax.models import layers


class CNN(nn.Module):
  """conv-bn-ReLU blocks, each after the first halves the picture and doubles the width."""

  num_outputs: int
  width: int
  blocks: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    layers.check_image(image)
    x = image.astype(self.dtype)
    for number in range(self.blocks):
      # Strided convolutions, not pooling: the gradient of max pooling is slow on CPU.
      x = layers.conv(self.width * 2**number, 3, stride=2 if number else 1, dtype=self.dtype,
                      name=f'conv{number + 1}')(x)
      x = nn.relu(layers.batch_norm(train=train, dtype=self.dtype, name=f'bn{number + 1}')(x))
    features = jnp.mean(x.astype(jnp.float32), axis=(1, 2))  # [B, width * 2**(blocks - 1)]
    return {'logits': layers.linear(features, self.num_outputs, name='fc'), 'features': features}


def cnn(*, num_outputs: int, width: int = 32, blocks: int = 3,
        compute_dtype: str = 'float32') -> types.Model:
  """A small convolutional network.

  Args:
    num_outputs: classes, or attributes of a multi-attribute head (trained with sigmoids).
    width: channels of the first block.
    blocks: how many; pictures of any size from 1x1 pass.
    compute_dtype: of the convolutions; parameters, features and logits are float32.

  Returns:
    The model; outputs `logits` [B, num_outputs] and `features` [B, width * 2**(blocks - 1)].

  Raises:
    TypeError, ValueError: an argument of the wrong type or out of range.
  """
  layers.check_positive('cnn', num_outputs=num_outputs, width=width, blocks=blocks)
  return contract.from_linen(
      CNN(num_outputs, width, blocks, layers.dtype_of('cnn', compute_dtype)))
