"""Inception v3 (Szegedy et al., 2016) with the weights that FID and the inception score are made with.

Names are torchvision's under the rule of resnet.py: `Mixed_5b/branch5x5_1/conv/kernel` is
`Mixed_5b.branch5x5_1.conv.weight` in a state dict. Sources of the two layouts: torchvision
models/inception.py; mseitzer/pytorch-fid inception.py.
"""

from collections.abc import Mapping
import functools
import os
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import types
from unlearn_jax.models import archive
from unlearn_jax.models import clip_keys
from unlearn_jax.models import contract
from unlearn_jax.models import layers
from unlearn_jax.models import surgery

LAYOUTS = {'torchvision': 1000, 'fid': 1008}  # layout -> classes of its published weights
SMALLEST = 75  # pixels along a side that leave one pixel after the last block


class Unit(NamedTuple):
  """conv-bn-ReLU: its name, channels, kernel (height, width), stride, and padding on all sides.

  Padding of None keeps the size at stride 1, and is 0 at stride 2.
  """

  name: str
  features: int
  kernel: tuple[int, int] = (1, 1)
  stride: int = 1
  padding: int | None = None


Branch = tuple[Unit | tuple[Unit, ...], ...]  # a tuple inside is a fork: all of it from one input


class Pool(NamedTuple):
  """The branch that pools over 3x3.

  Attributes:
    kind: `average`; `inside`, an average that leaves the padding out; or `max`.
    features: of the unit `branch_pool` that follows; None halves the size instead.
  """

  kind: str
  features: int | None = None


def _chain(name: str, *units: tuple[int, tuple[int, int]], stride: int = 1) -> Branch:
  """Units `name_1`, `name_2`, ...; the last has the stride."""
  numbered = [Unit(f'{name}_{number}', *unit) for number, unit in enumerate(units, start=1)]
  return (*numbered[:-1], numbered[-1]._replace(stride=stride))


def _block_a(kind: str, pooled: int) -> tuple[tuple[Branch, ...], Pool]:
  return ((Unit('branch1x1', 64),), _chain('branch5x5', (48, (1, 1)), (64, (5, 5))),
          _chain('branch3x3dbl', (64, (1, 1)), (96, (3, 3)), (96, (3, 3)))), Pool(kind, pooled)


def _block_b() -> tuple[tuple[Branch, ...], Pool]:
  return ((Unit('branch3x3', 384, (3, 3), 2),),
          _chain('branch3x3dbl', (64, (1, 1)), (96, (3, 3)), (96, (3, 3)), stride=2)), Pool('max')


def _block_c(kind: str, c: int) -> tuple[tuple[Branch, ...], Pool]:
  return ((Unit('branch1x1', 192),), _chain('branch7x7', (c, (1, 1)), (c, (1, 7)), (192, (7, 1))),
          _chain('branch7x7dbl', (c, (1, 1)), (c, (7, 1)), (c, (1, 7)), (c, (7, 1)),
                 (192, (1, 7)))), Pool(kind, 192)


def _block_d() -> tuple[tuple[Branch, ...], Pool]:
  return (_chain('branch3x3', (192, (1, 1)), (320, (3, 3)), stride=2),
          _chain('branch7x7x3', (192, (1, 1)), (192, (1, 7)), (192, (7, 1)), (192, (3, 3)),
                 stride=2)), Pool('max')


def _block_e(kind: str) -> tuple[tuple[Branch, ...], Pool]:
  def fork(name):
    return Unit(f'{name}a', 384, (1, 3)), Unit(f'{name}b', 384, (3, 1))

  return ((Unit('branch1x1', 320),), (Unit('branch3x3_1', 384), fork('branch3x3_2')),
          (Unit('branch3x3dbl_1', 448), Unit('branch3x3dbl_2', 384, (3, 3)),
           fork('branch3x3dbl_3'))), Pool(kind, 192)


_STEM = (Unit('Conv2d_1a_3x3', 32, (3, 3), 2), Unit('Conv2d_2a_3x3', 32, (3, 3), padding=0),
         Unit('Conv2d_2b_3x3', 64, (3, 3)), 'pool', Unit('Conv2d_3b_1x1', 80),
         Unit('Conv2d_4a_3x3', 192, (3, 3), padding=0), 'pool')


