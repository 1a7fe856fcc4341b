"""What each modality knows: accuracies of a model of two modalities with one of them withheld."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from unlearn_jax import types
from unlearn_jax.evals import figures
from unlearn_jax.evals import results as results_lib
from unlearn_jax.evals import run

VISUAL = 'image'
READINGS = ('shapley', 'zero', 'mean')


def unimodal(apply: Callable, other: str, *, reading: str = 'shapley',
             means: Mapping[str, Any] | None = None) -> Callable:
  """`apply` with logits of each modality besides: outputs `visual_logits` and `other_logits`.

  With f the fused logits, v the picture and a the other modality:

  - `shapley` (AGM, Li et al. 2023): `m_v = (f(a, v) - f(a, 0) + f(0, v)) / 2`, `m_a` likewise; the
    two add up to f(a, v) exactly, if the 0 is what is given to `apply`;
  - `zero`: `f(0, v)` and `f(a, 0)`;
  - `mean`: `f(mean a, v)` and `f(a, mean v)`, with means over data.

  CCU reports accuracies of one modality and never says how it takes them: that `shapley` is the
  default is ours (its AV-MNIST model is AGM's). Extra passes run in evaluation mode.

  Args:
    apply: a model's, of inputs `image` and `other`.
    other: name of the second modality.
    reading: one of `READINGS`.
    means: modality -> its mean record, [...]; for `reading='mean'`.

  Returns:
    An `apply`.

  Raises:
    ValueError: unknown reading, means that are missing or not asked for.
  """
  if reading not in READINGS:
    raise ValueError(f'reading is one of {", ".join(READINGS)}, got {reading!r}')
  if (reading == 'mean') != (means is not None):
    raise ValueError(f"means belong to reading='mean', got reading {reading!r} and "
                     f'{"no means" if means is None else "means"}')

  def without(inputs, name):
    value = inputs[name]
    empty = jnp.zeros_like(value) if means is None else jnp.broadcast_to(
        jnp.asarray(means[name], value.dtype), value.shape)
    return {**inputs, name: empty}

  def evaluated(variables, inputs, *, train=False, rngs=None, method=None):
    outputs, after = apply(variables, inputs, train=train, rngs=rngs, method=method)
    alone = {name: apply(variables, without(inputs, hidden), train=False)[0]['logits']
             for name, hidden in (('visual', other), ('other', VISUAL))}
    if reading == 'shapley':
      fused, difference = outputs['logits'], alone['visual'] - alone['other']
      alone = {'visual': 0.5 * (fused + difference), 'other': 0.5 * (fused - difference)}
    return {**outputs, **{f'{name}_logits': logits for name, logits in alone.items()}}, after

  return evaluated


def accuracies(outputs: Mapping[str, np.ndarray], labels: np.ndarray) -> dict[str, float]:
  """Exact shares of records that are right: `visual` and `other`, from `unimodal` outputs."""
  return {name: float(np.mean(np.argmax(outputs[f'{name}_logits'], axis=1) == labels))
          for name in ('visual', 'other')}


def visual_monitor(apply: Callable, forget: Mapping[str, Any], held_out: Mapping[str, Any]
                   ) -> types.Evaluator:
  """The evaluator of CCU's stopping rule (section 5.1.3).

  Args:
    apply: from `unimodal`.
    forget: fields of the records to forget, with labels.
    held_out: of validation or test records.

  Returns:
    An `Evaluator` of `visual_accuracy/forget` and `visual_accuracy/held_out`, in [0, 1].
  """
  def measure(given, variables):
    del given  # the loop's apply has no uni-modal logits
    found = {}
    for name, fields in (('forget', forget), ('held_out', held_out)):
      logits = run.predict(apply, variables, fields, names=('visual_logits',))['visual_logits']
      found[f'visual_accuracy/{name}'] = np.mean(np.argmax(logits, axis=1) == fields['label'])
    return found

  return types.Evaluator('visual accuracy', measure, 1)


def stopped(signals: Mapping[str, Any]) -> bool:
  """CCU, section 5.1.3: the visual accuracy of what is forgotten fell below the held-out one."""
  return bool(signals['visual_accuracy/forget'] < signals['visual_accuracy/held_out'])


def means(fields: Mapping[str, Any], names: tuple[str, ...], *, chunk: int = 1024
          ) -> dict[str, np.ndarray]:
  """Mean record of each modality, summed in float64 chunk by chunk."""
  found = {}
  for name in names:
    field = fields[name]
    total = np.zeros(field.shape[1:], np.float64)
    for start in range(0, len(field), chunk):
      total += np.asarray(field[start:start + chunk], np.float64).sum(axis=0)
    found[name] = (total / len(field)).astype(np.float32)
  return found


@figures.styled
def bars(results: Mapping[str, Any]):
  """Accuracies of both modalities and of each alone, on test, retained and forgotten records.

  As CCU's Figure 1: before unlearning is the row of the original model.
  """
  names = results_lib.ordered(results['methods'])
  kinds = {'accuracy': 'both', 'accuracy_visual': 'visual', 'accuracy_other': 'kept'}
  splits = {'test': 'test', 'retain': 'retain', 'forget': 'unlearn'}
  canvas, axes = figures.new_figure(9.0, 1.2 + 0.42 * len(names), 1, 3, sharey=True, sharex=True)
  for axis, (split, title) in zip(axes.flat, splits.items()):
    for index, ((kind, label), colour) in enumerate(zip(kinds.items(), figures.COLOURS)):
      found = [results_lib.value(results, name, f'{kind}/{split}') for name in names]
      axis.barh(np.arange(len(names)) + 0.27 * (index - 1), [f['mean'] for f in found], height=0.25,
                xerr=[f['std'] or 0.0 for f in found], color=colour, alpha=0.85, label=label,
                error_kw={'lw': 0.8, 'ecolor': '#333333'})
    axis.set_title(f'{title} set', fontsize=9)
    axis.set_xlabel('accuracy')
    axis.grid(axis='y', visible=False)
  axes[0, 0].set_yticks(range(len(names)), [results_lib.display(name) for name in names])
  axes[0, 0].invert_yaxis()
  canvas.legend(*axes[0, 0].get_legend_handles_labels(), loc='outside upper center', ncols=3)
  return canvas


@figures.styled
def nearest_classes(models: Mapping[str, np.ndarray]):
  """Where unlearned pictures lie: own class against the class of the nearest centre, as shares.

  Args:
    models: name -> counts [K, K], rows are the records' own classes.
  """
  columns = min(4, len(models))
  rows = -(-len(models) // columns)
  canvas, axes = figures.new_figure(9.0, 0.5 + 2.3 * rows, rows, columns)
  for axis, (name, counts) in zip(axes.flat, models.items()):
    share = np.asarray(counts, float) / np.maximum(np.sum(counts, axis=1, keepdims=True), 1)
    shown = axis.imshow(share, vmin=0, vmax=1, cmap='Blues')
    axis.set_title(name, fontsize=9)
    axis.locator_params(integer=True)
    axis.grid(False)
  for axis in axes.flat[len(models):]:
    axis.set_visible(False)
  canvas.colorbar(shown, ax=axes, shrink=0.6, label='share of the class')
  canvas.supxlabel('class of the nearest centre', fontsize=9)
  canvas.supylabel('own class', fontsize=9)
  return canvas
