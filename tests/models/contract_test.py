"""Tests of the adapters: a Linen and an NNX module behind the same contract."""

import functools
import operator

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import types
from unlearn_jax.models import contract
from unlearn_jax.models import surgery


class Linen(nn.Module):
  rate: float = 0.0

  @nn.compact
  def __call__(self, image, *, train):
    x = nn.Dense(6, name='first')(image.reshape(image.shape[0], -1))
    x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name='bn')(x)
    x = nn.Dropout(self.rate, deterministic=not train)(x)
    return {'logits': nn.Dense(3, name='fc')(x), 'features': x}

  def norm(self, image, *, train):
    del train
    return {'norm': jnp.sum(image**2)}


class Nnx(nnx.Module):

  def __init__(self, rngs, rate=0.0):
    self.first = nnx.List([nnx.Linear(12, 6, rngs=rngs)])
    self.bn = nnx.BatchNorm(6, momentum=0.9, rngs=rngs)
    self.drops = nnx.List([nnx.Dropout(rate, rngs=rngs), nnx.Dropout(rate, rngs=rngs)])
    self.fc = nnx.Linear(6, 3, rngs=rngs)

  def __call__(self, image):
    x = self.bn(self.first[0](image.reshape(image.shape[0], -1)))
    ones = [drop(jnp.ones((4, 64))) for drop in self.drops]
    return {'logits': self.fc(x), 'features': x, 'masks': jnp.stack(ones)}

  def norm(self, image):
    return {'norm': jnp.sum(image**2)}


def batch():
  return {'image': jax.random.normal(jax.random.key(0), (4, 2, 2, 3)), 'id': jnp.arange(4)}


MODELS = {'linen': lambda: contract.from_linen(Linen()),
          'nnx': lambda: contract.from_nnx(Nnx)}
RNGS = {'dropout': jax.random.key(3)}


class ContractTest(parameterized.TestCase):

  @parameterized.parameters(*MODELS)
  def test_variables_are_plain_dicts_with_string_keys(self, kind):
    variables = MODELS[kind]().init(jax.random.key(1), batch())
    self.assertCountEqual(variables, ['params', 'batch_stats'])
    self.assertCountEqual(variables['params'], ['first', 'bn', 'fc'])

    def check(tree):
      if isinstance(tree, dict):
        for key, value in tree.items():
          self.assertIsInstance(key, str)
          check(value)
      else:
        self.assertIsInstance(tree, jax.Array)
    check(variables)

  @parameterized.parameters(*MODELS)
  def test_train_moves_the_statistics_and_evaluation_nothing(self, kind):
    model, fields = MODELS[kind](), batch()
    variables = model.init(jax.random.key(1), fields)
    before = jax.tree.map(np.array, variables)
    _, same = model.apply(variables, fields)
    self.assertIs(same, variables)
    _, updated = model.apply(variables, fields, train=True, rngs=RNGS)
    self.assertEqual(jax.tree.structure(updated), jax.tree.structure(variables))
    self.assertIs(updated['params'], variables['params'])
    self.assertTrue((updated['batch_stats']['bn']['mean'] != 0).all())
    jax.tree.map(np.testing.assert_array_equal, variables, before)

  def test_both_compute_the_same(self):
    fields = batch()
    linen, other = MODELS['linen'](), MODELS['nnx']()
    variables = linen.init(jax.random.key(1), fields)
    moved = surgery.rename(variables, [('params/first/(.*)', r'params/first/0/\1')])
    for train in (False, True):
      expected, after = linen.apply(variables, fields, train=train, rngs=RNGS)
      found, after_nnx = other.apply(moved, fields, train=train, rngs=RNGS)
      np.testing.assert_allclose(found['logits'], expected['logits'], atol=1e-5)
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
                   after_nnx['batch_stats'], after['batch_stats'])

  @parameterized.parameters(*MODELS)
  def test_composes_with_jit_grad_and_vmap(self, kind):
    model, fields = MODELS[kind](), batch()
    keys = jax.random.split(jax.random.key(1), 2)
    stacked = jax.vmap(lambda key: model.init(key, fields))(keys)

    @jax.jit
    def step(variables):
      def loss(params):
        outputs, after = model.apply({**variables, 'params': params}, fields, train=True, rngs=RNGS)
        return jnp.mean(outputs['logits']**2), after['batch_stats']
      return jax.grad(loss, has_aux=True)(variables['params'])

    grads, stats = jax.vmap(step)(stacked)
    for number in range(2):
      pick = functools.partial(jax.tree.map, operator.itemgetter(number))
      one = step(pick(stacked))
      jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5),
                   pick((grads, stats)), one)
    self.assertGreater(float(jnp.abs(grads['fc']['kernel']).max()), 0)

  @parameterized.parameters(*MODELS)
  def test_method(self, kind):
    model, fields = MODELS[kind](), batch()
    variables = model.init(jax.random.key(1), fields)
    cls = {'linen': Linen, 'nnx': Nnx}[kind]
    for method in ('norm', cls.norm):
      outputs, _ = model.apply(variables, fields, method=method)
      self.assertAlmostEqual(float(outputs['norm']), float(jnp.sum(fields['image']**2)), places=3)

  @parameterized.parameters(*MODELS)
  def test_missing_input(self, kind):
    model = MODELS[kind]()
    with self.assertRaisesRegex(ValueError, r"wants input 'image'.*\['audio'\]"):
      model.init(jax.random.key(0), {'audio': jnp.ones(3)})

  def test_bad_modules(self):
    class NoTrain(nn.Module):
      def __call__(self, image):
        return image

    class NoDict(nn.Module):
      def __call__(self, image, *, train):
        return image

    with self.assertRaisesRegex(TypeError, 'NoTrain.__call__ needs a keyword argument `train`'):
      contract.from_linen(NoTrain())
    with self.assertRaisesRegex(TypeError, 'dict of named outputs'):
      contract.from_linen(NoDict()).apply({'params': {}}, batch())


class NnxStreamsTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.model = contract.from_nnx(lambda rngs: Nnx(rngs, rate=0.5))
    self.fields = batch()
    self.variables = self.model.init(jax.random.key(1), self.fields)

  def masks(self, seed):
    rngs = {'dropout': jax.random.key(seed)}
    return self.model.apply(self.variables, self.fields, train=True, rngs=rngs)[0]['masks']

  def test_keys_decide_the_draw(self):
    np.testing.assert_array_equal(self.masks(0), self.masks(0))
    self.assertTrue((self.masks(0) != self.masks(1)).any())

  def test_layers_draw_independently(self):
    first, second = self.masks(0)
    self.assertTrue((first != second).any())

  def test_evaluation_drops_nothing(self):
    masks = self.model.apply(self.variables, self.fields)[0]['masks']
    np.testing.assert_array_equal(masks, jnp.ones_like(masks))

  def test_a_stream_without_a_key_is_an_error(self):
    with self.assertRaisesRegex(ValueError, "stream 'dropout' in train mode"):
      self.model.apply(self.variables, self.fields, train=True)


class NormalizedTest(parameterized.TestCase):

  @parameterized.product(name=tuple(MODELS), train=(False, True))
  def test_is_the_model_on_normalised_pictures(self, name, train):
    model, fields = MODELS[name](), batch()
    mean, std = contract.STATISTICS['imagenet']
    normalized = contract.normalized(model, mean, std)
    prepared = {**fields, 'image': (fields['image'] - jnp.array(mean)) / jnp.array(std)}
    variables = normalized.init(jax.random.key(1), fields)
    for a, b in zip(jax.tree.leaves(variables), jax.tree.leaves(
        model.init(jax.random.key(1), prepared)), strict=True):
      np.testing.assert_array_equal(a, b)
    found = normalized.apply(variables, fields, train=train, rngs=RNGS)
    expected = model.apply(variables, prepared, train=train, rngs=RNGS)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
      np.testing.assert_array_equal(a, b)
    norm, _ = normalized.apply(variables, fields, method='norm')
    np.testing.assert_allclose(norm['norm'], jnp.sum(prepared['image']**2), rtol=1e-6)

  def test_gradient_is_in_pixels(self):
    model = MODELS['linen']()
    fields, (mean, std) = batch(), contract.STATISTICS['imagenet']
    variables = model.init(jax.random.key(1), fields)

    def slope(apply, image):
      return jax.grad(lambda x: apply(variables, {'image': x})[0]['logits'].sum())(image)

    inner = slope(model.apply, (fields['image'] - jnp.array(mean)) / jnp.array(std))
    np.testing.assert_allclose(slope(contract.normalized(model, mean, std).apply, fields['image']),
                               inner / jnp.array(std), rtol=1e-5)

  def test_half_maps_to_minus_one_to_one_for_any_channels(self):
    seen = contract.normalized(types.Model(None, lambda v, x, **_: ({'seen': x['image']}, v)),
                               *contract.STATISTICS['half'])
    for channels in (1, 3):
      image = jnp.linspace(0, 1, 4 * channels).reshape(1, 2, 2, channels)
      np.testing.assert_allclose(seen.apply({}, {'image': image})[0]['seen'], 2 * image - 1,
                                 atol=1e-6)

  @parameterized.parameters(((0.25,), (0.5,)), ((0.1, 0.2, 0.3), (0.5, 0.25, 1.0)))
  def test_a_picture_that_is_made_is_in_pixels(self, mean, std):
    """Pictures and targets go in normalised, a picture comes out as data are, the rest as it is."""

    def apply(variables, fields, *, method):
      self.assertEqual(method, 'loss')
      return {'image': 2 * fields['image'], 'latent': fields['image'], 'loss': fields['target'],
              'label': fields['label']}, variables

    rng, variables = np.random.default_rng(0), {'params': {}}
    fields = {name: jnp.asarray(rng.uniform(size=(4, 2, 2, 3)), jnp.float32)
              for name in ('image', 'target')}
    found, returned = contract.normalized(types.Model(None, apply), mean, std).apply(
        variables, {**fields, 'label': 7}, method='loss')
    self.assertIs(returned, variables)
    mean, std = np.array(mean), np.array(std)
    expected = {'image': 2 * fields['image'] - mean, 'latent': (fields['image'] - mean) / std,
                'loss': (fields['target'] - mean) / std, 'label': 7}
    self.assertSameElements(found, expected)
    for name, value in expected.items():
      np.testing.assert_allclose(found[name], value, atol=1e-6, err_msg=name)

  def test_a_picture_made_from_no_picture(self):
    model = types.Model(None, lambda v, x, **_: ({'image': x['latent']}, v))
    found, _ = contract.normalized(model, (0.5,), (0.25,)).apply(
        {}, {'latent': jnp.ones((1, 2, 2, 3))})
    np.testing.assert_array_equal(found['image'], np.full((1, 2, 2, 3), 0.75))
    with self.assertRaisesRegex(ValueError, '3 channels, the pictures 1'):
      contract.normalized(model, (0.5,) * 3, (0.5,) * 3).apply({}, {'latent': jnp.ones((1, 2, 2, 1))})

  def test_wrong_numbers(self):
    model = MODELS['linen']()
    normalized = contract.normalized(model, *contract.STATISTICS['imagenet'])
    with self.assertRaisesRegex(ValueError, '3 channels, the pictures 1'):
      normalized.init(jax.random.key(0), {'image': jnp.zeros((4, 2, 2, 1))})
    with self.assertRaisesRegex(ValueError, '3 channels, the pictures 2'):
      normalized.apply({}, {'image': jnp.zeros((4, 2, 2, 3)), 'target': jnp.zeros((4, 2, 2, 2))})
    for mean, std in (((0.5,), (0.5, 0.5)), ((), ()), ((0.5,), (0.0,))):
      with self.assertRaisesRegex(ValueError, 'same number of values, and positive'):
        contract.normalized(model, mean, std)


if __name__ == '__main__':
  absltest.main()
