"""Tests of the pairs with common factors."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from unlearn_jax.data import sources
from unlearn_jax.data.builders import factor_pairs


def factors(made: sources.Source) -> np.ndarray:
  """Active directions of every client, from the pairs alone: singular values [K, 68]."""
  image, client = (made.fields[name] for name in ('image', 'client'))
  return np.stack([np.linalg.svd(image[client == k], compute_uv=False)
                   for k in range(factor_pairs.CLIENTS)]) / 256**0.5


def recall(made: sources.Source, client: int, part: str) -> float:
  """R@1 of the backbone, the mean of both directions, within the pairs of a client, in percent."""
  fields = made.fields
  rows = (fields['client'] == client) & (fields['part'] == part)
  image, text = (fields[name][rows] @ made.backbone[tower]['kernel']
                 for name, tower in (('image', 'visual'), ('text', 'text')))
  scores = (image / np.linalg.norm(image, axis=1, keepdims=True)) @ (
      text / np.linalg.norm(text, axis=1, keepdims=True)).T
  own = np.arange(len(scores))
  return 50 * ((scores.argmax(0) == own).mean() + (scores.argmax(1) == own).mean())


class FactorPairsTest(parameterized.TestCase):

  @parameterized.parameters(('factor_pairs', 0.3), ('factor_pairs_apart', 0.0),
                            ('factor_pairs_half', 0.5))
  def test_what_the_docstring_promises(self, name, share):
    source = sources.get(name, seed=2)
    self.assertEqual(source.name, name)
    fields = source.fields
    for name in ('image', 'text'):
      self.assertEqual((fields[name].shape, fields[name].dtype), ((1536, 68), np.float32))
    np.testing.assert_array_equal(fields['label'], fields['client'])
    for client in range(6):
      parts, counts = np.unique(fields['part'][fields['client'] == client], return_counts=True)
      self.assertEqual(dict(zip(parts.tolist(), counts.tolist())),
                       dict.fromkeys(factor_pairs.PARTS, 64))
    expected = factor_pairs.make(share=share, seed=2)
    for name, field in expected.fields.items():
      np.testing.assert_array_equal(fields[name], field)
    np.testing.assert_array_equal(source.backbone['text']['kernel'],
                                  expected.backbone['text']['kernel'])

  def test_the_seed_alone_decides(self):
    one, two, other = (factor_pairs.make(seed=seed) for seed in (1, 1, 2))
    self.assertEqual(one.content_hash(), two.content_hash())
    self.assertNotEqual(one.content_hash(), other.content_hash())
    np.testing.assert_array_equal(one.backbone['text']['kernel'], two.backbone['text']['kernel'])

  @parameterized.parameters(0.0, 0.3, 1.0)
  def test_ten_factors_of_deviation_1_and_eight_of_035(self, share):
    values = factors(factor_pairs.make(share=share, seed=3))
    self.assertTrue((values[:, :10] > 0.6).all())
    self.assertTrue((values[:, 10:18] < 0.6).all() and (values[:, 10:18] > 0.22).all())
    self.assertLess(values[:, 18:].max(), 0.27)  # noise of 0.15 on all 68 directions

  @parameterized.parameters((0.0, 0), (0.3, 3), (1.0, 10))
  def test_share_is_what_the_others_know_of_client_0(self, share, known):
    fields = factor_pairs.make(share=share, seed=4).fields
    bases = [np.linalg.svd(fields['image'][fields['client'] == k], full_matrices=False)[2][:10]
             for k in range(6)]
    for other in range(1, 6):
      cosines = np.linalg.svd(bases[0] @ bases[other].T, compute_uv=False)
      self.assertEqual((cosines > 0.8).sum(), known)
      self.assertTrue((cosines[known:] < 0.5).all())
    cosines = np.linalg.svd(bases[1] @ bases[2].T, compute_uv=False)
    self.assertEqual((cosines > 0.8).sum(), known)  # the same ones

  def test_picture_and_text_show_the_same_factors(self):
    # In bases of their own, which inner products do not see.
    fields = factor_pairs.make(seed=5).fields
    gram = [np.asarray(fields[name][:64], np.float64) @ fields[name][:64].T
            for name in ('image', 'text')]
    apart = ~np.eye(64, dtype=bool)
    self.assertGreater(np.corrcoef(gram[0][apart], gram[1][apart])[0, 1], 0.9)
    self.assertGreater(np.abs(fields['image'][:64] - fields['text'][:64]).mean(), 0.3)

  def test_backbone(self):
    made = [factor_pairs.make(seed=seed) for seed in range(8)]
    self.assertEqual(made[0].backbone['visual']['kernel'].shape, (68, 48))
    self.assertAlmostEqual(float(np.exp(made[0].backbone['logit_scale'])), 10, places=5)
    # Knows something of every pair (chance is 1.6 %) and far from all, of whichever client.
    forget = np.mean([recall(one, 0, 'train') for one in made])
    retain = np.mean([recall(one, k, 'test') for one in made for k in range(1, 6)])
    for value in (forget, retain):
      self.assertBetween(value, 45, 70)

  @parameterized.parameters(-0.1, 1.5)
  def test_share_out_of_range(self, share):
    with self.assertRaisesRegex(ValueError, r'share must lie in \[0, 1\]'):
      factor_pairs.make(share=share)


if __name__ == '__main__':
  absltest.main()
