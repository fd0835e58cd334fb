"""The table of architectures, compared with ComfyUI's sources, which are parsed, and with its workflow templates.

Then what reads it: models of ComfyUI, a fit's defaults, the text encoders' type, models of the WebUI.
"""

from __future__ import annotations

import ast
import json
import math
from enum import Enum
from functools import cache, cached_property
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import pytest
from comfy_host import ROOT, checkouts, python_of
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

# Templates of the package comfyui_workflow_templates that the usual settings of an architecture are from.
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
# CFG that is not the template's: see the sources in architectures.py. Shifts of templates other than the model's own.
OTHER_CFG = {"SD15", "SD20", "SDXL", "SDXLRefiner"}
OTHER_SHIFT = {"Chroma", "ChromaRadiance", "HiDream", "Kandinsky5", "Lumina2"}


class Host:
    """A ComfyUI checkout's sources."""

    def __init__(self, checkout: Path) -> None:
        self.checkout = checkout

    @cache  # noqa: B019 - a few files in a few objects
    def parsed(self, name: str) -> ast.Module:
        return ast.parse((self.checkout / "comfy" / f"{name}.py").read_text(encoding="utf-8"))

    @cache  # noqa: B019
    def classes(self, name: str) -> dict[str, ast.ClassDef]:
        return {node.name: node for node in self.parsed(name).body if isinstance(node, ast.ClassDef)}

    def lineage(self, file: str, name: str) -> list[ast.ClassDef]:
        """A class and its bases within the file, from near to far."""
        found = self.classes(file)
        line = [found[name]] if name in found else []
        for base in line[0].bases if line else ():
            line += self.lineage(file, ast.unparse(base).rpartition(".")[2])
        return line

    @cached_property
    def names(self) -> list[str]:
        """The architectures: supported_models.models."""
        (listed,) = (
            node.value
            for node in self.parsed("supported_models").body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "models"
        )
        return [name for name in map(ast.unparse, listed.elts) if name in self.classes("supported_models")]

    def record(self, name: str) -> Architecture:
        """What the table says of an architecture of this host."""
        return architecture_of(*(base.name for base in self.lineage("supported_models", name)))

    def setting(self, name: str, attribute: str) -> ast.expr | None:
        """A class attribute of an architecture."""
        for node in self.lineage("supported_models", name):
            for entry in node.body:
                if isinstance(entry, ast.Assign) and ast.unparse(entry.targets[0]) == attribute:
                    return entry.value
        return None

    def method(self, name: str, method: str) -> ast.FunctionDef | None:
        for node in self.lineage("supported_models", name):
            for entry in node.body:
                if isinstance(entry, ast.FunctionDef) and entry.name == method:
                    return entry
        return None

    def model(self, name: str) -> list[ast.ClassDef]:
        """The class of model_base that an architecture's models are, with its bases."""
        made = self.method(name, "get_model")
        calls = [node.func for node in ast.walk(made) if isinstance(node, ast.Call)] if made else []
        names = [call.attr for call in calls if ast.unparse(call).startswith("model_base.")]
        return self.lineage("model_base", names[-1] if names else "BaseModel")

    def model_type(self, name: str) -> str:
        """The name of a model's ModelType."""
        for method in ("get_model", "model_type"):
            if (found := self.method(name, method)) and "ModelType." in (text := ast.unparse(found)):
                return text.rpartition("ModelType.")[2].split(",")[0].split(")")[0].split()[0]
        entries = (entry for node in self.model(name) for entry in node.body)
        init = next(entry for entry in entries if isinstance(entry, ast.FunctionDef) and entry.name == "__init__")
        return ast.unparse(init.args).partition("ModelType.")[2].split(",")[0]

    def default_guidance(self, name: str) -> float | None:
        """The guidance that a model hands to its network where the conditioning has none."""
        for node in self.model(name):
            for call in (c for c in ast.walk(node) if isinstance(c, ast.Call) and len(c.args) == 2):
                if ast.unparse(call).startswith("out.pop('guidance'"):
                    return None
                if ast.unparse(call).startswith("kwargs.get('guidance', "):
                    return call.args[1].value
        return None

    def shift(self, name: str) -> float | None:
        """The shift of a flow model's noise levels: ModelSamplingFlux keeps its logarithm."""
        kind, found = self.model_type(name), self.setting(name, "sampling_settings")
        own = ast.literal_eval(found).get("shift") if found is not None else None
        if kind == "FLUX":
            return math.exp(1.15 if own is None else own)
        return (own or 1.0) if kind.startswith("FLOW") and kind != "FLOW_COSMOS" else None

    @cached_property
    def encoder_types(self) -> dict[str, set[str]]:
        """The members of CLIPType that load_text_encoder_state_dicts asks for, by the tokenizer it then takes."""
        (load,) = (
            node
            for node in self.parsed("sd").body
            if isinstance(node, ast.FunctionDef) and node.name == "load_text_encoder_state_dicts"
        )
        types: dict[str, set[str]] = {}
        for branch in (node for node in ast.walk(load) if isinstance(node, ast.If)):
            for entry in branch.body:
                if isinstance(entry, ast.Assign) and ast.unparse(entry.targets[0]) == "clip_target.tokenizer":
                    members = {a.attr for a in ast.walk(branch.test) if isinstance(a, ast.Attribute)}
                    tokenizer = ast.unparse(entry.value).rpartition(".")[2]
                    types.setdefault(tokenizer, set()).update(members & self.encoders)
        return types

    @cached_property
    def encoders(self) -> set[str]:
        """The members of CLIPType."""
        return {ast.unparse(e.targets[0]) for e in self.classes("sd")["CLIPType"].body if isinstance(e, ast.Assign)}

    def tokenizers(self, name: str) -> set[str]:
        """The tokenizers of an architecture's checkpoints."""
        target = self.method(name, "clip_target")
        calls = [n for n in ast.walk(target) if isinstance(n, ast.Call)] if target else []
        return {
            ast.unparse(call.args[0]).rpartition(".")[2]
            for call in calls
            if ast.unparse(call.func).endswith("ClipTarget")
        }

    def template(self, name: str) -> list[object] | None:
        """The values of all widgets of a workflow template; None where it is not installed."""
        package = "lib/python*/site-packages/comfyui_workflow_templates*/templates"
        for file in python_of(self.checkout).parent.parent.glob(f"{package}/{name}.json"):
            workflow = json.loads(file.read_text(encoding="utf-8"))
            graphs = [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]
            found = [node.get("widgets_values") or [] for graph in graphs for node in graph["nodes"]]
            lists = [list(values.values()) if isinstance(values, dict) else values for values in found]
            return [value for values in lists for value in values]
        return None


