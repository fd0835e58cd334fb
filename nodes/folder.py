"""The solver files in ComfyUI's drop-downs: the bundled ones and the user's, in models/solver_weights/."""

from __future__ import annotations

import os

import folder_paths

from ..samplers.files.folder import SolverFolder
from ..samplers.files.solver import SUFFIX

__all__ = ["FOLDER", "SOLVERS"]

FOLDER = "solver_weights"
"""Name of the folder inside ComfyUI's models folder, and its key in `folder_paths`."""

folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
folder_paths.folder_names_and_paths[FOLDER][1].add(SUFFIX)  # else the folder would list files of any kind

SOLVERS = SolverFolder(
    f"models/{FOLDER}",
    list_files=lambda: folder_paths.get_filename_list(FOLDER),
    path_of=lambda name: folder_paths.get_full_path(FOLDER, name),
)
