"""The table of architectures, compared with ComfyUI's sources and its workflow templates, and its readers."""

from __future__ import annotations

import json
from enum import Enum
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comfy_host import EACH_CHECKOUT, checkouts, python_of, run_script
from learned_solvers.samplers import comfy_models
from learned_solvers.samplers.architectures import RECORDS, Architecture, architecture_of
from learned_solvers.samplers.comfy_models import (
    architecture_name,
    default_guidance,
    fingerprint,
    has_guidance,
    latent_ratios,
    latent_tokens,
)
from learned_solvers.training.models.comfy import ComfyModel
from learned_solvers.training.models.loading import text_encoder_type

# Templates of the package comfyui_workflow_templates with the usual settings of an architecture.
TEMPLATES = {
    **{"SDXL": "sdxl_simple_example", "SDXLRefiner": "sdxl_simple_example", "SD15": "default"},
    **{"SD20": "embedding_example", "SD3": "sd3.5_large_canny_controlnet_example", "Anima": "image_anima_base_v1"},
    **{"Boogu": "image_boogu_image_0_1_edit", "Chroma": "image_chroma_text_to_image"},
    **{"ChromaRadiance": "image_chroma1_radiance_text_to_image", "ErnieImage": "image_ernie_image"},
    **{"Flux": "flux1_dev_uso_reference_image_gen", "FluxInpaint": "flux_fill_inpaint_example"},
    **{"FluxSchnell": "flux_schnell_full_text_to_image", "Flux2": "image_flux2_fp8 image_flux2_text_to_image_9b"},
    **{"HiDream": "hidream_i1_full", "HiDreamO1": "image_hidream_o1", "Ideogram4": "image_ideogram4_t2i"},
    **{"JoyImage": "image_joyai_image_edit", "Kandinsky5Image": "image_kandinsky5_t2i"},
    **{"Krea2": "image_krea2_turbo_t2i", "Lens": "image_lens_t2i", "LongCatImage": "image_longcat_text_to_image"},
    **{"Lumina2": "image_netayume_lumina_t2i", "MageFlow": "image_mage_flow_t2i_int8"},
    **{"Omnigen2": "image_omnigen2_t2i", "PiD": "utility_pid_latent_upscale_dit", "PixelDiTT2I": "image_pixeldit_t2i"},
    **{"QwenImage": "image_qwen_Image_2512", "ZImage": "image_z_image", "GenmoMochi": "mochi_text_to_video_example"},
    **{"HunyuanVideo": "hunyuan_video_text_to_video", "HunyuanVideo15": "video_hunyuan_video_1.5_720p_t2v"},
    **{"HunyuanVideo15_SR_Distilled": "video_hunyuan_video_1.5_720p_t2v", "Kandinsky5": "video_kandinsky5_t2v"},
    **{"LTXV": "ltxv_text_to_video", "LTXAV": "video_ltx2_t2v", "MiniMaxH3": "video_minimax_h3_t2v"},
    **{"WAN21_T2V": "video_wan2.1_fun_camera_v1.1_14B", "WAN22_T2V": "video_wan2_2_5B_ti2v"},
    **{"WAN_Animate2": "video_wan_animate2_distilled", "Hunyuan3Dv2": "3d_hunyuan3d_image_to_model"},
    "Hunyuan3Dv2_1": "3d_hunyuan3d-v2.1",
}
# CFG from another source than the template (see architectures.py); shifts of templates other than the model's own.
OTHER_CFG = {"SD15", "SD20", "SDXL", "SDXLRefiner"}
OTHER_SHIFT = {"Chroma", "ChromaRadiance", "HiDream", "Kandinsky5", "Lumina2"}


@cache
def facts_of(checkout: Path) -> dict[str, Any]:
    """What a checkout's own sources say, see tests/hosts/architecture_facts.py."""
    return json.loads(run_script(checkout, "architecture_facts.py").splitlines()[-1])


