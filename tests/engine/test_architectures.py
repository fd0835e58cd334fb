"""The table of architectures, compared with ComfyUI's parsed sources and its workflow templates, and its readers."""

from __future__ import annotations

import ast
import json
import math
import re
from enum import Enum
from functools import cache, cached_property
from pathlib import Path
from types import SimpleNamespace

import pytest
from comfy_host import checkouts, python_of
from learned_solvers.samplers.architectures import RECORDS, Architecture, architecture_of
from learned_solvers.samplers.comfy_models import (
    architecture_name,
    default_guidance,
    has_guidance,
    latent_tokens,
    model_architecture,
)
from learned_solvers.training.models.comfy import ComfyModel
from learned_solvers.training.models.loading import text_encoder_type

# Templates of the package comfyui_workflow_templates with the usual settings of an architecture.
TEMPLATES = {
    "SDXL": "sdxl_simple_example",
    "SDXLRefiner": "sdxl_simple_example",
    "SD15": "default",
    "SD20": "embedding_example",
    "SD3": "sd3.5_large_canny_controlnet_example",
    "Anima": "image_anima_base_v1",
    "Boogu": "image_boogu_image_0_1_edit",
    "Chroma": "image_chroma_text_to_image",
    "ChromaRadiance": "image_chroma1_radiance_text_to_image",
    "ErnieImage": "image_ernie_image",
    "Flux": "flux1_dev_uso_reference_image_gen",
    "FluxInpaint": "flux_fill_inpaint_example",
    "FluxSchnell": "flux_schnell_full_text_to_image",
    "Flux2": "image_flux2_fp8 image_flux2_text_to_image_9b",
    "HiDream": "hidream_i1_full",
    "HiDreamO1": "image_hidream_o1",
    "Ideogram4": "image_ideogram4_t2i",
    "JoyImage": "image_joyai_image_edit",
    "Kandinsky5Image": "image_kandinsky5_t2i",
    "Krea2": "image_krea2_turbo_t2i",
    "Lens": "image_lens_t2i",
    "LongCatImage": "image_longcat_text_to_image",
    "Lumina2": "image_netayume_lumina_t2i",
    "MageFlow": "image_mage_flow_t2i_int8",
    "Omnigen2": "image_omnigen2_t2i",
    "PiD": "utility_pid_latent_upscale_dit",
    "PixelDiTT2I": "image_pixeldit_t2i",
    "QwenImage": "image_qwen_Image_2512",
    "ZImage": "image_z_image",
    "GenmoMochi": "mochi_text_to_video_example",
    "HunyuanVideo": "hunyuan_video_text_to_video",
    "HunyuanVideo15": "video_hunyuan_video_1.5_720p_t2v",
    "HunyuanVideo15_SR_Distilled": "video_hunyuan_video_1.5_720p_t2v",
    "Kandinsky5": "video_kandinsky5_t2v",
    "LTXV": "ltxv_text_to_video",
    "LTXAV": "video_ltx2_t2v",
    "MiniMaxH3": "video_minimax_h3_t2v",
    "WAN21_T2V": "video_wan2.1_fun_camera_v1.1_14B",
    "WAN22_T2V": "video_wan2_2_5B_ti2v",
    "WAN_Animate2": "video_wan_animate2_distilled",
    "Hunyuan3Dv2": "3d_hunyuan3d_image_to_model",
    "Hunyuan3Dv2_1": "3d_hunyuan3d-v2.1",
}
# CFG from another source than the template (see architectures.py); shifts of templates other than the model's own.
OTHER_CFG = {"SD15", "SD20", "SDXL", "SDXLRefiner"}
OTHER_SHIFT = {"Chroma", "ChromaRadiance", "HiDream", "Kandinsky5", "Lumina2"}


def value_of(statements: list[ast.stmt], name: str) -> ast.expr | None:
    """The value first assigned to a name."""
    assignments = (node for node in statements if isinstance(node, ast.Assign))
    return next((node.value for node in assignments if ast.unparse(node.targets[0]) == name), None)


def function_in(statements: list[ast.stmt], name: str) -> ast.FunctionDef | None:
    return next((node for node in statements if isinstance(node, ast.FunctionDef) and node.name == name), None)


def calls_in(node: ast.AST | None) -> list[ast.Call]:
    return [call for call in ast.walk(node) if isinstance(call, ast.Call)] if node else []


def last_name(node: ast.expr) -> str:
    return ast.unparse(node).rpartition(".")[2]


