"""Unlearning methods: factories that take a model and keywords and return a `Method`."""

from unlearn_jax.methods.base import by_path
from unlearn_jax.methods.base import gradient_step
from unlearn_jax.methods.base import trainable
from unlearn_jax.methods.registry import arguments
from unlearn_jax.methods.registry import get
from unlearn_jax.methods.registry import names
from unlearn_jax.methods.registry import with_recovery

__all__ = ('arguments', 'by_path', 'get', 'gradient_step', 'names', 'trainable', 'with_recovery')
