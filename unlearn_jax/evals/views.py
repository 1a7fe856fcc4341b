"""What is shown of each kind of task: metrics with their headings, and how methods are ranked."""

from collections.abc import Mapping
import re
from typing import Any, NamedTuple


class Metric(NamedTuple):
  """How a metric is shown: a heading, and what its best value is."""

  label: str
  ideal: str


METRICS = {
    'accuracy/test': Metric('Test accuracy', 'higher'),
    'accuracy/forget': Metric('Forget accuracy', 'as retrained'),
    'accuracy/retain': Metric('Retain accuracy', 'higher'),
    'forgetting_score[benchmark]': Metric('Forgetting Score [benchmark]',
                                          'lower, ideal: its floor'),
    'forgetting_score[dlfd]': Metric('Forgetting Score [dlfd]', 'lower, ideal: its floor'),
    'forgetting_floor[benchmark]': Metric('No-signal floor', 'of the attack'),
    'forgetting_floor[dlfd]': Metric('No-signal floor', 'of the attack'),
    'nomus': Metric('NoMUS', 'higher, best 1'),
    'mia_auc/unseen': Metric('Loss attack AUC', 'ideal 0.5'),
    'loss_gap': Metric('Loss gap forget - unseen', 'as retrained'),
    'probe_accuracy/test': Metric('Probe accuracy, test', 'higher'),
    'separability/retain': Metric('Separability, retain', 'as before'),
    'separability/test': Metric('Separability, test', 'as before'),
    'mean_recall/test': Metric('Mean recall', 'higher'),
    **{f'{way}/R@{k}/test': Metric(f'{label} R@{k}', 'higher')
       for way, label in (('image_to_text', 'Image to text'), ('text_to_image', 'Text to image'))
       for k in (1, 5, 10)},
    'zero_shot/top1': Metric('Zero-shot top-1', 'higher'),
    'zero_shot/top5': Metric('Zero-shot top-5', 'higher'),
    'zero_shot/mean_per_class': Metric('Zero-shot, mean per class', 'higher'),
    'linear_probe/top1': Metric('Linear probe', 'higher'),
    'linear_probe/validation': Metric('on validation', 'of the chosen C'),
    'linear_probe/C': Metric('C', 'chosen on validation'),
    'linear_probe/converged': Metric('Converged', '1'),
    'match/forget': Metric('Mismatched pairs matched', 'as retrained'),
    'match/retain': Metric('Training pairs matched', 'as retrained'),
    'match/test': Metric('Test pairs matched', 'higher'),
    'match/unseen': Metric('Unseen mismatches matched', 'as retrained'),
    'selection/precision': Metric('Precision of the selection', 'higher'),
    'selection/recall': Metric('Recall of the selection', 'higher'),
    'selection/chance': Metric('At random', 'the noise rate'),
    'similarity/positive': Metric('Positives', 'cosine'),
    'similarity/positive_std': Metric('Spread of positives', 'cosine'),
    'similarity/negative': Metric('Mean of negatives', 'cosine'),
    'similarity/top_negative': Metric('Top 5 % negatives', 'cosine'),
    'similarity/gap': Metric('Positives - top negatives', 'higher'),
    **{f'accuracy_{modality}/{split}': Metric(f'{label}, {shown}', ideal)
       for modality, label in (('visual', 'Visual accuracy'), ('other', 'Kept modality'))
       for split, shown, ideal in (('test', 'test', 'higher'), ('retain', 'retain', 'higher'),
                                   ('forget', 'unlearn', 'as retrained'),
                                   ('validation', 'validation', 'higher'),
                                   ('unseen', 'unseen', 'higher'))},
    'upg': Metric('UPG, %', 'higher'),
    'cmsg': Metric('CMSG, %', 'higher'),
    'steps_taken': Metric('Steps taken', 'share of the limit'),
    **{f'member/{mode}/{split}': Metric(f'Member, {mode}, {shown}', ideal)
       for mode in ('admin', 'shadow')
       for split, shown, ideal in (('forget', 'unlearn', 'as retrained, low'),
                                   ('retain', 'retain', 'true positives'),
                                   ('test', 'test', 'false positives'))},
    **{f'{measure}/{modality}': Metric(f'{label}, {modality}', ideal)
       for measure, label, ideal in (('tightness', 'Spread in classes / between', 'lower'),
                                     ('silhouette', 'Silhouette', 'higher'))
       for modality in ('visual', 'other')},
    'own_class/forget': Metric('Cosine with own class', 'as retrained'),
    'moved/forget': Metric('Nearest to another class', 'as retrained'),
    **{f'gap_masked/{name}': Metric(label, '0') for name, label in (
        ('accuracy/test', 'Test accuracy'), ('accuracy_visual/test', 'Visual, test'),
        ('accuracy_other/test', 'Kept modality, test'),
        ('accuracy_visual/forget', 'Visual, unlearn'),
        ('member/admin/forget', 'Member, admin, unlearn'))},
    'R@1/forget': Metric('F-R@1', 'as retrained'),
    'R@5/forget': Metric('F-R@5', 'as retrained'),
    'R@1/kept': Metric('R-R@1', 'as retrained'),
    'R@1/test': Metric('T-R@1', 'higher'),
    'gap/forget': Metric('Gap F', 'lower'),
    'gap/kept': Metric('Gap R', 'lower'),
    'gap/mean': Metric('Mean gap', 'lower'),
    'gap/mia': Metric('Gap of the attack', 'lower'),
    'gap/forget_later': Metric('Gap F, later', 'lower'),
    'swap/image': Metric('Swap (image, text*)', 'as retrained'),
    'swap/text': Metric('Swap (image*, text)', 'as retrained'),
    'R@1/forget_later': Metric('F-R@1, later', 'as retrained'),
    'regrowth': Metric('Regrowth', '0'),
    'drift/image': Metric('Drift, image', '0'),
    'drift/text': Metric('Drift, text', '0'),
    'relearn_rounds': Metric('Rounds to relearn', 'as retrained'),
    'rounds': Metric('Rounds', 'lower'),
    'megabytes': Metric('Megabytes sent', 'lower'),
    **{f'{way}/R@{k}/{split}': Metric(f'{label} R@{k}, {split}', ideal)
       for way, label in (('image_to_text', 'Image to text'), ('text_to_image', 'Text to image'))
       for split, k, ideal in (('forget', 1, 'as retrained'), ('forget', 5, 'as retrained'))},
    'gap/retain': Metric('Gap R', 'lower'),
    'goal': Metric('One-sided goal', 'higher'),
    'fid_ratio/retain': Metric('FID R / original', '1'),
    'fid_ratio/forget': Metric('FID F / original', 'higher for the paper'),
    **{f'distance/{split}': Metric(f'Distance, {split}', ideal) for split, ideal in (
        ('forget', 'as retrained'), ('unseen', 'as retrained'), ('retain', 'lower'),
        ('test', 'lower'))},
    'trained': Metric('Parameters moved', 'count'),
    'gigabytes': Metric('Memory of a step, GiB', 'lower'),
}
# Measures of completed pictures, `fid[EXTRACTOR]/SIDE@HOLE`: the side is of retained or of forgotten
# classes, the hole is named but for the first one. With the published weights FID, IS and CLIP.
_COMPLETED = re.compile(
    r'(cross_)?(FID|IS|CLIP|(fid|is|emb_cos)\[.+\])/(retain|forget)(?:@(.+))?')
