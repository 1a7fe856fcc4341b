"""What the updates of clients span, and which of it the client that forgets has to itself.

Of branches as one flat vector each, or of both sides of every matrix that they adapt.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp

from unlearn_jax import types
from unlearn_jax.losses import subspace
from unlearn_jax.methods import federated
from unlearn_jax.models import lora

# Of updates [F, n, P] of clients that forget and [R, n, P] of the others: the bases (U_u, U_r).
Decompose = Callable[[types.Array, types.Array], tuple[types.Array, types.Array]]


def decompose(forget: types.Array, retain: types.Array, *, energy: float, max_rank: int,
              threshold: float, kind: str = 'sine', soft: bool = False, rule: str = 'union'
              ) -> tuple[types.Array, types.Array]:
  """(U_u [P, a], U_r [P, b]) of updates [F, H, P] and [R, H, P]; settings as `ease` has them."""
  basis = lambda columns: subspace.basis(
      columns, energy=energy, max_rank=min(max_rank, columns.shape[1]))
  own = basis(forget.reshape(-1, forget.shape[-1]).T)
  others = jax.vmap(basis)(jnp.swapaxes(retain, 1, 2))
  support = subspace.union(others.vectors, others.mask)
  parts = subspace.cosine_sine(own.vectors, support.vectors, forget_mask=own.mask,
                               retain_mask=support.mask)
  cosines, sines = parts.cosines, parts.sines
  if rule == 'pairwise':
    cosines, sines = subspace.pairwise(parts.forget_vectors, others.vectors, forget_mask=own.mask,
                                       retain_masks=others.mask)
  vectors = parts.exclusive_vectors if kind == 'sine' else parts.forget_vectors
  return (subspace.exclusive(cosines, sines, vectors, threshold=threshold, soft=soft).vectors,
          support.vectors)


def nothing(forget: types.Array, retain: types.Array) -> tuple[types.Array, types.Array]:
  """No exclusive direction and no support, as bases of one zero column."""
  del retain
  empty = jnp.zeros((forget.shape[-1], 1), forget.dtype)
  return empty, empty


def of_vectors(forget: federated.Adapter, retain: federated.Adapter, decomposing: Decompose
               ) -> tuple[types.PyTree, types.PyTree]:
  """U_u and U_r of every branch, {branch: [P, q]}, of updates {branch: [clients, H, P]}."""
  found = {branch: decomposing(forget[branch], retain[branch]) for branch in federated.BRANCHES}
  return tuple({branch: pair[side] for branch, pair in found.items()} for side in (0, 1))


def of_matrices(model: types.Model, variables: types.Variables, starts: federated.Adapter,
                forget: federated.Adapter, retain: federated.Adapter, decomposing: Decompose
                ) -> tuple[types.PyTree, types.PyTree]:
  """U_u and U_r of every branch, {branch: `subspace.Sides`}.

  The left and the right singular vectors of `sum_t Delta_t(W)`, W = (alpha / r) B A, take the place
  of the directions of the vector, matrix by matrix. This leaks where vectors do not: an update of A
  that keeps off V still writes through all columns of B, one of B through all rows of A.

  Args:
    model: two towers with adapters, see `models.lora.adapted`.
    variables: of that model; the adapter does not matter.
    starts: what the clients set out from in each round, {branch: [H, P]}.
    forget: updates of clients that forget, {branch: [F, H, P]}.
    retain: of the others, {branch: [R, H, P]}.
    decomposing: applied to each side of each matrix.
  """
  by_matrix = functools.partial(written, model, variables, starts)
  forget, retain = by_matrix(forget), by_matrix(retain)
  exclusive, support = {}, {}
  for branch in federated.BRANCHES:
    exclusive[branch], support[branch] = {}, {}
    for name, own in forget[branch].items():
      others = retain[branch][name]
      sides = {'left': (jnp.swapaxes(own, 1, 2), jnp.swapaxes(others, 1, 2))}
      if 'adapter_fixed' not in variables:  # else A is no part of the adapter
        sides['right'] = own, others
      found = {side: decomposing(*pair) for side, pair in sides.items()}
      exclusive[branch][name] = {side: pair[0] for side, pair in found.items()}
      support[branch][name] = {side: pair[1] for side, pair in found.items()}
  return exclusive, support


def written(model: types.Model, variables: types.Variables, starts: federated.Adapter,
            updates: federated.Adapter) -> dict[str, dict[str, types.Array]]:
  """`sum_t [W(theta_t + delta_t) - W(theta_t)]` of clients: {branch: {matrix: [K, d_out, d_in]}}.

  W = (alpha / r) B A. Arguments as `of_matrices`.
  """
  weights = lambda adapter: lora.updates(model, {**variables, 'adapter': adapter})

  def change(start, delta):
    # W is bilinear, so that its slope half way gives the difference exactly, and none for delta 0.
    middle = jax.tree.map(lambda at, by: at + 0.5 * by, start, delta)
    return jax.jvp(weights, (middle,), (delta,))[1]

  def add(total, one):
    return jax.tree.map(jnp.add, total, jax.vmap(change, (None, 0))(*one)), None

  rounds = starts, jax.tree.map(lambda ring: jnp.swapaxes(ring, 0, 1), updates)
  clients = len(updates[federated.BRANCHES[0]])
  zeros = jax.tree.map(lambda one: jnp.zeros((clients, *one.shape), one.dtype),
                       jax.eval_shape(weights, variables['adapter']))
  return jax.lax.scan(add, zeros, rounds)[0]


def exclusive_rank(basis: types.PyTree) -> types.Array:
  """The number of directions of a branch; of matrices, on both sides of all of them."""
  return sum(jnp.sum(jnp.any(leaf != 0, axis=0)) for leaf in jax.tree.leaves(basis))
