"""Names of files that every system takes: a solver fitted on one machine is to be used on another.

The rules are Windows', the strictest (Microsoft, "Naming Files, Paths, and Namespaces"). There `NUL.safetensors` is not
a file but nothing at all, and a fit written to it is lost without an error.
"""

from __future__ import annotations

import re
from pathlib import PurePath

__all__ = ["check_name", "has_suffix"]

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
