"""The baselines of classification against NumPy: CF-k to SalUn, see `reference`.

Written from the papers and from what their releases compute, in float64: losses as plain sums, all
gradients by central differences, optimizers and schedules anew.
"""

import itertools

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
from tests.methods.reference import gradient
from tests.methods.reference import kept
from tests.methods.reference import log_softmax
from tests.methods.reference import logits
from tests.methods.reference import run
from unlearn_jax import methods
from unlearn_jax import types

EPSILON = 1e-3
# Layer by layer: two convolutions (of a single pixel) with batch norm, and a head.
SHAPES = {'conv1/kernel': (2, 3), 'bn1/scale': (3,), 'bn1/bias': (3,), 'conv2/kernel': (3, 3),
          'bn2/scale': (3,), 'bn2/bias': (3,), 'fc/kernel': (3, 2), 'fc/bias': (2,)}


def layered():
  """A network in plain functions whose names do not sort in the order of use."""

  def init(key, inputs):
    del key, inputs
    return nested({name: jnp.zeros(shape) for name, shape in SHAPES.items()})

  def apply(variables, inputs, *, train=False, rngs=None, method=None):
    del rngs, method
    p, stats = variables['params'], dict(variables['batch_stats'])
    x = inputs['image'][:, 0, 0, :]
    for number in '12':
      x = x @ p[f'conv{number}']['kernel']
      name = f'bn{number}'
      mean, var = ((x.mean(0), x.var(0)) if train else
                   (stats[name]['mean'], stats[name]['var']))
      if train:
        stats[name] = {'mean': 0.9 * stats[name]['mean'] + 0.1 * mean,
                       'var': 0.9 * stats[name]['var'] + 0.1 * var}
      x = jnp.tanh((x - mean) / jnp.sqrt(var + EPSILON) * p[name]['scale'] + p[name]['bias'])
    out = {'logits': x @ p['fc']['kernel'] + p['fc']['bias'], 'features': x}
    return out, {'params': p, 'batch_stats': stats}

  return types.Model(init, apply)


def nested(params):
  """Variables from path -> array."""
  tree = {}
  for name, leaf in params.items():
    module, leaf_name = name.split('/')
    tree.setdefault(module, {})[leaf_name] = jnp.asarray(leaf, jnp.float32)
  return {'params': tree, 'batch_stats': {
      name: {'mean': jnp.zeros(3), 'var': jnp.ones(3)} for name in ('bn1', 'bn2')}}


def paths(variables):
  """Path -> float64 array."""
  return {f'{module}/{name}': np.asarray(leaf, np.float64)
          for module, leaves in variables['params'].items() for name, leaf in leaves.items()}


def layered_start():
  rng = np.random.default_rng(3)
  return {name: rng.normal(size=shape) for name, shape in SHAPES.items()}


def layered_loss(params, fields):
  """CE in train mode: batch norm sees every row, the mean only those that count."""
  x = fields['image'][:, 0, 0].astype(np.float64)
  for number in '12':
    x = x @ params[f'conv{number}/kernel']
    x = (x - x.mean(0)) / np.sqrt(x.var(0) + EPSILON)
    x = np.tanh(x * params[f'bn{number}/scale'] + params[f'bn{number}/bias'])
  z = log_softmax(x @ params['fc/kernel'] + params['fc/bias'])
  rows = fields['mask'] > 0
  return -np.mean(z[np.arange(len(z)), fields['label']][rows])


def restarts(epochs, *, largest, smallest):
  """PyTorch's CosineAnnealingWarmRestarts(T_0=1, T_mult=2), one step per epoch."""
  rates, length, since = [], 1, 0
  for _ in range(epochs):
    rates.append(smallest + (largest - smallest) * (1 + np.cos(np.pi * since / length)) / 2)
    since += 1
    if since >= length:
      since, length = 0, 2 * length
  return rates


