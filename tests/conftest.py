"""Eight fake devices and a persistent compilation cache for every test."""

import os

# Collectives in a fixed order: where devices outnumber cores, two that may run at once can wait for
# each other until XLA aborts the process.
os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=8 '
                      '--xla_cpu_enable_concurrency_optimized_scheduler=false')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import jax

if jax.config.jax_compilation_cache_dir is None:
  cache = os.environ.get('UNLEARN_JAX_CACHE', os.path.expanduser('~/.cache/unlearn_jax'))
  jax.config.update('jax_compilation_cache_dir', os.path.join(cache, 'jax'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)
