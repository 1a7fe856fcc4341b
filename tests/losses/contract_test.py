"""What every public loss promises; a loss that is added without a case here fails."""

import functools
import importlib
import inspect
import os
import pkgutil

os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=8')

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import losses
from unlearn_jax.losses import baselines
from unlearn_jax.losses import ccu
from unlearn_jax.losses import classification
from unlearn_jax.losses import contrastive
from unlearn_jax.losses import dlfd
from unlearn_jax.losses import ease
from unlearn_jax.losses import federated
from unlearn_jax.losses import i2i
from unlearn_jax.losses import ncu
from unlearn_jax.losses import subspace
from unlearn_jax.losses import transport

RNG = np.random.default_rng(0)


def floats(*shape):
  return RNG.normal(size=shape).astype(np.float32)


LOGITS, TEACHER, FORGET = floats(4, 3), floats(4, 3), floats(5, 3)
CLASSES, FORGET_CLASSES = np.array([0, 2, 1, 1], np.int32), np.array([1, 0, 2, 2, 0], np.int32)
ATTRIBUTES = (floats(4, 3) > 0).astype(np.float32)
WHERE, FORGET_WHERE = np.array([1, 0, 1, 1], np.float32), np.array([1, 1, 0, 1, 0], np.float32)
X, Y = floats(4, 3), floats(5, 3)
X2, X3, SCALE = floats(4, 3), floats(4, 3), np.float32(1.5)
COST = np.abs(floats(4, 5))
INCOMPETENT, PICTURES, IS_FORGET = floats(4, 3), floats(4, 2, 2, 1), np.array([0, 1, 1, 0], bool)
IMPORTANCE = np.abs(floats(4, 3))
LATENT, LATENT2 = floats(4, 2, 3), floats(4, 2, 3)
SOUND, FORGET_SOUND = floats(4, 2), floats(5, 2)
PAIRS = (X, X2, X3, floats(4, 3), floats(4, 3), floats(4, 3))
# Parameters [P] and, in their space, frames [P, 3], [P, 2] and updates of three clients [K, P].
PARAMS, LOCKED, DELTA, CLIENTS = floats(6), floats(6), floats(6), floats(3, 6)
FRAME, FRAME2 = (np.linalg.qr(floats(6, n))[0] for n in (3, 2))
FRAMES, FRAMES_MASK = np.stack([FRAME, FRAME[::-1]]), np.array([[1, 1, 0], [1, 1, 1]], bool)
TRANSPORT = ('transport.sinkhorn_plan', 'transport.masked_plan', 'transport.released_dlfd_plan',
             'transport.released_ncu_plan', 'ncu.unlearning', 'dlfd.ot_distance',
             'dlfd.perturbation_objective')

