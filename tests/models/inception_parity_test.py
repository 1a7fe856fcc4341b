"""Inception v3 beside a PyTorch twin written from torchvision's and pytorch-fid's descriptions."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import pytest

from unlearn_jax import models
from unlearn_jax.models import inception
from unlearn_jax.tasks import extractor_files

pytestmark = pytest.mark.slow


def twin(classes, layout):
  """The network in PyTorch, with torchvision's names; only what the published files hold."""
  torch = pytest.importorskip('torch', reason='extra `parity`; make test-slow installs it')
  nn, functional = torch.nn, torch.nn.functional

  class Conv(nn.Module):

    def __init__(self, before, after, kernel, stride=1, padding=0):
      super().__init__()
      self.conv = nn.Conv2d(before, after, kernel, stride, padding, bias=False)
      self.bn = nn.BatchNorm2d(after, eps=1e-3)

    def forward(self, x):
      return torch.relu(self.bn(self.conv(x)))

  def pooled(x, last=False):
    if layout == 'fid' and last:
      return functional.max_pool2d(x, 3, 1, 1)
    return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=layout == 'torchvision')

  class A(nn.Module):

    def __init__(self, before, pool):
      super().__init__()
      self.branch1x1 = Conv(before, 64, 1)
      self.branch5x5_1, self.branch5x5_2 = Conv(before, 48, 1), Conv(48, 64, 5, padding=2)
      self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(before, 64, 1), Conv(64, 96, 3, padding=1)
      self.branch3x3dbl_3 = Conv(96, 96, 3, padding=1)
      self.branch_pool = Conv(before, pool, 1)

    def forward(self, x):
      double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
      return torch.cat([self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), double,
                        self.branch_pool(pooled(x))], 1)

  class B(nn.Module):

    def __init__(self, before):
      super().__init__()
      self.branch3x3 = Conv(before, 384, 3, 2)
      self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(before, 64, 1), Conv(64, 96, 3, padding=1)
      self.branch3x3dbl_3 = Conv(96, 96, 3, 2)

    def forward(self, x):
      double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
      return torch.cat([self.branch3x3(x), double, functional.max_pool2d(x, 3, 2)], 1)

  class C(nn.Module):

    def __init__(self, before, c):
      super().__init__()
      flat, tall = {'kernel': (1, 7), 'padding': (0, 3)}, {'kernel': (7, 1), 'padding': (3, 0)}
      self.branch1x1 = Conv(before, 192, 1)
      self.branch7x7_1, self.branch7x7_2 = Conv(before, c, 1), Conv(c, c, **flat)
      self.branch7x7_3 = Conv(c, 192, **tall)
      self.branch7x7dbl_1, self.branch7x7dbl_2 = Conv(before, c, 1), Conv(c, c, **tall)
      self.branch7x7dbl_3, self.branch7x7dbl_4 = Conv(c, c, **flat), Conv(c, c, **tall)
      self.branch7x7dbl_5 = Conv(c, 192, **flat)
      self.branch_pool = Conv(before, 192, 1)

    def forward(self, x):
      single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
      double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
      double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
      return torch.cat([self.branch1x1(x), single, double, self.branch_pool(pooled(x))], 1)

  class D(nn.Module):

    def __init__(self, before):
      super().__init__()
      self.branch3x3_1, self.branch3x3_2 = Conv(before, 192, 1), Conv(192, 320, 3, 2)
      self.branch7x7x3_1 = Conv(before, 192, 1)
      self.branch7x7x3_2 = Conv(192, 192, (1, 7), padding=(0, 3))
      self.branch7x7x3_3 = Conv(192, 192, (7, 1), padding=(3, 0))
      self.branch7x7x3_4 = Conv(192, 192, 3, 2)

    def forward(self, x):
      other = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
      return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), other,
                        functional.max_pool2d(x, 3, 2)], 1)

  class E(nn.Module):

    def __init__(self, before, last):
      super().__init__()
      self.last = last
      self.branch1x1 = Conv(before, 320, 1)
      self.branch3x3_1 = Conv(before, 384, 1)
      self.branch3x3_2a = Conv(384, 384, (1, 3), padding=(0, 1))
      self.branch3x3_2b = Conv(384, 384, (3, 1), padding=(1, 0))
      self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(before, 448, 1), Conv(448, 384, 3, padding=1)
      self.branch3x3dbl_3a = Conv(384, 384, (1, 3), padding=(0, 1))
      self.branch3x3dbl_3b = Conv(384, 384, (3, 1), padding=(1, 0))
      self.branch_pool = Conv(before, 192, 1)

    def forward(self, x):
      single, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
      return torch.cat([self.branch1x1(x), self.branch3x3_2a(single), self.branch3x3_2b(single),
                        self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double),
                        self.branch_pool(pooled(x, self.last))], 1)

  class Whole(nn.Module):

    def __init__(self):
      super().__init__()
      self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = Conv(3, 32, 3, 2), Conv(32, 32, 3)
      self.Conv2d_2b_3x3 = Conv(32, 64, 3, padding=1)
      self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = Conv(64, 80, 1), Conv(80, 192, 3)
      self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = A(192, 32), A(256, 64), A(288, 64)
      self.Mixed_6a, self.Mixed_6b, self.Mixed_6c = B(288), C(768, 128), C(768, 160)
      self.Mixed_6d, self.Mixed_6e = C(768, 160), C(768, 192)
      self.Mixed_7a, self.Mixed_7b, self.Mixed_7c = D(768), E(1280, False), E(2048, True)
      self.fc = nn.Linear(2048, classes)

    def forward(self, x):
      x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
      x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(x, 3, 2)))
      x = functional.max_pool2d(x, 3, 2)
      for name in ('5b', '5c', '5d', '6a', '6b', '6c', '6d', '6e', '7a', '7b', '7c'):
        x = getattr(self, f'Mixed_{name}')(x)
      features = x.mean((2, 3))
      return features, self.fc(features)

  torch.manual_seed(0)
  module = Whole().eval()
  with torch.no_grad():
    for part in module.modules():
      if isinstance(part, nn.Conv2d):
        nn.init.kaiming_normal_(part.weight)
      if isinstance(part, nn.BatchNorm2d):  # none of them the identity
        part.weight.uniform_(0.5, 1.5)
        part.bias.normal_(0, 0.1)
        part.running_mean.normal_(0, 0.1)
        part.running_var.uniform_(0.5, 1.5)
  return torch, module


