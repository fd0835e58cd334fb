"""The bytes of small solver files, sound ones and, through their arguments, broken ones."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from functools import partial

import torch
from safetensors.torch import save
from torch import Tensor

GRID = {"rule": "polynomial", "rho": 7.0}
_CARD = {"format_version": "2", "architecture": "EDM", "checkpoint": "test"}
DYWEIGHT = (
    {**_CARD, "family": "dyweight", "prediction": "edm", "steps": {"3": {"grid": GRID}}},
    {"3/weights": torch.eye(3).double()[None], "3/t_scale": torch.ones(1, 3).double()},
)
DS = (
    {**_CARD, "family": "ds", "prediction": "flow", "steps": {"3": {}}},
    {"3/timedeltas": torch.tensor([[0.5, 0.25, 0.25]]).double(), "3/coeffs": torch.zeros(1, 3, 3).double()},
)


def content(base: tuple[dict, dict], tensors: Mapping[str, Tensor] | None = None, /, **card: object) -> bytes:
    """A sound file with other tensors and card entries; None removes a card entry."""
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in {**base[0], **card}.items() if v is not None}
    return save({**base[1], **(tensors or {})}, metadata=texts)


dyweight, ds = partial(content, DYWEIGHT), partial(content, DS)


def knots(*values: object, sets: int | None = None, **card: object) -> bytes:
    """A file with guidance knots and one set of parameters per knot, or `sets`."""
    tensors = {name: torch.cat([tensor] * (sets or len(values))) for name, tensor in DS[1].items()}
    return ds(tensors, **{"guidance": {"kind": "cfg", "values": [5]}, "steps": {"3": {"knots": list(values)}}, **card})


def with_header(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with this header, bytes or JSON, and a right or wrong length of it."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


SOUND = {
    "dyweight": dyweight(),
    "ds": ds(),
    **{str(d): dyweight({"3/weights": torch.eye(3)[None].to(d)}) for d in (torch.float16, torch.bfloat16)},
    "safetensors' own metadata entry": dyweight(format="pt"),
    "knots": knots(2, 5.5, 8),
    "embedded guidance": knots(2, 5, guidance={"kind": "embedded", "values": [2, 5], "usual": 3.5, "cfg": 1}),
}
