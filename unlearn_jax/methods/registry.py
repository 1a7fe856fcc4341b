"""Name -> factory, an explicit table."""

from collections.abc import Callable, Mapping
import difflib
import functools
import inspect

from unlearn_jax import types
from unlearn_jax.methods import base
from unlearn_jax.methods.bad_teacher import bad_teacher
from unlearn_jax.methods.ccu import ccu
from unlearn_jax.methods.cf_k import cf_k
from unlearn_jax.methods.continued import continued
from unlearn_jax.methods.contrastive import contrastive
from unlearn_jax.methods.dlfd import dlfd
from unlearn_jax.methods.ease import ease
from unlearn_jax.methods.eu_k import eu_k
from unlearn_jax.methods.fed_ascent import fed_ga
from unlearn_jax.methods.fed_ascent import fed_osd
from unlearn_jax.methods.fed_ascent import sfu
from unlearn_jax.methods.fed_finetune import fed_finetune
from unlearn_jax.methods.fed_history import fed_eraser
from unlearn_jax.methods.fed_history import fed_recovery
from unlearn_jax.methods.fed_history import pga
from unlearn_jax.methods.fed_pairs import clip_erase
from unlearn_jax.methods.fed_pairs import fed_multi_delete
from unlearn_jax.methods.fed_parts import fed_not
from unlearn_jax.methods.fed_parts import fused
from unlearn_jax.methods.federate import federate
from unlearn_jax.methods.finetune import finetune
from unlearn_jax.methods.generator_baselines import max_loss
from unlearn_jax.methods.generator_baselines import noisy_label
from unlearn_jax.methods.generator_baselines import random_encoder
from unlearn_jax.methods.generator_baselines import retain_label
from unlearn_jax.methods.gradient_ascent import gradient_ascent
from unlearn_jax.methods.gradient_ascent import relabelling
from unlearn_jax.methods.i2i import i2i
from unlearn_jax.methods.l1_sparse import l1_sparse
from unlearn_jax.methods.multi_delete import multi_delete
from unlearn_jax.methods.ncu import ncu
from unlearn_jax.methods.neg_grad import neg_grad
from unlearn_jax.methods.neg_grad_plus import neg_grad_plus
from unlearn_jax.methods.random_label import random_label
from unlearn_jax.methods.reconstruct import reconstruct
from unlearn_jax.methods.retrain import retrain
from unlearn_jax.methods.salun import salun
from unlearn_jax.methods.scrub import scrub
from unlearn_jax.methods.soft_clip import soft_clip
from unlearn_jax.methods.ssd import ssd
from unlearn_jax.methods.unsir import unsir

# Kind of task -> its methods; the first is the one that trains original and oracle.
TASKS: Mapping[str, Mapping[str, Callable[..., types.Method]]] = {
    'classification': {
        'retrain': retrain,
        'finetune': finetune,
        'neg_grad': neg_grad,
        'neg_grad_plus': neg_grad_plus,
        'random_label': random_label,
        'l1_sparse': l1_sparse,
        'cf_k': cf_k,
        'eu_k': eu_k,
        'unsir': unsir,
        'bad_teacher': bad_teacher,
        'scrub': scrub,
        'ssd': ssd,
        'salun': salun,
        'dlfd': dlfd,
    },
    'image_text': {
        'contrastive': contrastive,
        'continued': continued,
        'gradient_ascent': gradient_ascent,
        'relabelling': relabelling,
        'soft_clip': soft_clip,
        'ncu': ncu,
    },
    'multimodal': {
        'retrain': retrain,
        'finetune': finetune,
        'neg_grad_plus': neg_grad_plus,
        'bad_teacher': bad_teacher,
        'scrub': scrub,
        'ssd': ssd,
        'multi_delete': multi_delete,
        'ccu': ccu,
    },
    'federated': {
        'federate': federate,
        'fed_finetune': fed_finetune,
        'fed_ga': fed_ga,
        'pga': pga,
        'fed_eraser': fed_eraser,
        'fed_recovery': fed_recovery,
        'sfu': sfu,
        'fed_osd': fed_osd,
        'fed_not': fed_not,
        'fused': fused,
        'fed_multi_delete': fed_multi_delete,
        'clip_erase': clip_erase,
        'ease': ease,
    },
    'generation': {
        'reconstruct': reconstruct,
        'i2i': i2i,
        'max_loss': max_loss,
        'noisy_label': noisy_label,
        'retain_label': retain_label,
        'random_encoder': random_encoder,
    },
}
LABELLED = ('classification', 'multimodal')  # kinds of task whose methods learn labels
METHODS = {name: factory for methods in TASKS.values() for name, factory in methods.items()}

# Facts about the data that whoever runs a method fills in; they are no settings.
CONTEXT = ('example', 'retain_steps', 'forget_steps', 'train_steps', 'batch_size', 'prompt_slots',
           'other', 'roster', 'pixels')

