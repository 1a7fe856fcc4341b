"""Updates of DLFD and of the plain methods against NumPy, on a network of two parameters.

The references are written from the papers' formulas, in float64 and without JAX: losses as plain
sums, all gradients by central differences, the optimizers and Sinkhorn anew; see `reference`.
"""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from tests.methods import reference
from tests.methods.reference import DECAY
from tests.methods.reference import MOMENTUM
from tests.methods.reference import RATE
from tests.methods.reference import SGD
from tests.methods.reference import START
from tests.methods.reference import Adam
from tests.methods.reference import cross_entropy
from tests.methods.reference import distillation
from tests.methods.reference import gradient
from tests.methods.reference import kept
from tests.methods.reference import run
from unlearn_jax import methods
from unlearn_jax.losses import dlfd as dlfd_losses


def cosine_cost(x, y):
  unit = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)
  return np.maximum(0.0, 1.0 - unit(x) @ unit(y).T)


def sinkhorn(cost, *, epsilon, iterations, threshold=1e-4):
  """DLFD Eq. 2 between uniform weights: exact updates of columns, then rows, in the log domain."""
  m, n = cost.shape
  f, g = np.zeros(m), np.zeros(n)
  soft = lambda a, axis: epsilon * np.log(np.exp(a / epsilon).sum(axis=axis))
  for _ in range(iterations):
    g = epsilon * np.log(1 / n) - soft(f[:, None] - cost, 0)
    f = epsilon * np.log(1 / m) - soft(g[None, :] - cost, 1)
    plan = np.exp((f[:, None] + g[None, :] - cost) / epsilon)
    if np.abs(plan.sum(axis=0) - 1 / n).sum() <= threshold:
      break
  return plan


def released_sinkhorn(cost, *, epsilon, iterations):
  """The released code's: rows first, a floor within the logarithm, a stop rule on potentials."""
  m, n = cost.shape
  u, v = np.zeros(m), np.zeros(n)
  kernel = lambda: np.exp((u[:, None] + v[None, :] - cost) / epsilon)
  for _ in range(iterations):
    old = u
    u = u + epsilon * (np.log(1 / m) - np.log(kernel().sum(axis=1) + 1e-6))
    v = v + epsilon * (np.log(1 / n) - np.log(kernel().sum(axis=0) + 1e-6))
    if np.abs(u - old).sum() < 0.1:
      break
  return kernel()


def transport(x, y, **options):
  """l_OT = <T, C> (Eq. 1)."""
  cost = cosine_cost(x, y)
  return np.sum(sinkhorn(cost, **options) * cost)


