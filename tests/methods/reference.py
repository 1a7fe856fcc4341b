"""What the NumPy references share: a network of two parameters, data, losses and optimizers.

Everything below "The reference" is float64 and free of JAX: losses as plain sums, all gradients by
central differences, the optimizers anew. The network is logistic: z = (0, w1 x1 + w2 x2), with
penultimate features (w1 x1, w2 x2).
"""

import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import methods
from unlearn_jax import types
from unlearn_jax.train import loop
from unlearn_jax.train import sharding

# Which test file holds the reference of a method.
WHERE = {
    'reference_test': ('retrain', 'finetune', 'neg_grad', 'neg_grad_plus', 'scrub', 'dlfd'),
    'reference_classification_test': ('random_label', 'l1_sparse', 'cf_k', 'eu_k', 'unsir',
                                      'bad_teacher', 'ssd', 'salun'),
    'reference_image_text_test': ('contrastive', 'continued', 'gradient_ascent', 'relabelling',
                                  'soft_clip', 'ncu'),
    'multi_delete_test': ('multi_delete',),
    'ccu_test': ('ccu',),
    'fed_ascent_test': ('fed_ga', 'sfu', 'fed_osd'),
    'fed_history_test': ('fed_eraser', 'fed_recovery', 'pga'),
    'fed_parts_test': ('fed_not', 'fused'),
    'federated_test': ('federate', 'fed_finetune'),
    'ease_test': ('ease',),
    'fed_pairs_test': ('fed_multi_delete', 'clip_erase'),
    'reconstruct_test': ('reconstruct',),
    'i2i_test': ('i2i',),
    'generator_baselines_test': ('max_loss', 'noisy_label', 'retain_label', 'random_encoder'),
}
START = np.array([1.5, -0.8])
RATE, MOMENTUM, DECAY = 0.3, 0.9, 0.02
EXAMPLE = {'image': np.zeros((1, 1, 1, 2), np.float32)}
KEY = jax.random.key(5)


def check_covered(case, file):
  """Fails unless `case` has a test for each method that `WHERE` promises in `file`."""
  tests = {name for name in dir(case) if name.startswith('test_')}
  for name in WHERE[file]:
    case.assertTrue(any(test.startswith(f'test_{name}') for test in tests), name)


def pictures(role, step):
  """Noise [6, 4, 4, 1] with four classes and a row of padding whose label is no class."""
  rng = np.random.default_rng([len(role), ord(role[0]), step])
  y, mask = rng.integers(0, 4, 6).astype(np.int32), np.ones(6, np.float32)
  y[-1], mask[-1] = 9, 0.0
  return {'image': rng.uniform(size=(6, 4, 4, 1)).astype(np.float32), 'label': y,
          'id': np.arange(6, dtype=np.int32), 'mask': mask}


