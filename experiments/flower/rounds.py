"""A federated round seen from both ends: what the server asks, and what a client answers."""

from collections.abc import Callable, Mapping
import logging
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import methods
from unlearn_jax import types
from unlearn_jax.data import clients as clients_lib
from unlearn_jax.data.builders import factor_pairs
from unlearn_jax.methods import ease
from unlearn_jax.methods import federated
from unlearn_jax.models import linear_towers
from unlearn_jax.models import lora

UPDATE, DISPLACE, GRADIENT = 'update', 'displace', 'gradient'  # kinds of questions
ROUNDS = ('federate', 'calibrate', 'unlearn', 'recover', 'finetune')  # phases that ask nothing else
BEGUN_ANEW = 'unlearn'  # the phase whose lock stands around every round's own start

LOG = logging.getLogger('experiments.flower')

Answer = Mapping[str, np.ndarray]  # {'image': [P], 'text': [P], 'loss': []}


class Settings(NamedTuple):
  """Of a run; the server's and every client's are the same.

  Attributes:
    clients: K, from 2 to 6; client 0 leaves.
    share: of client 0's factors that others know, see `data.builders.factor_pairs`.
    seed: of data, orders and adapters.
    rank: of the adapters.
    alpha: of the adapters.
    local_steps: of a client in a round, with all its pairs.
    learning_rate: of the clients' SGD.
    rounds: of federated training.
    unlearn_rounds: E.
    recover_rounds: R.
    displacement_steps: of the leaving client in a round of unlearning.
    displacement_learning_rate: of these steps.
    timeout: seconds that the server waits for the answers of a round.
    output: where the server writes what it has found, `.npz`.
  """

  clients: int
  share: float
  seed: int
  rank: int
  alpha: float
  local_steps: int
  learning_rate: float
  rounds: int
  unlearn_rounds: int
  recover_rounds: int
  displacement_steps: int
  displacement_learning_rate: float
  timeout: float
  output: str


class Federation(NamedTuple):
  """What everybody knows before the first round, except that a client reads its own rows alone.

  Attributes:
    model: linear towers with adapters.
    variables: theta^0 and the public backbone.
    roster: who leaves.
    streams: of rounds.
    train: the method that trains theta^T.
    unlearn: the method that unlearns client 0.
  """

  model: types.Model
  variables: types.Variables
  roster: clients_lib.Roster
  streams: Mapping[str, types.Stream]
  train: types.Method
  unlearn: types.Method


class Question(NamedTuple):
  """What a client is asked in a round.

  Attributes:
    kind: `UPDATE`, local steps on its own pairs; `DISPLACE`, on the pairs that it wants forgotten;
      `GRADIENT`, the mean gradient on its own pairs.
    stream: whose round it is.
    number: of the round within the stream.
    arrays: {'adapter': theta}, and, where needed, 'lock' or 'original'; {..: {branch: ...}}.
  """

  kind: str
  stream: str
  number: int
  arrays: Mapping[str, types.PyTree]


def federation(settings: Settings) -> Federation:
  """Draws the pairs, and builds the model and the methods.

  The pairs are synthetic, so every process draws all of them and reads its own; clients with data of
  their own would load these here.

  Raises:
    ValueError: settings out of range.
  """
  if not 2 <= settings.clients <= factor_pairs.CLIENTS:
    raise ValueError(f'clients must lie in [2, {factor_pairs.CLIENTS}], got {settings.clients}')
  source = factor_pairs.make(share=settings.share, seed=settings.seed)
  train = np.flatnonzero(source.fields['part'] == 'train')
  owner = source.fields['client'][train]
  parts = [train[owner == client] for client in range(settings.clients)]
  roster, forget = clients_lib.roster(parts, 'client', client=factor_pairs.FORGET_CLIENT)
  streams = clients_lib.streams(source, parts, forget, batch_size=factor_pairs.PAIRS,
                                seed=settings.seed, local_epochs=settings.local_steps)
  model = lora.adapted(
      linear_towers.linear_towers(embedding=factor_pairs.EMBEDDING, temperature=0.1),
      rank=settings.rank, alpha=settings.alpha, backbone=source.backbone)
  example = {name: source.fields[name][:1] for name in federated.BRANCHES}
  local = {'optimizer': 'sgd', 'learning_rate': settings.learning_rate, 'weight_decay': 0.0}
  return Federation(
      model, model.init(jax.random.key(settings.seed), example), roster, streams,
      train=methods.get('federate')(model, roster=roster, rounds=settings.rounds,
                                    history=settings.rounds, role='train', **local),
      unlearn=methods.get('ease')(
          model, roster=roster, rounds=settings.unlearn_rounds,
          recover_rounds=settings.recover_rounds, displacement_steps=settings.displacement_steps,
          displacement_learning_rate=settings.displacement_learning_rate, **local))


# The client's end.


