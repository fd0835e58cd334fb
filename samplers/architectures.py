"""Facts about model architectures: usual settings, patch size, text encoders, aliases.

Sources; tests/engine/test_architectures.py compares the table with the first two:

- ComfyUI 0.33.0: names (supported_models.py), host guidance (model_base.py), shift, patch (model_detection.py and the
  networks), text encoder (sd.py).
- ComfyUI's workflow templates 0.11.44: sampler, scheduler, steps, guidance, size, frames, and a shift other than the
  model's own. If a template also has a distilled setting, the table has the undistilled one.
- diffusers: AuraFlow, PixArt, HunyuanDiT, HunyuanImage, Cosmos (its formula at 7 is CFG 8), CFG of SD 1.5 and 2.
- The WebUI: CFG of SDXL; AUTOMATIC1111's flags of a model, and Forge's and Forge Neo's names, as aliases.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = [
    "DEFAULT_CFG",
    "DEFAULT_GUIDANCE",
    "DEFAULT_PATCH",
    "DEFAULT_SIZE",
    "RECORDS",
    "Architecture",
    "architecture_of",
]

DEFAULT_CFG, DEFAULT_GUIDANCE, DEFAULT_SIZE, DEFAULT_PATCH = 5.0, 3.5, (1024, 1024), 2
"""For architectures without an entry."""

# The columns are the fields of Architecture: n is steps, emb. guidance, host host_guidance; size ends with the frames.
_TABLE = """
name                        sampler          sched.  n cfg emb. host shift size         patch encoder, aliases
SD15                        euler            normal 20 7.5    -    -     - 512x512          - STABLE_DIFFUSION is_sd1
SD20                        uni_pc_bh2       normal 20 7.5    -    -     - 768x768          - STABLE_DIFFUSION is_sd2
SDXL                        euler            normal 25   7    -    -     - 1024x1024        - STABLE_DIFFUSION is_sdxl
SDXLRefiner                 euler            normal 25   7    -    -     - 1024x1024        - STABLE_DIFFUSION
SD3                         euler            simple 32 4.5    -    -     3 1024x1024        2 SD3 is_sd3 SD35
Anima                       euler            simple 30   4    -    -     3 1024x1024        2 STABLE_DIFFUSION
AuraFlow                    -                -      50 3.5    -    -  1.73 1024x1024        2 STABLE_DIFFUSION
Boogu                       dpmpp_2m         simple 25 3.5    -    -  3.16 1024x1024        2 BOOGU
Chroma                      euler            beta   26 3.5    -    0     1 1024x1024        2 CHROMA
ChromaRadiance              euler            -      30 3.5    -    0     1 1024x1024       16 CHROMA
CosmosT2IPredict2           -                -      35   8    -    -     - 1360x768         2 COSMOS
ErnieImage                  euler            simple 20   4    -    -     3 1024x1024        1 FLUX2
Flux                        euler            simple 20   -  3.5  3.5  3.16 1024x1024        2 FLUX
FluxInpaint                 euler            normal 20   -   30  3.5  3.16 -                2 FLUX
FluxSchnell                 euler            simple  4   1    -  3.5     1 1024x1024        2 FLUX
Flux2                       euler            -      20   5    4  3.5  7.54 1024x1024        1 FLUX2 Flux2K4B Flux2K9B
HiDream                     uni_pc           simple 50   5    -    -     3 1024x1024        2 HIDREAM
HiDreamO1                   dpmpp_2m_sde_gpu normal 40   5    -    -     3 2048x2048       32 -
HunyuanDiT                  -                -      50   5    -    -     - 1024x1024        2 HUNYUAN_DIT
HunyuanImage21              -                -      50   - 3.25    6     5 2048x2048        - HUNYUAN_IMAGE
HunyuanImage21Refiner       -                -       -   -    -    6     4 -                - -
Ideogram4                   euler            -      20   7    -    -     1 1024x1024        1 IDEOGRAM4
JoyImage                    euler            normal 40   4    -    -   1.5 1024x1024        2 JOYIMAGE
Kandinsky5Image             euler            simple 50 3.5    -    -     3 1024x1024        2 KANDINSKY5_IMAGE
Krea2                       euler            simple  8   1    -    -  3.16 1024x1024        2 KREA2
Lens                        euler            simple 20   5    -    -  6.23 1440x1440        1 LENS
LongCatImage                euler            simple 20   4    -    -  3.16 1024x1024        2 LONGCAT_IMAGE
Lumina2                     res_multistep    simple 30   4    -    -     4 1024x1024        2 LUMINA2
MageFlow                    euler            simple 30   5    -    -     6 -                1 MAGE
Omnigen2                    euler            simple 20   5    -    -   2.6 1024x1024        2 OMNIGEN2
PiD                         lcm              simple  4   1    -    -   1.5 4096x4096       16 PIXELDIT
PixArtAlpha                 -                -      20 4.5    -    -     - 1024x1024        2 PIXART
PixelDiTT2I                 er_sde           simple 30   4    -    -     4 1024x1024       16 PIXELDIT
QwenImage                   euler            simple 50   4    -    -   3.1 1328x1328        2 QWEN_IMAGE
ZImage                      res_multistep    simple 25   4    -    -     3 1024x1024        2 LUMINA2
ZImagePixelSpace            -                -       -   -    -    -     3 -                - LUMINA2
CosmosT2V                   -                -      36   8    -    -     - 1280x704x121     2 COSMOS
GenmoMochi                  euler            simple 30 4.5    -    -     6 848x480x37       2 MOCHI
HunyuanVideo                euler            simple 20   -    6    6     7 848x480x73       2 HUNYUAN_VIDEO
HunyuanVideo15              euler            simple 20   6    -    6     7 1280x720x121     - HUNYUAN_VIDEO_15
HunyuanVideo15_SR_Distilled euler            simple  8   1    -    6     2 -                - HUNYUAN_VIDEO_15
Kandinsky5                  euler_ancestral  beta   50   5    -    -     5 768x512x121      2 KANDINSKY5
LTXV                        euler            -      30   3    -    -  10.7 768x512x97       1 LTXV
LTXAV                       euler_ancestral  -      20   4    -    -  10.7 768x512x97       1 LTXV
MiniMaxH3                   res_multistep    simple 20   1    -    -    12 -                2 MINIMAX
WAN21_T2V                   uni_pc           simple 20   6    -    -     8 832x480x81       2 WAN
WAN21_CausalAR_T2V          euler            simple  4   1    -    -     5 832x480x81       2 WAN
WAN22_T2V                   uni_pc           simple 20   5    -    -     8 1280x704x121     2 WAN
WAN_Animate2                lcm              simple 10   1    -    -     5 832x480x81       2 WAN
Hunyuan3Dv2                 euler            normal 20   8    -    5     1 -                - -
Hunyuan3Dv2_1               euler            normal 30   5    -    -     1 -                - -
"""


@dataclass(frozen=True)
class Architecture:
    """Facts about an architecture; None if unknown or not applicable.

    Args:
        name: Name of ComfyUI's class in supported_models.py, such as "Flux" or "SD15".
        sampler: Usual sampler, in ComfyUI's spelling.
        scheduler: Usual scheduler.
        steps: Usual number of steps.
        cfg: Usual classifier-free guidance of a network without embedded guidance.
        guidance: Usual embedded guidance of a network that reads one; its CFG is 1.
        host_guidance: Embedded guidance that ComfyUI uses if the conditioning has none.
        shift: Usual shift of a flow model's noise levels, sigma = shift * t / (1 + (shift - 1) * t).
        size: Usual width and height in pixels.
        frames: Usual number of frames of a video.
        patch: Latent pixels per token and side.
        text_encoder: Member of ComfyUI's CLIPType for loading the text encoders.
        aliases: Names in other hosts.
    """

    name: str
    sampler: str | None = None
    scheduler: str | None = None
    steps: int | None = None
    cfg: float | None = None
    guidance: float | None = None
    host_guidance: float | None = None
    shift: float | None = None
    size: tuple[int, int] | None = None
    frames: int | None = None
    patch: int | None = None
    text_encoder: str | None = None
    aliases: tuple[str, ...] = ()


def architecture_of(name: str, *bases: str) -> Architecture:
    """The record of an architecture; empty if nothing is known.

    Args:
        name: Its name, or an alias.
        bases: Names of its base classes in ComfyUI, nearest first. A class without a record gets the facts of the
            nearest base with one.
    """
    if name in _BY_NAME:
        return _BY_NAME[name]
    base_record = next((_BY_NAME[base] for base in bases if base in _BY_NAME), Architecture(name))
    return replace(base_record, name=name, aliases=())


def _text(cell: str) -> str | None:
    return None if cell == "-" else cell


def _number(cell: str) -> float | None:
    return None if cell == "-" else float(cell)


def _integer(cell: str) -> int | None:
    return None if cell == "-" else int(cell)


def _record(line: str) -> Architecture:
    """The record in a line of the table."""
    name, sampler, scheduler, steps, cfg, guidance, host, shift, size, patch, encoder, *aliases = line.split()
    width, height, *frames = (None, None) if size == "-" else map(int, size.split("x"))
    return Architecture(
        name,
        sampler=_text(sampler),
        scheduler=_text(scheduler),
        steps=_integer(steps),
        cfg=_number(cfg),
        guidance=_number(guidance),
        host_guidance=_number(host),
        shift=_number(shift),
        size=(width, height) if width and height else None,
        frames=frames[0] if frames else None,
        patch=_integer(patch),
        text_encoder=_text(encoder),
        aliases=tuple(aliases),
    )


RECORDS = tuple(map(_record, _TABLE.strip().splitlines()[1:]))
_BY_NAME = {name: record for record in RECORDS for name in (record.name, *record.aliases)}
