"""Questions and answers as Flower messages, and how they are exchanged."""

from collections.abc import Iterable, Mapping
import time

from flax import traverse_util
import numpy as np

from experiments.flower import rounds

try:
  from flwr import app as flwr
except ModuleNotFoundError as error:
  if error.name != 'flwr':
    raise
  raise ImportError("a federation over a network needs Flower: pip install 'unlearn_jax[flower]'"
                    ) from error

TYPE = 'train.round'  # of a message that carries a question
WHO = 'query.client'  # of a message that asks for a client's number
_ARRAYS, _FACTS = 'arrays', 'facts'  # records of a message


def settings(run_config: Mapping[str, flwr.UserConfigValue]) -> rounds.Settings:
  """Settings from the run's config.

  Raises:
    ValueError: a name is missing or unknown.
  """
  if (given := set(run_config)) != (known := set(rounds.Settings._fields)):
    raise ValueError(f'run config: missing {sorted(known - given)}, unknown {sorted(given - known)}')
  return rounds.Settings(**run_config)


def packed(tree: Mapping[str, object], **facts: flwr.ConfigRecordValues) -> flwr.RecordDict:
  """A tree of arrays, bit by bit, and some facts."""
  arrays = {name: flwr.Array(np.asarray(leaf))
            for name, leaf in traverse_util.flatten_dict(dict(tree), sep='/').items()}
  return flwr.RecordDict({_ARRAYS: flwr.ArrayRecord(arrays), _FACTS: flwr.ConfigRecord(facts)})


def unpacked(content: flwr.RecordDict) -> tuple[dict[str, object], dict[str, object]]:
  """(tree, facts), the inverse of `packed`."""
  arrays = {name: leaf.numpy() for name, leaf in content[_ARRAYS].items()}
  return traverse_util.unflatten_dict(arrays, sep='/'), dict(content[_FACTS])


def question(content: flwr.RecordDict) -> rounds.Question:
  """What a message asks."""
  arrays, facts = unpacked(content)
  return rounds.Question(**facts, arrays=arrays)


def connected(grid, clients: int, *, timeout: float) -> dict[int, int]:
  """Waits until all clients are there: {client: node}.

  Raises:
    TimeoutError: somebody is missing.
    ValueError: two nodes have the same number, or one has a number that is no client's.
  """
  end = time.monotonic() + timeout
  while len(nodes := list(grid.get_node_ids())) < clients:
    if time.monotonic() > end:
      raise TimeoutError(f'{len(nodes)} of {clients} clients have connected within {timeout:g} s')
    time.sleep(1)
  replies = grid.send_and_receive(
      [flwr.Message(packed({}), node, WHO, ttl=timeout) for node in nodes], timeout=timeout)
  found = [(unpacked(reply.content)[1]['client'], reply.metadata.src_node_id)
           for reply in replies if not reply.has_error()]
  if sorted(client for client, _ in found) != list(range(clients)):
    raise ValueError(f'clients must be numbered 0 to {clients - 1}, once each; the nodes say '
                     f'{sorted(client for client, _ in found)}')
  return dict(found)


def exchange(grid, nodes: Mapping[int, int], questions: Mapping[int, rounds.Question], *,
             timeout: float) -> dict[int, rounds.Answer]:
  """Asks the clients of a round, and returns the answers that have come in time.

  Clients that have disconnected, fail, or are late, are left out; a late answer is never read.

  Args:
    grid: Flower's.
    nodes: {client: node}.
    questions: {client: question}.
    timeout: seconds.
  """
  online = set(grid.get_node_ids())
  sent = [flwr.Message(packed(one.arrays, kind=one.kind, stream=one.stream, number=one.number),
                       nodes[client], TYPE, ttl=timeout)
          for client, one in questions.items() if nodes[client] in online]
  answers = _read(grid.send_and_receive(sent, timeout=timeout), nodes) if sent else {}
  if missing := sorted(set(questions) - set(answers)):
    rounds.LOG.warning('clients %s have failed; the round goes on without them', missing)
  return answers


def _read(replies: Iterable[flwr.Message], nodes: Mapping[int, int]) -> dict[int, rounds.Answer]:
  clients = {node: client for client, node in nodes.items()}
  answers = {}
  for reply in replies:
    client = clients[reply.metadata.src_node_id]
    if reply.has_error():
      rounds.LOG.warning('client %d: %s', client, reply.error.reason)
    else:
      answers[client] = unpacked(reply.content)[0]
  return answers