class Host:
    """A ComfyUI checkout's sources."""

    def __init__(self, checkout: Path) -> None:
        self.checkout = checkout

    @cache  # noqa: B019 - a few files in a few objects
    def statements(self, file: str) -> list[ast.stmt]:
        return ast.parse((self.checkout / "comfy" / f"{file}.py").read_text(encoding="utf-8")).body

    @cache  # noqa: B019
    def classes(self, file: str) -> dict[str, ast.ClassDef]:
        return {node.name: node for node in self.statements(file) if isinstance(node, ast.ClassDef)}

    def lineage(self, file: str, name: str) -> list[ast.ClassDef]:
        """A class and its bases within the file, nearest first."""
        classes = [self.classes(file)[name]] if name in self.classes(file) else []
        return classes + [c for node in classes for base in node.bases for c in self.lineage(file, last_name(base))]

    def members(self, file: str, name: str) -> list[ast.stmt]:
        """The statements in a class and its bases."""
        return [statement for node in self.lineage(file, name) for statement in node.body]

    @cached_property
    def names(self) -> list[str]:
        """The architectures: supported_models.models."""
        models = value_of(self.statements("supported_models"), "models")
        return [name for name in map(ast.unparse, models.elts) if name in self.classes("supported_models")]

    def record(self, name: str) -> Architecture:
        """The table's record of an architecture of this host."""
        return architecture_of(*(base.name for base in self.lineage("supported_models", name)))

    def setting(self, name: str, attribute: str) -> ast.expr | None:
        """A class attribute of an architecture."""
        return value_of(self.members("supported_models", name), attribute)

    def method(self, name: str, method: str) -> ast.FunctionDef | None:
        return function_in(self.members("supported_models", name), method)

    def model(self, name: str) -> str:
        """The class of an architecture's models in model_base."""
        calls = [call.func for call in calls_in(self.method(name, "get_model"))]
        names = [call.attr for call in calls if ast.unparse(call).startswith("model_base.")]
        return names[-1] if names else "BaseModel"

    def model_type(self, name: str) -> str:
        """The name of a model's ModelType."""
        for method in ("get_model", "model_type"):
            if (function := self.method(name, method)) and "ModelType." in (text := ast.unparse(function)):
                return re.match(r"\w+", text.rpartition("ModelType.")[2])[0]
        init = function_in(self.members("model_base", self.model(name)), "__init__")
        return re.search(r"ModelType\.(\w+)", ast.unparse(init.args))[1]

    def default_guidance(self, name: str) -> float | None:
        """The guidance that a model passes to its network if the conditioning has none."""
        for node in self.lineage("model_base", self.model(name)):
            for call in (c for c in calls_in(node) if len(c.args) == 2):
                if ast.unparse(call).startswith("out.pop('guidance'"):
                    return None
                if ast.unparse(call).startswith("kwargs.get('guidance', "):
                    return call.args[1].value
        return None

    def shift(self, name: str) -> float | None:
        """The shift of a flow model's noise levels: ModelSamplingFlux keeps its logarithm."""
        kind, settings = self.model_type(name), self.setting(name, "sampling_settings")
        shift = ast.literal_eval(settings).get("shift") if settings is not None else None
        if kind == "FLUX":
            return math.exp(1.15 if shift is None else shift)
        return (shift or 1.0) if kind.startswith("FLOW") and kind != "FLOW_COSMOS" else None

    @cached_property
    def encoders(self) -> set[str]:
        """The members of CLIPType."""
        return {ast.unparse(e.targets[0]) for e in self.classes("sd")["CLIPType"].body if isinstance(e, ast.Assign)}

    @cached_property
    def encoder_types(self) -> dict[str, set[str]]:
        """The members of CLIPType on which load_text_encoder_state_dicts takes a tokenizer, by tokenizer."""
        load = function_in(self.statements("sd"), "load_text_encoder_state_dicts")
        types: dict[str, set[str]] = {}
        for branch in (node for node in ast.walk(load) if isinstance(node, ast.If)):
            if tokenizer := value_of(branch.body, "clip_target.tokenizer"):
                members = {a.attr for a in ast.walk(branch.test) if isinstance(a, ast.Attribute)}
                types.setdefault(last_name(tokenizer), set()).update(members & self.encoders)
        return types

    def tokenizers(self, name: str) -> set[str]:
        """The tokenizers of an architecture's checkpoints."""
        calls = calls_in(self.method(name, "clip_target"))
        return {last_name(call.args[0]) for call in calls if ast.unparse(call.func).endswith("ClipTarget")}

    def pixels_per_token(self, name: str) -> int | None:
        """The side of a token in pixels; None without a latent format."""
        latent_format = self.setting(name, "latent_format")
        if latent_format is None:
            return None
        ratio = value_of(self.members("latent_formats", last_name(latent_format)), "spacial_downscale_ratio")
        return (ratio.value if ratio else 8) * (self.record(name).patch or 1)

    def template(self, name: str) -> list[object]:
        """The values of all widgets of a workflow template; empty if it is not installed."""
        package = "lib/python*/site-packages/comfyui_workflow_templates*/templates"
        values: list[object] = []
        for file in [*python_of(self.checkout).parent.parent.glob(f"{package}/{name}.json")][:1]:
            workflow = json.loads(file.read_text(encoding="utf-8"))
            for graph in [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]:
                for widgets in (node.get("widgets_values") or [] for node in graph["nodes"]):
                    values += widgets.values() if isinstance(widgets, dict) else widgets
        return values


HOSTS = [Host(checkout) for checkout in checkouts()]
hosts = pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.checkout.name)


