"""The web page in a headless Chromium against a running server."""

import base64
import contextlib
import io
import json
import socket
import time

import httpx
import pytest
from PIL import Image, PngImagePlugin
from tests.browser import CHROMIUM, Page, open_page
from tests.pages import AXE, DONE, READY, drop, kept_request, picture
from tests.serving import RunningServer, running_server

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]


@pytest.fixture
def server(page_server: RunningServer) -> RunningServer:
    return page_server


def seeds(page: Page) -> list[str]:
    alts = page.run("[...document.querySelectorAll('#gallery img')].map((i) => i.alt)")
    return [alt.rpartition("seed ")[2] for alt in alts]


def test_generate_shows_previews_then_the_picture_and_fills_the_gallery(page, tmp_path):
    page.type("prompt", "a red apple")
    page.type("seed", "18446744073709551615")
    page.type("num_images", 2)
    page.wait("document.getElementById('plan')?.textContent.includes('2 pictures')")
    page.run("document.getElementById('prompt').focus()")
    page.press("Enter", ctrl=True)
    page.wait("document.querySelector('#picture.preview')")
    page.wait("document.getElementById('bar')?.style.width !== '0%'")
    page.wait(DONE)
    assert seeds(page)[:2] == ["18446744073709551615", "0"]  # beyond what JavaScript can count
    source = page.run("document.getElementById('picture').src")
    assert httpx.get(source).content == httpx.get(page.run("document.getElementById('save').href")).content  # fmt: skip
    assert page.run("document.getElementById('save').download").startswith("mezzotint-1844")
    page.screenshot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as shot:
        assert shot.size == (1280, 860)


def test_escape_cancels_and_save_still_gives_the_picture_shown(page):
    page.type("prompt", "short")
    page.click("#make")
    page.wait(DONE)
    before = page.run("document.getElementById('save').href")
    page.type("prompt", "long")
    page.type("num_inference_steps", 150)
    page.click("#make")
    page.wait("document.querySelector('#picture.preview')")
    page.press("Escape")
    page.wait(DONE)
    assert page.run("document.getElementById('save').href") == before
    assert page.run("document.getElementById('picture').src") == before


def test_a_reload_keeps_the_form_the_gallery_and_the_work(page):
    page.type("prompt", "goes on")
    page.type("num_inference_steps", 60)
    page.click("#make")
    page.wait("document.querySelector('#picture.preview')")
    page.reload()
    page.wait("document.querySelector('#picture.preview')")  # its events are followed again
    assert page.run("document.getElementById('prompt').value") == "goes on"
    assert page.run("document.getElementById('num_inference_steps').value") == "60"
    page.wait(DONE)
    assert page.run("document.getElementById('picture').alt").startswith("goes on")


def test_a_large_picture_in_the_form_survives_a_reload(page):
    page.type("prompt", "large")
    drop(page, picture("green", 64) + bytes(400_000), "big.png")
    page.wait("document.querySelector('.notice button')")
    page.click(".notice button")
    page.wait("document.querySelector('[data-field=image]')")
    time.sleep(0.5)  # pictures of this size are written by the browser in its own time
    page.reload()
    page.wait("document.querySelector('[data-field=image]')")
    assert page.run("document.getElementById('prompt').value") == "large"


def test_the_slider_of_the_variation_has_a_name_of_its_own_and_keeps_the_size_of_the_noise(page):
    page.type("prompt", "a boat")
    page.type("seed", 7)
    page.click("#technique-variation summary")
    named = page.run(
        "[...document.querySelectorAll('label, summary')].map((e) => e.textContent.trim())"
    )
    assert named.count("Variation") == 1
    assert named.count("Variation strength") == 1
    page.click("#technique-variation button")
    for label, value in (("Noise as for this width", 64), ("Noise as for this height", 64)):
        id_ = page.run(
            f"""[...document.querySelectorAll('#technique-variation label')]
            .find((l) => l.textContent === {label!r}).htmlFor"""
        )
        page.type(id_, value)
    size = {"noise_width": 64, "noise_height": 64}
    for strength, wanted in ((0.25, {**size, "strength": 0.25}), (0, size)):
        page.type("variation", strength)
        kept = kept_request(page, lambda r, wanted=wanted: r.get("variation") == wanted)
        assert kept["variation"] == wanted


