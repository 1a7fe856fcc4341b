"""The figures of an audit, as SVG text."""

import numpy as np

from unlearn_jax.evals import figures

_UNLEARNED, _ORIGINAL, _RETRAINED = figures.COLOURS[0], '#888888', '#111111'
_STYLES = {'original': (_ORIGINAL, 2.0, 'original'), 'unlearned': (_UNLEARNED, 2.2, 'unlearned'),
           'retrained': (_RETRAINED, 0.8, 'retrained')}


def loss_histograms(report) -> str:
  """Losses of forgotten and unseen records; the retrained models' together, the unlearned too."""
  panels = {'original': 'original', 'retrain': 'retrained', 'unlearned': 'unlearned'}
  return figures.loss_histograms({
      panel: {side: np.concatenate([part[side] for name, part in report.losses.items()
                                    if name.split('/')[0] == kind])
              for side in ('forget', 'unseen')} for panel, kind in panels.items()})


def curve(forget, unseen) -> tuple[np.ndarray, np.ndarray]:
  """False and true positive rates of all thresholds on the loss, from (0, 0) to (1, 1)."""
  forget, unseen = np.sort(forget), np.sort(unseen)
  thresholds = np.unique(np.concatenate([forget, unseen]))
  rates = [np.concatenate([[0.0], np.searchsorted(part, thresholds, side='right') / len(part)])
           for part in (unseen, forget)]
  return rates[0], rates[1]


@figures.styled
def roc_and_records(report):
  """The loss attack on every model, and the losses of every forgotten record; logarithmic axes."""
  canvas, ((left, right),) = figures.new_figure(9.0, 4.0, 1, 2)
  _draw_roc(left, report)
  _draw_records(right, report)
  return canvas


def _draw_roc(axis, report):
  smallest = min(0.5 / max(len(part['forget']), len(part['unseen']))
                 for part in report.losses.values())
  axis.plot([smallest, 1], [smallest, 1], ls='--', lw=1, color='#999999', label='guessing')
  labelled = set()
  for name, part in report.losses.items():
    kind = name.split('/')[0]
    colour, width, label = _STYLES[kind]
    x, y = curve(part['forget'], part['unseen'])
    axis.step(np.maximum(x, smallest), np.maximum(y, smallest), where='post', color=colour,
              lw=width, alpha=0.6 if kind == 'retrained' else 1.0,
              label=None if kind in labelled else label, zorder=3 if kind == 'unlearned' else 2)
    labelled.add(kind)
  axis.set_xscale('log')
  axis.set_yscale('log')
  axis.set_xlim(smallest, 1)
  axis.set_ylim(smallest, 1.05)
  axis.set_xlabel('unseen records called "deleted" by mistake')
  axis.set_ylabel('deleted records found')
  axis.legend(loc='lower right')


def _draw_records(axis, report):
  values = {kind: np.maximum([record[kind] for record in report.records], figures.SMALLEST_LOSS)
            for kind in _STYLES}
  ends = (min(map(np.min, values.values())) * 0.8, max(map(np.max, values.values())) * 1.25)
  axis.plot(ends, ends, ls='--', lw=1, color='#999999')
  for kind, marker in (('original', 'x'), ('unlearned', 'o')):
    axis.scatter(values['retrained'], values[kind], s=22, marker=marker, alpha=0.75,
                 color=_STYLES[kind][0], lw=1 if marker == 'x' else 0, label=kind)
  axis.set_xscale('log')
  axis.set_yscale('log')
  axis.set_xlim(ends)
  axis.set_ylim(ends)
  axis.set_xlabel('loss in the average retrained model')
  axis.set_ylabel('loss in the model')
  axis.legend(loc='upper left')


@figures.styled
def gaps(report, labels):
  """Interval of the gap of every primary statistic, in units of its floor."""
  found = [(name, part) for name, part in report.statistics.items()
           if part.primary and part.interval is not None]
  colours = {'PASS': '#1b7f4b', 'FAIL': '#b3261e', 'INCONCLUSIVE': '#8a6100'}
  canvas, ((axis,),) = figures.new_figure(9.0, 1.0 + 0.42 * len(found))
  axis.axvspan(-1, 1, color='#111111', alpha=0.09, lw=0)
  axis.axvline(0, color='#111111', lw=1)
  for row, (_, part) in enumerate(found):
    unit = part.floor if part.floor > 0 else 1.0
    low, high = (end / unit for end in part.interval)
    axis.plot([low, high], [row, row], color=colours[part.verdict], lw=5, solid_capstyle='butt')
    axis.plot(part.gap / unit, row, 'o', color='white', mec=colours[part.verdict], mew=1.6, ms=7)
    if part.original is not None:
      centre = sum(part.retrained) / len(part.retrained)
      axis.plot((part.original - centre) / unit, row, 'x', color=_ORIGINAL, ms=7, mew=1.8)
  axis.plot([], [], 'x', color=_ORIGINAL, ms=7, mew=1.8, ls='none', label='original model')
  axis.set_yticks(range(len(found)), [labels[name] for name, _ in found])
  axis.set_ylim(len(found) - 0.5, -0.5)
  axis.set_xlim(*(side * max(1.6, abs(axis.get_xlim()[which])) for which, side in
                  ((0, -1), (1, 1))))
  axis.grid(axis='y', visible=False)
  axis.set_xlabel('gap to the average retrained model, 1 is the edge of the normal range')
  axis.legend(loc='lower right')
  return canvas
