"""Machine unlearning in JAX: losses, methods, models, data, evaluation.

Sub-packages load on first use, so that `from unlearn_jax import losses` stays light.
"""

import importlib

__version__ = '0.1.0'
_SUBPACKAGES = ('audit', 'cli', 'data', 'evals', 'losses', 'methods', 'models', 'testing', 'train',
                'types')
__all__ = ('__version__', *_SUBPACKAGES)


def __getattr__(name: str):
  if name in _SUBPACKAGES:
    return importlib.import_module(f'{__name__}.{name}')
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
  return sorted(__all__)