@pytest.fixture(params=EACH_CHECKOUT)
def host(request):
    """A checkout's facts; each architecture as its name, our record and ComfyUI's facts."""
    facts = facts_of(request.param)
    rows = [(a["lineage"][0], architecture_of(*a["lineage"]), SimpleNamespace(**a)) for a in facts["architectures"]]
    return SimpleNamespace(**{**facts, "architectures": rows})


def widgets_of(checkout: Path, name: str) -> list[object]:
    """The values of all widgets of a workflow template; empty if it is not installed."""
    package = "lib/python*/site-packages/comfyui_workflow_templates*/templates"
    values: list[object] = []
    for file in [*python_of(checkout).parent.parent.glob(f"{package}/{name}.json")][:1]:
        workflow = json.loads(file.read_text(encoding="utf-8"))
        for graph in [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]:
            for widgets in (node.get("widgets_values") or [] for node in graph["nodes"]):
                values += widgets.values() if isinstance(widgets, dict) else widgets
    return values


@pytest.mark.comfy
@pytest.mark.skipif(not checkouts(), reason="no ComfyUI")
def test_a_name_is_that_of_a_class_in_comfyui():
    known = {a["lineage"][0] for checkout in checkouts() for a in facts_of(checkout)["architectures"]}
    assert {record.name for record in RECORDS} <= known


@pytest.mark.comfy
def test_the_guidance_without_one_in_the_conditioning_is_the_hosts(host):
    table = {name: record.host_guidance for name, record, _ in host.architectures}
    expected = {name: facts.guidance for name, _, facts in host.architectures}
    assert expected.pop("Hunyuan3Dv2_1") == 5.0  # which its network does not read
    assert table.pop("Hunyuan3Dv2_1") is None
    assert table == expected and {0.0, 3.5, 5.0, 6.0} <= set(table.values())


@pytest.mark.comfy
def test_a_shift_is_the_models_own_or_a_templates(host):
    both = [(r, facts.shift) for _, r, facts in host.architectures if r.shift is not None and facts.shift is not None]
    assert len(both) > 20
    assert {record.name for record, own in both if own != pytest.approx(record.shift, rel=0.02)} <= OTHER_SHIFT


@pytest.mark.comfy
def test_a_text_encoder_type_loads_the_tokenizer_of_the_architectures_checkpoints(host):
    for name, record, facts in host.architectures:
        assert record.text_encoder in {None, *host.encoders}, name
        for types in (host.types.get(tokenizer) for tokenizer in facts.tokenizers if record.text_encoder):
            assert not types or record.text_encoder in types, (name, types)  # no types: the file itself decides
    assert len(host.types) > 10


@pytest.mark.comfy
def test_usual_sizes_are_whole_numbers_of_tokens_and_frames_of_an_old_host_those_of_a_new_one(host):
    for name, record, facts in host.architectures:
        by_name = latent_ratios(type(facts.latents, (), {})())
        pixels, frames = ratios = latent_ratios(type(facts.latents, (), facts.ratios)())
        assert all(side % (pixels * (record.patch or 1)) == 0 for side in record.size or ()), name
        assert ((record.frames or 1) - 1) % frames == 0, name
        assert facts.latents not in comfy_models._OLD_RATIOS or ratios == by_name, name


@pytest.mark.comfy
@pytest.mark.parametrize("name", TEMPLATES)
def test_usual_settings_are_in_a_template_of_comfyui(name):
    record, values = architecture_of(name), []
    for template in TEMPLATES[name].split():
        values += next(filter(None, (widgets_of(checkout, template) for checkout in checkouts())), [])
    if not values:
        pytest.skip(f"{TEMPLATES[name]}: no ComfyUI here has this template")
    facts = [record.sampler, record.scheduler, record.steps, record.guidance, *(record.size or ()), record.frames]
    facts += [] if name in OTHER_CFG else [record.cfg]
    facts += [record.shift] if name in OTHER_SHIFT else []
    if name == "MiniMaxH3":  # its BasicGuider has no CFG
        facts.remove(1.0)
    values = [value for value in values if not isinstance(value, bool)]  # True equals 1.0
    assert [fact for fact in facts if fact is not None and fact not in values] == []


