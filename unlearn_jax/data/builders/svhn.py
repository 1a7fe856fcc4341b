"""SVHN's cropped digits from the authors' MATLAB files, as a TFDS data set.

`train_32x32.mat` and `test_32x32.mat` hold X, uint8 [32, 32, 3, n], and y [n, 1], where the digit 0
is labelled 10; here it is 0, as in TFDS. The easier `extra` pictures are left out.
"""

import zlib

from etils import epath
import numpy as np
from scipy import io

from unlearn_jax.data import sources
from unlearn_jax.data.builders import published

_URL = 'http://ufldl.stanford.edu/housenumbers/'


class PublishedSvhnCropped(published.PublishedBuilder):
  """SVHN, cropped: 10 digits, 73,257 training and 26,032 test pictures of 32x32."""

  # TFDS 4.9.10 finds this by way of `importlib_resources`, which it forgets to depend on.
  code_path = epath.Path(__file__)
  title = 'SVHN'
  tfds_name = 'svhn_cropped'
  files = (
      published.File('train_32x32.mat', _URL + 'train_32x32.mat',
                     '435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8'),
      published.File('test_32x32.mat', _URL + 'test_32x32.mat',
                     'cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b'))
  shape = (32, 32, 3)
  classes = 10
  sizes = {'train': 73_257, 'test': 26_032}
  homepage = _URL
  attribution = ('SVHN, Y. Netzer, T. Wang, A. Coates, A. Bissacco, B. Wu and A. Y. Ng (2011), '
                 'Reading digits in natural images with unsupervised feature learning, NIPS '
                 'workshop; for non-commercial use only.')
  terms = 'its authors allow non-commercial use only'

  @classmethod
  def read(cls, paths):
    return {split: _digits(paths[f'{split}_32x32.mat']) for split in cls.sizes}


def source(data_dir: str, cache_dir: str, image_size: int | None) -> sources.Source:
  """SVHN; arguments and errors: `published.source`."""
  return published.source(PublishedSvhnCropped, data_dir, cache_dir, image_size)


def _digits(path: str) -> tuple[np.ndarray, np.ndarray]:
  """Pictures uint8 [n, 32, 32, 3] and labels [n]."""
  try:
    content = io.loadmat(path, variable_names=('X', 'y'))
    images, labels = np.moveaxis(content['X'], -1, 0), content['y'].reshape(-1)
    if not np.isin(labels, np.arange(1, 11)).all():
      raise ValueError('labels lie outside 1 to 10')
  except (KeyError, TypeError, ValueError, OSError, NotImplementedError, io.matlab.MatReadError,
          zlib.error) as error:
    raise ValueError(f'{path} holds no SVHN digits ({error!r}); fetch it again from {_URL}'
                     ) from error
  return np.ascontiguousarray(images), labels % 10
