"""Figures of the house: how much of it there is, and how far one request walks.

    python -m docs.figures

A plain request is followed from the OpenAI door to the bytes, in this process, on the
built-in model that has been warmed up: the modules of ours whose code is entered are
counted. Tests hold what is printed to bounds.
"""

import ast
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "mezzotint"
REQUEST = (
    "request.GenerationRequest", "service.requests.RequestSubmission", "planning.plan.Plan",
    "engine.step_engine.Submission", "engine.state.ImageState", "engine.execution.slots.Slot",
)  # fmt: skip
"""What a request is in turn, behind the body that its door reads."""
PICTURE = (
    "engine.step_engine.Decoded", "engine.state.ImageDone", "service.finishing.gating.Kept",
    "types.ImageOutput",
)  # fmt: skip
"""What a finished picture is in turn, before its door's answer."""


def modules() -> list[Path]:
    """Return every module of the package."""
    return sorted(SOURCE.rglob("*.py"))


def naming(word: str) -> int:
    """Return how many modules have a word in their text."""
    return sum(word in path.read_text() for path in modules())


def largest() -> dict[str, tuple[str, int]]:
    """Return the largest folder (modules), module (lines) and function (lines)."""
    folders = Counter(str(p.parent.relative_to(SOURCE)) for p in modules() if p.stem != "__init__")
    lines = {str(p.relative_to(SOURCE)): len(p.read_text().splitlines()) for p in modules()}
    functions: dict[str, int] = {}
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{path.relative_to(SOURCE)}:{node.name}"
                functions[name] = (node.end_lineno or 0) - node.lineno + 1
    found = {"folder": dict(folders), "module": lines, "function": functions}
    return {kind: max(sizes.items(), key=lambda one: one[1]) for kind, sizes in found.items()}


class Walk:
    """The modules of ours that are entered while it is on, in whatever thread.

    Threads are seen that begin while it is installed.
    """

    def __init__(self) -> None:
        self.entered: set[str] = set()
        self.is_on = False

    def __enter__(self) -> "Walk":
        threading.setprofile(self._see)
        sys.setprofile(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]

    def _see(self, frame: FrameType, event: str, argument: object) -> None:
        if self.is_on and event == "call":
            name = frame.f_code.co_filename
            if name.startswith(str(SOURCE)) and frame.f_code.co_name != "<module>":
                self.entered.add(str(Path(name).relative_to(SOURCE)))


def walked() -> list[str]:
    """Return the modules that a plain request enters, from the OpenAI door to the bytes."""
    from starlette.testclient import TestClient

    from mezzotint.engine.config import EngineConfig
    from mezzotint.models.config import ModelsConfig, PlacementConfig
    from mezzotint.serve.app import create_app
    from mezzotint.serve.auth import KeyRing
    from mezzotint.serve.config import ServeConfig
    from mezzotint.serve.front import Front
    from mezzotint.service.composition import ServiceConfig
    from mezzotint.service.local import LocalService

    body: dict[str, Any] = {"prompt": "a red apple", "size": "64x64", "num_inference_steps": 2}
    with tempfile.TemporaryDirectory() as home, Walk() as walk:
        models = ModelsConfig(home=home, backend="torch", placement=PlacementConfig(device="cpu"))
        engine = EngineConfig(calibrate_s=0.0, certify=False)
        service = LocalService(ServiceConfig(models=models, engine=engine))
        config = ServeConfig()
        app = create_app(Front(service, config), KeyRing(None, config.limits))
        client = TestClient(app, base_url="http://127.0.0.1:8080")
        with client:
            for seed in (1, 2, 3):  # the first loads the model, the last is counted
                walk.is_on = seed == 3
                answer = client.post("/v1/images/generations", json=body | {"seed": seed})
                walk.is_on = False
                assert answer.status_code == 200, answer.text  # noqa: S101 - a check, no library
            client.portal.call(service.close)  # type: ignore[union-attr]
    return sorted(walk.entered)


def main() -> None:
    """Print the figures."""
    lines = sum(len(path.read_text().splitlines()) for path in modules())
    print(f"src: {len(modules())} modules, {lines} lines")
    print(f"a plain request enters {len(entered := walked())} modules")
    print("\n".join(f"    {name}" for name in entered))
    print(
        f"forms of a request behind its body: {len(REQUEST)}; of a finished picture: {len(PICTURE)}"
    )
    for word in ("hires", "image_prompts"):
        print(f"modules that name {word}: {naming(word)}")
    for kind, (name, size) in largest().items():
        print(f"largest {kind}: {name}, {size}")


if __name__ == "__main__":
    main()