def values(model, example):
  """Variables of general values, cheap to make: no weight is 0, no scale 1, no variance below 0."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(model.init, KEY, example)

  def value(leaf, signs):
    drawn = rng.uniform(0.2, 0.8, leaf.shape) * rng.choice(signs, leaf.shape)
    return jnp.asarray(drawn, leaf.dtype)

  return {name: jax.tree.map(lambda leaf: value(leaf, (-1, 1) if name == 'params' else (1,)), tree)
          for name, tree in shapes.items()}


def network():
  def init(key, inputs):
    del inputs
    return {'params': {'w': jax.random.normal(key, (2,))}}

  def apply(variables, inputs, *, train=False, rngs=None, method=None):
    del train, rngs, method
    features = variables['params']['w'] * inputs['image'][:, 0, 0, :]  # [B, 2]
    z = jnp.sum(features, axis=1)
    return {'logits': jnp.stack([jnp.zeros_like(z), z], axis=1), 'features': features}, variables

  return types.Model(init, apply)


def batch(role, step):
  """x in [0, 1], labels, and one row of padding."""
  size = {'retain': 5, 'forget': 4, 'train': 6}[role]
  rng = np.random.default_rng([size, step])
  x = rng.uniform(size=(size, 2)).astype(np.float32)
  y = rng.integers(0, 2, size).astype(np.int32)
  mask = np.ones(size, np.float32)
  mask[rng.integers(size)] = 0.0
  return {'image': x[:, None, None, :], 'label': y, 'id': np.arange(size, dtype=np.int32),
          'mask': mask}


def kept(role, step):
  """(x, y) of the records that count, in float64."""
  fields = batch(role, step)
  rows = fields['mask'] > 0
  return fields['image'][rows, 0, 0].astype(np.float64), fields['label'][rows]


def run_loop(name, model, variables, *, records=batch, scores=None, **settings):
  """The real loop over `records(role, step)`.

  Returns:
    (its result, the steps of the streams that were fed, in order).
  """
  example = {'image': records('retain', 0)['image'][:1]}
  method = methods.get(name)(model, example=example, **settings)
  monitor = None
  if scores is not None:  # the first call compiles
    values = iter([scores[0], *scores])
    monitor = types.Evaluator('monitor', lambda apply, variables: next(values), 1)
  fed = []

  def stream(*roles):
    def read(step):
      fed.append(step)
      return {role: records(role, step) for role in roles}
    return read

  result = loop.run(
      method, variables, {'retain': stream('retain'), 'forget': stream('forget'),
                          'train': stream('train'), 'pair': stream('retain', 'forget')},
      key=KEY, apply=model.apply, mesh=sharding.make_mesh(1), monitor=monitor, show_progress=False)
  return result, fed


def run(name, **settings):
  """The real loop over the network of two parameters, which starts from `START`.

  Returns:
    (w at the end, the w that a fresh initialisation has, the steps of the stream that were fed).
  """
  result, fed = run_loop(name, network(), {'params': {'w': jnp.asarray(START, jnp.float32)}},
                         **settings)
  return np.asarray(result.variables['params']['w']), initial(KEY), fed


def initial(key):
  """The w that the network is initialised with."""
  return np.asarray(network().init(key, EXAMPLE)['params']['w'], np.float64)


# The reference.


def gradient(fn, at, step=1e-5):
  """Central differences."""
  found = np.zeros_like(at)
  for index in np.ndindex(at.shape):
    move = np.zeros_like(at)
    move[index] = step
    found[index] = (fn(at + move) - fn(at - move)) / (2 * step)
  return found


def logits(w, x):
  z = x @ w
  return np.stack([np.zeros_like(z), z], axis=1)


def log_softmax(z):
  return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def cross_entropy(w, x, y):
  """CE(y, f_w(x)), mean over records."""
  return -np.mean(log_softmax(logits(w, x))[np.arange(len(y)), y])


def distillation(w, teacher, x, temperature):
  """T^2 KL(softmax(t / T) || softmax(s / T)), mean over records."""
  log_t = log_softmax(logits(teacher, x) / temperature)
  log_s = log_softmax(logits(w, x) / temperature)
  return temperature**2 * np.mean(np.sum(np.exp(log_t) * (log_t - log_s), axis=1))


class SGD:
  """PyTorch's: L2 decay enters the gradient before momentum."""

  def __init__(self, rate, momentum=0.0, decay=0.0):
    self.rate, self.momentum, self.decay, self.velocity = rate, momentum, decay, 0.0

  def __call__(self, w, g, factor=1.0):
    self.velocity = self.momentum * self.velocity + g + self.decay * w
    return w - factor * self.rate * self.velocity


class Adam:
  """Kingma and Ba 2015, Algorithm 1, with L2 decay in the gradient."""

  def __init__(self, rate, decay=0.0):
    self.rate, self.decay, self.m, self.v, self.t = rate, decay, 0.0, 0.0, 0

  def __call__(self, w, g, factor=1.0):
    g = g + self.decay * w
    self.t += 1
    self.m, self.v = 0.9 * self.m + 0.1 * g, 0.999 * self.v + 0.001 * g**2
    m, v = self.m / (1 - 0.9**self.t), self.v / (1 - 0.999**self.t)
    return w - factor * self.rate * m / (np.sqrt(v) + 1e-8)
