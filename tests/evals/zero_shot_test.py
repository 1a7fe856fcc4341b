"""Zero-shot classification: the ensemble of prompts, accuracies by hand, and the templates."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from unlearn_jax.evals import zero_shot

TABLE = {'a cat': [3.0, 0.0], 'the cat': [0.0, 1.0], 'a dog': [-1.0, 0.0], 'the dog': [-2.0, 0.0]}


def tokenize(texts):
  return np.array([list(TABLE).index(text) for text in texts])[:, None]


def encode(tokens):
  return np.array(list(TABLE.values()))[tokens[:, 0]]


class ClassEmbeddingsTest(parameterized.TestCase):

  def test_is_the_normalised_mean_of_normalised_prompts(self):
    found = zero_shot.class_embeddings(encode, ['cat', 'dog'], ['a {}', 'the {}'], tokenize)
    np.testing.assert_allclose(found, [[0.5**0.5, 0.5**0.5], [-1, 0]], atol=1e-6)

  def test_names_may_hold_braces_and_percent_signs(self):
    seen = []
    zero_shot.class_embeddings(lambda tokens: np.ones((len(tokens), 2)), ['{odd}', '50%'],
                               ['a {}!'], lambda texts: seen.extend(texts) or np.zeros((2, 3)))
    self.assertEqual(seen, ['a {odd}!', 'a 50%!'])

  def test_what_is_refused(self):
    for names, prompts, message in (
        ([], ['a {}'], '0 classes and 1 templates'), (['cat'], [], '1 classes and 0 templates'),
        (['cat', 'dog', 'cat'], ['a {}'], "several classes are called 'cat'"),
        (['cat'], ['a {}', 'a cat'], "not so 'a cat'"), (['cat'], ['{} {}'], "not so '{} {}'")):
      with self.assertRaisesRegex(ValueError, message):
        zero_shot.class_embeddings(encode, names, prompts, tokenize)
    for broken, message in ((lambda tokens: encode(tokens)[:1], '1 embeddings for 2 prompts'),
                            (lambda tokens: encode(tokens) * np.nan, 'prompt embeddings: not fin'),
                            (lambda tokens: np.array([[1.0, 0], [-1, 0]]), 'class embeddings: ro')):
      with self.assertRaisesRegex(ValueError, message):
        zero_shot.class_embeddings(broken, ['cat'], ['a {}', 'the {}'], tokenize)


class EvaluateTest(parameterized.TestCase):

  def test_by_hand(self):
    classes = np.eye(3)
    image = np.array([[3, 2, 1], [3, 2, 1], [1, 3, 2], [1, 2, 3.0]])
    found = zero_shot.evaluate(image, classes, np.array([0, 1, 1, 0]), top=(1, 2, 3))
    # ranks of the labels: 1, 2, 1, 3; class 0 has one of two right, class 1 one of two
    self.assertEqual(found, {'zero_shot/top1': 0.5, 'zero_shot/top2': 0.75,
                             'zero_shot/mean_per_class': 0.5})

  def test_classes_weigh_the_same_in_the_mean_per_class(self):
    image = np.array([[1, 0, 0]] * 3 + [[0, 1.0, 0]])
    found = zero_shot.evaluate(image, np.eye(3), np.array([0, 0, 0, 0]))
    self.assertEqual(found, {'zero_shot/top1': 0.75, 'zero_shot/mean_per_class': 0.75})
    found = zero_shot.evaluate(image, np.eye(3), np.array([0, 0, 0, 2]))
    self.assertEqual(found, {'zero_shot/top1': 0.75, 'zero_shot/mean_per_class': 0.5})

  def test_the_largest_cosine_wins(self):
    rng = np.random.default_rng(0)
    image, classes = rng.normal(size=(200, 8)), rng.normal(size=(12, 8))
    labels = rng.integers(0, 12, 200)
    cosine = (image @ classes.T) / np.linalg.norm(classes, axis=1)
    found = zero_shot.evaluate(5 * image, 2 * classes, labels)
    self.assertAlmostEqual(found['zero_shot/top1'], np.mean(cosine.argmax(axis=1) == labels))
    five = np.argsort(-cosine, axis=1)[:, :5]
    self.assertAlmostEqual(found['zero_shot/top5'], np.mean((five == labels[:, None]).any(axis=1)))

  def test_a_collapsed_model_is_right_on_nothing(self):
    one = np.random.default_rng(1).normal(size=(1, 256))
    found = zero_shot.evaluate(np.repeat(one, 40, axis=0), np.repeat(one, 8, axis=0),
                               np.arange(40) % 8)
    self.assertEqual(set(found.values()), {0.0})

  def test_what_is_refused(self):
    for image, classes, labels, message in (
        (np.ones((2, 3)), np.eye(2), [0, 1], '3 and 2 dimensions'),
        (np.ones((2, 2)), np.eye(2), [0], 'one label per row'),
        (np.ones((0, 2)), np.eye(2), [], 'one label per row'),
        (np.ones((2, 2)), np.eye(2), [0, 2], r'outside \[0, 2\)'),
        (np.full((2, 2), np.nan), np.eye(2), [0, 1], 'image: not finite')):
      with self.assertRaisesRegex(ValueError, message):
        zero_shot.evaluate(image, classes, np.array(labels, int))
    with self.assertRaisesRegex(ValueError, 'scores: not finite'):
      zero_shot.accuracies(np.array([[np.inf, 0]]), np.array([0]), prefix='x')


class TemplatesTest(absltest.TestCase):

  def test_the_lists(self):
    found = zero_shot.templates()
    sizes = {'imagenet': 80, 'caltech101': 34, 'cifar10': 18, 'cifar100': 18, 'dtd': 8,
             'aircraft': 2, 'sst2': 1, 'flowers102': 1, 'food101': 1, 'gtsrb': 3, 'oxford_pets': 1,
             'resisc45': 18, 'sun397': 2, 'eurosat': 3, 'stanford_cars': 8, 'stl10': 2,
             'pictograms': 4}
    self.assertEqual({name: len(texts) for name, texts in found.items()}, sizes)
    for texts in found.values():
      self.assertLen(set(texts), len(texts))
      self.assertTrue(all(text.count('{}') == 1 for text in texts))
    self.assertIn('itap of a {}.', found['imagenet'])
    self.assertEqual(found['sst2'], ('a {} review of a movie.',))


if __name__ == '__main__':
  absltest.main()
