"""What a report says in words: the question, the answer, conventions and limits."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from unlearn_jax.evals import results as results_lib
from unlearn_jax.evals import views


def _classification(parts: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
  floors = {}
  for name in ('benchmark', 'dlfd'):
    found = dict.fromkeys(results_lib.cell(part, 'retrain', f'forgetting_floor[{name}]')
                          for part in parts)
    floors[name] = ', '.join(found) + (' (by case)' if len(found) > 1 else '')
  return (
      '**Forgetting Score [benchmark]**: |0.5 - accuracy| of a logistic regression on the loss '
      'that tells forgotten from unseen records, 10 stratified 90/10 splits; forgotten records '
      'shuffled and truncated to the number of unseen ones. Ideal: 0. Score of an attack without '
      f'any signal: {floors["benchmark"]} plus sampling noise. Source: MUFAC/MUCAC benchmark.',
      '**Forgetting Score [dlfd]**: the same attack without truncation, as the released DLFD code '
      f'computes it. Score of an attack without any signal: {floors["dlfd"]}, from class imbalance '
      'alone. The two are different numbers and are never compared with each other.',
      '**NoMUS**: DLFD Eq. 5, from test accuracy and Forgetting Score [benchmark].',
      '**Loss attack AUC**: chance that a forgotten record has a smaller loss than an unseen one. '
      'Ideal: 0.5; above, still remembered; below, over-forgotten.',
      '**Loss gap**: mean loss of forgotten minus mean loss of unseen records. Ideal: that of '
      'the retrained model.',
      '**Retrained**: trained from a fresh initialisation, all layers, same recipe, without the '
      'forgotten records.')


_IMAGE_TEXT = (
    '**Retrained**: trained from a fresh initialisation without the mismatched pairs; it is the '
    'oracle, and has fewer pairs than the others.',
    '**contrastive-clean**, where it stands: trained from scratch with the true captions of all '
    'pairs, the ceiling. It is no candidate.',
    '**Recall at K**: the share of queries with a match among the K most similar candidates; a '
    'candidate of equal similarity counts as more similar.',
    '**Loss attack AUC**: chance that a mismatched training pair has a smaller loss than a '
    'mismatched pair that no model has seen. Ideal: that of the retrained model, about 0.5.',
    '**FLOPs** are those of the compiled steps, a Sinkhorn solve counted as one iteration.')


def _multimodal(parts: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
  modalities = parts[0]['config']['modalities']
  stop = modalities['stop_on']
  paper = ', as in the paper: the table saw its test data before it was made'
  return (
      '**UPG** and **CMSG**: test accuracy, and accuracy of the kept modality alone, over that of '
      'the retrained model of the same seed, minus 1, in percent (CCU section 5.1.4).',
      f'**Accuracy of a modality alone**: reading `{modalities["reading"]}` (the paper gives none).',
      '**Retrained**: trained from a fresh initialisation without the forgotten records, pictures '
      'and other modality. **retrain-visual**, where it stands: trained on all records with the '
      'forgotten pictures masked. Both are oracles and no candidates.',
      '**Loss attack AUC**: chance that a forgotten record has a smaller loss than an unseen one, '
      'with both modalities given. Ideal: that of the retrained model, about 0.5.',
      *((f'**Early stopping** looked at {stop} data{paper if stop == "test" else ""}.',)
        if stop else ()))


def _federated(parts: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
  chosen = parts[0]['config']['federation']
  return (
      '**R@1**: mean of image to text and text to image. **F-R@1**: the forgotten training pairs '
      'within themselves; **R-R@1**: mean over the clients that stay of their own test pairs; '
      '**T-R@1**: all test pairs. Ties count against the model.',
      '**Gap**: |unlearned - retrained| of the same seed. F-R@1 far below the retrained one is '
      'over-forgetting, and an error like the opposite.',
      '**Swap**: F-R@1 of one branch of the unlearned model with the other branch as it was before '
      '(*). A branch that unlearning left alone still carries the forgotten pairs.',
      '**Retrained**: the federation from the same first adapters without the forgotten pairs, for '
      'as many rounds as the others took in all.',
      f'**Later** and **regrowth**: after {chosen["post_rounds"]} further ordinary rounds of the '
      'clients that stay, under the lock where a method leaves one. **Drift**: how far these rounds '
      'moved along the forget-exclusive directions of the original history.',
      '**Loss attack AUC**: chance that a forgotten pair is more similar than an unseen one.')


def _generation(parts: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
  sizes = parts[0].get('split_sizes', {})
  most = parts[0]['config']['generation']['pictures']
  count = lambda name: min(sizes.get(name, 0), most) if most else sizes.get(name, 0)
  return (
      '**R** and **F**: held-out pictures of the classes to retain and to forget '
      f'({count("test"):,} and {count("unseen"):,}), completed from what is left of them.',
      '**FID[x]**: squared Fréchet distance between features of completed and of true pictures by '
      'extractor x, unbiased covariances in float64; **IS[x]**: inception score, in ten splits from '
      '1,000 pictures on; **Cosine[x]**: mean cosine of a completed picture\'s features with the true '
      'one\'s (the paper takes CLIP\'s and calls it a distance). `classifier`: a small ResNet trained '
      'on the training pictures of all classes; its numbers stand beside none made with Inception or '
      'CLIP.',
      '**One-sided goal**: cosine lost on F minus cosine lost on R, against the original model.',
      '**Gap**: |unlearned - retrained| of the same seed, in cosines.',
      '**Retrained**: trained from a fresh initialisation without the forgotten classes.',
      '**Loss attack AUC**: chance that a forgotten training picture is completed better than a '
      'held-out one of the same classes.')


# Kind of task -> what its numbers mean, and what they cannot show.
CONVENTIONS = {'classification': _classification, 'image_text': lambda parts: _IMAGE_TEXT,
               'multimodal': _multimodal, 'federated': _federated,
               'generation': _generation}
LIMITS = {
    'classification': (
        'The attack sees one number per record, the loss. A score near the floor means that this '
        'attack finds nothing; stronger, per-record attacks may still find something.',
        'The Forgetting Score of two identical distributions is about 0.01 to 0.03 with a few '
        'hundred records of each kind; differences of that size mean nothing.'),
    'image_text': (),
    'multimodal': (
        'The accuracy of a modality alone is what is left when the other one is withheld; the model '
        'was never trained that way, and the readings differ.',),
    'federated': (
        'EASE is re-implemented from its abstract: the equations marked ours are ours, and these '
        'numbers stand beside none of the paper\'s.',),
    'generation': (
        'FID and IS of a few hundred pictures are biased: compare rows of one table only.',
        'A generator that paints noise wherever it meets a forgotten class tells everybody which '
        'classes those were; the two-sided gap counts that as an error, the one-sided goal as a '
        'success.')}
_UNBALANCED = 0.05  # a no-signal floor above this dominates the score


class Objective(NamedTuple):
  """How a tuning objective is shown: its heading, its meaning, the data of the trials."""

  heading: str
  explanation: str
  data: str = ('The forget set of the trials ({records} records) was drawn from retained data, and '
               'validation data stood in for test and unseen data.')


OBJECTIVES = {
    'nomus': Objective('NoMUS, validation', (
        'NoMUS on validation data is what they were chosen by (higher is better); it needs no '
        'retrained model.')),
    'retrain_gap': Objective('Gap to retrained', (
        'They were chosen by the mean absolute gap to a model retrained without the forget set of '
        'the trials (lower is better), in forget accuracy, validation accuracy and attack AUC.')),
    'multimodal_gap': Objective('Gap to retrained', (
        'They were chosen by the mean absolute gap to a model retrained without the forget set of '
        'the trials (lower is better), in forget and validation accuracy, attack AUC, visual '
        'accuracy on both and accuracy of the kept modality on validation data.')),
    'recall_gap': Objective('Mean gap to retrained', (
        'They were chosen by the mean of both gaps in R@1 to a federation retrained without the '
        'trials\' forget set (lower is better).'), (
        'What this report forgets was taken out of the federation, and another client (category) '
        'was forgotten: {records} pairs; the clients that stay were judged by validation pairs.')),
    'goal': Objective('Cosine R - cosine F, validation', (
        'They were chosen by the paper\'s one-sided goal: the cosine of completed pictures with the '
        'true ones on retained classes minus that on forgotten ones (higher is better); it needs no '
        'retrained model.'), (
        'Half of the retained classes played the forget set ({records} pictures); held-out validation '
        'pictures of retained classes judged both sides.')),
    'completion_gap': Objective('Gap to retrained', (
        'They were chosen by the mean absolute gap in cosines, on both sides, to a model retrained '
        'without the forget set of the trials (lower is better).'), (
        'Half of the retained classes played the forget set ({records} pictures); held-out validation '
        'pictures of retained classes judged both sides.')),
    'mean_recall': Objective('Mean recall, validation', (
        'They were chosen by the mean recall on validation pairs (higher is better).'), (
        'Trials run on the training pairs themselves: no method is told which of them are '
        'mismatched, and test and unseen pairs took no part.')),
}


def question(results: Mapping[str, Any]) -> str:
  """One paragraph: what was asked, of which data, and how settings were chosen."""
  config, sizes = results.get('config', {}), results.get('split_sizes', {})
  data = config.get('data', {})
  kinds = {'identity': 'all records of the chosen identities; no identity is in two splits',
           'class': 'records of the chosen classes',
           'owner': 'training records of the chosen identities; held-out records are of all',
           'random': 'single records, drawn at random',
           'planted': 'training pairs that were given one another\'s captions; methods are not '
                      'told which',
           'classes': 'all training pictures of the chosen classes',
           'federation': {'client': 'all training pairs of one client', 'concept':
                          'the training pairs of one category, at all clients', 'sample':
                          'a share of one client\'s training pairs'}.get(
                              config.get('split', {}).get('scenario'))}
  parts = ['Does a model, after unlearning, behave as if it had never seen the forgotten records, '
           'and is it still good?']
  if data.get('name'):
    noise = data.get('label_noise')
    planted = f', {100 * noise:g} % of the labels replaced at random' if noise else ''
    parts.append(f'Data: {data["name"]}{planted}.')
  if sizes:
    parts.append('Records: ' + ', '.join(f'{n:,} {name}' for name, n in sizes.items()) + '.')
  kind = config.get('split', {}).get('kind')
  if kind in kinds:
    parts.append(f'Forgotten: {kinds[kind]}.')
  parts.append(f'Split `{str(results.get("split_hash", results_lib.NOT_AVAILABLE))[:16]}`, '
               f'{seeds(results)}.')
  if results.get('tune'):
    parts.append('The settings of every method were chosen under the same budget on validation '
                 'data; forgotten, test and unseen records of this report took no part.')
  else:
    budget = f' (budget `{config["budget"]}`)' if config.get('budget') else ''
    parts.append(f'Settings are those of the config{budget}; this run searched for none.')
  return ' '.join(parts)


def answer(results: Mapping[str, Any]) -> str:
  """The headline in one sentence."""
  metric = views.of(results).best
  label = views.metric(metric).label
  winner = results_lib.best(results)
  if winner is None:
    return f'No approximate method has a {label}.'
  shown = {name: results_lib.spread(results_lib.value(results, name, metric))
           for name in (winner, 'retrain', 'original')}
  largest = results['floor'].get(metric, {}).get('max')
  noise = ('With one retrained model the noise is unknown.' if largest is None else
           f'Retrained models of different seeds differ by up to {largest:.3f}.')
  return (f'Best {label} of the approximate methods: **{winner}** with {shown[winner]}, beside '
          f'{shown["retrain"]} of the retrained and {shown["original"]} of the original model. '
          f'{noise}')


def seeds(results: Mapping[str, Any]) -> str:
  """'seeds 0, 1, 2'."""
  names = results.get('config', {}).get('seeds')
  if names is None:
    count = len(results['methods']['retrain']['seconds']['values'])
    return f'{count} seed{"s" if count > 1 else ""}'
  return f'seed{"s" if len(names) > 1 else ""} {", ".join(map(str, names))}'


def conventions(parts: Sequence[Mapping[str, Any]]) -> list[str]:
  """What the numbers mean; `parts` are results that share their metrics."""
  return list(CONVENTIONS[views.kind(parts[0])](parts))


def limits(parts: Sequence[Mapping[str, Any]]) -> list[str]:
  """What the numbers cannot show, each limit once."""
  return list(dict.fromkeys(limit for part in parts for limit in _limits(part)))


def _limits(results) -> list[str]:
  count = len(results['methods']['retrain']['seconds']['values'])
  trained = min(count, len(results.get('config', {}).get('anchor_seeds', ())) or count)
  found = list(LIMITS[views.kind(results)])
  if count == 1:
    found.append('One seed: there is no spread and no floor, so no difference in this report can '
                 'be told from noise.')
  elif trained == 1:
    found.append('One original and one retrained model stand beside all seeds: there is no floor, so '
                 'no gap in this report can be told from the noise of retraining.')
  elif trained < 5:
    found.append(f'{trained} seeds give {trained * (trained - 1) // 2} pair(s) of retrained models: '
                 'the floor is rough, and a gap inside it is no proof of equality.')
  floor = results_lib.value(results, 'retrain', 'forgetting_floor[benchmark]')['mean']
  if floor is not None and floor > _UNBALANCED:
    found.append('There are fewer forgotten than unseen records, so the attack is unbalanced: its '
                 'Forgetting Score, and NoMUS with it, mostly show the imbalance. Read the AUC '
                 'and the loss gap instead.')
  sizes = results.get('split_sizes', {})
  small = [f'{sizes[name]} {name}' for name in ('forget', 'unseen', 'test')
           if 0 < sizes.get(name, 10**9) < 200]
  if small:
    found.append(f'Few records ({", ".join(small)}): their metrics are coarse.')
  if results.get('config', {}).get('data', {}).get('label_noise'):
    found.append('Labels were falsified on purpose, so that there is something to forget; '
                 'accuracies are measured against the falsified labels where a split has them.')
  return found
