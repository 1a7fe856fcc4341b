"""Names, settings and suggestions."""

from absl.testing import absltest

from tests.methods import federation_toy
from unlearn_jax import methods
from unlearn_jax.methods import registry


class RegistryTest(absltest.TestCase):

  def test_unknown_method_suggests(self):
    with self.assertRaisesRegex(ValueError, "no method is called 'scrubb'; did you mean 'scrub'"):
      methods.get('scrubb')

  def test_unknown_setting_suggests(self):
    with self.assertRaisesRegex(ValueError, "no argument 'epsilom'; did you mean 'epsilon'"):
      methods.get('dlfd')(None, epsilom=0.1)

  def test_budgets_name_real_settings(self):
    for budget in registry.BUDGETS.values():
      for name, settings in budget.items():
        self.assertContainsSubset(settings, methods.arguments(name))

  def test_bad_ranges_are_refused_by_every_factory(self):
    for name in methods.names():
      setting = 'alpha' if name == 'ssd' else 'learning_rate'  # SSD does not train
      with self.assertRaisesRegex(ValueError, f'{name}: {setting}'):
        methods.get(name)(None, example=None, roster=federation_toy.roster(), **{setting: -1.0})

  def test_every_setting_is_documented(self):
    for name in methods.names():
      text = methods.get(name).__doc__
      for setting in methods.arguments(name):
        if not setting.startswith('recover'):
          self.assertIn(f'    {setting}:', text, msg=f'{name}.{setting}')


if __name__ == '__main__':
  absltest.main()
