"""Records what Python does while a hostile file is read, and limits its time and memory."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

_BYTES, _SECONDS = 2**29, 5  # that a reader may use for any file
_REMEDIES = ("update Learned Solvers", "download the file again", "move it to a model folder")

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
    """Whether torch or the standard library imports one of its modules, or compiles code for one."""
    global _late
    if event == "import":
        root = str(arguments[0]).partition(".")[0]
        own = root == "torch" or root in sys.stdlib_module_names
        _late = _late or own
        return own
    file = getattr(arguments[0], "co_filename", None) if event == "exec" else (*arguments, None)[1]
    return event in ("exec", "compile") and (str(file).startswith(_OWN) or (_late and file == "<string>"))


@contextmanager
def memory_limit(more: int) -> Iterator[None]:
    """Limits this process to `more` bytes on top of what it has, on Linux."""
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


@contextmanager
def harmless() -> Iterator[None]:
    """Asserts that a reader uses little time and memory, and does nothing but read."""
    global _hooked, _late, _seen
    if not _hooked:  # a hook cannot be removed
        sys.addaudithook(_hook)
        _hooked = True
    began, seen, _late = time.process_time(), [], False
    try:
        with memory_limit(_BYTES):
            _seen = seen
            yield
    finally:
        _seen = None
    assert time.process_time() - began < _SECONDS
    assert not seen


def check_message(message: str, path: Path) -> None:
    """Asserts that a refusal names the file, is short and printable, and has one remedy."""
    assert message.startswith(f"{path}: ") and len(message) < 1200 + len(str(path)) and message.isprintable()
    assert path.suffix != ".safetensors" or sum(map(message.count, _REMEDIES)) == 1, message


def refusal(read: Callable[[Path], object], path: Path, content: bytes) -> str:
    """The message with which a reader refuses a file, harmlessly."""
    path.write_bytes(content)
    with harmless(), pytest.raises(ValueError) as refused:
        read(path)
    assert not isinstance(refused.value.__cause__, MemoryError)
    check_message(str(refused.value), path)
    return str(refused.value)
