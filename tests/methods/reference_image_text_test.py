"""Updates of the methods on image-text pairs against NumPy, on two linear towers.

As in `reference_test` the references are float64 and free of JAX: losses from `ncu_reference`, all
gradients by central differences, schedules, path rules and optimizers anew.
"""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from tests.losses import ncu_reference
from tests.methods import reference
from unlearn_jax import methods
from unlearn_jax import types
from unlearn_jax.models import clip
from unlearn_jax.train import loop
from unlearn_jax.train import sharding

SIZE, FRACTION, SLOTS, EPSILON = 6, 0.34, 2, 0.2
SHAPES = {'visual/kernel': (3, 3), 'text/kernel': (3, 3), 'text/positional_embedding': (1, 3),
          'logit_scale': ()}
CONTEXT = {'train_steps': 2, 'retain_steps': 3, 'batch_size': SIZE, 'prompt_slots': SLOTS}
DECAYED = ('visual/kernel', 'text/kernel', 'text/positional_embedding', 'prompt')


def nest(flat):
  tree = {}
  for name, leaf in flat.items():
    *outer, last = name.split('/')
    place = tree
    for key in outer:
      place = place.setdefault(key, {})
    place[last] = leaf
  return tree


def draw(seed):
  """Parameters of general values."""
  rng = np.random.default_rng(seed)
  found = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
  return {**found, 'logit_scale': np.asarray(1.5)}


def network():
  def init(key, inputs):
    del inputs
    return {'params': nest({name: jnp.asarray(1.0, jnp.float32) if not shape else
                            jax.random.normal(jax.random.fold_in(key, index), shape)
                            for index, (name, shape) in enumerate(SHAPES.items())})}

  def unit(x):
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)

  def apply(variables, inputs, *, train=False, rngs=None, method=None):
    del train, rngs
    params = variables['params']
    added = jnp.mean(inputs['prompt'], axis=0) if 'prompt' in inputs else 0.0
    text = (inputs['text'] + params['text']['positional_embedding'] + added)
    outputs = {'text_embedding': unit(text @ params['text']['kernel'])}
    if method is None:
      outputs['image_embedding'] = unit(inputs['image'] @ params['visual']['kernel'])
      outputs['logit_scale'] = params['logit_scale']
    return outputs, variables

  return types.Model(init, apply)


def batch(role, step):
  """Pictures, captions that have something to do with them, and captions to be negated."""
  rng = np.random.default_rng([len(role), step])
  image = rng.normal(size=(SIZE, 3))
  text = image + 0.7 * rng.normal(size=(SIZE, 3))
  return {name: value.astype(np.float32) for name, value in (
      ('image', image), ('text', text), ('negative', text + 0.1), ('mask', np.ones(SIZE)))}


def run(name, start, **settings):
  """The real loop: {parameter: value} at the end, and the batches (role, step) in order."""
  fed = []

  def stream(role):
    def read(step):
      fed.append((role, step))
      return {'pairs': batch(role, step)}
    return read

  example = {key: batch('train', 0)[key][:1] for key in ('image', 'text')}
  method = methods.get(name)(network(), example=example, **{**CONTEXT, **settings})
  result = loop.run(
      method, {'params': nest({k: jnp.asarray(x, jnp.float32) for k, x in start.items()})},
      {role: stream(role) for role in ('train', 'retain', 'clean', 'written')},
      key=reference.KEY, mesh=sharding.make_mesh(1), show_progress=False)
  trees = {**result.state.params['model'], **{k: v for k, v in result.state.params.items()
                                              if k != 'model'}}
  return {name: np.asarray(leaf) for name, leaf in _flat(trees)}, fed


def _flat(tree, prefix=''):
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from _flat(value, f'{prefix}{key}/')
    else:
      yield prefix + key, value


# The reference.


def embed(params, fields):
  """(pictures, captions, negatives, log scale)."""
  fields = {name: value.astype(np.float64) for name, value in fields.items()}
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  text = lambda x: unit((x + params['text/positional_embedding']) @ params['text/kernel'])
  prompt = params['prompt'].mean(axis=0) if 'prompt' in params else 0.0
  return (unit(fields['image'] @ params['visual/kernel']), text(fields['text']),
          text(fields['negative'] + prompt), params['logit_scale'])


