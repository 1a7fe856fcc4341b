"""Path rules, gradient steps and optimizers."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from unlearn_jax.methods import base

PARAMS = {'model': {'encoder': {'kernel': jnp.ones((2, 2))}, 'head': {'kernel': jnp.ones((2,))}}}


def objective(params, *, state, frozen, batch, key):
  del key
  loss = sum(jnp.sum((leaf - batch['x'].mean()) ** 2) for leaf in jax.tree.leaves(params))
  return loss, ({}, state.collections)


class PathRulesTest(parameterized.TestCase):

  def test_first_match_wins(self):
    labels = base.by_path((('model/head/.*', 'train'), ('.*', 'freeze')), PARAMS)
    self.assertEqual(labels['model']['head']['kernel'], 'train')
    self.assertEqual(labels['model']['encoder']['kernel'], 'freeze')

  def test_rule_without_match_lists_the_names(self):
    with self.assertRaisesRegex(ValueError, r"'heads/.*' matches no parameter.*model/head/kernel"):
      base.by_path((('heads/.*', 'train'), ('.*', 'freeze')), PARAMS)

  def test_path_without_rule_is_named(self):
    with self.assertRaisesRegex(ValueError, 'model/encoder/kernel'):
      base.by_path((('model/head/.*', 'train'),), PARAMS)

  def test_unknown_label(self):
    with self.assertRaisesRegex(ValueError, 'fridge'):
      base.trainable(optax.sgd(0.1), (('.*', 'fridge'),))

  def test_frozen_paths_stay_bitwise_and_escape_decay(self):
    tx = base.trainable(base.optimizer('adam', 0.1, weight_decay=0.5),
                        (('model/head/.*', 'train'), ('.*', 'freeze')))
    state = base.initial_state(jax.random.key(0), {'params': PARAMS['model']}, tx)
    step = jax.jit(base.gradient_step(objective, tx))
    for _ in range(3):
      state, _ = step(state, {}, {'x': jnp.zeros((1,))})
    np.testing.assert_array_equal(state.params['model']['encoder']['kernel'], np.ones((2, 2)))
    self.assertTrue((state.params['model']['head']['kernel'] != 1).all())
    self.assertEqual(int(state.step), 3)


class OptimizerTest(parameterized.TestCase):

  def test_sgd_is_torch_sgd(self):
    # v <- 0.9 v + g + wd θ, θ <- θ − lr v, worked by hand for g = 2θ.
    tx = base.optimizer('sgd', 0.1, momentum=0.9, weight_decay=0.5)
    theta, velocity = 1.0, 0.0
    params = jnp.asarray(1.0)
    opt_state = tx.init(params)
    for _ in range(4):
      velocity = 0.9 * velocity + 2 * theta + 0.5 * theta
      theta -= 0.1 * velocity
      updates, opt_state = tx.update(2 * params, opt_state, params)
      params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, theta, rtol=1e-6)

  @parameterized.parameters({'name': 'lion'}, {'name': 'sgd', 'schedule': 'zigzag'},
                            {'name': 'sgd', 'schedule': 'cosine'})
  def test_bad_choices(self, **kwargs):
    with self.assertRaises(ValueError):
      base.optimizer(learning_rate=0.1, **kwargs)

  def test_missing_role_says_who_and_what(self):
    with self.assertRaisesRegex(ValueError, "scrub wants role 'forget'.*'retain'"):
      base.fields({'retain': {}}, 'forget', 'scrub')

  @parameterized.parameters(-0.1, float('nan'), 1.1)
  def test_range(self, value):
    with self.assertRaisesRegex(ValueError, 'm: alpha must lie in'):
      base.check_range('m', alpha=(value, 0, 1))


if __name__ == '__main__':
  absltest.main()
