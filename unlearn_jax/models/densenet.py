"""DenseNet-121 (Huang et al., 2017) in torchvision's layout; names follow the rule of resnet.py."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from unlearn_jax import types
from unlearn_jax.models import contract
from unlearn_jax.models import layers


class DenseLayer(nn.Module):
  """bn-ReLU-1x1 to 4 * growth channels, bn-ReLU-3x3 to growth; the input stays beside the output."""

  growth: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    y = x
    for number, (features, kernel) in enumerate(((4 * self.growth, 1), (self.growth, 3)), start=1):
      y = nn.relu(layers.batch_norm(train=train, dtype=self.dtype, name=f'norm{number}')(y))
      y = layers.conv(features, kernel, kernel_init=layers.he_fan_in, dtype=self.dtype,
                      name=f'conv{number}')(y)
    return jnp.concatenate([x, y], axis=-1)


class DenseBlock(nn.Module):
  """Layers named denselayer1, denselayer2, ..."""

  blocks: int
  growth: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    for number in range(self.blocks):
      x = DenseLayer(self.growth, self.dtype, name=f'denselayer{number + 1}')(x, train=train)
    return x


class Transition(nn.Module):
  """bn-ReLU-1x1 to half the channels, average pooling to half the size."""

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    if min(x.shape[1:3]) < 2:
      raise ValueError('densenet: the picture is too small, a map of '
                       f'{x.shape[1]}x{x.shape[2]} cannot be halved')
    x = nn.relu(layers.batch_norm(train=train, dtype=self.dtype, name='norm')(x))
    x = layers.conv(x.shape[-1] // 2, 1, kernel_init=layers.he_fan_in, dtype=self.dtype,
                    name='conv')(x)
    return nn.avg_pool(x, (2, 2), strides=(2, 2))


class Features(nn.Module):
  """Everything before the pooling: stem, dense blocks with transitions between them, `norm5`."""

  blocks: tuple[int, ...]
  growth: int
  stem: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    kernel, stride = (7, 2) if self.stem == 'imagenet' else (3, 1)
    x = layers.conv(2 * self.growth, kernel, stride=stride, kernel_init=layers.he_fan_in,
                    dtype=self.dtype, name='conv0')(x)
    x = nn.relu(layers.batch_norm(train=train, dtype=self.dtype, name='norm0')(x))
    if self.stem == 'imagenet':
      x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    for number, blocks in enumerate(self.blocks, start=1):
      x = DenseBlock(blocks, self.growth, self.dtype, name=f'denseblock{number}')(x, train=train)
      if number < len(self.blocks):
        x = Transition(self.dtype, name=f'transition{number}')(x, train=train)
    # Called norm5 in torchvision, whose networks all have four blocks.
    return nn.relu(layers.batch_norm(train=train, dtype=self.dtype, name='norm5')(x))


class DenseNet(nn.Module):
  """The whole network: `features`, global average pooling, `classifier`."""

  num_outputs: int
  blocks: tuple[int, ...]
  growth: int
  stem: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    layers.check_image(image)
    x = Features(self.blocks, self.growth, self.stem, self.dtype,
                 name='features')(image.astype(self.dtype), train=train)
    features = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
    logits = layers.linear(features, self.num_outputs, name='classifier',
                           bias_init=nn.initializers.zeros)
    return {'logits': logits, 'features': features}


def densenet121(*, num_outputs: int, growth: int = 32, stem: str = 'imagenet',
                compute_dtype: str = 'float32') -> types.Model:
  """DenseNet-121: dense blocks (6, 12, 24, 16); 7,978,856 parameters at growth 32, 1000 outputs.

  Huang et al. 2017, "Densely connected convolutional networks", table 1, with bottlenecks and
  compression 0.5 (DenseNet-BC). Initial values are torchvision's: convolutions normal with variance
  2 / fan in, the classifier uniform in +-1/sqrt(fan in) with bias 0.

  Args:
    num_outputs: classes, or attributes of a multi-attribute head (trained with sigmoids).
    growth: channels that each layer adds; the stem has twice as many.
    stem: `imagenet` (7x7 stride 2, max pooling; pictures from 29x29) or `cifar` (3x3 stride 1, no
      pooling; ours; pictures from 8x8), which suits pictures of about 32x32.
    compute_dtype: of the convolutions; parameters, features and logits are float32.

  Returns:
    The model; outputs `logits` [B, num_outputs] and `features` [B, 32 * growth].

  Raises:
    TypeError, ValueError: an argument of the wrong type or out of range; on init and apply, a
      picture that is too small.
  """
  layers.check_positive('densenet121', num_outputs=num_outputs, growth=growth)
  layers.check_stem('densenet121', stem)
  return contract.from_linen(DenseNet(num_outputs, (6, 12, 24, 16), growth, stem,
                                      layers.dtype_of('densenet121', compute_dtype)))
