"""pytest plugin: a conformance test of a method or a metric in three lines.

Load it with `pytest -p unlearn_jax.testing.plugin`, or once in `conftest.py`:

    pytest_plugins = ('unlearn_jax.testing.plugin',)

A method (`settings` are its keyword arguments, short and strong enough to forget the toy):

    def test_my_method(method_conforms):
      method_conforms(my_method, settings={'epochs': 3.0, 'learning_rate': 0.05})

A metric:

    def test_my_metric(metric_conforms):
      metric_conforms(lambda outputs, reference: my_auc(outputs), ideal=0.5)

What may fail is said with its reason, `expects={'forget accuracy': 'its loss is 0 already'}`. A
test fails with one line per failed check.
"""

from collections.abc import Callable, Sequence

import pytest

from unlearn_jax.testing import checks
from unlearn_jax.testing import methods
from unlearn_jax.testing import metrics


def _report(what: str, failed: Sequence[checks.Failed]) -> None:
  __tracebackhide__ = True
  if failed:
    lines = '\n'.join(f'  {one.check}: {one.reason}' for one in failed)
    pytest.fail(f'{what} fails {len(failed)} checks of the conformance suite\n{lines}',
                pytrace=False)


@pytest.fixture(scope='session')
def method_conforms() -> Callable[..., None]:
  """`method_conforms(method_factory, **options)`: `testing.conformance`, failing the test."""
  def check(method_factory, **options) -> None:
    __tracebackhide__ = True
    _report('the method', methods.conformance(method_factory, **options))
  return check


@pytest.fixture(scope='session')
def metric_conforms() -> Callable[..., None]:
  """`metric_conforms(metric, **options)`: `testing.conformance_metric`, failing the test."""
  def check(metric, **options) -> None:
    __tracebackhide__ = True
    _report('the metric', metrics.conformance_metric(metric, **options))
  return check
