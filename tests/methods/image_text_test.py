"""What the methods on image-text pairs share: optimizer, bounds of the scale, early checks."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.methods import worlds
from unlearn_jax import methods
from unlearn_jax.losses import contrastive as losses
from unlearn_jax.methods import base
from unlearn_jax.methods import image_text
from unlearn_jax.testing import pairs_toy

PAIRS = methods.names('image_text')


class ScaleTest(parameterized.TestCase):

  @parameterized.parameters((4.5, 9.0, math.log(100)), (0.5, -9.0, 0.0), (2.0, 0.5, 2.5),
                            (5.0, 0.0, 5.0))  # a frozen one stays where it is
  def test_stays_in_bounds(self, start, update, expected):
    params = {'model': {'logit_scale': jnp.asarray(start), 'kernel': jnp.asarray(start)}}
    tx = image_text.bounded_scale(optax.identity())
    updates, _ = tx.update({'model': {'logit_scale': jnp.asarray(update),
                                      'kernel': jnp.asarray(update)}}, tx.init(params), params)
    found = optax.apply_updates(params, updates)['model']
    np.testing.assert_allclose(found['logit_scale'], expected, atol=1e-6)
    np.testing.assert_allclose(found['kernel'], start + update)

  @parameterized.parameters((0.01, 'falls'), (math.log(100) - 0.01, 'rises'))
  def test_of_a_training_whose_gradient_leads_out(self, start, way):
    """InfoNCE of matched embeddings wants an ever larger scale, of exchanged ones a smaller one."""
    tx = image_text.training('sgd', 1e6, steps=3, warmup_steps=0, weight_decay=0.0)
    image = 1.0 + 0.2 * np.eye(4, dtype=np.float32)  # so close that nothing is settled at 100
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    text = image if way == 'rises' else np.roll(image, 1, axis=0)
    params = {'model': {'logit_scale': jnp.asarray(start)}}
    state = base.initial_state(jax.random.key(0), {'params': params['model']}, tx)

    def objective(params, *, state, frozen, batch, key):
      del frozen, batch, key
      scale = params['model']['logit_scale']
      return losses.info_nce(image, text, scale), ({}, state.collections)

    step = base.gradient_step(objective, tx)
    for _ in range(3):
      state, _ = step(state, {}, {})
      scale = float(state.params['model']['logit_scale'])
      np.testing.assert_allclose(scale, 0.0 if way == 'falls' else math.log(100), atol=1e-6)


class OptimizerTest(parameterized.TestCase):

  def test_decays_as_clip_does(self):
    params = {'model': {
        'logit_scale': 1.0, 'logit_bias': 1.0, 'image_projection': 1.0,
        'visual': {'class_embedding': 1.0, 'norm': {'scale': 1.0, 'bias': 1.0},
                   'ln_post': {'scale': 1.0, 'bias': 1.0}, 'conv1': {'kernel': 1.0}},
        'text': {'ln_final': {'scale': 1.0}, 'token_embedding': 1.0}}, 'prompt': 1.0}
    params = jax.tree.map(jnp.asarray, params)
    tx = image_text.optimizer('adamw', 1.0, weight_decay=0.25)
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(nothing, tx.init(params), params)
    decayed = {name for name, leaf in worlds.flat(updates).items() if leaf == -0.25}
    self.assertEqual(decayed, {
        'model/image_projection', 'model/visual/class_embedding', 'model/visual/norm/scale',
        'model/visual/conv1/kernel', 'model/text/token_embedding', 'prompt'})
    self.assertEqual({float(leaf) for leaf in jax.tree.leaves(updates)}, {0.0, -0.25})

  def test_warm_cosine(self):
    schedule = image_text.warm_cosine(2.0, steps=12, warmup_steps=4)
    found = [float(schedule(step)) for step in (0, 1, 3, 4, 8, 12)]
    np.testing.assert_allclose(found, [0.5, 1.0, 2.0, 2.0, 1.0, 0.0], atol=1e-6)
    self.assertGreater(float(schedule(14)), 0.1)  # and up again
    late = image_text.warm_cosine(2.0, steps=12, warmup_steps=4, start=8)
    np.testing.assert_allclose(late(0), schedule(8))

  @parameterized.parameters((12, 12), (12, 20), (12, -1))
  def test_warm_up_that_does_not_end(self, steps, warmup):
    with self.assertRaisesRegex(ValueError, f'a warm-up of {warmup} steps must be shorter'):
      image_text.warm_cosine(1.0, steps=steps, warmup_steps=warmup)

  def test_unknown(self):
    with self.assertRaisesRegex(ValueError, "optimizer is 'adamw' or 'sgd', got 'lamb'"):
      image_text.optimizer('lamb', 1.0, weight_decay=0.0)


class BadInputTest(parameterized.TestCase):

  @parameterized.parameters(*PAIRS)
  def test_settings_are_refused_before_anything_is_computed(self, name):
    context = {'example': None, 'retain_steps': 3, 'train_steps': 3, 'batch_size': 8}
    make = lambda **settings: methods.get(name)(None, **context, **settings)
    with self.assertRaisesRegex(ValueError, f'{name}: learning_rate must lie in'):
      make(learning_rate=-1.0)
    with self.assertRaisesRegex(ValueError, f'{name}: epochs must lie in'):
      make(epochs=-1.0)
    if 'forget_fraction' in methods.arguments(name):
      with self.assertRaisesRegex(ValueError, 'a batch of 8 pairs selects 0'):
        make(forget_fraction=0.1)
      with self.assertRaisesRegex(ValueError, 'forget_fraction must lie in'):
        make(forget_fraction=1.0)
    with self.assertRaisesRegex(ValueError, "optimizer is 'adamw' or 'sgd'"):
      make(optimizer='lamb', **{key: value for key, value in
                                (('forget_fraction', 0.25), ('warmup_steps', 1))
                                if key in methods.arguments(name)})

  def test_fractions_without_a_batch_size(self):
    image_text.check_batch('x', 0.1, None)
    image_text.check_batch('x', 0.125, 8)
    with self.assertRaisesRegex(ValueError, 'x: forget_fraction 0.12 of a batch of 8'):
      image_text.check_batch('x', 0.12, 8)

  def test_role_of_contrastive(self):
    with self.assertRaisesRegex(ValueError, "role is 'retain', 'train' or 'clean', got 'all'"):
      methods.get('contrastive')(None, example=None, role='all')

  @parameterized.parameters(*PAIRS)
  def test_recovery_on_labels_is_for_classification(self, name):
    """Training on labels afterwards has no meaning for pairs: refused, and not after the run."""
    with self.assertRaisesRegex(ValueError, f'{name} learns from pairs; recover=1 would train'):
      methods.get(name)(None, example=None, recover=1.0)

  def test_a_batch_without_pairs_is_named(self):
    method = methods.get('continued')(pairs_toy.network(), train_steps=2)
    state, frozen = method.init(jax.random.key(0), pairs_toy.random())
    with self.assertRaisesRegex(ValueError, r"continued wants role 'pairs', the batch has \['ret"):
      method.phases[0].step(state, frozen, {'retain': {}})


if __name__ == '__main__':
  absltest.main()
