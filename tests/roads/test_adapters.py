"""Adapters share calls, leak into nothing, and what does not fit is refused by its field."""

import asyncio
import io
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests import adapters_tiny, tiny
from tests.roads.test_exactness import differing, run, storm
from tests.roads.test_techniques import write_lora

from mezzotint.errors import MezzotintError
from mezzotint.models.formats.components import from_pipeline
from mezzotint.request import (
    Control,
    Embedding,
    EnsembleMember,
    GenerationRequest,
    Hires,
    ImagePrompt,
    Lora,
    Region,
)
from mezzotint.service.engine import Engine
from mezzotint.types import ImageInput


def picture(seed=0):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    stream = io.BytesIO()
    coarse.resize((70, 50), Image.Resampling.BICUBIC).save(stream, "PNG")
    return ImageInput(stream.getvalue())


def control(number=1, seed=0, **fields):
    return Control(model=f"net-{number}", image=picture(seed), **fields)


def prompt(seed=0, **fields):
    return ImagePrompt(model="style", images=(picture(seed),), **fields)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    first, xl = tiny.build("sd1"), tiny.build("sdxl")
    for number in (1, 2):
        net = adapters_tiny.controlnet(first, seed=40 + number)
        net.save_pretrained(home / "controlnets" / f"net-{number}")
    adapters_tiny.controlnet(xl).save_pretrained(home / "controlnets" / "xl-net")
    adapters_tiny.union_controlnet(xl).save_pretrained(home / "controlnets" / "union")
    adapters_tiny.ip_adapter(first, home / "ip_adapters" / "style")
    adapters_tiny.ip_adapter(xl, home / "ip_adapters" / "xl-style")
    adapters_tiny.embedding(home / "embeddings" / "ink.safetensors")
    adapters_tiny.embedding(home / "embeddings" / "wide.safetensors", width=48)
    pair = {"clip_l": torch.randn(2, 32), "clip_g": torch.randn(2, 24)}
    save_file(pair, home / "embeddings" / "pair.safetensors")
    (home / "embeddings" / "bad.pt").write_bytes(b"no checkpoint")
    (home / "loras").mkdir()
    write_lora(first.unet, home / "loras" / "ink.safetensors")
    return home


@pytest.fixture(scope="module")
def engine(home):
    torch.set_num_threads(1)
    models = [
        from_pipeline(tiny.build("sd1"), name="sd"),
        from_pipeline(tiny.sd1(seed=900), name="other"),
        from_pipeline(tiny.build("flux"), name="flux"),
    ]
    with Engine(models, device="cpu", home=home, backend="torch") as started:
        yield started


def ask(**fields):
    defaults = {
        "model": "sd", "prompt": "a red apple <ink>", "seed": 5, "num_inference_steps": 4,
        "scheduler": "dpmpp_2m", "guidance_scale": 4.0,
    }  # fmt: skip
    return GenerationRequest(**{**defaults, **fields})


ADAPTERS = {
    "control": {"controls": (control(),)},
    "other picture, weaker": {"controls": (control(seed=1, scale=0.3),), "seed": 6},
    "late": {"controls": (control(start=0.5),), "seed": 7},
    "early": {"controls": (control(end=0.25),), "seed": 8, "num_inference_steps": 6},
    "off": {"controls": (control(scale=0.0),), "seed": 9},
    "edges": {"controls": (control(preprocess="canny"),)},
    "two": {"controls": (control(end=0.5), control(2, seed=2, scale=0.7))},
    "unguided": {"controls": (control(seed=3),), "guidance_scale": 1.0},
    "picture": {"image_prompts": (prompt(),)},
    "weaker picture": {"image_prompts": (prompt(4, scale=0.4),), "seed": 6},
    "no picture": {"image_prompts": (prompt(4, scale=0.0),), "seed": 7},
    "word": {"embeddings": (Embedding(name="ink"),)},
    "negative word": {"embeddings": (Embedding(name="ink"),), "negative_prompt": "<ink>"},
    "all": {
        "controls": (control(),), "image_prompts": (prompt(),), "loras": (Lora(name="ink"),),
        "embeddings": (Embedding(name="ink"),),
    },
    "all, other scales": {
        "controls": (control(seed=2, scale=0.5),), "image_prompts": (prompt(2, scale=0.3),),
        "loras": (Lora(name="ink", scale=-0.5),), "embeddings": (Embedding(name="ink"),),
        "seed": 11,
    },
    "regions": {
        "controls": (control(),), "image_prompts": (prompt(),),
        "regions": (Region(prompt="a cat", box=(0, 0, 0.5, 1), negative_prompt="blue"),),
    },
    "ensemble": {
        "controls": (control(end=0.5),), "loras": (Lora(name="ink"),),
        "ensemble": (EnsembleMember(model="sd"), EnsembleMember(model="other")),
    },
    "image": {"controls": (control(),), "image": picture(9), "strength": 0.75},
    "second pass": {
        "controls": (control(),), "image_prompts": (prompt(),),
        "hires": Hires(scale=1.5, strength=0.5),
    },
    "plain": {},
    "plain too": {"seed": 6, "negative_prompt": "green"},
}  # fmt: skip


