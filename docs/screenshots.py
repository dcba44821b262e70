"""Screenshots: every room of the web page, for the docs and for looking at.

    python -m docs.screenshots [FOLDER [ROOM ...]]

Starts a server with the built-in models, draws some pictures, trains a LoRA for a
moment, and photographs each room, and the panels that are painted and dragged in, on a
desktop and a phone, light and dark, into ``docs/pictures/page``. Needs Chromium;
pictures are WebP, so that they stay small.
"""

import base64
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from PIL import Image, ImageDraw, ImageOps

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.browser import Page, open_page  # noqa: E402 - the tests' own browser
from tests.serving import runs_that_give_way_to_nobody  # noqa: E402

WANTED = {"create": "#picture", "gallery": ".tile img", "lab": ".plane canvas",
          "train": "#run-grid", "operate": "li.model", "sheet": "#make-sheet"}  # fmt: skip
"""Each room, and what has to be there before it is photographed."""
PANELS = {"regions": "#technique-regions [role=group] button:nth-child(2)", "outpaint": ""}
"""Panels of the form by technique, and what is pressed before each is photographed."""
SCREENS = {"desktop": (1440, 900), "phone": (390, 844)}
PROMPTS = ("a sailing boat", "a green tree", "a blue fish", "a red apple", "a yellow star",
           "a house with a red roof")  # fmt: skip
"""What is drawn; the last is what the form then asks for, and stands beside it."""
FORM = {"prompt": "a house with a (red:1.3) roof", "prompt_dialect": "a1111", "seed": 9}
"""What the form holds in the rooms."""
RUN = """\
kind = "lora"
base = "plate"

[data]
path = "{path}"
held_out = 0.2

[optimizer]
learning_rate = 1e-3

[ema]
decays = [0.9]

[loop]
steps = 60
batch_size = 2
log_every = 1
evaluate_every = 10

[samples]
every = 12
prompts = ["a red apple", "a sailing boat", "a green tree", "a house"]
"""
MOST_BYTES = 120_000


@contextlib.contextmanager
def serving(home: Path) -> Iterator[str]:
    """Run a server on a home of its own; its address."""
    environment = os.environ | {"MEZZOTINT_HOME": str(home)}
    command = [sys.executable, "-c", "from mezzotint.cli.main import main; main()", "serve",
               "--port", "0", "--management-port", "0", "--metrics-port", "0",
               "--training"]  # fmt: skip
    process = subprocess.Popen(  # noqa: S603 - our own server
        command, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        lines = iter(process.stdout or ())
        line = next(line for line in lines if line.startswith("generation"))
        yield line.split()[1]
    finally:
        process.terminate()
        process.wait(120)


def ask(method: str, url: str, **given: Any) -> Any:
    """Ask the server and return its JSON; on a busy machine it may take its time."""
    answer = httpx.request(method, url, timeout=300, **given)
    answer.raise_for_status()
    return answer.json()


def is_ready(url: str) -> bool:
    """Whether the server takes requests."""
    try:
        return httpx.get(f"{url}/health/ready", timeout=60).is_success
    except httpx.TransportError:
        return False


def draw_some(url: str) -> list[bytes]:
    """Draw the pictures that the rooms show, and mark some of them."""
    while not is_ready(url):
        time.sleep(0.5)
    ids = [ask("POST", f"{url}/v1/jobs", json={"prompt": prompt, "seed": 9})["id"]
           for prompt in PROMPTS]  # fmt: skip
    made: list[bytes] = []
    for number, id_ in enumerate(ids):
        while ask("GET", f"{url}/v1/jobs/{id_}")["finished"] is None:
            time.sleep(0.5)
        made.append(httpx.get(f"{url}/v1/jobs/{id_}/images/0", timeout=60).content)
        if number % 3 == 0:
            marks = {"star": True, "rating": 4, "boards": ["favourites"]}
            ask("PUT", f"{url}/v1/jobs/{id_}/images/0/marks", json=marks)
    return made


def train(url: str, pictures: list[bytes]) -> None:
    """Train a LoRA on the pictures in blue, as far as it comes."""
    for number, (prompt, data) in enumerate(zip(PROMPTS, pictures, strict=True)):
        grey = ImageOps.grayscale(Image.open(io.BytesIO(data)).convert("RGB"))
        stream = io.BytesIO()
        ImageOps.colorize(grey, "#0b2a6b", "#eef4ff").save(stream, "PNG")
        for file, body in ((f"{number}.png", stream.getvalue()), (f"{number}.txt", prompt)):
            kind = {"Content-Type": "application/octet-stream"}
            ask("PUT", f"{url}/v1/datasets/cyanotype/{file}", content=body, headers=kind)
    path = ask("GET", f"{url}/v1/datasets")["datasets"][0]["path"]
    ask("POST", f"{url}/v1/runs", json={"name": "cyanotype", "config": RUN.format(path=path)})
    while (run := ask("GET", f"{url}/v1/runs/cyanotype"))["status"] == "running":
        time.sleep(1)
    if run["status"] != "finished":
        raise SystemExit(f"the run is {run['status']}: {run['log']}")


def as_text(data: bytes) -> str:
    """Return bytes as a request holds them."""
    return base64.b64encode(data).decode()


def requests_of_panels(made: list[bytes]) -> dict[str, dict[str, Any]]:
    """Return what the form holds for each panel: a box and a painted region, and a frame."""
    mask, stream = Image.new("L", (512, 512)), io.BytesIO()
    ImageDraw.Draw(mask).ellipse((290, 150, 470, 420), fill=255)
    mask.save(stream, "PNG")
    regions = [{"prompt": "a green tree", "box": [0.06, 0.12, 0.46, 0.9]},
               {"prompt": "a red apple", "mask": as_text(stream.getvalue())}]  # fmt: skip
    frame = {"image": as_text(made[0]), "outpaint": {"left": 96, "right": 32, "top": 32}}
    return {"regions": {"prompt": "a meadow", "regions": regions},
            "outpaint": {"prompt": "a sailing boat on a wide sea"} | frame}  # fmt: skip


def resize(page: Page, width: int, height: int) -> None:
    """Show the page on a screen of a size in px."""
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
              deviceScaleFactor=1, mobile=width < 600)  # fmt: skip


