"""Tests of LoRA over two towers: sizes, order of the vector, merged against explicit factors."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import models
from unlearn_jax.models import contract
from unlearn_jax.models import lora
from unlearn_jax.models import surgery

CLIP = {'embedding': 8, 'patch': 4, 'image_width': 8, 'image_depth': 1, 'image_heads': 2,
        'text_width': 12, 'text_depth': 2, 'text_heads': 2, 'context': 6, 'vocabulary': 32}
RNG = np.random.default_rng(0)
PAIRS = {'image': RNG.normal(size=(3, 8, 8, 3)).astype(np.float32),
         'text': np.array([[30, 5, 6, 31, 0, 0], [30, 7, 31, 0, 0, 0], [30, 8, 9, 4, 3, 31]],
                          np.int32)}
FEATURES = {'image': RNG.normal(size=(3, 5)).astype(np.float32),
            'text': RNG.normal(size=(3, 7)).astype(np.float32)}
LINEAR = {'embedding': 4}
ATTENTION = 'text/transformer/resblocks/{}/attn/in_proj/{}'


@functools.cache
def build(name='linear_towers', **settings):
  """A small model, its adapted form, and variables with every factor random."""
  base = models.get(name, **(CLIP if name == 'clip' else LINEAR))
  model = lora.adapted(base, **{'rank': 2, 'alpha': 3.0, **settings})
  fields = PAIRS if name == 'clip' else FEATURES
  shapes = jax.eval_shape(model.init, jax.random.key(0), fields)
  rng = np.random.default_rng(1)
  # By numpy: compiling a draw for each of the leaves takes longer than these tests.
  return base, model, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.1, 0.3, leaf.shape),
                                                            jnp.float32), shapes)


class SizesTest(parameterized.TestCase):

  @parameterized.parameters(
      ('clip_vit_b_32', 'full', 294_912, 196_608), ('clip_vit_l_14', 'full', 786_432, 294_912),
      ('clip_vit_b_32', 'ffa', 147_456, 98_304))
  def test_published_sizes_at_rank_8(self, name, mode, image, text):
    model = lora.adapted(models.get(name), mode=mode)
    variables = jax.eval_shape(
        lambda key, image, text: model.init(key, {'image': image, 'text': text}),
        jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32),
        jax.ShapeDtypeStruct((1, 77), jnp.int32))
    self.assertEqual(lora.sizes(variables), {'image': image, 'text': text})
    self.assertEqual(variables['adapter']['image'].dtype, jnp.float32)

  def test_linear_towers(self):
    _, _, variables = build()
    self.assertEqual(lora.sizes(variables), {'image': 2 * (4 + 5), 'text': 2 * (4 + 7)})
    _, _, variables = build(mode='ffa')
    self.assertEqual(lora.sizes(variables), {'image': 2 * 4, 'text': 2 * 4})
    self.assertEqual({name: fixed.shape for name, fixed in variables['adapter_fixed'].items()},
                     {'image': (2 * 5,), 'text': (2 * 7,)})

  def test_other_targets(self):
    _, _, variables = build('clip', targets=('visual/.*/c_fc/kernel', ATTENTION.format(1, 'k')))
    self.assertEqual(lora.sizes(variables), {'image': 2 * (8 + 32), 'text': 2 * (12 + 12)})


class OrderTest(parameterized.TestCase):

  def test_vector_of_one_matrix(self):  # vec(B), then vec(A), by rows
    _, model, variables = build()
    b, a = lora.unflatten(model, {**variables, 'adapter': {
        'image': jnp.arange(18.0), 'text': jnp.arange(22.0)}})['image']['visual/kernel']
    np.testing.assert_array_equal(b, np.arange(8.0).reshape(4, 2))
    np.testing.assert_array_equal(a, np.arange(8.0, 18.0).reshape(2, 5))

  def test_matrices_in_the_order_of_their_names(self):
    _, model, variables = build('clip')
    text = variables['adapter']['text']
    factors = lora.unflatten(model, variables)['text']
    names = [ATTENTION.format(block, part) for block in (0, 1) for part in 'qv']
    self.assertEqual(list(factors), names)
    for number, name in enumerate(names):
      np.testing.assert_array_equal(factors[name].b.ravel(), text[48 * number:][:24])
      np.testing.assert_array_equal(factors[name].a.ravel(), text[48 * number + 24:][:24])

  @parameterized.product(name=('clip', 'linear_towers'), mode=lora.MODES)
  def test_round_trip(self, name, mode):
    _, model, variables = build(name, mode=mode)
    for branch, factors in lora.unflatten(model, variables).items():
      backwards = dict(reversed(factors.items()))
      np.testing.assert_array_equal(lora.flatten(backwards), variables['adapter'][branch])

  def test_under_jit_and_over_clients(self):
    _, model, variables = build('clip')
    clients = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), variables['adapter'])

    @jax.jit
    @jax.vmap
    def doubled(adapter):
      factors = lora.unflatten(model, {**variables, 'adapter': adapter})
      return {branch: lora.flatten({name: lora.Factors(2 * b, 2 * a)
                                    for name, (b, a) in one.items()})
              for branch, one in factors.items()}

    found = doubled(clients)
    for branch in found:
      np.testing.assert_array_equal(found[branch], 2 * clients[branch])


class ForwardTest(parameterized.TestCase):

  @parameterized.parameters(*lora.MODES)
  def test_factors_by_hand(self, mode):  # u = norm(W0 x + (alpha / r) B (A x))
    _, model, variables = build(mode=mode)
    outputs, returned = model.apply(variables, FEATURES)
    self.assertIs(returned, variables)
    for branch, tower, d_in in (('image', 'visual', 5), ('text', 'text', 7)):
      vector = np.asarray(variables['adapter'][branch], np.float64)
      b = vector[:8].reshape(4, 2)
      a = (vector[8:] if mode == 'full' else
           np.asarray(variables['adapter_fixed'][branch], np.float64)).reshape(2, d_in)
      x = FEATURES[branch].astype(np.float64)
      (update,) = lora.updates(model, variables)[branch].values()
      np.testing.assert_allclose(update, 1.5 * b @ a, atol=1e-6)
      y = x @ np.asarray(variables['params'][tower]['kernel']) + 1.5 * (x @ a.T) @ b.T
      np.testing.assert_allclose(outputs[f'{branch}_embedding'],
                                 y / np.linalg.norm(y, axis=1, keepdims=True), atol=1e-6)

  def test_queries_and_values_of_clip(self):
    base, model, variables = build('clip')
    params = jax.tree.map(np.array, variables['params'])
    for factors in lora.unflatten(model, variables).values():
      for name, (b, a) in factors.items():
        *path, part = name.split('/')
        module = functools.reduce(dict.__getitem__, path, params)
        width = module['kernel'].shape[0]
        start = {'q': 0, 'v': 2 * width}[part]
        module['kernel'][:, start:start + width] += 1.5 * np.asarray(b @ a).T
    merged = lora.merged(model, variables)
    self.assertIsNone(surgery.first_mismatch(variables['params'], merged))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), merged, params)
    encode = lambda model: jax.jit(lambda variables: model.apply(
        variables, {'text': PAIRS['text']}, method='encode_text')[0]['text_embedding'])
    plain = encode(base)
    text = encode(model)(variables)
    np.testing.assert_allclose(text, plain({'params': merged}), atol=1e-5)
    self.assertGreater(float(jnp.abs(text - plain({'params': variables['params']})).max()), 1e-2)

  @parameterized.product(name=('clip', 'linear_towers'), mode=lora.MODES)
  def test_a_fresh_adapter_is_the_backbone_bitwise(self, name, mode):
    base, _, variables = build(name, mode=mode)
    model = lora.adapted(base, rank=2, mode=mode, backbone=variables['params'])
    fields = PAIRS if name == 'clip' else FEATURES
    fresh = model.init(jax.random.key(3), fields)
    for factors in lora.unflatten(model, fresh).values():
      for b, a in factors.values():
        self.assertFalse(np.asarray(b).any())
        if mode == 'full':
          self.assertTrue(np.asarray(a).all())
    jax.tree.map(np.testing.assert_array_equal, fresh['params'], variables['params'])
    jax.tree.map(np.testing.assert_array_equal, lora.merged(model, fresh), variables['params'])

  def test_initial_values(self):
    base, _, variables = build()
    model = lora.adapted(base, backbone=variables['params'])
    one, two, other = (model.init(jax.random.key(seed), FEATURES) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    self.assertFalse(np.array_equal(one['adapter']['image'], other['adapter']['image']))
    fields = {'image': np.zeros((1, 400), np.float32), 'text': np.zeros((1, 25), np.float32)}
    variables = lora.adapted(base, rank=64).init(jax.random.key(2), fields)
    for branch, d_in in (('image', 400), ('text', 25)):
      a = np.asarray(variables['adapter'][branch][64 * 4:])
      self.assertAlmostEqual(a.std() * d_in**0.5, 1, delta=0.06)
      self.assertAlmostEqual(a.mean() * d_in**0.5, 0, delta=0.08)

  @parameterized.parameters('image', 'text')
  def test_one_branch_moves_one_tower(self, branch):
    base, model, variables = build()
    zero = {name: jnp.zeros_like(vector) for name, vector in variables['adapter'].items()}
    outputs, _ = model.apply({**variables, 'adapter': {**zero, branch: variables['adapter'][branch]}},
                             FEATURES)
    backbone, _ = base.apply({'params': variables['params']}, FEATURES)
    for name in ('image', 'text'):
      same = np.array_equal(outputs[f'{name}_embedding'], backbone[f'{name}_embedding'])
      self.assertEqual(same, name != branch)

  def test_single_towers_and_other_collections(self):
    _, model, variables = build()
    variables = {**variables, 'federation': {'rounds': jnp.int32(3)}, 'lock': {'image': {}}}
    whole, _ = model.apply(variables, FEATURES)
    for field in ('image', 'text'):
      outputs, returned = model.apply(variables, {field: FEATURES[field]}, train=True,
                                      method=f'encode_{field}')
      self.assertIs(returned, variables)
      np.testing.assert_array_equal(outputs[f'{field}_embedding'], whole[f'{field}_embedding'])


class FixedTest(absltest.TestCase):
  """Mode `ffa`."""

  def test_averaging_adapters_averages_weights(self):
    def average_of_weights(mode):
      _, model, variables = build(mode=mode)
      rng = np.random.default_rng(5)
      clients = [jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32),
                              variables['adapter']) for _ in range(3)]
      share = np.float32([0.5, 0.3, 0.2])
      mean = lambda *trees: jax.tree.map(lambda *x: sum(p * y for p, y in zip(share, x)), *trees)
      merged = lambda adapter: lora.merged(model, {**variables, 'adapter': adapter})
      weights, averaged = mean(*map(merged, clients)), merged(mean(*clients))
      return max(float(jnp.abs(weights[tower]['kernel'] - averaged[tower]['kernel']).max())
                 for tower in ('visual', 'text'))

    self.assertLess(average_of_weights('ffa'), 1e-5)
    self.assertGreater(average_of_weights('full'), 1e-1)  # the known bias of averaging both factors

  def test_only_the_adapter_has_gradients(self):
    _, model, variables = build(mode='ffa')
    frozen = {name: tree for name, tree in variables.items() if name != 'adapter'}

    def loss(adapter):
      outputs, _ = model.apply({**frozen, 'adapter': adapter}, FEATURES)
      return jnp.sum(outputs['image_embedding'] * outputs['text_embedding'])

    gradient = jax.grad(loss)(variables['adapter'])
    self.assertEqual({name: one.shape for name, one in gradient.items()},
                     {'image': (8,), 'text': (8,)})  # B alone
    for one in gradient.values():
      self.assertTrue((np.abs(one) > 1e-6).all())
    for factors in lora.unflatten(model, variables).values():
      self.assertTrue(all(one.a is None for one in factors.values()))


class ErrorsTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'rank': 0}, ValueError, 'rank must be at least 1, got 0'),
      ({'rank': 2.0}, TypeError, 'rank must be an int'),
      ({'alpha': 0.0}, ValueError, 'alpha must be positive'),
      ({'alpha': float('nan')}, ValueError, 'alpha must be positive'),
      ({'mode': 'half'}, ValueError, "mode is one of full, ffa, got 'half'"))
  def test_arguments(self, changes, error, message):
    with self.assertRaisesRegex(error, message):
      lora.adapted(models.get('linear_towers'), **changes)

  @parameterized.parameters(
      ('visual/kernel', "adapt nothing of the text tower; its matrices are: text/kernel$"),
      (('.*', 'text/in_proj/q'), "'text/in_proj/q' matches no .* text/kernel, visual/kernel"))
  def test_targets_that_match_nothing(self, targets, message):
    model = lora.adapted(models.get('linear_towers', **LINEAR), targets=targets)
    with self.assertRaisesRegex(ValueError, message):
      model.init(jax.random.key(0), FEATURES)

  def test_a_model_without_towers(self):
    model = lora.adapted(models.get('mlp', num_outputs=2, hidden=(3,)))
    with self.assertRaisesRegex(ValueError, 'nothing of the image tower; its matrices are: none'):
      model.init(jax.random.key(0), {'image': PAIRS['image']})

  def test_vectors_of_another_size(self):
    _, model, variables = build()
    adapter = {**variables['adapter'], 'text': jnp.zeros(23)}
    with self.assertRaisesRegex(ValueError, r'text branch must be a vector of 22 .* \(23,\)'):
      model.apply({**variables, 'adapter': adapter}, FEATURES)
    _, model, variables = build(mode='ffa')
    fixed = {**variables['adapter_fixed'], 'image': jnp.zeros(9)}
    with self.assertRaisesRegex(ValueError, 'fixed part of the image branch .* 10 values'):
      model.apply({**variables, 'adapter_fixed': fixed}, FEATURES)

  def test_a_backbone_of_another_model(self):
    base, _, variables = build()
    params = {**variables['params'], 'text': {'kernel': np.zeros((7, 5), np.float32)}}
    with self.assertRaisesRegex(ValueError, r'another model: .*text/kernel.*\(7, 4\).*\(7, 5\)'):
      lora.adapted(base, backbone=params).init(jax.random.key(0), FEATURES)

  def test_a_model_with_statistics(self):
    class Statistics(nn.Module):

      @nn.compact
      def __call__(self, image, *, train):
        return {'logits': nn.BatchNorm(use_running_average=not train)(image)}

    model = lora.adapted(contract.from_linen(Statistics()))
    with self.assertRaisesRegex(ValueError, r"collections beside its parameters: \['batch_stats'\]"):
      model.init(jax.random.key(0), {'image': FEATURES['image']})


if __name__ == '__main__':
  absltest.main()
