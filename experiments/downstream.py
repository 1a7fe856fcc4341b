"""Evaluates saved CLIPs on the data sets of the NCU paper, beside the paper's own figures.

python -m experiments.downstream --checkpoint=cc3m.pt,unlearned.pt --data_dir=DIR \\
    --datasets=cifar10,dtd,sst2

Zero-shot accuracy as in Table 1, linear probes as in Table 3. What is not there says so. A probe
holds the features and scores of all training pictures: ImageNet's take about 20 GB.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import os
from typing import Any, NamedTuple

from absl import app
from absl import flags
from absl import logging
import numpy as np

from experiments import ncu_paper
from unlearn_jax import models
from unlearn_jax import types
from unlearn_jax.data import sources
from unlearn_jax.data.builders import downstream
from unlearn_jax.evals import linear_probe
from unlearn_jax.evals import render
from unlearn_jax.evals import run
from unlearn_jax.evals import zero_shot
from unlearn_jax.models import clip
from unlearn_jax.models import contract
from unlearn_jax.models import convert

MISSING = 'n/a'
NOT_CHOSEN = 'not among the chosen data sets'
PIXELS = contract.STATISTICS  # that a checkpoint was trained with
NOTE = ('Per cent. Zero-shot: ensembles of CLIP\'s prompts; linear probe: L-BFGS on the features '
        'before the projection, regularisation chosen on validation data. Mean per class for '
        'Caltech101, Aircraft, Flowers102 and OxfordPets, as in CLIP\'s paper, top-1 elsewhere. '
        '[paper]: quoted from {source}, which does not say which of the two it reports; its '
        'released code trains the probe with AdamW. Splits that the authors of a set do not '
        'publish are ours (`data/builders/downstream.py`).')


class Clip(NamedTuple):
  """A model ready to be evaluated.

  Attributes:
    name: of its row.
    image_size: side of its pictures.
    encode_image: pictures [N, H, W, 3] in [0, 1] -> `image_embedding` and `features`.
    encode_text: tokens [B, L] -> embeddings [B, d].
    tokenize: texts -> tokens.
  """

  name: str
  image_size: int
  encode_image: Callable[[Any], Mapping[str, np.ndarray]]
  encode_text: Callable[[np.ndarray], np.ndarray]
  tokenize: Callable[[Sequence[str]], np.ndarray]


def prepare(name: str, model: types.Model, variables: types.Variables, *, image_size: int,
            context: int, pixels: str, batch_size: int) -> Clip:
  """Compiles both towers of a model.

  Args:
    name: of its row.
    model: of `models.clip`.
    variables: its variables.
    image_size: side of its pictures.
    context: length of its texts.
    pixels: one of `PIXELS`.
    batch_size: pictures, or texts, at a time.
  """
  model = contract.normalized(model, *PIXELS[pixels])
  image_tower, text_tower = (functools.partial(model.apply, method=f'encode_{tower}')
                             for tower in ('image', 'text'))

  def encode_image(pictures):
    return run.predict(image_tower, variables, {'image': pictures}, batch_size=batch_size,
                       names=('image_embedding', 'features'))

  def encode_text(tokens):
    return run.predict(text_tower, variables, {'text': tokens}, batch_size=batch_size,
                       names=('text_embedding',))['text_embedding']

  return Clip(name, image_size, encode_image, encode_text,
              functools.partial(clip.tokenize, context_length=context))


def load(path: str, *, layout: str | None, pixels: str | None, batch_size: int) -> Clip:
  """Reads a public or unlearned checkpoint (`models.convert`).

  Args:
    path: of the file; its row is called by the file's name.
    layout: see `convert.load`.
    pixels: see `PIXELS`; None is `imagenet` for the layouts of NCU's own runs (`laclip`, `declip`),
      `clip` otherwise.
    batch_size: see `prepare`.
  """
  variables, spec = convert.load(path, layout=layout)
  pixels = pixels or ('imagenet' if spec.model_args['layout'] in ('laclip', 'declip') else 'clip')
  return prepare(os.path.basename(path), models.get('clip', **spec.model_args), variables,
                 image_size=spec.image_size, context=spec.model_args['context'], pixels=pixels,
                 batch_size=batch_size)


class Results(NamedTuple):
  """Accuracies in per cent, and why others are missing: data set -> value, data set -> reason."""

  zero_shot: dict[str, float]
  probe: dict[str, float]
  missing: dict[str, str]


def evaluate(model: Clip, names: Sequence[str], probes: Sequence[str], data_dir: str) -> Results:
  """Zero-shot accuracy on data sets, and linear probes on some.

  All data are looked for before the first picture is read.

  Raises:
    ValueError: data that are there but damaged.
  """
  data, results = {}, Results({}, {}, {})
  for name in dict.fromkeys((*names, *probes)):
    splits = downstream.SPLITS if name in probes else ('test',)
    try:
      data[name] = {split: downstream.get(name, data_dir, split=split,
                                          image_size=model.image_size) for split in splits}
    except FileNotFoundError as error:
      results.missing[name] = str(error)
  for name, parts in data.items():
    logging.info('%s: %s, %s pictures', model.name, downstream.SETS[name].title,
                 ', '.join(f'{len(part)} {split}' for split, part in parts.items()))
    outputs = {split: model.encode_image(part.fields['image']) for split, part in parts.items()}
    metric = downstream.SETS[name].metric
    if name in names:
      classes = zero_shot.class_embeddings(model.encode_text, parts['test'].class_names,
                                           zero_shot.templates()[name], model.tokenize)
      found = zero_shot.evaluate(outputs['test']['image_embedding'], classes,
                                 parts['test'].fields['label'])
      results.zero_shot[name] = 100 * found[f'zero_shot/{metric}']
    if name in probes:
      results.probe[name] = 100 * _probe(parts, outputs)[f'linear_probe/{metric}']
  return results


def _probe(parts: Mapping[str, sources.Source], outputs) -> dict[str, float]:
  train, validation, test = ((outputs[split]['features'], parts[split].fields['label'])
                             for split in downstream.SPLITS)
  found = linear_probe.evaluate(train, validation, test, num_classes=parts['test'].num_classes)
  if not found['linear_probe/converged']:
    logging.warning('the linear probe on %s has not converged', parts['test'].name)
  return found


def _cells(found: Mapping[str, float], names: Sequence[str], digits: int) -> list[str]:
  return [f'{found[name]:.{digits}f}' if name in found else MISSING for name in names]


def _titles(names: Sequence[str]) -> tuple[str, ...]:
  return tuple(downstream.SETS[name].title for name in names)


def table_1(results: Mapping[str, Results]) -> render.Table:
  """Zero-shot accuracies; the average is over all sets but ImageNet, and asks for all of them."""
  names, last = ncu_paper.TABLE_1_SETS, ncu_paper.TABLE_1_LAST[1]
  rows = [(f'{" ".join(row)} [paper]', *(f'{value:.1f}' for value in values))
          for row, values in ncu_paper.TABLE_1.items()]
  for name, part in results.items():
    able = [part.zero_shot[key] for key in names if key in part.zero_shot]
    average = (f'{np.mean(able):.1f}' if len(able) == len(names)
               else f'{MISSING}: {len(able)} of {len(names)} sets')
    rows.append((name, *_cells(part.zero_shot, names, 1), average,
                 *_cells(part.zero_shot, [last], 1)))
  return render.Table(('Model', *_titles(names), 'Average', *_titles([last])), tuple(rows),
                      anchors=frozenset(range(len(ncu_paper.TABLE_1))))


def table_3(results: Mapping[str, Results]) -> render.Table:
  """Accuracies of linear probes."""
  names = ncu_paper.TABLE_3_SETS
  rows = [(f'{" ".join(row)} [paper]', *(f'{value:.2f}' for value in values))
          for row, values in ncu_paper.TABLE_3.items()]
  rows += [(name, *_cells(part.probe, names, 2)) for name, part in results.items()]
  return render.Table(('Model', *_titles(names)), tuple(rows),
                      anchors=frozenset(range(len(ncu_paper.TABLE_3))))


def reasons(part: Results, names: Sequence[str], probes: Sequence[str]) -> list[str]:
  """What is missing in a row and why, a line per data set and table."""
  lines = []
  for kind, wanted, chosen, found in (
      ('zero-shot', downstream.SETS, names, part.zero_shot),
      ('linear probe', ncu_paper.TABLE_3_SETS, probes, part.probe)):
    for name in wanted:
      if name not in found:
        why = part.missing[name] if name in chosen else NOT_CHOSEN
        lines.append(f'{downstream.SETS[name].title}, {kind}: {MISSING}: {why}')
  return lines


def markdown(results: Mapping[str, Results], names: Sequence[str], probes: Sequence[str]) -> str:
  """Both tables, and a line for each figure that is missing."""
  sections = [render.Section('', (NOTE.format(source=ncu_paper.SOURCE),)),
              render.Section('Table 1: zero-shot accuracy', (table_1(results),)),
              render.Section('Table 3: linear probes', (table_3(results),))]
  for name, part in results.items():
    if lines := reasons(part, names, probes):
      sections.append(render.Section(f'What is missing: {name}', (lines,)))
  return render.to_markdown('Tables 1 and 3 of the NCU paper', sections)


def main(_):
  results = {}
  try:
    for path in _CHECKPOINT.value:
      model = load(path, layout=_LAYOUT.value, pixels=_PIXELS.value, batch_size=_BATCH_SIZE.value)
      if model.name in results:
        raise ValueError(f'two checkpoints are called {model.name}')
      results[model.name] = evaluate(model, _DATASETS.value, _PROBES.value, _DATA_DIR.value)
  except (OSError, ValueError) as error:
    raise SystemExit(f'error: {error}') from error
  print(markdown(results, _DATASETS.value, _PROBES.value))


def _known(names: Sequence[str]) -> bool:
  return set(names) <= set(downstream.SETS)


if __name__ == '__main__':
  _CHECKPOINT = flags.DEFINE_list('checkpoint', [], 'Checkpoints as models.convert reads them; '
                                  'none prints the paper\'s figures.')
  _DATA_DIR = flags.DEFINE_string('data_dir', '', 'What TFDS prepared, and published files.')
  _DATASETS = flags.DEFINE_list('datasets', list(downstream.SETS), 'Data sets of Table 1.')
  _PROBES = flags.DEFINE_list('probes', list(ncu_paper.TABLE_3_SETS), 'Data sets of Table 3.')
  _LAYOUT = flags.DEFINE_enum('layout', None, ['openai', 'open_clip'],
                              'Where the tensors do not tell it, see models/convert.py.')
  _PIXELS = flags.DEFINE_enum('pixels', None, list(PIXELS), 'How pixels are normalised; by the '
                              'layout unless given.')
  _BATCH_SIZE = flags.DEFINE_integer('batch_size', 256, 'Pictures at a time.', lower_bound=1)
  flags.register_validator('datasets', _known, f'known: {", ".join(downstream.SETS)}')
  flags.register_validator(
      'probes', lambda names: set(names) <= set(ncu_paper.TABLE_3_SETS),
      f'known: {", ".join(ncu_paper.TABLE_3_SETS)}')
  app.run(main)
