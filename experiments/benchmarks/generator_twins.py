"""The generators of `unlearn_jax.models` in PyTorch, written from the papers, for parity and timing.

Parameters carry the names of the releases, which `models.mae_keys`, `mage_keys` and `palette_keys`
know. Whatever a family draws (masks, noise, levels) is told to a twin. Which patches are visible is
int64 [B, K], as many in every row.
"""

import math

import numpy as np

try:
  import torch
except ImportError as error:
  raise ImportError('the twins need PyTorch: pip install "unlearn-jax[parity]"') from error
from torch import nn
from torch.nn import functional


def gathered(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
  """Rows `places` [B, K] of x [B, N, D], or entries of x [B, N]."""
  if x.ndim == 2:
    return x.gather(1, places)
  return x.gather(1, places[:, :, None].expand(-1, -1, x.shape[2]))


def scattered(full: torch.Tensor, places: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
  """`full` [B, N, D] with `rows` [B, K, D] at `places`."""
  return full.scatter(1, places[:, :, None].expand_as(rows), rows)


def hidden(visible: torch.Tensor, number: int) -> torch.Tensor:
  """Bool [B, N], whatever is not visible."""
  return torch.ones(len(visible), number, dtype=torch.bool).scatter(1, visible, False)


class _Block(nn.Module):
  """A block of ViT."""

  def __init__(self, width: int, heads: int):
    super().__init__()
    self.heads = heads
    self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
    self.attn = nn.ModuleDict({'qkv': nn.Linear(width, 3 * width), 'proj': nn.Linear(width, width)})
    self.mlp = nn.ModuleDict({'fc1': nn.Linear(width, 4 * width), 'fc2': nn.Linear(4 * width, width)})

  def forward(self, x):
    batch, tokens, width = x.shape
    qkv = self.attn['qkv'](self.norm1(x)).split(width, dim=2)
    q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in qkv)
    weights = torch.softmax(q @ k.transpose(2, 3) / (width / self.heads)**0.5, dim=3)
    x = x + self.attn['proj']((weights @ v).transpose(1, 2).reshape(batch, tokens, width))
    return x + self.mlp['fc2'](functional.gelu(self.mlp['fc1'](self.norm2(x))))


def sincos(grid: int, width: int) -> np.ndarray:
  """MAE's fixed positions, entry by entry: [1, 1 + grid^2, width], the class token's zero."""
  rows = np.zeros((1, 1 + grid**2, width))
  for place in range(grid**2):
    row, column = divmod(place, grid)
    for offset, where in ((0, column), (width // 2, row)):
      for i in range(width // 4):
        angle = where / 10000**(i / (width / 4))
        rows[0, 1 + place, offset + i] = np.sin(angle)
        rows[0, 1 + place, offset + width // 4 + i] = np.cos(angle)
  return rows.astype(np.float32)


class MAE(nn.Module):
  """A masked autoencoder (He et al. 2022) of `side` x `side` pixels."""

  def __init__(self, side: int, patch: int, width: int, depth: int, heads: int, decoder_width: int,
               decoder_depth: int, decoder_heads: int):
    super().__init__()
    self.patch, self.grid = patch, side // patch
    table = lambda width: nn.Parameter(torch.tensor(sincos(self.grid, width)), requires_grad=False)
    self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
    self.pos_embed, self.decoder_pos_embed = table(width), table(decoder_width)
    self.patch_embed = nn.ModuleDict({'proj': nn.Conv2d(3, width, patch, patch)})
    self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
    self.norm = nn.LayerNorm(width, eps=1e-6)
    self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
    self.decoder_embed = nn.Linear(width, decoder_width)
    self.decoder_blocks = nn.ModuleList(
        _Block(decoder_width, decoder_heads) for _ in range(decoder_depth))
    self.decoder_norm = nn.LayerNorm(decoder_width, eps=1e-6)
    self.decoder_pred = nn.Linear(decoder_width, patch**2 * 3)

  def encode(self, image, visible):
    x = self.patch_embed['proj'](image).flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]
    token = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
    x = torch.cat([token, gathered(x, visible)], dim=1)
    for block in self.blocks:
      x = block(x)
    return self.norm(x)

  def decode(self, latent, visible):
    x = self.decoder_embed(latent)
    full = scattered(self.mask_token.expand(len(x), self.grid**2, -1), visible, x[:, 1:])
    x = torch.cat([x[:, :1], full], dim=1) + self.decoder_pos_embed
    for block in self.decoder_blocks:
      x = block(x)
    return self.decoder_pred(self.decoder_norm(x))[:, 1:]

  def cut(self, image):
    """[B, C, H, W] -> [B, N, P*P*C]."""
    windows = image.unfold(2, self.patch, self.patch).unfold(3, self.patch, self.patch)
    return windows.permute(0, 2, 3, 4, 5, 1).reshape(len(image), self.grid**2, -1)

  def loss(self, prediction, target, visible, normalize=False):
    """Mean square over what is hidden, [B]."""
    wanted = self.cut(target)
    if normalize:
      wanted = (wanted - wanted.mean(2, keepdim=True)) / torch.sqrt(
          wanted.var(2, keepdim=True) + 1e-6)
    gone = hidden(visible, self.grid**2)
    error = ((prediction - wanted)**2).mean(dim=2) * gone
    return error.sum(dim=1) / gone.sum(dim=1)


def vqgan(*, width, multipliers, blocks, latent, codes, groups):
  """MAGE's tokenizer: `latents`, `tokens`, `decode`."""

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
      h = self.conv1(functional.silu(self.norm1(x)))
      h = self.conv2(functional.silu(self.norm2(h)))
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
        x = functional.avg_pool2d(x, 2) if number else x
        for block in each['block']:
          x = block(x)
      x = half['mid']['block_2'](half['mid']['block_1'](x))
      return half['conv_out'](functional.silu(half['norm_out'](x)))

    def tokens(self, image):
      z, codes = self.latents(image).movedim(1, 3), self.quantize['embedding'].weight
      apart = (codes**2).sum(1) - 2 * z @ codes.T  # but for |z|^2
      return apart.argmin(-1).flatten(1)

    def decode(self, tokens):  # [B, h, w]
      half, x = self.decoder, self.quantize['embedding'](tokens).movedim(3, 1)
      x = half['mid']['block_2'](half['mid']['block_1'](half['conv_in'](x)))
      for number in reversed(range(len(widths))):
        for block in half['up'][number]['block']:
          x = block(x)
        if number:
          x = functional.interpolate(x, scale_factor=2, mode='nearest')
          x = half['up'][number]['upsample']['conv'](x)
      return half['conv_out'](functional.silu(half['norm_out'](x)))

  return Twin()


class _Head(nn.Module):
  """MAGE's: compares with words."""

  def __init__(self, width: int, decoder_width: int, words: int):
    super().__init__()
    self.fc, self.ln = nn.Linear(decoder_width, width), nn.LayerNorm(width, eps=1e-5)
    self.bias = nn.Parameter(torch.zeros(1, 1, words))

  def forward(self, x, words):
    return self.ln(functional.gelu(self.fc(x))) @ words.T + self.bias


class MAGE(nn.Module):
  """MAGE (Li et al. 2023) over a `vqgan`, whose arguments it takes; `masked` are bool [B, K]."""

  def __init__(self, *, image_size: int, tokenizer, width: int, depth: int, heads: int,
               decoder_width: int, decoder_depth: int, decoder_heads: int, classes: int,
               class_token: int):
    super().__init__()
    self.codes, self.masks = tokenizer['codes'], tokenizer['codes'] + classes
    self.class_word = self.codes + class_token
    self.number = (image_size // 2**(len(tokenizer['multipliers']) - 1))**2
    self.vqgan = vqgan(**tokenizer)
    self.token_emb = nn.ModuleDict({
        'word_embeddings': nn.Embedding(self.masks + 1, width),
        'position_embeddings': nn.Embedding(1 + self.number, width),
        'LayerNorm': nn.LayerNorm(width, eps=1e-6)})
    self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
    self.norm = nn.LayerNorm(width, eps=1e-6)
    self.decoder_embed = nn.Linear(width, decoder_width)
    self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, 1 + self.number, decoder_width))
    self.decoder_blocks = nn.ModuleList(
        _Block(decoder_width, decoder_heads) for _ in range(decoder_depth))
    self.decoder_norm = nn.LayerNorm(decoder_width, eps=1e-6)
    self.mlm_layer = _Head(width, decoder_width, self.masks + 1)

  def encode(self, tokens, visible, masked):
    """[B, 1 + K, width], in the order of `visible`."""
    ids = gathered(tokens, visible).masked_fill(masked, self.masks)
    ids = functional.pad(ids, (1, 0), value=self.class_word)
    places = functional.pad(visible + 1, (1, 0), value=0)
    x = self.token_emb['word_embeddings'](ids) + self.token_emb['position_embeddings'](places)
    x = self.token_emb['LayerNorm'](x)
    for block in self.blocks:
      x = block(x)
    return self.norm(x)

  def logits(self, latent, visible, masked):
    x = self.decoder_embed(latent)
    token = x[:, :1]
    seen = torch.where(masked[:, :, None], token, x[:, 1:])
    x = torch.cat([token, scattered(token.expand(-1, self.number, -1), visible, seen)], dim=1)
    x = x + self.decoder_pos_embed_learned
    for block in self.decoder_blocks:
      x = block(x)
    words = self.token_emb['word_embeddings'].weight.detach()
    return self.mlm_layer(self.decoder_norm(x), words)[:, 1:, :self.codes]

  def loss(self, logits, tokens, visible, masked):
    """Smoothed cross entropy of what is hidden or masked, [B]."""
    gone = hidden(visible, self.number).scatter(1, visible, masked)
    losses = functional.cross_entropy(logits.transpose(1, 2), tokens, reduction='none',
                                      label_smoothing=0.1)
    return (losses * gone).sum(1) / gone.sum(1)


def palette_plan(size):
  """Blocks in order: (name, channels in, channels out, change of resolution, what is put beside x)."""
  width, multipliers, blocks, *_ = size
  outputs = [width * multiplier for multiplier in multipliers]
  down, up, kept, x = [], [], [outputs[0]], outputs[0]
  for level, out in enumerate(outputs):
    for change in [0] * blocks + [-1] * (level < len(outputs) - 1):
      down.append((f'input_blocks.{len(kept)}.0', x, out, change, 0))
      kept.append(out)
      x = out
  middle, number = x, 0
  for level, out in reversed(list(enumerate(outputs))):
    for index in range(blocks + 1):
      side = kept.pop()
      up.append((f'output_blocks.{number}.0', x + side, out, 0, side))
      x = out
      if level and index == blocks:
        up.append((f'output_blocks.{number}.1', x, x, 1, 0))
      number += 1
  return down, middle, up


class Palette:
  """Palette's network over a dict of tensors; size: width, multipliers, blocks, groups, head width."""

  def __init__(self, tensors, size):
    self.tensors, self.size = tensors, size

  def parameters(self, name):
    return self.tensors[f'{name}.weight'], self.tensors[f'{name}.bias']

  def norm(self, name, x):
    return functional.group_norm(x, self.size[3], *self.parameters(name), eps=1e-5)

  def block(self, spec, x, condition):
    name, before, out, change, _ = spec
    h = functional.silu(self.norm(f'{name}.in_layers.0', x))
    if change > 0:
      h, x = (functional.interpolate(y, scale_factor=2, mode='nearest') for y in (h, x))
    elif change < 0:
      h, x = (functional.avg_pool2d(y, 2) for y in (h, x))
    h = functional.conv2d(h, *self.parameters(f'{name}.in_layers.2'), padding=1)
    affine = functional.linear(functional.silu(condition), *self.parameters(f'{name}.emb_layers.1'))
    h = self.norm(f'{name}.out_layers.0', h)
    h = h * (1 + affine[:, :out, None, None]) + affine[:, out:, None, None]
    h = functional.conv2d(functional.silu(h), *self.parameters(f'{name}.out_layers.3'), padding=1)
    if before != out:
      x = functional.conv2d(x, *self.parameters(f'{name}.skip_connection'))
    return x + h

  def attention(self, name, x):
    """Channels of the projection: by head, then queries, keys and values of the head."""
    batch, width, pixels = len(x), x.shape[1], x.shape[2] * x.shape[3]
    each = self.size[4]
    h = self.norm(f'{name}.norm', x).reshape(batch, width, pixels)
    h = functional.conv1d(h, *self.parameters(f'{name}.qkv'))
    heads = []
    for part in h.split(3 * each, dim=1):
      q, k, v = part.split(each, dim=1)  # [B, d, pixels]
      weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(each), dim=2)
      heads.append(v @ weights.transpose(1, 2))
    h = functional.conv1d(torch.cat(heads, dim=1), *self.parameters(f'{name}.proj_out'))
    return x + h.reshape(x.shape)

  def condition(self, gamma):
    half = self.size[0] // 2
    angles = gamma[:, None] * torch.exp(-math.log(1e4) * torch.arange(half) / half)
    condition = torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)
    condition = functional.silu(functional.linear(condition, *self.parameters('cond_embed.0')))
    return functional.linear(condition, *self.parameters('cond_embed.2'))

  def encode(self, x, gamma):
    """The stages, [B, C, H, W] each."""
    condition, (down, middle, _) = self.condition(gamma), palette_plan(self.size)
    x = functional.conv2d(x, *self.parameters('input_blocks.0.0'), padding=1)
    stages = [x]
    for spec in down:
      stages.append(self.block(spec, stages[-1], condition))
    x = self.block(('middle_block.0', middle, middle, 0, 0), stages[-1], condition)
    x = self.attention('middle_block.1', x)
    x = self.block(('middle_block.2', middle, middle, 0, 0), x, condition)
    return [*stages, x]

  def decode(self, stages, gamma):
    """The predicted noise."""
    condition, up, (*rest, x) = self.condition(gamma), palette_plan(self.size)[2], stages
    for spec in up:
      if spec[4]:
        x = torch.cat([x, rest.pop()], dim=1)
      x = self.block(spec, x, condition)
    x = functional.silu(self.norm('out.0', x))
    return functional.conv2d(x, *self.parameters('out.2'), padding=1)
