"""An `AuditReport` as JSON, and as a page for readers who are no engineers."""

from collections.abc import Sequence
import dataclasses
import importlib.resources
import json
import os
from typing import Any

from unlearn_jax.audit import plots
from unlearn_jax.audit import statistics as statistics_lib
from unlearn_jax.audit import verdict as verdict_lib
from unlearn_jax.audit import wording
from unlearn_jax.evals import render

SCHEMA = 'report.schema.json'
_ORACLE = 'Retrained'


def schema() -> dict[str, Any]:
  """The JSON Schema of `report.json`."""
  text = importlib.resources.files('unlearn_jax.audit').joinpath(SCHEMA).read_text('utf-8')
  return json.loads(text)


def write_json(report, path: str | os.PathLike) -> None:
  """Writes a report atomically; NaN and infinities are refused."""
  text = json.dumps({'schema': 1, **dataclasses.asdict(report)}, indent=1, allow_nan=False)
  _write(path, text + '\n')


def write_html(report, path: str | os.PathLike) -> None:
  """Writes a report as one page that needs no other file."""
  name, title, sentence = wording.BANNER.get(report.verdict, ('open', 'NO VERDICT', report.verdict))
  page = render.to_html('Audit of a model that was asked to forget', sections(report))
  banner = f'<div class="banner {name}"><b>{title}</b><span>{sentence}</span></div>'
  for verdict, (kind, *_) in wording.BANNER.items():
    page = page.replace(f'<b>{verdict}</b>', f'<b class="tag {kind}">{verdict}</b>')
  page = page.replace('</style>', wording.CSS + '</style>', 1)
  page = page.replace('</h1>', '</h1>\n' + banner, 1)
  _write(path, page)


def _write(path, text: str) -> None:
  temporary = f'{os.fspath(path)}.{os.getpid()}.tmp'
  with open(temporary, 'w', encoding='utf-8') as file:
    file.write(text)
  os.replace(temporary, path)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], **kwargs) -> render.Table:
  """A table of measurements, which must show the retrained model.

  Raises:
    ValueError: neither a row nor a column is headed 'Retrained...': the number that everything has
      to be compared with is missing.
  """
  if not any(name.startswith(_ORACLE) for name in (*headings, *(row[0] for row in rows))):
    raise ValueError(f'a table without the retrained models is not written; it has columns '
                     f'{list(headings)} and rows {[row[0] for row in rows]}')
  return render.Table(tuple(headings), tuple(map(tuple, rows)), **kwargs)


def sections(report) -> list[render.Section]:
  """The page, without its banner."""
  return [
      render.Section('', tuple(_summary(report))),
      render.Section('Answers, question by question', (_questions(report),)),
      render.Section('What was asked and what was done', tuple(_method(report))),
      render.Section('What decides', tuple(_primary(report))),
      render.Section('Pictures', tuple(_figures(report))),
      render.Section('Is the audit itself sound?', tuple(_soundness(report))),
      render.Section('Is the data sound?', (_hygiene(report),)),
      render.Section('What this audit cannot show', (_limits(report),)),
      render.Section('All measurements', tuple(_all(report))),
      render.Section('Fingerprints', tuple(_fingerprints(report)))]


def _summary(report):
  decided = [part for part in report.statistics.values() if part.primary]
  count = {verdict: sum(part.verdict == verdict for part in decided)
           for verdict in (verdict_lib.PASS, verdict_lib.FAIL, verdict_lib.INCONCLUSIVE)}
  yield (f'{len(decided)} checks decide. {count["PASS"]} passed, {count["FAIL"]} failed, '
         f'{count["INCONCLUSIVE"]} could not be settled. One failure fails the model; only if all '
         'pass, and the model from before the deletion fails the same test, does it pass.')
  if report.notes:
    yield list(report.notes)


def question_verdict(report, question: str) -> str:
  """The verdict of the primary statistics that answer a question."""
  verdicts = [part.verdict for part in report.statistics.values()
              if part.primary and part.question == question]
  return verdict_lib.overall(verdicts, sensitive=report.original_verdict == verdict_lib.FAIL)


def _questions(report):
  rows = []
  for key, question in statistics_lib.QUESTIONS.items():
    verdict = question_verdict(report, key)
    words = dict(zip((verdict_lib.PASS, verdict_lib.FAIL), wording.ANSWERS[key])).get(
        verdict, f'Cannot be told{_needed(report, key)}.')
    rows.append((question, verdict, words))
  return render.Table(('Question', 'Verdict', 'In words'), tuple(rows), text=True,
                      strong=frozenset((i, 1) for i in range(len(rows))))


