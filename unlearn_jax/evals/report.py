"""`results.json` -> `report.md` and a self-contained `report.html`, from one list of sections."""

from collections.abc import Mapping, Sequence
import os
from typing import Any

from unlearn_jax.evals import completion
from unlearn_jax.evals import embeddings
from unlearn_jax.evals import federated
from unlearn_jax.evals import figures
from unlearn_jax.evals import multimodal
from unlearn_jax.evals import render
from unlearn_jax.evals import results as results_lib
from unlearn_jax.evals import similarity
from unlearn_jax.evals import views
from unlearn_jax.evals import wording

summarise = results_lib.summarise
from_json = results_lib.from_json
markdown_table = results_lib.markdown_table

DLFD_ATTACK = ('forgetting_score[dlfd]', 'forgetting_floor[dlfd]')
COLLAPSE = ('accuracy/retain', 'accuracy/test', 'probe_accuracy/test', 'separability/retain',
            'separability/test')
RETRIEVAL = tuple(f'{way}/R@{k}/test' for way in ('image_to_text', 'text_to_image')
                  for k in (1, 5, 10))
# Kind of task -> further tables: heading, metrics, what they mean.
_TABLES = {
    'classification': (),
    'image_text': (
        ('Retrieval', (*RETRIEVAL, 'mean_recall/test'), (
            'Recall at K among the test pairs, with their true captions; mean recall is the mean of '
            'the six. Ties count against the model.')),
        ('Classification', ('zero_shot/top1', 'zero_shot/top5', 'zero_shot/mean_per_class',
                            'linear_probe/top1', 'linear_probe/validation', 'linear_probe/C',
                            'linear_probe/converged'), (
            'Test pictures of a named category. Zero-shot: prompts with the names of the '
            'categories. Linear probe: logistic regression on the image tower\'s features, its '
            'regularisation chosen on validation pictures; converged: to a gradient of 1e-6, which '
            'float32 may miss where the regularisation is weak.')),
        ('What is left of the mismatched pairs', (
            'match/forget', 'match/unseen', 'match/retain', 'match/test', 'mia_auc/unseen',
            'loss_gap'), (
            'A pair is matched if the picture is nearer to its caption than to each of a fixed set '
            'of validation captions. Forgotten pairs carry the captions that they were trained '
            'with; unseen ones are mismatched too, and no model has seen them. Losses are those of '
            'this choice.')),
        ('Which pairs are taken for mismatched', (
            'selection/precision', 'selection/recall', 'selection/chance'), (
            'Pairs of least clean confidence (NCU, Eq. 2) in the batches of an epoch, by each '
            'row\'s own model, against the planted truth, which no method is told.')),
        ('Similarities', ('similarity/positive', 'similarity/positive_std', 'similarity/negative',
                          'similarity/top_negative', 'similarity/gap'), (
            'Cosines of test pictures with their own caption, with the others, and with the most '
            'similar 5 % of the others.'))),
    'multimodal': (
        ('Accuracy of both modalities and of each alone', tuple(
            f'{kind}/{split}' for split in ('test', 'retain', 'forget')
            for kind in ('accuracy', 'accuracy_other', 'accuracy_visual')), (
            'CCU\'s Tables 1 and 3; `Original` is the state before unlearning. Unlearned pictures '
            'should do no better alone than pictures that no model has seen.')),
        ('Gaps to the second oracle', tuple(
            name for name in views.METRICS if name.startswith('gap_masked/')), (
            'Method minus the model retrained on all records with the forgotten pictures masked: '
            'CCU forgets pictures alone, and a model retrained without the records has lost their '
            'other modality too.')),
        ('Member prediction rate', tuple(
            f'member/{mode}/{split}' for mode in ('admin', 'shadow')
            for split in ('forget', 'retain', 'test')), (
            'Share of records that an attack takes for training data (CCU section 5.1.4). On the '
            'unlearn set lower is better, and the retrained model\'s is what can be reached; on '
            'the retain set it is the true positive rate. `admin` has the unlearned model and its '
            'data, `shadow` has models trained on random halves.')),
        ('Representations', ('tightness/visual', 'silhouette/visual', 'tightness/other',
                             'silhouette/other', 'own_class/forget', 'moved/forget'), (
            'Retained records: mean distance to the centre of the own class over that between '
            'centres, and silhouette. Unlearned pictures: cosine with the centre of their class, '
            'and the share that lies nearest to another one.')),
        ('Early stopping', ('steps_taken',), (
            'Share of its step limit that a row used before its visual accuracy on the unlearn set '
            'fell below the held-out one (CCU section 5.1.3); 1 if it never did.'))),
    'federated': (
        ('After further rounds', ('R@1/forget_later', 'gap/forget_later', 'regrowth', 'drift/image',
                                  'drift/text', 'relearn_rounds'), (
            'What ordinary rounds of the clients that stay write back, and how many rounds on a '
            'tenth of the forgotten pairs bring back 90 % of the original F-R@1 (n/a: not within '
            'the rounds that were tried).')),
        ('Both directions on the forgotten pairs', (
            'image_to_text/R@1/forget', 'text_to_image/R@1/forget', 'image_to_text/R@5/forget',
            'text_to_image/R@5/forget', 'R@5/forget'), 'Recall within the forgotten pairs.'),
        ('Membership', ('mia_auc/unseen', 'gap/mia', 'loss_gap'), (
            'The loss of a pair is 1 - its cosine.')),
        ('Federated cost', ('rounds', 'megabytes'), (
            'Rounds of a row itself, and what the adapters of the clients that stay cost to send '
            'up and down.'))),
}
TABLES = {**{kind: (lambda results, tables=tables: tables) for kind, tables in _TABLES.items()},
          'generation': completion.tables}  # which tables there are is for the results to say


