"""EASE: both branches are displaced, off the retained subspace, and what was left stays left."""

from collections.abc import Callable
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unlearn_jax import types
from unlearn_jax.losses import ease as losses
from unlearn_jax.losses import subspace
from unlearn_jax.methods import base
from unlearn_jax.methods import fed_clients
from unlearn_jax.methods import fed_subspaces
from unlearn_jax.methods import federated
from unlearn_jax.methods.federated import BRANCHES

REFERENCES = ('backbone', 'probe', 'uniform')
DISPLACEMENTS = ('bilateral', 'neg_nce', 'uce', 'hinge', 'off')
BASES = ('vector', 'matrix')
LOCKS = ('direction', 'isotropic', 'off')


def ease(model: types.Model, *, roster, rounds: int = 5, recover_rounds: int = 5,
         displacement: str = 'bilateral', displacement_steps: int = 10,
         displacement_learning_rate: float = 1e-4, branches: str = 'both',
         channels: tuple[float, float, float] = (1.0, 1.0, 1.0), reference: str = 'backbone',
         reference_rounds: int = 4, tolerance: float = 0.0, decomposition: bool = True,
         energy: float = 0.95, max_rank: int = 32, threshold: float = 0.5,
         exclusive_basis: str = 'sine', soft: bool = False, retain_rule: str = 'union',
         basis: str = 'vector', probe_rounds: int = 5, server_projection: bool = True,
         lock: str = 'direction', strength: float | None = None, kappa: float = 0.05,
         excise: float = 0.0, optimizer: str = 'adamw', learning_rate: float = 1e-4,
         weight_decay: float = 0.01) -> types.Method:
  """Entanglement-Aware Subspace Excision (Ding, Wu and Huang 2026, arXiv 2605.00733).

  Re-implemented from the abstract; formulas, defaults and the order of the parts are ours.

  1. Decomposition, per branch and by the server: the updates of the clients that forget span U_f,
     those of every retained client U_k, and U_r is the union of the latter. The cosine-sine
     decomposition of U_f against U_r gives the forget-exclusive directions U_u, orthogonal to U_r:
     those whose cosine is at most `threshold`. When clients leave, these are the updates that
     FedAvg has transmitted (the collection `federation`); when samples or a concept are to be
     forgotten, that history cannot tell them apart, and phase `probe` asks for `probe_rounds`
     updates at theta^T, on the pairs to forget and on the others.
  2. `rounds` of unlearning. The clients that forget send d_f, `displacement_steps` local steps on
     `losses.ease.bilateral_displacement`; the others train on their pairs under the lock; the
     server adds both without interference:
     `theta <- theta + (I - U_r U_r^T) d_f + (I - U_u U_u^T) sum_k p_k delta_k`.
  3. `recover_rounds` of the retained clients alone, with the same projection.

  The Forget Lock `mu/2 ||U_u^T (theta - theta_lock)||^2` of every retained client is an implicit
  proximal step after each local step. Its centre is the round's own start while unlearning, and what
  unlearning ended with from then on. It is exported as collection `lock` and holds in all later
  rounds that honour it; a lock that the given variables carry is replaced. Drift along U_u stays
  within G / mu for local gradients of norm G there. Without `strength`, phase `calibrate`, a round
  in which clients send gradients only, sets `mu = G / (kappa ||U_u^T (theta^T - theta^0)||)` per
  branch, before unlearning and once more after it.

  Without any exclusive direction (metrics `exclusive_rank/BRANCH` 0) the method goes on: U_u is
  empty, and displacement still keeps off U_r. When the leaving client is offline, use
  `displacement='off', excise=1.0`: only the server acts, and the retained clients.

  Several clients that forget are averaged by their numbers of pairs to forget. Clients receive U_u
  once, which tells them something of what the forgotten one has sent. Variables must come from
  `federate`.

  Args:
    model: two towers with adapters, see `models.lora.adapted`.
    roster: of the clients, says who leaves and in which scenario.
    rounds: E, of unlearning.
    recover_rounds: R.
    displacement: `'bilateral'`; its ablations `'neg_nce'`, `'uce'` and `'hinge'`, see
      `losses.ease`; or `'off'`, nothing is sent by the clients that forget.
    displacement_steps: S_f local steps per round; the round's forget batches are gone through again
      where there are fewer.
    displacement_learning_rate: of these steps, by `optimizer` without decay.
    branches: that are displaced and excised: `'both'`, `'image'` or `'text'`.
    channels: weights of the channels joint, image and text of the bilateral displacement.
    reference: what the bilateral displacement aims at: `'backbone'`, the model without adapters;
      `'probe'`, theta^0 after `reference_rounds` rounds of the retained clients; `'uniform'`, no
      relation at all.
    reference_rounds: of the reference `'probe'`.
    tolerance: early stop: a displacement during which the loss averaged less is not added.
    decomposition: off leaves U_u and U_r empty.
    energy: share of a client's energy that its basis holds, in (0, 1].
    max_rank: of a client's basis.
    threshold: tau_c, the largest cosine of an exclusive direction, in [0, 1].
    exclusive_basis: `'sine'`, the parts orthogonal to U_r, or `'principal'`, whole principal
      vectors, which takes up to `threshold` of a retained update along.
    soft: all directions, weighted by their squared sines, instead of a threshold.
    retain_rule: cosines against the `'union'`, or `'pairwise'`, the largest against single clients.
    basis: directions of the whole adapter of a branch as one `'vector'`; or, on the left and on the
      right of each adapted `'matrix'`, those of the sum of its updates, off which its factors are
      then projected: see `fed_subspaces.of_matrices`.
    probe_rounds: H of the probe updates.
    server_projection: off adds plain updates.
    lock: `'direction'`, `'isotropic'` (the whole adapter, as FedProx) or `'off'`.
    strength: mu >= 0, of both branches; None is automatic.
    kappa: of the automatic strength: the share of what was learnt along U_u that may come back.
    excise: gamma in [0, 1]: `theta <- theta - gamma U_u U_u^T (theta - theta^0)` before unlearning.
    optimizer: of the clients, `'adamw'` or `'sgd'`, begun anew in every round.
    learning_rate: of the retained clients.
    weight_decay: of the retained clients, decoupled.

  Raises:
    ValueError: a setting out of range or unknown; on init, variables that no federated training has
      made, or that are of another federation.
  """
  for name, value, known in (('displacement', displacement, DISPLACEMENTS), ('lock', lock, LOCKS),
                             ('branches', branches, ('both', *BRANCHES)),
                             ('reference', reference, REFERENCES),
                             ('exclusive_basis', exclusive_basis, ('sine', 'principal')),
                             ('retain_rule', retain_rule, ('union', 'pairwise')),
                             ('basis', basis, BASES)):
    if value not in known:
      raise ValueError(f'ease: {name} is one of {", ".join(known)}, got {value!r}')
  federated.check_rounds('ease', rounds=rounds, recover_rounds=recover_rounds,
                         displacement_steps=displacement_steps, probe_rounds=probe_rounds,
                         reference_rounds=reference_rounds, max_rank=max_rank)
  base.check_range('ease', displacement_steps=(displacement_steps, 1, math.inf),
                   probe_rounds=(probe_rounds, 1, math.inf), max_rank=(max_rank, 1, math.inf),
                   energy=(energy, 1e-6, 1), threshold=(threshold, 0, 1), excise=(excise, 0, 1),
                   tolerance=(tolerance, 0, math.inf), strength=(strength or 0.0, 0, math.inf),
                   kappa=(kappa, 1e-6, math.inf))
  tx = federated.optimizer('ease', optimizer, learning_rate, weight_decay)
  displaced = BRANCHES if branches == 'both' else (branches,)
  probing = decomposition and roster.scenario != 'client'
  aiming = displacement == 'bilateral' and reference == 'probe'
  clients = len(roster.sizes)
  forgets, retains = fed_clients.owners('ease', roster), np.flatnonzero(
      ~np.asarray(roster.leaving, bool))
  push = displacing(
      model, steps=displacement_steps,
      tx=federated.optimizer('ease', optimizer, displacement_learning_rate, 0.0),
      displacement=displacement, displaced=displaced, reference=reference, channels=channels)
  decomposing = functools.partial(
      fed_subspaces.decompose, energy=energy, max_rank=max_rank, threshold=threshold,
      kind=exclusive_basis, soft=soft, rule=retain_rule) if decomposition else fed_subspaces.nothing

  def init(key, variables):
    federation = fed_clients.history(variables, 'ease')
    if (found := len(federation['weight'])) != clients:
      raise ValueError(f'ease: the variables are of a federation of {found} clients, the roster has '
                       f'{clients}')
    start = federation['start']
    extra = {'reference': dict(start)} if aiming else {}
    if probing:
      extra['probe'] = {role: {
          branch: jnp.zeros((asked, probe_rounds, *vector.shape), vector.dtype)
          for branch, vector in start.items()} for role, asked in (
              (federated.CLIENTS, clients), (federated.FORGET, len(forgets)))}
    state = federated.initial_state(key, {
        name: tree for name, tree in variables.items() if name != 'lock'}, extra=extra)
    shapes, _ = jax.eval_shape(split, state)
    exclusive = jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), shapes)
    return locked(state, exclusive), {'original': base.copied(state.params['adapter'])}

  def split(state):
    """U_u and U_r by branch."""
    theta, federation = state.params['adapter'], state.collections['federation']
    if probing:
      forget, sent = state.extra['probe'][federated.FORGET], state.extra['probe'][federated.CLIENTS]
    else:
      sent = federation['updates']
      forget = {branch: ring[forgets] for branch, ring in sent.items()}
    retain = {branch: ring[retains] for branch, ring in sent.items()}
    if basis == 'vector':
      return fed_subspaces.of_vectors(forget, retain, decomposing)
    starts = {branch: jnp.broadcast_to(vector, (probe_rounds, *vector.shape))
              for branch, vector in theta.items()} if probing else fed_clients.sent_out(
                  federation, theta)
    return fed_subspaces.of_matrices(
        model, {**state.collections, 'adapter': theta}, starts, forget, retain, decomposing)

  def locked(state, exclusive):
    """The state with a lock around its adapter; an automatic strength is 0 until it is measured."""
    if lock == 'off':
      return state
    held = {branch: {'center': vector, 'strength': jnp.asarray(strength or 0.0, jnp.float32)}
            for branch, vector in state.params['adapter'].items()}
    if lock == 'direction':
      held = {branch: {**held[branch], 'basis': exclusive[branch]} for branch in BRANCHES}
    return state.replace(collections={**state.collections, 'lock': base.copied(held)})

  def centred(state):
    """The state with its lock, if there is one, around where the adapter stands now."""
    if lock == 'off':
      return state
    held = {branch: {**state.collections['lock'][branch], 'center': jnp.copy(vector)}
            for branch, vector in state.params['adapter'].items()}
    return state.replace(collections={**state.collections, 'lock': held})

  def spared(state, mean):
    """The mean update of the retained clients without its part along U_u."""
    if not server_projection:
      return mean
    return {branch: subspace.project_out(mean[branch], state.extra['exclusive'][branch])
            for branch in BRANCHES}

  def refer(state, frozen, batch):
    del frozen
    adapter = state.extra['reference']
    found = federated.gather(federated.contrastive(model, state), tx, adapter,
                             base.fields(batch, federated.CLIENTS, 'ease'))
    moved = {branch: adapter[branch] + found.mean[branch] for branch in BRANCHES}
    return (state.replace(step=state.step + 1, extra={**state.extra, 'reference': moved}),
            found.metrics)

  def probe(state, frozen, batch):
    del frozen
    probes = {}
    for role, data in ((federated.FORGET, fed_clients.owned(batch, forgets, 'ease')),
                       (federated.CLIENTS, base.fields(batch, federated.CLIENTS, 'ease'))):
      found = federated.gather(
          federated.contrastive(model, state), tx, state.params['adapter'], data)
      probes[role] = federated.recorded(state.extra['probe'][role], found, state.step)
    return (state.replace(step=state.step + 1, extra={**state.extra, 'probe': probes}),
            found.metrics)

  def begin(state):
    (exclusive, support), start = split(state), state.collections['federation']['start']
    adapter = {branch: losses.excise(vector, start[branch], exclusive[branch], fraction=excise)
               if branch in displaced else vector
               for branch, vector in state.params['adapter'].items()}
    extra = {name: tree for name, tree in state.extra.items() if name != 'probe'}
    return locked(state.replace(params={'adapter': adapter}, extra={
        **extra, 'exclusive': exclusive, 'support': support}), exclusive)

  def calibrate(state, frozen, batch):
    data = base.fields(batch, federated.CLIENTS, 'ease')
    grads, _ = federated.gradients(federated.contrastive(model, state), state.params['adapter'], data)
    weight = data['weight'] * data['part']
    _, failed = federated.average(grads, weight)
    used = (weight > 0) & ~failed
    held, start = {}, state.collections['federation']['start']
    for branch, one in state.collections['lock'].items():
      along = functools.partial(federated.locked_norm, one)
      # Of the locked directions the strength sees lengths alone, in one dimension.
      found = losses.automatic_strength(
          jax.vmap(along)(grads[branch])[:, None],
          along(frozen['original'][branch] - start[branch])[None], jnp.ones((1, 1)),
          fraction=kappa, where=used)
      held[branch] = {**one, 'strength': found}
    metrics = {f'strength/{branch}': one['strength'] for branch, one in held.items()}
    return state.replace(step=state.step + 1, collections={
        **state.collections, 'lock': held}), metrics | {'failed': jnp.sum(failed)}

  def unlearn(state, frozen, batch):
    state = centred(state)
    found = federated.gather(federated.contrastive(model, state), tx, state.params['adapter'],
                             base.fields(batch, federated.CLIENTS, 'ease'),
                             after=federated.lock(state, learning_rate))
    metrics = found.metrics | {f'exclusive_rank/{branch}': fed_subspaces.exclusive_rank(directions)
                               for branch, directions in state.extra['exclusive'].items()}
    moved = dict(spared(state, found.mean))
    if push is not None:
      pushed = push(state, frozen, fed_clients.owned(batch, forgets, 'ease'))
      metrics |= {f'{name}/forget': value for name, value in pushed.metrics.items()}
      loss, count = pushed.metrics['loss']
      share = jnp.where(loss >= tolerance * count, 1.0, 0.0)
      for branch, vector in pushed.mean.items():
        if server_projection:
          vector = subspace.project_out(vector, state.extra['support'][branch])
        moved[branch] = moved[branch] + share * vector
    return federated.added(state, moved), metrics

  measure = lambda enter: (types.Phase('calibrate', calibrate, 1, 'retain', enter=enter),)
  calibrating = lock != 'off' and strength is None
  phases = (
      *((types.Phase('reference', refer, reference_rounds, 'retain'),) if aiming else ()),
      *((types.Phase('probe', probe, probe_rounds, 'pair'),) if probing else ()),
      *(measure(begin) if calibrating else ()),
      types.Phase('unlearn', unlearn, rounds, 'retain' if push is None else 'pair',
                  enter=None if calibrating else begin),
      *(measure(centred) if calibrating else ()),
      federated.rounds_phase(model, tx, recover_rounds, learning_rate=learning_rate,
                             wanted_by='ease', server=spared,
                             enter=None if calibrating else centred))
  return types.Method(init, phases, federated.export)


