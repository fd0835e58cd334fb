"""Checks the opcodes of a pickle before it is loaded, so that loading cannot hang or exhaust memory.

Even with inert stand-ins a pickle can run forever, fill the memory or overflow the stack: by hashing tuples that
contain the same tuple twice (2^64 leaves in 500 bytes) or are nested half a million deep, by a memo index of 2^31, or
by numbers of a million digits. The authors' files have none of these.
"""

from __future__ import annotations

import io
import pickle
import pickletools

__all__ = ["check_pickles"]

_TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
_TRANSPARENT = ("PROTO", "FRAME", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")  # leave the top of the stack
_REFUSED = {
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), "it uses an extension code"),
    **dict.fromkeys(("INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"), "it creates objects"),
    **dict.fromkeys(("DUP", "POP", "POP_MARK"), "it rearranges the stack"),
    **dict.fromkeys(
        ("FROZENSET", "BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER"), "it uses a type that published files do not"
    ),
}
_MAYBE_TUPLE = ("REDUCE", "BUILD", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS")  # may leave a tuple on top
_MOST_TUPLES = 1000  # the authors' files have 16; hashing a nesting this deep does not overflow the stack
_MOST_REUSES = 16  # of tuples, so at most 2^16 leaves
_LARGEST_NUMBER = 2**128  # torch's magic number has 77 bits


def check_pickles(data: bytes, count: int = 1) -> None:
    """Refuses anything but `count` consecutive pickles of opcodes that published files use."""
    stream = io.BytesIO(data)
    for _ in range(count):
        if data[stream.tell() : stream.tell() + 1] != pickle.PROTO:
            raise ValueError("it is not a pickle of protocol 2 or later")
        _check(stream, len(data))


def _check(stream: io.BytesIO, size: int) -> None:
    memo: dict[int, bool] = {}  # index: is it a tuple?
    top_is_tuple, reuses, tuples = False, 0, 0
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in _REFUSED:
            raise ValueError(f"{_REFUSED[opcode.name]} ({opcode.name})")
        if isinstance(argument, int) and abs(argument) > _LARGEST_NUMBER:
            raise ValueError("it has a number beyond 2^128")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            index = len(memo) if argument is None else int(str(argument))
            if index > size:
                raise ValueError(f"its memo index {index} exceeds its size")
            memo[index] = top_is_tuple
        elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
            top_is_tuple = memo.get(int(str(argument)), False)
            reuses += top_is_tuple
            if reuses > _MOST_REUSES:
                raise ValueError(f"it reuses tuples more than {_MOST_REUSES} times")
        elif opcode.name not in _TRANSPARENT:
            tuples += opcode.name in _TUPLES
            if tuples > _MOST_TUPLES:
                raise ValueError(f"it has more than {_MOST_TUPLES} tuples")
            top_is_tuple = opcode.name in _TUPLES or opcode.name in _MAYBE_TUPLE
