"""The networks of `unlearn_jax.models` in PyTorch, written from the papers, for parity and timing.

Parameters carry torchvision's names; `load` copies our variables into a twin. Each function takes
the arguments of the model of its name and returns a `torch.nn.Module` that maps [B, C, H, W] to
logits [B, num_outputs]. The modules keep PyTorch's own initial values: load variables before
comparing. Give them contiguous pictures: PyTorch 2.13 on CPU corrupts its memory in the backward
pass of a ResNet-18 whose pictures are a transposed view of [B, H, W, C].
"""

from collections.abc import Mapping

import jax
import numpy as np

try:
  import torch
except ImportError as error:
  raise ImportError('the twins need PyTorch: pip install "unlearn-jax[parity]"') from error
from torch import nn

_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'mean': 'running_mean', 'var': 'running_var'}


def to_torch(variables: Mapping) -> dict[str, np.ndarray]:
  """Our variables (or gradients of them) under PyTorch's names and in its layouts.

  A path is joined by dots and its leaf renamed (models/resnet.py states the rule); kernels
  [H, W, in, out] become [out, in, H, W], [in, out] become [out, in]. The joint projection of
  `nn.MultiheadAttention` hangs on by an underscore: `in_proj/kernel` is `in_proj_weight`.

  Args:
    variables: `{'params': tree, 'batch_stats': tree}`, either may be missing.

  Returns:
    Name -> array.
  """
  found = {}
  for tree in variables.values():
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
      *parents, last = jax.tree_util.keystr(path, simple=True, separator='/').split('/')
      value = np.array(leaf)  # a copy: PyTorch wants to write
      if last == 'kernel':
        value = value.transpose((3, 2, 0, 1) if value.ndim == 4 else (1, 0))
      name = '.'.join([*parents, _LEAVES.get(last, last)])
      found[name.replace('in_proj.', 'in_proj_')] = np.ascontiguousarray(value)
  return found


def load(module: nn.Module, variables: Mapping) -> nn.Module:
  """Copies our variables into a twin, parameters and batch statistics.

  Args:
    module: a network of this file.
    variables: of the model of the same name and arguments.

  Returns:
    `module`, changed in place.

  Raises:
    RuntimeError: PyTorch's; a name that is missing or superfluous, or another shape.
  """
  state = {name: torch.from_numpy(value) for name, value in to_torch(variables).items()}
  # Steps counted by PyTorch's batch norms alone; their momentum here is fixed.
  counters = {name: value for name, value in module.state_dict().items()
              if name.endswith('num_batches_tracked')}
  module.load_state_dict(counters | state, strict=True)
  return module


def _conv(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
  return nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)


class _BasicBlock(nn.Module):

  def __init__(self, before: int, width: int, stride: int):
    super().__init__()
    self.conv1, self.bn1 = _conv(before, width, 3, stride), nn.BatchNorm2d(width)
    self.conv2, self.bn2 = _conv(width, width, 3), nn.BatchNorm2d(width)
    self.downsample = None
    if stride != 1 or before != width:
      self.downsample = nn.Sequential(_conv(before, width, 1, stride), nn.BatchNorm2d(width))

  def forward(self, x):
    y = torch.relu(self.bn1(self.conv1(x)))
    y = self.bn2(self.conv2(y))
    return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class _ResNet(nn.Module):

  def __init__(self, num_outputs: int, width: int, stem: str):
    super().__init__()
    self.conv1 = _conv(3, width, 7, 2) if stem == 'imagenet' else _conv(3, width, 3)
    self.bn1 = nn.BatchNorm2d(width)
    self.pool = nn.MaxPool2d(3, 2, 1) if stem == 'imagenet' else nn.Identity()
    before = width
    for number in range(4):
      after = width * 2**number
      setattr(self, f'layer{number + 1}', nn.Sequential(
          _BasicBlock(before, after, 2 if number else 1), _BasicBlock(after, after, 1)))
      before = after
    self.fc = nn.Linear(before, num_outputs)

  def forward(self, x):
    x = self.pool(torch.relu(self.bn1(self.conv1(x))))
    x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
    return self.fc(x.mean((2, 3)))


