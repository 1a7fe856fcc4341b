"""Eight fake devices, a persistent compilation cache, and a bound on what a process keeps compiled."""

import gc
import os
import pathlib

# Collectives in a fixed order: where devices outnumber cores, two that may run at once can wait for
# each other until XLA aborts the process.
os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=8 '
                      '--xla_cpu_enable_concurrency_optimized_scheduler=false')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import jax
import pytest

# Of the 65,530 memory maps that Linux allows a process; every compiled program takes several. A worker
# with some thousand tests behind it died of a segmentation fault while it loaded one more: running out
# of maps is the likely cause, not a proven one.
MOST_MAPS = 15_000

if jax.config.jax_compilation_cache_dir is None:
  cache = os.environ.get('UNLEARN_JAX_CACHE', os.path.expanduser('~/.cache/unlearn_jax'))
  jax.config.update('jax_compilation_cache_dir', os.path.join(cache, 'jax'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)


@pytest.fixture(autouse=True, scope='module')
def bounded_programs():
  """Drops compiled programs after a file that leaves too many of them; nothing happens off Linux."""
  yield
  maps = pathlib.Path('/proc/self/maps')
  if maps.exists() and maps.read_bytes().count(b'\n') > MOST_MAPS:
    jax.clear_caches()
    gc.collect()
