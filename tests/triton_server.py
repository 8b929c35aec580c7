"""A real Triton on the CPU, of the environment that RUST_EDGE_TRITON_PYTHON names: nvidia-pytriton brings the server.

It comes with the Python backend alone, so models of the platform onnxruntime_onnx run on `triton_backend/model.py`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

PYTHON = os.environ.get("RUST_EDGE_TRITON_PYTHON")
needs_triton = pytest.mark.skipif(PYTHON is None, reason="RUST_EDGE_TRITON_PYTHON names no Python with nvidia-pytriton")

_ASKED = (
    "import importlib.util, sysconfig, sys; print(importlib.util.find_spec('pytriton').submodule_search_locations[0]); "
    "print(sysconfig.get_config_var('LIBDIR')); print('%d.%d' % sys.version_info[:2])"
)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Triton:
    """A server of a model repository on a port of its own; can be killed and started again. A context manager."""

    def __init__(self, repository: Path, folder: Path, *arguments: str) -> None:
        self.repository, self._folder, self._arguments = repository, folder, arguments
        self.port = free_port()
        self.url = f"127.0.0.1:{self.port}"
        asked = subprocess.run([PYTHON, "-c", _ASKED], capture_output=True, text=True, check=True, timeout=60).stdout.split()
        self._pytriton, self._library, self._version = Path(asked[0]), asked[1], asked[2]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Triton:
        server, backends = self._pytriton / "tritonserver", self._folder / "backends"
        shutil.copytree(server / "backends" / "python", backends / "python")
        shutil.copy(server / "python_backend_stubs" / self._version / "triton_python_backend_stub", backends / "python")
        shutil.copytree(Path(__file__).parent / "triton_backend", backends / "onnxruntime")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def log(self) -> str:
        return (self._folder / "triton.log").read_text(errors="replace")

    def start(self) -> None:
        packages = self._pytriton.parent
        environment = os.environ | {
            # the server's own libraries, and, where Python was built with a shared library, that one
            "LD_LIBRARY_PATH": f"{packages / 'nvidia_pytriton.libs'}:{self._library}",
            # the backend takes the packages of the first Python that it finds
            "PATH": f"{Path(str(PYTHON)).parent}:{os.environ['PATH']}",
        }
        command = [
            str(self._pytriton / "tritonserver" / "bin" / "tritonserver"),
            f"--model-repository={self.repository}",
            f"--backend-directory={self._folder / 'backends'}",
            f"--grpc-port={self.port}",
            "--grpc-address=127.0.0.1",
            "--allow-http=false",
            "--allow-metrics=false",
            *self._arguments,
        ]
        with (self._folder / "triton.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def kill(self) -> None:
        """As when its box loses power: the server and what it has started, at once."""
        assert self._process is not None
        mapped = self._shared_memory()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for path in mapped:
            path.unlink(missing_ok=True)

    def _shared_memory(self) -> set[Path]:
        """What a server that is killed would leave behind."""
        assert self._process is not None
        with contextlib.suppress(OSError):
            maps = Path(f"/proc/{self._process.pid}/maps").read_text().splitlines()
            return {Path(line.split()[-1]) for line in maps if "/dev/shm/" in line and "(deleted)" not in line}
        return set()

    def wait(self, *models: str, timeout_s: float = 60.0) -> None:
        """Until it serves these."""
        from edge.config import Kserve
        from edge.errors import SessionError
        from edge.sessions.kserve.server import InferenceServer

        until = time.monotonic() + timeout_s
        with InferenceServer(Kserve(url=self.url, retries=0)) as server:
            while True:
                try:
                    for model in models:
                        server.tensors(model, "")
                    return
                except SessionError as error:
                    if self._process is None or self._process.poll() is not None or time.monotonic() > until:
                        raise AssertionError(f"{error}\n{self.log[-4000:]}") from error
                time.sleep(0.05)
