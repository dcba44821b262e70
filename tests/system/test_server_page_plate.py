"""The web page against the real server with the model ``plate``, as a person goes about it."""

import base64
import io
import json
import socket
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from tests.browser import CHROMIUM, Page, open_page
from tests.pages import DONE, READY, choose_files, close_dialogs, drop, kept_request, picture
from tests.serving import running_plate, runs_that_give_way_to_nobody

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]
ADDRESS = "document.getElementById('save')?.href"
LONG_S = 240  # for what a loaded machine draws
KEY = "k" * 24
EVIL = "<img src=x onerror=window.over=1><script>window.over=1</script>"


@pytest.fixture(scope="module")
def home(tmp_path_factory, share_exports):
    return share_exports(tmp_path_factory.mktemp("plate") / "home")


@pytest.fixture(scope="module")
def address(home) -> Iterator[str]:
    with (
        runs_that_give_way_to_nobody(home / "bin"),
        running_plate(home, "--training") as (_, url),
    ):
        until = time.monotonic() + LONG_S  # whichever test comes first finds the model loaded
        while httpx.get(f"{url}/health/ready").status_code != 200 and time.monotonic() < until:
            time.sleep(0.1)
        yield url


@pytest.fixture(scope="module")
def tab(address, tmp_path_factory) -> Iterator[Page]:
    with open_page(address, tmp_path_factory.mktemp("tab"), "--window-size=1280,900") as opened:
        opened.wait(READY, LONG_S)
        yield opened


@pytest.fixture
def page(tab) -> Iterator[Page]:
    """The tab with an empty form in its first room."""
    tab.errors.clear()
    close_dialogs(tab)
    tab.wait(READY, LONG_S)
    tab.run("location.hash = '#create'")
    clear(tab)
    yield tab
    assert tab.errors == []


def clear(page: Page) -> None:
    page.run("[...document.querySelectorAll('.submit .quiet')][0]?.click()")
    page.run("[...document.querySelectorAll('.notices .icon')].forEach((b) => b.click())")
    page.wait("document.getElementById('prompt')?.value === ''")


def draw(page: Page, **fields: object) -> bytes:
    """Fill the form, press Generate, and return the picture that is then shown."""
    before = page.run(ADDRESS)
    for name, value in fields.items():
        page.type(name, value)
    page.click("#make")
    page.wait(f"{DONE} && {ADDRESS} !== {json.dumps(before or '')}", LONG_S)
    return httpx.get(page.run(ADDRESS)).content


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as opened:
        return np.asarray(opened.convert("RGB")).astype(int)


def fill_panel(page: Page, name: str, labels: dict[str, object]) -> None:
    """Open a technique's panel and fill its fields by their labels."""
    page.run(f"document.getElementById('technique-{name}').open = true")
    if page.run(f"document.querySelector('#technique-{name} fieldset') === null"):
        page.click(f"#technique-{name} > button")
    for label, value in labels.items():
        page.wait(
            f"[...document.querySelectorAll('#technique-{name} label')].some((l) => l.textContent === {label!r})"
        )
        id_ = page.run(
            f"[...document.querySelectorAll('#technique-{name} label')].find((l) => l.textContent === {label!r}).htmlFor"
        )
        page.type(id_, value)


def test_a_picture_is_drawn_verified_dropped_and_drawn_again_with_its_bytes(page):
    page.type("num_inference_steps", 12)
    page.type("prompt", "a red apple")
    page.type("seed", 7)
    page.click("#make")
    page.wait("document.querySelector('#picture.preview')", LONG_S)
    page.wait(DONE, LONG_S)
    first = httpx.get(page.run(ADDRESS)).content
    page.click("#details")
    page.click("#verify")
    page.wait("document.getElementById('verdict')?.className === 'good'", LONG_S)
    assert "identical" in page.text("#verdict")
    close_dialogs(page)
    asked = kept_request(page)
    clear(page)
    drop(page, first, "apple.png")
    page.wait("document.getElementById('prompt').value === 'a red apple'")
    restored = kept_request(page, lambda request: "seed" in request)
    assert {name: str(restored[name]) for name in asked} == {n: str(v) for n, v in asked.items()}
    assert draw(page) == first