# name: (function, arrays, traced keywords, static keywords); several cases of a function by suffix.
CASES = {
    'classification.example_loss': (classification.example_loss, (LOGITS, CLASSES), {}, {}),
    'classification.example_loss:attributes': (
        classification.example_loss, (LOGITS, ATTRIBUTES), {}, {}),
    'classification.cross_entropy': (
        classification.cross_entropy, (LOGITS, CLASSES), {'where': WHERE}, {}),
    'classification.accuracy': (classification.accuracy, (LOGITS, CLASSES), {}, {}),
    'classification.accuracy:attributes': (
        classification.accuracy, (LOGITS, ATTRIBUTES), {}, {}),
    'classification.top_k_accuracy': (
        classification.top_k_accuracy, (LOGITS, CLASSES), {}, {'k': 2}),
    'baselines.distillation_kl': (
        baselines.distillation_kl, (LOGITS, TEACHER), {'temperature': 4.0, 'where': WHERE}, {}),
    'baselines.distillation_kl:attributes': (
        baselines.distillation_kl, (LOGITS, TEACHER), {'temperature': 2.0}, {'multi_label': True}),
    'baselines.neg_grad': (baselines.neg_grad, (LOGITS, CLASSES), {'where': WHERE}, {}),
    'baselines.neg_grad_plus': (
        baselines.neg_grad_plus, (LOGITS, CLASSES, FORGET, FORGET_CLASSES),
        {'alpha': 0.95, 'retain_where': WHERE, 'forget_where': FORGET_WHERE}, {}),
    'baselines.scrub_min': (
        baselines.scrub_min, (LOGITS, TEACHER, CLASSES),
        {'gamma': 0.99, 'alpha': 0.001, 'temperature': 4.0, 'where': WHERE}, {}),
    'baselines.scrub_max': (
        baselines.scrub_max, (LOGITS, TEACHER), {'temperature': 4.0, 'where': WHERE}, {}),
    'baselines.bad_teacher': (
        baselines.bad_teacher, (LOGITS, TEACHER, INCOMPETENT, IS_FORGET),
        {'temperature': 2.0, 'where': WHERE}, {}),
    'baselines.bad_teacher:attributes': (
        baselines.bad_teacher, (LOGITS, TEACHER, INCOMPETENT, IS_FORGET), {'temperature': 1.0},
        {'multi_label': True}),
    'baselines.unsir_noise': (
        baselines.unsir_noise, (LOGITS, CLASSES, PICTURES), {'weight': 0.1, 'where': WHERE}, {}),
    'baselines.l1_norm': (baselines.l1_norm, (X,), {}, {}),
    'baselines.dampen': (
        baselines.dampen, (X, np.abs(TEACHER), IMPORTANCE), {'alpha': 1.0, 'lam': 0.5}, {}),
    'transport.cosine_cost': (transport.cosine_cost, (X, Y), {}, {}),
    'transport.sinkhorn_plan': (
        transport.sinkhorn_plan, (COST,), {'epsilon': 0.1, 'threshold': 1e-3},
        {'max_iterations': 5}),
    'transport.masked_plan': (
        transport.masked_plan, (COST, COST < 0.9), {'epsilon': 0.1, 'threshold': 1e-3},
        {'max_iterations': 5}),
    'transport.released_dlfd_plan': (
        transport.released_dlfd_plan, (COST,), {'epsilon': 0.1, 'threshold': 0.1},
        {'max_iterations': 5}),
    'transport.released_ncu_plan': (
        transport.released_ncu_plan, (COST, COST < 0.9), {'epsilon': 0.1, 'threshold': 1e-3},
        {'max_iterations': 5}),
    'contrastive.similarity': (contrastive.similarity, (X, Y), {}, {}),
    'contrastive.info_nce': (
        contrastive.info_nce, (X, X2, SCALE), {'label_smoothing': 0.1}, {}),
    'contrastive.gradient_ascent': (
        contrastive.gradient_ascent, (X, X2, SCALE, IS_FORGET),
        {'label_smoothing': 0.1, 'weight': 0.5}, {}),
    'contrastive.relabelling': (contrastive.relabelling, (X, X2, SCALE, IS_FORGET), {}, {}),
    'contrastive.soft_clip': (
        contrastive.soft_clip, (X, X2, SCALE),
        {'softness': 0.3, 'soft_weight': 1.0, 'relation_weight': 0.5}, {}),
    'contrastive.pairwise_sigmoid': (
        contrastive.pairwise_sigmoid, (X, X2, SCALE), {'where': WHERE}, {'opposite': True}),
    'ncu.clean_confidence': (ncu.clean_confidence, (X, X2, SCALE), {}, {'reading': 'release'}),
    'ncu.forget_pairs': (ncu.forget_pairs, (X, X2, SCALE), {}, {'forget_fraction': 0.25}),
    'ncu.hardest_negative': (
        ncu.hardest_negative, (X, X2, X3, SCALE), {'weight': 10.0, 'lower': -0.7, 'upper': -0.2},
        {'forget_fraction': 0.25}),
    'ncu.unlearning': (
        ncu.unlearning, (X, X2, X3, SCALE), {'gamma': 0.7, 'epsilon': 0.1, 'threshold': 1e-3},
        {'forget_fraction': 0.25, 'max_iterations': 5}),
    'ccu.selective_visual_unlearning': (
        ccu.selective_visual_unlearning, (Y, X, FORGET_SOUND, SOUND, FORGET_CLASSES, CLASSES),
        {'temperature': 0.7, 'forget_where': FORGET_WHERE, 'retain_where': WHERE},
        {'reduce': 'sum'}),
    'ccu.cross_modal_retention': (
        ccu.cross_modal_retention, (X, X2), {'temperature': 0.7, 'where': WHERE},
        {'reduce': 'mean'}),
    'ccu.dual_set_separation': (
        ccu.dual_set_separation, (X, SOUND, CLASSES), {'temperature': 0.7, 'where': WHERE}, {}),
    'i2i.encoder_distance': (i2i.encoder_distance, (LATENT, LATENT2), {}, {}),
    'i2i.encoder_distance:normalized': (
        i2i.encoder_distance, (LATENT, LATENT2), {},
        {'norm': 'l2_normalized', 'stage_reduce': 'sum_of_means'}),
    'i2i.unlearning': (
        i2i.unlearning, (LATENT, LATENT2, Y, FORGET),
        {'alpha': 0.25, 'retain_where': WHERE, 'forget_where': FORGET_WHERE}, {'norm': 'mse'}),
    'i2i.infonce': (i2i.infonce, (LATENT, LATENT2), {'where': WHERE}, {'normalize': True}),
    'i2i.information_bound': (i2i.information_bound, (LATENT, LATENT2), {'where': WHERE}, {}),
    'subspace.basis': (subspace.basis, (FORGET,), {'energy': 0.9}, {'max_rank': 2}),
    'subspace.orthonormal': (subspace.orthonormal, (FORGET,), {'tolerance': 1e-3}, {}),
    'subspace.union': (subspace.union, (FRAMES, FRAMES_MASK), {}, {}),
    'subspace.cosine_sine': (
        subspace.cosine_sine, (FRAME, FRAME2),
        {'forget_mask': np.array([1, 0, 1]), 'retain_mask': np.array([1, 1])}, {}),
    'subspace.pairwise': (
        subspace.pairwise, (FRAME2, FRAMES),
        {'forget_mask': np.array([0, 1]), 'retain_masks': FRAMES_MASK}, {}),
    'subspace.exclusive': (
        subspace.exclusive, (np.float32([0.9, 0.2]), np.float32([0.4, 0.9]), FRAME2),
        {'threshold': 0.5}, {}),
    'subspace.exclusive:soft': (
        subspace.exclusive, (np.float32([0.9, 0.2]), np.float32([0.4, 0.9]), FRAME2), {},
        {'soft': True}),
    'subspace.principal_angles': (
        subspace.principal_angles, (FRAME, FRAME2),
        {'first_mask': np.array([1, 0, 1]), 'second_mask': np.array([1, 1])}, {}),
    'subspace.entanglement': (subspace.entanglement, (FRAMES, FRAMES_MASK), {}, {}),
    'subspace.captured_energy': (subspace.captured_energy, (CLIENTS.T, FRAME), {}, {}),
    'subspace.project_out': (subspace.project_out, (PARAMS, FRAME), {}, {}),
    'subspace.project_out:sides': (
        subspace.project_out, (PARAMS, {'matrix': {'left': FRAME}}), {}, {}),
    'subspace.coordinates': (subspace.coordinates, (PARAMS, FRAME), {}, {}),
    'ease.local_loss': (ease.local_loss, (X, X2, SCALE), {'where': WHERE}, {}),
    'ease.bilateral_displacement': (
        ease.bilateral_displacement, PAIRS,
        {'temperature': 0.5, 'weights': (1.0, 0.5, 2.0), 'where': WHERE}, {}),
    'ease.bilateral_displacement:uniform': (
        ease.bilateral_displacement, PAIRS, {'temperature': 0.5}, {'reference': 'uniform'}),
    'ease.neg_nce': (ease.neg_nce, (X, X2, SCALE), {'where': WHERE}, {}),
    'ease.uce': (ease.uce, (X, X2, SCALE), {'where': WHERE}, {}),
    'ease.hinge': (
        ease.hinge, PAIRS[:4], {'margin': 0.1, 'weights': (1.0, 0.5, 2.0), 'where': WHERE}, {}),
    'ease.server_round': (ease.server_round, (PARAMS, LOCKED, DELTA, FRAME, FRAME2), {}, {}),
    'ease.excise': (ease.excise, (PARAMS, LOCKED, FRAME), {'fraction': 0.5}, {}),
    'ease.forget_lock': (
        ease.forget_lock, (PARAMS, LOCKED, FRAME), {'step_size': 0.1, 'strength': 5.0}, {}),
    'ease.automatic_strength': (
        ease.automatic_strength, (CLIENTS, DELTA, FRAME),
        {'fraction': 0.1, 'where': np.array([1, 0, 1])}, {}),
    'federated.orthogonal_direction': (
        federated.orthogonal_direction, (PARAMS, CLIENTS),
        {'tolerance': 1e-2, 'where': np.array([1, 0, 1])}, {}),
    'federated.without_return': (federated.without_return, (PARAMS, DELTA), {}, {}),
    'federated.project_on_ball': (
        federated.project_on_ball, (PARAMS, LOCKED), {'radius': 0.5}, {}),
    'dlfd.ot_distance': (
        dlfd.ot_distance, (X, Y), {'epsilon': 0.1, 'x_where': WHERE, 'y_where': FORGET_WHERE},
        {'max_iterations': 5}),
    'dlfd.ot_distance:release': (
        dlfd.ot_distance, (X, Y), {'epsilon': 0.1}, {'max_iterations': 5, 'reading': 'release'}),
    'dlfd.perturbation_objective': (
        dlfd.perturbation_objective, (X, Y, LOGITS, CLASSES),
        {'class_weight': 0.5, 'transport_weight': 3.0, 'epsilon': 0.1, 'retain_where': WHERE,
         'forget_where': FORGET_WHERE}, {'max_iterations': 5}),
    'dlfd.ascend': (dlfd.ascend, (X, Y[:4]), {'step_size': 0.1, 'bounds': (-0.5, 0.5)}, {}),
    'dlfd.linear_weight': (dlfd.linear_weight, (np.int32(2), np.int32(5)),
                           {'start': 0.5, 'end': 1.0}, {}),
}
# These take a function and trees, no arrays: tests/losses/baselines_test.py has them.
OF_FUNCTIONS = {'baselines.importance': baselines.importance,
                'baselines.squared_gradient': baselines.squared_gradient}
