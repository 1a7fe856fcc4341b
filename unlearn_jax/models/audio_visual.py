"""Classifiers of a picture and a sound: two ResNet-18 encoders, fused early or late (AGM).

Names follow the rule of resnet.py; `image` and `audio` hold the encoders, everything else is the
fusion.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from unlearn_jax import types
from unlearn_jax.models import contract
from unlearn_jax.models import layers
from unlearn_jax.models import resnet

FUSIONS = ('early', 'late')


class Maxout(nn.Module):
  """h_j = max(z_j1, z_j2), z = W x + b (Goodfellow et al. 2013, section 3): [B, D] -> [B, J].

  Pieces of unit j are the neighbouring rows 2j and 2j + 1 of the linear layer `lin`.
  """

  units: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    pieces = layers.linear(x, 2 * self.units, name='lin')  # [B, 2J]
    return jnp.max(pieces.reshape(len(x), self.units, 2), axis=-1)


class EarlyFusion(nn.Module):
  """[B, 2d] -> logits and the 2d features before the last layer: norms, two maxout layers."""

  num_outputs: int
  dropout: float

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
    width = x.shape[-1]
    # Only the first norm has another epsilon: so it is in the release.
    x = layers.batch_norm(train=train, dtype=jnp.float32, epsilon=1e-4, name='bn1')(x)
    for number, units in ((1, 2 * width), (2, width)):
      x = Maxout(units, name=f'maxout{number}')(x)
      x = layers.batch_norm(train=train, dtype=jnp.float32, name=f'bn{number + 1}')(x)
      x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return layers.linear(x, self.num_outputs, name='fc'), x


class AudioVisual(nn.Module):
  """The whole network: an encoder per modality, then the fusion of their pooled states."""

  num_outputs: int
  width: int
  fusion: str
  stem: str
  dropout: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, image: jax.Array, audio: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    layers.check_lengths('audio_visual', image=image, audio=audio)

    def encode(name, x):  # [B, H, W, C] -> [B, d]
      encoder = resnet.ResNet(None, (2, 2, 2, 2), False, self.width, self.stem, self.dtype,
                              name=name)
      return encoder(x, train=train)['features']

    embeddings = {name: encode(name, x) for name, x in (('audio', audio), ('image', image))}
    outputs = {f'{name}_embedding': x for name, x in embeddings.items()}
    joined = jnp.concatenate(list(embeddings.values()), axis=-1)  # [B, 2d]
    if self.fusion == 'early':
      logits, features = EarlyFusion(self.num_outputs, self.dropout, name='fusion')(
          joined, train=train)
      return {'logits': logits, 'features': features, **outputs}
    parts = {f'{name}_logits': layers.linear(x, self.num_outputs, name=f'{name}_fc')
             for name, x in embeddings.items()}
    return {'logits': sum(parts.values()), 'features': joined, **parts, **outputs}


def audio_visual(*, num_outputs: int, width: int = 64, fusion: str = 'early',
                 stem: str = 'imagenet', dropout: float = 0.3,
                 compute_dtype: str = 'float32') -> types.Model:
  """Picture and spectrogram to classes, by two encoders whose states are fused.

  With n = f_A(a) and m = f_V(v) in R^d, d = 8 * width (CCU, equation 1), pooled from a ResNet-18
  each, fusion F_F is

    early   BN -> maxout(4d) -> BN -> dropout -> maxout(2d) -> BN -> dropout -> linear, on [n, m];
    late    (W_A n + b_A) + (W_V m + b_V), the sum of two linear classifiers.

  Source: the networks for AV-MNIST of AGM (Li et al., ICCV 2023, as released), which CCU (Xu et
  al., arXiv 2509.23895) unlearns from. With one channel, width 64 and 10 outputs an encoder has
  11,170,240 parameters, the early network 30,753,674. Initial values are those of `resnet18`, and
  PyTorch's for linear layers; batch norms start at 1, where AGM draws them from N(1, 0.02).

  Inputs are `image` [B, H, W, C] and `audio` [B, F, T, C'], a spectrogram; sizes are free and may
  differ, the numbers of channels are those given to `init`.

  Args:
    num_outputs: classes.
    width: channels of the encoders' first stage; 64 in AGM.
    fusion: `early` or `late`.
    stem: of both encoders: `imagenet` as in AGM (7x7 stride 2, max pooling), or `cifar` (3x3 stride
      1, no pooling).
    dropout: rate in [0, 1) of early fusion, drawn from the stream `dropout` in train mode; late
      fusion has none and leaves it unused.
    compute_dtype: of the encoders' convolutions; parameters and outputs are float32.

  Returns:
    The model; outputs `logits` [B, num_outputs], `image_embedding` and `audio_embedding` [B, d]
    (m and n, not normalised) and `features` [B, 2d]: what the last layer reads, which in late
    fusion is [n, m]. Late fusion also gives `image_logits` and `audio_logits`, whose sum `logits`
    is.

  Raises:
    TypeError, ValueError: an argument of the wrong type or out of range; on init and apply, a
      modality that is missing or of another batch length than the other.
    AssertionError: on init and apply, a modality that is not of rank 4.
  """
  layers.check_positive('audio_visual', num_outputs=num_outputs, width=width)
  layers.check_stem('audio_visual', stem)
  layers.check_rate('audio_visual', dropout=dropout)
  if fusion not in FUSIONS:
    raise ValueError(f'audio_visual: fusion is one of {", ".join(FUSIONS)}, got {fusion!r}')
  return contract.from_linen(
      AudioVisual(num_outputs, width, fusion, stem, dropout,
                  layers.dtype_of('audio_visual', compute_dtype)), ('image', 'audio'))
