"""LoRA (Hu et al., 2021) on two-tower models: one flat vector per branch over a frozen backbone."""

from collections.abc import Mapping, Sequence
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from unlearn_jax import types
from unlearn_jax.models import layers
from unlearn_jax.models import surgery

BRANCHES = {'image': 'visual', 'text': 'text'}  # branch -> its subtree of the parameters
MODES = ('full', 'ffa')
# Queries and values of every attention layer; the one matrix of a linear tower.
TARGETS = r'(visual|text)/(.*/in_proj/[qv]|kernel)'
_FUSED = ('q', 'k', 'v')  # column blocks of a kernel `in_proj`


class Factors(NamedTuple):
  """The adapter of one matrix.

  Attributes:
    b: B [d_out, r].
    a: A [r, d_in]; None where it is fixed and so no part of the adapter (mode `ffa`).
  """

  b: types.Array
  a: types.Array | None


class _Matrix(NamedTuple):
  """A matrix that may be adapted: column block number `block` of a kernel, [d_in, d_out]."""

  kernel: str
  block: int
  d_out: int
  d_in: int


def adapted(model: types.Model, *, rank: int = 8, alpha: float = 16.0,
            targets: surgery.Patterns = TARGETS, mode: str = 'full',
            backbone: types.PyTree | None = None) -> types.Model:
  """The model with low-rank updates of some of its matrices, and all else frozen.

  W = W0 + (alpha / r) B A, with B [d_out, r] zero, so that a fresh adapter is the backbone itself,
  and A [r, d_in] normal (Hu et al. 2021, section 4.1; its deviation 1/sqrt(d_in) is ours). The
  adapter of a branch is the concatenation of vec(B), vec(A) over its adapted matrices, by rows, in
  the order of their names.

  Variables: `params`, the backbone; `adapter`, {'image': float32 [P_image], 'text': float32
  [P_text]}. In mode `ffa` (FFA-LoRA, Sun et al. 2024) the adapter is vec(B) alone, linear in W:
  averaging adapters averages weights. The fixed vec(A) are the collection `adapter_fixed`, by
  branch. Any other collections come back from `apply` as they were.

  Matrices are named by the path of their kernel, `text/transformer/resblocks/0/mlp/c_fc/kernel`; a
  fused kernel [w, 3w] is three matrices, `.../attn/in_proj/q`, `.../in_proj/k`, `.../in_proj/v`.

  Args:
    model: with the towers `visual` and `text` among its parameters and no other collections.
    rank: r.
    alpha: of the scale alpha / r.
    targets: regular expressions over names of matrices. The default adapts queries and values of
      both towers; of `linear_towers` its two matrices.
    mode: `full` trains A and B, `ffa` B alone.
    backbone: parameters of `model`; None is what its own `init` draws.

  Returns:
    The model; inputs, outputs and methods are those of `model`. Three methods more, without inputs,
    serve `merged`, `unflatten` and `updates`.

  Raises:
    TypeError, ValueError: an argument of the wrong type or out of range; on init and apply, a
      target that matches no matrix, a tower without any, an adapter of another size; on init, a
      backbone of another model, a model with further collections.
  """
  layers.check_positive('lora', rank=rank)
  if not (alpha > 0 and math.isfinite(alpha)):
    raise ValueError(f'lora: alpha must be positive and finite, got {alpha}')
  if mode not in MODES:
    raise ValueError(f'lora: mode is one of {", ".join(MODES)}, got {mode!r}')

  def factors(variables, layout) -> dict[str, dict[str, Factors]]:
    return {branch: _split(branch, variables['adapter'][branch], matrices, rank, mode)
            for branch, matrices in layout.items()}

  def low_rank(variables, layout) -> dict[str, dict[str, types.Array]]:
    found = factors(variables, layout)
    if mode == 'ffa':
      for branch, matrices in layout.items():
        fixed = _cut(f'fixed part of the {branch} branch', variables['adapter_fixed'][branch],
                     [(rank, matrix.d_in) for matrix in matrices.values()])
        found[branch] = {name: Factors(b, a) for (name, (b, _)), a in zip(
            found[branch].items(), fixed)}
    return {branch: {name: (alpha / rank) * (b @ a) for name, (b, a) in by_name.items()}
            for branch, by_name in found.items()}

  def merge(variables, layout) -> types.PyTree:
    blocks = {}  # path of a kernel -> {block: update [d_in, d_out]}
    found = low_rank(variables, layout)
    for branch, matrices in layout.items():
      for name, matrix in matrices.items():
        blocks.setdefault(matrix.kernel, {})[matrix.block] = found[branch][name].T
    leaves, treedef = jax.tree.flatten(variables['params'])
    return treedef.unflatten([
        _added(leaf, blocks[path]) if path in blocks else leaf
        for path, leaf in zip(surgery.paths(variables['params']), leaves)])

  def init(key, inputs):
    model_key, adapter_key = jax.random.split(key)
    expected = jax.eval_shape(model.init, model_key, inputs)
    if further := sorted(set(expected) - {'params'}):
      raise ValueError(f'lora: the model has collections beside its parameters: {further}; they '
                       'would neither be trained nor averaged')
    if backbone is None:
      params = model.init(model_key, inputs)['params']
    elif problem := surgery.first_mismatch(expected['params'], backbone):
      raise ValueError(f'lora: the backbone is of another model: {problem}')
    else:
      params = backbone
    variables = {'params': params, 'adapter': {}}
    for number, (branch, matrices) in enumerate(_layout(params, targets).items()):
      branch_key = jax.random.fold_in(adapter_key, number)
      fresh = [Factors(jnp.zeros((matrix.d_out, rank)), matrix.d_in**-0.5 * jax.random.normal(
          jax.random.fold_in(branch_key, index), (rank, matrix.d_in)))
               for index, matrix in enumerate(matrices.values())]
      if mode == 'ffa':
        fixed = variables.setdefault('adapter_fixed', {})
        fixed[branch] = jnp.concatenate([one.a.ravel() for one in fresh])
        fresh = [one._replace(a=None) for one in fresh]
      variables['adapter'][branch] = flatten(dict(zip(matrices, fresh)))
    return variables

  def apply(variables, inputs, *, train=False, rngs=None, method=None):
    layout = _layout(variables['params'], targets)
    without_inputs = {'factors': factors, 'updates': low_rank, 'merged': merge}
    if method in without_inputs:
      return without_inputs[method](variables, layout), variables
    params = merge(variables, layout)
    outputs, _ = model.apply({'params': params}, inputs, train=train, rngs=rngs, method=method)
    return outputs, variables

  return types.Model(init, apply)


