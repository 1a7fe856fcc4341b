"""Membership inference on losses."""

import math
import os

os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=8')

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
from sklearn import linear_model
from sklearn import model_selection

from unlearn_jax.evals import privacy
from unlearn_jax.evals import run
from unlearn_jax.losses import classification

# Inputs of the official `simple_mia` golden value.
GOLDEN_FORGET = np.linspace(0.01, 1, 40) ** 2
GOLDEN_UNSEEN = np.linspace(0.05, 2, 40)


def exponential(n, m, scale=0.6, seed=0):
  rng = np.random.default_rng(seed)
  return rng.exponential(scale, n), rng.exponential(1.0, m)


class ForgettingScoreTest(parameterized.TestCase):

  def test_golden_dlfd(self):
    found = privacy.forgetting_score(GOLDEN_FORGET, GOLDEN_UNSEEN, convention='dlfd', seed=3)
    self.assertAlmostEqual(found.accuracy, 0.7375, delta=1e-5)
    self.assertAlmostEqual(found.score, 0.2375, delta=1e-5)
    self.assertEqual(found.floor, 0.0)
    np.testing.assert_allclose(
        privacy.attack_accuracies(GOLDEN_FORGET, GOLDEN_UNSEEN),
        [0.5, 0.75, 1, 0.5, 0.75, 0.75, 0.625, 0.75, 0.875, 0.875], atol=1e-5)

  def test_golden_benchmark(self):
    found = privacy.forgetting_score(GOLDEN_FORGET, GOLDEN_UNSEEN, seed=42)
    self.assertAlmostEqual(found.accuracy, 0.675, delta=1e-5)
    self.assertAlmostEqual(found.score, 0.175, delta=1e-5)

  def test_benchmark_truncates_and_dlfd_does_not(self):
    forget, unseen = exponential(90, 30)
    kept, others = privacy.attacked_losses(forget, unseen, seed=1)
    self.assertLen(kept, 30)
    self.assertTrue(set(kept) <= set(forget))
    np.testing.assert_array_equal(others, unseen)
    other_seed, _ = privacy.attacked_losses(forget, unseen, seed=2)
    self.assertNotEqual(set(kept), set(other_seed))
    whole, _ = privacy.attacked_losses(forget, unseen, convention='dlfd', seed=1)
    np.testing.assert_array_equal(whole, forget)

  def test_floor_is_the_score_without_signal(self):
    constant = np.ones(90), np.ones(30)
    for convention, floor in (('benchmark', 0.0), ('dlfd', 0.25)):
      found = privacy.forgetting_score(*constant, convention=convention)
      self.assertAlmostEqual(found.floor, floor)
      self.assertAlmostEqual(found.score, floor)
    # Fewer forgotten than unseen records: the benchmark cannot balance them.
    self.assertAlmostEqual(privacy.forgetting_score(np.ones(10), np.ones(90)).floor, 0.4)

  def test_ideal_on_equal_distributions_and_far_from_it_on_others(self):
    same = privacy.forgetting_score(*exponential(1500, 1500, 1.0)).score
    memorised = privacy.forgetting_score(*exponential(1500, 1500, 0.01)).score
    self.assertLess(same, 0.03)
    self.assertGreater(memorised, 0.4)

  def test_both_sides_of_forgetting_leak(self):
    for scale in (0.05, 20.0):
      self.assertGreater(privacy.forgetting_score(*exponential(400, 400, scale)).score, 0.25)

  def test_records_in_another_order_score_alike(self):
    forget, unseen = exponential(500, 500)
    rng = np.random.default_rng(1)
    for convention in privacy.CONVENTIONS:
      scores = [privacy.forgetting_score(forget, unseen, convention=convention).score,
                privacy.forgetting_score(rng.permutation(forget), rng.permutation(unseen),
                                         convention=convention).score]
      self.assertLess(abs(scores[0] - scores[1]), 0.03)  # only the splits differ

  def test_inputs_are_left_alone(self):
    forget, unseen = exponential(40, 20)
    before = forget.copy()
    privacy.forgetting_score(forget, unseen)
    np.testing.assert_array_equal(forget, before)

  @parameterized.named_parameters(
      ('convention', np.ones(20), np.ones(20), {'convention': 'ssd'}, "benchmark.*'ssd'"),
      ('empty', np.ones(0), np.ones(20), {}, 'forget_losses is empty'),
      ('nan', np.ones(20), np.array([1.0, np.nan] * 10), {}, '10 of 20 unseen_losses.*diverged'),
      ('infinite', np.full(20, np.inf), np.ones(20), {}, '20 of 20 forget_losses'),
      ('rank', np.ones((20, 2)), np.ones(20), {}, r'one loss per record.*\(20, 2\)'),
      ('few', np.ones(5), np.ones(5), {}, 'at least 2 .* 11 in all, got 5 forget and 5 unseen'),
      ('one', np.ones(1), np.ones(50), {}, 'got 1 forget'),
  )
  def test_bad_input(self, forget, unseen, kwargs, message):
    with self.assertRaisesRegex(ValueError, message):
      privacy.forgetting_score(forget, unseen, **kwargs)

  def test_smallest_sizes_that_work(self):
    for n, m in ((2, 9), (5, 6)):
      found = privacy.forgetting_score(np.zeros(n), np.ones(m))
      self.assertBetween(found.score, 0, 0.5)