def test_a_dropped_picture_brings_every_field_and_chips_for_what_has_no_widget(page, server):
    image = base64.b64encode(picture()).decode()
    asked = {
        "prompt": "a blue boat", "seed": "18446744073709551614", "image": image, "mask": image,
        "strength": 0.55, "inpaint": {"blur": 3, "fill": "noise"}, "tiling": True,
        "guidance_scale": {"schedule": "cosine", "start": 7, "end": 2},
        "regions": [{"prompt": "sky", "box": [0, 0, 1, 0.5]}, {"prompt": "sea", "box": [0, 0.5, 1, 1]}],
        "ensemble": [{"model": "plate"}, {"model": "plate", "weight": 0.5}],
        "gates": {"quality": {"threshold": 0.2}, "max_attempts": 3}, "upscale": {"factor": 2},
        "loras": [{"name": "ink", "scale": 0.5}], "prompt_dialect": "compel",
        "output": {"format": "webp"}, "variation": {"strength": 0.25},
    }  # fmt: skip
    made = httpx.post(f"{server.url}/v1/jobs", json=asked)
    assert made.status_code == 202, made.text
    # what a drop does with the answer of /v1/inspect; the fake reads no recipes of ours
    answer = {"parameters": "", "recipe": None, "request": asked, "not_honoured": ["a thing"]}
    page.run(
        f"""window.realFetch ??= window.fetch;
        window.fetch = (path, more) => path === "/v1/inspect"
          ? Promise.resolve(new Response({json.dumps(json.dumps(answer))}))
          : window.realFetch(path, more);"""
    )
    drop(page, picture(), "boat.png")
    page.wait("document.getElementById('prompt').value === 'a blue boat'")
    page.run("window.fetch = window.realFetch")
    assert "boat.png" in page.text(".notices")
    assert "a thing" in page.text(".notices")
    assert page.run("document.body.classList.contains('dropping')") is False
    chips = set(page.run("[...document.querySelectorAll('.chip')].map((c) => c.dataset.field)"))
    assert chips == set(asked) - {"prompt", "seed"}
    assert kept_request(page, lambda r: r == asked) == asked
    # what is sent is what stands there: the job's request is the one that was dropped
    first = made.json()["id"]
    page.click("#make")
    page.wait(DONE)
    jobs = httpx.get(f"{server.url}/v1/gallery?limit=1").json()["jobs"]
    assert jobs[0]["id"] != first
    sent, given = (
        httpx.get(f"{server.url}/v1/jobs/{id_}/request").json() for id_ in (jobs[0]["id"], first)
    )
    assert sent == given
    page.click("[data-field=tiling] .x")
    page.click("[data-field=regions] .x")
    left = {k: v for k, v in asked.items() if k not in ("tiling", "regions")}
    assert kept_request(page, lambda r: r == left) == left


def test_a_foreign_recipe_is_read_and_one_without_can_be_begun_from(page):
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "a green hill\nSteps: 7, Sampler: Euler, CFG scale: 4, Seed: 5")
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(stream, "PNG", pnginfo=text)
    drop(page, stream.getvalue())
    page.wait("document.getElementById('prompt').value === 'a green hill'")
    plain = picture("blue")
    drop(page, plain, "plain.png")
    page.wait("[...document.querySelectorAll('.notice')].some((n) => n.textContent.includes('plain.png'))")  # fmt: skip
    page.run("[...document.querySelectorAll('.notice')].find((n) => n.textContent.includes('plain.png')).querySelector('button').click()")  # fmt: skip
    drop(page, b"{}", "graph.json", "application/json")
    page.wait("document.querySelector('.notices').textContent.includes('graph.json is no picture')")
    page.wait("document.querySelector('[data-field=image]')")
    assert base64.b64decode(kept_request(page)["image"]) == plain


def test_errors_of_the_server_are_shown_in_its_words_at_the_field(page):
    page.type("prompt", "a")
    page.type("width", 65)
    page.wait("document.querySelector('.plan.bad')")
    assert "multiple of 8" in page.text(".plan.bad")
    assert page.run("document.getElementById('width').closest('.wrong') !== null")
    page.errors.clear()  # the browser logs the 422 itself
    page.type("width", 64)
    page.wait("!document.querySelector('.plan.bad')")


def test_the_gallery_searches_compares_verifies_copies_and_deletes(page):
    page.type("prompt", "o'hara <b>bold</b>")
    page.type("seed", 7)
    page.click("#make")
    page.wait(DONE)
    page.type("seed", 8)
    page.click("#make")
    page.wait("document.getElementById('picture')?.alt.endsWith('seed 8')")
    page.run("location.hash = '#gallery'")
    page.wait("document.getElementById('search')")
    page.type("search", "O'HARA")
    page.wait("document.querySelectorAll('.tile').length === 2")
    page.click("#select")
    page.run("document.querySelectorAll('.tile').forEach((t) => t.click())")
    page.click("#compare")
    page.wait("document.querySelectorAll('.compare img').length === 2")
    page.wait("document.querySelector('dialog[open] table tr')")
    rows = page.run(
        "[...document.querySelectorAll('dialog[open] table tr')].map((r) => r.textContent)"
    )
    assert rows == ["Seed87"]
    page.click("dialog[open] header .icon")
    page.click("#select")
    page.click(".tile")
    page.click("#verify")
    page.wait("document.getElementById('verdict')?.className === 'good'")
    assert "identical" in page.text("#verdict")
    page.click("[data-copy=cli]")
    page.wait("document.getElementById('copied')")
    assert page.text("#copied") == (
        "mezzotint generate 'o'\\''hara <b>bold</b>' --seed 8"
    )  # fmt: skip
    page.click("[data-copy=json]")
    page.wait("document.getElementById('copied').textContent.startsWith('{')")
    assert json.loads(page.text("#copied")) == {"prompt": "o'hara <b>bold</b>", "seed": 8}
    page.click("#use")
    page.wait("document.getElementById('seed')?.value === '8'")
    page.run("location.hash = '#gallery'")
    page.click(".tile")
    page.click("#delete")
    page.wait("document.querySelectorAll('.tile').length === 1")
    page.click(".notice.good > button")  # undo
    page.wait("document.querySelectorAll('.tile').length === 2")
    page.type("search", "")


