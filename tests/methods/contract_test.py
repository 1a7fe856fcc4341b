"""One suite over every registered method, in the tiny world of its kind of task.

`small forget sets` is not for methods on pairs, which are given batches in which they choose what to
forget, full ones always. `attribute labels` is for classification alone: pairs have captions
instead, and what is made for two modalities compares classes or reads no labels.
"""

import functools
import tempfile
from typing import NamedTuple

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from tests.methods import worlds
from tests.methods.worlds import BATCH
from tests.methods.worlds import flat
from unlearn_jax import methods
from unlearn_jax import models
from unlearn_jax import types
from unlearn_jax.methods import registry
from unlearn_jax.train import checkpoint
from unlearn_jax.train import loop

# Every registered method with its defaults, shortened, and the variants that take other paths.
SHORT = {
    'retrain': {'epochs': 1.0},
    'finetune': {'epochs': 1.0},
    'neg_grad': {'epochs': 1.0, 'learning_rate': 0.05},
    'neg_grad_plus': {'epochs': 1.0},
    'random_label': {'epochs': 2},
    'l1_sparse': {'epochs': 2, 'plain_epochs': 1},
    'cf_k': {'epochs': 2.0, 'k': 1},
    'eu_k': {'epochs': 2.0, 'k': 1},
    'unsir': {'noise_size': 8, 'noise_steps': 2},
    'bad_teacher': {'epochs': 2.0, 'optimizer': 'sgd', 'learning_rate': 0.1},
    'scrub': {'epochs': 3, 'max_epochs': 2, 'learning_rate': 0.05, 'optimizer': 'sgd',
              'weight_decay': 5e-4, 'decay_epochs': (1,)},
    'ssd': {'alpha': 1.0},
    'salun': {'epochs': 2},
    'dlfd': {'perturb_steps': 2, 'step_size': 0.02, 'threshold': 0.0, 'max_iterations': 10},
}
# Of pairs: plain SGD, with which 1 and 8 devices agree to 1e-5.
PAIRS = {'optimizer': 'sgd', 'epochs': 1.0}
SELECTS = PAIRS | {'forget_fraction': 0.25}
STAGES = SELECTS | {'negative_epochs': 1.0, 'warmup_steps': 0, 'frozen_text_blocks': 1,
                    'learning_rate': 1e-3, 'text_learning_rate': 1e-3}
CCU = {'epochs': 1.0, 'omega': 2, 'final_share': 0.5, 'learning_rate': 0.05}  # four steps
SHORT |= {
    'contrastive': PAIRS,
    'continued': PAIRS,
    'gradient_ascent': SELECTS,
    'relabelling': SELECTS,
    'soft_clip': PAIRS,
    'ncu': STAGES,
    'multi_delete': {'epochs': 2.0, 'optimizer': 'sgd', 'learning_rate': 0.1},
    'ccu': CCU,
}
# Of adapters in a federation of eight clients.
LOCAL = {'optimizer': 'sgd', 'learning_rate': 0.1}
RECOVER = LOCAL | {'recover_rounds': 1}
CLIMB = RECOVER | {'rounds': 1, 'forget_learning_rate': 0.1}
SHORT |= {
    'federate': LOCAL | {'rounds': 2},
    'fed_finetune': LOCAL | {'rounds': 1},
    'fed_ga': CLIMB,
    'pga': RECOVER | {'epochs': 1},
    'fed_eraser': RECOVER | {'replay_rounds': 1},
    'fed_recovery': RECOVER,
    'sfu': CLIMB | {'probe_rounds': 1},
    'fed_osd': CLIMB,
    'fed_not': RECOVER,
    'fused': RECOVER,
    'fed_multi_delete': CLIMB,
    'clip_erase': CLIMB,
    'ease': RECOVER | {'rounds': 1, 'displacement_steps': 2, 'displacement_learning_rate': 0.1},
}
# Of generators. The mean of squares: where student and reference agree up to rounding, the gradient of
# the norm is a unit vector of no direction in particular, and 1 and 8 devices round differently.
GENERATE = {'optimizer': 'sgd', 'epochs': 1.0, 'learning_rate': 0.1}
ENCODE = GENERATE | {'norm': 'mse'}
SHORT |= {
    'reconstruct': GENERATE | {'warmup_epochs': 0.5},
    'i2i': ENCODE,
    'max_loss': GENERATE,
    'noisy_label': GENERATE,
    'retain_label': GENERATE,
    'random_encoder': ENCODE,
}
VARIANTS = {
    'scrub rewind': {**SHORT['scrub'], 'rewind': True},
    'scrub adam': {**SHORT['scrub'], 'optimizer': 'adam', 'learning_rate': 1e-3},
    'bad_teacher adam': {**SHORT['bad_teacher'], 'optimizer': 'adam', 'learning_rate': 1e-3},
    'dlfd release': {**SHORT['dlfd'], 'reading': 'release', 'epochs': 2.0},
    'dlfd closed gate': {**SHORT['dlfd'], 'threshold': 9.0},
    'dlfd static': {**SHORT['dlfd'], 'dynamic': False, 'bounds': (0.0, 1.0)},
    'dlfd alone': {**SHORT['dlfd'], 'dynamic': False, 'class_loss': False},
    'neg_grad recover': {**SHORT['neg_grad'], 'recover': 1.0},
    'scrub rewind recover': {**SHORT['scrub'], 'rewind': True, 'recover': 1.0},
    'ncu release': {**STAGES, 'reading': 'release'},
    'ncu written': {**STAGES, 'negative': 'written'},
    'ncu false negatives': {**STAGES, 'targets': 'false_negatives'},
    'multi_delete adam': {**SHORT['multi_delete'], 'optimizer': 'adam', 'learning_rate': 1e-3},
    'ccu frozen': {**CCU, 'freeze_other': True},
    'ccu recover': {**CCU, 'recover': 1.0},
    'i2i adam': {'epochs': 1.0},
    'i2i covariance': {**ENCODE, 'noise': 'covariance', 'rank': 2},
}
CASES = {**{name: SHORT.get(name, {}) for name in methods.names()}, **VARIANTS}
KINDS = {case: worlds.kind_of(case.split()[0]) for case in CASES}
CLASSIFY = tuple(case for case in CASES if KINDS[case] == 'classification')
FORGET_SETS = tuple(case for case in CASES if KINDS[case] in registry.LABELLED)
# Leave some parameters as they are: earlier layers, or later ones than their losses look at, or what
# their mask or their rules do not select.
PARTIAL = ('cf_k', 'eu_k', 'ssd', 'salun', 'multi_delete', 'multi_delete adam', 'ccu', 'ccu frozen',
           'i2i', 'i2i adam', 'i2i covariance', 'random_encoder')
