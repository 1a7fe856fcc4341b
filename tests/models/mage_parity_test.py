"""MAGE and its VQ-GAN beside PyTorch twins; by `make test-slow`."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def close(ours, theirs, name='', tolerance=1e-4):
  """Agreement relative to the largest entry of an array: float32 sums cannot do it entry by entry."""
  theirs = np.asarray(theirs)
  np.testing.assert_array_less(
      np.abs(ours - theirs).max(), tolerance * max(np.abs(theirs).max(), 1e-6), err_msg=name)


def tokenizer_twin(torch, *, width, multipliers, blocks, latent, codes, groups):
  """The VQ-GAN by its description, under the names of the release's state dict."""
  nn = torch.nn

  def norm(channels):
    return nn.GroupNorm(groups, channels, eps=1e-6)

  class Block(nn.Module):

    def __init__(self, before, after):
      super().__init__()
      self.norm1, self.norm2 = norm(before), norm(after)
      self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
      self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
      if before != after:
        self.nin_shortcut = nn.Conv2d(after, after, 1, bias=False)

    def forward(self, x):
      h = self.conv1(nn.functional.silu(self.norm1(x)))
      h = self.conv2(nn.functional.silu(self.norm2(h)))
      return h + (self.nin_shortcut(h) if hasattr(self, 'nin_shortcut') else x)

  def level(before, after, **more):
    return nn.ModuleDict({'block': nn.ModuleList(
        Block(before if number == 0 else after, after) for number in range(blocks)), **more})

  widths = [width * each for each in multipliers]
  middle = lambda: nn.ModuleDict({f'block_{i}': Block(widths[-1], widths[-1]) for i in (1, 2)})

  class Twin(nn.Module):

    def __init__(self):
      super().__init__()
      before = [widths[0], *widths]
      self.encoder = nn.ModuleDict({
          'conv_in': nn.Conv2d(3, widths[0], 3, padding=1, bias=False),
          'down': nn.ModuleList(level(*pair) for pair in zip(before, widths)), 'mid': middle(),
          'norm_out': norm(widths[-1]), 'conv_out': nn.Conv2d(widths[-1], latent, 1)})
      after = [*widths[1:], widths[-1]]
      up = []
      for number, pair in enumerate(zip(after, widths)):
        more = {'upsample': nn.ModuleDict({'conv': nn.Conv2d(pair[1], pair[1], 3, padding=1)})}
        up.append(level(*pair, **(more if number else {})))
      self.decoder = nn.ModuleDict({
          'conv_in': nn.Conv2d(latent, widths[-1], 3, padding=1), 'mid': middle(),
          'up': nn.ModuleList(up), 'norm_out': norm(widths[0]),
          'conv_out': nn.Conv2d(widths[0], 3, 3, padding=1)})
      self.quantize = nn.ModuleDict({'embedding': nn.Embedding(codes, latent)})

    def latents(self, image):
      half, x = self.encoder, self.encoder['conv_in'](image)
      for number, each in enumerate(half['down']):
        x = nn.functional.avg_pool2d(x, 2) if number else x
        for block in each['block']:
          x = block(x)
      x = half['mid']['block_2'](half['mid']['block_1'](x))
      return half['conv_out'](nn.functional.silu(half['norm_out'](x)))

    def tokens(self, image):
      z = self.latents(image).movedim(1, 3)  # [B, h, w, D]
      apart = ((z[..., None, :] - self.quantize['embedding'].weight)**2).sum(-1)
      return apart.argmin(-1).flatten(1)

    def decode(self, tokens):  # [B, h, w]
      half, x = self.decoder, self.quantize['embedding'](tokens).movedim(3, 1)
      x = half['mid']['block_2'](half['mid']['block_1'](half['conv_in'](x)))
      for number in reversed(range(len(widths))):
        for block in half['up'][number]['block']:
          x = block(x)
        if number:
          x = nn.functional.interpolate(x, scale_factor=2, mode='nearest')
          x = half['up'][number]['upsample']['conv'](x)
      return half['conv_out'](nn.functional.silu(half['norm_out'](x)))

  return Twin()