class AucTest(parameterized.TestCase):

  def test_naive_definition_with_ties(self):
    rng = np.random.default_rng(0)
    forget, unseen = rng.integers(0, 6, 31) / 2, rng.integers(1, 8, 17) / 2
    naive = np.mean([(f < u) + 0.5 * (f == u) for f in forget for u in unseen])
    self.assertAlmostEqual(privacy.auc(forget, unseen), naive, places=12)

  @parameterized.parameters(([1, 2], [3, 4], 1.0), ([3, 4], [1, 2], 0.0), ([1, 1], [1], 0.5))
  def test_extremes(self, forget, unseen, want):
    self.assertEqual(privacy.auc(forget, unseen), want)

  def test_closed_form_of_gaussians(self):
    rng = np.random.default_rng(0)
    forget, unseen = rng.normal(0.0, 1.0, 20000), rng.normal(0.8, 2.0, 20000)
    want = 0.5 * (1 + math.erf(0.8 / math.sqrt(5) / math.sqrt(2)))
    self.assertAlmostEqual(privacy.auc(forget, unseen), want, delta=0.01)

  def test_symmetries(self):
    forget, unseen = exponential(50, 70)
    rng = np.random.default_rng(0)
    value = privacy.auc(forget, unseen)
    self.assertAlmostEqual(privacy.auc(rng.permutation(forget), rng.permutation(unseen)), value)
    self.assertAlmostEqual(privacy.auc(np.log(forget), np.log(unseen)), value)  # any monotone map
    self.assertAlmostEqual(privacy.auc(unseen, forget), 1 - value)


