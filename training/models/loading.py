"""Model files loaded by ComfyUI's own loaders, in any format and quantisation."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from ...samplers.comfy_experts import join_experts
from ...samplers.comfy_models import architecture_name, model_architecture
from ...samplers.files.write import has_suffix
from .host import Host

__all__ = ["Lora", "ModelFiles", "load_parts", "text_encoder_type"]


class Lora(NamedTuple):
    """A LoRA's file, and its strength in the diffusion model and in the text encoders."""

    file: Path
    strength: float

    def __str__(self) -> str:
        return f"{self.file.stem} at {self.strength:g}"

    @classmethod
    def of(cls, text: str, host: Host) -> Lora:
        """The LoRA of FILE or FILE:STRENGTH; ValueError if the host has no such file."""
        match = re.fullmatch(r"(.+):([-+]?\d*\.?\d+)", text)
        name, strength = match.groups() if match else (text, "1")
        return cls(host.find("loras", name), float(strength))


@dataclass(frozen=True)
class ModelFiles:
    """The files that make one model, and the ComfyUI that loads them.

    Args:
        checkpoint: Model, text encoders and VAE in one file.
        diffusion_model: The diffusion model alone, instead of a checkpoint.
        clip: Text encoders; they replace those of a checkpoint.
        vae: VAE; it replaces that of a checkpoint.
        host: The ComfyUI.
        clip_type: Member of ComfyUI's CLIPType for `clip`; None: the architecture's.
        second: The diffusion model for noise levels below `boundary`; None: the same.
        boundary: A noise level; None without a second model.
        loras: LoRAs on the model and its text encoders, the first one first.
    """

    checkpoint: Path | None = None
    diffusion_model: Path | None = None
    clip: tuple[Path, ...] = ()
    vae: Path | None = None
    host: Host = field(default_factory=Host)
    clip_type: str | None = None
    second: Path | None = None
    boundary: float | None = None
    loras: tuple[Lora, ...] = ()

    def __post_init__(self) -> None:
        if (self.second is None) != (self.boundary is None):
            raise ValueError("two models need --second-diffusion-model and --boundary: 0.875 for Wan 2.2 text to video")
        if self.second is not None and self.loras:
            raise ValueError(
                "with --second-diffusion-model there is no --lora, as each model has its own: use the node Fit Learned "
                "Solver, after Join Experts"
            )
        if (self.checkpoint is None) == (self.diffusion_model is None):
            raise ValueError(
                "specify one model: --checkpoint FILE, or --diffusion-model FILE with --clip and --vae; --demo uses "
                "the bundled small model, without ComfyUI"
            )

    @property
    def name(self) -> str:
        """The model file's name without its suffix."""
        return (self.checkpoint or self.diffusion_model or Path("model")).stem

    @property
    def names(self) -> list[str]:
        """The names of the model file and of its LoRAs."""
        return [self.name, *(lora.file.stem for lora in self.loras)]

    @property
    def with_loras(self) -> str:
        """What follows the name of a model with LoRAs: ", with LoRA style at 0.8"; empty without."""
        return f", with LoRA {', '.join(map(str, self.loras))}" if self.loras else ""

    def stamps(self, *, vae: bool = False) -> list[tuple[str, int, int, float]]:
        """Identity of the model, its encoders and LoRAs, and of its VAE.

        Path, size, modification time and strength of each file.
        """
        parts = (self.checkpoint, self.diffusion_model, self.second, *self.clip, *([self.vae] if vae else []))
        files = [(file, 1.0) for file in parts if file and file.exists()]
        stats = [(file, file.stat(), strength) for file, strength in (*files, *self.loras)]
        return [(str(file.resolve()), stat.st_size, stat.st_mtime_ns, strength) for file, stat, strength in stats]


