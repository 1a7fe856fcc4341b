"""NoT and FUSED: which factors change, exact exports, rounds against NumPy."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from tests.methods import fed_towers
from unlearn_jax import models
from unlearn_jax.methods import fed_parts
from unlearn_jax.models import lora

CUT = fed_towers.EMBEDDING * fed_towers.RANK  # where B ends


@functools.cache
def small_clip():
  """A CLIP of two blocks per tower with adapters; the factors of matrix 0, 1, ... are 1, 2, ..."""
  model = lora.adapted(models.get('clip', embedding=4, patch=4, image_width=8, image_depth=2,
                                  image_heads=1, text_width=8, text_depth=2, text_heads=1,
                                  context=4, vocabulary=8), rank=2)
  example = {'image': np.zeros((1, 8, 8, 3), np.float32), 'text': np.ones((1, 4), np.int32)}
  shapes = jax.eval_shape(model.init, jax.random.key(0), example)
  given = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)
  factors = lora.unflatten(model, given)
  return model, {**given, 'adapter': {branch: lora.flatten({
      name: jax.tree.map(lambda part, index=index: part + index, one)
      for index, (name, one) in enumerate(matrices.items())})
                                      for branch, matrices in factors.items()}}


class FedNotTest(parameterized.TestCase):

  def test_fed_not(self):
    """Exactly B changes, by its sign; then FedAvg."""
    given, _ = fed_towers.variables()
    nce = functools.partial(fed_towers.nce, given['params'])
    method = fed_parts.fed_not(fed_towers.network(), recover_rounds=2, **fed_towers.SGD)
    sign = lambda size: np.concatenate([-np.ones(CUT), np.ones(size - CUT)])
    theta = {branch: sign(vector.size) * vector
             for branch, vector in fed_towers.adapter(given).items()}
    for phase, before, _, batch, after, _ in fed_towers.play(method, given):
      self.assertEqual((phase.name, phase.stream), ('recover', 'retain'))
      fed_towers.assert_adapters(fed_towers.adapter(before), theta)
      sent = fed_towers.updates(theta, batch['clients'], nce, 0.5)
      theta = fed_towers.moved(theta, fed_towers.mean(sent, batch['clients']['weight']))
      fed_towers.assert_adapters(fed_towers.adapter(after), theta)

  def test_negates_queries_and_values_of_the_first_block(self):
    model, given = small_clip()
    state, _ = fed_parts.fed_not(model).init(jax.random.key(0), given)
    before = lora.unflatten(model, given)
    after = lora.unflatten(model, {**given, 'adapter': state.params['adapter']})
    negated = set()
    for branch, matrices in after.items():
      for name, one in matrices.items():
        np.testing.assert_array_equal(one.a, before[branch][name].a)
        same, opposite = (np.array_equal(one.b, sign * before[branch][name].b) for sign in (1, -1))
        self.assertNotEqual(same, opposite)
        negated |= {name} if opposite else set()
    blocks = '/transformer/resblocks/0/attn/in_proj/'
    self.assertEqual(negated, {tower + blocks + name for tower in ('visual', 'text')
                               for name in 'qv'})
    self.assertLen(after['image'], 4)

  def test_bad_settings(self):
    with self.assertRaisesRegex(ValueError, 'fed_not: recover_rounds'):
      fed_parts.fed_not(fed_towers.network(), recover_rounds=-1)


class FusedTest(parameterized.TestCase):

  def build(self, **changes):
    return fed_parts.fused(fed_towers.network(), example=fed_towers.example(),
                           **{'recover_rounds': 2, **fed_towers.SGD, **changes})

  def test_fused(self):
    """A new adapter over W0 + s B A: the original at first, trained by FedAvg, exported exactly."""
    given, _ = fed_towers.variables()
    theta_t = fed_towers.adapter(given)
    params = {'logit_scale': given['params']['logit_scale']}
    for branch, tower in fed_towers.TOWERS.items():
      b, a = theta_t[branch][:CUT], theta_t[branch][CUT:]
      update = b.reshape(-1, fed_towers.RANK) @ a.reshape(fed_towers.RANK, -1)
      kernel = np.asarray(given['params'][tower]['kernel'], np.float64)
      params[tower] = {'kernel': kernel + fed_towers.SCALE * update.T}
    nce = functools.partial(fed_towers.nce, params)
    inputs = {name: leaf[0, 0] for name, leaf in fed_towers.batch(9)['clients'].items()
              if leaf.ndim > 2}
    method = self.build()
    for number, (phase, before, _, batch, after, _) in enumerate(fed_towers.play(method, given)):
      self.assertEqual((phase.name, phase.stream), ('overwrite', 'retain'))
      theta = fed_towers.adapter(before)
      if number == 0:
        for branch, vector in theta.items():
          np.testing.assert_array_equal(vector[:CUT], 0.0)
          self.assertGreater(np.abs(vector[CUT:] - theta_t[branch][CUT:]).max(), 0.05)
        same = fed_towers.network().apply(method.export(before), inputs)[0]
        original = fed_towers.network().apply(given, inputs)[0]
        np.testing.assert_allclose(same['image_embedding'], original['image_embedding'], atol=1e-6)
      by = fed_towers.mean(fed_towers.updates(theta, batch['clients'], nce, 0.5),
                           batch['clients']['weight'])
      fed_towers.assert_adapters(fed_towers.adapter(after), fed_towers.moved(theta, by))
    exported = method.export(after)
    found = fed_towers.network().apply(exported, inputs)[0]
    expected = fed_towers.embed(params, fed_towers.adapter(after), inputs)
    for name, value in zip(('image_embedding', 'text_embedding'), expected):
      np.testing.assert_allclose(found[name], value, atol=1e-5)

  def test_only_the_most_changed_matrices_learn(self):
    """Matrix number i has changed by i: of four matrices the last two are chosen."""
    model, given = small_clip()
    start = jax.tree.map(jnp.ones_like, given['adapter'])
    method = fed_parts.fused(model, example={
        'image': np.zeros((1, 8, 8, 3), np.float32), 'text': np.ones((1, 4), np.int32)})
    _, frozen = method.init(jax.random.key(0), {**given, 'federation': {'start': start}})
    chosen = lora.unflatten(model, {**given, 'adapter': frozen['chosen']})
    for branch, tower in fed_towers.TOWERS.items():
      for name, one in chosen[branch].items():
        last = name.startswith(f'{tower}/transformer/resblocks/1/')
        for part in one:
          np.testing.assert_array_equal(part, last)

  def test_unchosen_matrices_stay(self):
    given, _ = fed_towers.variables()
    method = self.build(optimizer='adamw', weight_decay=0.5, recover_rounds=1)
    state, frozen = method.init(jax.random.key(0), given)
    frozen = {'chosen': {**frozen['chosen'], 'text': jnp.zeros_like(frozen['chosen']['text'])}}
    after, _ = jax.jit(method.phases[0].step)(state, frozen, fed_towers.batch(0))
    np.testing.assert_array_equal(after.params['adapter']['text'], state.params['adapter']['text'])
    self.assertTrue(np.all(after.params['adapter']['image'] != state.params['adapter']['image']))

  @parameterized.parameters((0.1, [False, True, False]), (0.5, [True, True, False]),
                            (1.0, [True, True, True]))
  def test_most_changed(self, share, expected):
    """By the mean entry, not the sum; of equals the first."""
    change = {name: lora.Factors(jnp.full((rows, 1), value), jnp.full((1, 2), value))
              for name, rows, value in (('a', 2, 1.0), ('b', 1, 3.0), ('c', 50, 1.0))}
    found = fed_parts.most_changed(change, share)
    self.assertEqual([bool(jnp.all(one.b)) for one in found.values()], expected)
    self.assertEqual([bool(jnp.any(one.a)) for one in found.values()], expected)

  def test_bad_settings(self):
    with self.assertRaisesRegex(ValueError, 'fused: share'):
      self.build(share=0.0)
    given, _ = fed_towers.variables()
    del given['federation']
    with self.assertRaisesRegex(ValueError, 'fused reads the collection "federation"'):
      self.build().init(jax.random.key(0), given)


if __name__ == '__main__':
  absltest.main()
