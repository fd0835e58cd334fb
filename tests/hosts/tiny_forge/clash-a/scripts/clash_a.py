"""Another extension with packages of the same names as ours, imported by their bare names as many extensions do."""

import nodes  # noqa: F401
import samplers  # noqa: F401
import training  # noqa: F401
