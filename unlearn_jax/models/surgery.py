"""Model surgery by regular expressions over `/`-joined paths, such as `params/fc/kernel`.

An expression must match a whole path. One that matches nothing is an error that lists the paths:
a silent miss would leave layers as they were.
"""

from collections.abc import Sequence
import re
from typing import Any

import jax
import jax.numpy as jnp

from unlearn_jax import types

Patterns = str | Sequence[str]


def _flat(tree: types.PyTree) -> tuple[dict[str, Any], Any]:
  leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf
          for path, leaf in leaves}, treedef


def _compile(patterns: Patterns, names: Sequence[str]) -> list[re.Pattern]:
  compiled = [re.compile(p) for p in ([patterns] if isinstance(patterns, str) else patterns)]
  for pattern in compiled:
    if not any(pattern.fullmatch(name) for name in names):
      raise ValueError(f'path rule {pattern.pattern!r} matches no parameter; parameters are: '
                       f'{", ".join(names)}')
  return compiled


def _describe(leaf: Any) -> str:
  return f'{tuple(jnp.shape(leaf))} {jnp.result_type(leaf)}'


def paths(tree: types.PyTree) -> list[str]:
  """The `/`-joined paths of all leaves, in the order in which JAX flattens the tree."""
  return list(_flat(tree)[0])


def match(tree: types.PyTree, patterns: Patterns) -> types.PyTree:
  """Marks the leaves whose path any of the patterns matches.

  Args:
    tree: nested dicts.
    patterns: one regular expression or several.

  Returns:
    A tree of bools with the structure of `tree` (a mask, as `optax.masked` takes it).

  Raises:
    ValueError: a pattern that matches no path; lists the paths.
  """
  flat, treedef = _flat(tree)
  compiled = _compile(patterns, list(flat))
  return treedef.unflatten([any(p.fullmatch(name) for p in compiled) for name in flat])


def first_mismatch(expected: types.PyTree, found: types.PyTree) -> str | None:
  """Compares names and shapes of two trees; values do not matter (abstract leaves are welcome).

  Args:
    expected: for instance a model's variables.
    found: for instance a checkpoint's.

  Returns:
    None if every name and shape agrees; else a sentence about the first leaf that does not: first
    in the order of `expected`, then the leaves that it lacks.
  """
  wanted, there = _flat(expected)[0], _flat(found)[0]
  for name, leaf in wanted.items():
    if name not in there:
      return f'{name!r} {_describe(leaf)} is missing; there is: {", ".join(there) or "nothing"}'
    if jnp.shape(leaf) != jnp.shape(there[name]):
      return (f'{name!r} should have shape {tuple(jnp.shape(leaf))}, '
              f'found {tuple(jnp.shape(there[name]))}')
  extra = next((name for name in there if name not in wanted), None)
  if extra is None:
    return None
  return f'{extra!r} {_describe(there[extra])} has no place in this model'


def reinitialise(variables: types.PyTree, fresh: types.PyTree, patterns: Patterns) -> types.PyTree:
  """Takes the leaves that match from `fresh`, the others from `variables`.

  Args:
    variables: the trained variables, `{'params': ..., 'batch_stats': ...}`.
    fresh: variables of the same model from `model.init`.
    patterns: one regular expression or several, over paths such as `params/layer4/1/conv2/kernel`.
      A layer's statistics are reset only if a pattern matches them too.

  Returns:
    A tree with the structure of `variables`.

  Raises:
    ValueError: a pattern that matches no path, or trees of different models (names the first leaf).
  """
  if problem := first_mismatch(variables, fresh):
    raise ValueError(f'the fresh variables are of another model: {problem}')
  there = _flat(fresh)[0]
  flat, treedef = _flat(variables)
  chosen = jax.tree.leaves(match(variables, patterns))
  return treedef.unflatten([
      there[name] if take else leaf for take, (name, leaf) in zip(chosen, flat.items())])


def rename(tree: types.PyTree, rules: Sequence[tuple[str, str]]) -> dict[str, Any]:
  """Moves leaves to new paths.

  Args:
    tree: nested dicts.
    rules: `(pattern, replacement)` pairs as `re.sub` takes them; the first pattern that matches a
      path rewrites it, paths that match none stay.

  Returns:
    Nested dicts; keys are strings.

  Raises:
    ValueError: a pattern that matches no path, two leaves that would land on one path, or a leaf
      on the way to another.
  """
  flat, _ = _flat(tree)
  compiled = _compile([pattern for pattern, _ in rules], list(flat))
  origin = {}
  for name in flat:
    target = next((found.expand(replacement)
                   for pattern, (_, replacement) in zip(compiled, rules)
                   if (found := pattern.fullmatch(name))), name)
    if target in origin:
      raise ValueError(f'{origin[target]!r} and {name!r} would both become {target!r}')
    origin[target] = name
  renamed = {}
  for target, name in origin.items():
    *parents, last = target.split('/')
    node = renamed
    for depth, parent in enumerate(parents):
      node = node.setdefault(parent, {})
      if not isinstance(node, dict):
        raise ValueError(f'{name!r} would become {target!r}, but '
                         f'{"/".join(parents[:depth + 1])!r} is a parameter')
    if last in node:
      raise ValueError(f'{name!r} would become {target!r}, but that holds parameters')
    node[last] = flat[name]
  return renamed


def load(into: types.PyTree, source: types.PyTree, *, rules: Sequence[tuple[str, str]] = (),
         keep: Patterns = ()) -> types.PyTree:
  """Fills a model's variables from another tree, strictly.

  Args:
    into: variables of the model, from `model.init` or `jax.eval_shape` of it.
    source: the leaves to load.
    rules: applied to `source` by `rename` first.
    keep: leaves of `into` that stay as they are (a new head); leaves of `source` at these paths
      are ignored.

  Returns:
    A tree with the structure and dtypes of `into`.

  Raises:
    ValueError: a pattern that matches nothing; or any leaf that is missing, superfluous, or of
      another shape or kind of dtype: names the first, with both shapes.
  """
  flat, treedef = _flat(into)
  kept = set()
  if keep:
    marks = jax.tree.leaves(match(into, keep))
    kept = {name for name, mark in zip(flat, marks) if mark}
  there = _flat(rename(source, rules) if rules else source)[0]
  problem = first_mismatch({name: leaf for name, leaf in flat.items() if name not in kept},
                           {name: leaf for name, leaf in there.items() if name not in kept})
  if problem:
    raise ValueError(f'the parameters are of another model: {problem}')

  def take(name, leaf):
    if name in kept:
      return leaf
    value, dtype = jnp.asarray(there[name]), jnp.result_type(leaf)
    # Half precision loads into float32; a float where an integer belongs is a mistake.
    if jnp.issubdtype(value.dtype, jnp.floating) != jnp.issubdtype(dtype, jnp.floating):
      raise ValueError(f'the parameters are of another model: {name!r} should be '
                       f'{_describe(leaf)}, found {_describe(value)}')
    return value.astype(dtype)

  return treedef.unflatten([take(name, leaf) for name, leaf in flat.items()])