def write(results: Mapping[str, Any], directory: str | os.PathLike, *,
          arrays: Mapping[tuple[str, int], Mapping[str, Any]] | None = None,
          curves: Mapping[str, Mapping[str, Any]] | None = None) -> tuple[str, str]:
  """Writes the report of an experiment.

  Args:
    results: the content of `results.json`.
    directory: gets `report.md` (words and tables) and `report.html` (figures too).
    arrays: (method, seed) -> `forget` [n] and `unseen` [m] losses and, of image-text tasks, the
      fields of `similarity.Similarities`; the figures show the first seed.
    curves: method -> `step` and `loss` lists of one seed.

  Returns:
    The paths of both files.

  Raises:
    ValueError: results without an original and a retrained model.
    ImportError: matplotlib is missing; names the extra that brings it.
  """
  sections = _comparison(results)  # refuses results without anchors
  sections += _figure_sections(results, arrays or {}, curves or {}) + _background(results)
  return render.save(directory, _title(results), sections)


def write_cases(results: Mapping[str, Any], directory: str | os.PathLike) -> tuple[str, str]:
  """Writes the report of an experiment that was run once per case.

  Args:
    results: `config`, `versions` and `cases`: case -> the `results.json` of that case.
    directory: as in `write`; every case has a report of its own in `cases/CASE/`.
  """
  return render.save(directory, _title(results), _case_sections(results, pictures=True))


def markdown(results: Mapping[str, Any]) -> str:
  """All words and tables of a report, without figures; `results` with or without `cases`."""
  if 'cases' in results:
    return render.to_markdown(_title(results), _case_sections(results, pictures=False))
  return render.to_markdown(_title(results), _comparison(results) + _background(results))


def _title(results) -> str:
  return f'Unlearning report: {results.get("config", {}).get("name") or "experiment"}'


def _comparison(results) -> list[render.Section]:
  """What was asked, and how the methods compare."""
  table = results_lib.main_table(results)
  return [
      render.Section('', (wording.question(results), wording.answer(results))),
      render.Section('Results', (
          table,
          f'Mean ± standard deviation over {wording.seeds(results)}. In bold: the approximate '
          f'method with the best {views.metric(views.of(results).best).label}. '
          'The last row is the noise of this table: the same number '
          'differs by that much between retrained models that differ only in their seed.')),
      render.Section('Signed gaps to the retrained model', (
          results_lib.gap_table(results),
          'Method minus retrained model, seed by seed. † marks a gap no larger than the floor: '
          'this experiment cannot tell it from the noise of retraining. Both signs leak: forgotten '
          'records that do better than with a retrained model are still remembered, forgotten '
          'records that do worse stand out as deleted.')),
  ]


