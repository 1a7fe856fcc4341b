"""Zero-shot classification: pictures against prompts that name the classes."""

from collections.abc import Callable, Mapping, Sequence
import functools
import json
import pathlib

import numpy as np

from unlearn_jax.evals import retrieval
from unlearn_jax.losses import checks

TOP = (1, 5)


@functools.cache
def templates() -> Mapping[str, tuple[str, ...]]:
  """Data set -> prompt templates, `{}` standing for the class name.

  `imagenet` and those of the data sets of CLIP's paper are the lists that its authors publish
  (notebook `Prompt_Engineering_for_ImageNet`, `data/prompts.md`); `pictograms` is ours.
  """
  path = pathlib.Path(__file__).parent / 'templates.json'
  return {name: tuple(texts) for name, texts in json.loads(path.read_text('utf-8')).items()}


def class_embeddings(encode_text: Callable[[np.ndarray], np.ndarray], class_names: Sequence[str],
                     prompts: Sequence[str], tokenize: Callable[[list[str]], np.ndarray]
                     ) -> np.ndarray:
  """One vector per class: the normalised mean of the normalised embeddings of its prompts.

  w_c = m_c / ||m_c||, m_c = mean_t f_t(template_t(name_c)) / ||f_t(template_t(name_c))||
  (Radford et al. 2021, section 3.1.4, prompt ensembling over the embedding space).

  Args:
    encode_text: tokens [B, L] -> embeddings [B, d], for any B; it is called once, with all
      C T prompts, e.g. by way of `run.predict`.
    class_names: C names, all different: two classes of one name could not be told apart.
    prompts: T templates, each with one `{}`.
    tokenize: texts -> tokens [B, L], e.g. `models.clip.tokenize` with its context length.

  Returns:
    [C, d] float32 of unit length.

  Raises:
    ValueError: no class, no template, two classes of one name, a template without its `{}`, or
      embeddings that are not finite, of length 0 or not C T of them.
  """
  class_names, prompts = list(class_names), list(prompts)
  if not class_names or not prompts:
    raise ValueError(f'{len(class_names)} classes and {len(prompts)} templates make no prompt')
  if twice := sorted({name for name in class_names if class_names.count(name) > 1}):
    raise ValueError(f'several classes are called {", ".join(map(repr, twice))}')
  if wrong := [prompt for prompt in prompts if prompt.count('{}') != 1]:
    raise ValueError(f'a template has one {{}} for the class name, not so {wrong[0]!r}')
  texts = [prompt.replace('{}', name) for name in class_names for prompt in prompts]
  found = retrieval.normalised('prompt embeddings', encode_text(tokenize(texts)))
  if len(found) != len(texts):
    raise ValueError(f'encode_text gave {len(found)} embeddings for {len(texts)} prompts')
  means = found.reshape(len(class_names), len(prompts), -1).mean(axis=1)
  return retrieval.normalised('class embeddings', means)


def accuracies(scores, labels, *, prefix: str, top: Sequence[int] = TOP) -> dict[str, float]:
  """Accuracies of class scores; equal scores count against the model.

  The rank of a label is 1 + #{other classes with a score of at least the label's -
  `retrieval.TIE`}: a model that gives every class the same score is right on nothing.

  Args:
    scores: [N, C].
    labels: [N] integers in [0, C).
    prefix: of the metrics' names.
    top: the Ks; those that are not below C are left out, as they would always be 1.

  Returns:
    `PREFIX/topK`, the share of records whose label ranks among the first K, and
    `PREFIX/mean_per_class`, the mean over the classes that have records of their top-1 accuracy.

  Raises:
    ValueError: no record, scores that are not finite, labels outside the classes, or lengths that
      differ.
  """
  scores, labels = np.asarray(scores), np.asarray(labels)
  if scores.ndim != 2 or labels.shape != scores.shape[:1] or not len(labels):
    raise ValueError('accuracies need one label per row of scores and a row at least, got scores '
                     f'{scores.shape} and labels {labels.shape}')
  checks.check_finite('scores', scores)
  checks.check_labels(labels, scores.shape[1])
  own = np.take_along_axis(scores, labels[:, None], axis=1)
  ahead = (scores >= own - retrieval.TIE).sum(axis=1) - 1  # the label itself is among them
  sizes = np.bincount(labels, minlength=scores.shape[1])
  right = np.bincount(labels, ahead < 1, minlength=scores.shape[1])
  return {**{f'{prefix}/top{k}': float(np.mean(ahead < k)) for k in top if k < scores.shape[1]},
          f'{prefix}/mean_per_class': float(np.mean(right[sizes > 0] / sizes[sizes > 0]))}


def evaluate(image, classes, labels, *, top: Sequence[int] = TOP) -> dict[str, float]:
  """Zero-shot accuracies: the class whose vector has the largest cosine with the picture's.

  Args:
    image: [N, d] embeddings of pictures, brought to unit length here.
    classes: [C, d] from `class_embeddings`.
    labels: [N] integers in [0, C).
    top: see `accuracies`.

  Returns:
    `zero_shot/topK` and `zero_shot/mean_per_class`, see `accuracies`. CLIP's paper reports the
    latter for Caltech101, FGVC-Aircraft, Flowers102 and Oxford-IIIT Pets, the former elsewhere.

  Raises:
    ValueError: embeddings of two dimensions, not finite or of length 0; see `accuracies`.
  """
  image, classes = retrieval.normalised('image', image), retrieval.normalised('classes', classes)
  if image.shape[1] != classes.shape[1]:
    raise ValueError(f'pictures and classes have {image.shape[1]} and {classes.shape[1]} '
                     'dimensions; both towers end in one space')
  return accuracies(image @ classes.T, labels, prefix='zero_shot', top=top)
