"""Families of learned solvers: how parameters become tables. A new one is a file like ds.py and its name here."""

from __future__ import annotations

from collections.abc import Mapping

from . import ds, dyweight
from .base import Family

__all__ = ["FAMILIES", "Family"]

FAMILIES: Mapping[str, Family] = {module.FAMILY.name: module.FAMILY for module in (dyweight, ds)}
