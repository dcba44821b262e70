"""ControlNets and IP-Adapters of transformers: rows share calls, and it changes nothing."""

import asyncio
import random

import pytest
import torch
from tests import adapters_tiny, tiny
from tests.roads.test_adapters import picture
from tests.roads.test_exactness import differing, run, storm
from tests.roads.test_techniques import write_lora

from mezzotint.errors import InvalidRequest, MezzotintError
from mezzotint.models.formats.components import from_pipeline
from mezzotint.request import Control, GenerationRequest, ImagePrompt, Lora, Region
from mezzotint.service.engine import Engine

FAMILIES = ("flux", "sd3", "qwen_image")


def pipeline_of(name):
    return adapters_tiny.deepen(tiny.build(name))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    for name in FAMILIES:
        for number in (1, 2):
            net = adapters_tiny.transformer_controlnet(pipeline_of(name), seed=90 + number)
            net.save_pretrained(home / "controlnets" / f"{name}-{number}")
    union = adapters_tiny.transformer_controlnet(pipeline_of("flux"), seed=95, num_mode=5)
    union.save_pretrained(home / "controlnets" / "union")
    adapters_tiny.controlnet(tiny.build("sd1")).save_pretrained(home / "controlnets" / "sd1")
    (home / "loras").mkdir()
    write_lora(tiny.build("sd1").unet, home / "loras" / "unet.safetensors")
    adapters_tiny.flux_ip_adapter(pipeline_of("flux"), home / "ip_adapters" / "flux")
    adapters_tiny.sd3_ip_adapter(pipeline_of("sd3"), home / "ip_adapters" / "sd3")
    return home


@pytest.fixture(scope="module")
def engine(home):
    torch.set_num_threads(1)
    models = [from_pipeline(pipeline_of(name), name=name) for name in FAMILIES]
    models.append(from_pipeline(tiny.build("sd1"), name="sd1"))
    with Engine(models, device="cpu", home=home, backend="torch") as started:
        yield started


def ask(name, **fields):
    asked = {
        "prompt": "a red apple", "seed": 5, "num_inference_steps": 3, "width": 64, "height": 48,
        "guidance_scale": 3.0, **fields,
    }  # fmt: skip
    return GenerationRequest(model=name, **asked)


def control(name, number=1, seed=0, **fields):
    return Control(model=f"{name}-{number}", image=picture(seed), **fields)


def variety(name):
    """Requests that share calls, and some that have no control."""
    left = Region(prompt="a cat", box=(0, 0, 0.5, 1))
    requests = [
        ask(name),
        ask(name, seed=6, prompt="two blue cats on the table"),
        ask(name, seed=7, controls=(control(name),)),
        ask(name, seed=8, controls=(control(name, seed=1, scale=0.4),), num_inference_steps=4),
        ask(name, seed=9, controls=(control(name, start=0.5),), guidance_scale=1.0),
        ask(name, seed=10, controls=(control(name, scale=0.0),)),
        ask(name, seed=11, controls=(control(name, end=0.5), control(name, 2, seed=2, scale=0.7))),
        ask(name, seed=12, controls=(control(name),), regions=(left,)),
        ask(name, seed=13, controls=(control(name),), image=picture(9), strength=0.7),
    ]
    if name == "flux":
        requests += [
            ask(name, seed=k, controls=(Control(model="union", image=picture(k), mode=k),))
            for k in (0, 3)
        ]
    if name != "qwen_image":
        requests += [
            ask(
                name,
                seed=k,
                image_prompts=(ImagePrompt(model=name, images=(picture(k),), scale=s),),
            )
            for k, s in ((1, 0.8), (2, 0.0), (3, -0.5))
        ]
    return requests


@pytest.mark.parametrize("name", FAMILIES)
def test_a_storm_gives_the_same_bytes_as_each_alone_and_plain_ones_as_a_fresh_engine(
    engine, home, name
):
    requests = variety(name)
    alone = {k: run(engine, request) for k, request in enumerate(requests)}
    stormy = storm(engine, requests, random.Random(4), cancels=2)
    assert differing(alone, stormy) == []
    plain = {k: alone[k] for k in (0, 1)}
    with Engine(
        [from_pipeline(pipeline_of(name), name=name)], device="cpu", home=home, backend="torch"
    ) as fresh:
        assert differing(plain, {k: run(fresh, requests[k]) for k in plain}) == []


def test_a_guessing_controlnet_counts_the_rows_that_it_computes(engine):
    guess = Control(model="sd1", image=picture(), guess=True)
    request = ask("sd1", controls=(guess,), width=64, height=64, scheduler="ddim")
    plan = engine.plan(request)["plan"]
    assert (plan["control_calls"], plan["model_calls"]) == (3, 9)
    alone = run(engine, request)
    assert alone.images[0].timings.model_calls == 9
    others = [ask("sd1", controls=(Control(model="sd1", image=picture()),), width=64, height=64)]
    stormy = storm(engine, [request, *others, request], random.Random(1), cancels=1)
    assert stormy[0].images[0].data == stormy[2].images[0].data == alone.images[0].data
    assert stormy[1].images[0].data != alone.images[0].data


@pytest.mark.parametrize(
    ("name", "fields", "field", "words"),
    [
        ("sd3", {"controls": (control("flux"),)}, "controls[0].model",
         "it is for families flux, the model is sd3"),
        ("flux", {"controls": (Control(model="sd1", image=picture()),)}, "controls[0].model",
         "it is for families sd and sdxl, the model is flux"),
        ("flux", {"controls": (Control(model="union", image=picture()),)}, "controls[0].mode",
         "is needed for union, a union of ControlNets: 0 to 4"),
        ("flux", {"controls": (Control(model="union", image=picture(), mode=7),)},
         "controls[0].mode", "must be at most 4, got 7"),
        ("sd3", {"controls": (control("sd3", mode=1),)}, "controls[0].mode",
         "left out: it is no union"),
        ("flux", {"controls": (control("flux", guess=True),)}, "controls[0].guess",
         "guess mode is for families sd and sdxl, it is flux"),
        ("sd3", {"image_prompts": (ImagePrompt(model="flux", images=(picture(),)),)},
         "image_prompts[0].model", "it is for flux, the model is sd3"),
        ("qwen_image", {"image_prompts": (ImagePrompt(model="flux", images=(picture(),)),)},
         "image_prompts", "IP-Adapters are for families sd, sdxl, sd3 and flux"),
        ("flux", {"loras": (Lora(name="unet"),)}, "loras",
         "by the names of its layers it is for families sd or sdxl, the model is flux"),
    ],
)  # fmt: skip
def test_what_is_made_for_another_network_is_refused_before_it_runs(
    engine, name, fields, field, words
):
    with pytest.raises(MezzotintError, match=words) as caught:
        asyncio.run(engine.service.plan(ask(name, **fields)))
    assert isinstance(caught.value, InvalidRequest)
    assert caught.value.field == field
