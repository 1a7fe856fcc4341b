"""CLIP beside a PyTorch twin written from the paper, and beside transformers; by `make test-slow`."""

import functools
import re

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearn_jax import models

pytestmark = pytest.mark.slow
# Arguments of `clip` but for the layout, side of the pictures.
TINY = ({'embedding': 16, 'patch': 4, 'image_width': 24, 'image_depth': 2, 'image_heads': 3,
         'text_width': 16, 'text_depth': 3, 'text_heads': 2, 'context': 14, 'vocabulary': 50}, 12)
B_32 = ({'embedding': 512, 'patch': 32, 'image_width': 768, 'image_depth': 12, 'image_heads': 12,
         'text_width': 512, 'text_depth': 12, 'text_heads': 8, 'context': 77}, 224)


def randomised(variables, seed=0):
  """Random everywhere; activations and attention scores near unit size."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name, shape = path[-1].key, leaf.shape
    if name == 'kernel' or name.endswith('proj') or name.endswith('projection'):
      value = rng.normal(size=shape) * np.prod(shape[:-1])**-0.5
    elif name == 'scale':
      value = rng.uniform(0.5, 1.5, shape)
    else:
      value = (1.0 if 'embedding' in name else 0.1) * rng.normal(size=shape)
    return np.asarray(value, np.float32)

  return jax.tree_util.tree_map_with_path(draw, variables)


def close(ours, theirs, tolerance, name=''):
  """Agreement relative to the largest entry of an array: float32 sums cannot do it entry by entry."""
  np.testing.assert_array_less(
      np.abs(ours - theirs).max(), tolerance * max(np.abs(theirs).max(), 1e-6), err_msg=name)


def setting(layout, size, slots=0, batch=3):
  """A model, random variables and inputs: captions of several lengths, the last one full."""
  arguments, side = size
  model = models.get('clip', layout=layout, **arguments)
  rng = np.random.default_rng(1)
  length, highest = arguments['context'], arguments.get('vocabulary', 49408) - 1
  text = np.zeros((batch, length), np.int32)
  for row, count in enumerate(np.linspace(slots + 2, length - 2, batch).astype(int)):
    text[row, 0], text[row, count + 1] = highest - 1, highest
    text[row, 1:count + 1] = rng.integers(1, highest - 1, count)
  fields = {'image': rng.normal(size=(batch, side, side, 3)).astype(np.float32), 'text': text}
  variables = randomised(jax.eval_shape(model.init, jax.random.key(0), fields))
  return model, variables, fields


def state_dict(params):
  """Our parameters (or gradients) under OpenAI's names and in its layouts: the rule of clip.py."""
  found = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    parents, _, last = jax.tree_util.keystr(path, simple=True, separator='.').rpartition('.')
    value = np.array(leaf)
    if last == 'kernel':
      value = value.transpose((3, 2, 0, 1) if value.ndim == 4 else (1, 0))
    last = 'weight' if last in ('kernel', 'scale', 'embedding') else last
    name = f'{parents}.{last}'.lstrip('.').removeprefix('text.').replace('in_proj.', 'in_proj_')
    found[name] = np.ascontiguousarray(value)
  return found


def twin(torch, state, image, text, prompt, arguments, layout):
  """Both embeddings, by PyTorch, from OpenAI's names; independent of our modules."""
  functional = torch.nn.functional

  def norm(x, name, eps):
    return functional.layer_norm(x, x.shape[-1:], state[f'{name}.weight'], state[f'{name}.bias'],
                                 eps)

  def linear(x, name, joint='.'):
    return functional.linear(x, state[f'{name}{joint}weight'], state[f'{name}{joint}bias'])

  def transformer(x, name, depth, heads, eps, activation, mask):
    batch, tokens, width = x.shape
    for number in range(depth):
      block = f'{name}transformer.resblocks.{number}'
      y = linear(norm(x, f'{block}.ln_1', eps), f'{block}.attn.in_proj', '_')
      q, k, v = (part.view(batch, tokens, heads, -1).transpose(1, 2) for part in y.chunk(3, -1))
      if f'{block}.attn.q_norm.weight' in state:
        q, k = norm(q, f'{block}.attn.q_norm', eps), norm(k, f'{block}.attn.k_norm', eps)
      scores = q @ k.transpose(2, 3) * (width // heads)**-0.5 + mask
      y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, width)
      x = x + linear(y, f'{block}.attn.out_proj')
      y = activation(linear(norm(x, f'{block}.ln_2', eps), f'{block}.mlp.c_fc'))
      x = x + linear(y, f'{block}.mlp.c_proj')
    return x

  def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)

  timm = layout == 'laclip'
  eps = 1e-6 if timm else 1e-5
  x = functional.conv2d(image, state['visual.conv1.weight'], state.get('visual.conv1.bias'),
                        stride=arguments['patch']).flatten(2).transpose(1, 2)
  token = state['visual.class_embedding'].expand(len(x), 1, -1)
  x = torch.cat([token, x], 1) + state['visual.positional_embedding']
  x = x if timm else norm(x, 'visual.ln_pre', eps)
  x = transformer(x, 'visual.', arguments['image_depth'], arguments['image_heads'], eps,
                  functional.gelu if timm else quick_gelu, 0.0)
  v = norm(x, 'visual.ln_post', eps)[:, 0] @ state['image_projection' if timm else 'visual.proj']

  x = functional.embedding(text, state['token_embedding.weight'])
  if prompt is not None:
    x = torch.cat([x[:, :1], prompt.expand(len(x), -1, -1), x[:, 1 + len(prompt):]], 1)
  length = text.shape[1]
  mask = torch.full((length, length), -torch.inf).triu(1)
  x = transformer(x + state['positional_embedding'], '', arguments['text_depth'],
                  arguments['text_heads'], 1e-5, quick_gelu, mask)
  x = norm(x, 'ln_final', 1e-5)[torch.arange(len(x)), text.argmax(1)]
  t = linear(x, 'text_projection') if layout == 'declip' else x @ state['text_projection']
  return v / v.norm(dim=-1, keepdim=True), t / t.norm(dim=-1, keepdim=True)


class TwinTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.torch = pytest.importorskip('torch', reason='extra `parity`; make test-slow installs it')

  def inputs(self, variables, fields):
    state = {name: self.torch.tensor(value, requires_grad=True)
             for name, value in state_dict(variables['params']).items()}
    picture = self.torch.tensor(np.ascontiguousarray(fields['image'].transpose(0, 3, 1, 2)))
    return state, picture, self.torch.tensor(fields['text'], dtype=self.torch.int64)

  @parameterized.product(layout=('openai', 'laclip', 'declip'), slots=(0, 4))
  def test_outputs_and_gradients(self, layout, slots):
    model, variables, fields = setting(layout, TINY, slots)
    rng = np.random.default_rng(2)
    prompt = rng.normal(size=(slots, TINY[0]['text_width'])).astype(np.float32) if slots else None
    weights = rng.normal(size=(3, 3)).astype(np.float32)

    @functools.partial(jax.jit, static_argnames='prompted')
    def ours(params, prompt, prompted):
      def loss(params, prompt):
        outputs, _ = model.apply({'params': params},
                                 {**fields, 'prompt': prompt} if prompted else fields)
        logits = jnp.exp(outputs['logit_scale']) * (
            outputs['image_embedding'] @ outputs['text_embedding'].T)
        return jnp.sum(jnp.sin(logits) * weights), outputs
      return jax.grad(loss, (0, 1), has_aux=True)(params, prompt)

    given = prompt if slots else np.zeros((0, 0), np.float32)
    (grads, prompt_grad), outputs = ours(variables['params'], given, prompted=bool(slots))
    state, picture, text = self.inputs(variables, fields)
    vectors = self.torch.tensor(prompt, requires_grad=True) if slots else None
    v, t = twin(self.torch, state, picture, text, vectors, TINY[0], layout)
    close(np.array(outputs['image_embedding']), v.detach().numpy(), 1e-4)
    close(np.array(outputs['text_embedding']), t.detach().numpy(), 1e-4)
    self.assertGreater(float(t.detach().std(0).max()), 1e-2)  # captions do differ
    logits = state['logit_scale'].exp() * v @ t.T
    (self.torch.sin(logits) * self.torch.tensor(weights)).sum().backward()
    found = state_dict(grads)
    self.assertSameElements(found, state)
    for name, value in found.items():
      theirs = state[name].grad.numpy()
      if name.endswith('k_norm.bias'):  # a softmax does not see a common shift: rounding is left
        self.assertLess(max(np.abs(value).max(), np.abs(theirs).max()), 1e-5)
      else:
        close(value, theirs, 1e-4, name)
    if slots:
      close(np.array(prompt_grad), vectors.grad.numpy(), 1e-4)

  @parameterized.parameters('openai', 'laclip')
  def test_vit_b_32(self, layout):
    model, variables, fields = setting(layout, B_32)
    prompt = np.random.default_rng(2).normal(size=(8, 512)).astype(np.float32)
    outputs = jax.jit(lambda v, x: model.apply(v, x)[0])(variables, {**fields, 'prompt': prompt})
    with self.torch.no_grad():
      v, t = twin(self.torch, *self.inputs(variables, fields), self.torch.tensor(prompt), B_32[0],
                  layout)
    close(np.array(outputs['image_embedding']), v.numpy(), 1e-4)
    close(np.array(outputs['text_embedding']), t.numpy(), 1e-4)
    self.assertGreater(float(t.std(0).max()), 1e-3)


_TRANSFORMERS = (  # OpenAI's name -> that of `transformers`, in order
    (r'^visual\.', 'vision_model.'), (r'^(?=transformer|ln_final|\w+_embedding)', 'text_model.'),
    (r'transformer\.resblocks', 'encoder.layers'), (r'\.attn\.', '.self_attn.'),
    (r'ln_([12])', r'layer_norm\1'), ('c_fc', 'fc1'), ('c_proj', 'fc2'),
    ('ln_pre', 'pre_layrnorm'), ('ln_post', 'post_layernorm'), ('ln_final', 'final_layer_norm'),
    ('token_embedding', 'embeddings.token_embedding'),
    ('positional_embedding', 'embeddings.position_embedding.weight'),
    ('class_embedding', 'embeddings.class_embedding'), ('conv1', 'embeddings.patch_embedding'),
    (r'vision_model\.proj$', 'visual_projection.weight'), ('text_projection$', r'\g<0>.weight'))


