"""Launches an experiment: python -m experiments.run --config=FILE.py[:smoke] --workdir=DIR."""

import sys

from unlearn_jax import cli

if __name__ == '__main__':
  cli.launch(sys.argv)