@pytest.mark.slow
def test_a_picture_that_is_cut_off_by_a_reload_is_finished_and_shown(page):
    page.type("prompt", "a yellow star")
    page.type("num_inference_steps", 150)
    page.type("num_images", 4)
    page.click("#make")
    page.wait("document.querySelector('#picture.preview')", LONG_S)
    page.reload()
    page.wait("document.getElementById('prompt')?.value === 'a yellow star'", LONG_S)
    page.wait(f"{DONE} && document.getElementById('picture').alt?.startsWith('a yellow star')", LONG_S)  # fmt: skip


@pytest.mark.slow
def test_escape_cancels_a_long_one_at_its_next_step(page):
    page.type("prompt", "long")
    page.type("num_inference_steps", 150)
    page.click("#make")
    page.wait("document.querySelector('#picture.preview')", LONG_S)
    began = time.monotonic()
    page.press("Escape")
    page.wait(READY, 30)
    assert time.monotonic() - began < 5


@pytest.mark.slow
def test_two_regions_are_painted_and_each_shows_its_own(page):
    common = {"prompt": "a plain", "seed": 3, "num_inference_steps": 8, "width": 128, "height": 128}
    plain = pixels(draw(page, **common))
    page.run("document.getElementById('technique-regions').open = true")
    page.drag("#boxes", (0.02, 0.02), (0.48, 0.98))
    page.wait("document.querySelectorAll('.box').length === 1")
    page.drag("#boxes", (0.52, 0.02), (0.98, 0.98))
    page.wait("document.querySelectorAll('.box').length === 2")
    fields = page.run(
        """[...document.querySelectorAll('#technique-regions textarea')]
          .filter((t) => t.previousElementSibling.textContent === "Prompt").map((t) => t.id)"""
    )
    for field, text in zip(fields, ("a red apple", "a blue fish"), strict=True):
        page.type(field, text)
    kept = kept_request(page, lambda r: [x["prompt"] for x in r.get("regions", ())] == ["a red apple", "a blue fish"])  # fmt: skip
    assert [region["prompt"] for region in kept["regions"]] == ["a red apple", "a blue fish"]
    both = draw(page)
    other = json.loads(json.dumps(kept))
    other["regions"][1]["prompt"] = "a green tree"
    answer = httpx.post(page.run("location.origin") + "/v1/generations", json=other, timeout=60)
    changed = pixels(base64.b64decode(answer.json()["images"][0]["b64"]))
    gap = np.abs(pixels(both) - changed).sum(2)
    assert np.abs(pixels(both) - plain).sum() > 0
    assert gap[:, 72:].mean() > 2 * gap[:, :56].mean()  # what was changed is on the right


@pytest.mark.slow
def test_a_painted_region_acts_where_the_brush_was_and_survives_a_drop(page):
    common = {"prompt": "a plain", "seed": 3, "num_inference_steps": 8, "width": 128, "height": 128}
    plain = pixels(draw(page, **common))
    page.run("document.getElementById('technique-regions').open = true")
    page.click("#region-new")
    page.wait("document.getElementById('region-canvas')?.width === 512")
    time.sleep(0.3)
    page.drag("#region-canvas", (0.15, 0.1), (0.15, 0.9))
    kept = kept_request(page, lambda r: "regions" in r)
    page.click("#region-done")
    page.wait("document.querySelector('#technique-regions textarea')")
    page.type(page.run("document.querySelector('#technique-regions textarea').id"), "a red apple")
    kept = kept_request(page, lambda r: r["regions"][0]["prompt"] == "a red apple")
    drawn = draw(page)
    gap = np.abs(pixels(drawn) - plain).sum(2)
    assert gap[:, :40].mean() > 2 * gap[:, 64:].mean()
    clear(page)
    drop(page, drawn)
    page.wait("document.querySelector('[data-field=regions]')")
    assert kept_request(page, lambda r: "regions" in r)["regions"] == kept["regions"]
    assert np.array_equal(pixels(draw(page)), pixels(drawn))


