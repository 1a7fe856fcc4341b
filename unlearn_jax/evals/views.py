"""What is shown of each kind of task: metrics with their headings, and how methods are ranked."""

from collections.abc import Mapping
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
}
CLASSIFICATION = ('accuracy/test', 'accuracy/forget', 'forgetting_score[benchmark]',
        'forgetting_floor[benchmark]', 'nomus', 'mia_auc/unseen', 'loss_gap')
IMAGE_TEXT = ('mean_recall/test', 'image_to_text/R@1/test', 'text_to_image/R@1/test',
              'zero_shot/top1', 'linear_probe/top1', 'match/forget', 'mia_auc/unseen')
MULTIMODAL = ('accuracy/test', 'accuracy_other/test', 'accuracy_visual/test',
              'accuracy_visual/forget', 'upg', 'cmsg', 'member/admin/forget', 'mia_auc/unseen')
FEDERATED = ('R@1/forget', 'R@1/kept', 'R@1/test', 'gap/forget', 'gap/kept', 'gap/mean',
             'swap/image', 'swap/text', 'mia_auc/unseen')
SIGNED = ('regrowth', 'loss_gap', 'upg', 'cmsg',
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
        'R@1/forget_later', 'regrowth', 'drift/image', 'drift/text'))}


def kind(results: Mapping[str, Any]) -> str:
  """The kind of task that results are of; those written before there were kinds classify."""
  return results.get('config', {}).get('task', 'classification')


def of(results: Mapping[str, Any]) -> View:
  return VIEWS[kind(results)]
