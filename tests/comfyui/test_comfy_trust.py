"""What a prompt must not be able to do, and two servers that share a folder, in real ComfyUI servers."""

from __future__ import annotations

import os
import shutil
import urllib.error
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from comfy_fits import fit, folder, written
from comfy_host import ROOT, Server, error_of, succeeded
from comfy_prompts import learned, model_nodes, node
from host_process import free_port

pytestmark = pytest.mark.comfy
BUNDLED = "ds_flow-sit"


@pytest.fixture(autouse=True)
def left_as_found(server):
    """Asserts that nothing is written but into the folder of solvers, and removes that."""
    folder(server).mkdir(parents=True, exist_ok=True)
    outside = {path for path in server.base.rglob("*") if outside_of(server, path)}
    before = written(server)
    yield
    assert {path for path in server.base.rglob("*") if outside_of(server, path)} == outside
    for path in written(server) - before:
        path.unlink()


def outside_of(server, path):
    hosts = ("output", "temp", "user", "server.log", "custom_nodes")
    own = folder(server)
    return path.relative_to(server.base).parts[0] not in hosts and path != own and not path.is_relative_to(own)


def asked(server, name):
    """Returns the status and the answer of the route that the browser asks for a solver's steps."""
    try:
        return 200, server.get(f"/learned_solvers/steps?solver={urllib.parse.quote(name, errors='surrogateescape')}")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