def fill_form(page: Page, request: dict[str, Any]) -> None:
    """Open the form with a request in it."""
    page.run("location.hash = '#create'")
    page.run(f"localStorage.setItem('mezzotint-request', {json.dumps(json.dumps(request))})")
    page.reload()
    page.wait("document.getElementById('prompt')", seconds=60)  # what was kept is read by then


def photograph_panel(page: Page, name: str, request: dict[str, Any]) -> Image.Image:
    """Return a picture of the form with one technique open."""
    fill_form(page, request)
    page.wait(f"document.querySelector('#technique-{name} summary')", seconds=60)
    page.wait("document.getElementById('picture')?.naturalWidth", seconds=60)
    page.run(f"document.getElementById('technique-{name}').open = true")
    if PANELS[name]:
        page.click(PANELS[name])
    time.sleep(1)
    place = f"#technique-{name} :is(.painted, .outpaint)"
    page.run(f"document.querySelector('{place}').scrollIntoView({{block: 'center'}})")
    time.sleep(2)
    return captured(page)


def captured(page: Page) -> Image.Image:
    """Return what the browser shows."""
    data = page.call("Page.captureScreenshot", format="png")["data"]
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def photograph(page: Page, room: str) -> Image.Image:
    """Return a picture of a room once it shows what it has."""
    page.run(f"scrollTo(0, 0); location.hash = '#{room}'")
    page.wait(f"document.querySelector('{WANTED[room]}')", seconds=60)
    if room == "sheet" and not page.run("document.querySelector('.xy img') !== null"):
        page.click("#make-sheet")
        page.wait("document.querySelectorAll('.xy img').length === 9", seconds=300)
    time.sleep(8 if room == "operate" else 2)
    return captured(page)


def main() -> int:
    """Photograph the rooms; 1 if a picture is larger than the docs should carry."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "pictures" / "page"
    target.mkdir(parents=True, exist_ok=True)
    largest, wanted = 0, sys.argv[2:] or [*WANTED, *PANELS]
    with (
        tempfile.TemporaryDirectory() as folder,
        runs_that_give_way_to_nobody(Path(folder) / "bin"),
        serving(Path(folder) / "home") as url,
        open_page(url, Path(folder)) as page,
    ):
        made = draw_some(url)
        if set(wanted) & set(WANTED):
            train(url, made)
        requests = requests_of_panels(made)
        for theme in ("light", "dark"):
            page.run(f"localStorage.setItem('mezzotint-theme', '{theme}')")
            for screen, size in SCREENS.items():
                resize(page, *size)
                fill_form(page, FORM)
                for name in wanted:
                    path = target / f"{name}-{screen}-{theme}.webp"
                    image = (photograph_panel(page, name, requests[name]) if name in PANELS
                             else photograph(page, name))  # fmt: skip
                    image.save(path, quality=80, method=6)
                    largest = max(largest, path.stat().st_size)
                    print(path, path.stat().st_size, flush=True)
    return 0 if largest <= MOST_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
