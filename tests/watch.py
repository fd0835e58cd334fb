"""Watches what Python does while a hostile file is read, and limits its memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

__all__ = ["memory_limit", "watched"]

_FORBIDDEN = {"exec", "compile", "import", "subprocess.Popen", "socket.connect", "ctypes.dlopen", "pty.spawn"}
_FORBIDDEN |= {f"os.{name}" for name in ("system", "exec", "posix_spawn", "fork", "remove", "rename", "mkdir", "rmdir")}
_FORBIDDEN |= {f"os.{name}" for name in ("link", "symlink", "chmod", "truncate", "putenv", "kill")}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_OWN = (*(f"{Path(module.__file__).parent}{os.sep}" for module in (os, torch)), "<frozen")
_seen: list[str] | None = None
_hooked = _late = False


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _seen is None:
        return
    if event == "open":
        _, mode, flags = arguments
        if not isinstance(flags, int) or flags & _WRITING or (isinstance(mode, str) and set("wax+") & set(mode)):
            _seen.append(f"open {arguments!r}")
    elif event in _FORBIDDEN and not _is_late_import(event, arguments):
        _seen.append(f"{event} {arguments!r}"[:300])


def _is_late_import(event: str, arguments: tuple[object, ...]) -> bool:
    """Whether torch or the standard library load a module of their own, or make its classes from texts meanwhile."""
    global _late
    if event == "import":
        root = str(arguments[0]).partition(".")[0]
        own = root == "torch" or root in sys.stdlib_module_names
        _late = _late or own
        return own
    file = getattr(arguments[0], "co_filename", None) if event == "exec" else (*arguments, None)[1]
    return event in ("exec", "compile") and (str(file).startswith(_OWN) or (_late and file == "<string>"))


@contextmanager
def watched() -> Iterator[list[str]]:
    """Yields a list that fills with what a reader must never do."""
    global _hooked, _late, _seen
    if not _hooked:  # a hook cannot be taken away again
        sys.addaudithook(_hook)
        _hooked = True
    before, _seen, _late = _seen, [], False
    try:
        yield _seen
    finally:
        _seen = before


@contextmanager
def memory_limit(more: int) -> Iterator[None]:
    """Lets this process have only so many bytes more than it has, where the system can say so."""
    if sys.platform != "linux":
        yield
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