def _blocks(layout: str) -> dict[str, tuple[tuple[Branch, ...], Pool]]:
  average, last = ('average', 'average') if layout == 'torchvision' else ('inside', 'max')
  return {'Mixed_5b': _block_a(average, 32), 'Mixed_5c': _block_a(average, 64),
          'Mixed_5d': _block_a(average, 64), 'Mixed_6a': _block_b(),
          'Mixed_6b': _block_c(average, 128), 'Mixed_6c': _block_c(average, 160),
          'Mixed_6d': _block_c(average, 160), 'Mixed_6e': _block_c(average, 192),
          'Mixed_7a': _block_d(), 'Mixed_7b': _block_e(average), 'Mixed_7c': _block_e(last)}


class Basic(nn.Module):
  """A unit: `conv` without bias, `bn` with eps 1e-3, ReLU."""

  unit: Unit

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    unit = self.unit
    pads = tuple(size // 2 if unit.stride == 1 else 0 for size in unit.kernel)
    pads = pads if unit.padding is None else (unit.padding,) * 2
    x = nn.Conv(unit.features, unit.kernel, strides=unit.stride, use_bias=False,
                padding=tuple((pad, pad) for pad in pads), kernel_init=layers.he_fan_in,
                name='conv')(x)
    return nn.relu(layers.batch_norm(train=train, dtype=jnp.float32, epsilon=1e-3, name='bn')(x))


class Mixed(nn.Module):
  """Branches side by side, then the pooled one; their channels are joined in this order."""

  branches: tuple[Branch, ...]
  pool: Pool

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    found = []
    for branch in self.branches:
      y = x
      for step in branch:
        units = (step,) if isinstance(step, Unit) else step
        y = jnp.concatenate([Basic(unit, name=unit.name)(y, train=train) for unit in units], -1)
      found.append(y)
    if self.pool.features is None:
      return jnp.concatenate([*found, nn.max_pool(x, (3, 3), (2, 2))], axis=-1)
    padding = ((1, 1), (1, 1))
    if self.pool.kind == 'max':
      y = nn.max_pool(x, (3, 3), padding=padding)
    else:
      y = nn.avg_pool(x, (3, 3), padding=padding, count_include_pad=self.pool.kind == 'average')
    y = Basic(Unit('branch_pool', self.pool.features), name='branch_pool')(y, train=train)
    return jnp.concatenate([*found, y], axis=-1)


class Inception(nn.Module):
  """The whole network, without the auxiliary head that only training uses."""

  num_outputs: int
  layout: str

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    layers.check_image(image)
    if min(image.shape[1:3]) < SMALLEST:
      raise ValueError(f'inception_v3: pictures from {SMALLEST}x{SMALLEST}, got '
                       f'{image.shape[1]}x{image.shape[2]}')
    x = image.astype(jnp.float32)
    for step in _STEM:
      if step == 'pool':
        x = nn.max_pool(x, (3, 3), (2, 2))
      else:
        x = Basic(step, name=step.name)(x, train=train)
    for name, (branches, pool) in _blocks(self.layout).items():
      x = Mixed(branches, pool, name=name)(x, train=train)
    features = jnp.mean(x, axis=(1, 2))
    return {'logits': layers.linear(features, self.num_outputs, name='fc'), 'features': features}


def inception_v3(*, num_outputs: int, layout: str = 'torchvision') -> types.Model:
  """Inception v3 for measuring; 23,834,568 parameters with 1000 outputs.

  That is torchvision's 27,161,264 less the auxiliary head's 3,326,696, which is not built: there is
  no dropout and no second loss either. For training use another model. Initial values: He's (ours).

  Layouts:
    `torchvision`: average pools that count the padding as zeros.
    `fid`: the network of 2015 behind published FIDs, as pytorch-fid reads it: average pools leave the
      padding out, and the last block pools by maximum. Its published weights have 1008 outputs.

  Args:
    num_outputs: classes.
    layout: one of `LAYOUTS`.

  Returns:
    The model. Input `image` [B, H, W, 3], pixels x in [0, 1] as 2 x - 1 (which torchvision's
    `transform_input` makes of pictures with ImageNet's statistics), 299x299 for published numbers;
    outputs `features` [B, 2048], the pooled last block, and `logits` [B, num_outputs].

  Raises:
    TypeError, ValueError: an argument of the wrong type or out of range; on init and apply, a
      picture below 75x75.
  """
  layers.check_positive('inception_v3', num_outputs=num_outputs)
  if layout not in LAYOUTS:
    raise ValueError(f'inception_v3: layout is one of {", ".join(LAYOUTS)}, got {layout!r}')
  return contract.from_linen(Inception(num_outputs, layout))


@functools.cache
def shapes() -> dict[str, tuple[int, ...]]:
  """Path -> shape of every variable of the network with 1000 outputs."""
  model = inception_v3(num_outputs=1000)
  picture = {'image': jax.ShapeDtypeStruct((1, SMALLEST, SMALLEST, 3), jnp.float32)}
  variables = jax.eval_shape(model.init, jax.random.key(0), picture)
  return dict(zip(surgery.paths(variables), map(jnp.shape, jax.tree.leaves(variables))))


_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'mean': 'running_mean', 'var': 'running_var'}


