"""A real mosquitto on a free port, with the persistence that the project ships."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

SHIPPED = Path(__file__).parent.parent / "configs" / "mosquitto" / "mosquitto.conf"
OWN = ("listener", "persistence_location", "allow_anonymous", "password_file", "#")
EXECUTABLE = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")


def shipped_settings() -> list[str]:
    return [line for line in SHIPPED.read_text().splitlines() if line and not line.startswith(OWN)]


class Mosquitto:
    """Started, killed and started again on one port; its store lives in `folder`."""

    def __init__(self, folder: Path, settings: tuple[str, ...] = (), users: dict[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.host = "127.0.0.1"
        self._settings = folder / "mosquitto.conf"
        lines = [*shipped_settings(), f"persistence_location {folder}/", "user root"]
        if users is None:
            lines.append("allow_anonymous true")
        else:
            self._passwords = folder / "passwords"
            self._passwords.touch()
            for name, password in users.items():
                self._write_password(name, password)
            lines += ["allow_anonymous false", f"password_file {self._passwords}"]
        lines += [f"listener {self.port} 127.0.0.1", *settings]
        self._settings.write_text("\n".join(lines) + "\n")
        self._log = folder / "mosquitto.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Mosquitto:
        assert EXECUTABLE is not None
        assert self._process is None, "it runs already"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([EXECUTABLE, "-c", str(self._settings)], stdout=log, stderr=log)
        until = time.monotonic() + 20
        while time.monotonic() < until:
            if self._process.poll() is not None:
                break
            try:
                socket.create_connection((self.host, self.port), timeout=1).close()
                return self
            except OSError:
                time.sleep(0.02)
        raise RuntimeError(f"mosquitto does not start: {self._log.read_text()}")

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def set_password(self, name: str, password: str) -> None:
        assert self._process is not None
        self._write_password(name, password)
        self._process.send_signal(signal.SIGHUP)  # reads the file anew

    def _write_password(self, name: str, password: str) -> None:
        subprocess.run(["mosquitto_passwd", "-b", str(self._passwords), name, password], check=True)

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.send_signal(signal.SIGCONT)
            self._process.wait(20)
            self._process = None

    def __enter__(self) -> Mosquitto:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self._end(signal.SIGKILL)
