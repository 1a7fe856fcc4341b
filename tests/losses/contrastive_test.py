"""Tests of the contrastive losses; the golden value is that of NCU's released CLIPLoss."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax.losses import contrastive


def inputs(dtype=np.float32):
  """(image, text, negative, logit scale), the generator of the golden inputs."""
  i, k = np.arange(6)[:, None], np.arange(8)[None]
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  wave = np.sin(1 + 0.7 * i + 1.3 * k + 0.11 * i * k)
  text = wave + 0.8 * np.cos(0.5 + 1.9 * i - 0.4 * k)
  negative = -0.5 * text + 0.9 * np.cos(2.0 + 0.3 * i * k + 0.6 * k)
  arrays = (unit(wave), unit(text), unit(negative), np.log(1 / 0.07))
  return tuple(jnp.asarray(x, dtype) for x in arrays)


def random_inputs(count, seed=0, dim=16):
  rng = np.random.default_rng(seed)
  image, text, negative = rng.normal(size=(3, count, dim))
  text += 0.5 * image
  unit = lambda x: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
  return unit(image), unit(text), unit(negative), np.float32(np.log(10))


class ContrastiveTest(parameterized.TestCase):

  def test_info_nce(self):
    image, text, _, scale = inputs()
    np.testing.assert_allclose(contrastive.info_nce(image, text, scale), 0.0163363521, rtol=1e-5)
    np.testing.assert_allclose(contrastive.info_nce(text, image, scale), 0.0163363521, rtol=1e-5)
    same = jnp.ones((5, 1))
    for smoothing in (0.0, 0.3):  # nothing to tell pairs by
      np.testing.assert_allclose(
          contrastive.info_nce(same, same, scale, label_smoothing=smoothing), np.log(5), rtol=1e-6)

  def test_label_smoothing(self):
    image, text, _, scale = random_inputs(6)
    logits = np.exp(scale) * image @ text.T
    target = 0.8 * np.eye(6) + 0.2 / 6
    expected = -0.5 * np.mean(np.sum(target * np.asarray(jax.nn.log_softmax(logits, 1)), 1)) \
        - 0.5 * np.mean(np.sum(target * np.asarray(jax.nn.log_softmax(logits.T, 1)), 1))
    np.testing.assert_allclose(contrastive.info_nce(image, text, scale, label_smoothing=0.2),
                               expected, rtol=1e-5)

  @parameterized.parameters(False, True)
  def test_pairwise_sigmoid_masked_is_sliced(self, opposite):
    image, text, _, scale = random_inputs(7)
    where = np.array([1, 0, 1, 1, 0, 1, 1], np.float32)
    rows = where > 0
    rubbish = np.where(rows[:, None], image, np.nan)
    function = functools.partial(contrastive.pairwise_sigmoid, opposite=opposite)
    expected = function(image[rows], text[rows], scale)
    np.testing.assert_allclose(function(rubbish, text, scale, where=where), expected, rtol=1e-6)
    gradient = jax.grad(lambda x: function(x, text, scale, where=where))(rubbish)
    self.assertTrue(np.isfinite(gradient).all())
    np.testing.assert_array_equal(gradient[~rows], 0.0)
    sign = np.where(np.eye(5) > 0, 1, -1) * (-1 if opposite else 1)
    logits = np.exp(scale) * image[rows] @ text[rows].T
    np.testing.assert_allclose(expected, np.log1p(np.exp(-sign * logits)).sum() / 5, rtol=1e-5)


def log_softmax(x):
  return x - np.log(np.sum(np.exp(x), axis=1, keepdims=True))


class NoisyPairsTest(parameterized.TestCase):

  def test_where_counts_pairs_and_keeps_negatives(self):
    image, text, _, scale = random_inputs(6)
    where = np.array([1, 0, 0, 1, 1, 0])
    logits = np.exp(scale) * image @ text.T
    terms = -0.5 * (np.diag(log_softmax(logits)) + np.diag(log_softmax(logits.T)))
    np.testing.assert_allclose(contrastive.info_nce(image, text, scale, where=where),
                               terms[where > 0].mean(), rtol=1e-5)

  def test_gradient_ascent(self):
    image, text, _, scale = random_inputs(6)
    forget = np.array([0, 1, 0, 0, 1, 0], bool)
    part = lambda where, smoothing: contrastive.info_nce(
        image, text, scale, where=where, label_smoothing=smoothing)
    expected = 2 * part(~forget, 0.2) - 2 * 0.5 * part(forget, 0.0)
    np.testing.assert_allclose(
        contrastive.gradient_ascent(image, text, scale, forget, label_smoothing=0.2, weight=0.5),
        expected, rtol=1e-5)
    # A step against the gradient lowers the similarity of a pair that is forgotten.
    gradient = jax.grad(contrastive.gradient_ascent)(jnp.asarray(image), text, scale, forget)
    change = -np.sum(np.asarray(gradient) * text, axis=1)
    self.assertTrue(np.all(change[forget] < 0))

  def test_relabelling_passes_captions_around(self):
    image, text, _, scale = random_inputs(7)
    forget = np.array([0, 1, 0, 0, 1, 1, 0], bool)
    order = np.array([0, 4, 2, 3, 5, 1, 6])
    np.testing.assert_allclose(contrastive.relabelling(image, text, scale, forget),
                               contrastive.info_nce(image, text[order], scale), rtol=1e-6)
    alone = np.arange(7) == 3
    np.testing.assert_allclose(contrastive.relabelling(image, text, scale, alone),
                               contrastive.info_nce(image, text, scale), rtol=1e-6)

  def test_soft_clip(self):
    image, text, _, scale = random_inputs(5)
    s, own = np.exp(scale), np.eye(5, dtype=bool)
    def side(logits, intra):
      target = 0.7 * own + 0.3 * np.exp(log_softmax(s * intra))
      soft = np.mean(np.sum(target * (np.log(target) - log_softmax(logits)), axis=1))
      relation = 0.0
      for i in range(5):
        rest = [j for j in range(5) if j != i]
        p = np.exp(log_softmax(s * intra[None, i, rest]))
        relation += np.sum(p * (np.log(p) - log_softmax(logits[None, i, rest]))) / 5
      return np.array([soft, relation])
    logits = s * image @ text.T
    soft, relation = 0.5 * (side(logits, image @ image.T) + side(logits.T, text @ text.T))
    expected = float(contrastive.info_nce(image, text, scale)) + 1.5 * soft + 0.25 * relation
    found = contrastive.soft_clip(image, text, scale, soft_weight=1.5, relation_weight=0.25)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    gradient = jax.grad(contrastive.soft_clip)(jnp.asarray(image), text, scale)
    self.assertTrue(np.isfinite(gradient).all())

  def test_soft_clip_of_hard_labels_is_clip(self):
    image, text, _, scale = random_inputs(5)
    found = contrastive.soft_clip(image, text, scale, softness=0.0, relation_weight=0.0)
    np.testing.assert_allclose(found, 2 * contrastive.info_nce(image, text, scale), rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
