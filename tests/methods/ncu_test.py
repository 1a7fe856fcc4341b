"""NCU's stages: what moves in which, its schedules, resuming across them, and bad settings."""

import contextlib
import functools
import re
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from tests.methods import worlds
from tests.methods.worlds import flat
from unlearn_jax import methods
from unlearn_jax import models
from unlearn_jax import types
from unlearn_jax.methods import image_text
from unlearn_jax.models import clip
from unlearn_jax.train import checkpoint

SETTINGS = {'train_steps': 3, 'batch_size': 8, 'prompt_slots': 3, 'forget_fraction': 0.25,
            'warmup_steps': 0, 'negative_epochs': 1.0, 'epochs': 1.0, 'optimizer': 'sgd',
            'frozen_text_blocks': 1}
RATES = {'learning_rate': 0.5, 'text_learning_rate': 0.5, 'prompt_learning_rate': 0.5}


@functools.cache
def named(layout: str) -> tuple[types.Model, types.Variables]:
  """The parameters of a real CLIP by name and shape, behind towers that compile at once.

  An embedding is a fixed function of its input plus the sum over the tower's leaves of their mean
  along a direction of the leaf's own, so that every leaf of the tower has a gradient.
  """
  real = models.get('clip', layout=layout, embedding=16, patch=4, image_width=16, image_depth=1,
                    image_heads=2, text_width=16, text_depth=2, text_heads=2, context=12,
                    vocabulary=64)
  shapes = jax.eval_shape(real.init, jax.random.key(0), {
      'image': jnp.zeros((1, 8, 8, 3)), 'text': jnp.zeros((1, 12), jnp.int32)})
  variables = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1, leaf.dtype), shapes)
  variables['params']['logit_scale'] = jnp.asarray(2.0)
  rng = np.random.default_rng(0)
  pixels, words = rng.normal(size=(192, 16)), rng.normal(size=(12, 16))
  directions = {name: rng.normal(size=16) for name in (*flat(shapes['params']), 'prompt')}

  def tower(x, leaves):
    for name, leaf in leaves.items():
      x = x + jnp.mean(leaf) * directions[name]
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)

  def apply(variables, inputs, *, train=False, rngs=None, method=None):
    del train, rngs
    leaves = {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in
              jax.tree_util.tree_leaves_with_path(variables['params'])}
    of_text = {name: leaf for name, leaf in leaves.items() if name.startswith('text/')}
    if 'prompt' in inputs:
      of_text['prompt'] = inputs['prompt']
    outputs = {'text_embedding': tower(inputs['text'] / 9.0 @ words, of_text)}
    if method is None:
      of_image = {name: leaf for name, leaf in leaves.items()
                  if name.startswith(('visual/', 'image_projection'))}
      outputs['image_embedding'] = tower(inputs['image'].reshape(-1, 192) @ pixels, of_image)
      outputs['logit_scale'] = leaves['logit_scale']
    return outputs, variables

  return types.Model(real.init, apply), variables


def moved(layout, stage, **settings) -> tuple[set[str], set[str], types.Metrics]:
  """(paths that one step of a stage changes, paths that it does not, metrics)."""
  model, variables = named(layout)
  method = methods.get('ncu')(model, **SETTINGS | RATES | settings)
  state, frozen = method.init(jax.random.key(0), variables)
  phase = method.phases[stage]
  state = state if phase.enter is None else phase.enter(state)
  batch = jax.tree.map(np.asarray, worlds.image_text().streams['train'](0))
  after, metrics = jax.jit(phase.step)(state, frozen, batch)
  before, after = flat(state.params), flat(after.params)
  changed = {name for name in before if (before[name] != after[name]).any()}
  return changed, before.keys() - changed, metrics


class StagesTest(parameterized.TestCase):

  def only(self, found, frozen):
    """Exactly the paths that match `frozen` stayed."""
    changed, stayed, metrics = found
    for name, value in metrics.items():
      self.assertTrue(np.isfinite(value).all(), name)
    for name in changed | stayed:
      self.assertEqual(name in stayed, re.fullmatch(frozen, name) is not None, name)
    self.assertNotEmpty(changed)

  def test_paper_learns_negatives_with_the_visual_encoder_frozen(self):
    found = moved('laclip', 0)
    self.only(found, 'model/visual/.*|model/image_projection')
    self.assertContainsSubset({'prompt', 'model/logit_scale', 'model/text/text_projection'},
                              found[0])

  def test_release_trains_the_image_projection_with_the_negatives(self):
    found = moved('laclip', 0, reading='release')
    self.only(found, 'model/visual/.*')
    self.assertIn('model/image_projection', found[0])

  @parameterized.parameters('paper', 'release')
  def test_the_prompt_alone(self, reading):
    self.assertEqual(moved('laclip', 0, reading=reading, text_learning_rate=0.0)[0], {'prompt'})

  def test_paper_unlearns_everything_but_the_prompt(self):
    found = moved('laclip', 1)
    self.only(found, 'prompt')
    self.assertEqual(found[2].keys(), {'loss', 'realign', 'separation', 'converged', 'iterations',
                                       'row_error', 'logit_scale'})

  def test_release_freezes_early_text_blocks_and_positions(self):
    found = moved('laclip', 1, reading='release', epochs=3.0)  # of 1, its rate would be 0 here
    self.only(found, 'prompt|model/text/positional_embedding|'
              'model/text/transformer/resblocks/0/.*')
    self.assertContainsSubset({'model/text/token_embedding/embedding', 'model/logit_scale'}, found[0])

  @parameterized.product(layout=tuple(clip.LAYOUTS), reading=('paper', 'release'),
                         negative=('prompt', 'written'))
  def test_rules_fit_every_layout(self, layout, reading, negative):
    model, variables = named(layout)
    method = methods.get('ncu')(model, **SETTINGS, reading=reading, negative=negative)
    self.assertLen(method.phases, 2 if negative == 'prompt' else 1)
    state, _ = jax.eval_shape(method.init, jax.random.key(0), variables)
    state = jax.eval_shape(method.phases[-1].enter, state)
    self.assertEqual('prompt' in state.params, negative == 'prompt')
    self.assertEqual(jax.eval_shape(method.export, state)['params'].keys(),
                     variables['params'].keys())


