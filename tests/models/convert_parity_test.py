"""Checkpoints to and from PyTorch and transformers themselves; by `make test-slow`."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import pytest

from unlearn_jax import models
from unlearn_jax.models import convert

pytestmark = pytest.mark.slow
TINY = {'vision_config': {'hidden_size': 128, 'intermediate_size': 512, 'num_hidden_layers': 2,
                          'num_attention_heads': 2, 'image_size': 12, 'patch_size': 4},
        'text_config': {'hidden_size': 64, 'intermediate_size': 256, 'num_hidden_layers': 3,
                        'num_attention_heads': 1, 'vocab_size': 50, 'bos_token_id': 48,
                        'eos_token_id': 49, 'max_position_embeddings': 14}, 'projection_dim': 32}
B_32 = {}  # what the configuration of transformers describes when it is told nothing


class ParityTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.torch = pytest.importorskip('torch', reason='extra `parity`; make test-slow installs it')
    pytest.importorskip('safetensors', reason='extra `convert`')
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def module(self, config, activation='quick_gelu'):
    """A CLIP of transformers with random weights; none of them zero, so that each one counts."""
    transformers = pytest.importorskip('transformers', reason='extra `parity`')
    self.torch.manual_seed(0)
    towers = {name: {**config.get(name, {}), 'hidden_act': activation}
              for name in ('vision_config', 'text_config')}
    module = transformers.CLIPModel(transformers.CLIPConfig(**{**config, **towers})).eval()
    with self.torch.no_grad():
      for parameter in module.parameters():
        if parameter.ndim == 1:
          parameter += 0.1 * self.torch.randn_like(parameter)
    return module

  def compare(self, module, variables, spec):
    """Embeddings and logits of one batch, relative to the largest entry."""
    rng = np.random.default_rng(1)
    context, highest = spec.model_args['context'], spec.model_args['vocabulary'] - 1
    text = np.zeros((3, context), np.int32)
    for row, count in enumerate((3, context // 2, context)):
      text[row, :count] = [highest - 1, *rng.integers(1, highest - 1, count - 2), highest]
    image = rng.normal(size=(3, spec.image_size, spec.image_size, 3)).astype(np.float32)
    with self.torch.no_grad():
      theirs = module(pixel_values=self.torch.tensor(np.moveaxis(image, -1, 1).copy()),
                      input_ids=self.torch.tensor(text, dtype=self.torch.int64))
    model = models.get('clip', **spec.model_args)
    ours = jax.jit(lambda v: model.apply(v, {'image': image, 'text': text})[0])(variables)
    logits = np.exp(ours['logit_scale']) * ours['image_embedding'] @ ours['text_embedding'].T
    for found, expected in ((ours['image_embedding'], theirs.image_embeds),
                            (ours['text_embedding'], theirs.text_embeds),
                            (logits, theirs.logits_per_image)):
      expected = expected.numpy()
      self.assertLess(np.abs(found - expected).max(), 1e-4 * np.abs(expected).max())
    self.assertGreater(float(theirs.text_embeds.std(0).max()), 1e-3)  # captions do differ

  @parameterized.named_parameters(
      ('tiny', TINY, 'openai', 'quick_gelu'), ('tiny_gelu', TINY, 'open_clip', 'gelu'),
      ('vit_b_32', B_32, 'openai', 'quick_gelu'))
  def test_transformers(self, config, layout, activation):
    module = self.module(config, activation)
    module.save_pretrained(self.folder / 'original')
    source = self.folder / 'original' / 'model.safetensors'
    variables, spec = convert.load(source, layout=layout)
    if config is B_32:
      preset = models.get('clip_vit_b_32')
      self.assertEqual(jax.tree.map(np.shape, variables), jax.tree.map(np.shape, jax.eval_shape(
          lambda: preset.init(jax.random.key(0), {'image': np.zeros((1, 224, 224, 3)),
                                                  'text': np.zeros((1, 77), np.int32)}))))
    self.compare(module, variables, spec)
    if config is TINY:
      other = 'openai' if layout == 'open_clip' else 'open_clip'
      with self.assertRaises(AssertionError):  # the activation matters, and no name tells it
        self.compare(module, *convert.load(source, layout=other))

    rng = np.random.default_rng(2)
    changed = jax.tree.map(lambda leaf: leaf * rng.uniform(0.9, 1.1, leaf.shape).astype('f'),
                           variables)
    target = self.folder / 'changed'
    target.mkdir()
    names = convert.save(target / 'model.safetensors', changed, like=source)
    self.assertLen(names, len(convert.read(source)))
    (target / 'config.json').write_bytes((source.parent / 'config.json').read_bytes())
    back = type(module).from_pretrained(target).eval()
    self.compare(back, changed, spec)
    with self.assertRaises(AssertionError):
      self.compare(module, changed, spec)  # the change is large enough to be seen

  def openai_module(self):
    """Parameters and buffers under OpenAI's names, float16 where its convert_weights makes it so."""
    torch = self.torch

    class Attention(torch.nn.MultiheadAttention):  # its own forward cannot be scripted everywhere

      def forward(self, x):
        return self.out_proj(x)

    def block(width):
      module = torch.nn.Module()
      module.attn, module.ln_1 = Attention(width, 1), torch.nn.LayerNorm(width)
      module.mlp, module.ln_2 = torch.nn.Module(), torch.nn.LayerNorm(width)
      module.mlp.c_fc = torch.nn.Linear(width, 4 * width)
      module.mlp.c_proj = torch.nn.Linear(4 * width, width)
      module.attn_mask = torch.full((14, 14), -torch.inf).triu(1)
      return module

    def transformer(width, depth):
      module = torch.nn.Module()
      module.resblocks = torch.nn.Sequential(*(block(width) for _ in range(depth)))
      return module

    class Clip(torch.nn.Module):

      def forward(self, x):
        return x @ self.text_projection.float()

    def random(*shape):
      return torch.nn.Parameter(torch.randn(shape))

    torch.manual_seed(0)
    module, module.visual = Clip(), torch.nn.Module()
    visual = module.visual
    visual.conv1 = torch.nn.Conv2d(3, 128, 4, 4, bias=False)
    visual.class_embedding, visual.positional_embedding = random(128), random(10, 128)
    visual.ln_pre, visual.ln_post = torch.nn.LayerNorm(128), torch.nn.LayerNorm(128)
    visual.transformer, module.transformer = transformer(128, 2), transformer(64, 1)
    visual.proj, module.text_projection = random(128, 32), random(64, 32)
    module.token_embedding = torch.nn.Embedding(50, 64)
    module.positional_embedding, module.ln_final = random(14, 64), torch.nn.LayerNorm(64)
    module.logit_scale = torch.nn.Parameter(torch.tensor(4.6))
    for name, value in (('input_resolution', 12), ('context_length', 14), ('vocab_size', 50)):
      module.register_buffer(name, torch.tensor(value))
    for name, parameter in module.named_parameters():
      if parameter.ndim > 1 and 'embedding' not in name:
        parameter.data = parameter.data.half()
    return module

  @parameterized.parameters('state_dict', 'torchscript')
  def test_pytorch(self, kind):
    torch, module = self.torch, self.openai_module()
    source, target = self.folder / 'a.pt', self.folder / 'b.pt'
    if kind == 'state_dict':
      torch.save(module.state_dict(), source)
      def load(path):
        return torch.load(path, weights_only=True)
    else:
      torch.jit.trace(module, torch.ones(1, 64), check_trace=False).save(source)
      def load(path):
        return torch.jit.load(path).state_dict()
    variables, spec = convert.load(source)
    self.assertEqual((spec.model_args['layout'], spec.image_size), ('openai', 12))
    found = convert.read(source)
    for name, value in module.state_dict().items():
      np.testing.assert_array_equal(found[name], value.numpy(), strict=True)

    variables['params']['text']['text_projection'] += 1
    self.assertEqual(convert.save(target, variables, like=source), ('text_projection',))
    saved = load(target)
    self.assertSameElements(saved, module.state_dict())
    for name, value in module.state_dict().items():
      if name == 'text_projection':
        value = (value.float() + 1).half()
      self.assertEqual(saved[name].dtype, value.dtype)
      self.assertTrue(torch.equal(saved[name], value), name)
    if kind == 'torchscript':  # and its code still runs
      self.assertTrue(torch.equal(torch.jit.load(target)(torch.ones(2, 64)),
                                  torch.ones(2, 64) @ saved['text_projection'].float()))


if __name__ == '__main__':
  absltest.main()
