"""Early stopping on signals, for any method."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp

from unlearn_jax import types


def stop_early(method: types.Method, *, signals: Mapping[str, int],
               until: Callable[[Mapping[str, float]], bool]) -> types.Method:
  """The method with its unlearning ended as soon as `until(signals)` holds.

  The rule is given to every phase that has none of its own and starts from the state as it is: a
  phase with `enter` begins another stage, and one with an `until` (`base.never` included) keeps
  it. A phase that starts when the rule already holds takes no step.

  Args:
    method: any method.
    signals: name -> steps between two looks; a monitor gives the values.
    until: of the signals, on the host.
  """
  def init(key, variables):
    state, frozen = method.init(key, variables)
    fresh = {name: jnp.zeros((), jnp.float32) for name in signals}  # the loop looks before it stops
    return state.replace(signals={**fresh, **state.signals}), frozen

  def stopped(phase: types.Phase) -> types.Phase:
    if phase.until is not None or phase.enter is not None:
      return phase
    return phase._replace(signals={**phase.signals, **signals}, until=until)

  return types.Method(init, tuple(stopped(phase) for phase in method.phases), method.export)