def gradients(loss, params):
  return {name: reference.gradient(lambda x, name=name: loss({**params, name: x}), leaf)
          for name, leaf in params.items()}


def multiplier(step, steps, warmup):
  """Linear warm-up, then half a cosine."""
  if step < warmup:
    return (step + 1) / warmup
  return (1 + np.cos(np.pi * (step - warmup) / (steps - warmup))) / 2


class AdamW:
  """Loshchilov and Hutter 2019, Algorithm 2, with CLIP's betas."""

  def __init__(self, decay):
    self.decay, self.m, self.v, self.t = decay, {}, {}, 0

  def __call__(self, params, grads, rates):
    self.t += 1
    found = dict(params)
    for name, rate in rates.items():
      g = grads[name]
      self.m[name] = 0.9 * self.m.get(name, 0.0) + 0.1 * g
      self.v[name] = 0.98 * self.v.get(name, 0.0) + 0.02 * g**2
      m, v = self.m[name] / (1 - 0.9**self.t), self.v[name] / (1 - 0.98**self.t)
      decay = self.decay if name in DECAYED else 0.0
      found[name] = params[name] - rate * (m / (np.sqrt(v) + 1e-8) + decay * params[name])
    return found


def sgd(params, grads, rates):
  return {name: leaf - rates.get(name, 0.0) * grads[name] for name, leaf in params.items()}


