"""The conformance suite over every registered method, and over planted defects."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import optax
import pytest

from unlearn_jax import methods
from unlearn_jax import testing
from unlearn_jax import types
from unlearn_jax.losses import baselines
from unlearn_jax.losses import classification
from unlearn_jax.methods import base
from unlearn_jax.testing import federation_toy
from unlearn_jax.testing import generation_toy
from unlearn_jax.testing import pairs_toy
from unlearn_jax.testing import toy

# Short settings that forget the toy; chosen on it, and good for nothing else.
SCRUB = {'epochs': 5, 'max_epochs': 3, 'learning_rate': 0.03, 'optimizer': 'sgd',
         'weight_decay': 5e-4, 'decay_epochs': ()}
DLFD = {'epochs': 3.0, 'learning_rate': 0.02, 'perturb_steps': 2, 'step_size': 0.05,
        'max_iterations': 10}
SETTINGS = {
    'retrain': dict(toy.RECIPE),
    'finetune': {'epochs': 3.0},
    'neg_grad': {'epochs': 6.0, 'learning_rate': 0.05},
    'neg_grad_plus': {'epochs': 3.0, 'learning_rate': 0.02, 'alpha': 0.8},
    'random_label': {'epochs': 5, 'learning_rate': 0.02},
    'l1_sparse': {'epochs': 5, 'learning_rate': 0.1, 'alpha': 3e-3},
    'cf_k': {'epochs': 7.0, 'k': 2, 'learning_rate': 0.3},
    'eu_k': {'epochs': 7.0, 'k': 2},
    'unsir': {'learning_rate': 0.01, 'noise_size': 32, 'repair_epochs': 2.0},
    'bad_teacher': {'epochs': 5.0, 'learning_rate': 1e-3},
    'scrub': SCRUB,
    'ssd': {'alpha': 2.0},
    'salun': {'epochs': 5, 'learning_rate': 0.02},
    'dlfd': DLFD,
}
PAIRS = {'epochs': 10.0, 'learning_rate': 3e-3, 'weight_decay': 0.02}
SELECTS = PAIRS | {'forget_fraction': 0.25}
NCU = SELECTS | {'epochs': 8.0, 'negative_epochs': 4.0, 'warmup_steps': 0, 'learning_rate': 1e-2,
                 'text_learning_rate': 0.0, 'prompt_learning_rate': 3e-2}
PAIRS_SETTINGS = {
    'contrastive': dict(pairs_toy.RECIPE),
    'continued': PAIRS,
    'gradient_ascent': SELECTS | {'ascent_weight': 0.1},
    'relabelling': SELECTS,
    'soft_clip': dict(pairs_toy.RECIPE),
    'ncu': NCU,
}
MULTIMODAL_SETTINGS = {
    'multi_delete': {'epochs': 3.0, 'learning_rate': 1e-3},
    'ccu': {},
}
BLIND = 'it reads retained data only'
GENERATE = {'epochs': 10.0, 'learning_rate': 2e-3}
ENCODE = {'epochs': 20.0, 'learning_rate': 5e-3}
GENERATION_SETTINGS = {
    'reconstruct': dict(generation_toy.RECIPE),
    'i2i': ENCODE,
    'max_loss': GENERATE | {'clip': 0.5},
    'noisy_label': GENERATE,
    'retain_label': GENERATE,
    'random_encoder': ENCODE,
}
LOCAL = federation_toy.LOCAL
CLIMB = LOCAL | {'rounds': 3, 'recover_rounds': 2, 'forget_learning_rate': 0.1}
FEDERATED_SETTINGS = {
    'federate': dict(federation_toy.RECIPE),
    'fed_finetune': LOCAL | {'rounds': 7},
    'fed_ga': CLIMB | {'rounds': 2},
    'pga': LOCAL | {'recover_rounds': 5},
    'fed_eraser': LOCAL | {'replay_rounds': 5, 'recover_rounds': 2},
    'fed_recovery': LOCAL | {'recover_rounds': 5},
    'sfu': CLIMB | {'max_rank': 64},
    'fed_osd': CLIMB,
    'fed_not': LOCAL | {'recover_rounds': 7},
    'fused': LOCAL | {'recover_rounds': 7},
    'fed_multi_delete': CLIMB | {'rounds': 5, 'forget_learning_rate': 1.0},
    'clip_erase': CLIMB | {'rounds': 4, 'forget_learning_rate': 0.15},
    'ease': LOCAL | {'rounds': 5, 'recover_rounds': 2, 'displacement_steps': 5,
                     'displacement_learning_rate': 0.5, 'max_rank': 64},
}
HISTORY = 'it reads what the server has kept of the client that leaves'
EXPECTS = {
    'retrain': {'forget data': BLIND},
    'l1_sparse': {'forget data': BLIND},
    'cf_k': {'forget data': BLIND},
    'eu_k': {'forget data': BLIND},
    'finetune': {'forget data': BLIND,
                 'forget accuracy': 'the training loss is near 0: hardly anything moves'},
    'contrastive': {'forget data': BLIND},
    'reconstruct': {'forget data': BLIND},
    'federate': {'forget data': BLIND},
    'fed_finetune': {'forget data': BLIND,
                     'forget accuracy': 'further rounds without the client forget nothing here'},
    'fed_eraser': {'forget data': HISTORY},
    'fed_recovery': {'forget data': HISTORY},
    'fed_not': {'forget data': BLIND},
    'fused': {'forget data': BLIND, 'forget accuracy': 'as of fed_finetune'},
    'continued': {'forget accuracy': 'it goes on learning the mismatched pairs'},
}
SLOW = {
    'dlfd': (DLFD, {}),
    'scrub rewind': (SCRUB | {'rewind': True}, {}),
    'dlfd release': (DLFD | {'reading': 'release'}, {
        'forget data': 'the released transport term compares unperturbed records: it moves nothing',
        'forget accuracy': 'for the same reason'}),
}
CHECKS = ('finite', 'student moves', 'teacher stays', 'forget accuracy', 'retain accuracy',
          'forget data', 'one record', 'small batches', 'small set', 'padding',
          'retained records')
PAIRS_CHECKS = tuple(name for name in CHECKS if name not in pairs_toy.WITHOUT)


def failed(factory, settings=None, *, only=CHECKS, among=CHECKS, **options):
  """check -> reason of the failed checks, among those asked for."""
  expects = {name: 'not asked for here' for name in among if name not in only}
  return dict(testing.conformance(factory, settings=settings, expects=expects, **options))


class RegisteredMethodsTest(parameterized.TestCase):

  @parameterized.parameters(*(name for name in methods.names('classification') if name != 'dlfd'))
  def test_conforms(self, name):
    found = failed(methods.get(name), SETTINGS[name], oracle=name == 'retrain')
    self.assertEqual(found.keys(), EXPECTS.get(name, {}).keys(), found)

  def test_dlfd_conforms(self):
    # The checks that compile its transport anew are slow, below; the contract suite has them too.
    only = tuple(name for name in CHECKS if name not in ('one record', 'small batches'))
    self.assertEqual(failed(methods.get('dlfd'), DLFD, only=only), {})

  @parameterized.parameters(*SLOW)
  @pytest.mark.slow
  def test_variants_conform(self, case):
    settings, expects = SLOW[case]
    found = failed(methods.get(case.split()[0]), settings)
    self.assertEqual(found.keys(), expects.keys(), found)

  @parameterized.parameters(*methods.names('image_text'))
  def test_pairs_conform(self, name):
    # Those that compile NCU's transport anew are left to the contract suite.
    only = [check for check in PAIRS_CHECKS
            if name != 'ncu' or check not in ('one record', 'small batches')]
    found = failed(methods.get(name), PAIRS_SETTINGS[name], among=PAIRS_CHECKS, only=only,
                   oracle=name == 'contrastive')
    self.assertEqual(found.keys(), EXPECTS.get(name, {}).keys(), found)

  @parameterized.parameters(*MULTIMODAL_SETTINGS)
  def test_multimodal_conform(self, name):
    found = failed(methods.get(name), MULTIMODAL_SETTINGS[name])
    self.assertEqual(found.keys(), EXPECTS.get(name, {}).keys(), found)

  @parameterized.parameters(*GENERATION_SETTINGS)
  def test_generation_conform(self, name):
    found = failed(methods.get(name), GENERATION_SETTINGS[name], oracle=name == 'reconstruct')
    self.assertEqual(found.keys(), EXPECTS.get(name, {}).keys(), found)

  @parameterized.parameters(*FEDERATED_SETTINGS)
  @pytest.mark.slow  # rounds take half a minute to compile; the contract suite has them too
  def test_federated_conform(self, name):
    found = failed(methods.get(name), FEDERATED_SETTINGS[name], task='federated')
    self.assertEqual(found.keys(), EXPECTS.get(name, {}).keys(), found)

  def test_every_registered_method_is_here(self):
    self.assertEqual(set(FEDERATED_SETTINGS), set(methods.names('federated')))
    self.assertEqual(set(GENERATION_SETTINGS), set(methods.names('generation')))
    self.assertEqual(set(SETTINGS), set(methods.names('classification')))
    self.assertEqual(set(PAIRS_SETTINGS), set(methods.names('image_text')))
    self.assertEqual(set(MULTIMODAL_SETTINGS),
                     set(methods.names('multimodal')) - set(methods.names('classification')))

  def test_what_is_expected_is_not_run(self):
    ran = []

    def factory(model, **context):
      ran.append(context)
      raise RuntimeError('no method')

    self.assertEqual(failed(factory, only=()), {})
    self.assertEmpty(ran)
    with self.assertRaisesRegex(ValueError, "did you mean 'small set'"):
      testing.conformance(factory, expects={'smal set': 'a reason'})
    with self.assertRaisesRegex(ValueError, 'needs the reason'):
      testing.conformance(factory, expects={'small set': ''})

  def test_the_toy_is_that_of_the_kind_of_task(self):
    seen = []

    def factory(model, *, train_steps, **context):
      seen.append(set(context))
      raise RuntimeError('no method')

    found = testing.conformance(factory, task='image_text')
    self.assertEqual([check for check, _ in found], list(PAIRS_CHECKS))
    self.assertIn('prompt_slots', seen[0])
    with self.assertRaisesRegex(ValueError, 'there is no check .padding'):
      testing.conformance(factory, task='image_text', expects={'padding': 'a reason'})
    with self.assertRaisesRegex(ValueError, "did you mean 'image_text'"):
      testing.conformance(factory, task='image_txt')

  def test_an_exception_is_every_check_s_reason(self):
    def factory(model, **context):
      raise RuntimeError('there is no method\nto be had')

    found = testing.conformance(factory)
    self.assertEqual([check for check, _ in found], list(CHECKS))
    for check, reason in found:
      self.assertEqual(reason, 'RuntimeError: there is no method to be had', check)


# Defects: whole methods, written as somebody might write them.


def scrub_of(model, retain_steps, forget_steps, *, epochs=5, learning_rate=0.03, trains='model',
             forget_step=True, divergence=baselines.distillation_kl):
  """SCRUB with teacher and student in `params`, and places to go wrong."""
  tx = base.trainable(optax.sgd(learning_rate, momentum=0.9),
                      ((f'({trains})/.*', 'train'), ('.*', 'freeze')))

  def objective(params, *, state, frozen, batch, key, sign):
    role, = batch
    student, collections = base.forward(model, params, state.collections, batch[role])
    teacher, _ = model.apply({'params': params['teacher']}, batch[role])
    distance = divergence(student['logits'], teacher['logits'], temperature=2.0,
                          where=batch[role]['mask'])
    loss = -distance if sign < 0 else 0.5 * distance + classification.cross_entropy(
        student['logits'], batch[role]['label'], where=batch[role]['mask'])
    return loss, ({}, collections)

  def init(key, variables):
    state = base.initial_state(key, variables, optax.identity())
    params = {'model': variables['params'], 'teacher': base.copied(variables['params'])}
    return state.replace(params=params, opt_state=tx.init(params)), {}

  step = {sign: base.gradient_step(
      lambda params, sign=sign, **given: objective(params, sign=sign, **given), tx)
          for sign in (-1, 1)}
  phases = []
  for epoch in range(epochs):
    if forget_step and epoch < 3:
      phases.append(types.Phase('max', step[-1], forget_steps, 'forget'))
    phases.append(types.Phase('min', step[1], retain_steps, 'retain'))
  return types.Method(init, tuple(phases), base.export)


def kl_of_both(student, teacher, *, temperature, where):
  """A divergence that passes a gradient to the teacher as well."""
  log_p, log_q = (jax.nn.log_softmax(z / temperature) for z in (teacher, student))
  rows = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=1) * temperature**2
  return jnp.sum(rows * where) / jnp.maximum(jnp.sum(where), 1)


def raw_kl(student, teacher, *, temperature, where):
  """KL between logits taken for probabilities."""
  rows = jnp.sum(teacher * (jnp.log(teacher) - jnp.log(student)), axis=1) * temperature**2
  return jnp.sum(rows * where) / jnp.maximum(jnp.sum(where), 1)


def neg_grad_plus_of(model, retain_steps, *, alpha=0.8, epochs=3.0, loss):
  """NegGrad+ with a loss of its own: (retain logits, forget logits, batch, alpha) -> scalar."""
  tx = optax.sgd(0.02, momentum=0.9)

  def objective(params, *, state, frozen, batch, key):
    logits = {role: base.forward(model, params, state.collections, batch[role])[0]['logits']
              for role in ('retain', 'forget')}
    return loss(logits, batch, alpha), ({}, state.collections)

  phase = types.Phase('unlearn', base.gradient_step(objective, tx),
                      base.total_steps(epochs, retain_steps), 'pair')
  return types.Method(lambda key, variables: (base.initial_state(key, variables, tx), {}),
                      (phase,), base.export)


def entropy(logits, fields, where=None):
  return classification.cross_entropy(logits, fields['label'],
                                      where=fields['mask'] if where is None else where)


def sound(logits, batch, alpha):
  return (alpha * entropy(logits['retain'], batch['retain'])
          - (1 - alpha) * entropy(logits['forget'], batch['forget']))


def ascends_everything(logits, batch, alpha):
  """The forget loss of the concatenated batch."""
  del alpha
  both = {name: jnp.concatenate([batch['retain'][name], batch['forget'][name]])
          for name in ('label', 'mask')}
  return -0.05 * entropy(jnp.concatenate([logits['retain'], logits['forget']]), both)


def forgets_retained(logits, batch, alpha):
  """The forget loss of the wrong logits."""
  return (1 - 2 * alpha) * -entropy(logits['retain'], batch['retain'])


def full_batches_only(logits, batch, alpha):
  """Drops ragged forget batches, and divides by what is left."""
  full = jnp.min(batch['forget']['mask']) * batch['forget']['mask']
  losses = classification.example_loss(logits['forget'], batch['forget']['label'])
  return (alpha * entropy(logits['retain'], batch['retain'])
          - (1 - alpha) * jnp.sum(losses * full) / jnp.sum(full))


def counts_padding(logits, batch, alpha):
  """Takes the mean over all rows, padding included."""
  return sound(logits, {'retain': batch['retain'],
                        'forget': {**batch['forget'], 'mask': jnp.ones(toy.BATCH)}}, alpha)


def retrain_of(model, example, retain_steps, *, fresh):
  """Retraining from `fresh(old params, new params)`."""
  method = methods.get('retrain')(model, example=example, retain_steps=retain_steps, **toy.RECIPE)

  def init(key, variables):
    state, frozen = method.init(key, variables)
    params = {'model': fresh(variables['params'], state.params['model'])}
    return state.replace(params=params), frozen

  return method._replace(init=init)


def top_level_only(old, new):
  """Resets the modules that hold parameters themselves, and none inside of another module."""
  return {name: new[name] if 'kernel' in new[name] else old[name] for name in new}


class DefectsTest(absltest.TestCase):
  """Every planted defect is caught, by the check that names it; its sound counterpart passes."""

  def plus(self, loss, only=CHECKS):
    return failed(lambda model, *, retain_steps: neg_grad_plus_of(model, retain_steps, loss=loss),
                  only=only)

  def scrub(self, only=CHECKS, **defect):
    return failed(lambda model, *, retain_steps, forget_steps: scrub_of(
        model, retain_steps, forget_steps, **defect), only=only)

  def test_sound_counterparts_pass(self):
    self.assertEqual(self.plus(sound), {})
    only = ('finite', 'student moves', 'teacher stays', 'forget accuracy', 'forget data')
    self.assertEqual(self.scrub(only, divergence=kl_of_both), {})

  def test_scrub_that_optimises_the_teacher(self):
    # The optimizer was built over the teacher's parameters: the student never learns.
    found = self.scrub(('student moves', 'teacher stays', 'forget accuracy'), trains='teacher',
                       divergence=kl_of_both)
    self.assertEqual(found.keys(), {'student moves', 'teacher stays', 'forget accuracy'})
    self.assertIn("params['teacher'] was a copy of the original", found['teacher stays'])

  def test_scrub_that_optimises_student_and_teacher(self):
    found = self.scrub(('student moves', 'teacher stays'), trains='model|teacher',
                       divergence=kl_of_both)
    self.assertEqual(found.keys(), {'teacher stays'})

  def test_scrub_whose_teacher_is_another_model(self):
    def factory(model, *, retain_steps, forget_steps):
      method = methods.get('scrub')(model, retain_steps=retain_steps, forget_steps=forget_steps,
                                    **SCRUB)
      def init(key, variables):
        state, _ = method.init(key, variables)
        return state, {'teacher': model.init(key, toy.task().example)}
      return method._replace(init=init)

    self.assertIn("frozen['teacher']", failed(factory, only=('teacher stays',))['teacher stays'])

  def test_scrub_without_a_forget_step(self):
    only = ('finite', 'forget accuracy', 'forget data')
    self.assertEqual(self.scrub(only, forget_step=False).keys(), {'forget accuracy', 'forget data'})

  def test_divergence_of_raw_logits(self):
    found = self.scrub(('finite',), divergence=raw_kl)
    self.assertIn('NonFiniteError: loss is not finite', found['finite'])

  def test_forget_loss_on_retained_records(self):
    found = self.plus(ascends_everything, ('forget data', 'retained records'))
    self.assertEqual(found.keys(), {'retained records'})
    self.assertIn('climbs the loss of retained records', found['retained records'])

  def test_forget_loss_on_retained_records_instead_of_forgotten_ones(self):
    found = self.plus(forgets_retained, ('forget data', 'padding'))
    self.assertEqual(found.keys(), {'forget data'})

  def test_forget_set_smaller_than_a_batch(self):
    # 60 records in batches of 20, or one in a batch of one: nothing shows.
    found = self.plus(full_batches_only, ('finite', 'one record', 'small set'))
    self.assertEqual(found.keys(), {'small set'})
    self.assertRegex(found['small set'], 'FloatingPointError: .*loss')

  def test_padding_that_counts(self):
    self.assertEqual(self.plus(counts_padding, ('small set', 'padding')).keys(), {'padding'})

  def test_division_by_the_number_of_whole_batches(self):
    def factory(model, *, retain_steps, forget_steps):
      every = retain_steps // (forget_steps - 1)  # the last batch may be ragged: left out
      return neg_grad_plus_of(model, every * (forget_steps - 1), loss=sound)

    found = failed(factory, only=('small batches', 'small set', 'one record'))
    self.assertEqual(found.keys(), {'small set', 'one record'})
    self.assertStartsWith(found['small set'], 'ZeroDivisionError')

  def test_oracle_that_resets_only_its_top_level_modules(self):
    def oracle(fresh):
      found = testing.conformance(
          lambda model, *, example, retain_steps: retrain_of(
              model, example, retain_steps, fresh=fresh),
          oracle=True, expects=dict.fromkeys(CHECKS, 'not asked for here'))
      self.assertEqual({check for check, _ in found} - {'fresh start'}, set())
      return [reason for _, reason in found]

    self.assertEqual(oracle(lambda old, new: new), [])
    inner = [reason for reason in oracle(top_level_only) if 'depends on the variables' in reason]
    self.assertLen(inner, 4)  # kernels and biases of two layers, and the MLP is in order
    for reason in inner:
      self.assertStartsWith(reason, 'nested network: model/block/')
    # No reset at all, and one initialisation for all seeds.
    self.assertLen(oracle(lambda old, new: old), 6 + 8 + 2)
    one = lambda old, new: jax.tree.map(jnp.ones_like, new)
    self.assertEqual(oracle(one), [f'{name}: two keys give the same initialisation'
                                   for name in ('mlp', 'nested network')])

  def test_methods_on_pairs_that_do_nothing_or_learn_retained_pairs_for_mismatched_ones(self):
    def nothing(model):
      del model
      step = lambda state, frozen, batch: (state.replace(step=state.step + 1), {})
      tx = optax.sgd(0.1)
      return types.Method(lambda key, variables: (base.initial_state(key, variables, tx), {}),
                          (types.Phase('nothing', step, 2, 'train'),), base.export)

    find = lambda factory, settings=None: failed(
        factory, settings, among=PAIRS_CHECKS, task='image_text',
        only=('student moves', 'forget accuracy', 'retain accuracy', 'forget data')).keys()
    self.assertEqual(find(nothing), {'student moves', 'forget accuracy', 'forget data'})
    # Ascent without descent: what was matched is destroyed with the rest.
    self.assertEqual(find(methods.get('gradient_ascent'), SELECTS | {'ascent_weight': 100.0}),
                     {'retain accuracy'})

  def test_generator_whose_forget_term_is_of_retained_pictures(self):
    # As in the released baselines of I2I, whose forget weight reuses the retain indicator.
    def factory(model, *, retain_steps, forget_steps):
      method = methods.get('max_loss')(model, forget_steps=forget_steps, alpha=2.0, **GENERATE)
      phase, = method.phases
      step = lambda state, frozen, batch: phase.step(
          state, frozen, {**batch, 'forget': batch['retain']})
      return method._replace(phases=(phase._replace(step=step),))

    found = failed(factory, only=('forget data', 'retained records'), task='generation')
    self.assertEqual(found.keys(), {'forget data', 'retained records'})

  def test_method_that_does_nothing(self):
    def factory(model):
      del model
      step = lambda state, frozen, batch: (state.replace(step=state.step + 1), {})
      tx = optax.sgd(0.1)
      return types.Method(lambda key, variables: (base.initial_state(key, variables, tx), {}),
                          (types.Phase('nothing', step, 2, 'pair'),), base.export)

    self.assertEqual(failed(factory).keys(), {'student moves', 'forget accuracy', 'forget data'})

  def test_method_that_destroys_the_model(self):
    found = failed(methods.get('neg_grad'), {'epochs': 8.0, 'learning_rate': 0.05},
                   only=('finite', 'retain accuracy'))
    self.assertEqual(found.keys(), {'retain accuracy'})


if __name__ == '__main__':
  absltest.main()
