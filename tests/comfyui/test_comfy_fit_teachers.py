"""The teachers of the Fit Learned Solver node: a connected sampler, and another model."""

from __future__ import annotations

import pytest
from comfy_graphs import QUICK_FIT, fit, fitted_solver, ksampler, log_and_progress, one_node

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("sampler", "sigmas", "message"),
    [
        ("euler", True, None),
        ("dpmpp_2m", False, "the teacher's sigmas is not connected"),
        ("euler_ancestral", True, "euler_ancestral draws noise, so no solver can follow it"),
    ],
)
def test_a_connected_sampler_is_the_teacher(server, sampler, sigmas, message):
    graph = fit(server, "sd3", name="today", **QUICK_FIT)
    inputs = graph.prompt["fit"]["inputs"]
    inputs["sampler"] = graph.add("sampler", "KSamplerSelect", sampler_name=sampler)
    if sigmas:
        levels = {"scheduler": "simple", "steps": 7, "denoise": 1.0}
        inputs["sigmas"] = graph.add("sigmas", "BasicScheduler", model=["1", 0], **levels)
    if message:
        assert message in graph.error()
    else:
        step = fitted_solver(graph).card.steps[1]
        assert (step.teacher, step.teacher_steps) == (sampler, 7)


@pytest.mark.parametrize("kind", ["diffusion_models/tiny_sd3", "loras/tiny_sd3_lora"])
def test_a_distilled_model_or_lora_is_a_remark_unless_its_own_sampler_is_the_teacher(server, kind):
    file = server.base / "models" / f"{kind}.safetensors"
    if not (fast := file.with_stem(f"{file.stem}_lightning_4step")).exists():
        fast.hardlink_to(file)
    graph = fit(server, "sd3", name=fast.stem, **QUICK_FIT)
    if file.parent.name == "loras":
        lora = {"lora_name": fast.name, "strength_model": 1.0}
        graph.prompt["fit"]["inputs"]["model"] = graph.add("lora", "LoraLoaderModelOnly", model=["1", 0], **lora)
    else:
        graph.prompt["1"]["inputs"]["unet_name"] = fast.name
    with server.messages() as messages:
        fitted_solver(graph)
        log, _ = log_and_progress(messages)
    advice = "connect KSamplerSelect (euler) to sampler and BasicScheduler (simple, 4 steps) to sigmas, and set steps"
    for text in (log, graph.text("fit")):
        assert f"{fast.stem} looks distilled" in text and f"{advice} to 1." in text
    inputs = graph.prompt["fit"]["inputs"] | {"overwrite": True}
    inputs["sampler"] = graph.add("sampler", "KSamplerSelect", sampler_name="euler")
    schedule = {"scheduler": "simple", "steps": 4, "denoise": 1.0}
    inputs["sigmas"] = graph.add("sigmas", "BasicScheduler", model=["1", 0], **schedule)
    graph.prompt["fit"]["inputs"] = inputs
    assert fitted_solver(graph).card.steps[1].teacher_steps == 4 and "distilled" not in graph.text("fit")


def test_another_model_at_its_own_guidance_is_the_teacher(server):
    """The card's error is that of the two models in the server; the held-out sample has number 2."""
    graph = fit(server, "sd3", name="other", **QUICK_FIT)
    inputs, seed = graph.prompt["fit"]["inputs"], graph.prompt["fit"]["inputs"]["seed"] + 2
    lora = graph.add(
        "lora", "LoraLoaderModelOnly", model=["1", 0], lora_name="tiny_sd3_lora.safetensors", strength_model=1.0
    )
    levels = {"scheduler": "simple", "steps": 7, "denoise": 1.0}
    inputs["sigmas"] = graph.add("sigmas", "BasicScheduler", model=["1", 0], **levels)
    inputs["sampler"] = graph.add("sampler", "KSamplerSelect", sampler_name="euler")
    inputs |= {"model": lora, "teacher_model": ["1", 0], "teacher_cfg": 3.5}
    step = fitted_solver(graph).card.steps[1]
    assert (step.teacher, step.teacher_steps) == ("euler at guidance 3.5", 7)
    student = one_node("other.safetensors", 1, model=lora, seed=seed)
    graph.save(teacher=ksampler("euler", 7, cfg=3.5, seed=seed), student=student)
    teacher, student = graph.submit("teacher", "student")
    error = 1.5305 * float((student - teacher)[0].double().square().mean().sqrt())  # the card's is in the model's scale
    assert error == pytest.approx(step.error_after, rel=1e-3)
