"""AUTOMATIC1111 WebUI and Forge. Thin: reads the host, calls samplers/ and says what it did."""

from .registration import register
from .ui import LearnedSolversScript

__all__ = ["LearnedSolversScript", "register"]
