"""Compiled losses: pure functions of arrays, importable without the rest of the toolkit.

Sub-modules load on first use. Every public loss is jit-compiled already, takes its arrays by
position and the rest by keyword, and composes with grad, vmap, scan and an outer jit; its
`__wrapped__` is the plain Python function. Shapes are checked when a loss is traced; values cannot
be, so `losses.check_*` tests them on the host beforehand.
"""

import importlib

_MODULES = ('baselines', 'ccu', 'checks', 'classification', 'contrastive', 'dlfd', 'ease',
            'federated', 'i2i', 'ncu', 'subspace', 'transport')
_CHECKS = ('check_embeddings', 'check_finite', 'check_labels', 'check_weights')
__all__ = (*_MODULES, *_CHECKS)


def __getattr__(name: str):
  if name in _MODULES:
    return importlib.import_module(f'{__name__}.{name}')
  if name in _CHECKS:
    return getattr(importlib.import_module(f'{__name__}.checks'), name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
  return sorted(__all__)
