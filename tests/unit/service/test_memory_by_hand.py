"""Tests mezzotint.service.local: models loaded and unloaded by hand."""

import asyncio
import gc
import weakref

import pytest

from mezzotint import errors
from mezzotint.engine.config import EngineConfig
from mezzotint.models.config import ModelsConfig, PlacementConfig
from mezzotint.request import GenerationRequest
from mezzotint.service.composition import ServiceConfig
from mezzotint.service.local import LocalService
from mezzotint.types import Stepped


@pytest.fixture
def service(tmp_path):
    models = ModelsConfig(
        home=str(tmp_path), backend="torch", placement=PlacementConfig(device="cpu")
    )
    made = LocalService(ServiceConfig(models=models, engine=EngineConfig(buckets=(2, 4))))
    yield made
    made.shut()


def test_a_model_is_loaded_drawn_with_unloaded_and_loaded_again(service):
    store = service.provider.store

    async def walk():
        loaded = await service.load("plate-gan")
        assert (loaded["name"], loaded["ready"]) == ("plate-gan", True)
        assert store.residency.sizes()["plate-gan@1.0"] > 1_000_000
        with store.use("plate-gan") as model:
            watched = weakref.ref(model)
            del model
        first = await service.generate(GAN, request_id="1", use_cache=False)
        gone = await service.unload("plate-gan@1.0")
        assert (gone["ready"], store.residency.sizes()) == (False, {})
        gc.collect()
        assert watched() is None  # nothing else holds its weights
        assert (await service.unload("plate-gan"))["ready"] is False  # no error the second time
        again = await service.generate(GAN, request_id="2", use_cache=False)
        assert again.images[0].data == first.images[0].data
        assert list(store.residency.sizes()) == ["plate-gan@1.0"]

    asyncio.run(walk())


GAN = GenerationRequest(model="plate-gan", seed=3)


def test_a_model_that_draws_is_not_unloaded_and_names_are_checked(service):
    async def walk():
        with pytest.raises(errors.UnknownName):
            await service.load("plait-gun")
        with pytest.raises(errors.UnknownName):
            await service.unload("plait-gun")
        long = GenerationRequest(prompt="a", width=64, height=64, num_inference_steps=200)
        events = service.stream(long, request_id="long")
        async for event in events:
            if isinstance(event, Stepped):
                break
        with pytest.raises(errors.InUse, match="a picture is made"):
            await service.unload("plate")
        assert service.provider.is_loaded("plate")
        await events.aclose()

    asyncio.run(walk())
