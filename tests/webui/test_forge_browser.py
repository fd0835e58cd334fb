"""The WebUI extension as a user meets it: Forge's own page in a real browser."""

from __future__ import annotations

import io

import pytest
from browser_host import keep_shot
from learned_solvers.samplers import load_solver
from PIL import Image

ACCORDION = "#script_txt2img_learned_solvers"
FILE, ABOUT = f"{ACCORDION}_file", f"{ACCORDION}_about"


@pytest.fixture(scope="module")
def page(forge, browser):
    """Forge's page, on a viewport that holds all of the txt2img tab, with the accordion open."""
    page = browser.new_page(viewport={"width": 1400, "height": 1070})
    page.set_default_timeout(120_000)  # a busy machine needs it
    page.goto(forge.url)
    page.wait_for_selector("#txt2img_token_counter:has-text('/75')")  # filled in by the server: the page is alive
    page.locator(f"{ACCORDION}_accordion > button").click()
    page.wait_for_selector(ABOUT)
    yield page
    page.close()


def choose(page, box, choice):
    page.click(f"{box} input")
    page.click(f'{box} ul li[aria-label="{choice}"]')


def generate(page, **inputs):
    """Fills inputs, clicks Generate and waits for the log below the picture to change."""
    for name, value in inputs.items():
        page.fill(f"#txt2img_{name} {'textarea' if name == 'prompt' else 'input'} >> nth=0", value)
    page.keyboard.press("Tab")
    log = page.locator("#html_log_txt2img")
    before = log.inner_text()
    page.click("#txt2img_generate")
    page.wait_for_function("t => document.querySelector('#html_log_txt2img').innerText != t", arg=before)
    return log.inner_text()


def picture(page, forge):
    address = page.locator("#txt2img_gallery img").first.get_attribute("src")
    return Image.open(io.BytesIO(forge.request(address.removeprefix(forge.url))))


def test_a_picture_is_generated_and_its_infotext_pasted_back(forge, page, tmp_path):
    choose(page, ".model_selection", "picture.safetensors")
    choose(page, "#txt2img_sampling", "DyWeight")
    choose(page, "#txt2img_scheduler", "Karras")
    choose(page, FILE, "dyweight_sd15")
    page.wait_for_selector(f"{ABOUT}:has-text('4, 6, 8, 10 steps')")
    log = generate(page, prompt="hills", steps="6", width="512", height="512", cfg_scale="7", seed="7")
    page.wait_for_timeout(2500)  # the gallery's animation
    keep_shot(page, tmp_path / "webui.png")
    infotext = page.locator("#html_info_txt2img").inner_text()
    assert "Learned solver: dyweight_sd15, Learned solver calls: 6" in infotext and "Schedule type" not in infotext
    assert "dyweight_sd15: fitted at CFG 7.5, you use 7" in log
    first = picture(page, forge)
    assert first.size == (512, 512)
    sun, foreground = first.getpixel((358, 153)), first.getpixel((256, 490))
    assert sun == pytest.approx((255, 230, 115), abs=45) and foreground == pytest.approx((33, 64, 51), abs=45)

    choose(page, "#txt2img_sampling", "Euler")
    choose(page, FILE, "auto")
    page.fill("#txt2img_prompt textarea", infotext)
    page.click("#paste")
    page.wait_for_function(f"document.querySelector('{FILE} input').value == 'dyweight_sd15'")
    boxes = ("#txt2img_sampling", "#txt2img_scheduler", "#txt2img_steps", FILE)
    values = [page.locator(f"{box} input").first.input_value() for box in boxes]
    schedule = "Simple" if forge.is_neo else "Automatic"  # what the host pastes where the infotext has none
    assert values == ["DyWeight", schedule, "6", "dyweight_sd15"]
    generate(page)
    assert picture(page, forge).tobytes() == first.tobytes()


def test_missing_steps_are_an_error_below_the_picture_that_lists_the_available_ones(page):
    choose(page, "#txt2img_sampling", "DyWeight")
    choose(page, FILE, "as in Settings")
    generate(page, steps="7")
    assert "dyweight_sd15 has 4, 6, 8 and 10 steps, not" in page.locator("#html_log_txt2img .error").inner_text()


def test_a_new_file_appears_after_refresh_with_a_description(forge, page):
    load_solver("ds_vp-dit").save(forge.solver("new"))
    page.click(f"{ACCORDION}_refresh")
    page.wait_for_timeout(500)
    choose(page, FILE, "new.safetensors")
    page.wait_for_selector(f"{ABOUT}:has-text('DS-Solver for DiT (DiT-XL/2 256x256, vp prediction')")


def test_the_settings_page_has_file_and_nearest(page):
    page.get_by_role("tab", name="Settings").click()
    page.locator("#settings button", has_text="Learned Solvers").first.click()
    page.wait_for_selector("#setting_learned_solvers_file:visible")
    assert page.locator("#setting_learned_solvers_file input").input_value() == "auto"
    assert not page.locator("#setting_learned_solvers_nearest input").is_checked()
