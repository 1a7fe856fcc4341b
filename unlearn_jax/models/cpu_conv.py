"""Convolutions whose gradients stay fast on XLA:CPU, inside control flow and out of it.

XLA:CPU runs a convolution on its fast path only if the kernel is not reversed and the input not
dilated. The automatic input gradient asks for both. Outside of loops XLA repairs that, inside
`fori_loop`, `scan` and `cond` it falls back to a naive kernel, 3 to 10 times slower (measured:
3x3, 32 channels, 8x8 pictures, batch 64: 12.6 ms against 1.2 ms). DLFD takes its input gradients in
such a loop. Here the same gradient is spelled as a plain convolution of a padded cotangent with a
kernel that has really been flipped.

Depthwise convolutions have no fast path at all. They are spelled as what they are, a sum of shifted
and scaled pictures, one per tap of the kernel; the kernel's gradient runs over the examples one by
one, which keeps each in the cache (measured on 2 busy cores: 5x5, 480 channels, 8x8 pictures, batch
32: forward 2 ms against 33, kernel's gradient 14 ms against 142, and 86 without the loop).
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp

_LAYOUT = ('NHWC', 'HWIO', 'NHWC')


def conv_general_dilated(lhs, rhs, window_strides, padding, lhs_dilation=None, rhs_dilation=None,
                         dimension_numbers=None, feature_group_count=1, precision=None, **kwargs):
  """`lax.conv_general_dilated` as Flax calls it for 2-d convolutions, NHWC, explicit padding.

  Values and gradients are those of lax. Reverse mode only: it has a custom VJP.

  Raises:
    NotImplementedError: dilated convolutions, grouped ones that are not depthwise with one filter
      per channel, other layouts or options.
  """
  strides = tuple(window_strides)
  dilated = set((*(lhs_dilation or ()), *(rhs_dilation or ()))) - {1}
  layout = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
  expected = lax.conv_dimension_numbers(lhs.shape, rhs.shape, _LAYOUT)
  groups = feature_group_count
  depthwise = groups > 1 and (groups, 1, groups) == (lhs.shape[-1], *rhs.shape[2:])
  if (dilated or kwargs or isinstance(padding, str) or lhs.ndim != 4 or layout != expected
      or not (depthwise or groups == 1)):
    raise NotImplementedError(
        'only plain and depthwise 2-d convolutions over NHWC with explicit padding')
  padding = tuple(map(tuple, padding))
  if depthwise:
    return _depthwise(lhs, rhs, strides, padding)
  return _conv(lhs, rhs, strides, padding, precision)


def _plain(x, kernel, strides, padding, precision):
  return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_LAYOUT,
                                  precision=precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(x, kernel, strides, padding, precision):
  return _plain(x, kernel, strides, padding, precision)


def _forward(x, kernel, strides, padding, precision):
  return _plain(x, kernel, strides, padding, precision), (x, kernel)


def _spread(cotangent, sizes, lengths, strides, padding):
  """Dilates and pads a cotangent: its plain convolution with the flipped kernel is the gradient."""
  spread = [(0, 0, 0)]
  for size, length, out, stride, (low, _) in zip(
      sizes, lengths, cotangent.shape[1:], strides, padding):
    before = size - 1 - low
    after = length + size - 1 - before - (stride * (out - 1) + 1)
    spread.append((before, after, stride - 1))
  return lax.pad(cotangent, jnp.zeros((), cotangent.dtype), (*spread, (0, 0, 0)))


def _backward(strides, padding, precision, residuals, cotangent):
  x, kernel = residuals
  dilated = _spread(cotangent, kernel.shape, x.shape[1:3], strides, padding)
  flipped = jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2)  # [h, w, out, in]
  # The barrier keeps XLA from folding both back into the convolution.
  dilated, flipped = lax.optimization_barrier((dilated, flipped))
  dx = _plain(dilated, flipped, (1, 1), ((0, 0), (0, 0)), precision)
  _, transpose = jax.vjp(lambda k: _plain(x, k, strides, padding, precision), kernel)
  return dx, *transpose(cotangent)


_conv.defvjp(_forward, _backward)


def _windows(x, kernel_shape, strides):
  """Yields (row, column, the pixels of `x` [..., H, W, C] under that tap of the kernel)."""
  height, width = x.shape[-3:-1]
  for row in range(kernel_shape[0]):
    for column in range(kernel_shape[1]):
      yield row, column, x[..., row:height - kernel_shape[0] + row + 1:strides[0],
                           column:width - kernel_shape[1] + column + 1:strides[1], :]


def _sum_of_taps(x, kernel, strides):
  # The barriers keep XLA from computing what comes before once per tap, and the whole sum once per
  # consumer (mean, variance and normalised picture of a batch norm).
  x, accumulator = lax.optimization_barrier(x), jnp.promote_types(x.dtype, jnp.float32)
  kernel = kernel.astype(accumulator)
  total = sum(window.astype(accumulator) * kernel[row, column, 0]
              for row, column, window in _windows(x, kernel.shape, strides))
  return lax.optimization_barrier(total.astype(x.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x, kernel, strides, padding):
  return _sum_of_taps(jnp.pad(x, ((0, 0), *padding, (0, 0))), kernel, strides)


def _depthwise_forward(x, kernel, strides, padding):
  return _depthwise(x, kernel, strides, padding), (x, kernel)


def _depthwise_backward(strides, padding, residuals, cotangent):
  x, kernel = residuals
  accumulator = jnp.promote_types(x.dtype, jnp.float32)
  dilated = _spread(cotangent, kernel.shape, x.shape[1:3], strides, padding)
  dx = _sum_of_taps(dilated, jnp.flip(kernel, (0, 1)), (1, 1))

  def add(total, example):
    x, cotangent = example  # [H, W, C] each
    return total + jnp.stack([jnp.sum(window * cotangent, (0, 1), dtype=accumulator)
                              for _, _, window in _windows(x, kernel.shape, strides)]), None

  total = jnp.zeros((kernel.shape[0] * kernel.shape[1], kernel.shape[-1]), accumulator)
  total, _ = lax.scan(add, total, (jnp.pad(x, ((0, 0), *padding, (0, 0))), cotangent))
  return dx, total.reshape(kernel.shape).astype(kernel.dtype)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)
