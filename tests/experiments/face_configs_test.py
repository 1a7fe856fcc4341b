"""The four face experiments: their splits on the fixtures, their rows, every architecture."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from experiments.configs import _faces
from experiments.configs import dlfd_age
from experiments.configs import dlfd_emotion
from experiments.configs import dlfd_gender
from experiments.configs import dlfd_multiattr
from unlearn_jax import tasks
from unlearn_jax.data import splits
from unlearn_jax.methods import registry
from unlearn_jax.models import contract

CONFIGS = {'dlfd_age': dlfd_age, 'dlfd_emotion': dlfd_emotion, 'dlfd_multiattr': dlfd_multiattr,
           'dlfd_gender': dlfd_gender}
SIZES = {  # of the fixtures: forget, retain, validation, test, unseen
    'dlfd_age': (30, 48, 24, 16, 16), 'dlfd_emotion': (38, 88, 14, 21, 21),
    'dlfd_multiattr': (24, 44, 4, 16, 24), 'dlfd_gender': (24, 44, 4, 16, 24)}


class FaceConfigsTest(parameterized.TestCase):

  @parameterized.parameters(*CONFIGS)
  def test_splits_and_labels(self, name):
    task = tasks.load(CONFIGS[name].get_config('smoke'), '')
    found = tuple(len(task.splits.indices[split]) for split in splits.NAMES)
    order = dict(zip(('forget', 'retain', 'validation', 'test', 'unseen'), SIZES[name]))
    self.assertEqual(found, tuple(order[split] for split in splits.NAMES))
    self.assertEqual(task.splits.kind, 'published')
    outputs = task.model.apply(task.model.init(jax.random.key(0), task.example), task.example)[0]
    classes = {'dlfd_age': 8, 'dlfd_emotion': 7, 'dlfd_multiattr': 3, 'dlfd_gender': 2}
    self.assertEqual(outputs['logits'].shape[-1], classes[name])

  def test_roles_of_the_benchmark(self):
    # As the header of dlfd_age quotes them.
    config = dlfd_age.get_config('smoke')
    source = tasks.load(config, '').source
    made = splits.published(source, roles={
        'forget': 'forget', 'retain': {'retain': 0.9, 'validation': 0.1}, 'val': 'test',
        'test': 'unseen'})
    partition = source.fields['partition']
    np.testing.assert_array_equal(made.indices['test'], np.flatnonzero(partition == 'val'))
    np.testing.assert_array_equal(made.indices['unseen'], np.flatnonzero(partition == 'test'))
    self.assertGreater(len(made.indices['validation']), 0)

  @parameterized.parameters(*CONFIGS)
  def test_every_method_is_a_row(self, name):
    config = CONFIGS[name].get_config()
    self.assertEqual(set(config.rows), set(registry.names('classification')) - {'retrain'})
    self.assertEqual(config.model, 'resnet18')
    self.assertEqual(config.data.image_size, 128)
    self.assertEqual(set(config.tune.methods), set(config.rows))
    self.assertEqual(config.budget, 'dlfd')

  def test_step_sizes_are_dlfds_in_pixels(self):
    for module, notebook in ((dlfd_age, 0.4), (dlfd_emotion, 2.0)):
      config = module.get_config()
      _, std = contract.STATISTICS[config.data.normalize]
      self.assertAlmostEqual(config.methods.dlfd.step_size, notebook * np.mean(std), delta=0.001)

  @parameterized.parameters('resnet18', 'densenet121', 'efficientnet_b0')
  def test_architectures(self, model):
    # As --config.model does it; building every method traces the network.
    config = dlfd_age.get_config()
    config.update({'model': model, 'data': {'name': 'mufac_fixture', 'image_size': 32}})
    task = tasks.load(config, '')
    self.assertEqual(task.splits.source, 'mufac_fixture')

  def test_modes(self):
    with self.assertRaisesRegex(ValueError, "'smoke' or nothing, got 'small'"):
      dlfd_gender.get_config('small')
    self.assertEqual(_faces.rows({'step_size': 0.5})['dlfd'], {'step_size': 0.5})



if __name__ == '__main__':
  absltest.main()
