"""NCU: a CLIP learns its hardest negatives, then unlearns mismatched pairs by masked transport."""

import math

import jax

from unlearn_jax import types
from unlearn_jax.losses import ncu as losses
from unlearn_jax.methods import base
from unlearn_jax.methods import image_text
from unlearn_jax.models import clip

NEGATIVES = ('prompt', 'written')


def ncu(model: types.Model, *, train_steps: int = 100, batch_size: int | None = None,
        prompt_slots: int = 8, reading: str = 'paper', forget_fraction: float = 0.1,
        negative_epochs: float = 2.0, epochs: float = 8.0, learning_rate: float = 5e-5,
        text_learning_rate: float = 1e-4, prompt_learning_rate: float = 3e-4,
        weight_decay: float = 0.2, warmup_steps: int = 100, gamma: float = 0.7,
        epsilon: float = 0.03, weight: float = 10.0, lower: float = -0.7, upper: float = -0.2,
        frozen_text_blocks: int = 5, negative: str = 'prompt', opposite: str = 'relation',
        targets: str = 'both', optimizer: str = 'adamw') -> types.Method:
  """Hardest-negative learning, then transport-guided unlearning.

  1. `min L_HN` (Eq. 6) on the pairs of every batch that are taken for matched: m prompt vectors,
     placed right after SOT, turn a caption into its negative; the visual encoder is frozen.
  2. `min L_UL` (Eq. 12): the batch is aligned with a masked transport plan in which pairs taken for
     mismatched may go to their negative and not to their caption; the prompt is frozen.

  Both stages select D_FG anew in every batch (Eq. 2); no list of records to forget is read.

  `reading='paper'`: stage 1 trains the prompt and the text side, stage 2 everything but the prompt,
  each with a schedule of its own (ours). `'release'`: stage 1 trains all but `visual/`, the image
  projection of LaCLIP's layout among it; stage 2 freezes the position embedding and the first
  `frozen_text_blocks` blocks of the text tower too; one schedule runs over both stages, its counter
  begins an epoch late, and there is no warm-up if an epoch is longer than it. For the losses'
  readings see `losses.ncu`. Defaults are the release's scripts (LaCLIP ViT-B, batch 2048, AdamW).

  Args:
    model: two towers with prompt slots, as `models.clip` makes them.
    train_steps: batches in one pass over the training pairs.
    batch_size: N, to check P beforehand.
    prompt_slots: m; the field `negative` of a batch leaves them free.
    reading: `'paper'` or `'release'`.
    forget_fraction: P, share of a batch that is taken for mismatched.
    negative_epochs: passes in stage 1.
    epochs: passes in stage 2.
    learning_rate: of stage 2.
    text_learning_rate: of stage 1, of all but the prompt; 0 learns the prompt alone.
    prompt_learning_rate: of stage 1, of the prompt.
    weight_decay: decoupled.
    warmup_steps: of each schedule.
    gamma: weight of the plan in the targets (Eq. 10).
    epsilon: entropy of the transport (Eq. 7).
    weight: lambda (Eq. 6).
    lower: alpha (Eq. 3).
    upper: beta (Eq. 3).
    frozen_text_blocks: of stage 2 in the released reading; 5 of 12 there.
    negative: `'prompt'`, or `'written'` (V1): negatives are captions behind a written prefix, as
      the stream `written` gives them, and stage 1 is left out.
    opposite: `'relation'`, or `'distance'` (V2), see `losses.ncu`.
    targets: `'both'`, `'false_negatives'` (V3) or `'false_positives'` (V4), see `losses.ncu`.
    optimizer: `'adamw'` or `'sgd'`.
  """
  base.check_range('ncu', learning_rate=(learning_rate, 0, math.inf), epochs=(epochs, 0, math.inf),
                   negative_epochs=(negative_epochs, 0, math.inf), gamma=(gamma, 0, 1),
                   text_learning_rate=(text_learning_rate, 0, math.inf),
                   prompt_learning_rate=(prompt_learning_rate, 0, math.inf),
                   epsilon=(epsilon, 1e-6, math.inf), weight=(weight, 0, math.inf),
                   prompt_slots=(prompt_slots, 1, math.inf), lower=(lower, -1, upper),
                   frozen_text_blocks=(frozen_text_blocks, 0, math.inf))
  image_text.check_batch('ncu', forget_fraction, batch_size)
  for name, value, known in (('reading', reading, losses.READINGS),
                             ('opposite', opposite, losses.OPPOSITES),
                             ('targets', targets, losses.TARGETS),
                             ('negative', negative, NEGATIVES)):
    if value not in known:
      raise ValueError(f'ncu: {name} is one of {", ".join(known)}, got {value!r}')
  release, prompted = reading == 'release', negative == 'prompt'
  first, second = (base.total_steps(negative_epochs, train_steps) if prompted else 0,
                   base.total_steps(epochs, train_steps))

  def make(rate, steps, done):
    if release:  # one schedule over both stages; its epochs are counted from 1
      schedule = image_text.warm_cosine(rate, steps=first + second, start=train_steps + done,
                                        warmup_steps=warmup_steps)
    else:
      schedule = image_text.warm_cosine(rate, steps=steps, warmup_steps=warmup_steps)
    return image_text.optimizer(optimizer, schedule, weight_decay=weight_decay)

  visual = r'model/visual/.*' if release else r'model/(visual/.*|image_projection)'
  text = 'text' if text_learning_rate else 'freeze'
  learn_tx = image_text.partition(
      {'text': make(text_learning_rate, first, 0), 'prompt': make(prompt_learning_rate, first, 0)},
      ((visual, 'freeze'), ('prompt', 'prompt'), ('.*', text))) if prompted else None
  blocks = '|'.join(map(str, range(frozen_text_blocks)))
  released = ((r'model/text/positional_embedding', 'freeze'),
              *(((rf'model/text/transformer/resblocks/({blocks})/.*', 'freeze'),) if blocks else ()))
  rules = (*((('prompt', 'freeze'),) if prompted else ()), *(released if release else ()),
           ('.*', 'train'))
  unlearn_tx = image_text.bounded_scale(
      image_text.partition({'train': make(learning_rate, second, first)}, rules))
  options = {'forget_fraction': forget_fraction, 'reading': reading, 'lower': lower, 'upper': upper,
             'opposite': opposite}

  def embed(params, state, batch):
    found, inputs = image_text.embeddings(model, params, state, batch, 'ncu')
    prompt = {'prompt': params['prompt']} if prompted else {}
    outputs, _ = model.apply({'params': params['model'], **found.collections},
                             {'text': inputs['negative'], **prompt}, train=True,
                             method='encode_text')
    return (found.image, found.text, outputs['text_embedding'], found.logit_scale), found

  def learn(params, *, state, frozen, batch, key):
    del frozen, key
    given, found = embed(params, state, batch)
    out = losses.hardest_negative(*given, weight=weight, **options)
    return out.loss, ({'separation': out.separation, 'relation': out.relation,
                       'matching': out.matching}, found.collections)

  def unlearn(params, *, state, frozen, batch, key):
    del frozen, key
    given, found = embed(params, state, batch)
    out = losses.unlearning(*given, gamma=gamma, epsilon=epsilon, targets=targets, **options)
    return out.loss, ({'realign': out.realign, 'separation': out.separation,
                       'converged': out.plan.converged, 'iterations': out.plan.iterations,
                       'row_error': out.plan.row_error, 'logit_scale': found.logit_scale},
                      found.collections)

  def init(key, variables):
    learned = ({'prompt': clip.init_prompt(jax.random.fold_in(key, 1), variables, prompt_slots)}
               if prompted else {})
    return base.initial_state(key, variables, learn_tx if prompted else unlearn_tx,
                              learned=learned), {}

  def begin(state: types.TrainState) -> types.TrainState:
    return state.replace(opt_state=unlearn_tx.init(state.params))

  stream = 'train' if prompted else 'written'
  stages = ((types.Phase('negatives', base.gradient_step(learn, learn_tx), first, stream),)
            if prompted else ())
  unlearning = types.Phase('unlearn', base.gradient_step(unlearn, unlearn_tx), second, stream,
                           enter=begin)
  return types.Method(init, (*stages, unlearning), base.export)
