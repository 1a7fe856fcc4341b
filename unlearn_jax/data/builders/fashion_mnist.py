"""Fashion-MNIST from its four original files, as a TFDS data set.

A file is gzip around IDX: two zero bytes, 8 (unsigned bytes), the number of axes, their lengths as
big-endian 32-bit integers, and the values. Debian's package `dataset-fashion-mnist` holds the same
files, compressed without their names, in /usr/share/datasets/fashion-mnist.
"""

import gzip
import zlib

from etils import epath
import numpy as np

from unlearn_jax.data import sources
from unlearn_jax.data.builders import published

_URL = 'http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/'
_SHA256 = {
    'train-images-idx3-ubyte.gz':
        '3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84',
    'train-labels-idx1-ubyte.gz':
        'a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845',
    't10k-images-idx3-ubyte.gz':
        '346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073',
    't10k-labels-idx1-ubyte.gz':
        '67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5',
}


class PublishedFashionMnist(published.PublishedBuilder):
  """Fashion-MNIST: 10 articles of clothing, 60,000 training and 10,000 test pictures of 28x28."""

  # TFDS 4.9.10 finds this by way of `importlib_resources`, which it forgets to depend on.
  code_path = epath.Path(__file__)
  title = 'Fashion-MNIST'
  tfds_name = 'fashion_mnist'
  files = tuple(published.File(name, _URL + name, digest) for name, digest in _SHA256.items())
  shape = (28, 28, 1)
  classes = 10
  sizes = {'train': 60_000, 'test': 10_000}
  homepage = 'https://github.com/zalandoresearch/fashion-mnist'
  attribution = ('Fashion-MNIST, H. Xiao, K. Rasul and R. Vollgraf (2017), arXiv:1708.07747; '
                 'MIT licence, Zalando SE.')

  @classmethod
  def read(cls, paths):
    return {split: (_idx(paths[f'{prefix}-images-idx3-ubyte.gz'], 3)[..., None],
                    _idx(paths[f'{prefix}-labels-idx1-ubyte.gz'], 1))
            for split, prefix in (('train', 'train'), ('test', 't10k'))}


def source(data_dir: str, cache_dir: str, image_size: int | None) -> sources.Source:
  """Fashion-MNIST; arguments and errors: `published.source`."""
  return published.source(PublishedFashionMnist, data_dir, cache_dir, image_size)


def _idx(path: str, axes: int) -> np.ndarray:
  """The unsigned bytes of an IDX file with so many axes."""
  try:
    with gzip.open(path) as file:
      data = file.read()
    if data[:4] != bytes((0, 0, 8, axes)):
      raise ValueError(f'it starts with {data[:4].hex()}, expected {bytes((0, 0, 8, axes)).hex()}')
    shape = np.frombuffer(data, '>i4', axes, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)
  except (EOFError, OSError, ValueError, zlib.error) as error:
    raise ValueError(f'{path} is no IDX file of {axes} axes ({error!r}); fetch it again from {_URL}'
                     ) from error
