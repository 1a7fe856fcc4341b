"""SSD and Bad Teacher on networks with batch norm: modes, masks, what stays."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from tests.methods import reference
from unlearn_jax import methods
from unlearn_jax import models

EXAMPLE = {'image': np.zeros((1, 4, 4, 1), np.float32)}
MODEL = models.get('cnn', num_outputs=4, width=2, blocks=1)
START = reference.values(MODEL, EXAMPLE)


def squares(role, steps):
  """Mean over batches of (d CE / d theta)^2 in eval mode, padding dropped."""

  @jax.jit
  @jax.grad
  def slope(params, image, label):
    logits = MODEL.apply({**START, 'params': params}, {'image': image}, train=False)[0]['logits']
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(label)), label])

  found = []
  for step in steps:
    fields = reference.pictures(role, step)
    gradient = slope(START['params'], fields['image'][:5], fields['label'][:5])
    found.append(jax.tree.map(lambda g: np.asarray(g, np.float64)**2, gradient))
  return jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *found)


class SsdTest(parameterized.TestCase):

  @parameterized.parameters((1.0, 1.0), (0.5, 0.3))
  def test_against_the_formula(self, alpha, lam):
    result, fed = reference.run_loop('ssd', MODEL, START, records=reference.pictures,
                                     forget_steps=2, train_steps=3, alpha=alpha, lam=lam)
    forget, full = squares('forget', fed[:2]), squares('train', fed[2:5])
    counts = []

    def check(new, theta, forget, full):
      chosen = forget > alpha * full
      clear = np.abs(forget - alpha * full) > 1e-5 * full
      factor = np.minimum(lam * full / np.where(chosen, forget, 1), 1)
      want = np.where(chosen, factor, 1) * theta
      np.testing.assert_allclose(np.asarray(new)[clear], want[clear], rtol=1e-4, atol=1e-7)
      np.testing.assert_array_equal(np.asarray(new)[clear & ~chosen],
                                    np.asarray(theta)[clear & ~chosen])
      counts.append((chosen.sum(), chosen.size))

    jax.tree.map(check, result.variables['params'], START['params'], forget, full)
    selected, size = np.sum(counts, axis=0)
    self.assertBetween(selected, 1, size - 1)
    jax.tree.map(np.testing.assert_array_equal, result.variables['batch_stats'],
                 START['batch_stats'])

  def test_equal_importance_does_not_select(self):
    """If D is D_f, no parameter matters more for D_f."""
    result, _ = reference.run_loop(
        'ssd', MODEL, START, records=lambda role, step: reference.pictures('forget', step),
        forget_steps=1, train_steps=1, alpha=1.001, lam=0.1)
    jax.tree.map(np.testing.assert_array_equal, dict(result.variables), dict(START))


class BadTeacherTest(parameterized.TestCase):

  @parameterized.parameters((4, 4, 0.3), (2, 12, 0.5), (6, 3, 1.0))
  def test_the_mean_over_an_epoch_is_that_of_the_union(self, retain_size, forget_size, share):
    """12 retain and 12 forget records in batches of any size; D_f and a share of D_r together."""
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(24, 4, 4, 1)).astype(np.float32)

    def records(start, size, index):
      rows = slice(start + size * index, start + size * (index + 1))
      return {'image': x[rows], 'label': np.zeros(size, np.int32), 'id': np.arange(size),
              'mask': np.ones(size, np.float32)}

    retain_steps, forget_steps = 12 // retain_size, 12 // forget_size
    # In train mode what a record gives would depend on its batch.
    calm = MODEL._replace(apply=lambda v, inputs, *, train=False, rngs=None, method=None:
                          MODEL.apply(v, inputs, train=False))
    method = methods.get('bad_teacher')(
        calm, example=EXAMPLE, retain_steps=retain_steps, forget_steps=forget_steps,
        retain_share=share, learning_rate=0.0)
    student = {**START, 'params': jax.tree.map(lambda leaf: leaf * 1.3, START['params'])}
    state, frozen = method.init(jax.random.key(3), START)
    state = state.replace(params={'model': student['params']})
    step, losses = jax.jit(method.phases[0].step), []
    for index in range(retain_steps * forget_steps):  # every retain batch with every forget batch
      batch = {'retain': records(0, retain_size, index % retain_steps),
               'forget': records(12, forget_size, index // retain_steps)}
      state, metrics = step(state, frozen, batch)
      losses.append(metrics['loss'])

    fresh = MODEL.init(jax.random.fold_in(jax.random.key(3), 1), EXAMPLE)
    log = lambda v, x: np.asarray(jax.nn.log_softmax(
        MODEL.apply(v, {'image': x}, train=False)[0]['logits']), np.float64)
    log_q = np.concatenate([log(START, x[:12]), log(fresh, x[12:])])
    rows = np.sum(np.exp(log_q) * (log_q - log(student, x)), axis=1) / 4
    want = (share * rows[:12].sum() + rows[12:].sum()) / (12 * share + 12)
    np.testing.assert_allclose(np.mean(losses), want, rtol=1e-4)

  def test_teachers(self):
    """The original and an untrained network, which no step moves; the student is in train mode."""
    method = methods.get('bad_teacher')(MODEL, example=EXAMPLE, retain_steps=2, forget_steps=1)
    state, frozen = method.init(jax.random.key(3), START)
    expected = {'teacher': dict(START),
                'incompetent': MODEL.init(jax.random.fold_in(jax.random.key(3), 1), EXAMPLE)}
    for name, teacher in expected.items():
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), dict(frozen[name]),
                   dict(teacher))
    after, _ = jax.jit(method.phases[0].step)(state, frozen, {
        role: reference.pictures(role, 0) for role in ('retain', 'forget')})
    for old, new in zip(jax.tree.leaves(state.collections), jax.tree.leaves(after.collections)):
      self.assertFalse((old == new).any())

  @parameterized.parameters((1.0, 0.3, 100, 30), (1.0, 0.3, 1, 1), (2.0, 0.5, 10, 10))
  def test_an_epoch_is_a_share_of_the_retained_data(self, epochs, share, retain_steps, steps):
    method = methods.get('bad_teacher')(MODEL, example=EXAMPLE, retain_steps=retain_steps,
                                        epochs=epochs, retain_share=share)
    self.assertEqual([phase.steps for phase in method.phases], [steps])


if __name__ == '__main__':
  absltest.main()