# `budget='dlfd'`: one or two epochs for everybody, as in the DLFD paper. `'original'` keeps each
# factory's own defaults.
BUDGETS: Mapping[str, Mapping[str, Mapping[str, object]]] = {
    'original': {},
    'dlfd': {
        'finetune': {'epochs': 2.0},
        'neg_grad': {'epochs': 1.0},
        'neg_grad_plus': {'epochs': 2.0},
        'random_label': {'epochs': 2},
        'l1_sparse': {'epochs': 2},
        'cf_k': {'epochs': 2.0},
        'eu_k': {'epochs': 2.0},
        'unsir': {'impair_epochs': 1.0, 'repair_epochs': 2.0},
        'bad_teacher': {'epochs': 2.0},
        'scrub': {'epochs': 2, 'max_epochs': 2, 'decay_epochs': ()},
        'salun': {'epochs': 2},
        'dlfd': {'epochs': 1.0},
    },
}


def names(task: str | None = None) -> tuple[str, ...]:
  """The registered methods, of one kind of task or of all."""
  return tuple(METHODS if task is None else TASKS[task])


def trainer(task: str) -> str:
  """The method that trains original and oracle of a kind of task."""
  return next(iter(TASKS[task]))


def suggestion(word: str, known) -> str:
  """`; did you mean ...?` and what there is."""
  close = difflib.get_close_matches(word, known, n=1)
  hint = f'; did you mean {close[0]!r}?' if close else ''
  return f'{hint} There is: {", ".join(sorted(known))}'


def arguments(name: str) -> dict[str, inspect.Parameter]:
  """A method's settings: keyword arguments of its factory without the context.

  Those that learn labels have `recover` and `recover_learning_rate` besides.
  """
  if name not in METHODS:
    raise ValueError(f'no method is called {name!r}{suggestion(name, METHODS)}')
  parameters = inspect.signature(METHODS[name]).parameters.values()
  found = {p.name: p for p in parameters
           if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name not in CONTEXT}
  if not any(name in TASKS[kind] for kind in LABELLED):
    return found  # recovery learns labels
  found['recover'] = inspect.Parameter('recover', inspect.Parameter.KEYWORD_ONLY, default=0.0,
                                       annotation=float)
  found['recover_learning_rate'] = inspect.Parameter(
      'recover_learning_rate', inspect.Parameter.KEYWORD_ONLY, default=0.01, annotation=float)
  return found


def get(name: str) -> Callable[..., types.Method]:
  """The factory of a method, `factory(model, **settings) -> Method`.

  Beside its own settings every factory that learns labels takes `recover` (epochs of training on
  retained data afterwards, 0 for none) and `recover_learning_rate`. Context that a factory has no
  use for (`CONTEXT`) is ignored, so that one call serves all.

  Args:
    name: one of `names()`.

  Raises:
    ValueError: an unknown method or setting, with the nearest known one; recovery, which learns
      labels, of a method that learns from pairs.
  """
  known = arguments(name)
  factory = METHODS[name]
  accepted = inspect.signature(factory).parameters

  @functools.wraps(factory)
  def build(model: types.Model, *, recover: float = 0.0, recover_learning_rate: float = 0.01,
            **settings) -> types.Method:
    if recover and 'recover' not in known:
      raise ValueError(f'{name} learns from pairs; recover={recover:g} would train on labels')
    for setting in settings:
      if setting not in known and setting not in CONTEXT:
        raise ValueError(f'{name} has no argument {setting!r}{suggestion(setting, known)}')
    method = factory(model, **{k: v for k, v in settings.items() if k in accepted})
    if not recover:
      return method
    return with_recovery(method, model, epochs=recover, learning_rate=recover_learning_rate,
                         retain_steps=settings.get('retain_steps', 100))

  return build


def with_recovery(method: types.Method, model: types.Model, *, epochs: float,
                  learning_rate: float = 0.01, momentum: float = 0.9,
                  retain_steps: int = 100) -> types.Method:
  """Appends a phase of plain training on retained data, with an optimizer of its own.

  Args:
    method: any method whose `params` hold only `model`.
    model: its network.
    epochs: passes over the retained data.
    learning_rate: of SGD.
    momentum: of SGD.
    retain_steps: batches in one pass over the retained data.

  Returns:
    The longer method. What an inner `export` selects (a rewound or best model) is where recovery
    starts; afterwards the current model is exported.
  """
  base.check_range('recover', epochs=(epochs, 0, float('inf')),
                   learning_rate=(learning_rate, 0, float('inf')))
  tx = base.optimizer('sgd', learning_rate, momentum=momentum)
  step = base.gradient_step(base.supervised(model, 'retain', wanted_by='recover'), tx)

  def enter(state: types.TrainState) -> types.TrainState:
    chosen = method.export(state)
    params = {'model': chosen['params']}
    return state.replace(
        params=params, opt_state=tx.init(params), extra={}, signals={},
        collections={name: tree for name, tree in chosen.items() if name != 'params'})

  def export(state: types.TrainState) -> types.Variables:
    return base.export(state) if state.extra == {} else method.export(state)

  phase = types.Phase('recover', step, base.total_steps(epochs, retain_steps), 'retain',
                      enter=enter)
  return types.Method(method.init, (*method.phases, phase), export)