class ScheduleTest(parameterized.TestCase):

  def schedules(self, train_steps, **settings):
    """Of (text, prompt, unlearning), as multiples of their rates."""
    rates = {'text_learning_rate': 1.0, 'prompt_learning_rate': 1.0, 'learning_rate': 1.0}
    with mock.patch.object(image_text, 'optimizer', wraps=image_text.optimizer) as made:
      methods.get('ncu')(None, **rates, train_steps=train_steps, **settings)
    return [call.args[1] for call in made.call_args_list]

  def test_release(self):
    """The multipliers of its own function for 1,383 steps an epoch: no warm-up, and up again."""
    steps = 1383
    *first, last = self.schedules(steps, reading='release')
    for schedule in first:
      np.testing.assert_allclose([schedule(0), schedule(steps - 1), schedule(steps)],
                                 [.979, .910, .910], atol=5e-4)
      np.testing.assert_allclose(schedule(2 * steps - 1), .800, atol=5e-4)
    expected = [.800, .661, .506, .350, .209, .097, .025, 0.0]
    np.testing.assert_allclose([last(steps * epoch) for epoch in range(8)], expected, atol=5e-4)
    np.testing.assert_allclose(last(8 * steps - 1), .025, atol=5e-4)

  def test_release_spreads_its_warm_up_over_short_epochs(self):
    text, _, last = self.schedules(30, reading='release')
    np.testing.assert_allclose([text(0), text(59)], [.31, .90], atol=1e-6)  # steps 30 and 89
    np.testing.assert_allclose([last(0), last(9)], [.91, 1.0], atol=1e-6)  # steps 90 and 99
    np.testing.assert_allclose(last(10), 1.0, atol=1e-6)
    self.assertLess(float(last(11)), 1.0)

  def test_paper_has_one_schedule_per_stage(self):
    text, prompt, last = self.schedules(1383)
    for schedule, steps in ((text, 2 * 1383), (prompt, 2 * 1383), (last, 8 * 1383)):
      np.testing.assert_allclose([schedule(0), schedule(99), schedule(100)], [.01, 1.0, 1.0],
                                 atol=1e-6)
      np.testing.assert_allclose(schedule(100 + (steps - 100) / 2), 0.5, atol=1e-3)
      np.testing.assert_allclose(schedule(steps), 0.0, atol=1e-6)


class ResumeTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    context = worlds.image_text().context
    cls.settings = {name: value for name, value in SETTINGS.items() if name not in context} | {
        'optimizer': 'adamw', 'learning_rate': 1e-3}
    cls.whole = worlds.run('ncu', cls.settings)

  @parameterized.parameters((0, 2), (1, 0), (1, 2))
  def test_resumed_is_bitwise_uninterrupted(self, number, index):
    """Before, at and after the boundary between the stages; AdamW, whose moments begin anew."""
    class Killed(Exception):
      pass

    class Stop(checkpoint.Checkpointer):
      def save(self, tree, note):
        super().save(tree, note)
        if tuple(note['position']) == (number, index):
          raise Killed

    directory = tempfile.mkdtemp()
    with contextlib.closing(Stop(directory)) as saved, self.assertRaises(Killed):
      worlds.run('ncu', self.settings, checkpointer=saved, checkpoint_every=1)
    with checkpoint.Checkpointer(directory) as saved:
      self.assertEqual(tuple(saved.latest()['position']), (number, index))
      resumed = worlds.run('ncu', self.settings, checkpointer=saved)
    self.assertEqual(resumed.steps, 6)
    self.assertEqual(resumed.flops, self.whole.flops)
    for part in ('params', 'opt_state'):
      jax.tree.map(np.testing.assert_array_equal, flat(getattr(resumed.state, part)),
                   flat(getattr(self.whole.state, part)))


class BadInputTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'reading': 'code'}, 'ncu: reading is one of paper, release'),
      ({'opposite': 'far'}, 'ncu: opposite is one of relation, distance'),
      ({'targets': 'v3'}, 'ncu: targets is one of both'),
      ({'negative': 'hard'}, 'ncu: negative is one of prompt, written'),
      ({'forget_fraction': 0.1}, 'a batch of 8 pairs selects 0'),
      ({'forget_fraction': 1.0}, r'forget_fraction must lie in \(0, 1\)'),
      ({'gamma': 1.5}, r'ncu: gamma must lie in \[0, 1\]'),
      ({'epsilon': 0.0}, 'ncu: epsilon'),
      ({'lower': -0.1}, 'ncu: lower must lie in'),
      ({'prompt_slots': 0}, 'ncu: prompt_slots'),
      ({'optimizer': 'adam'}, "optimizer is 'adamw' or 'sgd'"),
      ({'warmup_steps': 3}, 'a warm-up of 3 steps must be shorter than the 3'),
      ({'learning_rate': float('nan')}, 'ncu: learning_rate'))
  def test_refused_before_anything_is_computed(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      methods.get('ncu')(None, **SETTINGS | changes)


if __name__ == '__main__':
  absltest.main()
