"""Fake: a service without tensors, for testing doors in milliseconds.

Pictures are plain colours drawn from the digest of the request and the seed, so
equal requests give equal bytes and different ones differ. Every picture is a
real file (PNG, JPEG or WebP written here with the standard library), every
request ends in exactly one event, and failures happen where a test wants them.
"""

import asyncio
import hashlib
import json
import os
import secrets
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mezzotint import errors
from mezzotint.errors import (
    ImageError,
    InUse,
    InvalidRequest,
    NotReady,
    QueueFull,
    UnknownName,
)
from mezzotint.plain import Checked
from mezzotint.preprocessing import read_preprocess
from mezzotint.request import GenerationRequest, Output
from mezzotint.schedulers import DIFFUSERS, NATIVE, SIGMA_SCHEDULES
from mezzotint.service.base import HandlerAnswer
from mezzotint.service.endings import ENDINGS, follow
from mezzotint.service.fake_pictures import draw, read_colour, read_png_text, read_size
from mezzotint.service.fake_plans import describe_model, describe_plan
from mezzotint.techniques.table import ADAPTERS
from mezzotint.types import (
    MAX_SEED,
    Cancelled,
    Event,
    Failed,
    Finished,
    GenerationResult,
    ImageFinished,
    ImageOutput,
    Queued,
    StageTimings,
    Started,
    Stepped,
)

__all__ = ["FakeConfig", "FakeService", "create_fake"]

