"""A federation of four clients over two linear towers, and its algebra written once more by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.methods import reference
from unlearn_jax import models
from unlearn_jax.data import clients
from unlearn_jax.models import lora

CLIENTS, STEPS, BATCH = 4, 2, 4
EMBEDDING, RANK, SCALE = 4, 2, 1.5
WIDTHS = {'image': 5, 'text': 6}
TOWERS = {'image': 'visual', 'text': 'text'}
ROUNDS = 5
ROSTERS = {
    'client': clients.Roster(np.array([6, 4, 5, 8]), np.array([0, 4, 0, 0]),
                             np.array([False, True, False, False]), 'client'),
    'sample': clients.Roster(np.array([6, 4, 5, 8]), np.array([2, 0, 3, 0]), np.zeros(4, bool),
                             'sample')}
SGD = {'optimizer': 'sgd', 'learning_rate': 0.5, 'weight_decay': 0.0}


@functools.cache
def network():
  return lora.adapted(models.get('linear_towers', embedding=EMBEDDING, temperature=0.5),
                      rank=RANK, alpha=SCALE * RANK)


def example():
  return {name: np.zeros((1, width), np.float32) for name, width in WIDTHS.items()}


def variables(rounds=ROUNDS, kept=ROUNDS, taken=None, weight=None):
  """A trained federation, the same at every call: theta^T is theta^0 and all that was sent."""
  rng = np.random.default_rng(5)
  draw = lambda *shape, scale=0.5: (scale * rng.normal(size=shape)).astype(np.float32)
  sizes = {branch: RANK * (width + EMBEDDING) for branch, width in WIDTHS.items()}
  params = {TOWERS[branch]: {'kernel': draw(width, EMBEDDING)} for branch, width in WIDTHS.items()}
  params['logit_scale'] = np.float32(np.log(2.0))
  weight = np.array([6, 4, 5, 8], np.float32) if weight is None else weight
  taken = np.ones((CLIENTS, rounds), np.float32) if taken is None else taken
  start = {branch: draw(size) for branch, size in sizes.items()}
  sent = {branch: draw(CLIENTS, rounds, size, scale=0.1) * taken[:, :, None]
          for branch, size in sizes.items()}
  share = taken * weight[:, None] / (taken * weight[:, None]).sum(0)
  adapter = {branch: start[branch] + np.einsum('kt,ktp->p', share, sent[branch]) for branch in sent}
  slots = [max(t for t in range(rounds) if t % kept == slot) for slot in range(kept)]
  found = {'params': params, 'adapter': adapter, 'federation': {
      'start': start, 'updates': {branch: value[:, slots] for branch, value in sent.items()},
      'taken': taken[:, slots], 'weight': weight, 'rounds': np.int32(rounds)}}
  return jax.tree.map(jnp.asarray, found), {'sent': sent, 'share': share}


def _role(rng, weight):
  shape = (CLIENTS, STEPS, BATCH)
  mask = np.ones(shape, np.float32)
  mask[:, 1, 1] = 0.0  # not a prefix
  mask[0, 1] = [1, 0, 0, 0]  # a step without negatives
  mask[weight == 0] = 0.0
  found = {name: rng.normal(size=(*shape, width)).astype(np.float32)
           for name, width in WIDTHS.items()}
  return {**found, 'id': np.zeros(shape, np.int32), 'mask': mask,
          'weight': weight.astype(np.float32), 'part': (weight > 0).astype(np.float32)}


def batch(number, scenario='client'):
  """Both roles of a round; whose rows do not count has numbers all the same."""
  rng, roster = np.random.default_rng([3, number]), ROSTERS[scenario]
  return {'clients': _role(rng, roster.sizes - roster.forget), 'forget': _role(rng, roster.forget)}


def play(method, given, scenario='client', key=0, jit=jax.jit, change=lambda stream, found: found):
  """Runs the phases; yields (phase, state, frozen, batch, state afterwards, metrics)."""
  state, frozen = method.init(jax.random.key(key), given)
  number = 0
  for phase in method.phases:
    step = jit(phase.step)
    state = state if phase.enter is None else jit(phase.enter)(state)
    for _ in range(phase.steps):
      found = batch(number, scenario)
      found = found if phase.stream == 'pair' else {'clients': found['clients']}
      after, metrics = step(state, frozen, change(phase.stream, found))
      yield phase, state, frozen, found, after, metrics
      state, number = after, number + 1


def adapter(tree):
  """The vectors of a state or of variables, in float64."""
  found = tree.params['adapter'] if hasattr(tree, 'params') else tree['adapter']
  return {branch: np.asarray(vector, np.float64) for branch, vector in found.items()}


def embed(params, theta, inputs):
  """(u, w) from the definition W = W0 + s B A."""
  found = []
  for branch, width in WIDTHS.items():
    cut = EMBEDDING * RANK
    b, a = theta[branch][:cut].reshape(EMBEDDING, RANK), theta[branch][cut:].reshape(RANK, width)
    x = inputs[branch] @ (np.asarray(params[TOWERS[branch]]['kernel']) + SCALE * (b @ a).T)
    found.append(x / np.linalg.norm(x, axis=1, keepdims=True))
  return found


def probabilities(params, theta, inputs):
  """p_ii of both directions."""
  u, w = embed(params, theta, inputs)
  scores = np.exp(float(params['logit_scale'])) * u @ w.T
  return [np.diagonal(np.exp(s) / np.sum(np.exp(s), axis=1, keepdims=True))
          for s in (scores, scores.T)]


def nce(params, theta, inputs):
  return -0.5 * sum(np.mean(np.log(p)) for p in probabilities(params, theta, inputs))


def clipped(gradient, bound):
  norm = np.sqrt(sum(np.sum(g**2) for g in gradient.values()))
  return {branch: g * min(1.0, bound / norm) for branch, g in gradient.items()}


def local(theta, data, client, loss, rate, *, clip=np.inf, after=lambda theta: theta, momentum=0.0,
          stop=lambda theta: False):
  """One client's local SGD on central differences, rows that do not count cut out: its update."""
  now, velocity = dict(theta), {branch: 0.0 for branch in theta}
  for step in range(data['mask'].shape[1]):
    rows = data['mask'][client, step] > 0
    if rows.sum() < 2 or stop(now):
      continue
    inputs = {name: np.asarray(leaf)[client, step][rows].astype(np.float64)
              for name, leaf in data.items() if leaf.ndim > 2}
    at = lambda branch, value, now=now, inputs=inputs: loss({**now, branch: value}, inputs)
    found = {branch: reference.gradient(functools.partial(at, branch), vector)
             for branch, vector in now.items()}
    for branch, g in clipped(found, clip).items():
      velocity[branch] = momentum * velocity[branch] + g
    now = after({branch: now[branch] - rate * velocity[branch] for branch in now})
  return {branch: now[branch] - theta[branch] for branch in theta}


def updates(theta, data, loss, rate, **how):
  """Client -> update, of those that count."""
  return {client: local(theta, data, client, loss, rate, **how)
          for client in np.flatnonzero(data['weight'] * data['part'])}


def mean(sent, weight):
  total = sum(weight[client] for client in sent)
  return {branch: sum(weight[client] * delta[branch] for client, delta in sent.items()) / total
          for branch in WIDTHS}


def moved(theta, by):
  return {branch: theta[branch] + by[branch] for branch in theta}


def assert_adapters(actual, expected, atol=2e-5):
  for branch in WIDTHS:
    np.testing.assert_allclose(actual[branch], expected[branch], rtol=2e-4, atol=atol,
                               err_msg=branch)
