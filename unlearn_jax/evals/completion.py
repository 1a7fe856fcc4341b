"""Completed pictures: their distance to the truth, whether they are recognised, tables and grids."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from unlearn_jax.evals import embeddings
from unlearn_jax.evals import figures
from unlearn_jax.evals import render
from unlearn_jax.evals import results as results_lib
from unlearn_jax.evals import views

# Side of the paper's tables -> split of held-out pictures of its classes.
SIDES = {'retain': 'test', 'forget': 'unseen'}
DEVIATION = 0.1  # of a pixel, in [0, 1] units
_GOALS = ('goal', 'fid_ratio/retain', 'fid_ratio/forget', 'gap/retain', 'gap/forget', 'gap/mean')


def removed(visible, image_shape: Sequence[int], patch: int):
  """1 where a pixel was taken away: float32 [B, H, W, 1], from `visible` int32 [B, K]."""
  rows, columns = (side // patch for side in image_shape[1:3])
  batch = visible.shape[0]
  seen = jnp.zeros((batch, rows * columns)).at[jnp.arange(batch)[:, None], visible].set(1.0)
  hole = (1.0 - seen).reshape(batch, rows, columns, 1)
  return jnp.repeat(jnp.repeat(hole, patch, axis=1), patch, axis=2)


def distance(completed: np.ndarray, truth: np.ndarray, hole: np.ndarray) -> np.ndarray:
  """Mean squared error over the hole of each picture, in [0, 1] units: float64 [N].

  Args:
    completed: [N, H, W, C] in [0, 1].
    truth: likewise.
    hole: bool [N, H, W], where pixels were taken away.

  Raises:
    ValueError: pictures of different shapes, holes of another size, or an empty one.
  """
  completed, truth = np.asarray(completed, np.float64), np.asarray(truth, np.float64)
  if completed.shape != truth.shape or truth.ndim != 4 or hole.shape != truth.shape[:3]:
    raise ValueError(f'pictures [N, H, W, C] and holes [N, H, W], got {completed.shape}, '
                     f'{truth.shape} and {hole.shape}')
  if not hole.any(axis=(1, 2)).all():
    raise ValueError('nothing was taken away from some of these pictures')
  errors = np.square(completed - truth).mean(axis=3)
  return np.sum(errors * hole, axis=(1, 2)) / np.sum(hole, axis=(1, 2))


def matching(apply: Callable, others, patch: int) -> Callable:
  """`apply` whose logits say which picture a completion is of: its own (class 0) or fixed others.

  z_j = -mean((completed - picture_j)^2) / (2 s^2) over the pixels of the hole, s = 0.1: the log
  likelihood per pixel, up to a constant, under Gaussian errors of deviation s (ours). What audits
  read of a generator: the loss is that of picking the own picture out.

  Args:
    apply: of a generator, see `models.contract`.
    others: pictures [M, H, W, C] in [0, 1], the same for every record.
    patch: pixels along a side of a patch.

  Returns:
    `apply` with the output `logits` [B, 1 + M], in evaluation mode.
  """

  def matched(variables, inputs, *, train=False, rngs=None, method=None):
    del rngs, method
    outputs, variables = apply(variables, inputs, train=train)
    truth = inputs['image']
    done = jnp.clip(outputs['image'], 0.0, 1.0)
    hole = jnp.broadcast_to(removed(inputs['visible'], truth.shape, patch), truth.shape)
    flat = lambda x: x.reshape(len(x), -1)
    done, truth, hole, bank = flat(done), flat(truth), flat(hole), flat(jnp.asarray(others))
    own = jnp.sum(hole * jnp.square(done - truth), axis=1, keepdims=True)
    squares = (jnp.sum(hole * jnp.square(done), axis=1, keepdims=True)
               - 2 * (hole * done) @ bank.T + hole @ jnp.square(bank).T)
    errors = jnp.concatenate([own, squares], axis=1) / jnp.sum(hole, axis=1, keepdims=True)
    return {'logits': -errors / (2 * DEVIATION**2)}, variables

  return matched


def tables(results: Mapping[str, Any]) -> tuple[tuple[str, tuple[str, ...], str], ...]:
  """Heading, metrics and meaning of the tables behind the main one."""
  chosen = results['config']['generation']
  by_goal, by_gap = (results_lib.best(results, metric) or 'nobody' for metric in ('goal', 'gap/mean'))
  agree = ('Both name the same row.' if by_goal == by_gap else
           f'They disagree: by the goal {by_goal} is best, by the gap {by_gap}.')
  return (
      ('One-sided goal, two-sided gap', _GOALS, (
          'The paper wants forgotten classes to come out as badly as possible; the goal is the '
          'cosine with the truth lost on forgotten classes minus that lost on retained ones. A '
          'model that never saw a class still paints something into its pictures: the gap is the '
          f'distance to that, in cosines. {agree}')),
      *((f'Hole {hole}', views.completed(results, hole), 'As the main table, for another hole.')
        for hole in (*chosen['holes'][1:], *chosen['sweep'])),
      ('Painted around again by the original model', views.completed(results, crossed=True), (
          'Only what a model painted into the middle is kept (FIRST), and the original model paints '
          'around it (SECOND), as in the paper\'s Table E.4: is anything of the forgotten picture '
          'left that the original could recover?')),
      ('Distance to the truth', ('distance/forget', 'distance/unseen', 'distance/retain',
                                 'distance/test', 'loss_gap'), (
          'Mean squared error over the hole. Forgotten pictures were trained on, unseen ones are '
          'held-out pictures of the same classes.')),
      ('What is moved', ('trained', 'gigabytes'), (
          'Numbers in the parameter arrays that differ from the original model\'s, and the memory of '
          'a training step as compiled, on one device.')))


def report_figures(results: Mapping[str, Any], panels: Mapping[str, Mapping[str, Any]]
                   ) -> tuple[render.Figure, ...]:
  """The figures of a report; `panels` are a row's arrays, of one seed."""
  shown = (render.Figure(figures.ranking(results),
                         'The one-sided goal. Bars: mean; whiskers: standard deviation; dots: seeds; '
                         'dashed: retrained model.'),)
  if not panels:
    return shown
  named = {results_lib.display(name): panels[name]
           for name in results_lib.ordered(panels) if name in panels}
  first, hole = next(iter(named.values())), results['config']['generation']['holes'][0]
  for side in SIDES:
    columns = {'input': first[f'input_{side}'], 'truth': first[f'truth_{side}'], **{
        name: part[f'painted_{side}'] for name, part in named.items()}}
    shown += (render.Figure(grid(columns), f'Held-out pictures of {side} classes, hole {hole}, one '
                                           'seed.'),)
  groups = {name: _groups(part) for name, part in named.items()}
  shown += (render.Figure(embeddings.tsne_figure(groups), (
      't-SNE of features, as in the paper\'s Figure 4: true and completed pictures of retain classes '
      '(the first two colours) and of forget classes (the last two).')),)
  covariance = np.abs(np.asarray(first['covariance'], np.float64))
  off = np.square(covariance).sum() - np.square(np.diag(covariance)).sum()
  shown += (render.Figure(figures.heat_maps({'': covariance}, 'pixel'), (
      'Covariance of the pictures to forget (grey, 16 pixels or less), absolute values, as in the '
      'paper\'s Figure C.5, which takes it for diagonal; of the squared entries '
      f'{100 * off / np.square(covariance).sum():.0f} % lie off the diagonal.')),)
  if results['config']['generation']['sweep']:
    shown += _sweep_figures(results)
  return shown


