"""The web page in a headless Chromium against a running server."""

import base64
import io
from collections.abc import Iterator

import pytest
from PIL import Image, PngImagePlugin
from tests.browser import CHROMIUM, Page, open_page
from tests.serving import RunningServer, running_server

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("page"), fake={"step_s": 0.05}) as running:
        yield running


@pytest.fixture
def page(server: RunningServer, tmp_path) -> Iterator[Page]:
    with open_page(server.url, tmp_path) as opened:
        opened.wait("document.getElementById('state')?.textContent === 'ready'")
        yield opened
        assert opened.errors == []


def fill(page: Page, **values: object) -> None:
    for name, value in values.items():
        page.run(f"document.getElementById({name!r}).value = {str(value)!r}")


def test_generate_shows_previews_then_the_picture_and_fills_the_gallery(page, tmp_path):
    fill(page, prompt="a red apple", seed="18446744073709551615", num_images=2)
    page.run("document.getElementById('prompt').focus()")
    page.press("Enter", ctrl=True)
    page.wait("document.querySelector('#picture.preview')")
    page.wait("document.getElementById('bar').style.width !== '0px'")
    page.wait("document.querySelectorAll('#gallery button').length === 2")
    page.wait("document.getElementById('state').textContent === 'ready'")
    seeds = page.run("[...document.querySelectorAll('#gallery span')].map((s) => s.textContent)")
    assert seeds == ["seed 0", "seed 18446744073709551615"]  # beyond what JavaScript can count
    source = page.run("document.getElementById('picture').src")
    picture = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    assert picture.size == (128, 128)
    page.run("document.getElementById('recipe-toggle').click()")
    assert "recipe_digest" in page.run("document.getElementById('recipe').textContent")
    page.screenshot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as shot:
        assert shot.size == (1280, 860)


def test_escape_stops_the_work(page):
    fill(page, prompt="long", num_inference_steps=150)
    page.run("document.getElementById('make').click()")
    page.wait("document.querySelector('#picture.preview')")
    page.press("Escape")
    page.wait("document.getElementById('about').textContent === 'stopped'")
    assert page.run("document.getElementById('make').disabled") is False


def test_dropping_a_picture_restores_its_parameters(page):
    picture = Image.new("RGB", (16, 16), "red")
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "a blue boat\nSteps: 7, Sampler: Euler, CFG scale: 4, Seed: 5")
    stream = io.BytesIO()
    picture.save(stream, "PNG", pnginfo=text)
    encoded = base64.b64encode(stream.getvalue()).decode()
    page.run(
        f"""(async () => {{
          const bytes = Uint8Array.from(atob("{encoded}"), (c) => c.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], "boat.png", {{type: "image/png"}}));
          document.dispatchEvent(new DragEvent("dragenter", {{dataTransfer: transfer, bubbles: true}}));
          document.dispatchEvent(new DragEvent("drop", {{dataTransfer: transfer, bubbles: true}}));
        }})()"""
    )
    page.wait("document.getElementById('prompt').value === 'a blue boat'")
    assert "boat.png" in page.run("document.getElementById('about').textContent")
    assert page.run("document.body.classList.contains('dropping')") is False


def test_errors_of_the_server_are_shown_in_its_words(page):
    fill(page, width=65)
    page.run("document.getElementById('form').noValidate = true")
    page.run("document.getElementById('make').click()")
    page.wait("!document.getElementById('error').hidden")
    assert "multiple of 8" in page.run("document.getElementById('error').textContent")
    page.errors.clear()  # the browser logs the 422 itself


def test_gallery_recalls_seed_and_parameters(page):
    fill(page, prompt="first", seed="7", num_inference_steps="2")
    page.run("document.getElementById('make').click()")
    page.wait("document.querySelectorAll('#gallery button').length === 1")
    page.wait("document.getElementById('make').disabled === false")
    fill(page, prompt="other", seed="")
    page.run("document.getElementById('recall').click()")
    assert page.run("document.getElementById('prompt').value") == "first"
    assert page.run("document.getElementById('seed').value") == "7"
    assert page.run("document.getElementById('num_inference_steps').value") == "2"
