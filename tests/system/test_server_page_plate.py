"""The web page against the real server with the model ``plate``: what a person does first."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.browser import CHROMIUM, Page, open_page
from tests.pages import DONE, READY, drop, kept_request

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]
ADDRESS = "document.getElementById('save')?.href"


@pytest.fixture(scope="module")
def address(tmp_path_factory, share_exports) -> Iterator[str]:
    home = share_exports(tmp_path_factory.mktemp("plate") / "home")
    command = [
        str(Path(sys.executable).with_name("mezzotint")), "serve", "--port", "0",
        "--management-port", "0", "--metrics-port", "0", "--models", "plate",
    ]  # fmt: skip
    environment = {
        **os.environ, "MEZZOTINT_HOME": str(home), "MEZZOTINT_ENGINE__CALIBRATE_S": "0",
    }  # fmt: skip
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
    try:
        line = next((n for n in process.stdout if n.startswith("generation")), "")
        assert line, (home / "log").read_text()
        url = line.split()[1]
        until = time.monotonic() + 120
        while httpx.get(f"{url}/health/ready", timeout=60).status_code != 200:
            assert time.monotonic() < until, (home / "log").read_text()
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


@pytest.fixture(scope="module")
def tab(address, tmp_path_factory) -> Iterator[Page]:
    with open_page(address, tmp_path_factory.mktemp("tab")) as opened:
        yield opened


@pytest.fixture
def page(tab) -> Iterator[Page]:
    tab.errors.clear()
    tab.wait(READY, 60)
    tab.run("location.hash = '#create'")
    tab.run("[...document.querySelectorAll('.submit .quiet')][0]?.click()")
    tab.wait("document.getElementById('prompt')?.value === ''")
    yield tab
    assert tab.errors == []


def draw(page: Page, **fields: object) -> bytes:
    """Fill the form, press Generate, and return the picture that is then shown."""
    before = page.run(ADDRESS)
    for name, value in fields.items():
        page.type(name, value)
    page.click("#make")
    page.wait(f"{DONE} && {ADDRESS} !== {str(before or '')!r}", 60)
    return httpx.get(page.run(ADDRESS)).content


def test_a_picture_is_drawn_verified_dropped_and_drawn_again_with_its_bytes(page):
    page.type("num_inference_steps", 12)
    page.type("prompt", "a red apple")
    page.type("seed", 7)
    page.click("#make")
    page.wait("document.querySelector('#picture.preview')", 60)
    page.wait(DONE, 60)
    first = httpx.get(page.run(ADDRESS)).content
    page.click("#details")
    page.click("#verify")
    page.wait("document.getElementById('verdict')?.className === 'good'", 60)
    assert "identical" in page.text("#verdict")
    page.run("document.querySelectorAll('dialog[open]').forEach((d) => d.close())")
    asked = kept_request(page)
    page.run("[...document.querySelectorAll('.submit .quiet')][0]?.click()")
    drop(page, first, "apple.png")
    page.wait("document.getElementById('prompt').value === 'a red apple'")
    restored = kept_request(page, lambda request: "seed" in request)
    assert {name: restored[name] for name in asked if name in restored} == {
        name: asked[name] for name in asked if name in restored
    }
    assert draw(page) == first


def test_two_regions_are_painted_and_change_the_picture(page):
    plain = draw(page, prompt="a field", seed=3, num_inference_steps=6)
    page.run("document.getElementById('technique-regions').open = true")
    page.drag("#boxes", (0.0, 0.0), (0.5, 1.0))
    page.wait("document.querySelectorAll('.box').length === 1")
    page.drag("#boxes", (0.5, 0.0), (1.0, 1.0))
    page.wait("document.querySelectorAll('.box').length === 2")
    assert len(kept_request(page, lambda r: len(r.get("regions", ())) == 2)["regions"]) == 2
    assert draw(page, prompt="two fields") != plain


def test_escape_cancels_a_long_one_at_its_next_step(page):
    page.type("prompt", "long")
    page.type("num_inference_steps", 150)
    page.click("#make")
    page.wait("document.querySelector('#picture.preview')", 60)
    began = time.monotonic()
    page.press("Escape")
    page.wait("document.getElementById('state').textContent === 'ready'", 30)
    assert time.monotonic() - began < 5


def test_a_model_leaves_memory_and_comes_back(page, address):
    page.run("location.hash = '#operate'")
    page.wait("document.getElementById('memory')?.textContent.includes('plate')", 30)
    page.click("[data-model=plate] [data-memory=unload]")
    page.wait("document.querySelector('[data-model=plate] [data-memory=load]')", 30)
    page.wait("!document.getElementById('memory')?.textContent.includes('plate ')", 30)
    page.click("[data-model=plate] [data-memory=load]")
    page.wait("document.querySelector('[data-model=plate] [data-memory=unload]')", 60)
