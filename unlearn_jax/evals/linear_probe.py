"""Linear probe: multinomial logistic regression on frozen features, by L-BFGS on the device."""

from collections.abc import Sequence
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unlearn_jax.evals import zero_shot
from unlearn_jax.losses import checks

GRID = tuple(10.0**power for power in range(-6, 7))  # of C: CLIP's range, in decades
# Of the gradient's largest entry. At scikit-learn's 1e-4 probabilities are off by 0.02, at this
# by 4e-4 at most (measured on Gaussian blobs and digits); float32 still reaches it.
TOLERANCE = 1e-6
ITERATIONS = 1000  # CLIP's
PATIENCE = 50  # iterations without a smaller gradient: float32 is at its end


class Probe(NamedTuple):
  """A fitted probe; scores are (x - centre) / scale @ weight + bias.

  Attributes:
    weight: [D, K].
    bias: [K].
    centre: [D], mean of the features that it was fitted to.
    scale: [D], their standard deviation, 1 where it is 0.
    converged: whether the largest entry of the gradient fell to the tolerance.
    iterations: of L-BFGS.
    gradient: largest absolute entry of the gradient at the end.
  """

  weight: np.ndarray
  bias: np.ndarray
  centre: np.ndarray
  scale: np.ndarray
  converged: bool
  iterations: int
  gradient: float

  def scores(self, features) -> np.ndarray:
    """Logits [N, K] of features [N, D]."""
    features = _features('features', features, len(self.centre))
    return (features - self.centre) / self.scale @ self.weight + self.bias


def fit(features, labels, *, num_classes: int, strengths: Sequence[float],
        tolerance: float = TOLERANCE, max_iterations: int = ITERATIONS) -> list[Probe]:
  """Probes of one inverse regularisation each, fitted along the path from weak to strong C.

  Minimises mean_i -log softmax(W^T x_i + b)_{y_i} + ||W||_F^2 / (2 C N), the objective of
  scikit-learn's multinomial `LogisticRegression(C)` over C N (its two-class model has a single
  vector: there 2 C stands for C here), with the bias free, by `optax.lbfgs` (memory 10, zoom line
  search) in one compiled loop until the largest absolute entry of the gradient is at most
  `tolerance`, or does not fall for `PATIENCE` iterations: then `converged` is false (float32 is at
  its end, as seen on separable data from C = 1e4 on). Every C starts from the solution of the one
  before (the objective is strictly convex in W, so that this saves time and changes nothing).

  Features are standardised with the mean and deviation of the records given: then one grid of C
  means the same for every model, however a method has scaled its features, and L-BFGS needs fewer
  iterations. CLIP's probe (Radford et al. 2021, appendix A.3) does not standardise: ours.

  Args:
    features: [N, D] of a frozen tower, before its projection. Scores [N, K] of all records are
      held at once, in float32.
    labels: [N] integers in [0, num_classes).
    num_classes: K, at least 2.
    strengths: values of C above 0, ascending.
    tolerance: of the gradient.
    max_iterations: for each C.

  Returns:
    A probe for each C, in the order of `strengths`.

  Raises:
    ValueError: features that are not [N, D] or not finite, wrong labels, fewer than two classes,
      or strengths that are not positive and ascending.
  """
  features = _features('features', features)
  labels = np.asarray(labels)
  if num_classes < 2:
    raise ValueError(f'a probe tells two classes or more apart, got num_classes={num_classes}')
  checks.check_labels(labels, num_classes)
  if labels.shape != features.shape[:1]:
    raise ValueError(f'{len(features)} features, labels of shape {labels.shape}')
  strengths = np.asarray(strengths, np.float32)
  if strengths.ndim != 1 or not len(strengths) or not (strengths > 0).all() or (
      np.diff(strengths) <= 0).any():
    raise ValueError(f'strengths are positive and ascending, got {strengths.tolist()}')
  centre, scale = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
  scale = np.where(scale > 1e-6 * np.maximum(np.abs(centre), 1e-6), scale, 1.0)
  centre, scale = centre.astype(np.float32), scale.astype(np.float32)
  weights, biases, iterations, gradients = jax.device_get(_path(
      jnp.asarray((features - centre) / scale), jnp.asarray(labels, jnp.int32),
      jnp.asarray(1 / (strengths * len(features))), tolerance, num_classes=num_classes,
      max_iterations=max_iterations))
  return [Probe(weight, bias, centre, scale, bool(gradient <= tolerance), int(count),
                float(gradient))
          for weight, bias, count, gradient in zip(weights, biases, iterations, gradients)]