# A sum over a tree of any shapes has no rank to check; dampened parameters keep their own dtype.
ANY_SHAPE, OWN_DTYPE = ('baselines.l1_norm',), ('baselines.dampen',)
NAMED = tuple((name.replace('.', '_').replace(':', '_'), *case) for name, case in CASES.items())
OTT_FREE = tuple(row for row, name in zip(NAMED, CASES) if name.split(':')[0] not in TRANSPORT)
SHAPED = tuple(row for row, name in zip(NAMED, CASES) if name not in ANY_SHAPE)
SELECTIONS = ('ncu.forget_pairs',)  # booleans
WIDENED = tuple(row for row, name in zip(NAMED, CASES) if name not in OWN_DTYPE + SELECTIONS)
VARIANTS = ('with_jit', 'without_jit', 'with_pmap')


def public_functions():
  """module.name -> function, for everything that a loss module defines and does not hide."""
  found = {}
  for info in pkgutil.iter_modules(losses.__path__):
    if info.name.startswith('_') or info.name == 'checks':  # checks run on the host
      continue
    module = importlib.import_module(f'{losses.__name__}.{info.name}')
    for name, value in vars(module).items():
      own = getattr(value, '__module__', None) == module.__name__
      if own and callable(value) and not name.startswith('_') and not inspect.isclass(value):
        found[f'{info.name}.{name}'] = value
  return found


