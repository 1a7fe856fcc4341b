"""Two processes as two hosts: each decodes its own half of a batch, both train on the whole."""

import os
import socket
import subprocess
import sys
import textwrap

from absl.testing import absltest
import pytest

PROGRAM = textwrap.dedent('''
    import sys
    import jax
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
    import numpy as np
    from unlearn_jax.data import pairs
    from unlearn_jax.data import sources
    from unlearn_jax.train import sharding
    source = sources.get('cc3m_fixture')
    image, read = source.fields['image'], []
    encoded = image.read
    image.read = lambda row: (read.append(row), encoded(row))[1]
    stream = pairs.stream(source, np.arange(96), batch_size=16, seed=0, texts={},
                          augment=('random_resized_crop:0.5,1',))
    batch = stream(3)['pairs']
    placed = sharding.shard_batch({'pairs': batch}, sharding.make_mesh())
    half = batch['id'].reshape(2, 8)[jax.process_index()]
    assert sorted(read) == sorted(half.tolist()), (read, half)
    mean = jax.jit(lambda image: image.mean())(placed['pairs']['image'])
    np.testing.assert_allclose(mean, np.asarray(batch['image']).mean(), rtol=1e-5)
    print('agreed', jax.device_count())
''')


@pytest.mark.slow
class HostsTest(absltest.TestCase):

  def test_each_host_decodes_its_own_half(self):
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      address = f'127.0.0.1:{free.getsockname()[1]}'
    environment = os.environ | {'JAX_PLATFORMS': 'cpu',
                                'XLA_FLAGS': '--xla_force_host_platform_device_count=4'}
    hosts = [subprocess.Popen([sys.executable, '-c', PROGRAM, address, str(number)], text=True,
                              env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
             for number in range(2)]
    for host in hosts:
      self.addCleanup(host.kill)
    for host in hosts:
      output, _ = host.communicate(timeout=120)
      self.assertIn('agreed 8', output)


if __name__ == '__main__':
  absltest.main()
