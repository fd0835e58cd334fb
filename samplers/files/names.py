"""Names of files that every system takes: a solver fitted on one machine is to be used on another.

The rules are Windows', the strictest (Microsoft, "Naming Files, Paths, and Namespaces"). There `NUL.safetensors` is not
a file but nothing at all, and a fit written to it is lost without an error.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from functools import cache
from pathlib import PurePath

__all__ = ["check_name", "has_suffix", "in_utf8"]

_log = logging.getLogger("learned_solvers")
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3]) *(\..*)?", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f]')


def check_name(name: str) -> None:
    """Refuses the name of a file or folder, without the folders above, that some system does not take.

    Raises:
        ValueError: It is reserved, has a forbidden character, or ends in a dot or space, which Windows drops.
    """
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


def in_utf8(names: Iterable[str], folder: str) -> list[str]:
    """Returns the names that are UTF-8; the log has each of the others once.

    Linux takes any bytes. Python reads those as halves of surrogate pairs, which end a log or a page that shows them.
    """
    return [name for name in names if _is_utf8(name, folder)]


@cache
def _is_utf8(name: str, folder: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        _log.warning("left out: the name of %s in %s is not UTF-8; rename it", ascii(name), folder)
        return False
    return True
