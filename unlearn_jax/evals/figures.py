"""The figures of a report, each as SVG text; matplotlib is imported on first use."""

from collections.abc import Mapping
import io
import re
from typing import Any

import numpy as np

from unlearn_jax.evals import results as results_lib
from unlearn_jax.evals import views

FORGET, UNSEEN = '#009e73', '#e69f00'  # green and orange, as in the paper's Figure 3
ANCHOR_COLOURS = {'original': '#888888', 'retrain': '#111111'}
COLOURS = ('#0072b2', '#d55e00', '#cc79a7', '#56b4e9', '#b8a800', '#7a5195', '#2f8f4e', '#a05a2c')
MARKERS = 'osD^vPX*<'  # one more than colours: 72 methods before a pair of both comes again
SMALLEST_LOSS = 1e-5
_STYLE = {
    'font.size': 9, 'axes.spines.top': False, 'axes.spines.right': False, 'axes.grid': True,
    'grid.color': '#e6e6e6', 'axes.axisbelow': True, 'axes.edgecolor': '#777777',
    'legend.frameon': False, 'svg.hashsalt': 'unlearn_jax'}


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **kwargs):
  """A figure without global state, and its axes as an array [rows, columns]."""
  from matplotlib import figure
  canvas = figure.Figure(figsize=(width, height), layout='constrained')
  return canvas, canvas.subplots(rows, columns, squeeze=False, **kwargs)


def styled(draw):
  """Runs a drawing function in our style and returns its figure as SVG text."""
  def drawn(*args, **kwargs) -> str:
    try:
      import matplotlib
    except ImportError as error:
      raise ImportError('a report with figures needs matplotlib: '
                        'pip install "unlearn_jax[report]"') from error
    with matplotlib.rc_context(_STYLE):
      file = io.StringIO()
      draw(*args, **kwargs).savefig(file, format='svg', metadata={'Date': None})
    svg = file.getvalue()
    return re.sub(r'[ \t]+$', '', svg[svg.index('<svg'):], flags=re.MULTILINE)
  drawn.__doc__, drawn.__name__ = draw.__doc__, draw.__name__
  return drawn


def _colours(names) -> dict[str, str]:
  methods = [name for name in names if name not in ANCHOR_COLOURS]
  return ANCHOR_COLOURS | {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(methods)}


def _markers(names) -> dict[str, str]:
  return {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(names)}


@styled
def ranking(results: Mapping[str, Any]):
  """What methods are ranked by, as bars with the spread over seeds; a line at the retrained model."""
  metric = views.of(results).best
  names = results_lib.ordered(results['methods'])
  found = [results_lib.value(results, name, metric) for name in names]
  shown = [(name, f) for name, f in zip(names, found) if f['mean'] is not None]
  colours = _colours(names)
  canvas, ((axis,),) = new_figure(9.0, 0.9 + 0.32 * len(shown))
  for row, (name, f) in enumerate(shown):
    axis.barh(row, f['mean'], xerr=f['std'], color=colours[name], height=0.62, alpha=0.85,
              error_kw={'capsize': 3, 'lw': 1, 'ecolor': '#333333'})
    axis.plot(f['values'], [row] * len(f['values']), '.', color='white', mec='#333333', mew=0.6)
  for name, f in shown:
    if name == 'retrain':
      axis.axvline(f['mean'], color='#111111', lw=1, ls='--')
  axis.set_yticks(range(len(shown)), [results_lib.display(name) for name, _ in shown])
  axis.invert_yaxis()
  axis.grid(axis='y', visible=False)
  values = [x for _, f in shown for x in f['values']]
  if values:  # bars need not start at 0 to compare: say so on the axis
    low = np.floor((min(values) - 0.05) * 10) / 10
    low = max(0.0, low) if min(values) >= 0 else low
    axis.set_xlim(low, min(1.0, max(values) + 0.05))
  axis.set_xlabel(f'{views.metric(metric).label} (axis starts at {axis.get_xlim()[0]:.1f})')
  return canvas


@styled
def trade_off(results: Mapping[str, Any], score: str = 'forgetting_score[benchmark]'):
  """Test accuracy against the Forgetting Score, a point per method and seed."""
  from matplotlib import patches
  names = results_lib.ordered(results['methods'])
  colours = _colours(names)
  canvas, ((axis,),) = new_figure(9.0, 4.2)
  markers = _markers(names)
  for name in names:
    x = results_lib.value(results, name, score)['values']
    y = results_lib.value(results, name, 'accuracy/test')['values']
    pairs = np.array([pair for pair in zip(x, y) if None not in pair]).reshape(-1, 2)
    if not len(pairs):
      continue
    if name == 'retrain':
      low, high = pairs.min(axis=0), pairs.max(axis=0)
      pad = np.array([0.004, 0.004])
      axis.add_patch(patches.Rectangle(low - pad, *(high - low + 2 * pad), color='#111111',
                                       alpha=0.08, lw=0, label='range of retrained models'))
    axis.scatter(*pairs.T, s=42, color=colours[name], marker=markers[name],
                 alpha=0.85, lw=0, label=results_lib.display(name))
  axis.set_xlim(left=min(0.0, axis.get_xlim()[0]))
  axis.set_xlabel('Forgetting Score (0: forgotten and unseen losses cannot be told apart)')
  axis.set_ylabel('Test accuracy')
  if axis.get_legend_handles_labels()[0]:
    axis.legend(loc='center left', bbox_to_anchor=(1.0, 0.5))
  return canvas


