"""Membership inference on losses: can the forgotten records be told from records never seen?"""

from collections.abc import Mapping
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from unlearn_jax import types
from unlearn_jax.evals import _logistic
from unlearn_jax.evals import run
from unlearn_jax.losses import classification

CONVENTIONS = ('benchmark', 'dlfd')
NEWTON_STEPS = 20
REFIT_STEPS = 4  # from the fit on all records to the fit on 90 % of them


class ForgettingScore(NamedTuple):
  """Result of `forgetting_score`.

  Attributes:
    score: |0.5 - accuracy|, in [0, 0.5]; 0 is perfect forgetting.
    accuracy: of the attack, mean over ten splits.
    floor: the score of an attack that learns nothing and always answers the larger class,
      |n_larger / (n_forget + n_unseen) - 0.5| after any truncation. It is what imbalance alone
      costs. It holds no sampling noise: with balanced classes it is 0, while the score of two
      identical distributions is still about 0.01 to 0.03 with a few hundred records each. The
      spread between retrained models shows that part.
  """

  score: float
  accuracy: float
  floor: float


def attacked_losses(forget_losses, unseen_losses, *, convention: str = 'benchmark', seed: int = 0
                    ) -> tuple[np.ndarray, np.ndarray]:
  """The losses as a convention hands them to the attack; float64, checked.

  Args:
    forget_losses: [N].
    unseen_losses: [M].
    convention: `'benchmark'` (MUFAC benchmark, `cal_mia`): the forget losses are shuffled with
      `seed` and truncated to the number of unseen ones, which balances the classes if N >= M.
      `'dlfd'` (released `evaluation/mia.py`): all of them, in their order.
    seed: of the shuffle; `'dlfd'` does not use it.

  Raises:
    ValueError: unknown convention, an array that is not one-dimensional, empty, or not finite.
  """
  if convention not in CONVENTIONS:
    raise ValueError(f'convention is one of {CONVENTIONS}, got {convention!r}')
  forget, unseen = _losses('forget_losses', forget_losses), _losses('unseen_losses', unseen_losses)
  if convention == 'benchmark':
    forget = forget.copy()
    np.random.RandomState(seed).shuffle(forget)
    forget = forget[:len(unseen)]
  return forget, unseen


def attack_accuracies(forget_losses, unseen_losses) -> np.ndarray:
  """Accuracy of the loss attack in each of ten splits, [10].

  scikit-learn's `LogisticRegression()` on the raw loss, label 1 for forgotten and 0 for unseen
  records (which come first), scored on `StratifiedShuffleSplit(n_splits=10, random_state=0)`:
  every split trains on 90 % and tests on 10 %. Source: DLFD's released `simple_mia`.

  Raises:
    ValueError: arrays as in `attacked_losses`, or fewer records than the splits need.
  """
  from sklearn import linear_model
  from sklearn import model_selection
  import threadpoolctl
  forget, unseen = _losses('forget_losses', forget_losses), _losses('unseen_losses', unseen_losses)
  if _too_few(len(forget), len(unseen)):
    raise ValueError(
        f'the attack is cross-validated and needs at least 2 records of each kind and 11 in all, '
        f'got {len(forget)} forget and {len(unseen)} unseen losses: enlarge these splits, or use '
        'auc(), which has no such limit')
  features = np.concatenate([unseen, forget])[:, None]
  labels = np.concatenate([np.zeros(len(unseen), int), np.ones(len(forget), int)])
  splits = model_selection.StratifiedShuffleSplit(n_splits=10, random_state=0)
  # The problems are tiny: more BLAS threads only wait for each other (5 times as long, measured).
  with threadpoolctl.threadpool_limits(1):
    return model_selection.cross_val_score(
        linear_model.LogisticRegression(), features, labels, cv=splits, scoring='accuracy')