HOSTS = [Host(checkout) for checkout in checkouts()]
hosts = pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.checkout.name)
records = pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)


@pytest.mark.comfy
@pytest.mark.skipif(not HOSTS, reason="no ComfyUI")
@records
def test_a_name_is_that_of_a_class_in_comfyui(record):
    assert any(record.name in host.names for host in HOSTS)


@pytest.mark.comfy
@hosts
def test_the_guidance_without_one_in_the_conditioning_is_the_hosts(host):
    found = {name: host.record(name).host_guidance for name in host.names}
    expected = {name: host.default_guidance(name) for name in host.names}
    assert expected.pop("Hunyuan3Dv2_1") == 5.0  # which its network does not read
    assert found.pop("Hunyuan3Dv2_1") is None
    assert found == expected and {0.0, 3.5, 5.0, 6.0} <= set(found.values())


@pytest.mark.comfy
@hosts
def test_a_shift_is_the_models_own_or_a_templates(host):
    other = set()
    for name in host.names:
        record, own = host.record(name), host.shift(name)
        if record.shift is not None and own is not None and own != pytest.approx(record.shift, rel=0.02):
            other.add(record.name)
    assert other <= OTHER_SHIFT


@pytest.mark.comfy
@hosts
def test_a_text_encoder_type_loads_the_tokenizer_of_the_architectures_checkpoints(host):
    for name in host.names:
        encoder = host.record(name).text_encoder
        if encoder is None:
            continue
        assert encoder in host.encoders, name
        for tokenizer in host.tokenizers(name) & host.encoder_types.keys():
            types = host.encoder_types[tokenizer]  # none: the file itself shows what it is
            assert not types or encoder in types, (name, types)