def test_thirty_in_the_queue_are_shown_and_cancelled_at_once(page):
    page.type("prompt", "many")
    page.type("num_inference_steps", 100)
    page.run(
        "window.many = Array.from({length: 30}, () => document.getElementById('make').click())"
    )
    page.wait("document.querySelectorAll('.queue li').length >= 30")
    slowest = page.run(
        """new Promise((resolve) => {
          let worst = 0, last = performance.now(), left = 60;
          const tick = (now) => {
            worst = Math.max(worst, now - last); last = now; left -= 1;
            left ? requestAnimationFrame(tick) : resolve(worst);
          };
          requestAnimationFrame(tick);
        })"""
    )
    assert slowest < 500  # milliseconds between two frames, on a loaded machine
    page.click("#cancel-all")
    page.wait(f"{READY} && !document.querySelector('.queue')")


def test_on_a_phone_the_picture_is_in_sight_and_nothing_is_cut_off(page, tmp_path):
    page.type("prompt", "small")
    page.click("#make")
    page.wait(DONE)
    page.screenshot(tmp_path / "phone.png", width=390, height=844)
    box = page.run(
        "(() => { const b = document.getElementById('picture').getBoundingClientRect();"
        " return [b.top, b.bottom, b.left, b.right]; })()"
    )
    assert 0 <= box[0] < box[1] <= 844
    assert 0 <= box[2] < box[3] <= 390
    assert page.run("document.documentElement.scrollWidth") <= 390
    make = page.run("document.getElementById('make').getBoundingClientRect().bottom")
    assert make <= 844
    for room in ("create", "sheet", "gallery", "lab", "train", "operate"):
        page.run(f"location.hash = '#{room}'")
        page.wait(f"document.querySelector('main.{room} :is(#make, .tile, .plane, section)')")
        page.run("document.querySelectorAll('main details').forEach((d) => { d.open = true; })")
        if room == "operate":
            page.wait("document.querySelector('.answers tbody td')")
        assert page.run("document.documentElement.scrollWidth") <= 390, room
    page.screenshot(tmp_path / "desktop.png")


def test_guidance_is_dragged_as_a_curve_and_chosen_as_a_shape(page):
    page.type("prompt", "curved")
    page.type("num_inference_steps", 5)
    page.run("document.getElementById('technique-guidance_scale').open = true")
    page.wait("document.querySelectorAll('#guidance-chart circle').length === 5")
    page.drag("#guidance-chart svg", (0.12, 0.5), (0.95, 0.1))
    dragged = kept_request(page, lambda r: "guidance_scale" in r)["guidance_scale"]
    assert dragged["schedule"] == "list"
    assert len(dragged["values"]) == 5
    assert dragged["values"] == sorted(dragged["values"])  # the line from low to high
    page.run("document.querySelector('#guidance-chart svg').focus()")
    page.press("ArrowUp")
    raised = kept_request(page, lambda r: r["guidance_scale"] != dragged)["guidance_scale"]
    assert raised["values"] == [*dragged["values"][:4], dragged["values"][4] + 0.5]
    page.run("document.querySelectorAll('.shapes button')[2].click()")
    cosine = kept_request(page, lambda r: r["guidance_scale"].get("end") == 1)["guidance_scale"]
    assert cosine["schedule"] == "cosine"


