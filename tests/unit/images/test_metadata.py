import io
import json

import numpy as np
import pytest
from PIL import Image
from sd_parsers import ParserManager

from mezzotint.errors import ImageError
from mezzotint.images.codec import encode
from mezzotint.images.metadata import (
    build_recipe,
    canonical_json,
    make_infotext,
    read_recipe,
)
from mezzotint.request import GenerationRequest

PIXELS = np.zeros((8, 8, 3), np.uint8)
REQUEST = GenerationRequest(
    prompt="a red apple, on a table: wide\nsecond line (soft:1.2)",
    negative_prompt="blurry, dark",
    scheduler="euler_ancestral",
    sigma_schedule="karras",
    num_inference_steps=20,
    guidance_scale=5.5,
    num_images=4,
    priority=3,
)
RESOLVED = {"seed": 7, "width": 128, "height": 96}
PLACE = {"model_digest": "45dee52b73" + "0" * 54, "device": "cpu"}


def recipe(**changes):
    return build_recipe({**REQUEST.to_dict(), **changes}, resolved=RESOLVED, environment=PLACE)


def infotext(**changes):
    return make_infotext(recipe(**changes), version="mezzotint 0.1.0")


def embed(kind, **changes):
    text = canonical_json(recipe(**changes))
    return encode(PIXELS, kind, parameters=infotext(**changes), recipe=text)


def test_the_recipe_digest_is_known_and_does_not_depend_on_the_place():
    first = build_recipe({"prompt": "x"}, resolved={"seed": 1}, environment={"device": "cpu"})
    other = build_recipe({"seed": 1, "prompt": "x"}, environment={"device": "cuda"})
    # printf '{"index":0,"request":{"prompt":"x","seed":1},"version":1}' | sha256sum
    assert first["digest"] == other["digest"]
    assert first["digest"].startswith("b148ff55a0c65095")


def test_the_recipe_holds_what_makes_the_picture_and_not_when():
    request = recipe()["request"]
    assert request["seed"] == 7
    assert request["width"] == 128
    assert not {"num_images", "priority", "deadline_s", "gates"} & set(request)
    again = GenerationRequest.from_dict(recipe()["request"])
    assert again == GenerationRequest.from_dict(
        {**REQUEST.to_dict(), **RESOLVED, "num_images": 1, "priority": 0}
    )


def test_seeds_beyond_53_bits_survive_json_readers():
    made = build_recipe({}, resolved={"seed": 2**64 - 1})
    assert made["request"]["seed"] == "18446744073709551615"
    assert GenerationRequest.from_dict(made["request"]).seed == 2**64 - 1


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("prompt", ["plain", "café", "猫 🍎 и яблоко", "a" * 20_000])
def test_the_recipe_comes_back_from_every_format(kind, prompt):
    data = embed(kind, prompt=prompt)
    assert read_recipe(data) == recipe(prompt=prompt)
    assert Image.open(io.BytesIO(data)).size == (8, 8)


def test_a_recipe_larger_than_a_jpeg_segment_comes_back():
    image = "A" * 300_000
    assert read_recipe(embed("jpeg", image=image)) == recipe(image=image)


def test_a_picture_without_a_recipe_has_none():
    assert read_recipe(encode(PIXELS)) is None
    assert read_recipe(b"nothing") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "broken"),
        ("[]", "broken"),
        ('{"version": 9, "request": {}, "digest": ""}', "version 9"),
        (canonical_json({**recipe(), "digest": "0" * 64}), "changed"),
        (canonical_json({**recipe(), "request": {"prompt": "another"}}), "changed"),
    ],
)
def test_a_recipe_that_was_tampered_with_is_an_error(text, message):
    with pytest.raises(ImageError, match=message):
        read_recipe(encode(PIXELS, recipe=text))


def test_the_text_is_a1111s_grammar_in_its_order():
    assert infotext().split("\n") == [
        "a red apple, on a table: wide",
        "second line (soft:1.2)",
        "Negative prompt: blurry, dark",
        "Steps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 5.5, Seed: 7, "
        "Size: 128x96, Model hash: 45dee52b73, Model: plate, RNG: CPU, Version: mezzotint 0.1.0",
    ]


def test_latin_text_is_a_text_chunk_and_other_text_an_international_one():
    assert b"tEXtparameters" in embed("png", prompt="café")
    assert b"iTXtparameters" in embed("png", prompt="猫")


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_the_reader_library_reads_our_text_back_to_the_same_fields(kind):
    info = ParserManager().parse(io.BytesIO(embed(kind)))
    sampler = info.samplers[0]
    assert info.full_prompt == REQUEST.prompt
    assert info.full_negative_prompt == "blurry, dark"
    assert sampler.name == "Euler a"
    assert sampler.parameters == {
        "scheduler": "Karras",
        "cfg_scale": "5.5",
        "seed": "7",
        "steps": "20",
    }
    assert (sampler.model.name, sampler.model.hash) == ("plate", "45dee52b73")
    assert info.metadata == {"Size": "128x96", "RNG": "CPU", "Version": "mezzotint 0.1.0"}


def test_commas_stay_out_of_model_names():
    assert "Model: a_ b," in infotext(model="a, b")


def test_a_gan_has_neither_steps_nor_sampler():
    text = make_infotext(recipe(prompt=""), has_steps=False)
    assert "Steps" not in text
    assert "Seed: 7, Size: 128x96" in text


def test_loras_and_strength_are_in_the_text():
    text = infotext(loras=[{"name": "ink", "scale": 0.8}], image="AAAA", strength=0.4)
    assert "<lora:ink:0.8>" in text
    assert "Denoising strength: 0.4" in text


def test_a_guidance_schedule_shows_its_first_scale():
    assert "CFG scale: 9," in infotext(guidance_scale={"schedule": "list", "values": [9, 2]})


def test_the_recipe_is_json_that_pillow_can_read():
    assert json.loads(Image.open(io.BytesIO(embed("png"))).text["mezzotint"])["version"] == 1