@pytest.mark.comfy
@hosts
def test_usual_sizes_are_whole_numbers_of_tokens(host):
    for name in host.names:
        record, form = host.record(name), host.setting(name, "latent_format")
        if record.size is None or form is None:
            continue
        ratios = [
            entry.value.value
            for node in host.lineage("latent_formats", ast.unparse(form).rpartition(".")[2])
            for entry in node.body
            if isinstance(entry, ast.Assign) and ast.unparse(entry.targets[0]) == "spacial_downscale_ratio"
        ]
        assert all(side % ((ratios or [8])[0] * (record.patch or 1)) == 0 for side in record.size), name


@pytest.mark.comfy
@pytest.mark.parametrize("name", TEMPLATES)
def test_usual_settings_are_in_a_template_of_comfyui(name):
    record, values = architecture_of(name), []
    for template in TEMPLATES[name].split():
        values += next((found for host in HOSTS if (found := host.template(template))), [])
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


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("Flux2K4B", "Flux2"),
        ("Flux2K9B", "Flux2"),
        ("SD35", "SD3"),
        ("is_sd1", "SD15"),
        ("is_sd2", "SD20"),
        ("is_sdxl", "SDXL"),
        ("is_sd3", "SD3"),
    ],
)
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
    """Returns a BaseModel of an architecture, given with its bases, whose network has some attributes."""
    config = type("BASE", (), {})
    for name in reversed(classes):
        config = type(name, (config,), {"unet_config": {} if embeds is None else {"guidance_embed": embeds}})
    return SimpleNamespace(model_config=config(), diffusion_model=SimpleNamespace(**network))


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        (fake("Flux", patch_size=2), 64 * 48),
        (fake("Flux"), 64 * 48),  # Nunchaku's wrapper says nothing
        (fake("Flux2", "Flux", patch_size=1), 128 * 96),
        (fake("Lens", patch_size=2), 128 * 96),  # its latents come packed
        (fake("Anima", patch_spatial=2), 64 * 48),
        (fake("LTXV"), 128 * 96),
        (fake("WAN21_Vace", "WAN21_T2V", patch_size=(1, 2, 2)), 64 * 48),
        (fake("Later", patch_size=4), 32 * 24),
        (fake("Later", patch_size=[1, 4, 2]), 32 * 48),
        (fake("Later"), None),
        (fake("SD15"), None),
    ],
    ids=lambda value: architecture_name(value) if isinstance(value, SimpleNamespace) else None,
)
def test_latent_tokens_are_counted_by_the_record_then_by_the_network(model, tokens):
    assert latent_tokens(model, [1, 16, 128, 96]) == latent_tokens(model, [1, 16, 21, 128, 96]) == tokens
    assert latent_tokens(model, None) is None


@pytest.mark.parametrize(
    ("model", "embeds", "default"),
    [
        (fake("Flux", embeds=True), True, 3.5),
        (fake("FluxSchnell", "Flux", embeds=False), False, 3.5),
        (fake("Flux2", "Flux", embeds=False), False, 3.5),  # Klein
        (fake("HunyuanVideoI2V", "HunyuanVideo", embeds=True), True, 6.0),
        (fake("Chroma"), True, 0.0),
        (fake("Later", embeds=True), True, None),
        (fake("Later"), False, None),
        (fake("SD15"), False, None),
    ],
)
def test_embedded_guidance(model, embeds, default):
    assert (has_guidance(model), default_guidance(model)) == (embeds, default)
    assert model_architecture(model).name == architecture_name(model)


