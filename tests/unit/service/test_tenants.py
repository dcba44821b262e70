"""What one client asked for is neither told to another nor faster for it.

Of mezzotint.service.dispatch.coalescing, through the whole service.
"""

import asyncio
import io
import json
import time
from dataclasses import replace

import pytest
import torch
from PIL import Image
from tests import tiny

from mezzotint.engine.config import EngineConfig
from mezzotint.models.config import ModelsConfig, PlacementConfig
from mezzotint.models.formats.components import from_pipeline
from mezzotint.request import GenerationRequest, Inpaint, Output
from mezzotint.service.composition import ServiceConfig
from mezzotint.service.local import LocalService
from mezzotint.types import ImageInput

SECRET = GenerationRequest(
    model="sd",
    prompt="a secret meeting",
    negative_prompt="witnesses",
    seed=4711,
    width=16,
    height=16,
    num_inference_steps=2,
)
NEAR = GenerationRequest(model="sd", prompt="a guess", width=16, height=16, num_inference_steps=2)


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return from_pipeline(tiny.build("sd1"), name="sd")


def open_service(model, home, *, share):
    engine = EngineConfig(calibrate_s=0.0, share_results=share)
    placement = PlacementConfig(device="cpu")
    models = ModelsConfig(home=str(home), backend="torch", placement=placement)
    config = ServiceConfig(engine=engine, models=models)
    return LocalService(config, models=[model])


async def generate(service, client, number):
    return await service.generate(SECRET, request_id=f"{client}-{number}", client=client)


@pytest.mark.parametrize("share", [False, True])
def test_finished_pictures_answer_their_owner_alone(model, tmp_path, share):
    service = open_service(model, tmp_path, share=share)

    async def ask():
        results = [
            await generate(service, client, number)
            for number, client in enumerate(["alice", "bob", "alice", "bob"])
        ]
        await service.close()
        return results

    results = asyncio.run(ask())
    assert [r.cache for r in results] == ["miss", "hit" if share else "miss", "hit", "hit"]
    assert len({r.images[0].data for r in results}) == 1  # the picture itself is the same


@pytest.mark.parametrize("share", [False, True])
def test_a_picture_under_way_is_followed_by_its_owner_alone(model, tmp_path, share):
    service = open_service(model, tmp_path, share=share)

    async def ask():
        pairs = [("alice", 1), ("bob", 1), ("alice", 2)]
        results = await asyncio.gather(*(generate(service, *pair) for pair in pairs))
        await service.close()
        return [r.cache for r in results]

    assert asyncio.run(ask()).count("hit") == (2 if share else 1)


@pytest.mark.parametrize("share", [False, True])
def test_an_encoded_prompt_is_used_again_for_its_owner_alone(model, tmp_path, share, monkeypatch):
    """With a large text encoder, a prompt that somebody else has used would answer sooner."""
    encoded, encode = [], model.encode

    def record(prompts):
        encoded.extend(prompt.text for prompt in prompts)
        return encode(prompts)

    monkeypatch.setattr(model, "encode", record)
    service = open_service(model, tmp_path, share=share)

    async def ask():
        await service.generate(replace(SECRET, prompt="first"), request_id="0")  # shapes, compiled
        for seed, client in enumerate(["alice", "bob", "alice", "bob"]):
            request = replace(SECRET, seed=seed)
            await service.generate(request, request_id=f"{client}-{seed}", client=client)
        await service.close()

    asyncio.run(ask())
    assert encoded.count(SECRET.prompt) == (1 if share else 2)


def test_a_plan_explains_nothing_of_other_clients(model, tmp_path):
    service = open_service(model, tmp_path, share=False)

    async def ask():
        await generate(service, "alice", 1)
        plans = {c: await service.plan(NEAR, client=c) for c in ("alice", "bob", "")}
        repeated = await service.plan(SECRET, client="bob")
        await service.close()
        return plans, repeated

    plans, repeated = asyncio.run(ask())
    assert "a secret meeting" in plans["alice"]["cache"]
    assert "4711" in plans["alice"]["cache"]
    for client in ("bob", ""):
        text = json.dumps(plans[client])
        assert not any(word in text for word in ("secret", "witnesses", "4711"))
        assert plans[client]["cache"] == "nothing is kept yet"
    assert repeated["cache"] == "nothing is kept yet"


def test_pictures_on_disk_keep_their_owner(model, tmp_path, monkeypatch):
    monkeypatch.setattr("mezzotint.engine.cache._WORTH_A_FILE_S", 0.0)

    async def ask(clients):
        service = open_service(model, tmp_path, share=False)
        found = [(await generate(service, client, 1)).cache for client in clients]
        await service.close()
        return found

    assert asyncio.run(ask(["alice"])) == ["miss"]
    assert asyncio.run(ask(["bob", "alice"])) == ["miss", "hit"]


def test_a_strangers_plan_answers_within_a_second_while_one_client_saturates(model, tmp_path):
    service = open_service(model, tmp_path, share=False)
    stream = io.BytesIO()
    Image.effect_noise((1000, 1000), 64).convert("RGB").save(stream, "JPEG")
    photo = ImageInput(stream.getvalue())
    heavy = replace(
        SECRET, image=photo, mask=photo, inpaint=Inpaint(area="masked", fill="surroundings")
    )

    async def ask():
        await service.plan(NEAR, client="bob")  # the model's spec is read
        greedy = [asyncio.ensure_future(service.plan(heavy, client="alice")) for _ in range(12)]
        greedy += [
            asyncio.ensure_future(
                service.upscale(photo.data, factor=2.0, output=Output(), client="alice")
            )
            for _ in range(12)
        ]
        await asyncio.sleep(0.5)
        taken = []
        for _ in range(5):
            began = time.monotonic()
            await service.plan(NEAR, client="bob")
            taken.append(time.monotonic() - began)
        under_way = sum(not task.done() for task in greedy)
        for task in greedy:
            task.cancel()
        await asyncio.gather(*greedy, return_exceptions=True)
        await service.close()
        return taken, under_way

    taken, under_way = asyncio.run(ask())
    assert under_way >= 12  # it was busy all the time
    assert sorted(taken)[2] < 1.0, taken
