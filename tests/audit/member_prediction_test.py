"""Member prediction: rates of models that remember, of models that do not, and bad input."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from unlearn_jax.audit import member_prediction

CLASSES = 4


def outputs(remembered: float, *, count: int = 400, seed: int = 0):
  """Logits and labels of three splits; the larger `remembered`, the surer of forget and retain."""
  rng = np.random.default_rng(seed)
  labels = {name: rng.integers(0, CLASSES, count) for name in member_prediction.SPLITS}
  logits = {}
  for name, label in labels.items():
    own = np.eye(CLASSES)[label]
    sure = {'retain': 4.0, 'forget': remembered, 'test': 1.0}[name]
    logits[name] = (rng.normal(size=(count, CLASSES)) + sure * own).astype(np.float32)
  return logits, labels


def shadows(number: int = 2, *, without: int | None = None):
  found = []
  for seed in range(number):
    logits, labels = outputs(4.0, seed=100 + seed)
    keep = labels['retain'] != (-1 if without is None else without)
    found.append(member_prediction.Shadow(
        logits['retain'][keep], labels['retain'][keep], logits['test'], labels['test']))
  return found


class RatesTest(parameterized.TestCase):

  @parameterized.parameters('admin', 'shadow')
  def test_memory_is_seen(self, mode):
    def rates(remembered):
      logits, labels = outputs(remembered)
      return (member_prediction.admin(logits, labels) if mode == 'admin' else
              member_prediction.shadow(logits, labels, shadows()))
    remembers, forgot = rates(4.0), rates(1.0)
    self.assertGreater(remembers['forget'], 0.75)
    self.assertLess(forgot['forget'], 0.35)
    for found in (remembers, forgot):
      self.assertGreater(found['retain'], 0.75)
      self.assertLess(found['test'], 0.35)
    np.testing.assert_allclose(remembers['forget'], remembers['retain'], atol=0.08)
    np.testing.assert_allclose(forgot['forget'], forgot['test'], atol=0.08)

  def test_admin_is_asked_about_records_it_was_not_fitted_to(self):
    """With outputs of pure noise no rate is far from the other, however few the records are."""
    rng = np.random.default_rng(0)
    logits = {name: rng.normal(size=(60, CLASSES)) for name in member_prediction.SPLITS}
    labels = {name: rng.integers(0, CLASSES, 60) for name in member_prediction.SPLITS}
    rates = [member_prediction.admin(logits, labels, seed=seed) for seed in range(40)]
    gap = np.mean([found['retain'] - found['test'] for found in rates])
    self.assertLess(abs(gap), 0.1)

  def test_classes_that_no_shadow_model_knows_are_left_out(self):
    logits, labels = outputs(4.0)
    found = member_prediction.shadow(logits, labels, shadows(without=2))
    kept = {name: label != 2 for name, label in labels.items()}
    want = member_prediction.shadow({name: logits[name][kept[name]] for name in logits},
                                    {name: labels[name][kept[name]] for name in labels},
                                    shadows(without=2))
    self.assertEqual(found, want)

  def test_renaming_classes_changes_nothing(self):
    logits, labels = outputs(2.0)
    order = np.asarray([2, 0, 3, 1])
    renamed = {name: x[:, np.argsort(order)] for name, x in logits.items()}
    moved = {name: order[label] for name, label in labels.items()}
    self.assertEqual(member_prediction.admin(logits, labels),
                     member_prediction.admin(renamed, moved))


class BadInputTest(absltest.TestCase):

  def test_messages(self):
    logits, labels = outputs(1.0, count=5)
    with self.assertRaisesRegex(ValueError, "'test' is missing"):
      member_prediction.admin({k: v for k, v in logits.items() if k != 'test'}, labels)
    with self.assertRaisesRegex(ValueError, 'forget: 5 logits for 3 labels'):
      member_prediction.admin(logits, {**labels, 'forget': labels['forget'][:3]})
    with self.assertRaisesRegex(ValueError, 'logits of retain'):
      member_prediction.admin({**logits, 'retain': logits['retain'] * np.nan}, labels)
    with self.assertRaisesRegex(ValueError, 'at least one shadow model'):
      member_prediction.shadow(logits, labels, [])


if __name__ == '__main__':
  absltest.main()