class DeviceForgettingScoreTest(parameterized.TestCase):

  @parameterized.product(
      n=(60, 300, 1500),
      kind=('equal', 'mild', 'memorised', 'forgotten', 'lognormal', 'mixture'))
  def test_close_to_the_cross_validated_score(self, n, kind):
    for seed in range(3):
      rng = np.random.default_rng(seed)
      forget, other = {
          'equal': lambda: (rng.exponential(1, n), rng.exponential(1, n)),
          'mild': lambda: (rng.exponential(0.7, n), rng.exponential(1, n)),
          'memorised': lambda: (rng.exponential(0.03, n), rng.exponential(1, n)),
          'forgotten': lambda: (rng.exponential(4, n), rng.exponential(1, n)),
          'lognormal': lambda: (rng.lognormal(-3, 2, n), rng.lognormal(-1, 2, n)),
          'mixture': lambda: (np.where(rng.random(n) < 0.2, 4, 0.01) * rng.exponential(1, n),
                              np.where(rng.random(n) < 0.4, 5, 0.05) * rng.exponential(1, n)),
      }[kind]()
      found = float(privacy.device_forgetting_score(forget, other))
      self.assertAlmostEqual(found, privacy.forgetting_score(forget, other).score, delta=0.02)

  @parameterized.parameters((300, 90), (30, 400))
  def test_unequal_sizes(self, n, m):
    forget, other = exponential(n, m, 0.5)
    found = float(privacy.device_forgetting_score(forget, other, balanced=False))
    want = privacy.forgetting_score(forget, other, convention='dlfd').score
    self.assertAlmostEqual(found, want, delta=0.005)
    shuffled = forget.copy()
    np.random.RandomState(0).shuffle(shuffled)
    accuracy = model_selection.cross_val_score(
        linear_model.LogisticRegression(class_weight='balanced'),
        np.concatenate([other, shuffled])[:, None], np.repeat([0, 1], [m, n]),
        cv=model_selection.StratifiedShuffleSplit(n_splits=10, random_state=0),
        scoring='balanced_accuracy').mean()
    found = float(privacy.device_forgetting_score(forget, other))
    self.assertAlmostEqual(found, abs(0.5 - accuracy), delta=0.005)

  def test_balanced_has_no_floor(self):
    score = privacy.device_forgetting_score
    self.assertAlmostEqual(float(score(np.ones(90), np.ones(10))), 0.0)
    self.assertAlmostEqual(float(score(np.ones(90), np.ones(10), balanced=False)), 0.4, places=5)

  @parameterized.named_parameters(
      ('separable', np.zeros(50), np.ones(50), 0.5),
      ('separable_by_far', np.zeros(50), np.full(50, 1e30), 0.5),
      ('separable_other_way', np.full(400, 1e4), np.zeros(400), 0.5),
      ('constant', np.full(50, 3.0), np.full(20, 3.0), 0.0),
      ('one_each', np.array([1.0]), np.array([2.0]), 0.5),
      ('one_constant', np.array([1.0]), np.array([1.0]), 0.0),
  )
  def test_awkward_losses(self, forget, other, want):
    self.assertAlmostEqual(float(privacy.device_forgetting_score(forget, other)), want, places=6)

  def test_not_finite_is_not_hidden(self):
    forget, other = exponential(30, 30)
    self.assertTrue(np.isnan(privacy.device_forgetting_score(forget * np.nan, other)))
    other[3] = np.inf
    self.assertTrue(np.isnan(privacy.device_forgetting_score(forget, other)))
    where = np.arange(30) != 3
    self.assertTrue(np.isfinite(privacy.device_forgetting_score(forget, other, other_where=where)))

  @parameterized.parameters(True, False)
  def test_masked_equals_sliced(self, balanced):
    # Under 2 of a kind there are no splits, and so no difference.
    forget, other = exponential(1, 30)
    padded, where = np.concatenate([other, [99.0, np.nan]]), np.arange(32) < 30
    masked = privacy.device_forgetting_score(forget, padded, other_where=where, balanced=balanced)
    sliced = privacy.device_forgetting_score(forget, other, balanced=balanced)
    self.assertAlmostEqual(float(masked), float(sliced), places=6)

  def test_masks_thin_out_the_splits(self):
    forget, other = exponential(1500, 1500)
    whole = privacy.device_forgetting_score(forget, other)
    other[1200:] = np.nan
    masked = privacy.device_forgetting_score(forget, other, other_where=np.arange(1500) < 1200)
    self.assertAlmostEqual(float(masked), float(whole), delta=0.03)

  def test_nothing_on_one_side(self):
    forget, other = exponential(30, 30)
    score = privacy.device_forgetting_score
    self.assertEqual(float(score(forget, other, forget_where=np.zeros(30))), 0.0)
    self.assertEqual(float(score(forget, other, forget_where=np.zeros(30), balanced=False)), 0.5)

  def test_transformations(self):
    forget, other = (np.stack(side) for side in zip(*(exponential(40, 50, seed=i)
                                                      for i in range(3))))
    loop = [privacy.device_forgetting_score(f, o) for f, o in zip(forget, other)]
    np.testing.assert_allclose(jax.vmap(privacy.device_forgetting_score)(forget, other), loop,
                               atol=1e-6)
    np.testing.assert_allclose(jax.jit(privacy.device_forgetting_score)(forget[0], other[0]),
                               loop[0], atol=1e-6)


def linear_model_of(features=12, classes=5):
  """An `apply` that counts its traces, and variables for it."""
  traces = []

  def apply(variables, inputs, *, train=False, rngs=None, method=None):
    assert not train
    traces.append(1)
    logits = inputs['image'].reshape(len(inputs['image']), -1) @ variables['params']['w']
    return {'logits': logits, 'features': logits}, variables

  rng = np.random.default_rng(0)
  return apply, {'params': {'w': rng.normal(size=(features, classes)).astype(np.float32)}}, traces


def records(n, seed, attributes=False):
  rng = np.random.default_rng(seed)
  label = rng.integers(0, 2, (n, 5)).astype(np.float32) if attributes else rng.integers(0, 5, n)
  return {'image': rng.normal(size=(n, 2, 2, 3)).astype(np.float32), 'label': label,
          'id': np.arange(n)}


