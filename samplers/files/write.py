"""Atomic writing of files, and portable file names.

The rules for names are those of Windows, the strictest (Microsoft, "Naming Files, Paths, and Namespaces"). There
`NUL.safetensors` is the null device, and a fit written to it is lost without an error.
"""

from __future__ import annotations

import errno
import os
import re
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePath

from safetensors.torch import save
from torch import Tensor

__all__ = ["check_name", "has_suffix", "write_tensors", "write_whole"]

_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3]) *(\..*)?", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f]')


def write_whole(path: Path, content: bytes, *, overwrite: bool = True) -> None:
    """Writes a file atomically and creates its folder; a kill or a full disk leaves the previous state.

    Concurrent readers see the complete old or new file, or none. A symbolic link is replaced, not followed.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        _make_folder(path.parent)
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # after a power failure the name must not point to an empty file
        if overwrite:
            os.replace(temporary, path)
        else:
            _move_to_new(temporary, path)
    except FileExistsError:
        raise
    except OSError as error:
        reason = f"{path} cannot be written ({error.strerror or error}): free up disk space, or choose another folder"
        raise type(error)(error.errno, f"{reason}. Any existing file is unchanged") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # callers take FileExistsError for the file's own
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} is a file, not a folder") from error


def _move_to_new(temporary: Path, path: Path) -> None:
    """Moves a file to a new name; FileExistsError if the name exists."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: claim the name with an empty file first
        path.touch(exist_ok=False)
        try:
            os.replace(temporary, path)
        except OSError:
            path.unlink()
            raise


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file atomically and creates its folder."""
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    write_whole(path, save(plain, dict(metadata or {"format": "pt"})))


def check_name(name: str) -> None:
    """Refuses a file or folder name, without parent folders, that is not portable."""
    if forbidden := _FORBIDDEN.search(name):
        reason = f"contains the character {forbidden[0]!r}"
    elif _RESERVED.fullmatch(name):
        reason = "is a device name"
    elif name.endswith((".", " ")):
        reason = f"ends in {name[-1]!r}"
    else:
        return
    raise ValueError(f"{name[:80]!r} is not a valid file name on Windows: it {reason}; choose another name")


def has_suffix(path: str | PurePath, suffix: str) -> bool:
    """Whether a path has a suffix, in any case: hosts and Windows also list `A.SAFETENSORS`."""
    return PurePath(path).suffix.lower() == suffix