def _background(results) -> list[render.Section]:
  """Everything behind the comparison: features, cost, tuning, conventions, limits, origins."""
  measured = {metric for part in results['methods'].values() for metric in part['metrics']}
  sections = [render.Section(heading, (_plain_table(results, [m for m in metrics if m in measured]),
                                       words))
              for heading, metrics, words in TABLES[views.kind(results)](results)
              if measured & set(metrics)]
  if measured & set(COLLAPSE[2:]):
    shown = [metric for metric in COLLAPSE if metric in measured]
    sections.append(render.Section('Correlation collapse', (
        _plain_table(results, shown),
        'Does unlearning damage the features themselves? `Original` is the state before, every '
        'other row after. The probe is a logistic regression from features to labels, trained on '
        'retained and scored on test records; separability is Fisher\'s ratio of the scatter '
        'between classes to the scatter within them (higher: classes lie further apart).')))
  if DLFD_ATTACK[0] in measured:
    sections.append(render.Section('Membership attack in the convention of DLFD', (
        _plain_table(results, DLFD_ATTACK),
        'The same attack on all forgotten and unseen records, whatever their numbers. Compare a '
        'score with the floor beside it, and with no score of the other convention.')))
  sections.append(render.Section('Cost', (
      _cost_table(results),
      'Time in training steps, and in the signals that they read; compilation is listed apart. '
      f'{_hardware(results)}')))
  if results.get('tune'):
    sections.append(_tuning_section(results['tune']))
  if results.get('settings'):
    rows = tuple((results_lib.display(name), _settings(results['settings'][name]))
                 for name in results_lib.ordered(results['methods'])
                 if name in results['settings'])
    table = render.Table(('Method', 'Settings'), rows, text=True)
    sections.append(render.Section('Settings', (table,)))
  return sections + _closing([results], results)


def _classification_figures(results, panels) -> tuple[render.Figure, ...]:
  del panels
  return (
      render.Figure(figures.ranking(results),
             'NoMUS = (test accuracy + 1 - 2 × Forgetting Score) / 2. Bars: mean; whiskers: '
             'standard deviation; dots: seeds; dashed: retrained model.'),
      render.Figure(figures.trade_off(results),
             'Test accuracy against the Forgetting Score [benchmark]; one point per method and '
             'seed. Best is where the retrained models are, not the upper left corner.'))


def _image_text_figures(results, panels) -> tuple[render.Figure, ...]:
  shown = (render.Figure(figures.ranking(results),
                  'Mean recall over both directions and K = 1, 5, 10. Bars: mean; whiskers: '
                  'standard deviation; dots: seeds; dashed: retrained model.'),)
  found = {results_lib.display(name): similarity.Similarities(
      *(part[kind] for kind in similarity.Similarities._fields)) for name, part in panels.items()}
  return shown + ((render.Figure(similarity.densities(found),
                          'Similarities of held-out pictures with captions, as in NCU\'s Figure '
                          '5, one seed.'),) if found else ())


def _multimodal_figures(results, panels) -> tuple[render.Figure, ...]:
  shown = (render.Figure(multimodal.bars(results),
                         'Accuracy with both modalities, and of each alone, mean and standard '
                         'deviation over seeds. As CCU\'s Figure 1.'),)
  if not panels:
    return shown
  named = {results_lib.display(name): part for name, part in panels.items()}
  return shown + (
      render.Figure(embeddings.tsne_figure({
          name: (part['visual_embedding'], part['label']) for name, part in named.items()}),
                    't-SNE of the visual embeddings of retained records, one seed, as in CCU\'s '
                    'Figure 4; colours are classes.'),
      render.Figure(multimodal.nearest_classes({
          name: part['nearest'] for name, part in named.items()}),
                    'Unlearned pictures, one seed: their own class, and the class whose centre is '
                    'nearest.'))