def resnet18(*, num_outputs: int, width: int = 64, stem: str = 'imagenet') -> nn.Module:
  """ResNet-18 (He et al. 2016, table 1) for pictures with 3 channels."""
  return _ResNet(num_outputs, width, stem)


class _DenseLayer(nn.Module):

  def __init__(self, before: int, growth: int):
    super().__init__()
    self.norm1, self.conv1 = nn.BatchNorm2d(before), _conv(before, 4 * growth, 1)
    self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), _conv(4 * growth, growth, 3)

  def forward(self, x):
    y = self.conv1(torch.relu(self.norm1(x)))
    return torch.cat([x, self.conv2(torch.relu(self.norm2(y)))], 1)


class _DenseNet(nn.Module):

  def __init__(self, num_outputs: int, growth: int, stem: str):
    super().__init__()
    channels = 2 * growth
    self.features = nn.Sequential()
    add = self.features.add_module
    add('conv0', _conv(3, channels, 7, 2) if stem == 'imagenet' else _conv(3, channels, 3))
    add('norm0', nn.BatchNorm2d(channels))
    add('relu0', nn.ReLU())
    if stem == 'imagenet':
      add('pool0', nn.MaxPool2d(3, 2, 1))
    for number, layers in enumerate((6, 12, 24, 16), start=1):
      block = nn.Sequential()
      for layer in range(layers):
        block.add_module(f'denselayer{layer + 1}', _DenseLayer(channels + layer * growth, growth))
      add(f'denseblock{number}', block)
      channels += layers * growth
      if number < 4:
        transition = nn.Sequential()
        transition.add_module('norm', nn.BatchNorm2d(channels))
        transition.add_module('relu', nn.ReLU())
        transition.add_module('conv', _conv(channels, channels // 2, 1))
        transition.add_module('pool', nn.AvgPool2d(2))
        add(f'transition{number}', transition)
        channels //= 2
    add('norm5', nn.BatchNorm2d(channels))
    self.classifier = nn.Linear(channels, num_outputs)

  def forward(self, x):
    return self.classifier(torch.relu(self.features(x)).mean((2, 3)))


def densenet121(*, num_outputs: int, growth: int = 32, stem: str = 'imagenet') -> nn.Module:
  """DenseNet-121 (Huang et al. 2017, table 1) for pictures with 3 channels."""
  return _DenseNet(num_outputs, growth, stem)


def _channels(value: float) -> int:
  """To the nearest multiple of 8 that takes away at most a tenth."""
  rounded = max(8, int(value + 4) // 8 * 8)
  return rounded + 8 if rounded < 0.9 * value else rounded


class _SqueezeExcitation(nn.Module):

  def __init__(self, channels: int, squeezed: int):
    super().__init__()
    self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

  def forward(self, x):
    gate = self.fc2(nn.functional.silu(self.fc1(x.mean((2, 3), keepdim=True))))
    return x * torch.sigmoid(gate)


def _conv_norm(before, after, kernel, stride=1, groups=1, act=True) -> nn.Sequential:
  return nn.Sequential(_conv(before, after, kernel, stride, groups), nn.BatchNorm2d(after),
                       *([nn.SiLU()] if act else []))


class _MBConv(nn.Module):

  def __init__(self, before, after, expand, kernel, stride, drop):
    super().__init__()
    wide = _channels(before * expand)
    self.block = nn.Sequential(
        *([_conv_norm(before, wide, 1)] if wide != before else []),
        _conv_norm(wide, wide, kernel, stride, groups=wide),
        _SqueezeExcitation(wide, max(1, before // 4)),
        _conv_norm(wide, after, 1, act=False))
    self.residual, self.drop = stride == 1 and before == after, drop

  def forward(self, x):
    y = self.block(x)
    if not self.residual:
      return y
    if self.training and self.drop:
      kept = torch.rand(len(y), 1, 1, 1) >= self.drop
      y = y * kept / (1 - self.drop)
    return x + y


class _EfficientNet(nn.Module):

  def __init__(self, num_outputs, width, stem, dropout, stochastic_depth):
    super().__init__()
    before = _channels(32 * width)
    stages = [_conv_norm(3, before, 3, 2 if stem == 'imagenet' else 1)]
    # Expansion, channels, blocks, stride, kernel: rows 2 to 8 of table 1.
    plan = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3),
            (6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3))
    total, done = sum(row[2] for row in plan), 0
    for expand, channels, blocks, stride, kernel in plan:
      after, stage = _channels(channels * width), []
      for number in range(blocks):
        stage.append(_MBConv(before, after, expand, kernel, 1 if number else stride,
                             stochastic_depth * done / total))
        before, done = after, done + 1
      stages.append(nn.Sequential(*stage))
    stages.append(_conv_norm(before, 4 * before, 1))
    self.features = nn.Sequential(*stages)
    self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(4 * before, num_outputs))

  def forward(self, x):
    return self.classifier(self.features(x).mean((2, 3)))


def efficientnet_b0(*, num_outputs: int, width: float = 1.0, stem: str = 'imagenet',
                    dropout: float = 0.2, stochastic_depth: float = 0.2) -> nn.Module:
  """EfficientNet-B0 (Tan and Le 2019, table 1) for pictures with 3 channels."""
  return _EfficientNet(num_outputs, width, stem, dropout, stochastic_depth)


class _EncoderLayer(nn.Module):

  def __init__(self, width: int, heads: int, hidden: int, dropout: float):
    super().__init__()
    self.ln_1 = nn.LayerNorm(width, 1e-6)
    self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
    self.dropout = nn.Dropout(dropout)
    self.ln_2 = nn.LayerNorm(width, 1e-6)
    self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout),
                             nn.Linear(hidden, width), nn.Dropout(dropout))

  def forward(self, x):
    y = self.ln_1(x)
    x = x + self.dropout(self.self_attention(y, y, y, need_weights=False)[0])
    return x + self.mlp(self.ln_2(x))


