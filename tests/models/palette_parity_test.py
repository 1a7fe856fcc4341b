"""Palette's network beside a PyTorch twin under the names of the release; by `make test-slow`."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.close import close
from unlearn_jax import models
from unlearn_jax.models import diffusion
from unlearn_jax.models import palette_keys
from unlearn_jax.models import surgery
from unlearn_jax.models import unet

pytestmark = pytest.mark.slow
# width, multipliers, blocks, groups, head width, picture's side
TINY = (16, (1, 2, 2), 1, 8, 8, 16)
FULL = (64, (1, 2, 4, 8), 2, 32, 32, 64)


def shapes(size):
  """Name -> shape of the release's state dict."""
  width, multipliers, *_ = size
  from experiments.benchmarks import generator_twins
  down, middle, up = generator_twins.palette_plan(size)
  found = {}

  def layer(name, *shape):
    found[f'{name}.weight'], found[f'{name}.bias'] = shape, shape[:1]

  layer('cond_embed.0', 4 * width, width)
  layer('cond_embed.2', 4 * width, 4 * width)
  layer('input_blocks.0.0', width * multipliers[0], 6, 3, 3)
  ends = [(f'middle_block.{number}', middle, middle, 0, 0) for number in (0, 2)]
  for name, x, out, _, _ in (*down, *ends, *up):
    layer(f'{name}.in_layers.0', x)
    layer(f'{name}.in_layers.2', out, x, 3, 3)
    layer(f'{name}.emb_layers.1', 2 * out, 4 * width)
    layer(f'{name}.out_layers.0', out)
    layer(f'{name}.out_layers.3', out, out, 3, 3)
    if x != out:
      layer(f'{name}.skip_connection', out, x, 1, 1)
  layer('middle_block.1.norm', middle)
  layer('middle_block.1.qkv', 3 * middle, middle, 1)
  layer('middle_block.1.proj_out', middle, middle, 1)
  layer('out.0', width * multipliers[0])
  layer('out.2', 3, width * multipliers[0], 3, 3)
  return found


def random_tensors(size):
  """All of them random, none zero or one, so that each one counts."""
  rng, found = np.random.default_rng(0), {}
  for name, shape in shapes(size).items():
    if len(shape) > 1:
      value = rng.normal(size=shape) * np.prod(shape[1:])**-0.5
    elif name.endswith('weight'):
      value = rng.uniform(0.5, 1.5, shape)
    else:
      value = 0.3 * rng.normal(size=shape)
    found[name] = value.astype(np.float32)
  return found


def ours(size):
  """The module of a size, and the shapes of its variables."""
  width, multipliers, blocks, groups, head_width, side = size
  sizes = (width, multipliers, blocks, groups, head_width, 0.0, jnp.float32)
  module = unet.UNet(unet.Encoder(*sizes), unet.Decoder(*sizes, 3))
  create = lambda: module.init(jax.random.key(0), jnp.zeros((1, side, side, 6)), jnp.zeros(1),
                               train=False)
  return module, jax.eval_shape(create)


def loaded(template, tensors, names):
  """The tensors as variables."""
  leaves = [np.ascontiguousarray(names.from_file(path, tensors)) for path in surgery.paths(template)]
  return jax.tree.unflatten(jax.tree.structure(template), leaves)


class PaletteParityTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.torch = pytest.importorskip('torch', reason='extra `parity`; make test-slow installs it')
    from experiments.benchmarks import generator_twins
    self.twins = generator_twins

  def both(self, size, batch):
    rng = np.random.default_rng(1)
    tensors, side = random_tensors(size), size[5]
    module, template = ours(size)
    variables = loaded(template, tensors, palette_keys.Names('', size[4]))
    self.assertIsNone(surgery.first_mismatch(template, variables))
    x = rng.normal(size=(batch, side, side, 6)).astype(np.float32)
    gamma = np.linspace(4.4e-5, 1, batch, dtype=np.float32)
    torch_tensors = {name: self.torch.tensor(value) for name, value in tensors.items()}
    return module, variables, self.twins.Palette(torch_tensors, size), x, gamma

  def nchw(self, x):
    return self.torch.tensor(np.ascontiguousarray(np.moveaxis(x, -1, 1)))

  @parameterized.named_parameters(('tiny', TINY, 3), ('full', FULL, 2))
  def test_stages_and_prediction(self, size, batch):
    module, variables, twin, x, gamma = self.both(size, batch)

    @jax.jit
    def run(variables):
      stages = module.apply(variables, x, gamma, train=False, method='encode')
      return stages, module.apply(variables, stages, gamma, train=False, method='decode')

    stages, prediction = run(variables)
    with self.torch.no_grad():
      expected = twin.encode(self.nchw(x), self.torch.tensor(gamma))
      wanted = twin.decode(expected, self.torch.tensor(gamma))
    self.assertLen(stages, 13 if size is FULL else 7)
    self.assertEqual(sum(value.size for value in jax.tree.leaves(variables)), sum(
        math.prod(shape) for shape in shapes(size).values()))
    for number, (found, stage) in enumerate(zip(stages, expected, strict=True)):
      close(found, np.moveaxis(stage.numpy(), 1, -1), name=f'stage {number}')
    close(prediction, np.moveaxis(wanted.numpy(), 1, -1), name='prediction')
    self.assertGreater(float(prediction.std()), 0.1)

  def test_gradients(self):
    module, variables, twin, x, gamma = self.both(TINY, 3)
    weights = np.random.default_rng(2).normal(size=(3, 16, 16, 3)).astype(np.float32)

    @jax.jit
    def slopes(variables, x):
      return jax.grad(lambda variables, x: jnp.sum(weights * module.apply(
          variables, x, gamma, train=False)), (0, 1))(variables, x)

    grads, pixels = slopes(variables, x)
    inputs = self.nchw(x).requires_grad_()
    for value in twin.tensors.values():
      value.requires_grad_()
    levels = self.torch.tensor(gamma)
    (twin.decode(twin.encode(inputs, levels), levels) * self.nchw(weights)).sum().backward()
    close(pixels, np.moveaxis(inputs.grad.numpy(), 1, -1), name='pixels')
    names, found = palette_keys.Names('', TINY[4]), {}
    for path, leaf in zip(surgery.paths(grads), jax.tree.leaves(grads)):
      found |= names.to_file(path, np.asarray(leaf))
    self.assertSameElements(found, twin.tensors)
    width = TINY[4]
    for name, value in found.items():
      theirs = twin.tensors[name].grad.numpy()
      if name.endswith('qkv.bias'):  # keys' biases cancel in the softmax: nothing but rounding there
        keys = value.reshape(-1, 3, width)[:, 1]
        self.assertLess(np.abs(keys).max(), 1e-4 * np.abs(value).max())
      close(value, theirs, name=name)

  def test_the_model(self):
    """Loss and estimate through the generator's contract, with its draws given to the twin."""
    torch = self.torch
    _, variables, twin, x, _ = self.both(TINY, 3)
    image, visible = np.clip(x[..., :3], -1, 1), np.tile([[1, 2, 7]], (3, 1)).astype(np.int32)
    model = models.get('palette', width=16, multipliers=(1, 2, 2), groups=8, head_width=8, patch=4)
    key = jax.random.key(3)

    @jax.jit
    def run(variables):
      return model.apply(variables, {'image': image, 'visible': visible}, rngs={'noise': key},
                         method='loss')[0]['loss']

    level, noise, fill, _ = jax.random.split(key, 4)
    gamma = torch.tensor(np.asarray(diffusion.draw_levels(level, diffusion.schedule(
        diffusion.linear(2000, 1e-6, 0.01)), 3)))
    noise, fill = (self.nchw(np.asarray(jax.random.normal(each, image.shape)))
                   for each in (noise, fill))
    hole = torch.ones(3, 1, 16, 16)
    for place in visible[0]:
      top, left = 4 * (place // 4), 4 * (place % 4)
      hole[:, :, top:top + 4, left:left + 4] = 0
    picture, share = self.nchw(image), gamma[:, None, None, None]
    noisy = share.sqrt() * picture + (1 - share).sqrt() * noise
    with torch.no_grad():
      seen = torch.cat([picture * (1 - hole) + fill * hole,
                        noisy * hole + picture * (1 - hole)], dim=1)
      predicted = twin.decode(twin.encode(seen, gamma), gamma)
    expected = ((hole * noise - hole * predicted)**2).mean(dim=(1, 2, 3))
    np.testing.assert_allclose(run(variables), expected, rtol=1e-4)


if __name__ == '__main__':
  absltest.main()