@styled
def loss_histograms(losses: Mapping[str, Mapping[str, Any]]):
  """Losses of forgotten and unseen records, a panel per model on shared axes."""
  names = [name for name in results_lib.ordered(losses) if name in losses]
  clipped = {name: {side: np.maximum(np.asarray(losses[name][side], float), SMALLEST_LOSS)
                    for side in ('forget', 'unseen')} for name in names}
  every = np.concatenate([side for panel in clipped.values() for side in panel.values()])
  bins = np.geomspace(max(every.min(), SMALLEST_LOSS) * 0.999, every.max() * 1.001, 31)
  columns = min(3, len(names))
  rows = -(-len(names) // columns)
  canvas, axes = new_figure(9.0, 0.5 + 1.9 * rows, rows, columns, sharex=True, sharey=True)
  for axis, name in zip(axes.flat, names):
    for side, colour in (('unseen', UNSEEN), ('forget', FORGET)):
      values = clipped[name][side]
      axis.hist(values, bins, weights=np.full(len(values), 1 / len(values)), color=colour,
                alpha=0.55, label=side)
      axis.axvline(values.mean(), color=colour, lw=1.2, ls='--')
    axis.set_title(results_lib.display(name), fontsize=9)
    axis.set_xscale('log')
  for axis in axes.flat[len(names):]:
    axis.set_visible(False)
  axes[0, 0].legend(loc='upper left')
  canvas.supxlabel('loss (log scale)', fontsize=9)
  canvas.supylabel('share of records', fontsize=9)
  return canvas


@styled
def loss_curves(curves: Mapping[str, Mapping[str, Any]]):
  """The training loss of every method against its steps; each objective has its own scale."""
  names = [name for name in results_lib.ordered(curves)
           if len(curves.get(name, {}).get('step', ()))]
  columns = min(3, len(names))
  rows = -(-len(names) // columns)
  colours = _colours(names)
  canvas, axes = new_figure(9.0, 0.4 + 1.8 * rows, rows, columns)
  for axis, name in zip(axes.flat, names):
    curve = curves[name]
    axis.plot(curve['step'], curve['loss'], color=colours[name], lw=1.3,
              marker='.' if len(curve['step']) < 30 else None)
    axis.set_title(results_lib.display(name), fontsize=9)
  for axis in axes.flat[len(names):]:
    axis.set_visible(False)
  canvas.supxlabel('step', fontsize=9)
  canvas.supylabel('loss', fontsize=9)
  return canvas


@styled
def heat_maps(panels: Mapping[str, Any], label: str, most: float | None = None):
  """Matrices [D, D] of values from 0 to `most` (their largest), a panel per title."""
  canvas, axes = new_figure(9.0, 3.6, 1, len(panels))
  for axis, (title, values) in zip(axes[0], panels.items()):
    shown = axis.imshow(values, vmin=0.0, vmax=most, cmap='viridis')
    axis.set_title(title)
    axis.set_xlabel(label)
    axis.set_ylabel(label)
    axis.grid(False)
    canvas.colorbar(shown, ax=axis, shrink=0.8)
  return canvas


@styled
def across_cases(cases: Mapping[str, Mapping[str, Any]], metrics: tuple[str, ...]):
  """Metrics of every method over the cases of an experiment, mean and spread over seeds."""
  names = list(dict.fromkeys(name for part in cases.values()
                             for name in results_lib.ordered(part['methods'])))
  colours, markers = _colours(names), _markers(names)
  canvas, axes = new_figure(9.0, 2.6 * len(metrics), len(metrics), 1, sharex=True)
  for axis, metric in zip(axes.flat, metrics):
    for name in names:
      points = [(i, results_lib.value(part, name, metric)) for i, part in enumerate(cases.values())
                if name in part['methods']]
      points = [(i, f['mean'], f['std'] or 0.0) for i, f in points if f['mean'] is not None]
      if points:
        x, mean, std = zip(*points)
        axis.errorbar(x, mean, std, marker=markers[name], ms=4, capsize=2, lw=1.2,
                      color=colours[name], ls='--' if name in ANCHOR_COLOURS else '-',
                      label=results_lib.display(name))
    axis.set_ylabel(views.metric(metric).label)
  axes[0, 0].legend(loc='center left', bbox_to_anchor=(1.0, 0.5))
  axes[-1, 0].set_xticks(range(len(cases)), list(cases))
  return canvas