class ReferenceTest(parameterized.TestCase):

  def close(self, found, expected):
    """float32 against float64; the updates themselves are of the order of 0.1."""
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    self.assertGreater(np.abs(expected - START).max(), 0.01)

  def one_of(self, found, candidates):
    """`found` is one of the candidates, and no other one is near."""
    distances = np.sort([np.abs(found - candidate).max() for candidate in candidates])
    self.assertLess(distances[0], 1e-5)
    self.assertGreater(distances[1], 1e-4)

  def relabelled(self, fed, *, mask=1.0, epochs=2):
    """Every end that some drawing of labels leads to."""
    fed = list(fed)
    x_f = [kept('forget', fed[2 * epoch])[0] for epoch in range(epochs)]
    drawn = [itertools.product((0, 1), repeat=len(x)) for x in x_f]
    for labels in itertools.product(*drawn):
      w, update = START, SGD(RATE, MOMENTUM, DECAY)
      for epoch, y_f in enumerate(labels):
        for x, y in ((x_f[epoch], np.array(y_f)), kept('retain', fed[2 * epoch + 1])):
          g = gradient(lambda w: cross_entropy(w, x, y), w)  # pylint: disable=cell-var-from-loop
          w = np.where(mask, update(w, g), w)
      yield w

  def test_random_label(self):
    """Forget, retain, forget, retain; one of the 2^3 x 2^3 drawings of labels."""
    found, _, fed = run('random_label', retain_steps=1, forget_steps=1, epochs=2,
                        learning_rate=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    candidates = list(self.relabelled(fed))
    self.assertLen(candidates, 64)
    self.one_of(found, candidates)

  def test_salun(self):
    """The parameter with the larger |sum of gradients| moves, the other one does not at all."""
    found, _, fed = run('salun', retain_steps=1, forget_steps=2, epochs=1, share=0.5,
                        learning_rate=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    total = sum(gradient(lambda w: cross_entropy(w, *kept('forget', k)), START) for k in fed[:2])
    mask = np.abs(total) == np.abs(total).max()
    self.assertEqual(found[~mask], np.float32(START)[~mask])
    candidates = []
    for labels in itertools.product((0, 1), repeat=6):
      w, update = START, SGD(RATE, MOMENTUM, DECAY)
      for step, y in enumerate((labels[:3], labels[3:])):
        x = kept('forget', fed[2 + step])[0]
        w = np.where(mask, update(w, gradient(lambda w: cross_entropy(w, x, np.array(y)), w)), w)
      w = np.where(mask, update(w, gradient(lambda w: cross_entropy(
          w, *kept('retain', fed[4])), w)), w)
      candidates.append(w)
    self.one_of(found, candidates)

  def test_l1_sparse(self):
    """The weight of the norm is alpha, alpha / 2, then 0: it fades over E - P epochs."""
    alpha = 0.2
    found, _, fed = run('l1_sparse', retain_steps=2, epochs=3, plain_epochs=1, alpha=alpha,
                        learning_rate=0.1, momentum=MOMENTUM, weight_decay=DECAY)
    ends = []
    for weights in ((1, 1, 0.5, 0.5, 0, 0), (1, 1, 2 / 3, 2 / 3, 1 / 3, 1 / 3)):
      w, update = START, SGD(0.1, MOMENTUM, DECAY)
      for k, weight in zip(fed, weights, strict=True):
        w = update(w, gradient(lambda w: cross_entropy(w, *kept('retain', k))
                               + alpha * weight * np.sum(np.abs(w)), w))
      ends.append(w)
    self.close(found, ends[0])
    self.assertGreater(np.abs(ends[0] - ends[1]).max(), 1e-2)

  @parameterized.parameters(('sgd', 1.0, 0.3), ('adam', 1.0, 0.3), ('sgd', 2.5, 0.6))
  def test_bad_teacher(self, optimizer, temperature, share):
    """The mean over D_f and a share of D_r; both batches are padded."""
    found, _, fed = run('bad_teacher', retain_steps=10, forget_steps=2, epochs=1.0,
                        retain_share=share, temperature=temperature, optimizer=optimizer,
                        learning_rate=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    self.assertLen(fed, round(10 * share))
    untrained = reference.initial(jax.random.fold_in(reference.KEY, 1))

    def divergences(w, teacher, x):
      """sum_c q (log q - log p) of every record."""
      log_q = log_softmax(logits(teacher, x) / temperature)
      log_p = log_softmax(logits(w, x) / temperature)
      return np.sum(np.exp(log_q) * (log_q - log_p), axis=1)

    w = START
    update = SGD(RATE, MOMENTUM, DECAY) if optimizer == 'sgd' else Adam(RATE, DECAY)
    for k in fed:
      (x, _), (x_f, _) = kept('retain', k), kept('forget', k)
      # What the batch stands for: 10 such batches make up D_r, 2 make up D_f.
      size_r, size_f = 10 * share * len(x), 2 * len(x_f)

      def loss(w):
        return (size_r * divergences(w, START, x).mean()
                + size_f * divergences(w, untrained, x_f).mean()) / (size_r + size_f) / 2

      w = update(w, gradient(loss, w))
    self.close(found, w)

  @parameterized.parameters(1.0, 0.4)
  def test_ssd(self, lam):
    found, _, fed = run('ssd', forget_steps=2, train_steps=3, alpha=self.threshold(), lam=lam)
    forget, full = self.importances(fed[:2], fed[2:5])
    selected = forget > self.threshold() * full
    self.assertEqual(selected.sum(), 1)
    self.close(found, np.where(selected, np.minimum(lam * full / forget, 1), 1) * START)
    np.testing.assert_array_equal(found[~selected], np.float32(START)[~selected])

  def importances(self, forget, train):
    """Squares of batch-mean gradients, averaged over batches."""
    def one(role, steps):
      return np.mean([gradient(lambda w: cross_entropy(w, *kept(role, k)), START)**2
                      for k in steps], axis=0)
    return one('forget', forget), one('train', train)

  def threshold(self):
    """An alpha between the two ratios I_f / I_D, so that one of two parameters is selected."""
    forget, full = self.importances((0, 1), (0, 1, 2))
    return float(np.mean(forget / full))

  def test_unsir(self):
    """One picture of noise: which of them meets a batch is no chance then."""
    weight, share = 0.3, 0.36
    settings = {'retain_steps': 2, 'noise_size': 1, 'noise_steps': 3, 'noise_learning_rate': 0.1,
                'noise_weight': weight, 'noise_share': share, 'impair_epochs': 1.0,
                'repair_epochs': 1.0, 'learning_rate': 0.2, 'repair_ratio': 0.5}
    variables = {'params': {'w': jnp.asarray(START, jnp.float32)}}
    result, fed = reference.run_loop('unsir', reference.network(), variables, **settings)
    method = methods.get('unsir')(reference.network(), example=reference.EXAMPLE, **settings)
    state, _ = method.init(reference.KEY, variables)
    noise = np.asarray(state.params['noise'], np.float64)[:, 0, 0]
    label = np.argmax(result.state.extra['label'], axis=1)
    self.assertIn(label[0], kept('forget', fed[0])[1])

    update = Adam(0.1)
    for _ in range(3):
      noise = update(noise, gradient(lambda n: -cross_entropy(START, n, label)
                                     + weight * np.mean(np.sum(n**2, axis=1)), noise))
    np.testing.assert_allclose(result.state.params['noise'][:, 0, 0], noise, rtol=1e-5, atol=1e-5)

    w, update = START, Adam(0.2)
    copies = round(5 * share / (1 - share))
    self.assertEqual(copies, 3)
    for k in fed[4:6]:
      x, y = kept('retain', k)
      x, y = np.concatenate([x, noise.repeat(copies, 0)]), np.concatenate([y, label.repeat(copies)])
      w = update(w, gradient(lambda w: cross_entropy(w, x, y), w))
    update = Adam(0.1)
    for k in fed[6:8]:
      w = update(w, gradient(lambda w: cross_entropy(w, *kept('retain', k)), w))
    self.assertLen(fed, 8)
    self.close(result.variables['params']['w'], w)

  @parameterized.product(k=(1, 2), clip=(0.05, 10.0))
  def test_cf_k(self, k, clip):
    self.check_last_layers('cf_k', k, clip)

  @parameterized.product(k=(1, 2), clip=(0.05, 10.0))
  def test_eu_k(self, k, clip):
    self.check_last_layers('eu_k', k, clip)

  def check_last_layers(self, name, k, clip):
    """Four epochs of two steps; the layers that are no part of it stay bitwise."""
    trained = ({'fc/kernel', 'fc/bias'} if k == 1 else set(SHAPES)
               - {'conv1/kernel', 'bn1/scale', 'bn1/bias'})
    variables = nested(layered_start())
    settings = {'retain_steps': 2, 'k': k, 'epochs': 4.0, 'learning_rate': 0.2, 'ratio': 0.1,
                'momentum': MOMENTUM, 'weight_decay': DECAY, 'clip': clip}
    result, fed = reference.run_loop(name, layered(), variables, **settings)
    params = paths(variables)
    if name == 'eu_k':
      state, _ = methods.get(name)(layered(), example=reference.EXAMPLE, **settings).init(
          reference.KEY, variables)
      params = paths({'params': state.params['model']})

    updates = {leaf: SGD(1.0, MOMENTUM, DECAY) for leaf in trained}
    clipped = 0
    for step, rate in zip(fed, np.repeat(restarts(4, largest=0.2, smallest=0.02), 2), strict=True):
      fields = reference.batch('retain', step)
      grads = {leaf: gradient(lambda a: layered_loss({**params, leaf: a}, fields), params[leaf])
               for leaf in trained}
      norm = np.sqrt(sum(np.sum(g**2) for g in grads.values()))
      clipped += norm > clip
      params = {**params, **{leaf: updates[leaf](params[leaf], g * min(1, clip / norm), rate)
                             for leaf, g in grads.items()}}
    self.assertEqual(clipped > 0, clip < 1)

    found, start = paths(result.variables), paths(variables)
    for leaf in SHAPES:
      np.testing.assert_allclose(found[leaf], params[leaf], rtol=2e-4, atol=2e-5, err_msg=leaf)
      if leaf in trained:
        self.assertGreater(np.abs(found[leaf] - start[leaf]).max(), 1e-3, leaf)
      else:
        np.testing.assert_array_equal(found[leaf], start[leaf], err_msg=leaf)
    for layer, stats in result.variables['batch_stats'].items():  # train mode throughout
      self.assertTrue((stats['mean'] != 0).all(), layer)

  def test_methods_of_this_file(self):
    reference.check_covered(self, 'reference_classification_test')


if __name__ == '__main__':
  absltest.main()
