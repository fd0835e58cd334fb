"""Fixtures that several modules share."""

from __future__ import annotations

from pathlib import Path

import pytest
from comfy_host import checkouts, make_base
from comfy_page import ComfyPage


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A base folder of the first checkout with the tiny models, for the commands."""
    base = tmp_path_factory.mktemp("commands") / "base"
    make_base(checkouts()[0], base)
    return base


@pytest.fixture(scope="module")
def page(server, browser):
    """ComfyUI's page, a new one for each module: tests leave panels open."""
    page = ComfyPage(browser.new_page(viewport={"width": 1600, "height": 900}), server)
    page.start()
    yield page
    page.page.close()
