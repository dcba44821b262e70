"""The web page: frames, painted regions, words at the field, previews side by side, folders."""

import base64
import io
import json

import httpx
import pytest
from PIL import Image, PngImagePlugin
from tests.browser import CHROMIUM, Page, open_page
from tests.pages import DONE, READY, drop, kept_request, picture, violations
from tests.serving import RunningServer, running_server

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]


@pytest.fixture
def server(page_server: RunningServer) -> RunningServer:
    return page_server


def begin_from(page: Page, side: int) -> None:
    """Put a plain picture into the form to begin from."""
    drop(page, picture("green", side), "start.png")
    page.click(".notice button")
    page.wait("document.querySelector('[data-field=image]')")


def test_an_edge_is_dragged_out_of_the_picture_and_a_ratio_is_framed(page, server):
    page.type("prompt", "a meadow")
    page.run("document.getElementById('technique-outpaint').open = true")
    assert page.run("document.querySelectorAll('#technique-outpaint .edge').length") == 0
    begin_from(page, 64)
    page.wait("document.querySelectorAll('#outpaint .edge').length === 4")
    page.wait("document.getElementById('outpaint-size').textContent.includes('64 × 64')")
    # The board is the picture with half a side of room around it: 128 px across.
    page.drag("#outpaint", (0.75, 0.5), (0.875, 0.5))
    assert kept_request(page, lambda r: "outpaint" in r)["outpaint"] == {"right": 16}
    assert "80 × 64" in page.text("#outpaint-size")
    page.run("document.querySelector('.edge[data-side=top]').focus()")
    page.press("ArrowUp")
    assert kept_request(page, lambda r: "top" in r["outpaint"])["outpaint"] == {
        "top": 8,
        "right": 16,
    }
    for key in ("ArrowDown", "ArrowDown"):
        page.press(key)
    assert kept_request(page, lambda r: "top" not in r["outpaint"])["outpaint"] == {"right": 16}
    page.run("document.querySelector('.outpaint .shape[data-ratio=\"1:1\"]').parentElement.click()")
    assert "outpaint" not in kept_request(page, lambda r: "outpaint" not in r)
    page.run("document.querySelector('.outpaint .shape[data-ratio=\"4:3\"]').parentElement.click()")
    frame = kept_request(page, lambda r: "outpaint" in r)["outpaint"]
    assert frame == {"left": 8, "right": 8}  # 10.67 on each side, to the model's multiple of 8
    page.wait("document.querySelector('#plan p') && !document.querySelector('.plan.bad')")
    page.click("#make")
    page.wait(DONE)
    newest = httpx.get(f"{server.url}/v1/gallery?limit=1").json()["jobs"][0]["id"]
    assert httpx.get(f"{server.url}/v1/jobs/{newest}/request").json()["outpaint"] == frame
    assert violations(page) == []


def test_other_regions_are_seen_under_the_brush_and_a_region_has_one_place(page):
    page.type("prompt", "a field")
    page.run("document.getElementById('technique-regions').open = true")
    page.drag("#boxes", (0.1, 0.1), (0.4, 0.9))
    page.wait("document.querySelectorAll('.box').length === 1")
    page.click("#region-new")
    page.wait("document.getElementById('region-canvas')?.width > 300")
    seen = page.run(
        "(({left, width}) => [left, width])(document.querySelector('.painted .still').style)"
    )
    assert [float(text.rstrip("%")) for text in seen] == pytest.approx([10, 30], abs=2)
    page.drag("#region-canvas", (0.7, 0.3), (0.7, 0.7))
    kept_request(page, lambda r: len(r["regions"]) == 2)
    page.click("#region-done")
    page.click("#technique-regions [role=group] button")  # the box, with the brush
    page.wait("document.querySelector('.painted img.area')?.naturalWidth > 300")
    page.click("#region-done")
    encoded = base64.b64encode(picture("white", 8)).decode()
    page.run(
        f"""(() => {{
          const bytes = Uint8Array.from(atob("{encoded}"), (c) => c.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], "mask.png", {{type: "image/png"}}));
          const field = document.querySelector("#technique-regions .item input[type=file]");
          field.files = transfer.files;
          field.dispatchEvent(new Event("change", {{bubbles: true}}));
        }})()"""
    )
    first = kept_request(page, lambda r: "mask" in r["regions"][0])["regions"][0]
    assert first == {"prompt": "", "mask": encoded}
    page.run("document.querySelector('#technique-regions .item .picture-input .quiet').click()")
    first = kept_request(page, lambda r: "box" in r["regions"][0])["regions"][0]
    assert first == {"prompt": "", "box": [0, 0, 1, 1]}


