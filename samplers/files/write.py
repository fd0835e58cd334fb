"""Files that are whole or not there, under names that every system takes.

The rules for names are Windows', the strictest (Microsoft, "Naming Files, Paths, and Namespaces"). There
`NUL.safetensors` is not a file but nothing at all, and a fit written to it is lost without an error.
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
    """Writes a file, or leaves what was there, also when killed or without room; makes the folder.

    Who reads the path meanwhile finds the old file, none, or the new one. A link is replaced, not followed.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        _make_folder(path.parent)
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # a name that outlives a power failure must not stand for an empty file
        if overwrite:
            os.replace(temporary, path)
        else:
            _move_to_new(temporary, path)
    except FileExistsError:
        raise
    except OSError as error:
        reason = f"{path} cannot be written ({error.strerror or error}): make room for it, or choose another place"
        raise type(error)(error.errno, f"{reason}. What stood there is unchanged") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # which must not be taken for the file's own
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} is a file, not a folder") from error


def _move_to_new(temporary: Path, path: Path) -> None:
    """Moves a file to a name that must not exist, FileExistsError where it does."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: the name is claimed first, empty for a moment
        path.touch(exist_ok=False)
        try:
            os.replace(temporary, path)
        except OSError:
            path.unlink()
            raise


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file, or leaves what was there, also when killed; makes the folder."""
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    write_whole(path, save(plain, dict(metadata or {"format": "pt"})))


def check_name(name: str) -> None:
    """Refuses the name of a file or folder, without the folders above, that some system does not take."""
    if found := _FORBIDDEN.search(name):
        reason = f"has the character {found[0]!r}"
    elif _RESERVED.fullmatch(name):
        reason = "stands for a device"
    elif name.endswith((".", " ")):
        reason = f"ends in {name[-1]!r}, which is dropped"
    else:
        return
    raise ValueError(f"{name[:80]!r} is no file name on Windows: it {reason}; choose another name")


def has_suffix(path: str | PurePath, suffix: str) -> bool:
    """Whether a name has an ending in whatever case: hosts and Windows list `A.SAFETENSORS` as well."""
    return PurePath(path).suffix.lower() == suffix