def test_a_storm_of_adapters_gives_the_same_bytes_as_each_alone_in_a_fresh_engine(engine, home):
    requests = [ask(**fields) for fields in ADAPTERS.values()]
    solo = {k: run(engine, request) for k, request in enumerate(requests)}
    stormy = storm(engine, [*requests, *requests], random.Random(4), cancels=3)
    names = [*ADAPTERS, *ADAPTERS]
    twice = {k: solo[k % len(requests)] for k in stormy}
    assert [names[k] for k in differing(twice, stormy)] == []
    plain = {k: solo[k] for k, name in enumerate(ADAPTERS) if name.startswith("plain")}
    with Engine(
        [from_pipeline(tiny.build("sd1"), name="sd")], device="cpu", home=home, backend="torch"
    ) as fresh:
        assert differing(plain, {k: run(fresh, requests[k]) for k in plain}) == []


def test_adapters_change_the_picture_and_plan_counts_every_call(engine):
    for name, fields in ADAPTERS.items():
        request = ask(**fields)
        planned = engine.plan(request)
        result = run(engine, request)
        calls = sum(image.timings.model_calls for image in result.images)
        assert calls == planned["cost"]["model_calls"] == planned["plan"]["model_calls"], name
        bare = replace(request, controls=(), loras=(), image_prompts=(), embeddings=())
        same = np.array_equal(result.images[0].pixels, run(engine, bare).images[0].pixels)
        assert same == (name in ("off", "no picture") or "plain" in name), name


@pytest.mark.parametrize(
    ("fields", "calls"),
    [
        ({"controls": (control(),)}, 8),
        ({"controls": (control(), control(2))}, 16),
        ({"controls": (control(start=0.5),)}, 4),
        ({"controls": (control(end=0.3),)}, 2),
        ({"controls": (control(scale=0),)}, 0),
        ({"controls": (control(),), "guidance_scale": 1.0}, 4),
        ({"controls": (control(),), "hires": Hires(scale=1.5, strength=0.5)}, 8 + 4),
    ],
)
def test_controlnet_calls_are_known_before_they_are_made(engine, fields, calls):
    plan = engine.plan(ask(**fields))["plan"]
    assert plan["control_calls"] == calls
    rows = plan["rows"] + (plan["second"]["rows"] if plan["second"] else [])
    assert plan["model_calls"] == sum(rows) + calls


@pytest.mark.slow
def test_openvino_draws_what_torch_draws_with_a_controlnet(engine, home):
    request = ask(controls=(control(scale=0.6, end=0.5), control(2, seed=1)))
    expected = run(engine, request).images[0].pixels.astype(int)
    model = from_pipeline(tiny.build("sd1"), name="sd")
    with Engine([model], device="cpu", home=home, backend="openvino") as other:
        alone = run(other, request)
        found = alone.images[0].pixels.astype(int)
        stormy = storm(other, [request, ask(), request], random.Random(1), cancels=1)
    assert np.abs(found - expected).max() <= 1
    assert stormy[0].images[0].data == stormy[2].images[0].data == alone.images[0].data
    assert not alone.images[0].warnings


def test_the_cache_key_holds_picture_scale_range_and_net(engine):
    requests = [
        ask(controls=(control(**fields),))
        for fields in (
            {}, {"seed": 1}, {"scale": 0.9}, {"start": 0.1}, {"end": 0.9}, {"number": 2},
            {"preprocess": "invert"},
        )
    ]  # fmt: skip
    requests += [ask(image_prompts=(prompt(**f),)) for f in ({}, {"seed": 1}, {"scale": 0.2})]
    requests += [ask(embeddings=(Embedding(name="ink", token=t),)) for t in ("<ink>", "apple")]
    digests = {engine.plan(request)["digest"] for request in requests}
    assert len(digests) == len(requests)
    spelt = [
        ask(controls=(control(preprocess=p),)) for p in ("canny", "Canny:100", "canny:100:200")
    ]
    assert len({engine.plan(request)["digest"] for request in spelt}) == 1


