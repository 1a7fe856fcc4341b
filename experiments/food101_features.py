"""Writes the features of UPMC-Food101 that the data set `food101` reads, with a frozen ViT and BERT.

python -m experiments.food101_features --data_dir=DIR --vit=VIT --bert=BERT [--device=cuda]

DIR holds `images/{train,test}/CLASS/FILE` and `texts/{train,test}_titles.csv`; VIT and BERT are
directories as transformers saves them, of `google/vit-base-patch16-224` and
`google-bert/bert-base-uncased`. 25 classes take about 9 GB. Needs transformers and PyTorch.

As in CGGM (Guo et al. 2024): pictures are resized to 224 x 224 whatever their shape and stay in
[0, 1], and a title is 50 tokens with padding. Unlike there, training pictures are not augmented,
which features that are made once cannot be, and the text is the published title.

A file appears when it is complete: a run that was cut off goes on with the next file when the
command is given again.
"""

from collections.abc import Callable, Iterator, Sequence
import importlib.util
import os
from typing import Any

from absl import app
from absl import flags
from absl import logging
import numpy as np
from PIL import Image

from unlearn_jax.data import fields
from unlearn_jax.data.builders import food101
from unlearn_jax.train import log

TOKENS = food101.TEXT[0]
DTYPE = np.float16  # hidden states are layer-normalised, so they fit; rounding is below 2^-11


def write(data_dir: str, vit: str, bert: str, *, classes: Sequence[str] = (), batch_size: int = 32,
          device: str = 'cpu') -> None:
  """Writes `features/{train,test}_files.txt`, `..._image.npy` and `..._text.npy`.

  Pictures that cannot be decoded are left out, with a warning that names them.

  Args:
    data_dir: the published files; `features/` is made in it.
    vit: directory of the picture encoder's weights.
    bert: directory of the text encoder's weights and its vocabulary.
    classes: which; the first 25 by name if none are given.
    batch_size: records at a time.
    device: PyTorch's name of it.

  Raises:
    ImportError: transformers or PyTorch is missing.
    FileNotFoundError: weights, titles or a picture are missing.
    ValueError: unknown classes, features that are not finite, or a directory that holds features of
      other pictures.
  """
  _check(vit, bert)
  rows = {split: food101.titles(data_dir, split) for split in food101.SPLITS}
  chosen = tuple(classes) or food101.default_classes(rows['train'])
  if unknown := set(chosen) - {row.dish for row in rows['train']}:
    raise ValueError(f'the titles have no class {", ".join(sorted(unknown))}')
  os.makedirs(os.path.join(data_dir, 'features'), exist_ok=True)
  for split in food101.SPLITS:
    folder = os.path.join(data_dir, 'images', split)
    prefix = os.path.join(data_dir, 'features', split)
    part = [row for row in rows[split] if row.dish in chosen]
    paths = {row.file: os.path.join(folder, row.dish, row.file) for row in part}
    if absent := [path for path in paths.values() if not os.path.isfile(path)]:
      raise FileNotFoundError(f'{len(absent)} pictures are missing, the first is {absent[0]}')
    part = _listed(f'{prefix}_files.txt', part, paths)
    for kind, encoder, values in (
        ('image', lambda: image_encoder(vit, device), [paths[row.file] for row in part]),
        ('text', lambda: text_encoder(bert, device), [row.text for row in part])):
      _write_array(f'{prefix}_{kind}.npy', encoder, values, batch_size)


def image_encoder(directory: str, device: str = 'cpu') -> Callable[[Sequence[str]], np.ndarray]:
  """Paths of pictures -> the last hidden states of a ViT, float32 [n, 1 + patches, d]."""
  import transformers
  model = transformers.ViTModel.from_pretrained(directory, add_pooling_layer=False)
  model.eval().requires_grad_(False).to(device)
  size = (model.config.image_size, model.config.image_size)

  def pixels(path: str) -> np.ndarray:
    picture = _picture(path).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(picture, np.float32).transpose(2, 0, 1) / np.float32(255)

  def encode(paths: Sequence[str]) -> np.ndarray:
    batch = np.stack(list(fields.threads().map(pixels, paths)))
    inputs = transformers.BatchFeature({'pixel_values': batch}, tensor_type='pt').to(device)
    return model(**inputs).last_hidden_state.cpu().numpy()

  return encode