def close(ours, theirs, tolerance):
  """Agreement relative to the largest entry of an array: float32 sums cannot do it entry by entry."""
  theirs = theirs.detach().numpy()
  np.testing.assert_array_less(np.abs(ours - theirs).max(), tolerance * np.abs(theirs).max())
  assert theirs.std() > 1e-2 * np.abs(theirs).max()  # the random network does answer


class ParityTest(parameterized.TestCase):

  @parameterized.parameters(('torchvision', 1000), ('fid', 1008))
  def test_features_and_logits(self, layout, classes):
    torch, module = twin(classes, layout)
    x = np.random.default_rng(0).uniform(-1, 1, (2, 139, 107, 3)).astype(np.float32)
    with torch.no_grad():
      features, logits = module(torch.tensor(np.moveaxis(x, -1, 1).copy()))
    state = {name: value.numpy() for name, value in module.state_dict().items()}
    variables, arguments = inception.load(state)
    self.assertEqual(arguments['layout'], layout)
    outputs = {}
    for each in inception.LAYOUTS:
      model = models.get('inception_v3', **{**arguments, 'layout': each})
      outputs[each] = jax.jit(lambda v, m=model: m.apply(v, {'image': x})[0])(variables)
    close(outputs[layout]['features'], features, 1e-4)
    close(outputs[layout]['logits'], logits, 1e-4)
    first, second = (np.asarray(each['features']) for each in outputs.values())
    self.assertGreater(np.abs(first - second).max(), 1e-2 * np.abs(first).max())

  def test_an_extractor_from_a_file(self):
    torch, module = twin(1008, 'fid')
    images = np.random.default_rng(0).uniform(size=(3, 299, 299, 3)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder) / 'weights.pth'
      torch.save(module.state_dict(), path)
      extractor = extractor_files.inception(path, batch_size=2)
    self.assertRegex(extractor.id, '^inception:fid:[0-9a-f]{8}$')
    self.assertEqual(extractor.official, ())
    with torch.no_grad():
      features, logits = module(torch.tensor(np.moveaxis(2 * images - 1, -1, 1).copy()))
    close(extractor.features(images), features, 1e-4)
    close(extractor.probabilities(images), torch.softmax(logits, 1), 1e-3)


if __name__ == '__main__':
  absltest.main()
