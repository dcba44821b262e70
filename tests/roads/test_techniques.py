"""Techniques share calls with everybody and change nobody's bytes."""

import hashlib
import io
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests import tiny
from tests.roads.test_exactness import differing, run, storm

from mezzotint.models.formats.components import from_pipeline
from mezzotint.request import (
    EnsembleMember,
    GenerationRequest,
    GuidanceSchedule,
    Lora,
    Region,
    Walk,
)
from mezzotint.service.engine import Engine
from mezzotint.types import ImageInput


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("home")
    (home / "loras").mkdir()
    first, second = tiny.build("sd1"), tiny.sd1(seed=900)
    write_lora(first.unet, home / "loras" / "ink.safetensors")
    models = [from_pipeline(first, name="sd"), from_pipeline(second, name="other")]
    with Engine(models, device="cpu", home=home, backend="torch") as started:
        yield started


def write_lora(unet, path):
    """Write a rank-2 LoRA over every query projection, in diffusers' layout."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for name, layer in unet.named_modules():
        if name.endswith("to_q"):
            rows, columns = layer.weight.shape
            down = torch.randn((2, columns), generator=generator)
            up = torch.randn((rows, 2), generator=generator)
            tensors[f"unet.{name}.lora_A.weight"] = down
            tensors[f"unet.{name}.lora_B.weight"] = up
    save_file(tensors, path)


def ask(**fields):
    defaults = {
        "model": "sd", "prompt": "a red apple", "seed": 5, "num_inference_steps": 3,
        "scheduler": "dpmpp_2m", "guidance_scale": 4.0,
    }  # fmt: skip
    return GenerationRequest(**{**defaults, **fields})


def pixels(engine, request):
    return engine.generate(request).images[0].pixels


def picture(mode="RGB"):
    level = np.linspace(0, 255, 64, dtype=np.uint8)
    array = np.tile(level, (64, 1))
    stream = io.BytesIO()
    Image.fromarray(array).convert(mode).save(stream, "PNG")
    return ImageInput(stream.getvalue())


TECHNIQUES = {
    "image": {"image": picture(), "strength": 0.7},
    "mask": {"image": picture(), "mask": picture("L"), "strength": 1.0},
    "lora": {"loras": (Lora(name="ink", scale=0.7),)},
    "more lora": {"loras": (Lora(name="ink", scale=-0.4),), "seed": 9},
    "regions": {
        "regions": (
            Region(prompt="a cat", box=(0, 0, 0.5, 1), negative_prompt="blue"),
            Region(prompt="a leaf", box=(0.5, 0, 1, 1), start=0.4),
        )
    },
    "masked region": {"regions": (Region(prompt="a cat", mask=picture("L")),)},
    "ensemble": {
        "ensemble": (
            EnsembleMember(model="sd", weight=2.0),
            EnsembleMember(model="other", weights=(0.0, 1.0, 2.0)),
        )
    },
    "placed ensemble": {
        "ensemble": (
            EnsembleMember(model="sd"),
            EnsembleMember(model="other", box=(0, 0, 0.5, 1)),
            EnsembleMember(model="other", mask=picture("L"), weight=3.0),
        )
    },
    "walk": {"walk": Walk(to="two cats", frames=3, mode="both", to_seed=8)},
    "curve": {"guidance_scale": GuidanceSchedule(schedule="cosine", start=8, end=1, rescale=0.5)},
    "plain": {},
    "plain ancestral": {"scheduler": "euler_ancestral", "seed": 2},
}


def test_a_storm_of_all_techniques_gives_the_same_bytes_as_each_alone(engine):
    requests = [ask(**fields) for fields in TECHNIQUES.values()]
    solo = {k: run(engine, request) for k, request in enumerate(requests)}
    stormy = storm(engine, requests, random.Random(4), cancels=2)
    assert [list(TECHNIQUES)[k] for k in differing(solo, stormy)] == []


def test_every_technique_changes_the_picture_and_counts_its_calls(engine):
    plain = pixels(engine, ask())
    for name, fields in TECHNIQUES.items():
        if "plain" in name:
            continue
        request = ask(**fields)
        result = engine.generate(request)
        image = result.images[-1]
        assert not np.array_equal(image.pixels, plain), name
        planned = engine.plan(request)["cost"]["model_calls"]
        fresh = run(engine, request)
        assert sum(i.timings.model_calls for i in fresh.images) == planned, name


def test_a_lora_never_leaks_into_the_next_request(engine):
    before = run(engine, ask()).images[0].data
    run(engine, ask(loras=(Lora(name="ink"),)))
    assert run(engine, ask()).images[0].data == before


def test_a_lora_named_twice_acts_with_the_sum_of_its_scales(engine):
    """Diffusers refuses the second of a name; a server that renames it uses the last alone."""
    twice = pixels(engine, ask(loras=(Lora(name="ink", scale=0.3), Lora(name="ink", scale=0.4))))
    once = pixels(engine, ask(loras=(Lora(name="ink", scale=0.7),)))
    assert np.abs(twice.astype(int) - once).max() <= 1
    assert np.abs(twice.astype(int) - pixels(engine, ask())).max() > 10


def test_a_lora_of_scale_zero_is_no_lora(engine):
    assert np.array_equal(
        pixels(engine, ask(loras=(Lora(name="ink", scale=0.0),))), pixels(engine, ask())
    )


def test_a_region_over_everything_with_the_same_prompt_is_the_plain_picture(engine):
    region = Region(prompt="a red apple", box=(0, 0, 1, 1), feather=0)
    assert np.array_equal(pixels(engine, ask(regions=(region,))), pixels(engine, ask()))


def test_a_region_over_everything_is_the_picture_of_its_prompt(engine):
    region = Region(prompt="two blue cats", box=(0, 0, 1, 1), feather=0)
    expected = pixels(engine, ask(prompt="two blue cats"))
    assert np.array_equal(pixels(engine, ask(regions=(region,))), expected)


def test_a_mask_of_any_size_and_mode_is_read(engine):
    expected = pixels(engine, ask(prompt="two blue cats"))
    for mode, level in (("RGBA", (255,) * 4), ("L", 255), ("I;16", 65535), ("1", 1)):
        stream = io.BytesIO()
        Image.new(mode, (7, 5), level).save(stream, "PNG")
        region = Region(prompt="two blue cats", mask=ImageInput(stream.getvalue()))
        assert np.array_equal(pixels(engine, ask(regions=(region,))), expected), mode
    assert np.array_equal(pixels(engine, ask(regions=())), pixels(engine, ask()))


def test_an_ensemble_of_a_model_with_itself_is_the_model(engine):
    twice = (EnsembleMember(model="sd"), EnsembleMember(model="sd"))
    assert np.array_equal(pixels(engine, ask(ensemble=twice)), pixels(engine, ask()))


def test_an_unknown_lora_names_the_known_ones(engine):
    with pytest.raises(ValueError, match="unknown lora 'inks'; did you mean 'ink'"):
        engine.submit(ask(loras=(Lora(name="inks"),)))


ALONE = """
import hashlib, sys, tempfile
from tests import tiny
from tests.roads.test_techniques import ask
import torch
from mezzotint.models.formats.components import from_pipeline
from mezzotint.service.engine import Engine
torch.set_num_threads(1)
with Engine([from_pipeline(tiny.build("sd1"), name="sd")], device="cpu",
            home=tempfile.mkdtemp(), backend="torch") as engine:
    print(hashlib.sha256(engine.generate(ask()).images[0].data).hexdigest())
"""


@pytest.mark.slow
def test_after_a_lora_a_picture_without_is_that_of_a_fresh_process(engine):
    for scale in (1.0, -2.0):
        run(engine, ask(loras=(Lora(name="ink", scale=scale),)))
    after = hashlib.sha256(run(engine, ask()).images[0].data).hexdigest()
    fresh = subprocess.run(
        [sys.executable, "-c", ALONE], capture_output=True, text=True, check=True
    )
    assert fresh.stdout.split()[-1] == after
