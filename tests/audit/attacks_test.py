"""Named conventions of membership inference."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from tests.audit import toy
from unlearn_jax import audit
from unlearn_jax.audit import attacks
from unlearn_jax.evals import privacy


def logits_of(task, model):
  return {split: np.asarray(toy.apply(model, fields)[0]['logits'])
          for split, fields in task.data.items()}


def labels_of(task):
  return {split: fields['label'] for split, fields in task.data.items()}


class MembershipTest(parameterized.TestCase):

  def measure(self, model, convention, **kwargs):
    task = toy.make(0)
    others = [logits_of(task, other) for other in task.retrained[:3]]
    return audit.membership(logits_of(task, model), labels_of(task), convention=convention,
                            retrained_logits=others, **kwargs)

  @parameterized.parameters(*attacks.CONVENTIONS)
  def test_retrained_is_near_the_ideal_and_original_is_not(self, convention):
    task = toy.make(0)
    retrained = self.measure(task.retrained[5], convention)
    original = self.measure(task.original, convention)
    self.assertEqual(retrained.source, attacks.CONVENTIONS[convention].source)
    self.assertEqual(retrained.ideal, original.ideal)
    self.assertGreater(abs(original.value - original.ideal),
                       abs(retrained.value - retrained.ideal) + 0.1)

  @parameterized.parameters(*attacks.CONVENTIONS)
  def test_renaming_classes_changes_nothing(self, convention):
    task = toy.make(0)
    order = np.array([2, 0, 4, 1, 3])  # new logit c is old logit order[c]
    renamed = {split: np.argsort(order)[labels] for split, labels in labels_of(task).items()}
    moved = [{split: logits[:, order] for split, logits in logits_of(task, model).items()}
             for model in (task.original, task.retrained[0])]
    found = audit.membership(moved[0], renamed, convention=convention, retrained_logits=moved[1])
    before = audit.membership(
        logits_of(task, task.original), labels_of(task), convention=convention,
        retrained_logits=logits_of(task, task.retrained[0]))
    np.testing.assert_allclose(found[:2], before[:2], atol=1e-6)

  @parameterized.parameters('benchmark', 'dlfd')
  def test_replicates_start_with_the_forgetting_score(self, convention):
    rng = np.random.default_rng(0)
    forget, unseen = rng.exponential(1, 50), rng.exponential(2, 70)
    found = attacks.cross_validated(forget, unseen, np.ones((1, 50)), np.ones((1, 70)),
                                    convention=convention, seed=0)
    expected = privacy.forgetting_score(forget, unseen, convention=convention)
    self.assertAlmostEqual(found[0], expected.accuracy, places=12)

  def test_an_unbalanced_attack_has_its_no_signal_value_as_ideal(self):
    same = {'forget': np.zeros((20, 3)), 'unseen': np.zeros((60, 3))}
    labels = {'forget': np.zeros(20, int), 'unseen': np.zeros(60, int)}
    found = audit.membership(same, labels, convention='dlfd')
    self.assertAlmostEqual(found.ideal, 0.75)
    self.assertAlmostEqual(found.value, 0.75)

  def test_auc_and_privacy_loss_by_hand(self):
    logits = {'forget': np.array([[2.0, 0.0], [0.0, 0.0]]), 'unseen': np.array([[1.0, 0.0]])}
    labels = {'forget': np.array([0, 0]), 'unseen': np.array([0])}
    found = audit.membership(logits, labels, convention='auc')
    self.assertEqual(found[:2], (0.5, 0.5))
    other = {'forget': np.zeros((2, 2))}
    found = audit.membership(logits, labels, convention='privacy_loss', retrained_logits=other)
    first = np.log(2) - np.log1p(np.exp(-2))
    self.assertAlmostEqual(found.value, first / 2)

  def test_ssd_by_hand(self):
    # Retained records are sure and test records are not: sure forgotten records are members.
    sure, unsure = np.array([8.0, 0.0]), np.array([0.0, 0.0])
    logits = {'retain': np.tile(sure, (30, 1)), 'test': np.tile(unsure, (30, 1)),
              'forget': np.stack([sure, sure, sure, unsure])}
    labels = {split: np.zeros(len(part), int) for split, part in logits.items()}
    self.assertEqual(audit.membership(logits, labels, convention='ssd').value, 0.75)
    self.assertEqual(audit.membership(logits, labels, convention='salun').value, 0.25)
    self.assertEqual(audit.membership(logits, labels, convention='ccu_admin').value, 0.75)

  def test_without_retrained_the_ideal_is_unknown(self):
    task = toy.make(0)
    found = audit.membership(logits_of(task, task.original), labels_of(task), convention='ssd')
    self.assertTrue(np.isnan(found.ideal))
    with self.assertRaisesRegex(ValueError, 'retrained_logits'):
      audit.membership(logits_of(task, task.original), labels_of(task), convention='privacy_loss')

  def test_refuses(self):
    task = toy.make(0)
    logits, labels = logits_of(task, task.original), labels_of(task)
    with self.assertRaisesRegex(ValueError, 'convention is one of'):
      audit.membership(logits, labels, convention='mia')
    with self.assertRaisesRegex(ValueError, "needs logits and labels of .'test'"):
      audit.membership({k: v for k, v in logits.items() if k != 'test'}, labels, convention='ssd')
    with self.assertRaisesRegex(ValueError, 'one class per record'):
      attributes = {split: np.eye(5)[part] for split, part in labels.items()}
      audit.membership(logits, attributes, convention='ccu_admin')
    with self.assertRaisesRegex(ValueError, 'do not fit'):
      audit.membership(logits, labels | {'forget': labels['forget'] + 9}, convention='auc')

  def test_attributes_have_the_other_conventions(self):
    task = toy.make(0)
    logits = logits_of(task, task.original)
    attributes = {split: np.eye(5)[part] for split, part in labels_of(task).items()}
    for convention in set(attacks.CONVENTIONS) - {'ccu_admin'}:
      found = audit.membership(logits, attributes, convention=convention, retrained_logits=logits)
      self.assertTrue(np.isfinite(found.value), convention)


if __name__ == '__main__':
  absltest.main()