def text_encoder(directory: str, device: str = 'cpu') -> Callable[[Sequence[str]], np.ndarray]:
  """Texts -> the last hidden states of a BERT, float32 [n, 50, d], those of padding included."""
  import transformers
  tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
  model = transformers.BertModel.from_pretrained(directory, add_pooling_layer=False)
  model.eval().requires_grad_(False).to(device)

  def encode(texts: Sequence[str]) -> np.ndarray:
    inputs = tokenizer(list(texts), padding='max_length', truncation=True, max_length=TOKENS,
                       return_tensors='pt').to(device)
    return model(**inputs).last_hidden_state.cpu().numpy()

  return encode


def _check(*directories: str) -> None:
  for name in ('torch', 'transformers'):
    if importlib.util.find_spec(name) is None:
      raise ImportError(f"features of UPMC-Food101: the package {name} is missing; install "
                        "'unlearn_jax[parity]'")
  for directory in directories:
    if not os.path.isfile(os.path.join(directory, 'config.json')):
      raise FileNotFoundError(f'{directory} is no directory of weights as transformers saves them: '
                              'it has no config.json')


def _picture(path: str) -> Image.Image:
  with open(path, 'rb') as file:
    return fields.decode(file.read())


def _readable(path: str) -> bool:
  try:
    _picture(path)
  except fields.BROKEN as error:
    logging.warning('%s is no complete picture (%s); left out', path, error)
    return False
  return True


def _listed(target: str, rows: list[food101.Title], paths: dict[str, str]) -> list[food101.Title]:
  """The rows that get features, and their list in a file, which an earlier run may have written."""
  if not os.path.exists(target):
    kept = list(_shown('decoding pictures', len(rows), fields.threads().map(
        _readable, paths.values())))
    with open(f'{target}.part', 'w', encoding='utf-8') as file:
      file.writelines(f'{row.file}\n' for row, good in zip(rows, kept) if good)
    os.replace(f'{target}.part', target)
  with open(target, encoding='utf-8') as file:
    files = file.read().splitlines()
  listed = set(files)
  found = [row for row in rows if row.file in listed]
  if [row.file for row in found] != files or {row.dish for row in found} != {
      row.dish for row in rows}:
    raise ValueError(f'{target} lists other pictures than those of the chosen classes; remove the '
                     'directory to make other features')
  return found


def _write_array(target: str, make: Callable[[], Callable[[Sequence[Any]], np.ndarray]],
                 values: Sequence[Any], batch_size: int) -> None:
  """Encodes all values into a file, which appears when it is complete; nothing if it is there."""
  if os.path.exists(target):
    logging.info('%s is there', target)
    return
  encode, out = make(), None
  starts = range(0, len(values), batch_size)
  for start in _shown(os.path.basename(target), len(starts), starts):
    with np.errstate(over='ignore'):  # what does not fit is infinite, and refused
      found = encode(values[start:start + batch_size]).astype(DTYPE)
    if not np.isfinite(found).all():
      raise ValueError(f'{target}: features of rows {start} to {start + len(found) - 1} are not '
                       f'finite as {np.dtype(DTYPE)}')
    if out is None:
      out = np.lib.format.open_memmap(f'{target}.part', 'w+', DTYPE,
                                      (len(values), *found.shape[1:]))
    out[start:start + len(found)] = found
  if out is not None:
    out.flush()
    os.replace(f'{target}.part', target)


def _shown(label: str, total: int, steps) -> Iterator:
  with log.progress(total, label=label) as bar:
    for step in steps:
      yield step
      bar.update()


def main(_, holders) -> None:
  data_dir, vit, bert, classes, batch_size, device = (holder.value for holder in holders)
  write(data_dir, vit, bert, classes=classes, batch_size=batch_size, device=device)


if __name__ == '__main__':
  HOLDERS = (
      flags.DEFINE_string('data_dir', None, 'The published files.', required=True),
      flags.DEFINE_string('vit', None, 'Directory of the ViT.', required=True),
      flags.DEFINE_string('bert', None, 'Directory of the BERT.', required=True),
      flags.DEFINE_list('classes', [], 'Which; by default the first 25 by name.'),
      flags.DEFINE_integer('batch_size', 32, 'Records at a time.', lower_bound=1),
      flags.DEFINE_string('device', 'cpu', 'As PyTorch names it.'))
  app.run(lambda argv: main(argv, HOLDERS))
