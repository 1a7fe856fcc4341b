"""Accuracies of one modality: closed forms of the readings, the stopping rule, the figures."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from unlearn_jax.evals import multimodal

RNG = np.random.default_rng(0)
FIELDS = {'image': RNG.normal(size=(30, 4)).astype(np.float32),
          'audio': RNG.normal(size=(30, 3)).astype(np.float32),
          'label': RNG.integers(0, 5, 30)}
V, A = RNG.normal(size=(4, 5)).astype(np.float32), RNG.normal(size=(3, 5)).astype(np.float32)
BIAS = RNG.normal(size=5).astype(np.float32)


def added(variables, inputs, *, train=False, rngs=None, method=None):
  """f(a, v) = v V + a A + b: each modality has its own share."""
  del train, rngs, method
  logits = inputs['image'] @ V + inputs['audio'] @ A + BIAS
  return {'logits': logits, 'features': logits}, variables


def multiplied(variables, inputs, *, train=False, rngs=None, method=None):
  del train, rngs, method
  logits = (inputs['image'] @ V) * (1.0 + inputs['audio'] @ A) + BIAS
  return {'logits': logits}, variables


def logits(apply, reading, **kwargs):
  evaluated = multimodal.unimodal(apply, 'audio', reading=reading, **kwargs)
  outputs, _ = evaluated({}, {name: jnp.asarray(FIELDS[name]) for name in ('image', 'audio')})
  return outputs


class ReadingsTest(parameterized.TestCase):

  def test_closed_forms_of_a_sum(self):
    visual, other = FIELDS['image'] @ V, FIELDS['audio'] @ A
    shapley = logits(added, 'shapley')
    np.testing.assert_allclose(shapley['visual_logits'], visual + 0.5 * BIAS, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(shapley['other_logits'], other + 0.5 * BIAS, rtol=1e-4, atol=1e-5)
    zero = logits(added, 'zero')
    np.testing.assert_allclose(zero['visual_logits'], visual + BIAS, rtol=1e-4, atol=1e-5)
    means = multimodal.means(FIELDS, ('image', 'audio'), chunk=7)
    mean = logits(added, 'mean', means=means)
    want = visual + FIELDS['audio'].mean(axis=0) @ A + BIAS
    np.testing.assert_allclose(mean['visual_logits'], want, rtol=1e-4, atol=1e-5)

  def test_shapley_shares_add_up_and_differ_from_zero(self):
    shapley, zero = logits(multiplied, 'shapley'), logits(multiplied, 'zero')
    np.testing.assert_allclose(shapley['visual_logits'] + shapley['other_logits'],
                               shapley['logits'], rtol=1e-4, atol=1e-5)
    # f(a, 0) = b for every a: the audio alone says nothing under `zero`, and has a share else.
    np.testing.assert_allclose(zero['other_logits'], np.broadcast_to(BIAS, (30, 5)), rtol=1e-5)
    self.assertGreater(np.abs(shapley['other_logits'] - zero['other_logits']).max(), 0.1)

  def test_means_over_chunks(self):
    found = multimodal.means(FIELDS, ('image',), chunk=8)['image']
    np.testing.assert_allclose(found, FIELDS['image'].mean(axis=0, dtype=np.float64), rtol=1e-6)

  @parameterized.parameters(
      ({'reading': 'zeros'}, "reading is one of shapley, zero, mean, got 'zeros'"),
      ({'reading': 'mean'}, 'no means'), ({'reading': 'zero', 'means': {}}, 'means belong to'))
  def test_bad_input(self, arguments, message):
    with self.assertRaisesRegex(ValueError, message):
      multimodal.unimodal(added, 'audio', **arguments)


class StoppingTest(absltest.TestCase):

  def test_monitor_counts_every_record_once(self):
    evaluated = multimodal.unimodal(added, 'audio')
    forget = {name: value[:7] for name, value in FIELDS.items()}
    found = multimodal.visual_monitor(evaluated, forget, FIELDS).run(None, {})
    right = np.argmax(FIELDS['image'] @ V + 0.5 * BIAS, axis=1) == FIELDS['label']
    np.testing.assert_allclose(found['visual_accuracy/forget'], right[:7].mean())
    np.testing.assert_allclose(found['visual_accuracy/held_out'], right.mean())

  def test_rule(self):
    rule = lambda forget, held: multimodal.stopped(
        {'visual_accuracy/forget': forget, 'visual_accuracy/held_out': held})
    self.assertTrue(rule(0.4, 0.5))
    self.assertFalse(rule(0.5, 0.5))
    self.assertFalse(rule(0.6, 0.5))


class FiguresTest(absltest.TestCase):

  def test_bars_and_classes(self):
    part = lambda mean: {'mean': mean, 'std': 0.1, 'values': [mean]}
    metrics = {f'{kind}/{split}': part(0.5) for split in ('test', 'retain', 'forget')
               for kind in ('accuracy', 'accuracy_visual', 'accuracy_other')}
    results = {'methods': {name: {'metrics': metrics, 'seconds': {'values': [1.0]}}
                           for name in ('original', 'retrain', 'ccu')}}
    svg = multimodal.bars(results)
    for word in ('unlearn set', 'visual', 'kept', 'Retrained', 'ccu'):
      self.assertIn(f'<!-- {word} -->', svg)
    svg = multimodal.nearest_classes({'Original': np.eye(3), 'ccu': np.zeros((3, 3))})
    self.assertIn('<!-- class of the nearest centre -->', svg)


if __name__ == '__main__':
  absltest.main()