def displacing(model: types.Model, *, steps: int, tx: optax.GradientTransformation,
               displacement: str = 'bilateral', displaced: tuple[str, ...] = BRANCHES,
               reference: str = 'backbone', channels: tuple[float, float, float] = (1.0, 1.0, 1.0)
               ) -> Callable | None:
  """What the clients that forget do in a round, `(state, frozen, forget role) -> Gathered`.

  Arguments as `ease` has them, `tx` the optimizer of the `steps`; None if nothing is displaced.
  """
  if displacement == 'off':
    return None

  def loss(now, original, target, where):
    (image, text, scale), (image_original, text_original, _) = now, original
    if displacement == 'hinge':
      return losses.hinge(image, text, image_original, text_original, weights=channels, where=where)
    if displacement == 'bilateral':
      return losses.bilateral_displacement(
          image, text, image_original, text_original, *target[:2], temperature=jnp.exp(-scale),
          weights=channels, where=where,
          reference='uniform' if reference == 'uniform' else 'embeddings').loss
    return {'neg_nce': losses.neg_nce, 'uce': losses.uce}[displacement](
        image, text, scale, where=where)

  def push(state, frozen, data):
    theta = state.params['adapter']
    aim = state.extra.get('reference', jax.tree.map(jnp.zeros_like, theta))  # the bare backbone

    def embed(adapter, inputs):
      outputs = federated.forward(model, state, adapter, inputs)
      scale = jax.lax.stop_gradient(outputs['logit_scale'])
      return outputs['image_embedding'], outputs['text_embedding'], scale

    def objective(adapter, inputs):
      moving = {branch: vector if branch in displaced else jax.lax.stop_gradient(theta[branch])
                for branch, vector in adapter.items()}
      return loss(*(embed(one, inputs) for one in (moving, frozen['original'], aim)), inputs['mask'])

    if not federated.answered(data):
      order = np.arange(steps) % data['mask'].shape[1]
      data = {name: leaf if name in federated.PER_CLIENT else leaf[:, order]
              for name, leaf in data.items()}
    return federated.gather(objective, tx, theta, data)

  return push
