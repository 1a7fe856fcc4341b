"""Measurements of a model; import the modules, as in `from unlearn_jax.evals import privacy`."""
