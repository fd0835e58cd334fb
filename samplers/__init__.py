"""The engine: tables, the loop that applies them, learned and classical solvers, solver files. Knows no host."""

from .choose import choose_solver
from .classical import adams_bashforth, deis, dpmpp_2m, euler, ipndm
from .k_diffusion import sample_ds_solver, sample_dyweight, sample_solver
from .multistep import sample_table
from .part import part_of_table
from .schedules import EDMNoise, FlowNoise, Grid, VPNoise
from .solver_file import Solver, list_solvers, load_solver
from .table import SolverTable

__all__ = [
    "EDMNoise",
    "FlowNoise",
    "Grid",
    "Solver",
    "SolverTable",
    "VPNoise",
    "adams_bashforth",
    "choose_solver",
    "deis",
    "dpmpp_2m",
    "euler",
    "ipndm",
    "list_solvers",
    "load_solver",
    "part_of_table",
    "sample_ds_solver",
    "sample_dyweight",
    "sample_solver",
    "sample_table",
]