def forgetting_score(forget_losses, unseen_losses, *, convention: str = 'benchmark', seed: int = 0
                     ) -> ForgettingScore:
  """Forgetting Score |0.5 - Acc| of DLFD (Evaluation Protocol, the second term of Eq. 5).

  Acc is the mean of `attack_accuracies` on `attacked_losses`. The two conventions are different
  numbers and must not share a column.

  Args:
    forget_losses: [N], loss of the evaluated model on every forgotten record.
    unseen_losses: [M], the same on records that no model was trained on.
    convention: `'benchmark'` or `'dlfd'`, see `attacked_losses`.
    seed: draws the truncation of `'benchmark'`, and nothing else.

  Returns:
    (score, accuracy, floor).

  Raises:
    ValueError: unknown convention; empty, non-finite or too few losses.
  """
  forget, unseen = attacked_losses(forget_losses, unseen_losses, convention=convention, seed=seed)
  accuracy = float(attack_accuracies(forget, unseen).mean())
  larger = max(len(forget), len(unseen)) / (len(forget) + len(unseen))
  return ForgettingScore(abs(0.5 - accuracy), accuracy, abs(larger - 0.5))


def auc(forget_losses, unseen_losses) -> float:
  """Area under the ROC curve of "the smaller the loss, the more likely a member".

  P(forget < unseen) + P(forget = unseen) / 2 over all pairs: 1 when every forgotten record has a
  smaller loss than every unseen one, 0.5 when they look alike, below 0.5 when the model does worse
  on forgotten records than on unseen ones (over-forgetting, which leaks as well).

  Args:
    forget_losses: [N].
    unseen_losses: [M].

  Raises:
    ValueError: empty or non-finite losses.
  """
  forget, unseen = _losses('forget_losses', forget_losses), _losses('unseen_losses', unseen_losses)
  ordered = np.sort(unseen)
  larger = len(unseen) - np.searchsorted(ordered, forget, side='right')
  at_least = len(unseen) - np.searchsorted(ordered, forget, side='left')
  return float((larger + at_least).sum() / (2 * len(forget) * len(unseen)))


