"""Data: where records come from, how they are split, and the streams that feed the loop.

Sub-modules load on first use; none of them imports a data package before a source asks for it.
"""

import importlib

_MODULES = ('builders', 'clients', 'fields', 'generation', 'holes', 'pairs', 'pixels', 'sources',
            'splits', 'streams', 'text_transforms', 'transforms')
__all__ = _MODULES


def __getattr__(name: str):
  if name in _MODULES:
    return importlib.import_module(f'{__name__}.{name}')
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
  return sorted(__all__)
