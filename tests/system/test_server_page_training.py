"""Training from the page: pictures chosen, a run started, watched, stopped and used."""

import time

import httpx
import pytest
from tests.browser import CHROMIUM, Page, open_page
from tests.pages import READY, choose_files, picture, violations
from tests.serving import running_server, runs_that_give_way_to_nobody

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]


def status(page: Page, name: str, wanted: str) -> None:
    page.wait(f"document.querySelector('[data-run={name}]')?.dataset.status === '{wanted}'", 400)


def test_a_tiny_run_is_started_resumed_and_used_from_the_page(tmp_path):
    root = tmp_path / "runs"
    with (
        runs_that_give_way_to_nobody(tmp_path / "bin"),
        running_server(tmp_path / "jobs", serve={"runs": str(root), "training": True}) as server,
        open_page(server.url, tmp_path) as page,
    ):
        page.wait(READY)
        page.run("location.hash = '#train'")
        page.click("#new-run")
        page.click("[data-kind=diffusion]")
        page.type("run-name", "squares")
        colors = ("red", "green", "blue", "white", "black", "gray")
        choose_files(page, {f"{color} one.png": picture(color, 8) for color in colors})
        settings = {"resolution": 8, "steps": 4, "batch": 2, "every": 2}
        for field, value in settings.items():
            page.type(f"run-{field}", value)
        page.click("#start-run")
        status(page, "squares", "finished")
        page.wait("document.getElementById('run-grid')?.naturalWidth > 8")
        page.wait("document.querySelector('.run-curves .line')")
        page.wait("document.querySelector('#run-data-report img')?.naturalWidth > 8")
        assert "6 pictures" in page.text("#run-data-report")
        assert [p.name for p in sorted((root / "datasets" / "squares").iterdir())] == [
            f"000{k}.png" for k in range(1, 7)
        ]
        assert (root / "squares" / "model_index.json").is_file()
        page.run(
            """(() => { const s = document.getElementById('run-past');
                s.value = 0; s.dispatchEvent(new Event('input', {bubbles: true})); })()"""
        )
        page.wait("document.querySelector('.run-samples output').textContent === 'step 2'")
        assert violations(page) == []

        page.click("#like-run")  # the same again as text, much longer, then stopped and resumed
        page.wait("document.getElementById('run-text')")
        text = page.run("document.getElementById('run-text').value")
        assert "resolution = 8" in text
        page.type("run-text", text.replace("steps = 4", "steps = 100000"))
        page.type("run-name", "long")
        page.click("#start-run")
        page.wait("document.getElementById('run-facts')?.textContent.includes('loss')", 400)
        page.click("#stop-run")
        status(page, "long", "stopped")
        page.reload()
        page.click("[data-run=long]")
        page.click("#resume-run")
        status(page, "long", "running")
        page.click("#stop-run")
        status(page, "long", "stopped")

        page.click("#like-run")
        page.wait("document.getElementById('run-text')")
        page.type("run-text", "[data]\npath = 'x'\nlearning = 1\n")
        page.click("#start-run")
        page.wait("document.getElementById('run-wrong')?.textContent.includes('learning')")

        page.click("[data-run=squares]")
        page.click("#use-run")
        page.wait("location.hash === '#create'")
        page.wait("document.getElementById('model')?.value === 'squares'")
        names = [m["name"] for m in httpx.get(f"{server.url}/v1/capabilities").json()["models"]]
        assert "squares" in names
        page.errors[:] = [e for e in page.errors if "422" not in e]  # the wrong text above
        assert page.errors == []


def test_captions_are_written_in_the_form_and_mended_on_the_server(tmp_path):
    root = tmp_path / "runs"
    with (
        running_server(tmp_path / "jobs", serve={"runs": str(root), "training": True}) as server,
        open_page(server.url, tmp_path) as page,
    ):
        page.wait(READY)
        page.run("location.hash = '#train'")
        page.click("#new-run")
        page.wait("document.getElementById('run-files')")
        files = {"a b.png": picture("red"), "c.jpg": picture("blue"), "d.png": picture("teal")}
        choose_files(page, {**files, "c.txt": b" a blue square"})
        page.wait("document.querySelectorAll('.captions li').length === 3")
        page.click("[aria-label='Leave d.png out']")
        page.wait("document.querySelectorAll('.captions li').length === 2")
        texts = "[...document.querySelectorAll('.captions textarea')].map((t) => t.value)"
        assert page.run(texts) == ["", "a blue square"]
        page.type("run-name", "squares")
        page.type("run-caption", "a square")
        page.type("run-rate", 0)  # refused, once the pictures are there
        page.click("#start-run")
        page.wait("document.getElementById('run-wrong')", 120)
        folder = root / "datasets" / "squares"
        assert {p.name: p.read_text() for p in sorted(folder.glob("*.txt"))} == {
            "0001.txt": "a square", "0002.txt": "a blue square",
        }  # fmt: skip
        assert httpx.get(f"{server.url}/v1/datasets").json()["datasets"][0]["pictures"] == 2
        page.click("header [aria-label=Close]")
        page.click("#new-run")
        page.wait("[...document.querySelectorAll('#run-data option')].some((o) => o.text.startsWith('squares'))")  # fmt: skip
        page.type("run-data", str(folder))
        page.wait("document.querySelectorAll('#kept-pictures li').length === 2")
        page.run(
            """(() => { const t = document.querySelector('#kept-pictures textarea');
                t.value = 'a red square'; t.dispatchEvent(new Event('change', {bubbles: true})); })()"""
        )
        until = time.monotonic() + 10
        while (folder / "0001.txt").read_text() != "a red square":
            assert time.monotonic() < until
            time.sleep(0.05)
        page.errors[:] = [e for e in page.errors if "422" not in e]
        assert page.errors == []