@functools.partial(jax.jit, static_argnames=('num_classes', 'max_iterations'))
def _path(x, labels, penalties, tolerance, *, num_classes, max_iterations):
  """Solutions for all penalties: weights [S, D, K], biases [S, K], iterations and gradients [S]."""
  solver = optax.lbfgs()

  def solve(parameters, penalty):
    def objective(parameters):
      weight, bias = parameters
      losses = optax.softmax_cross_entropy_with_integer_labels(x @ weight + bias, labels)
      return losses.mean() + penalty / 2 * (weight**2).sum()

    value_and_grad = optax.value_and_grad_from_state(objective)

    def largest(gradient):
      return jnp.maximum(*(jnp.abs(leaf).max() for leaf in gradient))

    def unfinished(carry):
      *_, count, size, _, since = carry
      return (size > tolerance) & (count < max_iterations) & (since < PATIENCE)

    def step(carry):
      parameters, state, count, _, best, since = carry
      value, gradient = value_and_grad(parameters, state=state)
      updates, state = solver.update(gradient, state, parameters, value=value, grad=gradient,
                                     value_fn=objective)
      parameters = optax.apply_updates(parameters, updates)
      size = largest(optax.tree.get(state, 'grad'))
      since = jnp.where(size < best, 0, since + 1)
      return parameters, state, count + 1, size, jnp.minimum(size, best), since

    first = largest(jax.grad(objective)(parameters))
    parameters, _, count, size, *_ = jax.lax.while_loop(
        unfinished, step, (parameters, solver.init(parameters), 0, first, first, 0))
    return parameters, (*parameters, count, size)

  start = jnp.zeros((x.shape[1], num_classes)), jnp.zeros(num_classes)
  return jax.lax.scan(solve, start, penalties)[1]


def evaluate(train, validation, test, *, num_classes: int, strengths: Sequence[float] = GRID,
             tolerance: float = TOLERANCE, max_iterations: int = ITERATIONS) -> dict[str, float]:
  """Fits on train, chooses C on validation, refits on both and reports on test.

  As in CLIP's paper (appendix A.3), the chosen C is fitted again on train and validation data
  together. The grid is one of decades; CLIP refines it to eight steps per decade. Of equally good
  C the smallest is taken.

  Args:
    train: (features [N, D], labels [N]).
    validation: likewise; takes part in the choice of C and in the last fit.
    test: likewise; read once.
    num_classes: K.
    strengths: the grid of C, ascending.
    tolerance: see `fit`.
    max_iterations: see `fit`.

  Returns:
    `linear_probe/top1`, `linear_probe/top5` and `linear_probe/mean_per_class` on test
    (`zero_shot.accuracies`), `linear_probe/validation`, the accuracy by which C was chosen,
    `linear_probe/C`, and `linear_probe/converged`: 1 if the last fit converged, 0 if not.

  Raises:
    ValueError: see `fit` and `zero_shot.accuracies`.
  """
  probes = fit(*train, num_classes=num_classes, strengths=strengths, tolerance=tolerance,
               max_iterations=max_iterations)
  found = [_accuracies(probe, validation)['linear_probe/top1']
           for probe in probes]
  best = int(np.argmax(found))
  both = [np.concatenate([np.asarray(a), np.asarray(b)]) for a, b in zip(train, validation)]
  last, = fit(*both, num_classes=num_classes, strengths=[strengths[best]], tolerance=tolerance,
              max_iterations=max_iterations)
  return {**_accuracies(last, test), 'linear_probe/validation': found[best],
          'linear_probe/C': float(strengths[best]), 'linear_probe/converged': float(last.converged)}


def _accuracies(probe: Probe, data) -> dict[str, float]:
  features, labels = data
  return zero_shot.accuracies(probe.scores(features), labels, prefix='linear_probe')


def _features(name: str, features, dimensions: int | None = None) -> np.ndarray:
  """float32 [N, D], or an error that says what is wrong with it."""
  features = np.asarray(features, np.float32)
  if features.ndim != 2 or not len(features) or dimensions not in (None, features.shape[1]):
    raise ValueError(f'{name} must be [N, {"D" if dimensions is None else dimensions}] with a '
                     f'record at least, got {features.shape}')
  checks.check_finite(name, features)
  return features
