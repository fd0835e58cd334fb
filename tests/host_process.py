"""The process of a real host that a test has started: a free port for it, waiting until it answers, its end."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable

__all__ = ["answers", "end", "free_port"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(process: subprocess.Popen[bytes] | None, ask: Callable[[], object], seconds: float = 400) -> bool:
    """Returns whether the host answers `ask` in time and before it ends."""
    deadline = time.time() + seconds
    while time.time() < deadline:
        try:
            ask()
            return True
        except OSError:
            if process is not None and process.poll() is not None:
                return False
            time.sleep(0.2)
    return False


def end(process: subprocess.Popen[bytes] | None, patience: float) -> None:
    """Ends a host, by force where it does not go in `patience` seconds."""
    if process is None:
        return
    process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
