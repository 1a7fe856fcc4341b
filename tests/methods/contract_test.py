"""One suite over every registered method, on a small network and a toy task."""

import dataclasses
import functools
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import methods
from unlearn_jax import models
from unlearn_jax.data import sources
from unlearn_jax.data import splits as splits_lib
from unlearn_jax.data import streams
from unlearn_jax.evals import privacy
from unlearn_jax.train import checkpoint
from unlearn_jax.train import loop
from unlearn_jax.train import sharding

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
}
CASES = {**{name: SHORT.get(name, {}) for name in methods.names()}, **VARIANTS}
BATCH = 8
# Leave some parameters as they are: earlier layers, or what their mask does not select.
PARTIAL = ('cf_k', 'eu_k', 'ssd', 'salun')
# Adam's first steps magnify the order in which devices add up.
ADAM = ('adam', 'unsir')


@functools.cache
def task(forget: int = 12):
  source = sources.get('synthetic')
  ids = np.random.default_rng(0).permutation(len(source.identity))
  source = dataclasses.replace(source, identity=np.arange(len(ids)).astype(str))
  return source, splits_lib.from_ids(source, {
      'forget': ids[:forget], 'retain': ids[40:64], 'validation': ids[64:80]})


@functools.cache
def network(name: str = 'mlp'):
  source, _ = task()
  sizes = {'mlp': {'hidden': (8,)}, 'cnn': {'width': 4, 'blocks': 1}}[name]
  model = models.get(name, num_outputs=source.num_classes, **sizes)
  example = {'image': source.fields['image'][:1]}
  return model, model.init(jax.random.key(1), example), example


def run(case: str, *, forget: int = 12, devices: int = 1, net: str = 'mlp', seed: int = 0,
        wrap=lambda method: method, **changes):
  source, splits = task(forget)
  model, variables, example = network(net)
  method = wrap(methods.get(case.split()[0])(
      model, example=example, retain_steps=3, forget_steps=-(-forget // BATCH),
      **(CASES[case] | changes)))
  gate = privacy.forgetting_gate({
      name: {key: source.fields[key][splits.indices[name]] for key in ('image', 'label')}
      for name in ('forget', 'validation')})
  return loop.run(
      method, variables,
      streams.make(source, splits, batch_size=BATCH, forget_batch_size=BATCH, seed=0, augment=()),
      key=jax.random.key(seed), apply=model.apply, mesh=sharding.make_mesh(devices), monitor=gate,
      show_progress=False)


def flat(tree):
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


class ContractTest(parameterized.TestCase):

  @parameterized.parameters(*CASES)
  def test_student_moves_and_stays_finite(self, case):
    variables = network()[1]
    before, after = flat(variables['params']), flat(run(case).variables['params'])
    self.assertEqual(before.keys(), after.keys())
    self.assertTrue(all(np.isfinite(leaf).all() for leaf in after.values()))
    moved = [(before[name] != after[name]).any() for name in before]
    self.assertTrue(any(moved) if case in PARTIAL else all(moved))

  @parameterized.parameters(*CASES)
  def test_teacher_and_source_do_not_move(self, case):
    variables = network()[1]
    before = flat(variables)
    seen = []

    def watch(method):
      def init(key, given):
        state, frozen = method.init(key, given)
        seen.append((frozen, flat(frozen)))
        return state, frozen
      return method._replace(init=init)

    run(case, wrap=watch)
    frozen, frozen_before = seen[0]
    jax.tree.map(np.testing.assert_array_equal, flat(frozen), frozen_before)
    jax.tree.map(np.testing.assert_array_equal, flat(variables), before)

  @parameterized.parameters(*CASES)
  def test_donation_is_safe_when_frozen_is_the_source_itself(self, case):
    # A careless method hands the very same arrays to the state and to `frozen`.
    def alias(method):
      def init(key, given):
        state, frozen = method.init(key, given)
        if 'teacher' in frozen:
          frozen = {**frozen, 'teacher': given}
        return state, {**frozen, 'alias': state.params}
      return method._replace(init=init)

    careless, careful = run(case, wrap=alias), run(case)
    jax.tree.map(np.testing.assert_array_equal, flat(careless.variables), flat(careful.variables))
    self.assertFalse(any(leaf.is_deleted() for leaf in jax.tree.leaves(network()[1])))

  @parameterized.product(case=tuple(CASES), forget=(1, 5))
  def test_small_forget_sets(self, case, forget):
    result = run(case, forget=forget)
    self.assertTrue(all(np.isfinite(leaf).all() for leaf in flat(result.variables).values()))

  @parameterized.parameters(*CASES)
  def test_traces_once_per_step_function(self, case):
    traces = {}

    def count(method):
      wrapped = {}
      def counted(step):
        def fn(state, frozen, batch):
          traces[step] = traces.get(step, 0) + 1
          return step(state, frozen, batch)
        return wrapped.setdefault(step, fn)
      return method._replace(phases=tuple(
          phase._replace(step=counted(phase.step)) for phase in method.phases))

    run(case, wrap=count)
    self.assertNotEmpty(traces)
    self.assertEqual(set(traces.values()), {1})

  @parameterized.parameters(*CASES)
  def test_export_loads_back(self, case):
    model, _, example = network('cnn')
    variables = run(case, net='cnn').variables
    with checkpoint.Checkpointer(tempfile.mkdtemp()) as saved:
      saved.save(variables, {})
      back = saved.restore(jax.eval_shape(lambda: variables))
    np.testing.assert_array_equal(model.apply(back, example)[0]['logits'],
                                  model.apply(variables, example)[0]['logits'])

  @parameterized.parameters(*CASES)
  def test_same_seed_same_result(self, case):
    first, second = run(case, seed=3), run(case, seed=3)
    jax.tree.map(np.testing.assert_array_equal, flat(first.variables), flat(second.variables))

  @parameterized.parameters(*(case for case in CASES if not any(word in case for word in ADAM)))
  def test_one_device_against_eight(self, case):
    one, eight = run(case, devices=1, net='cnn'), run(case, devices=8, net='cnn')
    for name, leaf in flat(one.variables).items():
      np.testing.assert_allclose(flat(eight.variables)[name], leaf, rtol=1e-3, atol=1e-4,
                                 err_msg=name)

  @parameterized.parameters(*CASES)
  def test_state_keeps_its_shapes_through_every_phase(self, case):
    model, variables, example = network()
    source, splits = task()
    method = methods.get(case.split()[0])(
        model, example=example, retain_steps=3, forget_steps=2, **CASES[case])
    state, frozen = method.init(jax.random.key(0), variables)
    fed = streams.make(source, splits, batch_size=BATCH, forget_batch_size=BATCH, seed=0, augment=())
    for phase in method.phases:
      if phase.enter is not None:
        state = jax.eval_shape(phase.enter, state)
      after, _ = jax.eval_shape(phase.step, state, frozen, fed[phase.stream](0))
      self.assertEqual(jax.tree.map(jnp.shape, state), jax.tree.map(jnp.shape, after))
      state = after

  @parameterized.parameters(*CASES)
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