def test_weights_wildcards_styles_and_the_ratio(page):
    page.type("prompt", "a (red:1.3) boat")
    page.wait("document.querySelector('#prompt-read button')")  # brackets are text now
    page.click("#prompt-read button")
    assert kept_request(page, lambda r: "prompt_dialect" in r)["prompt_dialect"] == "a1111"
    page.run("document.getElementById('wild').open = true")
    page.type("prompt", "{one|one} of __sort__")
    page.type("wild-name", "sort")
    page.click("#wild .row:last-child button")
    page.wait("document.getElementById('wild-sort')")
    page.type("wild-sort", "# a comment\nfish")
    page.click("#fill")
    page.type("style-name", "ink")
    page.click("#wild .row button")
    page.wait("document.querySelector('.styles')")
    page.click("#make")
    page.wait(DONE)
    page.wait("document.getElementById('picture').alt.startsWith('one of fish')")
    assert page.run("document.getElementById('prompt').value") == "{one|one} of __sort__"
    page.click("#fill")
    page.type("prompt", "a sail")
    page.click(".styles .grow")
    page.wait("document.getElementById('prompt').value === 'a sail, {one|one} of __sort__'")
    page.type("width", 64)
    page.type("height", 32)
    page.click("#lock")
    page.type("width", 128)
    assert kept_request(page, lambda r: r.get("height") == 64)["height"] == 64
    page.click("#lock")


def test_loras_have_sliders_and_control_pictures_show_what_is_seen(page, server):
    page.type("prompt", "worn")
    page.run("document.getElementById('technique-loras').open = true")
    page.click("#technique-loras .presets button")
    page.wait("document.querySelector('.strength input[type=range]')")
    page.run(
        """(() => { const s = document.querySelector('.strength input[type=range]');
          s.value = 0.5; s.dispatchEvent(new Event('input', {bubbles: true})); })()"""
    )
    assert kept_request(page, lambda r: r.get("loras", [{}])[0].get("scale"))["loras"] == [
        {"name": "ink", "scale": 0.5}
    ]
    editors = "#technique-loras :is(select, input[type=number])"
    assert page.run(f"document.querySelectorAll({json.dumps(editors)}).length") == 2
    page.type("seed", 8)
    page.click("#make")
    page.wait(f"{DONE} && document.getElementById('picture')?.alt === 'worn, seed 8'")
    page.wait("document.querySelector('.strength img.sample')?.naturalWidth > 0")
    source = page.run("new URL(document.querySelector('.strength img').src).pathname")
    job = httpx.get(f"{server.url}/v1/jobs/{source.split('/')[3]}/request").json()
    assert (job["prompt"], job["loras"]) == ("worn", [{"name": "ink", "scale": 0.5}])
    image = base64.b64encode(picture()).decode()
    control = [{"model": "canny", "image": image, "preprocess": "canny"}]
    page.run(
        f"localStorage.setItem('mezzotint-request', {json.dumps(json.dumps({'controls': control}))})"
    )
    page.reload()
    page.wait("document.querySelector('.control-views img')?.naturalWidth === 16")


def test_two_regions_are_drawn_as_boxes_and_moved_by_keyboard(page):
    page.type("prompt", "a field")
    page.run("document.getElementById('technique-regions').open = true")
    page.drag("#boxes", (0.1, 0.1), (0.5, 0.5))
    page.wait("document.querySelectorAll('.box').length === 1")
    page.drag("#boxes", (0.6, 0.6), (0.9, 0.8))
    page.wait("document.querySelectorAll('.box').length === 2")
    first, second = kept_request(page, lambda r: len(r.get("regions", ())) == 2)["regions"]
    assert first["box"] == pytest.approx([0.1, 0.1, 0.5, 0.5], abs=0.02)
    assert second["box"] == pytest.approx([0.6, 0.6, 0.9, 0.8], abs=0.02)
    page.run("document.querySelectorAll('.box')[1].focus()")
    page.press("ArrowLeft")
    kept = kept_request(page, lambda r: r["regions"][1] != second)
    moved = kept["regions"][1]["box"]
    assert moved[0] == pytest.approx(second["box"][0] - 0.01, abs=0.002)
    assert moved[2] - moved[0] == pytest.approx(second["box"][2] - second["box"][0], abs=0.002)
    page.run(
        """[...document.querySelectorAll('#technique-regions textarea')].forEach((t, k) => {
          if (t.previousElementSibling.textContent !== "Prompt") return;
          t.value = "part " + k; t.dispatchEvent(new Event("input", {bubbles: true})); })"""
    )
    page.wait("document.querySelector('#plan p') && !document.querySelector('.plan.bad')")
    page.click("#make")
    page.wait(DONE)