@pytest.mark.slow
def test_a_brush_repaints_what_it_touched_and_nothing_else(page):
    start = pixels(draw(page, prompt="a red apple", seed=7, num_inference_steps=8))
    page.click("#vary")
    page.wait("document.querySelector('[data-field=image]')")
    page.run("document.getElementById('technique-mask').open = true")
    page.wait("document.getElementById('mask-canvas')?.width === 128")
    page.drag("#mask-canvas", (0.5, 0.3), (0.5, 0.7))
    kept = kept_request(page, lambda r: "mask" in r)
    assert kept["inpaint"] == {"paste": True}  # it stands there as a chip, and can be taken away
    mask = pixels(base64.b64decode(kept["mask"]))[:, :, 0]
    after = pixels(draw(page, prompt="a blue fish"))
    gap = np.abs(after - start).sum(2)
    assert gap[mask == 255].mean() > 10
    assert gap[mask == 0].max() == 0


@pytest.mark.slow
def test_a_walk_is_asked_for_made_and_played(page):
    page.type("prompt", "a red apple")
    page.type("num_inference_steps", 4)
    fill_panel(page, "walk", {"To": "a green tree", "Pictures": 4})
    page.click("#make")
    page.wait(f"{DONE} && document.querySelectorAll('#gallery img').length >= 4", LONG_S)
    page.click("#details")
    page.wait("document.querySelectorAll('.walk img').length === 4")
    first = "[...document.querySelectorAll('.walk > div')].findIndex((d) => !d.hidden)"
    at = page.run(first)
    page.wait(f"{first} !== {at}")
    page.click("#play")
    shown = page.run("[...document.querySelectorAll('.walk img')].map((i) => i.src)")
    frames = [pixels(httpx.get(source).content) for source in shown]
    ends = np.abs(frames[0] - frames[-1]).mean()
    assert np.abs(frames[0] - frames[1]).mean() < ends  # it goes there by small steps


@pytest.mark.slow
def test_a_sheet_shows_what_each_cell_says(page):
    page.type("prompt", "a sailing boat")
    page.run("location.hash = '#sheet'")
    page.wait("document.getElementById('make-sheet')")
    page.run(
        """[...document.querySelectorAll('.axes textarea')].forEach((t, k) => {
          t.value = ["2, 4", "1, 6"][k]; t.dispatchEvent(new Event("input", {bubbles: true})); })"""
    )
    page.wait("document.getElementById('make-sheet').textContent.includes('4')")
    page.click("#make-sheet")
    page.wait("document.querySelectorAll('.xy .tile img').length === 4", LONG_S)
    found = page.run("[...document.querySelectorAll('.xy .tile img')].map((i) => [i.alt, i.src])")
    assert [alt for alt, _ in found] == ["2, 1", "4, 1", "2, 6", "4, 6"]
    for alt, source in found:
        steps, guidance = alt.split(", ")
        said = Image.open(io.BytesIO(httpx.get(source).content)).text["parameters"]
        assert f"Steps: {steps}," in said
        assert f"CFG scale: {guidance}," in said


@pytest.mark.slow
def test_two_pictures_are_compared_by_pixels_and_by_what_was_asked(page):
    for seed in (11, 12):
        draw(page, prompt="compared", seed=seed, num_inference_steps=3)
    page.run("location.hash = '#gallery'")
    page.wait("document.getElementById('search')")
    page.type("search", "compared")
    page.wait("document.querySelectorAll('.tile').length === 2")
    page.click("#select")
    page.run("document.querySelectorAll('.tile').forEach((t) => t.click())")
    page.click("#compare")
    page.wait("document.querySelectorAll('.compare img').length === 2")
    page.wait("document.querySelector('dialog[open] table tr')")
    rows = "[...document.querySelectorAll('dialog[open] table tr')].map((r) => r.textContent)"
    assert page.run(rows) == ["Seed1211"]
    close_dialogs(page)
    page.click("#select")
    page.type("search", "")