def cast(tree, dtype):
  return jax.tree.map(
      lambda x: jnp.asarray(x, dtype) if np.asarray(x).dtype == np.float32 else x, tree)


class CompletenessTest(parameterized.TestCase):

  def test_every_public_function_has_a_case(self):
    covered = {name.split(':')[0]: case[0] for name, case in CASES.items()}
    self.assertEqual({**covered, **OF_FUNCTIONS}, public_functions())
    self.assertNoCommonElements(covered, OF_FUNCTIONS)
    for function in OF_FUNCTIONS.values():
      self.assertIn('apply_loss', inspect.signature(function).parameters)

  def test_every_module_is_reachable(self):
    modules = {i.name for i in pkgutil.iter_modules(losses.__path__) if not i.name.startswith('_')}
    self.assertEqual(modules, set(losses.__all__) - {n for n in losses.__all__ if '_' in n})
    for name in losses.__all__:
      self.assertIsNotNone(getattr(losses, name))
    with self.assertRaisesRegex(AttributeError, 'nothing_of_the_kind'):
      losses.nothing_of_the_kind  # pylint: disable=pointless-statement

  def test_no_variant_is_missing(self):
    self.assertEqual(jax.device_count(), 8)
    tests = [name for name in dir(VariantsTest) if name.startswith('test')]
    self.assertLen(tests, len(VARIANTS) * len(CASES))
    for variant in VARIANTS:
      self.assertLen([name for name in tests if name.endswith(variant)], len(CASES))