def _groups(part) -> tuple[np.ndarray, np.ndarray]:
  """Features of true and completed pictures of both sides, and which of the four each row is."""
  parts = [part[f'{kind}_{side}'].astype(np.float32) for side in SIDES
           for kind in ('true_features', 'features')]
  return np.concatenate(parts), np.repeat(np.arange(len(parts)), [len(each) for each in parts])


def _sweep_figures(results) -> tuple[render.Figure, ...]:
  chosen = results['config']['generation']
  holes = ('', *chosen['holes'][1:], *chosen['sweep'])
  shares = {hole: results_lib.value(results, 'original', f'removed@{hole}' if hole else 'removed')
            ['mean'] for hole in holes}
  rows = {name: {metric: found['mean'] for metric, found in part['metrics'].items()}
          for name, part in results['methods'].items()}
  metrics = dict.fromkeys(name.rpartition('/')[0] for name in views.completed(results))
  return tuple(render.Figure(curves(rows, shares, metric, metric, main=chosen['holes'][0]),
                             f'{metric} against the share of the picture that is removed, by kind of '
                             'hole, mean over seeds.') for metric in metrics)


def masked(images: np.ndarray, hole: np.ndarray) -> np.ndarray:
  """What the encoder is shown of pictures [N, H, W, C], with the holes [N, H, W] in grey."""
  return np.where(hole[..., None], np.asarray(0.5, images.dtype), images)