_MEASURES = {'fid': ('FID', 'lower', 'higher'), 'is': ('IS', 'higher', 'lower'),
             'emb_cos': ('Cosine', 'higher', 'lower')}
_OFFICIAL = {'FID': 'fid', 'IS': 'is', 'CLIP': 'emb_cos'}
CLASSIFICATION = ('accuracy/test', 'accuracy/forget', 'forgetting_score[benchmark]',
        'forgetting_floor[benchmark]', 'nomus', 'mia_auc/unseen', 'loss_gap')
IMAGE_TEXT = ('mean_recall/test', 'image_to_text/R@1/test', 'text_to_image/R@1/test',
              'zero_shot/top1', 'linear_probe/top1', 'match/forget', 'mia_auc/unseen')
MULTIMODAL = ('accuracy/test', 'accuracy_other/test', 'accuracy_visual/test',
              'accuracy_visual/forget', 'upg', 'cmsg', 'member/admin/forget', 'mia_auc/unseen')
FEDERATED = ('R@1/forget', 'R@1/kept', 'R@1/test', 'gap/forget', 'gap/kept', 'gap/mean',
             'swap/image', 'swap/text', 'mia_auc/unseen')
SIGNED = ('regrowth', 'goal', 'loss_gap', 'upg', 'cmsg',
          *(name for name in METRICS if name.startswith('gap_masked/')))


