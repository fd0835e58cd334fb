"""Families of learned solvers: how parameters become tables. To add one, write a module like ds.py and list it here."""

from __future__ import annotations

from collections.abc import Mapping

from . import ds, dyweight
from .base import Family

__all__ = ["FAMILIES", "Family"]

FAMILIES: Mapping[str, Family] = {module.FAMILY.name: module.FAMILY for module in (dyweight, ds)}
