"""The transformer of MAGE (Li et al., CVPR 2023), over tokens."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from unlearn_jax.models import mae

_EPSILON, _HEAD_EPSILON = 1e-6, 1e-5  # of layer norms
_normal = nn.initializers.normal(0.02)
_xavier = nn.initializers.xavier_uniform()


class TokenEmbedding(nn.Module):
  """Ids and places, int32 [B, L] -> LN(word + position) [B, L, D], with dropout."""

  vocabulary: int
  places: int
  width: int
  dropout: float
  dtype: jnp.dtype

  def setup(self):
    self.word = self.param('word', _normal, (self.vocabulary, self.width), jnp.float32)
    self.position = self.param('position', _normal, (self.places, self.width), jnp.float32)
    self.norm = nn.LayerNorm(_EPSILON, dtype=self.dtype)
    self.drop = nn.Dropout(self.dropout)

  def __call__(self, ids: jax.Array, places: jax.Array, *, train: bool) -> jax.Array:
    # jnp.take gives NaN for a place that does not exist.
    x = self.word[ids] + jnp.take(self.position, places, axis=0)
    x = self.norm(x.astype(self.dtype))
    return self.drop(x, deterministic=not train)


class Encoder(nn.Module):
  """Tokens [B, N], visible [B, K], masked [B, K] -> latent [B, 1 + K, D], in the order of visible."""

  codes: int
  classes: int
  class_token: int
  number: int
  width: int
  depth: int
  heads: int
  dropout: float
  dtype: jnp.dtype

  def setup(self):
    self.token_emb = TokenEmbedding(self.codes + self.classes + 1, 1 + self.number, self.width,
                                    self.dropout, self.dtype)
    self.blocks = [mae.Block(self.heads, self.dtype) for _ in range(self.depth)]
    self.norm = nn.LayerNorm(_EPSILON, dtype=self.dtype)

  def __call__(self, tokens: jax.Array, visible: jax.Array, masked: jax.Array, *, train: bool
               ) -> jax.Array:
    # What is not visible is dropped before it is embedded.
    ids = jnp.take_along_axis(tokens, visible, axis=1)
    ids = jnp.where(masked, self.codes + self.classes, ids)
    ids = jnp.pad(ids, ((0, 0), (1, 0)), constant_values=self.codes + self.class_token)
    x = self.token_emb(ids, jnp.pad(1 + visible, ((0, 0), (1, 0))), train=train)
    for block in self.blocks:
      x = block(x)
    return self.norm(x).astype(jnp.float32)

  def words(self) -> jax.Array:
    return self.token_emb.word[:self.codes]


class Head(nn.Module):
  """States [B, N, D'] -> logits of codes: LN(GELU(fc(x))) against the words [codes, D]."""

  vocabulary: int
  tied: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, words: jax.Array) -> jax.Array:
    x = nn.Dense(words.shape[1], kernel_init=_xavier, dtype=self.dtype, name='fc')(x)
    x = nn.LayerNorm(_HEAD_EPSILON, dtype=self.dtype, name='norm')(jax.nn.gelu(x, approximate=False))
    if not self.tied:
      words = self.param('word', _normal, words.shape, jnp.float32)
    # As long as the vocabulary in public checkpoints; only codes are predicted.
    bias = self.param('bias', nn.initializers.zeros, (self.vocabulary,), jnp.float32)
    return (x @ words.T.astype(self.dtype)).astype(jnp.float32) + bias[:len(words)]


class Decoder(nn.Module):
  """Latent, visible, masked and the encoder's words -> logits [B, N, codes]."""

  vocabulary: int
  number: int
  width: int
  depth: int
  heads: int
  tied: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, latent: jax.Array, visible: jax.Array, masked: jax.Array, words: jax.Array
               ) -> jax.Array:
    x = nn.Dense(self.width, kernel_init=_xavier, dtype=self.dtype, name='embed')(
        latent.astype(self.dtype))
    first = x[:, :1]  # stands in all places of which nothing is known
    grid = jnp.broadcast_to(first, (len(x), self.number, self.width))
    grid = grid.at[jnp.arange(len(x))[:, None], visible].set(
        jnp.where(masked[:, :, None], first, x[:, 1:]))
    position = self.param('position', _normal, (1 + self.number, self.width), jnp.float32)
    x = jnp.concatenate([first, grid], axis=1) + position.astype(self.dtype)
    for block in range(self.depth):
      x = mae.Block(self.heads, self.dtype, name=f'blocks_{block}')(x)
    x = nn.LayerNorm(_EPSILON, dtype=self.dtype, name='norm')(x)
    return Head(self.vocabulary, self.tied, self.dtype, name='head')(x[:, 1:], words)


class Transformer(nn.Module):
  """Both halves, over tokens."""

  encoder: Encoder
  decoder: Decoder

  def encode(self, tokens: jax.Array, visible: jax.Array, masked: jax.Array, *, train: bool
             ) -> dict[str, jax.Array]:
    return {'latent': self.encoder(tokens, visible, masked, train=train)}

  def decode(self, latent: jax.Array, visible: jax.Array, masked: jax.Array, *, train: bool
             ) -> dict[str, jax.Array]:
    del train
    words = jax.lax.stop_gradient(self.encoder.words())
    return {'logits': self.decoder(latent, visible, masked, words)}

  def __call__(self, tokens: jax.Array, visible: jax.Array, masked: jax.Array, *, train: bool
               ) -> dict[str, jax.Array]:
    outputs = self.encode(tokens, visible, masked, train=train)
    return outputs | self.decode(outputs['latent'], visible, masked, train=train)