def _needed(report, question):
  open_ones = [part for part in report.statistics.values()
               if part.primary and part.question == question and part.needed
               and part.verdict == verdict_lib.INCONCLUSIVE]
  if not open_ones:
    return ' by this audit'
  hardest = max(open_ones, key=lambda part: part.needed)
  if hardest.needed > 100 * hardest.records:
    return ': the difference lies on the very edge of what is normal'
  text = f': about {hardest.needed:,} records instead of {hardest.records:,}'
  if hardest.needed_retrained > len(hardest.retrained):
    text += f' and {hardest.needed_retrained} retrained models instead of {len(hardest.retrained)}'
  return text + ' would be needed'


def _method(report):
  retrained = sum(name.startswith('retrained') for name in report.models)
  sizes = ', '.join(f'{part["records"]:,} {name}' for name, part in report.splits.items())
  yield ('**Asked:** some records had to be deleted from a trained model. A method changed the '
         '**original** model into the **unlearned** one. Does the unlearned model now behave as if '
         'it had never seen those records, and is it still good?')
  yield (f'**Done:** it was compared with {retrained} **retrained** models, trained from scratch '
         'without the deleted records. They show what a model that never saw the records does, and '
         'how much such models differ from one another by chance alone.')
  yield (f'**Records:** {sizes}. Forget means the deleted records, retain those that '
         'stayed, unseen and test records were never used for training.')
  yield ('**How to read a verdict:** the gap is the difference between the unlearned model and the '
         'average retrained one. The normal range is how far retrained models lie from one another '
         'in 95 of 100 cases. The gap is known only up to an interval, because records and models '
         'are samples. Interval inside the normal range: PASS. Outside: FAIL. Across its edge: '
         'INCONCLUSIVE. Differences in both directions count: a model that is suspiciously bad at '
         'deleted records gives them away too.')


def _number(x, signed=False):
  return 'n/a' if x is None else f'{x:{"+" if signed else ""}.3f}'


def _row(name, part):
  if part.unlearned is None:
    return (name, _number(part.original), *['n/a'] * 6)
  low, high = part.interval
  return (name, _number(part.original), _number(sum(part.retrained) / len(part.retrained)),
          _number(part.unlearned), _number(part.gap, True),
          f'{_number(low, True)} to {_number(high, True)}', f'± {part.floor:.3f}', part.verdict)


_HEADINGS = ('Measurement', 'Original', 'Retrained, average', 'Unlearned', 'Gap',
             'Interval of the gap', 'Normal range', 'Verdict')


def _primary(report):
  found = [(name, part) for name, part in report.statistics.items() if part.primary]
  yield ('These checks were chosen before looking at any result. Their normal ranges hold for all '
         'of them at once, so that having several checks does not make a failure by chance more '
         'likely.')
  yield table(_HEADINGS, [_row(wording.LABELS[name], part) for name, part in found],
              strong=frozenset((i, 7) for i in range(len(found))))
  yield [f'{wording.LABELS[name]} (`{name}`): {part.meaning}.' for name, part in found]


def _figures(report):
  yield render.Figure(
      plots.gaps(report, wording.LABELS),
      'What decides, on one scale: 0 is the average retrained model, the grey band is the normal '
      'range, the bar is the interval of the gap. Inside is good.')
  yield render.Figure(
      plots.loss_histograms(report), 'The loss says how wrong a model is about a record, small '
      'means sure and right. If deleted records (green) look like unseen ones (orange), they left '
      'no trace there.')
  yield render.Figure(
      plots.roc_and_records(report), 'Left: an attacker calls every record with a small loss '
      '"deleted". Across: share of unseen records called so by mistake; up: share of deleted '
      'records found. On the dashed line the attacker guesses. Both axes are logarithmic, because '
      'finding a few records with certainty matters most. Right: every deleted record, its loss in '
      'the average retrained model (across) and in the original (grey) and the unlearned one '
      '(blue). On the line they agree; points far below it are remembered.')


def _soundness(report):
  seen = {verdict_lib.FAIL: 'It fails, as it must: the test can see the records in a model that '
                            'was trained on them.'}
  yield ('**The original model under the same test:** ' + seen.get(
      report.original_verdict, f'{report.original_verdict}. The test cannot see the records even '
      'in the model that was trained on them, so it can clear no model.'))
  if isinstance(report.self_check, str):
    yield f'**Retrained models under the same test:** {report.self_check}.'
    return
  yield ('**Retrained models under the same test**, each against the others. None should fail: '
         'they never saw the records. With one model less to compare with, some stay inconclusive.')
  names = list(report.self_check[0]['statistics'])
  yield table(('Model', 'Verdict', *(wording.LABELS[name] for name in names)),
              [('Retrained' + row['model'].removeprefix('retrained').replace('/', ' '),
                row['verdict'], *(row['statistics'][name] for name in names))
               for row in report.self_check], text=True,
              strong=frozenset((i, 1) for i in range(len(report.self_check))))


