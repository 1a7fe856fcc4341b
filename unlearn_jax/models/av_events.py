"""The audio-visual event network of AVE: audio-guided attention, an LSTM per modality, fusion."""

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from unlearn_jax import types
from unlearn_jax.models import contract
from unlearn_jax.models import layers

_xavier = nn.initializers.xavier_uniform()


class GuidedAttention(nn.Module):
  """Where in each segment's picture to look, told by its sound.

  For the positions v_1 .. v_P of one segment and its sound a, with U(x) = relu(W x + b),

    z_p = w_h . tanh(W_v U_v(v_p) + (W_g U_a(a))_p 1),  alpha = softmax(z),  c = sum_p alpha_p v_p.

  Source: Tian et al., ECCV 2018, section 4.2, as released: the sound adds (W_g U_a(a))_p to all
  units of position p. The paper's equation adds it to unit u of all positions, which needs no
  other shapes because W_v has as many units as there are positions (49).

  Attributes:
    hidden: H, units of U_v and U_a.
  """

  hidden: int

  @nn.compact
  def __call__(self, image: jax.Array, audio: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[B, T, P, C] and [B, T, A] -> attended pictures [B, T, C], weights [B, T, P]."""
    positions = image.shape[2]

    def affine(x, name):
      return nn.relu(layers.linear(x, self.hidden, kernel_init=_xavier, name=f'affine_{name}'))

    def project(x, features, name):
      return nn.Dense(features, use_bias=False, kernel_init=_xavier, name=f'affine_{name}')(x)

    content = project(affine(image, 'video'), positions, 'v')  # [B, T, P, P units]
    guide = project(affine(audio, 'audio'), positions, 'g')  # [B, T, P]
    scores = project(jnp.tanh(content + guide[..., None]), 1, 'h')[..., 0]
    weights = jax.nn.softmax(scores, axis=-1)
    return jnp.einsum('btp,btpc->btc', weights, image), weights


class BiLSTM(nn.Module):
  """States of the segments of a clip in both directions, concatenated: [B, T, C] -> [B, T, 2W]."""

  width: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    def uniform(key, shape, dtype=jnp.float32):  # PyTorch's: by the states, whatever the inputs
      return jax.random.uniform(key, shape, dtype, -self.width**-0.5, self.width**-0.5)

    def direction(name):
      return nn.RNN(nn.OptimizedLSTMCell(self.width, kernel_init=uniform,
                                         recurrent_kernel_init=uniform, bias_init=uniform,
                                         name=name))

    return nn.Bidirectional(direction('forward'), direction('backward'))(x)


class ImageEncoder(nn.Module):
  """Attended pictures through their LSTM: [B, T, P, C] and [B, T, A] -> [B, T, 2W]."""

  hidden: int
  width: int

  @nn.compact
  def __call__(self, image: jax.Array, audio: jax.Array) -> jax.Array:
    attended, _ = GuidedAttention(self.hidden, name='attention')(image, audio)
    return BiLSTM(self.width, name='lstm')(attended)


class AvEvents(nn.Module):
  """The whole network, read at one segment of each clip."""

  num_outputs: int
  hidden: int
  width: int
  features: int

  @nn.compact
  def __call__(self, image: jax.Array, audio: jax.Array, segment: jax.Array, *,
               train: bool) -> dict[str, jax.Array]:
    del train  # neither dropout nor statistics
    chex.assert_rank([image, audio, segment], [5, 3, 1])
    layers.check_lengths('av_events', image=image, audio=audio, segment=segment)
    batch, length = image.shape[:2]
    if audio.shape[1] != length:
      raise ValueError(f'av_events: clips have {length} segments of image and {audio.shape[1]} of '
                       'audio')
    if not jnp.issubdtype(segment.dtype, jnp.integer):
      raise ValueError(f'av_events: segment holds integers, got {segment.dtype}')
    positions = image.reshape(batch, length, -1, image.shape[-1])  # [B, T, P, C]

    def pick(states):  # [B, T, 2W] -> [B, 2W]
      return jnp.take_along_axis(states, segment[:, None, None], axis=1)[:, 0]

    n = pick(BiLSTM(self.width, name='audio')(audio))
    m = pick(ImageEncoder(self.hidden, self.width, name='image')(positions, audio))
    x = nn.relu(jnp.concatenate([n, m], axis=-1))  # [B, 4W]
    x = nn.relu(layers.linear(x, self.features, kernel_init=_xavier, name='fc1'))
    logits = layers.linear(x, self.num_outputs, kernel_init=_xavier, name='fc2')
    return {'logits': logits, 'features': x, 'image_embedding': m, 'audio_embedding': n}


def av_events(*, num_outputs: int = 29, hidden: int = 512, width: int = 128,
              features: int = 64) -> types.Model:
  """The network "A+V-att" of AVE: which event is seen and heard in a segment of a clip.

  Audio-guided attention over the positions of each segment's picture (`GuidedAttention`), a
  bidirectional LSTM per modality over the segments, and on [n_t, m_t], the states at segment t,
  relu -> linear -> relu -> linear.

  Source: Tian et al., ECCV 2018, "Audio-Visual Event Localization in Unconstrained Videos",
  sections 4.2 and 4.3, as released. 1,333,198 parameters with 29 outputs on the published features.
  PyTorch's LSTM has two biases per gate, of which only the sum matters; there is one here. The
  release ends in a softmax, these are the logits before it.

  One record is one segment of a clip, and the features of the whole clip are its context: ours. So
  every record has one label and a loss of its own, as anywhere else in this package.

  Inputs are `image` [B, T, h, w, C], `audio` [B, T, A] and `segment` [B] integer in [0, T): which
  segment of the clip the record is (outputs are NaN beyond). Published features: VGG-19's pool5
  [B, 10, 7, 7, 512] and VGGish's [B, 10, 128]. The number of positions h * w, C and A are those
  given to `init`.

  Args:
    num_outputs: classes; 28 events and the background.
    hidden: units of the attention.
    width: states of an LSTM in one direction.
    features: units before the last layer.

  Returns:
    The model; outputs `logits` [B, num_outputs], `features` [B, features], `image_embedding` and
    `audio_embedding` [B, 2 * width], the states m_t and n_t at the segment of the record, not
    normalised. The attention makes m depend on the sound.

  Raises:
    TypeError, ValueError: an argument of the wrong type or out of range; on init and apply, a field
      that is missing or of another batch length, clips of another number of segments, segments that
      are no integers.
    AssertionError: on init and apply, a field of another rank.
  """
  layers.check_positive('av_events', num_outputs=num_outputs, hidden=hidden, width=width,
                        features=features)
  return contract.from_linen(AvEvents(num_outputs, hidden, width, features),
                             ('image', 'audio', 'segment'))
