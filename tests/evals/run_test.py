"""Forward passes in padded batches."""

import os

os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=8')

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from unlearn_jax.evals import run


def model():
  """An `apply` of our own, with a counter of its traces."""
  traces = []

  def apply(variables, inputs, *, train=False, rngs=None, method=None):
    assert not train
    traces.append(sorted(inputs))
    features = jnp.tanh(inputs['image'].reshape(len(inputs['image']), -1) @ variables['w'])
    return {'logits': features * 2, 'features': features, 'huge': features[:, :1]}, variables

  return apply, traces


def fields(n):
  rng = np.random.default_rng(n)
  return {'image': rng.normal(size=(n, 2, 3, 1)).astype(np.float32), 'label': np.arange(n) % 4,
          'id': np.arange(n)}


VARIABLES = {'w': np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)}


class RunTest(parameterized.TestCase):

  @parameterized.parameters((1, 256), (7, 3), (8, 4), (5, 256))
  def test_batches_change_nothing(self, n, batch_size):
    apply, _ = model()
    data = fields(n)
    outputs = run.predict(apply, VARIABLES, data, batch_size=batch_size)
    want, _ = apply(VARIABLES, {'image': data['image']})
    self.assertCountEqual(outputs, ['logits', 'features'])
    for name, found in outputs.items():
      self.assertIsInstance(found, np.ndarray)
      np.testing.assert_allclose(found, want[name], rtol=1e-5, atol=1e-6)

  def test_traces_once_and_sees_inputs_only(self):
    apply, traces = model()
    for scale in (1.0, 2.0):
      run.predict(apply, {'w': scale * VARIABLES['w']}, fields(10), batch_size=4)
    self.assertEqual(traces, [['image']])

  def test_variables_on_a_mesh(self):
    apply, _ = model()
    mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    replicated = jax.device_put(VARIABLES, NamedSharding(mesh, PartitionSpec()))
    self.assertIs(run.mesh_of(replicated), mesh)
    self.assertIsNone(run.mesh_of(VARIABLES))
    data = fields(11)
    found = run.predict(apply, replicated, data, batch_size=5)
    want = run.predict(apply, VARIABLES, data)
    np.testing.assert_allclose(found['logits'], want['logits'], rtol=1e-5, atol=1e-6)

  def test_chosen_outputs(self):
    apply, _ = model()
    self.assertEqual(list(run.predict(apply, VARIABLES, fields(3), names=('huge',))), ['huge'])
    with self.assertRaisesRegex(ValueError, r"no output \['embedding'\].*'features'"):
      run.predict(apply, VARIABLES, fields(3), names=('embedding',))

  def test_bad_fields(self):
    apply, _ = model()
    for data in ({'image': np.zeros((0, 2, 3, 1))}, {'label': np.zeros(3)},
                 {'image': np.zeros((3, 2)), 'text': np.zeros((2, 2))}):
      with self.assertRaisesRegex(ValueError, 'one common length of at least 1'):
        run.predict(apply, VARIABLES, data)


if __name__ == '__main__':
  absltest.main()
