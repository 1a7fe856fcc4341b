"""Launches an experiment: python -m experiments.run --config=FILE.py[:smoke] --workdir=DIR."""

from absl import app

from unlearn_jax import cli

if __name__ == '__main__':
  flags = cli.define_flags()
  app.run(lambda _: cli.main(flags))