def _hygiene(report) -> list[str]:
  found = report.hygiene
  overlaps, near, memory = (found[key] for key in ('overlaps', 'near_duplicates', 'memorisation'))
  items = []
  for kind, words in (('content', 'with the very same content'), ('ids', 'with the same id')):
    if isinstance(overlaps[kind], str):
      items.append(f'Records {words}: {overlaps[kind]}.')
    else:
      listed = ', '.join(f'{number} in {pair}' for pair, number in overlaps[kind].items())
      items.append(f'Records {words} in two groups: {listed or "none"}.')
  for kind, words in (('hash', 'that look alike (picture fingerprint)'),
                      ('embedding', 'that look alike to a retrained model')):
    if isinstance(near[kind], str):
      items.append(f'Records {words}: {near[kind]}.')
      continue
    listed = ', '.join(f'{part["records"]} in {split}' for split, part in
                       near[kind]['splits'].items() if part['records'])
    items.append(f'Deleted records that have a near-duplicate elsewhere, {words}: '
                 f'{listed or "none"}.')
  items.append('A copy that stays in the retained data keeps teaching the model what was to be '
               'forgotten; those in unseen or test data show how often chance makes them alike.')
  items.append(f'Memorisation: the original model was right on {100 * memory["mean"]:.0f} '
               'percentage points more of the deleted records than retrained models are; '
               f'{100 * memory["high"]:.0f} % of them it knew only because it had seen them. '
               'Near 0 there was little to forget.')
  return items


def _limits(report) -> list[str]:
  return [
      'It is a statement about these records, this way of training and these measurements. An '
      'attack that looks at each record with models of its own may still find traces.',
      'PASS means "no different from retrained models as far as this many records and models can '
      'show". It is no proof of deletion and no legal opinion.',
      'The retrained models were taken as given: trained from a fresh start, all layers, by the '
      'same recipe and without the deleted records. The audit cannot check that.',
      'A checkpoint can hide what its outputs do not show: weights, backups and copies of the '
      'data were not looked at.']


def _all(report):
  yield ('For the record; only the checks marked above decide, so a failure here is a hint and not '
         'a verdict. n/a: the measurement could not be made; the reason stands below its table.')
  for key, question in statistics_lib.QUESTIONS.items():
    found = {name: part for name, part in report.statistics.items() if part.question == key}
    if found:
      yield f'**{question}**'
      yield table(_HEADINGS, [_row(name, part) for name, part in found.items()])
      yield [f'`{name}`: {part.verdict if part.unlearned is None else part.meaning}.'
             + (f' Source: {part.source}.' if part.source else '')
             for name, part in found.items() if '/class=' not in name or part.unlearned is None]
  yield ('**The loss attack on every model.** Area under the curve: 0.5 is guessing. Epsilon: the '
         'attack proves with 95 % confidence that it is e to the power of epsilon times more often '
         'right than wrong when it accuses one of as many deleted as unseen records; 0 proves '
         'nothing.')
  yield table(('Model', 'Area under the curve', 'Interval', 'Found at 1 % mistakes',
               'Found at 10 % mistakes', 'Proven leak (epsilon)'),
              [(name.replace('/', ' ').capitalize(), _number(part['auc']),
                ' to '.join(map(_number, part['auc_interval'])), _number(part['tpr_at_fpr_0.01']),
                _number(part['tpr_at_fpr_0.1']), _number(part['epsilon_lower_bound']))
               for name, part in report.attacks.items()])


def _fingerprints(report):
  yield ('A fingerprint (sha256) changes with the smallest change of a model or of a list of '
         'records: it shows later which ones this report is about.')
  yield render.Table(('Models', 'Fingerprint'), tuple(
      (name, f'`{digest}`') for name, digest in report.models.items()), text=True)
  yield render.Table(('Records', 'Number', 'Fingerprint of ids', 'Fingerprint of contents'), tuple(
      (name, str(part['records']), f'`{part["ids"][:32]}`', f'`{part["content"][:32]}`')
      for name, part in report.splits.items()), text=True)
  yield 'Seed {seed}, {resamples} bootstrap resamples, level {level}.'.format(**report.settings)
