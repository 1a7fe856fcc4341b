"""The layers of a network in the order of use, for methods that count from the end."""

import jax

from unlearn_jax import types
from unlearn_jax.models import surgery


def layers(model: types.Model, example: types.Inputs) -> tuple[str, ...]:
  """Paths of the modules that own parameters, by the first use of any of their parameters.

  Dictionaries forget the order in which a network was written down (JAX sorts their keys), so it is
  read off the traced forward pass. For the networks of this package this is torchvision's order of
  definition.

  Args:
    model: the network.
    example: inputs of any batch size, for shapes; nothing is computed.

  Returns:
    Paths below `params`, such as `('conv1', 'bn1', 'layer1/0/conv1', ..., 'fc')`. Parameters that
    the outputs do not depend on are left out.
  """
  variables = jax.eval_shape(model.init, jax.random.key(0), example)
  params = variables['params']

  def forward(params):
    return model.apply({**variables_without(variables), 'params': params}, example, train=False)[0]

  # Statistics enter as zeros: only the order matters.
  def variables_without(tree):
    return {name: jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), collection)
            for name, collection in tree.items() if name != 'params'}

  closed = jax.make_jaxpr(forward)(params)
  names = dict(zip(closed.jaxpr.invars, surgery.paths(params)))
  modules = [name.rpartition('/')[0] for name in _used(closed.jaxpr, names)]
  return tuple(dict.fromkeys(modules))


def last(model: types.Model, example: types.Inputs, count: int) -> tuple[tuple[str, ...], ...]:
  """The modules met on the way back from the output until `count` weight layers are reached.

  A weight layer is a module with a `kernel`: convolution or linear. Batch norms in between belong
  to what is met; one before the last counted layer does not. So the last 3 of a ResNet-18 are `fc`,
  `layer4/1/bn2`, `layer4/1/conv2`, `layer4/1/bn1` and `layer4/1/conv1`.

  Source: Goel et al. 2022 (CF-k and EU-k), as released.

  Args:
    model: the network.
    example: inputs of any batch size, for shapes.
    count: k.

  Returns:
    (all modules met, those of them with a kernel), from the output backwards.

  Raises:
    ValueError: the network has fewer weight layers.
  """
  params = jax.eval_shape(model.init, jax.random.key(0), example)['params']
  kernels = {name.rpartition('/')[0] for name in surgery.paths(params)
             if name.rpartition('/')[2] == 'kernel'}
  met, weights = [], []
  for module in reversed(layers(model, example)):
    if len(weights) == count:
      break
    met.append(module)
    if module in kernels:
      weights.append(module)
  if len(weights) < count:
    raise ValueError(f'the last {count} weight layers are asked for, the network has '
                     f'{len(weights)}: {", ".join(reversed(weights))}')
  return tuple(met), tuple(weights)


def _used(jaxpr, names) -> list[str]:
  """Names of the tracked variables that the outputs depend on, by first use.

  Inner jaxprs are walked too.
  """
  needed, live = set(_variables(jaxpr.outvars)), []
  for equation in reversed(jaxpr.eqns):
    if needed.intersection(equation.outvars):
      needed.update(_variables(equation.invars))
      live.append(equation)
  found = []
  for equation in reversed(live):
    # jit holds a closed jaxpr, checkpoint an open one; a while loop has two and is left whole.
    inner = [getattr(value, 'jaxpr', value) for value in equation.params.values()
             if hasattr(value, 'eqns')]
    if len(inner) == 1 and len(inner[0].invars) == len(equation.invars):
      found += _used(inner[0], {
          inside: names[outside] for inside, outside in zip(inner[0].invars, equation.invars)
          if outside in _variables(equation.invars) and outside in names})
    else:
      found += [names[v] for v in _variables(equation.invars) if v in names]
  return list(dict.fromkeys(found))


def _variables(atoms) -> list:
  """Without literals, which have no hash."""
  return [atom for atom in atoms if not hasattr(atom, 'val')]
