"""A hundred random requests that mix every operator, in one storm and each alone."""

import random

import pytest
import torch
from tests import adapters_tiny, tiny
from tests.roads.test_exactness import differing, gan, run, storm
from tests.roads.test_techniques import write_lora
from tests.techniques import EXAMPLES, disc, photo, png

from mezzotint.models.formats.components import from_pipeline
from mezzotint.request import (
    Animation,
    Control,
    Embedding,
    EnsembleMember,
    Gates,
    GateSettings,
    GenerationRequest,
    GuidanceSchedule,
    Hires,
    ImagePrompt,
    Inpaint,
    Lora,
    Outpaint,
    Output,
    Region,
    Upscale,
    Variation,
    Walk,
)
from mezzotint.service.engine import Engine

PROMPTS = (
    "a red <wash> apple", "two blue cats on the table", "(a leaf:1.4) on [the table:a cat:0.5]",
    "a [red|green <wash>] leaf",
)  # fmt: skip


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("home")
    (home / "loras").mkdir()
    first = tiny.build("sd1")
    write_lora(first.unet, home / "loras" / "ink.safetensors")
    adapters_tiny.controlnet(first).save_pretrained(home / "controlnets" / "net")
    adapters_tiny.ip_adapter(first, home / "ip_adapters" / "style")
    adapters_tiny.embedding(home / "embeddings" / "wash.safetensors", key="<wash>")
    models = [
        from_pipeline(first, name="sd"), from_pipeline(tiny.sd1(seed=900), name="other"), gan(),
    ]  # fmt: skip
    with Engine(models, device="cpu", home=home, backend="torch") as started:
        yield started


def pick(rng, *choices):
    return rng.choice(choices)


def operators(rng):
    """What a request may carry; each is put in or left out on its own."""
    box = (0.0, 0.0, rng.choice((0.4, 0.6, 1.0)), 1.0)
    return {
        "guidance_scale": pick(
            rng, 1.0, 5.0, GuidanceSchedule(schedule="cosine", start=8, end=1, rescale=0.4),
            GuidanceSchedule(schedule="interval", start=5, from_=0.3, until=0.7),
        ),
        "negative_prompt": "blue",
        "prompt_dialect": pick(rng, "a1111", "comfyui", "compel"),
        "loras": (Lora(name="ink", scale=rng.choice((0.5, -0.3))),),
        "controls": (
            Control(model="net", image=png(photo()), scale=rng.choice((0.4, 1.0)),
                    end=rng.choice((0.5, 1.0)), preprocess=pick(rng, None, "canny")),
        ),
        "image_prompts": (
            ImagePrompt(model="style", images=(png(photo(40, 56)),), scale=rng.choice((0.3, 1.0))),
        ),
        "embeddings": (Embedding(name="wash"),),
        "regions": (
            Region(prompt="a cat", box=box, start=rng.choice((0.0, 0.4)),
                   negative_prompt=rng.choice(("", "red"))),
            Region(prompt="a leaf", mask=png(disc()), weight=2.0, end=0.8),
        )[: rng.choice((1, 2))],
        "ensemble": pick(
            rng,
            (EnsembleMember(model="sd", weight=2), EnsembleMember(model="other")),
            (EnsembleMember(model="sd"), EnsembleMember(model="other", box=box)),
        ),
        "variation": Variation(seed=rng.randrange(99), strength=rng.random()),
        "tiling": True,
        "upscale": Upscale(factor=1.5),
        "gates": Gates(gates=(("quality", GateSettings(threshold=1e6)),)),
        "output": Output(format=pick(rng, "webp", "jpeg", "png")),
    }  # fmt: skip


def starts(rng):
    """Where a request begins: in noise, in a picture, or between two points."""
    mask = {"image": png(photo()), "mask": png(disc()), "strength": rng.choice((0.5, 1.0))}
    return pick(
        rng, {}, {}, {"num_images": 2},
        {"image": png(photo(48, 80)), "strength": 0.6},
        {**mask, "inpaint": Inpaint(fill=pick(rng, "original", "noise"), blur=2, paste=True)},
        {**mask, "inpaint": Inpaint(area="masked", invert=False)},
        {"image": png(photo()), "outpaint": Outpaint(left=16), "strength": 0.7},
        {"hires": Hires(scale=1.25, upscaler=pick(rng, "latent", "lanczos"))},
        {"walk": Walk(to="a cat", frames=2)},
        {"walk": Walk(mode="seed", frames=2),
         "output": Output(animation=Animation(format=pick(rng, "apng", "gif", "webp")))},
    )  # fmt: skip


MIXED = {*operators(random.Random(0)), "image", "mask", "outpaint", "hires", "walk"}
REFUSED = {"image_references"}  # no model here edits pictures
LATER = {n: GenerationRequest.from_dict(e.fields) for n, e in EXAMPLES.items()
         if n not in MIXED | REFUSED}  # fmt: skip
"""A technique that came later is mixed in as its example asks for it."""


def mixed(rng):
    if rng.random() < 0.08:
        walk = pick(rng, None, Walk(mode="seed", frames=3))
        return GenerationRequest(model="gan", seed=rng.randrange(2**40), walk=walk)
    fields = {
        "model": pick(rng, "sd", "other"), "prompt": rng.choice(PROMPTS),
        "seed": rng.randrange(2**40), "num_inference_steps": rng.randint(2, 5),
        "scheduler": pick(rng, "dpmpp_2m", "euler_ancestral", "heun", "unipc", "ddim",
                          "LMSDiscreteScheduler"),
    }  # fmt: skip
    fields |= {name: value for name, value in operators(rng).items() if rng.random() < 0.25}
    fields |= {n: getattr(later, n) for n, later in LATER.items() if rng.random() < 0.25}
    fields |= starts(rng)
    if getattr(fields.get("inpaint"), "area", "") == "masked":
        fields.pop("controls", None)  # a control picture shows the whole picture
    if "tiling" in fields:
        for name in ("loras", "controls", "image_prompts"):
            fields.pop(name, None)
    return GenerationRequest(**fields)


def check(engine, count, seed, cancels):
    rng = random.Random(seed)
    requests = [mixed(rng) for _ in range(count)]
    solo = {k: run(engine, request) for k, request in enumerate(requests)}
    for k, request in enumerate(requests):
        spent = sum(i.timings.model_calls for i in solo[k].images)
        assert spent == engine.plan(request)["cost"]["model_calls"], request.to_dict()
    stormy = storm(engine, requests, random.Random(seed + 1), cancels=cancels)
    wrong = differing(solo, stormy)
    assert wrong == [], [requests[k].to_dict() for k in wrong]


def test_a_dozen_mixed_requests_give_the_same_bytes_in_a_storm(engine):
    check(engine, 12, 50, cancels=2)


@pytest.mark.slow
def test_a_hundred_mixed_requests_give_the_same_bytes_in_a_storm(engine):
    check(engine, 100, 60, cancels=10)