# Percent over the retrained model of the same seed -> the metric that is compared: for these the
# retrained models differ by their ratios to one another, and not by the 0 that each of them has.
RELATIVE = {'upg': 'accuracy/test', 'cmsg': 'accuracy_other/test'}


class View(NamedTuple):
  """How a kind of task is summarised.

  Attributes:
    main: metrics of the main table.
    best: the metric by which methods are ranked; larger is better, unless its ideal is `lower`.
    across: metrics of the tables and figures over cases.
    beside: methods whose rows are no candidates: they train from scratch on other data.
  """

  main: tuple[str, ...]
  best: str
  across: tuple[str, ...]
  beside: tuple[str, ...] = ()


VIEWS = {
    'classification': View(CLASSIFICATION, 'nomus', (
        'nomus', 'accuracy/test', 'forgetting_score[benchmark]', 'mia_auc/unseen', 'loss_gap')),
    'image_text': View(IMAGE_TEXT, 'mean_recall/test', (
        'mean_recall/test', 'zero_shot/top1', 'linear_probe/top1', 'match/forget'), ('contrastive',)),
    'multimodal': View(MULTIMODAL, 'upg', (
        'accuracy/test', 'accuracy_other/test', 'accuracy_visual/forget', 'upg', 'cmsg'),
                       ('retrain',)),
    'federated': View(FEDERATED, 'gap/mean', (
        'R@1/forget', 'R@1/kept', 'gap/forget', 'gap/kept', 'gap/mean', 'swap/image', 'swap/text',
        'R@1/forget_later', 'regrowth', 'drift/image', 'drift/text')),
    'generation': View(('goal', 'gap/mean', 'mia_auc/unseen'), 'goal', ('goal', 'gap/mean'))}


def kind(results: Mapping[str, Any]) -> str:
  """The kind of task that results are of; those written before there were kinds classify."""
  return results.get('config', {}).get('task', 'classification')


def metric(name: str) -> Metric:
  """How a metric is shown; one that nobody has described goes by its name."""
  if name in METRICS or not (found := _COMPLETED.fullmatch(name)):
    return METRICS.get(name, Metric(name, ''))
  crossed, title, measure, side, hole = found.groups()
  label, retain, forget = _MEASURES[measure or _OFFICIAL[title]]
  named = f'{label}{title[len(measure):]}' if measure else title
  ideal = retain if side == 'retain' else f'{forget} in the paper'
  return Metric(f'{"SECOND " if crossed else ""}{named} {side[0].upper()}'
                f'{f", {hole}" if hole else ""}', ideal)


def completed(results: Mapping[str, Any], hole: str = '', crossed: bool = False) -> tuple[str, ...]:
  """The paper's columns for one hole, as they were measured: FID, IS and cosine on both sides."""
  found = {}
  for name in results['methods']['original']['metrics']:
    parts = _COMPLETED.fullmatch(name)
    if parts and (parts[5] or '') == hole and bool(parts[1]) == crossed:
      measure = parts[3] or _OFFICIAL[parts[2]]
      found.setdefault((measure, parts[4]), []).append(name)
  return tuple(name for measure in _MEASURES for side in ('retain', 'forget')
               for name in found.get((measure, side), ()))


def of(results: Mapping[str, Any]) -> View:
  view, columns = VIEWS[kind(results)], completed(results)  # none where nothing was completed
  return view._replace(main=columns + view.main, across=columns + view.across)
