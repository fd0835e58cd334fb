"""The extension of Forge and AUTOMATIC1111's WebUI: reads the host, calls samplers/ and reports what it did."""

from .registration import register
from .ui import LearnedSolversScript

__all__ = ["LearnedSolversScript", "register"]
