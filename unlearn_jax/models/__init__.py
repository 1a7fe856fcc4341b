"""Models as `Model(init, apply)`: built by name, or adapted from Linen and NNX modules."""

from collections.abc import Callable
import difflib
import importlib
import inspect

from unlearn_jax import types

# name -> (module, factory); explicit, and nothing is imported before it is asked for.
_FACTORIES = {
    'audio_visual': ('audio_visual', 'audio_visual'),
    'av_events': ('av_events', 'av_events'),
    'clip': ('clip', 'clip'),
    'clip_vit_b_16': ('clip', 'clip_vit_b_16'),
    'clip_vit_b_32': ('clip', 'clip_vit_b_32'),
    'clip_vit_l_14': ('clip', 'clip_vit_l_14'),
    'cnn': ('cnn', 'cnn'),
    'densenet121': ('densenet', 'densenet121'),
    'efficientnet_b0': ('efficientnet', 'efficientnet_b0'),
    'inception_v3': ('inception', 'inception_v3'),
    'linear_towers': ('linear_towers', 'linear_towers'),
    'mae': ('mae', 'mae'),
    'mae_vit_b': ('mae', 'mae_vit_b'),
    'mae_vit_l': ('mae', 'mae_vit_l'),
    'mage': ('mage', 'mage'),
    'mage_vit_b': ('mage', 'mage_vit_b'),
    'mlp': ('mlp', 'mlp'),
    'palette': ('palette', 'palette'),
    'palette_256': ('palette', 'palette_256'),
    'resnet18': ('resnet', 'resnet18'),
    'resnet34': ('resnet', 'resnet34'),
    'resnet50': ('resnet', 'resnet50'),
    'token_fusion': ('token_fusion', 'token_fusion'),
    'vit': ('vit', 'vit'),
    'vqgan': ('vqgan', 'vqgan'),
}
_MODULES = ('archive', 'archive_legacy', 'audio_visual', 'av_events', 'clip', 'clip_keys',
            'clip_tokenizer', 'clip_towers', 'cnn', 'contract', 'convert', 'cpu_conv', 'densenet',
            'diffusion', 'efficientnet', 'inception', 'keys', 'layers', 'linear_towers', 'lora', 'mae',
            'mae_keys', 'mage', 'mage_keys', 'mage_masking', 'mage_transformer', 'mlp', 'order',
            'palette', 'palette_keys', 'patches', 'resnet', 'surgery', 'token_fusion', 'unet',
            'vit', 'vqgan')
__all__ = ('arguments', 'factory', 'get', 'names', *_MODULES)


def __getattr__(name: str):
  if name in _MODULES:
    return importlib.import_module(f'{__name__}.{name}')
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
  return sorted(__all__)


def _unknown(what: str, name: str, known: tuple[str, ...]) -> ValueError:
  close = difflib.get_close_matches(name, known, n=1)
  hint = f', did you mean {close[0]!r}?' if close else ';'
  return ValueError(f'no {what} {name!r}{hint} there is: {", ".join(known)}')


def names() -> tuple[str, ...]:
  """The registered models."""
  return tuple(_FACTORIES)


def factory(name: str) -> Callable[..., types.Model]:
  """The factory registered as `name`.

  Raises:
    ValueError: no such model.
  """
  if name not in _FACTORIES:
    raise _unknown('model', name, names())
  module, attribute = _FACTORIES[name]
  return getattr(importlib.import_module(f'{__name__}.{module}'), attribute)


def arguments(name: str) -> dict[str, inspect.Parameter]:
  """The keyword arguments of a model, read from its factory."""
  return dict(inspect.signature(factory(name)).parameters)


def get(name: str, **kwargs) -> types.Model:
  """Builds a model.

  Args:
    name: one of `names()`.
    **kwargs: arguments of its factory, `num_outputs` among them.

  Returns:
    The model as two pure functions.

  Raises:
    ValueError: unknown model or argument ("did you mean"), missing argument, or a value out of
      range.
    TypeError: a value of the wrong type.
  """
  accepted = arguments(name)
  for key in kwargs:
    if key not in accepted:
      raise _unknown(f'argument of model {name!r}', key, tuple(accepted))
  missing = [key for key, parameter in accepted.items()
             if parameter.default is inspect.Parameter.empty and key not in kwargs]
  if missing:
    raise ValueError(f'model {name!r} needs {", ".join(missing)}; it takes: {", ".join(accepted)}')
  return factory(name)(**kwargs)
