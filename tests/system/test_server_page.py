"""The web page in a headless Chromium against a running server."""

import base64
import io
import json
import time
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


def draw_grid(root, name: str, color: str, step: int) -> None:
    folder = root / name / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (64, 64), color)
    partial = folder / "partial.png"
    picture.save(partial)
    partial.rename(folder / "grid.png")
    picture.save(folder / f"grid-{step:08d}.png")
    line = {"event": "step", "step": step, "steps": 100, "loss": 0.5, "eta_s": 60}
    (root / name / "metrics.jsonl").write_text(json.dumps(line) + "\n")


def color_of_run(page: Page, name: str) -> str:
    return page.run(
        f"""(() => {{
          const image = document.querySelector('[data-run="{name}"] img');
          if (!image || !image.complete || !image.naturalWidth) return "";
          const canvas = document.createElement("canvas");
          canvas.width = canvas.height = 1;
          const context = canvas.getContext("2d");
          context.drawImage(image, 0, 0);
          return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).join(",");
        }})()"""
    )


def test_the_grids_of_training_runs_are_live(tmp_path):
    root = tmp_path / "runs"
    draw_grid(root, "faces", "red", 10)
    with (
        running_server(tmp_path / "jobs", serve={"runs": str(root)}) as server,
        open_page(server.url, tmp_path) as page,
    ):
        page.wait("document.querySelector('[data-run=faces] img')?.naturalWidth === 64")
        assert color_of_run(page, "faces") == "255,0,0"
        assert "step 10 of 100" in page.run("document.querySelector('.facts').textContent")
        draw_grid(root, "faces", "blue", 20)
        draw_grid(root, "waves", "lime", 5)
        page.wait("document.querySelectorAll('.run').length === 2")
        page.wait("document.querySelector('[data-run=waves] img').naturalWidth === 64")
        page.wait("document.querySelector('[data-run=faces] .facts').textContent.includes('20')")
        until = time.monotonic() + 15
        while color_of_run(page, "faces") != "0,0,255":
            assert time.monotonic() < until
            time.sleep(0.1)
        page.run(  # back to the first grid
            """(() => { const s = document.querySelector('[data-run=faces] input');
                s.value = 0; s.dispatchEvent(new Event('input')); })()"""
        )
        while color_of_run(page, "faces") != "255,0,0":
            assert time.monotonic() < until + 15
            time.sleep(0.1)
        page.screenshot(tmp_path / "page.png", height=1200)
        assert page.errors == []
