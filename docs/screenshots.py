"""Screenshots: the rooms of the web page, for the docs and for looking at.

    python -m docs.screenshots FOLDER [--all]

Starts a server with the built-in models, draws some pictures, and photographs each room
on a desktop and a phone, light and dark. Without ``--all`` only those of the docs are
kept. Needs Chromium; pictures are WebP, so that they stay small.
"""

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.browser import Page, open_page  # noqa: E402 - the tests' own browser

ROOMS = ("create", "sheet", "gallery", "lab", "operate")
SCREENS = {"desktop": (1440, 900), "phone": (390, 844)}
KEPT = {("create", "desktop", "light"), ("create", "phone", "dark"), ("gallery", "desktop", "dark"),
        ("lab", "desktop", "light"), ("operate", "desktop", "dark")}  # fmt: skip
PROMPTS = ("a red apple", "a sailing boat", "a green tree", "a yellow star", "a blue fish",
           "a house", "a purple flower", "a cup of coffee")  # fmt: skip


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Run a server whose jobs lie in ``folder``; its address."""
    environment = os.environ | {"MEZZOTINT_JOBS__FOLDER": str(folder)}
    command = [sys.executable, "-c", "from mezzotint.cli.main import main; main()", "serve",
               "--port", "0", "--management-port", "0", "--metrics-port", "0"]  # fmt: skip
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


def is_ready(url: str) -> bool:
    """Whether the server takes requests; on a busy machine it may not even answer."""
    try:
        return httpx.get(f"{url}/health/ready", timeout=60).is_success
    except httpx.TransportError:
        return False


def draw_some(url: str) -> None:
    """Draw the pictures that the rooms show."""
    while not is_ready(url):
        time.sleep(0.5)
    ids: list[str] = []
    for number, prompt in enumerate(PROMPTS):
        body = {"prompt": prompt, "seed": 7 + number}
        ids.append(httpx.post(f"{url}/v1/jobs", json=body, timeout=300).json()["id"])
    for number, id_ in enumerate(ids):
        while httpx.get(f"{url}/v1/jobs/{id_}", timeout=60).json()["finished"] is None:
            time.sleep(0.5)
        if number % 3 == 0:
            marks = {"star": True, "rating": 4, "boards": ["favourites"]}
            httpx.put(f"{url}/v1/jobs/{id_}/images/0/marks", json=marks, timeout=60)


def photograph(page: Page, room: str, width: int, height: int) -> Image.Image:
    """Return a picture of a room once it shows what it has."""
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
              deviceScaleFactor=1, mobile=width < 600)  # fmt: skip
    page.run(f"scrollTo(0, 0); location.hash = '#{room}'")
    wanted = {"create": "#picture", "gallery": ".tile img", "lab": ".plane canvas",
              "operate": "li.model", "sheet": "#make-sheet"}  # fmt: skip
    page.wait(f"document.querySelector('{wanted[room]}')", seconds=60)
    time.sleep(6 if room == "operate" else 2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shot.png"
        page.screenshot(path, width, height)
        return Image.open(io.BytesIO(path.read_bytes())).convert("RGB")


def main() -> int:
    """Photograph the rooms."""
    target, everything = Path(sys.argv[1]), "--all" in sys.argv[2:]
    target.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder) / "jobs") as url,
        open_page(url, Path(folder)) as page,
    ):
        draw_some(url)
        for theme in ("light", "dark"):
            page.run(
                f"localStorage.setItem('mezzotint-theme', '{theme}'); localStorage.setItem("
                "'mezzotint-request', JSON.stringify({prompt: 'a (red:1.3) apple, a boat', "
                "prompt_dialect: 'a1111', seed: 7}))"
            )
            page.reload()
            for screen, (width, height) in SCREENS.items():
                for room in ROOMS:
                    if everything or (room, screen, theme) in KEPT:
                        path = target / f"{room}-{screen}-{theme}.webp"
                        photograph(page, room, width, height).save(path, quality=80, method=6)
                        print(path, path.stat().st_size)
    return 0


if __name__ == "__main__":
    sys.exit(main())
