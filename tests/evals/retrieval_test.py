"""Recall at K: known answers, ties, a naive count, and what is refused."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from unlearn_jax.evals import retrieval

SIX = [f'{way}/R@{k}' for way in ('image_to_text', 'text_to_image') for k in (1, 5, 10)]


def unit(rng, n, d):
  x = rng.normal(size=(n, d))
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def naive(image, text, picture, k):
  """Both recalls by sorting, for similarities without ties."""
  similar = image @ text.T
  found = np.argsort(-similar, axis=1)[:, :k]
  to_text = np.mean([i in picture[row] for i, row in enumerate(found)])
  found = np.argsort(-similar.T, axis=1)[:, :k]
  return to_text, np.mean([p in row for p, row in zip(picture, found)])


class RecallTest(parameterized.TestCase):

  def test_by_hand(self):
    # Similarities [[.8, .6, 0], [.6, .8, 1]]: pictures x, y rotated; captions 0 and 2 of picture 0.
    image = np.array([[1, 0], [0, 1]])
    text = np.array([[0.8, 0.6], [0.6, 0.8], [0, 1]])
    found = retrieval.recall(image, text, np.array([0, 1, 0]), at=(1, 2))
    self.assertEqual(found, {
        'image_to_text/R@1': 0.5,  # picture 0 finds caption 0; picture 1 finds caption 2 first
        'image_to_text/R@2': 1.0, 'text_to_image/R@1': 2 / 3, 'text_to_image/R@2': 1.0,
        'mean_recall': (0.5 + 1 + 2 / 3 + 1) / 4})

  @parameterized.parameters(1, 3, 10**9)
  def test_is_the_naive_count_whatever_the_blocks(self, block):
    rng = np.random.default_rng(0)
    picture = np.concatenate([np.arange(30), rng.integers(0, 30, 70)])
    image = unit(rng, 30, 6)
    text = image[picture] + 0.7 * unit(rng, 100, 6)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    order = rng.permutation(100)
    picture, text = picture[order], text[order]
    with mock.patch.object(retrieval, '_BLOCK', block):
      found = retrieval.recall(image, text, picture)
    self.assertCountEqual(found, [*SIX, 'mean_recall'])
    for k in (1, 5, 10):
      to_text, to_image = naive(image, text, picture, k)
      self.assertAlmostEqual(found[f'image_to_text/R@{k}'], to_text)
      self.assertAlmostEqual(found[f'text_to_image/R@{k}'], to_image)
    self.assertBetween(found['text_to_image/R@1'], 0.1, 0.9)  # or the comparison shows nothing
    self.assertAlmostEqual(found['mean_recall'], np.mean([found[name] for name in SIX]))

  def test_length_and_order_change_nothing(self):
    rng = np.random.default_rng(1)
    image, text, picture = unit(rng, 20, 4), unit(rng, 40, 4), np.arange(40) % 20
    want = retrieval.recall(image, text, picture)
    moved = rng.permutation(40)
    self.assertEqual(retrieval.recall(3 * image, text[moved] / 7, picture[moved]), want)

  @parameterized.parameters(0.0, 1e-7)
  def test_a_collapsed_model_knows_nothing(self, spread):
    rng = np.random.default_rng(2)
    one = unit(rng, 1, 512)
    image = one + spread * rng.normal(size=(50, 512)).astype(np.float32)
    text = one + spread * rng.normal(size=(250, 512)).astype(np.float32)
    found = retrieval.recall(image, text, np.arange(250) % 50)
    self.assertEqual(set(found.values()), {0.0})

  def test_random_embeddings_score_chance(self):
    rng = np.random.default_rng(3)
    found = retrieval.recall(unit(rng, 400, 32), unit(rng, 400, 32), np.arange(400))
    for k in (1, 5, 10):
      for way in ('image_to_text', 'text_to_image'):
        self.assertAlmostEqual(found[f'{way}/R@{k}'], k / 400, delta=4 * (k / 400 / 400)**0.5)

  def test_a_perfect_model(self):
    rng = np.random.default_rng(4)
    image = unit(rng, 50, 16)
    picture = np.arange(100) % 50
    self.assertEqual(set(retrieval.recall(image, image[picture], picture).values()), {1.0})

  def test_what_is_refused(self):
    rng = np.random.default_rng(5)
    image, text, picture = unit(rng, 3, 4), unit(rng, 6, 4), np.arange(6) % 3
    broken = image.copy()
    broken[1, 2] = np.nan
    for arguments, message in (
        ((broken, text, picture), 'image: not finite'),
        ((image, np.where(np.arange(6)[:, None] == 4, 0, text), picture), 'text: rows shorter'),
        ((image, text[:, :3], picture), '4 and 3 dimensions'),
        ((image, text, picture[:5]), r'one integer per caption, \[6\]'),
        ((image, text, picture.astype(float)), 'one integer per caption'),
        ((image, text, picture + 1), 'caption 2 names picture 3, there are 3'),
        ((image, text, np.array([0, 0, 0, 2, 2, 2])), '1 pictures have no caption, the first is 1'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        retrieval.recall(*arguments)
    for at in ((), (0, 1)):
      with self.assertRaisesRegex(ValueError, 'one K or more'):
        retrieval.recall(image, text, picture, at=at)


if __name__ == '__main__':
  absltest.main()
