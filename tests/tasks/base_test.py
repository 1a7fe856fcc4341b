"""What all rows of an experiment share: normalisation, and pictures that are held as bytes."""

from unittest import mock

from absl.testing import absltest
import jax
import numpy as np

from unlearn_jax import config as config_lib
from unlearn_jax import models
from unlearn_jax import tasks
from unlearn_jax.data import sources
from unlearn_jax.evals import run
from unlearn_jax.tasks import base


def config(normalize='', data='synthetic', **data_settings):
  return config_lib.experiment(
      name='test', data={'name': data, 'normalize': normalize, **data_settings},
      split={'kind': 'random', 'seed': 0, 'shared_identities': True, 'fractions': {
          'retain': 0.4, 'forget': 0.2, 'validation': 0.1, 'test': 0.1, 'unseen': 0.2}},
      model='mlp', model_args={'hidden': (4,)}, methods={'finetune': {}})


class NormalizeTest(absltest.TestCase):

  def test_is_part_of_the_model_and_not_of_the_data(self):
    task = tasks.load(config('half'), '')
    image = task.example['image']
    np.testing.assert_array_equal(image, sources.get('synthetic').fields['image'][:1])
    variables = task.model.init(jax.random.key(0), task.example)
    plain = models.get('mlp', num_outputs=4, hidden=(4,))
    expected = plain.apply(variables, {'image': 2 * image - 1})[0]['logits']
    found = task.model.apply(variables, {'image': image})[0]['logits']
    np.testing.assert_allclose(found, expected, atol=1e-5)
    self.assertGreater(np.abs(found - plain.apply(variables, {'image': image})[0]['logits']).max(),
                       1e-3)

  def test_anchors_are_not_mixed_up(self):
    with mock.patch.object(base, 'train_row', return_value=({}, {})):
      places = {tasks.anchor(tasks.load(config(normalize), ''), 'retrain', 0)[2]
                for normalize in ('', 'half')}
    self.assertLen(places, 2)

  def test_unknown(self):
    with self.assertRaisesRegex(ValueError, "config.data.normalize 'halve'; did you mean 'half'"):
      config_lib.check(config('halve'))
    config_lib.check(config('imagenet'))


class BytesTest(absltest.TestCase):

  def test_pictures_stay_bytes_until_a_batch_is_made(self):
    task = tasks.load(config(data='mucac_gender_fixture', image_size=16), '')
    forget = task.fields['forget']
    self.assertIsInstance(forget['image'], sources.Pictures)
    batch = task.streams(0)['forget'](0)['forget']
    self.assertEqual(batch['image'].dtype, np.float32)
    np.testing.assert_array_equal(batch['image'], task.source.fields['image'][batch['id']])
    variables = task.model.init(jax.random.key(0), task.example)
    held = run.predict(task.model.apply, variables, forget, batch_size=16, names=('logits',))
    plain = run.predict(task.model.apply, variables, {'image': np.asarray(forget['image'])},
                        batch_size=16, names=('logits',))
    np.testing.assert_array_equal(held['logits'], plain['logits'])


if __name__ == '__main__':
  absltest.main()