@functools.partial(jax.jit, static_argnames=('balanced',), inline=True)
def device_forgetting_score(forget_losses: jax.Array, other_losses: jax.Array, *,
                            balanced: bool = True, forget_where: jax.Array | None = None,
                            other_where: jax.Array | None = None) -> jax.Array:
  """Forgetting Score in one compiled piece: |0.5 - accuracy of a logistic regression|.

  The regression minimises scikit-learn's objective with C = 1,
  w^2 / 2 + sum_i c_i log(1 + exp(-y_i (w x_i + b))), y = 1 for forgotten and -1 for other losses,
  the intercept free, by Newton steps with a line search: once on all losses, then, started from
  there, once for each of the splits that `forgetting_score` uses, whose test records give the
  accuracy. It thus equals the cross-validated score up to the solver's tolerance: that of the
  `'benchmark'` convention with seed 0 if `balanced` and N = M, that of `'dlfd'` if not `balanced`.
  (The accuracy on the losses that were fitted to differs from it by up to 0.04 with 300 records
  each, measured: the splits' own noise.) Fewer than 2 losses of a kind, or 11 in all, have no
  splits: then it is the accuracy on the losses that were fitted to. Ours; traceable, batches under
  vmap.

  Args:
    forget_losses: [N].
    other_losses: [M], losses on records that the model was not trained on.
    balanced: weights c_i = n / (2 n_class) and the mean of both classes' accuracies, so that 0
      means "no signal" whatever N and M are. Otherwise c_i = 1 and the plain accuracy.
    forget_where: [N], 1 counts and 0 does not; None counts everything.
    other_where: [M], likewise. The splits ignore the masks.

  Returns:
    float32 scalar in [0, 0.5]. Finite for all finite losses, separable and constant ones included;
    if one side counts nothing, 0 with `balanced` and 0.5 without. NaN if a loss that counts is not
    finite: such a model has no score.
  """
  chex.assert_rank([forget_losses, other_losses], 1)
  sides = ((other_losses, other_where), (forget_losses, forget_where))  # unseen first, as there
  count = jnp.concatenate([
      jnp.ones(len(losses)) if where is None else jnp.asarray(where, jnp.float32)
      for losses, where in sides])
  losses = jnp.concatenate([losses for losses, _ in sides]).astype(jnp.float32)
  chex.assert_equal_shape([losses, count])
  forgotten = jnp.arange(len(losses)) >= len(other_losses)
  finite = jnp.all(jnp.isfinite(losses) | (count == 0))
  losses = jnp.where((count > 0) & jnp.isfinite(losses), losses, 0.0)

  # With x = (loss - centre) / scale the slope of the raw loss is w / scale, hence the penalty
  # (w / scale)^2 / 2. The largest deviation as scale keeps x in [-1, 1]: nothing overflows.
  centre = count / jnp.maximum(count.sum(), 1) @ losses
  scale = jnp.max(jnp.where(count > 0, jnp.abs(losses - centre), 0.0))
  scale = jnp.maximum(scale, 1e-6)
  x = jnp.where(count > 0, (losses - centre) / scale, 0.0)
  penalty = jnp.array([1 / scale / scale, 0.0])  # of (slope, intercept)

  weight = count
  if balanced:  # an absent class has no record to carry its weight
    shares = [count.sum() / (2 * jnp.maximum(count @ side, 1)) for side in (forgotten, ~forgotten)]
    weight = count * jnp.where(forgotten, *shares)

  fit = _logistic.newton(x, forgotten, weight, penalty, jnp.zeros(2), NEWTON_STEPS)
  positions = _test_positions(len(other_losses), len(forget_losses), shuffled=balanced)
  if positions is None:
    fits, test = fit[None], count[None]
  else:
    chosen = jax.vmap(lambda rows: jnp.zeros_like(count).at[rows].set(1.0))(positions)  # [10, n]
    test = chosen * count
    fits = jax.vmap(lambda train: _logistic.newton(
        x, forgotten, train, penalty, fit, REFIT_STEPS))((1 - chosen) * weight)
  hit = (fits[:, :1] * x + fits[:, 1:] > 0) == forgotten
  tested = jnp.stack([(test @ side).sum() for side in (forgotten, ~forgotten)])
  right = jnp.stack([((test * hit) @ side).sum() for side in (forgotten, ~forgotten)])
  if balanced:
    accuracy = jnp.where(jnp.all(tested > 0), (right / jnp.maximum(tested, 1)).mean(), 0.5)
  else:
    accuracy = right.sum() / jnp.maximum(tested.sum(), 1)
  return jnp.where(finite, jnp.abs(0.5 - accuracy), jnp.nan)


@functools.lru_cache(maxsize=32)
def _test_positions(n_other: int, n_forget: int, *, shuffled: bool) -> np.ndarray | None:
  """Test records of each split of `attack_accuracies`, [10, n / 10]; None if there is no split.

  `shuffled` gives those that it has after the shuffle of `attacked_losses` with seed 0.
  """
  if _too_few(n_forget, n_other):
    return None
  from sklearn import model_selection
  labels = np.repeat([0, 1], [n_other, n_forget])
  splits = model_selection.StratifiedShuffleSplit(n_splits=10, random_state=0)
  positions = np.stack([test for _, test in splits.split(labels[:, None], labels)])
  order = np.arange(n_other + n_forget)
  if shuffled:
    np.random.RandomState(0).shuffle(order[n_other:])
  return order[positions].astype(np.int32)


