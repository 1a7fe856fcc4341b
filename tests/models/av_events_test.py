"""Tests of the audio-visual event network: counts, attention, context of a clip, bad input."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import models
from unlearn_jax.models import av_events

SMALL = {'num_outputs': 5, 'hidden': 8, 'width': 4, 'features': 6}
SHAPES = {'image': (3, 4, 2, 3, 7), 'audio': (3, 4, 5)}


def fields_of(shapes, segments=(0, 1, 3), seed=0):
  rng = np.random.default_rng(seed)
  fields = {name: jnp.asarray(rng.normal(size=shape), jnp.float32)
            for name, shape in shapes.items()}
  return {**fields, 'segment': jnp.array(segments, jnp.int32)}


@functools.cache
def build():
  model = models.get('av_events', **SMALL)
  fields = fields_of(SHAPES)
  return model, model.init(jax.random.key(1), fields), fields, jax.jit(
      lambda v, x: model.apply(v, x)[0])


def attention_by_loops(params, image, audio):
  """Weights [P] of one segment, written from the formula of `GuidedAttention`."""
  def u(x, name):
    layer = params[f'affine_{name}']
    return np.maximum(np.asarray(layer['kernel']).T @ x + np.asarray(layer['bias']), 0)

  w_v, w_g, w_h = (np.asarray(params[f'affine_{name}']['kernel']) for name in 'vgh')
  guide = w_g.T @ u(audio, 'audio')  # one number per position
  scores = np.array([
      sum(w_h[k, 0] * np.tanh(w_v[:, k] @ u(v, 'video') + guide[p]) for k in range(len(w_h)))
      for p, v in enumerate(image)])
  return np.exp(scores) / np.exp(scores).sum()


class LayoutTest(absltest.TestCase):

  def test_published_sizes(self):
    model = models.get('av_events')
    fields = {'image': jax.ShapeDtypeStruct((2, 10, 7, 7, 512), jnp.float32),
              'audio': jax.ShapeDtypeStruct((2, 10, 128), jnp.float32),
              'segment': jax.ShapeDtypeStruct((2,), jnp.int32)}
    variables = jax.eval_shape(model.init, jax.random.key(0), fields)
    self.assertEqual(list(variables), ['params'])
    # PyTorch's has 1,335,246: a second bias for each of 4 gates x 128 states x 4 directions.
    self.assertEqual(sum(leaf.size for leaf in jax.tree.leaves(variables)), 1_335_246 - 2048)
    outputs = jax.eval_shape(model.apply, variables, fields)[0]
    self.assertEqual({name: value.shape for name, value in outputs.items()}, {
        'logits': (2, 29), 'features': (2, 64), 'image_embedding': (2, 256),
        'audio_embedding': (2, 256)})
    for leaf in jax.tree.leaves(outputs):
      self.assertEqual(leaf.dtype, jnp.float32)

  def test_initial_values(self):
    params = build()[1]['params']
    for tree in (params['audio'], params['image']['lstm']):
      for leaf in jax.tree.leaves(tree):
        self.assertLessEqual(float(jnp.abs(leaf).max()), 0.5)  # 1/sqrt(4 states)
        self.assertGreater(float(jnp.abs(leaf).max()), 0.1)


class AttentionTest(absltest.TestCase):

  def test_weights_and_attended_picture(self):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 3, 6, 7)).astype(np.float32)
    audio = rng.normal(size=(2, 3, 5)).astype(np.float32)
    attention = av_events.GuidedAttention(8)
    params = jax.jit(attention.init)(jax.random.key(0), image, audio)['params']
    params = jax.tree.map(lambda leaf: 2 * leaf, params)  # away from equal weights
    attended, weights = jax.jit(attention.apply)({'params': params}, image, audio)
    self.assertEqual(weights.shape, (2, 3, 6))
    np.testing.assert_allclose(weights.sum(-1), np.ones((2, 3)), atol=1e-6)
    for b in range(2):
      for t in range(3):
        expected = attention_by_loops(params, image[b, t], audio[b, t])
        np.testing.assert_allclose(weights[b, t], expected, atol=1e-6)
        np.testing.assert_allclose(attended[b, t], expected @ image[b, t], atol=1e-5)
    self.assertGreater(float(jnp.ptp(weights, axis=-1).min()), 1e-2)


class BehaviourTest(parameterized.TestCase):

  def test_logits_are_the_head_of_the_features(self):
    _, variables, fields, run = build()
    outputs, head = run(variables, fields), variables['params']['fc2']
    np.testing.assert_allclose(
        outputs['logits'], outputs['features'] @ head['kernel'] + head['bias'], atol=1e-6)
    self.assertGreaterEqual(float(outputs['features'].min()), 0)  # after the relu
    self.assertLess(float(outputs['image_embedding'].min()), 0)  # before it

  @parameterized.product(field=('image', 'audio'), far=(0, 3))
  def test_context_reaches_from_either_end_of_the_clip_to_the_other(self, field, far):
    _, variables, fields, run = build()
    fields = {**fields, 'segment': jnp.full(3, 3 - far)}
    before = run(variables, fields)
    after = run(variables, {**fields, field: fields[field].at[0, far].add(1.0)})
    self.assertGreater(float(jnp.abs(after['logits'] - before['logits'])[0].max()), 1e-6)
    np.testing.assert_array_equal(after['logits'][1:], before['logits'][1:])

  def test_records_of_one_clip_differ_by_their_segment(self):
    _, variables, fields, run = build()
    clip = {name: jnp.broadcast_to(fields[name][1], fields[name].shape)
            for name in ('image', 'audio')}
    outputs = run(variables, {**clip, 'segment': fields['segment']})
    np.testing.assert_allclose(outputs['logits'][1], run(variables, fields)['logits'][1], atol=1e-6)
    for name in ('logits', 'image_embedding', 'audio_embedding'):
      self.assertTrue((outputs[name][0] != outputs[name][2]).any())

  def test_the_picture_is_seen_through_the_sound_and_not_conversely(self):
    _, variables, fields, run = build()
    before = run(variables, fields)
    silent = run(variables, {**fields, 'audio': jnp.zeros_like(fields['audio'])})
    self.assertTrue((silent['image_embedding'] != before['image_embedding']).any())
    blind = run(variables, {**fields, 'image': jnp.zeros_like(fields['image'])})
    np.testing.assert_array_equal(blind['audio_embedding'], before['audio_embedding'])

  def test_a_segment_beyond_the_clip_is_not_a_number(self):
    _, variables, fields, run = build()
    logits = run(variables, {**fields, 'segment': jnp.array([0, 4, 1])})['logits']
    np.testing.assert_array_equal(jnp.isnan(logits).all(axis=1), [False, True, False])
    self.assertFalse(bool(jnp.isnan(logits[jnp.array([0, 2])]).any()))

  def test_training_has_neither_statistics_nor_dropout(self):
    model, variables, fields, run = build()
    outputs, updated = jax.jit(functools.partial(model.apply, train=True))(variables, fields)
    np.testing.assert_allclose(outputs['logits'], run(variables, fields)['logits'], atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, updated, variables)

  def test_vmap_over_members_and_gradients(self):
    model, first, fields, run = build()
    second = model.init(jax.random.key(2), fields)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, second)
    logits = jax.jit(jax.vmap(run, (0, None)))(stacked, fields)['logits']
    for row, variables in zip(logits, (first, second)):
      np.testing.assert_allclose(row, run(variables, fields)['logits'], atol=1e-5)
    grads = jax.jit(jax.grad(lambda v: jnp.sum(jnp.sin(1 + run(v, fields)['logits']))))(first)
    for leaf in jax.tree.leaves(grads):
      self.assertTrue(bool(jnp.isfinite(leaf).all()) and bool(leaf.any()))


class BadInputTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'image': None}, ValueError, "wants input 'image'"),
      ({'audio': None}, ValueError, "wants input 'audio'"),
      ({'segment': None}, ValueError, "wants input 'segment'"),
      ({'audio': (2, 4, 5)}, ValueError, 'differ in batch length: image 3, audio 2, segment 3'),
      ({'audio': (3, 6, 5)}, ValueError, '4 segments of image and 6 of audio'),
      ({'image': (3, 4, 6, 7)}, AssertionError, 'rank'),
  )
  def test_inputs(self, changes, error, message):
    fields = {**fields_of(SHAPES)}
    for name, shape in changes.items():
      fields = {key: value for key, value in fields.items() if key != name}
      if shape:
        fields[name] = jnp.zeros(shape)
    with self.assertRaisesRegex(error, message):
      models.get('av_events', **SMALL).init(jax.random.key(0), fields)

  def test_segments_are_integers(self):
    fields = {**fields_of(SHAPES), 'segment': jnp.zeros(3)}
    with self.assertRaisesRegex(ValueError, 'segment holds integers, got float32'):
      models.get('av_events', **SMALL).init(jax.random.key(0), fields)

  @parameterized.parameters(*SMALL)
  def test_arguments(self, name):
    with self.assertRaisesRegex(ValueError, f'{name} must be at least 1'):
      models.get('av_events', **{name: 0})


if __name__ == '__main__':
  absltest.main()
