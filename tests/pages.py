"""What tests of the web page share: when it is ready, dropping files, reading its form."""

import base64
import io
import json
import time
from pathlib import Path

from PIL import Image
from tests.browser import Page

AXE = Path(__file__).resolve().parents[1] / "web" / "node_modules" / "axe-core" / "axe.min.js"
READY = "document.getElementById('state')?.textContent === 'ready'"
DONE = f"{READY} && document.getElementById('save')"


def drop(page: Page, data: bytes, name: str = "dropped.png", kind: str = "image/png") -> None:
    encoded = base64.b64encode(data).decode()
    page.run(
        f"""(async () => {{
          const bytes = Uint8Array.from(atob("{encoded}"), (c) => c.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], {name!r}, {{type: {kind!r}}}));
          document.dispatchEvent(new DragEvent("dragenter", {{dataTransfer: transfer, bubbles: true}}));
          document.dispatchEvent(new DragEvent("drop", {{dataTransfer: transfer, bubbles: true}}));
        }})()"""
    )


def choose_files(page: Page, files: dict[str, bytes]) -> None:
    """Put files into the field that takes pictures, as its dialog does."""
    encoded = {name: base64.b64encode(data).decode() for name, data in files.items()}
    page.run(
        f"""(() => {{
          const transfer = new DataTransfer();
          for (const [name, text] of Object.entries({json.dumps(encoded)})) {{
            const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
            transfer.items.add(new File([bytes], name, {{type: "image/png"}}));
          }}
          const field = document.getElementById("run-files");
          field.files = transfer.files;
          field.dispatchEvent(new Event("change", {{bubbles: true}}));
        }})()"""
    )


def close_dialogs(page: Page) -> None:
    """Close every dialog; one that a new language draws anew meanwhile is closed again."""
    page.wait(
        """(() => { const open = [...document.querySelectorAll('dialog[open]')];
          open.forEach((d) => d.close()); return !open.length; })()"""
    )


def kept_request(page: Page, holds=lambda request: True) -> dict:
    """Return the request that the form holds, once it is as expected or some time is over."""
    until = time.monotonic() + 10
    while True:
        kept = json.loads(page.run("localStorage.getItem('mezzotint-request') ?? '{}'"))
        if holds(kept) or time.monotonic() > until:
            return kept
        time.sleep(0.1)


def picture(color: str = "red", side: int = 16) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (side, side), color).save(stream, "PNG")
    return stream.getvalue()


def violations(page: Page) -> list[str]:
    """Return the rules of axe-core that a page breaks.

    None where axe-core is not installed: the tests of ``test_server_page.py`` that are of
    nothing else are skipped there, and say so.
    """
    if not AXE.is_file():
        return []
    page.run(AXE.read_text())
    return page.run("axe.run(document).then((r) => r.violations.map((v) => v.id))")