def merged(model: types.Model, variables: types.Variables) -> types.PyTree:
  """Plain parameters of the wrapped model, W0 + (alpha / r) B A in place of W0.

  Args:
    model: what `adapted` returned.
    variables: its variables.
  """
  return model.apply(variables, {}, method='merged')[0]


def updates(model: types.Model, variables: types.Variables) -> dict[str, dict[str, types.Array]]:
  """What the adapter adds to each matrix: {branch: {name: (alpha / r) B A, [d_out, d_in]}}.

  Args:
    model: what `adapted` returned.
    variables: its variables.

  Raises:
    ValueError: vectors of another size.
  """
  return model.apply(variables, {}, method='updates')[0]


def unflatten(model: types.Model, variables: types.Variables) -> dict[str, dict[str, Factors]]:
  """The adapter by matrix: {branch: {name: Factors}}, in the order of the vector.

  To read another vector of the layout, such as an update, put it in the place of the adapter:
  `unflatten(model, {**variables, 'adapter': update})`.

  Args:
    model: what `adapted` returned.
    variables: its variables.

  Raises:
    ValueError: vectors of another size.
  """
  return model.apply(variables, {}, method='factors')[0]


def flatten(factors: Mapping[str, Factors]) -> types.Array:
  """The vector [P] of a branch; the inverse of `unflatten`, whatever the order of the names."""
  return jnp.concatenate([part.ravel() for name in sorted(factors) for part in factors[name]
                          if part is not None])


def sizes(variables: types.Variables) -> dict[str, int]:
  """P of every branch: {'image': ..., 'text': ...}."""
  return {branch: vector.shape[-1] for branch, vector in variables['adapter'].items()}


def _layout(params: types.PyTree, targets: surgery.Patterns) -> dict[str, dict[str, _Matrix]]:
  """The adapted matrices of every branch by name, sorted."""
  there = {}
  for path, leaf in zip(surgery.paths(params), jax.tree.leaves(params)):
    *parents, last = path.split('/')
    if last != 'kernel' or len(leaf.shape) != 2 or parents[0] not in BRANCHES.values():
      continue
    d_in, d_out = leaf.shape
    if parents[-1] == 'in_proj':
      there |= {'/'.join((*parents, name)): _Matrix(path, block, d_out // 3, d_in)
                for block, name in enumerate(_FUSED)}
    else:
      there[path] = _Matrix(path, 0, d_out, d_in)
  chosen = surgery.match(dict.fromkeys(there, 0), targets) if there else {}
  layout = {branch: {name: there[name] for name in sorted(there)
                     if chosen[name] and name.startswith(f'{tower}/')}
            for branch, tower in BRANCHES.items()}
  for branch, matrices in layout.items():
    if not matrices:
      raise ValueError(f'lora: the targets {targets!r} adapt nothing of the {branch} tower; its '
                       'matrices are: ' + (', '.join(name for name in there if name.startswith(
                           f'{BRANCHES[branch]}/')) or 'none'))
  return layout


def _split(branch: str, vector: types.Array, matrices: Mapping[str, _Matrix], rank: int,
           mode: str) -> dict[str, Factors]:
  shapes = [shape for matrix in matrices.values() for shape in (
      (matrix.d_out, rank), (rank, matrix.d_in))[:2 if mode == 'full' else 1]]
  parts = iter(_cut(f'adapter of the {branch} branch', vector, shapes))
  return {name: Factors(next(parts), next(parts) if mode == 'full' else None) for name in matrices}


def _cut(what: str, vector: types.Array, shapes: Sequence[tuple[int, int]]) -> list[types.Array]:
  """A vector as consecutive matrices of these shapes."""
  ends = [0, *itertools.accumulate(rows * columns for rows, columns in shapes)]
  if vector.shape != (ends[-1],):
    raise ValueError(f'lora: the {what} must be a vector of {ends[-1]} values, got shape '
                     f'{tuple(vector.shape)}')
  return [vector[start:stop].reshape(shape)
          for start, stop, shape in zip(ends, ends[1:], shapes)]


def _added(kernel: types.Array, updates: Mapping[int, types.Array]) -> types.Array:
  """The kernel [d_in, d_out] with updates added to its column blocks."""
  width = next(iter(updates.values())).shape[1]
  return jnp.concatenate([
      kernel[:, start:start + width] + updates.get(start // width, 0.0)
      for start in range(0, kernel.shape[1], width)], axis=1)
