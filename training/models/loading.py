"""ComfyUI's folder, and model files loaded by its own loaders: every format and quantisation that it has."""

from __future__ import annotations

import importlib
import os
import pickle
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from ...samplers.comfy_models import model_family
from ...samplers.files.names import has_suffix

__all__ = ["Parts", "check_one_model", "find_comfy", "host_module", "load_parts"]

_ENCODERS = {"Flux": "FLUX", "FluxSchnell": "FLUX", "SD3": "SD3"}  # ComfyUI's CLIPType of architectures


class Parts(NamedTuple):
    """ComfyUI's ModelPatcher, its CLIP or None, its VAE or None."""

    patcher: Any
    clip: Any
    vae: Any


def find_comfy(folder: Path | None) -> Path:
    """Returns ComfyUI's folder: the one given, COMFYUI_PATH, or the one whose custom_nodes we live in.

    Raises:
        FileNotFoundError: None of them is a ComfyUI.
    """
    here = Path(os.path.abspath(__file__)).parents[4]
    places = [folder, *map(Path, os.environ.get("COMFYUI_PATH", "").split(os.pathsep)[:1]), here]
    for place in places:
        if place and (place / "comfy" / "sd.py").is_file():
            return place.resolve()
        if place is folder is not None:
            break
    where = f"in {folder}" if folder else f"around this folder, which is in no custom_nodes ({here})"
    raise FileNotFoundError(f"no ComfyUI {where}: name its folder with --comfyui, or set COMFYUI_PATH")


def check_one_model(checkpoint: Path | None, diffusion_model: Path | None) -> None:
    """Refuses neither and both kinds of model file.

    Raises:
        ValueError: Not one of them is named.
    """
    if (checkpoint is None) == (diffusion_model is None):
        raise ValueError(
            "name one model: --checkpoint FILE, or --diffusion-model FILE with --clip and --vae; --demo runs the "
            "bundled small one, without ComfyUI"
        )


def load_parts(
    comfy: Path,
    checkpoint: Path | None,
    diffusion_model: Path | None,
    clip: Sequence[Path],
    vae: Path | None,
    *,
    text_encoders: bool,
) -> Parts:
    """Returns the parts of a model; text encoders only where asked for, a checkpoint's own where `clip` names none.

    Raises:
        ValueError: Neither or both kinds of model file, or one that ComfyUI cannot load as what it is named for.
    """
    check_one_model(checkpoint, diffusion_model)
    _check_files([file for file in (checkpoint, diffusion_model, vae, *clip) if file is not None])
    sd, utils = host_module(comfy, "comfy.sd"), host_module(comfy, "comfy.utils")
    encoders = own_vae = None
    if checkpoint is not None:
        with _loading("a checkpoint with --checkpoint", checkpoint):
            patcher, encoders, own_vae, _ = sd.load_checkpoint_guess_config(
                str(checkpoint), output_vae=vae is None, output_clip=text_encoders and not clip
            )
    else:
        assert diffusion_model is not None
        with _loading("a diffusion model with --diffusion-model", diffusion_model):
            patcher = sd.load_diffusion_model(str(diffusion_model))
    if patcher is None:
        raise ValueError(f"{checkpoint or diffusion_model}: ComfyUI finds no diffusion model in it")
    if clip and text_encoders:
        kind = _ENCODERS.get(model_family(patcher.model), "STABLE_DIFFUSION")
        with _loading("the model's text encoders with --clip", *clip):
            encoders = sd.load_clip([str(file) for file in clip], clip_type=getattr(sd.CLIPType, kind))
    if vae is not None:
        with _loading("the model's VAE with --vae", vae):
            own_vae = sd.VAE(sd=utils.load_torch_file(str(vae)))
            own_vae.throw_exception_if_invalid()
            _check_channels(own_vae, patcher.model)
    elif own_vae is not None and own_vae.first_stage_model is None:  # a checkpoint without one
        own_vae = None
    return Parts(patcher, encoders, own_vae)


def _check_channels(vae: Any, model: Any) -> None:
    """Refuses a VAE for other latents, which would fail only when the pictures are drawn."""
    own, wanted = getattr(vae, "latent_channels", None), model.latent_format.latent_channels
    if own is not None and own != wanted:
        raise ValueError(f"it decodes latents of {own} channels, those of {model_family(model)} have {wanted}")


@contextmanager
def _loading(wanted: str, *files: Path) -> Iterator[None]:
    """Names the files where ComfyUI's loader fails, with what they were to be."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise
    # What loaders meet in a file of another kind: they look for keys that are not there.
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError, pickle.PickleError) as error:
        # torch.load's advice on pickles is to read them unsafely: not repeated.
        told = "" if isinstance(error, pickle.PickleError) else f": {(str(error).splitlines() or [''])[0][:200]}"
        raise ValueError(
            f"ComfyUI cannot load {', '.join(map(str, files))} ({type(error).__name__}{told}): name {wanted}"
        ) from error


def _check_files(files: Sequence[Path]) -> None:
    for file in files:
        if not file.is_file():
            found = "is a folder" if file.is_dir() else "does not exist"
            raise ValueError(f"{file.absolute()} {found}: name a model file")
        if has_suffix(file, ".safetensors"):
            try:
                with safe_open(file, framework="pt"):
                    pass
            except SafetensorError as error:
                raise ValueError(f"{file} is no readable safetensors file ({error}): get it again") from error


def host_module(comfy: Path, name: str) -> Any:
    """Returns a module of ComfyUI; on a machine without an accelerator it is told so first.

    Raises:
        ValueError: This Python lacks what ComfyUI needs.
    """
    if str(comfy) not in sys.path:
        sys.path.insert(0, str(comfy))
    try:
        options = importlib.import_module("comfy.cli_args")
        accelerators = [torch.cuda, getattr(torch, "xpu", torch.cuda), torch.backends.mps]
        if not any(a.is_available() for a in accelerators):
            options.args.cpu = True
        importlib.import_module("comfy.samplers")
        importlib.import_module("comfy.sampler_helpers")
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"ComfyUI in {comfy} needs {error.name}, which {sys.executable} does not have: run this with the Python "
            "that runs your ComfyUI"
        ) from error
