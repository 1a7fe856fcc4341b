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
    'scrub': SCRUB,
    'dlfd': DLFD,
}
BLIND = 'it reads retained data only'
EXPECTS = {
    'retrain': {'forget data': BLIND},
    'finetune': {'forget data': BLIND,
                 'forget accuracy': 'the training loss is near 0: hardly anything moves'},
}
SLOW = {
    'scrub rewind': (SCRUB | {'rewind': True}, {}),
    'dlfd release': (DLFD | {'reading': 'release'}, {
        'forget data': 'the released transport term compares unperturbed records: it moves nothing',
        'forget accuracy': 'for the same reason'}),
}


def failed(factory, settings=None, **options):
  """check -> reason of the failed checks."""
  return dict(testing.conformance(factory, settings=settings, **options))


class RegisteredMethodsTest(parameterized.TestCase):

  @parameterized.parameters(*(name for name in methods.names() if name != 'dlfd'))
  def test_conforms(self, name):
    found = failed(methods.get(name), SETTINGS[name], oracle=name == 'retrain')
    self.assertEqual(found.keys(), EXPECTS.get(name, {}).keys(), found)

  def test_dlfd_conforms(self):
    self.assertEqual(failed(methods.get('dlfd'), DLFD), {})

  @pytest.mark.slow
  @parameterized.parameters(*SLOW)
  def test_variants_conform(self, case):
    settings, expects = SLOW[case]
    found = failed(methods.get(case.split()[0]), settings)
    self.assertEqual(found.keys(), expects.keys(), found)

  def test_every_registered_method_is_here(self):
    self.assertEqual(set(SETTINGS), set(methods.names()))

  def test_what_is_expected_is_not_run(self):
    ran = []

    def factory(model, **context):
      ran.append(context)
      raise RuntimeError('no method')

    names = ('finite', 'student moves', 'teacher stays', 'forget accuracy', 'retain accuracy',
             'forget data', 'one record', 'small batches', 'small set', 'padding',
             'retained records')
    self.assertEqual(failed(factory, expects=dict.fromkeys(names, 'a reason')), {})
    self.assertEmpty(ran)
    with self.assertRaisesRegex(ValueError, "did you mean 'small set'"):
      failed(factory, expects={'smal set': 'a reason'})
    with self.assertRaisesRegex(ValueError, 'needs the reason'):
      failed(factory, expects={'small set': ''})

  def test_an_exception_is_every_check_s_reason(self):
    def factory(model, **context):
      raise RuntimeError('there is no method\nto be had')

    found = testing.conformance(factory)
    self.assertLen(found, 11)
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
    state = base.initial_state(key, variables, tx)
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

  def plus(self, loss):
    return failed(lambda model, *, retain_steps: neg_grad_plus_of(model, retain_steps, loss=loss))

  def scrub(self, **defect):
    return failed(lambda model, *, retain_steps, forget_steps: scrub_of(
        model, retain_steps, forget_steps, **defect))

  def test_sound_counterparts_pass(self):
    self.assertEqual(self.plus(sound), {})
    self.assertEqual(self.scrub(), {})

  def test_scrub_that_optimises_the_teacher(self):
    # The optimizer was built over the teacher's parameters: the student never learns.
    found = self.scrub(trains='teacher')
    self.assertContainsSubset({'student moves', 'teacher stays'}, found)
    self.assertIn("params['teacher']", found['teacher stays'])

  def test_scrub_that_optimises_student_and_teacher(self):
    found = self.scrub(trains='model|teacher')
    self.assertContainsSubset({'teacher stays'}, found)
    self.assertNotIn('student moves', found)

  def test_scrub_whose_teacher_is_another_model(self):
    def factory(model, *, retain_steps, forget_steps):
      method = methods.get('scrub')(model, retain_steps=retain_steps, forget_steps=forget_steps,
                                    **SCRUB)
      def init(key, variables):
        state, _ = method.init(key, variables)
        return state, {'teacher': model.init(key, toy.task().example)}
      return method._replace(init=init)

    self.assertIn("frozen['teacher']", failed(factory)['teacher stays'])

  def test_scrub_without_a_forget_step(self):
    found = self.scrub(forget_step=False)
    self.assertEqual(found.keys(), {'forget data', 'forget accuracy'}, found)

  def test_divergence_of_raw_logits(self):
    found = self.scrub(divergence=raw_kl)
    self.assertIn('NonFiniteError: loss is not finite', found['finite'])

  def test_forget_loss_on_retained_records(self):
    found = self.plus(ascends_everything)
    self.assertIn('climbs the loss of retained records', found['retained records'])

  def test_forget_loss_on_retained_records_instead_of_forgotten_ones(self):
    self.assertIn('does not look at them', self.plus(forgets_retained)['forget data'])

  def test_forget_set_smaller_than_a_batch(self):
    found = self.plus(full_batches_only)
    self.assertContainsSubset({'small set'}, found)
    self.assertNotIn('finite', found)  # 60 records in batches of 20: nothing shows
    self.assertNotIn('one record', found)

  def test_padding_that_counts(self):
    self.assertEqual(self.plus(counts_padding).keys(), {'padding'})

  def test_steps_from_a_division_by_zero(self):
    """Counts whole forget batches on the host: none in a small set."""
    def factory(model, *, retain_steps, forget_steps):
      whole = forget_steps - 1  # the last one may be ragged
      every = retain_steps // whole
      return neg_grad_plus_of(model, every * whole, loss=sound)

    self.assertEqual(failed(factory)['one record'].split(':')[0], 'ZeroDivisionError')

  def test_oracle_that_resets_only_its_top_level_modules(self):
    def oracle(fresh):
      return failed(lambda model, *, example, retain_steps: retrain_of(
          model, example, retain_steps, fresh=fresh), oracle=True,
                    expects={'forget data': BLIND})['fresh start']

    self.assertRegex(oracle(top_level_only), 'nested network: .*block/')
    self.assertRegex(oracle(lambda old, new: old), 'mlp: .*dense1/bias|mlp')

  def test_oracle_with_one_initialisation_for_all_seeds(self):
    def factory(model, *, example, retain_steps):
      fixed = model.init(jax.random.key(7), example)['params']
      return retrain_of(model, example, retain_steps, fresh=lambda old, new: fixed)

    found = failed(factory, oracle=True, expects={'forget data': BLIND})
    self.assertIn('two keys give the same initialisation', found['fresh start'])

  def test_method_that_does_nothing(self):
    def factory(model):
      step = lambda state, frozen, batch: (state.replace(step=state.step + 1), {})
      tx = optax.sgd(0.1)
      return types.Method(lambda key, variables: (base.initial_state(key, variables, tx), {}),
                          (types.Phase('nothing', step, 2, 'pair'),), base.export)

    self.assertEqual(failed(factory).keys(), {'student moves', 'forget accuracy', 'forget data'})

  def test_method_that_destroys_the_model(self):
    found = failed(methods.get('neg_grad'), {'epochs': 8.0, 'learning_rate': 0.05})
    self.assertContainsSubset({'retain accuracy'}, found)


if __name__ == '__main__':
  absltest.main()
