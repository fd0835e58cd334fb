"""Imports this checkout as `learned_solvers`, regardless of its folder's name and of installed copies.

All tests of a host share one server, across modules. With pytest-xdist (`-n 2`) they therefore run on one worker.
"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location

import pytest
import torch
from browser_host import running_browser
from comfy_host import EACH_CHECKOUT, Server, checkouts, make_base
from host_server import ROOT

NAME, FORGES = "learned_solvers", {"forge", "forge_neo"}
if NAME not in sys.modules:
    spec = spec_from_file_location(NAME, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None and spec.loader is not None
    sys.modules[NAME] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[NAME])
sys.path.append(str(ROOT))  # for benchmarks; last, as nodes/ would shadow a host's module


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks the tests of hosts; groups tests for `pytest -n 2 --dist loadgroup`: of a host, else of a file, together.

    The slowest file comes first, so that it does not keep one worker busy after the other has finished.
    """
    hosts = {path.name for path in checkouts()} | FORGES
    for item in items:
        parameters = getattr(item, "callspec", None)
        server = set() if parameters is None else set(parameters._idlist)
        group = next(iter(server & hosts), item.path.name)
        item.add_marker(pytest.mark.xdist_group(group))
        if "forge" in item.fixturenames:
            item.add_marker(next(iter(server & FORGES)))
        for fixture, marker in (("server", "comfy"), ("browser", "browser")):
            if fixture in item.fixturenames:
                item.add_marker(marker)
    items.sort(key=lambda item: item.path.name != "test_fit_digits.py")


def pytest_collection_finish(session):
    """Refuses a pytest version with which pytest-xdist ignores groups: both workers would start every host."""
    if getattr(session.config.option, "loadgroup", False) and not all("@" in item.nodeid for item in session.items):
        raise pytest.UsageError("pytest-xdist ignores groups with this pytest: install the versions of pyproject.toml")


torch.set_num_threads(1)  # more threads only wait for each other on tiny tensors


@pytest.fixture(scope="session", params=EACH_CHECKOUT)
def server(request, tmp_path_factory):
    """A running ComfyUI with the tiny models, for each checkout."""
    base = tmp_path_factory.mktemp("comfy") / "base"
    make_base(request.param, base)
    with Server(request.param, base) as running:
        yield running


@pytest.fixture(scope="session", params=sorted(FORGES))
def forge(request, tmp_path_factory):
    """A running Forge, and a running Forge Neo, with this checkout as an extension."""
    from forge_host import FORGES, ForgeServer, make_base

    host = FORGES[request.param]
    if (place := host.checkout()) is None:
        pytest.skip(host.missing)
    base = tmp_path_factory.mktemp(request.param) / "base"
    make_base(host, place, base)
    with ForgeServer(place, base, host=host) as running:
        yield running


@pytest.fixture(autouse=True)
def solvers_as_found(request):
    """Removes the files and folders that a test adds to a host's solvers: `auto` would choose them in all modules."""
    hosts = [request.getfixturevalue(name) for name in ("server", "forge") if name in request.fixturenames]
    before = {path for host in hosts for path in host.solvers.rglob("*")}
    yield
    added = {path for host in hosts for path in host.solvers.rglob("*")} - before
    for path in sorted(added, reverse=True):  # a folder's content before the folder
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


@pytest.fixture(scope="session")
def browser():
    """A running browser, one for all hosts' pages."""
    with running_browser() as running:
        yield running