def test_a_region_is_painted_undone_kept_and_sent(page, server):
    page.type("prompt", "a field")
    page.run("document.getElementById('technique-regions').open = true")
    page.drag("#boxes", (0.55, 0.1), (0.95, 0.9))
    page.wait("document.querySelectorAll('.box').length === 1")
    boxed = kept_request(page, lambda r: len(r.get("regions", ())) == 1)["regions"]
    page.click("#technique-regions [role=group] button")  # the box, with the brush
    page.wait("document.getElementById('region-canvas')?.width > 300")
    page.drag("#region-canvas", (0.1, 0.1), (0.1, 0.3))
    both = kept_request(page, lambda r: "mask" in r["regions"][0])["regions"][0]
    assert both.keys() == {"prompt", "mask"}
    assert [grey(both["mask"], at) for at in ((0.1, 0.2), (0.8, 0.5), (0.3, 0.8))] == [255, 255, 0]
    page.click("#region-undo")  # and it is a box again
    assert kept_request(page, lambda r: r["regions"] == boxed)["regions"] == boxed
    page.click("#region-done")
    page.wait("document.getElementById('region-new')")
    page.click("#region-new")
    page.wait("document.getElementById('region-canvas')?.width > 300")
    time.sleep(0.3)
    page.drag("#region-canvas", (0.25, 0.25), (0.25, 0.75))
    one = kept_request(page, lambda r: len(r["regions"]) == 2)["regions"]
    page.click("#region-undo")  # of a new one nothing is left
    assert kept_request(page, lambda r: len(r["regions"]) == 1)["regions"] == boxed
    page.drag("#region-canvas", (0.25, 0.25), (0.25, 0.75))
    kept = kept_request(page, lambda r: len(r["regions"]) == 2)
    assert kept["regions"] == one
    assert one[1].keys() == {"prompt", "mask"}
    asked = httpx.get(f"{server.url}/v1/capabilities").json()
    plate = next(m["defaults"] for m in asked["models"] if m["name"] == "plate")
    with Image.open(io.BytesIO(base64.b64decode(one[1]["mask"]))) as mask:
        assert mask.width / mask.height == plate.get("width", 1) / plate.get("height", 1)
    places = ((0.25, 0.5), (0.25, 0.3), (0.75, 0.5), (0.25, 0.95))
    assert [grey(one[1]["mask"], at) for at in places] == [255, 255, 0, 0]
    page.click("#region-done")
    page.wait("document.querySelector('#boxes img.area')?.naturalWidth > 300")
    page.run(
        """[...document.querySelectorAll('#technique-regions textarea')].forEach((t, k) => {
          if (t.previousElementSibling.textContent !== "Prompt") return;
          t.value = "part " + k; t.dispatchEvent(new Event("input", {bubbles: true})); })"""
    )
    full = kept_request(page, lambda r: all(x["prompt"] for x in r["regions"]))
    page.reload()
    page.wait(READY)
    assert kept_request(page) == full
    page.click("#make")
    page.wait(DONE)
    newest = httpx.get(f"{server.url}/v1/gallery?limit=1").json()["jobs"][0]["id"]
    sent = httpx.get(f"{server.url}/v1/jobs/{newest}/request").json()["regions"]
    assert [region.get("mask") for region in sent] == [None, one[1]["mask"]]


def grey(mask: str, at: tuple[float, float]) -> int:
    """Return the brightness of a mask at a fraction of its width and height."""
    with Image.open(io.BytesIO(base64.b64decode(mask))) as opened:
        place = (int(at[0] * opened.width), int(at[1] * opened.height))
        return opened.convert("L").getpixel(place)


def test_a_mask_is_painted_undone_and_sent(page, server):
    page.type("prompt", "repainted")
    drop(page, picture("green", 64), "start.png")
    page.wait("document.querySelector('.notice button')")
    page.click(".notice button")
    page.wait("document.querySelector('[data-field=image]')")
    page.run("document.getElementById('technique-mask').open = true")
    page.wait("document.getElementById('mask-canvas')?.width === 64")
    page.drag("#mask-canvas", (0.5, 0.25), (0.5, 0.75))
    page.wait("document.querySelector('[data-field=mask]')")
    one = kept_request(page, lambda r: "mask" in r)["mask"]
    page.drag("#mask-canvas", (0.1, 0.1), (0.2, 0.1))
    assert kept_request(page, lambda r: r["mask"] != one)["mask"] != one
    page.click("#mask-undo")
    assert kept_request(page, lambda r: r["mask"] == one)["mask"] == one
    page.click("#mask-undo")  # nothing is left: neither is the mask, nor what was about it
    assert kept_request(page, lambda r: "mask" not in r).keys() == {"prompt", "image"}
    page.drag("#mask-canvas", (0.5, 0.25), (0.5, 0.75))
    assert kept_request(page, lambda r: "mask" in r)["inpaint"] == {"paste": True}
    with Image.open(io.BytesIO(base64.b64decode(one))) as mask:
        grey = mask.convert("L")
        assert grey.size == (64, 64)
        assert [grey.getpixel(at) for at in ((32, 32), (4, 32), (60, 60))] == [255, 0, 0]
    page.click("#make")
    page.wait(DONE)
    newest = httpx.get(f"{server.url}/v1/gallery?limit=1").json()["jobs"][0]["id"]
    assert httpx.get(f"{server.url}/v1/jobs/{newest}/request").json()["mask"] == one