class _Encoder(nn.Module):

  def __init__(self, tokens, width, depth, heads, hidden, dropout):
    super().__init__()
    self.pos_embedding = nn.Parameter(0.02 * torch.randn(1, tokens, width))
    self.dropout = nn.Dropout(dropout)
    self.layers = nn.Sequential()
    for number in range(depth):
      self.layers.add_module(f'encoder_layer_{number}',
                             _EncoderLayer(width, heads, hidden, dropout))
    self.ln = nn.LayerNorm(width, 1e-6)

  def forward(self, x):
    return self.ln(self.layers(self.dropout(x + self.pos_embedding)))


class _ViT(nn.Module):

  def __init__(self, num_outputs, image_size, patch, width, depth, heads, mlp_ratio, dropout):
    super().__init__()
    self.class_token = nn.Parameter(torch.zeros(1, 1, width))
    self.conv_proj = nn.Conv2d(3, width, patch, patch)
    tokens = (image_size // patch)**2 + 1
    self.encoder = _Encoder(tokens, width, depth, heads, mlp_ratio * width, dropout)
    self.heads = nn.Sequential()
    self.heads.add_module('head', nn.Linear(width, num_outputs))

  def forward(self, x):
    x = self.conv_proj(x).flatten(2).transpose(1, 2)  # [B, tokens - 1, width]
    x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1)
    return self.heads(self.encoder(x)[:, 0])


def vit(*, num_outputs: int, image_size: int, patch: int = 4, width: int = 128, depth: int = 4,
        heads: int = 4, mlp_ratio: int = 4, dropout: float = 0.0) -> nn.Module:
  """Vision transformer (Dosovitskiy et al. 2021, equations 1 to 4) for square pictures.

  Unlike ours it is told `image_size`: PyTorch allocates the position embedding beforehand.
  """
  return _ViT(num_outputs, image_size, patch, width, depth, heads, mlp_ratio, dropout)