@pytest.mark.slow
def test_a_picture_from_elsewhere_fills_the_form_says_what_is_lost_and_draws(page):
    text = PngImagePlugin.PngInfo()
    text.add_text(
        "parameters",
        "a (red:1.2) apple\nNegative prompt: fog\nSteps: 5, Sampler: Euler, CFG scale: 4, Seed: 5, "
        "Size: 128x128, Model: dreams_v9",
    )
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(stream, "PNG", pnginfo=text)
    drop(page, stream.getvalue(), "theirs.png")
    page.wait("document.getElementById('prompt').value === 'a (red:1.2) apple'")
    assert "dreams_v9" in page.text(".notices .warn")
    kept = kept_request(page, lambda r: "seed" in r)
    expected = {"negative_prompt": "fog", "num_inference_steps": 5, "scheduler": "euler",
                "guidance_scale": 4, "width": 128, "height": 128, "prompt_dialect": "a1111"}  # fmt: skip
    assert {name: kept[name] for name in expected} == expected
    with Image.open(io.BytesIO(draw(page))) as made:
        assert "Steps: 5, Sampler: Euler, CFG scale: 4, Seed: 5," in made.text["parameters"]


@pytest.mark.slow
def test_thirty_wait_and_the_page_answers(page):
    page.type("prompt", "many")
    page.type("num_inference_steps", 60)
    page.run("Array.from({length: 30}, () => document.getElementById('make').click())")
    page.wait("document.querySelectorAll('.queue li').length >= 28", LONG_S)
    page.wait("document.querySelector('#picture.preview')", LONG_S)
    tasks = page.tasks_ms(  # while it follows thirty and somebody types
        """(async () => {
          const field = document.getElementById("prompt");
          for (let k = 0; k < 10; k += 1) {
            field.value = `many ${k}`;
            field.dispatchEvent(new Event("input", {bubbles: true}));
            await new Promise((r) => setTimeout(r, 200));
          }
        })()"""
    )
    print("the longest tasks of the page's thread", tasks[-3:])
    assert tasks[-1] < 50  # milliseconds
    page.run("location.hash = '#lab'")
    page.wait("document.querySelector('.plane canvas')", 10)
    page.run("location.hash = '#create'")
    page.click("#cancel-all")
    page.wait(f"{READY} && !document.querySelector('.queue')", LONG_S)


@pytest.mark.slow
def test_hostile_text_stays_text_in_every_room(page, address):
    page.run("delete window.over")
    draw(page, prompt=EVIL, num_inference_steps=2)
    drop(page, httpx.get(page.run(ADDRESS)).content, f"{EVIL}.png")
    page.wait(f"document.querySelector('.notices')?.textContent.includes({json.dumps(EVIL)})")
    page.click("#details")
    page.wait("document.querySelector('dialog[open]')?.textContent.includes('onerror')")
    for kind in ("curl", "json"):
        page.click(f"[data-copy={kind}]")
        page.wait("document.getElementById('copied')?.textContent.includes('onerror')")
    close_dialogs(page)
    for room in ("gallery", "sheet", "operate", "train"):
        page.run(f"location.hash = '#{room}'")
        page.wait("document.querySelector('.tile, #make-sheet, li.model, #new-run')")
    assert page.run("window.over ?? null") is None
    assert page.run("document.querySelectorAll('img[src=x], script:not([src])').length") == 0


