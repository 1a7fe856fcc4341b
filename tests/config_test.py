"""Configs: where settings come from, and what a wrong one answers."""

from absl.testing import absltest
from absl.testing import parameterized

from unlearn_jax import config as config_lib
from unlearn_jax import methods


def make(**changes):
  arguments = {'name': 'x', 'data': {'name': 'synthetic'}, 'split': {'kind': 'random'},
               'model': 'mlp', 'methods': {'dlfd': {'epsilon': 0.05}, 'scrub-long': {'epochs': 7},
                                           'finetune': {}}}
  return config_lib.experiment(**(arguments | changes))


class ConfigTest(parameterized.TestCase):

  def test_settings_come_from_the_signatures(self):
    config = make()
    for row in config.methods:
      self.assertEqual(set(config.methods[row]), set(methods.arguments(config_lib.method_of(row))))

  def test_config_beats_budget_beats_default(self):
    config = make()
    self.assertEqual(config_lib.resolved(config, 'dlfd')['epsilon'], 0.05)
    self.assertEqual(config_lib.resolved(config, 'finetune')['epochs'], 2.0)  # the dlfd budget
    self.assertEqual(config_lib.resolved(config, 'scrub-long')['epochs'], 7)
    self.assertEqual(config_lib.resolved(config, 'scrub-long')['max_epochs'], 2)
    config.budget = 'original'
    self.assertEqual(config_lib.resolved(config, 'finetune')['epochs'], 10.0)
    # Saying a default out loud is saying it.
    config.budget = 'dlfd'
    config.methods.finetune.epochs = 10.0
    self.assertEqual(config_lib.resolved(config, 'finetune')['epochs'], 10.0)

  @parameterized.parameters(
      ({'methods': {'dlfdd': {}}}, "'dlfdd'; did you mean 'dlfd'"),
      ({'methods': {'dlfd': {'epsilom': 0.1}}}, "'methods.dlfd.epsilom'; did you mean 'epsilon'"),
      ({'methods': {'dlfd': {'epsilon': 'small'}}}, 'config.methods.dlfd.epsilon'),
      ({'split': {'kind': 'random', 'seeed': 0}}, "'split.seeed'; did you mean 'seed'"),
      ({'data': {'nam': 'digits'}}, "'data.nam'; did you mean 'name'"),
      ({'batch_sise': 3}, "'batch_sise'; did you mean 'batch_size'"),
      ({'batch_size': 'many'}, 'config.batch_size'))
  def test_unknown_names_and_wrong_types(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      make(**changes)

  @parameterized.parameters(
      ({'budget': 'orginal'}, "did you mean 'original'"),
      ({'seeds': ()}, 'config.seeds'), ({'seeds': (1, 1)}, 'config.seeds'),
      ({'batch_size': 0}, 'config.batch_size must be at least 1'),
      ({'split': {'kind': 'idenity'}}, 'config.split.kind'),
      ({'methods': {'retrain': {}}}, 'every experiment runs anyway'),
      ({'rows': ('dlfdd',)}, "did you mean 'dlfd'"))
  def test_wrong_values(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      config_lib.check(make(**changes))

  def test_locked_and_typed(self):
    config = make()
    with self.assertRaises((KeyError, AttributeError)):
      config.methods.dlfd.epsilom = 0.1
    with self.assertRaises(TypeError):
      config.methods.dlfd.epsilon = 'small'

  def test_rows(self):
    self.assertEqual(make().rows, ('dlfd', 'scrub-long', 'finetune'))
    self.assertEqual(make(rows=('finetune',)).rows, ('finetune',))


if __name__ == '__main__':
  absltest.main()
