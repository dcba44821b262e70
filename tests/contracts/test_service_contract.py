"""The service port, run on every implementation that needs no model."""

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from PIL import Image

from mezzotint import errors
from mezzotint.request import GenerationRequest, Output
from mezzotint.service.base import Service
from mezzotint.service.config import WorkerConfig
from mezzotint.service.fake import FakeConfig, FakeService
from mezzotint.service.workers.supervisor import WorkerSupervisor
from mezzotint.types import (
    Cancelled,
    Failed,
    Finished,
    ImageFinished,
    Queued,
    Started,
    Stepped,
)

OPTIONS = {"step_s": 0.005, "failures": {"fails": "WorkFailed", "breaks": "NoSuchError"}}


@contextlib.asynccontextmanager
async def fake() -> AsyncIterator[Service]:
    service = FakeService(FakeConfig(**OPTIONS))
    yield service
    await service.close()


@contextlib.asynccontextmanager
async def worker() -> AsyncIterator[Service]:
    config = WorkerConfig(factory="mezzotint.service.fake:create_fake", options=OPTIONS)
    service = WorkerSupervisor(config)
    await service.start()
    try:
        yield service
    finally:
        await service.close()


@pytest.fixture(params=[fake, worker], ids=["fake", "worker"])
def using(request: pytest.FixtureRequest) -> Callable[[Callable[[Service], Awaitable[None]]], None]:
    """Run an async test body on a fresh service."""

    def run(body: Callable[[Service], Awaitable[None]]) -> None:
        async def main() -> None:
            async with request.param() as service:
                await body(service)

        asyncio.run(main())

    return run


def test_events_come_in_order_and_end_with_one_ending(using):
    async def body(service: Service) -> None:
        request = GenerationRequest(prompt="a", seed=1, num_images=2, num_inference_steps=3)
        events = [e async for e in service.stream(request, request_id="r", preview_every=2)]
        assert [type(e) for e in events] == [
            Queued, Started,
            Stepped, Stepped, Stepped, ImageFinished,
            Stepped, Stepped, Stepped, ImageFinished,
            Finished,
        ]  # fmt: skip
        assert {e.id for e in events} == {"r"}
        steps = [e for e in events if isinstance(e, Stepped)]
        assert [(s.image, s.step, s.steps) for s in steps[:4]] == [
            (0, 1, 3), (0, 2, 3), (0, 3, 3), (1, 1, 3),
        ]  # fmt: skip
        assert [s.preview is not None for s in steps[:3]] == [False, True, False]
        assert Image.open(io.BytesIO(steps[1].preview)).size == (16, 16)

    using(body)


def test_equal_requests_give_equal_bytes_and_image_k_has_seed_plus_k(using):
    async def body(service: Service) -> None:
        request = GenerationRequest(prompt="a", seed=2**64 - 1, num_images=2)
        both = await service.generate(request, request_id="1", use_cache=False)
        again = await service.generate(request, request_id="2", use_cache=False)
        assert [i.seed for i in both.images] == [2**64 - 1, 0]
        assert [i.data for i in both.images] == [i.data for i in again.images]
        alone = GenerationRequest(prompt="a", seed=0)
        assert (await service.generate(alone, request_id="3")).images[0].data == both.images[1].data

    using(body)


def test_an_open_seed_is_drawn_and_reported(using):
    async def body(service: Service) -> None:
        open_ = GenerationRequest(prompt="a")
        first = (await service.generate(open_, request_id="1")).images[0]
        closed = GenerationRequest(prompt="a", seed=first.seed)
        assert (await service.generate(closed, request_id="2")).images[0].data == first.data

    using(body)


def test_cache_answers_a_hit_unless_it_is_bypassed(using):
    async def body(service: Service) -> None:
        request = GenerationRequest(prompt="a", seed=1)
        kinds = []
        for use_cache in (True, True, False):
            result = await service.generate(request, request_id="r", use_cache=use_cache)
            kinds.append(result.cache)
        assert kinds == ["miss", "hit", "miss"]

    using(body)


def test_cancel_ends_at_the_next_step_and_unknown_ids_are_false(using):
    async def body(service: Service) -> None:
        request = GenerationRequest(prompt="a", num_inference_steps=1000)
        kinds = []
        async for event in service.stream(request, request_id="r"):
            kinds.append(type(event))
            if isinstance(event, Stepped) and event.step == 2:
                assert await service.cancel("r") is True
        assert kinds[-1] is Cancelled
        assert len(kinds) < 20
        assert await service.cancel("nobody") is False

    using(body)


def test_closing_the_iterator_early_cancels_the_request(using):
    async def body(service: Service) -> None:
        request = GenerationRequest(prompt="a", num_inference_steps=1000)
        events = service.stream(request, request_id="r")
        async for event in events:
            if isinstance(event, Stepped):
                break
        await events.aclose()
        await asyncio.sleep(0.1)
        assert await service.cancel("r") is False

    using(body)


