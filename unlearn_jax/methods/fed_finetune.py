"""Federated fine-tuning on the retained clients."""

from unlearn_jax import types
from unlearn_jax.methods import federated


def fed_finetune(model: types.Model, *, rounds: int = 10, optimizer: str = 'adamw',
                 learning_rate: float = 1e-4, weight_decay: float = 0.01) -> types.Method:
  """Goes on with FedAvg on retained pairs from theta^T, and hopes to forget.

  Also the continuation of a federation that has unlearned: under a collection `lock` every local
  step is followed by its proximal step, and the metrics `drift/BRANCH` say how far the locked
  directions have moved. Defaults are ours.

  Args:
    model: two towers with adapters, see `models.lora.adapted`.
    rounds: of FedAvg.
    optimizer: of the clients, `'adamw'` or `'sgd'`, begun anew in every round.
    learning_rate: of the clients.
    weight_decay: decoupled.

  Raises:
    ValueError: a setting out of range; on init, variables without an adapter.
  """
  federated.check_rounds('fed_finetune', rounds=rounds)
  tx = federated.optimizer('fed_finetune', optimizer, learning_rate, weight_decay)
  phase = federated.rounds_phase(model, tx, rounds, learning_rate=learning_rate,
                                 wanted_by='fed_finetune', name='finetune')

  def init(key, variables):
    return federated.initial_state(key, variables), {}

  return types.Method(init, (phase,), federated.export)
