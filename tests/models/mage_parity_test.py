"""MAGE and its VQ-GAN beside PyTorch twins; by `make test-slow`."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.close import close
from unlearn_jax import models
from unlearn_jax.models import mage_keys
from unlearn_jax.models import mage_masking
from unlearn_jax.models import surgery
from unlearn_jax.models import vqgan

pytestmark = pytest.mark.slow
TINY_VQ = {'width': 8, 'multipliers': (1, 1, 2), 'blocks': 2, 'latent': 6, 'codes': 32, 'groups': 4}
TINY = {'image_size': 32, 'vqgan': TINY_VQ, 'width': 48, 'depth': 2, 'heads': 3, 'decoder_width': 32,
        'decoder_depth': 1, 'decoder_heads': 2, 'classes': 5, 'class_token': 2}
VIT_B = {'image_size': 256, 'vqgan': vqgan.PUBLISHED, 'width': 768, 'depth': 12, 'heads': 12,
         'decoder_width': 768, 'decoder_depth': 8, 'decoder_heads': 16, 'classes': 1000,
         'class_token': 76}


def twin(*, vqgan, **arguments):
  from experiments.benchmarks import generator_twins
  return generator_twins.MAGE(tokenizer=vqgan, **arguments)


class MAGEParityTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.torch = pytest.importorskip('torch', reason='extra `parity`; make test-slow installs it')

  def randomise(self, module, image):
    """Every parameter random, none of them zero or one; codes are among the latents of pictures."""
    torch = self.torch
    torch.manual_seed(0)
    with torch.no_grad():
      for name, parameter in module.named_parameters():
        if parameter.ndim == 1 and ('norm' in name.lower() or '.ln.' in name) and (
            name.endswith('weight')):
          parameter.uniform_(0.5, 1.5)
        elif 'word_embeddings' in name or 'pos' in name:
          parameter.normal_(0, 0.5)
        elif parameter.ndim > 1 and parameter.shape[0] > 1:
          parameter.normal_(0, parameter[0].numel()**-0.5)
        else:
          parameter.normal_(0, 0.3)
      vq = getattr(module, 'vqgan', module)
      codebook = vq.quantize['embedding'].weight
      z = vq.latents(image).movedim(1, 3).flatten(0, 2)
      codebook.copy_(z[torch.arange(len(codebook)) % len(z)] + 0.1 * z.std() * torch.randn(
          codebook.shape))
    return module.eval()

  def nchw(self, image):
    return self.torch.tensor(np.ascontiguousarray(np.moveaxis(image, -1, 1)))

  def variables(self, module, names, model, fields):
    tensors = {name: value.detach().numpy() for name, value in module.state_dict().items()}
    expected = jax.eval_shape(model.init, jax.random.key(0), fields)
    leaves = [jnp.asarray(names.from_file(path, tensors)) for path in surgery.paths(expected)]
    variables = jax.tree.unflatten(jax.tree.structure(expected), leaves)
    self.assertIsNone(surgery.first_mismatch(expected, variables))
    back = {}
    for path, leaf in zip(surgery.paths(variables), leaves):
      back |= names.to_file(path, np.asarray(leaf))
    self.assertSameElements(back, tensors)
    for name, value in back.items():
      np.testing.assert_array_equal(value, tensors[name], name)
    return variables

  @parameterized.named_parameters(('tiny', TINY, 3), ('vit_b', VIT_B, 1))
  def test_twin(self, arguments, batch):
    torch, rng = self.torch, np.random.default_rng(0)
    side = arguments['image_size']
    image, target, other = rng.random((3, batch, side, side, 3)).astype(np.float32)
    module = self.randomise(twin(**arguments), self.nchw(other))
    number = (side // 2**(len(arguments['vqgan']['multipliers']) - 1))**2
    visible = np.stack([rng.permutation(number)[:number // 2] for _ in range(batch)]).astype('i4')
    fields = {'image': image, 'visible': visible, 'target': target}
    model = models.get('mage', **arguments)
    variables = self.variables(module, mage_keys.Names('mage', ''), model, fields)
    if arguments is VIT_B:
      preset = models.get('mage_vit_b')
      self.assertIsNone(surgery.first_mismatch(
          jax.eval_shape(preset.init, jax.random.key(0), fields), variables))
    # The masks are drawn here; what they are is told to the twin.
    key = jax.random.key(1)
    extra = np.asarray(mage_masking.further(jax.random.fold_in(key, 0), *visible.shape, number))
    self.assertTrue(extra.any())

    @jax.jit
    def ours(variables):
      tokenizer = models.get('vqgan', **arguments['vqgan'])
      params = {'params': variables['params']['tokenizer']}
      call = functools.partial(tokenizer.apply, params)
      found = call({'image': image}, method='encode')[0]
      keyed = {'rngs': {'noise': key}}
      return found | {
          'decoded': call({'tokens': found['tokens']}, method='decode')[0]['image'],
          'encoded': model.apply(variables, fields, method='encode', **keyed)[0]['latent'],
          'loss': model.apply(variables, fields, method='loss', **keyed)[0]['loss']}

    found = ours(variables)
    places, masked = torch.tensor(visible).long(), torch.tensor(extra)
    with torch.no_grad():
      tokenizer = module.vqgan
      close(found['latent'], tokenizer.latents(self.nchw(image)).movedim(1, 3))
      tokens, goal = (tokenizer.tokens(self.nchw(each)) for each in (image, target))
      np.testing.assert_array_equal(found['tokens'].reshape(batch, -1), tokens)
      self.assertGreater(len(np.unique(tokens)), 10)
      close(found['decoded'], tokenizer.decode(
          tokens.unflatten(1, found['tokens'].shape[1:])).movedim(1, 3))
      latent = module.encode(tokens, places, masked)
      close(found['encoded'], latent)
      logits = module.logits(latent, places, masked)
      close(found['loss'], module.loss(logits, goal, places, masked))
      self.assertGreater(float(logits.std()), 0.1)

  def test_gradients(self):
    torch, rng = self.torch, np.random.default_rng(0)
    image, other = rng.random((2, 2, 32, 32, 3)).astype(np.float32)
    module = self.randomise(twin(**TINY), self.nchw(other))
    visible = np.stack([rng.permutation(64)[:40] for _ in range(2)]).astype('i4')
    fields = {'image': image, 'visible': visible}
    model, names = models.get('mage', **TINY), mage_keys.Names('mage', '')
    variables = self.variables(module, names, model, fields)
    weights = np.array([0.7, -1.3], np.float32)
    slopes = jax.jit(jax.grad(lambda params: jnp.sum(weights * model.apply(
        {'params': params}, fields, method='loss')[0]['loss'])))(variables['params'])
    places = torch.tensor(visible).long()
    masked = torch.zeros(places.shape, dtype=torch.bool)
    tokens = module.vqgan.tokens(self.nchw(image))
    losses = module.loss(module.logits(module.encode(tokens, places, masked), places, masked), tokens,
                         places, masked)
    (torch.tensor(weights) * losses).sum().backward()
    theirs = dict(module.named_parameters())
    for path, leaf in zip(surgery.paths({'params': slopes}), jax.tree.leaves(slopes)):
      for name, value in names.to_file(path, np.asarray(leaf)).items():
        if name.startswith('vqgan.'):
          self.assertFalse(np.any(value), name)
          continue
        if name.endswith('qkv.bias'):  # keys' biases cancel in the softmax: only rounding there
          width = len(value) // 3
          self.assertLess(np.abs(value[width:2 * width]).max(), 1e-5 * np.abs(value).max())
        close(value, theirs[name].grad.numpy(), name)


if __name__ == '__main__':
  absltest.main()