def load_parts(files: ModelFiles, *, text_encoders: bool, dynamic: bool = True) -> tuple[Any, Any, Any]:
    """ComfyUI's ModelPatcher, CLIP or None, VAE or None; files named separately replace a checkpoint's parts.

    `dynamic`: with DynamicVRAM, where the server has it; no gradient passes through such a model.
    """
    host, checkpoint, diffusion_model = files.host, files.checkpoint, files.diffusion_model
    clip, vae, second = files.clip, files.vae, files.second
    _check_files([file for file in (checkpoint, diffusion_model, second, vae, *clip) if file is not None])
    _check_files([lora.file for lora in files.loras])
    sd, utils, *_ = map(host.module, ("comfy.sd", "comfy.utils", "comfy.samplers", "comfy.sampler_helpers"))
    if dynamic:
        host.start_dynamic_vram()
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
        raise ValueError(f"ComfyUI finds no diffusion model in {checkpoint or diffusion_model}: pass another file")
    if second is not None and files.boundary is not None:
        with _loading("a diffusion model with --second-diffusion-model", second):
            low = sd.load_diffusion_model(str(second))
        patcher = join_experts(patcher, low, files.boundary)
    if clip and text_encoders:
        kind = text_encoder_type(sd.CLIPType, patcher.model, files.clip_type)
        with _loading("the model's text encoders with --clip", *clip):
            encoders = sd.load_clip([str(file) for file in clip], clip_type=kind)
    for lora in files.loras:
        patcher, encoders = _with_lora(lora, patcher, encoders, host)
    if vae is not None:
        with _loading("the model's VAE with --vae", vae):
            own_vae = sd.VAE(sd=utils.load_torch_file(str(vae)))
            own_vae.throw_exception_if_invalid()
            _check_channels(own_vae, patcher.model)
    elif own_vae is not None and own_vae.first_stage_model is None:  # a checkpoint without one
        own_vae = None
    return patcher, encoders, own_vae


def _with_lora(lora: Lora, patcher: Any, encoders: Any, host: Host) -> tuple[Any, Any]:
    """A ModelPatcher and a CLIP (or None) with a LoRA, as the node Load LoRA makes them."""
    sd, utils = host.module("comfy.sd"), host.module("comfy.utils")
    with _loading("a LoRA with --lora", lora.file):
        weights = utils.load_torch_file(str(lora.file), safe_load=True)
        patched, encoders = sd.load_lora_for_models(patcher, encoders, weights, lora.strength, lora.strength)
    before, after = (sum(map(len, each.patches.values())) for each in (patcher, patched))
    if before == after:
        raise ValueError(
            f"the LoRA {lora.file} has no weights for this model ({architecture_name(patcher.model)}): pass one for it"
        )
    return patched, encoders


def text_encoder_type(types: Any, model: Any, name: str | None = None) -> Any:
    """The member of ComfyUI's CLIPType that loads a model's text encoders: the one named, else the architecture's.

    Raises:
        ValueError: The type is unknown; as a wrong one, the files would load without an error and encode nonsense.
    """
    facts = model_architecture(model)
    name = facts.text_encoder if name is None else name.upper()
    if name is None or not hasattr(types, name):
        known = ", ".join(kind.name.lower() for kind in types)
        unknown = f"of {facts.name} is unknown" if name is None else f"{name.lower()} is not in this ComfyUI"
        raise ValueError(
            f"the text encoder type {unknown}: pass --clip-type, one of {known}; or a checkpoint that includes the "
            "text encoders"
        )
    return types[name]


def _check_channels(vae: Any, model: Any) -> None:
    """Refuses a VAE for other latents; otherwise it would fail only after the fit, in decoding."""
    vae_channels, channels = getattr(vae, "latent_channels", None), model.latent_format.latent_channels
    if vae_channels is not None and vae_channels != channels:
        raise ValueError(
            f"its latents have {vae_channels} channels, but those of {architecture_name(model)} have {channels}"
        )


@contextmanager
def _loading(expected: str, *files: Path) -> Iterator[None]:
    """Refuses files that ComfyUI's loader fails on, with what was expected."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise
    # What loaders raise on a file of another kind, when keys are missing.
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError, pickle.PickleError) as error:
        # Of a pickle, torch.load advises unsafe loading: not repeated here.
        reason = "" if isinstance(error, pickle.PickleError) else f": {(str(error).splitlines() or [''])[0][:200]}"
        raise ValueError(
            f"ComfyUI cannot load {', '.join(map(str, files))} ({type(error).__name__}{reason}): pass {expected}"
        ) from error


def _check_files(files: Sequence[Path]) -> None:
    for file in files:
        if not file.is_file():
            problem = "is a folder" if file.is_dir() else "does not exist"
            raise ValueError(f"{file.absolute()} {problem}: pass a model file")
        keys: list[str] = []
        if has_suffix(file, ".safetensors"):
            try:
                with safe_open(file, framework="pt") as opened:
                    keys = [*opened.keys()]
            except SafetensorError as error:
                raise ValueError(f"{file} is not a readable safetensors file ({error}): download it again") from error
        with file.open("rb") as opened:
            pack = "ComfyUI-GGUF" if opened.read(4) == b"GGUF" else ""
        if any(key.endswith(".wscales") for key in keys):
            pack = "ComfyUI-nunchaku"
        if pack:
            raise ValueError(
                f"{file} is for the custom nodes {pack}, which run in ComfyUI only: load it there, and fit with the "
                "node Fit Learned Solver"
            )
