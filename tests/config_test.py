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


def make_pairs(**changes):
  arguments = {'name': 'x', 'task': 'image_text', 'data': {'name': 'openmoji'},
               'split': {'kind': 'planted', 'seed': 0, 'noise': 0.3,
                         'sizes': {'train': 0.7, 'test': 0.3}},
               'model': 'clip', 'train': {'epochs': 3.0}, 'text': {'prompt_slots': 4},
               'methods': {'ncu-release': {'reading': 'release'}, 'continued': {}}}
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
      ({'task': 'clasification'}, "config.task 'clasification'; did you mean 'classification'"),
      ({'text': {'prompt_slots': 4}}, 'belongs to image_text tasks, this is one of classification'),
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
      ({'methods': {'ncu': {}}}, "'ncu', which is no method for classification tasks"),
      ({'split': {'kind': 'planted'}}, 'config.split.kind is one of .* got .planted'),
      ({'rows': ('dlfdd',)}, "did you mean 'dlfd'"))
  def test_wrong_values(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      config_lib.check(make(**changes))

  @parameterized.parameters(
      ({'methods': {'dlfd': {}}}, "'dlfd', which is no method for image_text tasks"),
      ({'methods': {'ncu-v1': {}, 'scrub-long': {}}}, "'scrub', which is no method for image_te"),
      ({'split': {'kind': 'identity'}}, "config.split.kind is one of .'planted'.* got 'identity'"))
  def test_wrong_values_of_pairs(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      config_lib.check(make_pairs(**changes))

  @parameterized.parameters(
      ({'text': {'template': 'imagenet'}}, "'text.template'; did you mean 'templates'"),
      ({'text': {'prompt_slots': 'many'}}, 'config.text.prompt_slots'),
      ({'split': {'kind': 'planted', 'nois': 0.1}}, "'split.nois'; did you mean 'noise'"),
      ({'methods': {'ncu': {'readin': 'paper'}}}, "'methods.ncu.readin'; did you mean 'reading'"),
      ({'train': {'learning_rat': 0.1}}, "'train.learning_rat'; did you mean 'learning_rate'"),
      ({'train': {'momentum': 0.9}}, "config has no field 'train.momentum'"),
      ({'methods': {'continued': {'recover': 1.0}}}, "no field 'methods.continued.recover'"))
  def test_unknown_names_and_wrong_types_of_pairs(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      make_pairs(**changes)

  def test_pairs(self):
    """The kind of task decides on recipes, splits and sections; it stands in the config itself."""
    config = make_pairs()
    config_lib.check(config)
    self.assertEqual(set(config.train), set(methods.arguments('contrastive')))
    self.assertEqual(config_lib.resolved(config, 'retrain')['epochs'], 3.0)
    self.assertEqual(config_lib.resolved(config, 'retrain')['weight_decay'], 0.2)
    self.assertEqual(config_lib.resolved(config, 'ncu-release')['reading'], 'release')
    self.assertEqual(config_lib.resolved(config, 'ncu-release')['gamma'], 0.7)
    self.assertEqual(config.text.prompt_slots, 4)
    self.assertEqual(config.text.templates, 'imagenet')
    self.assertNotIn('text', make())
    self.assertEqual(config_lib.split_arguments(config), {
        'seed': 0, 'noise': 0.3, 'sizes': {'train': 0.7, 'test': 0.3}, 'drop_rest': False})
    again = config_lib.experiment(**config_lib.to_arguments(config))
    self.assertEqual(config_lib.to_json(again), config_lib.to_json(config))

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