class VariantsTest(chex.TestCase, parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
  @parameterized.named_parameters(*NAMED)
  def test(self, loss, arrays, traced, static):
    want = loss(*arrays, **traced, **static)
    # Without jit the plain function runs: the compiled one would be compiled all the same.
    plain = self._testMethodName.endswith('without_jit')
    variant = self.variant(functools.partial(loss.__wrapped__ if plain else loss, **static),
                           reduce_fn='identity')
    got = variant(*arrays, **traced)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
      if self._testMethodName.endswith('with_pmap'):  # one result per device, and all of them right
        self.assertEqual(one.shape, (8, *other.shape))
        self.assertLen(one.sharding.device_set, 8)
      else:
        self.assertEqual(one.shape, other.shape)
      self.assertEqual(one.dtype, other.dtype)
      for result in one.reshape(-1, *other.shape):
        np.testing.assert_allclose(result, other, rtol=1e-5, atol=1e-6)


class PromisesTest(parameterized.TestCase):

  @parameterized.named_parameters(*NAMED)
  def test_compiled_documented_and_keyword_only(self, loss, arrays, traced, static):
    self.assertIsInstance(loss, jax.stages.Wrapped)
    self.assertEqual(loss.__doc__, loss.__wrapped__.__doc__)
    for section in ('Args:', 'Returns:', *(('Raises:',) if loss is not baselines.l1_norm else ())):
      self.assertIn(section, loss.__doc__)
    signature = inspect.signature(loss)
    self.assertEqual(signature, inspect.signature(loss.__wrapped__))
    keyword_only = {n for n, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY}
    self.assertContainsSubset({*traced, *static}, keyword_only)
    for name in signature.parameters:
      self.assertRegex(loss.__doc__, rf'\n    {name}: ')
    del arrays

  @parameterized.named_parameters(*SHAPED)
  def test_wrong_rank_raises(self, loss, arrays, traced, static):
    arrays = (arrays[0][None], *arrays[1:])
    with self.assertRaisesRegex(AssertionError, 'Chex'):
      loss(*arrays, **traced, **static)

  @parameterized.named_parameters(*NAMED)
  def test_gradient_is_finite_and_floats_are_traced(self, loss, arrays, traced, static):
    moving = {i: a for i, a in enumerate(arrays) if np.asarray(a).dtype == np.float32}

    @jax.jit
    @jax.grad
    def gradient(moving, traced):
      filled = [moving.get(i, a) for i, a in enumerate(arrays)]
      out = loss(*filled, **traced, **static)
      return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(out)
                 if jnp.issubdtype(leaf.dtype, jnp.floating)) + 0.0  # a selection has none

    first = gradient(moving, traced)
    chex.assert_tree_all_finite(first)
    chex.assert_trees_all_equal_shapes_and_dtypes(first, moving)
    gradient(moving, jax.tree.map(lambda x: x * 0.5 if isinstance(x, float) else x, traced))
    self.assertEqual(gradient._cache_size(), 1)

  @parameterized.named_parameters(*WIDENED)
  def test_computes_in_float32_at_least(self, loss, arrays, traced, static):
    def dtypes(dtype):
      out = jax.eval_shape(functools.partial(loss, **static), *cast(arrays, dtype), **traced)
      return {leaf.dtype for leaf in jax.tree.leaves(out)
              if jnp.issubdtype(leaf.dtype, jnp.floating)}

    self.assertEqual(dtypes(jnp.bfloat16), {np.dtype('float32')})
    self.assertEqual(dtypes(jnp.float32), {np.dtype('float32')})
    if any(np.asarray(a).dtype == np.float32 for a in arrays):
      with jax.enable_x64(True):
        self.assertEqual(dtypes(jnp.float64), {np.dtype('float64')})

  @parameterized.named_parameters(*OTT_FREE)
  def test_strict_promotion(self, loss, arrays, traced, static):
    arrays = jax.tree.map(jnp.asarray, arrays)
    want = loss(*arrays, **traced, **static)
    with jax.numpy_dtype_promotion('strict'), jax.numpy_rank_promotion('raise'):
      got = jax.jit(functools.partial(loss.__wrapped__, **static))(*arrays, **traced)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), got, want)

  def test_dissolves_inside_an_outer_jit(self):
    text = str(jax.make_jaxpr(lambda z: baselines.neg_grad(z, CLASSES))(LOGITS))
    for name in ('neg_grad', 'cross_entropy', 'example_loss'):
      self.assertNotIn(f'name={name}', text)

  @parameterized.named_parameters(*(row for row, name in zip(NAMED, CASES) if 'dlfd.ot' in name))
  def test_gradients_outside_of_jit_compile_once(self, loss, arrays, traced, static):
    gradient = jax.grad(functools.partial(loss, **static))
    for _ in range(2):
      gradient(*arrays, **traced)
    with jax.log_compiles(), self.assertNoLogs('jax', level='WARNING'):
      gradient(*arrays, **traced)


if __name__ == '__main__':
  absltest.main()