# Ablations that take the losses' paths and not the loop's; they take seconds to compile.
ABLATIONS = ('ncu written', 'ncu false negatives')
# Their rounds are made of the pieces of `federate` and `ease`, which stand for them where a test takes
# seconds of compilation.
ROUNDS = tuple(case for case in CASES if KINDS[case] == 'federated'
               and case not in ('federate', 'ease'))
# Made of the pieces of `max_loss` and `i2i`, which stand for them there.
GENERATORS = ('noisy_label', 'retain_label', 'random_encoder', 'i2i adam', 'i2i covariance')
# Adam's first steps magnify the order in which devices add up.
ADAM = ('adam', 'unsir')


class Watched(NamedTuple):
  """What a run leaves behind.

  Attributes:
    result: of the loop.
    source: a copy of the variables given, made before the run.
    frozen: what `init` gave to the steps.
    frozen_before: a copy of it, made before the first step.
    traces: step function -> how often it was traced.
  """

  result: loop.Result
  source: dict[str, np.ndarray]
  frozen: types.PyTree
  frozen_before: dict[str, np.ndarray]
  traces: dict[types.StepFn, int]


def run(case: str, **changes) -> loop.Result:
  return worlds.run(case.split()[0], CASES[case], **changes)


@functools.cache
def watched(case: str) -> Watched:
  """The plain run of a case, which most tests look at."""
  seen, traces, wrapped = [], {}, {}
  before = copied(source(case))

  def watch(method):
    def init(key, given):
      state, frozen = method.init(key, given)
      seen.extend((frozen, copied(frozen)))
      return state, frozen

    def counted(step):
      def fn(state, frozen, batch):
        traces[step] = traces.get(step, 0) + 1
        return step(state, frozen, batch)
      return wrapped.setdefault(step, fn)

    return method._replace(init=init, phases=tuple(
        phase._replace(step=counted(phase.step)) for phase in method.phases))

  return Watched(run(case, wrap=watch), before, *seen, traces)


def source(case: str) -> types.Variables:
  return worlds.world(case.split()[0]).variables


def copied(tree) -> dict[str, np.ndarray]:
  return {name: leaf.copy() for name, leaf in flat(tree).items()}


