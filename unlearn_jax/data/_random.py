"""Counter-based random numbers: a pure, vectorised function of integer words.

A record's augmentation must not depend on who shares its batch, and a split must be the same on
every machine and under every numpy (whose generators may change their streams between versions).
Both come for free when a random number is a hash of (seed, ..., index). The hash is the finaliser
of splitmix64 (Steele, Lea and Flood 2014), chained over the words: two multiplications per word
on whole arrays, where a numpy generator per record would cost tens of microseconds each.
"""

import hashlib

import numpy as np

_MASK = (1 << 64) - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def word(value) -> np.ndarray:
  """An integer, a string or an integer array as uint64; negative numbers wrap."""
  if isinstance(value, str):
    value = int.from_bytes(hashlib.sha256(value.encode()).digest()[:8], 'little')
  if isinstance(value, (int, np.integer)):
    return np.asarray(int(value) & _MASK, np.uint64)
  value = np.asarray(value)
  if value.dtype.kind not in 'iu':
    raise TypeError(f'random numbers are keyed by integers and strings, not {value.dtype}')
  return value.astype(np.int64).view(np.uint64)


def bits(*words) -> np.ndarray:
  """64 random bits for every element of the broadcast words: uint64.

  h_0 = 0, h_k = mix((h_{k-1} xor w_k) + golden); ours, on splitmix64's mix.
  """
  state = np.zeros((), np.uint64)
  with np.errstate(over='ignore'):  # the arithmetic is modulo 2^64
    for value in words:
      state = (state ^ word(value)) + _GOLDEN
      state = (state ^ (state >> np.uint64(30))) * _FIRST
      state = (state ^ (state >> np.uint64(27))) * _SECOND
      state = state ^ (state >> np.uint64(31))
  return state


def below(limit: int, *words) -> np.ndarray:
  """Uniform integers in [0, limit), limit < 2^32; the bias is below limit / 2^32: int64."""
  high = bits(*words) >> np.uint64(32)
  return ((high * np.uint64(limit)) >> np.uint64(32)).astype(np.int64)


def permutation(count: int, *words) -> np.ndarray:
  """A random order of range(count): int64 [count]."""
  return np.argsort(bits(*words, np.arange(count)), kind='stable')
