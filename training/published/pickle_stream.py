"""What a pickle may consist of, looked at before it is loaded: no code runs, so nothing can hang or take memory.

An unpickler that names nothing but inert stand-ins can still be made to work for ever, to fill the memory or to
overflow the stack: by the hash of a tuple of tuples that stand for each other (2^64 leaves in 500 bytes) or that is
nested half a million deep, by a memo's index of 2^31, by numbers of a million digits. None is in the authors' files.
"""

from __future__ import annotations

import io
import pickle
import pickletools

__all__ = ["check_pickles"]

_TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
_STAY = ("PROTO", "FRAME", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")  # the top of the stack remains what it was
_REFUSED = {
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), "it names something by an extension code"),
    **dict.fromkeys(("INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"), "it makes objects"),
    **dict.fromkeys(("DUP", "POP", "POP_MARK"), "it moves what is on the stack"),
    **dict.fromkeys(("FROZENSET", "BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER"), "it holds what no figures are"),
}
_UNKNOWN = ("REDUCE", "BUILD", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS")  # may leave a tuple on top
_MOST_TUPLES = 1000  # the authors' files have 16; this deep a hash still has room on the stack
_MOST_AGAIN = 16  # tuples that are referred to again: at most 2^16 leaves
_LARGEST_NUMBER = 2**128  # torch's magic number has 77 bits


def check_pickles(data: bytes, count: int = 1) -> None:
    """Refuses what is not `count` pickles that follow each other, of opcodes that files of figures have."""
    stream = io.BytesIO(data)
    for _ in range(count):
        if data[stream.tell() : stream.tell() + 1] != pickle.PROTO:
            raise ValueError("it is no pickle of protocol 2 or later")
        _check(stream, len(data))


def _check(stream: io.BytesIO, size: int) -> None:
    memo: dict[int, bool] = {}  # index: whether it is a tuple
    top_is_tuple, again, tuples = False, 0, 0
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in _REFUSED:
            raise ValueError(f"{_REFUSED[opcode.name]} ({opcode.name})")
        if isinstance(argument, int) and abs(argument) > _LARGEST_NUMBER:
            raise ValueError("it holds a number beyond 2^128")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            index = len(memo) if argument is None else int(str(argument))
            if index > size:
                raise ValueError(f"it numbers what it remembers beyond its own size, {index}")
            memo[index] = top_is_tuple
        elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
            top_is_tuple = memo.get(int(str(argument)), False)
            again += top_is_tuple
            if again > _MOST_AGAIN:
                raise ValueError(f"it refers to tuples again, more than {_MOST_AGAIN} times")
        elif opcode.name not in _STAY:
            tuples += opcode.name in _TUPLES
            if tuples > _MOST_TUPLES:
                raise ValueError(f"it has more than {_MOST_TUPLES} tuples")
            top_is_tuple = opcode.name in _TUPLES or opcode.name in _UNKNOWN