def test_what_is_wrong_stands_in_words_at_its_field(page):
    page.type("prompt", "a")
    page.type("height", 65)
    page.wait("document.getElementById('fault-height')")
    assert "multiple of 8" in page.text("#fault-height")
    said = page.run("document.getElementById('height').getAttribute('aria-describedby')")
    assert said == "fault-height"
    assert page.run("document.getElementById('height').ariaInvalid") == "true"
    page.errors.clear()  # the browser logs the 422 itself
    page.type("height", 64)
    page.wait("!document.querySelector('.fault') && !document.querySelector('[aria-invalid]')")


def test_several_at_work_show_their_previews_at_once(tmp_path):
    with (
        running_server(tmp_path, fake={"step_s": 0.3}, jobs={"preview_every": 1}) as running,
        open_page(running.url, tmp_path) as page,
    ):
        page.wait(READY)
        for prompt in ("one", "two"):
            page.type("prompt", prompt)
            page.click("#make")
            page.wait(f"document.querySelector('.queue')?.textContent.includes('{prompt}')")
        page.wait("document.querySelectorAll('.queue img.mini').length === 2", seconds=30)
        page.click("#cancel-all")
        page.wait("!document.querySelector('.queue')")


def with_recipe(prompt: str) -> bytes:
    """Return a picture with the recipe that Automatic1111 writes."""
    stream = io.BytesIO()
    text = f"{prompt}\nSteps: 7, Sampler: Euler, CFG scale: 3, Seed: 5, Size: 64x64"
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", text)
    Image.new("RGB", (64, 64), "red").save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


def test_a_folder_of_this_machine_is_looked_through_and_used(page):
    hostile = "<img src=x onerror=alert(1)>"
    files = {
        "a/one.png": with_recipe(hostile),
        "a/two.png": picture("blue", 32),
        "a/note.txt": b"no",
    }
    encoded = {name: base64.b64encode(data).decode() for name, data in files.items()}
    page.run("location.hash = '#gallery'")
    page.wait("document.querySelector('[data-folder]')")
    page.run(
        f"""(() => {{
          const transfer = new DataTransfer();
          for (const [name, text] of Object.entries({json.dumps(encoded)})) {{
            const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
            const kind = name.endsWith("png") ? "image/png" : "text/plain";
            const file = new File([bytes], name.slice(2), {{type: kind}});
            Object.defineProperty(file, "webkitRelativePath", {{value: name}});
            transfer.items.add(file);
          }}
          const field = document.querySelector("[data-folder]");
          Object.defineProperty(field, "files", {{value: transfer.files, configurable: true}});
          field.dispatchEvent(new Event("change", {{bubbles: true}}));
        }})()"""
    )
    page.wait("document.querySelectorAll('.tile img').length === 2")
    assert page.text("#count") == "2 pictures"
    page.type("search", "two")
    page.wait("document.querySelectorAll('.tile').length === 1")
    page.click(".tile")
    page.wait("document.querySelector('dialog.detail[open] .notice.warn')")
    assert page.run("document.getElementById('use-file').disabled")
    assert violations(page) == []
    page.type("search", "")
    page.wait("document.querySelectorAll('.tile').length === 2")
    page.run(  # the next one is opened before the browser tells that this one was closed
        """document.querySelector('dialog.detail').close();
        document.querySelector('.tile[title="one.png"]').click()"""
    )
    page.wait("document.querySelector('#use-file:not(:disabled)')")
    assert hostile in page.text("dialog.detail[open]")
    assert page.run("document.querySelector('dialog img[src=x]') === null")
    page.click("#verify")
    page.wait("document.querySelector('#verdict.good, #verdict.bad')")
    page.click("#use-file")
    assert kept_request(page, lambda r: "prompt" in r)["prompt"] == hostile
    page.run("location.hash = '#gallery'")
    page.wait("document.getElementById('select')")  # the folder is left with the room
