"""Walks and their animations through the engine: same frames, one file, one ending."""

import asyncio
import io
import random

import numpy as np
import pytest
import scipy.spatial
import torch
from PIL import Image
from tests import tiny
from tests.roads.test_exactness import differing, gan, run, storm

from mezzotint.errors import InvalidRequest
from mezzotint.images.animation import decode_frames
from mezzotint.images.metadata import read_recipe
from mezzotint.models.families.gan import GanConfig, build_generator, load_gan, write_gan
from mezzotint.models.formats.components import from_pipeline
from mezzotint.request import Animation, GenerationRequest, Output, Walk
from mezzotint.sampling.latents import make_generator
from mezzotint.service.engine import Engine
from mezzotint.types import ImageFinished

MAPPED = GanConfig(latent_size=6, image_size=16, channels=(16, 8), mapping_layers=3)


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    with tiny.seeded(3):
        state = build_generator(MAPPED).state_dict()
    return load_gan(write_gan(tmp_path_factory.mktemp("gan"), MAPPED, state), name="mapped")


@pytest.fixture(scope="module")
def engine(tmp_path_factory, mapped):
    torch.set_num_threads(1)
    models = [from_pipeline(tiny.build("sd1"), name="sd"), gan(), mapped]
    home = tmp_path_factory.mktemp("home")
    with Engine(models, device="cpu", home=home, backend="torch") as started:
        yield started


def ask(animation=None, **fields):
    defaults = {
        "model": "sd", "prompt": "a red apple", "seed": 5, "num_inference_steps": 2,
        "scheduler": "dpmpp_2m", "walk": Walk(to="two cats", frames=4),
        "output": Output(animation=animation),
    }  # fmt: skip
    return GenerationRequest(**{**defaults, **fields})


def seed_walk(frames=5, space="z"):
    return Walk(mode="seed", to_seed=9, frames=frames, space=space)


@pytest.mark.parametrize("kind", ["apng", "webp", "gif"])
def test_an_animation_shows_the_frames_of_the_walk(engine, kind):
    stills = [image.pixels for image in run(engine, ask()).images]
    result = run(engine, ask(Animation(format=kind, fps=4)))
    (image,) = result.images
    assert (image.format, image.frames, image.index) == (kind, 4, 0)
    shown = decode_frames(image.data)
    assert len(shown) == 4
    if kind == "apng":
        assert all(np.array_equal(a, b) for a, b in zip(shown, stills, strict=True))
    assert Image.open(io.BytesIO(image.data)).is_animated
    recipe = read_recipe(image.data)
    assert recipe["request"]["output"]["animation"]["fps"] == 4
    again = run(engine, GenerationRequest.from_dict(recipe["request"]))
    assert again.images[0].data == image.data


def test_only_the_file_is_told_as_finished_and_frames_are_shared_with_the_stills(engine):
    async def events():
        request = ask(Animation(format="apng"), seed=77)
        return [e async for e in engine.service.stream(request, request_id="one")]

    told = asyncio.run(events())
    finished = [e.image for e in told if isinstance(e, ImageFinished)]
    assert [i.format for i in finished] == ["apng"]
    assert told[-1].result.images == tuple(finished)
    assert engine.generate(ask(seed=77)).cache == "hit"


def test_animations_in_a_storm_are_the_same_bytes(engine):
    requests = [
        ask(Animation(format="webp", loop="pingpong")),
        ask(Animation(format="apng"), model="gan", prompt="", num_inference_steps=None,
            scheduler=None, walk=seed_walk()),
        ask(Animation(format="gif"), model="mapped", prompt="", num_inference_steps=None,
            scheduler=None, walk=seed_walk(space="w")),
        ask(walk=seed_walk(3)),
        ask(),
    ]  # fmt: skip
    solo = {k: run(engine, request) for k, request in enumerate(requests)}
    assert differing(solo, storm(engine, requests, random.Random(4), cancels=2)) == []


def test_a_seed_walk_follows_scipys_great_circle(engine):
    """The noise of the frames between is scipy's geometric slerp, with the norms between too."""
    model = from_pipeline(tiny.build("sd1"), name="sd")
    from mezzotint.sampling.latents import slerp

    size = model.spec.default_size
    a, b = (model.draw_latents(size, make_generator(s)).flatten() for s in (5, 9))
    norms = [float(v.norm()) for v in (a, b)]
    for t in (0.25, 0.5, 0.9):
        direction = scipy.spatial.geometric_slerp(
            (a.double() / a.double().norm()).numpy(), (b.double() / b.double().norm()).numpy(), t
        )
        expected = direction * ((1 - t) * norms[0] + t * norms[1])
        np.testing.assert_allclose(slerp(a[None], b[None], t)[0].numpy(), expected, atol=1e-5)


def test_a_w_walk_goes_straight_between_the_mapped_ends(engine, mapped):
    request = ask(model="mapped", prompt="", num_inference_steps=None, scheduler=None,
                  walk=seed_walk(space="w"))  # fmt: skip
    images = run(engine, request).images
    z = [torch.randn((1, 6), generator=make_generator(s)) for s in (5, 9)]
    module = mapped.networks["decoder"].module
    with torch.no_grad():
        w = [module.mapping(v) for v in z]
        for k, image in enumerate(images):
            t = k / 4
            drawn = module.draw(w[0] + t * (w[1] - w[0]))[0].permute(1, 2, 0).numpy()
            levels = np.rint((drawn * 0.5 + 0.5) * 255)
            assert np.abs(levels - image.pixels).max() <= 1, k
    in_z = run(engine, ask(model="mapped", prompt="", num_inference_steps=None, scheduler=None,
                           walk=seed_walk())).images  # fmt: skip
    assert in_z[0].data != images[0].data  # the recipe differs, the ends do not
    assert np.array_equal(in_z[0].pixels, images[0].pixels)
    assert np.array_equal(in_z[-1].pixels, images[-1].pixels)
    assert not np.array_equal(in_z[2].pixels, images[2].pixels)


def test_truncation_of_a_mapped_gan_pulls_towards_the_mean_w(engine, mapped):
    from mezzotint.request import LatentInput

    plain = ask(model="mapped", prompt="", num_inference_steps=None, scheduler=None, walk=None,
                latent=LatentInput(truncation=0.0))  # fmt: skip
    pictures = [
        run(engine, GenerationRequest.from_dict({**plain.to_dict(), "seed": s})).images[0].pixels
        for s in (1, 2)
    ]
    assert np.array_equal(*pictures)  # psi 0 is the mean whoever asks


def test_w_is_refused_where_there_is_no_mapping_network(engine):
    for model in ("gan", "sd"):
        request = ask(model=model, walk=seed_walk(space="w"))
        with pytest.raises(InvalidRequest, match="no mapping network") as caught:
            engine.submit(request)
        assert caught.value.field == "walk.space"


def test_an_animation_needs_a_walk():
    with pytest.raises(InvalidRequest, match="animation needs walk"):
        ask(Animation(), walk=None)


def test_mp4_without_ffmpeg_is_refused_before_any_work(engine, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InvalidRequest, match="ffmpeg"):
        engine.submit(ask(Animation(format="mp4")))


def test_a_walk_costs_one_run_per_frame(engine):
    cost = engine.plan(ask(Animation()))["cost"]
    single = engine.plan(ask(walk=None))["cost"]
    assert cost["model_calls"] == 4 * single["model_calls"]
    # frames that share calls cost less than one by one, and more than one alone
    assert single["seconds"] < cost["seconds"] < 4 * single["seconds"] * 1.01
