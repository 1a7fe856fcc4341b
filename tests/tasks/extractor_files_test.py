"""Tests of extractors from users' files: what is missing, how weights are known and pictures fed."""

import hashlib
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearn_jax import models
from unlearn_jax import types
from unlearn_jax.evals import extractors
from unlearn_jax.models import clip_keys
from unlearn_jax.models import contract
from unlearn_jax.tasks import extractor_files

IMAGES = np.random.default_rng(0).uniform(size=(3, 5, 5, 3)).astype(np.float32)
SMALL = {'layout': 'openai', 'embedding': 8, 'patch': 4, 'image_width': 64, 'image_depth': 1,
         'image_heads': 1, 'text_width': 64, 'text_depth': 1, 'text_heads': 1, 'context': 6,
         'vocabulary': 20}


def clip_file(path):
  """Weights of a small CLIP under OpenAI's names; its model and variables."""
  safetensors = pytest.importorskip('safetensors.numpy', reason='extra `convert`')
  model = models.get('clip', **SMALL)
  fields = {'image': np.zeros((1, 8, 8, 3)), 'text': np.zeros((1, 6), np.int32)}
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda leaf: np.float32(rng.normal(size=leaf.shape) * 0.3),
                           jax.eval_shape(model.init, jax.random.key(0), fields))
  names = clip_keys.Names('openai', None, '', '', ())
  tensors = {}
  for keys, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
    path_in = jax.tree_util.keystr(keys, simple=True, separator='/')
    tensors |= names.to_file(path_in, np.asarray(leaf))
  safetensors.save_file({name: np.array(value, order='C') for name, value in tensors.items()}, path)
  return model, variables


def mean_network(**arguments):
  """In place of Inception: the mean colour."""
  del arguments

  def apply(variables, inputs, *, train=False):
    del train
    image = inputs['image']
    assert image.shape[1:] == (299, 299, 3)
    features = jnp.mean(image, axis=(1, 2)) * variables['scale']
    return {'features': features, 'logits': features}, variables

  return types.Model(lambda key, fields: {}, apply)


class FilesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / 'weights.safetensors'

  @parameterized.parameters(
      (extractor_files.inception, 'pt_inception-2015-12-05-6726825d.pth.*inception_v3_google'),
      (extractor_files.clip, 'ViT-H-14 of laion2b_s32b_b79k'))
  def test_a_missing_file(self, load, message):
    with self.assertRaisesRegex(FileNotFoundError, f'no weights at .*weights.*put there .*{message}'):
      load(self.path)

  def inception(self, official):
    self.path.write_bytes(b'weights')
    digest = hashlib.sha256(b'weights').hexdigest()
    arguments = {'num_outputs': 1008, 'layout': 'fid'}
    table = {digest[:12]: ('fid',)} if official else extractor_files.OFFICIAL
    with mock.patch.object(extractor_files.inception_lib, 'load',
                           return_value=({'scale': jnp.float32(2)}, arguments)), mock.patch.object(
                               extractor_files.models, 'get', lambda name, **a: mean_network(**a)):
      with mock.patch.object(extractor_files, 'OFFICIAL', table):
        return digest, extractor_files.inception(self.path, batch_size=2)

  def test_inception(self):
    digest, extractor = self.inception(official=False)
    self.assertEqual(extractor.id, f'inception:fid:{digest[:8]}')
    self.assertEqual(extractors.title('fid', extractor), f'fid[inception:fid:{digest[:8]}]')
    wanted = 2 * (2 * extractors.resized(IMAGES, 299) - 1).mean(axis=(1, 2))
    np.testing.assert_allclose(extractor.features(IMAGES), wanted, atol=1e-4)
    np.testing.assert_allclose(extractor.probabilities(IMAGES).sum(axis=1), 1, atol=1e-6)

  def test_published_weights_are_known_by_their_hash(self):
    _, extractor = self.inception(official=True)
    self.assertEqual(extractors.title('fid', extractor), 'FID')
    self.assertStartsWith(extractors.title('is', extractor), 'is[inception')
    for digest, metrics in extractor_files.OFFICIAL.items():
      self.assertRegex(digest, '^[0-9a-f]{8}([0-9a-f]{56})?$')
      self.assertContainsSubset(metrics, extractors.TITLES)

  def test_clip(self):
    model, variables = clip_file(self.path)
    with self.assertRaisesRegex(ValueError, 'do not tell QuickGELU from GELU'):
      extractor_files.clip(self.path)
    extractor = extractor_files.clip(self.path, layout='openai')
    mean, std = contract.STATISTICS['clip']
    pictures = (extractors.resized(IMAGES, 8) - np.float32(mean)) / np.float32(std)
    encode = jax.jit(lambda x: model.apply(variables, {'image': x}, method='encode_image')[0])
    found = extractor.features(IMAGES)
    np.testing.assert_allclose(found, encode(pictures)['image_embedding'], atol=1e-5)
    self.assertGreater(np.ptp(found, axis=0).max(), 1e-2)  # pictures differ
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    digest = hashlib.sha256(self.path.read_bytes()).hexdigest()
    self.assertEqual(extractors.title('emb_cos', extractor), f'emb_cos[clip:{digest[:8]}]')
    self.assertIsNone(extractor.probabilities)

  def test_heads_of_vit_h(self):
    """80 channels each, where smaller towers have 64: the shapes do not tell."""
    self.path.write_bytes(b'weights')
    digest = hashlib.sha256(b'weights').hexdigest()
    arguments = SMALL | {'image_width': 1280, 'image_heads': 20}
    spec = extractor_files.convert.Spec(arguments, 224, 'openai')
    with mock.patch.object(extractor_files.convert, 'load',
                           return_value=({'params': {}}, spec)) as load:
      with mock.patch.object(extractor_files.models, 'get') as get:
        with mock.patch.object(extractor_files, 'OFFICIAL', {digest: ('emb_cos',)}):
          extractor = extractor_files.clip(self.path)
    self.assertEqual(get.call_args, mock.call('clip', **(arguments | {'image_heads': 16})))
    self.assertEqual(load.call_args, mock.call(self.path, layout='open_clip'))  # known by its hash
    self.assertEqual(extractors.title('emb_cos', extractor), 'CLIP')

  def test_another_model(self):
    self.path.write_bytes(b'weights')
    spec = extractor_files.convert.Spec({}, 224, 'mae', 'mae')
    with mock.patch.object(extractor_files.convert, 'load', return_value=({'params': {}}, spec)):
      with self.assertRaisesRegex(ValueError, 'is of another model, mae'):
        extractor_files.clip(self.path)


if __name__ == '__main__':
  absltest.main()
