"""A federation of processes on one machine: a SuperLink, SuperNodes and a run, on loopback.

Command:   python -m experiments.flower.start rounds=10 'output="federation.npz"'
           Arguments change values of `[tool.flwr.app.config]` in experiments/flower/pyproject.toml.
Needs:     pip install 'unlearn_jax[flower]'.
Result:    the server's log, and adapters, histories and locks in `output`.

Over a network, the same app runs with TLS, each command on its own machine:

  flower-superlink --ssl-ca-certfile=ca.crt --ssl-certfile=server.pem --ssl-keyfile=server.key \\
      --host=0.0.0.0 --disable-runtime-dependency-installation --enable-supernode-auth
  flower-supernode --superlink=SERVER:8000 --root-certificates=ca.crt --node-config='client=2' \\
      --auth-supernode-private-key=client2.key
  flwr run experiments/flower NAME --stream

NAME is a connection in Flower's `config.toml`: `[superlink.NAME]` with `address = "SERVER:8000"` and
`root-certificates = "ca.crt"`. Nothing here uses `--insecure` beyond loopback. The clients' keys are
registered with `flwr supernode register`.
"""

from collections.abc import Mapping, Sequence
import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib

from experiments.flower import messages

APP = pathlib.Path(__file__).parent
ROOT = APP.parents[1]
HOST = '127.0.0.1'
GRACE = 20.0  # seconds that a process has to end


def defaults() -> dict[str, object]:
  """The app's run config."""
  with open(APP / 'pyproject.toml', 'rb') as file:
    return tomllib.load(file)['tool']['flwr']['app']['config']


def environment(home: str) -> dict[str, str]:
  """Of all processes: no telemetry, no update check, no installation, compiled code is shared."""
  path = [os.path.dirname(sys.executable), os.environ.get('PATH', '')]
  python = [str(ROOT), os.environ.get('PYTHONPATH', '')]
  return {**os.environ, 'PATH': os.pathsep.join(path),
          'PYTHONPATH': os.pathsep.join(filter(None, python)), 'FLWR_HOME': home,
          'FLWR_TELEMETRY_ENABLED': '0', 'FLWR_DISABLE_UPDATE_CHECK': '1',
          'FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION': '1',
          # Flower starts a process for every message; this spares all but the first compilation.
          'JAX_COMPILATION_CACHE_DIR': os.path.join(home, 'jax'),
          'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}


def run(changes: Mapping[str, object], *, timeout: float = 3600.0) -> str:
  """Starts server and clients, runs the app until it ends, and stops everything.

  Args:
    changes: of `defaults()`; see `rounds.Settings`.
    timeout: seconds.

  Returns:
    The log of the run.

  Raises:
    ValueError: a name that the run config does not have.
    RuntimeError: the run failed, or a process ended early; with its log.
    TimeoutError: it did not end in time.
  """
  settings = messages.settings({**defaults(), **changes})
  output = pathlib.Path(settings.output).absolute()
  with contextlib.ExitStack() as stack:
    home = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
    link, *ports = _free_ports(1 + settings.clients)
    env = environment(home)
    with open(os.path.join(home, 'config.toml'), 'w', encoding='utf-8') as file:
      file.write(f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{HOST}:{link}"\n'
                 'insecure = true\n')

    def start(name: str, *command: str) -> subprocess.Popen:
      log = stack.enter_context(open(os.path.join(home, f'{name}.log'), 'w', encoding='utf-8'))
      process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env, cwd=home,
                                 start_new_session=True)
      stack.callback(_stop, process)
      return process

    server = start('superlink', 'flower-superlink', '--insecure', f'--host={HOST}',
                   f'--port={link}', '--disable-runtime-dependency-installation')
    _wait_for(link, server, os.path.join(home, 'superlink.log'), timeout)
    for client, port in enumerate(ports):
      start(f'client{client}', 'flower-supernode', '--insecure', f'--superlink={HOST}:{link}',
            f'--host={HOST}', f'--port={port}', f'--node-config=client={client}')
    before = output.stat().st_mtime_ns if output.exists() else None
    values = {**changes, 'output': str(output)}
    done = start('run', 'flwr', 'run', str(APP), 'here', '--stream', '--run-config',
                 ' '.join(f'{name}={_toml(value)}' for name, value in values.items()))
    try:
      done.wait(timeout)
    except subprocess.TimeoutExpired:
      raise TimeoutError(f'no end after {timeout:g} s\n{_logs(home)}') from None
    if not output.exists() or output.stat().st_mtime_ns == before:
      raise RuntimeError(f'the run has written nothing to {output}\n{_logs(home)}')
    return pathlib.Path(home, 'run.log').read_text(encoding='utf-8')


def _free_ports(count: int) -> list[int]:
  with contextlib.ExitStack() as stack:
    sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
    for one in sockets:
      one.bind((HOST, 0))
    return [one.getsockname()[1] for one in sockets]


def _wait_for(port: int, process: subprocess.Popen, log: str, timeout: float) -> None:
  """Until somebody listens on a port."""
  end = time.monotonic() + timeout
  while True:
    with socket.socket() as one:
      if one.connect_ex((HOST, port)) == 0:
        return
    if process.poll() is not None or time.monotonic() > end:
      raise RuntimeError(f'the SuperLink has not started\n{pathlib.Path(log).read_text()}')
    time.sleep(0.2)


def _stop(process: subprocess.Popen) -> None:
  """Ends a process and those that it has started."""
  for sent in (signal.SIGTERM, signal.SIGKILL):
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, sent)
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(GRACE)


def _logs(home: str) -> str:
  return '\n'.join(f'== {path.name}\n{path.read_text(encoding="utf-8")[-4000:]}'
                   for path in sorted(pathlib.Path(home).glob('*.log')))


def _toml(value: object) -> str:
  return f'"{value}"' if isinstance(value, str) else str(value)


def main(arguments: Sequence[str]) -> None:
  print(run(tomllib.loads('\n'.join(arguments))))


if __name__ == '__main__':
  main(sys.argv[1:])