def test_strokes_between_two_frames_are_all_kept_and_undone(page):
    page.type("prompt", "repainted")
    drop(page, picture("green", 64), "start.png")
    page.wait("document.querySelector('.notice button')")
    page.click(".notice button")
    page.run("document.getElementById('technique-mask').open = true")
    page.wait("document.getElementById('mask-canvas')?.width === 64")
    page.run(
        """(async () => {
          const canvas = document.getElementById("mask-canvas");
          canvas.setPointerCapture = () => {};
          const box = canvas.getBoundingClientRect();
          for (const x of [0.2, 0.5, 0.8]) {
            const at = {clientX: box.left + x * box.width, clientY: box.top + box.height / 2};
            for (const kind of ["pointerdown", "pointerup"])
              canvas.dispatchEvent(new PointerEvent(kind, {...at, pointerId: 1}));
            await null;  // what was said is drawn before the next stroke, no frame is
          }
          await new Promise((done) => setTimeout(done, 500));
        })()"""
    )
    painted = kept_request(page, lambda r: "mask" in r)["mask"]
    shown = page.run("document.getElementById('mask-canvas').toDataURL()")
    assert shown.endswith(painted)
    with Image.open(io.BytesIO(base64.b64decode(painted))) as mask:
        assert [mask.convert("L").getpixel((x, 32)) for x in (13, 32, 51)] == [255] * 3
    for _ in range(3):
        page.click("#mask-undo")
    assert "mask" not in kept_request(page, lambda r: "mask" not in r)


def test_a_sheet_becomes_a_table_with_one_noise_and_survives_a_reload(page, server):
    page.type("prompt", "a table")
    page.run("location.hash = '#sheet'")
    page.wait("document.getElementById('make-sheet')")
    page.run(
        """[...document.querySelectorAll('.axes textarea')].forEach((t, k) => {
          t.value = ["2-4", "1, 8"][k]; t.dispatchEvent(new Event("input", {bubbles: true})); })"""
    )
    page.wait("document.getElementById('make-sheet').textContent.includes('6')")
    page.click("#make-sheet")
    page.wait("document.querySelectorAll('.xy img').length === 6", seconds=30)
    jobs = httpx.get(f"{server.url}/v1/gallery?limit=6").json()["jobs"]
    pairs = {(j["request"]["num_inference_steps"], j["request"]["guidance_scale"]) for j in jobs}
    assert pairs == {(s, g) for s in (2, 3, 4) for g in (1.0, 8.0)}
    assert len({j["request"]["seed"] for j in jobs}) == 1
    page.reload()
    page.wait("document.querySelectorAll('.xy img').length === 6", seconds=30)
    page.click(".xy .tile")
    page.wait("document.querySelector('.detail[open] .big img')")
    page.run("document.querySelectorAll('dialog[open]').forEach((d) => d.close())")


def test_a_third_field_makes_a_table_for_each_of_its_values(page, server):
    page.type("prompt", "three fields")
    page.run("location.hash = '#sheet'")
    page.wait("document.getElementById('make-sheet')")
    page.run(
        """(() => { const third = document.querySelectorAll('.axes select')[2]; third.value = "scheduler";
          third.dispatchEvent(new Event("change", {bubbles: true})); })()"""
    )
    page.wait("document.querySelectorAll('.axes textarea').length === 3")
    assert page.run("document.getElementById('make-sheet').disabled") is True  # no value yet
    page.run(
        """[...document.querySelectorAll('.axes textarea')].forEach((t, k) => {
          t.value = ["2, 3", "1", "euler, ddim"][k]; t.dispatchEvent(new Event("input", {bubbles: true})); })"""
    )
    page.wait("document.getElementById('make-sheet').textContent.includes('4')")
    page.click("#make-sheet")
    page.wait("document.querySelectorAll('.xy img').length === 4", seconds=30)
    assert page.run("document.querySelectorAll('.xy').length") == 2
    assert "euler" in page.text(".xy caption")
    found = page.run("[...document.querySelectorAll('.xy img')].map((i) => i.alt)")
    assert found == ["2, 1, euler", "3, 1, euler", "2, 1, ddim", "3, 1, ddim"]
    jobs = httpx.get(f"{server.url}/v1/gallery?limit=4").json()["jobs"]
    asked = [(j["request"]["num_inference_steps"], j["request"]["scheduler"]) for j in jobs]
    assert sorted(asked) == [(2, "ddim"), (2, "euler"), (3, "ddim"), (3, "euler")]
    page.reload()
    page.wait("document.querySelectorAll('.xy img').length === 4", seconds=30)
    page.run(
        """(() => { const third = document.querySelectorAll('.axes select')[2]; third.value = "";
          third.dispatchEvent(new Event("change", {bubbles: true})); })()"""
    )
    page.wait("document.getElementById('make-sheet').textContent.includes('2')")