@pytest.mark.parametrize(
    ("model", "embeds", "usual", "size"),
    [
        (fake("SD15_instructpix2pix", "SD15"), False, 7.5, (512, 512)),
        (fake("Flux", embeds=True), True, 3.5, (1024, 1024)),
        (fake("FluxSchnell", "Flux", embeds=False), False, 1.0, (1024, 1024)),
        (fake("Flux2", "Flux", embeds=True), True, 4.0, (1024, 1024)),
        (fake("Flux2", "Flux", embeds=False), False, 5.0, (1024, 1024)),  # Klein
        (fake("HunyuanVideo", embeds=True), True, 6.0, (848, 480)),
        (fake("Chroma"), False, 3.5, (1024, 1024)),  # its embedded guidance always is 0
        (fake("WAN21_I2V", "WAN21_T2V"), False, 6.0, (832, 480)),
        (fake("Later", embeds=True), True, 3.5, (1024, 1024)),
        (fake("Later"), False, 5.0, (1024, 1024)),
    ],
)
def test_a_fit_takes_the_usual_guidance_and_size(model, embeds, usual, size):
    own = ComfyModel(SimpleNamespace(model=model), None, None)
    assert own.architecture == architecture_name(model)
    assert (own.embeds_guidance, own.usual_guidance, own.size) == (embeds, usual, size)


ClipType = Enum("ClipType", ["STABLE_DIFFUSION", "FLUX", "WAN", "HUNYUAN_VIDEO"])  # not FLUX2: an older ComfyUI


@pytest.mark.parametrize(
    ("model", "loaded", "known"),
    [
        (fake("WAN21_I2V", "WAN21_T2V"), ClipType.WAN, True),
        (fake("HunyuanVideo"), ClipType.HUNYUAN_VIDEO, True),
        (fake("SDXL"), ClipType.STABLE_DIFFUSION, True),
        (fake("Flux2", "Flux"), ClipType.STABLE_DIFFUSION, False),
        (fake("Later"), ClipType.STABLE_DIFFUSION, False),
    ],
)
def test_text_encoders_are_loaded_as_the_architectures_type_or_with_a_warning(model, loaded, known, caplog):
    assert text_encoder_type(ClipType, model) is loaded
    assert (caplog.text == "") == known
    assert known or f"The type of text encoders of {architecture_name(model)} is unknown" in caplog.text


# --- The WebUI.


def host_model():
    """Returns the WebUI extension's module, without the package around it, which wants its host."""
    path = ROOT / "webui_extension" / "host_model.py"
    spec = spec_from_file_location("learned_solvers.webui_extension.host_model", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def guessed(*classes):
    """Returns Forge's model of an architecture, given with its bases."""
    config = type("BASE", (), {"__module__": "huggingface_guess.model_list"})
    for name in reversed(classes):
        config = type(name, (config,), {"__module__": "huggingface_guess.model_list"})
    return SimpleNamespace(model_config=config())


@pytest.mark.parametrize(
    ("model", "name", "tokens"),
    [
        (guessed("Flux"), "Flux", 64 * 48),
        (guessed("Flux2K9B", "Flux"), "Flux2", 128 * 96),
        (guessed("SD35"), "SD3", 64 * 48),
        (guessed("Chroma", "FluxSchnell", "Flux"), "Chroma", 64 * 48),
        (guessed("Mugen", "SDXL"), "Mugen", 64 * 48),
        (SimpleNamespace(is_sd1=False, is_sdxl=True), "SDXL", 64 * 48),
        (SimpleNamespace(is_sd3=True), "SD3", 64 * 48),
        (SimpleNamespace(is_sd1=False), None, 64 * 48),
    ],
    ids=lambda value: value if isinstance(value, str) else "model",
)
def test_the_webuis_names_are_read_as_comfyuis(model, name, tokens):
    module = host_model()
    assert module.architecture(model) == name
    wrap = SimpleNamespace(inner_model=model, predictor=SimpleNamespace(prediction_type="const"))
    assert module.noise_of(wrap, (1, 16, 128, 96)).tokens == tokens
    assert module.noise_of(wrap, None).tokens is None