class ForgettingGateTest(parameterized.TestCase):

  @parameterized.product(batch_size=(7, 256), attributes=(False, True))
  def test_equals_measuring_by_hand(self, batch_size, attributes):
    apply, variables, _ = linear_model_of()
    data = {'forget': records(30, 0, attributes), 'validation': records(41, 1, attributes)}
    gate = privacy.forgetting_gate(data, batch_size=batch_size)
    found = gate.run(apply, variables)
    losses, hits = {}, {}
    for role, fields in data.items():
      logits = run.predict(apply, variables, fields)['logits']
      losses[role] = classification.example_loss(logits, fields['label'])
      hits[role] = float(np.mean(classification.accuracy(logits, fields['label'])))
    sides = losses['forget'], losses['validation']
    want = {'forgetting_score': float(privacy.device_forgetting_score(*sides)),
            'forgetting_score[dlfd]': privacy.forgetting_score(*sides, convention='dlfd').score,
            'accuracy/validation': hits['validation'], 'accuracy/forget': hits['forget']}
    self.assertCountEqual(found, want)
    for name, value in want.items():
      delta = 0.02 if name == 'forgetting_score[dlfd]' else 1e-5
      self.assertAlmostEqual(float(found[name]), value, delta=delta, msg=name)

  def test_traces_once_even_for_several_gates(self):
    apply, variables, traces = linear_model_of()
    data = {'forget': records(10, 0), 'validation': records(20, 1)}
    first = privacy.forgetting_gate(data, every=3)
    found = [jax.device_get(first.run(apply, {'params': {'w': scale * variables['params']['w']}}))
             for scale in (1.0, -1.0)]
    self.assertNotEqual(*found)
    privacy.forgetting_gate(data).run(apply, variables)
    self.assertLen(traces, 1)
    self.assertEqual(first.every, 3)

  def test_data_is_no_constant_of_the_program(self):
    apply, variables, _ = linear_model_of()
    jaxpr = jax.make_jaxpr(lambda v: privacy.forgetting_gate(
        {'forget': records(10, 0), 'validation': records(20, 1)}).run(apply, v))(variables)
    inner = [equation.params['jaxpr'] for equation in jaxpr.eqns
             if equation.primitive.name == 'jit']
    self.assertLen(inner, 1)
    sizes = [np.size(constant) for constant in inner[0].consts]
    self.assertLess(sum(sizes), 30 * 5, sizes)  # positions of the splits; pictures have 30 * 12

  def test_sharded_over_a_mesh(self):
    apply, variables, _ = linear_model_of()
    gate = privacy.forgetting_gate({'forget': records(30, 0), 'validation': records(41, 1)},
                                   batch_size=20)
    mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    replicated = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
    one, many = gate.run(apply, variables), gate.run(apply, replicated)
    for name in one:
      self.assertAlmostEqual(float(one[name]), float(many[name]), places=5)

  def test_planted_memorisation(self):
    apply, variables, _ = linear_model_of()
    forget, validation = records(60, 0), records(60, 1)
    logits = run.predict(apply, variables, forget)['logits']
    forget['label'] = logits.argmax(1)  # the model is right on every forgotten record
    found = privacy.forgetting_gate({'forget': forget, 'validation': validation}).run(
        apply, variables)
    self.assertEqual(float(found['accuracy/forget']), 1.0)
    self.assertGreater(float(found['forgetting_score']), 0.2)

  def test_bad_data(self):
    good = records(5, 0)
    with self.assertRaisesRegex(ValueError, r"needs \['validation'\]"):
      privacy.forgetting_gate({'forget': good})
    with self.assertRaisesRegex(ValueError, 'at least 1'):
      privacy.forgetting_gate({'forget': records(0, 0), 'validation': good})
    with self.assertRaisesRegex(ValueError, 'different fields'):
      privacy.forgetting_gate({'forget': good, 'validation': good | {'text': np.ones(5)}})

  def test_one_forgotten_record(self):
    apply, variables, _ = linear_model_of()
    found = privacy.forgetting_gate({'forget': records(1, 0), 'validation': records(20, 1)}).run(
        apply, variables)
    self.assertTrue(all(np.isfinite(float(value)) for value in found.values()))


if __name__ == '__main__':
  absltest.main()