def test_the_recipe_makes_the_picture_again(engine):
    image = run(engine, ask(**ADAPTERS["all"])).images[0]
    again = GenerationRequest.from_dict(image.recipe["request"])
    assert again.controls[0].image == picture()
    assert again.embeddings == (Embedding(name="ink", token="<ink>"),)
    assert run(engine, again).images[0].data == image.data


def test_a1111_prompts_name_loras_and_embeddings(engine):
    words = ask(prompt="a (red) apple ink <lora:ink:0.5>", prompt_dialect="a1111")
    fields = ask(
        prompt="a (red) apple ink ", prompt_dialect="a1111", loras=(Lora(name="ink", scale=0.5),),
        embeddings=(Embedding(name="ink", token="ink"),),
    )  # fmt: skip
    assert engine.plan(words)["digest"] == engine.plan(fields)["digest"]
    assert run(engine, words).images[0].data == run(engine, fields).images[0].data


def test_an_embedding_whose_word_is_missing_says_so(engine):
    result = run(engine, ask(prompt="a cat", embeddings=(Embedding(name="ink"),)))
    assert result.warnings == ("embedding ink has no effect: <ink> is in no prompt",)


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"controls": (control(3),)}, "controls.model", "unknown control 'net-3'"),
        ({"controls": (Control(model="xl-net", image=picture()),)}, "controls[0].model",
         "cross_attention_dim is 56, the model's is 32"),
        ({"controls": (Control(model="net-1", image=ImageInput(b"no picture")),)},
         "controls[0].image", "picture"),
        ({"model": "flux", "controls": (control(),), "scheduler": "flow_euler"},
         "controls[0].model",
         "it is for families sd and sdxl, the model is flux"),
        ({"model": "flux", "image_prompts": (prompt(),), "scheduler": "flow_euler"},
         "image_prompts[0].model",
         "it is for sd and sdxl, the model is flux"),
        ({"model": "flux", "embeddings": (Embedding(name="ink"),)}, "embeddings", "it is flux"),
        ({"image_prompts": (ImagePrompt(model="no", images=(picture(),)),)},
         "image_prompts.model", "unknown image prompt 'no'"),
        ({"image_prompts": (ImagePrompt(model="xl-style", images=(picture(),)),)},
         "image_prompts[0].model", "cross_attention_dim is 56, the model's is 32"),
        ({"image_prompts": (ImagePrompt(model="style", images=(ImageInput(b"x"),)),)},
         "image_prompts[0].images[0]", "picture"),
        ({"embeddings": (Embedding(name="inc"),)}, "embeddings.name", "did you mean 'ink'"),
        ({"embeddings": (Embedding(name="wide"),)}, "embeddings[0].name",
         "48 numbers, text_encoder reads 32"),
        ({"embeddings": (Embedding(name="pair"),)}, "embeddings[0].name", "2 text encoders"),
        ({"embeddings": (Embedding(name="ink"), Embedding(name="ink"))}, "embeddings[1].token",
         "must differ"),
        ({"embeddings": (Embedding(name="bad"),)}, "embeddings.name",
         "not a torch checkpoint"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_it_runs(engine, fields, field, words):
    with pytest.raises(MezzotintError, match=words.replace("[", r"\[")) as caught:
        asyncio.run(engine.service.plan(ask(**fields)))
    assert getattr(caught.value, "field", None) == field


def test_rows_of_a_union_of_controlnets_follow_their_own_modes_in_any_company(home):
    torch.set_num_threads(1)
    asked = [
        ask(
            model="sdxl", prompt="a red apple", seed=seed, width=64, height=64,
            num_inference_steps=3 + seed % 2, guidance_scale=scale,
            controls=(
                Control(model="union", image=picture(seed), mode=seed, guess=seed == 2),
                *((control_of_xl(),) if seed == 4 else ()),
            ),
        )
        for seed, scale in ((0, 4.0), (1, 4.0), (2, 4.0), (3, 1.0), (4, 4.0), (5, 7.0))
    ]  # fmt: skip
    with Engine(
        [from_pipeline(tiny.build("sdxl"), name="sdxl")], device="cpu", home=home, backend="torch"
    ) as started:
        alone = {k: run(started, request) for k, request in enumerate(asked)}
        stormy = storm(started, asked, random.Random(2), cancels=1)
    assert differing(alone, stormy) == []
    assert len({answer.images[0].data for answer in alone.values()}) == len(asked)


def control_of_xl():
    return Control(model="xl-net", image=picture(8), scale=0.5)
