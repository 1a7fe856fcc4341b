"""The networks of two modalities beside PyTorch twins; by `make test-slow`."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import pytest

from tests.models.parity_test import randomised
from unlearn_jax import models

pytestmark = pytest.mark.slow


def close(ours, theirs, name=''):
  """Agreement to 1e-4 of the largest entry of an array, which is not all zero."""
  ours, theirs = np.asarray(ours), theirs.detach().numpy()
  assert np.abs(theirs).max() > 1e-3, name
  np.testing.assert_array_less(
      np.abs(ours - theirs).max(), 1e-4 * np.abs(theirs).max(), err_msg=name)


def setting(name, arguments, shapes, segments=None):
  """A model, random variables and inputs."""
  rng = np.random.default_rng(1)
  fields = {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
  if segments is not None:
    fields['segment'] = np.array(segments, np.int32)
  model = models.get(name, **arguments)
  return model, randomised(jax.eval_shape(model.init, jax.random.key(0), fields)), fields


class ParityTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.torch = pytest.importorskip('torch', reason='extra `parity`; make test-slow installs it')
    from experiments.benchmarks import twins  # pylint: disable=g-import-not-at-top
    cls.twins = twins

  def audio_visual(self, fusion, width, stem, num_outputs):
    """AGM's network: [B, 1, H, W] twice -> logits and embeddings, by name."""
    torch, nn, twins = self.torch, self.torch.nn, self.twins

    def encoder():
      net = twins.resnet18(num_outputs=1, width=width, stem=stem)
      kernel, stride = (7, 2) if stem == 'imagenet' else (3, 1)
      net.conv1 = nn.Conv2d(1, width, kernel, stride, kernel // 2, bias=False)
      net.fc = nn.Identity()
      return net

    class Maxout(nn.Module):

      def __init__(self, before, units):
        super().__init__()
        self.lin = nn.Linear(before, 2 * units)

      def forward(self, x):
        rows = self.lin(x)
        return torch.maximum(rows[:, 0::2], rows[:, 1::2])

    class Early(nn.Module):

      def __init__(self, d):
        super().__init__()
        self.bn1, self.maxout1 = nn.BatchNorm1d(2 * d, eps=1e-4), Maxout(2 * d, 4 * d)
        self.bn2, self.maxout2 = nn.BatchNorm1d(4 * d), Maxout(4 * d, 2 * d)
        self.bn3, self.fc = nn.BatchNorm1d(2 * d), nn.Linear(2 * d, num_outputs)

      def forward(self, x):  # the dropouts are left out
        return self.fc(self.bn3(self.maxout2(self.bn2(self.maxout1(self.bn1(x))))))

    class Net(nn.Module):

      def __init__(self):
        super().__init__()
        self.audio, self.image = encoder(), encoder()
        if fusion == 'early':
          self.fusion = Early(8 * width)
        else:
          self.audio_fc = nn.Linear(8 * width, num_outputs)
          self.image_fc = nn.Linear(8 * width, num_outputs)

      def forward(self, image, audio):
        n, m = self.audio(audio), self.image(image)
        if fusion == 'early':
          logits = self.fusion(torch.cat([n, m], 1))
        else:
          logits = self.audio_fc(n) + self.image_fc(m)
        return {'logits': logits, 'image_embedding': m, 'audio_embedding': n}

    return Net()

  @parameterized.parameters(('early', 'cifar', (9, 8)), ('late', 'imagenet', (28, 32)))
  def test_audio_visual(self, fusion, stem, sides):
    torch = self.torch
    shapes = {name: (6, side, side, 1) for name, side in zip(('image', 'audio'), sides)}
    model, variables, fields = setting('audio_visual', {
        'num_outputs': 5, 'width': 4, 'fusion': fusion, 'stem': stem, 'dropout': 0.0}, shapes)
    twin = self.twins.load(self.audio_visual(fusion, 4, stem, 5), variables)
    pictures = [torch.tensor(np.ascontiguousarray(fields[name].transpose(0, 3, 1, 2)))
                for name in ('image', 'audio')]
    outputs = jax.jit(model.apply)(variables, fields)[0]
    for name, expected in twin.eval()(*pictures).items():
      close(outputs[name], expected, name)

    rng = {'dropout': jax.random.key(0)}
    outputs, updated = jax.jit(
        lambda v, x: model.apply(v, x, train=True, rngs=rng))(variables, fields)
    counts = {}  # batch norm -> values that each of its averages has seen
    for key, module in twin.named_modules():
      if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
        module.register_forward_hook(
            lambda _, inputs, __, key=key: counts.update({key: inputs[0][:, 0].numel()}))
    for name, expected in twin.train()(*pictures).items():
      close(outputs[name], expected, name)
    before, theirs = self.twins.to_torch(variables), twin.state_dict()
    found = self.twins.to_torch({'batch_stats': updated['batch_stats']})
    self.assertLen(found, 2 * len(counts))
    for key, value in found.items():
      wanted = theirs[key]
      if key.endswith('running_var'):
        # PyTorch averages unbiased variances, we biased ones (see layers.batch_norm).
        n, old = counts[key.rpartition('.')[0]], torch.tensor(0.9 * before[key])
        wanted = old + (wanted - old) * (n - 1) / n
      close(value, wanted, key)
      self.assertGreater(np.abs(value - before[key]).max(), 0, key)

  def lstm(self, params):
    """PyTorch's bidirectional LSTM with our weights; its second bias is 0."""
    torch = self.torch
    inputs, width = params['forward']['ii']['kernel'].shape
    net = torch.nn.LSTM(inputs, width, batch_first=True, bidirectional=True)
    state = {}
    for name, suffix in (('forward', ''), ('backward', '_reverse')):
      gates = params[name]
      for source, target in (('i', 'ih'), ('h', 'hh')):
        state[f'weight_{target}_l0{suffix}'] = np.concatenate(
            [np.asarray(gates[f'{source}{gate}']['kernel']).T for gate in 'ifgo'])
      state[f'bias_ih_l0{suffix}'] = np.concatenate(
          [np.asarray(gates[f'h{gate}']['bias']) for gate in 'ifgo'])
      state[f'bias_hh_l0{suffix}'] = np.zeros(4 * width, np.float32)
    net.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    return net

  def test_av_events(self):
    torch, functional = self.torch, self.torch.nn.functional
    model, variables, fields = setting(
        'av_events', {'num_outputs': 5, 'hidden': 12, 'width': 6, 'features': 7},
        {'image': (4, 5, 3, 3, 8), 'audio': (4, 5, 10)}, segments=(0, 4, 2, 2))
    params = variables['params']

    def linear(x, layer):
      kernel = torch.tensor(np.asarray(layer['kernel']))
      bias = torch.tensor(np.asarray(layer['bias'])) if 'bias' in layer else None
      return functional.linear(x, kernel.T, bias)

    image, audio = torch.tensor(fields['image']).flatten(2, 3), torch.tensor(fields['audio'])
    attention = params['image']['attention']
    v = linear(torch.relu(linear(image, attention['affine_video'])), attention['affine_v'])
    g = linear(torch.relu(linear(audio, attention['affine_audio'])), attention['affine_g'])
    scores = linear(torch.tanh(v + g.unsqueeze(3)), attention['affine_h']).squeeze(3)
    attended = (scores.softmax(2).unsqueeze(3) * image).sum(2)
    rows, at = torch.arange(4), torch.tensor(fields['segment'], dtype=torch.int64)
    n = self.lstm(params['audio'])(audio)[0][rows, at]
    m = self.lstm(params['image']['lstm'])(attended)[0][rows, at]
    features = torch.relu(linear(torch.relu(torch.cat([n, m], 1)), params['fc1']))
    outputs = jax.jit(model.apply)(variables, fields)[0]
    close(outputs['audio_embedding'], n)
    close(outputs['image_embedding'], m)
    close(outputs['features'], features)
    close(outputs['logits'], linear(features, params['fc2']))

  def test_token_fusion(self):
    torch, nn = self.torch, self.torch.nn
    model, variables, fields = setting(
        'token_fusion',
        {'num_outputs': 5, 'features': 12, 'layers': 2, 'heads': 3, 'fusion_layers': 1},
        {'image': (3, 7, 10), 'text': (3, 4, 9)})

    def positions(length, width):  # from 1, as fairseq has them with padding index 0
      angles = [[t * 10000**(-i / (width // 2 - 1)) for i in range(width // 2)]
                for t in range(1, length + 1)]
      return torch.cat([torch.tensor(angles).sin(), torch.tensor(angles).cos()], 1)

    def encoder(layers, width=12):
      layer = nn.TransformerEncoderLayer(width, 3, 4 * width, activation='relu', batch_first=True,
                                         norm_first=True)
      return nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width),
                                   enable_nested_tensor=False)

    class Net(nn.Module):

      def __init__(self):
        super().__init__()
        self.image_proj, self.text_proj = nn.Linear(10, 12), nn.Linear(9, 12)
        self.image, self.text, self.fusion = encoder(2), encoder(2), encoder(1)
        self.proj1, self.proj2 = nn.Linear(12, 12), nn.Linear(12, 12)
        self.out_layer = nn.Linear(12, 5)

      def forward(self, image, text):
        def run(net, x):
          return net(12**0.5 * x + positions(*x.shape[1:]))
        x = torch.cat([run(self.image, self.image_proj(image)),
                       run(self.text, self.text_proj(text))], 1)
        x = run(self.fusion, x)
        features = self.proj2(torch.relu(self.proj1(x[:, 0]))) + x[:, 0]
        return {'logits': self.out_layer(features), 'features': features,
                'image_embedding': x[:, :7].mean(1), 'text_embedding': x[:, 7:].mean(1)}

    twin = self.twins.load(Net(), variables)
    expected = twin.eval()(torch.tensor(fields['image']), torch.tensor(fields['text']))
    outputs = jax.jit(model.apply)(variables, fields)[0]
    for name, value in expected.items():
      close(outputs[name], value, name)


if __name__ == '__main__':
  absltest.main()