MODELS: tuple[dict[str, Any], ...] = (
    {"name": "plate", "family": "sd", "takes_prompt": True, "max_size_px": 512},
    {"name": "plate-gan", "family": "gan", "takes_prompt": False, "max_size_px": 64},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeConfig(Checked):
    """How the fake behaves.

    Args:
        load_s: Seconds for which the process stands still before it is ready.
        step_s: Seconds that one solver step takes.
        slots: Requests that run at once; the others wait.
        max_waiting: Requests that may wait before ``QueueFull``.
        failures: Prompt -> name of the error class to end with after one step.
        crashes: Prompt -> path of a marker file: the process kills itself with
            SIGKILL in the middle of the request while the file does not exist.
        always_crash: A prompt that kills the process every time.
        crash_planning: A prompt that kills the process before its request is accepted.
        hangs: Prompt -> path of a marker file: the whole process stands still in
            the middle of the request while the file does not exist.
        stalls: Prompt -> path of a marker file: the request stands still, and nothing
            else, while the file does not exist.
    """

    load_s: float = 0.0
    step_s: float = 0.0
    slots: int = 4
    max_waiting: int = 64
    always_crash: str = ""
    crash_planning: str = ""
    failures: Any = field(default_factory=dict[str, str], hash=False)
    crashes: Any = field(default_factory=dict[str, str], hash=False)
    hangs: Any = field(default_factory=dict[str, str], hash=False)
    stalls: Any = field(default_factory=dict[str, str], hash=False)

    def __post_init__(self) -> None:
        """Take the fields as they are; only tests write them."""


def create_fake(options: Mapping[str, Any]) -> "FakeService":
    """Build a fake from plain options; the factory a worker process calls."""
    config = FakeConfig(**options)
    time.sleep(config.load_s)
    return FakeService(config)


class FakeService:
    """A deterministic stand-in for the engine behind the service port."""

    def __init__(self, config: FakeConfig | None = None) -> None:
        self.config = config or FakeConfig()
        self.requests: list[GenerationRequest] = []
        self._models = {(m["name"], "1.0"): dict(m) for m in MODELS}
        self._defaults = {m["name"]: "1.0" for m in MODELS}
        self._slots = asyncio.Semaphore(self.config.slots)
        self._waiting = 0
        self._running: dict[str, asyncio.Event] = {}
        self._in_use: dict[str, str] = {}
        self._cache: dict[tuple[str, str], GenerationResult] = {}
        self._closed = False
        self._stalled = 0.0

    async def generate(
        self,
        request: GenerationRequest,
        *,
        request_id: str,
        client: str = "",
        use_cache: bool = True,
    ) -> GenerationResult:
        """Run one request to its end."""
        events = self.stream(request, request_id=request_id, client=client, use_cache=use_cache)
        return await follow(events)

    async def stream(
        self,
        request: GenerationRequest,
        *,
        request_id: str,
        client: str = "",
        use_cache: bool = True,
        preview_every: int = 0,
        quiet: bool = False,
    ) -> AsyncIterator[Event]:
        """Run one request and yield its events; the last one is its ending."""
        events = self._events(request, request_id, client, use_cache, preview_every)
        try:
            async for event in events:
                if not quiet or isinstance(event, (Queued, Started, *ENDINGS)):
                    yield event
        finally:
            await events.aclose()

    async def _events(
        self,
        request: GenerationRequest,
        request_id: str,
        client: str,
        use_cache: bool,
        preview_every: int,
    ) -> AsyncGenerator[Event, None]:
        self._check(request)
        if self.config.crash_planning and request.prompt == self.config.crash_planning:
            os.kill(os.getpid(), signal.SIGKILL)
        self._set_ready(request.model, True)
        self.requests.append(request)
        if request.seed is None:
            request = replace(request, seed=secrets.randbits(32))
        if self._waiting >= self.config.max_waiting:
            raise QueueFull("the queue is full", retry_after_s=2.0)
        stop = self._running[request_id] = asyncio.Event()
        self._in_use[request_id] = request.model.partition("@")[0]
        began = time.monotonic()
        self._waiting += 1
        try:
            yield Queued(id=request_id, position=self._waiting - 1, eta_s=self._eta_s(request))
            if use_cache and (client, request.digest) in self._cache:
                kept = self._cache[client, request.digest]
                result = replace(kept, id=request_id, cache="hit")
                yield Finished(id=request_id, result=result)
                return
            async with self._slots:
                timings = StageTimings(queue_s=time.monotonic() - began)
                async for event in self._run(request, request_id, stop, preview_every, timings):
                    if isinstance(event, Finished) and len(self._cache) < 256:
                        self._cache[client, request.digest] = event.result
                    yield event
        finally:
            self._waiting -= 1
            self._running.pop(request_id, None)
            self._in_use.pop(request_id, None)

    async def cancel(self, request_id: str) -> bool:
        """Cancel at the next step."""
        stop = self._running.get(request_id)
        if stop is not None:
            stop.set()
        return stop is not None

    async def plan(self, request: GenerationRequest, *, client: str = "") -> Mapping[str, Any]:
        """Resolve a request without running it."""
        self._check(request)
        known = (client, request.digest) in self._cache
        return {
            "plan": self._plan(request),
            "warnings": [],
            "cost": {"seconds": 0.0, "bytes": 0},
            "cache": "it is kept" if known else "nothing is kept yet",
        }

    async def models(self) -> tuple[Mapping[str, Any], ...]:
        """List the models."""
        return tuple(self._describe(name, version) for name, version in sorted(self._models))

    async def capabilities(self) -> Mapping[str, Any]:
        """List every name a request may use."""
        return {
            "schedulers": sorted((*NATIVE.names(), *DIFFUSERS)),
            "sigma_schedules": list(SIGMA_SCHEDULES),
            "guidance_schedules": ["constant", "cosine", "interval", "linear", "list", "power"],
            "gates": ["nsfw", "quality"],
            **{field: ["style"] for field in ADAPTERS},
            "loras": ["ink"],
            "embeddings": ["scribble"],
            "preprocessors": ["none", "canny"],
            "controls": ["canny"],
            "upscalers": ["anime-x4"],
            "prompt_dialects": ["plain", "a1111", "comfyui", "compel"],
            "output_formats": ["png", "jpeg", "webp"],
        }

    async def health(self) -> Mapping[str, Any]:
        """Tell how the service is."""
        ready = not self._closed
        metrics = {"fake_requests_total": float(len(self.requests))}
        health = {"ready": ready, "live": True, "queue": self._waiting, "metrics": metrics}
        since = time.monotonic() - self._stalled
        call = {"kind": "step", "seconds": since, "expected_s": 0.01, "is_first": False}
        return {**health, "call": call if self._stalled else None}

    async def close(self) -> None:
        """Refuse everything from here on."""
        self._closed = True
        for stop in self._running.values():
            stop.set()

    async def register(
        self, source: str, *, name: str | None = None, version: str | None = None
    ) -> Mapping[str, Any]:
        """Add a model; any source but one that begins with ``missing`` exists."""
        if source.startswith("missing"):
            raise UnknownName("model", source, [n for n, _ in self._models], field="url")
        name = name or Path(source).stem
        version = version or "1.0"
        if (name, version) in self._models:
            full = f"{name}@{version}"
            raise InvalidRequest(f"{full} is registered already", field="name", value=full)
        family = "handler" if source.endswith(".mar") else MODELS[0]["family"]
        added = {"name": name, "path": source, "family": family}
        self._models[name, version] = {**MODELS[0], **added}
        self._defaults.setdefault(name, version)
        return self._describe(name, version)

    async def unregister(self, name: str, version: str | None = None) -> None:
        """Remove one version of a model."""
        version = version or self._defaults.get(name, "")
        self._known(name, version)
        del self._models[name, version]
        left = sorted(v for n, v in self._models if n == name)
        if left:
            self._defaults[name] = left[-1]
        else:
            self._defaults.pop(name)

    async def set_default(self, name: str, version: str) -> None:
        """Make the bare name mean this version."""
        self._known(name, version)
        self._defaults[name] = version

    async def load(self, name: str) -> Mapping[str, Any]:
        """Say that a model is in memory."""
        return self._set_ready(name, True)

    async def unload(self, name: str) -> Mapping[str, Any]:
        """Say that a model is not in memory, unless it is in use."""
        users = [*self._in_use.values()].count(name.partition("@")[0])
        if users:
            raise InUse(f"model {name} is in use by {users} pictures")
        return self._set_ready(name, False)

    def _set_ready(self, name: str, ready: bool) -> dict[str, Any]:
        name, _, version = name.partition("@")
        version = version or self._defaults.get(name, "")
        self._known(name, version, field="model")
        self._models[name, version]["ready"] = ready
        return self._describe(name, version)

    async def handle(
        self, model: str, rows: Sequence[Mapping[str, Any]]
    ) -> tuple[HandlerAnswer, ...]:
        """Answer with the first text of each row; one that is the name of an error fails so."""
        answers: list[HandlerAnswer] = []
        for row in rows:
            value = next(iter(row.values()), "")
            text = value.decode() if isinstance(value, bytes) else json.dumps(value)
            if text in ("failed", "mismatch", "memory", "died"):
                answers.append(HandlerAnswer(error=text, message=f"it {text}"))
            else:
                answers.append(HandlerAnswer(data=text.encode(), content_type="text/plain"))
        return tuple(answers)

    async def inspect(self, data: bytes, *, client: str = "") -> Mapping[str, Any]:
        """Read the text chunks of a PNG."""
        items = read_png_text(data)
        self._maybe_crash(items.get("parameters", ""))
        return {
            "parameters": items.get("parameters", ""),
            "items": items,
            "recipe": None,
            "request": {"prompt": items["parameters"].splitlines()[0]} if items else None,
            "not_honoured": [],
        }

    async def preprocess(self, data: bytes, how: str, *, client: str = "") -> bytes:
        """Draw a picture that depends on the one given."""
        width, height = read_size(data)
        read_preprocess(how, "preprocess")
        return draw(hashlib.sha256(data + how.encode()).digest(), width, height, "png")

    async def upscale(
        self,
        data: bytes,
        *,
        factor: float,
        model: str | None = None,
        output: Output,
        client: str = "",
        cover: tuple[int, int] | None = None,
        crop: bool = False,
    ) -> ImageOutput:
        """Draw a picture of the enlarged size."""
        if model is not None and model != "anime-x4":
            raise UnknownName("upscaler", model, ["anime-x4"], field="upscale.model")
        width, height = read_size(data)
        if cover is not None:
            factor = max(cover[0] / width, cover[1] / height)
        width, height = (round(side * factor) for side in (width, height))
        if cover is not None and crop:
            width, height = cover
        if width * height > 64_000_000:
            raise ImageError(f"the result would be {width}x{height}, more than 64 million pixels")
        drawn = draw(hashlib.sha256(data).digest(), width, height, output.format)
        return ImageOutput(
            index=0, seed=0, data=drawn, format=output.format, width=width, height=height
        )

    async def grid(
        self, images: Sequence[bytes], *, columns: int, padding_px: int = 2, output: Output,
        raw: bool = False,
    ) -> bytes:  # fmt: skip
        """Draw a picture of the size the grid has."""
        width, height = read_size(images[0])
        columns = min(columns, len(images))
        rows = -(-len(images) // columns)
        pad = padding_px if len(images) > 1 else 0
        size = columns * (width + pad) + pad, rows * (height + pad) + pad
        if raw:
            return b"".join(read_colour(i) * width * height for i in images)
        return draw(hashlib.sha256(b"".join(images)).digest(), *size, output.format)

    def _check(self, request: GenerationRequest) -> None:
        """Refuse what the planner would refuse."""
        if self._closed:
            raise NotReady("the service is closing")
        name, _, version = request.model.partition("@")
        self._known(name, version or self._defaults.get(name, ""), field="model")
        if request.scheduler is not None and request.scheduler not in (*NATIVE.names(), *DIFFUSERS):
            raise UnknownName(
                "scheduler", request.scheduler, (*NATIVE.names(), *DIFFUSERS), field="scheduler"
            )
        for side in ("width", "height"):
            value = getattr(request, side)
            if value is not None and value % 8:
                raise InvalidRequest(
                    f"{side} must be a multiple of 8 px, got {value}",
                    field=side,
                    value=value,
                    allowed="multiples of 8",
                )

    def _known(self, name: str, version: str, field: str | None = None) -> None:
        if name not in self._defaults:
            raise UnknownName("model", name, self._defaults, field=field)
        if (name, version) not in self._models:
            known = [v for n, v in self._models if n == name]
            raise UnknownName("version", version, known, field=field)

    def _describe(self, name: str, version: str) -> dict[str, Any]:
        model, is_default = self._models[name, version], self._defaults[name] == version
        return describe_model(model, name=name, version=version, is_default=is_default)

    def _plan(self, request: GenerationRequest) -> dict[str, Any]:
        defaults = self._describe(request.model.partition("@")[0], "1.0")["defaults"]
        return describe_plan(request, defaults)

    def _eta_s(self, request: GenerationRequest) -> float:
        return self.config.step_s * float(self._plan(request)["num_inference_steps"])

    async def _run(
        self,
        request: GenerationRequest,
        request_id: str,
        stop: asyncio.Event,
        preview_every: int,
        timings: StageTimings,
    ) -> AsyncIterator[Event]:
        """Take the steps of every image, then end."""
        plan = self._plan(request)
        steps = int(plan["num_inference_steps"])
        yield Started(id=request_id)
        images: list[ImageOutput] = []
        for index in range(request.walk.frames if request.walk else request.num_images):
            for step in range(1, steps + 1):
                await asyncio.sleep(self.config.step_s)
                if stop.is_set():
                    yield Cancelled(id=request_id)
                    return
                failure = self.config.failures.get(request.prompt)
                if failure:
                    error = getattr(errors, failure, RuntimeError)("the fake was told to fail")
                    yield Failed(id=request_id, error=error)
                    return
                self._maybe_crash(request.prompt)
                marker = self.config.stalls.get(request.prompt)
                if marker and not Path(marker).exists():
                    Path(marker).touch()
                    self._stalled = time.monotonic()
                    await asyncio.sleep(600)
                wants = preview_every and step % preview_every == 0
                preview = draw(bytes([step % 256] * 32), 16, 16, "png") if wants else None
                yield Stepped(id=request_id, image=index, step=step, steps=steps, preview=preview)
            images.append(self._picture(request, index, plan, timings))
            yield ImageFinished(id=request_id, image=images[-1])
        result = GenerationResult(id=request_id, images=tuple(images), plan=plan)
        yield Finished(id=request_id, result=result)

    def _maybe_crash(self, prompt: str) -> None:
        """Die as a segfault would, or stand still, if a test asked for it."""
        marker = self.config.crashes.get(prompt)
        if marker and not Path(marker).exists():
            Path(marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        marker = self.config.hangs.get(prompt)
        if marker and not Path(marker).exists():
            Path(marker).touch()
            time.sleep(600)
        if self.config.always_crash and prompt == self.config.always_crash:
            os.kill(os.getpid(), signal.SIGKILL)

    def _picture(
        self,
        request: GenerationRequest,
        index: int,
        plan: Mapping[str, Any],
        timings: StageTimings,
    ) -> ImageOutput:
        seed = ((request.seed or 0) + index) % (MAX_SEED + 1)
        alone = replace(request, seed=seed, num_images=1, walk=None)
        digest = hashlib.sha256(alone.canonical().encode()).digest()
        width, height = plan["width"], plan["height"]
        last = replace(request, width=width, height=height).passes()[-1]
        width, height = round(last.width or width), round(last.height or height)
        if request.upscale is not None:
            width, height = (round(v * request.upscale.factor) for v in (width, height))
        text = (
            f"{request.prompt}\nNegative prompt: {request.negative_prompt}\n"
            f"Steps: {plan['num_inference_steps']}, Sampler: Euler, "
            f"CFG scale: {plan['guidance_scale']}, Seed: {seed}, Size: {width}x{height}, "
            f"Model: {request.model}, RNG: CPU"
        )
        chunks = {"parameters": text} if request.output.metadata else {}
        return ImageOutput(
            index=index,
            seed=seed,
            data=draw(digest, width, height, request.output.format, chunks),
            format=request.output.format,
            width=width,
            height=height,
            recipe={"digest": digest.hex(), "parameters": text},
            timings=timings,
        )
