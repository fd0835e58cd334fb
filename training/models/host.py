"""ComfyUI as a library: its folder, its options, its modules, and its folder for solver files."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch

__all__ = ["FOLDER", "Host", "find_comfy"]

FOLDER = "solver_weights"
"""Name of the folder for solver files in ComfyUI's models folder, and its key in `folder_paths`."""


def find_comfy(folder: Path | None) -> Path:
    """ComfyUI's folder: the one given, else COMFYUI_PATH or the one whose custom_nodes contains this package."""
    candidates = [folder] if folder else [Path(os.environ.get("COMFYUI_PATH", "").split(os.pathsep)[0]), _around()]
    for candidate in candidates:
        if (candidate / "comfy" / "sd.py").is_file():
            return candidate.resolve()
    where = f"in {folder}" if folder else f"in COMFYUI_PATH or in {_around()}"
    raise FileNotFoundError(f"ComfyUI not found {where}: specify its folder with --comfyui, or set COMFYUI_PATH")


def _around() -> Path:
    """The folder whose custom_nodes contains this package, through a link or not; any folder if none does."""
    return Path(os.path.abspath(__file__)).parents[4]


@dataclass(frozen=True)
class Host:
    """A ComfyUI that this process imports, set up as its server is.

    Args:
        folder: ComfyUI's folder; None: see `find_comfy`.
        options: Options of its command line.
    """

    folder: Path | None = None
    options: tuple[str, ...] = ()

    def module(self, name: str) -> Any:
        """Imports one of its modules; without an accelerator, ComfyUI is set to the CPU."""
        comfy = find_comfy(self.folder)
        if str(comfy) not in sys.path:
            sys.path.insert(0, str(comfy))
        try:
            self._parse_options(comfy)
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"ComfyUI in {comfy} needs {error.name}, which {sys.executable} does not have: run this with the "
                "Python that runs your ComfyUI"
            ) from error

    @property
    def solver_folder(self) -> Path:
        """The folder where a server with these options writes solver files.

        It may be elsewhere than ComfyUI: with --base-directory, --models-directory or extra_model_paths.yaml. If this
        package is in the custom_nodes of another folder with models, that folder is the base directory.
        """
        return Path(_paths(self).get_folder_paths(FOLDER)[0])

    def find(self, kind: str, name: str) -> Path:
        """A file as given, or by its name in the server's folders of that kind, such as "loras"."""
        if Path(name).is_file():
            return Path(name)
        paths = _paths(self)
        if found := paths.get_full_path(kind, name):
            return Path(found)
        folders = " or ".join(paths.get_folder_paths(kind))
        raise ValueError(f"{name} is no file, and not in {folders}: pass a file, or its name there")

    def start_dynamic_vram(self) -> None:
        """Makes its loaders keep weights outside the GPU until a layer needs them, as the server's do.

        The conditions are those of main.py; nothing happens in a ComfyUI or on a device without DynamicVRAM.
        """
        cli, management = self.module("comfy.cli_args"), self.module("comfy.model_management")
        if not _wants_dynamic_vram(cli) or self.module("comfy.memory_management").aimdo_enabled:
            return
        amd = management.is_amd() and tuple(getattr(management, "rocm_version", ())) >= (7, 14)
        is_usual = management.torch_version_numeric >= (2, 8) and (management.is_nvidia() or amd)
        control, device = self.module("comfy_aimdo.control"), management.get_torch_device().index
        if not (cli.args.enable_dynamic_vram or is_usual) or not hasattr(control, "init_devices"):
            return
        try:
            started = control.init_devices([(device, int(cli.args.vram_headroom * 2**30))])
        except TypeError:  # comfy-aimdo 0.4.9
            started = control.init_devices([device])
        if started:
            patchers = self.module("comfy.model_patcher")
            patchers.CoreModelPatcher = patchers.ModelPatcherDynamic
            self.module("comfy.memory_management").aimdo_enabled = True

    def _parse_options(self, comfy: Path) -> None:
        """Parses the options by ComfyUI's own parser, once; a later import has the result."""
        if "comfy.cli_args" in sys.modules:
            return
        base, words = _around(), list(self.options)
        if base.resolve() != comfy and (base / "custom_nodes").is_dir() and (base / "models").is_dir():
            words = ["--base-directory", str(base), *words]  # the last one counts
        with _arguments(words):
            importlib.import_module("comfy.options").enable_args_parsing()
            args = importlib.import_module("comfy.cli_args").args
            importlib.import_module("comfy.options").enable_args_parsing(False)
        kinds = (getattr(torch, kind, None) for kind in ("cuda", "xpu", "npu", "mlu"))
        found = torch.backends.mps.is_available() or any(kind is not None and kind.is_available() for kind in kinds)
        if not found and args.directml is None:
            args.cpu = True
        _prepare_dynamic_vram(sys.modules["comfy.cli_args"])


def _prepare_dynamic_vram(cli: Any) -> None:
    """Loads the library of DynamicVRAM, which ComfyUI's other modules look for when they are imported."""
    if not _wants_dynamic_vram(cli):
        return
    control, args = importlib.import_module("comfy_aimdo.control"), cli.args
    options = {
        "simple_vram_headroom": None if args.reserve_vram is None else int(args.reserve_vram * 2**30),
        "nvml_pressure": not getattr(args, "disable_nvml_pressure", False),
    }
    known = inspect.signature(control.init).parameters  # each version of the library has some of them
    control.init(**{name: value for name, value in options.items() if name in known})


def _wants_dynamic_vram(cli: Any) -> bool:
    """Whether ComfyUI's options, as parsed, allow DynamicVRAM."""
    return getattr(cli, "enables_dynamic_vram", bool)()


@cache
def _paths(host: Host) -> Any:
    """The module folder_paths, after what main.py does with it, and then the nodes."""
    paths, config = host.module("folder_paths"), host.module("utils.extra_config")
    usual, args = find_comfy(host.folder) / "extra_model_paths.yaml", host.module("comfy.cli_args").args
    for file in [*([usual] if usual.is_file() else []), *chain(*(args.extra_model_paths_config or []))]:
        config.load_extra_path_config(str(file))
    paths.add_model_folder_path(FOLDER, os.path.join(paths.models_dir, FOLDER))
    return paths


@contextmanager
def _arguments(words: list[str]) -> Iterator[None]:
    """Replaces the arguments of this process; the name is for the parser's messages."""
    before, sys.argv = sys.argv, ["--comfyui-args", *words]
    try:
        yield
    finally:
        sys.argv = before
