"""A classifier of pictures and captions on frozen tokens of ViT and BERT (CGGM).

Names are those of `torch.nn.TransformerEncoder`, under the rule of vit.py.
"""

import math

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from unlearn_jax import types
from unlearn_jax.models import contract
from unlearn_jax.models import layers as common  # `layers` counts layers here
from unlearn_jax.models import vit

_xavier = nn.initializers.xavier_uniform()


def sinusoids(length: int, width: int) -> jax.Array:
  """Position vectors [length, width]: [sin(t w_i), cos(t w_i)], t = 1 .. length.

  w_i = 10000^(-i / (width / 2 - 1)), i = 0 .. width / 2 - 1: tensor2tensor's and fairseq's variant
  of Vaswani et al. 2017, section 3.5, as MulT (Tsai et al., ACL 2019) has it. Times start at 1.
  """
  rates = jnp.exp(jnp.arange(width // 2) * (-math.log(10000) / (width // 2 - 1)))
  angles = jnp.arange(1, length + 1)[:, None] * rates
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class EncoderLayer(nn.Module):
  """x + attention(LN(x)), then x + linear2(relu(linear1(LN(x)))), 4 times as wide inside."""

  heads: int
  dropout: float

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    width, drop = x.shape[-1], nn.Dropout(self.dropout, deterministic=not train)
    y = vit.SelfAttention(self.heads, jnp.float32, out_init=_xavier, name='self_attn')(
        nn.LayerNorm(1e-5, name='norm1')(x))
    x = x + drop(y)
    y = nn.LayerNorm(1e-5, name='norm2')(x)
    y = nn.relu(nn.Dense(4 * width, kernel_init=_xavier, name='linear1')(y))
    return x + drop(nn.Dense(width, kernel_init=_xavier, name='linear2')(drop(y)))


class Layers(nn.Module):
  """Layers named 0, 1, ..."""

  depth: int
  heads: int
  dropout: float

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    for number in range(self.depth):
      x = EncoderLayer(self.heads, self.dropout, name=str(number))(x, train=train)
    return x


class Encoder(nn.Module):
  """MulT's encoder: sqrt(D) x + positions, dropout, layers, layer norm; [B, L, D] -> [B, L, D]."""

  depth: int
  heads: int
  dropout: float

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    length, width = x.shape[1:]
    x = math.sqrt(width) * x + sinusoids(length, width)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    x = Layers(self.depth, self.heads, self.dropout, name='layers')(x, train=train)
    return nn.LayerNorm(1e-5, name='norm')(x)


class TokenFusion(nn.Module):
  """The whole network: an encoder per modality, one over both, a residual MLP, a linear head."""

  num_outputs: int
  features: int
  layers: int
  heads: int
  fusion_layers: int
  dropout: float

  @nn.compact
  def __call__(self, image: jax.Array, text: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    chex.assert_rank([image, text], 3)
    common.check_lengths('token_fusion', image=image, text=text)

    def encode(name, x):
      x = common.linear(x, self.features, name=f'{name}_proj')
      return Encoder(self.layers, self.heads, self.dropout, name=name)(x, train=train)

    x = jnp.concatenate([encode('image', image), encode('text', text)], axis=1)
    x = Encoder(self.fusion_layers, self.heads, self.dropout, name='fusion')(x, train=train)
    patches = image.shape[1]
    first = x[:, 0]
    y = nn.relu(common.linear(first, self.features, name='proj1'))
    y = nn.Dropout(self.dropout, deterministic=not train)(y)
    features = first + common.linear(y, self.features, name='proj2')
    return {'logits': common.linear(features, self.num_outputs, name='out_layer'),
            'features': features,
            'image_embedding': jnp.mean(x[:, :patches], axis=1),
            'text_embedding': jnp.mean(x[:, patches:], axis=1)}


def token_fusion(*, num_outputs: int = 25, features: int = 40, layers: int = 4, heads: int = 5,
                 fusion_layers: int = 2, dropout: float = 0.15) -> types.Model:
  """Frozen tokens of a picture and a caption to classes, through small transformers.

  Tokens are projected to D = `features` dimensions, encoded per modality, and the sequence
  [image; text] is encoded once more; the first token x of that (ViT's class token) gives

    y = x + W_2 relu(W_1 x),  logits = W y

  (biases left out). Encoders are those of MulT: pre-norm layers, scaled tokens plus sinusoids.

  Source: the classifier for UPMC-Food101 of CGGM (Guo et al., NeurIPS 2024, "Classifier-guided
  Gradient Modulation", as released); 263,265 parameters on 768-dimensional tokens with 25 outputs.
  Ours: each modality has its own projection (the release defines both and sends the text through
  the image's too, by a slip); one dropout rate in place of five between 0.1 and 0.2, and none on
  attention weights; the embeddings, which the network does not define.

  Inputs are `image` [B, L, C] and `text` [B, L', C'], tokens of frozen encoders: in CGGM the last
  hidden states of ViT-B/16 [B, 197, 768] and of BERT-base at a text length of 50 [B, 50, 768].
  Lengths are free, C and C' are those given to `init`. Padded text tokens are not masked, as
  released.

  Args:
    num_outputs: classes; 25 in the subset of Food101 used here, 101 in CGGM.
    features: D, the dimension of tokens and of every output but the logits; an even multiple of
      `heads`, at least 4.
    layers: of each modality's encoder.
    heads: of every attention.
    fusion_layers: layers of the encoder of both.
    dropout: rate in [0, 1) on scaled tokens, after each attention, and after both layers of each
      MLP, drawn from the stream `dropout` in train mode.

  Returns:
    The model; outputs `logits` [B, num_outputs], `features` [B, D] (y), `image_embedding` and
    `text_embedding` [B, D]: means of the fusion states of each modality's tokens, not normalised.
    Each depends on both modalities.

  Raises:
    TypeError, ValueError: an argument of the wrong type or out of range; on init and apply, a
      modality that is missing or of another batch length than the other.
    AssertionError: on init and apply, a modality that is not of rank 3.
  """
  common.check_positive('token_fusion', num_outputs=num_outputs, features=features, layers=layers,
                        heads=heads, fusion_layers=fusion_layers)
  common.check_rate('token_fusion', dropout=dropout)
  if features % heads or features % 2 or features < 4:
    raise ValueError('token_fusion: features must be an even multiple of heads, at least 4, got '
                     f'{features} and {heads}')
  return contract.from_linen(
      TokenFusion(num_outputs, features, layers, heads, fusion_layers, dropout), ('image', 'text'))