def test_a_walk_is_played(page, server):
    asked = {"prompt": "here", "seed": 1, "walk": {"to": "there", "frames": 4}}
    made = httpx.post(f"{server.url}/v1/jobs", json=asked).json()
    until = time.monotonic() + 20
    while httpx.get(f"{server.url}/v1/jobs/{made['id']}").json()["status"] != "succeeded":
        assert time.monotonic() < until
        time.sleep(0.05)
    page.reload()
    page.run("location.hash = '#gallery'")
    page.click(".tile")
    page.wait("document.querySelectorAll('.walk img').length === 4")
    first = "[...document.querySelectorAll('.walk > div')].findIndex((d) => !d.hidden)"
    at = page.run(first)
    page.wait(f"{first} !== {at}")  # it moves by itself
    page.click("#play")
    page.run("document.querySelectorAll('dialog[open]').forEach((d) => d.close())")


def test_the_server_room_shows_models_and_chooses_one(page):
    page.run("location.hash = '#operate'")
    page.wait("document.querySelector('[data-model=plate-gan]')")
    page.wait("document.querySelector('#health')?.textContent.includes('Waiting')")
    page.click("[data-model=plate-gan] button")
    page.wait("document.getElementById('make')")
    assert kept_request(page)["model"] == "plate-gan"
    assert page.run("document.getElementById('prompt')") is None  # it takes no text
    assert page.run("document.getElementById('scheduler')") is None
    assert page.run("document.getElementById('technique-regions')") is None
    page.run("[...document.querySelectorAll('.submit .quiet')][0].click()")


HELD = """window.fetch = (what) => {
  window.asked = [...(window.asked ?? []), String(what?.url ?? what)];
  return new Promise(() => {});
};"""
FIRST_VIEW = {"app.js", "basics.js", "index.css", "sheet.js", "text.js", "favicon.svg"}


def test_the_form_answers_keys_when_its_own_files_are_there_and_nothing_else(page):
    """What a first view waits for: files of the page in two trips, and no answer of the API."""
    page.call("Network.enable")
    page.call("Network.setCacheDisabled", cacheDisabled=True)
    held = page.call("Page.addScriptToEvaluateOnNewDocument", source=HELD)["identifier"]
    try:
        page.reload()
        page.wait("document.getElementById('prompt')")
        assert page.text("#state") == "connecting"
        page.run("document.getElementById('prompt').focus()")
        page.call("Input.insertText", text="early")
        kept = kept_request(page, lambda request: request.get("prompt") == "early")
        assert kept["prompt"] == "early"
        files = page.run(
            """performance.getEntriesByType('resource').map((e) =>
              [e.name.split('/').at(-1), e.encodedBodySize])"""
        )
        assert {name for name, _ in files} == FIRST_VIEW  # the icon is asked for twice
        document = page.run("performance.getEntriesByType('navigation')[0].encodedBodySize")
        assert 30_000 < sum(size for _, size in files) + document < 70_000  # compressed
    finally:
        page.call("Page.removeScriptToEvaluateOnNewDocument", identifier=held)
        page.call("Network.setCacheDisabled", cacheDisabled=False)
        page.call("Network.disable")
        page.reload()
        page.wait(READY)


@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is installed by ./dev web/")
@pytest.mark.parametrize(
    "where",
    [
        "create",
        "sheet",
        "gallery",
        "lab",
        "train",
        "operate",
        "detail",
        "help",
        "palette",
        "models",
    ],
)
def test_axe_finds_nothing_wrong(page, where):
    page.type("prompt", "seen by all")
    page.click("#make")
    page.wait(DONE)
    page.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    if where in ("gallery", "sheet", "lab", "train", "operate"):
        page.run(f"location.hash = '#{where}'")
        page.wait("document.querySelector('.tile, #make-sheet, .plane, section.train, li.model')")
        page.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    if where in ("detail", "help", "models"):
        page.click({"detail": "#details"}.get(where, f"#{where}"))
        page.wait("document.querySelector('dialog[open]')")
    if where == "palette":
        page.press("k", ctrl=True)
        page.wait("document.querySelector('#palette[open]')")
    page.run(AXE.read_text())
    for theme in ("light", "dark"):
        page.run(f"document.documentElement.dataset.theme = '{theme}'")
        found = page.run(
            "axe.run().then((r) => r.violations.map((v) => `${v.id}: ${v.nodes[0].html.slice(0, 120)}`))"
        )
        assert found == [], theme
    page.run("document.querySelectorAll('dialog[open]').forEach((d) => d.close())")
    page.run("delete document.documentElement.dataset.theme")