def _federated_figures(results, panels) -> tuple[render.Figure, ...]:
  shown = (render.Figure(figures.ranking(results),
                         'Mean of the gaps to the retrained model in R@1 on both sides; smaller is '
                         'better. Bars: mean; whiskers: standard deviation; dots: seeds.'),)
  rows = {results_lib.display(name): part for name, part in panels.items() if 'regrowth' in part}
  if rows:
    shown += (render.Figure(federated.curves(rows, {'regrowth': 'F-R@1'}),
                            'F-R@1 over ordinary rounds after unlearning, one seed.'),)
  if 'entanglement_image' in panels.get('original', {}):
    shown += (render.Figure(federated.heat_map({
        branch: panels['original'][f'entanglement_{branch}'] for branch in federated.BRANCHES}),
                            'Entanglement of the clients in the original model, one seed: mean '
                            'squared cosine of the principal angles between the update subspaces '
                            'of two clients; 0 is orthogonal, 1 nested.'),)
  if any('drift_image' in part for part in rows.values()):
    shown += (render.Figure(federated.curves(rows, {
        'drift_image': 'drift, image branch', 'drift_text': 'drift, text branch'}),
                            'Drift along the forget-exclusive directions, one seed.'),)
  return shown


FIGURES = {'classification': _classification_figures, 'image_text': _image_text_figures,
           'multimodal': _multimodal_figures, 'federated': _federated_figures,
           'generation': completion.report_figures}


def _figure_sections(results, arrays, curves) -> list[render.Section]:
  first = next(iter(arrays))[1] if arrays else None
  panels = {name: found for (name, seed), found in arrays.items() if seed == first}
  sections = [render.Section('Forgetting and utility', FIGURES[views.kind(results)](results, panels))]
  if arrays:
    sections.append(render.Section('Losses of forgotten and unseen records', (
        render.Figure(figures.loss_histograms(panels),
               f'Per-record losses, seed {first}; dashed: means. Losses below '
               f'{figures.SMALLEST_LOSS:g} are drawn there. Unlearning succeeds where both '
               'colours lie as they do for the retrained model; green to the right of orange is '
               'over-forgetting.'),)))
  if any(len(curve.get('step', ())) for curve in curves.values()):
    sections.append(render.Section('Training curves', (
        render.Figure(figures.loss_curves(curves),
               "Each method's own objective, one seed. The scales differ, and so do the "
               'objectives: compare shapes, not heights.'),)))
  return sections


def _hardware(results) -> str:
  versions = results.get('versions', {})
  if 'backend' not in versions:
    return ''
  return f'Ran on {versions.get("devices", "?")} {versions["backend"]} device(s).'


def _closing(parts, results) -> list[render.Section]:
  """Conventions, limits, origins."""
  sections = [render.Section('Conventions', (wording.conventions(parts),)),
              render.Section('Limits', (wording.limits(parts),))]
  if versions := results.get('versions'):
    sections.append(render.Section('Versions', (
        ', '.join(f'{name} {version}' for name, version in versions.items()) + '.',)))
  sources = dict.fromkeys(part['attribution'] for part in parts if part.get('attribution'))
  if sources:
    sections.append(render.Section('Data attribution', tuple(sources)))
  return sections


def _plain_table(results, metrics: Sequence[str]) -> render.Table:
  rows = tuple((results_lib.display(name),
                *(results_lib.cell(results, name, metric) for metric in metrics))
               for name in results_lib.ordered(results['methods']))
  return render.Table(('Method', *(views.metric(metric).label for metric in metrics)), rows,
               anchors=frozenset((0, 1)))


def _cost_table(results) -> render.Table:
  rows = []
  counted = any(part.get('flops', {}).get('mean') for part in results['methods'].values())
  for name in results_lib.ordered(results['methods']):
    part, share = results['methods'][name], results_lib.cost_share(results, name)
    rows.append((results_lib.display(name), results_lib.spread(part['seconds'], digits=2),
                 results_lib.spread(part['compile_seconds'], digits=2),
                 results_lib.spread(share), *((_flops(part),) if counted else ())))
  headings = ('Method', 'Seconds', 'Seconds compiling', 'Fraction of retraining',
              *(('TFLOPs',) if counted else ()))
  return render.Table(headings, tuple(rows), anchors=frozenset((0, 1)))


