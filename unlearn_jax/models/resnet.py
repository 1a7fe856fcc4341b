"""ResNet-18/34/50 (He et al., 2016) in torchvision's layout.

Joining a parameter's path by dots and renaming the leaf (kernel or scale -> weight, mean ->
running_mean, var -> running_var) gives torchvision's name: `layer1/0/conv1/kernel` is
`layer1.0.conv1.weight`. Kernels are [H, W, in, out] here, [out, in, H, W] there.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from unlearn_jax import types
from unlearn_jax.models import contract
from unlearn_jax.models import layers


class Downsample(nn.Module):
  """The projection of a shortcut: 1x1 convolution `0` and batch norm `1`, torchvision's names."""

  features: int
  stride: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    x = layers.conv(self.features, 1, stride=self.stride, dtype=self.dtype, name='0')(x)
    return layers.batch_norm(train=train, dtype=self.dtype, name='1')(x)


class Block(nn.Module):
  """A residual block: 3x3, 3x3, or as bottleneck 1x1, 3x3 (strided), 1x1 to 4 times the width."""

  width: int
  stride: int
  bottleneck: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    # The stride sits on the 3x3 convolution of a bottleneck, as torchvision has it ("v1.5").
    plan = (((self.width, 1, 1), (self.width, 3, self.stride), (4 * self.width, 1, 1))
            if self.bottleneck else ((self.width, 3, self.stride), (self.width, 3, 1)))
    shortcut = x
    for number, (features, kernel, stride) in enumerate(plan, start=1):
      x = layers.conv(features, kernel, stride=stride, dtype=self.dtype, name=f'conv{number}')(x)
      x = layers.batch_norm(train=train, dtype=self.dtype, name=f'bn{number}')(x)
      x = nn.relu(x) if number < len(plan) else x
    # Last, as torchvision defines it: methods that count layers from the end go by the order of use.
    if shortcut.shape != x.shape:
      shortcut = Downsample(x.shape[-1], self.stride, self.dtype,
                            name='downsample')(shortcut, train=train)
    return nn.relu(x + shortcut)


class Stage(nn.Module):
  """Blocks named 0, 1, ...; the first one carries the stride."""

  width: int
  blocks: int
  stride: int
  bottleneck: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    for number in range(self.blocks):
      x = Block(self.width, 1 if number else self.stride, self.bottleneck, self.dtype,
                name=str(number))(x, train=train)
    return x


class ResNet(nn.Module):
  """The whole network: stem, four stages, global average pooling, `fc`.

  `num_outputs` None is the encoder alone: no `fc`, and `features` is the only output.
  """

  num_outputs: int | None
  blocks: tuple[int, ...]
  bottleneck: bool
  width: int
  stem: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    layers.check_image(image)
    x = image.astype(self.dtype)
    kernel, stride = (7, 2) if self.stem == 'imagenet' else (3, 1)
    x = layers.conv(self.width, kernel, stride=stride, dtype=self.dtype, name='conv1')(x)
    x = nn.relu(layers.batch_norm(train=train, dtype=self.dtype, name='bn1')(x))
    if self.stem == 'imagenet':
      x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    for number, blocks in enumerate(self.blocks):
      x = Stage(self.width * 2**number, blocks, 2 if number else 1, self.bottleneck, self.dtype,
                name=f'layer{number + 1}')(x, train=train)
    features = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
    if self.num_outputs is None:
      return {'features': features}
    return {'logits': layers.linear(features, self.num_outputs, name='fc'), 'features': features}


def _build(name: str, blocks: tuple[int, ...], bottleneck: bool, *, num_outputs: int, width: int,
           stem: str, compute_dtype: str) -> types.Model:
  layers.check_positive(name, num_outputs=num_outputs, width=width)
  layers.check_stem(name, stem)
  return contract.from_linen(ResNet(num_outputs, blocks, bottleneck, width, stem,
                                    layers.dtype_of(name, compute_dtype)))


def resnet18(*, num_outputs: int, width: int = 64, stem: str = 'imagenet',
             compute_dtype: str = 'float32') -> types.Model:
  """ResNet-18: basic blocks (2, 2, 2, 2); 11,689,512 parameters at width 64 with 1000 outputs.

  Args:
    num_outputs: classes, or attributes of a multi-attribute head (trained with sigmoids).
    width: channels of the first stage; the others have 2, 4 and 8 times as many.
    stem: `imagenet` (7x7 stride 2, max pooling) or `cifar` (3x3 stride 1, no pooling), which suits
      pictures of about 32x32.
    compute_dtype: of the convolutions; parameters, features and logits are float32.

  Returns:
    The model; outputs `logits` [B, num_outputs] and `features` [B, 8 * width].

  Raises:
    TypeError, ValueError: an argument of the wrong type or out of range.
  """
  return _build('resnet18', (2, 2, 2, 2), False, num_outputs=num_outputs, width=width, stem=stem,
                compute_dtype=compute_dtype)


def resnet34(*, num_outputs: int, width: int = 64, stem: str = 'imagenet',
             compute_dtype: str = 'float32') -> types.Model:
  """ResNet-34: basic blocks (3, 4, 6, 3), 21,797,672 parameters; arguments as `resnet18`."""
  return _build('resnet34', (3, 4, 6, 3), False, num_outputs=num_outputs, width=width, stem=stem,
                compute_dtype=compute_dtype)


def resnet50(*, num_outputs: int, width: int = 64, stem: str = 'imagenet',
             compute_dtype: str = 'float32') -> types.Model:
  """ResNet-50: bottlenecks (3, 4, 6, 3), 25,557,032 parameters; arguments as `resnet18`.

  `features` is [B, 32 * width].
  """
  return _build('resnet50', (3, 4, 6, 3), True, num_outputs=num_outputs, width=width, stem=stem,
                compute_dtype=compute_dtype)