def twin(torch, *, image_size, vqgan, width, depth, heads, decoder_width, decoder_depth,
         decoder_heads, classes, class_token):
  """The whole network by its description, under the names of the release's state dict."""
  nn, codes = torch.nn, vqgan['codes']
  number = (image_size // 2**(len(vqgan['multipliers']) - 1))**2

  class Block(nn.Module):

    def __init__(self, width, heads):
      super().__init__()
      self.heads = heads
      self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
      self.attn = nn.ModuleDict({'qkv': nn.Linear(width, 3 * width),
                                 'proj': nn.Linear(width, width)})
      self.mlp = nn.ModuleDict({'fc1': nn.Linear(width, 4 * width),
                                'fc2': nn.Linear(4 * width, width)})

    def forward(self, x):
      batch, tokens, width = x.shape
      qkv = self.attn['qkv'](self.norm1(x)).split(width, dim=2)
      q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in qkv)
      weights = torch.softmax(q @ k.transpose(2, 3) / (width / self.heads)**0.5, dim=3)
      x = x + self.attn['proj']((weights @ v).transpose(1, 2).reshape(batch, tokens, width))
      return x + self.mlp['fc2'](nn.functional.gelu(self.mlp['fc1'](self.norm2(x))))

  class Head(nn.Module):

    def __init__(self):
      super().__init__()
      self.fc, self.ln = nn.Linear(decoder_width, width), nn.LayerNorm(width, eps=1e-5)
      self.bias = nn.Parameter(torch.zeros(1, 1, codes + classes + 1))

    def forward(self, x, words):
      return self.ln(nn.functional.gelu(self.fc(x))) @ words.T + self.bias

  class Twin(nn.Module):

    def __init__(self):
      super().__init__()
      self.vqgan = tokenizer_twin(torch, **vqgan)
      self.token_emb = nn.ModuleDict({
          'word_embeddings': nn.Embedding(codes + classes + 1, width),
          'position_embeddings': nn.Embedding(1 + number, width),
          'LayerNorm': nn.LayerNorm(width, eps=1e-6)})
      self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
      self.norm = nn.LayerNorm(width, eps=1e-6)
      self.decoder_embed = nn.Linear(width, decoder_width)
      self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, 1 + number, decoder_width))
      self.decoder_blocks = nn.ModuleList(
          Block(decoder_width, decoder_heads) for _ in range(decoder_depth))
      self.decoder_norm = nn.LayerNorm(decoder_width, eps=1e-6)
      self.mlm_layer = Head()

    def encode(self, tokens, dropped, masked):
      """Over all places in order, with boolean masks [B, N]; -> one sequence per row."""
      ids = tokens.masked_fill(masked, codes + classes)
      ids = torch.cat([torch.full((len(ids), 1), codes + class_token), ids], dim=1)
      x = (self.token_emb['word_embeddings'](ids)
           + self.token_emb['position_embeddings'](torch.arange(1 + number)))
      x = self.token_emb['LayerNorm'](x)
      keep = torch.cat([torch.ones(len(ids), 1, dtype=torch.bool), ~dropped], dim=1)
      x = torch.stack([row[kept] for row, kept in zip(x, keep)])
      for block in self.blocks:
        x = block(x)
      return self.norm(x), keep

    def logits(self, latent, keep, masked):
      x = self.decoder_embed(latent)
      rows = []
      for row, kept, hidden in zip(x, keep, masked):
        full = row[:1].repeat(1 + number, 1)
        full[kept] = row
        full[1:][hidden] = row[0]
        rows.append(full)
      x = torch.stack(rows) + self.decoder_pos_embed_learned
      for block in self.decoder_blocks:
        x = block(x)
      words = self.token_emb['word_embeddings'].weight.detach()
      return self.mlm_layer(self.decoder_norm(x), words)[:, 1:, :codes]

    def loss(self, logits, tokens, gone):
      losses = nn.functional.cross_entropy(logits.transpose(1, 2), tokens, reduction='none',
                                           label_smoothing=0.1)
      return (losses * gone).sum(1) / gone.sum(1)

  return Twin()


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
    module = self.randomise(twin(torch, **arguments), self.nchw(other))
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
    dropped = np.ones((batch, number), bool)
    np.put_along_axis(dropped, visible.astype(int), False, 1)
    masked = dropped.copy()
    np.put_along_axis(masked, visible.astype(int), extra, 1)
    dropped, masked = torch.tensor(dropped), torch.tensor(masked)
    with torch.no_grad():
      tokenizer = module.vqgan
      close(found['latent'], tokenizer.latents(self.nchw(image)).movedim(1, 3))
      tokens, goal = (tokenizer.tokens(self.nchw(each)) for each in (image, target))
      np.testing.assert_array_equal(found['tokens'].reshape(batch, -1), tokens)
      self.assertGreater(len(np.unique(tokens)), 10)
      close(found['decoded'], tokenizer.decode(
          tokens.unflatten(1, found['tokens'].shape[1:])).movedim(1, 3))
      latent, keep = module.encode(tokens, dropped, masked)
      order = np.argsort(visible, axis=1)  # the twin's are in the order of places
      close(np.take_along_axis(np.asarray(found['encoded'])[:, 1:], order[:, :, None], 1),
            latent[:, 1:])
      close(found['encoded'][:, 0], latent[:, 0])
      logits = module.logits(latent, keep, masked)
      close(found['loss'], module.loss(logits, goal, masked))
      self.assertGreater(float(logits.std()), 0.1)

  def test_gradients(self):
    torch, rng = self.torch, np.random.default_rng(0)
    image, other = rng.random((2, 2, 32, 32, 3)).astype(np.float32)
    module = self.randomise(twin(torch, **TINY), self.nchw(other))
    visible = np.stack([rng.permutation(64)[:40] for _ in range(2)]).astype('i4')
    fields = {'image': image, 'visible': visible}
    model, names = models.get('mage', **TINY), mage_keys.Names('mage', '')
    variables = self.variables(module, names, model, fields)
    weights = np.array([0.7, -1.3], np.float32)
    slopes = jax.jit(jax.grad(lambda params: jnp.sum(weights * model.apply(
        {'params': params}, fields, method='loss')[0]['loss'])))(variables['params'])
    dropped = np.ones((2, 64), bool)
    np.put_along_axis(dropped, visible.astype(int), False, 1)
    dropped = torch.tensor(dropped)
    tokens = module.vqgan.tokens(self.nchw(image))
    losses = module.loss(module.logits(*module.encode(tokens, dropped, dropped), dropped), tokens,
                         dropped)
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
