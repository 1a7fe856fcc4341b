"""Tests of the linear towers."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import models
from unlearn_jax.models import surgery

RNG = np.random.default_rng(0)
FIELDS = {'image': RNG.normal(size=(3, 5)).astype(np.float32),
          'text': RNG.normal(size=(3, 7)).astype(np.float32)}


class LinearTowersTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.model = models.get('linear_towers', embedding=4, temperature=0.2)
    self.variables = self.model.init(jax.random.key(0), FIELDS)

  def test_parameters(self):
    params = self.variables['params']
    self.assertEqual(surgery.paths(params), ['logit_scale', 'text/kernel', 'visual/kernel'])
    self.assertEqual((params['visual']['kernel'].shape, params['text']['kernel'].shape),
                     ((5, 4), (7, 4)))
    self.assertAlmostEqual(float(params['logit_scale']), np.log(5), places=6)

  def test_outputs_by_hand(self):
    outputs, variables = self.model.apply(self.variables, FIELDS)
    self.assertIs(variables, self.variables)
    expected = {}
    for field, tower in (('image', 'visual'), ('text', 'text')):
      x = FIELDS[field].astype(np.float64) @ np.asarray(self.variables['params'][tower]['kernel'])
      expected[f'{field}_embedding'] = x / np.sqrt((x**2).sum(axis=1, keepdims=True))
      if field == 'image':
        expected['features'] = x
    self.assertCountEqual(outputs, [*expected, 'logit_scale'])
    for name, value in expected.items():
      np.testing.assert_allclose(outputs[name], value, atol=1e-6)
    self.assertEqual(outputs['logit_scale'], self.variables['params']['logit_scale'])

  @parameterized.parameters(('image', ('image_embedding', 'features')),
                            ('text', ('text_embedding',)))
  def test_one_tower(self, field, names):
    whole, _ = self.model.apply(self.variables, FIELDS)
    outputs, _ = self.model.apply(self.variables, {field: FIELDS[field]}, method=f'encode_{field}')
    self.assertCountEqual(outputs, names)
    for name in names:
      np.testing.assert_array_equal(outputs[name], whole[name])

  @parameterized.parameters(
      ({'embedding': 0}, ValueError, 'embedding must be at least 1'),
      ({'embedding': 4.0}, TypeError, 'embedding must be an int'),
      ({'temperature': 0.0}, ValueError, 'temperature must be positive'),
      ({'temperature': np.inf}, ValueError, 'temperature must be positive and finite'))
  def test_bad_arguments(self, changes, error, message):
    with self.assertRaisesRegex(error, message):
      models.get('linear_towers', **changes)

  @parameterized.parameters(
      ({'text': jnp.zeros((3, 7), jnp.int32)}, r'float features \[B, D\], got \(3, 7\) int32'),
      ({'image': jnp.zeros((3, 2, 2, 1))}, r'got \(3, 2, 2, 1\)'))
  def test_bad_inputs(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      self.model.apply(self.variables, {**FIELDS, **changes})

  def test_missing_fields_and_unknown_methods(self):
    with self.assertRaisesRegex(ValueError, "wants input 'text'"):
      self.model.apply(self.variables, {'image': FIELDS['image']})
    with self.assertRaisesRegex(ValueError, "encode_image or encode_text, got 'encode'"):
      self.model.apply(self.variables, FIELDS, method='encode')


if __name__ == '__main__':
  absltest.main()