class ReferenceTest(parameterized.TestCase):

  def close(self, found, expected, start):
    self.assertEqual(found.keys(), expected.keys())
    for name, leaf in expected.items():
      np.testing.assert_allclose(found[name], leaf, rtol=1e-4, atol=1e-5, err_msg=name)
    moved = max(np.abs(expected[name] - start[name]).max() for name in start)
    self.assertGreater(moved, 0.01)

  def trained(self, params, fed, loss, *, rate, warmup=0, update=sgd):
    """`loss(embeddings)` descended over the batches that the loop was fed."""
    for k, place in enumerate(fed):
      fields = batch(*place)
      grads = gradients(lambda p, fields=fields: loss(embed(p, fields)), params)
      factor = rate * multiplier(k, len(fed), warmup)
      params = update(params, grads, dict.fromkeys(params, factor))
      params['logit_scale'] = np.clip(params['logit_scale'], 0, np.log(100))
    return params

  def initial(self):
    variables = network().init(reference.KEY, None)['params']
    return {name: np.asarray(leaf, np.float64) for name, leaf in _flat(variables)}

  @parameterized.parameters(('retain', 3), ('train', 2), ('clean', 2))
  def test_contrastive(self, role, steps):
    found, fed = run('contrastive', draw(0), role=role, epochs=1.0, learning_rate=0.2,
                     optimizer='sgd')
    self.assertEqual(fed, [(role, step) for step in range(steps)])
    start = self.initial()  # and not the variables given
    self.close(found, self.trained(
        start, fed, lambda e: ncu_reference.info_nce(e[0], e[1], e[3]), rate=0.2), start)

  @parameterized.product(optimizer=('sgd', 'adamw'), smoothing=(0.0, 0.2))
  def test_continued(self, optimizer, smoothing):
    start, update = draw(1), AdamW(0.3) if optimizer == 'adamw' else sgd
    found, fed = run('continued', start, epochs=2.0, learning_rate=0.05, optimizer=optimizer,
                     weight_decay=0.3, warmup_steps=2, label_smoothing=smoothing)
    self.assertEqual(fed, [('train', step) for step in range(4)])
    self.close(found, self.trained(
        start, fed, lambda e: ncu_reference.info_nce(e[0], e[1], e[3], smoothing), rate=0.05,
        warmup=2, update=update), start)

  @parameterized.product(name=('gradient_ascent', 'relabelling'), reading=('paper', 'release'))
  def test_gradient_ascent_and_relabelling(self, name, reading):
    self.selects(name, reading)

  def test_relabelling(self):
    self.selects('relabelling', 'paper', forget_fraction=0.5)

  def selects(self, name, reading, forget_fraction=FRACTION):
    extra = {'label_smoothing': 0.2, 'ascent_weight': 0.5} if name == 'gradient_ascent' else {}
    start = draw(2)
    found, fed = run(name, start, epochs=1.0, learning_rate=0.1, optimizer='sgd', reading=reading,
                     forget_fraction=forget_fraction, **extra)
    params = start
    for k, place in enumerate(fed):
      fields = batch(*place)
      v, t, _, s = embed(params, fields)
      forget = ncu_reference.forget_pairs(v, t, s, forget_fraction, reading)  # constant

      def loss(p):
        v, t, _, s = embed(p, fields)
        if name == 'relabelling':
          return ncu_reference.relabelling(v, t, s, forget)
        return ncu_reference.gradient_ascent(v, t, s, forget, smoothing=0.2, weight=0.5)

      params = sgd(params, gradients(loss, params),
                   dict.fromkeys(params, 0.1 * multiplier(k, 2, 0)))
    self.close(found, params, start)

  def test_soft_clip(self):
    found, fed = run('soft_clip', draw(0), epochs=1.0, learning_rate=0.1, optimizer='sgd',
                     softness=0.4, soft_weight=0.7, relation_weight=0.6)
    start = params = self.initial()
    for k, place in enumerate(fed):
      fields = batch(*place)
      v, t, _, s = embed(params, fields)

      def loss(p):
        found = embed(p, fields)
        return ncu_reference.soft_clip(found[0], found[1], found[3], (v, t, s), softness=0.4,
                                       soft_weight=0.7, relation_weight=0.6)

      params = sgd(params, gradients(loss, params),
                   dict.fromkeys(params, 0.1 * multiplier(k, 2, 0)))
    self.close(found, params, start)

  @parameterized.parameters(
      ('paper', 'sgd', {}), ('release', 'sgd', {}), ('paper', 'adamw', {}),
      ('paper', 'sgd', {'opposite': 'distance', 'targets': 'false_positives'}))
  def test_ncu(self, reading, optimizer, changes):
    start, rates = draw(3), {'learning_rate': 0.05, 'text_learning_rate': 0.01,
                             'prompt_learning_rate': 0.02}
    settings = {**rates, **changes, 'reading': reading, 'optimizer': optimizer,
                'forget_fraction': FRACTION, 'epsilon': EPSILON, 'weight_decay': 0.3,
                'warmup_steps': 1, 'negative_epochs': 1.0, 'epochs': 1.5, 'frozen_text_blocks': 0}
    found, fed = run('ncu', start, **settings)
    self.assertEqual(fed, [('train', step) for step in range(2 + 3)])
    options = {'opposite': changes.get('opposite', 'relation')}
    prompt = clip.init_prompt(jax.random.fold_in(reference.KEY, 1), {'params': nest(start)}, SLOTS)
    params = {**start, 'prompt': np.asarray(prompt, np.float64)}
    for k, place in enumerate(fed):
      fields, first = batch(*place), k < 2
      v, t, n, s = embed(params, fields)
      forget = ncu_reference.forget_pairs(v, t, s, FRACTION, reading)
      if k in (0, 2):  # a fresh optimizer
        update = AdamW(0.3) if optimizer == 'adamw' else sgd
      if first:
        moving = dict.fromkeys(('text/kernel', 'text/positional_embedding', 'logit_scale'),
                               settings['text_learning_rate'])
        moving['prompt'] = settings['prompt_learning_rate']
        loss = lambda p: ncu_reference.hardest_negative(
            *embed(p, fields), ~forget, reading=reading, **options)
      else:
        moving = dict.fromkeys([name for name in start if reading == 'paper' or
                                name != 'text/positional_embedding'], settings['learning_rate'])
        targets = changes.get('targets', 'both')
        goal = ncu_reference.transport_targets(v, t, n, forget, reading=reading, targets=targets,
                                               epsilon=EPSILON)
        loss = lambda p: ncu_reference.unlearning(
            *embed(p, fields), goal, forget, reading=reading, targets=targets, **options)
      # Release: one schedule, counted from the second epoch.
      factor = (multiplier(2 + k, 5, 1) if reading == 'release' else
                multiplier(k, 2, 1) if first else multiplier(k - 2, 3, 1))
      params = update(params, gradients(loss, params),
                      {name: factor * rate for name, rate in moving.items()})
    self.close(found, params, start | {'prompt': np.asarray(prompt)})

  def test_methods_of_this_file(self):
    reference.check_covered(self, 'reference_image_text_test')


if __name__ == '__main__':
  absltest.main()
