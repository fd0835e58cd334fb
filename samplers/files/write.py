"""Files that are whole or not there: written beside their place, then moved to it in one step."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

__all__ = ["write_tensors", "write_whole"]


def write_whole(path: Path, content: bytes, *, overwrite: bool = True) -> None:
    """Writes a file, or leaves what was there, also when killed or without room; makes the folder.

    Who reads the path meanwhile finds the old file, none, or the new one. A link is replaced, not followed.

    Raises:
        FileExistsError: The path exists and `overwrite` is False; of two writers at once one is refused.
        OSError: It cannot be written; the message names the path.
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
    if os.name == "nt":
        os.rename(temporary, path)  # which refuses an existing name there
        return
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: the name is claimed first, empty for a moment
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        try:
            os.replace(temporary, path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file, or leaves what was there, also when killed; makes the folder.

    Raises:
        OSError: It cannot be written; the message names the path.
    """
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    write_whole(path, save(plain, dict(metadata or {"format": "pt"})))
