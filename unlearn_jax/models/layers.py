"""What the networks share: PyTorch's initialisers, batch norm and argument checks."""

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from unlearn_jax.models import cpu_conv

# conv -> ReLU networks: He's normal by fan out, as torchvision initialises its convolutions.
he_fan_out = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
he_fan_in = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')
# PyTorch's Linear: uniform in +-1/sqrt(fan in), weight and bias alike.
uniform_fan_in = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')

STEMS = ('imagenet', 'cifar')
COMPUTE_DTYPES = ('float32', 'bfloat16', 'float16')


def linear(features: jax.Array, num_outputs: int, *, name: str, kernel_init=uniform_fan_in,
           bias_init=None) -> jax.Array:
  """The head: float32 logits from float32 features, initialised as PyTorch's Linear unless told.

  Args:
    features: [B, D] float32.
    num_outputs: classes, or attributes of a multi-attribute head (trained with sigmoids).
    name: of the sub-module of the calling `nn.compact` method.
    kernel_init: of the weight.
    bias_init: of the bias; None is PyTorch's, uniform in +-1/sqrt(D).

  Returns:
    [B, num_outputs] float32.
  """
  bound = features.shape[-1]**-0.5

  def uniform(key, shape, dtype):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return nn.Dense(num_outputs, kernel_init=kernel_init, bias_init=bias_init or uniform,
                  dtype=jnp.float32, name=name)(features)


def conv(features: int, kernel: int, *, stride: int = 1, groups: int = 1, bias: bool = False,
         kernel_init=he_fan_out, dtype, name: str) -> nn.Conv:
  """A convolution with PyTorch's padding; depthwise where `groups` is the number of channels.

  `SAME` would pad a stride-2 convolution of an even picture on one side only, PyTorch pads
  kernel // 2 on both: weights would carry over, outputs would not.
  """
  pad = kernel // 2
  cpu = cpu_conv.conv_general_dilated if jax.default_backend() == 'cpu' else None
  return nn.Conv(features, (kernel, kernel), strides=stride, padding=((pad, pad), (pad, pad)),
                 feature_group_count=groups, use_bias=bias, kernel_init=kernel_init, dtype=dtype,
                 name=name, conv_general_dilated=cpu)


def batch_norm(*, train: bool, dtype, name: str, epsilon: float = 1e-5) -> nn.BatchNorm:
  """Batch norm with PyTorch's constants: decay 0.9 (its momentum 0.1), eps 1e-5 unless told.

  One difference remains: the running variance averages biased batch variances, PyTorch's averages
  unbiased ones (a factor n/(n-1), n = batch x height x width). Batch variances are computed in one
  pass, E[x^2] - E[x]^2 in float32, which loses digits where the mean is hundreds of times the
  spread.
  """
  return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=epsilon, dtype=dtype,
                      name=name)


def check_image(image: jax.Array) -> None:
  """Raises AssertionError unless `image` is [B, H, W, C]."""
  chex.assert_rank(image, 4)


def check_lengths(model: str, **fields: jax.Array) -> None:
  """Raises ValueError unless the input fields given by name have the same batch length."""
  lengths = {name: len(value) for name, value in fields.items()}
  if len(set(lengths.values())) > 1:
    found = ', '.join(f'{name} {length}' for name, length in lengths.items())
    raise ValueError(f'{model}: the modalities differ in batch length: {found}')


def dtype_of(model: str, compute_dtype: str):
  """The dtype of the name; ValueError lists what there is."""
  if compute_dtype not in COMPUTE_DTYPES:
    raise ValueError(f'{model}: compute_dtype is one of {", ".join(COMPUTE_DTYPES)}, '
                     f'got {compute_dtype!r}')
  return jnp.dtype(compute_dtype)


def check_positive(model: str, **values) -> None:
  """Checks integer arguments given by name.

  Raises:
    TypeError: not an integer.
    ValueError: below 1.
  """
  for name, value in values.items():
    if isinstance(value, bool) or not isinstance(value, int):
      raise TypeError(f'{model}: {name} must be an int, got {value!r}')
    if value < 1:
      raise ValueError(f'{model}: {name} must be at least 1, got {value}')


def check_rate(model: str, **values) -> None:
  """Raises ValueError unless every probability given by name lies in [0, 1)."""
  for name, value in values.items():
    if not 0 <= value < 1:
      raise ValueError(f'{model}: {name} must lie in [0, 1), got {value}')


def check_stem(model: str, stem: str) -> None:
  """Raises ValueError unless `stem` is one of `STEMS`."""
  if stem not in STEMS:
    raise ValueError(f'{model}: stem is one of {", ".join(STEMS)}, got {stem!r}')