def test_names_and_aliases_are_unique():
    names = [name for record in RECORDS for name in (record.name, *record.aliases)]
    assert len(names) == len(set(names)) and TEMPLATES.keys() <= set(names)


ALIASES = {"Flux2K4B": "Flux2", "Flux2K9B": "Flux2", "SD35": "SD3"}
ALIASES |= {"is_sd1": "SD15", "is_sd2": "SD20", "is_sdxl": "SDXL", "is_sd3": "SD3"}


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_an_alias_is_the_architecture_itself(alias, name):
    assert architecture_of(alias) is architecture_of(name)
    assert architecture_of(alias, "Flux", "BASE").name == name


def test_an_architecture_without_a_record_has_the_facts_of_the_nearest_base_or_none():
    assert architecture_of("Later") == architecture_of("Later", "BASE", "object") == Architecture("Later")
    vace = architecture_of("WAN21_Vace", "WAN21_T2V", "BASE", "object")
    assert (vace.name, vace.text_encoder, vace.size, vace.frames) == ("WAN21_Vace", "WAN", (832, 480), 81)
    ssd = architecture_of("SSD1B", "SDXL", "BASE", "object")
    assert (ssd.name, ssd.cfg, ssd.aliases) == ("SSD1B", 7.0, ())  # is_sdxl is not its name


def fake(*classes, embeds=None, **network):
    """A BaseModel of an architecture, given with its bases, whose network has some attributes."""
    config = type("BASE", (), {})
    for name in reversed(classes):
        config = type(name, (config,), {"unet_config": {} if embeds is None else {"guidance_embed": embeds}})
    return SimpleNamespace(model_config=config(), diffusion_model=SimpleNamespace(**network))


def name_of(value):
    return architecture_name(value) if isinstance(value, SimpleNamespace) else None


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        (fake("Flux", patch_size=2), 64 * 48),
        (fake("Flux"), 64 * 48),  # Nunchaku's wrapper has no patch_size
        (fake("Flux2", "Flux", patch_size=1), 128 * 96),
        (fake("Lens", patch_size=2), 128 * 96),  # its latents are packed
        (fake("Anima", patch_spatial=2), 64 * 48),
        (fake("WAN21_Vace", "WAN21_T2V", patch_size=(1, 2, 2)), 64 * 48),
        (fake("Later", patch_size=4), 32 * 24),
        (fake("Later", patch_size=[1, 4, 2]), 32 * 48),
        (fake("SD15"), None),
    ],
    ids=name_of,
)
def test_latent_tokens_depend_on_the_record_then_on_the_network(model, tokens):
    assert latent_tokens(model, [1, 16, 128, 96]) == latent_tokens(model, [1, 16, 21, 128, 96]) == tokens
    assert latent_tokens(model, None) is None


@pytest.mark.parametrize(
    ("model", "embeds", "default", "usual", "size"),
    [
        (fake("Flux", embeds=True), True, 3.5, 3.5, (1024, 1024)),
        (fake("FluxSchnell", "Flux", embeds=False), False, 3.5, 1.0, (1024, 1024)),
        (fake("Flux2", "Flux", embeds=True), True, 3.5, 4.0, (1024, 1024)),
        (fake("Flux2", "Flux", embeds=False), False, 3.5, 5.0, (1024, 1024)),  # Klein
        (fake("HunyuanVideoI2V", "HunyuanVideo", embeds=True), True, 6.0, 6.0, (848, 480)),
        (fake("Later", embeds=True), True, None, 3.5, (1024, 1024)),
        (fake("Chroma"), False, 0.0, 3.5, (1024, 1024)),  # reads an embedded guidance that is always 0
        (fake("Later"), False, None, 5.0, (1024, 1024)),
        (fake("SD15_instructpix2pix", "SD15"), False, None, 7.5, (512, 512)),
        (fake("WAN21_I2V", "WAN21_T2V"), False, None, 6.0, (832, 480)),
    ],
    ids=name_of,
)
def test_guidance_and_size(model, embeds, default, usual, size):
    assert (has_guidance(model), default_guidance(model)) == (embeds or default == 0, default)
    fitted = ComfyModel(SimpleNamespace(model=model), None, None)
    assert fitted.architecture == comfy_models.model_architecture(model).name == architecture_name(model)
    assert (fitted.embeds_guidance, fitted.usual_guidance, fitted.size) == (embeds, usual, size)