def _flops(part) -> str:
  """Of all steps, as compiled: the body of a loop counts once."""
  mean = part.get('flops', {}).get('mean')
  return results_lib.NOT_AVAILABLE if not mean else f'{mean / 1e12:.3g}'


def _tuning_section(tune) -> render.Section:
  """What tuning tried and chose: a line per method, then every trial."""
  chosen, trials, strong = [], [], set()
  for name, tried in tune['trials'].items():
    for trial in tried:
      if trial['settings'] == tune['chosen'][name]:
        strong |= {(len(trials), 1), (len(trials), 2)}
        chosen.append((name, _settings(trial['settings']), f'{trial["score"]:.3f}', str(len(tried)),
                       f'{sum(one["cost"] for one in tried):.2f}'))
      score = 'diverged' if trial['score'] is None else f'{trial["score"]:.3f}'
      trials.append((name, _settings(trial['settings']), score, f'{trial["cost"]:.2f}'))
  objective = wording.OBJECTIVES[tune['objective']]
  limits = [text for text, on in (
      (f'{tune["trials_per_row"]} trials', tune['trials_per_row']),
      (f'{tune["budget"]:g} times the time of one retraining', tune['budget'])) if on]
  allowed = f'at most {" and ".join(limits)}' if limits else 'its whole grid'
  return render.Section('Choice of settings', (
      render.Table(('Method', 'Chosen', objective.heading, 'Trials', 'Cost, in retrainings'),
                   tuple(chosen)),
      f'Every method was allowed {allowed}. {objective.explanation} Mean over seeds '
      f'{_short(tune["seeds"])}. ' + objective.data.format(records=f'{tune["forget_records"]:,}'),
      *([f'Ablations take over what another row chose: {_settings(tune["follow"])}.']
        if tune.get('follow') else ()),
      render.Table(('Method', 'Tried', objective.heading, 'Cost, in retrainings'), tuple(trials),
                   frozenset(strong))))


def _settings(settings: Mapping[str, Any]) -> str:
  return ', '.join(f'{key}={_short(x)}' for key, x in settings.items())


def _case_sections(results, *, pictures: bool) -> list[render.Section]:
  cases = results['cases']
  tables = {case: results_lib.main_table(part) for case, part in cases.items()}  # checks anchors
  first = next(iter(cases.values()))
  across = views.of(first).across
  listed = ', '.join(f'`{case}`' for case in cases)
  sections = [render.Section('', (f'The same experiment in {len(cases)} cases: {listed}.',
                                  wording.question(first)))]
  if pictures:
    sections.append(render.Section('Across the cases', (render.Figure(
        figures.across_cases(cases, across),
        'Mean and standard deviation over seeds; dashed: original and retrained model.'),)))
  names = list(dict.fromkeys(name for part in cases.values()
                             for name in results_lib.ordered(part['methods'])))
  for metric in across:
    rows = tuple(
        (results_lib.display(name),
         *(results_lib.cell(part, name, metric) if name in part['methods'] else ''
           for part in cases.values())) for name in names)
    shown = views.metric(metric)
    sections.append(render.Section(f'{shown.label} ({shown.ideal})', (
        render.Table(('Method', *cases), rows, anchors=frozenset((0, 1))),)))
  for case, table in tables.items():
    sizes = ', '.join(f'{n:,} {name}' for name, n in cases[case].get('split_sizes', {}).items())
    words = (f'Records: {sizes}.',) if sizes else ()
    sections.append(render.Section(f'Case {case}', (*words, table)))
  return sections + _closing(list(cases.values()), results)


def _short(x: Any) -> str:
  if isinstance(x, float):
    return f'{x:g}'
  if isinstance(x, (list, tuple)):
    return ', '.join(map(_short, x)) or 'none'
  return str(x)
