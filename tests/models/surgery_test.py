"""Tests of path surgery and of the errors that name the first wrong leaf."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import models
from unlearn_jax.models import surgery


def tree(scale=1.0, classes=3):
  return {'params': {'body': {'kernel': scale * jnp.ones((4, 2)), 'bias': scale * jnp.ones(2)},
                     'fc': {'kernel': scale * jnp.ones((2, classes))}},
          'batch_stats': {'bn': {'mean': scale * jnp.ones(2)}}}


PATHS = ['batch_stats/bn/mean', 'params/body/bias', 'params/body/kernel', 'params/fc/kernel']
LISTED = ', '.join(PATHS)


class SurgeryTest(parameterized.TestCase):

  def test_paths(self):
    self.assertEqual(surgery.paths(tree()), PATHS)

  @parameterized.parameters(
      ('.*kernel', [False, False, True, True]),
      (['params/fc/.*', 'batch_stats/.*'], [True, False, False, True]),
      ('.*', [True] * 4),
  )
  def test_match(self, patterns, expected):
    marks = surgery.match(tree(), patterns)
    self.assertEqual(jax.tree.leaves(marks), expected)
    self.assertEqual(jax.tree.structure(marks), jax.tree.structure(tree()))

  @parameterized.parameters('params/head/.*', 'kernel', 'fc')
  def test_a_rule_that_matches_nothing_lists_the_names(self, pattern):
    message = f'path rule {pattern!r} matches no parameter; parameters are: {LISTED}'
    for call in (lambda: surgery.match(tree(), ['.*', pattern]),
                 lambda: surgery.reinitialise(tree(), tree(), pattern),
                 lambda: surgery.rename(tree(), [(pattern, 'x')]),
                 lambda: surgery.load(tree(), tree(), keep=pattern)):
      with self.assertRaises(ValueError) as caught:
        call()
      self.assertEqual(str(caught.exception), message)

  def test_reinitialise(self):
    result = surgery.reinitialise(tree(1.0), tree(2.0), 'params/fc/.*')
    self.assertEqual([float(leaf.ravel()[0]) for leaf in jax.tree.leaves(result)], [1, 1, 1, 2])

  def test_reinitialise_from_another_model(self):
    with self.assertRaisesRegex(ValueError, r"'params/fc/kernel' should have shape \(2, 3\), "
                                r'found \(2, 5\)'):
      surgery.reinitialise(tree(), tree(classes=5), 'params/body/.*')

  def test_rename(self):
    renamed = surgery.rename(tree(), [(r'(params|batch_stats)/(body|bn)/(.*)', r'\1/net/0/\3'),
                                      ('.*/kernel', 'never reached for body/W')])
    self.assertEqual(surgery.paths(renamed), [
        'batch_stats/net/0/mean', 'never reached for body/W', 'params/net/0/bias',
        'params/net/0/kernel'])

  def test_rename_collision(self):
    with self.assertRaisesRegex(
        ValueError, "'params/body/kernel' and 'params/fc/kernel' would both become 'w'"):
      surgery.rename(tree(), [('.*/kernel', 'w')])

  def test_rename_onto_a_branch(self):
    with self.assertRaisesRegex(ValueError, "'params/fc' is a parameter|that holds parameters"):
      surgery.rename(tree(), [('params/body/bias', 'params/fc')])
    with self.assertRaisesRegex(ValueError, "'params/body/bias' is a parameter"):
      surgery.rename(tree(), [('params/fc/kernel', 'params/body/bias/x')])

  def test_load(self):
    source = surgery.rename(tree(3.0), [('params/body/(.*)', r'params/trunk/\1')])
    loaded = surgery.load(tree(1.0), source, rules=[('params/trunk/(.*)', r'params/body/\1')])
    jax.tree.map(np.testing.assert_array_equal, loaded, tree(3.0))

  def test_load_keeps_a_new_head(self):
    loaded = surgery.load(tree(1.0, classes=7), tree(3.0), keep='params/fc/.*')
    self.assertEqual(loaded['params']['fc']['kernel'].shape, (2, 7))
    self.assertEqual(float(loaded['params']['fc']['kernel'][0, 0]), 1.0)
    self.assertEqual(float(loaded['params']['body']['bias'][0]), 3.0)

  def test_load_into_abstract_variables_casts_floats(self):
    template = jax.eval_shape(tree)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree(2.0))
    loaded = surgery.load(template, half)
    jax.tree.map(np.testing.assert_array_equal, loaded, tree(2.0))
    self.assertEqual(loaded['params']['fc']['kernel'].dtype, jnp.float32)

  def test_load_names_the_first_wrong_leaf(self):
    wrong = tree(classes=9)
    wrong['params']['body']['bias'] = jnp.ones(5)
    with self.assertRaisesRegex(ValueError, r"of another model: 'params/body/bias' should have "
                                r'shape \(2,\), found \(5,\)$'):
      surgery.load(tree(), wrong)

  def test_load_missing_and_superfluous(self):
    small = {'params': tree()['params']}
    with self.assertRaisesRegex(
        ValueError, r"'batch_stats/bn/mean' \(2,\) float32 is missing; there is: params/body/bias"):
      surgery.load(tree(), small)
    with self.assertRaisesRegex(ValueError, "'batch_stats/bn/mean'.*has no place in this model"):
      surgery.load(small, tree())

  def test_load_refuses_another_kind_of_number(self):
    wrong = tree()
    wrong['params']['body']['bias'] = jnp.ones(2, jnp.int32)
    with self.assertRaisesRegex(ValueError, r"'params/body/bias' should be \(2,\) float32, found "
                                r'\(2,\) int32'):
      surgery.load(tree(), wrong)

  def test_checkpoint_of_another_model(self):
    picture = {'image': jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)}
    make = lambda **kwargs: jax.eval_shape(  # pylint: disable=g-long-lambda
        models.get('resnet18', num_outputs=4, stem='cifar', **kwargs).init, jax.random.key(0),
        picture)
    self.assertIsNone(surgery.first_mismatch(make(width=8), make(width=8)))
    self.assertEqual(surgery.first_mismatch(make(width=8), make(width=16)),
                     "'batch_stats/bn1/mean' should have shape (8,), found (16,)")


if __name__ == '__main__':
  absltest.main()