def to_transformers(state):
  """OpenAI's state dict under the names of `transformers.CLIPModel`."""
  found = {}
  for name, value in state.items():
    value = value.T if name in ('visual.proj', 'text_projection') else value
    for pattern, replacement in _TRANSFORMERS:
      name = re.sub(pattern, replacement, name)
    if 'in_proj_' in name:
      for letter, part in zip('qkv', np.split(value, 3)):
        found[name.replace('in_proj_', f'{letter}_proj.')] = part
    else:
      found[name] = value
  return found


class TransformersTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.torch = pytest.importorskip('torch', reason='extra `parity`; make test-slow installs it')
    self.transformers = pytest.importorskip('transformers', reason='extra `parity`')

  def configs(self, size):
    """Keyword arguments of the configurations of both towers."""
    arguments, side = size
    highest = arguments.get('vocabulary', 49408) - 1

    def tower(name):
      width = arguments[f'{name}_width']
      return {'hidden_size': width, 'intermediate_size': 4 * width,
              'num_hidden_layers': arguments[f'{name}_depth'],
              'num_attention_heads': arguments[f'{name}_heads']}

    return {'text_config': {**tower('text'), 'vocab_size': highest + 1, 'bos_token_id': highest - 1,
                            'eos_token_id': highest,
                            'max_position_embeddings': arguments['context']},
            'vision_config': {**tower('image'), 'image_size': side,
                              'patch_size': arguments['patch']}}

  def check(self, model, variables, fields, theirs, state):
    theirs.load_state_dict({name: self.torch.tensor(value) for name, value in state.items()})
    picture = np.ascontiguousarray(fields['image'].transpose(0, 3, 1, 2))
    with self.torch.no_grad():
      expected = theirs.eval()(pixel_values=self.torch.tensor(picture),
                               input_ids=self.torch.tensor(fields['text'], dtype=self.torch.int64))
    found = jax.jit(lambda v, x: model.apply(v, x)[0])(variables, fields)
    close(np.array(found['image_embedding']), expected.image_embeds.numpy(), 1e-4)
    close(np.array(found['text_embedding']), expected.text_embeds.numpy(), 1e-4)
    logits = np.exp(found['logit_scale']) * found['image_embedding'] @ found['text_embedding'].T
    close(np.array(logits + found.get('logit_bias', 0)), expected.logits_per_image.numpy(), 1e-4)

  @parameterized.named_parameters(('tiny', TINY), ('vit_b_32', B_32))
  def test_openai(self, size):
    model, variables, fields = setting('openai', size)
    theirs = self.transformers.CLIPModel(self.transformers.CLIPConfig(
        projection_dim=size[0]['embedding'], **self.configs(size)))
    self.check(model, variables, fields, theirs, to_transformers(state_dict(variables['params'])))

  def test_siglip(self):
    size = ({**TINY[0], 'embedding': 24}, TINY[1])
    model, variables, fields = setting('siglip', size)
    configs = self.configs(size)
    configs['text_config']['projection_size'] = 24
    theirs = self.transformers.SiglipModel(self.transformers.SiglipConfig(**configs))
    params = {**variables['params'], 'visual': dict(variables['params']['visual'])}
    pool = params['visual'].pop('pool')
    attention = pool['attn']  # Flax keeps queries, keys and values apart, and the heads
    joint = [attention[name] for name in ('query', 'key', 'value')]
    state = to_transformers(state_dict(params))
    state |= {f'text_model.head.{leaf}': state.pop(f'text_projection.{leaf}')
              for leaf in ('weight', 'bias')}
    state |= {name: state[name].reshape(1) for name in ('logit_scale', 'logit_bias')}
    state |= {f'vision_model.head.{name}': np.asarray(value) for name, value in {
        'probe': pool['probe'],
        'attention.in_proj_weight': np.concatenate([x['kernel'].reshape(24, 24).T for x in joint]),
        'attention.in_proj_bias': np.concatenate([x['bias'].reshape(24) for x in joint]),
        'attention.out_proj.weight': attention['out']['kernel'].reshape(24, 24).T,
        'attention.out_proj.bias': attention['out']['bias'],
        'layernorm.weight': pool['ln']['scale'], 'layernorm.bias': pool['ln']['bias'],
        'mlp.fc1.weight': pool['mlp']['c_fc']['kernel'].T, 'mlp.fc1.bias': pool['mlp']['c_fc']['bias'],
        'mlp.fc2.weight': pool['mlp']['c_proj']['kernel'].T,
        'mlp.fc2.bias': pool['mlp']['c_proj']['bias']}.items()}
    self.check(model, variables, fields, theirs, state)


if __name__ == '__main__':
  absltest.main()
