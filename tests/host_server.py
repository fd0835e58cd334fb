"""What the real hosts of the tests share: finding a checkout and its Python, and a server to start, ask and stop."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

HOSTS = Path(__file__).resolve().parent / "hosts"
ROOT = HOSTS.parent.parent


def find_checkouts(variable: str, defaults: Sequence[str], marker: str) -> list[Path]:
    """The checkouts in an environment variable, else those in the home folder; `marker` is a path inside each."""
    listed = os.environ.get(variable)
    folders = [Path(p) for p in listed.split(os.pathsep)] if listed else [Path.home() / name for name in defaults]
    checkouts = [folder for folder in folders if (folder / marker).exists()]
    if listed and checkouts != folders:
        raise FileNotFoundError(f"{variable} is {listed}, where {marker} is missing. Name a checkout, or unset it.")
    return checkouts


def find_python(variable: str, *venvs: Path) -> Path | None:
    """The Python in an environment variable, else that of the first virtual environment that exists."""
    named = [Path(os.environ[variable])] if os.environ.get(variable) else []
    return next((python for python in [*named, *(venv / "bin/python" for venv in venvs)] if python.exists()), None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class HostServer:
    """A server of a checkout that writes into the folder `base` only; as a context manager it starts and stops.

    A subclass has `command()`, `environment()`, and `solvers`, the folder of the user's solver files.
    """

    checkout: Path
    base: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    memo: dict[Any, Any] = field(default_factory=dict)  # results that several tests use

    title: ClassVar[str]
    ready_path: ClassVar[str]  # answers once everything is loaded

    def solver(self, name: str) -> Path:
        """The path of a solver file, in a folder that exists."""
        path = self.solvers / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.base / "server.log").read_text(errors="replace")

    def start(self) -> None:
        with (self.base / "server.log").open("ab") as log:
            streams, environment = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}, self.environment()
            self.process = subprocess.Popen(self.command(), cwd=self.base, env=os.environ | environment, **streams)
        self.wait()

    def wait(self, seconds: float = 400) -> None:
        """Waits until the server answers; stops it and raises its log where it does not."""
        assert self.process is not None
        deadline = time.time() + seconds
        while time.time() < deadline and self.process.poll() is None:
            try:
                self.get(self.ready_path)
                return
            except OSError:
                time.sleep(0.2)
        self.stop()
        raise RuntimeError(f"{self.title} did not start:\n{self.log[-3000:]}")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def request(self, path: str, content: dict[str, Any] | None = None) -> bytes:
        """Sends a GET, or with content a POST of JSON; returns the body of the answer."""
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.read()

    def get(self, path: str) -> Any:
        return json.loads(self.request(path))