class ReferenceTest(parameterized.TestCase):

  def close(self, found, expected):
    """float32 against float64; the updates themselves are of the order of 0.1."""
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    self.assertGreater(np.abs(expected - START).max(), 0.01)

  def test_retrain(self):
    found, w, fed = run('retrain', retain_steps=3, epochs=1.0, learning_rate=RATE,
                        momentum=MOMENTUM, weight_decay=DECAY)
    update = SGD(RATE, MOMENTUM, DECAY)
    for k in range(3):  # half a cosine over the run
      x, y = kept('retain', fed[k])
      w = update(w, gradient(lambda w: cross_entropy(w, x, y), w),
                 factor=(1 + np.cos(np.pi * k / 3)) / 2)
    self.close(found, w)

  @parameterized.parameters(('sgd', SGD(RATE, MOMENTUM, DECAY)), ('adam', Adam(RATE, DECAY)))
  def test_finetune(self, optimizer, update):
    found, _, fed = run('finetune', retain_steps=2, epochs=1.0, learning_rate=RATE,
                        momentum=MOMENTUM, weight_decay=DECAY, optimizer=optimizer)
    w = START
    for k in range(2):
      x, y = kept('retain', fed[k])
      w = update(w, gradient(lambda w: cross_entropy(w, x, y), w))
    self.close(found, w)

  def test_neg_grad(self):
    found, _, fed = run('neg_grad', forget_steps=2, epochs=1.0, learning_rate=RATE,
                        momentum=MOMENTUM, weight_decay=DECAY)
    w, update = START, SGD(RATE, MOMENTUM, DECAY)
    for k in range(2):
      x, y = kept('forget', fed[k])
      w = update(w, gradient(lambda w: -cross_entropy(w, x, y), w))
    self.close(found, w)

  def test_neg_grad_plus(self):
    alpha = 0.7
    found, _, fed = run('neg_grad_plus', retain_steps=2, epochs=1.0, learning_rate=RATE,
                        momentum=MOMENTUM, weight_decay=DECAY, alpha=alpha)
    w, update = START, SGD(RATE, MOMENTUM, DECAY)
    for k in range(2):
      (x, y), (x_f, y_f) = kept('retain', fed[k]), kept('forget', fed[k])
      w = update(w, gradient(lambda w: alpha * cross_entropy(w, x, y)
                             - (1 - alpha) * cross_entropy(w, x_f, y_f), w))
    self.close(found, w)

  @parameterized.parameters('sgd', 'adam')
  def test_scrub(self, optimizer):
    """Two epochs of max and min, a third of min only at a tenth of the rate."""
    rate, gamma, alpha, temperature = 0.1, 0.9, 0.4, 2.5
    found, _, fed = run('scrub', retain_steps=2, forget_steps=1, epochs=3, max_epochs=2,
                        learning_rate=rate, optimizer=optimizer, momentum=MOMENTUM,
                        weight_decay=DECAY, gamma=gamma, alpha=alpha,
                        temperature=temperature, decay_epochs=(2,))
    fed = iter(fed)  # which batches come is the loop's business, and the same for both here
    w, update = START, SGD(rate, MOMENTUM, DECAY) if optimizer == 'sgd' else Adam(rate, DECAY)
    for epoch in (1, 2, 3):
      factor = 0.1 if epoch > 2 else 1.0
      if epoch <= 2:
        x, _ = kept('forget', next(fed))
        w = update(w, gradient(lambda w: -distillation(w, START, x, temperature), w), factor)
      for _ in range(2):
        x, y = kept('retain', next(fed))
        w = update(w, gradient(lambda w: gamma * cross_entropy(w, x, y)
                               + alpha * distillation(w, START, x, temperature), w), factor)
    self.close(found, w)

  def perturbed(self, w, step, *, weight, options, distancing=True):
    """x* after M ascents of Eq. 3, and y."""
    (x, y), (x_f, _) = kept('retain', step), kept('forget', step)
    for _ in range(options['perturb_steps']):
      g = gradient(lambda x: (options['transport_weight'] if distancing else 0.0) * transport(
          w * x, w * x_f, epsilon=options['epsilon'], iterations=options['max_iterations'])
                   - weight * cross_entropy(w, x, y), x)
      self.assertGreater(np.abs(g).min(), 1e-5)  # else the sign would be chance
      x = x + options['step_size'] * np.sign(g)
    return x, y

  @parameterized.parameters(True, False)
  def test_dlfd_paper(self, distancing):
    options = {'perturb_steps': 3, 'step_size': 0.05, 'transport_weight': 2.0, 'epsilon': 0.1,
               'max_iterations': 8}
    found, _, fed = run('dlfd', retain_steps=3, epochs=1.0, learning_rate=RATE, momentum=MOMENTUM,
                        weight_decay=DECAY, weight_start=0.5, weight_end=1.0, dynamic=False,
                        distancing=distancing, **options)
    w, update = START, SGD(RATE, MOMENTUM, DECAY)
    plain, plain_update = START, SGD(RATE, MOMENTUM, DECAY)
    for k in range(3):
      x, y = self.perturbed(w, fed[k], weight=0.5 + 0.5 * k / 2, options=options,
                            distancing=distancing)
      w = update(w, gradient(lambda w: cross_entropy(w, x, y), w))
      x, y = kept('retain', fed[k])
      plain = plain_update(plain, gradient(lambda w: cross_entropy(w, x, y), plain))
    self.close(found, w)
    self.assertGreater(np.abs(w - plain).max(), 0.01)  # the perturbation shows

  def test_dlfd_transport_decides_a_sign(self):
    """Without the class loss the perturbation is that of Eq. 1 and 2 alone."""
    options = {'perturb_steps': 2, 'step_size': 0.05, 'transport_weight': 3.0, 'epsilon': 0.1,
               'max_iterations': 8}
    found, _, fed = run('dlfd', retain_steps=2, epochs=1.0, learning_rate=RATE, momentum=MOMENTUM,
                        weight_decay=DECAY, dynamic=False, class_loss=False, **options)
    w, update = START, SGD(RATE, MOMENTUM, DECAY)
    for k in range(2):
      x, y = self.perturbed(w, fed[k], weight=0.0, options=options)
      w = update(w, gradient(lambda w: cross_entropy(w, x, y), w))
    self.close(found, w)

  def test_dlfd_gate(self):
    """Below the threshold a step is plain fine-tuning; the gate reopens."""
    options = {'perturb_steps': 2, 'step_size': 0.05, 'transport_weight': 2.0, 'epsilon': 0.1,
               'max_iterations': 8}
    scores = [{'forgetting_score': score} for score in (0.3, 0.1, 0.15)]
    found, _, fed = run('dlfd', retain_steps=3, epochs=1.0, learning_rate=RATE, momentum=MOMENTUM,
                        weight_decay=DECAY, weight_start=1.0, weight_end=1.0, threshold=0.15,
                        scores=scores, **options)
    w, update = START, SGD(RATE, MOMENTUM, DECAY)
    for k in range(3):
      x, y = (kept('retain', fed[k]) if k == 1 else
              self.perturbed(w, fed[k], weight=1.0, options=options))
      w = update(w, gradient(lambda w: cross_entropy(w, x, y), w))
    self.close(found, w)

  def test_dlfd_release(self):
    """Descends CE in clipped pictures; the first batch has weight 0 and no noise."""
    alpha, inner = 0.2, 3
    scores = [{'forgetting_score[dlfd]': 0.4, 'accuracy/validation': 0.5}] * 4
    found, _, fed = run('dlfd', reading='release', retain_steps=3, epochs=1.0, learning_rate=RATE,
                        momentum=MOMENTUM, weight_decay=DECAY, perturb_steps=inner, step_size=alpha,
                        weight_start=0.0, weight_end=1.0, epsilon=0.1, max_iterations=8,
                        scores=scores)
    w, update, cut = START, SGD(RATE, MOMENTUM, DECAY), 0
    for k in range(3):
      x, y = kept('retain', fed[k])
      delta = np.zeros_like(x)
      for _ in range(inner):
        shown = np.clip(x + delta, 0, 1)
        g = gradient(lambda x: -k / 2 * cross_entropy(w, x, y), shown)
        delta += alpha * np.sign(g) * ((x + delta >= 0) & (x + delta <= 1))
      cut += np.sum(np.abs(x + delta - np.clip(x + delta, 0, 1)) > 0)
      shown = np.clip(x + delta, 0, 1)
      w = update(w, gradient(lambda w: cross_entropy(w, shown, y), w))
    self.assertGreater(cut, 0)
    self.close(found, w)

  @parameterized.product(reading=('paper', 'release'), epsilon=(0.05, 0.3), iterations=(1, 6, 50))
  def test_transport_plan(self, reading, epsilon, iterations):
    """l_OT of both readings, outside of any method, and its gradient in x."""
    rng = np.random.default_rng(iterations)
    x, y = rng.normal(size=(4, 3)), rng.normal(size=(5, 3))
    plan = sinkhorn if reading == 'paper' else released_sinkhorn

    def distance(x):
      cost = cosine_cost(x, y)
      return np.sum(plan(cost, epsilon=epsilon, iterations=iterations) * cost)

    value, slope = jax.value_and_grad(lambda x: dlfd_losses.ot_distance(
        x, jnp.asarray(y, jnp.float32), epsilon=epsilon, max_iterations=iterations,
        reading=reading))(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(value, distance(x), rtol=2e-5)
    np.testing.assert_allclose(slope, gradient(distance, x), rtol=1e-3, atol=1e-4)

  def test_every_registered_method_has_a_reference(self):
    self.assertCountEqual([name for names in reference.WHERE.values() for name in names],
                          methods.names())

  def test_methods_of_this_file(self):
    reference.check_covered(self, 'reference_test')


if __name__ == '__main__':
  absltest.main()