class ContractTest(parameterized.TestCase):

  @parameterized.parameters(*CASES)
  def test_student_moves_and_stays_finite(self, case):
    learned = 'adapter' if KINDS[case] == 'federated' else 'params'
    before, after = flat(source(case)[learned]), flat(watched(case).result.variables[learned])
    self.assertEqual(before.keys(), after.keys())
    self.assertTrue(all(np.isfinite(leaf).all() for leaf in after.values()))
    moved = [(before[name] != after[name]).any() for name in before]
    self.assertTrue(any(moved) if case in PARTIAL else all(moved))

  @parameterized.parameters(*CASES)
  def test_teacher_and_source_do_not_move(self, case):
    found = watched(case)
    jax.tree.map(np.testing.assert_array_equal, flat(found.frozen), found.frozen_before)
    jax.tree.map(np.testing.assert_array_equal, flat(source(case)), found.source)

  @parameterized.parameters(*(case for case in CASES if not case.startswith('ncu ')
                              and case not in (*ROUNDS, *GENERATORS)))
  def test_donation_is_safe_when_frozen_is_the_source_itself(self, case):
    # A careless method hands the very same arrays to the state and to `frozen`.
    def alias(method):
      def init(key, given):
        state, frozen = method.init(key, given)
        if 'teacher' in frozen:
          frozen = {**frozen, 'teacher': given}
        return state, {**frozen, 'alias': state.params}
      return method._replace(init=init)

    careless = run(case, wrap=alias)
    jax.tree.map(np.testing.assert_array_equal, flat(careless.variables),
                 flat(watched(case).result.variables))
    self.assertFalse(any(leaf.is_deleted() for leaf in jax.tree.leaves(source(case))))

  @parameterized.product(case=FORGET_SETS, forget=(1, 5))
  def test_small_forget_sets(self, case, forget):
    result = run(case, forget=forget)
    self.assertTrue(all(np.isfinite(leaf).all() for leaf in flat(result.variables).values()))

  @parameterized.parameters(*CASES)
  def test_traces_once_per_step_function(self, case):
    traces = watched(case).traces
    self.assertNotEmpty(traces)
    self.assertEqual(set(traces.values()), {1})

  @parameterized.parameters(*CASES)
  def test_export_loads_back(self, case):
    net = {'net': 'cnn'} if case in CLASSIFY else {}
    model, _, context, *_ = worlds.world(case.split()[0], **net)
    variables = (run(case, **net) if net else watched(case).result).variables
    with checkpoint.Checkpointer(tempfile.mkdtemp()) as saved:
      saved.save(variables, {})
      back = saved.restore(jax.eval_shape(lambda: variables))
    jax.tree.map(np.testing.assert_array_equal, model.apply(back, context['example'])[0],
                 model.apply(variables, context['example'])[0])

  @parameterized.parameters(*CASES)
  def test_same_seed_same_result(self, case):
    jax.tree.map(np.testing.assert_array_equal, flat(run(case).variables),
                 flat(watched(case).result.variables))

  @parameterized.parameters(*(case for case in CASES if case not in (*ABLATIONS, *ROUNDS)
                              and not any(word in case for word in ADAM)))
  def test_one_device_against_eight(self, case):
    if case in CLASSIFY:
      one, eight = (run(case, devices=devices, net='cnn') for devices in (1, 8))
      tolerance = {'rtol': 1e-3, 'atol': 1e-4}
    else:  # 8 pairs or records, one per device, compared and selected from as one; or 8 clients
      one, eight = watched(case).result, run(case, devices=8)
      tolerance = {'rtol': 1e-5, 'atol': 1e-5}
    for name, leaf in flat(one.variables).items():
      np.testing.assert_allclose(flat(eight.variables)[name], leaf, err_msg=name, **tolerance)

  @parameterized.parameters(*CASES)
  def test_state_keeps_its_shapes_through_every_phase(self, case):
    where = worlds.world(case.split()[0])
    method = methods.get(case.split()[0])(where.model, **where.context, **CASES[case])
    state, frozen = method.init(jax.random.key(0), where.variables)
    for phase in method.phases:
      if phase.enter is not None:
        state = jax.eval_shape(phase.enter, state)
      batch = jax.tree.map(np.asarray, where.streams[phase.stream](0))
      after, _ = jax.eval_shape(phase.step, state, frozen, batch)
      self.assertEqual(jax.tree.map(jnp.shape, state), jax.tree.map(jnp.shape, after))
      state = after

  @parameterized.parameters(*CLASSIFY)
  def test_attribute_labels(self, case):
    """A head with several binary labels goes through every method."""
    model = models.get('mlp', num_outputs=3, hidden=(4,))
    rng = np.random.default_rng(0)
    def role():
      return {'image': rng.uniform(size=(BATCH, 2, 2, 1)).astype(np.float32),
              'label': rng.integers(0, 2, (BATCH, 3)).astype(np.float32),
              'id': np.arange(BATCH, dtype=np.int32), 'mask': np.ones(BATCH, np.float32)}
    batch = {'retain': role(), 'forget': role(), 'train': role()}
    variables = model.init(jax.random.key(0), batch['retain'])
    method = methods.get(case.split()[0])(
        model, example=batch['retain'], retain_steps=2, forget_steps=2, **CASES[case])
    state, frozen = method.init(jax.random.key(0), variables)
    steps = {}
    for phase in method.phases:
      state = state if phase.enter is None else phase.enter(state)
      if phase.step not in steps:
        steps[phase.step] = jax.jit(phase.step)
        state, metrics = steps[phase.step](state, frozen, batch)
        for name, value in metrics.items():
          self.assertTrue(np.isfinite(jax.tree.leaves(value)).all(), msg=name)

  def test_every_registered_method_is_here(self):
    self.assertContainsSubset(methods.names(), CASES)


if __name__ == '__main__':
  absltest.main()
