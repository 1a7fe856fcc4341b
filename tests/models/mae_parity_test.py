"""Masked autoencoders beside a PyTorch twin and transformers; by `make test-slow`."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.close import close
from unlearn_jax import models
from unlearn_jax.models import convert
from unlearn_jax.models import mae_keys
from unlearn_jax.models import surgery

pytestmark = pytest.mark.slow
# image side, patch, width, depth, heads, decoder width, depth, heads
TINY = (16, 4, 48, 2, 3, 32, 1, 2)
VIT_B = (224, 16, 768, 12, 12, 512, 8, 16)


def fields_of(size, batch, keep):
  """Pictures and visible patches, shuffled and others in each row; and another target."""
  side, patch = size[:2]
  rng = np.random.default_rng(1)
  visible = np.stack([rng.permutation((side // patch)**2)[:keep] for _ in range(batch)])
  image, target = rng.normal(size=(2, batch, side, side, 3)).astype(np.float32)
  return {'image': image, 'visible': visible.astype(np.int32), 'target': target}


class MAEParityTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.torch = pytest.importorskip('torch', reason='extra `parity`; make test-slow installs it')
    from experiments.benchmarks import generator_twins
    self.twins = generator_twins

  def randomise(self, module):
    """Every parameter random, none of them zero or one, so that each one counts."""
    torch = self.torch
    torch.manual_seed(0)
    with torch.no_grad():
      for name, parameter in module.named_parameters():
        if 'pos' in name:  # the fixed tables
          continue
        if parameter.ndim == 1 and 'norm' in name and name.endswith('weight'):
          parameter.uniform_(0.5, 1.5)
        elif parameter.ndim > 1 and 'token' not in name:
          parameter.normal_(0, parameter[0].numel()**-0.5)
        else:
          parameter.normal_(0, 0.3)
    return module

  def nchw(self, image):
    return self.torch.tensor(np.ascontiguousarray(np.moveaxis(image, -1, 1)))

  def twin(self, size):
    return self.randomise(self.twins.MAE(*size).eval())

  def load(self, module):
    return convert.load({name: value.detach().numpy() for name, value in module.state_dict().items()},
                        head_width=16 if module.norm.normalized_shape == (48,) else 64,
                        decoder_head_width=16 if module.norm.normalized_shape == (48,) else 32)

  @parameterized.named_parameters(('tiny', TINY, 3, 5), ('vit_b', VIT_B, 2, 49))
  def test_twin(self, size, batch, keep):
    module, fields = self.twin(size), fields_of(size, batch, keep)
    variables, spec = self.load(module)
    if size is VIT_B:
      preset = models.get('mae_vit_b')
      self.assertIsNone(surgery.first_mismatch(jax.eval_shape(
          lambda: preset.init(jax.random.key(0), fields)), variables))

    @jax.jit
    def ours(variables):
      model = models.get('mae', **spec.model_args)
      latent = model.apply(variables, fields, method='encode')[0]['latent']
      prediction = model.apply(variables, {**fields, 'latent': latent}, method='decode')[0]['image']
      losses = [models.get('mae', **spec.model_args, normalize_targets=normalize).apply(
          variables, fields, method='loss')[0]['loss'] for normalize in (False, True)]
      return latent, prediction, losses

    latent, prediction, losses = ours(variables)
    visible = self.torch.tensor(fields['visible'], dtype=self.torch.int64)
    with self.torch.no_grad():
      expected = module.encode(self.nchw(fields['image']), visible)
      close(latent, expected)
      expected = module.decode(expected, visible)
      side, patch = size[:2]
      picture = expected.reshape(batch, side // patch, side // patch, patch, patch, 3)
      close(prediction, picture.transpose(2, 3).reshape(batch, side, side, 3))
      for normalize, found in zip((False, True), losses):
        close(found, module.loss(expected, self.nchw(fields['target']), visible, normalize))
    self.assertGreater(float(latent.std()), 0.1)

  @parameterized.parameters(False, True)
  def test_gradients(self, normalize):
    module, fields = self.twin(TINY), fields_of(TINY, 3, 5)
    variables, spec = self.load(module)
    model = models.get('mae', **spec.model_args, normalize_targets=normalize)
    weights = np.random.default_rng(2).normal(size=3).astype(np.float32)

    @jax.jit
    def ours(params, image, target):
      def loss(params, image, target):
        return jnp.sum(weights * model.apply({'params': params}, {
            **fields, 'image': image, 'target': target}, method='loss')[0]['loss'])
      return jax.grad(loss, (0, 1, 2))(params, image, target)

    grads, *pixel_grads = ours(variables['params'], fields['image'], fields['target'])
    image, target = (self.nchw(fields[name]).requires_grad_() for name in ('image', 'target'))
    visible = self.torch.tensor(fields['visible'], dtype=self.torch.int64)
    losses = module.loss(module.decode(module.encode(image, visible), visible), target, visible,
                         normalize)
    (self.torch.tensor(weights) * losses).sum().backward()
    for found, theirs in zip(pixel_grads, (image, target)):
      close(np.asarray(found), np.moveaxis(theirs.grad.numpy(), 1, -1))
    theirs = {name: parameter.grad.numpy() for name, parameter in module.named_parameters()
              if parameter.requires_grad}
    names, found = mae_keys.Names('mae', '', TINY[1]), {}
    for path, leaf in zip(surgery.paths({'params': grads}), jax.tree.leaves(grads)):
      found |= names.to_file(path, np.asarray(leaf))
    self.assertSameElements(found, theirs)
    for name, value in found.items():
      if name.endswith('qkv.bias'):  # keys' biases cancel in the softmax: nothing but rounding there
        width = len(value) // 3
        self.assertLess(np.abs(value[width:2 * width]).max(), 1e-5 * np.abs(value).max())
      close(value, theirs[name], name)

  def transformers_module(self, size, normalize, keep):
    transformers = pytest.importorskip('transformers', reason='extra `parity`')
    side, patch, width, depth, heads, decoder_width, decoder_depth, decoder_heads = size
    number = (side // patch)**2
    config = transformers.ViTMAEConfig(
        image_size=side, patch_size=patch, hidden_size=width, intermediate_size=4 * width,
        num_hidden_layers=depth, num_attention_heads=heads, decoder_hidden_size=decoder_width,
        decoder_intermediate_size=4 * decoder_width, decoder_num_hidden_layers=decoder_depth,
        decoder_num_attention_heads=decoder_heads, norm_pix_loss=normalize, layer_norm_eps=1e-6,
        mask_ratio=1 - (keep + 0.5) / number)
    module = self.randomise(transformers.ViTMAEForPreTraining(config).eval())
    # Version 5.23 leaves the tables of a new model at zero; its published files hold them.
    tables = ((module.vit.embeddings.position_embeddings, width),
              (module.decoder.decoder_pos_embed, decoder_width))
    with self.torch.no_grad():
      for parameter, size in tables:
        parameter.copy_(self.torch.tensor(self.twins.sincos(side // patch, size)))
    return module

  def compare(self, module, variables, spec, fields, normalize):
    """Latent, prediction and loss of transformers, told our visible patches by its noise."""
    batch, keep = fields['visible'].shape
    number = (spec.image_size // spec.model_args['patch'])**2
    noise = np.ones((batch, number), np.float32)
    np.put_along_axis(noise, fields['visible'], np.arange(keep, dtype='f') / number, axis=1)
    image, noise = self.nchw(fields['image']), self.torch.tensor(noise)
    with self.torch.no_grad():
      theirs = module(pixel_values=image, noise=noise)
      expected = module.vit(image, noise=noise).last_hidden_state
      picture = module.unpatchify(theirs.logits)

    model = models.get(spec.model, **spec.model_args, normalize_targets=normalize)

    @jax.jit
    def ours(variables):
      inputs = {'image': fields['image'], 'visible': fields['visible']}
      latent = model.apply(variables, inputs, method='encode')[0]['latent']
      prediction = model.apply(variables, {**inputs, 'latent': latent}, method='decode')[0]['image']
      return latent, prediction, model.apply(variables, inputs, method='loss')[0]['loss'].mean()

    latent, prediction, loss = ours(variables)
    self.assertEqual(latent.shape, tuple(expected.shape))
    close(latent, expected)
    close(prediction, np.moveaxis(picture.numpy(), 1, -1))
    close(loss, theirs.loss)

  @parameterized.named_parameters(('tiny', TINY, 3, 5, False), ('tiny_normalized', TINY, 3, 5, True),
                                  ('vit_b', VIT_B, 2, 49, False))
  def test_transformers(self, size, batch, keep, normalize):
    module, fields = self.transformers_module(size, normalize, keep), fields_of(size, batch, keep)
    pytest.importorskip('safetensors', reason='extra `convert`')
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    module.save_pretrained(folder / 'original')
    source = folder / 'original' / 'model.safetensors'
    widths = {'head_width': size[2] // size[4], 'decoder_head_width': size[5] // size[7]}
    variables, spec = convert.load(source, **widths)
    self.assertEqual(spec.scheme, 'transformers_5_file')
    in_memory, second = convert.load({name: value.detach().numpy()
                                      for name, value in module.state_dict().items()}, **widths)
    self.assertEqual((second.scheme, second.model_args), ('transformers_5', spec.model_args))
    jax.tree.map(np.testing.assert_array_equal, in_memory, variables)
    self.compare(module, variables, spec, fields, normalize)
    if size is VIT_B:
      return

    rng = np.random.default_rng(2)
    changed = jax.tree.map(lambda leaf: leaf * rng.uniform(0.9, 1.1, leaf.shape).astype('f'),
                           variables)
    target = folder / 'changed'
    target.mkdir()
    names = convert.save(target / 'model.safetensors', changed, like=source)
    self.assertLen(names, len(convert.read(source)) - 2)  # but for the position tables
    (target / 'config.json').write_bytes((source.parent / 'config.json').read_bytes())
    back = type(module).from_pretrained(target).eval()
    self.compare(back, changed, spec, fields, normalize)
    with self.assertRaises(AssertionError):
      self.compare(module, changed, spec, fields, normalize)  # the change can be seen

    from safetensors import numpy as safetensors
    older, tensors = mae_keys.Names('transformers', '', size[1]), convert.read(source)
    renamed = {name: tensors[name] for name in older.tables()}
    for path, leaf in zip(surgery.paths(variables), jax.tree.leaves(variables)):
      renamed |= {name: np.ascontiguousarray(value)
                  for name, value in older.to_file(path, leaf).items()}
    safetensors.save_file(renamed, target / 'model.safetensors', {'format': 'pt'})
    back = type(module).from_pretrained(target).state_dict()
    for name, value in module.state_dict().items():
      self.assertTrue(self.torch.equal(back[name], value), name)

  def test_a_training_file_of_the_release(self):
    """`{'model': state_dict}` of PyTorch: read, and written back as it was but for what changed."""
    torch, module = self.torch, self.twin(TINY)
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    source, target = folder / 'a.pth', folder / 'b.pth'
    torch.save({'model': module.state_dict()}, source)
    variables, spec = convert.load(source, head_width=16, decoder_head_width=16)
    self.assertEqual((spec.scheme, spec.image_size, spec.absent), ('mae', 16, ()))
    variables['params']['encoder']['cls_token'] += 1
    self.assertEqual(convert.save(target, variables, like=source), ('cls_token',))
    saved = torch.load(target, weights_only=True)['model']
    self.assertEqual(list(saved), list(module.state_dict()))
    for name, value in module.state_dict().items():
      self.assertTrue(torch.equal(saved[name], value + 1 if name == 'cls_token' else value), name)


if __name__ == '__main__':
  absltest.main()
