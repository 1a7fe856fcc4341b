"""Adapters: Linen and NNX modules as `Model(init, apply)` over plain dicts.

A generator completes pictures of which T(x) has taken patches away, and is called in four ways. Its
inputs are `image` [B, H, W, C] and `visible` int32 [B, K], the row-major indices of the patches that
are left, as many for every row of a batch:

  method=None: -> `image`, the picture with its hole painted, the rest as it was given, not clipped;
    and `latent`.
  'encode': -> `latent`, stages of features, leaves [B, ...]. With a further field `noise`
    [B, H, W, C]: of n in the place of what the network is to forget (I2I, Eqs. 10 and C.25).
  'decode': `latent`, `visible` -> `image`, what is predicted everywhere.
  'loss': -> `loss` [B], the family's training loss of each picture; with a field `target`, of
    producing that from T(image); with a field `noise`, of producing noise (Eqs. C.32 to C.34).

Draws come from `rngs` (`dropout`, `noise`), in both modes: equal keys give equal draws, so that a
student and its reference see the same. Parameters are `encoder/...`, `decoder/...`, and under other
names what nobody trains.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import inspect

from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp

from unlearn_jax import types

# name -> mean and standard deviation of pixels in [0, 1], per channel or for all
STATISTICS = {
    'imagenet': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # torchvision's
    'clip': ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    'half': ((0.5,), (0.5,)),  # to [-1, 1]
    'openmoji': ((0.837, 0.820, 0.790), (0.286, 0.297, 0.335)),  # of all pictures at 32x32
}


def _pick(fields: types.Inputs, wanted: Sequence[str]) -> tuple[types.Array, ...]:
  for name in wanted:
    if name not in fields:
      raise ValueError(f'the model wants input {name!r}, the batch has {sorted(fields)}')
  return tuple(jnp.asarray(fields[name]) for name in wanted)


def _check_outputs(outputs) -> Mapping[str, types.Array]:
  if not isinstance(outputs, Mapping):
    raise TypeError("a model returns a dict of named outputs ({'logits': ..., 'features': ...}), "
                    f'this one returned {type(outputs).__name__}')
  return outputs


def from_linen(module: nn.Module, inputs: Sequence[str] = ('image',)) -> types.Model:
  """Wraps a Linen module.

  Args:
    module: its `__call__` (and any other method that is used) takes the input fields as positional
      arguments and the keyword `train`, and returns a dict of outputs. Dropout draws from the
      stream `dropout`.
    inputs: the fields that it reads, in order.

  Returns:
    The model. `apply(..., train=True)` lets every collection but `params` change and returns the
    updated variables; `train=False` returns the very variables that it was given.

  Raises:
    TypeError: `module.__call__` has no `train` argument, or (on apply) returns no dict.
    ValueError: on init and apply, an input field that is not in the batch.
  """
  if 'train' not in inspect.signature(type(module).__call__).parameters:
    raise TypeError(f'{type(module).__name__}.__call__ needs a keyword argument `train`')

  # Compiled because only the variables are wanted: XLA drops the forward pass.
  @jax.jit
  def create(key, *arguments):
    params_key, dropout_key = jax.random.split(key)
    return module.init({'params': params_key, 'dropout': dropout_key}, *arguments, train=False)

  def init(key, fields):
    return dict(create(key, *_pick(fields, inputs)))

  def apply(variables, fields, *, train=False, rngs=None, method=None):
    arguments = _pick(fields, inputs)
    if not train:
      outputs = module.apply(variables, *arguments, train=False, rngs=rngs, method=method)
      return _check_outputs(outputs), variables
    mutable = [name for name in variables if name != 'params']
    outputs, updated = module.apply(
        variables, *arguments, train=True, rngs=rngs, method=method, mutable=mutable)
    return _check_outputs(outputs), {**variables, **updated}

  return types.Model(init, apply)


def from_nnx(make: Callable[[nnx.Rngs], nnx.Module], inputs: Sequence[str] = ('image',),
             streams: Sequence[str] = ('dropout',)) -> types.Model:
  """Wraps an NNX module, without NNX transforms: split, plain dicts, merge a copy.

  The variables are grouped as Linen names them (`params`, `batch_stats`, ...) and keyed by strings,
  list indices included. Random streams are no part of them: their keys come with each call, and
  every layer folds its own number into them.

  Args:
    make: `rngs -> module`. The module's `__call__` takes the input fields as positional arguments
      and returns a dict of outputs; modes are set by `module.train()` and `module.eval()`.
    inputs: the fields that it reads, in order.
    streams: random streams, beside `params`, that the module asks for.

  Returns:
    The model, with the same contract as `from_linen`. In train mode a module that holds a stream
    needs its key in `rngs`.

  Raises:
    TypeError: on apply, the module returned no dict.
    ValueError: on init and apply, an input field that is not in the batch; on apply in train mode,
      a stream without a key.
  """

  def build(key):
    keys = jax.random.split(key, 1 + len(streams))
    return nnx.split(make(nnx.Rngs(**dict(zip(('params', *streams), keys)))))

  static = []  # the graph definition leaves the abstract evaluation on the side: it is no array

  def trace(key):
    graphdef, state = build(key)
    static.append(graphdef)
    return state

  template = nnx.to_flat_state(jax.eval_shape(trace, jax.random.key(0)))
  graphdef = static[0]

  def place(path, variable):  # -> (collection, keys within it)
    return nnx.variable_name_from_type(type(variable)), tuple(map(str, path))

  def to_dicts(state):
    variables = {'params': {}}
    for path, variable in nnx.to_flat_state(state):
      if isinstance(variable, (nnx.RngState, nnx.Intermediate)):
        continue
      collection, keys = place(path, variable)
      tree = variables.setdefault(collection, {})
      for key in keys[:-1]:
        tree = tree.setdefault(key, {})
      tree[keys[-1]] = variable.get_value()
    return variables

  def stream_key(variable, number, train, rngs):
    key = (rngs or {}).get(variable.tag)
    if key is None:
      if train and variable.tag in streams:
        raise ValueError(f'the model draws from stream {variable.tag!r} in train mode: '
                         f'pass rngs={{{variable.tag!r}: key}}')
      key = jax.random.key(0)  # never drawn from: evaluation, or the stream of the initialisers
    return jax.random.fold_in(key, number)

  def from_dicts(variables, train, rngs):
    flat = []
    for number, (path, variable) in enumerate(template):
      if isinstance(variable, nnx.RngKey):
        value = stream_key(variable, number, train, rngs)
      elif isinstance(variable, nnx.RngCount):
        value = jnp.zeros((), jnp.uint32)
      else:
        collection, keys = place(path, variable)
        value = variables[collection]
        for key in keys:
          value = value[key]
      flat.append((path, variable.replace(value)))
    return nnx.merge(graphdef, nnx.from_flat_state(flat), copy=True)

  @jax.jit
  def create(key):
    return to_dicts(build(key)[1])

  def init(key, fields):
    _pick(fields, inputs)
    return create(key)

  def apply(variables, fields, *, train=False, rngs=None, method=None):
    module = from_dicts(variables, train, rngs)
    if train:
      module.train()
    else:
      module.eval()
    if method is None or isinstance(method, str):
      call = getattr(module, method or '__call__')
    else:
      call = functools.partial(method, module)
    outputs = call(*_pick(fields, inputs))
    if not train:
      return _check_outputs(outputs), variables
    updated = to_dicts(nnx.split(module)[1])
    return _check_outputs(outputs), {**updated, 'params': variables['params']}

  return types.Model(init, apply)


def normalized(model: types.Model, mean: Sequence[float], std: Sequence[float]) -> types.Model:
  """The model on pictures `(x - mean) / std`; it is given pictures in [0, 1].

  As a part of the model, normalisation leaves the data in one unit for everybody: a perturbation of
  size α in pixels is one of α / std in what the network sees. A picture that the model makes,
  the output `image`, is turned back to `mean + std * x`, unclipped; everything else that it gives,
  latents and losses among it, is of the normalised space.

  Args:
    model: reads the field `image` [..., C], or `target` and `noise` likewise, where a batch has them.
    mean: one value per channel, or one for all.
    std: likewise, positive.

  Raises:
    ValueError: a wrong number of values, here or for the pictures on init and apply; a deviation
      that is not positive.
  """
  if len(mean) != len(std) or not len(mean) or min(std) <= 0:
    raise ValueError('mean and std need the same number of values, and positive deviations; got '
                     f'{tuple(mean)} and {tuple(std)}')

  def statistics(image):
    if len(mean) not in (1, image.shape[-1]):
      raise ValueError(f'normalisation has {len(mean)} channels, the pictures {image.shape[-1]}')
    return jnp.asarray(mean, image.dtype), jnp.asarray(std, image.dtype)

  def prepare(fields: types.Inputs) -> types.Inputs:
    # Neither is there for a tower of captions, or for a decoder of latents.
    names = [name for name in ('image', 'target', 'noise') if name in fields]
    changed = {}
    for name, image in zip(names, _pick(fields, names)):
      centre, scale = statistics(image)
      changed[name] = (image - centre) / scale
    return {**fields, **changed}

  def init(key, fields):
    return model.init(key, prepare(fields))

  def apply(variables, fields, **kwargs):
    outputs, variables = model.apply(variables, prepare(fields), **kwargs)
    if 'image' in outputs:
      centre, scale = statistics(outputs['image'])
      outputs = {**outputs, 'image': centre + scale * outputs['image']}
    return outputs, variables

  return types.Model(init, apply)


def noise_as_picture(inputs: types.Inputs, method: str | None) -> types.Inputs:
  """The field `noise` of generators that see a picture once: what `encode` sees, `loss` is to make."""
  if 'noise' not in inputs:
    return inputs
  name = {'encode': 'image', 'loss': 'target'}.get(method)
  if name is None:
    raise ValueError(f"noise stands in for a picture in method 'encode' or 'loss', not {method!r}")
  return {**{key: value for key, value in inputs.items() if key != 'noise'}, name: inputs['noise']}