@pytest.mark.slow
def test_a_tiny_lora_is_trained_on_plate_and_drawn_with(page, address):
    page.run("location.hash = '#train'")
    page.click("#new-run")
    page.click("[data-kind=lora]")
    page.type("run-name", "rust")
    colors = ("red", "green", "blue", "white")
    choose_files(page, {f"{color}.png": picture(color, 128) for color in colors})
    for field, value in {"steps": 3, "batch": 1, "every": 3}.items():
        page.type(f"run-{field}", value)
    page.type("run-caption", "a square")
    page.click("#start-run")
    page.wait("document.querySelector('[data-run=rust]')?.dataset.status === 'finished'", 900)
    page.click("#use-run")
    page.wait("location.hash === '#create'")
    asked = kept_request(page, lambda r: "loras" in r)
    assert (asked["loras"], asked.get("model", "plate")) == ([{"name": "rust"}], "plate")
    wanted = {"prompt": "a red apple", "seed": 7, "num_inference_steps": 3}
    worn = pixels(draw(page, **wanted))

    def drawn(**more):
        body, by = {**wanted, "model": "plate", **more}, {"Accept": "image/png"}
        answer = httpx.post(address + "/v1/generations", json=body, headers=by, timeout=LONG_S)
        assert answer.status_code == 200, answer.text
        return pixels(answer.content)

    plain = drawn()
    assert np.array_equal(drawn(loras=[{"name": "rust", "scale": 0}]), plain)
    assert np.array_equal(drawn(loras=[{"name": "rust", "scale": 1}]), worn)
    assert not np.array_equal(worn, plain)

    page.run("location.hash = '#train'")
    page.click("#use-run")  # again: nothing is asked, and it stands in the form once
    page.wait("location.hash === '#create'")
    assert kept_request(page)["loras"] == [{"name": "rust"}]
    clear(page)
    page.run("location.hash = '#train'")
    page.click("#use-merged")
    page.wait("document.getElementById('model')?.value === 'rust'", LONG_S)
    assert not np.array_equal(pixels(draw(page, **wanted)), plain)
    page.type("model", "plate")
    page.wait("document.getElementById('model').value === 'plate'")


@pytest.mark.slow
def test_a_model_leaves_memory_and_comes_back(page):
    page.run("location.hash = '#operate'")
    page.wait("document.getElementById('memory')?.textContent.includes('plate')", 30)
    page.click("[data-model=plate] [data-memory=unload]")
    page.wait("document.querySelector('[data-model=plate] [data-memory=load]')", 30)
    page.wait("!document.getElementById('memory')?.textContent.includes('plate ')", 30)
    page.click("[data-model=plate] [data-memory=load]")
    page.wait("document.querySelector('[data-model=plate] [data-memory=unload]')", LONG_S)


@pytest.mark.slow
def test_with_a_key_the_work_outlives_the_death_of_the_server_and_the_dot_is_true(
    tmp_path, share_exports
):
    own = share_exports(tmp_path / "home")
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY} ann generate\n")
    keys.chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    flags = ("--api-keys", str(keys))
    with running_plate(own, *flags, port=port) as (process, url), open_page(url, tmp_path) as page:
        page.wait("document.querySelector('#key-box[open]')", LONG_S)
        page.type("key", "w" * 24)
        page.click("#key-box .primary")
        page.wait("document.getElementById('key-state').textContent.includes('does not know')")
        page.type("key", KEY)
        page.click("#key-box .primary")
        page.wait(READY, LONG_S)
        page.type("prompt", "a red apple")
        page.type("num_inference_steps", 150)
        page.type("num_images", 4)
        page.click("#make")
        page.wait("document.querySelector('#picture.preview')", LONG_S)
        process.kill()
        died = time.monotonic()
        page.wait("document.getElementById('dot').className === 'dot bad'", 15)
        known_dead = time.monotonic() - died
        process.wait()
        with running_plate(own, *flags, port=port):
            back = time.monotonic()  # it answers; the model is still on its way
            page.wait(
                "document.getElementById('state').textContent !== 'the server does not answer'", 15
            )
            print("known dead after", known_dead, "back after", time.monotonic() - back)
            assert known_dead < 5
            assert time.monotonic() - back < 5
            assert page.run("document.getElementById('prompt').value") == "a red apple"
            page.wait(f"{DONE} && document.getElementById('picture').alt?.startsWith('a red apple')", 900)  # fmt: skip