@functools.partial(jax.jit, static_argnames=('apply', 'sizes', 'replicated'))
def _gate(variables, batches, *, apply, sizes, replicated):
  """Scores from batches [num_batches, B, ...] that hold forget, then validation, then padding."""

  def forward(batch):
    outputs, _ = apply(variables, run.inputs_of(batch), train=False)
    logits, labels = outputs['logits'], batch['label']
    return classification.example_loss(logits, labels), classification.accuracy(logits, labels)

  # A forward pass inside control flow keeps its speed on CPU (weight gradients would not).
  losses, hits = jax.tree.map(jnp.ravel, jax.lax.map(forward, batches))
  if replicated is not None:
    losses, hits = jax.lax.with_sharding_constraint((losses, hits), replicated)
  n_forget, n_validation = sizes
  forget, validation = slice(0, n_forget), slice(n_forget, n_forget + n_validation)
  return {
      'forgetting_score': device_forgetting_score(losses[forget], losses[validation]),
      'forgetting_score[dlfd]': device_forgetting_score(
          losses[forget], losses[validation], balanced=False),
      'accuracy/validation': hits[validation].mean(),
      'accuracy/forget': hits[forget].mean(),
  }


def forgetting_gate(data: Mapping[str, Mapping[str, np.ndarray]], *, every: int = 1,
                    batch_size: int = 256) -> types.Evaluator:
  """The score that DLFD's dynamic forgetting reads during training, in one compiled pass.

  Forgotten against *validation* records; the unseen and test records of the report take no part.

  Args:
    data: `'forget'` and `'validation'` -> fields (`image`, `label`, ...).
    every: cadence in steps.
    batch_size: records per forward pass; rounded up to a multiple of the mesh's size.

  Returns:
    An evaluator of `forgetting_score` (balanced), `forgetting_score[dlfd]` (not balanced),
    `accuracy/validation` and `accuracy/forget`, as scalars that stay on the device. It compiles
    once per `apply`; the data is an argument of the compiled function, not a constant in it, and
    lies on the device (sharded over the variables' mesh).

  Raises:
    ValueError: a role is missing or empty, or the two roles have different fields.
  """
  if missing := {'forget', 'validation'} - set(data):
    raise ValueError(f'the gate needs {sorted(missing)}; data has {sorted(data)}')
  sizes = tuple(run.num_records(data[role]) for role in ('forget', 'validation'))
  if set(data['forget']) != set(data['validation']):
    raise ValueError('forget and validation have different fields: '
                     f'{sorted(data["forget"])} and {sorted(data["validation"])}')

  @functools.lru_cache(maxsize=1)
  def place(mesh: Mesh | None):
    size = run.round_up(min(batch_size, sum(sizes)), mesh)
    num_batches = -(-sum(sizes) // size)
    batches = {}
    for name in data['forget']:
      if name == 'label' or name not in run.BOOKKEEPING:
        both = np.concatenate([data['forget'][name], data['validation'][name]])
        both = run.pad(both, num_batches * size)
        batches[name] = both.reshape(num_batches, size, *both.shape[1:])
    spec = PartitionSpec(None, run.DATA_AXIS)
    return jax.device_put(batches, NamedSharding(mesh, spec) if mesh is not None else None)

  def measure(apply, variables: Any) -> dict[str, jax.Array]:
    mesh = run.mesh_of(variables)
    replicated = NamedSharding(mesh, PartitionSpec()) if mesh is not None else None
    return dict(_gate(variables, place(mesh), apply=apply, sizes=sizes, replicated=replicated))

  return types.Evaluator('forgetting_gate', measure, every)


def _too_few(n_forget: int, n_other: int) -> bool:
  """Whether a 10 % test split cannot hold both classes."""
  return min(n_forget, n_other) < 2 or n_forget + n_other < 11


def _losses(name: str, values) -> np.ndarray:
  """float64 [N], or an error that says what is wrong with it."""
  values = np.asarray(values, np.float64)
  if values.ndim != 1:
    raise ValueError(f'{name} must be one loss per record, [N]; got shape {values.shape}')
  if not len(values):
    raise ValueError(f'{name} is empty: the split that it comes from has no records')
  if bad := int((~np.isfinite(values)).sum()):
    raise ValueError(f'{bad} of {len(values)} {name} are NaN or infinite: the model has diverged, '
                     'train it with a smaller learning rate')
  return values
