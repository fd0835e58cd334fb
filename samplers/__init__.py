"""The engine: tables, the loop that applies them, learned and classical solvers, solver files. Imports no host."""

from .choose import choose_solver
from .classical import adams_bashforth, deis, deis_edm, euler, euler_end, heun, ipndm, ipndm_v
from .classical.exponential import dpmpp_2m, res_multistep, uni_pc
from .files.card import Card, StepCard
from .files.solver import Solver, list_solvers, load_solver
from .grids import Grid
from .guidance import Guidance
from .k_diffusion import SAMPLERS, sample_solver
from .loop import sample_table
from .part import part_of_table
from .schedules import EDMNoise, FlowNoise, VPNoise
from .table import SolverTable

__all__ = [
    "Card",
    "EDMNoise",
    "FlowNoise",
    "Grid",
    "Guidance",
    "Solver",
    "SolverTable",
    "StepCard",
    "VPNoise",
    "adams_bashforth",
    "choose_solver",
    "deis",
    "deis_edm",
    "dpmpp_2m",
    "euler",
    "euler_end",
    "heun",
    "ipndm",
    "ipndm_v",
    "list_solvers",
    "load_solver",
    "part_of_table",
    "res_multistep",
    "sample_solver",
    "sample_table",
    "uni_pc",
    *SAMPLERS,
]
globals().update(SAMPLERS)
