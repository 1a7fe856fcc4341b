"""A federation whose clients are elsewhere learns and unlearns what the simulation does."""

import functools
import importlib
import importlib.util
import os
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import pytest

from experiments.flower import rounds
from unlearn_jax import methods
from unlearn_jax.methods import federated
from unlearn_jax.train import loop
from unlearn_jax.train import sharding

HERE = importlib.util.find_spec('flwr') is not None
CHANGES = {'rounds': 2, 'unlearn_rounds': 1, 'recover_rounds': 1}
SETTINGS = rounds.Settings(
    clients=3, share=0.3, seed=0, rank=16, alpha=32.0, local_steps=5, learning_rate=0.5,
    displacement_steps=5, displacement_learning_rate=0.5, timeout=300.0, output='federation.npz',
    **CHANGES)


@functools.cache
def federation() -> rounds.Federation:
  return rounds.federation(SETTINGS)


def simulated(method, variables, streams):
  return loop.run(method, variables, streams, key=jax.random.key(0), mesh=sharding.make_mesh(1),
                  show_progress=False).variables


def mapped(tree) -> dict[str, np.ndarray]:
  return {jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf)
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


class RoundsTest(parameterized.TestCase):

  @pytest.mark.slow
  def test_a_round_goes_on_without_a_client_that_fails(self):
    """As the simulation does when that client's pairs, and so its update, are not finite."""
    found, failing = federation(), 1
    method = methods.get('federate')(
        found.model, roster=found.roster, rounds=1, history=1, role='train', optimizer='sgd',
        learning_rate=SETTINGS.learning_rate, weight_decay=0.0)

    def broken(number):
      role = dict(found.streams['train'](number)[federated.CLIENTS])
      role['image'] = np.array(role['image'])
      role['image'][failing] = np.nan
      return {federated.CLIENTS: role}

    def ask(questions):
      self.assertEqual(set(questions), {0, 1, 2})
      return {client: rounds.answer(found, SETTINGS, question, client)
              for client, question in questions.items() if client != failing}

    expected = mapped(simulated(method, found.variables, {'train': broken}))
    actual = mapped(rounds.run(method, found.variables, found.roster, ask))
    self.assertEqual(set(actual), set(expected))
    for name, value in expected.items():
      np.testing.assert_allclose(actual[name], value, atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(actual['federation/taken'][:, 0], [1, 0, 1])
    self.assertGreater(np.abs(actual['adapter/image'] - np.asarray(
        found.variables['adapter']['image'])).max(), 1e-3)

  @pytest.mark.slow
  def test_the_leaving_client_is_asked_only_to_forget(self):
    found, asked = federation(), []

    def ask(questions):
      asked.append({client: (one.kind, one.stream, one.number, sorted(one.arrays))
                    for client, one in questions.items()})
      return {client: {**{branch: np.full(vector.shape, 1e-3 * (client + 1), np.float32)
                          for branch, vector in one.arrays['adapter'].items()},
                       'loss': np.zeros((), np.float32)} for client, one in questions.items()}

    trained = rounds.run(found.train, found.variables, found.roster, ask)
    unlearned = rounds.run(found.unlearn, trained, found.roster, ask)
    everybody = lambda *what: dict.fromkeys((0, 1, 2), what)
    staying = lambda *what: dict.fromkeys((1, 2), what)
    self.assertEqual(asked, [
        everybody('update', 'train', 0, ['adapter']), everybody('update', 'train', 1, ['adapter']),
        staying('gradient', 'retain', 0, ['adapter']),
        {**staying('update', 'pair', 0, ['adapter', 'lock']),
         0: ('displace', 'pair', 0, ['adapter', 'original'])},
        staying('gradient', 'retain', 1, ['adapter']),
        staying('update', 'retain', 2, ['adapter', 'lock'])])
    self.assertTrue(np.isfinite(unlearned['adapter']['image']).all())

  def test_phases_that_ask_for_something_else_are_refused(self):
    found = federation()
    method = methods.get('ease')(found.model, roster=found.roster, reference='probe')
    with self.assertRaisesRegex(ValueError, 'reference'):
      rounds.run(method, found.variables, found.roster, lambda questions: {})

  def test_settings_out_of_range(self):
    with self.assertRaisesRegex(ValueError, 'clients'):
      rounds.federation(SETTINGS._replace(clients=1))
    with self.assertRaisesRegex(ValueError, 'no kind'):
      rounds.answer(federation(), SETTINGS, rounds.Question('weights', 'train', 0, {}), 0)

  def test_without_flower(self):
    hidden = {name: None for name in sys.modules if name.split('.')[0] == 'flwr'} | {'flwr': None}
    with mock.patch.dict(sys.modules, hidden):
      sys.modules.pop('experiments.flower.messages', None)
      with self.assertRaisesRegex(ImportError, r"pip install 'unlearn_jax\[flower\]'"):
        importlib.import_module('experiments.flower.messages')


@absltest.skipUnless(HERE, 'needs Flower')
class MessagesTest(parameterized.TestCase):

  def test_arrays_and_facts_survive(self):
    from experiments.flower import messages
    rng = np.random.default_rng(0)
    tree = {'adapter': {'image': rng.normal(size=7).astype(np.float32),
                        'text': np.asarray([np.nan, np.inf, -0.0, 1e-45], np.float32)},
            'lock': {'image': {'strength': np.float32(0.3), 'basis': np.zeros((4, 0), np.float32)}}}
    content = messages.packed(tree, kind='update', stream='retain', number=3)
    found = messages.question(content)
    self.assertEqual((found.kind, found.stream, found.number), ('update', 'retain', 3))
    expected, actual = mapped(tree), mapped(found.arrays)
    self.assertEqual(set(actual), set(expected))
    for name, value in expected.items():
      self.assertEqual((actual[name].dtype, actual[name].shape), (value.dtype, value.shape))
      self.assertEqual(actual[name].tobytes(), value.tobytes())

  def test_answers_that_are_there_in_time(self):
    """Of four clients one answers, one fails, one is late, and one has disconnected."""
    from flwr import app as flwr
    from flwr.supercore import task_identity

    from experiments.flower import messages
    sent = []
    # What Flower sets in the processes of a run; a message cannot be made without it.
    self.enterContext(mock.patch.multiple(
        task_identity.TaskIdentity, _task_id=1, _run_id=1, _node_id=1))

    class Grid:

      def get_node_ids(self):
        return [100, 101, 102]

      def send_and_receive(self, asked, *, timeout):
        del timeout
        sent.extend(message.metadata.dst_node_id for message in asked)
        good, bad = asked[:2]
        return [flwr.Message(messages.packed({'image': np.ones(2, np.float32)}), reply_to=good),
                flwr.Message(flwr.Error(code=0, reason='out of memory'), reply_to=bad)]

    questions = {client: rounds.Question('update', 'train', 0, {'adapter': {
        'image': np.zeros(2, np.float32)}}) for client in range(4)}
    with self.assertLogs(level='WARNING') as logs:
      found = messages.exchange(Grid(), {client: 100 + client for client in range(4)}, questions,
                                timeout=1.0)
    self.assertEqual(sent, [100, 101, 102])
    self.assertEqual(list(found), [0])
    np.testing.assert_array_equal(found[0]['image'], [1, 1])
    self.assertIn('out of memory', ''.join(logs.output))
    self.assertIn('[1, 2, 3] have failed', ''.join(logs.output))

  def test_run_configs(self):
    from experiments.flower import messages
    from experiments.flower import start
    self.assertEqual(messages.settings(start.defaults()).clients, 3)
    with self.assertRaisesRegex(ValueError, r"unknown \['round'\]"):
      messages.settings({**start.defaults(), 'round': 3})

  @pytest.mark.slow
  def test_processes_agree_with_the_simulation(self):
    from experiments.flower import start
    directory = self.enterContext(tempfile.TemporaryDirectory())
    output = os.path.join(directory, 'federation.npz')
    log = start.run({**SETTINGS._asdict(), 'output': output}, timeout=1200.0)
    self.assertNotIn('have failed', log)
    found = federation()
    trained = simulated(found.train, found.variables, found.streams)
    unlearned = simulated(found.unlearn, trained, found.streams)
    with np.load(output) as saved:
      actual = dict(saved)
    for stage, variables, start_from in (('trained', trained, found.variables),
                                         ('unlearned', unlearned, trained)):
      for branch in federated.BRANCHES:
        value, before = (np.asarray(one['adapter'][branch]) for one in (variables, start_from))
        np.testing.assert_allclose(actual[f'{stage}/adapter/{branch}'], value, atol=1e-5)
        self.assertGreater(np.abs(value - before).max(), 1e-3)
    for branch in federated.BRANCHES:
      np.testing.assert_allclose(actual[f'unlearned/lock/{branch}/strength'],
                                 unlearned['lock'][branch]['strength'], rtol=1e-4)


if __name__ == '__main__':
  absltest.main()
