"""Distilled models are recognised by the names of real files, and by the usual values of their architecture."""

from __future__ import annotations

import pytest
import torch
from learned_solvers.samplers.architectures import architecture_of
from learned_solvers.training.models.distilled import distilled_remark
from learned_solvers.training.starts.candidates import UsualSampler

USUAL = UsualSampler("euler", "simple", lambda steps: torch.linspace(1, 0, steps + 1))


def advice(architecture: str, *names: str, steps: tuple[int, ...] = (6,)) -> str | None:
    """The steps that a teacher is advised to take, and those of the solver; None without a remark."""
    remark = distilled_remark(
        architecture_of(architecture), names, USUAL, steps, "{sampler} {scheduler} {steps}/{fewer}"
    )
    return None if remark is None else remark.removesuffix(".").rpartition(", euler simple ")[2]


@pytest.mark.parametrize(
    ("architecture", "name", "expected"),
    [
        ("SDXL", "sdxl_lightning_4step", "4/2"),
        ("SDXL", "DreamShaperXL_Turbo_v2_1", "8/6"),
        ("SDXL", "dmd2_sdxl_4step_unet_fp16", "4/2"),
        ("SD15", "Hyper-SD15-8steps-lora", "8/6"),
        ("SD15", "lcm-lora-sdv1-5", "8/6"),
        ("ZImage", "z_image_turbo_bf16", "8/6"),
        ("FluxSchnell", "flux1-schnell-fp8", "4/2"),
        ("FluxSchnell", "anything", "4/2"),  # by its usual values
        ("Flux2", "flux-2-klein-4b", "4/2"),
        ("QwenImage", "Qwen-Image-Lightning-8steps-V1.1-bf16", "8/6"),
        ("WAN21_T2V", "wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise", "4/2"),
        ("WAN21_T2V", "Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32", "4/2"),
        ("Krea2", "krea2", "8/6"),
        ("Flux2", "flux-2-klein-base-4b", None),
        ("SDXL", "sd_xl_base_1.0", None),
        ("SD15", "v1-5-pruned-emaonly-fp16", None),
        ("SD15", "hyperrealism_v30", None),
        ("SDXL", "portrait-lora-2000steps", None),
        ("SDXL", "style-v2-step00018000", None),
        ("SDXL", "style_v2_step_500", None),
        ("MiniMaxH3", "minimax_h3_fl2va", None),  # CFG 1, but 20 steps
    ],
)
def test_distilled_models_are_known_by_their_names_or_usual_values(architecture, name, expected):
    assert advice(architecture, name) == expected


def test_a_lora_shows_it_too_and_the_advice_keeps_the_steps_of_the_fit_where_they_are_few():
    assert advice("SD3", "sd3.5_large", "sdxl_lightning_8step", steps=(4, 6)) == "8/4 6"
    assert advice("SDXL", "sdxl_lightning_8step", steps=(4, 8)) == "8/4"
