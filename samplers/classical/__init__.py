"""Classical methods as tables: initial values for fits and baselines for comparisons.

Each function takes `sigmas`: noise levels, descending, shape [N + 1], the last may be 0.
"""

from .adams import adams_bashforth, euler, euler_end, ipndm, ipndm_v
from .deis import deis, deis_edm
from .exponential import dpmpp_2m, res_multistep, uni_pc
from .heun import heun

__all__ = [
    "adams_bashforth",
    "deis",
    "deis_edm",
    "dpmpp_2m",
    "euler",
    "euler_end",
    "heun",
    "ipndm",
    "ipndm_v",
    "res_multistep",
    "uni_pc",
]