@pytest.mark.comfy
@pytest.mark.skipif(not HOSTS, reason="no ComfyUI")
def test_a_name_is_that_of_a_class_in_comfyui():
    assert {record.name for record in RECORDS} <= {name for host in HOSTS for name in host.names}


@pytest.mark.comfy
@hosts
def test_the_guidance_without_one_in_the_conditioning_is_the_hosts(host):
    table = {name: host.record(name).host_guidance for name in host.names}
    expected = {name: host.default_guidance(name) for name in host.names}
    assert expected.pop("Hunyuan3Dv2_1") == 5.0  # which its network does not read
    assert table.pop("Hunyuan3Dv2_1") is None
    assert table == expected and {0.0, 3.5, 5.0, 6.0} <= set(table.values())


@pytest.mark.comfy
@hosts
def test_a_shift_is_the_models_own_or_a_templates(host):
    shifts = {name: (host.record(name).shift, host.shift(name)) for name in host.names}
    both = {name: (shift, own) for name, (shift, own) in shifts.items() if shift is not None and own is not None}
    assert len(both) > 20
    others = {name for name, (shift, own) in both.items() if own != pytest.approx(shift, rel=0.02)}
    assert {host.record(name).name for name in others} <= OTHER_SHIFT


@pytest.mark.comfy
@hosts
def test_a_text_encoder_type_loads_the_tokenizer_of_the_architectures_checkpoints(host):
    for name in host.names:
        encoder = host.record(name).text_encoder
        if encoder is None:
            continue
        assert encoder in host.encoders, name
        for tokenizer in host.tokenizers(name) & host.encoder_types.keys():
            types = host.encoder_types[tokenizer]  # none: the file itself decides
            assert not types or encoder in types, (name, types)


@pytest.mark.comfy
@hosts
def test_usual_sizes_are_whole_numbers_of_tokens(host):
    for name in host.names:
        if (pixels := host.pixels_per_token(name)) and (size := host.record(name).size):
            assert [side % pixels for side in size] == [0, 0], name


@pytest.mark.comfy
@pytest.mark.parametrize("name", TEMPLATES)
def test_usual_settings_are_in_a_template_of_comfyui(name):
    record, values = architecture_of(name), []
    for template in TEMPLATES[name].split():
        values += next(filter(None, (host.template(template) for host in HOSTS)), [])
    if not values:
        pytest.skip(f"{TEMPLATES[name]}: no ComfyUI here has this template")
    facts = [record.sampler, record.scheduler, record.steps, record.guidance, *(record.size or ()), record.frames]
    facts += [] if name in OTHER_CFG else [record.cfg]
    facts += [record.shift] if name in OTHER_SHIFT else []
    if name == "MiniMaxH3":  # its BasicGuider has no CFG
        facts.remove(1.0)
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


def test_an_unknown_architecture_has_an_empty_record():
    assert architecture_of("Later") == architecture_of("Later", "BASE", "object") == Architecture("Later")


def test_an_architecture_without_a_record_has_the_facts_of_the_nearest_base():
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
        (fake("Later"), False, None, 5.0, (1024, 1024)),
        (fake("SD15_instructpix2pix", "SD15"), False, None, 7.5, (512, 512)),
        (fake("WAN21_I2V", "WAN21_T2V"), False, None, 6.0, (832, 480)),
    ],
    ids=name_of,
)
def test_guidance_and_size(model, embeds, default, usual, size):
    assert (has_guidance(model), default_guidance(model)) == (embeds, default)
    fitted = ComfyModel(SimpleNamespace(model=model), None, None)
    assert fitted.architecture == model_architecture(model).name == architecture_name(model)
    assert (fitted.embeds_guidance, fitted.usual_guidance, fitted.size) == (embeds, usual, size)


def test_chroma_reads_an_embedded_guidance_that_is_always_0():
    model = fake("Chroma")
    fitted = ComfyModel(SimpleNamespace(model=model), None, None)
    assert (has_guidance(model), default_guidance(model)) == (True, 0.0)
    assert (fitted.embeds_guidance, fitted.usual_guidance) == (False, 3.5)


ClipType = Enum("ClipType", ["STABLE_DIFFUSION", "FLUX", "WAN", "HUNYUAN_VIDEO"])  # not FLUX2: an older ComfyUI


@pytest.mark.parametrize(
    ("model", "loaded", "known"),
    [
        (fake("WAN21_I2V", "WAN21_T2V"), ClipType.WAN, True),
        (fake("SDXL"), ClipType.STABLE_DIFFUSION, True),
        (fake("Flux2", "Flux"), ClipType.STABLE_DIFFUSION, False),
        (fake("Later"), ClipType.STABLE_DIFFUSION, False),
    ],
    ids=name_of,
)
def test_text_encoders_are_loaded_as_the_architectures_type_or_with_a_warning(model, loaded, known, caplog):
    assert text_encoder_type(ClipType, model) is loaded
    assert (caplog.text == "") == known
    assert known or f"text encoder type for {architecture_name(model)}" in caplog.text
