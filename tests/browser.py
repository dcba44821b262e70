"""A headless Chromium over its debugging pipe: no driver, no websocket library.

The DevTools protocol is JSON messages ended by a zero byte on file descriptors 3
and 4 of the browser (``--remote-debugging-pipe``).
"""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["CHROMIUM", "Page", "open_page"]

CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome")
                 if (p := shutil.which(n))), None)  # fmt: skip

ANSWER_S = 120.0
"""For one answer of the browser; a loaded machine is slow."""


class Page:
    """One tab."""

    def __init__(self, into: int, out: int) -> None:
        self._into, self._out = into, out
        self._rest = b""
        self._next = 0
        self._session: str | None = None
        self.errors: list[str] = []
        self._trace: list[dict[str, Any]] = []
        self._is_traced = False

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and wait for its answer."""
        self._next += 1
        number = self._next
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._into, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read(ANSWER_S)
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def open(self, url: str) -> None:
        """Attach to a tab and load ``url``."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=url)

    def reload(self) -> None:
        """Load the page again."""
        self.run("window.isOld = true")
        self.call("Page.reload")
        self.wait("!window.isOld && document.readyState === 'complete'")

    def type(self, id_: str, text: object) -> None:
        """Put text into a field and tell the page, as typing does."""
        self.run(
            f"""(() => {{
              const field = document.getElementById({id_!r});
              const kind = Object.getPrototypeOf(field);
              Object.getOwnPropertyDescriptor(kind, "value").set.call(field, {json.dumps(str(text))});
              field.dispatchEvent(new Event("input", {{bubbles: true}}));
              field.dispatchEvent(new Event("change", {{bubbles: true}}));
            }})()"""
        )

    def click(self, selector: str) -> None:
        """Wait for an element that can be pressed, and press it."""
        found = f"document.querySelector({selector!r})"
        self.wait(f"{found} && !{found}.disabled")
        self.run(f"{found}.click()")

    def drag(self, selector: str, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Drag the mouse over an element, from and to shares of its width and height."""
        box = self.run(
            f"""(() => {{
              const found = document.querySelector({selector!r});
              found.scrollIntoView({{block: "center"}});
              const box = found.getBoundingClientRect();
              return [box.left, box.top, box.width, box.height];
            }})()"""
        )
        moves = [("mousePressed", start, 1), ("mouseMoved", end, 1), ("mouseReleased", end, 0)]
        for kind, (x, y), held in moves:
            self.call(
                "Input.dispatchMouseEvent", type=kind, x=box[0] + x * box[2],
                y=box[1] + y * box[3], button="left", buttons=held, clickCount=1,
            )  # fmt: skip

    def text(self, selector: str) -> str:
        """Return the text of an element, "" if there is none."""
        return self.run(f"document.querySelector({selector!r})?.textContent ?? ''")

    def run(self, script: str) -> Any:
        """Evaluate JavaScript (promises are awaited) and return its value."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"])[:500])
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 15.0) -> None:
        """Wait until JavaScript ``condition`` is true."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.run(f"Boolean({condition})"):
                return
            time.sleep(0.05)
        raise AssertionError(f"never true: {condition}; page errors: {self.errors}")

    def tasks_ms(self, script: str) -> list[float]:
        """Run a script; the processor time in ms of each task of the page's thread, ascending.

        A frame is one task at most: none above N means that no frame took more. What else the
        machine does adds little to processor time: caches are shared.
        """
        self._trace.clear()
        self._is_traced = False
        wanted = {"includedCategories": ["toplevel"], "excludedCategories": ["*"]}
        self.call("Tracing.start", traceConfig=wanted, transferMode="ReportEvents")
        self.run(script)
        self.call("Tracing.end")
        while not self._is_traced:
            self._note(self._read(ANSWER_S))
        names = {(e["pid"], e["tid"]): e["args"]["name"] for e in self._trace
                 if e["name"] == "thread_name"}  # fmt: skip
        return sorted(
            event["tdur"] / 1000
            for event in self._trace
            if event["name"] == "ThreadControllerImpl::RunTask" and "tdur" in event
            and names.get((event["pid"], event["tid"])) == "CrRendererMain"
        )  # fmt: skip

    def press(self, key: str, *, ctrl: bool = False, shift: bool = False) -> None:
        """Press and release one key."""
        codes = {"Enter": 13, "Escape": 27, "ArrowRight": 39, "ArrowLeft": 37, "ArrowUp": 38,
                 "ArrowDown": 40, "Tab": 9, "f": 70, "k": 75}  # fmt: skip
        common = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key],
                  "modifiers": 2 * ctrl + 8 * shift}  # fmt: skip
        self.call("Input.dispatchKeyEvent", type="rawKeyDown", **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def screenshot(self, path: Path, width: int = 1280, height: int = 860) -> None:
        """Write a PNG of the page."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height,
            deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        picture = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(picture))

    def _read(self, seconds: float) -> dict[str, Any]:
        until = time.monotonic() + seconds
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._out], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise TimeoutError("the browser does not answer")
            self._rest += os.read(self._out, 1 << 20)
        body, _, self._rest = self._rest.partition(b"\0")
        return json.loads(body)

    def _note(self, event: dict[str, Any]) -> None:
        """Remember what the page complains about."""
        params = event.get("params", {})
        if event.get("method") == "Tracing.dataCollected":
            self._trace.extend(params["value"])
        self._is_traced |= event.get("method") == "Tracing.tracingComplete"
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"])[:400])
        entry = params.get("entry", {})
        if event.get("method") == "Log.entryAdded" and entry.get("level") == "error":
            self.errors.append(str(entry.get("text")))


@contextlib.contextmanager
def open_page(url: str, folder: Path, *flags: str) -> Iterator[Page]:
    """Start a browser on ``url`` with a profile of its own and further ``flags``."""
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()

    def wire() -> None:
        keep_read, keep_write = os.dup(to_read), os.dup(from_write)
        os.dup2(keep_read, 3)
        os.dup2(keep_write, 4)

    process = subprocess.Popen(
        [
            str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu",
            "--disable-dev-shm-usage", "--remote-debugging-pipe", "--no-first-run",
            "--disable-background-networking", "--disable-component-update",
            f"--user-data-dir={folder / 'profile'}", *flags, "about:blank",
        ],
        preexec_fn=wire,
        close_fds=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(to_read)
    os.close(from_write)
    try:
        page = Page(to_write, from_read)
        page.open(url)
        yield page
    finally:
        os.close(to_write)
        os.close(from_read)
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