@figures.styled
def grid(columns: Mapping[str, np.ndarray]):
  """Pictures as a table: a column per name (input, models, ground truth), a row per picture.

  Args:
    columns: name -> [N, H, W, C] in [0, 1] or uint8, the same N everywhere.
  """
  count = min(len(images) for images in columns.values())
  canvas, axes = figures.new_figure(9.0, 0.25 + 9.0 / max(len(columns), 5) * count, count,
                                    len(columns))
  for index, (name, images) in enumerate(columns.items()):
    for row in range(count):
      axis, picture = axes[row, index], np.asarray(images[row])
      shown = picture if picture.dtype == np.uint8 else np.clip(picture, 0, 1)
      axis.imshow(shown.squeeze(-1) if shown.shape[-1] == 1 else shown, cmap='gray',
                  interpolation='nearest')
      axis.set_axis_off()
      if not row:
        axis.set_title(name, fontsize=7)
  return canvas


@figures.styled
def curves(rows: Mapping[str, Mapping[str, Any]], shares: Mapping[str, float], metric: str,
           label: str, *, main: str):
  """A measure on both sides against the share of the picture that is taken away, by kind of hole.

  Args:
    rows: name -> metrics (name -> mean).
    shares: hole -> share removed, the main hole under ''.
    metric: without side and hole, `fid[classifier]`.
    label: of the axis.
    main: the main hole.
  """
  kinds = {}
  for hole in sorted(shares, key=shares.get):
    kinds.setdefault((hole or main).partition(':')[0], []).append(hole)
  sides = (('retain', 'retain classes'), ('forget', 'forget classes'))
  canvas, axes = figures.new_figure(9.0, 4.6, 2, len(kinds), sharey=True)
  for column, (kind, chosen) in enumerate(kinds.items()):
    for axis, (side, word) in zip(axes[:, column], sides):
      for name, metrics in rows.items():
        values = [metrics.get(f'{metric}/{side}' + (f'@{hole}' if hole else '')) for hole in chosen]
        axis.plot([shares[hole] for hole in chosen], values, marker='.', lw=1.2, label=name,
                  color=figures.ANCHOR_COLOURS.get(name),
                  ls='--' if name in figures.ANCHOR_COLOURS else '-')
      axis.set_xlim(0, 1)
      if not column:
        axis.set_ylabel(f'{label}\n{word}', fontsize=8)
    axes[0, column].set_title(kind, fontsize=9)
    axes[1, column].set_xlabel('share removed', fontsize=8)
  axes[0, -1].legend(loc='center left', bbox_to_anchor=(1.0, 0.5), fontsize=7)
  return canvas
