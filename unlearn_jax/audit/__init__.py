"""Audits of unlearned models: every number beside its anchors, the retrain floor and a verdict.

`audit` compares an unlearned model with the original and with several retrained ones and returns an
`AuditReport`; `membership` computes one membership-inference number under a named convention.
Modules load on first use.
"""

import importlib

_MODULES = ('attacks', 'core', 'distances', 'hygiene', 'intervals', 'member_prediction',
            'outputs', 'plots', 'report', 'statistics', 'verdict', 'wording')
_NAMES = {'audit': 'core', 'AuditReport': 'core', 'Statistic': 'verdict', 'membership': 'attacks'}
__all__ = ('AuditReport', 'Statistic', 'audit', 'membership')


def __getattr__(name: str):
  if name in _MODULES:
    return importlib.import_module(f'{__name__}.{name}')
  if name in _NAMES:
    return getattr(importlib.import_module(f'{__name__}.{_NAMES[name]}'), name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
  return sorted({*__all__, *_MODULES})
