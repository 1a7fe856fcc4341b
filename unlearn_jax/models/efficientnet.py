"""EfficientNet-B0 (Tan and Le, 2019) in torchvision's layout; names follow the rule of resnet.py."""

from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from unlearn_jax import types
from unlearn_jax.models import contract
from unlearn_jax.models import layers


class Stage(NamedTuple):
  """A row of table 1 of the paper: blocks alike, of which the first one carries the stride."""

  expand: int
  channels: int
  blocks: int
  stride: int
  kernel: int


B0 = (Stage(1, 16, 1, 1, 3), Stage(6, 24, 2, 2, 3), Stage(6, 40, 2, 2, 5), Stage(6, 80, 3, 2, 3),
      Stage(6, 112, 3, 1, 5), Stage(6, 192, 4, 2, 5), Stage(6, 320, 1, 1, 3))


def round_channels(channels: float) -> int:
  """The nearest multiple of 8, or the next one where that takes away more than a tenth."""
  rounded = max(8, int(channels + 4) // 8 * 8)
  return rounded + 8 if rounded < 0.9 * channels else rounded


class ConvNorm(nn.Module):
  """Convolution `0` and batch norm `1`; the activation is the caller's."""

  features: int
  kernel: int
  dtype: jnp.dtype
  stride: int = 1
  groups: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    x = layers.conv(self.features, self.kernel, stride=self.stride, groups=self.groups,
                    dtype=self.dtype, name='0')(x)
    return layers.batch_norm(train=train, dtype=self.dtype, name='1')(x)


class SqueezeExcitation(nn.Module):
  """Scales each channel by a gate in (0, 1) computed from all channel means."""

  squeezed: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    gate = jnp.mean(x, axis=(1, 2), keepdims=True)  # [B, 1, 1, C]
    gate = layers.conv(self.squeezed, 1, bias=True, dtype=self.dtype, name='fc1')(gate)
    gate = layers.conv(x.shape[-1], 1, bias=True, dtype=self.dtype, name='fc2')(nn.silu(gate))
    return x * nn.sigmoid(gate)


class Branch(nn.Module):
  """Expansion (unless by 1), depthwise convolution, squeeze and excitation, projection."""

  features: int
  stage: Stage
  stride: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    before, expanded = x.shape[-1], round_channels(x.shape[-1] * self.stage.expand)
    number = 0  # torchvision counts the members of this sequence
    if expanded != before:
      x = nn.silu(ConvNorm(expanded, 1, self.dtype, name='0')(x, train=train))
      number = 1
    x = nn.silu(ConvNorm(expanded, self.stage.kernel, self.dtype, self.stride, expanded,
                         name=str(number))(x, train=train))
    x = SqueezeExcitation(max(1, before // 4), self.dtype, name=str(number + 1))(x)
    return ConvNorm(self.features, 1, self.dtype, name=str(number + 2))(x, train=train)


class MBConv(nn.Module):
  """The branch `block`, added to its input where shapes agree; `drop` leaves it out at random."""

  features: int
  stage: Stage
  stride: int
  drop: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    y = Branch(self.features, self.stage, self.stride, self.dtype, name='block')(x, train=train)
    if self.stride != 1 or y.shape != x.shape:
      return y
    # Stochastic depth (Huang et al. 2016): whole examples drop out, the others are scaled up.
    return x + nn.Dropout(self.drop, broadcast_dims=(1, 2, 3), deterministic=not train)(y)


class Blocks(nn.Module):
  """A stage: blocks named 0, 1, ..."""

  features: int
  stage: Stage
  drops: tuple[float, ...]
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    for number, drop in enumerate(self.drops):
      x = MBConv(self.features, self.stage, 1 if number else self.stage.stride, drop, self.dtype,
                 name=str(number))(x, train=train)
    return x


class Features(nn.Module):
  """Everything before the pooling: stem `0`, stages `1`, `2`, ..., and a 1x1 convolution."""

  stages: tuple[Stage, ...]
  width: float
  stem: str
  stochastic_depth: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    x = ConvNorm(round_channels(32 * self.width), 3, self.dtype,
                 2 if self.stem == 'imagenet' else 1, name='0')(x, train=train)
    x = nn.silu(x)
    total, done = sum(stage.blocks for stage in self.stages), 0
    for number, stage in enumerate(self.stages, start=1):
      drops = tuple(self.stochastic_depth * (done + block) / total for block in range(stage.blocks))
      done += stage.blocks
      x = Blocks(round_channels(stage.channels * self.width), stage, drops, self.dtype,
                 name=str(number))(x, train=train)
    x = ConvNorm(4 * x.shape[-1], 1, self.dtype, name=str(len(self.stages) + 1))(x, train=train)
    return nn.silu(x)


class Classifier(nn.Module):
  """Dropout and the linear head, which is member `1` of torchvision's sequence."""

  num_outputs: int
  dropout: float

  @nn.compact
  def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
    features = nn.Dropout(self.dropout, deterministic=not train)(features)
    bound = self.num_outputs**-0.5

    def uniform(key, shape, dtype):
      return jax.random.uniform(key, shape, dtype, -bound, bound)

    return layers.linear(features, self.num_outputs, name='1', kernel_init=uniform,
                         bias_init=nn.initializers.zeros)


class EfficientNet(nn.Module):
  """The whole network: `features`, global average pooling, `classifier`."""

  num_outputs: int
  stages: tuple[Stage, ...]
  width: float
  stem: str
  dropout: float
  stochastic_depth: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    layers.check_image(image)
    x = Features(self.stages, self.width, self.stem, self.stochastic_depth, self.dtype,
                 name='features')(image.astype(self.dtype), train=train)
    features = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
    logits = Classifier(self.num_outputs, self.dropout, name='classifier')(features, train=train)
    return {'logits': logits, 'features': features}


def efficientnet_b0(*, num_outputs: int, width: float = 1.0, stem: str = 'imagenet',
                    dropout: float = 0.2, stochastic_depth: float = 0.2,
                    compute_dtype: str = 'float32') -> types.Model:
  """EfficientNet-B0: 16 inverted bottlenecks; 5,288,548 parameters at width 1 with 1000 outputs.

  Tan and Le 2019, "EfficientNet: rethinking model scaling for convolutional neural networks",
  table 1. Initial values are torchvision's: convolutions normal with variance 2 / fan out, the
  classifier uniform in +-1/sqrt(num_outputs), biases 0. In train mode dropout and stochastic depth
  draw from the stream `dropout`; Flax raises InvalidRngError where there is none.

  Args:
    num_outputs: classes, or attributes of a multi-attribute head (trained with sigmoids).
    width: factor of all numbers of channels, which are rounded to multiples of 8.
    stem: `imagenet` (stride 2) or `cifar` (stride 1; ours), which suits pictures of about 32x32.
    dropout: rate in [0, 1) of the features before the classifier. `features` has none.
    stochastic_depth: rate in [0, 1); block i of 16, counted from 0, drops out at i/16 of it.
    compute_dtype: of the convolutions; parameters, features and logits are float32.

  Returns:
    The model; outputs `logits` [B, num_outputs] and `features` [B, 1280] (at width 1).

  Raises:
    TypeError, ValueError: an argument of the wrong type or out of range.
  """
  layers.check_positive('efficientnet_b0', num_outputs=num_outputs)
  layers.check_stem('efficientnet_b0', stem)
  layers.check_rate('efficientnet_b0', dropout=dropout, stochastic_depth=stochastic_depth)
  if not width > 0:
    raise ValueError(f'efficientnet_b0: width must be above 0, got {width}')
  return contract.from_linen(
      EfficientNet(num_outputs, B0, width, stem, dropout, stochastic_depth,
                   layers.dtype_of('efficientnet_b0', compute_dtype)))