def test_failures_are_one_ending_with_the_error(using):
    async def body(service: Service) -> None:
        events = [
            e async for e in service.stream(GenerationRequest(prompt="fails"), request_id="r")
        ]
        assert isinstance(events[-1], Failed)
        assert isinstance(events[-1].error, errors.WorkFailed)
        with pytest.raises(errors.WorkFailed, match="told to fail"):
            await service.generate(GenerationRequest(prompt="fails"), request_id="r")

    using(body)


def test_refusals_name_field_and_known_names(using):
    async def body(service: Service) -> None:
        with pytest.raises(errors.UnknownName) as unknown:
            await service.generate(GenerationRequest(model="plat"), request_id="r")
        assert unknown.value.nearest == "plate"
        assert unknown.value.field == "model"
        with pytest.raises(errors.InvalidRequest) as wrong:
            await service.plan(GenerationRequest(width=65))
        assert (wrong.value.field, wrong.value.allowed) == ("width", "multiples of 8")

    using(body)


def test_plan_models_capabilities_and_health_are_plain(using):
    async def body(service: Service) -> None:
        plan = await service.plan(GenerationRequest(prompt="a", num_inference_steps=7))
        assert plan["plan"]["num_inference_steps"] == 7
        models = await service.models()
        assert [m["name"] for m in models] == ["plate", "plate-gan"]
        assert {
            "name", "version", "default", "digest", "family", "ready", "path", "licence",
            "takes_prompt", "size_multiple", "min_size_px", "max_size_px", "defaults", "limits",
        } <= models[0].keys()  # fmt: skip
        assert "euler" in (await service.capabilities())["schedulers"]
        assert (await service.health())["ready"] is True

    using(body)


def test_models_are_brought_into_memory_and_let_go(using):
    async def body(service: Service) -> None:
        gone = await service.unload("plate")
        assert (gone["name"], gone["ready"]) == ("plate", False)
        assert [m["ready"] for m in await service.models()] == [False, True]
        assert (await service.load("plate@1.0"))["ready"] is True
        assert [m["ready"] for m in await service.models()] == [True, True]
        await service.unload("plate")
        await service.generate(GenerationRequest(prompt="a"), request_id="r")
        assert [m["ready"] for m in await service.models()] == [True, True]  # asked for again
        for change in (service.load, service.unload):
            with pytest.raises(errors.UnknownName):
                await change("nobody")
        events = service.stream(
            GenerationRequest(prompt="a", num_inference_steps=1000), request_id="r"
        )
        async for event in events:
            if isinstance(event, Stepped):
                break
        with pytest.raises(errors.InUse, match="in use"):
            await service.unload("plate")
        await events.aclose()

    using(body)


def test_models_are_registered_switched_and_removed(using):
    async def body(service: Service) -> None:
        await service.register("/models/other", name="other", version="1.0")
        await service.register("/models/other2", name="other", version="2.0")
        await service.set_default("other", "2.0")
        listed = {(m["name"], m["version"]): m["default"] for m in await service.models()}
        assert (listed["other", "1.0"], listed["other", "2.0"]) == (False, True)
        await service.unregister("other", "1.0")
        await service.unregister("other")
        with pytest.raises(errors.UnknownName):
            await service.unregister("other")
        with pytest.raises(errors.UnknownName):
            await service.register("missing.mzt")

    using(body)


def test_picture_tools_read_enlarge_and_lay_out(using):
    async def body(service: Service) -> None:
        request = GenerationRequest(prompt="a cat", seed=1, width=64, height=64)
        image = (await service.generate(request, request_id="r")).images[0]
        found = await service.inspect(image.data)
        assert "Seed: 1" in found["parameters"]
        with pytest.raises(errors.ImageError):
            await service.inspect(b"no picture")
        larger = await service.upscale(image.data, factor=2, output=Output(format="jpeg"))
        assert Image.open(io.BytesIO(larger.data)).size == (128, 128)
        how = {"factor": 2, "cover": (96, 32), "output": Output()}
        whole = await service.upscale(image.data, **how)
        assert Image.open(io.BytesIO(whole.data)).size == (96, 96)
        cut = await service.upscale(image.data, **how, crop=True)
        assert Image.open(io.BytesIO(cut.data)).size == (96, 32)
        control = await service.preprocess(image.data, "canny:100:200")
        assert Image.open(io.BytesIO(control)).size == (64, 64)
        with pytest.raises(errors.UnknownName):
            await service.preprocess(image.data, "fog")
        grid = await service.grid([image.data] * 3, columns=2, output=Output(format="jpeg"))
        assert Image.open(io.BytesIO(grid)).size == (2 * 66 + 2, 2 * 66 + 2)
        raw = await service.grid(
            [image.data] * 2, columns=1, padding_px=0, output=Output(), raw=True
        )
        assert raw == Image.open(io.BytesIO(image.data)).convert("RGB").tobytes() * 2

    using(body)


def test_a_closed_service_refuses(using):
    async def body(service: Service) -> None:
        await service.close()
        with pytest.raises(errors.NotReady):
            await service.generate(GenerationRequest(prompt="a"), request_id="r")
        assert (await service.health())["ready"] is False

    using(body)