NAMES = [
    "",
    "..",
    "../x.safetensors",
    "../../models/checkpoints/tiny_sd15.safetensors",
    "/etc/passwd",
    "x\0.safetensors",
]
NAMES += ["..\\x.safetensors", "C:\\x.safetensors", "x" * 5000, "\n", "ds_flow-sit.safetensors", "../solver_weights/a"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_not_in_the_drop_down_is_no_solver(server, name):
    status, answer = asked(server, name)
    assert status == 404 and "no solver file is called" in answer and len(answer) < 600
    assert asked(server, BUNDLED)[0] == 200
    refused = server.submit(
        {"1": node("LearnedSolverInfo", solver=name, steps=0, scheduler="simple"), "2": preview("1")}
    )
    assert "refused" in refused


def preview(source):
    return node("PreviewImage", images=[source, 0])


def test_a_hostile_file_in_the_folder_is_named_and_hides_no_other(server):
    (folder(server) / "bomb.safetensors").write_bytes(b"\xff" * 7 + b"\x7f" + b"{}" * 46)
    (folder(server) / "circle.safetensors").symlink_to(folder(server) / "circle.safetensors")
    (folder(server) / "secret.safetensors").symlink_to("/etc/passwd")
    for name in ("bomb", "secret"):
        status, answer = asked(server, f"{name}.safetensors")
        assert (
            status == 404 and "not a safetensors file" in answer and "root" not in answer.replace(str(server.base), "")
        )
    prompt = {**model_nodes(server, "sd3"), "solver": learned("auto", 5)}
    prompt["info"] = node("PreviewAny", source=["solver", 2])
    assert BUNDLED in succeeded(server.submit(prompt))["outputs"]["info"]["text"][0]
    message = f"left out of the automatic choice: {folder(server) / 'bomb.safetensors'}: not a safetensors file"
    assert server.log.count(message) == 1
    prompt["solver"] = learned("auto", 6)
    succeeded(server.submit(prompt))
    assert server.log.count(message) == 1
    os.utime(folder(server) / "bomb.safetensors", (1, 1))
    prompt["solver"] = learned("auto", 7)
    succeeded(server.submit(prompt))
    assert server.log.count(message) == 2
    (folder(server) / "circle.safetensors").unlink()


def test_a_name_that_is_not_utf8_ends_no_run_and_is_named_in_the_log(server):
    path = Path(os.fsdecode(os.fsencode(folder(server)) + b"/caf\xe9.safetensors"))
    shutil.copy(ROOT / "solver_weights" / f"{BUNDLED}.safetensors", path)
    lists = server.get("/object_info/LearnedSolver")["LearnedSolver"]["input"]["required"]["solver"]
    assert BUNDLED in lists[0] and not any("caf" in name for name in lists[0])
    assert asked(server, "caf\udce9.safetensors")[0] == 404
    prompt = {**model_nodes(server, "sd3"), "solver": learned("auto", 20)}
    prompt["info"] = node("PreviewAny", source=["solver", 2])
    assert "no solver for SD3 (flow) model has 20 steps" in error_of(server.submit(prompt))
    prompt["solver"] = learned("auto", 5)
    succeeded(server.submit(prompt))
    message = r"the name of 'caf\udce9.safetensors' in models/solver_weights is not UTF-8; rename it"
    assert server.log.count(message) == 1


@pytest.mark.parametrize(
    ("denoise", "message"),
    [(float("nan"), "denoise must be from 0.01 to 1, got nan"), (-1.0, "got -1"), (0.0, "got 0"), (2.0, "got 2")],
)
def test_a_denoise_that_is_no_part_of_a_grid_is_refused(server, denoise, message):
    prompt = {**model_nodes(server, "sd3"), "solver": learned(BUNDLED, 5, denoise)}
    if denoise == denoise:  # the host refuses what is typed, not what is wired; of NaN not even that
        prompt["number"] = node("PrimitiveFloat", value=denoise)
        prompt["solver"]["inputs"]["denoise"] = ["number", 0]
    prompt["info"] = node("PreviewAny", source=["solver", 2])
    assert message in error_of(server.submit(prompt))


@pytest.mark.parametrize("steps", [10**9, -5, 0])
def test_a_step_count_that_is_wired_is_refused_like_one_that_is_typed(server, steps):
    prompt = {**model_nodes(server, "sd3"), "solver": learned(BUNDLED, 5), "number": node("PrimitiveInt", value=steps)}
    prompt["solver"]["inputs"]["steps"] = ["number", 0]
    prompt["info"] = node("PreviewAny", source=["solver", 2])
    assert f"was fitted for 5, 6, 7, 8, 9 and 10 steps, got {steps}" in error_of(server.submit(prompt))


@pytest.mark.parametrize(("widget", "most"), [("samples", 4096), ("teacher_steps", 1000)])
def test_a_fit_without_end_is_refused(server, widget, most):
    prompt = {**fit(server, "sd3", name="endless"), "number": node("PrimitiveInt", value=10**9)}
    prompt["fit"]["inputs"][widget] = ["number", 0]
    assert f"{widget} must be from 2 to {most}, got 1e+09" in error_of(server.submit(prompt))


def test_a_guidance_that_is_no_number_is_refused(server):
    assert "cfg must be from 0 to 100, got nan" in error_of(
        server.submit(fit(server, "sd3", name="x", cfg=float("nan")))
    )


@pytest.mark.parametrize(
    "name", ["/outside/name", "a/../../outside", "C:outside", "a\0b", "x" * 300, "é" * 120, "a\nb", ".."]
)
def test_a_fit_is_never_written_elsewhere(server, name):
    assert "file_name must be a name within models/solver_weights" in error_of(
        server.submit(fit(server, "sd3", name="x", file_name=name))
    )


def test_a_fit_is_not_written_through_a_link_that_leads_out(server, tmp_path):
    (folder(server) / "link").symlink_to(tmp_path, target_is_directory=True)
    message = error_of(server.submit(fit(server, "sd3", name="link/x")))
    assert "is a link that leads out of models/solver_weights" in message
    assert list(tmp_path.iterdir()) == []
    (folder(server) / "link").unlink()


@pytest.mark.slow
def test_two_servers_share_a_folder(server):
    other = Server(server.checkout, server.base, free_port())
    other.start()
    try:
        small = {"samples": 2, "teacher_steps": 4}
        succeeded(server.submit(fit(server, "sd3", name="shared", **small)))
        assert asked(other, "shared.safetensors") == (200, {"steps": [2]})
        before = (folder(server) / "shared.safetensors").read_bytes()
        succeeded(other.submit(fit(other, "sd3", name="shared", steps="3", overwrite=True, **small)))
        assert (folder(server) / "shared.safetensors").read_bytes() != before
        assert asked(server, "shared.safetensors") == (200, {"steps": [3]})
        # Both at once to one name: one is written, the other gets an error.
        with ThreadPoolExecutor(2) as pool:
            ran = list(pool.map(lambda s: s.submit(fit(s, "sd3", name="race", **small)), (server, other)))
        states = sorted(history["status"]["status_str"] for history in ran)
        assert states == ["error", "success"], ran
        (message,) = [error_of(history) for history in ran if history["status"]["status_str"] == "error"]
        assert "another process is fitting race.safetensors: wait for it" in message or "exists already" in message
        assert not list(folder(server).glob("*.fit")) and not list(folder(server).glob(".*"))
    finally:
        other.stop()
        shutil.rmtree(folder(server) / "race.fit", ignore_errors=True)