def key(path: str) -> str:
  """The name in a state dict of the variable at `path`, such as `params/fc/kernel`."""
  _, *parents, last = path.split('/')
  return '.'.join([*parents, _LEAVES.get(last, last)])


def _spare(name: str) -> bool:
  return name.startswith('AuxLogits.') or name.endswith('.num_batches_tracked')


def load(source: str | os.PathLike | Mapping[str, np.ndarray]
         ) -> tuple[types.Variables, dict[str, Any]]:
  """Reads published weights: torchvision's `inception_v3_google-*.pth` or pytorch-fid's.

  The layout is told by the number of classes: 1008 is `fid`
  (`pt_inception-2015-12-05-6726825d.pth`), any other `torchvision`. Passed over: the auxiliary head
  and the counters of batch norms.

  Args:
    source: a file, as `archive.read` takes it, or tensors by name.

  Returns:
    The variables, float32, and the arguments of `inception_v3` that make their model.

  Raises:
    OSError: there is no such file.
    ValueError: it is damaged, or tensors are missing, superfluous or of another shape (says how
      many and which come first).
  """
  if isinstance(source, Mapping):
    tensors = source
  else:  # published files may be older than PyTorch's zip archives
    tensors = archive.read(source)
  where = 'the tensors' if isinstance(source, Mapping) else source
  if 'fc.weight' not in tensors or tensors['fc.weight'].ndim != 2:
    raise ValueError(f"{where}: no Inception v3, 'fc.weight' [classes, 2048] is missing")
  num_outputs = len(tensors['fc.weight'])
  wanted = shapes() | {'params/fc/kernel': (2048, num_outputs), 'params/fc/bias': (num_outputs,)}
  names = {path: key(path) for path in wanted}
  found = {path: _ours(tensors[name]) for path, name in names.items() if name in tensors}
  problems = {
      'missing': [name for name in names.values() if name not in tensors],
      'unexpected': sorted(name for name in set(tensors) - set(names.values()) if not _spare(name)),
      'misshapen': [names[path] for path, value in found.items() if value.shape != wanted[path]]}
  if told := [f'{len(those)} {what}: {", ".join(those[:3])}' for what, those in problems.items()
              if those]:
    raise ValueError(f'{where}: no Inception v3; {"; ".join(told)}')
  layout = 'fid' if num_outputs == LAYOUTS['fid'] else 'torchvision'
  variables = clip_keys.variables_of(
      {path: np.array(value, np.float32) for path, value in found.items()})
  return variables, {'num_outputs': num_outputs, 'layout': layout}


def _ours(value: np.ndarray) -> np.ndarray:
  """[out, in, H, W] -> [H, W, in, out]; [out, in] -> [in, out]."""
  return value.transpose({4: (2, 3, 1, 0), 2: (1, 0)}.get(value.ndim, range(value.ndim)))
