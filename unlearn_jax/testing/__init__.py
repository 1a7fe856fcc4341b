"""The conformance suite, for people who add a method or a metric; pieces load on first use."""

import importlib

_NAMES = {'Failed': 'checks', 'conformance': 'methods', 'conformance_metric': 'metrics'}
_MODULES = ('checks', 'federation_toy', 'generation_toy', 'methods', 'metrics', 'multimodal_toy',
            'pairs_toy', 'plugin', 'toy')
__all__ = ('Failed', 'conformance', 'conformance_metric', *_MODULES)


def __getattr__(name: str):
  if name in _NAMES:
    return getattr(importlib.import_module(f'{__name__}.{_NAMES[name]}'), name)
  if name in _MODULES:
    return importlib.import_module(f'{__name__}.{name}')
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
  return sorted(__all__)