@pytest.mark.slow
def test_the_page_knows_within_seconds_that_the_server_died_and_came_back(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    given = {"serve": {"port": port}, "fake": {"step_s": 0.05}, "jobs": {"preview_every": 1}}
    with contextlib.ExitStack() as stack:
        with running_server(tmp_path / "jobs", **given) as first:
            page = stack.enter_context(open_page(first.url, tmp_path))
            page.wait(READY)
            page.type("prompt", "survives")
            page.type("num_inference_steps", 100)
            page.click("#make")
            page.wait("document.querySelector('#picture.preview')")
            first.process.kill()
            first.process.wait()
            page.wait("document.getElementById('dot').className === 'dot bad'", seconds=5)
        with running_server(tmp_path / "jobs", **given):
            page.wait("document.getElementById('dot').className === 'dot busy'", seconds=10)
            page.wait("document.querySelector('#picture.preview')", seconds=20)
            page.wait(DONE, seconds=60)
            assert page.run("document.getElementById('picture').alt").startswith("survives")


@pytest.mark.slow
def test_a_key_is_asked_for_once_and_kept_for_the_tab(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("k" * 24 + " ann generate\n")
    keys.chmod(0o600)
    with (
        running_server(tmp_path / "jobs", serve={"api_keys": str(keys)}) as server,
        open_page(server.url, tmp_path) as page,
    ):
        page.wait("document.querySelector('#key-box[open]')")
        assert "asks for an API key" in page.text("#key-state")
        page.press("Escape")  # a browser lets the second one close a dialog that refused the first
        page.press("Escape")
        page.run("new Promise((done) => setTimeout(done, 100))")
        assert page.run("document.getElementById('key-box').open") is True
        page.type("key", "w" * 24)
        page.click("#key-box .primary")
        page.wait("document.getElementById('key-state').textContent.includes('does not know')")
        page.type("key", "k" * 24)
        page.click("#key-box .primary")
        page.wait(READY)
        assert page.run("document.querySelector('#key-box[open]')") is None
        page.reload()
        page.wait(READY)
        page.type("prompt", "with a key")
        page.click("#make")
        page.wait(DONE)
        page.wait("document.getElementById('picture').naturalWidth === 128")
        page.errors.clear()  # the 401s above, and one 403 of /v1/runs
        time.sleep(5)
        assert page.errors == []


def draw_grid(root, name: str, color: str, step: int) -> None:
    folder = root / name / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (64, 64), color)
    partial = folder / "partial.png"
    image.save(partial)
    partial.rename(folder / "grid.png")
    image.save(folder / f"grid-{step:08d}.png")
    line = {"event": "step", "step": step, "steps": 100, "loss": 0.5, "eta_s": 60}
    (root / name / "metrics.jsonl").write_text(json.dumps(line) + "\n")


def color_of_run(page: Page, name: str, selector: str = "") -> str:
    return page.run(
        f"""(() => {{
          const image = document.querySelector('{selector or f"[data-run={name}] img"}');
          if (!image || !image.complete || !image.naturalWidth) return "";
          const canvas = document.createElement("canvas");
          canvas.width = canvas.height = 1;
          const context = canvas.getContext("2d");
          context.drawImage(image, 0, 0);
          return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).join(",");
        }})()"""
    )


@pytest.mark.slow
def test_the_grids_of_training_runs_are_live(tmp_path):
    root = tmp_path / "runs"
    draw_grid(root, "faces", "red", 10)
    with (
        running_server(tmp_path / "jobs", serve={"runs": str(root)}) as server,
        open_page(server.url, tmp_path) as page,
    ):
        page.run("location.hash = '#train'")
        page.wait("document.querySelector('[data-run=faces] img')?.naturalWidth === 64")
        assert color_of_run(page, "faces") == "255,0,0"
        assert "step 10 of 100" in page.text("#run-facts")
        draw_grid(root, "faces", "blue", 20)
        draw_grid(root, "waves", "lime", 5)
        page.wait("document.querySelectorAll('.run').length === 2")
        page.wait("document.querySelector('[data-run=waves] img')?.naturalWidth === 64")
        page.click("[data-run=faces]")
        page.wait("document.getElementById('run-facts').textContent.includes('20')")
        until = time.monotonic() + 15
        while color_of_run(page, "faces") != "0,0,255":
            assert time.monotonic() < until
            time.sleep(0.1)
        page.wait("document.getElementById('run-past')")
        page.run(  # back to the first grid
            """(() => { const s = document.getElementById('run-past');
                s.value = 0; s.dispatchEvent(new Event('input', {bubbles: true})); })()"""
        )
        page.wait("document.querySelector('.run-samples output').textContent === 'step 10'")
        while color_of_run(page, "faces", "#run-grid") != "255,0,0":
            assert time.monotonic() < until + 15
            time.sleep(0.1)
        assert page.errors == []