def answer(found: Federation, settings: Settings, question: Question, client: int) -> Answer:
  """What a client sends back: its update or gradient, and its mean loss.

  The functions are those that the simulation runs under `vmap`, on this client's rows.

  Raises:
    ValueError: a kind of question that is not known.
  """
  if question.kind not in (UPDATE, DISPLACE, GRADIENT):
    raise ValueError(f'no kind of question is called {question.kind!r}')
  role = federated.FORGET if question.kind == DISPLACE else federated.CLIENTS
  own = slice(client, client + 1)
  data = {name: np.asarray(leaf[own])
          for name, leaf in found.streams[question.stream](question.number)[role].items()}
  sent = jax.tree.map(jnp.asarray, dict(question.arrays))
  original = sent.pop('original', None)
  state = federated.initial_state(
      jax.random.key(settings.seed), {'params': found.variables['params'], **sent})
  rate = settings.learning_rate

  @jax.jit
  def work(state, data):
    theta = state.params['adapter']
    if question.kind == DISPLACE:
      displace = ease.displacing(
          found.model, steps=settings.displacement_steps, tx=federated.optimizer(
              'ease', 'sgd', settings.displacement_learning_rate, 0.0))
      gathered = displace(state, {'original': original}, data)
      return gathered.deltas, gathered.metrics['loss'][0][None]
    objective = federated.contrastive(found.model, state)
    if question.kind == GRADIENT:
      return federated.gradients(objective, theta, data)
    return federated.local_update(objective, federated.optimizer('federate', 'sgd', rate, 0.0),
                                  theta, data, after=federated.lock(state, rate))

  vectors, loss = work(state, data)
  return {name: np.asarray(leaf[0]) for name, leaf in (*vectors.items(), ('loss', loss))}


# The server's end.


def run(method: types.Method, variables: types.Variables, roster: clients_lib.Roster,
        ask: Callable[[Mapping[int, Question]], Mapping[int, Answer]]) -> types.Variables:
  """Runs a method whose clients are elsewhere.

  Phase by phase as `train.loop.run` does, with the steps of the simulation; a batch holds what the
  clients have answered instead of pairs. A client that does not answer has failed: its update is
  not finite, so that the step drops it whole and renormalises the weights of the others.

  Args:
    method: `federate`, `fed_finetune`, or `ease` in the scenario `client` without a reference of its
      own.
    variables: to start from.
    roster: of the clients.
    ask: {client: question} -> {client: answer} of those that have answered.

  Returns:
    What the method exports.

  Raises:
    ValueError: a phase that asks clients for something else.
  """
  if unknown := [phase.name for phase in method.phases if phase.name not in ROUNDS]:
    raise ValueError(f'no questions are known for the phases {unknown}')
  state, frozen = method.init(jax.random.key(0), variables)
  read: dict[str, int] = {}  # rounds of every stream so far
  for phase in method.phases:
    if phase.enter is not None:
      state = jax.jit(phase.enter)(state)
    step = jax.jit(phase.step)
    for _ in range(phase.steps):
      number = read.setdefault(phase.stream, 0)
      read[phase.stream] += 1
      weights = _weights(roster, phase.stream)
      questions = {client: question for role, weight in weights.items()
                   for question in [_question(phase, role, number, state, frozen)]
                   for client in np.flatnonzero(weight).tolist()}
      answers = ask(questions)
      batch = {role: _collected(answers, weight, state.params['adapter'])
               for role, weight in weights.items()}
      state, metrics = step(state, frozen, batch)
      LOG.info('%s, round %d of stream %s: %s', phase.name, number, phase.stream,
               {name: np.asarray(value).tolist() for name, value in metrics.items()})
  return method.export(state)


def _weights(roster: clients_lib.Roster, stream: str) -> dict[str, np.ndarray]:
  """Pairs of every client by role of a batch, float32 [K]; who has fewer than two has no part."""
  counts = {federated.CLIENTS: roster.sizes - (0 if stream == 'train' else roster.forget)}
  if stream == 'pair':
    counts[federated.FORGET] = roster.forget
  return {role: np.where(count >= 2, count, 0).astype(np.float32) for role, count in counts.items()}


def _question(phase: types.Phase, role: str, number: int, state: types.TrainState,
              frozen: types.PyTree) -> Question:
  theta = state.params['adapter']
  if role == federated.FORGET:
    return Question(DISPLACE, phase.stream, number, {'adapter': theta,
                                                     'original': frozen['original']})
  if phase.name == 'calibrate':
    return Question(GRADIENT, phase.stream, number, {'adapter': theta})
  held = state.collections.get('lock')
  if held is None:
    return Question(UPDATE, phase.stream, number, {'adapter': theta})
  if phase.name == BEGUN_ANEW:
    held = {branch: {**one, 'center': theta[branch]} for branch, one in held.items()}
  return Question(UPDATE, phase.stream, number, {'adapter': theta, 'lock': held})


def _collected(answers: Mapping[int, Answer], weight: np.ndarray, adapter: federated.Adapter
               ) -> dict[str, np.ndarray]:
  """A role of a batch: the answers, NaN of a client that was asked and has not given a fit one."""
  shapes = {**{branch: vector.shape for branch, vector in adapter.items()}, 'loss': ()}
  role: dict[str, Any] = {name: np.zeros((len(weight), *shape), np.float32)
                          for name, shape in shapes.items()}
  for client in np.flatnonzero(weight).tolist():
    given = answers.get(client, {})
    fit = {name: value.shape for name, value in given.items()} == shapes
    for name, values in role.items():
      values[client] = given[name] if fit else np.nan
  return {**role, 'weight': weight, 'part': (weight > 0).astype(np.float32)}