@pytest.mark.parametrize(
    ("latents", "frames", "shape", "pixels"),
    [
        ("Wan21", 81, [1, 16, 21, 60, 104], "832x480x81"),
        ("Wan22", 121, [1, 16, 31, 30, 52], "832x480x121"),
        ("LTXV", 97, [1, 16, 13, 15, 26], "832x480x97"),
        ("Wan21", 1, [1, 16, 1, 60, 104], "832x480"),
        ("SD3", 1, [1, 16, 60, 104], "832x480"),
        ("Wan21", 80, "--frames must be 1 more than a multiple of 4 for Wan, got 80: use 81", None),
        ("LTXAV", 97, "Wan makes video and sound together, and only a graph has the sizes of both", None),
        ("SD3", 81, "--frames is for video models, but Wan makes images: remove it", None),
    ],
)
def test_a_latent_has_the_size_and_the_frames_asked_for_also_where_the_host_does_not_name_ratios(
    latents, frames, shape, pixels
):
    sizes = {"latent_channels": 16, "latent_dimensions": 2 if latents == "SD3" else 3}
    base = SimpleNamespace(latent_format=type(latents, (), sizes)(), model_config=type("Wan", (), {})())
    model = ComfyModel(SimpleNamespace(model=base), None, None)
    if pixels is None:
        with pytest.raises(ValueError, match=shape):
            model.latent_shape(832, 480, frames)
    else:
        assert model.latent_shape(832, 480, frames) == shape and model.pixels(shape) == pixels


def network(seed=0, dtype=torch.float32, matrix=1.0):
    draw = torch.Generator().manual_seed(seed)
    values = {f"bias{i}": torch.randn(70, generator=draw).to(dtype) for i in range(40)}
    tensors = {**values, "matrix": torch.full((4, 4), matrix)}
    parameters = [(name, torch.nn.Parameter(tensor, requires_grad=False)) for name, tensor in tensors.items()]
    return SimpleNamespace(diffusion_model=SimpleNamespace(named_parameters=lambda: parameters))


def test_a_fingerprint_depends_on_the_vectors_and_not_on_their_precision_nor_on_matrices():
    same = {fingerprint(network(**change)) for change in ({}, {"dtype": torch.float16}, {"matrix": 2.0})}
    (own,) = same
    assert len(own) == 16 and fingerprint(network(seed=1)) not in same
    assert fingerprint(SimpleNamespace(diffusion_model=None)) == ""


ClipType = Enum("ClipType", ["STABLE_DIFFUSION", "FLUX", "WAN", "HUNYUAN_VIDEO"])  # not FLUX2: an older ComfyUI


@pytest.mark.parametrize(
    ("model", "name", "loaded"),
    [
        (fake("WAN21_I2V", "WAN21_T2V"), None, ClipType.WAN),
        (fake("SDXL"), None, ClipType.STABLE_DIFFUSION),
        (fake("Later"), "wan", ClipType.WAN),
        (fake("Flux2", "Flux"), None, "the text encoder type flux2 is not in this ComfyUI: pass --clip-type, one of"),
        (fake("Later"), None, "the text encoder type of Later is unknown: pass --clip-type, one of stable_diffusion,"),
        (fake("SDXL"), "mochi", "the text encoder type mochi is not in this ComfyUI"),
    ],
    ids=name_of,
)
def test_text_encoders_are_loaded_as_the_architectures_type_or_the_one_given(model, name, loaded):
    if isinstance(loaded, ClipType):
        assert text_encoder_type(ClipType, model, name) is loaded
    else:
        with pytest.raises(ValueError, match=loaded):
            text_encoder_type(ClipType, model, name)
