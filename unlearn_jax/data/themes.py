"""Pseudo-classes of pictures that have captions and no labels."""

from collections.abc import Sequence

import numpy as np


def themes(captions: Sequence[str], identity, *, count: int, seed: int) -> np.ndarray:
  """A theme per record, int32 [N]: k-means over tf-idf vectors of a picture's captions together.

  Where a federation is dealt by classes and the data have none (Flickr30k, COCO captions); the
  choice of tf-idf and k-means is ours. Records of one identity (picture) share a theme. Themes are
  numbered by size, the largest is 0; equal arguments give equal themes on one version of
  scikit-learn.

  Args:
    captions: [N].
    identity: [N].
    count: of themes.
    seed: of k-means.

  Raises:
    ValueError: fewer pictures than themes, or fewer than two themes.
  """
  from sklearn import cluster
  from sklearn.feature_extraction import text
  _, number = np.unique(np.asarray(identity), return_inverse=True)
  if not 2 <= count <= number.max() + 1:
    raise ValueError(f'themes of {number.max() + 1} pictures: their number lies in 2 to that, got '
                     f'{count}')
  joined = [[] for _ in range(number.max() + 1)]
  for index, caption in zip(number.tolist(), captions):
    joined[index].append(caption)
  vectors = text.TfidfVectorizer(stop_words='english', sublinear_tf=True, min_df=1,
                                 max_features=4096).fit_transform([' '.join(each) for each in joined])
  found = cluster.MiniBatchKMeans(count, random_state=seed, n_init=3).fit_predict(vectors)
  order = np.argsort(-np.bincount(found, minlength=count), kind='stable')
  rank = np.empty(count, np.int32)
  rank[order] = np.arange(count)
  return rank[found][number]
